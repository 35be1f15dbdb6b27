"""What composed plugins do to the weights that tasks share (freeze=none), by hand-computed numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import plugins as upstream
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from medusa_cl.batch import Entry, TaskBatch
from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies import compose
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.replay_memory import TaskBalancedBuffer

Model = Callable[..., MultiTaskModel]
Weights = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STEPS = {"max_steps": 2, "base_steps": 2, "epochs": 100, "batch_size": 4}


def medusa(model: MultiTaskModel, plugins: list[Any], **options: Any) -> Medusa:
    given = {"freeze": "none", "freeze_old_heads": False, "plugins": plugins} | STEPS | options
    return Medusa(model=model, **given)


def weights(strategy: Medusa) -> Weights:
    return {name: value.detach().clone() for name, value in strategy.model.named_parameters()}


class Watch(SupervisedPlugin):
    """Keeps each step's loss and weights before and after the plugins beside it have had their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.before: list[Weights] = []
        self.gradients: list[Weights] = []
        self.learnt: list[Weights] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(float(strategy.loss.detach()))
        self.before.append({n: p.detach().clone() for n, p in strategy.model.named_parameters()})

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in strategy.model.named_parameters()}
        )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.learnt.append({n: p.detach().clone() for n, p in strategy.model.named_parameters()})


def watched(
    tiny_model: Model, scenario: DenseScenario, plugin: Any, experiences: int = 2, **options: Any
) -> tuple[Watch, Watch, Medusa]:
    """Train with a watch on either side of a plugin."""
    first, last = Watch(), Watch()
    strategy = medusa(tiny_model(), [first, plugin, last], **options)
    for experience in scenario.train_stream[:experiences]:
        strategy.train(experience, eval_streams=[])
    return first, last, strategy


# One weight vector, one linear task: everything about it can be worked out by hand.


