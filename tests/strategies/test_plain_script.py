"""The plain Avalanche script: Avalanche's Naive, our model, plugin, evaluator and logger, and nothing else of ours."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.supervised import Naive
from torch import Tensor

from medusa_cl.data.loader import unit_image
from medusa_cl.errors import ConfigError, WeightsError
from medusa_cl.models import MedusaHead
from medusa_cl.models.heads import PlainHead
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.distillation import DenseLwF
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.logger import TrackerLogger
from medusa_cl.strategies.medusa import MedusaPlugin
from medusa_cl.strategies.template import DenseModule, dense_model
from medusa_cl.tracking.mlflow import SECTIONED, MLflowTracker, quiet_client

HEAD = partial(MedusaHead, width=8, mix_width=8)


def script(plugins: list[Any], loggers: list[Any] | None = None, **options: Any) -> Any:
    """What a user writes."""
    model = dense_model("test_efficientnet", HEAD, pretrained=False)
    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        criterion=model.criterion,
        train_mb_size=4,
        eval_mb_size=4,
        plugins=plugins,
        evaluator=dense_evaluator(loggers or [], every=1),
        **options,
    )


class Losses:
    """A sink that keeps each experience's training losses."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []

    def begin(self) -> None:
        self.runs.append([])

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.runs[-1].extend(value for name, value in values.items() if name == "train/total_loss")

    def flush(self) -> None: ...


def test_it_learns_and_forgets_nothing(tiny_scenario: DenseScenario) -> None:
    """Each experience's loss falls; forgetting is exactly 0, and so is every change of what was learnt."""
    losses = Losses()
    strategy = script([MedusaPlugin()], [TrackerLogger(losses)], train_epochs=4)
    images = torch.stack([unit_image(tiny_scenario.data["test"], i) for i in range(4)])
    first: dict[str, Tensor] = {}
    metrics: dict[str, Any] = {}
    for k, experience in enumerate(tiny_scenario.train_stream):
        losses.begin()
        strategy.train(experience, eval_streams=[])
        metrics = strategy.eval(tiny_scenario.test_stream[: k + 1])
        predicted = strategy.model.model.predict(images)
        assert all(torch.equal(first.setdefault(name, value), value) for name, value in predicted.items())
    assert [len(run) for run in losses.runs] == [8, 8, 8]
    assert all(sum(run[-2:]) < 0.95 * sum(run[:2]) for run in losses.runs)
    forgotten = {name: value for name, value in metrics.items() if name.startswith("forgetting/")}
    assert forgotten == dict.fromkeys([f"forgetting/{n}" for n in ("semseg", "depth", "normals", "mean")], 0.0)
    assert set(first) == {"semseg", "depth", "normals", "edges"}


def test_the_backbone_can_be_used_as_it_comes(tiny_scenario: DenseScenario) -> None:
    strategy = script([MedusaPlugin(freeze_from=0)])
    came = {name: value.clone() for name, value in strategy.model.backbone.state_dict().items()}
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        assert all(torch.equal(came[name], value) for name, value in strategy.model.backbone.state_dict().items())


# ---------------------------------------------------------------- dense_model


def test_heads_are_light_unless_told() -> None:
    made: DenseModule = dense_model("test_efficientnet", pretrained=False, seed=3, batch_size=5)
    assert (made.seed, made.batch_size, dict(made.tasks)) == (3, 5, {})
    light: Any = made.model.head(made.backbone.channels, 1)
    reference = MedusaHead(made.backbone.channels, 1, width=32)
    assert {n: p.shape for n, p in light.named_parameters()} == {n: p.shape for n, p in reference.named_parameters()}
    assert dense_model("test_efficientnet", PlainHead, pretrained=False).model.head is PlainHead


def test_the_seed_is_that_of_new_heads(tiny_scenario: DenseScenario) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = dense_model("test_efficientnet", HEAD, pretrained=False, seed=seed)
        model.train().adaptation(tiny_scenario.train_stream[1])
        weights.append([p.clone() for p in model.heads["normals"].parameters()])
        assert model.criterion is model.criterion
        assert set(model.criterion.tasks) == {"normals"}, "the criterion knows tasks that come later"
    equal = [all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True)) for other in weights[1:]]
    assert equal == [True, False]


def test_the_criterion_is_no_part_of_the_model(tiny_scenario: DenseScenario) -> None:
    model = dense_model("test_efficientnet", HEAD, pretrained=False)
    before = list(model.state_dict())
    assert model.criterion is not None
    assert list(model.state_dict()) == before
    assert "criterion" not in dict(model.named_modules())


