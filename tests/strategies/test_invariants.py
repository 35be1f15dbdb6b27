"""What Medusa promises: old tasks keep their bits, heads do not depend on the stream, nothing depends on workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, LRSchedulerPlugin, ReplayPlugin, SynapticIntelligencePlugin

from medusa_cl.data.loader import unit_image
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import GradientClipping, LRSchedule

Model = Callable[..., MultiTaskModel]
STEPS = {"max_steps": 3, "base_steps": 3, "epochs": 100, "batch_size": 4}


COMPOSED: dict[str, Callable[[], list[Any]]] = {
    "alone": lambda: [],
    "ewc": lambda: [EWCPlugin(0.4)],
    "si": lambda: [SynapticIntelligencePlugin(0.01)],
    "replay": lambda: [ReplayPlugin(4)],
    "ewc+replay": lambda: [EWCPlugin(0.4, mode="online", decay_factor=0.9), ReplayPlugin(4)],
    "schedulers": lambda: [LRSchedule("poly"), GradientClipping(1.0)],
}


def medusa(model: MultiTaskModel, **options: Any) -> Medusa:
    return Medusa(model=model, **{**STEPS, **options})


def images(scenario: DenseScenario) -> torch.Tensor:
    return torch.stack([unit_image(scenario.data["test"], i) for i in range(3)])


def state_of(model: MultiTaskModel, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    kept = ("backbone.", *(f"heads.{name}." for name in names))
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith(kept)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.filterwarnings("ignore:Rows of tasks")
@pytest.mark.parametrize("composed", COMPOSED)
def test_old_tasks_keep_their_bits(tiny_model: Model, tiny_scenario: DenseScenario, composed: str) -> None:
    """Invariant 1: parameters, buffers and predictions of everything old, after any later task, with any plugin."""
    model = tiny_model()
    strategy = medusa(model, plugins=COMPOSED[composed]())
    if composed == "schedulers":  # Avalanche's own, on the optimizer that the strategy will rebuild in place
        decay = torch.optim.lr_scheduler.ExponentialLR(strategy.optimizer, 0.9)
        strategy.plugins.append(LRSchedulerPlugin(decay, reset_scheduler=False, reset_lr=False))
    seen: list[tuple[tuple[str, ...], dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]] = []
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[: k + 1])
        for names, state, predictions, results in seen:
            assert equal(state, state_of(model, names))
            assert equal(predictions, model.predict(images(tiny_scenario), names))
            assert results == {name: strategy.results[name] for name in names}, "forgetting is exactly 0"
        names = tuple(model.tasks)
        predictions = model.predict(images(tiny_scenario), names)
        seen.append((names, state_of(model, names), predictions, dict(strategy.results)))
    assert len(seen) == 3


def test_a_new_head_learns(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model()
    strategy = medusa(model, max_steps=1)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    fresh = tiny_model("normals").heads["normals"].state_dict()
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert not equal(fresh, dict(model.heads["normals"].state_dict()))


def test_without_the_freeze_old_tasks_move(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """The test above can fail: naive fine-tuning changes the backbone under the old heads."""
    model = tiny_model()
    strategy = medusa(model, freeze="none", freeze_old_heads=False)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    before = state_of(model, ("semseg", "depth"))
    predictions = model.predict(images(tiny_scenario), ["depth"])
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert not equal(before, state_of(model, ("semseg", "depth")))
    assert not equal(predictions, model.predict(images(tiny_scenario), ["depth"]))


def reordered(scenario: DenseScenario, stream: list[str]) -> DenseScenario:
    return dense_scenario(list(scenario.tasks.values()), scenario.data, scenario.base, stream)


def learn_all(model: MultiTaskModel, scenario: DenseScenario, **options: Any) -> MultiTaskModel:
    strategy = medusa(model, **options)
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    return model


def test_heads_do_not_depend_on_the_order(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Invariant 2: heads learnt in either order are the same bits."""
    there = learn_all(tiny_model(), reordered(tiny_scenario, ["normals", "edges"]))
    back = learn_all(tiny_model(), reordered(tiny_scenario, ["edges", "normals"]))
    assert equal(state_of(there, tuple(there.tasks)), state_of(back, tuple(there.tasks)))


def test_a_head_removed_and_loaded_back_predicts_the_same(
    tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Any
) -> None:
    """Invariant 2: removing a head and loading it back."""
    model = learn_all(tiny_model(), tiny_scenario).eval()
    before = model.predict(images(tiny_scenario))
    model.save_head("normals", tmp_path / "normals.safetensors")
    model.remove_head("normals")
    assert equal(model.predict(images(tiny_scenario)), {k: v for k, v in before.items() if k != "normals"})
    model.load_head(tmp_path / "normals.safetensors")
    assert equal(model.predict(images(tiny_scenario)), before)


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_workers_change_nothing(tiny_model: Model, tiny_scenario: DenseScenario, cache: str) -> None:
    """Invariant 4: the same seed gives the same bits for any number of workers, whatever the global state."""
    torch.manual_seed(1)
    alone = learn_all(tiny_model(), tiny_scenario, cache_features=cache)
    torch.manual_seed(2)
    helped = learn_all(tiny_model(), tiny_scenario, cache_features=cache, workers=2)
    assert equal(state_of(alone, tuple(alone.tasks)), state_of(helped, tuple(alone.tasks)))


def test_seeds_differ(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    first = learn_all(tiny_model(), tiny_scenario, seed=0)
    other = learn_all(tiny_model(), tiny_scenario, seed=1)
    assert not equal(state_of(first, ("normals",)), state_of(other, ("normals",)))


def test_steps_are_the_lesser_of_steps_and_epochs(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """8 images in batches of 4 are 2 steps an epoch."""
    for options, expected in (
        ({"max_steps": 5}, 5),
        ({"max_steps": 50, "epochs": 3}, 6),
        ({"max_steps": None, "epochs": 2}, 4),
    ):
        strategy = medusa(tiny_model(), **({"base_steps": None} | options))
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
        assert strategy.clock.train_exp_iterations == expected
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
        assert strategy.clock.train_exp_iterations == expected


@pytest.mark.filterwarnings("ignore")
def test_replay_depends_on_the_seed_alone(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Buffers and replayed batches too; and the loader that replay puts in the place of ours keeps the step limit."""
    options = {"freeze": "none", "freeze_old_heads": False, "epochs": 100, "max_steps": 3}
    learnt = []
    for state in (1, 2):
        torch.manual_seed(state)
        learnt.append(learn_all(tiny_model(), tiny_scenario, plugins=[ReplayPlugin(4)], **options))
    assert equal(learnt[0].state_dict(), learnt[1].state_dict())
    strategy = medusa(tiny_model(), plugins=[ReplayPlugin(4)], **options)
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
        assert strategy.clock.train_exp_iterations == 3


def test_bf16_and_channels_last_keep_old_bits(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model(precision="bf16")
    model.use_channels_last()
    strategy = medusa(model, cache_features="off")
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    before = state_of(model, tuple(model.tasks)), model.predict(images(tiny_scenario))
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    names = ("semseg", "depth")
    assert equal(before[0], state_of(model, names))
    assert equal(before[1], model.predict(images(tiny_scenario), names))
