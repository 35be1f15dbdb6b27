from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.batch import Features, TaskBatch
from medusa_cl.data import transforms
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import IDENTITY, Augmentation, DenseDataset, DenseLoader, View, as_augmentation

TASKS = {task.name: task for task in (tasks.semseg(19), tasks.depth(), tasks.normals())}
KEY = (0, "semseg+depth+normals")
Batch = list[Any]


class Counted:
    """A source without a file: image i is all i; every third has no depth, every fifth no label at all."""

    content_hash = "counted"
    fields = ("semseg", "depth")

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> Tensor:
        return torch.full((3, 4, 6), index, dtype=torch.uint8)

    def has(self, name: str) -> np.ndarray[Any, Any]:
        index = np.arange(self.size)
        return (index % 5 != 4) & ((name != "depth") | (index % 3 != 2))

    def target(self, index: int, name: str) -> Tensor | None:
        if not self.has(name)[index]:
            return None
        return torch.full((4, 6), index % 19) if name == "semseg" else torch.full((1, 4, 6), float(index + 1))


@pytest.fixture
def dataset(fake_splits: dict[str, HDF5Data]) -> DenseDataset:
    return DenseDataset(fake_splits["train"], list(TASKS), label=3)


@pytest.fixture
def make(dataset: DenseDataset) -> Callable[..., DenseLoader]:
    def make(source: Any = None, batch_size: int = 3, **options: Any) -> DenseLoader:
        defaults: dict[str, Any] = {"key": KEY, "tasks": TASKS, "augmentation": Augmentation(), "train": True}
        return DenseLoader(dataset if source is None else source, batch_size, **(defaults | options))

    return make


def counted(size: int, label: int = 0, names: Sequence[str] = ("semseg",)) -> DenseDataset:
    return DenseDataset(Counted(size), names, label)


def epochs_of(loader: DenseLoader, count: int) -> list[list[Batch]]:
    return [list(loader) for _ in range(count)]


def same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        return torch.equal(x, y)
    if isinstance(x, TaskBatch):
        return len(x) == len(y) and same(x.entries, y.entries)
    if isinstance(x, dict):
        return list(x) == list(y) and all(same(x[key], y[key]) for key in x)
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(same(a, b) for a, b in zip(x, y, strict=True))
    return bool(x == y)


