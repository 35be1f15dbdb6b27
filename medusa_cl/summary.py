"""summary.json: what a run was, what it reached, what it cost and where it came from."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from medusa_cl import __version__
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.results import TaskMatrix, summary_parts
from medusa_cl.tasks import DenseTask

PACKAGES = ("torch", "torchvision", "timm", "avalanche-lib", "torchmetrics", "numpy", "mlflow", "hydra-core", "h5py")


def summarise(
    facts: Mapping[str, Any],
    matrix: TaskMatrix,
    tasks: Mapping[str, DenseTask],
    references: Mapping[str, Mapping[str, float | None]],
    cost: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    frozen: bool,
    medusa_head: bool,
) -> dict[str, Any]:
    """Put the summary together.

    Args:
        facts: scenario, strategy, backbone, head, seed, device.
        matrix: What was reached.
        tasks: The tasks by name.
        references: Values by reference and task.
        cost: See `costs`.
        provenance: Hashes of data and weights.
        frozen: Whether the backbone was frozen while new tasks were learnt.
        medusa_head: Whether the run's heads are those of the reference with Medusa heads.

    Returns:
        Plain data; what is undefined is None with a reason.
    """
    primary = {
        name: {"metric": task.primary, "unit": task.unit, "higher_is_better": task.higher_is_better}
        for name, task in tasks.items()
    }
    return {
        **facts,
        "version": __version__,
        "base": list(matrix.base),
        "stream": list(matrix.stream),
        "primary": primary,
        **summary_parts(matrix, references, frozen=frozen, medusa_head=medusa_head),
        "cost": dict(cost),
        "provenance": {**provenance, "git": git_commit(), "packages": packages()},
    }


def costs(model: MultiTaskModel, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return parameters, parameters added by task, GFLOPs (2 x MAC, batch 1, all tasks) and peak memory in bytes."""
    return {
        "params_total": sum(p.numel() for p in model.used_parameters()),
        "params_added": {name: model.parameters_of(name) for name in model.tasks},
        "gflops": gflops(model, image_size),
        "peak_memory_bytes": peak_memory(),
    }


def gflops(model: MultiTaskModel, image_size: tuple[int, int]) -> float:
    """Count the floating-point operations of one image through backbone and all heads, in 1e9 (2 x MAC)."""
    device = next(model.parameters()).device
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *image_size, device=device))
    model.train(training)
    return float(counter.get_total_flops()) / 1e9


def peak_memory() -> int:
    """Return the most memory this process has held: on the CUDA device where one is used, else resident, in bytes."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def packages() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def code_hash() -> str:
    """Return the SHA-256 of the code that numbers depend on: what was kept by other code is computed anew."""
    package = Path(__file__).resolve().parent
    parts = ("", "models", "data", "data/rooms", "strategies", "scenarios")
    files = [path for part in parts for path in sorted((package / part).glob("*.py"))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def git_commit() -> str | None:
    """Return the commit of the package's checkout ("+" when it was changed); None where it is no checkout."""
    package = Path(__file__).resolve().parent
    try:
        # Installed into an environment inside a user's repository, git would answer with the user's commit.
        if Path(_git("rev-parse", "--show-toplevel", cwd=package)).resolve() != package.parent:
            return None
        commit = _git("rev-parse", "--short=12", "HEAD", cwd=package)
        changed = _git("status", "--porcelain", "-uno", cwd=package)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def _git(*arguments: str, cwd: Path) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
