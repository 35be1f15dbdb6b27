"""Anybody's pictures: found in a folder, named without two being one, and read as H W 3 RGB whatever their format."""

from __future__ import annotations

import importlib
import os
import warnings
from collections import Counter
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

FORMATS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".heic",
    ".heif", ".avif",
)  # fmt: skip
_PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "pillow>=11.3"}  # what to install where needed
_DEEP = ("I", "F")  # what PIL's modes of more than 8 bits a channel begin with
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Found:
    """The pictures of a folder.

    Attributes:
        root: The folder.
        names: Their paths below it with "/", sorted.
        faults: Why a folder below it could not be looked into, by its path.
    """

    root: Path
    names: tuple[str, ...]
    faults: Mapping[str, str] = field(default_factory=dict)


def find(images: Path, skip: Callable[[Path], bool]) -> Found:
    """List a picture, or those in a folder and its sub-folders; names that begin with "." are left out.

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
        raise ConfigError(f"Expected images= a picture or a folder of pictures, but there is no {printable(images)}.")
    faults: dict[str, str] = {}
    names = sorted(_walk(images, skip, faults))
    if str(images) in faults:
        raise DataError(f"{printable(images)} cannot be looked into: {faults[str(images)]}. Check who may read it.")
    if not names and not faults:
        raise MissingDataError(
            f"No picture is in {printable(images)} or its sub-folders. Looked for {', '.join(FORMATS)} (images=FILE "
            "takes any name)."
        )
    return Found(images, tuple(names), {_below(Path(folder), images): why for folder, why in faults.items()})


def _walk(root: Path, skip: Callable[[Path], bool], faults: dict[str, str]) -> Iterator[str]:
    def note(error: OSError) -> None:
        faults[str(error.filename)] = error.strerror or str(error)

    for folder, inner, files in os.walk(root, onerror=note):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and not skip(Path(folder, name)))
        for name in files:
            if Path(name).suffix.lower() in FORMATS and not name.startswith("."):
                yield _below(Path(folder, name), root)


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

    Of more than 8 bits a channel the upper 8 are taken; what is transparent lies on white; of several frames or pages
    the first is read. Colour profiles are not applied.

    Raises:
        DataError: It is missing, damaged, too large, or of no format that is known here.
    """
    with _reading(path), Image.open(path) as picture:
        picture.seek(0)
        upright = ImageOps.exif_transpose(picture)
        return np.array(_rgb(upright))


def _rgb(picture: Picture) -> Picture:
    if picture.mode.startswith(_DEEP):
        return Image.fromarray(_upper_bits(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, _WHITE), whole).convert("RGB")
    return picture.convert("RGB")


def _upper_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring grey of 16 bits, or shares of 1, to 8 bits."""
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    if not (low >= 0 and high <= (1 if floats else 65535)):
        expected = "floats in 0..1" if floats else "grey of 16 bits"
        raise DataError(f"expected {expected}, but its values are {low:g} .. {high:g}. Save it as a picture of 8 bits")
    return (values * 255 if floats else values >> 8).astype(np.uint8)


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
