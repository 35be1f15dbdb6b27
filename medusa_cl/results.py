"""What a stream of tasks cost the old ones and gave the new ones: the arithmetic of a run's summary, in plain floats.

Primary metrics differ in direction (mIoU rises, an error falls), so every difference goes through `better_by`, the one
place that knows. What is undefined is None and has a reason; it is never NaN and never 0.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medusa_cl.errors import DataError, TaskError, unknown

__all__ = [
    "REFERENCES",
    "UNTRAINED",
    "Spread",
    "TaskMatrix",
    "better_by",
    "mean_and_spread",
    "mtl_delta",
    "summary_parts",
    "transfer",
]

NEAR_ZERO = 1e-6
"""A reference closer to 0 than this has no meaningful percentage."""

FROZEN_PLAIN = "frozen_plain"
FROZEN_PLAIN_CONTROL = "frozen_plain_control"
FROZEN_PLAIN_MEDUSA = "frozen_plain_medusa"
SINGLE_TASK = "single_task"
UNTRAINED = "untrained"
"""The reference that forward transfer stands against: each task's value before anything was trained."""

REFERENCES: Mapping[str, str] = {
    SINGLE_TASK: "a net of its own for each task, trained end to end",
    FROZEN_PLAIN: "plain multitask features, frozen, with plain heads",
    FROZEN_PLAIN_CONTROL: "plain multitask features, frozen, with ungated control heads",
    FROZEN_PLAIN_MEDUSA: "plain multitask features, frozen, with Medusa heads",
}

# A number, or the reason why there is none. Kept inside this module: what leaves it is a float or None.
_Outcome = float | str


def better_by(value: float, than: float, higher_is_better: bool) -> float:
    """Return how much better a value is than another, in the metric's unit: s (value - than), s = +1 or -1."""
    # Two subtractions instead of a sign: -1 * 0.0 is -0.0, and "forgetting -0.0" reads like a rounding error.
    return value - than if higher_is_better else than - value


def transfer(value: float | None, reference: float | None, higher_is_better: bool) -> float | None:
    """Return how much better a value is than a reference in percent: 100 s (value - reference) / |reference|.

    Returns:
        Positive where the value is better; None if either is missing or not finite, or the reference is 0 to within
        1e-6.
    """
    return _number(_transfer(value, reference, higher_is_better))


def mtl_delta(
    values: Mapping[str, float | None],
    single_task: Mapping[str, float | None],
    higher_is_better: Mapping[str, bool],
) -> float | None:
    """Return Delta_MTL: the mean over tasks of the `transfer` against single-task nets (Maninis et al. 2019).

    Args:
        values: The multitask net's value of each task.
        single_task: The single-task net's value of at least those tasks.
        higher_is_better: The direction of each task's metric.

    Returns:
        Percent, or None if it is undefined for any of the tasks: the mean over some is another quantity.
    """
    return _number(_mtl_delta(values, single_task, higher_is_better))


class Spread(NamedTuple):
    """Mean and spread of the same number over several runs, and why one of them is not there."""

    mean: float | None
    deviation: float | None
    """Standard deviation of the sample (n - 1)."""
    why: str
    """The reason for what is None, or an empty string."""


def mean_and_spread(values: Sequence[float | None]) -> Spread:
    """Return the mean and the sample standard deviation of one number over runs (over seeds, for instance).

    Args:
        values: The number of each run; None or a value that is not finite means undefined.

    Returns:
        Both are None if any run has no number: the mean over the others is another quantity. One run alone has no
        deviation.
    """
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return Spread(None, None, f"{len(values) - len(known)} of {len(values)} runs have no value")
    if not known:
        return Spread(None, None, "there is no run")
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Spread(mean, None, "one run has no spread")
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)), "")


