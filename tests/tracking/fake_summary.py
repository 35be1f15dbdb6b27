"""A summary.json as a run writes it, from the numbers of a first measurement on rooms."""

from __future__ import annotations

from typing import Any

from medusa_cl.results import TaskMatrix, summary_parts

BASE, STREAM = ("semseg", "depth"), ("normals", "edges", "reshading")
PRIMARY = {
    "semseg": ("miou", "%", True),
    "depth": ("rmse", "m", False),
    "normals": ("mean", "deg", False),
    "edges": ("edge_f", "%", True),
    "reshading": ("rmse", "", False),
}
LEARNT = {"semseg": 47.3, "depth": 0.44, "normals": 14.31, "edges": 77.7, "reshading": 0.135}
REFERENCES = {
    "frozen_plain": {"normals": 20.57, "edges": 75.1, "reshading": 0.143},
    "frozen_plain_medusa": {"normals": 14.40, "edges": 77.9, "reshading": 0.134},
    "frozen_plain_control": {"normals": 14.88, "edges": 77.8, "reshading": 0.136},
}


def fake_summary(
    strategy: str = "medusa",
    lost: float = 0.0,
    references: dict[str, Any] | None = None,
    frozen: bool = True,
    seed: int = 0,
    learnt: dict[str, Any] = LEARNT,
) -> dict[str, Any]:
    """`lost`: the share of its value each task loses with every later one; `learnt`: the values before that."""
    higher = {task: about[2] for task, about in PRIMARY.items()}
    matrix = TaskMatrix([BASE, *((task,) for task in STREAM)], higher)
    for k in range(4):
        known = [task for task in PRIMARY if matrix.learnt_at(task) <= k]
        sign = {task: 1 if higher[task] else -1 for task in known}
        shares = {t: 1 - sign[t] * lost * (k - matrix.learnt_at(t)) for t in known}
        row = {t: None if learnt[t] is None else learnt[t] * shares[t] for t in known}
        matrix.set_row(k, dict(row))
    labels = ["base", *STREAM]
    return {
        "scenario": "rooms_incremental",
        "strategy": strategy,
        "backbone": "tf_efficientnet_lite0",
        "head": "medusa_light",
        "seed": seed,
        "version": "0.1.0",
        "device": "cpu",
        "base": list(BASE),
        "stream": list(STREAM),
        "primary": {t: dict(zip(("metric", "unit", "higher_is_better"), a, strict=True)) for t, a in PRIMARY.items()},
        **summary_parts(matrix, REFERENCES if references is None else references, frozen=frozen),
        "cost": {
            "params_total": 5_123_456,
            "params_added": dict.fromkeys(PRIMARY, 981_234),
            "gflops": 4.2,
            "train_seconds": dict(zip(labels, (92.3, 21.2, 20.9, 21.3), strict=True)),
            "images_per_second": dict.fromkeys(labels, 75.0),
            "peak_memory_bytes": 2_200_000_000,
        },
        "provenance": {},
        "stages": {"rooms": 61.0, "base": 92.3, "references": 88.0},
    }
