"""Which of Avalanche's plugins and strategies compose, and that a plain script may be made of those that do."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avalanche.training.plugins
import avalanche.training.supervised
import pytest
import torch
from avalanche.core import BasePlugin
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from avalanche.training import plugins as upstream
from avalanche.training import supervised
from avalanche.training.storage_policy import ClassBalancedBuffer, ParametricBuffer
from avalanche.training.templates.base import BaseTemplate

import medusa_cl.strategies
from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies import compose
from medusa_cl.strategies.compose import VERDICTS, check, check_strategy, follow_loaded
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.logger import TrackerLogger
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.replay_memory import TaskBalancedBuffer
from medusa_cl.strategies.template import DenseCriterion, DenseModule

Model = Callable[..., MultiTaskModel]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def classes_in(package: Any, base: type) -> set[str]:
    """Names of the public classes of a package, at any depth, that are made from `base` or called a plugin."""
    found = set()
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__.startswith(package.__name__) and not name.startswith("_"):
                found |= {name} if issubclass(cls, base) or name.endswith("Plugin") else set()
    return found


@pytest.mark.parametrize(
    ("package", "base", "least"),
    [(avalanche.training.plugins, BasePlugin, 30), (avalanche.training.supervised, BaseTemplate, 35)],
    ids=["plugins", "strategies"],
)
def test_every_class_of_avalanche_has_a_verdict(package: Any, base: type, least: int) -> None:
    found = classes_in(package, base)
    assert len(found) >= least
    assert found <= set(VERDICTS), found - set(VERDICTS)


def test_every_plugin_of_ours_has_a_verdict() -> None:
    found = classes_in(medusa_cl.strategies, BasePlugin)
    assert {"MedusaPlugin", "GradientClipping"} <= found
    # Part of the evaluator, and never in a strategy's list of plugins.
    assert found - {"TrackerLogger", "DenseMetrics", "TrainingMetrics", "TaskMatrixMetric"} <= set(VERDICTS)


def test_verdicts_say_what_they_must() -> None:
    for name, verdict in VERDICTS.items():
        assert (verdict.name, verdict.kind in compose.KINDS) == (name, True)
        assert verdict.why.endswith("."), name
        if verdict.kind == compose.REPLACED:
            assert verdict.instead, name
        if verdict.composes:
            assert not verdict.instead, name


def test_configurations_named_are_there_and_of_that_class() -> None:
    folder = Path(compose.__file__).resolve().parents[1] / "configs" / "plugins"
    named = {verdict.config: verdict.name for verdict in VERDICTS.values() if verdict.config}
    assert len(named) >= 12
    for config, name in named.items():
        assert f".{name}\n" in (folder / f"{config}.yaml").read_text()


def test_importing_it_imports_no_avalanche() -> None:
    code = "import sys, medusa_cl.strategies.compose; print([m for m in sys.modules if m.startswith('avalanche')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lwf": (lambda: upstream.LwFPlugin(), r"LwFPlugin.*Use DenseLwF \(plugins=\[lwf\]\)"),
    "lfl": (lambda: upstream.LFLPlugin(1.0), "LFLPlugin.*Use FeatureDistillation"),
    "rwalk": (lambda: upstream.RWalkPlugin(), r"RWalkPlugin.*plugins=\[rwalk\]"),
    "gdumb": (lambda: upstream.GDumbPlugin(4), "GDumbPlugin.*Use FromScratchTrainingPlugin"),
    "features": (lambda: upstream.FeatureDistillationPlugin(), "FeatureDistillationPlugin.*does not compose"),
    "mir": (lambda: upstream.MIRPlugin(2), "MIRPlugin.*Use ReplayPlugin"),
    "rar": (lambda: upstream.RARPlugin(2), "RARPlugin"),
    "gss": (lambda: upstream.GSS_greedyPlugin(2, input_size=[3, 32, 48]), "GSS_greedyPlugin"),
    "cope": (lambda: upstream.CoPEPlugin(2), "CoPEPlugin"),
    "bic": (lambda: upstream.BiCPlugin(2), "BiCPlugin"),
    "generative": (lambda: upstream.GenerativeReplayPlugin(), "GenerativeReplayPlugin"),
    "ncm": (lambda: upstream.CurrentDataNCMUpdate(), "CurrentDataNCMUpdate.*linear_probe"),
    "fecam": (lambda: upstream.FeCAMOracle(), "FeCAMOracle"),
    "scratch": (lambda: upstream.FromScratchTrainingPlugin(), "Set reset_optimizer=False"),
    "by class": (lambda: upstream.ReplayPlugin(4, storage_policy=ClassBalancedBuffer(4)), "Use .*TaskBalancedBuffer"),
    "group": (lambda: upstream.ReplayPlugin(4, storage_policy=ParametricBuffer(4, "class")), "TaskBalancedBuffer"),
    "task sets": (lambda: upstream.ReplayPlugin(4, task_balanced_dataloader=True), "Set storage_policy to"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_plugins_are_refused_at_construction(name: str, tiny_model: Model) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        Medusa(model=tiny_model(), freeze="none", plugins=[make()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"features", "ncm", "fecam", "bic", "gdumb", "scratch"}))
def test_what_is_refused_would_fail(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Let past the check, each breaks on dense tasks; the ones left out say so in an assertion of their own."""
    strategy = Medusa(model=tiny_model(), freeze="none", freeze_old_heads=False, max_steps=1, batch_size=4)
    strategy.plugins.insert(1, REFUSED[name][0]())
    with pytest.raises((AttributeError, TypeError, ValueError, KeyError, NotImplementedError)):
        for experience in tiny_scenario.train_stream:
            strategy.train(experience, eval_streams=[])