class TaskMatrix:
    """The primary metric of every task after every experience, on the test split.

    Every result can be asked for after any experience k; without k it is that of the last row.

        matrix = TaskMatrix([["depth"], ["edges"]], higher_is_better={"depth": False, "edges": True})
        matrix.set_row(0, {"depth": 0.5})
        matrix.set_row(1, {"depth": 0.75, "edges": 61.0})
        matrix.forgetting("depth")  # 0.25
        matrix.forgetting_percent("depth")  # 50.0
        matrix.relative({"depth": 1.0, "edges": 50.0})["edges"]  # 22.0

    Args:
        experiences: The tasks that each experience brings; the first holds the base tasks.
        higher_is_better: The direction of each task's primary metric.

    Raises:
        TaskError: If a task comes twice, has no direction, or is called "mean" (a key of the summary).
    """

    def __init__(self, experiences: Sequence[Sequence[str]], higher_is_better: Mapping[str, bool]) -> None:
        self.experiences = tuple(tuple(names) for names in experiences)
        self.tasks = tuple(task for names in self.experiences for task in names)
        _check_tasks(self.tasks, higher_is_better)
        self.higher_is_better = {task: bool(higher_is_better[task]) for task in self.tasks}
        self.rows: list[dict[str, float | None]] = []
        self._ahead: dict[str, float | None] = {}

    def grow(self, names: Sequence[str], higher_is_better: Mapping[str, bool], *, with_last: bool = False) -> None:
        """Add an experience to the end, where the stream is not known beforehand.

        Args:
            names: The tasks that it brings.
            higher_is_better: The direction of at least those tasks.
            with_last: Add the tasks to the last experience instead: they were learnt one after the other.

        Raises:
            TaskError: As at construction.
        """
        tasks = (*self.tasks, *names)
        _check_tasks(tasks, {**higher_is_better, **self.higher_is_better})
        before, last = (self.experiences[:-1], self.experiences[-1]) if with_last else (self.experiences, ())
        self.experiences, self.tasks = (*before, (*last, *names)), tasks
        self.higher_is_better |= {task: bool(higher_is_better[task]) for task in names}

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the rows: "base", then the task that each experience brought."""
        return tuple("+".join(names) if k else "base" for k, names in enumerate(self.experiences))

    @property
    def base(self) -> tuple[str, ...]:
        """The tasks of the first experience."""
        return self.experiences[0] if self.experiences else ()

    @property
    def stream(self) -> tuple[str, ...]:
        """The tasks of all later experiences."""
        return self.tasks[len(self.base) :]

    @property
    def last(self) -> int:
        """The last experience with a row; -1 before the first."""
        return len(self.rows) - 1

    @property
    def old_tasks(self) -> tuple[str, ...]:
        """The tasks that could have been forgotten: all that were learnt before the last row's experience."""
        return self.learnt_before()

    def learnt_before(self, k: int | None = None) -> tuple[str, ...]:
        """Return the tasks that experience k could have made worse: all that were learnt before it.

        Raises:
            ValueError: There is no row k. So does every method that takes k.
        """
        return tuple(task for names in self.experiences[: max(self._row(k), 0)] for task in names)

    def learnt_at(self, task: str) -> int:
        """Return the experience that brought a task.

        Raises:
            TaskError: If the task is not in the matrix.
        """
        for k, names in enumerate(self.experiences):
            if task in names:
                return k
        raise TaskError(unknown("task", task, self.tasks))

    def set_row(self, k: int, values: Mapping[str, float | None]) -> None:
        """Record the values after experience k; a row that is there already is replaced.

        Args:
            k: The experience, at most one after the last row.
            values: Value of every task learnt so far; None or a value that is not finite means undefined.

        Raises:
            ValueError: If rows before k are missing, or the matrix has no experience k.
            TaskError: If a value belongs to an unknown task or to one that is not learnt yet.
        """
        if not 0 <= k <= len(self.rows) or k >= len(self.experiences):
            raise ValueError(
                f"Expected the row of an experience in 0..{min(len(self.rows), len(self.experiences) - 1)}, "
                f"but got {k}. Rows are recorded in the order of the experiences."
            )
        row = {task: _finite(value) for task, value in values.items()}
        for task, value in row.items():
            learnt_at = self.learnt_at(task)
            if learnt_at > k and value is not None:
                raise TaskError(f"Task {task!r} has a value after experience {k}, but is learnt in {learnt_at}.")
        self.rows[k:] = [row] if k == len(self.rows) else [row, *self.rows[k + 1 :]]

    def R(self, k: int, task: str) -> float | None:
        """Return the value of a task after experience k; None where it is not learnt yet or undefined."""
        learnt = self.learnt_at(task) <= k
        return self.rows[k].get(task) if learnt and k < len(self.rows) else None

    def just_learnt(self, task: str) -> float | None:
        """Return R_kk: the value of a task right after the experience that brought it."""
        return self.R(self.learnt_at(task), task)

    def final(self, task: str) -> float | None:
        """Return the value of a task in the last row."""
        return self.R(self.last, task)

    def forgetting(self, task: str, k: int | None = None) -> float | None:
        """Return s_j (R_jj - R_kj) in the metric's unit: positive where the task became worse since it was learnt."""
        return _number(self._forgetting(task, self._row(k)))

    def forgetting_best(self, task: str, k: int | None = None) -> float | None:
        """Return the best value of the rows before k, minus that of row k (Chaudhry et al. 2018), direction-aware."""
        return _number(self._forgetting_best(task, self._row(k)))

    def forgetting_percent(self, task: str, k: int | None = None) -> float | None:
        """Return the forgetting in percent of |R_jj|; None where that is 0 to within 1e-6."""
        return _number(self._forgetting_percent(task, self._row(k)))

    def mean_forgetting(self, k: int | None = None) -> float | None:
        """Return the mean forgetting of all tasks learnt before experience k; None if any of them has none."""
        return _number(self._with_mean(self._forgetting, self._row(k))["mean"])

    def mean_forgetting_best(self, k: int | None = None) -> float | None:
        """Return the mean of `forgetting_best` over the same tasks; None if any of them has none."""
        return _number(self._with_mean(self._forgetting_best, self._row(k))["mean"])

    def mean_forgetting_percent(self, k: int | None = None) -> float | None:
        """Return the mean of `forgetting_percent` over the same tasks; None if any of them has none."""
        return _number(self._with_mean(self._forgetting_percent, self._row(k))["mean"])

    def bwt(self, k: int | None = None) -> float | None:
        """Return backward transfer (Lopez-Paz and Ranzato 2017), direction-aware: minus the mean forgetting."""
        return _number(self._bwt(self._row(k)))

    def set_ahead(self, task: str, value: float | None) -> None:
        """Record R_(j-1)j: the value of a task j right before the experience that brings it.

        Only some heads have an answer before they are trained, so `set_row` refuses such values as mistakes.

        Raises:
            TaskError: The task is unknown, or of experience 0: nothing comes before it.
        """
        if self.learnt_at(task) == 0:
            raise TaskError(f"Task {task!r} is learnt in experience 0, so it has no value ahead of it. Leave it out.")
        self._ahead[task] = _finite(value)

    def ahead(self, task: str) -> float | None:
        """Return what `set_ahead` recorded."""
        return self._ahead.get(task)

    def fwt(self, untrained: Mapping[str, float | None] | None, k: int | None = None) -> float | None:
        """Return forward transfer (Lopez-Paz and Ranzato 2017): the mean of s_j (R_(j-1)j - b_j), direction-aware.

        Args:
            untrained: b: each task's value with a net on which nothing was trained; None if there is no such net.
            k: The experience up to which tasks count.

        Returns:
            The mean over all tasks but experience 0's; None if one has no value ahead of its experience (see
            `set_ahead`) or no untrained value.
        """
        return _number(self._fwt(untrained, self._row(k)))

    def relative(self, reference: Mapping[str, float | None], k: int | None = None) -> dict[str, float | None]:
        """Return the `transfer` in percent of each task learnt by experience k over a reference's value of it.

        Values of unlike metrics have no mean; their percentages have: "mean", which is Delta_MTL (Maninis et al. 2019)
        where the reference is the single-task nets. It is None if any task has none.
        """
        return {name: _number(outcome) for name, outcome in self._relative(reference, self._row(k)).items()}

    def to_csv(self, path: Path | str) -> None:
        """Write a row per experience and a column per task; cells without a value are empty.

        A value ahead of a task's experience stands in its column, in the row before.
        """
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["after", *self.tasks])
            for k, label in enumerate(self.after):
                cells = (self._ahead.get(t) if self.learnt_at(t) == k + 1 else self.R(k, t) for t in self.tasks)
                table.writerow([label, *("" if cell is None else repr(cell) for cell in cells)])

    @classmethod
    def from_csv(cls, path: Path | str, higher_is_better: Mapping[str, bool]) -> TaskMatrix:
        """Read what `to_csv` wrote; the directions of the tasks are not in the file.

        Raises:
            DataError: If the file is not such a table.
        """
        try:
            with Path(path).open(newline="", encoding="utf-8") as file:
                (_, *tasks), *lines = csv.reader(file)
            matrix = cls(_experiences(tasks, [line[0] for line in lines]), higher_is_better)
            rows = [{t: float(cell) for t, cell in zip(tasks, line[1:], strict=True) if cell} for line in lines]
            for k, row in enumerate(rows):
                for task in [task for task in row if matrix.learnt_at(task) == k + 1]:
                    matrix.set_ahead(task, row.pop(task))
            while rows and not rows[-1]:
                rows.pop()  # experiences that were still to come
            for k, row in enumerate(rows):
                matrix.set_row(k, row)
        except (IndexError, ValueError, OSError, csv.Error, TaskError) as error:
            raise DataError(f"Expected a task matrix (after, task, task, ...) in {path}, but: {error}.") from error
        return matrix

    def _row(self, k: int | None) -> int:
        if k is None:
            return self.last
        if not 0 <= k <= self.last:
            raise ValueError(f"Expected an experience with a row, 0 to {self.last}, but got {k}.")
        return k

    def _forgetting(self, task: str, k: int) -> _Outcome:
        return self._lost(task, self.just_learnt(task), k)

    def _forgetting_best(self, task: str, k: int) -> _Outcome:
        before = (self.R(row, task) for row in range(self.learnt_at(task), k))
        seen = [value for value in before if value is not None]
        pick = max if self.higher_is_better[task] else min
        return self._lost(task, pick(seen) if seen else None, k)

    def _forgetting_percent(self, task: str, k: int) -> _Outcome:
        lost = self._forgetting(task, k)
        learnt = self.just_learnt(task)
        if isinstance(lost, str) or learnt is None:
            return lost
        return _near_zero(learnt) or 100 * lost / abs(learnt)

    def _lost(self, task: str, earlier: float | None, k: int) -> _Outcome:
        now = self.R(k, task)
        if self.learnt_at(task) >= k:
            return "nothing was learnt after it"
        if earlier is None or now is None:
            row = "the last row" if k == self.last else f"row {self.after[k]}"
            return f"it has no value {'in' if now is None else 'before'} {row}"
        return better_by(earlier, now, self.higher_is_better[task])

    def _with_mean(self, of: Callable[[str, int], _Outcome], k: int) -> dict[str, _Outcome]:
        parts = {task: of(task, k) for task in self.tasks if self.learnt_at(task) < k}
        return {**parts, "mean": _mean(parts, "there is one experience only: nothing could be forgotten")}

    def _bwt(self, k: int) -> _Outcome:
        mean = self._with_mean(self._forgetting, k)["mean"]
        return mean if isinstance(mean, str) else 0.0 - mean

    def _fwt(self, untrained: Mapping[str, float | None] | None, k: int) -> _Outcome:
        if untrained is None:
            return f"there is no reference {UNTRAINED}"
        later = [task for task in self.stream if self.learnt_at(task) <= k]
        return _mean({task: self._forward(task, untrained.get(task)) for task in later}, "no new task was learnt")

    def _forward(self, task: str, untrained: float | None) -> _Outcome:
        ahead, reference = self.ahead(task), _finite(untrained)
        if ahead is None:
            return "it has no value before it was learnt"
        if reference is None:
            return "it has no untrained value"
        return better_by(ahead, reference, self.higher_is_better[task])

    def _relative(self, reference: Mapping[str, float | None], k: int) -> dict[str, _Outcome]:
        learnt = [task for task in self.tasks if self.learnt_at(task) <= k]
        parts = {t: _transfer(self.R(k, t), reference.get(t), self.higher_is_better[t]) for t in learnt}
        return {**parts, "mean": _mean(parts, "there is no task")}

    def _step(self, k: int, single_task: Mapping[str, float | None] | None) -> dict[str, _Outcome]:
        """What stands after experience k, in single numbers; nothing can be forgotten before experience 1."""
        missing = f"there is no reference {SINGLE_TASK}"
        relative = {"mtl_delta": missing if single_task is None else self._relative(single_task, k)["mean"]}
        if not k:
            return relative
        lost = {
            "forgetting": self._forgetting,
            "forgetting_best": self._forgetting_best,
            "forgetting_percent": self._forgetting_percent,
        }
        return {name: self._with_mean(of, k)["mean"] for name, of in lost.items()} | {"bwt": self._bwt(k), **relative}


