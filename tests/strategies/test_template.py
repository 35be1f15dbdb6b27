"""The parts of dense training: the adapter, the criterion, the optimizer, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training.supervised import Cumulative, Naive

from medusa_cl import tasks
from medusa_cl.batch import Entry, TaskBatch
from medusa_cl.data.loader import unit_image
from medusa_cl.errors import ConfigError, TaskError, TrainingError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.logger import TrackerLogger
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.plugins import LRSchedule
from medusa_cl.strategies.template import DenseCriterion, DenseModule

Model = Callable[..., MultiTaskModel]


def host(strategy: Any, model: MultiTaskModel, plugins: list[Any], **options: Any) -> Any:
    module = DenseModule(model)
    return strategy(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
        criterion=DenseCriterion(model.tasks),
        train_mb_size=4,
        eval_mb_size=4,
        plugins=plugins,
        evaluator=dense_evaluator(),
        **options,
    )


@pytest.mark.parametrize("strategy", [Naive, Cumulative])
def test_the_plugin_works_on_avalanches_own_strategies(
    strategy: Any, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """The base is frozen and old heads keep their bits, by hooks alone."""
    model = tiny_model()
    runner = host(strategy, model, [MedusaPlugin()])
    runner.train(tiny_scenario.train_stream[0], eval_streams=[])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for experience in tiny_scenario.train_stream[1:]:
        runner.train(experience, eval_streams=[])
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    runner.eval(tiny_scenario.test_stream)
    assert set(runner.evaluator.metrics[0].results) == {"semseg", "depth", "normals", "edges"}


def test_naive_without_the_plugin_moves_old_tasks(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model()
    runner = host(Naive, model, [])
    runner.train(tiny_scenario.train_stream[0], eval_streams=[])
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    runner.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert any(not torch.equal(before[key], value) for key, value in model.backbone.state_dict().items())


def test_heads_are_made_in_training_only(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = Medusa(model=tiny_model(), max_steps=1, batch_size=4)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    with pytest.raises(TaskError, match=r'"normals" was never learnt.*Learnt: semseg, depth'):
        strategy.eval(tiny_scenario.test_stream[:2])
    assert set(strategy.model.tasks) == {"semseg", "depth"}


def test_a_task_is_learnt_once(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = Medusa(model=tiny_model(), max_steps=1, batch_size=4)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    with pytest.raises(TaskError, match='"semseg" was learnt already'):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])


def test_the_adapter_keeps_the_models_keys(tiny_model: Model) -> None:
    model = tiny_model("depth")
    assert DenseModule(model).state_dict().keys() == model.state_dict().keys()


def test_each_image_is_answered_for_the_tasks_of_its_label(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    module = DenseModule(tiny_model("semseg", "depth", "normals")).eval()
    for experience in tiny_scenario.train_stream[:2]:
        module.adopt(experience)
    out = module(torch.rand(4, 3, 32, 48), torch.tensor([1, 0, 1, 0]))
    assert {task: e.rows.tolist() for task, e in out.entries.items()} == {
        "semseg": [1, 3], "depth": [1, 3], "normals": [0, 2],
    }  # fmt: skip
    with pytest.raises(TaskError, match=r"Expected a label of what was learnt, \[0, 1\], but got 7"):
        module(torch.rand(1, 3, 32, 48), torch.tensor([7]))


def test_the_criterion_is_the_sum_by_hand() -> None:
    """lambda (L(Y) + sum over scales L(P)), each a mean over valid pixels, for the images that carry the task."""
    depth, normals = tasks.depth(), tasks.normals(loss_weight=3.0)
    target = torch.rand(2, 1, 32, 32) + 0.5
    target[0, :, :8] = 0
    final, coarse = torch.rand(3, 1, 32, 32), torch.rand(3, 1, 32, 32)
    vectors = torch.nn.functional.normalize(torch.randn(1, 3, 32, 32), dim=1)
    answer = torch.randn(3, 3, 32, 32)
    everything = torch.arange(3)
    output = TaskBatch({"depth": Entry(everything, final, (coarse,)), "normals": Entry(everything, answer)}, 3)
    wanted = TaskBatch({"depth": Entry(torch.tensor([0, 2]), target), "normals": Entry(torch.tensor([1]), vectors)}, 3)
    by_hand = sum((x[[0, 2]] - target).abs()[target > 0].mean() for x in (final, coarse))
    unit = torch.nn.functional.normalize(answer[1:2], dim=1)
    by_hand = by_hand + 3 * (unit - vectors).abs().mean()
    criterion = DenseCriterion({"depth": depth, "normals": normals})
    torch.testing.assert_close(criterion(output, wanted), by_hand)


def test_the_optimizer_holds_what_learns_and_remembers_nothing(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model()
    strategy = Medusa(model=model, max_steps=2, batch_size=4, lr_head=0.1, lr_backbone=0.01)
    held: list[Any] = []

    class Look(LRSchedule):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            super().before_training_exp(strategy)
            held.append(
                ([(g["name"], g["lr"]) for g in strategy.optimizer.param_groups], len(strategy.optimizer.state))
            )

    strategy.plugins.insert(1, Look("constant"))
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert held == [([("heads", 0.1), ("backbone", 0.01)], 0), ([("heads", 0.1)], 0)]
    inside = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
    assert inside == {id(p) for p in model.heads["normals"].parameters()}


@pytest.mark.parametrize(("name", "expected"), [("cosine", 0.5), ("poly", 0.5**0.9), ("constant", 1.0)])
def test_schedules_at_half_time(name: str, expected: float, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    rates: list[float] = []

    class Look(LRSchedule):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            super().before_training_iteration(strategy)
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    strategy = Medusa(model=tiny_model(), max_steps=4, epochs=9, batch_size=4, lr_head=1.0, plugins=[Look(name)])
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert rates[0] == 1.0
    assert rates[2] == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_with_task_and_step(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = Medusa(model=tiny_model(), max_steps=4, epochs=9, batch_size=4, lr_head=1e30, lr_backbone=1e30)
    with pytest.raises(
        TrainingError, match=r'The loss is .* at step [234] of "semseg\+depth" \(in: .*lr_head \(now 1e\+30\)'
    ):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])


@pytest.mark.parametrize(
    ("option", "value", "nearest"), [("freeze", "backbon", "backbone"), ("cache_features", "memry", "memory")]
)
def test_unknown_options_name_the_nearest(option: str, value: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f'Did you mean "{nearest}"'):
        MedusaPlugin(**{option: value})


def test_replay_of_frozen_tasks_is_said_once(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    from avalanche.training.plugins import ReplayPlugin

    strategy = Medusa(model=tiny_model(), max_steps=2, epochs=9, batch_size=4, plugins=[ReplayPlugin(4)])
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    with pytest.warns(UserWarning, match="they are dropped") as said:
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert len([w for w in said if "they are dropped" in str(w.message)]) == 1


def test_values_reach_a_tracker_from_a_plain_strategy(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """The logger works on Avalanche's Naive: names, steps, numbers."""

    class Sink:
        def __init__(self) -> None:
            self.values: dict[str, tuple[int, float]] = {}

        def metrics(self, values: dict[str, float], step: int) -> None:
            self.values |= {name: (step, value) for name, value in values.items()}

        def flush(self) -> None: ...

    sink, model = Sink(), tiny_model()
    runner = host(Naive, model, [])
    runner.evaluator.loggers = [TrackerLogger(sink)]
    runner.evaluator.metrics[1].every = 1
    runner.train(tiny_scenario.train_stream[0], eval_streams=[])
    runner.eval(tiny_scenario.test_stream[:1])
    assert sink.values["test/depth_rmse"][0] == 2
    assert sink.values["test/depth_rmse"][1] == runner.evaluator.metrics[0].results["depth"]["rmse"]
    assert sink.values["train/images_per_s"][1] > 0


def test_bf16_autocast_inside_the_model_trains(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model(precision="bf16")
    strategy = Medusa(model=model, max_steps=2, epochs=9, batch_size=4)
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[: k + 1])
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_metrics_are_those_of_the_whole_split(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Pooled over batches of 3 of 4 images, equal to one pass by hand."""
    strategy = Medusa(model=tiny_model(), max_steps=2, epochs=9, batch_size=3)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    strategy.eval(tiny_scenario.test_stream[:1])
    source = tiny_scenario.data["test"]
    predictions = strategy.model.model.predict(torch.stack([unit_image(source, i) for i in range(len(source))]))[
        "depth"
    ]
    targets = torch.stack([source.target(i, "depth") for i in range(len(source))])
    error = (predictions - targets)[targets > 0].square().mean().sqrt()
    assert strategy.results["depth"]["rmse"] == pytest.approx(float(error), rel=1e-4)
