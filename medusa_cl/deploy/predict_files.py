"""What predictions are on the disk: panels, arrays, PNG of depth and of labels."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medusa_cl import kept
from medusa_cl.deploy.predict_panel import panel
from medusa_cl.deploy.predict_record import KINDS
from medusa_cl.deploy.predictor import shape_of, value_unit
from medusa_cl.tasks import DenseTask, palette

MILLIMETRES = 1000
FARTHEST = 65535  # mm, the last that 16 bits hold


def is_depth(task: DenseTask) -> bool:
    """Return whether a task's values are metres of depth, whatever its name."""
    return task.kind == "depth" and task.unit == "m" and task.channels == 1


def endings(kinds: Sequence[str], tasks: Mapping[str, DenseTask]) -> tuple[str, ...]:
    """Return how the names of one picture's outputs end.

    Args:
        kinds: Some of `KINDS`.
        tasks: The tasks by name.
    """
    single = [f"_{name}.png" for name, task in tasks.items() if is_depth(task) or task.output == "classes"]
    by_kind = {"panels": [".png"], "arrays": [".npz"], "png": single}
    return tuple(ending for kind in KINDS if kind in kinds for ending in by_kind[kind])


def write(
    stem: Path,
    tasks: Mapping[str, DenseTask],
    image: NDArray[np.uint8],
    answers: Mapping[str, NDArray[Any]],
    caption: Sequence[str],
    ending: str,
) -> int:
    """Write one output of a picture, whole or not at all.

    Args:
        stem: The output's path before its ending.
        tasks: The tasks by name.
        image: The picture, H W 3.
        answers: Its answers by task.
        caption: What stands above the panel.
        ending: One of `endings`.

    Returns:
        How many pixels hold less than they should (see `write_depth`).
    """
    path = stem.with_name(stem.name + ending)
    if ending == ".npz":
        write_arrays(path, answers)
    elif ending == ".png":
        write_picture(path, panel(image, answers, tasks, caption))
    elif is_depth(tasks[name := ending[1:].removesuffix(".png")]):
        return write_depth(path, answers[name])
    else:
        write_labels(path, answers[name])
    return 0


def write_arrays(path: Path, answers: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by task as `numpy.load` reads them; the same arrays are the same bytes."""
    with kept.whole(path) as part, zipfile.ZipFile(part, "w") as packed:
        for name, values in answers.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of no date
            # Floats that a net has answered hardly get smaller, and compressing them takes longer than the net.
            member.compress_type = zipfile.ZIP_STORED if values.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            with packed.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def write_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write H W 3 uint8, or H W uint16, as PNG."""
    _write_png(path, Image.fromarray(picture))


def write_depth(path: Path, metres: NDArray[np.float32]) -> int:
    """Write depth H W in metres as PNG of 16 bits in millimetres: 0 is no value, the last one 65.535 m and beyond.

    Returns:
        How many pixels lie beyond.
    """
    rounded = np.rint(np.nan_to_num(metres, nan=0.0, posinf=np.inf, neginf=0.0).astype(np.float64) * MILLIMETRES)
    write_picture(path, np.clip(rounded, 0, FARTHEST).astype(np.uint16))
    return int((rounded > FARTHEST).sum())


def write_labels(path: Path, labels: NDArray[Any]) -> None:
    """Write classes H W as PNG: pixels are class numbers, of 8 bits with the panel's colours as palette, or of 16."""
    if labels.dtype != np.uint8:
        write_picture(path, labels)
        return
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())
    _write_png(path, picture, bits=8)


def _write_png(path: Path, picture: Image.Image, **options: int) -> None:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", compress_level=4, **options)
    with kept.whole(path) as part:
        part.write_bytes(encoded.getvalue())  # Pillow, writing itself, does not say that a disk is full


def describe(task: DenseTask) -> dict[str, Any]:
    """Return what is said of a task's array: kind, shape and type, unit, names of classes and their colours."""
    said: dict[str, Any] = {"kind": task.kind, "array": shape_of(task), "unit": value_unit(task)}
    if task.output == "classes":
        said["classes"] = list(task.classes)
        said["colours"] = palette()[np.arange(task.channels) % 256].tolist()
    return said
