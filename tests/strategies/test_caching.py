"""Kept features: the same numbers as without them, kept where they fit, refused where they would be stale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch import Tensor

from medusa_cl.data.loader import Augmentation
from medusa_cl.errors import ConfigError, TrainingError
from medusa_cl.models import Backbone, MultiTaskModel, PlainHead
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies import caching
from medusa_cl.strategies.baselines import Adapters
from medusa_cl.strategies.caching import FeatureCache, free_disk, free_memory
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import ValSelection
from medusa_cl.strategies.template import DenseModule

Model = Callable[..., MultiTaskModel]
STEPS = {"max_steps": 3, "base_steps": 3, "epochs": 100, "batch_size": 4}
ZOOMED = Augmentation(zooms=(1.0, 1.5), rotation=5.0, views=3)


@pytest.fixture(scope="module")
def tiny_model(tiny_model: Model) -> Model:
    """With the smallest heads that read every scale: what is kept stands before them."""
    return partial(tiny_model, head=partial(PlainHead, mix_width=8))


@pytest.fixture
def whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backbone see whole batches, where calls are counted."""
    for module in ("medusa_cl.data.features", "medusa_cl.strategies.template"):
        monkeypatch.setattr(f"{module}.at_a_time", lambda backbone, batch_size: batch_size)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def seen_with(scenario: DenseScenario, augmentation: Augmentation) -> DenseScenario:
    tasks = list(scenario.tasks.values())
    return dense_scenario(tasks, scenario.data, ["semseg", "depth"], ["normals", "edges"], augmentation=augmentation)


def learnt(model: MultiTaskModel, scenario: DenseScenario, **options: Any) -> Medusa:
    strategy = Medusa(model=model, **{**STEPS, **options})
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    strategy.eval(scenario.test_stream)
    return strategy


def runs_of(model: MultiTaskModel) -> list[int]:
    """Count what the backbone is asked from now on: images a call."""
    calls = list[int]()
    model.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize("augmentation", [Augmentation(), ZOOMED], ids=["flips", "fixed views"])
@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_features_change_no_bit(
    tiny_model: Model, tiny_scenario: DenseScenario, cache: str, augmentation: Augmentation, workers: int
) -> None:
    scenario = seen_with(tiny_scenario, augmentation)
    plain = learnt(tiny_model(), scenario, cache_features="off")
    kept = learnt(tiny_model(), scenario, cache_features=cache, workers=workers)
    ours, theirs = kept.model.state_dict(), plain.model.state_dict()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert kept.results == plain.results


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_comes_near_whether_features_are_kept_or_not(
    tiny_model: Model, tiny_scenario: DenseScenario, precision: str
) -> None:
    plain = learnt(tiny_model(), tiny_scenario, cache_features="off")
    kept = learnt(tiny_model(), tiny_scenario, cache_features="memory", cache_precision=precision)
    unkept = learnt(tiny_model(), tiny_scenario, cache_features="off", cache_precision=precision)
    ours, theirs = kept.model.state_dict(), unkept.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert kept.results == unkept.results != plain.results
    for task, metric in (("normals", "mean"), ("depth", "rmse")):
        assert kept.results[task][metric] == pytest.approx(plain.results[task][metric], rel=0.02)


@pytest.mark.parametrize("channels_last", [False, True])
def test_kept_features_change_no_bit_under_autocast(
    tiny_model: Model, tiny_scenario: DenseScenario, channels_last: bool
) -> None:
    found = []
    for cache in ("memory", "off"):
        model = tiny_model(precision="bf16")
        model.use_channels_last(backbone=channels_last, heads=channels_last)
        found.append(learnt(model, tiny_scenario, cache_features=cache))
    ours, theirs = (strategy.model.state_dict() for strategy in found)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.usefixtures("whole_batches")
