"""What Medusa is compared with does what it is said to do: each reference strategy on the miniature, by its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from hydra import compose, initialize_config_module
from torch import Tensor

from medusa_cl.build import arrange_stream
from medusa_cl.data.loader import Augmentation, unit_image
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError
from medusa_cl.models import MedusaHead, MultiTaskModel
from medusa_cl.models.heads import LinearHead
from medusa_cl.scenarios.dense import DenseScenario, arrange, dense_scenario
from medusa_cl.strategies.baselines import Adapters, Cumulative, SingleTask
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.references import Recipe, reference_values
from medusa_cl.strategies.template import DenseModule

Model = Callable[..., MultiTaskModel]
State = dict[str, Tensor]
STEPS: dict[str, Any] = {"max_steps": 1, "base_steps": 3, "epochs": 100, "batch_size": 4}
OPEN: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "cache_features": "off"}
ALL = ("semseg", "depth", "normals", "edges")
HEAD = partial(MedusaHead, width=8, mix_width=8)


class Watch(SupervisedPlugin):
    """Keeps what each experience was learnt in: its steps, what they asked for, and the weights at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.steps: list[list[set[str]]] = []
        self.images: list[list[Tensor]] = []
        self.states: list[State] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.names.append(strategy.experience.name)
        self.steps.append([])
        self.images.append([])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.steps[-1].append(set(strategy.mb_losses))
        self.images[-1].extend(strategy.mb_x)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.states.append(state(strategy))


def state(strategy: Any) -> State:
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def part(weights: Mapping[str, Tensor], prefix: str) -> State:
    """The weights below a name, by what comes after it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def images(scenario: DenseScenario) -> Tensor:
    return torch.stack([unit_image(scenario.data["test"], i) for i in range(3)])


def learnt(made: Any, model: MultiTaskModel, scenario: DenseScenario, **options: Any) -> SimpleNamespace:
    """A strategy that has learnt a stream, a watch on it, and what it predicted after each experience."""
    watch, predicted = Watch(), []
    strategy = made(model=model, plugins=[watch], **(STEPS | options))
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[])
        predicted.append(model.predict(images(scenario)))
    return SimpleNamespace(strategy=strategy, model=model, watch=watch, predicted=predicted)


@contextmanager
def no_kept_features() -> Iterator[None]:
    """Let whoever keeps features fail."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("features were kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_cl.strategies.caching.FrozenFeatures", fail)
        yield


# ---------------------------------------------------------------- single_task


@pytest.fixture(scope="module")
def single(tiny_model: Model, tiny_scenario: DenseScenario) -> SimpleNamespace:
    with no_kept_features():
        run = learnt(SingleTask, tiny_model(), tiny_scenario)
        run.strategy.eval(tiny_scenario.test_stream)
    return run