class Line(nn.Module):
    """y = w x, answered as a batch of one task."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.T


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, x: list[list[float]], y: list[float]) -> None:
        self.x, self.y = torch.tensor(x), torch.tensor(y)[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i], self.y[i], 0


class Stub:
    """As much of a strategy as importances are computed from."""

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.model, self.device, self.train_mb_size = model, "cpu", 1
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1)
        self._criterion = mse_loss
        self.experience = type("Experience", (), {"dataset": data})()
        self.clock = type("Clock", (), {"train_exp_counter": 0})()
        self.loss = torch.tensor(1.0)

    def penalty(self, plugin: Any) -> float:
        self.loss = torch.tensor(1.0)
        plugin.before_backward(self)
        return float(self.loss.detach()) - 1.0


X, Y = [[1.0, 0.0], [1.0, 2.0]], [0.0, 0.0]
# w = (1, -2): outputs 1 and -3, gradients of the squares 2 o x = (2, 0) and (-6, -12).
FISHER = np.array([(4 + 36) / 2, 144 / 2])


def test_ewcs_penalty_by_hand() -> None:
    stub, plugin = Stub(Line(), Data(X, Y)), upstream.EWCPlugin(0.5)
    assert stub.penalty(plugin) == 0
    plugin.after_training_exp(stub)
    stub.clock.train_exp_counter = 1
    assert stub.penalty(plugin) == 0
    with torch.no_grad():
        stub.model.w += torch.tensor([[1.0, 0.5]])
    assert stub.penalty(plugin) == pytest.approx(0.5 * (20 * 1 + 72 * 0.25))


def test_ewcs_penalties_add_up_or_decay() -> None:
    """Second task: w = (2, -1.5), outputs 2 and -1, gradients (4, 0) and (-2, -4): importances (10, 8)."""
    for mode, decay in (("separate", None), ("online", 0.5)):
        stub, plugin = Stub(Line(), Data(X, Y)), upstream.EWCPlugin(1.0, mode=mode, decay_factor=decay)
        plugin.after_training_exp(stub)
        with torch.no_grad():
            stub.model.w += torch.tensor([[1.0, 0.5]])
        stub.clock.train_exp_counter = 1
        plugin.after_training_exp(stub)
        with torch.no_grad():
            stub.model.w += torch.tensor([[1.0, 1.0]])
        stub.clock.train_exp_counter = 2
        second = np.array([10.0, 8.0])
        apart = FISHER @ np.square([2.0, 1.5]) + second @ np.square([1.0, 1.0])
        online = (0.5 * FISHER + second) @ np.square([1.0, 1.0])
        assert stub.penalty(plugin) == pytest.approx(apart if mode == "separate" else online)


def test_mas_penalty_by_hand() -> None:
    """The gradient of o^2 is 2 o x: (2, 0) and (-6, -12), of which the mean of absolute values counts."""
    stub, plugin = Stub(Line(), Data(X, Y)), upstream.MASPlugin(lambda_reg=0.5, alpha=0.25)
    plugin.after_training_exp(stub)
    stub.clock.train_exp_counter = 1
    with torch.no_grad():
        stub.model.w += torch.tensor([[1.0, 0.5]])
    assert stub.penalty(plugin) == pytest.approx(0.5 * (4 * 1 + 6 * 0.25))
    plugin.after_training_exp(stub)  # w = (2, -1.5): gradients (4, 0) and (-2, -4): (3, 2)
    stub.clock.train_exp_counter = 2
    with torch.no_grad():
        stub.model.w += torch.tensor([[1.0, 1.0]])
    assert stub.penalty(plugin) == pytest.approx(0.5 * ((0.25 * 4 + 0.75 * 3) + (0.25 * 6 + 0.75 * 2)))


def test_mas_takes_the_norm_over_all_that_an_image_was_answered() -> None:
    rows = torch.tensor([0, 2])
    batch = TaskBatch(
        {
            "a": Entry(torch.arange(3), torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]], [[3.0, 0.0]]])),
            "b": Entry(rows, torch.tensor([[2.0], [4.0]])),
        },
        3,
    )
    assert torch.norm(batch, p="fro", dim=1).tolist() == pytest.approx([3.0, 0.0, 5.0], abs=1e-5)


def si_run(lam: float, steps: list[list[tuple[float, float]]]) -> tuple[list[float], np.ndarray]:
    """Walk w along given steps on loss o(x)^2 of x = (1, 2); return each experience's penalties, last importances."""
    plugin = upstream.SynapticIntelligencePlugin(lam)
    compose.check([plugin], shared_trainable=True, old_trainable=True)
    stub, penalties = Stub(Line(), Data(X, Y)), []
    for k, moves in enumerate(steps):
        stub.clock.train_exp_counter = k
        plugin.before_training_exp(stub)
        for move in moves:
            plugin.before_training_iteration(stub)
            stub.model.zero_grad()
            loss = stub.model(torch.tensor([[1.0, 2.0]])).square().sum()
            stub.loss = loss.clone()
            plugin.before_backward(stub)
            penalties.append(float(stub.loss.detach() - loss.detach()))
            loss.backward()
            with torch.no_grad():
                stub.model.w += torch.tensor([move])
            plugin.after_training_iteration(stub)
        plugin.after_training_exp(stub)
    return penalties, plugin.ewc_data[1]["w"].data.numpy()


def test_sis_importance_and_penalty_by_hand() -> None:
    """Zenke et al. 2017, eq. 3 to 5, cut off at 0.001 as upstream does, and at 0.

    w = (1, -2), o = -3, gradient (-6, -12). A step of (0.1, -0.01) lowers the loss by 0.6 through the first weight,
    which earns it 0.6 / (0.01 + 1e-7), cut off; the second weight's part raised it: 0.
    """
    _, importance = si_run(2.0, [[(0.1, -0.01)]])
    assert importance == pytest.approx([1e-3, 0.0])
    penalties, _ = si_run(2.0, [[(0.1, -0.01)], [(0.5, 0.25), (0.0, 0.0)]])
    # Nothing has moved at the first step of the second experience; then by (0.5, 0.25).
    assert penalties == pytest.approx([0.0, 0.0, 2.0 / 2 * 1e-3 * 0.25], abs=1e-6)


