"""What reading and augmenting cost: a prepared file against the survey pack's own files, and what a view adds.

python benchmarks/data.py [IMAGES]      (default: 24 rooms at 480x640, written as the survey pack of NYUD-v2)

Ratios of one run, in CPU seconds of one thread. Writes benchmarks/results/data.json and data.md; exits with 1 where
something is missed.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learns import machine, table
from PIL import Image

from medusa_cl import tasks
from medusa_cl.data.hdf5 import FIELDS, HDF5Data, decode
from medusa_cl.data.loader import Augmentation, DenseDataset
from medusa_cl.data.nyud import NYUDPack
from medusa_cl.data.pack import PackData
from medusa_cl.data.rooms import render_room
from medusa_cl.prepare import prepare
from medusa_cl.summary import git_commit

RESULTS = Path(__file__).resolve().parent / "results"
SIZE = (480, 640)
ROUNDS = 5
TARGETS = ("semseg", "depth", "normals", "edges")
AUGMENTATIONS: Mapping[str, Augmentation] = {
    "flip, zoom (NYUD)": Augmentation(zooms=(1.2, 1.5)),
    "flip, rotation, scale (PASCAL)": Augmentation(rotation=20.0, scale=(0.75, 1.25)),
    "flip, scale, crop 448x576": Augmentation(scale=(0.5, 2.0), crop=(448, 576)),
}
WAYS = ("survey pack", "prepared file", "prepared file, held in memory", "survey pack, files decoded only")
FASTER = 3.0  # times, from a prepared file
AUGMENTED_MS = 25.0
GROWTH = 32 * 2**20  # bytes that a second pass may add: what allocators keep, not images


def write_survey(root: Path, images: int) -> None:
    """Write rooms as the survey pack: JPEG, PNG of classes from 1, float32 NPY of edges, normals and depth."""
    for folder in ("images", "segmentation", "edge", "normals", "depth", "gt_sets"):
        (root / folder).mkdir(parents=True)
    for index in range(images):
        room, name = render_room(index, SIZE), f"{index + 1:04d}"
        grain = np.random.default_rng(index).normal(0, 3, room["image"].shape)  # a sensor's, which does not compress
        noisy = np.clip(room["image"] + grain, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"images/{name}.jpg", quality=95)
        Image.fromarray((room["semseg"] + 1).astype(np.uint8)).save(root / f"segmentation/{name}.png")
        np.save(root / f"edge/{name}.npy", room["edges"].astype(np.float32))
        np.save(root / f"normals/{name}.npy", decode(FIELDS["normals"], room["normals"]))
        depth = decode(FIELDS["depth"], room["depth"])
        jitter = np.random.default_rng(index).normal(0, 0.005, depth.shape).astype(np.float32)
        np.save(root / f"depth/{name}.npy", np.where(depth > 0, depth + jitter, 0).astype(np.float32))
    names = [f"{index + 1:04d}" for index in range(images)]
    half = images // 2
    (root / "gt_sets/train.txt").write_text("\n".join(names[:half]))
    (root / "gt_sets/val.txt").write_text("\n".join(names[half:]))


def milliseconds(work: Callable[[int], object], count: int) -> float:
    """Return the CPU milliseconds of one call, the best of some rounds over all."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for index in range(count):
            work(index)
        rounds.append(time.process_time() - started)
    return 1000 * min(rounds) / count


def read_all(source: Any) -> Callable[[int], object]:
    """Return a function that reads image and targets of one index, as tensors."""
    return lambda index: [source.image(index), *(source.target(index, name) for name in TARGETS)]


def load_files(root: Path, index: int) -> None:
    """Decode the same files and do nothing with them: the least that reading the pack can cost."""
    name = f"{index + 1:04d}"
    np.asarray(Image.open(root / f"images/{name}.jpg"))
    np.asarray(Image.open(root / f"segmentation/{name}.png"))
    for folder in ("edge", "normals", "depth"):
        np.load(root / folder / f"{name}.npy")


