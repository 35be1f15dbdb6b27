"""The columns of a paper's tables: what is read from the summary of a run, or compared with others of its seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medusa_cl.results import FROZEN_PLAIN, SINGLE_TASK
from medusa_cl.study import MEASURES, final, just_learnt, mean_of
from medusa_cl.tracking.numbers import metric_heading
from medusa_cl.tracking.rows import Group, Peers, Run, Summary

Outcome = tuple[float | None, str]
"""A number, or None and why; why may also be a remark on the number."""
Measure = Callable[[Run, Mapping[str, Summary]], Outcome]
"""The measure of a run, given the runs of its seed by strategy."""


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        measure: Its name in CSV: "final", "mtl_delta".
        heading: What stands above it: the task's name, or the measure's.
        below: The metric, the unit and where it is better, in a second line.
        of: Returns the measure of a run, given those of the same seed by strategy.
        task: The task; empty for a measure of the whole run.
        metric: The metric.
        unit: The unit.
        higher_is_better: The direction; None where best is no question.
        signed: Whether a gain is written with its sign.
        decimals: How many decimals mean something; None for as many as the values ask for.
        scale: What the unit of the heading makes of the value.
        shown: Whether it stands in tables for readers; else in CSV only.
    """

    measure: str
    heading: str
    below: str
    of: Measure
    task: str = ""
    metric: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    signed: bool = False
    decimals: int | None = None
    scale: float = 1.0
    shown: bool = True


def _why(run: Run, path: str, otherwise: str) -> str:
    return str((run.summary["transfer"].get("why_null") or {}).get(path, otherwise))


def _stored(path: str, otherwise: str = "it has no value") -> Measure:
    """Return what reads a number of the summary: "transfer.head_gain", "forgetting_percent.mean"."""

    def of(run: Run, peers: Mapping[str, Summary]) -> Outcome:
        found: Any = run.summary
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found, "" if found is not None else _why(run, path.removeprefix("transfer."), otherwise)

    return of


def _measured(key: str, new: Sequence[str], otherwise: str) -> Measure:
    """Return one of the measures of a study."""

    def of(run: Run, peers: Mapping[str, Summary]) -> Outcome:
        value = MEASURES[key](run.summary, peers, new)
        return value, "" if value is not None else otherwise

    return of


def _task_value(task: str, value: Callable[[Summary, str], float | None], when: str) -> Measure:
    def of(run: Run, peers: Mapping[str, Summary]) -> Outcome:
        found = value(run.summary, task)
        path = f"matrix.{run.summary['matrix']['after'][-1]}.{task}"
        return found, "" if found is not None else _why(run, path, f"it has no value {when}")

    return of


def _own_gain(entry: str) -> Measure:
    """Return the mean over new tasks of a gain over the run's own references, whatever was frozen."""

    def of(run: Run, peers: Mapping[str, Summary]) -> Outcome:
        stream = run.summary["stream"]
        if not stream:
            return None, "all tasks were learnt together"
        each = {task: _stored(f"transfer.per_task.{task}.{entry}")(run, peers) for task in stream}
        value = mean_of([one for one, _ in each.values()])
        return value, next((why for one, why in each.values() if one is None), "")

    return of


def _task_column(
    measure: str, task: str, primary: Mapping[str, Any], of: Measure, shown: bool = True, labels: Mapping[str, str] = {}
) -> Column:
    about = primary[task]
    heading = f"{task}*" if task in labels else task
    direction = bool(about["higher_is_better"])
    return Column(
        measure, heading, metric_heading(about), of, task, about["metric"], about["unit"], direction, shown=shown
    )  # fmt: skip


def _percent(
    measure: str, heading: str, of: Measure, task: str = "", higher: bool = True, shown: bool = True, metric: str = ""
) -> Column:
    below = "% ↑" if higher else "% ↓"
    return Column(
        measure, heading, below, of, task, metric, "%", higher, signed=higher, decimals=1, shown=shown
    )  # fmt: skip


def has_peer(reference: str, groups: Sequence[Group], peers: Peers) -> bool:
    """Return whether any run is measured against a run of the table that is this reference."""
    return any(reference in peers(run) for group in groups for run in group.runs)


def _new(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(task for group in groups for task in group.first["stream"]))


def _tasks(groups: Sequence[Group]) -> list[str]:
    """All tasks: those of the longest stream's base first, then in the order of that stream."""
    first = max((group.first for group in groups), key=lambda summary: len(summary["stream"]))
    return [*first["base"], *first["stream"]]


def _labels(groups: Sequence[Group]) -> dict[str, str]:
    return {task: note for group in groups for task, note in (group.first.get("labels") or {}).items()}


