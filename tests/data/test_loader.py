from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medusa_cl import tasks
from medusa_cl.batch import Features, Sample, TaskBatch
from medusa_cl.data import transforms
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import (
    IDENTITY,
    Augmentation,
    DenseDataset,
    DenseLoader,
    View,
    as_augmentation,
    padded_image,
)
from medusa_cl.errors import ConfigError, DataError
from medusa_cl.models import Backbone
from medusa_cl.randomness import stream

TASKS = {task.name: task for task in (tasks.semseg(19), tasks.depth(), tasks.normals())}
TASKS_OF_VARIOUS = {name: TASKS[name] for name in ("semseg", "depth")}
KEY = (0, "semseg+depth+normals")
Batch = list[Any]


class Counted:
    """A source without a file: image i is all i; every third has no depth, every fifth no label at all."""

    content_hash = "counted"
    fields = ("semseg", "depth")
    image_size = (4, 6)

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


class Various(Counted):
    """Image i, 4 + i high and 8 - i wide, is all 51 (.2), its targets all 1; the third has no depth."""

    image_size = (6, 8)

    def shape(self, index: int) -> tuple[int, int]:
        return 4 + index, 8 - index

    def image(self, index: int) -> Tensor:
        return torch.full((3, *self.shape(index)), 51, dtype=torch.uint8)

    def target(self, index: int, name: str) -> Tensor | None:
        if name == "semseg":
            return torch.ones(self.shape(index), dtype=torch.int64)
        return torch.ones(1, *self.shape(index)) if index < 2 else None

    def __repr__(self) -> str:
        return "some/folder (train)"


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


