"""Riemannian walk: a walk of a few steps by hand, and streams on which the plugin it mends fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import RWalkPlugin
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.rwalk import RWalk

Model = Callable[..., MultiTaskModel]
State = dict[str, Tensor]


def medusa(model: MultiTaskModel, *plugins: Any, **options: Any) -> Medusa:
    given: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "batch_size": 4, "epochs": 9, "max_steps": 2}
    return Medusa(model=model, plugins=list(plugins), **(given | options))


def learn(strategy: Medusa, scenario: DenseScenario, until: int = 3) -> State:
    for experience in scenario.train_stream[:until]:
        strategy.train(experience, eval_streams=[])
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(known: Any) -> bool:
    return all(bool(value.data.isfinite().all()) for value in known.values())


# --- by hand ---


class Experience:
    def __init__(self, *names: str) -> None:
        self.tasks = dict.fromkeys(names)


class Line(nn.Module):
    """One shared weight and one weight for each task; an answer is shared x own x input."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(1.0))
        self.heads = nn.ModuleDict()

    def add(self, name: str) -> None:
        self.heads[name] = nn.ParameterList([torch.tensor(0.5)])

    def forward(self, x: Tensor) -> Tensor:
        return self.shared * next(list(self.heads.values())[-1].parameters()) * x


class Walk:
    """As much of a strategy as the plugin looks at; plain gradient descent on the squared error."""

    def __init__(self, plugin: RWalkPlugin, rate: float = 0.1) -> None:
        self.plugin, self.model, self.device, self.rate = plugin, Line(), torch.device("cpu"), rate
        self.clock = type("Clock", (), {"train_exp_counter": 0, "train_iterations": 0})()
        self.experience: Any = None
        self.penalties: list[float] = []

    @staticmethod
    def _criterion(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def train(self, name: str, samples: list[tuple[float, float]]) -> None:
        """Learn a task, a weight of 0.5, from (input, target), a step each."""
        self.experience = Experience(name)
        self.plugin.before_training(self)
        self.model.add(name)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.rate)
        self.plugin.before_training_exp(self)
        for x, y in samples:
            self.mbatch = [torch.tensor([x]), torch.tensor([y]), torch.tensor([0])]
            self.plugin.before_training_iteration(self)
            self.optimizer.zero_grad()
            self.loss = self._criterion(self.model(self.mbatch[0]), self.mbatch[1])
            plain = float(self.loss.detach())
            self.plugin.before_backward(self)
            self.penalties.append(float(self.loss.detach()) - plain)
            self.loss.backward()
            self.optimizer.step()
            self.plugin.after_training_iteration(self)
            self.clock.train_iterations += 1
        self.plugin.after_training_exp(self)
        self.clock.train_exp_counter += 1


class ByHand:
    """The paper's equations for `Walk` in plain numbers; `values` holds shared and the head now learnt."""

    def __init__(self, strength: float, share: float, stretch: int, rate: float = 0.1) -> None:
        self.strength, self.share, self.stretch, self.rate = strength, share, stretch, rate
        self.values: dict[str, float] = {"shared": 1.0}
        self.fisher: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.anchor: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.penalties: list[float] = []

    def train(self, name: str, samples: list[tuple[float, float]]) -> None:
        self.values[name] = 0.5
        path, gain, start = dict.fromkeys(self.values, 0.0), dict.fromkeys(self.values, 0.0), dict(self.values)
        for step, (x, y) in enumerate(samples, 1):
            w, v = self.values["shared"], self.values[name]
            error = 2 * (w * v * x - y)
            gradient = {"shared": error * v * x, name: error * w * x}
            for key, g in gradient.items():
                old = self.fisher.get(key)
                self.fisher[key] = g * g if old is None else self.share * g * g + (1 - self.share) * old
            pulls = {k: 2 * self.strength * c * (self.values[k] - self.anchor[k]) for k, c in self.weights.items()}
            self.penalties.append(
                self.strength * sum(c * (self.values[k] - self.anchor[k]) ** 2 for k, c in self.weights.items())
            )
            for key in self.values:
                move = -self.rate * (gradient.get(key, 0.0) + pulls.get(key, 0.0))
                self.values[key] += move
                gain[key] -= gradient.get(key, 0.0) * move
            if step % self.stretch == 0 or step == len(samples):
                for key in self.fisher:
                    moved = self.values[key] - start[key]
                    path[key] += gain[key] / (0.5 * self.fisher[key] * moved**2 + np.finfo(np.float32).eps)
                gain, start = dict.fromkeys(self.values, 0.0), dict(self.values)
        self.scores = {k: (self.scores[k] + s) / 2 if k in self.scores else s for k, s in path.items()}
        self.anchor = dict(self.values)
        top_fisher, top_score = max(self.fisher.values()), max(max(s, 0.0) for s in self.scores.values())
        self.weights = {k: self.fisher[k] / top_fisher + max(self.scores[k], 0.0) / top_score for k in self.values}


