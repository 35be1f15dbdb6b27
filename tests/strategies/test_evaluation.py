"""What the evaluator publishes: any strategy's task matrix, and names that Avalanche's EarlyStopping understands."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EarlyStoppingPlugin
from avalanche.training.supervised import JointTraining, Naive
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor
from torchmetrics import Metric

from medusa_cl import tasks
from medusa_cl.data.split import DenseData
from medusa_cl.models import MultiTaskModel
from medusa_cl.results import TaskMatrix
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies.evaluation import DenseMetrics, TaskMatrixMetric, dense_evaluator
from medusa_cl.strategies.logger import TrackerLogger
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.template import DenseCriterion, DenseModule, DenseTemplate
from medusa_cl.tasks import DenseTask

Model = Callable[..., MultiTaskModel]
ALL = ("semseg", "depth", "normals", "edges")


class Sink:
    """A tracker that keeps everything: name -> steps and values."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def metrics(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.values[name].append((step, value))

    def flush(self) -> None: ...


class Scripted(Metric):
    """A metric whose values are written beforehand, one for each pass over a split."""

    def __init__(self, key: str, script: Iterator[float]) -> None:
        super().__init__()
        self.key, self.script = key, script

    def update(self, prediction: Tensor, target: Tensor) -> None: ...

    def compute(self) -> dict[str, float]:
        return {self.key: next(self.script)}


class Watch(SupervisedPlugin):
    """Keeps the weights after each epoch, by experience."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, list[dict[str, Tensor]]] = defaultdict(list)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        state = {name: value.clone() for name, value in strategy.model.state_dict().items()}
        self.states[strategy.experience.task_label].append(state)


@pytest.fixture
def scripted(fake_splits: Mapping[str, DenseData]) -> Callable[..., DenseScenario]:
    """`(task=[values]) -> DenseScenario`: base semseg and depth, then normals, then edges, with values as written."""

    def make(**scripts: list[float]) -> DenseScenario:
        def task(known: DenseTask) -> DenseTask:
            values = iter(scripts[known.name]) if known.name in scripts else None
            metric = known.metric if values is None else lambda: Scripted(known.primary, values)
            return dataclasses.replace(known, metric=metric)

        known = [tasks.semseg(19), tasks.depth(), tasks.normals(), tasks.edges(tolerance=0.02)]
        return dense_scenario(
            list(map(task, known)), fake_splits, base=["semseg", "depth"], stream=["normals", "edges"]
        )

    return make


def plain(strategy: Any, model: MultiTaskModel, plugins: list[Any], **options: Any) -> Any:
    """One of Avalanche's own strategies, as a plain script makes it."""
    module = DenseModule(model)
    return strategy(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.01),
        criterion=DenseCriterion(model.tasks),
        train_mb_size=8,
        eval_mb_size=4,
        plugins=plugins,
        evaluator=dense_evaluator(),
        **options,
    )


def ours(model: MultiTaskModel, plugins: list[Any], train_epochs: int = 1) -> DenseTemplate:
    return DenseTemplate(model=model, plugins=plugins, epochs=train_epochs, batch_size=8)


def every_epoch(strategy: Any) -> Any:
    """Let a strategy evaluate after each epoch, as eval_every=1 does."""
    next(plugin for plugin in strategy.plugins if isinstance(plugin, PeriodicEval)).eval_every = 1
    return strategy


def matrix_of(strategy: Any) -> TaskMatrix:
    return next(metric for metric in strategy.evaluator.metrics if isinstance(metric, TaskMatrixMetric)).matrix


# ---------------------------------------------------------------- the task matrix

SCRIPT = {"semseg": [40.0, 44.0, 38.0], "depth": [0.5, 0.6, 0.4], "normals": [20.0, 25.0], "edges": [70.0]}