def summary_parts(
    matrix: TaskMatrix,
    references: Mapping[str, Mapping[str, float | None]],
    *,
    frozen: bool = True,
    medusa_head: bool = True,
) -> dict[str, Any]:
    """Return the parts of summary.json that follow from the task matrix and the references.

    Args:
        matrix: The run's values.
        references: Name -> task -> value; the names of `REFERENCES` have a meaning, any other is listed only.
        frozen: Whether the backbone was frozen while the new tasks were learnt. Comparisons of frozen features are
            undefined otherwise; each task's own comparisons are not.
        medusa_head: Whether the run's heads are the Medusa heads of the reference "frozen_plain_medusa". The gain by
            features is undefined otherwise: it would mix heads and features.

    Returns:
        "matrix", "forgetting", "forgetting_best", "forgetting_percent", "transfer" and "relative", JSON-able.
        "transfer" also holds "bwt", "fwt" where there is a reference "untrained", and "steps": the means after each
        experience. What is None has a sentence in transfer.why_null: under its path below "transfer"
        (per_task.edges.delta), or else from the top (forgetting.mean).
    """
    losses = {
        "forgetting": matrix._with_mean(matrix._forgetting, matrix.last),
        "forgetting_best": matrix._with_mean(matrix._forgetting_best, matrix.last),
        "forgetting_percent": matrix._with_mean(matrix._forgetting_percent, matrix.last),
    }
    single = references.get(SINGLE_TASK)
    gains = _gains(matrix, references, frozen, medusa_head)
    gains["bwt"] = matrix._bwt(matrix.last)
    if UNTRAINED in references:
        gains["fwt"] = matrix._fwt(references[UNTRAINED], matrix.last)
    gains["steps"] = {matrix.after[k]: matrix._step(k, single) for k in range(len(matrix.rows))}
    finals = {task: matrix.final(task) for task in matrix.tasks}
    relative = {"mtl_delta": _mtl_delta(finals, single, matrix.higher_is_better)}
    known = {name: {t: _finite(v) for t, v in values.items()} for name, values in references.items()}
    why = {**dict(_reasons(gains)), **dict(_reasons({**losses, "relative": relative})), **_undefined_cells(matrix)}
    transfers = _plain(gains) | {"references": list(references), "reference_values": known, "why_null": why}
    for task, entry in transfers["per_task"].items():
        entry["references"] = {name: values.get(task) for name, values in known.items()}
        lacking = (name for name, value in entry["references"].items() if value is None)
        why |= {f"per_task.{task}.references.{name}": f"reference {name} has no value for it" for name in lacking}
    return {
        "matrix": _matrix(matrix),
        **_plain(losses),
        "transfer": transfers,
        "relative": _plain(relative),
    }


