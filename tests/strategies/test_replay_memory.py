"""Loading with a memory by counters: what each batch holds is known from its place alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import plugins as upstream
from avalanche.training.supervised import Naive
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import Augmentation, DenseDataset, DenseLoader
from medusa_cl.errors import ConfigError
from medusa_cl.models import MultiTaskModel
from medusa_cl.models.heads import PlainHead
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.replay_memory import Memory, ReplayLoader
from medusa_cl.strategies.template import DenseModule

Model = Callable[..., MultiTaskModel]
KNOWN = {"depth": tasks.depth(), "normals": tasks.normals()}
ZOOMED = Augmentation(zooms=(1.2, 1.5), crop=(24, 32))
pytestmark = pytest.mark.filterwarnings("ignore")


def data(source: HDF5Data, task: str, label: int, count: int = 8) -> Any:
    return torch.utils.data.Subset(DenseDataset(source, {task: KNOWN[task]}, label), range(count))


# ---------------------------------------------------------------- what a step takes


def test_a_group_is_gone_through_again_and_again() -> None:
    """7 samples, 3 a step: 2 steps a turn, none twice in a turn, the one left over another one each time."""
    memory = Memory([list(range(7))], 3, "key")
    steps = [memory.at(step) for step in range(40)]
    assert all(len(step) == 3 for step in steps)
    for turn in range(20):
        taken = [*steps[2 * turn], *steps[2 * turn + 1]]
        assert {number for _, number in taken} == {turn}
        assert len({position for position, _ in taken}) == 6
    counts = Counter(position for step in steps for position, _ in step)
    assert sum(counts.values()) == 120
    assert len(counts) == 7
    assert max(counts.values()) <= 20


def test_groups_share_a_step() -> None:
    """7 of three groups are 3, 2 and 2; one of 1 sample gives it each time, and nothing more; an empty one is none."""
    memory = Memory([list("abcd"), [], list("e"), list("fghijk")], 7, 0)
    assert len(memory.samples) == 11  # type: ignore[arg-type]
    for step in range(9):
        groups = Counter("abc"[(position >= 4) + (position >= 5)] for position, _ in memory.at(step))
        assert groups == {"a": 3, "b": 1, "c": 2}


def test_orders_depend_on_the_key_the_group_and_the_turn() -> None:
    def orders(*key: int | str, turn: int = 0) -> list[int]:
        return [position % 30 for position, _ in Memory([list(range(30)), list(range(30))], 60, *key).at(turn)]

    first = orders("a", 1)
    assert first == orders("a", 1)
    assert sorted(first[:30]) == sorted(first[30:]) == list(range(30))
    others = first[30:], orders("a", 2)[:30], orders("a", 1, turn=1)[:30]
    assert len({tuple(first[:30]), *map(tuple, others)}) == 4


def test_a_step_must_have_room_for_every_group() -> None:
    with pytest.raises(ConfigError, match="each of 3 experiences in a batch of the memory, but got 2"):
        Memory([[1], [2], [3]], 2)


# ---------------------------------------------------------------- batches


def loaders(source: HDF5Data, **options: Any) -> tuple[DenseLoader, ReplayLoader]:
    """8 samples of depth in batches of 3, without and with 2 of a memory of 5 samples of normals."""
    given: dict[str, Any] = {"key": (0, "depth"), "tasks": KNOWN, "augmentation": ZOOMED, "max_steps": 7} | options
    new, memory = data(source, "depth", 1), data(source, "normals", 0, 5)
    return DenseLoader(new, 3, train=True, **given), ReplayLoader(new, 3, memory=[memory], memory_size=2, **given)


def passes(loader: DenseLoader) -> list[tuple[tuple[int, int], Any]]:
    return [(loader.position, batch) for _ in range(loader.epochs or 0) for batch in loader]


def same(a: Any, b: Any) -> bool:
    (x, y, labels), (x_, y_, labels_) = a, b
    targets = y.entries.keys() == y_.entries.keys() and all(
        torch.equal(y.entries[name].value, y_.entries[name].value) for name in y.entries
    )
    return torch.equal(x, x_) and torch.equal(labels, labels_) and targets


def test_the_experience_is_loaded_as_without_a_memory(fake_splits: dict[str, HDF5Data]) -> None:
    alone, joined = map(passes, loaders(fake_splits["train"]))
    assert [place for place, _ in alone] == [place for place, _ in joined]
    assert len(joined) == 7
    for (_, (x, y, labels)), (_, (x_, y_, labels_)) in zip(alone, joined, strict=True):
        assert labels_.tolist() == [*labels.tolist(), 0, 0]
        assert torch.equal(x_[:3], x)
        assert torch.equal(y_.entries["depth"].value, y.entries["depth"].value)
        assert y_.entries["normals"].rows.tolist() == [3, 4]


def test_a_memory_is_seen_anew_each_time(fake_splits: dict[str, HDF5Data]) -> None:
    """Its images are augmented as the experience's are, so that they have one size; each turn by other numbers."""
    seen: list[Tensor] = []
    for _, (x, _, _) in passes(loaders(fake_splits["train"])[1]):
        assert x.shape[1:] == (3, 24, 32)
        seen.extend(x[3:])
    assert len({image.numpy().tobytes() for image in seen}) == len(seen)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 1), (1, 0), (1, 2), (3, 1)])