def test_an_unknown_backbone_comes_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'Unknown backbone "test_eficientnet".*Did you mean "test_efficientnet"'):
        dense_model("test_eficientnet")


def test_missing_weights_are_an_error_and_never_random_ones() -> None:
    """There is no network in tests, and nobody packages these weights."""
    with pytest.raises(WeightsError, match="test_efficientnet"):
        dense_model("test_efficientnet")


@pytest.mark.parametrize(("freeze", "acts"), [("none", True), ("backbone", False)])
@pytest.mark.filterwarnings("ignore")
def test_our_lwf_acts_in_a_plain_script_where_something_shared_is_trainable(
    tiny_scenario: DenseScenario, freeze: str, acts: bool
) -> None:
    learnt = []
    for plugins in ([], [DenseLwF()]):
        strategy = script([MedusaPlugin(freeze=freeze, freeze_old_heads=not acts), *plugins])
        for experience in tiny_scenario.train_stream[:2]:
            strategy.train(experience, eval_streams=[])
        learnt.append({name: value.clone() for name, value in strategy.model.state_dict().items()})
    moved = [name for name in learnt[0] if not torch.equal(learnt[0][name], learnt[1][name])]
    assert bool(moved) is acts
    assert any(name.startswith("backbone.") for name in moved) is acts


# ---------------------------------------------------------------- MLflow without Medusa


@pytest.fixture(scope="module")
def logged(
    tiny_scenario: DenseScenario, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> tuple[Any, Any, list[Any]]:
    """The run of a plain fine-tuning in a store of its own, as MLflow's client reads it, and what was published."""
    folder: Path = tmp_path_factory.mktemp("plain")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    tracker = MLflowTracker("plain", uri=f"sqlite:///{folder / 'mlflow.db'}", runs=folder)
    tracker.start({"strategy": "naive"}, {}, folder / "naive")
    strategy = script([], [TrackerLogger(tracker)])
    published = []
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        published.append(dict(strategy.eval(tiny_scenario.test_stream[: k + 1])))
    tracker.finish()
    client = quiet_client(tracker.uri)
    return client, client.get_run(tracker.run_id), published


def test_a_naive_run_is_found_in_mlflow(logged: tuple[Any, Any, list[Any]]) -> None:
    """Every test and forgetting value, at the number of tasks learnt."""
    client, run, published = logged
    assert run.info.status == "FINISHED"
    expected: dict[str, dict[int, float]] = defaultdict(dict)
    for learnt, values in zip((2, 3, 4), published, strict=True):
        for name, value in values.items():
            if name.startswith(("test/", "forgetting/", "bwt")) and math.isfinite(value):
                expected[SECTIONED.get(name, name)][learnt] = value
    names = [name for name in run.data.metrics if name.startswith(("test/", "forgetting/"))]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    found = {name: {m.step: m.value for m in history} for name, history in histories.items()}
    assert found == dict(expected)
    assert {"test/semseg_miou", "test/depth_rmse", "test/edges_edge_f"} <= set(found)
    assert {"forgetting/depth", "forgetting/mean", "forgetting/bwt"} <= set(found)
    assert [list(found[name]) for name in ("test/depth_rmse", "test/normals_mean", "forgetting/depth")] == [
        [2, 3, 4], [3, 4], [3, 4],
    ]  # fmt: skip


def test_forgetting_in_mlflow_is_that_of_its_test_values(logged: tuple[Any, Any, list[Any]]) -> None:
    """By hand from the values in the store: worse now than when it was learnt is above 0, whatever the direction."""
    client, run, _ = logged

    def history(name: str) -> list[float]:
        return [m.value for m in client.get_metric_history(run.info.run_id, name)]

    depth, normals = history("test/depth_rmse"), history("test/normals_mean")
    assert history("forgetting/depth") == pytest.approx([depth[1] - depth[0], depth[2] - depth[0]])
    assert history("forgetting/normals") == pytest.approx([normals[1] - normals[0]])
    assert any(abs(value) > 1e-6 for value in history("forgetting/depth")), "nothing is frozen here"


def test_training_values_are_in_mlflow_by_step(logged: tuple[Any, Any, list[Any]]) -> None:
    """Three experiences of two batches."""
    client, run, _ = logged
    history = client.get_metric_history(run.info.run_id, "train/total_loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
    assert all(m.value > 0 for m in history)