# What stands between two references on the same plain features; this run's backbone and heads do not enter it.
_BETWEEN = (
    ("head_gain", FROZEN_PLAIN_MEDUSA, FROZEN_PLAIN),
    ("attention_gain", FROZEN_PLAIN_MEDUSA, FROZEN_PLAIN_CONTROL),
)
# Name of the mean over new tasks, of the task's own entry, and the reference that the run's value stands against.
_AGAINST = (
    ("ufl_delta", "delta", SINGLE_TASK),
    ("ufl_gain", "gain", FROZEN_PLAIN),
    ("feature_gain", "feature_gain", FROZEN_PLAIN_MEDUSA),
    ("control_gain", "control_gain", FROZEN_PLAIN_CONTROL),
)


def _gains(
    matrix: TaskMatrix, references: Mapping[str, Mapping[str, float | None]], frozen: bool, medusa_head: bool
) -> dict[str, Any]:
    """Transfer of each new task and its means over them, with reasons in the place of missing numbers."""
    per_task = {task: _task_gains(matrix, task, references, medusa_head) for task in matrix.stream}
    means: dict[str, _Outcome] = {}
    for name, entry, _ in _AGAINST:
        means[name] = _mean_gain(per_task, entry) if frozen else "the backbone was not frozen"
    means |= {name: _mean_gain(per_task, name) for name, _, _ in _BETWEEN}
    return {**means, "per_task": per_task}


