"""Going on from tasks that were loaded: plugins are told what an uninterrupted training would have told them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, GEMPlugin, ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from torch import Tensor

from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.learn import learn
from medusa_cl.models import MedusaHead, MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.baselines import Adapters, SingleTask
from medusa_cl.strategies.distillation import DenseDER, DenseLwF
from medusa_cl.strategies.evaluation import TaskMatrixMetric, TrainingMetrics
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import EarlyStopping, LRSchedule, Progress
from medusa_cl.strategies.replay_memory import TaskBalancedBuffer

Model = Callable[..., MultiTaskModel]
State = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore")  # protection of what is frozen is warned of, and is tested here too
OPEN: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False}
FREEZE: dict[str, dict[str, Any]] = {"none": OPEN, "backbone": {}}
STEPS: dict[str, Any] = {"max_steps": 2, "base_steps": 1, "epochs": 100, "batch_size": 4}
HEAD = partial(MedusaHead, width=8, mix_width=8)
PLUGINS: dict[str, Callable[[], list[Any]]] = {
    "none": lambda: [],
    "ewc": lambda: [EWCPlugin(1e6)],
    "replay": lambda: [ReplayPlugin(5)],
    "lwf": lambda: [DenseLwF(2.0)],
    "der": lambda: [DenseDER(5)],
    "all": lambda: [EWCPlugin(1e6), ReplayPlugin(5), DenseLwF(), DenseDER(5)],
}
POLICIES: dict[str, Callable[[], ReplayPlugin]] = {
    "reservoir": lambda: ReplayPlugin(5, storage_policy=ReservoirSamplingBuffer(5)),
    "balanced": lambda: ReplayPlugin(5, storage_policy=TaskBalancedBuffer(5), task_balanced_dataloader=True),
}


@dataclass
class Ended:
    """A strategy after experience 0, as it was left and as another takes up its work."""

    whole: Medusa
    later: Medusa

    def plugins(self, kind: type) -> tuple[Any, Any]:
        """The plugin of that kind in either."""
        whole, later = ([p for p in s.plugins if isinstance(p, kind)] for s in (self.whole, self.later))
        return whole[0], later[0]


def medusa(model: MultiTaskModel, plugins: list[Any], **options: Any) -> Medusa:
    return Medusa(model=model, plugins=plugins, **(STEPS | options))


def state(strategy: Any) -> State:
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metric(strategy: Any, kind: type) -> Any:
    return next(found for found in strategy.evaluator.metrics if isinstance(found, kind))


@pytest.fixture(scope="module")
def bases(tiny_model: Model, tiny_scenario: DenseScenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt experience 0, as files."""
    strategy = medusa(tiny_model(), [], **OPEN)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    return save_model(strategy.model.model, tmp_path_factory.mktemp("base") / "model")


def end_twice(
    bases: Path, tiny_model: Model, scenario: DenseScenario, plugins: Callable[[], list[Any]], **options: Any
) -> Ended:
    """Train experience 0, and load and adopt it."""
    whole = medusa(tiny_model(), plugins(), **options)
    whole.train(scenario.train_stream[0], eval_streams=[])
    later = medusa(load_model(bases, scenario.tasks, HEAD), plugins(), **options)
    later.adopt(scenario.train_stream[0])
    assert same(state(whole), state(later)), "no plugin here moves the weights of experience 0"
    return Ended(whole, later)


# ---------------------------------------------------------------- what plugins know


@pytest.fixture(scope="module", params=FREEZE)
def ended(request: Any, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario) -> Ended:
    """All plugins at once, not to be trained on."""
    torch.manual_seed(4)
    return end_twice(bases, tiny_model, tiny_scenario, PLUGINS["all"], **FREEZE[request.param])


