"""NYUD-v2's own file: `nyu_depth_v2_labeled.mat` with `splits.mat`.

The first is MATLAB v7.3, that is HDF5 after a block of 512 bytes, where h5py sees MATLAB's axes in reverse; text is
kept as references to arrays of UTF-16 codes. The second is MATLAB v5 and counts images from 1. Normals and edges are
not in the file: they are derived here, and said to be.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np

from medusa_cl.data.files import read_mat
from medusa_cl.data.geometry import Array, Intrinsics, edges_from_labels, normals_from_depth
from medusa_cl.data.hdf5 import FIELDS
from medusa_cl.data.nyud import CLASSES, CROP, CROP_CORNER, FULL, INTRINSICS
from medusa_cl.errors import DataError, MissingDataError, unknown

if TYPE_CHECKING:
    import h5py

FILE = "nyu_depth_v2_labeled.mat"
FILE_URL = f"https://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{FILE}"
SPLITS = "splits.mat"
SPLITS_URL = f"https://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/{SPLITS}"
MAPPING = "classMapping40.mat"

Crop = tuple[int, int, int, int]
"""Rows and columns that are kept: top, bottom, left, right; the second and the last are the first left out."""
VALID: Crop = (CROP_CORNER[0], CROP_CORNER[0] + CROP[0], CROP_CORNER[1], CROP_CORNER[1] + CROP[1])
"""Outside it, the file's pictures have a white frame and no measured depth."""

_NAMED = tuple(name.replace("_", " ") for name in CLASSES[:-3])  # the file's names have blanks
_OTHERPROP = len(CLASSES) - 1
# dataset -> axes that h5py sees, expected numpy type
_LAYOUT = {"images": (4, "u1"), "depths": (3, "f"), "rawDepths": (3, "f"), "labels": (3, "u"), "instances": (3, "u")}
_CACHE_LIMIT = 64 << 20


class NYUDMat:
    """Reads the file as a pack (see `medusa_cl.data.pack.Pack`): semseg of 40 classes, depth, normals and edges.

    The 894 names become 40 classes: 37 by the same name, all others "otherprop", unless `classMapping40.mat` lies
    beside the file, which tells otherstructure, otherfurniture and otherprop apart. Depth is `depths` where it was
    measured (`rawDepths` > 0). Edges are the boundaries of (class name, instance); inside unlabelled regions they are
    ignored, as nobody drew any there. Images are named by their number from 1, "0001".

    Args:
        path: The file, or its folder.
        splits: `splits.mat`; None = beside the file.
        crop: Rows and columns kept (see `Crop`); "valid" = `VALID` at 480 x 640 and everything at other sizes;
            None = everything.

    Raises:
        MissingDataError: There is no such file.
        DataError: The file or `splits.mat` is of another format, damaged or lacks something.
    """

    name = "raw file of NYUD-v2"

    def __init__(
        self, path: str | Path, splits: str | Path | None = None, crop: Crop | Literal["valid"] | None = "valid"
    ) -> None:
        self.root = _find(Path(path))
        self._file: h5py.File | None = None
        _READERS.add(self)
        with _open(self.root) as file:
            self._count, size = _check_layout(self.root, file)
            self._cache = _row_bytes(file)
            names = _names(self.root, file)
        self.crop = _crop_of(size, crop)
        mapping = self.root.with_name(MAPPING)
        self._mapping = mapping if mapping.is_file() else None
        self._classes = _by_name(self.root, names) if self._mapping is None else _by_mapping(self._mapping, names)
        self._splits_file = Path(splits) if splits is not None else self.root.with_name(SPLITS)
        self.splits = _read_splits(self._splits_file, self._count)
        self._images = {image for images in self.splits.values() for image in images}
        self.fields = {name: FIELDS[name] for name in ("semseg", "depth", "normals", "edges")}
        self.fields["semseg"] = replace(FIELDS["semseg"], limit=len(CLASSES) - 1, classes=CLASSES)
        self.derived = {
            "normals": "plane fit on inverse depth, 9x9, neighbours within 5 % of the depth",
            "edges": "boundaries of labels and instances, thinned",
        }
        self._intrinsics = _intrinsics(size, self.crop)
        self.attrs: dict[str, Any] = {
            "source": "nyud/mat",
            "source_frame": "rdf",
            "intrinsics": list(self._intrinsics),
            "crop": list(self.crop),
            "class_mapping": "by name, all others otherprop" if self._mapping is None else MAPPING,
        }

    def __repr__(self) -> str:
        return f"{self.root} ({self._count} images)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _READERS.add(self)

    def size(self, image: str) -> tuple[int, int]:
        """Return H, W of an image, the same for all."""
        self._row(image)
        top, bottom, left, right = self.crop
        return bottom - top, right - left

    def image(self, image: str) -> Array:
        """Return H W 3 uint8 RGB.

        Raises:
            DataError: There is no such image, or its bytes are damaged.
        """
        return self._read(image, "images")

    def has(self, image: str, target: str) -> bool:
        """Return whether an image has a target: each has all."""
        return image in self._images and target in self.fields

    def target(self, image: str, target: str) -> Array | None:
        """Return a target's values.

        Returns:
            semseg: H W uint8, 0..39, 255 ignored; depth: H W float32, metres, 0 ignored; normals: H W 3 float32, unit
            vectors in the camera frame, zero ignored; edges: H W uint8, 0 or 1, 255 ignored.

        Raises:
            DataError: There is no such image or target, its bytes are damaged, or a label has no name.
        """
        if target == "semseg":
            return self._classes[self._labels(image)]
        if target == "depth":
            return self._depth(image)
        if target == "normals":
            return normals_from_depth(self._depth(image), self._intrinsics)
        if target == "edges":
            labels = self._labels(image)
            edges = edges_from_labels(labels, self._read(image, "instances"))
            return np.where(edges, 1, np.where(labels > 0, 0, 255)).astype(np.uint8)
        raise DataError(f"{self.root}: {unknown('target', target, self.fields)}")

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        """Return the files from which a target (or "image") is read."""
        self._row(image)
        return (self.root, self._mapping) if target == "semseg" and self._mapping is not None else (self.root,)

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _depth(self, image: str) -> Array:
        depth, measured = self._read(image, "depths"), self._read(image, "rawDepths")
        known = np.isfinite(depth) & (depth > 0) & (measured > 0)
        return np.where(known, depth, 0).astype(np.float32)

    def _labels(self, image: str) -> Array:
        labels = self._read(image, "labels")
        if (largest := int(labels.max())) >= len(self._classes):
            raise DataError(
                f"{self.root}: image {image} has the label {largest}, but there are {len(self._classes) - 1} names. "
                f"`labels` and `names` are not of one file: fetch it again from {FILE_URL}."
            )
        return labels

    def _row(self, image: str) -> int:
        if image not in self._images:
            raise DataError(f"{self.root}: {unknown('image', image, self._images)}")
        return int(image) - 1

    def _read(self, image: str, dataset: str) -> Array:
        """Read one image's part of a dataset, its axes in the usual order, cropped: H W or H W 3."""
        row = self._row(image)
        try:
            if self._file is None:
                self._file = _open(self.root, self._cache)
            stored: Array = self._file[dataset][row]
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{self.root}: `{dataset}` of image {image} is damaged: {error}. {_AGAIN} "
                "Or leave the image out with on_bad_sample=skip."
            ) from error
        top, bottom, left, right = self.crop
        return np.ascontiguousarray(stored.T[top:bottom, left:right])  # 3 W H -> H W 3, and W H -> H W


