"""Miniatures of the three packs of NYUD-v2 with their true structure: analytic rooms, every value known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

# Where a component that a letter names points, in the camera frame x right, y down, z forward.
POINTS = {"r": (1, 0, 0), "l": (-1, 0, 0), "d": (0, 1, 0), "u": (0, -1, 0), "f": (0, 0, 1), "b": (0, 0, -1)}

NO_DEPTH = np.s_[:4, -6:]  # the top right corner: depth 0
NO_NORMAL = np.s_[-16:, :16]  # the bottom left corner, whole JPEG blocks: no normal
NO_LABEL = np.s_[:5, :7]  # the top left corner: raw class 0
LAST_CLASS = np.s_[-6:, -8:]  # the bottom right corner: raw class 40

# Raw classes, 1..40: the back wall is a wall, the left one a window, the right one a curtain.
BACK, FLOOR, LEFT, RIGHT = 1, 2, 9, 16
BOXES = (4, 5, 6, 7, 29)  # bed, chair, sofa, table, box


def write_nyud_pack(
    root: str | Path,
    kind: str,
    train: int = 3,
    test: int = 2,
    size: tuple[int, int] = (48, 64),
    frame: str = "rub",
    seed: int = 0,
) -> dict[str, dict[str, Array]]:
    """Write a miniature and return what is true of each image, by id, in the order of the split files, train first.

    Args:
        root: The pack's own folder (NYUD_MT or NYUDv2); it is made.
        kind: astmt, survey or atrc.
        train: Images in gt_sets/train.txt.
        test: Images in gt_sets/val.txt.
        size: H, W; 3 : 4 is taken for a whole image made smaller.
        frame: Where the components of the normals written point.
        seed: Other rooms for another one.

    Returns:
        `{id: {image, semseg, depth, normals, edges}}` as a reader should give them: H W 3 uint8 (before JPEG), classes
        0..39 with 255 for none, m with 0 for none, unit normals (x right, y down, z forward) or zero, edges in {0, 1}.
    """
    root, written = Path(root), {}
    names = [f"{(37 * i + 11) % 1000:04d}" for i in range(train + test)]  # no order that sorting would give
    for index, name in enumerate(names):
        written[name] = room(seed, index, size)
        for folder, (suffix, save) in WRITERS[kind].items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            save(root / folder / f"{name}{suffix}", written[name], frame)
    (root / "gt_sets").mkdir()
    (root / "gt_sets" / "train.txt").write_text("".join(f"{name}\n" for name in names[:train]))
    (root / "gt_sets" / "val.txt").write_text("".join(f"{name}\n" for name in names[train:]))
    return written


def intrinsics(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy of the colour camera for whole images reduced to a size, pixel centres at whole numbers."""
    s = size[1] / 640
    return 518.8579 * s, 519.4696 * s, (324.5824 + 0.5) * s - 0.5, (252.7362 + 0.5) * s - 0.5


def room(seed: int, index: int, size: tuple[int, int], pitch: tuple[float, float] = (-0.05, 0.1)) -> dict[str, Array]:
    """Return one image and its targets: floor, three walls and a box, seen by a camera turned a little.

    `pitch` is the range of how far it looks down, in radians.
    """
    rng = np.random.default_rng([seed, index])
    fx, fy, cx, cy = intrinsics(size)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(size)], axis=-1)
    turn = _turn(pitch=rng.uniform(*pitch), yaw=rng.uniform(-0.1, 0.1))
    depth, surface, normals = _cast(rays @ turn, _planes(rng))  # rays in the room's axes
    raw = np.array([BACK, FLOOR, LEFT, RIGHT, BOXES[rng.integers(len(BOXES))]])[np.minimum(surface, 4)]
    raw[NO_LABEL], raw[LAST_CLASS] = 0, 40
    truth = {
        "image": _picture(rng, raw, depth, normals),
        "semseg": np.where(raw == 0, 255, raw - 1),
        "depth": depth.astype(np.float32),
        "normals": (normals @ turn.T).astype(np.float32),  # back to the camera's axes
        "edges": _boundary(surface),
    }
    truth["depth"][NO_DEPTH] = 0
    truth["normals"][NO_NORMAL] = 0
    return truth


def _turn(pitch: float, yaw: float) -> Array:
    """Return the rotation from the room's axes to the camera's."""
    c, s, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ about_y


Face = tuple[int, int, float, tuple[tuple[int, float, float], ...]]