def test_ewc_knows_what_mattered(ended: Ended) -> None:
    both = ended.plugins(EWCPlugin)
    for kept in ("importances", "saved_params"):
        whole, later = (getattr(plugin, kept) for plugin in both)
        assert set(whole) == set(later) == {0}
        assert same({k: v.data for k, v in whole[0].items()}, {k: v.data for k, v in later[0].items()})
    importances = both[1].importances[0]
    for part in ("backbone.", "heads.semseg.", "heads.depth."):
        assert sum(float(v.data.sum()) for k, v in importances.items() if k.startswith(part)) > 0


def held(plugin: ReplayPlugin) -> list[tuple[int, int]]:
    """Labels and images of a memory, in its order."""
    return [(sample.label, sample.index) for sample in plugin.storage_policy.buffer]


def test_the_memory_holds_the_same_samples(ended: Ended) -> None:
    whole, later = map(held, ended.plugins(ReplayPlugin))
    assert whole == later
    assert len(set(later)) == 5


@pytest.mark.parametrize("policy", POLICIES)
def test_memories_of_other_policies_hold_the_same_samples(
    policy: str, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    ends = end_twice(bases, tiny_model, tiny_scenario, lambda: [POLICIES[policy]()], **OPEN)
    whole, later = map(held, ends.plugins(ReplayPlugin))
    assert whole == later
    assert len(set(later)) == 5


def test_the_teacher_is_the_model_that_was_loaded(ended: Ended) -> None:
    whole, later = ended.plugins(DenseLwF)
    assert same(whole.teacher.state_dict(), later.teacher.state_dict())
    assert same(later.teacher.state_dict(), state(ended.later))
    assert tuple(later.teacher.tasks) == ("semseg", "depth")
    assert not any(module.training for module in later.teacher.modules())


def test_der_holds_the_same_samples_and_logits(ended: Ended) -> None:
    whole, later = ended.plugins(DenseDER)
    assert [kept[:3] for kept in whole.buffer] == [kept[:3] for kept in later.buffer]
    assert all(same(a.logits, b.logits) for a, b in zip(whole.buffer, later.buffer, strict=True))
    assert whole.variance == later.variance
    assert len(later.buffer) == 5


# ---------------------------------------------------------------- what they learn next


@pytest.mark.parametrize(("freeze", "name"), [*(("none", name) for name in PLUGINS), ("backbone", "all")])
def test_the_next_experience_is_learnt_to_the_same_bits(
    name: str, freeze: str, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    both = end_twice(bases, tiny_model, tiny_scenario, PLUGINS[name], **FREEZE[freeze])
    base = state(both.later)
    for strategy in (both.whole, both.later):
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    learnt = state(both.later)
    assert same(state(both.whole), learnt)
    moved = [key for key in base if not torch.equal(base[key], learnt[key])]
    assert bool(moved) == (freeze == "none"), "what was adopted is frozen, or goes on learning"


@pytest.mark.parametrize("name", ["ewc", "replay", "lwf", "der"])
def test_a_plugin_that_was_not_told_learns_something_else(
    name: str, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """The test above can fail."""
    told, alone = (medusa(load_model(bases, tiny_scenario.tasks, HEAD), PLUGINS[name](), **OPEN) for _ in range(2))
    told.adopt(tiny_scenario.train_stream[0])
    alone.model.adopt(tiny_scenario.train_stream[0])
    for strategy in (told, alone):
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert not same(state(told), state(alone))


@pytest.mark.parametrize("plugin", [AGEMPlugin(4, 4), GEMPlugin(4, 0.5)], ids=["agem", "gem"])
def test_gradients_are_projected_alike(
    plugin: Any, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """Where a part is frozen by now, what it had for a gradient once does not count."""
    options = {"freeze": "stages", "freeze_old_heads": False}
    both = end_twice(bases, tiny_model, tiny_scenario, lambda: [copy.deepcopy(plugin)], **options)
    for strategy in (both.whole, both.later):
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
        held_back = [p for p in strategy.model.backbone.parameters() if not p.requires_grad]
        assert held_back
        assert all(p.grad is None for p in held_back)
    assert same(state(both.whole), state(both.later))


def test_a_finished_stream_goes_on(tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Path) -> None:
    """Two experiences adopted under the full freeze: the third is learnt to the same bits, EWC and memory alike."""

    def strategy(model: MultiTaskModel) -> Medusa:
        return medusa(model, [EWCPlugin(1.0), ReplayPlugin(6), DenseDER(6)])

    whole, first = strategy(tiny_model()), list(tiny_scenario.train_stream[:2])
    whole.train(first, eval_streams=[])
    path = save_model(whole.model.model, tmp_path / "model")
    later = strategy(load_model(path, tiny_scenario.tasks, HEAD))
    for experience in first:
        later.adopt(experience)
    ends = Ended(whole, later)
    memories = [held(plugin) for plugin in ends.plugins(ReplayPlugin)]
    assert memories[0] == memories[1]
    assert {label for label, _ in memories[1]} == {0, 1}
    ewc = ends.plugins(EWCPlugin)
    for k in (0, 1):
        known, told = ({n: v.data for n, v in plugin.importances[k].items()} for plugin in ewc)
        assert same(known, {name: told[name] for name in known})
        assert not any(bool(told[name].any()) for name in told.keys() - known.keys()), "heads of later experiences"
    for each in (whole, later):
        each.train(tiny_scenario.train_stream[2], eval_streams=[])
    assert same(state(whole), state(later))


# ---------------------------------------------------------------- what stays as it is


class Steps(SupervisedPlugin):
    """Counts what a training does, and spoils the weights when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append("begun")

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append("step")

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append("over")
        strategy.model.train()
        strategy.model(torch.rand(2, 3, 32, 48), 0)  # moves the statistics of BatchNorm
        with torch.no_grad():
            next(strategy.model.heads["depth"].parameters()).add_(1.0)


@pytest.mark.parametrize("freeze", FREEZE)
def test_weights_and_statistics_stay(freeze: str, bases: Path, tiny_scenario: DenseScenario) -> None:
    plugin = Steps()
    model = load_model(bases, tiny_scenario.tasks, HEAD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strategy = medusa(model, [EWCPlugin(1.0), DenseDER(5), plugin], **FREEZE[freeze])
    strategy.adopt(tiny_scenario.train_stream[0])
    assert plugin.seen == ["begun", "over"]
    assert any(name.endswith("running_mean") for name in before)
    assert same(before, state(strategy))
    assert model.backbone.frozen == (freeze == "backbone")
    assert model.frozen_heads == ({"semseg", "depth"} if freeze == "backbone" else set())


def test_the_global_random_state_stays(bases: Path, tiny_scenario: DenseScenario) -> None:
    strategy = medusa(load_model(bases, tiny_scenario.tasks, HEAD), PLUGINS["all"](), **OPEN)
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    strategy.adopt(tiny_scenario.train_stream[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_adopted_steps_are_counted(cache: str, bases: Path, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Training values go on where those of the run before ended, whether features are kept or not."""
    options = {"cache_features": cache, "base_steps": 3, "max_steps": 2}
    whole = medusa(tiny_model(), [], **options)
    whole.train(list(tiny_scenario.train_stream[:2]), eval_streams=[])
    assert metric(whole, TrainingMetrics).step == 5
    model = load_model(bases, tiny_scenario.tasks, HEAD)
    model.add_head(tiny_scenario.tasks["normals"], 0)
    later = medusa(model, [], **options)
    for k, steps in ((0, 3), (1, 5)):
        later.adopt(tiny_scenario.train_stream[k])
        assert metric(later, TrainingMetrics).step == steps
    later.train(tiny_scenario.train_stream[2], eval_streams=[])
    assert metric(later, TrainingMetrics).step == 7


def test_plugins_of_training_bear_no_steps(bases: Path, tiny_scenario: DenseScenario) -> None:
    """Schedules, early stopping and bars see an experience without a step, and the next one whole."""
    opened: list[tuple[str, int]] = []

    class Bar:
        images_per_second = 1.0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def advance(self, steps: int, images: int, loss: float) -> None: ...

    def bar(label: str, steps: int) -> Any:
        opened.append((label, steps))
        return Bar()

    watch = Progress(bar)
    plugins = [LRSchedule("cosine"), EarlyStopping(3), watch]
    strategy = medusa(load_model(bases, tiny_scenario.tasks, HEAD), plugins)
    before = state(strategy)
    strategy.adopt(tiny_scenario.train_stream[0])
    assert same(before, state(strategy))
    assert not opened
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert opened == [("normals", 2)]
    assert list(watch.rates) == ["normals"]


# ---------------------------------------------------------------- what was reached before


def test_values_of_an_earlier_run_are_recalled(bases: Path, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Forgetting is measured from them, as if they had been measured here."""
    whole = medusa(tiny_model(), [], **OPEN)
    rows = []
    for k in range(2):
        whole.train(tiny_scenario.train_stream[k], eval_streams=[])
        published = whole.eval(tiny_scenario.test_stream[: k + 1])
        rows.append(dict(metric(whole, TaskMatrixMetric).matrix.rows[k]))
    assert published["forgetting/depth"] != 0
    later = medusa(load_model(bases, tiny_scenario.tasks, HEAD), [], **OPEN)
    later.adopt(tiny_scenario.train_stream[0])
    later.recall(rows[0])
    matrix = metric(later, TaskMatrixMetric).matrix
    assert matrix.experiences == (("semseg", "depth"),)
    assert dict(matrix.rows[0]) == rows[0]
    later.train(tiny_scenario.train_stream[1], eval_streams=[])
    again = later.eval(tiny_scenario.test_stream[:2])
    names = [name for name in published if name.startswith(("forgetting", "bwt"))]
    assert {"forgetting/semseg", "forgetting/depth", "forgetting/mean", "bwt"} <= set(names)
    assert {name: again[name] for name in names} == {name: published[name] for name in names}
    assert [dict(row) for row in metric(later, TaskMatrixMetric).matrix.rows] == rows


def test_the_loop_goes_on_from_rows(bases: Path, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """`learn` with a start and rows gives the matrix and the bits of the whole stream."""
    whole = medusa(tiny_model(), [ReplayPlugin(5)], **OPEN)
    matrix = learn(tiny_scenario, whole)
    seconds: dict[str, float] = {}
    later = medusa(load_model(bases, tiny_scenario.tasks, HEAD), [ReplayPlugin(5)], **OPEN)
    again = learn(tiny_scenario, later, start=1, rows=[matrix.rows[0]], seconds=seconds)
    assert again.rows == matrix.rows
    assert same(state(whole), state(later))
    assert set(seconds) == {"normals", "edges", "evaluation"}


# ---------------------------------------------------------------- strategies with parts of their own


@pytest.mark.parametrize("kind", [SingleTask, Adapters])
def test_strategies_with_parts_of_their_own_go_on(
    kind: Any, tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Path
) -> None:
    """Also where nothing but the files says what the model is made of."""
    whole = kind(model=tiny_model(), **STEPS)
    for experience in tiny_scenario.train_stream[:2]:
        whole.train(experience, eval_streams=[])
    before, steps = state(whole), metric(whole, TrainingMetrics).step
    path = save_model(whole.model.model, tmp_path / "model")
    whole.train(tiny_scenario.train_stream[2], eval_streams=[])
    for head in (HEAD, None):
        later = kind(model=load_model(path, tiny_scenario.tasks, head), **STEPS)
        for experience in tiny_scenario.train_stream[:2]:
            later.adopt(experience)
        assert same(before, state(later))
        assert later.model.tasks_of == {0: ("semseg", "depth"), 1: ("normals",)}
        assert metric(later, TrainingMetrics).step == steps
        later.train(tiny_scenario.train_stream[2], eval_streams=[])
        assert same(state(whole), state(later))
