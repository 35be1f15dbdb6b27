"""Readers of the three archives of NYUD-v2 that go round for multitask learning; none fits another one's loader.

They share a tree, `images/ segmentation/ edge/ normals/ depth/ gt_sets/{train,val}.txt`, and are told apart by the
files' extensions (`FORMATS`). What holds in all: labels are 0 for "none" and k for class k - 1, depth is in metres,
normals' axes are not documented and differ.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medusa_cl.data.files import (
    Array,
    image_size,
    looking_into,
    read_image,
    read_map,
    read_mat,
    require_files,
    same_size,
    splits_of,
)
from medusa_cl.data.frames import Frame, detect_by_depth, detect_by_view, vectors_of_bytes, vectors_of_floats
from medusa_cl.data.hdf5 import FIELDS, Field
from medusa_cl.errors import DataError, MissingDataError

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor_mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower_curtain", "box",
    "whiteboard", "person", "night_stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip
"""The 40 classes, in the order of their ids."""

INTRINSICS = (518.8579, 519.4696, 324.5824, 252.7362)
"""fx, fy, cx, cy of the colour camera at 480 x 640, in pixels counted from 0 (NYUD's own toolbox counts from 1)."""
FULL, CROP = (480, 640), (425, 560)
"""Sizes H, W of whole images, and of what the depth camera sees: rows 46:470, columns 41:600, counted from 1."""
CROP_CORNER = (45, 40)
ROOTS = ("NYUD_MT", "NYUDv2")
FOLDERS = {"image": "images", "semseg": "segmentation", "depth": "depth", "normals": "normals", "edges": "edge"}
"""Where a target stands below the root."""

_BY_DEPTH, _BY_VIEW = 8, 32  # images read to find the normals' axes


@dataclass(frozen=True)
class Format:
    """One of the three archives: its name and the extension of the files in each folder."""

    key: str
    name: str
    suffixes: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{folder}/*{suffix}' for folder, suffix in self.suffixes.items())})"


def _format(key: str, name: str, *suffixes: str) -> Format:
    return Format(key, name, dict(zip(FOLDERS.values(), suffixes, strict=True)))


FORMATS = (
    #                              images  segment. depth   normals edge
    _format("astmt", "ASTMT pack", ".jpg", ".mat", ".mat", ".jpg", ".png"),
    _format("survey", "survey pack", ".jpg", ".png", ".npy", ".npy", ".npy"),
    _format("atrc", "ATRC pack", ".png", ".png", ".npy", ".png", ".png"),
)
_TREE = "images/, segmentation/, edge/, normals/, depth/ and gt_sets/ with train.txt and val.txt"


def nyud_pack(path: str | Path, normals_frame: str = "auto") -> NYUDPack:
    """Return the reader of the pack that a folder is or contains.

    Args:
        path: The pack's root, or a folder that holds it as NYUD_MT or NYUDv2.
        normals_frame: The frame of its normals (see `frames`), or "auto" to have it detected.

    Raises:
        MissingDataError: There is nothing of the kind.
        DataError: It is no such pack, or it is damaged.
        ConfigError: There is no such frame.
    """
    path = Path(path).expanduser()
    with looking_into(path):
        root = find_pack(path)
        if root is None:
            raise _nothing_at(path)
    return NYUDPack(root, normals_frame)


def find_pack(path: str | Path) -> Path | None:
    """Return the root of the pack that `path` is or contains; None where there is none.

    Raises:
        DataError: It contains two.
    """
    path = Path(path).expanduser()
    if _is_root(path):
        return path
    below = [path / name for name in ROOTS if _is_root(path / name)]
    if len(below) > 1:
        raise DataError(f"{path} holds {' and '.join(ROOTS)}. Name the one to read: scenario.root={below[0]}.")
    return below[0] if below else None


def _is_root(path: Path) -> bool:
    targets = [folder for target, folder in FOLDERS.items() if target != "image"]
    there = (path / "images").is_dir() and any((path / folder).is_dir() for folder in targets)
    return (path / "gt_sets").is_dir() or (there and not (path / "tasks.yaml").exists())


def _nothing_at(path: Path) -> DataError:
    expected = f"Expected a pack of NYUD-v2 (a folder with {_TREE}), or a folder that holds it as {' or '.join(ROOTS)}."
    if any((path / name).is_dir() for name in ("JPEGImages", "ImageSets", "PASCAL_MT")):
        return DataError(
            f"{path} holds PASCAL-Context, not NYUD-v2. Use scenario=pascal_incremental for it. {expected}"
        )
    if path.is_file():
        return DataError(f"{path} is a file. {expected} Unpack it, and set scenario.root to the folder.")
    if not path.exists():
        return MissingDataError(f"{path} does not exist. {expected} Set scenario.root to where it is.")
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    found = f"holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "is empty"
    return MissingDataError(f"{path} {found}. {expected} Set scenario.root to where it is.")


def intrinsics_of(size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return fx, fy, cx, cy in pixels of images of a size H, W, or None where it is not known what they show.

    Known are whole images (3 : 4) and the valid part (85 : 112), both also enlarged or reduced.
    """
    height, width = size
    for (full_height, full_width), (top, left) in ((FULL, (0, 0)), (CROP, CROP_CORNER)):
        if height * full_width == width * full_height:
            fx, fy, cx, cy = INTRINSICS
            scale = width / full_width
            return fx * scale, fy * scale, (cx - left + 0.5) * scale - 0.5, (cy - top + 0.5) * scale - 0.5
    return None


class NYUDPack:
    """One of the three packs; which one is seen from its files. See `pack.Pack` for what it offers.

    Targets are semseg (40 classes), depth, normals and edges, as far as their folders are there. Nothing is derived.

    Args:
        root: The folder that holds images/ and gt_sets/.
        normals_frame: Where the components of the stored normals point, as `frames.Frame` names it; "auto" finds out
            from a few images, by the depth or, without one, by what can be seen.

    Attributes:
        format: Which of `FORMATS` it is.
        suffixes: The extension of the files in each folder that is there.
        frame: That of the stored normals; None where there are none, or it cannot be detected: reading normals is
            refused then, and the other targets are not.
        attrs: "source", "intrinsics" where known, and of normals "source_frame" and "frame_detected" where known.

    Raises:
        MissingDataError: The root is missing or empty.
        DataError: The files are not those of one of the three packs, or files that the splits list are missing.
        ConfigError: There is no such frame.
    """

    def __init__(self, root: str | Path, normals_frame: str = "auto") -> None:
        self.root = Path(root).expanduser()
        given = None if normals_frame == "auto" else Frame.parse(normals_frame)
        with looking_into(self.root):
            if not _is_root(self.root):
                raise _nothing_at(self.root)
            self.splits = _splits(self.root)
            self.suffixes = _suffixes(self.root, self.splits)
        self.format = _format_of(self.root, self.suffixes)
        self.name = f"{self.format.name} of NYUD-v2"
        self.derived: dict[str, str] = {}
        offered = [name for name, folder in FOLDERS.items() if folder in self.suffixes and name != "image"]
        self.fields: dict[str, Field] = {name: FIELDS[name] for name in offered}
        if "semseg" in self.fields:
            limit = len(CLASSES) - 1
            self.fields["semseg"] = dataclasses.replace(FIELDS["semseg"], limit=limit, classes=CLASSES)
        self.attrs: dict[str, Any] = {"source": f"nyud/{self.format.key}", **self._camera()}
        self.frame, self._undecided = given, ""
        if "normals" in self.fields and given is None:
            try:
                self.frame = self._detect()
            except DataError as error:  # who reads normals will hear of it
                self._undecided = str(error)
        if "normals" in self.fields and self.frame is not None:
            self.attrs |= {"source_frame": self.frame.name, "frame_detected": given is None}

    def __repr__(self) -> str:
        return f"{self.name} at {self.root}"

    def _camera(self) -> dict[str, Any]:
        camera = intrinsics_of(self._first_size())
        return {} if camera is None else {"intrinsics": [round(value, 4) for value in camera]}

    def _first_size(self) -> tuple[int, int]:
        for image in (*self.splits["train"], *self.splits["test"]):
            try:
                return self.size(image)
            except DataError:  # who reads that image will hear of it
                continue
        return FULL

    def size(self, image: str) -> tuple[int, int]:
        """Return H, W of an image, from its file's header."""
        return image_size(self._path(image, "image"))

    def image(self, image: str) -> Array:
        """Return H W 3 uint8 RGB."""
        return read_image(self._path(image, "image"))

    def has(self, image: str, target: str) -> bool:
        """Return whether an image has a target: those of the splits have all that the pack has."""
        return target in self.fields

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        """Return the file from which a target (or "image") is read."""
        return (self._path(image, target),) if target in ("image", *self.fields) else ()

    def target(self, image: str, target: str) -> Array | None:
        """Return a target's values, None where the pack has none.

        Returns:
            semseg: H W uint8, 255 ignored. depth: H W float32, m, 0 ignored. normals: H W 3 float32 in our frame,
            zero ignored. edges: H W uint8 in {0, 1}, 255 ignored.

        Raises:
            DataError: The file is damaged, not of the image's size, or holds what it cannot; or the frame of normals
                is to be detected and cannot.
        """
        if target not in self.fields:
            return None
        if target != "normals":
            return self._values(image, target)
        if self.frame is None:
            raise DataError(self._undecided)
        return self.frame.to_ours(self._values(image, target))

    def _values(self, image: str, target: str) -> Array:
        """Return values as they are stored: normals in the pack's own frame."""
        path = self._path(image, target)
        return same_size(path, _READERS[target, path.suffix](path), self.size(image))

    def _path(self, image: str, target: str) -> Path:
        folder = FOLDERS[target]
        return self.root / folder / f"{image}{self.suffixes[folder]}"

    def _detect(self) -> Frame:
        if "depth" in self.fields:
            height, width = self._first_size()
            camera = intrinsics_of((height, width)) or (0.8 * width, 0.8 * width, width / 2, height / 2)
            frame = detect_by_depth(((n, d) for n, d in self._samples(_BY_DEPTH, "normals", "depth")), camera)
        else:
            frame = detect_by_view(normals for (normals,) in self._samples(_BY_VIEW, "normals"))
        if frame is None:
            raise DataError(
                f"{self.root / FOLDERS['normals']}: the axes of its normals cannot be told from the images (by its "
                "depth, where that has values). Say where "
                "x, y and z of the stored normals point: scenario.normals_frame=rdf (right, down, forward), "
                "scenario.normals_frame=rub (right, up, back) or another one."
            )
        return frame

    def _samples(self, count: int, *targets: str) -> Iterator[tuple[Array, ...]]:
        """Yield targets of training images that lie far apart; damaged ones are left out if not all are."""
        images, damage, whole = self.splits["train"], None, 0
        chosen = [images[i * len(images) // count] for i in range(count)] if len(images) > count else images
        for image in chosen:
            try:
                values = tuple(self._values(image, target) for target in targets)
            except DataError as error:  # who reads that image will hear of it
                damage = error
            else:
                whole += 1
                yield values
        if damage is not None and not whole:
            raise damage


# Which pack it is --------------------------------------------------------------------------------------------------


def _splits(root: Path) -> dict[str, tuple[str, ...]]:
    lists = {"train": root / "gt_sets" / "train.txt", "test": root / "gt_sets" / "val.txt"}
    for path in lists.values():
        if not path.is_file():
            raise DataError(f"{path} is missing. Expected one image id a line in it. Unpack the data again.")
    return splits_of(lists)


def _suffixes(root: Path, splits: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the extension of the listed images' files in each folder that is there.

    Raises:
        DataError: Files are missing, or a folder holds the images under two extensions.
    """
    listed = [image for images in splits.values() for image in images]
    known = {folder: {form.suffixes[folder] for form in FORMATS} for folder in FOLDERS.values()}
    found = {folder: _names(root / folder) for folder in known if (root / folder).is_dir()}
    if "images" not in found:
        raise MissingDataError(f"{root / 'images'} is missing. Expected below {root}: {_TREE}. Unpack the data again.")
    chosen = {}
    for folder, names in found.items():
        counts = {suffix: sum(f"{image}{suffix}" in names for image in listed) for suffix in sorted(known[folder])}
        complete = [suffix for suffix, count in counts.items() if count == len(listed)]
        if len(complete) > 1 or not any(counts.values()):
            raise _not_one_pack(root, {name: _seen(names) for name, names in found.items()}, splits)
        best = max(counts, key=lambda suffix: counts[suffix])
        _require(root, folder, best, names, splits)
        chosen[folder] = best
    return chosen


def _names(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _require(root: Path, folder: str, suffix: str, names: set[str], splits: Mapping[str, tuple[str, ...]]) -> None:
    for split, images in splits.items():
        absent = [root / folder / f"{image}{suffix}" for image in images if f"{image}{suffix}" not in names]
        require_files(absent, root / "gt_sets" / ("val.txt" if split == "test" else f"{split}.txt"))


def _seen(names: Iterable[str]) -> str:
    """Return how many files of which extension there are."""
    suffixes = [Path(name).suffix or "(no extension)" for name in names if not name.startswith(".")]
    counts = {suffix: suffixes.count(suffix) for suffix in sorted(set(suffixes))}
    return " and ".join(f"{count} {suffix}" for suffix, count in counts.items()) or "nothing"


def _format_of(root: Path, suffixes: Mapping[str, str]) -> Format:
    """Return the pack whose extensions these are.

    Raises:
        DataError: They are those of no pack, or there is no target.
    """
    if len(suffixes) == 1:
        raise DataError(f"{root} has images/ but no folder of a target. Expected at least one more of {_TREE}.")
    fitting = [form for form in FORMATS if all(form.suffixes[folder] == suffix for folder, suffix in suffixes.items())]
    if not fitting:
        raise _not_one_pack(root, suffixes)
    return fitting[0]


def _not_one_pack(
    root: Path, found: Mapping[str, str], splits: Mapping[str, tuple[str, ...]] | None = None
) -> DataError:
    listing = ", ".join(f"{folder}/: {what}" for folder, what in found.items())
    example = f" for the ids of gt_sets/, such as {splits['train'][0]}" if splits else ""
    known = "; ".join(map(str, FORMATS))
    return DataError(
        f"{root} is not one of the three packs of NYUD-v2, or a mixture of two. Found {listing}. Expected in every "
        f"folder one extension{example}, as one of these has it: {known}. Unpack one of them into a folder of its own."
    )


# What the files hold -----------------------------------------------------------------------------------------------

_NO_CLASS = 255
_LABELS = np.array([_NO_CLASS, *range(len(CLASSES))], np.uint8)  # by what is stored


def _plane(path: Path, stored: Array) -> Array:
    """Return a map as H W; grey ones are at times stored with a third axis."""
    if stored.ndim == 3 and stored.shape[2] in (1, 3) and (stored == stored[..., :1]).all():
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers H x W, but got {stored.dtype} of shape {stored.shape}.")
    return stored


def _semseg(path: Path, stored: Array) -> Array:
    stored = _plane(path, stored)
    outside = ~((stored >= 0) & (stored <= len(CLASSES)))  # NaN too
    if outside.any():
        raise DataError(
            f"{path}: expected 0 (no label) or a class 1..{len(CLASSES)} at every pixel, but got {stored[outside][0]}. "
            "Labels of 894 classes, or those that begin at 0 and mark nothing by 255, are no labels of these packs."
        )
    labels = stored.astype(np.uint8)
    if stored.dtype.kind == "f" and (labels != stored).any():
        raise DataError(f"{path}: expected whole numbers as classes, but got {stored[labels != stored][0]}.")
    return _LABELS[labels]


def _depth(path: Path, stored: Array) -> Array:
    depth = _plane(path, stored).astype(np.float32)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth


def _normals(path: Path, stored: Array) -> Array:
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype.kind not in "uf":
        raise DataError(f"{path}: expected normals H x W x 3, but got {stored.dtype} of shape {stored.shape}.")
    if stored.dtype.kind == "f":
        return vectors_of_floats(stored)
    if stored.dtype != np.uint8:
        raise DataError(f"{path}: expected normals in 8 bits or as floats, but got {stored.dtype}.")
    return vectors_of_bytes(stored)


def _edge_picture(path: Path) -> Array:
    stored = _plane(path, read_map(path, spread=True))
    if stored.dtype != np.uint8:
        raise DataError(f"{path}: expected a picture of 8 bits, 255 where there is an edge, but got {stored.dtype}.")
    return (stored > 127).astype(np.uint8)


def _edge_array(path: Path) -> Array:
    stored = _plane(path, read_map(path)).astype(np.float32)
    ignored = np.isnan(stored) | (stored == _NO_CLASS)
    if not (ignored | ((stored >= 0) & (stored <= 1))).all():
        raise DataError(
            f"{path}: expected 1 at edges, 0 elsewhere and 255 where unknown, but got values in "
            f"[{np.nanmin(stored):g}, {np.nanmax(stored):g}]."
        )
    return np.where(ignored, _NO_CLASS, stored >= 0.5).astype(np.uint8)


def _from_map(values: Callable[[Path, Array], Array], path: Path) -> Array:
    return values(path, read_map(path))


def _from_mat(values: Callable[[Path, Array], Array], key: str, path: Path) -> Array:
    return values(path, np.asarray(read_mat(path, key)[0]))


_READERS: Mapping[tuple[str, str], Callable[[Path], Array]] = {
    ("semseg", ".png"): partial(_from_map, _semseg),
    ("semseg", ".mat"): partial(_from_mat, _semseg, "segmentation"),
    ("depth", ".npy"): partial(_from_map, _depth),
    ("depth", ".mat"): partial(_from_mat, _depth, "depth"),
    ("normals", ".jpg"): partial(_from_map, _normals),
    ("normals", ".png"): partial(_from_map, _normals),
    ("normals", ".npy"): partial(_from_map, _normals),
    ("edges", ".png"): _edge_picture,
    ("edges", ".npy"): _edge_array,
}
