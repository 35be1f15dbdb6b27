"""Miniatures of NYUD-v2's own file with its true structure: MATLAB v7.3 in reversed axes, and splits.mat in v5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

Array = NDArray[Any]

# Written out anew, in the file's own spelling and order of classes.
_LIST = """
wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves,
curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel,
shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag
"""
NAMED = tuple(name.strip() for name in _LIST.split(","))
NAMES = 894
FULL_SIZE = (480, 640)
INTRINSICS = (518.8579, 519.4696, 324.5824, 252.7362)  # at FULL_SIZE
UNLABELLED = np.s_[2:6, 30:38]
THING = np.s_[20:28, 40:50]  # of a name that is none of the 37
UNMEASURED = np.s_[10:14, 44:50]
SURFACES = (((1, 0, 0), 1.0, "wall", 1), ((0, -1, 0), 0.8, "floor", 1), ((0, 0, -1), 2.5, "wall", 2))
"""Normal, metres from the camera, name, instance: the wall to the left, the floor, the wall ahead."""


@dataclass(frozen=True)
class Written:
    """What a miniature holds, axes in the usual order; `labels` count names from 1, images count from 1."""

    path: Path
    images: Array  # N H W 3 uint8
    depths: Array  # N H W float32, filled in
    raw_depths: Array  # N H W float32, 0 where not measured, a little off elsewhere
    labels: Array  # N H W uint16, 0 unlabelled
    instances: Array  # N H W uint8
    normals: Array  # H W 3, of every image
    names: list[str]
    train: list[int]
    test: list[int]

    def label(self, name: str) -> int:
        """Return the label of a name."""
        return self.names.index(name) + 1


def write_nyud_mat(
    folder: str | Path,
    count: int = 6,
    size: tuple[int, int] = (48, 64),
    *,
    images_a_chunk: int = 1,
    seed: int = 0,
) -> Written:
    """Write `nyu_depth_v2_labeled.mat` and `splits.mat` into a folder; every third image is for testing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    numbers = range(1, count + 1)
    written = Written(
        folder / "nyu_depth_v2_labeled.mat",
        rng.integers(0, 256, (count, *size, 3), np.uint8),
        *_scenes(count, size, names := _names(rng)),
        names=names,
        train=[i for i in numbers if i % 3],
        test=[i for i in numbers if i % 3 == 0],
    )
    _write_file(written, images_a_chunk)
    write_splits(folder / "splits.mat", written.train, written.test)
    return written


def write_splits(path: Path, train: Sequence[int], test: Sequence[int]) -> None:
    """Write MATLAB columns of uint16, counted from 1."""
    columns = {name: np.array(v, np.uint16)[:, None] for name, v in (("trainNdxs", train), ("testNdxs", test))}
    scipy.io.savemat(path, columns)


def _names(rng: np.random.Generator) -> list[str]:
    """The 37 among 857 others, in no order; some others contain one of them."""
    others = [f"thing {i}" for i in range(NAMES - len(NAMED) - 3)] + ["floor trim", "wall decoration", "night  stand"]
    return [str(name) for name in rng.permutation([*NAMED, *others])]


def _scenes(count: int, size: tuple[int, int], names: list[str]) -> tuple[Array, ...]:
    depth, normals, label, instance = _corner(size, names)
    depths = np.stack([depth * (1 + 0.1 * i) for i in range(count)]).astype(np.float32)  # a larger room each time
    raw = depths * np.float32(1.01)
    labels, instances = (np.repeat(m[None], count, axis=0) for m in (label, instance))
    raw[:, *UNMEASURED] = 0
    labels[:, *UNLABELLED] = instances[:, *UNLABELLED] = 0
    labels[:, *THING], instances[:, *THING] = names.index("thing 3") + 1, 1
    return depths, raw, labels, instances, normals


def _corner(size: tuple[int, int], names: list[str]) -> tuple[Array, Array, Array, Array]:
    """The nearest of SURFACES at each pixel: depth, normal, label, instance."""
    scale = np.array([size[1] / FULL_SIZE[1], size[0] / FULL_SIZE[0]])
    fx, fy = INTRINSICS[:2] * scale
    cx, cy = (np.array(INTRINSICS[2:]) + 0.5) * scale - 0.5
    v, u = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(size)], axis=-1)
    towards = np.stack([rays @ np.array(normal) for normal, *_ in SURFACES])
    away = np.array([distance for _, distance, *_ in SURFACES])[:, None, None]
    depths = np.where(towards < -1e-6, away / np.maximum(-towards, 1e-6), np.inf)
    nearest = depths.argmin(axis=0)
    labels = np.array([names.index(name) + 1 for _, _, name, _ in SURFACES], np.uint16)
    instances = np.array([number for *_, number in SURFACES], np.uint8)
    normals = np.array([normal for normal, *_ in SURFACES], np.float32)
    return depths.min(axis=0), normals[nearest], labels[nearest], instances[nearest]


def _write_file(written: Written, images_a_chunk: int) -> None:
    arrays = {
        "images": written.images.transpose(0, 3, 2, 1),
        "depths": written.depths.transpose(0, 2, 1),
        "rawDepths": written.raw_depths.transpose(0, 2, 1),
        "labels": written.labels.transpose(0, 2, 1),
        "instances": written.instances.transpose(0, 2, 1),
    }
    count = len(written.images)
    texts = {
        "names": written.names,
        "scenes": [f"kitchen_{i:04d}" for i in range(count)],
        "sceneTypes": ["kitchen"] * count,
        "rawRgbFilenames": [f"kitchen_{i:04d}/r-1294886360.208451-2996770081.ppm" for i in range(count)],
        "rawDepthFilenames": [f"kitchen_{i:04d}/d-1294886360.208451-2996770081.pgm" for i in range(count)],
    }
    with h5py.File(written.path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            chunks = (images_a_chunk, *array.shape[1:])
            file.create_dataset(name, data=array, chunks=chunks, compression="gzip", compression_opts=1)
            file[name].attrs["MATLAB_class"] = np.bytes_(
                {"<f4": "single", "<u2": "uint16"}.get(array.dtype.str, "uint8")
            )
        _write_texts(file, texts)
        _write_opaque(file)
    with written.path.open("r+b") as raw:
        raw.write(_header())


def _write_texts(file: h5py.File, texts: dict[str, list[str]]) -> None:
    """Cell arrays: references, one row, to columns of UTF-16 codes in `#refs#`."""
    held = file.create_group("#refs#")
    for name, lines in texts.items():
        cells = file.create_dataset(name, (1, len(lines)), h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
        for i, line in enumerate(lines):
            codes = held.create_dataset(f"{name}{i}", data=np.array([*map(ord, line)], np.uint16)[:, None])
            codes.attrs.update(MATLAB_class=np.bytes_("char"), MATLAB_int_decode=np.int32(2))
            cells[0, i] = codes.ref


def _write_opaque(file: h5py.File) -> None:
    """Objects that only MATLAB understands."""
    file.create_dataset("#subsystem#/MCOS", (1, 2), h5py.ref_dtype)
    file.create_dataset("namesToIds", data=np.array([[0xDD000000, 2, 1, 1, 1, 1]], np.uint32))
    file["namesToIds"].attrs["MATLAB_class"] = np.bytes_("containers.Map")


def _header() -> bytes:
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Tue Jan  1 00:00:00 2013 HDF5 schema 1.00 ."
    return text.ljust(116) + bytes(8) + b"\x00\x02IM"
