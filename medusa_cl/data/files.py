"""Reading single files of other people's data: whatever is wrong with one is said with its path."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_cl.errors import DataError, unknown

Array = NDArray[Any]

# What damaged files make PIL, numpy, scipy, zlib and tifffile raise.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, NotImplementedError, zlib.error)
TIFF = (".tif", ".tiff")
_ORIENTATION = 0x0112  # the EXIF tag


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises about a file into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Put it back, or take it out of the split file.") from error
    except MemoryError as error:
        raise DataError(f"{path}: its header asks for more memory than there is. {_AGAIN}") from error
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}. It is truncated or damaged. {_AGAIN}") from error


_AGAIN = "Copy or unpack it again, or leave it out with on_bad_sample=skip."


def read_image(path: Path) -> Array:
    """Read a picture as H W 3 uint8 RGB.

    Raises:
        DataError: It is missing, damaged, or of more than 8 bits.
    """
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            raise DataError(
                f"{path} is to be turned to be seen upright (its EXIF orientation says so), so its pixels may not lie "
                "as its targets do. Save it upright."
            )
        if picture.mode.startswith(("I", "F")):
            raise DataError(f"{path}: expected a picture of 8 bits a channel, but got PIL mode {picture.mode}.")
        return np.array(picture.convert("RGB"))


def read_map(path: Path) -> Array:
    """Read a target as it is stored: pictures of 8 or 16 bits (a palette's indices, not its colours), NPY, TIFF.

    Returns:
        H W or H W C, of the file's own type.

    Raises:
        DataError: It is missing, damaged, or of no known format; NPY files of objects (pickle) are refused.
    """
    suffix = path.suffix.lower()
    with reading(path):
        if suffix == ".npy":
            # Mapped, a truncated file is an error; read, the bytes that are there would be taken.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        if suffix in TIFF:
            import tifffile

            return np.asarray(tifffile.imread(path))
        return _read_picture(path)


def _read_picture(path: Path) -> Array:
    from PIL import Image

    with path.open("rb") as file:
        header = file.read(26)
    if header[1:4] == b"PNG" and header[24:25] == b"\x10" and header[25:26] != b"\x00":
        raise DataError(f"{path}: 16 bits in several channels would be cut to 8. Save it as NPY or float TIFF.")
    with Image.open(path) as picture:
        if picture.mode == "1":
            return np.array(picture.convert("L"))  # the values 0 and 255
        return np.array(picture)


def read_mat(path: Path, *keys: str) -> tuple[Any, ...]:
    """Read variables of a MATLAB file of version 5 to 7.

    Raises:
        DataError: It is missing or damaged, lacks a variable, or is of version 7.3.
    """
    import scipy.io

    with reading(path):
        with path.open("rb") as file:
            if b"7.3" in file.read(128)[:40]:
                raise DataError(
                    f"{path} is a MATLAB v7.3 file (HDF5), but version 5 is expected here. Save it with -v7."
                )
        try:
            found = scipy.io.loadmat(str(path), variable_names=list(keys))
        except scipy.io.matlab.MatReadError as error:  # of an empty file, and no subclass of anything above
            raise ValueError(str(error)) from error
    for key in keys:
        if key not in found:
            names = [name for name, *_ in scipy.io.whosmat(str(path))]
            raise DataError(f"{path}: {unknown('variable', key, names)}")
    return tuple(found[key] for key in keys)


def image_size(path: Path) -> tuple[int, int]:
    """Return H, W of a picture, from its header alone.

    Raises:
        DataError: It is missing, or no picture.
    """
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        return picture.height, picture.width


def ids_of(path: Path) -> list[str]:
    """Return the image ids of a split file: one a line, empty lines and what follows a blank left out.

    Raises:
        DataError: It is missing, empty, no text, or names an image twice.
    """
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path} lists no image. Expected one image id a line.")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"{path} lists {twice} twice. Name each image once.")
    return ids


def require_files(paths: Iterable[Path], listed_in: Path | str) -> None:
    """Refuse a list of which some files are missing.

    Raises:
        DataError: Naming the first few and how many there are.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{listed_in} lists images whose files are missing: {shown}{more}. "
            "Unpack the data again, or take these images out of the list."
        )


def same_size(path: Path, values: Array, size: Sequence[int]) -> Array:
    """Return a target's values if they are as large as its image.

    Raises:
        DataError: They are not.
    """
    if tuple(values.shape[:2]) != tuple(size):
        got, expected = (" x ".join(map(str, shape)) for shape in (values.shape[:2], size))
        raise DataError(f"{path} is {got}, but its image is {expected}. Both must be of one size: unpack them again.")
    return values