@pytest.mark.parametrize("plugin", [upstream.AGEMPlugin(4, 4), upstream.GEMPlugin(4, 0.1)], ids=["agem", "gem"])
def test_projections_are_refused_under_the_freeze(plugin: Any, tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match=r"projects the gradients.*strategy\.freeze=none"):
        Medusa(model=tiny_model(), plugins=[plugin])
    Medusa(model=tiny_model(), freeze="none", plugins=[plugin])


def test_from_scratch_is_refused_under_the_freeze(tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match="sets weights back"):
        Medusa(model=tiny_model(), plugins=[upstream.FromScratchTrainingPlugin(reset_optimizer=False)])


def test_one_memory_feeds_the_batches() -> None:
    two = [upstream.ReplayPlugin(4), upstream.ReplayPlugin(4)]
    with pytest.raises(ConfigError, match="ReplayPlugin and ReplayPlugin"):
        check(two, shared_trainable=True, old_trainable=True)


def test_gem_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install quadprog"):
        check([upstream.GEMPlugin(4, 0.1)], shared_trainable=True, old_trainable=True)


@pytest.mark.parametrize(
    "make",
    [lambda: upstream.EWCPlugin(1.0), lambda: upstream.MASPlugin(), lambda: upstream.SynapticIntelligencePlugin(1.0)],
    ids=["ewc", "mas", "si"],
)
def test_protection_of_nothing_is_warned_of_once(make: Callable[[], Any]) -> None:
    plugin = make()
    with pytest.warns(UserWarning, match=r"no effect.*strategy\.freeze=none") as caught:
        check([plugin], shared_trainable=False, old_trainable=True)
        check([plugin], shared_trainable=False, old_trainable=True)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check([make()], shared_trainable=True, old_trainable=True)


def test_replay_is_warned_of_where_all_old_heads_are_frozen() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check([upstream.ReplayPlugin(4)], shared_trainable=False, old_trainable=True)
    with pytest.warns(UserWarning, match="ReplayPlugin has no effect"):
        check([upstream.ReplayPlugin(4)], shared_trainable=False, old_trainable=False)


