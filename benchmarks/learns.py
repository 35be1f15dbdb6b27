"""Does the demo learn? Compare a finished run with the best constant predictors, and its costs with its budget.

python benchmarks/learns.py [RUN_DIRECTORY]      (default: the newest Medusa run under runs/rooms_incremental)

Writes benchmarks/results/demo.json and demo.md; exits with 1 where something is missed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.rooms import rooms_file
from medusa_cl.losses import valid_depth, valid_labels, valid_map, valid_normals
from medusa_cl.randomness import generator
from medusa_cl.results import transfer
from medusa_cl.tasks import DenseTask
from medusa_cl.tracking.numbers import number, percent

RUNS = Path("runs/rooms_incremental")
RESULTS = Path(__file__).resolve().parent / "results"
AT_LEAST = 20.0  # percent better than the constant
BASE_MIOU = 30.0  # of rooms-v1, which have more things and styles than those before (40)
MEMORY = 4 * 2**30
SECONDS = 540.0
DENSITIES = (0.02, 0.05, 0.1, 0.3, 1.0)

Guess = Callable[[int, Tensor], Tensor]


def most_frequent(targets: Iterable[Tensor]) -> Tensor:
    """Return the class, a scalar, that most pixels of targets H W have."""
    counts = [torch.bincount(target[valid_labels(target)], minlength=256) for target in targets]
    return torch.stack(counts).sum(0).argmax()


def mean_value(targets: Iterable[Tensor], valid: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over all valid pixels of targets 1 H W, the constant of least squared error: 1 1 1."""
    return torch.cat([target[valid(target)].double() for target in targets]).mean().float().view(1, 1, 1)


def best_direction(targets: Iterable[Tensor]) -> Tensor:
    """Return the mean direction of normals 3 H W or an axis, whichever has the least mean angle to them: 3 1 1."""
    vectors = torch.cat([target.movedim(0, -1)[valid_normals(target[None])[0, 0]] for target in targets]).double()
    mean = torch.nn.functional.normalize(vectors.mean(0), dim=0)
    candidates = torch.cat([mean[None], torch.eye(3).double(), -torch.eye(3).double()])
    angles = torch.stack([(vectors @ candidate).clamp(-1, 1).arccos().mean() for candidate in candidates])
    return candidates[angles.argmin()].float().view(3, 1, 1)


def random_edges(density: float) -> Guess:
    """Return guesses in which a share of the pixels has a uniform random probability and the rest has none."""

    def guess(index: int, target: Tensor) -> Tensor:
        drawn = torch.rand(2, *target.shape, generator=generator("random edges", str(density), index))
        return torch.where(drawn[0] < density, drawn[1], 0.0)

    return guess


def same(constant: Tensor) -> Guess:
    """Return guesses that are the same everywhere."""
    return lambda index, target: constant.expand_as(target)


def guesses(task: DenseTask, train: Iterable[Tensor]) -> list[Guess]:
    """Return what to try without looking at any image: one constant, or for edges random maps."""
    if task.kind == "edges":  # a constant map has no ridge, so any map would beat it
        return [random_edges(density) for density in DENSITIES]
    find: Mapping[str, Callable[[Iterable[Tensor]], Tensor]] = {
        "semseg": most_frequent,
        "depth": lambda targets: mean_value(targets, valid_depth),
        "normals": best_direction,
        "reshading": lambda targets: mean_value(targets, valid_map),
    }
    return [same(find[task.kind](train))]


def score(task: DenseTask, guess: Guess, targets: Iterable[Tensor]) -> float:
    """Return the primary metric of guesses on a split."""
    metric = task.metric()
    for index, target in enumerate(targets):
        metric.update(guess(index, target)[None], target[None])
    return float(metric.compute()[task.primary])


def constant_score(task: DenseTask, train: HDF5Data, test: HDF5Data) -> float:
    """Return the best primary metric on `test` of what needs no image."""
    found = [score(task, guess, targets(test, task.name)) for guess in guesses(task, targets(train, task.name))]
    return max(found) if task.higher_is_better else min(found)


def targets(source: HDF5Data, task: str) -> Iterable[Tensor]:
    """Yield the targets there are of a task."""
    return (t for t in (source.target(i, task) for i in range(len(source))) if t is not None)