@pytest.mark.parametrize("name", ALL)
def test_each_task_has_the_net_that_it_would_have_alone(
    name: str, single: SimpleNamespace, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """To the bit: weights, statistics and predictions of the same net on a stream of that task alone."""
    alone = dense_scenario(list(tiny_scenario.tasks.values()), tiny_scenario.data, [name], [])
    one = learnt(Medusa, tiny_model(), alone, **OPEN)
    ours, theirs = state(single.strategy), state(one.strategy)
    assert same(part(ours, f"heads.{name}.backbone."), part(theirs, "backbone."))
    assert same(part(ours, f"heads.{name}.head."), part(theirs, f"heads.{name}."))
    assert torch.equal(single.predicted[-1][name], one.predicted[-1][name])
    costs = sum(p.numel() for p in one.model.parameters())
    assert single.model.parameters_of(name) == costs


def test_the_reference_of_that_name_is_this_strategy(
    single: SimpleNamespace, tiny_model: Model, tiny_scenario: DenseScenario, tmp_path: Path
) -> None:
    """Transfer is measured against the same numbers as in a study's member.

    But for rounding: a shared net with SiLU is evaluated image by image on a CPU, a head's own net batch by batch.
    """
    recipe = Recipe(
        scenario=tiny_scenario,
        backbone=lambda: tiny_model().backbone,
        heads={"own": HEAD},
        strategy=lambda model, **options: Medusa(model=model, **STEPS, **options),
        precision="32",
        key={},
        head_keys={"own": "narrow"},
        cache=tmp_path,
    )
    values = reference_values(recipe, ["single_task"])["single_task"]
    scores = single.strategy.results
    expected = {name: scores[name][task.primary] for name, task in tiny_scenario.tasks.items()}
    assert values == pytest.approx(expected, rel=1e-6)


def test_every_net_is_trained_alone_in_the_steps_of_a_base(single: SimpleNamespace) -> None:
    assert single.watch.names == list(ALL)
    assert single.watch.steps == [[{name}] * 3 for name in ALL]


def test_a_net_that_is_not_learning_does_not_run(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """A step costs one net, whatever else the experience brings."""
    passes: list[str] = []

    class Count(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            for name in strategy.experience.tasks:
                net = strategy.model.heads[name].backbone
                net.register_forward_hook(lambda *_, learning=name: passes.append(learning))

    strategy = SingleTask(model=tiny_model(), plugins=[Count()], **STEPS)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert passes == ["semseg"] * 3 + ["depth"] * 3
    strategy.eval(tiny_scenario.test_stream[:1])
    assert passes[6:] == ["semseg", "depth"]


def test_steps_without_a_number_for_the_base(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    strategy = SingleTask(model=tiny_model(), **(STEPS | {"base_steps": None, "max_steps": 2}))
    assert [strategy.steps_of(experience) for experience in tiny_scenario.train_stream] == [2, 2, 2]


def test_no_net_changes_another(single: SimpleNamespace, tiny_model: Model) -> None:
    for k, (name, then) in enumerate(zip(ALL, single.watch.states, strict=True)):
        mine = part(then, f"heads.{name}.")
        assert all(same(mine, part(later, f"heads.{name}.")) for later in single.watch.states[k:])
    for k, predicted in enumerate(single.predicted):
        assert all(torch.equal(value, single.predicted[-1][name]) for name, value in predicted.items()), k
    nets = [part(single.watch.states[-1], f"heads.{name}.backbone.") for name in ALL]
    assert not any(same(one, other) for k, one in enumerate(nets) for other in nets[:k])
    assert same(part(single.watch.states[-1], "backbone."), tiny_model().backbone.state_dict())


def test_the_backbone_that_nets_start_from_is_no_cost(single: SimpleNamespace) -> None:
    used = sum(p.numel() for p in single.model.used_parameters())
    assert used == sum(single.model.parameters_of(name) for name in ALL)
    assert used == sum(p.numel() for p in single.model.parameters()) - sum(
        p.numel() for p in single.model.backbone.parameters()
    )


# ---------------------------------------------------------------- cumulative


@pytest.fixture(scope="module")
def still(tiny_scenario: DenseScenario) -> DenseScenario:
    """The stream without flips: images can be told apart."""
    known = list(tiny_scenario.tasks.values())
    base, stream = tiny_scenario.base, tiny_scenario.stream
    return dense_scenario(known, tiny_scenario.data, base, stream, augmentation=Augmentation(flip=False))


EPOCH = {"max_steps": None, "base_steps": None, "epochs": 1}


@pytest.fixture(scope="module")
def cumulative(tiny_model: Model, still: DenseScenario) -> SimpleNamespace:
    with no_kept_features():
        return learnt(Cumulative, tiny_model(), still, **EPOCH)


@pytest.fixture(scope="module")
def finetune(tiny_model: Model, still: DenseScenario) -> SimpleNamespace:
    return learnt(Medusa, tiny_model(), still, **OPEN, **EPOCH)


def test_an_image_comes_once_an_epoch_with_all_its_targets(cumulative: SimpleNamespace, still: DenseScenario) -> None:
    source = still.data["train"]
    wanted = sorted(unit_image(source, i).sum().item() for i in range(8))
    assert len(set(wanted)) == 8
    for k, tasks in enumerate((2, 3, 4)):
        assert cumulative.watch.steps[k] == [set(ALL[:tasks])] * 2
        assert sorted(image.sum().item() for image in cumulative.watch.images[k]) == wanted


class Partly:
    """A split of which some images lack some targets."""

    def __init__(self, source: DenseData, lacking: Mapping[str, set[int]]) -> None:
        self._source, self._lacking = source, lacking

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def has(self, task: str) -> list[bool]:
        return [i not in self._lacking.get(task, ()) for i in range(len(self))]

    def target(self, index: int, task: str) -> Tensor | None:
        return self._source.target(index, task) if self.has(task)[index] else None


def test_images_of_old_tasks_alone_stay(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Of depth only the first 3 images have a target, of normals only those from the third on, 2 have neither."""
    lacking = {"depth": {3, 4, 5, 6, 7}, "normals": {0, 1, 6, 7}}
    data = {"train": Partly(tiny_scenario.data["train"], lacking), "test": tiny_scenario.data["test"]}
    scenario = dense_scenario(list(tiny_scenario.tasks.values()), data, ["depth"], ["normals"])  # type: ignore[arg-type]
    found: list[dict[int, set[str]]] = []

    class Look(SupervisedPlugin):
        def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
            data = strategy.adapted_dataset
            assert len({data[i].index for i in range(len(data))}) == len(data)
            found.append({data[i].index: set(data[i].targets) for i in range(len(data))})

    strategy = Cumulative(model=tiny_model(), plugins=[Look()], **STEPS)
    strategy.train(scenario.train_stream, eval_streams=[])
    depth = {0: {"depth"}, 1: {"depth"}}
    assert found[0] == {**depth, 2: {"depth"}}
    assert found[1] == {**depth, 2: {"depth", "normals"}, **{i: {"normals"} for i in (3, 4, 5)}}


def test_old_tasks_go_on_learning(cumulative: SimpleNamespace, finetune: SimpleNamespace) -> None:
    """Fine-tuning leaves old heads behind; here they learn with the backbone, also the one learnt second."""
    for name, since in (("semseg", 0), ("depth", 0), ("normals", 1)):
        for run, moves in ((cumulative, True), (finetune, False)):
            then, now = (part(run.watch.states[k], f"heads.{name}.") for k in (since, 2))
            assert same(then, now) is not moves
    assert not same(part(cumulative.watch.states[0], "backbone."), part(cumulative.watch.states[1], "backbone."))


def test_it_parts_from_fine_tuning_after_experience_0(cumulative: SimpleNamespace, finetune: SimpleNamespace) -> None:
    ours, theirs = cumulative.watch.states, finetune.watch.states
    assert [same(a, b) for a, b in zip(ours, theirs, strict=True)] == [True, False, False]
    assert finetune.watch.steps[2] == [{"edges"}] * 2


# ---------------------------------------------------------------- adapters


@pytest.fixture(scope="module", params=["lora", "residual"])
def adapted(request: Any, tiny_model: Model, tiny_scenario: DenseScenario) -> SimpleNamespace:
    run = learnt(Adapters, tiny_model(), tiny_scenario, kind=request.param, rank=2)
    run.kind = request.param
    return run


def test_base_and_old_tasks_keep_their_bits_beside_adapters(adapted: SimpleNamespace) -> None:
    states, names = adapted.watch.states, [("semseg", "depth"), ("normals",), ("edges",)]
    assert any(key.startswith("backbone.") and key.endswith("running_mean") for key in states[0])
    assert all(same(part(states[0], "backbone."), part(later, "backbone.")) for later in states)
    for k, group in enumerate(names):
        for name in group:
            mine = part(states[k], f"heads.{name}.")
            assert all(same(mine, part(later, f"heads.{name}.")) for later in states[k:])
            predicted = [after[name] for after in adapted.predicted[k:]]
            assert all(torch.equal(predicted[0], later) for later in predicted)


def test_only_new_tasks_have_blocks_and_see_other_features(
    adapted: SimpleNamespace, tiny_scenario: DenseScenario
) -> None:
    model, x = adapted.model, images(tiny_scenario)
    assert [name for name in ALL if len(model.heads[name].blocks)] == ["normals", "edges"]
    seen = [model.features(x)]
    for name in ("normals", "edges"):
        head = model.heads[name]
        assert (head.config["kind"], head.config["rank"]) == (adapted.kind, 2)
        own = head.features(model.backbone, x)
        for other in seen:
            assert not any(torch.equal(a, b) for a, b in zip(own, other, strict=True))
        seen.append(own)


def test_fresh_blocks_change_nothing_and_a_step_does(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """The head sees the shared features before its first step, and its own after it."""
    seen: list[bool] = []

    class Look(SupervisedPlugin):
        def _look(self, strategy: Any) -> None:
            model, x = strategy.model.model, images(tiny_scenario)
            with torch.no_grad():
                own = model.heads["normals"].features(model.backbone, x)
            seen.append(all(torch.equal(a, b) for a, b in zip(own, model.features(x), strict=True)))

        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.experience.task_label:
                self._look(strategy)

        after_training_iteration = before_training_iteration

    strategy = Adapters(model=tiny_model(), plugins=[Look()], **STEPS)
    strategy.train(tiny_scenario.train_stream[:2], eval_streams=[])
    assert seen == [True, False]


def test_the_base_is_learnt_as_medusa_learns_it(
    adapted: SimpleNamespace, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """To the bit, so that only what comes after it is compared."""
    strategy = Medusa(model=tiny_model(), **STEPS)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    theirs, ours = state(strategy), adapted.watch.states[0]
    assert same(part(ours, "backbone."), part(theirs, "backbone."))
    for name in ("semseg", "depth"):
        assert same(part(ours, f"heads.{name}.head."), part(theirs, f"heads.{name}."))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "lore"}, 'Unknown strategy.kind "lore".*Did you mean "lora"'),
        ({"rank": 0}, "strategy.rank of at least 1, but got 0"),
    ],
)
def test_adapters_that_cannot_be_are_refused_at_once(options: dict[str, Any], said: str, tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match=said):
        Adapters(model=tiny_model(), **options)


# ---------------------------------------------------------------- parts of the freeze


def test_a_backbone_frozen_from_the_start_stays_as_it_came(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """frozen_imagenet: heads learn, the base tasks' too; nothing else does."""
    run = learnt(Medusa, tiny_model(), tiny_scenario, freeze_from=0)
    fresh = tiny_model()
    came = dict(fresh.backbone.state_dict())
    assert all(same(part(after, "backbone."), came) for after in run.watch.states)
    for name, task in tiny_scenario.tasks.items():
        fresh.add_head(task, 0)
        assert not same(part(run.watch.states[-1], f"heads.{name}."), dict(fresh.heads[name].state_dict()))
    assert [group["name"] for group in run.strategy.optimizer.param_groups] == ["heads"]
    for k, predicted in enumerate(run.predicted):
        assert all(torch.equal(value, run.predicted[-1][name]) for name, value in predicted.items()), k


def test_otherwise_the_base_trains_the_backbone(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """The test above can fail."""
    strategy = Medusa(model=tiny_model(), freeze_from=1, **STEPS)
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert not same(part(state(strategy), "backbone."), tiny_model().backbone.state_dict())


@pytest.mark.parametrize("freeze_from", [-1, 2])
def test_the_freeze_begins_at_0_or_1(freeze_from: int) -> None:
    with pytest.raises(ConfigError, match=f"freeze_from=0 or 1, but got {freeze_from}"):
        MedusaPlugin(freeze_from=freeze_from)


NET = "backbone.net."
SOME = ["blocks.0", "blocks.2"]


def moved(before: State, after: State, stages: tuple[str, ...]) -> dict[str, bool]:
    """Whether weights or statistics of a stage moved."""
    root = NET if any(name.startswith(f"{NET}{stages[0]}") for name in before) else f"{NET}model."
    return {stage: not same(part(before, f"{root}{stage}."), part(after, f"{root}{stage}.")) for stage in stages}


@pytest.mark.parametrize("chosen", [None, SOME], ids=["half", "some"])
@pytest.mark.parametrize("freeze_from", [0, 1])
def test_frozen_stages_stay_and_others_move(
    chosen: list[str] | None, freeze_from: int, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    model = tiny_model()
    stages = model.backbone.stages
    came = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"freeze": "stages", "stages": chosen, "freeze_from": freeze_from, "freeze_old_heads": False}
    run = learnt(Medusa, model, tiny_scenario, **options)
    frozen = set(stages[: len(stages) // 2] if chosen is None else chosen)
    assert 0 < len(frozen) < len(stages)
    free = {stage: stage not in frozen for stage in stages}
    first = free if freeze_from == 0 else dict.fromkeys(stages, True)
    assert moved(came, run.watch.states[0], stages) == first
    for k in (0, 1):
        assert moved(run.watch.states[k], run.watch.states[k + 1], stages) == free
    assert not model.backbone.frozen
    assert model.backbone.frozen_stages == frozen


def test_unknown_stages_are_refused_before_anything_is_learnt(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    said = 'Unknown stage of backbone test_efficientnet "conv_sten".*Did you mean "conv_stem"'
    with pytest.raises(ConfigError, match=said):
        Medusa(model=tiny_model(), freeze="stages", stages=["blocks.1", "conv_sten"], **STEPS)
    module = DenseModule(tiny_model())
    host = Naive(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.01),
        criterion=module.criterion,
        plugins=[MedusaPlugin(freeze="stages", stages=["conv_sten"])],
        evaluator=dense_evaluator(),
    )
    with pytest.raises(ConfigError, match=said):
        host.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert not module.tasks


# ---------------------------------------------------------------- probes, and all at once


@pytest.mark.parametrize("freeze_from", [0, 1])
def test_a_linear_probe_learns_on_what_is_frozen(
    freeze_from: int, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    run = learnt(Medusa, tiny_model(head=LinearHead), tiny_scenario, freeze_from=freeze_from)
    states = run.watch.states
    assert all(same(part(states[0], "backbone."), part(later, "backbone.")) for later in states)
    assert same(part(states[0], "backbone."), tiny_model().backbone.state_dict()) is (freeze_from == 0)
    fresh = tiny_model(tiny_scenario.tasks["edges"], head=LinearHead)
    learnt_now, before = part(states[2], "heads.edges."), dict(fresh.heads["edges"].state_dict())
    weights = [name for name in before if "norms" not in name]
    assert weights
    assert not any(torch.equal(learnt_now[name], before[name]) for name in weights)
    for k, name in ((0, "depth"), (1, "normals")):
        assert same(part(states[k], f"heads.{name}."), part(states[2], f"heads.{name}."))


def test_joint_learns_all_tasks_at_once(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    base, stream = arrange(tiny_scenario.base, tiny_scenario.stream, order="joint")
    scenario = dense_scenario(list(tiny_scenario.tasks.values()), tiny_scenario.data, base, stream)
    assert scenario.groups == [ALL]
    run = learnt(Medusa, tiny_model(), scenario, **OPEN)
    assert run.watch.names == ["semseg+depth+normals+edges"]
    assert run.watch.steps == [[set(ALL)] * 3]
    run.strategy.eval(scenario.test_stream)
    assert set(run.strategy.results) == set(ALL)
    fresh = tiny_model(*tiny_scenario.tasks.values())
    for prefix in ("backbone.", *(f"heads.{name}." for name in ALL)):
        assert not same(part(fresh.state_dict(), prefix), part(run.watch.states[0], prefix))


def test_joint_takes_as_many_steps_as_its_stream() -> None:
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        cfg = compose("config", ["strategy=joint", "trainer.base_steps=40", "trainer.max_steps=10"])
    tasks = [*cfg.scenario.base, *cfg.scenario.stream]
    steps = 40 + 10 * len(cfg.scenario.stream)
    assert steps > 40
    arrange_stream(cfg)
    assert (list(cfg.scenario.base), list(cfg.scenario.stream)) == (tasks, [])
    assert cfg.trainer.base_steps == steps