def global_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def disturb(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_the_same_bits_for_any_number_of_workers(make: Callable[..., DenseLoader]) -> None:
    assert same(epochs_of(make(workers=0), 2), epochs_of(make(workers=2), 2))


def test_global_random_states_are_neither_read_nor_changed(make: Callable[..., DenseLoader]) -> None:
    disturb(1)
    first = epochs_of(make(), 2)
    disturb(2)
    before = global_states()
    assert same(first, epochs_of(make(), 2))
    assert before == global_states()


def test_workers_leave_the_global_random_states_alone(make: Callable[..., DenseLoader]) -> None:
    before = global_states()
    list(make(workers=1))
    assert before == global_states()


def test_order_and_views_depend_on_seed_tasks_and_epoch(make: Callable[..., DenseLoader]) -> None:
    first, second = epochs_of(make(), 2)
    assert not same(first, second)
    assert not same(first, list(make(key=(1, KEY[1]))))
    assert not same(first, list(make(key=(0, "edges"))))
    later = make()
    later.epoch = 1
    assert same(second, list(later))  # an epoch does not depend on those before it


def test_every_epoch_sees_each_image_once(make: Callable[..., DenseLoader]) -> None:
    orders = [[position for batch in make(batch_size=4).batches(epoch) for position, _ in batch] for epoch in range(5)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_a_view_depends_on_the_image_and_not_on_its_place_or_the_batch_size(make: Callable[..., DenseLoader]) -> None:
    def flips(loader: DenseLoader) -> dict[int, bool]:
        return {index: loader._views.draw(index, 0).flip for index in range(8)}

    drawn = {index: Augmentation().draw(*KEY, 0, index).flip for index in range(8)}
    assert flips(make()) == flips(make(batch_size=5)) == flips(make(max_steps=1)) == drawn
    assert 0 < sum(drawn.values()) < 8


def test_training_drops_a_ragged_last_batch_unless_it_is_the_only_one(make: Callable[..., DenseLoader]) -> None:
    assert [len(y) for _, y, _ in make(batch_size=3)] == [3, 3]
    assert [len(y) for _, y, _ in make(batch_size=8)] == [8]
    assert [len(y) for _, y, _ in make(batch_size=50)] == [8]
    assert len(make(batch_size=3)) == 2
    assert len(make(batch_size=50)) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_the_step_limit_is_kept_over_epochs(make: Callable[..., DenseLoader], limit: int) -> None:
    loader = make(max_steps=limit)
    assert loader.epochs == -(-limit // 2)
    batches = [batch for epoch in epochs_of(loader, loader.epochs) for batch in epoch]
    assert len(batches) == limit == loader.step
    assert same(batches, [batch for epoch in epochs_of(make(), loader.epochs) for batch in epoch][:limit])
    assert list(loader) == []


def test_without_a_limit_epochs_are_the_callers(make: Callable[..., DenseLoader]) -> None:
    assert make().epochs is None


def test_evaluation_keeps_all_images_in_order_as_they_are(make: Callable[..., DenseLoader]) -> None:
    loader = make(counted(10), 4, augmentation=None, train=False)
    batches = list(loader)
    assert [len(y) for _, y, _ in batches] == [4, 4]
    seen = torch.cat([x[:, 0, 0, 0] for x, _, _ in batches])
    assert torch.equal((seen * 255).round().long(), torch.tensor([0, 1, 2, 3, 5, 6, 7, 8]))
    assert same(batches, list(loader))


def test_evaluation_keeps_a_ragged_last_batch(make: Callable[..., DenseLoader]) -> None:
    assert [len(y) for _, y, _ in make(batch_size=3, train=False, augmentation=None)] == [3, 3, 2]


def test_images_are_float_in_0_to_1(make: Callable[..., DenseLoader]) -> None:
    x, _, _ = next(iter(make(train=False, augmentation=None)))
    assert x.dtype == torch.float32
    assert 0 <= x.min() < 0.3 < x.max() <= 1


def test_a_dataset_is_the_images_that_have_some_label() -> None:
    assert counted(10).indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert counted(10, names=["depth"]).indices.tolist() == [0, 1, 3, 6, 7]
    both = counted(10, 7, ["semseg", "depth"])
    assert len(both) == 8
    sample = both[2]
    assert (sample.index, sample.label, set(sample.targets)) == (2, 7, {"semseg"})
    assert set(both[4].targets) == {"semseg"}
    assert set(both[0].targets) == {"semseg", "depth"}


def test_batches_carry_labels_and_the_rows_that_have_a_target(make: Callable[..., DenseLoader]) -> None:
    loader = make(counted(6, 2, ["semseg", "depth"]), 5, train=False, augmentation=None)
    _, y, labels = next(iter(loader))
    assert labels.tolist() == [2] * 5
    assert y.entries["semseg"].rows.tolist() == [0, 1, 2, 3, 4]
    assert y.entries["depth"].rows.tolist() == [0, 1, 3]


def test_a_flipped_view_is_the_transforms_flip(dataset: DenseDataset) -> None:
    sample = dataset[0]
    seen = View(flip=True).of(sample, TASKS)
    image, targets = transforms.flip(sample.image, sample.targets, TASKS)
    assert same(seen.image, image)
    assert same(seen.targets, targets)
    assert torch.equal(seen.image, sample.image.flip(-1))
    assert torch.equal(seen.targets["semseg"], sample.targets["semseg"].flip(-1))
    assert torch.equal(seen.targets["normals"][0], -sample.targets["normals"].flip(-1)[0])
    assert (seen.index, seen.label) == (sample.index, sample.label)


def test_a_zoomed_view_is_the_transforms_zoom_then_flip(dataset: DenseDataset) -> None:
    sample = dataset[1]
    seen = View(flip=True, zoom=1.5, top=0.25, left=0.75).of(sample, TASKS)
    zoomed = transforms.zoom(sample.image, sample.targets, TASKS, 1.5, 0.25, 0.75)
    image, targets = transforms.flip(*zoomed, TASKS)
    assert same(seen.image, image)
    assert same(seen.targets, targets)
    assert seen.image.shape == sample.image.shape


def test_the_identity_view_changes_nothing(dataset: DenseDataset) -> None:
    assert same(IDENTITY.of(dataset[0], TASKS), dataset[0])


def test_augmentation_draws_each_flip_and_zoom_evenly() -> None:
    drawn = [Augmentation(zooms=(1.0, 1.2, 1.5)).draw(0, "tasks", 0, index) for index in range(600)]
    assert 250 < sum(view.flip for view in drawn) < 350
    for zoom in (1.0, 1.2, 1.5):
        assert 150 < sum(view.zoom == zoom for view in drawn) < 250
    assert all(view in (IDENTITY, View(flip=True)) for view in drawn if view.zoom == 1.0)
    assert len({(view.top, view.left) for view in drawn if view.zoom > 1}) > 350


def test_augmentation_can_be_switched_off() -> None:
    assert {Augmentation(flip=False).draw(0, index) for index in range(20)} == {IDENTITY}


def test_views_are_listed_where_they_can_be() -> None:
    assert Augmentation().views == (IDENTITY, View(flip=True))
    assert Augmentation(flip=False).views == (IDENTITY,)
    assert Augmentation(zooms=(1.0, 1.5)).views is None
    drawn = {Augmentation().draw(0, index) for index in range(50)}
    assert drawn == set(Augmentation().views or ())


class Asked:
    """A feature source that answers with what it was asked."""

    def get(self, index: int, view: View) -> tuple[Tensor, ...]:
        return torch.full((2, 2, 3), float(index)), torch.full((1, 1, 1), float(view.flip))


def test_features_stand_for_images_and_belong_to_the_same_view(make: Callable[..., DenseLoader]) -> None:
    plain, kept = make(counted(8)), make(counted(8), features=Asked())
    for (x, y, labels), (features, other, other_labels) in zip(plain, kept, strict=True):
        assert isinstance(features, Features)
        indices = (x[:, 0, 0, 0] * 255).round()
        assert torch.equal(features[0][:, 0, 0, 0], indices)
        flips = [float(Augmentation().draw(*KEY, 0, int(index)).flip) for index in indices]
        assert features[1].flatten().tolist() == flips
        assert same(y, other)
        assert same(labels, other_labels)


def test_an_augmentation_is_made_of_its_options() -> None:
    assert as_augmentation(None) == Augmentation()
    given = Augmentation(flip=False, zooms=(1.5,))
    assert as_augmentation(given) is given
    assert as_augmentation({"flip": False, "zooms": [1, 1.5]}) == Augmentation(flip=False, zooms=(1.0, 1.5))
