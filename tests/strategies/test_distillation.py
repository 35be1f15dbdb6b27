"""Distillation and dark experience replay: numbers by hand or by numpy, and what runs with and without them do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.batch import Entry, TaskBatch
from medusa_cl.data.loader import unit_image
from medusa_cl.errors import ConfigError, TaskError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.distillation import DenseDER, DenseLwF, FeatureDistillation, Remembered, distance, teachable
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.template import DenseCriterion, DenseModule
from medusa_cl.tasks import BUILT_IN, DenseTask

Model = Callable[..., MultiTaskModel]
State = dict[str, Tensor]
STEP: dict[str, Any] = {"batch_size": 4, "epochs": 1, "max_steps": 1}
FULL = {"freeze": "backbone", "freeze_old_heads": True, "cache_features": "off"}
KEPT = {"freeze": "backbone", "freeze_old_heads": False, "cache_features": "memory"}
OPEN: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False}
OWN: dict[str, Callable[[], Any]] = {
    "lwf": DenseLwF,
    "der": lambda: DenseDER(6),
    "derpp": lambda: DenseDER(6, alpha=0.1, beta=1.0, half=True),
    "feature_distillation": FeatureDistillation,
}


def medusa(model: MultiTaskModel, *plugins: Any, **options: Any) -> Medusa:
    return Medusa(model=model, plugins=list(plugins), **(STEP | OPEN | options))


def state(strategy: Any) -> State:
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def learn(strategy: Any, scenario: DenseScenario, until: int = 2) -> list[State]:
    """Return the weights after each of the first experiences."""
    states = []
    for experience in scenario.train_stream[:until]:
        strategy.train(experience, eval_streams=[])
        states.append(state(strategy))
    return states


@pytest.fixture(scope="module")
def plain(tiny_model: Model, tiny_scenario: DenseScenario) -> dict[str, list[State]]:
    """Runs without any plugin: all trainable, features kept with old heads trainable, all frozen."""
    kinds = {"open": OPEN, "kept": KEPT, "full": FULL}
    return {kind: learn(medusa(tiny_model(), **options), tiny_scenario, 3) for kind, options in kinds.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(scenario: DenseScenario, count: int = 4) -> Tensor:
    return torch.stack([unit_image(scenario.data["train"], i) for i in range(count)])


# --- the distance of two answers ---


def test_the_outputs_of_built_in_tasks() -> None:
    outputs = {name: make().output for name, make in BUILT_IN.items()}
    assert {name for name, output in outputs.items() if output == "classes"} == {"semseg", "human_parts"}
    assert {name for name, output in outputs.items() if output == "binary"} == {"saliency", "edges"}
    assert set(outputs.values()) == {"classes", "binary", "values"}
    with pytest.raises(TaskError, match='Did you mean "classes"'):
        dataclasses.replace(tasks.depth(), output="class")


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distances_of_one_pixel_by_hand(temperature: float) -> None:
    """Teacher 1/2 : 1/2 and student 1/4 : 3/4 at the temperature: KL = ln 2 / 2 + ln(2/3) / 2, times its square."""
    by_hand = temperature**2 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    three = float(temperature * np.log(3))
    two = tasks.semseg(2)
    teacher, student = torch.zeros(1, 2, 1, 1), torch.tensor([0.0, three]).view(1, 2, 1, 1)
    assert float(distance(two, student, teacher, temperature)) == pytest.approx(by_hand, rel=1e-5)
    binary = distance(tasks.edges(), torch.full((1, 1, 1, 1), three), torch.zeros(1, 1, 1, 1), temperature)
    assert float(binary) == pytest.approx(by_hand, rel=1e-5)
    x, y = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0, 0.2, 0]).view(1, 3, 1, 1)
    assert float(distance(tasks.normals(), x, y, temperature)) == pytest.approx(2 / 3)  # (1, 0, 0) and (0, 1, 0)
    assert float(distance(tasks.depth(), x[:, :1], x[:, :1] - 0.5, temperature)) == 0.5


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def test_distances_are_means_over_pixels_as_numpy_has_them() -> None:
    student, teacher = random(2, 5, 3, 4).double(), random(2, 5, 3, 4, seed=1).double()
    s, t = student.numpy() / 3, teacher.numpy() / 3
    p, q = softmax(t, 1), softmax(s, 1)
    kl = 9 * (p * np.log(p / q)).sum() / (2 * 3 * 4)
    assert float(distance(tasks.semseg(5), student, teacher, 3.0)) == pytest.approx(kl)
    a, b = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-s))
    bernoulli = 9 * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).sum() / student.numel()
    assert float(distance(tasks.saliency(), student, teacher, 3.0)) == pytest.approx(bernoulli)
    difference = np.abs(student.numpy() - teacher.numpy()).mean()
    assert float(distance(tasks.curvature(), student, teacher, 3.0)) == pytest.approx(difference)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_distance_is_zero_for_equal_answers_alone(name: str) -> None:
    task = BUILT_IN[name]()
    teacher = 20 * random(2, task.channels, 3, 4)
    assert float(distance(task, teacher, teacher)) == pytest.approx(0, abs=1e-6)
    student = (teacher + 0.1 * random(*teacher.shape, seed=1)).requires_grad_()
    far = distance(task, student, teacher)
    far.backward()  # type: ignore[no-untyped-call]
    assert float(far.detach()) > 1e-5
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


# --- runs ---


@pytest.mark.parametrize("name", OWN)
def test_runs_with_and_without_differ_where_old_things_can_move(
    name: str, tiny_model: Model, tiny_scenario: DenseScenario, plain: dict[str, list[State]]
) -> None:
    """Not in experience 0; and nothing is drawn from the global random state, so a run repeats to the bit."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        runs.append(learn(medusa(tiny_model(), OWN[name]()), tiny_scenario))
    assert same(runs[0][1], runs[1][1])
    assert same(runs[0][0], plain["open"][0])
    assert runs[0][1].keys() == plain["open"][1].keys(), "nothing of the plugin is part of the model"
    assert not same(runs[0][1], plain["open"][1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OWN)
def test_under_the_full_freeze_they_add_nothing(
    name: str, tiny_model: Model, tiny_scenario: DenseScenario, plain: dict[str, list[State]]
) -> None:
    """Neither to what is learnt nor to a step's cost: no image goes through the backbone for them."""
    watch = Watch()
    strategy = medusa(tiny_model(), OWN[name](), **FULL)
    learn(strategy, tiny_scenario, 1)
    strategy.plugins.append(watch)
    for experience in tiny_scenario.train_stream[1:]:
        strategy.train(experience, eval_streams=[])
    assert watch.passes == 8  # two batches of 4: a frozen net with SiLU sees images one by one
    assert same(state(strategy), plain["full"][2])


@pytest.mark.filterwarnings("ignore:FeatureDistillation has no effect")
@pytest.mark.parametrize("name", OWN)
def test_features_in_place_of_images_and_open_heads(
    name: str, tiny_model: Model, tiny_scenario: DenseScenario, plain: dict[str, list[State]]
) -> None:
    """A frozen backbone gives features; old heads still move, and are held."""
    held = learn(medusa(tiny_model(), OWN[name](), **KEPT), tiny_scenario)
    assert same(plain["kept"][1], held[1]) is (name == "feature_distillation")


def test_a_strategy_of_avalanches_own(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    ends = []
    for plugins in ([], [DenseLwF()], [DenseDER(6)], [FeatureDistillation()]):
        model = DenseModule(tiny_model(), batch_size=4)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            criterion=DenseCriterion(model.tasks),
            train_mb_size=8,
            evaluator=dense_evaluator(),
            plugins=[MedusaPlugin(**OPEN), *plugins],
        )
        ends.append(learn(strategy, tiny_scenario))
    assert not any(same(ends[0][1], end[1]) for end in ends[1:])


# --- learning without forgetting ---


class Watch(SupervisedPlugin):
    """The labels and answers that a step's loss is made of, and how often the backbone has run."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.labels, self.answered = 0, set[int](), set[str]()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.hook = strategy.model.backbone.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.passes += 1

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.labels |= set(strategy.mb_task_id.tolist())
        self.answered |= set(strategy.mb_output.tasks)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.hook.remove()


@pytest.mark.parametrize(("name", "passes"), [("lwf", 1), ("feature_distillation", 1), ("der", 2)])
def test_a_step_runs_the_backbone_once_and_a_batch_of_replay(
    name: str, passes: int, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    watch = Watch()
    strategy = medusa(tiny_model(), OWN[name]())
    learn(strategy, tiny_scenario, 1)
    strategy.plugins.append(watch)
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert (watch.passes, watch.labels) == (passes, {1})
    assert watch.answered == ({"semseg", "depth", "normals"} if name == "lwf" else {"normals"})


def taught(model: MultiTaskModel, scenario: DenseScenario) -> tuple[DenseLwF, Medusa]:
    plugin = DenseLwF(alpha=3.0)
    strategy = medusa(model, plugin)
    learn(strategy, scenario, 1)
    strategy.model.eval()
    return plugin, strategy


def step(strategy: Medusa, scenario: DenseScenario, **change: float) -> SimpleNamespace:
    """A step on new images in which the answers for some tasks are moved."""
    x = images(scenario)
    output = strategy.model(x)
    entries = {n: Entry(e.rows, e.value + change.get(n, 0), e.aux) for n, e in output.entries.items()}
    return SimpleNamespace(
        model=strategy.model,
        experience=scenario.train_stream[1],
        mb_x=x,
        mb_output=TaskBatch(entries, len(x)),
        loss=torch.ones(()),
    )


def test_identical_teacher_and_student_cost_nothing(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin, strategy = taught(tiny_model(), tiny_scenario)
    now = step(strategy, tiny_scenario)
    plugin.before_training_exp(now)
    plugin.before_backward(now)
    assert float(now.loss.detach()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        next(strategy.model.backbone.parameters()).add_(0.1)
    now = step(strategy, tiny_scenario)
    plugin.before_backward(now)
    assert float(now.loss.detach()) > 1.001


def test_the_penalty_weighs_tasks_as_their_losses_are(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Depth off by half a metre costs 0.5 x its weight; logits that all move by as much are the same softmax."""
    plugin, strategy = taught(tiny_model(), tiny_scenario)
    for change, cost in (({"depth": 0.5}, 0.5), ({"semseg": 0.5}, 0.0), ({"depth": -2.0, "semseg": 1.0}, 2.0)):
        now = step(strategy, tiny_scenario, **change)
        plugin.before_training_exp(now)
        plugin.before_backward(now)
        assert float(now.loss.detach()) == pytest.approx(1 + 3.0 * cost, abs=1e-4)
    heavy = tiny_model(tasks.depth(loss_weight=4.0))
    module = DenseModule(heavy)
    plugin.after_training_exp(SimpleNamespace(model=module))
    x = images(tiny_scenario)
    module.eval()
    moved = TaskBatch({"depth": Entry(torch.arange(4), module(x).entries["depth"].value + 0.5)}, 4)
    now = SimpleNamespace(model=module, experience=tiny_scenario.train_stream[1], mb_x=x, mb_output=moved)
    plugin.before_training_exp(now)
    assert float(plugin.penalty(now).detach()) == pytest.approx(2.0, abs=1e-4)


def test_the_teacher_is_a_copy_that_stays(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin = DenseLwF()
    strategy = medusa(tiny_model(), plugin)
    [before] = learn(strategy, tiny_scenario, 1)
    teacher = plugin.teacher
    assert teacher is not None
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert same(teacher.state_dict(), before)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert plugin.teacher is not teacher
    assert set(plugin.teacher.tasks) == {"semseg", "depth", "normals"}  # type: ignore[union-attr]


def test_a_task_that_was_removed_is_not_distilled_nor_replayed(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    lwf, der = DenseLwF(), DenseDER(20)
    strategy = medusa(tiny_model(), lwf, der)
    learn(strategy, tiny_scenario)
    strategy.model.model.remove_head("normals")
    strategy.train(tiny_scenario.train_stream[2], eval_streams=[])
    assert set(lwf._names) == {"semseg", "depth"}
    assert {kept.label for kept in der._usable} == {0}


def test_what_is_teachable(tiny_model: Model) -> None:
    module = DenseModule(tiny_model("semseg", "depth"))
    module.model.freeze_head("depth")
    assert teachable(module) == ("semseg", "depth")
    module.backbone.freeze()
    assert teachable(module) == ("semseg",)


# --- feature distillation ---


def test_features_are_compared_scale_by_scale(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin = FeatureDistillation(alpha=2.0)
    old, new = DenseModule(tiny_model()).eval(), DenseModule(tiny_model(weights_seed=1)).eval()
    plugin.after_training_exp(SimpleNamespace(model=old))
    x = images(tiny_scenario)
    with torch.no_grad():
        pairs = [(a.numpy(), b.numpy()) for a, b in zip(old.features(x), new.features(x), strict=True)]
    by_hand = np.mean([((a - b) ** 2).mean() for a, b in pairs])
    assert by_hand > 1e-3
    for model, expected in ((old, 0.0), (new, 2 * by_hand)):
        now = SimpleNamespace(model=model, mb_x=x, loss=torch.zeros(()))
        plugin.before_training_exp(now)
        plugin.before_forward(now)
        model.features(x)
        plugin.after_forward(now)
        model.features(x + 1)  # another plugin's pass is not heard
        plugin.before_backward(now)
        assert float(now.loss.detach()) == pytest.approx(expected, rel=1e-5)


# --- dark experience replay ---


def test_the_buffer_is_a_reservoir(tiny_scenario: DenseScenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 24 samples of three experiences is kept as often as any other."""
    monkeypatch.setattr(DenseDER, "_answer", lambda self, strategy, new: [k.logits.update(done=one) for k in new])
    one, counts, runs = torch.zeros(1, 1, 1), np.zeros((3, 8)), 200
    for seed in range(runs):
        plugin = DenseDER(6)
        for experience in tiny_scenario.train_stream:
            plugin.after_training_exp(SimpleNamespace(model=SimpleNamespace(seed=seed), experience=experience))
            assert len(plugin.buffer) == 6
        for kept in plugin.buffer:
            counts[kept.label, kept.position] += 1
    expected, deviation = runs * 6 / 24, np.sqrt(runs * 0.25 * 0.75)
    assert np.abs(counts - expected).max() < 4 * deviation
    assert np.abs(counts.sum(1) - 8 * expected).max() < 4 * np.sqrt(8) * deviation


def test_samples_that_stay_keep_the_logits_they_came_with(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin = DenseDER(10)
    strategy = medusa(tiny_model(), plugin)
    learn(strategy, tiny_scenario, 1)
    assert len(plugin.buffer) == 8
    first = {kept.position: {n: v.clone() for n, v in kept.logits.items()} for kept in plugin.buffer}
    x = images(tiny_scenario, 8)
    with torch.no_grad():
        answers = copy.deepcopy(strategy.model.model).eval()(x)
    for position, logits in first.items():
        assert logits.keys() == {"semseg", "depth"}
        for name, value in logits.items():
            torch.testing.assert_close(value, answers[name][0][position], rtol=1e-4, atol=1e-4)
    strategy.train(tiny_scenario.train_stream[1], eval_streams=[])
    assert {len(kept.logits) for kept in plugin.buffer} == {1, 2}
    stayed = [kept for kept in plugin.buffer if kept.label == 0]
    assert stayed
    assert all(torch.equal(kept.logits["depth"], first[kept.position]["depth"]) for kept in stayed)


def test_the_distance_to_stored_logits_by_numpy() -> None:
    """Two samples with a task each and one with both; units of a task do not matter."""
    scale = {"a": 1.0, "b": 1000.0}
    stored = [{"a": 0}, {"b": 1}, {"a": 2, "b": 3}]
    logits = [{name: scale[name] * random(2, 3, 4, seed=s) for name, s in sample.items()} for sample in stored]
    plugin = DenseDER(3)
    plugin.buffer = [Remembered(0.0, 0, i, sample) for i, sample in enumerate(logits)]
    plugin.variance = {name: plugin._variance(name) for name in scale}
    expected, entries = 0.0, {}
    for name, rows in (("a", [0, 2]), ("b", [1, 2])):
        kept = np.stack([logits[i][name].numpy() for i in rows])
        variance = kept.transpose(1, 0, 2, 3).reshape(2, -1).var(1).mean()
        assert plugin.variance[name] == pytest.approx(variance, rel=1e-4)
        answer = scale[name] * random(2, 2, 3, 4, seed=9)
        expected += ((answer.numpy() - kept) ** 2).mean((1, 2, 3)).sum() / variance / 3
        entries[name] = Entry(torch.tensor(rows), answer)
    assert float(plugin.distance(TaskBatch(entries, 3), plugin.buffer)) == pytest.approx(expected, rel=1e-4)
    means = {n: np.mean([s[n].mean((1, 2)).numpy() for s in logits if n in s], 0) for n in scale}
    average = {
        n: Entry(e.rows, torch.from_numpy(means[n]).float().view(1, 2, 1, 1).expand_as(e.value))
        for n, e in entries.items()
    }
    cost = float(plugin.distance(TaskBatch(average, 3), plugin.buffer))
    assert cost == pytest.approx(4 / 3, rel=1e-4), "1 for each of four task's samples, over three samples"


def replayed(tiny_model: Model, scenario: DenseScenario, **options: Any) -> tuple[DenseDER, SimpleNamespace]:
    """A buffer of three experiences, and the step that would replay it, in eval mode."""
    plugin = DenseDER(16, **options)
    strategy = medusa(tiny_model(), plugin)
    learn(strategy, scenario)
    strategy.model.add_head = None  # type: ignore[assignment]
    strategy.model.eval()
    now = SimpleNamespace(
        model=strategy.model,
        experience=scenario.train_stream[2],
        device=torch.device("cpu"),
        train_mb_size=4,
        _criterion=strategy._criterion,
        loss=torch.zeros(()),
    )
    plugin.before_training_exp(now)
    return plugin, now


def test_draws_depend_on_the_step_and_never_repeat_a_sample(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    plugin, now = replayed(tiny_model, tiny_scenario)
    drawn = [[(kept.label, kept.position) for kept in plugin.draw(now)] for _ in range(6)]
    plugin.before_training_exp(now)
    assert drawn == [[(kept.label, kept.position) for kept in plugin.draw(now)] for _ in range(6)]
    assert all(len(set(batch)) == 4 for batch in drawn)
    assert len({tuple(batch) for batch in drawn}) == 6
    plugin.batch_size = 99
    assert len(plugin.draw(now)) == 16


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_the_loss_of_a_replayed_batch(
    alpha: float, beta: float, tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    """The whole buffer at once: its logits are a step old or new, its targets those of the data."""
    plugin, now = replayed(tiny_model, tiny_scenario, alpha=alpha, beta=beta, batch_size=16)
    plugin.before_backward(now)
    cost, x = 0.0, images(tiny_scenario, 8)
    with torch.no_grad():
        answers = now.model.model(x)
    for name, task in tiny_scenario.tasks.items():
        kept = [sample for sample in plugin.buffer if name in sample.logits]
        if not kept:
            continue
        places = [sample.position for sample in kept]
        given, wanted = answers[name][0][places], torch.stack([sample.logits[name] for sample in kept])
        cost += alpha * float((given - wanted).square().mean()) * len(kept) / 16 / plugin.variance[name]
        cost += beta * labelled(task, given, tiny_scenario, places)
    assert cost > 1e-4
    assert float(now.loss.detach()) == pytest.approx(cost, rel=1e-3)


def labelled(task: DenseTask, logits: Tensor, scenario: DenseScenario, places: list[int]) -> float:
    from medusa_cl.losses import at_size

    targets = [scenario.data["train"].target(place, task.name) for place in places]
    total, count = task.loss(at_size(logits, (32, 48)), torch.stack(targets))  # type: ignore[arg-type]
    return task.loss_weight * float(total / count)


def test_half_precision_is_half_the_memory(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    buffers = []
    for half in (False, True):
        plugin = DenseDER(4, half=half)
        learn(medusa(tiny_model(), plugin), tiny_scenario, 1)
        buffers.append(plugin.buffer)
    for whole, small in zip(*buffers, strict=True):
        assert whole[:3] == small[:3]
        for name, value in whole.logits.items():
            assert small.logits[name].nbytes * 2 == value.nbytes
            torch.testing.assert_close(small.logits[name].float(), value, rtol=1e-3, atol=1e-3)


# --- states ---


@pytest.mark.parametrize("name", OWN)
def test_a_run_goes_on_from_a_state(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """One run of three experiences, and one whose plugin is put away after the second."""
    whole = learn(medusa(tiny_model(), OWN[name]()), tiny_scenario, 3)[2]
    plugin, other = OWN[name](), OWN[name]()
    strategy = medusa(tiny_model(), plugin)
    learn(strategy, tiny_scenario)
    kept = copy.deepcopy(plugin.state_dict())
    other.restore(kept, strategy, list(tiny_scenario.train_stream))
    strategy.plugins[strategy.plugins.index(plugin)] = other
    strategy.train(tiny_scenario.train_stream[2], eval_streams=[])
    assert same(state(strategy), whole)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (DenseLwF, {"alpha": -1.0}, "alpha of at least 0, but got -1"),
        (DenseLwF, {"temperature": 0.0}, "temperature above 0, but got 0"),
        (FeatureDistillation, {"alpha": -1.0}, "alpha"),
        (DenseDER, {"mem_size": 0}, "mem_size of at least 1, but got 0"),
        (DenseDER, {"beta": -0.1}, "alpha and beta"),
        (DenseDER, {"batch_size": 0}, "batch_size"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(**options)
