from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medusa_cl.batch import Entry, Features, Sample, TaskBatch, collate, take

TASKS = {"semseg": (3, 4), "depth": (1, 3, 4), "normals": (3, 3, 4)}

Images = list[dict[str, int]]  # an image by the value of each of its tasks' targets
images = st.lists(st.dictionaries(st.sampled_from(sorted(TASKS)), st.integers(0, 99)), min_size=1, max_size=7)
seeds = st.integers(0, 10**6)


def batch_of(contents: Images, aux: bool = False) -> TaskBatch:
    entries = {}
    for task, shape in TASKS.items():
        rows = [i for i, image in enumerate(contents) if task in image]
        if rows:
            value = torch.stack([torch.full(shape, float(contents[i][task])) for i in rows])
            entries[task] = Entry(torch.tensor(rows), value, (value[..., ::2] + 1,) if aux else ())
    return TaskBatch(entries, len(contents))


def contents_of(batch: TaskBatch) -> Images:
    """Read a batch back, checking on the way that it is well formed."""
    found: Images = [{} for _ in range(len(batch))]
    for task, entry in batch.entries.items():
        assert entry.rows.dtype == torch.int64
        assert len(entry.rows) == len(entry.value) > 0
        assert entry.rows.tolist() == sorted(set(entry.rows.tolist()))
        for row, value, *aux in zip(entry.rows.tolist(), entry.value, *entry.aux, strict=True):
            assert value.shape == TASKS[task]
            assert all(torch.equal(a, value[..., ::2] + 1) for a in aux)
            found[row][task] = int(value.unique().item())
    return found


@settings(max_examples=40, deadline=None)
@given(images, st.booleans())
def test_it_holds_what_it_was_made_of(contents: Images, aux: bool) -> None:
    batch = batch_of(contents, aux)
    assert contents_of(batch) == contents
    assert len(batch) == batch.size() == batch.size(0) == batch.shape[0] == len(contents)
    assert set(batch.tasks) == {task for image in contents for task in image}


@settings(max_examples=40, deadline=None)
@given(st.lists(images, min_size=1, max_size=4), st.booleans())
def test_cat_is_one_after_another(parts: list[Images], aux: bool) -> None:
    joined = torch.cat([batch_of(part, aux) for part in parts])  # type: ignore[misc]
    assert isinstance(joined, TaskBatch)
    assert contents_of(joined) == [image for part in parts for image in part]


@settings(max_examples=40, deadline=None)
@given(images, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3), st.booleans())
def test_a_slice_is_the_slice_of_the_images(contents: Images, start: int, stop: int, step: int, aux: bool) -> None:
    assert contents_of(batch_of(contents, aux)[start:stop:step]) == contents[start:stop:step]


@settings(max_examples=40, deadline=None)
@given(images, seeds)
def test_a_permutation_moves_every_target_with_its_image(contents: Images, seed: int) -> None:
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(seed))
    batch = batch_of(contents, aux=True)
    assert contents_of(batch[order]) == [contents[i] for i in order]
    assert contents_of(batch[order][order.argsort()]) == contents
    assert contents_of(batch[order.tolist()]) == contents_of(batch[order])


@settings(max_examples=40, deadline=None)
@given(images, st.data())
def test_an_index_may_repeat_and_count_from_the_end(contents: Images, data: st.DataObject) -> None:
    size = len(contents)
    index = data.draw(st.lists(st.integers(-size, size - 1), max_size=9))
    assert contents_of(batch_of(contents)[torch.tensor(index, dtype=torch.int64)]) == [contents[i] for i in index]


@settings(max_examples=40, deadline=None)
@given(images, seeds)
def test_a_mask_keeps_its_images(contents: Images, seed: int) -> None:
    mask = torch.rand(len(contents), generator=torch.Generator().manual_seed(seed)) < 0.5
    batch = batch_of(contents, aux=True)
    kept, left = (
        [image for image, chosen in zip(contents, mask.tolist(), strict=True) if chosen is c] for c in (True, False)
    )
    assert contents_of(batch[mask]) == kept
    assert contents_of(torch.cat([batch[mask], batch[~mask]])) == kept + left  # type: ignore[list-item, arg-type]


