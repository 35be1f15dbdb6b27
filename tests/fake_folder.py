"""A miniature folder of one's own data: images of many sizes in sub-folders, and targets that some images lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from fake_pascal import to_frame

Array = NDArray[Any]

SIZES = ((36, 48), (48, 32), (40, 40))  # H, W, in turn
UNKNOWN = -1e9
CLASSES = ("floor", "wall", "cup")
TASKS_YAML = """\
semseg:      {kind: semseg, classes: [floor, wall, cup]}
depth:       {kind: depth, scale: 0.001}
normals:     {kind: normals, frame: rub}
edges:       {kind: edges, tolerance: 0.01}
temperature: {kind: regression, unit: degC, scale: 0.01, offset: -273.15, ignore: 0}
"""


@dataclass(frozen=True)
class Written:
    """What a miniature holds: colours of the images' upper left quarters, and values (with ignored ones) by task."""

    root: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    values: dict[str, dict[str, Array]] = field(default_factory=dict)


def write_folder(
    root: str | Path,
    train: int = 4,
    test: int = 2,
    *,
    tasks_yaml: str = TASKS_YAML,
    splits: bool = True,
    lacking: Mapping[str, int] | None = None,
) -> Written:
    """Write a folder and return what is in it.

    Every second image is in the sub-folder `kitchen`. Depth is 16-bit PNG and float TIFF in turn (with its own scale,
    so both hold millimetres), normals NPY in the frame rub, edges 0 and 255, temperature 16-bit PNG.

    Args:
        root: The folder, made where it is missing.
        train: Training images.
        test: Test images.
        tasks_yaml: What tasks.yaml says.
        splits: Whether split files are written.
        lacking: Task -> the number of the image that has none of it; by default temperature, image 1.
    """
    root = Path(root)
    ids = [f"kitchen/{n:03d}" if n % 2 else f"{n:03d}" for n in range(train + test)]
    written = Written(root, tuple(ids[:train]), tuple(ids[train:]))
    lacking = {"temperature": 1} if lacking is None else lacking
    for number, image in enumerate(ids):
        _write_image(written, image, number)
        for task, (suffix, values, stored) in _targets(written.sizes[image], number).items():
            if lacking.get(task) != number:
                written.values.setdefault(task, {})[image] = values
                save(root / task / f"{image}{suffix}", stored)
    (root / "tasks.yaml").write_text(tasks_yaml)
    if splits:
        (root / "splits").mkdir()
        for split, images in (("train", written.train), ("test", written.test)):
            (root / "splits" / f"{split}.txt").write_text("\n".join(images) + "\n")
    return written


def save(path: Path, stored: Array) -> Path:
    """Save an array as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, stored)
    elif path.suffix == ".tiff":
        tifffile.imwrite(path, stored)
    else:
        Image.fromarray(stored).save(path)
    return path


def _write_image(written: Written, image: str, number: int) -> None:
    height, width = SIZES[number % len(SIZES)]
    colour = (10 + 30 * number, 200 - 30 * number, 90)
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2, : width // 2] = colour
    written.sizes[image], written.colours[image] = (height, width), colour
    path = written.root / "images" / f"{image}.{'jpg' if number % 3 else 'PNG'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 100, "subsampling": 0} if number % 3 else {}))


def _targets(size: tuple[int, int], number: int) -> dict[str, tuple[str, Array, Array]]:
    """Return (suffix, values, what is stored) by task."""
    labels = np.ones(size, np.uint8)
    labels[-6:], labels[4:8, 20:26], labels[0] = 0, 2, 255
    millimetres = np.full(size, 2000 + number, np.uint16)
    millimetres[:, :5], millimetres[3:6, 10:14] = 1000, 0
    normals = np.zeros((*size, 3), np.float32)
    normals[:], normals[-6:], normals[:, :5], normals[2, 3] = (0, 0, -1), (0, -1, 0), (1, 0, 0), 0
    edges = np.zeros(size, np.uint8)
    edges[7:9, 3:20] = 255
    kelvins = np.full(size, 29315 + number, np.uint16)
    kelvins[5:7, 1:4] = 0
    celsius = np.where(kelvins == 0, UNKNOWN, kelvins * 0.01 - 273.15)
    return {
        "semseg": (".png", labels, labels),
        "depth": (".png", millimetres / 1000, millimetres)
        if number % 2
        else (".tiff", millimetres / 1000, millimetres.astype(np.float32)),
        "normals": (".npy", normals, to_frame(normals, "rub")),
        "edges": (".png", edges // 255, edges),
        "temperature": (".png", celsius, kelvins),
    }