def _mean_gain(per_task: Mapping[str, Mapping[str, _Outcome]], entry: str) -> _Outcome:
    return _mean({task: gains[entry] for task, gains in per_task.items()}, "no new task was learnt")


def _task_gains(
    matrix: TaskMatrix, task: str, references: Mapping[str, Mapping[str, float | None]], medusa_head: bool
) -> dict[str, _Outcome]:
    def against(value: _Outcome, name: str) -> _Outcome:
        return _between(value, _reference(references, name, task), matrix.higher_is_better[task])

    value = matrix.just_learnt(task)
    learnt: _Outcome = "it has no value after it was learnt" if value is None else value
    gains = {entry: against(learnt, name) for _, entry, name in _AGAINST}
    if not medusa_head:
        gains["feature_gain"] = "the heads of this run are not the Medusa heads of the reference"
    between = {entry: against(_reference(references, name, task), than) for entry, name, than in _BETWEEN}
    return {"value": learnt, **gains, **between}


def _reference(references: Mapping[str, Mapping[str, float | None]], name: str, task: str) -> _Outcome:
    if name not in references:
        return f"there is no reference {name}"
    value = _finite(references[name].get(task))
    return f"reference {name} has no value for it" if value is None else value


def _between(value: _Outcome, reference: _Outcome, higher_is_better: bool) -> _Outcome:
    if isinstance(value, str) or isinstance(reference, str):
        return value if isinstance(value, str) else reference
    return _transfer(value, reference, higher_is_better)


