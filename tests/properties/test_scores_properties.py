"""Losses and metrics of every task: how a batch is cut and ordered is nothing to them, nor is what is ignored."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric

from medusa_cl import tasks
from medusa_cl.losses import at_size
from medusa_cl.tasks import DenseTask
from property_examples import examples

K = 4
TASKS: dict[str, DenseTask] = {
    name: tasks.semseg(K) if name == "semseg" else make() for name, make in tasks.BUILT_IN.items()
}
SIZE = (8, 9)
each_task = pytest.mark.parametrize("name", TASKS)
seeds = st.integers(0, 10**6)
shares = st.sampled_from([0.0, 0.3, 1.0])
"""How much of an image is ignored."""


def batch(name: str, images: int, seed: int, ignored: float, classes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, target and the map B H W of what is ignored; with `classes` = 1 a target of one class alone."""
    task, rng = TASKS[name], torch.Generator().manual_seed(seed)
    shape = (images, task.channels, *SIZE)
    logits = 2 * torch.randn(shape, generator=rng)
    hole = torch.rand(images, *SIZE, generator=rng) < ignored
    if task.output == "classes":
        target: Tensor = torch.randint(0, K if classes > 1 else 1, (images, *SIZE), generator=rng)
        return logits, target.masked_fill(hole, 255), hole
    if name == "normals":
        target = torch.nn.functional.normalize(torch.randn(shape, generator=rng), dim=1)
    elif task.output == "binary":
        target = (torch.rand(shape, generator=rng) < (0.4 if classes > 1 else 2.0)).float()
    elif name == "depth":
        target = 0.5 + 5 * torch.rand(shape, generator=rng)
    else:
        target = torch.rand(shape, generator=rng)
    return logits, target.masked_fill(hole[:, None], task.ignore), hole


def cut(count: int, data: st.DataObject) -> list[list[int]]:
    """Some order of some images, in some batches."""
    order = data.draw(st.permutations(range(count)))
    marks = sorted(data.draw(st.lists(st.integers(1, count - 1), unique=True))) if count > 1 else []
    return [order[a:b] for a, b in zip([0, *marks], [*marks, count], strict=True)]


def loss(name: str, logits: Tensor, target: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    task = TASKS[name]
    options: dict[str, Any] = {} if task.frequencies is None else {"frequencies": task.frequencies(whole)}
    return task.loss(logits, target, **options)


@each_task
@examples(20)
@given(images=st.integers(1, 4), seed=seeds, ignored=shares, classes=st.sampled_from([1, 2]), data=st.data())
def test_a_loss_is_the_sum_over_any_parts(
    name: str, images: int, seed: int, ignored: float, classes: int, data: st.DataObject
) -> None:
    logits, target, _ = batch(name, images, seed, ignored, classes)
    total, count = loss(name, logits, target, target)
    parts = [loss(name, logits[part], target[part], target) for part in cut(images, data)]
    assert sum(int(c) for _, c in parts) == int(count)
    assert float(sum(s for s, _ in parts)) == pytest.approx(float(total), rel=1e-6, abs=1e-6)


@each_task
@examples(15)
@given(images=st.integers(1, 3), seed=seeds, ignored=shares, poison=st.sampled_from([math.nan, math.inf, -1e30]))
def test_what_is_ignored_is_never_read(name: str, images: int, seed: int, ignored: float, poison: float) -> None:
    """Neither by the loss and its gradient nor by the metric."""
    logits, target, hole = batch(name, images, seed, ignored)
    poisoned = logits.masked_fill(hole[:, None], poison)
    gradients, values = [], []
    for x in (logits.clone(), poisoned.clone()):
        x.requires_grad_()
        total, count = loss(name, x, target, target)
        total.backward()
        assert x.grad is not None
        assert torch.isfinite(total)
        assert (x.grad.masked_select(hole[:, None].expand_as(x)) == 0).all()
        gradients.append((total.detach(), count, x.grad))
        values.append(state(name, [(x.detach(), target)]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][key], values[1][key]) for key in values[0])
    if ignored == 1:
        assert int(gradients[0][1]) == 0
        assert float(gradients[0][0]) == 0


def metric(name: str, batches: list[tuple[Tensor, Tensor]]) -> Metric:
    task = TASKS[name]
    made = task.metric()
    for logits, target in batches:
        made.update(task.decode(logits), target)
    return made


def state(name: str, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """What a metric has summed up."""
    made = metric(name, batches)
    return {key: getattr(made, key).clone() for key in made._defaults}


def computed(made: Metric) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")
        return {key: float(value) for key, value in made.compute().items()}


@each_task
@examples(15)
@given(images=st.integers(1, 4), seed=seeds, ignored=shares, data=st.data())
def test_a_metric_is_that_of_the_pooled_pixels(
    name: str, images: int, seed: int, ignored: float, data: st.DataObject
) -> None:
    """Counts to the last one, sums to 1e-6, however the images come."""
    logits, target, _ = batch(name, images, seed, ignored)
    parts = [(logits[part], target[part]) for part in cut(images, data)]
    whole, pieces = metric(name, [(logits, target)]), metric(name, parts)
    for key in whole._defaults:
        one, other = getattr(whole, key), getattr(pieces, key)
        if one.is_floating_point():
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(one, other), key
    assert computed(pieces) == pytest.approx(computed(whole), rel=1e-6, abs=1e-9, nan_ok=True)


@each_task
@examples(10)
@given(images=st.integers(1, 2), seed=seeds, classes=st.sampled_from([1, 2]))
def test_values_are_within_their_bounds_or_nan(name: str, images: int, seed: int, classes: int) -> None:
    logits, target, _ = batch(name, images, seed, 0.3, classes)
    found = computed(metric(name, [(logits, target)]))
    assert TASKS[name].primary in found
    for value in found.values():
        assert math.isnan(value) or value >= 0
        assert TASKS[name].unit != "%" or math.isnan(value) or value <= 100
    _, nothing, _ = batch(name, images, seed, 1.0)
    assert all(math.isnan(value) for value in computed(metric(name, [(logits, nothing)])).values())


@examples(30)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20), seeds)
def test_resizing_keeps_bounds_and_constants(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    """Interpolated values lie between those that are there, and sums of weights are 1."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, rows, columns, generator=rng)
    seen = at_size(logits, (height, width))
    assert seen.shape == (2, 3, height, width)
    for image, before in zip(seen.flatten(0, 1), logits.flatten(0, 1), strict=True):
        assert float(before.min()) - 1e-5 <= float(image.min())
        assert float(image.max()) <= float(before.max()) + 1e-5
    ones = at_size(torch.ones(1, 1, rows, columns), (height, width))
    torch.testing.assert_close(ones, torch.ones_like(ones))
