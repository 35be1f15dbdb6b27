"""The skeleton of MATLAB files of version 5 to 7: looked at before scipy reads one, which crashes on damaged tags.

Layout: MathWorks, "MAT-File Format" (R2024a), chapter 1: a header of 128 bytes, then elements of a type, a size and a
content; a matrix is an element whose content is elements again, and a compressed element holds one more.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_UINT32, _MATRIX, _COMPRESSED = 6, 14, 15
_WHOLE, _LETTERS = (5, 6), (1, 16)  # some programs write sizes without a sign, names in UTF-8
_NUMBERS = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18))
_CELL, _STRUCT, _OBJECT, _SPARSE = 1, 2, 3, 5
_NUMERIC_CLASSES = range(4, 16)  # text, sparse, and numbers of all types
_LARGEST = 1 << 30  # bytes of an element once it is unpacked
Element = tuple[int, memoryview]


def check_skeleton(path: Path) -> None:
    """Refuse a file whose elements do not lie as the format says; their numbers may still be damaged.

    Raises:
        ValueError: They do not; says which.
    """
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise ValueError("its header is not that of a MATLAB file")
    for kind, inside in _elements(content[128:], order):
        _check_variable(kind, inside, order)


def _check_variable(kind: int, content: memoryview, order: str) -> None:
    if kind == _COMPRESSED:
        unpacked = zlib.decompressobj()
        content = memoryview(unpacked.decompress(content, _LARGEST))
        if not unpacked.eof:
            raise ValueError("a compressed variable is cut short, or is too large")
        for kind_inside, inside in _elements(content, order):
            _expect(kind_inside == _MATRIX, f"a variable, but a compressed element holds one of type {kind_inside}")
            _check_matrix(inside, order)
    else:
        _expect(kind == _MATRIX, f"a variable, but got an element of type {kind}")
        _check_matrix(content, order)


def _elements(content: memoryview, order: str) -> Iterator[Element]:
    place = 0
    while place < len(content):
        _expect(len(content) - place >= 8, "a tag of 8 bytes at the end")
        kind, size = struct.unpack_from(f"{order}II", content, place)
        begin = place + 8
        if kind >> 16:  # up to 4 bytes lie in the tag itself
            kind, size, begin = kind & 0xFFFF, kind >> 16, place + 4
            _expect(size <= 4, f"at most 4 bytes in a tag, but got {size}")
        end = begin + size
        _expect(end <= len(content), f"{size} bytes, but the file ends {end - len(content)} before")
        yield kind, content[begin:end]
        padded = -(-end // 8) * 8
        place = end if kind == _COMPRESSED else max(padded, place + 8)


def _check_matrix(content: memoryview, order: str) -> None:
    if not len(content):  # an empty cell, or a field without a value
        return
    elements = list(_elements(content, order))
    kinds = [kind for kind, _ in elements]
    known = len(kinds) >= 3 and kinds[0] == _UINT32 and kinds[1] in _WHOLE and kinds[2] in _LETTERS
    _expect(known, f"flags, sizes and name of a variable, but got types {kinds[:3]}")
    flags, sizes, _ = (inside for _, inside in elements[:3])
    _expect(len(flags) == 8 and len(sizes) >= 8 and len(sizes) % 4 == 0, "flags of 8 bytes and at least two sizes")
    of_class = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    counts = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    _expect(min(counts) >= 0, f"sizes of at least 0, but got {counts}")
    _check_parts(of_class, math.prod(counts), elements[3:], order)


def _check_parts(of_class: int, count: int, parts: list[Element], order: str) -> None:
    """Check what a variable of a class holds, `count` being the product of its sizes."""
    if of_class in _NUMERIC_CLASSES:
        _expect(all(kind in _NUMBERS for kind, _ in parts), f"numbers, but got types {[kind for kind, _ in parts]}")
        _expect(of_class == _SPARSE or bool(parts), "numbers, but a variable has none")
        return
    _expect(of_class in (_CELL, _STRUCT, _OBJECT), f"a variable of a known class, but got class {of_class}")
    fields = 1
    if of_class != _CELL:
        parts = parts[of_class == _OBJECT :]  # the name of its class
        named = len(parts) >= 2 and parts[0][0] in _WHOLE and parts[1][0] in _LETTERS and len(parts[0][1]) >= 4
        _expect(named, "the names of a structure's fields")
        (length,) = struct.unpack(f"{order}i", parts[0][1][:4])
        _expect(length > 0 and len(parts[1][1]) % length == 0, f"names of {length} letters")
        fields, parts = len(parts[1][1]) // length, parts[2:]
    _expect(len(parts) == count * fields, f"{count * fields} parts, but got {len(parts)}")
    for kind, inside in parts:
        _expect(kind == _MATRIX, f"a variable in a cell or field, but got type {kind}")
        _check_matrix(inside, order)


def _expect(met: bool, what: str) -> None:
    if not met:
        raise ValueError(f"expected {what}")
