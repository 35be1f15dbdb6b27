"""Anybody's pictures: found in a folder, named without two being one, and read as H W 3 RGB whatever their format."""

from __future__ import annotations

import importlib
import os
import stat
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medusa_cl.errors import ConfigError, DataError, MissingDataError, printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow>=11.3"}  # what to install where needed
# Pillow knows their names, but has no decoder of its own; and what is in PostScript is a program.
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_DEEP = ("I", "F")  # what PIL's modes of more than 8 bits a channel begin with
_BITS = (8, 12, 16)  # of a channel, where the file does not say how many
_MAX_VALUE, _BITS_STORED = 281, 258  # tags of TIFF
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Found:
    """The pictures of a folder.

    Attributes:
        root: The folder.
        names: Their paths below it with "/", sorted.
        faults: Why a folder below it could not be looked into, or is no file to read, by its path.
        passed_over: How many other files there are, by suffix.
    """

    root: Path
    names: tuple[str, ...]
    faults: Mapping[str, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)


def suffixes() -> frozenset[str]:
    """Return the suffixes of pictures: those that Pillow reads, and those that it reads with another package."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(_PLUGINS) | {end for end, name in known if name in Image.OPEN and name not in _NO_PICTURES}


def find(images: Path, skip: Callable[[Path], bool]) -> Found:
    """List a picture, or those in a folder and its sub-folders; names that begin with "." are left out.

    Links to folders are followed, each folder once.

    Args:
        images: The file or the folder.
        skip: Whether to leave out a sub-folder.

    Raises:
        ConfigError: There is nothing of that name.
        MissingDataError: No picture is in the folder.
        DataError: The folder cannot be looked into.
    """
    if images.is_file():
        return Found(images.parent, (images.name,))
    if not images.is_dir():
        odd = f"{printable(images)} is {_no_file(images)}" if images.exists() else f"there is no {printable(images)}"
        raise ConfigError(f"Expected images= a picture or a folder of pictures, but {odd}.")
    faults: dict[str, str] = {}
    names, others = [], Counter[str]()
    known = suffixes()
    for path in _files(images, skip, faults):
        if path.suffix.lower() not in known:
            others[path.suffix.lower()] += 1
        elif path.is_file():
            names.append(_below(path, images))
        else:
            faults[str(path)] = _no_file(path)
    if str(images) in faults:
        raise DataError(f"{printable(images)} cannot be looked into: {faults[str(images)]}. Check who may read it.")
    if not names and not faults:
        held = f" It holds {counted(others)}." if others else ""
        raise MissingDataError(
            f"No picture is in {printable(images)} or its sub-folders.{held} Looked for .jpg, .png, .heic and all else "
            "that Pillow reads (images=FILE takes any name)."
        )
    below = {_below(Path(path), images): why for path, why in faults.items()}
    return Found(images, tuple(sorted(names)), below, dict(others))


def counted(others: Mapping[str, int]) -> str:
    """Return suffixes and how many files have each, the most frequent first."""
    most = sorted(others.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{printable(end) or 'no suffix'} {count}" for end, count in most[:8]) + ", ..." * (len(most) > 8)


def _files(root: Path, skip: Callable[[Path], bool], faults: dict[str, str]) -> Iterator[Path]:
    """Yield all that is no folder; links to folders come last, so that what can be reached without has its own name."""

    def note(error: OSError) -> None:
        faults[str(error.filename)] = error.strerror or str(error)

    here, seen, tops = root.resolve(), set[tuple[int, int]](), deque([root])
    while tops:
        for folder, inner, files in os.walk(tops.popleft(), onerror=note):
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in seen:
                inner.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
            inner[:] = sorted(name for name in inner if not name.startswith(".") and not skip(Path(folder, name)))
            for link in (path for name in inner if (path := Path(folder, name)).is_symlink()):
                if here != link.resolve() and here.is_relative_to(link.resolve()):
                    faults[str(link)] = "a link to a folder around this one"
                else:
                    tops.append(link)
            yield from (Path(folder, name) for name in files if not name.startswith("."))


def _no_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing"
    return "a pipe, no file" if stat.S_ISFIFO(mode) else "a folder" if stat.S_ISDIR(mode) else "a device, no file"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def output_names(images: Sequence[str], endings: Collection[str]) -> dict[str, str]:
    """Return what each picture's outputs are called before their endings, so that no two outputs are one file.

    That is the picture's path without its suffix; with it for pictures that would share an output ("a.jpg" and "a.png",
    or "a.jpg" and "a_depth.jpg"), on file systems that ignore case too.

    Args:
        images: Paths below the folder.
        endings: The endings of the outputs of one picture, such as ".npz" and "_depth.png".
    """
    plain = {image: str(PurePosixPath(image).with_suffix("")) for image in images}
    uses = Counter(name for stem in plain.values() for name in _outputs(stem, endings))
    shared = {image for image, stem in plain.items() if any(uses[name] > 1 for name in _outputs(stem, endings))}
    taken: set[str] = set()
    names = {}
    for image in sorted(images, key=lambda image: (image in shared, image)):
        stem = image if image in shared else plain[image]
        while taken & _outputs(stem, endings):
            stem += "~"
        taken |= _outputs(stem, endings)
        names[image] = stem
    return {image: names[image] for image in images}


def _outputs(stem: str, endings: Iterable[str]) -> set[str]:
    return {f"{stem}{ending}".casefold() for ending in endings}


def read(path: Path) -> NDArray[np.uint8]:
    """Read a picture as H W 3 RGB, turned upright by its EXIF orientation.

    Of more than 8 bits a channel the upper 8 are taken (see `read_bits`); what is transparent lies on white; of several
    frames or pages the first is read. Colour profiles are not applied.

    Raises:
        DataError: It is missing, damaged, too large, or of no format that is known here.
    """
    return read_bits(path)[0]


def read_bits(path: Path) -> tuple[NDArray[np.uint8], int | None]:
    """Read a picture as `read` does, and return how many bits its grey was taken to have where its file did not say.

    Cameras put 12 bits into files of 16, and programs 8 bits into files of 16 or 32: where the largest value is below
    256 or 4096, it is taken for such a one. None where the file has as many bits as it has room for, or says how many.

    Raises:
        DataError: As `read`.
    """
    with _reading(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"it is {_no_file(path)}")
        with Image.open(path) as picture:
            picture.seek(0)
            said, wide = _said_bits(picture), ";16" in str(getattr(picture, "tile", ""))
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(_DEEP):
                return _from_deep(np.asarray(upright), said)
            image = np.array(_rgb(upright))
            if wide and 0 < image.max() < 16:  # of which the lower bits are lost already
                raise DataError("colours of 16 bits a channel that use 12 or fewer. Save it as a picture of 8 bits")
            return image, None


def _said_bits(picture: Picture) -> int | None:
    """Return of how many bits a file says that its grey is."""
    if picture.format in ("PPM", "JPEG2000"):
        return 16  # to which Pillow brings all of them
    tags: Any = getattr(picture, "tag_v2", {})
    if largest := tags.get(_MAX_VALUE):
        return int(np.max(largest)).bit_length()
    stored = int(np.max(tags.get(_BITS_STORED, 8)))
    return stored if stored % 8 else None


def _from_deep(values: NDArray[Any], said: int | None) -> tuple[NDArray[np.uint8], int | None]:
    """Bring grey of up to 16 bits, or shares of 1, to H W 3 of 8 bits, and return the bits that had to be guessed."""
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    if not (low >= 0 and high <= (1 if floats else 65535)):
        expected = "floats in 0..1" if floats else "grey of 16 bits"
        raise DataError(f"expected {expected}, but its values are {low:g} .. {high:g}. Save it as a picture of 8 bits")
    fits = 16 if floats else next(bits for bits in _BITS if high < 2**bits)
    bits = said if said and high < 2**said else fits
    grey = (values * 255 if floats else values >> max(bits - 8, 0)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), bits if bits < 16 and not said and high else None


def _rgb(picture: Picture) -> Picture:
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, _WHITE), whole).convert("RGB")
    return picture.convert("RGB")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises about a picture into a `DataError`, which begins with its path."""
    _ready(path.suffix.lower())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd tags: what matters is raised
            yield
    except FileNotFoundError as error:
        raise DataError(f"{printable(path)}: it does not exist (any more)") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{printable(path)}: {_unknown(path)}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{printable(path)}: {error} Make it smaller, or cut it") from error
    except MemoryError as error:
        raise DataError(f"{printable(path)}: its header asks for more memory than there is") from error
    except Exception as error:  # readers of damaged files raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{printable(path)}: {reason.rstrip('.')}") from error


def _ready(suffix: str) -> None:
    """Let PIL know the formats that a package of their own reads, where it is installed."""
    if suffix in (".heic", ".heif"):
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            return  # opening says so


def _unknown(path: Path) -> str:
    if not path.stat().st_size:
        return "it is empty"
    if plugin := _PLUGINS.get(path.suffix.lower()):
        return f'this format needs a package that is not installed: pip install "{plugin}"'
    return "no format of pictures that is known here, or damaged"