def _final_columns(groups: Sequence[Group], peers: Peers) -> list[Column]:
    primary, new, labels = groups[0].first["primary"], _new(groups), _labels(groups)
    values = [
        _task_column("final", t, primary, _task_value(t, final, "in the end"), labels=labels) for t in _tasks(groups)
    ]
    return [*values, _mtl(groups, peers, new), _mean_forgetting()]


def _mtl(groups: Sequence[Group], peers: Peers, new: Sequence[str]) -> Column:
    """Delta_MTL against the single-task runs of the table, or else against each run's own references."""
    missing = f"there is not one {SINGLE_TASK} run of its seed alone, or one has no value"
    of = _measured("mtl_delta", new, missing) if has_peer(SINGLE_TASK, groups, peers) else _stored("relative.mtl_delta")
    return _percent("mtl_delta", "Δ MTL", of)


def _mean_forgetting() -> Column:
    of = _stored("forgetting_percent.mean", "there is one experience only: nothing could be forgotten")
    return _percent("forgetting_percent", "forgetting", of, higher=False)


def _forgetting_columns(groups: Sequence[Group], peers: Peers) -> list[Column]:
    primary, labels = groups[0].first["primary"], _labels(groups)
    old = [task for task in _tasks(groups) if any(task in g.first["forgetting"] for g in groups)]
    none = "nothing was learnt after it"
    columns = []
    for task in old:
        heading, metric = f"{task}*" if task in labels else task, primary[task]["metric"]
        of = _stored(f"forgetting_percent.{task}", none)
        columns.append(_percent("forgetting_percent", heading, of, task, higher=False, metric=metric))
        raw = _task_column("forgetting", task, primary, _stored(f"forgetting.{task}", none), shown=False)
        columns.append(replace(raw, higher_is_better=False))
    return [*columns, replace(_mean_forgetting(), heading="mean")]


# Measure, heading, and what it is a gain against.
GAINS = (
    ("control_gain", "over control", "plain features with ungated heads of equal size"),
    ("feature_gain", "feature gain", "plain features with the same heads"),
    ("head_gain", "head gain", "plain heads, both on plain features"),
    ("attention_gain", "attention gain", "ungated heads of equal size, both on plain features"),
)


def _transfer_columns(groups: Sequence[Group], peers: Peers) -> list[Column]:
    primary, new, labels = groups[0].first["primary"], _new(groups), _labels(groups)
    if not new:
        return []
    values = [
        _task_column("just_learnt", t, primary, _task_value(t, just_learnt, "after it was learnt"), labels=labels)
        for t in new
    ]
    gains = [_percent(key, heading, _stored(f"transfer.{key}")) for key, heading, _ in GAINS]
    parts = ("gain", "delta", *(key for key, _, _ in GAINS))
    each = [
        _percent(key, t, _stored(f"transfer.per_task.{t}.{key}"), t, shown=False, metric=primary[t]["metric"])
        for t in new
        for key in parts
    ]
    return [*values, *_totals(groups, peers, new), *gains, *each]


def _totals(groups: Sequence[Group], peers: Peers, new: Sequence[str]) -> list[Column]:
    """What new tasks gained in all: over runs of the table where they are references, else over each run's own."""
    made = []
    for measure, reference, entry, heading in (
        ("transfer_plain", FROZEN_PLAIN, "gain", "over plain"),
        ("transfer_single", SINGLE_TASK, "delta", "over single"),
    ):
        missing = f"there is not one {reference} run of its seed alone, or one has no value"
        inside = has_peer(reference, groups, peers)
        made.append(_percent(measure, heading, _measured(measure, new, missing) if inside else _own_gain(entry)))
    return made


def _train_seconds(run: Run, peers: Mapping[str, Summary]) -> Outcome:
    value = MEASURES["train_seconds"](run.summary, peers, ())
    whole = "base" in run.summary["cost"]["train_seconds"]
    return value, "" if whole else "without the base tasks, which were taken over from another run"


def _cost_columns(groups: Sequence[Group], peers: Peers) -> list[Column]:
    new, none = _new(groups), "it was not measured"

    def column(key: str, heading: str, below: str, unit: str, decimals: int | None, scale: float = 1.0) -> Column:
        of = _train_seconds if key == "train_seconds" else _measured(key, new, none)
        return Column(key, heading, below, of, unit=unit, decimals=decimals, scale=scale)

    return [
        column("params_total", "parameters", "M", "", None, 1e-6),
        column("params_added", "a task more", "M", "", None, 1e-6),
        column("gflops", "all tasks", "GFLOPs", "GFLOPs", None),
        column("train_seconds", "training", "s", "s", 0),
        column("seconds_added", "a task more", "s", "s", 0),
    ]


COLUMNS: Mapping[str, Callable[[Sequence[Group], Peers], list[Column]]] = {
    "final": _final_columns,
    "forgetting": _forgetting_columns,
    "transfer": _transfer_columns,
    "cost": _cost_columns,
}
"""What makes the columns of each table."""
