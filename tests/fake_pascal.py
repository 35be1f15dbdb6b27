"""Miniatures of PASCAL_MT with its true structure: MATLAB v5 structs, palette pictures, images of many sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

SIZES = ((40, 56), (48, 36), (32, 64))  # H, W, in turn
WALL, FLOOR, PERSON, SKY = 440, 158, 284, 360  # context labels; the field does not score normals on the last
HOLE = np.s_[2:5, 6:10]  # normals of this block are invalid, whatever the context
VOID = np.s_[-3:, :4]  # semseg ignored
OURS = {"r": (0, 1), "l": (0, -1), "d": (1, 1), "u": (1, -1), "f": (2, 1), "b": (2, -1)}


@dataclass(frozen=True)
class Written:
    """What a miniature holds; every mapping is by image id, normals (unit, zero ignored) are in our frame."""

    root: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    colours: Mapping[str, tuple[int, int, int]]  # of the upper left quarter; the rest is grey
    semseg: Mapping[str, Array]
    human_parts: Mapping[str, Array]
    saliency: Mapping[str, Array]
    normals: Mapping[str, Array]
    context: Mapping[str, Array]  # LabelMap


def write_pascal(root: str | Path, train: int = 3, test: int = 2, *, frame: str = "rub", seed: int = 0) -> Written:
    """Write `root`/PASCAL_MT and return what is in it.

    The first training image has no VOC12 segmentation, but the one of pascal-context; every other image has VOC12's,
    and a wrong one of pascal-context beside it. The last training image has no people (a bird and a person without
    parts); the first test image has two people.

    Args:
        root: The folder above PASCAL_MT.
        train: Training images.
        test: Test images (PASCAL's `val`).
        frame: Where the components of stored normals point.
        seed: Of the images' colours.
    """
    folder = Path(root) / "PASCAL_MT"
    ids = [f"2008_{number:06d}" for number in range(train + test)]
    written = Written(folder, tuple(ids[:train]), tuple(ids[train:]), *({} for _ in range(7)))  # type: ignore[arg-type]
    for split, images in (("train", written.train), ("val", written.test)):
        listed = folder / "ImageSets" / "Context" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{image}\n" for image in images))
    for number, image in enumerate(ids):
        _write_image(written, image, number, np.random.default_rng([seed, number]))
        _write_semseg(written, image, only_context=number == 0)
        people = 0 if number == train - 1 else 2 if number == train else 1
        _write_people(written, image, people)
        _write_normals(written, image, frame)
        _write_saliency(written, image)
    return written


def _write_image(written: Written, image: str, number: int, rng: np.random.Generator) -> None:
    height, width = SIZES[number % len(SIZES)]
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2, : width // 2] = colour
    written.sizes[image], written.colours[image] = (height, width), colour  # type: ignore[index]
    path = _place(written, "JPEGImages", image, "jpg")
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)


def _write_semseg(written: Written, image: str, only_context: bool) -> None:
    labels = np.zeros(written.sizes[image], np.uint8)
    labels[:8, :10] = 20
    labels[-8:, -10:] = 15
    labels[VOID] = 255
    written.semseg[image] = labels  # type: ignore[index]
    if not only_context:
        _save_palette(_place(written, "semseg/VOC12", image, "png"), labels)
    other = labels if only_context else np.full_like(labels, 7)
    Image.fromarray(other).save(_place(written, "semseg/pascal-context", image, "png"))


def _save_palette(path: Path, labels: Array) -> None:
    """As VOC has them: numbers as indices of a palette, whose colours mean nothing."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([(37 * value) % 256 for value in range(768)])
    picture.save(path)


def _write_people(written: Written, image: str, people: int) -> None:
    """Write one or two people of some parts, or a bird with parts and a person without any."""
    size = written.sizes[image]
    things, classes = [_thing(size, "bird", 3, np.s_[10:20, 2:8], [("head", np.s_[10:12, 2:4])])], np.zeros(size, int)
    for number in range(people):
        left = 4 + 16 * number
        parts = [
            ("head", np.s_[8:12, left : left + 4], 1),
            ("hair", np.s_[7:9, left : left + 4], 1),
            ("torso", np.s_[12:20, left : left + 6], 2),
            ("neck", np.s_[11:13, left + 1 : left + 3], 2),  # over the head: later parts win
            ("luarm", np.s_[12:16, left + 6 : left + 8], 3),
            ("rlarm", np.s_[16:19, left + 6 : left + 8], 4),
            ("rhand", np.s_[19:21, left + 6 : left + 8], 4),
            ("ruleg", np.s_[20:24, left : left + 3], 5),
            ("llleg", np.s_[24:27, left : left + 3], 6),
            ("lfoot", np.s_[27:28, left : left + 4], 6),
        ]
        things.append(_thing(size, "person", 15, np.s_[7:28, left : left + 8], [(n, at) for n, at, _ in parts]))
        for _, at, number_of_class in parts:
            classes[at] = number_of_class
    if not people:
        things.append(_thing(size, "person", 15, np.s_[20:26, 20:24], []))
        classes[:] = 255
    written.human_parts[image] = classes  # type: ignore[index]
    save_parts(_place(written, "human_parts", image, "mat"), image, things)


def save_parts(path: Path, image: str, things: Sequence[tuple[Any, ...]]) -> None:
    """Write `anno` as MATLAB does: a 1x1 struct whose `objects` is a 1xN struct array, each with a 1xM one, or []."""
    objects = np.zeros((1, len(things)), [(name, object) for name in ("class", "class_ind", "mask", "parts")])
    for k, thing in enumerate(things):
        objects[0, k] = thing
    anno = np.zeros((1, 1), [("imname", object), ("objects", object)])
    anno[0, 0] = (image, objects)
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


def _thing(size: tuple[int, int], name: str, number: int, at: Any, parts: Sequence[tuple[str, Any]]) -> tuple[Any, ...]:
    found: Array = np.zeros((1, len(parts)), [("part_name", object), ("mask", object)])
    for j, (part, where) in enumerate(parts):
        found[0, j] = (part, _mask(size, where))
    return name, np.array([[number]], np.uint8), _mask(size, at), found if parts else np.zeros((0, 0))


def _mask(size: tuple[int, int], at: Any) -> Array:
    mask = np.zeros(size, np.uint8)
    mask[at] = 1
    return mask


def _write_normals(written: Written, image: str, frame: str) -> None:
    """A floor below, walls at the left and right, sky above the wall ahead; and the context labels of the same."""
    height, width = written.sizes[image]
    normals = np.zeros((height, width, 3), np.float32)
    context = np.full((height, width), WALL, np.uint16)
    normals[:] = (0, 0, -1)
    normals[:, : width // 4] = np.array((0.98, 0.1, -0.17)) / np.linalg.norm((0.98, 0.1, -0.17))
    normals[:, -width // 4 :] = np.array((-0.98, 0.1, -0.17)) / np.linalg.norm((-0.98, 0.1, -0.17))
    floor = np.s_[height * 5 // 8 :]
    normals[floor], context[floor] = np.array((0, -0.95, -0.31)) / np.linalg.norm((0, -0.95, -0.31)), FLOOR
    context[:6, width // 4 : width // 2] = SKY
    picture = np.rint((to_frame(normals, frame) + 1) / 2 * 255).astype(np.uint8)
    picture[HOLE] = (127, 128, 127)
    Image.fromarray(picture).save(_place(written, "normals_distill", image, "png"))
    normals[HOLE] = 0
    normals[context == SKY] = 0
    written.normals[image], written.context[image] = normals, context  # type: ignore[index]
    scipy.io.savemat(_place(written, "pascal-context/trainval", image, "mat"), {"LabelMap": context})


def to_frame(normals: Array, frame: str) -> Array:
    """Return vectors of our frame as a pack of another one stores them."""
    return np.stack([sign * normals[..., axis] for axis, sign in (OURS[letter] for letter in frame)], axis=-1)


def _write_saliency(written: Written, image: str) -> None:
    soft = np.zeros(written.sizes[image], np.uint8)
    soft[4:10, 4:12], soft[10:14, 4:12], soft[14:18, 4:12] = 255, 128, 127
    written.saliency[image] = (soft > 127).astype(int)  # type: ignore[index]
    Image.fromarray(soft).save(_place(written, "sal_distill", image, "png"))


def _place(written: Written, folder: str, image: str, suffix: str) -> Path:
    path = written.root / folder / f"{image}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