def test_loading_goes_on_from_any_place(fake_splits: dict[str, HDF5Data], workers: int, epoch: int, batch: int) -> None:
    """Two batches an epoch: (1, 2) is the end of the second one."""
    whole = passes(loaders(fake_splits["train"])[1])
    later = loaders(fake_splits["train"], workers=workers)[1]
    later.go_to(epoch, batch)
    rest = [(later.position, x) for _ in range(epoch, 4) for x in later]
    assert [place for place, _ in rest] == [place for place, _ in whole if place > (epoch, batch)]
    assert all(same(x, y) for (_, x), (_, y) in zip(rest, whole[len(whole) - len(rest) :], strict=True))


def test_processes_share_each_batch(fake_splits: dict[str, HDF5Data]) -> None:
    options: dict[str, Any] = {"key": (0, "depth"), "tasks": KNOWN, "max_steps": 6}
    new, memory = data(fake_splits["train"], "depth", 1), data(fake_splits["train"], "normals", 0, 5)

    def batches(shard: tuple[int, int]) -> list[list[tuple[int, int]]]:
        loader = ReplayLoader(new, 4, memory=[memory], memory_size=3, shard=shard, **options)
        return [batch for epoch in range(3) for batch in loader.batches(epoch)]

    whole, shares = batches((0, 1)), [batches((rank, 2)) for rank in (0, 1)]
    for one, first, second in zip(whole, *shares, strict=True):
        assert [len(first), len(second)] == [2 + 2, 2 + 1]
        assert sorted([*first, *second]) == sorted(one)


# ---------------------------------------------------------------- in strategies


class Rows(SupervisedPlugin):
    """Notes the labels of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[list[int]] = []

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.labels.append(strategy.mb_task_id.tolist())


def test_batch_sizes_of_its_own_change_the_length_of_epochs_but_not_of_training(
    tiny_model: Model, tiny_scenario: DenseScenario
) -> None:
    rows = Rows()
    replay = upstream.ReplayPlugin(6, batch_size=2, batch_size_mem=3)
    options: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "max_steps": 5, "epochs": 99}
    strategy = Medusa(model=tiny_model(head=PlainHead), plugins=[replay, rows], batch_size=4, **options)
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert rows.labels == [[0] * 4] * 5 + [[1, 1, 0, 0, 0]] * 5
    assert strategy.clock.train_exp_epochs == 2  # 4 batches of 2 images make an epoch


def test_avalanches_own_strategies_replay_too(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model, rows = DenseModule(tiny_model(head=PlainHead)), Rows()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        criterion=model.criterion,
        train_mb_size=4,
        train_epochs=2,
        plugins=[MedusaPlugin(freeze="none", freeze_old_heads=False), upstream.ReplayPlugin(6), rows],
        evaluator=dense_evaluator(),
    )
    loaded: list[Any] = []
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        loaded.append(rows.labels)
        rows.labels = []
    assert loaded == [[[0] * 4] * 4, [[1] * 4 + [0] * 4] * 4]


def test_agem_draws_by_the_step(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    """4 of a memory of two experiences are 2 of each; their images are those that the counters say."""
    agem = upstream.AGEMPlugin(5, 4)
    seen: list[Tensor] = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(strategy.model.heard)

    options: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "max_steps": 4, "epochs": 99}
    strategy = Medusa(model=tiny_model(head=PlainHead), plugins=[agem, Look()], batch_size=4, seed=3, **options)
    strategy.model.heard = None
    strategy.model.register_forward_pre_hook(lambda module, given: setattr(module, "heard", given[0]))
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    memory = Memory(agem.buffers[:2], 4, "agem", 3, "edges")
    for step, images in enumerate(seen[8:]):
        expected = [memory.samples[position] for position, _ in memory.at(step)]
        assert [sample.label for sample in expected] == [0, 0, 1, 1]
        assert torch.equal(images, torch.stack([sample.image for sample in expected]))  # type: ignore[misc]


def test_gem_remembers_the_samples_it_says(tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    gem = upstream.GEMPlugin(3, 0.5)
    options: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "max_steps": 1}
    strategy = Medusa(model=tiny_model(head=PlainHead), plugins=[gem], batch_size=4, **options)
    for experience in tiny_scenario.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    for t, samples in gem.samples.items():  # type: ignore[attr-defined]
        held = list(samples)
        assert len({sample.index for sample in held}) == 3
        assert torch.equal(gem.memory_x[t], torch.stack([sample.image for sample in held]))
        assert gem.memory_tid[t].tolist() == [t] * 3