def test_the_backbone_sees_every_view_once(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """8 images in 2 views to learn, 4 to test, for all tasks after the base ones."""
    strategy = Medusa(model=tiny_model(*tiny_scenario.train_stream[0].tasks.values()), **STEPS, cache_features="memory")
    strategy.model.adopt(tiny_scenario.train_stream[0])
    calls = runs_of(strategy.model.model)
    for k in (1, 2):
        strategy.train(tiny_scenario.train_stream[k], eval_streams=[])
        strategy.eval(tiny_scenario.test_stream[: k + 1])
    sizes = [1, 4, 4, 4, 4, 1, 4]  # each time one image first, to know what they will take
    assert calls == sizes


def test_strategies_on_the_same_backbone_share(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    shared: dict[str, Any] = {}
    for number in range(2):
        strategy = Medusa(model=tiny_model("semseg", "depth"), **STEPS, cache_features="memory", kept=shared)
        strategy.model.adopt(tiny_scenario.train_stream[0])
        calls = runs_of(strategy.model.model)
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
        assert bool(calls) == (number == 0)
    other = Medusa(model=tiny_model("semseg", "depth", weights_seed=1), **STEPS, cache_features="memory", kept=shared)
    other.model.adopt(tiny_scenario.train_stream[0])
    calls = runs_of(other.model.model)
    other.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert calls  # other weights, other features


@pytest.mark.usefixtures("whole_batches")
def test_val_selection_uses_kept_features(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    found = []
    for cache in ("memory", "off"):
        plugins = [ValSelection(tiny_scenario.data["val"])]
        strategy = Medusa(model=tiny_model("semseg", "depth"), **STEPS, cache_features=cache, plugins=plugins)
        strategy.model.adopt(tiny_scenario.train_stream[0])
        calls = runs_of(strategy.model.model)
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
        found.append((len(calls), strategy.model.model.heads["normals"].state_dict()))
    assert found[0][0] == 1 + 4 + 1 + 1  # 2 images of val are a batch, once
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[1][1])


# ---------------------------------------------------------------- where


@pytest.fixture
def frozen(tiny_model: Model) -> DenseModule:
    model = tiny_model("normals")
    model.freeze_backbone()
    return DenseModule(model)


def kept_by(cache: FeatureCache, model: DenseModule, scenario: DenseScenario, **options: Any) -> tuple[Any, list[str]]:
    said = list[str]()
    cache.notify = said.append
    options = {"batch_size": 4, "split": "train"} | options
    return cache.of(model, scenario.data["train"], Augmentation(), ["normals"], **options), said


@pytest.mark.parametrize(
    ("memory", "disk", "draws", "expected", "reason"),
    [
        (2**30, 2**30, None, "memory", r"kept in memory \(1 GiB are free\)"),
        (2**30, 2**30, 16, "memory", r"8 images x 2 views, .* KiB, kept in memory"),
        (1000, 2**30, 16, "disk", r"kept in runs/.cache/features \(1 GiB are free\)"),
        (1000, 2000, 16, "", r"not kept \(0.977 KiB of memory and 1.95 KiB of disk are free\)"),
        (2**30, 2**30, 15, "", r"not kept \(the stream has 15 looks left at these 16 views\)"),
    ],
)
def test_auto_says_what_it_chose_and_why(
    frozen: DenseModule,
    tiny_scenario: DenseScenario,
    monkeypatch: pytest.MonkeyPatch,
    memory: int,
    disk: int,
    draws: int | None,
    expected: str,
    reason: str,
) -> None:
    import re

    monkeypatch.setattr(caching, "free_memory", lambda: memory)
    monkeypatch.setattr(caching, "free_disk", lambda folder: disk)
    features, said = kept_by(FeatureCache(), frozen, tiny_scenario, draws=draws)
    assert len(said) == 1 and re.search(reason, said[0])
    assert said[0].startswith("features of train: ")
    assert (features is None) == (expected == "")
    assert features is None or features.on_disk == (expected == "disk")


def test_auto_counts_the_looks_of_the_whole_stream(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """16 views: 4 images a step, for normals and then edges; for edges alone as many steps are too few."""
    for steps, first, kept in ((1, 1, False), (2, 1, True), (3, 2, False), (4, 2, True)):
        said = list[str]()
        strategy = Medusa(model=tiny_model("semseg", "depth"), **{**STEPS, "max_steps": steps})
        strategy.medusa.cache.notify = said.append
        strategy.model.adopt(tiny_scenario.train_stream[0])
        strategy.train(tiny_scenario.train_stream[first], eval_streams=[])
        assert ("kept in memory" in said[0]) == kept


def test_auto_takes_what_an_earlier_run_has_left(frozen: DenseModule, tiny_scenario: DenseScenario) -> None:
    kept_by(FeatureCache("disk"), frozen, tiny_scenario)
    features, said = kept_by(FeatureCache(), frozen, tiny_scenario, draws=1)
    assert features.on_disk and "(from an earlier run)" in said[0]


def test_every_process_of_a_machine_counts(
    frozen: DenseModule, tiny_scenario: DenseScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "free_memory", lambda: 4 * 2**20)
    for processes, on_disk in ((1, False), (8, True)):
        monkeypatch.setattr("medusa_cl.distributed.local_world", lambda processes=processes: processes)
        features, _ = kept_by(FeatureCache(), frozen, tiny_scenario)
        assert features.on_disk == on_disk


def test_features_depend_on_how_the_backbone_runs(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    found = []
    changes: list[Callable[[MultiTaskModel], Any]] = [
        lambda model: None,
        lambda model: model.use_channels_last(),
        lambda model: setattr(model, "precision", "bf16"),
        lambda model: model.backbone.mean.mul_(0.5),
        lambda model: torch.set_num_threads(2),
    ]
    for change in changes:
        model = tiny_model("normals")
        model.freeze_backbone()
        change(model)
        features, _ = kept_by(FeatureCache("memory"), DenseModule(model), tiny_scenario)
        found.append(features.digest)
    torch.set_num_threads(1)
    assert len(set(found)) == len(found)


@pytest.mark.filterwarnings("ignore")
def test_features_are_not_computed_for_a_plugin_that_loads_images(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    def run(mode: str) -> list[str]:
        said = list[str]()
        options = {**STEPS, "freeze_old_heads": False, "cache_features": mode}
        strategy = Medusa(model=tiny_model(), plugins=[ReplayPlugin(4)], **options)
        strategy.medusa.cache.notify = said.append
        for experience in tiny_scenario.train_stream:
            strategy.train(experience, eval_streams=[])
        return said

    assert run("auto") == ["features are not kept: a plugin makes the batches, of images (replay)"]
    with pytest.raises(ConfigError, match=r"cache_features=memory, but a plugin makes the batches"):
        run("memory")


def test_yaml_may_say_off_without_quotes() -> None:
    assert FeatureCache(False).mode == "off"


def test_a_choice_is_said_once(frozen: DenseModule, tiny_scenario: DenseScenario) -> None:
    cache = FeatureCache()
    assert kept_by(cache, frozen, tiny_scenario, draws=1)[1] != []
    assert kept_by(cache, frozen, tiny_scenario, draws=1)[1] == []


def test_disk_and_memory_insist(frozen: DenseModule, tiny_scenario: DenseScenario, tmp_path: Path) -> None:
    for mode in ("memory", "disk"):
        features, said = kept_by(FeatureCache(mode, folder=tmp_path / "kept"), frozen, tiny_scenario, draws=1)
        assert features.on_disk == (mode == "disk")
        assert "as asked for" in said[0]
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".h5", ".lock"]


def test_what_is_free_is_known(tmp_path: Path) -> None:
    import shutil

    assert 0 < free_memory() < 2**50
    there = tmp_path / "not" / "made" / "yet"
    assert free_disk(there) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


# ---------------------------------------------------------------- refused


def test_unknown_options_name_the_nearest(tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match=r'cache_features "dsik".*"disk"'):
        Medusa(model=tiny_model(), cache_features="dsik")
    with pytest.raises(ConfigError, match=r'cache_precision "fp8".*"fp16"'):
        Medusa(model=tiny_model(), cache_precision="fp8")


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_features_of_a_trainable_backbone_are_refused(tiny_model: Model, mode: str) -> None:
    with pytest.raises(ConfigError, match=rf"cache_features={mode}.*strategy.freeze=none goes on training it"):
        Medusa(model=tiny_model(), freeze="none", cache_features=mode)


def test_endless_views_are_refused_where_features_must_be_kept(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    scenario = seen_with(tiny_scenario, Augmentation(rotation=5.0))
    with pytest.raises(ConfigError, match=r"endless ones. Set scenario.augment.views=8"):
        learnt(tiny_model(), scenario, cache_features="disk")
    said = list[str]()
    strategy = Medusa(model=tiny_model(), **STEPS)
    strategy.medusa.cache.notify = said.append
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    assert len(said) == 1 and "features are not kept: scenario.augment draws new views" in said[0]


def test_heads_that_need_images_are_refused_where_features_must_be_kept(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    strategy = Adapters(model=tiny_model(), **STEPS, cache_features="memory")
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    with pytest.raises(ConfigError, match=r"heads of this strategy change the backbone's features.*cache_features=off"):
        strategy.train(tiny_scenario.train_stream[1], eval_streams=[])


def test_a_frozen_backbone_that_has_changed_is_found(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = learnt(tiny_model(), tiny_scenario)
    backbone: Backbone = strategy.model.backbone
    with torch.no_grad():
        next(backbone.parameters())[0] += 1
    with pytest.raises(
        TrainingError, match=r"weights of the frozen backbone have changed since its features were kept"
    ):
        strategy.eval(tiny_scenario.test_stream)


# ---------------------------------------------------------------- evaluation in one pass


class Alone:
    """No metric at all: experiences are then evaluated one by one."""


@pytest.mark.usefixtures("whole_batches")
def test_one_pass_gives_what_a_pass_for_each_task_gives(
    tiny_model: Model, tiny_scenario: DenseScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = learnt(tiny_model(), tiny_scenario, cache_features="off")
    calls = runs_of(strategy.model.model)
    strategy.eval(tiny_scenario.test_stream)
    together, once = strategy.results, list(calls)
    monkeypatch.setattr("medusa_cl.strategies.template.OURS", (Alone,))
    strategy.eval(tiny_scenario.test_stream)
    assert strategy.results == together
    assert once == [4] and calls == once * 4  # one batch of 4 images; three experiences


def test_a_task_alone_has_the_value_it_has_among_others(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = learnt(tiny_model(), tiny_scenario)
    together = strategy.results
    for k, experience in enumerate(tiny_scenario.test_stream):
        strategy.eval([experience])
        assert strategy.results == {name: together[name] for name in tiny_scenario.groups[k]}


class Partly:
    """A split in which each task but semseg has labels on some images only."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.content_hash, self.fields, self.image_size = "partly", source.fields, source.image_size

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        return self._source.image(index)  # type: ignore[no-any-return]

    def has(self, name: str) -> Any:
        every = {"semseg": 5, "depth": 2, "normals": 3, "edges": 1}[name]
        return np.arange(len(self)) % every == every - 1

    def target(self, index: int, name: str) -> Any:
        return self._source.target(index, name) if self.has(name)[index] else None


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_other_tasks_images_change_no_value(tiny_model: Model, tiny_scenario: DenseScenario, cache: str) -> None:
    """Labels on different images: what is evaluated together grows with the stream, and forgetting stays exactly 0."""
    data = {"train": tiny_scenario.data["train"], "test": Partly(tiny_scenario.data["train"])}
    tasks = list(tiny_scenario.tasks.values())
    scenario = dense_scenario(tasks, data, ["semseg", "depth"], ["normals", "edges"])
    strategy = Medusa(model=tiny_model(), **{**STEPS, "batch_size": 3}, cache_features=cache)
    first: dict[str, Any] = {}
    for k, experience in enumerate(scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(scenario.test_stream[: k + 1])
        for name, row in strategy.results.items():
            assert first.setdefault(name, row) == row
        strategy.eval([scenario.test_stream[k]])
        assert strategy.results == {name: first[name] for name in scenario.groups[k]}


def test_splits_do_not_mix(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = learnt(tiny_model(), tiny_scenario)
    of_test = strategy.results
    strategy.eval([*tiny_scenario.test_stream, *tiny_scenario.val_stream])
    of_val = strategy.results
    assert of_val["depth"]["rmse"] != of_test["depth"]["rmse"]
    strategy.eval([*tiny_scenario.val_stream, *tiny_scenario.test_stream])
    assert strategy.results == of_test
    strategy.eval(tiny_scenario.val_stream)
    assert strategy.results == of_val


def test_no_training_loss_is_computed_in_evaluation(
    tiny_model: Model, tiny_scenario: DenseScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = learnt(tiny_model(), tiny_scenario)

    def fail(*arguments: Tensor) -> None:
        raise AssertionError("a loss was computed")

    monkeypatch.setattr(type(strategy._criterion), "terms", fail)
    strategy.eval(tiny_scenario.test_stream)