def test_unknown_plugins_pass_and_kin_are_known() -> None:
    class Mine(upstream.SupervisedPlugin):
        pass

    class MyLwF(upstream.LwFPlugin):
        pass

    check([Mine()], shared_trainable=False, old_trainable=False)
    with pytest.raises(ConfigError, match="LwFPlugin"):
        check([MyLwF()], shared_trainable=True, old_trainable=True)


def test_what_lives_on_steps_does_not_follow_loaded_tasks() -> None:
    follow_loaded([upstream.EWCPlugin(1.0), upstream.MASPlugin(), upstream.ReplayPlugin(4)])
    with pytest.raises(ConfigError, match=r"SynapticIntelligencePlugin.*plugins=\[ewc\]"):
        follow_loaded([upstream.EWCPlugin(1.0), upstream.SynapticIntelligencePlugin(1.0)])


def test_the_table_names_everything_once() -> None:
    rows = compose.table().splitlines()
    assert rows[:2] == ["| verdict | plugins and strategies | note |", "|---|---|---|"]
    assert all(row.count("|") == 4 for row in rows)
    named = [cell.split("`")[1] for row in rows[2:] for cell in row.split("|")[2].split(", ")]
    assert sorted(named) == sorted(VERDICTS)


def host(kind: Any, model: MultiTaskModel, *, freeze: str = "none", **options: Any) -> Any:
    """One of Avalanche's own strategies, as a plain script makes it."""
    module = DenseModule(model)
    given = {
        "model": module,
        "optimizer": torch.optim.Adam(module.parameters(), 1e-3),
        "criterion": DenseCriterion(module.tasks),
        "train_mb_size": 4,
        "eval_mb_size": 4,
        "plugins": [MedusaPlugin(freeze=freeze, freeze_old_heads=freeze == "backbone")],
        "evaluator": dense_evaluator(),
    }
    return kind(**(given | options))


HOSTS: dict[str, dict[str, Any]] = {
    "Naive": {},
    "OnlineNaive": {"train_passes": 1},
    "Cumulative": {},
    "EWC": {"ewc_lambda": 1.0, "mode": "separate", "decay_factor": None, "keep_importance_data": False},
    "SynapticIntelligence": {"si_lambda": 1e4},
    "MAS": {"lambda_reg": 1.0, "alpha": 0.5},
    "Replay": {"mem_size": 4},
    "AGEM": {"patterns_per_exp": 4, "sample_size": 4},
    "GEM": {"patterns_per_exp": 4, "memory_strength": 0.1},
    "FromScratchTraining": {"reset_optimizer": False},
}


def stream(strategy: Any, scenario: DenseScenario) -> dict[str, torch.Tensor]:
    """Learn two experiences and test them; return the weights and statistics after it."""
    for experience in scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    strategy.eval(scenario.test_stream[:2])
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def naive(tiny_model: Model, tiny_scenario: DenseScenario) -> dict[str, torch.Tensor]:
    return stream(host(supervised.Naive, tiny_model()), tiny_scenario)


@pytest.mark.parametrize("name", HOSTS)
def test_avalanches_strategies_host_medusa(
    name: str, tiny_model: Model, tiny_scenario: DenseScenario, naive: dict[str, torch.Tensor]
) -> None:
    """Without the freeze each learns something else than the plain loop does."""
    kind = getattr(importlib.import_module("avalanche.training.supervised.strategy_wrappers_online"), name, None)
    strategy = host(kind or getattr(supervised, name), tiny_model(), **HOSTS[name])
    learnt = stream(strategy, tiny_scenario)
    assert same(learnt, naive) is (name in ("Naive", "OnlineNaive"))
    assert set(strategy.evaluator.metrics[0].results) == {"semseg", "depth", "normals"}