def of(known: Any) -> dict[str, float]:
    """The numbers of parameters by what `ByHand` calls them."""
    return {key.removeprefix("heads.").removesuffix(".0"): float(value.data) for key, value in known.items()}


SAMPLES = {
    "first": [(1.0, 2.0), (0.5, 1.5), (2.0, 1.0), (1.0, 1.0), (0.3, 2.0)],
    "second": [(1.0, -1.0), (1.5, 0.5), (0.7, 0.1)],
    "third": [(1.0, 3.0)],
}


@pytest.mark.parametrize("delta_t", [1, 2, 10])
def test_a_walk_by_hand(delta_t: int) -> None:
    """Three tasks, each with a weight of its own; the last stretch of each is shorter, or there is no other."""
    plugin = RWalk(ewc_lambda=0.5, ewc_alpha=0.7, delta_t=delta_t)
    walk, hand = Walk(plugin), ByHand(0.5, 0.7, delta_t)
    for name, samples in SAMPLES.items():
        walk.train(name, samples)
        hand.train(name, samples)
        assert of(dict(walk.model.named_parameters())) == pytest.approx(hand.values, rel=1e-4)
        assert of(plugin.exp_importance) == pytest.approx(hand.fisher, rel=1e-4)
        assert of(plugin.exp_scores) == pytest.approx(hand.scores, rel=1e-3)
        assert of(plugin.exp_penalties) == pytest.approx(hand.weights, rel=1e-3)
    assert walk.penalties == pytest.approx(hand.penalties, rel=1e-3, abs=1e-6)
    assert walk.penalties[:6] == [0.0] * 6
    assert all(penalty > 1e-4 for penalty in walk.penalties[6:8])


def test_where_nothing_moved_nothing_is_held() -> None:
    walk = Walk(RWalk(), rate=0.0)
    for name, samples in SAMPLES.items():
        walk.train(name, samples)
    assert max(of(walk.plugin.exp_penalties).values()) == 1.0, "the importance alone"
    walk = Walk(RWalk())
    walk.train("first", [])
    walk.train("second", [(0.0, 1.0)])
    assert set(of(walk.plugin.exp_penalties).values()) == {0.0}


def test_a_path_that_did_harm_counts_nothing() -> None:
    walk = Walk(RWalk())
    walk.train("first", [])
    numbers = {"shared": (2.0, -4.0), "heads.first.0": (1.0, 8.0)}
    importance, score = ({k: ParamData(k, init_tensor=torch.tensor(v[i])) for k, v in numbers.items()} for i in (0, 1))
    walk.plugin.exp_scores, walk.plugin.iter_importance, walk.plugin.checkpoint_scores = None, importance, score
    walk.plugin.after_training_exp(walk)
    assert of(walk.plugin.exp_penalties) == {"shared": 1.0, "first": 0.5 + 1.0}


def test_a_head_learnt_anew_is_not_held_to_the_one_removed() -> None:
    walk = Walk(RWalk(10.0))
    walk.train("first", SAMPLES["first"])
    del walk.model.heads["first"]
    walk.train("first", SAMPLES["first"][:1])
    assert walk.penalties[-1] == 0.0


