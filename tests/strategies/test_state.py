"""What plugins know is kept and given back: a run stopped anywhere goes on as the one that never was, to the bit."""

from __future__ import annotations

import functools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import plugins as upstream
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from torch import Tensor, nn
from torch.optim import lr_scheduler

from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.models.heads import PlainHead
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.distillation import DenseDER, DenseLwF, FeatureDistillation
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import EarlyStopping, GradientClipping, LRSchedule, Progress
from medusa_cl.strategies.replay_memory import TaskBalancedBuffer
from medusa_cl.strategies.rwalk import RWalk
from medusa_cl.strategies.state import lacking, restore, state_of
from medusa_cl.strategies.template import optimizer_state

Model = Callable[..., MultiTaskModel]
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
"""Steps of each later experience, two an epoch."""


class Bar:
    """As much of a progress bar as there must be."""

    done, images_per_second = 1, 5.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None: ...

    def advance(self, *values: object) -> None: ...


def scheduled(strategy: Any, **options: Any) -> None:
    decay = lr_scheduler.MultiStepLR(strategy.optimizer, [3, 5, 5, 7], 0.5)
    strategy.plugins.append(upstream.LRSchedulerPlugin(decay, step_granularity="iteration", **options))


PLUGINS: dict[str, Callable[[], list[Any]]] = {
    "none": lambda: [LRSchedule("cosine"), GradientClipping(1.0), Progress(lambda label, steps: Bar())],  # type: ignore[arg-type,return-value]
    "ewc": lambda: [upstream.EWCPlugin(1.0)],
    "ewc_online": lambda: [upstream.EWCPlugin(1.0, mode="online", decay_factor=0.9)],
    "si": lambda: [upstream.SynapticIntelligencePlugin(100.0)],
    "mas": lambda: [upstream.MASPlugin()],
    "rwalk": lambda: [RWalk(10.0, delta_t=2)],
    "replay": lambda: [upstream.ReplayPlugin(6)],
    "replay_reservoir": lambda: [upstream.ReplayPlugin(6, 2, 3, storage_policy=ReservoirSamplingBuffer(6))],
    "replay_balanced": lambda: [
        upstream.ReplayPlugin(6, task_balanced_dataloader=True, storage_policy=TaskBalancedBuffer(6))
    ],
    "agem": lambda: [upstream.AGEMPlugin(5, 4)],
    "gem": lambda: [upstream.GEMPlugin(3, 0.5)],
    "from_scratch": lambda: [upstream.FromScratchTrainingPlugin(reset_optimizer=False)],
    "lwf": lambda: [DenseLwF()],
    "feature_distillation": lambda: [FeatureDistillation(10.0)],
    "der": lambda: [DenseDER(5, half=True)],
    "derpp": lambda: [DenseDER(5, beta=0.5, batch_size=2)],
    "early_stopping": lambda: [EarlyStopping(patience=1)],
    "early_stopping_upstream": lambda: [upstream.EarlyStoppingPlugin(1, "val_stream", "edges_loss", "min")],
    "scheduler": lambda: [],
    "many": lambda: [upstream.EWCPlugin(1.0), upstream.ReplayPlugin(5), DenseLwF(), DenseDER(4)],
}


def made(tiny_model: Model, name: str, *tasks: Any, **options: Any) -> Medusa:
    given: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "max_steps": STEPS, "base_steps": 2}
    more: dict[str, Any] = {"epochs": 100, "batch_size": 4, "eval_every": 1 if "upstream" in name else -1}
    model = tiny_model(*tasks, head=PlainHead)
    strategy = Medusa(model=model, plugins=PLUGINS[name](), **(given | more | options))
    if name == "scheduler":
        scheduled(strategy, reset_scheduler=False, reset_lr=False)
    return strategy


