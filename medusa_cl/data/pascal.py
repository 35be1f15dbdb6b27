"""PASCAL-Context for several tasks, read from the folder PASCAL_MT as it stands; nothing is ever written into it.

    JPEGImages/ID.jpg                          images, of many sizes up to 500 x 500
    ImageSets/Context/{train,val}.txt          4998 and 5105 ids; `val` is our test
    semseg/VOC12/ID.png, else
    semseg/pascal-context/ID.png               classes 0..20, 255 ignored
    human_parts/ID.mat                         `anno`, the struct of PASCAL-Part
    pascal-context/trainval/ID.mat             `LabelMap`, 459 classes of context
    normals_distill/ID.png                     2 x / 255 - 1, in a frame that nothing states
    sal_distill/ID.png                         salient above 127

Normals and saliency are distilled, a network's answers and no measurements: scores are agreement with that teacher.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_cl.data.files import (
    image_size,
    looking_into,
    read_image,
    read_map,
    read_mat,
    require_files,
    same_size,
    splits_of,
)
from medusa_cl.data.frames import Frame, detect_by_view, vectors_of_bytes
from medusa_cl.data.geometry import edges_from_laplacian
from medusa_cl.data.hdf5 import FIELDS, Field
from medusa_cl.errors import DataError, MissingDataError, unknown

Array = NDArray[Any]

FOLDER = "PASCAL_MT"
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PERSON = 15

# The classes of `tasks.HUMAN_PARTS`, which only torch can import, and what each is of PASCAL-Part's names.
HUMAN_PARTS: Mapping[str, tuple[str, ...]] = {
    "background": (),
    "head": ("head", "leye", "reye", "lear", "rear", "lebrow", "rebrow", "nose", "mouth", "hair"),
    "torso": ("neck", "torso"),
    "upper_arm": ("luarm", "ruarm"),
    "lower_arm": ("llarm", "rlarm", "lhand", "rhand"),
    "upper_leg": ("luleg", "ruleg"),
    "lower_leg": ("llleg", "rlleg", "lfoot", "rfoot"),
}
_PART_CLASS = {part: number for number, parts in enumerate(HUMAN_PARTS.values()) for part in parts}

# Context classes on which the field scores normals: those whose names NYUD-v2, the teacher's own data, has among its
# 894 too, and tvmonitor (427), which NYUD calls television. Sky, grass, roads and most animals are left out.
NORMALS_CLASSES = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56),
    *(59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124),
    *(135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202),
    *(213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261),
    *(263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314),
    *(315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383),
    *(384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442),
    *(443, 444, 446, 454, 457),
)

# Where each target's files are; the first folder that has an image's file counts.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "image": ("JPEGImages/{}.jpg",),
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "human_parts": ("human_parts/{}.mat",),
    "saliency": ("sal_distill/{}.png",),
    "normals": ("normals_distill/{}.png",),
    "edges": ("pascal-context/trainval/{}.mat",),
}
_FIELDS: Mapping[str, Field] = {
    "semseg": dataclasses.replace(FIELDS["semseg"], limit=20, classes=CLASSES),
    "human_parts": dataclasses.replace(FIELDS["human_parts"], limit=6, classes=tuple(HUMAN_PARTS)),
    "saliency": FIELDS["saliency"],
    "normals": FIELDS["normals"],
    "edges": FIELDS["edges"],
}
_LOOKED_AT = 64  # images at most from which the normals' frame is found


class PascalPack:
    """The pack PASCAL_MT.

    Targets: semseg (21 classes), human_parts (7), saliency, normals, edges; those whose folders are missing are left
    out of `fields`. An image's target is as large as the image.

    - human_parts: an image without people is ignored everywhere (255). That is one without a .mat file, with other
      objects only, or whose people have no part drawn; elsewhere all that is no part is background.
    - normals: ignored (zero) outside `NORMALS_CLASSES` of the context labels, as the field scores them, and where the
      picture's vector is none: shorter than .1, black or white.
    - edges: the thinned, nonzero Laplacian of the context labels, the field's own recipe.

    Args:
        root: PASCAL_MT, or a folder that holds it.
        normals_frame: Where the stored components of normals point, like "rdf" or "rub" (see `frames.Frame`); "auto"
            finds out from some of the training images.

    Attributes:
        name: What it is, for people.
        root: The folder PASCAL_MT itself.
        splits: Image ids of `train` and `test`.
        fields: How each target is stored in our format.
        derived: The targets that are not in the pack as such, with how they are made.
        attrs: Facts to be recorded; no "source_frame" where the frame cannot be told: reading normals is refused
            then, and the other targets are not.

    Raises:
        MissingDataError: There is no such folder, or it is empty.
        DataError: It is another data set, a listed image lacks a file, or an image is listed twice.
    """

    def __init__(self, root: str | Path, normals_frame: str = "auto") -> None:
        self.name = "PASCAL_MT (PASCAL-Context)"
        with looking_into(Path(root)):
            self.root = _pascal_mt(Path(root))
            lists = {"train": self._list("train"), "test": self._list("val")}
            self.splits: dict[str, tuple[str, ...]] = splits_of(lists)
            self.fields: dict[str, Field] = {name: field for name, field in _FIELDS.items() if self._offered(name)}
            self._require(lists)
        self.derived: dict[str, str] = {}
        self.attrs: dict[str, Any] = {"source": "pascal_mt"}
        self.attrs["distilled"] = [name for name in ("normals", "saliency") if name in self.fields]
        if "edges" in self.fields:
            self.derived["edges"] = "thinned Laplacian of the context labels"
        if "normals" in self.fields:
            self._find_frame(normals_frame)

    def size(self, image: str) -> tuple[int, int]:
        """Return an image's H, W."""
        return image_size(self._path("image", image))

    def image(self, image: str) -> Array:
        """Return an image: H W 3 uint8 RGB."""
        return read_image(self._path("image", image))

    def has(self, image: str, target: str) -> bool:
        """Return whether an image has a target: in this pack, every image has all; see the class on people."""
        return target in self.fields

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        """Return the files that a target (or "image") is read from; none for an image without a .mat of parts."""
        found = [self._path(target, image)]
        if target == "normals":
            found.append(self._path("edges", image))
        return tuple(path for path in found if target != "human_parts" or path.is_file())

    def target(self, image: str, target: str) -> Array | None:
        """Return a target's values, as large as the image; None where the pack has no such target.

        Returns:
            uint8 H W for semseg and human_parts (255 ignored), saliency and edges (0 or 1); float32 H W 3 in the
            camera frame x right, y down, z forward for normals (zero ignored).

        Raises:
            DataError: A file is missing, damaged, of another shape or of another size than the image; or the frame of
                normals cannot be told.
        """
        if target not in self.fields:
            return None
        values: Array = getattr(self, f"_{target}")(image)
        return values

    def _semseg(self, image: str) -> Array:
        return self._picture("semseg", image, 2)

    def _saliency(self, image: str) -> Array:
        return (self._picture("saliency", image, 2, spread=True) > 127).astype(np.uint8)

    def _edges(self, image: str) -> Array:
        return np.asarray(edges_from_laplacian(self._context(image))).astype(np.uint8)

    def _normals(self, image: str) -> Array:
        if self._frame is None:
            raise DataError(self._undecided)
        vectors = self._frame.to_ours(vectors_of_bytes(self._picture("normals", image, 3)))
        labelled = np.isin(self._context(image), NORMALS_CLASSES)
        return np.where(labelled[..., None], vectors, np.float32(0)).astype(np.float32)

    def _human_parts(self, image: str) -> Array:
        size, path = self.size(image), self._path("human_parts", image)
        classes = np.zeros(size, np.uint8)
        if path.is_file():
            for part, mask in _parts_of_people(path):
                classes[same_size(path, mask, size)] = part
        return classes if classes.any() else np.full_like(classes, 255)

    def _picture(self, target: str, image: str, dimensions: int, spread: bool = False) -> Array:
        """Read an 8-bit picture H W or H W 3."""
        path = self._path(target, image)
        picture = read_map(path, spread)
        expected = (3,) if dimensions == 3 else ()
        if picture.dtype != np.uint8 or picture.ndim != dimensions or picture.shape[2:] != expected:
            raise DataError(
                f"{path}: expected 8 bits in {expected[0] if expected else 1} channel(s) for {target}, "
                f"but got {picture.dtype} of shape {picture.shape}. Unpack {FOLDER} again."
            )
        return same_size(path, picture, self.size(image))

    def _context(self, image: str) -> Array:
        path = self._path("edges", image)
        (labels,) = read_mat(path, "LabelMap")
        return same_size(path, labels, self.size(image))

    def _path(self, target: str, image: str) -> Path:
        places = [self.root / place.format(image) for place in _PLACES[target]]
        return next((path for path in places[:-1] if path.is_file()), places[-1])

    def _list(self, split: str) -> Path:
        return self.root / "ImageSets" / "Context" / f"{split}.txt"

    def _folders(self, target: str) -> list[Path]:
        return [(self.root / place).parent for place in _PLACES[target]]

    def _offered(self, target: str) -> bool:
        # Normals need the context labels, which is what edges are made of.
        needed = (target, "edges") if target == "normals" else (target,)
        return all(any(folder.is_dir() for folder in self._folders(name)) for name in needed)

    def _require(self, lists: Mapping[str, Path]) -> None:
        """Refuse a pack without targets, and split files whose images lack a file."""
        if not self.fields:
            places = ", ".join(str(folder) for name in _FIELDS for folder in self._folders(name))
            raise DataError(f"{self.root} has images but no targets. Expected some of: {places}. Unpack it again.")
        for target in ("image", *self.fields):
            # One listing a folder: asking for 10 000 files one by one takes minutes on a network disk.
            there = {name for folder in self._folders(target) if folder.is_dir() for name in os.listdir(folder)}
            for split, path in lists.items():
                self._require_files(target, split, path, there)

    def _require_files(self, target: str, split: str, path: Path, there: set[str]) -> None:
        suffix = Path(_PLACES[target][0]).suffix
        missing = [image for image in self.splits[split] if image + suffix not in there]
        # An image without a file of parts is one without people; a whole split of them was not unpacked.
        if target != "human_parts" or len(missing) == len(self.splits[split]):
            require_files((self._path(target, image) for image in missing), path)

    def _find_frame(self, normals_frame: str) -> None:
        self._frame, self._undecided = None if normals_frame == "auto" else Frame.parse(normals_frame), ""
        try:
            self._frame = self._frame or self._detect()
            self.attrs["source_frame"] = self._frame.name
        except DataError as error:  # who reads normals will hear of it
            self._undecided = str(error)

    def _detect(self) -> Frame:
        """Find the normals' frame from pictures spread over the training split, damaged ones left out."""
        images = self.splits["train"]
        maps, faults = [], []
        for image in images[:: -(-len(images) // _LOOKED_AT)]:
            try:
                maps.append(vectors_of_bytes(self._picture("normals", image, 3)))
            except DataError as error:  # whoever reads this image meets it again, and may have asked to skip such
                faults.append(error)
        if not maps:
            raise faults[0]
        frame = detect_by_view(maps)
        if frame is None:
            raise DataError(
                f"{self.root / 'normals_distill'}: where the normals' axes point cannot be told from {len(maps)} "
                "pictures. Say it with scenario.normals_frame=, three letters for where the stored x, y and z point: "
                "rub is right, up, back; rdf is right, down, forward."
            )
        return frame


def _pascal_mt(root: Path) -> Path:
    """Return the folder PASCAL_MT that `root` is or holds."""
    if not root.exists():
        raise MissingDataError(f"{root} does not exist. Expected {FOLDER}, or a folder that holds it. {_GET_IT}")
    if not root.is_dir():
        raise DataError(f"{root} is a file. Expected the folder {FOLDER}: unpack it, and name the folder.")
    for folder in (root, root / FOLDER):
        if (folder / "JPEGImages").is_dir() and (folder / "ImageSets" / "Context").is_dir():
            return folder
    if not any(root.iterdir()):
        raise MissingDataError(f"{root} is empty. Expected {FOLDER}, or a folder that holds it. {_GET_IT}")
    if any((root / name).exists() for name in ("gt_sets", "NYUD_MT", "NYUDv2", "nyu_depth_v2_labeled.mat")):
        raise DataError(f"{root} holds NYUD-v2, not {FOLDER}. Use scenario=nyud_incremental for it.")
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8])
    raise DataError(
        f"{root} is not {FOLDER}: expected JPEGImages/ and ImageSets/Context/, but it holds {found}. {_GET_IT}"
    )


_GET_IT = "Unpack PASCAL_MT.tgz and set scenario.root to it."


def _parts_of_people(path: Path) -> Iterator[tuple[int, Array]]:
    """Give the class and the mask (bool H W) of each part of each person, in the file's order: the last one wins."""
    (anno,) = read_mat(path, "anno")
    try:
        for thing in np.ravel(np.ravel(anno["objects"])[0]):
            if int(np.ravel(thing["class_ind"])[0]) == PERSON:
                # A person too small for parts has an empty matrix here, not an empty struct.
                for part in np.ravel(thing["parts"]):
                    name = str(np.ravel(part["part_name"])[0])
                    if name not in _PART_CLASS:
                        raise DataError(f"{path}: {unknown('part of a person', name, _PART_CLASS)}")
                    yield _PART_CLASS[name], np.asarray(part["mask"]).astype(bool)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected `anno.objects(k)` with `class_ind` and `parts(j)` of `part_name` and `mask`, as "
            f"PASCAL-Part has them, but: {error}. Unpack {FOLDER} again."
        ) from error
