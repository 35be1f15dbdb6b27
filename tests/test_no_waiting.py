"""What runs at every step never makes the host wait for the device.

Shown on the meta device, where tensors have shapes and no values: whatever must look at one raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.batch import Entry, Features, TaskBatch
from medusa_cl.losses import at_size
from medusa_cl.models import MultiTaskModel
from medusa_cl.tasks import DenseTask

SIZE = (40, 50)
Model = Callable[..., MultiTaskModel]


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    # Autocast does not know the meta device; in full precision it does nothing anyway.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def built_in(name: str) -> DenseTask:
    return tasks.semseg(19) if name == "semseg" else tasks.BUILT_IN[name]()


def target_of(task: DenseTask) -> Tensor:
    if task.classes:
        return torch.empty(3, *SIZE, dtype=torch.int64, device="meta")
    return torch.empty(3, task.channels, *SIZE, device="meta")


def logits_of(task: DenseTask) -> Tensor:
    return torch.empty(3, task.channels, 16, 16, device="meta", requires_grad=True)


def test_a_look_at_a_value_raises_here() -> None:
    values = torch.empty(4, device="meta")
    for look in (lambda: bool((values > 0).all()), lambda: values[values > 0], lambda: values.sum().item()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look()


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_losses(name: str) -> None:
    task, logits = built_in(name), logits_of(built_in(name))
    loss, count = task.loss(at_size(logits, SIZE), target_of(task))
    (loss / count.clamp(min=1)).backward()
    assert logits.grad is not None and logits.grad.shape == logits.shape


@pytest.mark.parametrize("name", sorted(set(tasks.BUILT_IN) - {"edges"}))  # whose metric thins on the CPU
def test_metrics(name: str) -> None:
    task = built_in(name)
    metric = task.metric().to("meta")
    metric.update(task.decode(at_size(logits_of(task), SIZE)), target_of(task))
    assert all(value.device.type == "meta" for value in metric.metric_state.values())  # type: ignore[union-attr]


def test_batches() -> None:
    rows = torch.tensor([0, 2])
    batch = TaskBatch({"depth": Entry(rows, torch.empty(2, 1, 4, 4), (torch.empty(2, 1, 2, 2),))}, 3).to("meta")
    assert batch.entries["depth"].rows is rows
    joined = torch.cat([batch, batch[torch.tensor([2, 1])], batch[1:], batch[torch.tensor([True, False, True])]])  # type: ignore[list-item]
    assert isinstance(joined, TaskBatch)
    assert joined.entries["depth"].rows.tolist() == [0, 2, 3, 6, 7, 8]
    assert joined.entries["depth"].value.shape == (6, 1, 4, 4) and joined.entries["depth"].aux[0].shape == (6, 1, 2, 2)
    norm = torch.norm(joined, p="fro", dim=1)  # type: ignore[arg-type]
    assert norm.shape == (9,) and norm.device.type == "meta"
    assert Features((torch.empty(3, 8, 4, 4, device="meta"),)).select(rows)[0].shape == (2, 8, 4, 4)


def test_a_step_on_kept_features(tiny_model: Model) -> None:
    """Two heads, one of them on some of the images only, from features to gradients."""
    model = tiny_model("depth", "normals")
    model.freeze_backbone()
    features = [x.to("meta") for x in model.features(torch.rand(3, 3, 64, 64))]
    model.to("meta").train()
    rows = {"depth": torch.arange(3), "normals": torch.tensor([0, 2])}
    total = torch.zeros((), device="meta")
    for name, (logits, initial) in model(features, rows).items():
        target = target_of(model.tasks[name])[: len(rows[name])]
        for x in (logits, *initial):
            loss, count = model.tasks[name].loss(at_size(x, SIZE), target)
            total = total + loss / count.clamp(min=1)
    total.backward()
    assert all(p.grad is not None for p in model.head_parameters())
