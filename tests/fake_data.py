"""Miniature data that can be learnt: tilted, coloured rectangles in front of a tilted wall, with exact targets."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medusa_cl.data.hdf5 import FIELDS, HDF5Writer, encode

Array = NDArray[Any]

SIZES = {"train": 8, "val": 2, "test": 4}
DENSE = ("semseg", "depth", "normals", "edges", "reshading")
IGNORED = np.s_[:2, :3]  # the corner that no target labels


def fake_dense_hdf5(
    path: str | Path,
    sizes: Mapping[str, int] | None = None,
    image_size: tuple[int, int] = (32, 48),
    fields: Sequence[str] = DENSE,
    seed: int = 0,
    classes: int | Sequence[str] = 19,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a miniature in our format and return its path.

    `fields` may name any of semseg, human_parts, depth, normals, edges, saliency, reshading, instances; classes=40
    makes it like NYUD. Image i of a split is the same whatever the sizes.
    """
    names = [f"class_{i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    labels = {"semseg": names, "human_parts": [f"part_{i}" for i in range(7)]}
    with HDF5Writer(path, {"source": "fake", **(attrs or {})}, classes=labels) as writer:
        for split, size in (sizes or SIZES).items():
            scenes = [fake_scene(seed, split, index, image_size, len(names)) for index in range(size)]
            arrays = {name: np.stack([scene[name] for scene in scenes]) for name in ("image", *fields)}
            writer.append(split, {name: encode(FIELDS[name], array) for name, array in arrays.items()})
    return Path(path)


def fake_scene(seed: int, split: str, index: int, image_size: tuple[int, int], classes: int = 19) -> dict[str, Array]:
    """Return one image and all its targets as values (see `hdf5.encode`)."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    height, width = image_size
    rays = _rays(height, width)
    normal = np.broadcast_to(_facing(rng, 0.3), (height, width, 3)).copy()
    depth = _plane(rays, normal[0, 0], rng.uniform(4, 6))
    label, instance = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    for number in range(1, 5):
        box = _rectangle(rng, height, width)
        tilt = _facing(rng, 0.8)
        normal[box], instance[box], label[box] = tilt, number, rng.integers(1, classes)
        depth[box] = _plane(rays, tilt, rng.uniform(1.5, 3))[box]
    shade = np.clip(-(normal * rays).sum(-1) / np.linalg.norm(rays, axis=-1), 0, 1)
    colour = np.random.default_rng(7).uniform(0.2, 1, (classes, 3))[label]
    image = np.clip(255 * colour * shade[..., None] + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    targets = {
        "semseg": label,
        "human_parts": np.where(label > 0, label % 7, 0),
        "depth": depth,
        "normals": normal,
        "edges": _boundary(instance),
        "saliency": (instance > 0).astype(np.float32),
        "reshading": shade,
        "curvature": np.stack([label / 4.0, -label / 8.0], axis=-1),
        "keypoints2d": 1 - shade,
        "albedo": colour.copy(),
    }
    for name, target in targets.items():
        target[IGNORED] = FIELDS[name].ignore
    return {"image": image, "instances": instance, **targets}


def _rays(height: int, width: int) -> Array:
    """Viewing rays H W 3 of a pinhole camera with a focal length of one image width; z = 1."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x + 0.5 - width / 2) / width, (y + 0.5 - height / 2) / width, np.ones((height, width))], axis=-1)


def _facing(rng: np.random.Generator, tilt: float) -> Array:
    vector = np.array([*rng.uniform(-tilt, tilt, 2), -1.0])
    return vector / np.linalg.norm(vector)


def _plane(rays: Array, normal: Array, distance: float) -> Array:
    """Depth (z) of the plane that has this normal and crosses the optical axis at `distance`."""
    return distance * normal[2] / (rays @ normal)


def _rectangle(rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
    top, left = rng.integers(0, height * 2 // 3), rng.integers(0, width * 2 // 3)
    tall, wide = rng.integers(height // 5, height // 2), rng.integers(width // 5, width // 2)
    return slice(top, top + tall), slice(left, left + wide)


def _boundary(instance: Array) -> Array:
    edge = np.zeros(instance.shape, np.float32)
    edge[:, 1:] = instance[:, 1:] != instance[:, :-1]
    edge[1:] = np.maximum(edge[1:], instance[1:] != instance[:-1])
    return edge
