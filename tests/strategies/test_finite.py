"""Steps whose loss or gradient is not finite: training stops, or they change nothing."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    GEMPlugin,
    MASPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from torch import Tensor

from medusa_cl.errors import ConfigError, TrainingError
from medusa_cl.models import MultiTaskModel, PlainHead
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies import finite
from medusa_cl.strategies.distillation import DenseDER, DenseLwF
from medusa_cl.strategies.finite import StepGuard, all_finite
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import GradientClipping, LRSchedule
from medusa_cl.strategies.rwalk import KEPT, RWalk

Model = Callable[..., MultiTaskModel]
POISONS = ("image", "loss", "infinite loss", "gradient", "at last")


@pytest.fixture(scope="module")
def tiny_model(tiny_model: Model) -> Model:
    """With small heads: it is losses and gradients that are looked at."""
    return functools.partial(tiny_model, head=functools.partial(PlainHead, mix_width=8))


class Poison(SupervisedPlugin):  # type: ignore[misc]
    """Makes numbers of some steps of an experience NaN or infinite; counts steps from 0."""

    def __init__(self, kind: str, steps: Sequence[int], label: int = 0) -> None:
        super().__init__()
        self.kind, self.steps, self.label, self.step = kind, steps, label, 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.step = 0

    def _now(self, strategy: Any, kind: str) -> bool:
        return strategy.experience.task_label == self.label and self.step in self.steps and kind == self.kind

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, "image"):
            strategy.mbatch[0] = strategy.mbatch[0] * torch.nan

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, "loss"):
            strategy.loss = strategy.loss * torch.nan
        if self._now(strategy, "infinite loss"):
            strategy.loss = strategy.loss + torch.inf
        if self._now(strategy, "gradient"):  # the derivative of a root at 0
            strategy.loss = strategy.loss + (0 * first(strategy)).sum().sqrt()

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, "at last"):
            first(strategy).grad[0] = torch.inf

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.step += 1


def first(strategy: Any) -> Any:
    return strategy.optimizer.param_groups[0]["params"][0]


class Keep(SupervisedPlugin):  # type: ignore[misc]
    """Looks at everything that training changes before each step and after it."""

    def __init__(self, more: Callable[[], list[Tensor]] = list) -> None:
        super().__init__()
        self.more = more
        self.olds: list[list[Tensor]] = []
        self.news: list[list[Tensor]] = []
        self.rates: list[float] = []

    def _look(self, strategy: Any) -> list[Tensor]:
        memory = [value for state in strategy.optimizer.state.values() for value in state.values()]
        return [t.detach().clone() for t in (*strategy.model.state_dict().values(), *memory, *self.more())]

    def begin(self, strategy: Any) -> None:
        self.olds.append(self._look(strategy))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.news.append(self._look(strategy))
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])

    @property
    def first(self) -> Any:
        """A plugin that looks before the others do anything."""
        return Begin(self)

    @property
    def idle(self) -> list[int]:
        """The steps that have changed nothing."""
        return [i for i, pair in enumerate(zip(self.olds, self.news, strict=True)) if same(*pair)]


class Begin(SupervisedPlugin):  # type: ignore[misc]
    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.keep.begin(strategy)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def learner(model: MultiTaskModel, *plugins: Any, on_nan: str = "skip", **options: Any) -> Medusa:
    steps = {"batch_size": 4, "max_steps": 5, "epochs": 9}
    return Medusa(model=model, plugins=list(plugins), on_nan=on_nan, **(steps | options))


@pytest.mark.parametrize("kind", POISONS)
def test_a_step_left_out_changes_nothing(kind: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Neither weights nor moments nor batch statistics; all other steps do, at the rates they would have had."""
    keep = Keep()
    strategy = learner(tiny_model(), keep.first, Poison(kind, [1, 3]), LRSchedule("cosine"), keep)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert keep.idle == [1, 3]
    plain = Keep()
    learner(tiny_model(), plain.first, LRSchedule("cosine"), plain).train(
        tiny_scenario.train_stream[0], eval_streams=[]
    )
    assert keep.rates == plain.rates
    assert same(keep.news[0], plain.news[0])
    assert all_finite(keep.news[-1])
    assert strategy.guard.state_dict() == {"skipped": 2, "in_a_row": 0}
    texts = [str(w.message) for w in said if "left out" in str(w.message)]
    assert [text.split(" of ")[0].rpartition("at ")[2] for text in texts] == ["step 2", "step 4"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("loss", r"The loss is nan at step 3 .*\(in: a plugin; images \d+, \d+, \d+, \d+\)"),
        ("infinite loss", r"The loss is inf at step 3"),
        ("image", r"The loss is nan at step 3 .*\(in: semseg, depth; images"),
        ("gradient", r"A gradient is not finite \(the loss is [\d.]+\) at step 3 .*\(in: heads\.semseg"),
    ],
)
def test_training_stops_otherwise(kind: str, said: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    keep = Keep()
    strategy = learner(tiny_model(), keep, Poison(kind, [2]), on_nan="stop")
    with pytest.raises(TrainingError, match=said + r".*trainer\.on_nan=skip leaves such steps out"):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    names = strategy.model.state_dict()
    weights = [i for i, name in enumerate(names) if "running_" not in name and "num_batches" not in name]
    values = list(names.values())
    assert same([keep.news[-1][i] for i in weights], [values[i] for i in weights])


def test_the_images_named_are_those_of_the_step(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """A batch of images that are NaN is found by what the loader says of it."""
    seen: list[Tensor] = []

    class Look(SupervisedPlugin):  # type: ignore[misc]
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(strategy.mb_x.clone())

    strategy = learner(tiny_model(), Look(), Poison("loss", [3]), on_nan="stop")
    with pytest.raises(TrainingError) as caught:
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    named = [int(i) for i in str(caught.value).partition("images ")[2].partition(")")[0].split(", ")]
    source = tiny_scenario.data["train"]
    stored = [source.image(i).float() for i in named]
    stored = [image / 255 if image.max() > 1 else image for image in stored]
    for image in seen[-1]:
        assert any(torch.allclose(image, s) or torch.allclose(image.flip(-1), s) for s in stored)


def values(tree: Any) -> list[Tensor]:
    """Every tensor in the attributes of Avalanche's plugins."""
    if isinstance(tree, Tensor):
        return [tree]
    if hasattr(tree, "_data"):
        return [] if tree._data is None else [tree._data]
    if isinstance(tree, dict):
        return [t for part in tree.values() for t in values(part)]
    return [t for part in tree for t in values(part)] if isinstance(tree, list | tuple) else []


COMPOSED: dict[str, tuple[Callable[[], Any], Sequence[str]]] = {
    "clipping": (functools.partial(GradientClipping, 0.1), ()),
    "ewc": (functools.partial(EWCPlugin, 10.0), ("saved_params", "importances")),
    "si": (functools.partial(SynapticIntelligencePlugin, 1.0), ("ewc_data",)),
    "mas": (functools.partial(MASPlugin, 1.0), ("params", "importance")),
    "agem": (functools.partial(AGEMPlugin, 4, 4), ()),
    "gem": (functools.partial(GEMPlugin, 4, 0.5), ()),
    "replay": (functools.partial(ReplayPlugin, 4), ()),
    "lwf": (functools.partial(DenseLwF), ()),
    "rwalk": (functools.partial(RWalk, 1.0), (*KEPT, "checkpoint_loss")),
    "der": (functools.partial(DenseDER, 4), ()),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "image") for name in COMPOSED), *((name, "gradient") for name in ("si", "agem", "rwalk"))],
)
def test_plugins_keep_what_they_know(name: str, kind: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """What a plugin has gathered is not changed by a step left out, and nothing in the next experience is NaN."""
    make, kept = COMPOSED[name]
    plugin = make()
    keep = Keep(lambda: [t for attribute in kept for t in values(getattr(plugin, attribute))])
    poison = Poison(kind, [1], label=1)
    strategy = learner(
        tiny_model(), keep.first, plugin, keep, poison, freeze="none", freeze_old_heads=False, max_steps=3, base_steps=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in tiny_scenario.train_stream[:3]:
            strategy.train(experience, eval_streams=[])
    assert keep.idle == [2]
    assert strategy.guard.skipped == 1
    assert all_finite(keep.news[-1])


def test_the_path_that_si_follows_does_not_count_a_step_left_out(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    plugin = SynapticIntelligencePlugin(1.0)
    keep = Keep(lambda: values(plugin.syn_data["trajectory"]))
    strategy = learner(
        tiny_model(), keep.first, plugin, keep, Poison("gradient", [2]), freeze="none", freeze_old_heads=False
    )
    with pytest.warns(UserWarning, match=r"Step left out \(number 1\): A gradient"):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert keep.idle == [2]
    assert sum(float(t.abs().sum()) for t in values(plugin.syn_data["trajectory"])) > 0


def test_a_plugin_may_undo_a_step(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    class Sum(SupervisedPlugin):  # type: ignore[misc]
        total = kept = 0.0

        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            self.kept, self.total = self.total, self.total + float(strategy.loss.detach())

        def undo_step(self, strategy: Any) -> None:
            self.total = self.kept

    plugin = Sum()
    strategy = learner(tiny_model(), Poison("loss", [4]), plugin)
    with pytest.warns(UserWarning, match="left out"):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert 0 < plugin.total < float("inf")


def test_many_in_a_row_stop(tiny_model: Model, tiny_scenario: DenseScenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "MANY_IN_A_ROW", 3)
    monkeypatch.setattr(finite, "SAID_EACH", 1)
    monkeypatch.setattr(finite, "SAID_EVERY", 3)
    strategy = learner(tiny_model(), Poison("loss", [0, 1, 3, 4, 6, 7, 8]), max_steps=20)
    with (
        warnings.catch_warnings(record=True) as said,
        pytest.raises(TrainingError, match=r"at step 9 .* It is the last of 3 steps in a row that were left out"),
    ):
        warnings.simplefilter("always")
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    numbers = [str(w.message).split(":")[0] for w in said if "left out" in str(w.message)]
    assert numbers == ["Step left out (number 1)", "Step left out (number 3)", "Step left out (number 6)"]


def test_counts_survive() -> None:
    guard = StepGuard("skip")
    guard.load_state_dict({"skipped": 7, "in_a_row": 2})
    assert guard.state_dict() == {"skipped": 7, "in_a_row": 2}


def test_only_two_ways_are_known() -> None:
    with pytest.raises(ConfigError, match=r'Unknown trainer\.on_nan "skipp"\. Did you mean "skip"'):
        StepGuard("skipp")


def test_finite() -> None:
    assert all_finite([])
    assert all_finite([torch.ones(2, 2), torch.zeros(())])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, torch.nan])])
    assert not all_finite([torch.tensor([torch.inf, -torch.inf])])
