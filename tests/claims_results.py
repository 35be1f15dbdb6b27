"""Results of mode=claims without any training: a small plan, and cells with values that a test chooses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from medusa_cl.claims.cells import Cell, Pretraining
from medusa_cl.claims.plan import Plan, Setting
from medusa_cl.claims.record import Results

SETTING = Setting(
    init="imagenet",
    labels=1.0,
    seeds=(0, 1, 2),
    heads=("plain", "control", "medusa_light", "medusa"),
    sources=("none", "plain", "medusa"),
)
PLAN = Plan(
    tasks=("semseg", "depth", "normals", "edges"),
    base=("semseg", "depth"),
    held_out=("semseg", "depth", "normals", "edges"),
    settings=(SETTING, replace(SETTING, labels=0.1, seeds=(0,), heads=("plain", "medusa_light"))),
    parity=("plain", "medusa", "mtinet"),
    ablations=("sfa_none", "msa_none"),
)
TASKS: dict[str, dict[str, Any]] = {
    "semseg": {"name": "semseg", "primary": "miou", "unit": "%", "higher_is_better": True},
    "depth": {"name": "depth", "primary": "rmse", "unit": "m", "higher_is_better": False},
    "normals": {"name": "normals", "primary": "mean", "unit": "deg", "higher_is_better": False},
    "edges": {"name": "edges", "primary": "edge_f", "unit": "%", "higher_is_better": True},
}
SPLITS = ("confirm", "confirm_style")
Value = Callable[[Cell, str, str], float | None]
"""`(cell, task, split) -> value`; None for a cell that is missing."""


def content(cell: Cell, value: Value) -> dict[str, Any]:
    """Return what a lab would keep of a cell, in the form of JSON."""
    names = cell.tasks if isinstance(cell, Pretraining) else (cell.task,)
    scores = {split: {n: {TASKS[n]["primary"]: value(cell, n, split)} for n in names} for split in SPLITS}
    spent = {"seconds": 5.0, "cpu_seconds": 36.0, "at": "2026-01-02T03:04:05+00:00"}
    made = {"device": "cpu", "packages": {"torch": "2.9.0"}}
    entry = {"cell": asdict(cell), "scores": scores, "parameters": 2_000_000, **spent, **made}
    found: dict[str, Any] = _listed(entry)
    return found


def _listed(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _listed(value) for key, value in entry.items()}
    return [_listed(value) for value in entry] if isinstance(entry, list | tuple) else entry


def results(value: Value, plan: Plan = PLAN, keep: Callable[[Cell], bool] = lambda cell: True) -> Results:
    """Return results with the cells that `keep` says and that have a value."""
    cells = dict.fromkeys(cell for section in plan.sections().values() for cell in section if keep(cell))
    there = {cell: found for cell in cells if None not in values_of(found := content(cell, value))}
    return Results(plan, TASKS, there, {"data": "rooms_claims", "score_on": list(SPLITS), "commit": "abc1234"})


def values_of(found: dict[str, Any]) -> list[Any]:
    """Return all values of a cell."""
    return [v for tasks in found["scores"].values() for scores in tasks.values() for v in scores.values()]


@functools.cache
def drawn_results(seed: int = 0) -> Results:
    """Return results with all cells, drawn by a seed."""
    return results(drawn(seed))


def drawn(seed: int) -> Value:
    """Return values around 40, the same for the same seed, cell, task and split."""

    def value(cell: Cell, task: str, split: str) -> float:
        rng = np.random.default_rng([seed, *f"{cell.label} {task} {split}".encode()])
        return float(40 * rng.uniform(0.8, 1.2))

    return value
