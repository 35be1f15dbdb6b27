"""`TaskBatch` against the plainest model of it: a list of images, each a dict of what it carries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa_cl.batch import Entry, Features, Sample, TaskBatch, collate
from property_examples import examples

SHAPES = {"semseg": (2, 3), "depth": (1, 2, 3), "normals": (3, 2, 3)}
Images = list[dict[str, int]]
images = st.lists(st.dictionaries(st.sampled_from(sorted(SHAPES)), st.integers(0, 99)), max_size=6)


def batch_of(contents: Images) -> TaskBatch:
    entries = {}
    for task, shape in SHAPES.items():
        if rows := [i for i, image in enumerate(contents) if task in image]:
            value = torch.stack([torch.full(shape, float(contents[i][task])) for i in rows])
            entries[task] = Entry(torch.tensor(rows), value, (value + 0.5,))
    return TaskBatch(entries, len(contents))


def contents_of(batch: TaskBatch) -> Images:
    found: Images = [{} for _ in range(len(batch))]
    for task, (rows, value, (aux,)) in batch.entries.items():
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert 0 < len(rows) == len(value) == len(aux)
        assert torch.equal(aux, value + 0.5)
        for row, target in zip(rows.tolist(), value, strict=True):
            assert target.shape == SHAPES[task]
            found[row][task] = int(target.unique().item())
    return found


@st.composite
def operations(draw: st.DrawFn) -> tuple[Images, list[tuple[str, Any]]]:
    """A batch and what is done to it, step by step; each step is drawn for the size that is left."""
    contents = draw(images)
    size, steps = len(contents), list[tuple[str, Any]]()
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["cat", "before", "slice", "permute", "mask", "select"]))
        if kind in ("cat", "before"):
            argument: Any = draw(images)
            size += len(argument)
        elif kind == "slice":
            step = draw(st.integers(1, 3))
            argument = slice(draw(st.integers(-8, 8)), draw(st.none() | st.integers(-8, 12)), step)
            size = len(range(size)[argument])
        elif kind == "permute":
            argument = draw(st.permutations(range(size)))
        elif kind == "mask":
            argument = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            size = sum(argument)
        else:
            argument = draw(st.lists(st.integers(-size, size - 1), max_size=7)) if size else []
            size = len(argument)
        steps.append((kind, argument))
    return contents, steps


@examples(150)
@given(operations())
def test_any_sequence_of_operations_is_that_of_a_list(case: tuple[Images, list[tuple[str, Any]]]) -> None:
    contents, steps = case
    batch = batch_of(contents)
    for kind, argument in steps:
        if kind == "cat":
            batch, contents = TaskBatch.cat([batch, batch_of(argument)]), contents + argument
        elif kind == "before":
            joined: Any = torch.cat([batch_of(argument), batch])  # type: ignore[list-item]
            batch, contents = joined, argument + contents
        elif kind == "slice":
            batch, contents = batch[argument], contents[argument]
        elif kind == "mask":
            mask = torch.tensor(argument, dtype=torch.bool)
            batch, contents = batch[mask], [image for image, kept in zip(contents, argument, strict=True) if kept]
        else:
            index = torch.tensor(argument, dtype=torch.int64)
            batch, contents = batch[index], [contents[i] for i in argument]
        assert contents_of(batch) == contents
        assert set(batch.tasks) == {task for image in contents for task in image}


@examples(60)
@given(images.filter(bool), st.data())
def test_collating_parts_and_joining_them_is_collating_the_whole(contents: Images, data: st.DataObject) -> None:
    def sample(index: int) -> Sample:
        targets = {task: torch.full(SHAPES[task], float(v)) for task, v in sorted(contents[index].items())}
        return Sample(torch.full((3, 2, 3), float(index)), targets, index, index % 2)

    cut = data.draw(st.integers(0, len(contents)))
    parts = [list(range(cut)), list(range(cut, len(contents)))]
    made = [collate([sample(i) for i in part]) for part in parts if part]
    whole = collate([sample(i) for i in range(len(contents))])
    assert torch.equal(torch.cat([part[0] for part in made]), whole[0])
    joined = TaskBatch.cat([part[1] for part in made])
    assert len(joined) == len(whole[1])
    assert joined.entries.keys() == whole[1].entries.keys()
    for task, entry in whole[1].entries.items():
        assert torch.equal(joined.entries[task].rows, entry.rows)
        assert torch.equal(joined.entries[task].value, entry.value)
    assert torch.equal(torch.cat([part[2] for part in made]), whole[2])


@examples(40)
@given(st.integers(1, 6), st.data())
def test_features_keep_their_rows_together(size: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, size - 1), max_size=8))
    features = Features(torch.arange(float(size)).view(-1, 1, 1, 1).expand(size, c, h, h) for c, h in ((2, 4), (3, 2)))
    picked = features.select(torch.tensor(rows, dtype=torch.int64))
    assert [scale.shape[1:] for scale in picked] == [(2, 4, 4), (3, 2, 2)]
    for scale in picked:
        assert scale[:, 0, 0, 0].tolist() == [float(row) for row in rows]


@pytest.mark.parametrize("wrong", [torch.tensor([5]), [7], torch.tensor([True, False, True])])
def test_what_is_not_there_is_an_error_and_not_another_image(wrong: Any) -> None:
    with pytest.raises(IndexError):
        batch_of([{"depth": 1}, {"depth": 2}])[wrong]
