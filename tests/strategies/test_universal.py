"""The terms for universal features: by numpy, by hand, and what training with and without them does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medusa_cl.batch import Entry, TaskBatch
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.models.heads import MedusaHead, PlainHead
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.universal import (
    UniversalFeatures,
    _masks_of,
    alike,
    claimed,
    correlated,
    moved,
    untold,
    without_some,
)

Model = Callable[..., MultiTaskModel]
HEAD = partial(MedusaHead, width=8, mix_width=8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pretrained(model: MultiTaskModel, scenario: DenseScenario, *plugins: Any, steps: int = 3, **options: Any) -> Medusa:
    given: dict[str, Any] = {"batch_size": 4, "epochs": 100, "base_steps": steps, "max_steps": 2}
    strategy = Medusa(model=model, plugins=list(plugins), **(given | options))
    strategy.train(scenario.train_stream[0], eval_streams=[])
    return strategy


def weights(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the terms ---


def test_moved_by_numpy() -> None:
    now = [random(3, 4, 5, 6), random(3, 2, 2, 3, seed=1)]
    then = [random(3, 4, 5, 6, seed=2), 7 * random(3, 2, 2, 3, seed=3)]
    masks = [[random(3, 8, *x.shape[2:], seed=4 + t) for t in range(2)] for x in now]
    expected, reserved = [], []
    for here, there, of_scale in zip(now, then, masks, strict=True):
        a, b = here.numpy(), there.numpy()
        squares = (a - b) ** 2 / b.var(axis=(0, 2, 3), ddof=1)[None, :, None, None]
        taken = np.maximum(*(m.numpy().mean(axis=1, keepdims=True) for m in of_scale))
        expected.append(squares.mean())
        reserved.append((squares * (1 - taken)).mean())
    assert float(moved(now, then)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(moved(now, then, masks)) == pytest.approx(np.mean(reserved), rel=1e-5)
    assert float(moved(now, now)) == 0.0


def test_what_a_task_masks_wholly_may_move() -> None:
    now, then = [random(2, 4, 3, 3).requires_grad_()], [random(2, 4, 3, 3, seed=1)]
    masks = [[torch.ones(2, 8, 3, 3), torch.zeros(2, 8, 3, 3)]]
    masks[0][0][:, :, 0] = 0.0  # the upper row is nobody's
    (gradient,) = torch.autograd.grad(moved(now, then, masks), now)
    assert gradient[:, :, 0].abs().min() > 0 and not gradient[:, :, 1:].any()


def test_untold_by_numpy() -> None:
    images, maps = random(2, 3, 7, 8), [random(2, 5, 2, 2, seed=1), random(2, 6, 1, 1, seed=2)]
    decode = nn.ModuleList([nn.Conv2d(5, 48, 1), nn.Conv2d(6, 48, 1)])
    padded = np.zeros((2, 3, 8, 8), np.float64)
    padded[:, :, :7] = images.numpy()
    patches = padded.reshape(2, 3, 2, 4, 2, 4).transpose(0, 1, 3, 5, 2, 4).reshape(2, 48, 2, 2)
    spread = patches.std(axis=(0, 2, 3), ddof=1, keepdims=True).clip(1e-3)
    target = (patches - patches.mean(axis=(0, 2, 3), keepdims=True)) / spread
    # A map of one pixel is upsampled to the same value everywhere.
    told = decode[0](maps[0]).detach().numpy() + decode[1](maps[1]).detach().numpy()
    assert float(untold(maps, images, decode).detach()) == pytest.approx(np.abs(told - target).mean(), rel=1e-5)


def test_claimed_and_alike_by_hand() -> None:
    masks = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])]
    shaped = [mask.view(1, 3, 1, 1) for mask in masks]
    assert float(claimed(shaped)) == pytest.approx((1 + 1 + 2) / 9)
    assert float(alike(shaped)) == pytest.approx((0 + 0.5**0.5 + 0.5**0.5) / 3)
    assert float(alike(shaped[:1])) == 0.0


def test_correlated_by_numpy() -> None:
    maps = random(3, 5, 4, 6)
    maps[:, 1] = 2 - 3 * maps[:, 0]
    found = np.corrcoef(maps.transpose(0, 1).flatten(1).numpy()) ** 2
    off = found[~np.eye(5, dtype=bool)]
    assert float(correlated(maps)) == pytest.approx(off.mean(), rel=1e-4)
    assert off.max() == pytest.approx(1.0)
    assert torch.isfinite(correlated(torch.ones(2, 3, 2, 2)))  # channels without any spread


def test_some_task_always_stays_and_shares_are_as_asked() -> None:
    batch = TaskBatch({name: Entry(torch.arange(2), torch.zeros(2)) for name in "abcd"}, 2)
    generator = torch.Generator().manual_seed(0)
    counts = [len(without_some(batch, 0.5, generator).entries) for _ in range(400)]
    assert min(counts) >= 1 and np.mean(counts) == pytest.approx(2 + 1 / 16, abs=0.15)
    assert {len(without_some(batch, 0.99, generator).entries) for _ in range(50)} <= {1, 2}
    assert len(without_some(batch, 0.0, generator).entries) == 4


# --- in training ---


def test_without_weights_it_is_the_paper_s_form(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plain, idle = tiny_model(), tiny_model()
    pretrained(plain, tiny_scenario)
    pretrained(idle, tiny_scenario, UniversalFeatures())
    assert same(weights(plain), weights(idle))


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({"anchor": 5.0}, PlainHead),
        ({"anchor": 5.0, "reserve": True}, HEAD),
        ({"reconstruct": 5.0}, PlainHead),
        ({"sparsity": 5.0}, HEAD),
        ({"diversity": 5.0}, HEAD),
        ({"decorrelate": 5.0}, PlainHead),
        ({"task_dropout": 0.5}, PlainHead),
        ({"detach_masks": True}, HEAD),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_term_changes_the_backbone_and_nothing_of_it_stays(
    tiny_model: Model, tiny_scenario: DenseScenario, options: dict[str, Any], head: Any, tmp_path: Any
) -> None:
    plain, universal = tiny_model(head=head), tiny_model(head=head)
    pretrained(plain, tiny_scenario)
    strategy = pretrained(universal, tiny_scenario, UniversalFeatures(**options))
    assert not same(weights(plain), weights(universal)) and weights(plain).keys() == weights(universal).keys()
    frozen = weights(universal)
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])  # a frozen backbone: no term acts
    assert all(torch.equal(value, weights(universal)[name]) for name, value in frozen.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in universal.modules())
    save_model(universal, tmp_path / "model")
    assert same(weights(load_model(tmp_path / "model", universal.tasks, head)), weights(universal))


def test_terms_do_what_they_are_for(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    images = torch.stack([tiny_scenario.data["train"].image(i).float() / 255 for i in range(4)])
    first = tiny_model().train().features(images)

    def after(**options: Any) -> MultiTaskModel:
        model = tiny_model()
        pretrained(model, tiny_scenario, UniversalFeatures(**options), steps=12)
        return model

    def masks(model: MultiTaskModel) -> list[Tensor]:
        found: list[Tensor] = []
        for head in model.heads.values():
            maps = [project(x) for project, x in zip(head.project, model.features(images), strict=True)]
            found.append(torch.sigmoid(head.sfa.scales[0].mask(maps[0])))
        return found

    def distance(model: MultiTaskModel) -> float:
        model.backbone.unfreeze()
        return float(moved(model.train().features(images), first).detach())

    free = after()
    assert claimed(masks(after(sparsity=100.0).eval())) < claimed(masks(free.eval()))
    assert alike(masks(after(diversity=300.0).eval())) < alike(masks(free))
    assert 0 < distance(after(anchor=100.0)) < distance(free)


def test_detached_masks_change_features_by_values_alone(tiny_model: Model) -> None:
    model = tiny_model("depth")
    attend = model.heads["depth"].sfa.scales[0]
    x = random(1, 8, 4, 4).requires_grad_()
    UniversalFeatures(detach_masks=True)._look_at(list(_masks_of(model.heads)))
    (gradient,) = torch.autograd.grad(attend(x).sum(), x)
    assert torch.allclose(gradient, torch.sigmoid(attend.mask(x)))  # of sigmoid(m) x, m held


def test_a_run_stopped_within_the_base_goes_on_to_the_bit(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    options = {"anchor": 2.0, "reconstruct": 2.0, "task_dropout": 0.3, "reserve": True}
    given: dict[str, Any] = {"batch_size": 4, "epochs": 100, "base_steps": 5, "max_steps": 2}
    whole = pretrained(tiny_model(), tiny_scenario, UniversalFeatures(**options), steps=5)
    stopped = Medusa(model=tiny_model(), plugins=[UniversalFeatures(**options)], **given)
    kept: dict[str, Any] = {}

    def keep() -> None:
        if stopped.steps_done == 3:
            kept.update(copy.deepcopy(stopped.state()))

    stopped.each_step = keep
    stopped.train(tiny_scenario.train_stream[0], eval_streams=[])
    model = tiny_model(weights_seed=1)
    own = model.state_dict()
    model.load_state_dict({name: value for name, value in kept["weights"].items() if name in own})
    again = Medusa(model=model, plugins=[UniversalFeatures(**options)], **given)
    again.resume(kept, list(tiny_scenario.train_stream))
    again.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert same(weights(whole.model.model), weights(again.model.model))


@pytest.mark.parametrize("options", [{"anchor": -1.0}, {"sparsity": -0.1}, {"task_dropout": 1.0}])
def test_weights_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        UniversalFeatures(**options)  # type: ignore[arg-type]


def test_masks_are_asked_of_heads_that_have_none(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    with pytest.raises(ConfigError, match="need heads with SFA"):
        pretrained(tiny_model(head=PlainHead), tiny_scenario, UniversalFeatures(sparsity=1.0))