# --- runs ---


class Modes(SupervisedPlugin):
    """Whether the model was in train mode when it answered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[bool]()

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.add(strategy.model.training)


@pytest.mark.parametrize("delta_t", [1, 10])
def test_heads_that_come_later(tiny_model: Model, tiny_scenario: DenseScenario, delta_t: int) -> None:
    """Numbers for every parameter, of few steps too; in train mode; and a run differs from one without it."""
    plugin, modes = RWalk(10.0, delta_t=delta_t), Modes()
    strategy = medusa(tiny_model(), plugin, modes)
    walked = learn(strategy, tiny_scenario, 2)
    assert plugin.exp_penalties is not None
    # Deep supervision answers in training alone, and the importance is taken of the model as it predicts.
    predicting = {name for name, _ in strategy.model.named_parameters() if ".initial." not in name}
    assert plugin.exp_penalties.keys() == predicting
    assert finite(plugin.exp_penalties)
    assert max(float(value.data.max()) for value in plugin.exp_penalties.values()) > 0.5
    assert modes.seen == {True}
    without = learn(medusa(tiny_model()), tiny_scenario, 2)
    assert walked.keys() == without.keys()
    assert not same(walked, without)
    strategy.train(tiny_scenario.train_stream[2], eval_streams=[])


def test_the_plugin_it_mends_cannot_do_that(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Once one of these fails, Avalanche may have mended it, and some of ours can go."""
    strategy = medusa(tiny_model())
    strategy.plugins.insert(0, RWalkPlugin())
    with pytest.raises(KeyError):
        learn(strategy, tiny_scenario, 1)
    plugin, modes = RWalkPlugin(), Modes()
    strategy = medusa(tiny_model())
    strategy.plugins[:0] = [plugin, modes]
    plugin.before_training_exp = plugin.before_training
    learn(strategy, tiny_scenario, 1)
    assert modes.seen == {False}
    assert plugin.exp_penalties is not None
    assert not finite(plugin.exp_penalties)


@pytest.mark.filterwarnings("ignore")
def test_under_the_full_freeze_it_moves_nothing_old(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    frozen = {"freeze": "backbone", "freeze_old_heads": True}
    with_it, without = (learn(medusa(tiny_model(), *made, **frozen), tiny_scenario) for made in ([RWalk(10.0)], []))
    assert same(with_it, without)


def test_frozen_parameters_are_not_read_from_old_gradients(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin = RWalk()
    strategy = medusa(tiny_model(), plugin, freeze="none", freeze_old_heads=True, max_steps=1)
    learn(strategy, tiny_scenario, 1)
    kept = {key: value.data.clone() for key, value in plugin.exp_importance.items()}  # type: ignore[union-attr]
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    heads = [key for key in kept if key.startswith("heads.")]
    assert heads
    assert all(torch.equal(plugin.exp_importance[key].data, kept[key]) for key in heads)  # type: ignore[index]


def test_a_step_that_is_left_out_leaves_no_trace(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Its gradients, which are NaN, are neither part of the importance nor of the path."""

    class Spoiled(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.known: list[dict[str, Tensor]] = []

        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            self.known.append({key: value.data.clone() for key, value in (plugin.iter_importance or {}).items()})
            if len(self.known) == 2:
                strategy.mbatch[0] = strategy.mbatch[0] * torch.nan

    plugin, spoiled = RWalk(10.0), Spoiled()
    strategy = medusa(tiny_model(), spoiled, plugin, max_steps=3, on_nan="skip")
    with pytest.warns(UserWarning, match="Step left out"):
        learn(strategy, tiny_scenario, 1)
    assert strategy.guard.skipped == 1
    assert same(spoiled.known[1], spoiled.known[2])
    assert finite(plugin.exp_penalties)
    assert finite(plugin.exp_importance)


@pytest.mark.parametrize("options", [{"ewc_lambda": -1.0}, {"ewc_alpha": 1.5}, {"delta_t": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"delta_t of at least 1, but got .* Set them in plugins\.rwalk"):
        RWalk(**options)
