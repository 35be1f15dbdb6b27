"""The colour maps that answers are drawn with, as tables: drawing must not wait for a plotting library."""

from __future__ import annotations

import base64
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

# 256 colours of 3 bytes each, by Smith and van der Walt (public domain, CC0): even steps are seen as even.
_TABLES = {
    "magma": (
        "0009300aO41_1yE0RagC0Sf{G4FUoW0|OBR0}})U6$Jzr1_c=h1sezk9SH{?3I`$!2qX*%CJhQG4hkv{3oH-"
        "}FA)qe5)CsH4K)=GI2H~%7Y{rb4?h|ZK^qW691unx5J?{qOCS+VA`ws{5mF@)RVEQvC=ppI5nL+~UM&z{FA!od5M?qDXEYFKH4kb"
        "x4{SLPZaWWeJP&a`4{|^cb3zYvLl1RD4|YcncSsO;N)UNV5P3}zdQTC1P!fAm5`0q=d{q;DR}_6%6@FS3ep?oPT^D{{7k^+Fe_<G"
        "ZV;O&C8h~aRfM^?lX&iuS9Dr;cfNmavZytehAAxfpfpj2&b|HaxA%S@!fqEi=d?SH=B!Pb<fq^A~f+c~3CV_<}frlr7i70`JD1nS"
        "AfQ>1Dk1BwXDu9wJfRrnMl`MdlEPt6Tf0`|SoGyQ!E`FacexWaZqcDD?Fny*meWx*fsWN=4GkmNwd#*HlurzzIHF~o(dbKurwl;a"
        "VH+Z=>c)K`vy*YQjId;H0b;3Gz!#i}vJaoo9bI3h%%06<-K5@-"
        "IaLzz*&_Qp}LT=MSZPY_;)<kUAMQhncYT8F>+(>ENNod|mXW&a_;Y?=YO=aXxWaUs}=22qjQex;-"
        "Vd_<2>sDawSYPc~U+!C8?p<B)US05DUGZUD@?%`{WnA-TTl8pK^=e!7Y+LqjTlR2U_i<bIb6og!T=;if`FULVdtLc`UHX4s`hZ^g"
        "f?xZDVEcw(`-oxtiemhXWBiU|{E%e)l4bmpX8o0C{g-I{nQ8r-YW<yS{hw_8p>F-6Z~dfj{-"
        "$yMsB`|RbpEV${;qcZuXz5kdH%C|{<VDmw|)M(fBw6G{=9<zzJvb2h5o{Z{=|s>#)<yNi~h-t{>zU2&5-"
        "@ilKs(>{nC~F)R+C%nElwA{o0)U+@1a1pZ(vV{o$kh<E8xNru^op{OGFu>a6_iuKez>{P3~-@w5E%wfyzB`}eu~`Mdl2z5D#X"
    ),
    "viridis": (
        "L;+Mp0#!r<S49O_MFv_$2wO%8Tt*9CMhss@4q-<RVn-2UM-pX66lO;iXGa!kM;K~I8EZ%yY)Bk#NF8rT9&kt?aY!L@NFsAcBXmb4"
        "bw?(4M<;hjD0oLIc}FXHM=X0rEqq2Vd`2*RMlpUxGJi!he?>KbMK*y%H-"
        "SVsf<rokLpy^*JcL3$ghD=rLO_K<L54v>hCoAyKtzW>MTb8}h(1V&K1qo^N{Ky7i9Jk-JWYx`PKrBFiaSw?I#P=|Q;RuNi#b(`I9"
        "7`|SBy7Uj5k?~Hd>4}TZ}baj5S@1G+vD~UyU<hjWc15GGdJ~V~sInjWK17F=mZ0XN@pujW219FKUf0YmP2#jxKGEEpCo2Z;mW*jx"
        "2GGEOL%3bB-%?jw*GIDt3-4caAA|jwyMLD0+@4dX6Z2jwgJMCw-15evT%8jwXPPCV`G6f{rDFjU<GPB!!J6hK(bKjU$MSBZ-"
        "Y7iH#zPjUtPUA&iY7jf^3Vj3AGUAdrk8k&GXbj31MWAC!w9m5U#iiyoJX9+-+AnTj5niXNJY9-E0CoQWQth#sDZ9-"
        "oLFpobr!haaMbAESmKq=g`*g(0SeA*X~Qr-UP@gCnVeB&vcXtAQr0fhVniD6W4guYW4Aek-wkEU|qqvV1SIdoZ+mGPQa$ws|$Tcs"
        "96qIJtH?xpq6cbv?UuKD={4y>ddnaYVjwMZa%Hz-~#wZA-"
        "#zO~PwW!)Z~(Xj8>!RmNsl#${Q@WLwB$Uddr#$zWp2Uu4T&XUtq_%v)>CS#8c(aL!h8&sB8LRCmx)dC^gP(ocTUPJz=*gVRff)Jc"
        "fdM~l@)jn+hv)<crlL6z4(m)Jg<*gT!tI-l7%qS`m5+BK)!GpgG%t=urL+%B@+EVbP$x7{ha-Y31@Ccob#!rvmr-"
        "yz4~AIjh!&EOr+;T+Q88`R+%*Wwx4;uzfG7~kU<;o}(O;~3}U8R_I1?Bp8m<s0$k9P{NK_U0e><{|p#BK_wi"
    ),
}


def coloured(name: str, shade: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colours ... x 3 for shades in [0, 1], of any shape; black where a shade is NaN.

    Args:
        name: `magma` or `viridis`.
        shade: Shades, float; what is beyond 0 or 1 gets the first or the last colour.
    """
    known = ~np.isnan(shade)
    index = np.clip(np.where(known, shade, 0) * 256, 0, 255).astype(np.uint8)
    return np.where(known[..., None], table(name)[index], np.uint8(0))


@functools.cache
def table(name: str) -> NDArray[np.uint8]:
    """Return the 256 colours of a map, 256 x 3."""
    return np.frombuffer(base64.b85decode(_TABLES[name]), np.uint8).reshape(256, 3)