def memory() -> int:
    """Return the resident bytes of this process now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth(source: Any) -> int:
    """Return the bytes that reading everything ten more times adds, after a first time."""
    read = read_all(source)
    for index in range(len(source)):
        read(index)
    before = memory()
    for _ in range(10):
        for index in range(len(source)):
            read(index)
    return memory() - before


def augmenting(source: Any) -> dict[str, float]:
    """Return the CPU milliseconds that the views of each protocol add to a sample with four targets."""
    known = {
        task.name: task for task in (tasks.semseg(40), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.011))
    }
    dataset = DenseDataset(source, known, 0)
    samples = [dataset[i] for i in range(min(8, len(dataset)))]
    return {
        name: milliseconds(lambda i, drawn=drawn: drawn.draw(i).of(samples[i], known), len(samples))
        for name, drawn in AUGMENTATIONS.items()
    }


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Write a pack, prepare it, and take the times."""
    root = folder / "NYUD_MT"
    write_survey(root, images)
    prepare(root, folder / "nyud.h5", workers=1)
    pack = PackData(NYUDPack(root), "train")
    prepared = HDF5Data(folder / "nyud.h5", "train", memory_limit=0)
    held = HDF5Data(folder / "nyud.h5", "train")
    ways = (read_all(pack), read_all(prepared), read_all(held), lambda index: load_files(root, index))
    return {
        "images": images,
        "bytes_per_image": {
            "survey pack": sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) // images,
            "prepared file": (folder / "nyud.h5").stat().st_size // images,
        },
        "read_ms": {name: milliseconds(read, len(pack)) for name, read in zip(WAYS, ways, strict=True)},
        "augment_ms": augmenting(prepared),
        "growth_bytes": {"survey pack": growth(pack), "prepared file": growth(prepared)},
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return what is missed, in words."""
    ratio = found["read_ms"]["survey pack"] / found["read_ms"]["prepared file"]
    missed = [] if ratio >= FASTER else [f"prepared {ratio:.1f}x as fast as the survey pack, expected {FASTER:g}x"]
    for name, spent in found["augment_ms"].items():
        if spent > AUGMENTED_MS:
            missed.append(f"{name}: {spent:.1f} ms an image, expected at most {AUGMENTED_MS:g}")
    for name, grown in found["growth_bytes"].items():
        if grown > GROWTH:
            missed.append(f"{name}: {grown / 2**20:.0f} MiB more after ten passes, expected none")
    return missed


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    pack = found["read_ms"]["survey pack"]
    sizes = found["bytes_per_image"]
    reading = [
        [name, f"{spent:.1f}", f"{pack / spent:.1f}x", f"{sizes[name] / 2**20:.2f}" if name in sizes else ""]
        for name, spent in found["read_ms"].items()
    ]
    views = [[name, f"{spent:.1f}"] for name, spent in found["augment_ms"].items()]
    where = found["machine"]
    missed = found["failures"]
    return (
        "\n\n".join(
            [
                "# Reading data",
                f"Image and four targets at {SIZE[0]}x{SIZE[1]}, {found['images']} rooms written as the survey pack of "
                f"NYUD-v2, files warm, one thread. {where['cpu']}, {where['cores']} cores, {found['date']}.",
                table(["read as tensors", "CPU ms an image", "against the pack", "MiB an image"], reading),
                table(["augmentation, four targets", "CPU ms an image"], views),
                "Ten more passes over the images add "
                + " and ".join(f"{grown / 2**20:.1f} MiB ({name})" for name, grown in found["growth_bytes"].items())
                + ".",
                "Missed: " + "; ".join(missed) + "." if missed else "Nothing is missed.",
            ]
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Measure and write."""
    torch.set_num_threads(1)
    images = int(arguments[0]) if arguments else 24
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), images)
    found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "git": git_commit()}
    found["failures"] = failures(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "data.md").write_text(page(found))
    print(page(found))
    return bool(found["failures"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
