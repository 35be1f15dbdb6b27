"""What predicting costs: the start of the command beyond its imports, and each picture.

python benchmarks/predict.py [PICTURES]      (default: 8 rooms at 480x640 as JPEG, five heads on tf_efficientnet_lite0)

CPU seconds of one thread; random weights, which cost what learnt ones do. Writes benchmarks/results/predict.json and
predict.md; exits with 1 where something is missed.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from learns import machine, table
from PIL import Image

from medusa_cl import tasks
from medusa_cl.checkpoint import save_model
from medusa_cl.data import rooms
from medusa_cl.deploy import pictures, predict_files
from medusa_cl.deploy.predictor import Predictor
from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel
from medusa_cl.summary import git_commit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SIZE, TRAINED = (480, 640), (128, 160)
SMALL = 4  # pictures of a small folder
ROUNDS = 5
BEYOND = 3.0  # seconds


def write_run(folder: Path) -> Path:
    """Write a run of rooms, as `medusa_cl.run` leaves one, and return its directory."""
    head = functools.partial(MedusaHead, width=32, mix_width=64)
    model = MultiTaskModel(Backbone.create("tf_efficientnet_lite0", pretrained=False), head)
    made = (tasks.semseg(rooms.CLASSES), tasks.depth(), tasks.normals(), tasks.edges(), tasks.reshading())
    model.add_heads(made, seed=0)
    save_model(model, folder / "model")
    (folder / "config.yaml").write_text(f"scenario:\n  image_size: {list(TRAINED)}\n")
    return folder


def write_photos(folder: Path, count: int) -> Path:
    """Write rooms as JPEG, and return their folder."""
    folder.mkdir()
    for index in range(count):
        Image.fromarray(rooms.render_room(index, SIZE)["image"]).save(folder / f"{index:04d}.jpg", quality=92)
    return folder


def spent(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of a process with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def starts(run: Path, photos: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Return the least CPU and wall seconds of each command, taken in turn."""
    predicting = ["-m", "medusa_cl.predict", f"run={run}", f"images={photos}"]
    commands: dict[str, Callable[[int], list[str]]] = {
        "import torch, timm": lambda n: ["-c", "import torch, timm"],
        f"predict, {SMALL} pictures": lambda n: [*predicting, f"out={folder / f'out{n}'}"],
        "predict --help": lambda n: ["-m", "medusa_cl.predict", "--help"],
    }
    taken = {name: [spent(command(n)) for n in range(ROUNDS)] for name, command in commands.items()}
    return {
        name: {"cpu_s": min(cpu for cpu, _ in rows), "wall_s": min(wall for _, wall in rows)}
        for name, rows in taken.items()
    }


def milliseconds(work: Callable[[Path], object], photos: list[Path]) -> float:
    """Return the CPU milliseconds of one picture, the best of some rounds over all."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for photo in photos:
            work(photo)
        rounds.append(time.process_time() - started)
    return 1000 * min(rounds) / len(photos)


def parts(run: Path, photos: list[Path], out: Path) -> dict[str, float]:
    """Return the CPU milliseconds of each part of one picture."""
    trained, own = Predictor(run), Predictor(run, size="own")
    images = {photo: pictures.read(photo) for photo in photos}
    answers = trained(images[photos[0]])
    out.mkdir()

    def write(ending: str, photo: Path) -> None:
        predict_files.write(out / photo.stem, trained.tasks, images[photo], answers, ("a", "b"), ending)

    return {
        "read the JPEG": milliseconds(pictures.read, photos),
        f"net, seen at {TRAINED[1]} pixels (size=train)": milliseconds(lambda p: trained(images[p]), photos),
        f"net, seen at {SIZE[1]} pixels (size=own)": milliseconds(lambda p: own(images[p]), photos),
        "write the panel": milliseconds(functools.partial(write, ".png"), photos),
        "write the arrays": milliseconds(functools.partial(write, ".npz"), photos),
        "write PNG of depth and labels": milliseconds(functools.partial(write, "_depth.png"), photos)
        + milliseconds(functools.partial(write, "_semseg.png"), photos),
    }


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Write a run and photographs, and take the times."""
    run, photos = write_run(folder / "run"), write_photos(folder / "photos", count)
    few = write_photos(folder / "few", SMALL)
    started = starts(run, few, folder)
    beyond = {
        unit: started[f"predict, {SMALL} pictures"][unit] - started["import torch, timm"][unit]
        for unit in ("cpu_s", "wall_s")
    }
    return {
        "pictures": count,
        "starts": started,
        "beyond": beyond,
        "parts": parts(run, sorted(photos.iterdir()), folder / "w"),
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return what is missed, in words."""
    beyond = found["beyond"]["cpu_s"]
    return [] if beyond <= BEYOND else [f"{beyond:.1f} s beyond the imports, expected at most {BEYOND:g} s"]


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    rows = [[name, f"{row['cpu_s']:.1f}", f"{row['wall_s']:.1f}"] for name, row in found["starts"].items()]
    beyond = found["beyond"]
    rows.append(["predict beyond the imports", f"{beyond['cpu_s']:.1f}", f"{beyond['wall_s']:.1f}"])
    where, missed = found["machine"], found["failures"]
    return (
        "\n\n".join(
            [
                "# Predicting",
                f"tf_efficientnet_lite0 with five Medusa heads, JPEG of {SIZE[0]}x{SIZE[1]}, trained at "
                f"{TRAINED[0]}x{TRAINED[1]}, one thread, the least of {ROUNDS} rounds. {where['cpu']}, "
                f"{where['cores']} cores, {found['date']}.",
                table(["command", "CPU s", "wall s"], rows),
                f"A picture, mean of {found['pictures']}; reading and writing run beside the net:",
                table(["part", "CPU ms"], [[name, f"{spent:.0f}"] for name, spent in found["parts"].items()]),
                "Missed: " + "; ".join(missed) + "." if missed else "Nothing is missed.",
            ]
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Measure and write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), int(arguments[0]) if arguments else 8)
    found |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "git": git_commit()}
    found["failures"] = failures(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "predict.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "predict.md").write_text(page(found))
    print(page(found))
    return bool(found["failures"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