_READERS: WeakSet[NYUDMat] = WeakSet()
_AGAIN = f"Fetch it again from {FILE_URL} (2,972,037,809 bytes)."


def _close_inherited() -> None:
    for reader in list(_READERS):
        reader.close()  # a forked handle shares its file offset with the parent's


os.register_at_fork(after_in_child=_close_inherited)


def _find(path: Path) -> Path:
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingDataError(f"Expected NYUD-v2's own file at {file}, but there is none. Fetch it from {FILE_URL}.")
    return file


def _open(path: Path, cache: int = 0) -> h5py.File:
    """Open a v7.3 file, or say why that cannot be; `cache` is in bytes a dataset."""
    import h5py  # only those who have this file need it

    try:
        with path.open("rb") as file:
            header = file.read(116)
        if header.startswith(b"MATLAB 5.0"):
            raise DataError(
                f"{path} is a MATLAB v5 file, but NYUD-v2's own file is of v7.3. "
                f"Give the path of {FILE}, not of another .mat, or fetch it from {FILE_URL}."
            )
        # Locks fail on many network file systems, and readers do not need them. The slots are a prime number.
        return h5py.File(path, "r", locking=False, rdcc_nbytes=max(cache, 1 << 20), rdcc_nslots=10_007)
    except PermissionError as error:
        raise DataError(f"{path} cannot be opened: {error}. Check who may read it.") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as MATLAB v7.3 (HDF5), it is cut short or of another format: {error}. {_AGAIN}"
        ) from error


