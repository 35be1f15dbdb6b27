"""`TaskMatrix` against numpy: a table R[k, j] with NaN where there is nothing, and the formulas of the papers."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medusa_cl.results import TaskMatrix, mtl_delta
from property_examples import examples

Table = NDArray[np.float64]
numbers = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3)
cells = numbers | st.just(math.nan)


class Stream(NamedTuple):
    """A stream and its values: R[k, j] of task j after experience k, NaN before it is learnt or where undefined."""

    groups: list[list[str]]
    higher: dict[str, bool]
    table: Table
    ahead: dict[str, float]

    @property
    def tasks(self) -> list[str]:
        return [task for group in self.groups for task in group]

    @property
    def learnt(self) -> list[int]:
        return [k for k, group in enumerate(self.groups) for _ in group]

    @property
    def signs(self) -> Table:
        return np.array([1.0 if self.higher[task] else -1.0 for task in self.tasks])


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    names = iter(f"t{i}" for i in range(sum(sizes)))
    groups = [[next(names) for _ in range(size)] for size in sizes]
    tasks = [task for group in groups for task in group]
    higher = {task: draw(st.booleans()) for task in tasks}
    learnt = [k for k, group in enumerate(groups) for _ in group]
    table = np.full((len(groups), len(tasks)), math.nan)
    for j, first in enumerate(learnt):
        for k in range(first, len(groups)):
            table[k, j] = draw(cells)
    ahead = {task: draw(cells) for task, first in zip(tasks, learnt, strict=True) if first and draw(st.booleans())}
    return Stream(groups, higher, table, ahead)


def matrix_of(stream: Stream) -> TaskMatrix:
    matrix = TaskMatrix(stream.groups, stream.higher)
    for k, row in enumerate(stream.table):
        learnt = {t: float(v) for t, v, first in zip(stream.tasks, row, stream.learnt, strict=True) if first <= k}
        matrix.set_row(k, learnt)
    for task, value in stream.ahead.items():
        matrix.set_ahead(task, value)
    return matrix


def near(found: float | None, expected: Any) -> bool:
    """None is what NaN is in numpy."""
    if found is None or math.isnan(expected):
        return found is None and math.isnan(expected)
    return math.isclose(found, float(expected), rel_tol=1e-9, abs_tol=1e-9)


@examples(120)
@given(streams())
def test_forgetting_is_that_of_the_table(stream: Stream) -> None:
    matrix, table = matrix_of(stream), stream.table
    for k in range(len(table)):
        old = [j for j, first in enumerate(stream.learnt) if first < k]
        lost, best, percent = [], [], []
        for j in old:
            first, sign = stream.learnt[j], stream.signs[j]
            lost.append(sign * (table[first, j] - table[k, j]))
            seen = table[first:k, j][~np.isnan(table[first:k, j])]
            best.append((sign * seen).max() - sign * table[k, j] if len(seen) else math.nan)
            unit = abs(table[first, j])
            percent.append(100 * lost[-1] / unit if unit >= 1e-6 else math.nan)
            task = stream.tasks[j]
            assert near(matrix.forgetting(task, k), lost[-1])
            assert near(matrix.forgetting_best(task, k), best[-1])
            assert near(matrix.forgetting_percent(task, k), percent[-1])
        means = [np.mean(values) if values else math.nan for values in (lost, best, percent)]
        assert near(matrix.mean_forgetting(k), means[0])
        assert near(matrix.bwt(k), -means[0])
        assert near(matrix.mean_forgetting_best(k), means[1])
        assert near(matrix.mean_forgetting_percent(k), means[2])
        for j, task in enumerate(stream.tasks):
            assert near(matrix.R(k, task), table[k, j])
            if stream.learnt[j] >= k:
                assert matrix.forgetting(task, k) is None


@examples(80)
@given(streams(), st.data())
def test_transfer_is_that_of_the_table(stream: Stream, data: st.DataObject) -> None:
    matrix, table, last = matrix_of(stream), stream.table, len(stream.table) - 1
    reference = {task: data.draw(cells) for task in stream.tasks}
    b = np.array([reference[task] for task in stream.tasks])
    with np.errstate(all="ignore"):
        gains = np.where(np.abs(b) < 1e-6, math.nan, 100 * stream.signs * (table[last] - b) / np.abs(b))
    found = matrix.relative(reference)
    for task, gain in zip(stream.tasks, gains, strict=True):
        assert near(found[task], gain)
    assert near(found["mean"], gains.mean())
    finals = {task: matrix.final(task) for task in stream.tasks}
    assert near(mtl_delta(finals, reference, stream.higher), gains.mean())
    ahead = np.array([stream.ahead.get(task, math.nan) for task in stream.tasks])
    later = [j for j, first in enumerate(stream.learnt) if first]
    forward = (stream.signs * (ahead - b))[later].mean() if later else math.nan
    assert near(matrix.fwt(reference), forward)


@examples(60)
@given(streams())
def test_a_written_matrix_is_read_to_the_bit(stream: Stream) -> None:
    matrix = matrix_of(stream)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.csv"
        matrix.to_csv(path)
        read = TaskMatrix.from_csv(path, stream.higher)
    assert read.experiences == matrix.experiences
    for task in matrix.tasks:
        for k in range(len(stream.table)):
            found, value = read.R(k, task), matrix.R(k, task)
            assert found == value
            assert (found is None) == (value is None)
        assert read.ahead(task) == matrix.ahead(task)


@examples(60)
@given(streams())
def test_a_matrix_that_grows_is_the_one_that_was_known(stream: Stream) -> None:
    """In whatever pieces an experience's tasks are found."""
    known = matrix_of(stream)
    grown = TaskMatrix([], {})
    for k, group in enumerate(stream.groups):
        for i, task in enumerate(group):
            grown.grow([task], stream.higher, with_last=i > 0)
        grown.set_row(k, {task: known.R(k, task) for group in stream.groups[: k + 1] for task in group})
        assert grown.mean_forgetting(k) == known.mean_forgetting(k)
    assert grown.experiences == known.experiences
    assert grown.rows == known.rows