@pytest.mark.parametrize("whole", [True, False], ids=["stream", "experiences"])
def test_what_a_plain_strategy_forgets_by_hand(
    whole: bool, tiny_model: Model, scripted: Callable[..., DenseScenario]
) -> None:
    """Metrics of both directions; the stream evaluated at once or experience by experience."""
    scenario, sink = scripted(**SCRIPT), Sink()
    strategy = plain(Naive, tiny_model(), [])
    strategy.evaluator.loggers = [TrackerLogger(sink)]
    for k, experience in enumerate(scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        known = scenario.test_stream[: k + 1]
        for evaluated in [known] if whole else known:
            last = strategy.eval(evaluated)
    matrix = matrix_of(strategy)
    assert matrix.experiences == (("semseg", "depth"), ("normals",), ("edges",))
    assert matrix.rows == [
        {"semseg": 40.0, "depth": 0.5},
        {"semseg": 44.0, "depth": 0.6, "normals": 20.0},
        {"semseg": 38.0, "depth": 0.4, "normals": 25.0, "edges": 70.0},
    ]
    assert last["forgetting/semseg"] == 2.0 and last["forgetting/normals"] == 5.0
    assert last["forgetting/depth"] == pytest.approx(-0.1)
    assert last["forgetting/mean"] == pytest.approx(6.9 / 3) == pytest.approx(-last["bwt"])
    assert last["forgetting_best/mean"] == pytest.approx((6.0 - 0.1 + 5.0) / 3)
    assert last["forgetting_percent/mean"] == pytest.approx((5.0 - 20.0 + 25.0) / 3)
    assert "forgetting/edges" not in last
    assert sink.values["forgetting/semseg"][-1] == (4, 2.0) and (3, -4.0) in sink.values["forgetting/semseg"]
    assert sink.values["bwt"][0] == (3, pytest.approx((4.0 - 0.1) / 2))


def test_the_matrix_holds_the_real_values_of_medusa(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy, expected = Medusa(model=tiny_model(), max_steps=1, batch_size=4), []
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[: k + 1])
        expected.append({name: strategy.results[name][tiny_scenario.tasks[name].primary] for name in ALL[: k + 2]})
    assert matrix_of(strategy).rows == expected
    assert strategy.evaluator.get_last_metrics()["forgetting/mean"] == 0.0


def test_only_the_test_stream_after_a_training_makes_rows(
    tiny_model: Model, scripted: Callable[..., DenseScenario]
) -> None:
    """An evaluation inside training, and one of val after it, change nothing; a row evaluated again is replaced."""
    scenario = scripted(semseg=[1.0, 2.0, 3.0, 4.0, 5.0], depth=[1.0, 2.0, 3.0, 4.0, 5.0])
    strategy = plain(Naive, tiny_model(), [], train_epochs=2, eval_every=1)
    first = scenario.train_stream[0]
    strategy.train(first, eval_streams=[scenario.test_stream[0]])
    assert matrix_of(strategy).rows == []
    strategy.eval(scenario.val_stream[:1])
    assert matrix_of(strategy).rows == []
    for value in (4.0, 5.0):
        strategy.eval(scenario.test_stream[:1])
        assert matrix_of(strategy).rows == [{"semseg": value, "depth": value}]


def test_experiences_that_were_not_evaluated_leave_empty_rows(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = plain(Naive, tiny_model(), [])
    strategy.train(tiny_scenario.train_stream[:2], eval_streams=[])
    values = strategy.eval(tiny_scenario.test_stream[:2])
    matrix = matrix_of(strategy)
    assert matrix.after == ("base", "normals") and matrix.rows[0] == {} and set(matrix.rows[1]) == set(ALL[:3])
    assert not [name for name in values if name.startswith(("forgetting", "bwt"))]


def test_tasks_learnt_jointly_are_one_experience(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = plain(JointTraining, tiny_model(), [])
    strategy.train(tiny_scenario.train_stream, eval_streams=[])
    strategy.eval(tiny_scenario.test_stream)
    assert matrix_of(strategy).experiences == (ALL,)
    assert set(matrix_of(strategy).rows[0]) == set(ALL)


def test_a_row_holds_only_what_was_evaluated_since_the_training(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    strategy = plain(Naive, tiny_model(), [])
    for k in range(2):
        strategy.train(tiny_scenario.train_stream[k], eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[k : k + 1])
    assert [set(row) for row in matrix_of(strategy).rows] == [{"semseg", "depth"}, {"normals"}]


@pytest.mark.parametrize("evaluated", [True, False])
def test_loaded_tasks_are_experiences_of_their_own(
    evaluated: bool, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """Tasks learnt elsewhere make a row, which is empty unless they are evaluated before the training goes on."""
    strategy = plain(Naive, tiny_model(tasks.semseg(19), "depth"), [])
    strategy.model.adopt(tiny_scenario.train_stream[0])
    if evaluated:
        strategy.eval(tiny_scenario.test_stream[:1])
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    values = strategy.eval(tiny_scenario.test_stream[:2])
    matrix = matrix_of(strategy)
    assert matrix.experiences == (("semseg", "depth"), ("normals",))
    assert set(matrix.rows[0]) == ({"semseg", "depth"} if evaluated else set())
    assert values.get("forgetting/depth") == matrix.forgetting("depth")
    assert (matrix.forgetting("depth") is not None) == evaluated


def test_a_metric_can_begin_a_new_stream() -> None:
    metric = TaskMatrixMetric(DenseMetrics(), stream="val")
    metric.matrix.grow(["depth"], {"depth": False})
    metric.reset()
    assert metric.result().tasks == () and metric.stream == "val"


# ---------------------------------------------------------------- evaluation inside training


@pytest.mark.parametrize("make", [lambda *a, **o: plain(Naive, *a, **o), ours], ids=["Naive", "DenseTemplate"])
def test_avalanches_early_stopping_stops_and_restores_the_best(
    make: Callable[..., Any], tiny_model: Model, scripted: Callable[..., DenseScenario]
) -> None:
    """Best after the second epoch, stopped two later; an experience without the metric is not stopped."""
    scenario = scripted(depth=[0.5, 0.3, 0.4, 0.35, 0.2, 0.1])
    watch = Watch()
    stopping = EarlyStoppingPlugin(2, "val_stream", metric_name="depth_rmse", mode="min")
    strategy = every_epoch(make(tiny_model(), [watch, stopping], train_epochs=6))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric depth_rmse used by the EarlyStopping")
        for k in range(2):
            strategy.train(scenario.train_stream[k], eval_streams=[scenario.val_stream[k : k + 1]])
            if k == 0:
                learnt = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    assert len(watch.states[0]) == 4 and stopping.best_val is None
    best = [all(torch.equal(learnt[n], s[n]) for n in learnt) for s in watch.states[0]]
    assert best == [False, True, False, False]
    assert len(watch.states[1]) == 6


def test_names_inside_training_and_after_it(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Inside: names for EarlyStopping, by step, kept from trackers; after it: `<stream>/<task>_<metric>`."""
    sink, inside = Sink(), Sink()
    strategy = plain(Naive, tiny_model(), [], train_epochs=2, eval_every=1)

    class Everything(TrackerLogger):
        def log_metrics(self, metric_values: list[Any]) -> None:
            for value in metric_values:
                inside.metrics({value.name: value.value}, value.x_plot)

    strategy.evaluator.loggers = [TrackerLogger(sink), Everything(inside)]
    first = tiny_scenario.train_stream[0]
    last = strategy.train(first, eval_streams=[tiny_scenario.val_stream[0]])
    name = "depth_rmse/eval_phase/val_stream/Task000/Exp000"
    assert [step for step, _ in inside.values[name]] == [1, 2]
    assert last[name] == strategy.evaluator.metrics[0].results["depth"]["rmse"] == inside.values[name][-1][1]
    assert not [found for found in sink.values if "depth_rmse" in found]
    after = strategy.eval(tiny_scenario.test_stream[:1])
    assert sink.values["test/depth_rmse"] == [(2, after["test/depth_rmse"])]
    assert not [found for found in after if found.startswith("depth_rmse/eval_phase/test")]
    last = strategy.train(tiny_scenario.train_stream[1], eval_streams=[tiny_scenario.val_stream[1]])
    assert name not in last and "normals_mean/eval_phase/val_stream/Task001/Exp001" in last


def test_a_value_that_is_not_a_number_is_no_first_best(
    tiny_model: Model, scripted: Callable[..., DenseScenario]
) -> None:
    scenario = scripted(depth=[math.nan, 0.3])
    strategy = every_epoch(plain(Naive, tiny_model(), [], train_epochs=1))
    last = strategy.train(scenario.train_stream[0], eval_streams=[scenario.val_stream[0]])
    assert [name for name in last if name.startswith("semseg_miou/eval_phase")]
    assert not [name for name in last if name.startswith("depth_rmse")]
    assert math.isnan(strategy.evaluator.metrics[0].results["depth"]["rmse"])