def failures(rows: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> list[str]:
    """Return what a run misses, in words.

    Args:
        rows: By task: "constant", "run" and "better" (percent).
        summary: The run's summary.json.
    """
    found = [
        f"{task}: {percent(row['better'])} against the best constant, expected at least +{AT_LEAST:g} %"
        for task, row in rows.items()
        if row["better"] is None or row["better"] < AT_LEAST
    ]
    base_miou = summary["matrix"]["values"]["semseg"][0]
    if base_miou is None or base_miou <= BASE_MIOU:
        found.append(f"semseg: {number(base_miou, '%')} mIoU after the base, expected above {BASE_MIOU:g} %")
    found += [f"forgetting of {t} is {v}, expected exactly 0" for t, v in summary["forgetting"].items() if v != 0]
    if (memory := summary["cost"]["peak_memory_bytes"]) >= MEMORY:
        found.append(f"peak memory {memory / 2**30:.2f} GiB, expected under {MEMORY / 2**30:g} GiB")
    if (seconds := sum(summary["stages"].values())) > SECONDS:
        found.append(f"{seconds:.0f} s in all, expected at most {SECONDS:g} s")
    return found


def find_run(arguments: list[str], runs: Path = RUNS) -> Path:
    """Return the run directory named, or the newest finished one of Medusa; leaves with 1 where there is none."""
    known = [Path(arguments[0]) / "summary.json"] if arguments else list(runs.glob("*/summary.json"))
    medusa = [p for p in known if p.is_file() and json.loads(p.read_text())["strategy"] == "medusa"]
    if not medusa:
        sys.exit(f"No finished run of Medusa in {arguments[0] if arguments else runs}. Run `make demo` first.")
    return max(medusa, key=lambda path: path.stat().st_mtime).parent


def compare(run: Path, summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by task, the constant's value, the run's last one and how much better that is in percent."""
    from medusa_cl.scenarios.rooms import rooms_tasks  # brings Avalanche, which takes seconds

    scenario = yaml.safe_load((run / "config.yaml").read_text())["scenario"]
    counts = {split: int(scenario[f"{split}_size"]) for split in ("train", "test")}
    path = rooms_file(tuple(scenario["image_size"]), counts)
    data = {split: HDF5Data(path, split, size=count) for split, count in counts.items()}
    hashes = summary["provenance"]["data_hash"]
    if any(source.content_hash != hashes[split] for split, source in data.items()):
        sys.exit(f"{run} was learnt on other rooms than {path} holds. Run `make demo` again.")
    tasks = {task.name: task for task in rooms_tasks()}
    rows: dict[str, dict[str, Any]] = {}
    for name, values in summary["matrix"]["values"].items():
        constant = constant_score(tasks[name], data["train"], data["test"])
        better = transfer(values[-1], constant, tasks[name].higher_is_better)
        rows[name] = {**summary["primary"][name], "constant": constant, "run": values[-1], "better": better}
    return rows


def machine() -> dict[str, Any]:
    """Return what the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor(), "cores": cores, "python": platform.python_version()}


def result(run: Path, summary: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what is written."""
    kept = ("version", "device", "backbone", "head", "seed", "forgetting", "transfer", "stages")
    return {
        "date": time.strftime("%Y-%m-%d", time.localtime((run / "summary.json").stat().st_mtime)),
        "machine": machine(),
        "packages": summary["provenance"]["packages"],
        "git": summary["provenance"]["git"],
        **{key: summary[key] for key in kept},
        "tasks": dict(rows),
        "peak_memory_bytes": summary["cost"]["peak_memory_bytes"],
        "seconds": sum(summary["stages"].values()),
        "failures": failures(rows, summary),
    }


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def constants_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table task | constant | run | better by, in Markdown."""
    head = ["task", "metric", "best constant (edges: random)", "run", "better by"]
    return table(
        head,
        (
            [name, row["metric"], number(row["constant"], row["unit"]), number(row["run"], row["unit"]),
             percent(row["better"])]
            for name, row in tasks.items()
        ),
    )  # fmt: skip


def markdown(found: Mapping[str, Any]) -> str:
    """Return demo.md."""
    here, versions = found["machine"], ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    gains = ("gain", "head_gain", "control_gain", "feature_gain")
    per_task = found["transfer"]["per_task"].items()
    lost = ", ".join(f"{task} {value:g}" for task, value in found["forgetting"].items())
    return "\n\n".join([
        "# The demo, measured",
        f"{found['date']}, medusa_cl {found['version']} (commit {found['git']}) on {found['device']}: {here['cpu']}, "
        f"{here['cores']} cores, Python {here['python']}. {versions}. "
        f"{found['backbone']}, {found['head']}, seed {found['seed']}.",
        constants_table(found["tasks"]),
        f"Forgetting: {lost}.",
        table(["new task", *gains], ([task, *(percent(entry.get(g)) for g in gains)] for task, entry in per_task)),
        "gain: against plain multitask features with plain heads. head_gain: Medusa heads against plain heads on those "
        "same plain features; feature_gain: Medusa's features against them under Medusa heads; control_gain: against "
        "ungated heads of equal parameters on them.",
        table(["stage", "seconds"], ([stage, f"{value:.1f}"] for stage, value in found["stages"].items())),
        f"{found['seconds']:.0f} s in all, peak memory {found['peak_memory_bytes'] / 2**30:.2f} GiB.",
        "Missed: " + "; ".join(found["failures"]) + "." if found["failures"] else "Every bound was kept.",
    ]) + "\n"  # fmt: skip


def main(arguments: list[str]) -> None:
    """Compare, print, write, and say by the exit status whether all is well."""
    run = find_run(arguments)
    summary = json.loads((run / "summary.json").read_text())
    found = result(run, summary, compare(run, summary))
    print(f"{run}\n{constants_table(found['tasks'])}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "demo.md").write_text(markdown(found))
    if found["failures"]:
        sys.exit("\n".join(["The run misses:", *(f"  {line}" for line in found["failures"])]))
    print(f"Every bound was kept: {found['seconds']:.0f} s, {found['peak_memory_bytes'] / 2**30:.2f} GiB.")


if __name__ == "__main__":
    main(sys.argv[1:])