def test_joint_training_learns_every_task(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = host(supervised.JointTraining, tiny_model(), train_epochs=2)
    before: dict[str, torch.Tensor] = {}
    seen: set[str] = set()

    class Watch(upstream.SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            before.update({name: p.detach().clone() for name, p in strategy.model.named_parameters()})

        def after_forward(self, strategy: Any, **kwargs: Any) -> None:
            seen.update(strategy.mb_output.tasks)

    strategy.plugins.insert(1, Watch())
    strategy.train(tiny_scenario.train_stream, eval_streams=[])
    moved = {n.split(".")[1] for n, p in strategy.model.named_parameters() if not torch.equal(p, before[n])}
    assert seen == {"semseg", "depth", "normals", "edges"}
    assert seen <= moved
    strategy.eval(tiny_scenario.test_stream)
    assert set(strategy.evaluator.metrics[0].results) == seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Naive", "Cumulative", "EWC", "SynapticIntelligence", "MAS", "Replay"])
def test_the_freeze_holds_in_avalanches_strategies(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = host(getattr(supervised, name), tiny_model(), freeze="backbone", **HOSTS[name])
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    before = {key: value.clone() for key, value in strategy.model.state_dict().items()}
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    after = strategy.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["AGEM", "GEM", "FromScratchTraining"])
def test_hosts_that_cannot_bear_the_freeze_say_so(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = host(getattr(supervised, name), tiny_model(), freeze="backbone", **HOSTS[name])
    with pytest.raises(ConfigError, match=r"strategy\.freeze=none"):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LwF", {"alpha": 1.0, "temperature": 2.0}),
        ("DER", {"mem_size": 4}),
        ("ER_ACE", {"mem_size": 4}),
        ("MER", {"mem_size": 4}),
        ("GDumb", {"mem_size": 4}),
        ("VAETraining", {}),
    ],
)
def test_refused_strategies_are_refused_when_they_train(
    name: str, options: dict[str, Any], tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    strategy = host(getattr(supervised, name), tiny_model(), **options)
    with pytest.raises(ConfigError, match=f"{name}.* does not compose"):
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])


def test_a_host_needs_a_dense_module() -> None:
    net = torch.nn.Linear(1, 1)
    strategy = supervised.Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        plugins=[MedusaPlugin()],
        evaluator=dense_evaluator(),
    )
    with pytest.raises(ConfigError, match=r"Expected a DenseModule.*but got Linear"):
        check_strategy(strategy)


class Sink:
    """Keeps what a tracker would send."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values: dict[str, Any], step: int) -> None:
        self.values.update(values)

    def flush(self) -> None:
        pass


def test_avalanches_loggers_and_ours_on_a_plain_strategy(
    tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Path
) -> None:
    sink, text = Sink(), tmp_path / "log.txt"
    with text.open("w") as file:
        loggers = [
            TextLogger(file),
            TensorboardLogger(tmp_path / "board"),
            CSVLogger(tmp_path / "csv"),
            TrackerLogger(sink),
        ]
        strategy = host(supervised.Naive, tiny_model(), evaluator=dense_evaluator(loggers, every=1), train_epochs=2)
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[:1])
        loggers[2].close()
    depth = strategy.evaluator.metrics[0].results["depth"]["rmse"]
    assert "test/depth_rmse = " in text.read_text()
    assert sink.values["test/depth_rmse"] == pytest.approx(depth)
    assert {"train/total_loss", "train/images_per_s"} <= set(sink.values)
    assert list((tmp_path / "board").glob("events*"))
    assert (tmp_path / "csv" / "eval_results.csv").read_text().count("\n") >= 1


def test_a_balanced_memory_is_shared_equally_by_labels(tiny_scenario: DenseScenario) -> None:
    memory = TaskBalancedBuffer(7)
    for experience in tiny_scenario.train_stream:
        memory.post_adapt(None, experience)
    labels = [int(label) for label in memory.buffer.targets_task_labels]
    assert [labels.count(k) for k in range(3)] == [3, 2, 2]  # 7 = 3 x 2 and one more for the first
    assert {label: len(part) for label, part in memory.buffer.task_set.items()} == {0: 3, 1: 2, 2: 2}
    assert [sample.label for sample in memory.buffer] == labels
    assert len({(sample.label, sample.index) for sample in memory.buffer}) == 7
