"""Reading single files of other people's data: whatever is wrong with one is said with its path."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medusa_cl.data.mat import check_skeleton
from medusa_cl.errors import DataError, MedusaError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]

TIFF = (".tif", ".tiff")
_ORIENTATION = 0x0112  # the EXIF tag


@contextmanager
def reading(path: Path, sample: bool = True) -> Iterator[None]:
    """Turn whatever a reader raises about a file into a `DataError` that names it.

    Args:
        path: The file.
        sample: Whether it belongs to one image, which can be left out; lists of images and the like cannot.
    """
    again = "Copy or unpack it again" + (", or leave it out with on_bad_sample=skip." if sample else ".")
    try:
        yield
    except MedusaError:
        raise
    except FileNotFoundError as error:
        otherwise = ", or take it out of the split file." if sample else "."
        raise DataError(f"{path} does not exist. Put it back{otherwise}") from error
    except MemoryError as error:
        raise DataError(f"{path}: its header asks for more memory than there is. {again}") from error
    except Exception as error:  # readers of damaged files raise anything, UnboundLocalError and TokenError among it
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}. Is it truncated or damaged? {again}") from error


@contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """Turn what the system raises about folders that cannot be listed or entered into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be looked into: {error.strerror or error}. Check who may read it."
        ) from error


def read_image(path: Path) -> Array:
    """Read a picture as H W 3 uint8 RGB.

    Raises:
        DataError: It is missing, damaged, or of more than 8 bits.
    """
    with reading(path), _opened(path) as picture:
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            raise DataError(
                f"{path} is to be turned to be seen upright (its EXIF orientation says so), so its pixels may not lie "
                "as its targets do. Save it upright."
            )
        if picture.mode.startswith(("I", "F")):
            raise DataError(f"{path}: expected a picture of 8 bits a channel, but got PIL mode {picture.mode}.")
        return np.array(picture.convert("RGB"))


def read_map(path: Path, spread: bool = False) -> Array:
    """Read a target as it is stored: pictures of 1 to 16 bits (a palette's indices, not its colours), NPY, TIFF.

    Args:
        path: The file.
        spread: Give grey of 1, 2 or 4 bits as shares of 255, as shades are meant, not as the numbers 0, 1, 2, ...

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
            return _read_tiff(path)
        return _read_picture(path, spread)


def _read_tiff(path: Path) -> Array:
    import tifffile

    def hushed(record: logging.LogRecord) -> bool:
        return False  # what it logs of a damaged file is raised too, or harmless

    logger = logging.getLogger("tifffile")
    logger.addFilter(hushed)
    try:
        return np.asarray(tifffile.imread(path))
    finally:
        logger.removeFilter(hushed)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open a picture; PIL warns of large ones, which are nothing unusual here."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(path)
    with picture:
        yield picture


def _read_picture(path: Path, spread: bool) -> Array:
    with path.open("rb") as file:
        header = file.read(26)
    if header[1:4] == b"PNG" and header[24:25] == b"\x10" and header[25:26] != b"\x00":
        raise DataError(f"{path}: 16 bits in several channels would be cut to 8. Save it as NPY or float TIFF.")
    grey = header[1:4] == b"PNG" and header[25:26] == b"\x00"
    bits = header[24] if grey else 8
    with _opened(path) as picture:
        if picture.mode == "1":
            bits, stored = 1, np.array(picture.convert("L"))
        else:
            stored = np.array(picture)
    # PIL gives grey of fewer than 8 bits as shares of 255.
    return stored if spread or bits >= 8 else stored // np.uint8(255 // (2**bits - 1))


def read_mat(path: Path, *keys: str, sample: bool = True) -> tuple[Any, ...]:
    """Read variables of a MATLAB file of version 5 to 7.

    Args:
        path: The file.
        keys: The variables' names.
        sample: See `reading`.

    Raises:
        DataError: It is missing or damaged, lacks a variable, or is of version 7.3.
    """
    import scipy.io

    with reading(path, sample):
        with path.open("rb") as file:
            if b"7.3" in file.read(128)[:40]:
                raise DataError(
                    f"{path} is a MATLAB v7.3 file (HDF5), but version 5 is expected here. Save it with -v7."
                )
        check_skeleton(path)
        found = scipy.io.loadmat(str(path), variable_names=list(keys))
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
    with reading(path), _opened(path) as picture:
        return picture.height, picture.width


def ids_of(path: Path, blanks: bool = False) -> list[str]:
    """Return the image ids of a split file: one a line, empty lines left out.

    Args:
        path: The file.
        blanks: Whether ids may hold blanks; else what follows the first one is left out.

    Raises:
        DataError: It is missing, empty, no text, or names an image twice.
    """
    with reading(path, sample=False):
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows write a mark at the start
    ids = [line.strip() if blanks else line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path} lists no image. Expected one image id a line.")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"{path} lists {twice} twice. Name each image once.")
    return ids


def splits_of(lists: Mapping[str, Path], blanks: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the image ids of each split's file, as `ids_of` reads it.

    Raises:
        DataError: A file is not right, or two of them list one image.
    """
    splits = {split: tuple(ids_of(path, blanks)) for split, path in lists.items()}
    seen: dict[str, Path] = {}
    for split, images in splits.items():
        for image in images:
            if image in seen:
                raise DataError(
                    f"{lists[split]} lists {image}, which {seen[image].name} lists too. An image belongs to one split."
                )
            seen[image] = lists[split]
    return splits


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