def _transfer(value: float | None, reference: float | None, higher_is_better: bool) -> _Outcome:
    value, reference = _finite(value), _finite(reference)
    if value is None or reference is None:
        return f"there is no {'value' if value is None else 'reference'}"
    return _near_zero(reference) or 100 * better_by(value, reference, higher_is_better) / abs(reference)


def _mtl_delta(
    values: Mapping[str, float | None],
    single_task: Mapping[str, float | None] | None,
    higher_is_better: Mapping[str, bool],
) -> _Outcome:
    if single_task is None:
        return f"there is no reference {SINGLE_TASK}"
    parts = {task: _transfer(value, single_task.get(task), higher_is_better[task]) for task, value in values.items()}
    return _mean(parts, "there is no task")


def _mean(parts: Mapping[str, _Outcome], if_empty: str) -> _Outcome:
    """The mean of all parts; a reason if one of them has none, because a mean over the others is another quantity."""
    reasons = [f"{name}: {part}" for name, part in parts.items() if isinstance(part, str)]
    numbers = [part for part in parts.values() if not isinstance(part, str)]
    return "; ".join(reasons) or (math.fsum(numbers) / len(numbers) if numbers else if_empty)


def _near_zero(reference: float) -> str:
    """The reason why there is no percentage of a reference, or an empty string."""
    return f"the reference {reference:g} is too near 0 for a percentage" if abs(reference) < NEAR_ZERO else ""


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _number(outcome: _Outcome) -> float | None:
    return None if isinstance(outcome, str) else outcome


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same tree, with None in the place of reasons."""
    return {key: _plain(node) if isinstance(node, Mapping) else _number(node) for key, node in tree.items()}


def _reasons(tree: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    """Path and reason of every number that is not there."""
    for key, node in tree.items():
        if isinstance(node, Mapping):
            yield from _reasons(node, f"{path}{key}.")
        elif isinstance(node, str):
            yield f"{path}{key}", node


def _matrix(matrix: TaskMatrix) -> dict[str, Any]:
    rows = range(len(matrix.rows))
    values = {task: [matrix.R(k, task) for k in rows] for task in matrix.tasks}
    return {"after": list(matrix.after[: len(matrix.rows)]), "values": values}


def _undefined_cells(matrix: TaskMatrix) -> dict[str, str]:
    """Reasons for empty cells of tasks that were learnt; before a task is learnt an empty cell explains itself."""
    why = "no valid pixel was evaluated, or the value is not finite"
    learnt = ((k, task) for k in range(len(matrix.rows)) for task in matrix.tasks if matrix.learnt_at(task) <= k)
    return {f"matrix.{matrix.after[k]}.{task}": why for k, task in learnt if matrix.R(k, task) is None}


def _experiences(tasks: Sequence[str], after: Sequence[str]) -> list[list[str]]:
    """Group the columns of a written matrix by the rows that brought them."""
    later = [label.split("+") for label in after[1:]]
    stream = {task for names in later for task in names}
    return [[task for task in tasks if task not in stream], *later] if after else []


def _check_tasks(tasks: Sequence[str], higher_is_better: Mapping[str, bool]) -> None:
    for task in tasks:
        if tasks.count(task) > 1:
            raise TaskError(f"Expected every task once, but {task!r} comes {tasks.count(task)} times.")
        if task not in higher_is_better:
            raise TaskError(f"The direction of task {task!r} is missing: say whether a higher value is better.")
        if task == "mean":
            raise TaskError('A task cannot be called "mean": the summary keeps its means under that key. Rename it.')