def _planes(rng: np.random.Generator) -> list[Face]:
    """Faces as (axis, sense of the normal, coordinate, bounds of other axes): four planes, then the box's three."""
    left, right = -rng.uniform(0.9, 1.4), rng.uniform(0.9, 1.4)
    floor, back = rng.uniform(1.0, 1.3), rng.uniform(3.5, 4.5)
    x0, z0 = rng.uniform(-0.6, 0.0), rng.uniform(2.0, 2.6)
    x1, z1, top = x0 + rng.uniform(0.4, 0.7), z0 + 0.6, floor - rng.uniform(0.4, 0.7)
    side = (0, 1, x1, ((1, top, floor), (2, z0, z1))) if x1 < 0 else (0, -1, x0, ((1, top, floor), (2, z0, z1)))
    return [
        (2, -1, back, ()),
        (1, -1, floor, ()),
        (0, 1, left, ()),
        (0, -1, right, ()),
        (2, -1, z0, ((0, x0, x1), (1, top, floor))),
        (1, -1, top, ((0, x0, x1), (2, z0, z1))),
        side,
    ]


def _cast(rays: Array, faces: list[Face]) -> tuple[Array, Array, Array]:
    """Return depth H W (rays have z = 1 in the camera), index of the face H W and its normal H W 3, in the room."""
    depth, surface = np.full(rays.shape[:2], np.inf), np.zeros(rays.shape[:2], np.int64)
    normals = np.zeros(rays.shape)
    for number, (axis, sense, place, bounds) in enumerate(faces):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = place / rays[..., axis]
            hit = (t > 0) & (t < depth) & (rays[..., axis] * sense < 0)
            for other, low, high in bounds:
                hit &= (t * rays[..., other] >= low) & (t * rays[..., other] <= high)
        depth[hit], surface[hit], normals[hit] = t[hit], number, sense * np.eye(3)[axis]
    return depth, surface, normals


def _picture(rng: np.random.Generator, raw: Array, depth: Array, normals: Array) -> Array:
    """Colour says the class, brightness the depth and the direction: all targets can be learnt."""
    colour = np.random.default_rng(40).uniform(0.3, 1, (41, 3))[raw]
    light = 0.5 + 0.25 * np.abs(normals[..., 2]) + 0.25 * np.abs(normals[..., 1])
    shade = light / (1 + 0.2 * depth)
    return np.clip(330 * colour * shade[..., None] + rng.normal(0, 3, (*raw.shape, 3)), 0, 255).astype(np.uint8)


def _boundary(surface: Array) -> Array:
    edge = np.zeros(surface.shape, np.uint8)
    edge[:, 1:] |= surface[:, 1:] != surface[:, :-1]
    edge[1:] |= surface[1:] != surface[:-1]
    return edge


# How each pack keeps what is true ------------------------------------------------------------------------------------

Truth = Mapping[str, Array]
Save = Callable[[Path, Truth, str], None]


def stored_normals(normals: Array, frame: str) -> Array:
    """Return normals H W 3 of our frame as components that point where the letters of `frame` say."""
    return np.stack([normals @ np.array(POINTS[letter], np.float32) for letter in frame], axis=-1)


def _image(path: Path, truth: Truth, frame: str) -> None:
    Image.fromarray(truth["image"]).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _raw_classes(truth: Truth) -> Array:
    return np.where(truth["semseg"] == 255, 0, truth["semseg"] + 1).astype(np.uint8)


def _classes_png(path: Path, truth: Truth, frame: str) -> None:
    Image.fromarray(_raw_classes(truth)).save(path)


def _classes_mat(path: Path, truth: Truth, frame: str) -> None:
    scipy.io.savemat(path, {"segmentation": _raw_classes(truth)}, do_compression=True)


def _depth_npy(path: Path, truth: Truth, frame: str) -> None:
    np.save(path, truth["depth"])


def _depth_mat(path: Path, truth: Truth, frame: str) -> None:
    scipy.io.savemat(path, {"depth": truth["depth"]}, do_compression=True)


def _normals_npy(path: Path, truth: Truth, frame: str) -> None:
    np.save(path, stored_normals(truth["normals"], frame))


def _normals_picture(path: Path, truth: Truth, frame: str) -> None:
    picture = np.rint((stored_normals(truth["normals"], frame) + 1) * 127.5).astype(np.uint8)  # zero: 128
    Image.fromarray(picture).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


def _edges_png(path: Path, truth: Truth, frame: str) -> None:
    Image.fromarray(truth["edges"] * np.uint8(255)).save(path)


def _edges_npy(path: Path, truth: Truth, frame: str) -> None:
    np.save(path, truth["edges"].astype(np.float32))


WRITERS: Mapping[str, Mapping[str, tuple[str, Save]]] = {
    "astmt": {
        "images": (".jpg", _image),
        "segmentation": (".mat", _classes_mat),
        "edge": (".png", _edges_png),
        "normals": (".jpg", _normals_picture),
        "depth": (".mat", _depth_mat),
    },
    "survey": {
        "images": (".jpg", _image),
        "segmentation": (".png", _classes_png),
        "edge": (".npy", _edges_npy),
        "normals": (".npy", _normals_npy),
        "depth": (".npy", _depth_npy),
    },
    "atrc": {
        "images": (".png", _image),
        "segmentation": (".png", _classes_png),
        "edge": (".png", _edges_png),
        "normals": (".png", _normals_picture),
        "depth": (".npy", _depth_npy),
    },
}