@contextmanager
def _inside(path: Path, what: str) -> Iterator[None]:
    """Say which part of the file could not be read."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: {what} cannot be read: {error}. {_AGAIN}") from error


def _check_layout(path: Path, file: h5py.File) -> tuple[int, tuple[int, int]]:
    """Return how many images there are and their H, W."""
    with _inside(path, "the layout"):
        for name in (*_LAYOUT, "names"):
            if name not in file:
                raise DataError(f"{path} has no dataset `{name}`: {unknown('dataset', name, file)} {_AGAIN}")
        shapes = {name: tuple(file[name].shape) for name in _LAYOUT}
        kinds = {name: file[name].dtype.str for name in _LAYOUT}
    count, _, width, height = (*shapes["images"], 0, 0, 0, 0)[:4]
    for name, (axes, kind) in _LAYOUT.items():
        expected = (count, 3, width, height) if axes == 4 else (count, width, height)
        if shapes[name] != expected or kind not in kinds[name] or not all(expected):
            raise DataError(
                f"{path}: expected `{name}` as h5py sees MATLAB's arrays, {expected} (image, 3 for colours, column, "
                f"row) of a type like {kind!r}, but got {shapes[name]} of {kinds[name]!r}. {_AGAIN}"
            )
    return count, (height, width)


def _row_bytes(file: h5py.File) -> int:
    """Return the bytes of all chunks that one image lies in: kept, the next image costs nothing where it shares them.

    The chunks of the file in circulation are not documented; where one holds a single image this changes nothing.
    """
    return min(max(_chunk_bytes(file[name]) for name in _LAYOUT), _CACHE_LIMIT)


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    if dataset.chunks is None:
        return 0
    images, *chunk = dataset.chunks
    whole = (math.ceil(s / c) * c for s, c in zip(dataset.shape[1:], chunk, strict=True))  # the last ones stick out
    return int(images * math.prod(whole) * dataset.dtype.itemsize)


def _names(path: Path, file: h5py.File) -> list[str]:
    with _inside(path, "`names`"):
        references = file["names"][()].ravel()
        return [_text(file, reference) for reference in references]


def _text(file: h5py.File, reference: h5py.Reference) -> str:
    import h5py

    held = h5py.h5r.dereference(reference, file.id)  # five times as quick as file[reference]
    codes = np.empty(held.shape, np.uint16)
    held.read(h5py.h5s.ALL, h5py.h5s.ALL, codes)
    return "".join(map(chr, codes.ravel()))


def _by_name(path: Path, names: list[str]) -> Array:
    """Return the class of each label, 0 (unlabelled) first."""
    missing = [name for name in _NAMED if name not in names]
    if missing:
        raise DataError(
            f"{path}: `names` lacks {', '.join(missing[:3])} ({len(missing)} of NYUD-v2's {len(_NAMED)} named "
            f"classes), so its labels are not NYUD-v2's. {_AGAIN}"
        )
    classes = [_NAMED.index(name) if name in _NAMED else _OTHERPROP for name in names]
    return np.array([255, *classes], np.uint8)


def _by_mapping(path: Path, names: list[str]) -> Array:
    """Return the class of each label from `mapClass`, which must agree with the names."""
    (found,) = read_mat(path, "mapClass", sample=False)
    numbers = np.ravel(found)
    if len(numbers) != len(names) or not np.isin(numbers, np.arange(1, len(CLASSES) + 1)).all():
        raise DataError(
            f"{path}: expected `mapClass` with {len(names)} numbers in 1..{len(CLASSES)}, one a name, "
            f"but got {len(numbers)} in {_range(numbers)}. Take the file away to map by name."
        )
    for name, number in zip(names, numbers, strict=True):
        if name in _NAMED and _NAMED.index(name) != number - 1:
            raise DataError(
                f'{path}: `mapClass` makes "{name}" the class {CLASSES[number - 1]}: it belongs to another list of '
                "names. Take the file away to map by name."
            )
    return np.array([255, *(int(number) - 1 for number in numbers)], np.uint8)


def _read_splits(path: Path, count: int) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        raise DataError(
            f"{path} is missing: the file of images does not say which are for training. "
            f"Put {SPLITS} there; it is at {SPLITS_URL}."
        )
    numbers = {split: np.ravel(found) for split, found in zip(("train", "test"), _indices(path), strict=True)}
    for split, found in numbers.items():
        if not len(found) or found.dtype.kind not in "iuf" or not np.isin(found, np.arange(1, count + 1)).all():
            raise DataError(
                f"{path}: expected {split}Ndxs as whole numbers in 1..{count}, the number of images, but got "
                f"{len(found)} in {_range(found)}. It belongs to another file: fetch it from {SPLITS_URL}."
            )
    both = np.concatenate(list(numbers.values()))
    if len(np.unique(both)) < len(both):
        raise DataError(f"{path} lists an image twice, or for training and test. Fetch it from {SPLITS_URL}.")
    return {split: tuple(f"{int(number):04d}" for number in found) for split, found in numbers.items()}


def _indices(path: Path) -> tuple[Any, ...]:
    return read_mat(path, "trainNdxs", "testNdxs", sample=False)


def _range(numbers: Array) -> str:
    return f"{numbers.min()}..{numbers.max()}" if len(numbers) and numbers.dtype.kind in "iuf" else f"{numbers.dtype}"


def _crop_of(size: tuple[int, int], crop: Crop | Literal["valid"] | None) -> Crop:
    if crop == "valid":
        crop = VALID if size == FULL else None
    top, bottom, left, right = crop = crop or (0, size[0], 0, size[1])
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise DataError(f"Expected a crop (top, bottom, left, right) within {size[0]} x {size[1]}, but got {crop}.")
    return crop


def _intrinsics(size: tuple[int, int], crop: Crop) -> Intrinsics:
    """The camera's, for images of another size as if resized, and after the crop."""
    fx, fy, cx, cy = INTRINSICS
    tall, wide = size[0] / FULL[0], size[1] / FULL[1]
    # A pixel's centre has whole coordinates, so it is half a pixel from the corner that a resize leaves in place.
    return fx * wide, fy * tall, (cx + 0.5) * wide - 0.5 - crop[2], (cy + 0.5) * tall - 0.5 - crop[0]