def copied(state: Any) -> Any:
    """A copy of what a snapshot can hold; anything else fails."""
    if type(state) is dict:
        assert all(type(key) in (int, str) for key in state)
        return {key: copied(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(copied, state))
    if type(state) is Tensor:
        assert state.device.type == "cpu" and state.grad_fn is None
        return state.clone()
    assert type(state) in (type(None), bool, int, float, str), type(state)
    return state


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same to the bit: kinds, types and the order of names too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def without_rates(state: dict[str, Any]) -> dict[str, Any]:
    """A state but for the images a second among the values published last."""
    values = state["plugins"]["EvaluationPlugin"]["attributes"]["last_metric_results"]
    values.pop("train/images_per_s", None)
    return state


def known(strategy: Medusa) -> list[Any]:
    """All that a run comes to."""
    plugins = without_rates(copied(state_of(strategy)))
    return [dict(strategy.model.state_dict()), optimizer_state(strategy.optimizer, strategy.model), plugins]


def stream(scenario: DenseScenario) -> list[Any]:
    return list(scenario.train_stream)


def learn(strategy: Medusa, scenario: DenseScenario, k: int) -> None:
    strategy.train(stream(scenario)[k], eval_streams=[scenario.val_stream[k : k + 1]])


def taken(strategy: Medusa) -> dict[str, Any]:
    state = strategy.state()
    return copied(state | {"weights": dict(state["weights"])})


ANYWHERE = ("many", "agem", "replay_balanced")
"""What is stopped after every step; the others once."""


def within(name: str) -> int:
    """After which step of the third experience a run is stopped: in its second epoch, if there is one."""
    return 1 if "early" in name else 3


class Whole:
    """A run that was never stopped, and what was noted on its way.

    Attributes:
        states: Before the third experience (0), and after some of its steps.
        drawn: The global random states after each of these steps.
        end: All that it came to.
    """

    def __init__(self, name: str, strategy: Medusa, scenario: DenseScenario) -> None:
        self.noted = range(1, STEPS + 1) if name in ANYWHERE else (within(name),)
        for k in (0, 1):
            learn(strategy, scenario, k)
        self.states = {0: taken(strategy)}
        self.drawn: list[Any] = []
        strategy.each_step = lambda: self.note(strategy)
        learn(strategy, scenario, 2)
        self.strategy, self.end = strategy, known(strategy)

    def note(self, strategy: Medusa) -> None:
        if strategy.steps_done in self.noted:
            self.states[strategy.steps_done] = taken(strategy)
        self.drawn.append((torch.get_rng_state().tolist(), random.getstate()))


@pytest.fixture(scope="module")
def whole(tiny_model: Model, tiny_scenario: DenseScenario) -> Callable[[str], Whole]:
    """Runs by name, each made once and not to be changed."""
    return functools.cache(lambda name: Whole(name, made(tiny_model, name), tiny_scenario))


def resumed(run: Whole, at: int, strategy: Medusa, scenario: DenseScenario) -> list[Any]:
    """All that a run comes to which goes on in a strategy made anew."""
    strategy.model.load_state_dict(run.states[0]["weights"])
    strategy.resume(run.states[at], stream(scenario))
    learn(strategy, scenario, 2)
    return known(strategy)


def old(scenario: DenseScenario) -> list[Any]:
    return [scenario.tasks[name] for name in ("semseg", "depth", "normals")]


@pytest.mark.parametrize("name", PLUGINS)
def test_a_run_goes_on_as_if_never_stopped(
    name: str, whole: Callable[[str], Whole], tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """Before the third experience, and in the middle of an epoch, in a strategy made anew."""
    run = whole(name)
    assert not run.states[0]["ranks"][0]["plugins"]["lacking"]
    for at in (0, within(name)):
        torch.manual_seed(at)
        again = made(tiny_model, name, *old(tiny_scenario))
        assert equal(resumed(run, at, again, tiny_scenario), run.end) is True


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_it_may_be_stopped_at_any_step(
    name: str, at: int, whole: Callable[[str], Whole], tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """Also at the end of an epoch, and after the last step; and with processes that load."""
    again = made(tiny_model, name, *old(tiny_scenario), workers=2 if at == 1 and name == "many" else 0)
    assert equal(resumed(whole(name), at, again, tiny_scenario), whole(name).end) is True


@pytest.mark.parametrize("name", PLUGINS)
def test_what_was_restored_is_what_was_kept(
    name: str, whole: Callable[[str], Whole], tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    states = whole(name).states
    other = made(tiny_model, name, *tiny_scenario.tasks.values())
    for state in (states[0], states[within(name)], states[within(name)]):
        restore(other, state["ranks"][0]["plugins"], stream(tiny_scenario))
        assert equal(copied(state_of(other)), state["ranks"][0]["plugins"]) is True


@pytest.mark.parametrize("name", PLUGINS)
def test_nothing_draws_from_global_states_within_an_experience(name: str, whole: Callable[[str], Whole]) -> None:
    drawn = whole(name).drawn
    assert len(drawn) >= 2
    assert [state == drawn[0] for state in drawn] == [True] * len(drawn)


def test_states_are_the_same_everywhere_but_differ_where_training_does(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """So that the comparisons above can fail."""
    one, two, other = (made(tiny_model, "many", seed=seed) for seed in (0, 0, 1))
    for strategy in (one, two, other):
        learn(strategy, tiny_scenario, 0)
    assert equal(known(one), known(two))
    for part_of_one, part_of_other in zip(known(one)[:2], known(other)[:2], strict=True):
        assert not equal(part_of_one, part_of_other)
    mine, theirs = (known(strategy)[2]["plugins"] for strategy in (one, other))
    assert not any(equal(mine[name], theirs[name]) for name in ("EWCPlugin", "ReplayPlugin", "DenseLwF", "DenseDER"))


# ---------------------------------------------------------------- memories


def test_memories_are_kept_by_place(whole: Callable[[str], Whole]) -> None:
    """What a memory's state says is where its samples are; no image is in it."""
    strategy = whole("replay_reservoir").strategy
    kept = state_of(strategy)["plugins"]["ReplayPlugin"]["attributes"]["storage_policy"]["<part>"]
    assert kept[0] == "ReservoirSamplingBuffer"
    sources, places = kept[1]["_buffer"]["<places>"]
    tasks = {0: ["semseg", "depth"], 1: ["normals"], 2: ["edges"]}
    assert len(sources) > 1
    assert all(names == tasks[label] for label, names in sources)
    held = [(sample.label, sample.index) for sample in strategy.plugins[1].storage_policy.buffer]
    assert [(sources[number][0], place) for number, place in places.tolist()] == held


def test_a_memory_of_an_experience_that_is_not_given(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = made(tiny_model, "replay")
    learn(strategy, tiny_scenario, 0)
    with pytest.raises(ConfigError, match=r'samples of "semseg\+depth" \(experience 0\)'):
        restore(made(tiny_model, "replay"), state_of(strategy), stream(tiny_scenario)[1:])


def test_a_memory_of_one_task_of_several(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy, again = (made(tiny_model, "replay") for _ in range(2))
    first = stream(tiny_scenario)[0]
    strategy.train(first.alone("depth"), eval_streams=[])
    restore(again, copied(state_of(strategy)), stream(tiny_scenario))
    one, two = (list(each.plugins[1].storage_policy.buffer) for each in (strategy, again))
    assert [sample.targets.keys() for sample in two] == [{"depth"}] * 6
    assert [sample.index for sample in two] == [sample.index for sample in one]


def test_values_go_to_the_device_of_the_strategy_but_some_stay(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Synaptic intelligence keeps its values on the CPU wherever the model is."""

    def strategy() -> Medusa:
        both = [upstream.EWCPlugin(1.0), upstream.SynapticIntelligencePlugin(1.0)]
        return Medusa(model=tiny_model(head=PlainHead), plugins=both, freeze="none", max_steps=1, batch_size=4)

    learnt, moved = strategy(), strategy()
    learn(learnt, tiny_scenario, 0)
    moved.device = torch.device("meta")
    restore(moved, copied(state_of(learnt)), stream(tiny_scenario))
    _, ewc, si = moved.plugins[:3]
    assert {(value.device.type, value.data.device.type) for value in ewc.importances[0].values()} == {("meta", "meta")}
    assert {(value.device.type, value.data.device.type) for value in si.ewc_data[1].values()} == {("cpu", "cpu")}


# ---------------------------------------------------------------- plugins of one's own


class Own(SupervisedPlugin):
    """Knows what it is given."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        vars(self).update(values)


class Spoken(Own):
    """Speaks for itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"twice": 2 * self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["twice"] // 2

    count: int


class Weighted(upstream.EWCPlugin):
    """A known plugin with an attribute more."""

    def __init__(self, **values: Any) -> None:
        super().__init__(1.0)
        vars(self).update(values)


class NotTwice(DenseDER):
    """One of ours with an attribute more."""

    def __init__(self, **values: Any) -> None:
        super().__init__(3)
        vars(self).update(values)


def holding(tiny_model: Model, *plugins: Any) -> Medusa:
    return Medusa(model=tiny_model(), plugins=list(plugins), freeze="none")


VALUES: dict[str, Any] = {
    "number": 3,
    "text": "a",
    "nothing": None,
    "nan": math.nan,
    "rows": [(1, 2.5), [True]],
    "names": {"b", "a"},
    "frozen": frozenset({1, 2}),
    "by_name": {"y": torch.ones(2, dtype=torch.float64), 1: {"x": torch.tensor(3)}},
    "counts": Counter({"a": 2}),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}


@pytest.mark.parametrize("kind", [Own, Weighted, NotTwice])
def test_attributes_of_ones_own_are_not_lost(kind: Any, tiny_model: Model) -> None:
    strategy, again = holding(tiny_model, kind(**VALUES)), holding(tiny_model, kind())
    assert lacking(strategy) == {}
    restore(again, copied(state_of(strategy)), [])
    given = vars(again.plugins[1])
    assert equal({name: given[name] for name in VALUES}, VALUES)


def test_what_fills_itself_goes_on_doing_so(tiny_model: Model) -> None:
    strategy, again = (holding(tiny_model, Own(rows=defaultdict(list))) for _ in range(2))
    strategy.plugins[1].rows["a"].append(1)
    restore(again, copied(state_of(strategy)), [])
    again.plugins[1].rows["b"].append(2)
    assert again.plugins[1].rows == {"a": [1], "b": [2]}


class Sharp(int):
    """A number that is more than one."""


@pytest.mark.parametrize("kind", [Own, Weighted, NotTwice])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (nn.Linear(1, 1), '"own" is a Linear'),
        (nn.Parameter(torch.ones(1)), '"own" is a Parameter'),
        ([1, {"deep": object()}], r"\"own\[1\]\['deep'\]\" is a object"),
        ({1.5: 2}, '"own" is a dict'),
        (Sharp(3), '"own" is a Sharp'),
    ],
)
def test_what_cannot_be_kept_is_named(kind: Any, value: Any, named: str, tiny_model: Model) -> None:
    strategy = holding(tiny_model, kind(own=value))
    assert list(lacking(strategy)) == [kind.__name__]
    state = state_of(strategy)
    assert kind.__name__ not in state["plugins"]
    with pytest.raises(ConfigError, match=rf"{kind.__name__}: its {named}, which is no plain data.*state_dict\(\)"):
        restore(strategy, state, [])


def test_a_plugin_may_speak_for_itself(tiny_model: Model) -> None:
    strategy, again = holding(tiny_model, Spoken(count=4, open=object())), holding(tiny_model, Spoken(count=0))
    state = copied(state_of(strategy))
    assert state["plugins"]["Spoken"] == {"own": {"twice": 8}}
    restore(again, state, [])
    assert again.plugins[1].count == 4


def test_a_subclass_may_speak_for_all_of_itself(tiny_model: Model) -> None:
    class Silent(DenseLwF):
        def state_dict(self) -> dict[str, Any]:
            return {"loud": False}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.given = state

    again = holding(tiny_model, Silent())
    restore(again, copied(state_of(holding(tiny_model, Silent()))), [])
    assert again.plugins[1].given == {"loud": False}


def test_a_plugin_that_speaks_must_listen(tiny_model: Model) -> None:
    class Deaf(SupervisedPlugin):
        def state_dict(self) -> dict[str, Any]:
            return {"x": 1}

    assert "neither load_state_dict" in lacking(holding(tiny_model, Deaf()))["Deaf"]


def test_two_of_a_kind_are_told_apart(tiny_model: Model) -> None:
    strategy, again = (holding(tiny_model, Own(x=a), Own(x=b)) for a, b in ((1, 2), (0, 0)))
    restore(again, state_of(strategy), [])
    assert [plugin.x for plugin in again.plugins[1:3]] == [1, 2]


def test_other_plugins_are_refused(tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match=r"What Own knew was kept, but the strategy has only MedusaPlugin,"):
        restore(holding(tiny_model), state_of(holding(tiny_model, Own(x=1))), [])


def test_a_state_is_not_that_of_the_one_it_was_given_to(tiny_model: Model) -> None:
    """It can be given again, whatever the first plugin has made of its own."""
    strategy = holding(tiny_model, Own(x=torch.zeros(2), rows=[1]))
    state = copied(state_of(strategy))
    again = holding(tiny_model, Own())
    for _ in range(2):
        restore(again, state, [])
        assert again.plugins[1].x.tolist() == [0, 0]
        assert again.plugins[1].rows == [1]
        again.plugins[1].x += 1
        again.plugins[1].rows.append(2)
