"""Predict with an exported model, without the package that made it: `python onnx_predict.py model.onnx photo.jpg out/`.

Needs numpy, Pillow and onnxruntime. Everything else is in the file: what goes in, what comes out, in which unit.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str) -> np.ndarray:
    """Return a picture of any format as H W 3 uint8 RGB, upright."""
    with Image.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def fitted(image: np.ndarray, meta: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """Return the image at the size that the network sees, and how much of that is image: (seen, height, width).

    Its longer side becomes that of the training images: only at their scale are metres metres. Where the file's size is
    fixed, and the image does not fit in so, it gets smaller.
    """
    high, wide = meta["size"]
    wanted, known = max(high, wide), max(image.shape[:2])
    if "height" not in meta["dynamic"]:
        wanted, known = min(zip((high, wide), image.shape[:2], strict=True), key=lambda pair: pair[0] / pair[1])
    height, width = (max(1, (2 * side * wanted + known) // (2 * known)) for side in image.shape[:2])
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if "height" in meta["dynamic"]:  # takes any size
        return small, height, width
    seen = np.empty((high, wide, 3), np.uint8)
    seen[:] = np.round(255 * np.array(meta["mean"]))  # what is no image has the mean colour, as inside the network
    seen[:height, :width] = small
    return seen, height, width


def as_input(seen: np.ndarray, meta: dict[str, Any]) -> np.ndarray:
    """Return one image as the batch that the file takes."""
    if "uint8" in meta["layout"]:
        return seen[None]
    return (seen.astype(np.float32) / 255).transpose(2, 0, 1)[None]


def restored(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring an answer, C h w float32 or h w int64, to H, W: classes by the nearest pixel, values in between."""
    high, wide = size
    if values.ndim == 2:
        rows, columns = (np.arange(n) * old // n for n, old in zip(size, values.shape, strict=True))
        return values[rows][:, columns]
    planes = [Image.fromarray(plane).resize((wide, high), Image.Resampling.BILINEAR) for plane in values]
    return np.stack([np.asarray(plane) for plane in planes])


def decoded(values: np.ndarray, task: dict[str, Any]) -> np.ndarray:
    """Return what a task's logits mean, where the file answers with logits."""
    if task["gives"] == "decoded":
        return values
    if task["output"] == "classes":
        return values.argmax(axis=0)
    if task["output"] == "binary":
        return 1 / (1 + np.exp(-values))
    return values


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors 3 H W at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-6)


def coloured(values: np.ndarray, task: dict[str, Any]) -> np.ndarray:
    """Return a picture H W 3 uint8 of an answer."""
    if task["output"] == "classes":
        colours = np.random.default_rng(0).integers(40, 256, (len(task["classes"]), 3), dtype=np.uint8)
        return colours[values]
    if task["axes"]:  # a normal to the right is red, up green, towards the camera blue
        return (255 * (0.5 + 0.5 * values * np.array([1, -1, -1]).reshape(3, 1, 1))).transpose(1, 2, 0).astype(np.uint8)
    plane = values[0]
    low, high = (0, 1) if task["output"] == "binary" else np.percentile(plane, (1, 99))
    share = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    stops = np.array([[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]])
    return np.stack([np.interp(share, np.linspace(0, 1, 5), stops[:, i]) for i in range(3)], axis=-1).astype(np.uint8)


def save(values: np.ndarray, task: dict[str, Any], stem: Path) -> None:
    """Write an answer as a picture, and the numbers: .npy, for depth a 16-bit PNG in millimetres."""
    Image.fromarray(coloured(values, task)).save(f"{stem}_{task['name']}.png")
    if task["unit"] == "m":
        millimetres = np.clip(np.round(values[0] * 1000), 0, 65535).astype(np.uint16)
        Image.fromarray(millimetres).save(f"{stem}_{task['name']}_mm.png")
    else:
        np.save(f"{stem}_{task['name']}.npy", values)


def summary(values: np.ndarray, task: dict[str, Any]) -> str:
    """Return an answer in a line."""
    if task["output"] == "classes":
        counts = np.bincount(values.ravel(), minlength=len(task["classes"]))
        shares = sorted(zip(counts / values.size, task["classes"], strict=True), reverse=True)[:4]
        return ", ".join(f"{name} {share:.0%}" for share, name in shares if share)
    return f"{values.min():.3g} .. {values.max():.3g} {task['unit'].split(':')[0]}"


def main(model: str, picture: str, out: str) -> None:
    """Predict all tasks for a picture."""
    session = onnxruntime.InferenceSession(model)
    said = session.get_modelmeta().custom_metadata_map
    meta, tasks = json.loads(said["input"]), json.loads(said["tasks"])
    image = read(picture)
    seen, height, width = fitted(image, meta)
    if max(height, width) < max(meta["size"]):
        high, wide = meta["size"]
        print(
            f"{picture} is seen at {height}x{width}, smaller than in training, as this file takes {high}x{wide} alone: "
            f"answers are worse. Export with dynamic=all, or size={max(high, wide)}x{min(high, wide)} for upright "
            "pictures."
        )
    answers = session.run([task["name"] for task in tasks], {meta["name"]: as_input(seen, meta)})
    Path(out).mkdir(parents=True, exist_ok=True)
    for task, answer in zip(tasks, answers, strict=True):
        values = decoded(answer[0], task)[..., :height, :width]
        values = restored(values, image.shape[:2])
        values = unit(values) if task["axes"] else values
        save(values, task, Path(out) / Path(picture).stem)
        print(f"{task['name']}: {summary(values, task)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python onnx_predict.py MODEL.onnx PICTURE OUT_FOLDER")
    main(*sys.argv[1:])