class Damaged(Dataset[Sample]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> Sample:
        try:
            raise OSError("cut short")
        except OSError as error:
            raise DataError(f"/somewhere/{position}.png cannot be read") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_an_image_is_said_alike_by_workers(workers: int) -> None:
    with pytest.raises(DataError) as error:
        list(DenseLoader(Damaged(), 2, tasks={}, workers=workers))
    assert str(error.value) == "/somewhere/0.png cannot be read"


def test_order_and_views_depend_on_seed_tasks_and_epoch(make: Callable[..., DenseLoader]) -> None:
    first, second = epochs_of(make(), 2)
    assert not same(first, second)
    assert not same(first, list(make(key=(1, KEY[1]))))
    assert not same(first, list(make(key=(0, "edges"))))
    later = make()
    later.go_to(1, 0)
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
    assert [len(y) for _, y, _ in batches] == [4, 3, 1]  # of images 0-3, 4-7 and 8-9; 4 and 9 have no label
    seen = torch.cat([x[:, 0, 0, 0] for x, _, _ in batches])
    assert torch.equal((seen * 255).round().long(), torch.tensor([0, 1, 2, 3, 5, 6, 7, 8]))
    assert same(batches, list(loader))


def test_a_batch_of_evaluation_is_the_same_whichever_other_tasks_are_asked_for(
    make: Callable[..., DenseLoader],
) -> None:
    source = Counted(11)

    def depths(*names: str) -> list[Tensor]:
        chosen = {name: TASKS[name] for name in names}
        loader = make(DenseDataset(source, chosen, 0), 4, augmentation=None, train=False)
        return [y.entries["depth"].value for _, y, _ in loader if "depth" in y.entries]

    assert same(depths("depth"), depths("semseg", "depth"))
    assert [len(value) for value in depths("depth")] == [3, 2, 1]  # 0 1 3; 6 7; 10


def test_processes_share_every_batch(make: Callable[..., DenseLoader]) -> None:
    for train in (True, False):
        options: dict[str, Any] = {"train": train, "augmentation": None}
        whole = make(counted(10), 4, **options).batches(1)
        shares = [make(counted(10), 4, shard=(rank, 2), **options).batches(1) for rank in (0, 1)]
        assert [batch[0::2] for batch in whole] == shares[0]
        assert [batch[1::2] for batch in whole if len(batch) > 1] == shares[1]


def test_a_batch_that_processes_cannot_share_evenly_is_refused(make: Callable[..., DenseLoader]) -> None:
    with pytest.raises(ConfigError, match=r"2 equal parts.*batch_size=3 and 8 images"):
        make(counted(10), 3, shard=(0, 2))
    with pytest.raises(ConfigError, match=r"10 equal parts.*batch_size=10 and 8 images"):
        make(counted(10), 10, shard=(0, 10))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pool_of_workers_loads_all_epochs(
    make: Callable[..., DenseLoader], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[DataLoader[Any]]()

    class Counting(DataLoader[Any]):
        def __iter__(self) -> Any:
            made.append(self)
            return super().__iter__()

    monkeypatch.setattr("medusa_cl.data.loader.DataLoader", Counting)
    loader = make(max_steps=5, workers=workers)
    batches = [batch for epoch in epochs_of(loader, 3) for batch in epoch]
    assert (len(batches), len(made)) == (5, 1)
    assert same(batches, [batch for epoch in epochs_of(make(), 3) for batch in epoch][:5])


def test_an_epoch_left_early_does_not_shift_the_next(make: Callable[..., DenseLoader]) -> None:
    whole, left = make(max_steps=6), make(max_steps=6)
    epochs = epochs_of(whole, 2)
    next(iter(left))
    assert same(epochs[1], list(left))


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
    assert labels.tolist() == [2] * 4  # image 4 has no label
    assert y.entries["semseg"].rows.tolist() == [0, 1, 2, 3]
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


def test_a_view_is_one_resampling_with_all_it_says(dataset: DenseDataset) -> None:
    sample = dataset[1]
    seen = View(flip=True, zoom=0.8, top=0.25, left=0.75, rotation=-15.0, size=(20, 30)).of(sample, TASKS)
    image, targets = transforms.resample(
        sample.image, sample.targets, TASKS, degrees=-15.0, factor=0.8, top=0.25, left=0.75, size=(20, 30), mirror=True
    )
    assert same(seen.image, image)
    assert same(seen.targets, targets)
    assert seen.image.shape == (3, 20, 30)


def test_views_are_keys() -> None:
    views = [
        View(True, 1.5, 0.1, 0.2, 3.0, (4, 5)),
        View(True, 1.5, 0.1, 0.2, 3.0, (4, 6)),
        View(rotation=3.0),
        IDENTITY,
    ]
    kept = {view: i for i, view in enumerate(views)}
    assert [kept[View(True, 1.5, 0.1, 0.2, 3.0, (4, 5))], kept[View()], len(kept)] == [0, 3, 4]
    assert View(True, 1.0, 0.0, 0.0) == View(flip=True) != IDENTITY


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


@pytest.mark.parametrize("zooms", [(1.0,), (1.0, 1.2, 1.5)])
def test_flips_and_zooms_are_drawn_as_ever(zooms: tuple[float, ...]) -> None:
    # Runs are compared across versions: the first four numbers of a key decide what they always decided.
    for index in range(50):
        flip, zoom, top, left = stream("view", *KEY, 7, index).random(4)
        factor = zooms[int(zoom * len(zooms))]
        place = (0.0, 0.0) if factor == 1.0 else (top, left)
        assert Augmentation(zooms=zooms).draw(*KEY, 7, index) == View(bool(flip < 0.5), factor, *place)
        more = Augmentation(zooms=zooms, rotation=20.0, crop=(448, 576)).draw(*KEY, 7, index)
        assert (more.flip, more.zoom, more.top, more.left) == (flip < 0.5, factor, top, left)


def test_drawn_views_are_pinned_to_the_bit() -> None:
    plain, everything = Augmentation(zooms=(1.0, 1.5)), Augmentation(scale=(0.5, 2.0), rotation=20.0, crop=(448, 576))
    assert [plain.draw(0, "tasks", 0, index) for index in range(2)] == [
        View(False, 1.5, 0.32614752014695136, 0.6651017594108198),
        View(flip=True),
    ]
    assert [everything.draw(0, "tasks", 0, index) for index in range(2)] == [
        View(False, 1.619308143380772, 0.32614752014695136, 0.6651017594108198, -8.087986994119678, (448, 576)),
        View(True, 0.9689393469890437, 0.25929595471330136, 0.2901243260144326, 19.627290743990535, (448, 576)),
    ]


def test_scales_angles_and_windows_are_drawn_evenly_and_apart() -> None:
    augmentation = Augmentation(scale=(0.5, 2.0), rotation=20.0, crop=(448, 576))
    views = [augmentation.draw(0, "tasks", 0, index) for index in range(600)]
    drawn = np.array([[(v.zoom - 0.5) / 1.5, v.rotation / 40 + 0.5, v.top, v.left, v.flip] for v in views])
    assert {view.size for view in views} == {(448, 576)}
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.06
    quarters = [np.histogram(column, bins=4, range=(0, 1))[0] for column in drawn.T[:4]]
    assert np.min(quarters) > 100  # of 150
    correlation = np.corrcoef(drawn.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.15


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.25, 1), st.floats(1, 4), st.floats(0, 180))
def test_a_drawn_view_is_in_its_ranges_and_always_the_same(
    epoch: int, index: int, low: float, high: float, angle: float
) -> None:
    augmentation = Augmentation(scale=(low, high), rotation=angle)
    view = augmentation.draw(*KEY, epoch, index)
    assert low <= view.zoom <= high
    assert abs(view.rotation) <= angle
    assert 0 <= view.top <= 1 and 0 <= view.left <= 1
    again = Augmentation(scale=(low, high), rotation=angle).draw(*KEY, epoch, index)
    assert view == again
    assert hash(view) == hash(again)


def test_batches_of_cropped_views_are_the_same_for_any_number_of_workers(make: Callable[..., DenseLoader]) -> None:
    augmentation = Augmentation(scale=(0.5, 2.0), rotation=20.0, crop=(20, 30))
    first, second = (list(make(augmentation=augmentation, workers=workers)) for workers in (0, 2))
    assert same(first, second)
    assert {x.shape for x, _, _ in first} == {(3, 3, 20, 30)}
    assert {entry.value.shape[-2:] for _, y, _ in first for entry in y.entries.values()} == {(20, 30)}


def test_views_are_listed_where_they_can_be() -> None:
    assert (Augmentation().count, Augmentation().views_of(3)) == (2, (IDENTITY, View(flip=True)))
    assert (Augmentation(flip=False).count, Augmentation(flip=False).views_of(3)) == (1, (IDENTITY,))
    endless: list[dict[str, Any]] = [{"zooms": (1.0, 1.5)}, {"scale": (0.5, 2.0)}, {"rotation": 5.0}, {"crop": (4, 4)}]
    assert {Augmentation(**options).count for options in endless} == {None}
    with pytest.raises(ConfigError, match=r"endless.*scenario.augment.views=8"):
        Augmentation(rotation=5.0).views_of(0)
    drawn = {Augmentation().draw(0, index) for index in range(50)}
    assert drawn == set(Augmentation().views_of(0))


def test_fixed_views_are_drawn_once_for_all_tasks_seeds_and_epochs() -> None:
    augmentation = Augmentation(zooms=(1.0, 1.2, 1.5), rotation=10.0, views=4)
    assert augmentation.count == 4
    for index in range(5):
        views = augmentation.views_of(index)
        keys = [(seed, task, epoch) for seed in range(3) for task in ("depth", "edges") for epoch in range(20)]
        assert {augmentation.draw(*key, index) for key in keys} == set(views)
        assert len(set(views)) == 4
    assert len({view for index in range(20) for view in augmentation.views_of(index)}) == 80  # each image has its own
    assert {view.zoom for index in range(20) for view in augmentation.views_of(index)} == {1.0, 1.2, 1.5}
    with pytest.raises(ConfigError, match="views of at least 1"):
        Augmentation(views=0)


class Asked:
    """A feature source that answers with what it was asked."""

    def __init__(self, on_disk: bool) -> None:
        self.on_disk = on_disk

    def row(self, index: int, view: View) -> int:
        return 2 * index + view.flip

    def take(self, rows: Tensor) -> Features:
        first = torch.ones(len(rows), 2, 2, 3) * (rows // 2).view(-1, 1, 1, 1)
        return Features((first, (rows % 2).view(-1, 1, 1, 1).float()))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_features_stand_for_images_and_belong_to_the_same_view(
    make: Callable[..., DenseLoader], on_disk: bool, workers: int
) -> None:
    plain, kept = make(counted(8)), make(counted(8), features=Asked(on_disk), workers=workers)
    for (x, y, labels), (features, other, other_labels) in zip(plain, kept, strict=True):
        assert isinstance(features, Features)
        indices = (x[:, 0, 0, 0] * 255).round()
        assert torch.equal(features[0][:, 0, 0, 0], indices)
        flips = [float(Augmentation().draw(*KEY, 0, int(index)).flip) for index in indices]
        assert features[1].flatten().tolist() == flips
        assert same(y, other)
        assert same(labels, other_labels)


def test_where_features_are_kept_no_image_is_read(
    make: Callable[..., DenseLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = Augmentation(scale=(0.5, 2.0), rotation=20.0, crop=(3, 5))
    expected = [y for _, y, _ in make(counted(8), augmentation=views)]
    monkeypatch.setattr(Counted, "image", None)
    loader = make(counted(8), augmentation=views, features=Asked(on_disk=False))
    assert same(expected, [y for _, y, _ in loader])


def test_an_augmentation_is_made_of_its_options() -> None:
    assert as_augmentation(None) == Augmentation()
    given = Augmentation(flip=False, zooms=(1.5,))
    assert as_augmentation(given) is given
    assert as_augmentation({"flip": False, "zooms": [1, 1.5]}) == Augmentation(flip=False, zooms=(1.0, 1.5))
    assert as_augmentation({"scale": [0.5, 2], "rotation": 20, "crop": [448, 576]}) == Augmentation(
        scale=(0.5, 2.0), rotation=20.0, crop=(448, 576)
    )


def test_options_may_be_null_and_come_from_a_configuration() -> None:
    nulls = dict.fromkeys(("flip", "zooms", "scale", "rotation", "crop"))
    assert as_augmentation(nulls) == as_augmentation({}) == Augmentation()
    given = OmegaConf.create({"zooms": [1.0], "scale": [0.75, 1.25], "rotation": 20, "crop": [512, 512]})
    made = as_augmentation(given)  # type: ignore[arg-type]
    assert made == Augmentation(scale=(0.75, 1.25), rotation=20.0, crop=(512, 512))
    assert hash(made) == hash(Augmentation(scale=(0.75, 1.25), rotation=20.0, crop=(512, 512)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotatoin": 20}, 'scenario.augment "rotatoin".*Did you mean "rotation"'),
        ({"zoom": [1.0]}, 'Did you mean "zooms"'),
        ({"flip": "no"}, "scenario.augment.flip as true or false, but got 'no'"),
        ({"zooms": 1.5}, "zooms as a list"),
        ({"zooms": "15"}, "zooms as a list"),
        ({"zooms": []}, "zooms"),
        ({"zooms": [1.0, 0.0]}, "> 0"),
        ({"zooms": [float("nan")]}, "> 0"),
        ({"scale": [0.5]}, r"scale as \[smallest, largest\]"),
        ({"scale": [2.0, 0.5]}, r"scale as \[smallest, largest\]"),
        ({"scale": [0.0, 0.5]}, "> 0"),
        ({"scale": [0.5, float("inf")]}, "> 0"),
        ({"rotation": -5}, r"rotation in \[0, 180\]"),
        ({"rotation": float("nan")}, r"rotation in \[0, 180\]"),
        ({"rotation": [20]}, "rotation as a number"),
        ({"crop": 448}, r"crop as \[height, width\]"),
        ({"crop": [448]}, r"crop as \[height, width\]"),
        ({"crop": [448.5, 576]}, r"crop as \[height, width\]"),
        ({"crop": [0, 576]}, r"crop as \[height, width\]"),
        ({"zooms": [1.0, 1.2], "scale": [0.5, 2.0]}, "both.*zooms=null"),
    ],
    ids=str,
)
def test_options_of_no_use_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_augmentation(options)


def test_images_of_different_sizes_are_padded_to_the_largest(make: Callable[..., DenseLoader]) -> None:
    dataset = DenseDataset(Various(3), TASKS_OF_VARIOUS, 0)
    x, y, _ = next(iter(make(dataset, 3, train=False, augmentation=None, tasks=TASKS_OF_VARIOUS)))
    assert x.shape == (3, 3, 6, 8)
    assert y.entries["depth"].rows.tolist() == [0, 1]
    for index, (height, width) in enumerate([(4, 8), (5, 7), (6, 6)]):
        there = torch.zeros(6, 8, dtype=torch.bool)
        there[:height, :width] = True
        assert torch.equal(y.entries["semseg"].value[index], torch.where(there, 1, 255))
        if index < 2:
            assert torch.equal(y.entries["depth"].value[index, 0], there.float())
        assert torch.equal(x[index][:, there], torch.full((3, height * width), 51.0) / 255)
        assert (x[index][:, ~there] == torch.tensor(transforms.MEAN_COLOUR)[:, None]).all()
        assert torch.equal(x[index], padded_image(Various(3), index))


def test_a_canvas_may_be_larger_than_any_image() -> None:
    sample = DenseDataset(Various(3), TASKS_OF_VARIOUS, 0, canvas=(10, 12))[2]
    assert isinstance(sample.image, Tensor)
    assert sample.image.shape == (3, 10, 12)
    assert sample.targets["semseg"].shape == (10, 12)
    assert padded_image(Various(3), 2, (10, 12)).shape == (3, 10, 12)


def test_an_image_larger_than_the_canvas_is_refused() -> None:
    dataset = DenseDataset(Various(3), TASKS_OF_VARIOUS, 0, canvas=(5, 8))
    assert len({dataset[i].image.shape for i in (0, 1)}) == 1  # type: ignore[union-attr]
    for read in (lambda: dataset[2], lambda: padded_image(Various(3), 2, (5, 8))):
        with pytest.raises(DataError, match=r"Image 2 of some/folder \(train\).*5x8.*6x6.*scenario.image_size"):
            read()


def test_names_alone_mean_no_padding() -> None:
    dataset = DenseDataset(Various(3), ["semseg", "depth"], 0)
    assert [dataset[i].image.shape for i in range(3)] == [(3, 4, 8), (3, 5, 7), (3, 6, 6)]  # type: ignore[union-attr]


def test_padding_changes_nothing_where_sizes_agree(fake_splits: dict[str, HDF5Data], dataset: DenseDataset) -> None:
    padded = DenseDataset(fake_splits["train"], TASKS, label=3)
    assert len(padded) == len(dataset) == 8
    assert all(same(tuple(padded[i]), tuple(dataset[i])) for i in range(8))


def test_kept_features_are_of_the_padded_image() -> None:
    backbone = Backbone.create("test_efficientnet", pretrained=False)
    backbone.freeze()
    view = View(flip=True)
    kept = FrozenFeatures(backbone, Various(3), Augmentation(), batch_size=3, extract=lambda images: (images,))
    dataset = DenseDataset(Various(3), TASKS_OF_VARIOUS, 0)
    for index in range(3):
        assert same(kept.get(index, IDENTITY)[0], dataset[index].image)
        assert same(kept.get(index, view)[0], view.of(dataset[index], TASKS).image)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 2), (1, 1), (1, 3), (2, 1)])
def test_loading_goes_on_from_any_place(fake_splits: dict[str, HDF5Data], workers: int, epoch: int, batch: int) -> None:
    def loader() -> DenseLoader:
        known = {"depth": tasks.depth()}
        data = DenseDataset(fake_splits["train"], known, 0)
        options: dict[str, Any] = {"augmentation": Augmentation(), "train": True, "max_steps": 8, "workers": workers}
        return DenseLoader(data, 2, key=(0, "depth"), tasks=known, **options)

    whole, later = loader(), loader()
    later.go_to(epoch, batch)
    every = [(whole.position, x.clone()) for _ in range(3) for x, _, _ in whole]
    rest = [(later.position, x.clone()) for _ in range(3 - epoch) for x, _, _ in later]
    assert len(every) == 8
    assert [place for place, _ in rest] == [place for place, _ in every if place > (epoch, batch)]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(rest, every[8 - len(rest) :], strict=True))