def test_sis_importance_below_the_cut() -> None:
    """A long way for little: from w = (1, -2) by (0, 0.75), again and back: o = -3, -1.5, 0; the path matters."""
    # omega = -sum g dw = 12 * 0.75 + 6 * 0.75 = 13.5 over 1.5^2: far above the cut, so scale the way instead.
    _, importance = si_run(1.0, [[(0.0, 1.5), (100.0, -50.0)]])
    # Second step from o = 0: no gradient. omega_2 = 12 * 1.5 = 18, Delta_2 = -48.5: 18 / 2352.25.
    assert importance == pytest.approx([0.0, min(18 / 48.5**2, 1e-3)])
    _, importance = si_run(1.0, [[(0.0, 1.5), (1000.0, -500.0)]])
    assert importance == pytest.approx([0.0, 18 / 498.5**2], rel=1e-4)


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_ewc_adds_its_penalty_to_a_dense_run(mode: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Of the whole strategy: what is added to each loss is the importances' weighting of what weights have moved."""
    plugin = upstream.EWCPlugin(3e6, mode=mode, decay_factor=0.5 if mode == "online" else None)
    first, last, _ = watched(tiny_model, tiny_scenario, plugin)
    importances = {name: value.data for name, value in plugin.importances[0].items()} if mode == "separate" else None
    added = np.subtract(last.losses, first.losses)
    assert added[:3] == pytest.approx([0, 0, 0], abs=1e-6)  # the first experience, and the step before any has moved
    assert added[3] > 0
    if importances is not None:
        moved = {name: (first.before[3][name] - first.learnt[0][name]).numpy() for name in importances}
        by_hand = 3e6 * sum(float((value.numpy() * moved[name] ** 2).sum()) for name, value in importances.items())
        assert added[3] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
        assert max(float(v.max()) for n, v in importances.items() if n.startswith("backbone.")) > 0


PLUGINS: dict[str, Callable[[], Any]] = {
    "ewc": lambda: upstream.EWCPlugin(1.0),
    "ewc_online": lambda: upstream.EWCPlugin(1.0, mode="online", decay_factor=0.9),
    "si": lambda: upstream.SynapticIntelligencePlugin(100.0),
    "mas": lambda: upstream.MASPlugin(),
    "replay": lambda: upstream.ReplayPlugin(4),
    "replay_reservoir": lambda: upstream.ReplayPlugin(4, storage_policy=ReservoirSamplingBuffer(4)),
    "replay_balanced": lambda: upstream.ReplayPlugin(
        4, task_balanced_dataloader=True, storage_policy=TaskBalancedBuffer(4)
    ),
    "agem": lambda: upstream.AGEMPlugin(4, 4),
    "gem": lambda: upstream.GEMPlugin(4, 0.1),
    "from_scratch": lambda: upstream.FromScratchTrainingPlugin(reset_optimizer=False),
}


@pytest.fixture(scope="module")
def finetuned(tiny_model: Model, tiny_scenario: DenseScenario) -> Weights:
    strategy = medusa(tiny_model(), [])
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    return weights(strategy)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_run_with_it_differs_from_one_without(
    name: str, tiny_model: Model, tiny_scenario: DenseScenario, finetuned: Weights
) -> None:
    strategy = medusa(tiny_model(), [PLUGINS[name]()])
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    learnt = weights(strategy)
    shared = [key for key in learnt if key.startswith("backbone.")]
    assert learnt.keys() == finetuned.keys()
    assert any(not torch.equal(learnt[key], finetuned[key]) for key in shared)
    assert all(bool(torch.isfinite(value).all()) for value in learnt.values())


@pytest.mark.parametrize("name", ["si", "mas"])
def test_much_of_it_holds_the_shared_weights(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """The direction of the effect: with the penalty shared weights move less, by plain descent."""
    ways = []
    for strength in (0.0, {"si": 1e4, "mas": 0.05}[name]):
        plugin = upstream.MASPlugin(strength) if name == "mas" else upstream.SynapticIntelligencePlugin(strength)
        sgd = {"optimizer": torch.optim.SGD, "lr_head": 0.01, "lr_backbone": 0.01, "max_steps": 3}
        first, _, strategy = watched(tiny_model, tiny_scenario, plugin, **sgd)
        start, end = first.learnt[0], weights(strategy)
        ways.append(sum(float((end[k] - v).square().sum()) for k, v in start.items() if k.startswith("backbone.")))
    assert 0 < ways[1] < 0.98 * ways[0]


def flat(gradients: Weights) -> np.ndarray:
    return torch.cat([value.flatten() for value in gradients.values()]).double().numpy()


class Conflict(SupervisedPlugin):
    """Turns the gradient against the one on the memory, so that there is something to project."""

    def __init__(self, reference: Callable[[], Tensor]) -> None:
        super().__init__()
        self.reference = reference

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        if not self.reference().numel():
            return
        wanted, at = self.reference(), 0
        for parameter in strategy.model.parameters():
            if parameter.grad is not None:
                parameter.grad -= 2 * wanted[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()


def test_agem_projects_onto_what_does_not_harm_its_memory(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    agem = upstream.AGEMPlugin(4, 4)
    references: list[np.ndarray] = []
    before, after = Watch(), Watch()
    conflict = Conflict(lambda: agem.reference_gradients)
    after_backward = after.after_backward

    def keep(strategy: Any, **kwargs: Any) -> None:
        references.append(agem.reference_gradients.double().numpy())
        after_backward(strategy)

    after.after_backward = keep  # type: ignore[method-assign]
    strategy = medusa(tiny_model(), [conflict, before, agem, after])
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert len(agem.buffers[0]) == 4
    for raw, projected, reference in list(zip(before.gradients, after.gradients, references, strict=True))[2:]:
        g, p = flat(raw), flat(projected)
        size = np.linalg.norm(reference) * np.linalg.norm(g)
        assert g @ reference < -0.01 * size
        # Chaudhry et al. 2019, eq. 11, for all weights: the idle heads' too.
        expected = g - (g @ reference) / (reference @ reference) * reference
        assert np.abs(p - expected).max() < 1e-4 * np.abs(g).max()
        assert p @ reference >= -1e-5 * size


def test_agem_leaves_a_gradient_that_harms_nothing() -> None:
    stub, agem = Stub(Line(), Data(X, Y)), upstream.AGEMPlugin(2, 2)
    agem.buffers = [object()]  # type: ignore[list-item]
    for reference, expected in (((1.0, 0.0), (3.0, 4.0)), ((-1.0, 0.0), (0.0, 4.0)), ((0.0, -2.0), (3.0, 0.0))):
        stub.model.w.grad = torch.tensor([[3.0, 4.0]])
        agem.reference_gradients = torch.tensor(reference)
        agem.after_backward(stub)
        assert stub.model.w.grad[0].tolist() == pytest.approx(expected)


def test_gem_meets_every_constraint(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    gem = upstream.GEMPlugin(4, 0.5)
    conflict = Conflict(lambda: gem.G.sum(0) if gem.G.numel() else gem.G)
    before, after = Watch(), Watch()
    constraints: list[Tensor] = []

    class Keep(SupervisedPlugin):
        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            constraints.append(gem.G.clone())

    strategy = medusa(tiny_model(), [conflict, before, gem, Keep(), after])
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    assert [len(gem.memory_x[k]) for k in range(3)] == [4, 4, 4]
    assert [len(c) for c in constraints] == [0, 0, 1, 1, 2, 2]
    for raw, projected, matrix in list(zip(before.gradients, after.gradients, constraints, strict=True))[2:]:
        old, g, p = matrix.double().numpy(), flat(raw), flat(projected)
        size = np.linalg.norm(old, axis=1) * np.linalg.norm(g)
        assert (old @ g < 0).any()
        assert (old @ p >= -1e-3 * size).all()


def test_a_reservoir_is_a_fair_sample_of_all(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Of 24 samples in three experiences 6 stay, kept by the draws alone: the largest of all that were made."""
    buffer = ReservoirSamplingBuffer(6)
    drawn: list[Tensor] = []
    strategy = medusa(tiny_model(), [upstream.ReplayPlugin(6, storage_policy=buffer)], max_steps=1, base_steps=1)
    original = buffer.update_from_dataset

    def record(new: Any) -> None:
        state = torch.get_rng_state()
        drawn.append(torch.rand(len(new)))
        torch.set_rng_state(state)
        original(new)

    buffer.update_from_dataset = record  # type: ignore[method-assign]
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    ranked = np.argsort(-torch.cat(drawn).numpy())[:6]
    kept = {(sample.label, sample.index) for sample in buffer.buffer}
    assert kept == {(int(i) // 8, int(i) % 8) for i in ranked}


@pytest.mark.parametrize("kind", ["experience", "task"])
def test_a_memory_is_shared_equally(kind: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    own = {} if kind == "experience" else {"storage_policy": TaskBalancedBuffer(6), "task_balanced_dataloader": True}
    plugin = upstream.ReplayPlugin(6, **own)
    strategy = medusa(tiny_model(), [plugin], max_steps=1, base_steps=1)
    for k, experience in enumerate(tiny_scenario.train_stream):
        strategy.train(experience, eval_streams=[])
        labels = [sample.label for sample in plugin.storage_policy.buffer]
        assert sorted(labels) == sorted(list(range(k + 1)) * (6 // (k + 1)))


def test_replayed_batches_hold_old_and_new(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """4 of the new task and 4 of the memory, of which half are of each old label."""
    seen: list[list[int]] = []

    class Labels(SupervisedPlugin):
        def after_forward(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(sorted(strategy.mb_task_id.tolist()))

    replay = upstream.ReplayPlugin(8, task_balanced_dataloader=True, storage_policy=TaskBalancedBuffer(8))
    strategy = medusa(tiny_model(), [replay, Labels()], max_steps=1, base_steps=1)
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    assert seen == [[0] * 4, [0] * 4 + [1] * 4, [0] * 2 + [1] * 2 + [2] * 4]


def test_from_scratch_begins_each_experience_where_the_first_began(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    scratch, watch = upstream.FromScratchTrainingPlugin(reset_optimizer=False), Watch()
    model = tiny_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    strategy = medusa(model, [scratch, watch])
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    first, again = watch.before[0], watch.before[2]
    assert all(torch.equal(first[name], value) and torch.equal(again[name], value) for name, value in start.items())
    assert not all(torch.equal(watch.before[1][name], value) for name, value in start.items())
    assert all(torch.equal(first[name], again[name]) for name in first)  # the heads of the first experience too


def test_from_scratch_with_its_own_reset_is_refused(tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match="reset_optimizer=False"):
        medusa(tiny_model(), [upstream.FromScratchTrainingPlugin()])


@pytest.mark.parametrize("reset", [True, False])
def test_an_avalanche_scheduler_scales_the_rates(reset: bool, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """Halved after every step; the optimizer that is rebuilt begins each experience at the rates configured."""
    rates: list[list[float]] = []

    class Rates(SupervisedPlugin):
        def before_update(self, strategy: Any, **kwargs: Any) -> None:
            rates.append([group["lr"] for group in strategy.optimizer.param_groups])

    strategy = medusa(tiny_model(), [Rates()], lr_head=0.008, lr_backbone=0.004)
    halving = torch.optim.lr_scheduler.ExponentialLR(strategy.optimizer, 0.5)
    plugin = upstream.LRSchedulerPlugin(halving, step_granularity="iteration", reset_scheduler=reset, reset_lr=reset)
    strategy.plugins.insert(2, plugin)
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert rates == [pytest.approx(r) for r in ([0.008, 0.004], [0.004, 0.002]) * 2]


def test_the_criterion_of_a_stub_is_what_it_should_be() -> None:
    """The hand-worked numbers above stand on it."""
    out = Line()(torch.tensor(X))
    assert out.flatten().tolist() == [1.0, -3.0]
    assert float(l1_loss(out, torch.zeros_like(out)).detach()) == 2.0
