"""Choosing the epoch whose weights are kept: on val, never on test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from medusa_cl import tasks
from medusa_cl.data.loader import unit_image
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.plugins import EarlyStopping, ValSelection
from medusa_cl.strategies.template import DenseCriterion, DenseModule

Model = Callable[..., MultiTaskModel]
State = dict[str, Tensor]
KNOWN = [tasks.semseg(19), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.02)]


def state(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Remember(SupervisedPlugin):
    """The weights after each epoch, by experience; of one epoch, those of heads are multiplied where asked."""

    def __init__(self, spoil: int | None = None, factor: float = float("nan")) -> None:
        super().__init__()
        self.spoil, self.factor, self.epochs = spoil, factor, list[list[State]]()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.epochs.append([])

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if len(self.epochs[-1]) + 1 == self.spoil:
            with torch.no_grad():
                for head in strategy.model.heads.values():
                    for parameter in head.parameters():
                        parameter.mul_(self.factor)
        self.epochs[-1].append(state(strategy.model))


class Unread:
    """A split whose labels may be counted but whose images must not be read."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name in ("image", "target", "stored"):
            pytest.fail("the test split was read")
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)


@pytest.fixture
def guarded(fake_splits: Mapping[str, DenseData]) -> DenseScenario:
    """Base semseg and depth, then normals, then edges, with a test split that must not be read."""
    data = {**fake_splits, "test": Unread(fake_splits["test"])}
    return dense_scenario(KNOWN, data, base=["semseg", "depth"], stream=["normals", "edges"])


def learner(model: MultiTaskModel, *plugins: Any, **options: Any) -> Medusa:
    given = {"batch_size": 4, "epochs": 4, "lr_head": 1e-2, "freeze": "none", "freeze_old_heads": False, **options}
    return Medusa(model=model, plugins=list(plugins), **given)


def test_the_best_epochs_weights_are_kept_and_test_is_not_read(tiny_model: Model, guarded: DenseScenario) -> None:
    """Of each experience for itself; which one is best is found anew here."""
    remember, source = Remember(spoil=4, factor=2.0), guarded.data["val"]
    strategy = learner(tiny_model(), remember, ValSelection(source), freeze="backbone", lr_head=0.05)
    chosen = []
    for k, experience in enumerate(guarded.train_stream):
        strategy.train(experience, eval_streams=[])
        kept = state(strategy.model)
        scores = [scored(strategy, epoch, source, guarded.groups[k], guarded) for epoch in remember.epochs[k]]
        best = max(range(4), key=lambda i: gain(scores, i, guarded))
        assert [i for i, epoch in enumerate(remember.epochs[k]) if same(epoch, kept)] == [best]
        strategy.model.load_state_dict(kept)
        chosen.append(best)
    assert set(chosen) != {3}, "the last epoch would be kept without a choice, too"


def scored(
    strategy: Medusa, weights: State, source: DenseData, names: Sequence[str], scenario: DenseScenario
) -> dict[str, float]:
    """The primary metrics on val, by hand, in one batch."""
    strategy.model.load_state_dict(weights)
    images = torch.stack([unit_image(source, i) for i in range(len(source))])
    predicted = strategy.model.model.predict(images)
    found = {}
    for name in names:
        metric = scenario.tasks[name].metric()
        metric.update(predicted[name], torch.stack([source.target(i, name) for i in range(len(source))]))  # type: ignore[misc]
        found[name] = float(metric.compute()[scenario.tasks[name].primary])
    return found


def gain(scores: Sequence[Mapping[str, float]], epoch: int, scenario: DenseScenario) -> float:
    total = 0.0
    for name, value in scores[epoch].items():
        unit = next((abs(score[name]) for score in scores if score[name]), 1.0)
        total += (1 if scenario.tasks[name].higher_is_better else -1) * value / unit
    return total