@settings(max_examples=30, deadline=None)
@given(images)
def test_the_norm_is_that_of_all_an_image_was_answered(contents: Images) -> None:
    norm = torch.norm(batch_of(contents), p="fro", dim=1)  # type: ignore[arg-type]
    areas = {task: torch.zeros(shape).numel() for task, shape in TASKS.items()}
    expected = [sum(areas[task] * value**2 for task, value in image.items()) ** 0.5 for image in contents]
    torch.testing.assert_close(norm, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_norm_has_finite_gradients_at_zero() -> None:
    """Synapses that MAS asks about may answer exactly zero."""
    value = torch.zeros(2, 1, 3, 4, requires_grad=True)
    batch = TaskBatch({"depth": Entry(torch.tensor([0, 2]), value)}, 3)
    torch.norm(batch, p="fro", dim=1).pow(2).mean().backward()  # type: ignore[arg-type]
    assert value.grad is not None
    assert torch.isfinite(value.grad).all()


def test_other_torch_functions_are_refused_and_not_answered_wrongly() -> None:
    batch = batch_of([{"depth": 1}])
    with pytest.raises(TypeError):
        torch.softmax(batch, dim=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        torch.cat([batch, batch], dim=1)  # type: ignore[list-item]
    with pytest.raises(IndexError, match="images"):
        batch.size(1)


def test_moves_reach_every_tensor_and_leave_rows_whole() -> None:
    batch = batch_of([{"depth": 1, "semseg": 2}, {"depth": 3}], aux=True)
    for moved in (batch.to("cpu"), batch.to(torch.device("cpu"), non_blocking=True), batch.cpu(), batch.clone()):
        assert contents_of(moved) == contents_of(batch)
    clone = batch.clone()
    clone.entries["depth"].value.zero_()
    assert contents_of(batch)[1] == {"depth": 3}
    assert batch.to("meta").device.type == "meta"
    assert {entry.rows.device.type for entry in batch.to("meta").entries.values()} == {"cpu"}
    halved = batch.to(torch.float16).entries["depth"]
    assert (halved.value.dtype, halved.aux[0].dtype, halved.rows.dtype) == (torch.float16, torch.float16, torch.int64)
    assert batch.device.type == TaskBatch({}, 2).device.type == "cpu"


def test_only_part_of_a_batch_is_copied() -> None:
    x = torch.arange(6.0).view(3, 2)
    assert take(x, torch.tensor([0, 1, 2])) is x
    assert take(x, torch.tensor([0, 2, 1])).tolist() == [[0, 1], [4, 5], [2, 3]]
    assert take(x, torch.tensor([0, 1])).tolist() == [[0, 1], [2, 3]]


def test_detach_cuts_values_and_aux() -> None:
    value = torch.ones(1, 1, 3, 4, requires_grad=True)
    entry = TaskBatch({"depth": Entry(torch.tensor([0]), value * 2, (value * 3,))}, 1).detach().entries["depth"]
    assert not entry.value.requires_grad
    assert not entry.aux[0].requires_grad


def test_it_says_what_it_is_and_can_be_pickled() -> None:
    batch = batch_of([{"depth": 1}, {}])
    assert repr(batch) == "TaskBatch(2 images; depth: (1, 1, 3, 4))"
    assert contents_of(pickle.loads(pickle.dumps(batch))) == [{"depth": 1}, {}]


def sample(index: int, targets: dict[str, Tensor], label: int = 0) -> Sample:
    return Sample(torch.full((3, 3, 4), index / 10), targets, index, label)


def test_collate_gathers_targets_by_task_with_the_rows_that_have_them() -> None:
    depth, semseg = torch.ones(1, 3, 4), torch.ones(3, 4, dtype=torch.int64)
    samples = [sample(0, {"semseg": semseg}), sample(5, {"depth": depth}, 1), sample(7, {"semseg": semseg * 2})]
    pictures, batch, labels = collate(samples)
    assert pictures.shape == (3, 3, 3, 4)
    assert torch.equal(pictures[1], samples[1].image)
    assert contents_of(batch) == [{"semseg": 1}, {"depth": 1}, {"semseg": 2}]
    assert batch.entries["semseg"].value.dtype == torch.int64
    assert labels.tolist() == [0, 1, 0]


def test_collate_of_images_without_any_target() -> None:
    pictures, batch, labels = collate([sample(0, {}), sample(1, {})])
    assert len(pictures) == len(batch) == len(labels) == 2
    assert batch.tasks == ()


def feature_samples(count: int) -> Sequence[Sample]:
    scales = [(torch.full((8, 4, 4), float(i)), torch.full((16, 2, 2), float(i))) for i in range(count)]
    return [Sample(maps, {}, i, 0) for i, maps in enumerate(scales)]


def test_collate_of_features_stacks_scale_by_scale() -> None:
    features, _, _ = collate(feature_samples(3))
    assert isinstance(features, Features)
    assert [tuple(scale.shape) for scale in features] == [(3, 8, 4, 4), (3, 16, 2, 2)]
    assert features.size(0) == 3
    assert features.size(1) == 8


def test_features_move_and_select_like_a_tensor_of_images() -> None:
    features: Features = collate(feature_samples(3))[0]
    chosen = features.select(torch.tensor([2, 0]))
    assert isinstance(chosen, Features)
    assert [scale[:, 0, 0, 0].tolist() for scale in chosen] == [[2.0, 0.0]] * 2
    moved = features.to(torch.float64)
    assert isinstance(moved, Features)
    assert {scale.dtype for scale in moved} == {torch.float64}