def test_a_bad_last_epoch_changes_nothing(tiny_model: Model, guarded: DenseScenario) -> None:
    """As if training had ended before it: the same bits."""
    spoilt = learner(tiny_model(), Remember(spoil=3), ValSelection(guarded.data["val"]), epochs=3)
    ended = learner(tiny_model(), ValSelection(guarded.data["val"]), epochs=2)
    for strategy in (spoilt, ended):
        strategy.train(guarded.train_stream[0], eval_streams=[])
    assert same(state(spoilt.model), state(ended.model))


def test_looking_at_val_does_not_change_how_weights_are_learnt(tiny_model: Model, guarded: DenseScenario) -> None:
    """Neither batch statistics nor what is drawn: every epoch's weights are those of a run that does not look."""
    looks, plain = Remember(), Remember()
    for plugins in ([looks, ValSelection(guarded.data["val"])], [plain]):
        strategy = learner(tiny_model(), *plugins, epochs=3)
        for experience in guarded.train_stream[:1]:
            strategy.train(experience, eval_streams=[])
    for one, other in zip(looks.epochs[0], plain.epochs[0], strict=True):
        assert same(one, other)


class Counter(nn.Module):
    """A model whose one weight is the number of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = nn.Parameter(torch.zeros(()))


def kept_epoch(selection: ValSelection, values: Sequence[Mapping[str, float]], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the epoch (from 1) whose weights are kept when val gives these values."""
    return epochs_of(selection, values, monkeypatch)[0]


def epochs_of(
    selection: ValSelection, values: Sequence[Mapping[str, float]], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """Return the epoch that is kept and how many there were."""
    rows: Iterator[Mapping[str, float]] = iter(values)
    monkeypatch.setattr(selection, "_values", lambda strategy: dict(next(rows)))
    known = {task.name: task for task in KNOWN}
    experience = SimpleNamespace(tasks={name: known[name] for name in values[0]})
    stops = list[int]()
    strategy = SimpleNamespace(model=Counter(), experience=experience, stop_training=lambda: stops.append(1))
    selection.before_training_exp(strategy)
    for epoch in range(1, len(values) + 1):
        selection.before_training_epoch(strategy)
        if stops:
            break
        with torch.no_grad():
            strategy.model.epoch.fill_(epoch)
        selection.after_training_epoch(strategy)
    count = int(strategy.model.epoch)
    selection.after_training_exp(strategy)
    return int(strategy.model.epoch), count


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([{"depth": 1.0}, {"depth": 0.8}, {"depth": 0.9}], 2),  # an error: lower is better
        ([{"edges": 10.0}, {"edges": 30.0}, {"edges": 20.0}], 2),  # a share: higher is better
        ([{"semseg": 20.0, "depth": 1.0}, {"semseg": 21.0, "depth": 1.2}, {"semseg": 21.0, "depth": 1.01}], 3),
        ([{"semseg": 20.0, "depth": 1.0}, {"semseg": 19.0, "depth": 0.9}], 2),  # -5 % and +10 %
        ([{"semseg": 20.0, "depth": 1.0}, {"semseg": 17.0, "depth": 0.9}], 1),  # -15 % and +10 %
        ([{"depth": 1.0}], 1),
        ([{"depth": 1.0}, {"depth": 1.0}], 1),
        ([{"semseg": NAN, "depth": 1.0}, {"semseg": NAN, "depth": 0.5}, {"semseg": NAN, "depth": 0.7}], 2),
        ([{"edges": NAN}, {"edges": NAN}, {"edges": NAN}], 3),  # nothing to choose by: the last, as without it
        ([{"edges": NAN}, {"edges": 10.0}, {"edges": 20.0}, {"edges": 15.0}], 3),
        ([{"depth": 1.0, "edges": 10.0}, {"depth": 0.9, "edges": NAN}], 1),  # broken weights
        ([{"depth": 1.0}, {"depth": NAN}, {"depth": 0.9}], 3),
        ([{"edges": 0.0}, {"edges": 0.0}, {"edges": 4.0}, {"edges": 3.0}], 3),
        ([{"semseg": 0.0, "depth": 1.0}, {"semseg": 1.0, "depth": 9.0}, {"semseg": 1.0, "depth": 0.5}], 3),
    ],
)
def test_which_epoch_is_best(
    values: list[dict[str, float]], epoch: int, fake_splits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = ValSelection(fake_splits["val"])
    assert kept_epoch(selection, values, monkeypatch) == epoch
    assert kept_epoch(selection, [{"depth": 5.0}, {"depth": 6.0}], monkeypatch) == 1, "the experience before is gone"


@pytest.mark.parametrize(
    ("patience", "errors", "kept", "epochs"),
    [
        (1, [1.0, 1.1, 0.5], 1, 2),
        (2, [1.0, 1.1, 0.5, 0.6, 0.7, 0.1], 3, 5),
        (2, [1.0, 1.0, 1.0, 0.5], 1, 3),  # as good is not better
        (3, [1.0, 0.9, 0.8, 0.7], 4, 4),
        (1, [NAN, NAN, 2.0, 3.0, 1.0], 3, 4),  # nothing to stop by before there are values
        (1, [1.0, NAN, 0.5], 1, 2),
    ],
)
def test_when_training_ends_early(
    patience: int, errors: list[float], kept: int, epochs: int, fake_splits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = EarlyStopping(patience, fake_splits["val"])
    values = [{"depth": error} for error in errors]
    assert epochs_of(stopping, values, monkeypatch) == (kept, epochs)
    assert epochs_of(stopping, values, monkeypatch) == (kept, epochs), "the experience before is gone"


class Rising(EarlyStopping):
    """Early stopping to which each look at val shows something worse than the one before."""

    looks = 0

    def _values(self, strategy: Any) -> dict[str, float]:
        self.looks += 1
        return {name: -float(task.sign * self.looks) for name, task in strategy.experience.tasks.items()}


def with_benchmark(scenario: DenseScenario) -> DenseScenario:
    for split in scenario.data:
        getattr(scenario, f"{split}_stream").benchmark = scenario
    return scenario


@pytest.mark.parametrize("host", ["template", "naive"])
@pytest.mark.parametrize("epochs", [2, 4])
def test_an_experience_that_ends_early_does_not_end_the_next(
    host: str, epochs: int, tiny_model: Model, guarded: DenseScenario
) -> None:
    """The first epoch is kept of each, the second was the last; and the val split is found by itself."""
    remember, stopping = Remember(), Rising(patience=1)
    scenario, model = with_benchmark(guarded), tiny_model()
    if host == "template":
        strategy: Any = learner(model, remember, stopping, epochs=epochs)
    else:
        module = DenseModule(model)
        strategy = Naive(
            model=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            criterion=DenseCriterion(model.tasks),
            train_mb_size=8,
            train_epochs=epochs,
            evaluator=dense_evaluator(),
            plugins=[MedusaPlugin(freeze="none", freeze_old_heads=False), remember, stopping],
        )
    for k, experience in enumerate(scenario.train_stream[:2]):
        strategy.train(experience, eval_streams=[])
        assert len(remember.epochs[k]) == 2
        assert same(state(strategy.model), remember.epochs[k][0])


@pytest.mark.parametrize("make", [EarlyStopping, ValSelection])
def test_the_val_split_is_that_of_the_scenario(make: Any, guarded: DenseScenario) -> None:
    plugin = make()
    plugin.before_training_exp(SimpleNamespace(experience=with_benchmark(guarded).train_stream[1]))
    assert plugin._source is guarded.data["val"]
    given = make(source=guarded.data["train"])
    given.before_training_exp(SimpleNamespace(experience=guarded.train_stream[1]))
    assert given._source is guarded.data["train"]


def test_without_a_val_split_it_says_so_before_training(tiny_model: Model, fake_splits: Any) -> None:
    data = {split: fake_splits[split] for split in ("train", "test")}
    scenario = with_benchmark(dense_scenario(KNOWN, data, base=["depth"], stream=[]))
    with pytest.raises(ConfigError, match=r'EarlyStopping needs images .* "depth" .*scenario.val_fraction'):
        learner(tiny_model(), EarlyStopping()).train(scenario.train_stream[0], eval_streams=[])
    with pytest.raises(ConfigError, match="patience of at least 1 epoch, but got 0"):
        EarlyStopping(0)
