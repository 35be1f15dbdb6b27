from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

from medusa_cl.batch import Features
from medusa_cl.data.features import PRECISIONS, FrozenFeatures, at_a_time, in_batches_of, need, size
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import IDENTITY, Augmentation, DenseDataset, DenseLoader, View
from medusa_cl.errors import ConfigError, DataError, TrainingError
from medusa_cl.models import Backbone, MultiTaskModel
from medusa_cl.tasks import depth

FLIPPED = View(flip=True)


@pytest.fixture
def backbone(tiny_model: Callable[..., MultiTaskModel]) -> Backbone:
    made = tiny_model().backbone
    made.freeze()
    return made


@pytest.fixture
def images() -> Tensor:
    return torch.rand(7, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Spy:
    """Remembers the sizes of the batches it was called on."""

    def __init__(self, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.forward, self.sizes = forward, list[int]()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.float32
        assert 0 <= x.min() < 0.3 < x.max() <= 1
        self.sizes.append(len(x))
        return self.forward(x)


def seen(source: HDF5Data, index: int, flip: bool) -> Tensor:
    image = source.image(index)
    image = image / 255 if image.dtype == torch.uint8 else image
    return image.flip(-1) if flip else image


def test_batches_are_full_whatever_the_number_of_images(backbone: Backbone, images: Tensor) -> None:
    whole = in_batches_of(backbone, images, 3)
    for count in range(1, 8):
        spy = Spy(backbone)
        part = in_batches_of(spy, images[:count], 3)
        assert set(spy.sizes) == {3}
        assert all(torch.equal(p, w[:count]) for p, w in zip(part, whole, strict=True))


def test_an_image_does_not_depend_on_its_neighbours(backbone: Backbone, images: Tensor) -> None:
    whole, reverse = in_batches_of(backbone, images, 3), in_batches_of(backbone, images.flip(0), 3)
    assert all(torch.equal(w, r.flip(0)) for w, r in zip(whole, reverse, strict=True))


@pytest.mark.parametrize(("name", "expected"), [("test_resnet", 6), ("test_efficientnet", 1), ("test_vit", 1)])
def test_images_come_one_by_one_where_their_place_in_a_batch_matters(name: str, expected: int) -> None:
    net = Backbone.create(name, pretrained=False)
    net.freeze()
    assert at_a_time(net, 6) == expected
    draw = torch.Generator().manual_seed(0)
    images = 20 * torch.randn(6, 3, 32, 64, generator=draw)  # so large that activations have something to round
    whole = in_batches_of(net, images, expected)
    for roll in range(1, 6):
        rolled = in_batches_of(net, images.roll(roll, 0), expected)
        assert all(torch.equal(w.roll(roll, 0), r) for w, r in zip(whole, rolled, strict=True))


def test_kept_features_are_what_the_backbone_answers(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    source = fake_splits["train"]
    kept = FrozenFeatures(backbone, source, Augmentation(), batch_size=3)
    for view in (IDENTITY, FLIPPED):
        expected = in_batches_of(backbone, torch.stack([seen(source, i, view.flip) for i in range(8)]), 1)
        for index in range(8):
            for ours, theirs in zip(kept.get(index, view), expected, strict=True):
                assert torch.equal(ours, theirs[index])
                assert not ours.requires_grad
    assert kept.nbytes == 2 * sum(scale.nbytes for scale in expected)


def test_what_is_needed_is_known_before(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    source = fake_splits["train"]
    for precision, share in (("32", 1), ("bf16", 2), ("fp16", 2)):
        expected = FrozenFeatures(backbone, source, Augmentation(), batch_size=3, precision=precision)
        assert need(backbone, source, Augmentation(), precision).bytes == expected.nbytes
        assert expected.nbytes * share == FrozenFeatures(backbone, source, Augmentation(), batch_size=3).nbytes
    for crop in ((32, 32), (64, 96)):
        views = Augmentation(crop=crop, views=2)
        expected = FrozenFeatures(backbone, source, views, batch_size=3)
        assert need(backbone, source, views, "32").bytes == expected.nbytes


def test_every_view_is_computed_once_in_full_batches(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(backbone)
    monkeypatch.setattr("medusa_cl.data.features.at_a_time", lambda *given: given[-1])
    FrozenFeatures(backbone, fake_splits["train"], Augmentation(), batch_size=5, extract=spy)
    assert spy.sizes == [5] * 4  # 8 images, 2 views


def test_fixed_views_are_kept_as_they_are_drawn(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    source, augmentation = fake_splits["val"], Augmentation(zooms=(1.0, 1.5), rotation=10.0, views=3)
    dataset = DenseDataset(source, ["depth"], 0)
    kept = FrozenFeatures(backbone, source, augmentation, batch_size=2)
    for view in augmentation.views_of(1):
        image = view.of(dataset[1], {"depth": depth()}).image
        assert isinstance(image, Tensor)
        for ours, theirs in zip(kept.get(1, view), in_batches_of(backbone, image[None], 1), strict=True):
            assert torch.equal(ours, theirs[0])


def test_a_view_not_kept_is_no_other_one(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    kept = FrozenFeatures(backbone, fake_splits["val"], batch_size=2)
    with pytest.raises(KeyError):
        kept.get(0, FLIPPED)


def test_what_cannot_be_kept_is_refused(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    with pytest.raises(ConfigError, match=r"endless.*scenario.augment.views=8"):
        FrozenFeatures(backbone, fake_splits["val"], Augmentation(rotation=5.0), batch_size=2)
    with pytest.raises(ConfigError, match=r'cache_precision "16".*fp16'):
        FrozenFeatures(backbone, fake_splits["val"], batch_size=2, precision="16")
    backbone.unfreeze()
    with pytest.raises(TrainingError, match=r"frozen backbone.*cache_features=off"):
        FrozenFeatures(backbone, fake_splits["val"], batch_size=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_loading_features_equals_loading_images_and_running_the_backbone(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path, where: str, workers: int
) -> None:
    source = fake_splits["train"]
    dataset, augmentation = DenseDataset(source, ["depth"], 0), Augmentation()
    folder = tmp_path if where == "disk" else None
    features = FrozenFeatures(backbone, source, augmentation, batch_size=4, folder=folder, workers=workers)

    def loader(features: FrozenFeatures | None) -> DenseLoader:
        return DenseLoader(
            dataset,
            4,
            key=(0, "depth"),
            tasks={"depth": depth()},
            augmentation=augmentation,
            train=True,
            features=features,
            workers=workers,
        )

    for (x, y, _), (maps, other, _) in zip(loader(None), loader(features), strict=True):
        assert isinstance(maps, Features)
        assert all(torch.equal(a, b) for a, b in zip(in_batches_of(backbone, x, 1), maps, strict=True))
        assert torch.equal(y.entries["depth"].value, other.entries["depth"].value)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2**-8), ("fp16", 2**-11)])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_half_precision_is_near(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path, where: str, precision: str, tolerance: float
) -> None:
    folder = tmp_path if where == "disk" else None
    whole = FrozenFeatures(backbone, fake_splits["val"], batch_size=2)
    half = FrozenFeatures(backbone, fake_splits["val"], batch_size=2, precision=precision, folder=folder)
    for exact, rounded in zip(whole.get(1, IDENTITY), half.get(1, IDENTITY), strict=True):
        assert rounded.dtype == PRECISIONS[precision]
        assert not torch.equal(exact, rounded.float())
        torch.testing.assert_close(rounded.float(), exact, rtol=tolerance, atol=1e-4 * tolerance)


def test_a_file_is_computed_once(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(backbone)
    monkeypatch.setattr("medusa_cl.data.features.at_a_time", lambda *given: given[-1])
    options: dict[str, Any] = {"batch_size": 4, "folder": tmp_path, "extract": spy}
    first = FrozenFeatures(backbone, fake_splits["train"], **options)
    again = FrozenFeatures(backbone, fake_splits["train"], **options)
    assert spy.sizes == [4, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{first.digest[:32]}.h5", f"{first.digest[:32]}.h5.lock"]
    assert all(torch.equal(a, b) for a, b in zip(first.get(5, IDENTITY), again.get(5, IDENTITY), strict=True))


def test_a_file_belongs_to_weights_data_views_batch_size_and_precision(
    backbone: Backbone, tiny_model: Callable[..., MultiTaskModel], fake_splits: dict[str, HDF5Data], tmp_path: Path
) -> None:
    other = tiny_model(weights_seed=1).backbone
    other.freeze()
    options: dict[str, Any] = {"batch_size": 4, "folder": tmp_path}
    train = fake_splits["train"]
    paths = [
        FrozenFeatures(net, source, views, **(options | changed)).path
        for net, source, views, changed in (
            (backbone, train, Augmentation(), {}),
            (other, train, Augmentation(), {}),
            (backbone, fake_splits["val"], Augmentation(), {}),
            (backbone, train, Augmentation(flip=False), {}),
            (backbone, train, Augmentation(), {"batch_size": 2}),
            (backbone, train, Augmentation(), {"precision": "bf16"}),
            (backbone, train, Augmentation(), {"key": {"threads": 2}}),
        )
    ]
    assert len(set(paths)) == len(paths)


def test_a_file_of_something_else_is_refused(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path
) -> None:
    def kept(**changed: Any) -> FrozenFeatures:
        return FrozenFeatures(backbone, fake_splits["val"], **({"batch_size": 2, "folder": tmp_path} | changed))

    small, large = kept().path, kept(batch_size=4).path
    assert small is not None and large is not None
    small.replace(large)
    with pytest.raises(DataError, match=r"under another batch_size. Delete the file"):
        kept(batch_size=4)


def test_damage_is_found_and_named(backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path) -> None:
    """A flipped byte of a feature is found when it is read; a file cut short, when it is opened."""
    source = fake_splits["val"]
    kept = FrozenFeatures(backbone, source, batch_size=2, folder=tmp_path)
    assert kept.path is not None
    with h5py.File(kept.path) as file:
        place = file["scale0"].id.get_chunk_info(0).byte_offset
    content = bytearray(kept.path.read_bytes())
    content[place + 10] ^= 1
    kept.path.write_bytes(content)
    again = FrozenFeatures(backbone, source, batch_size=2, folder=tmp_path)
    with pytest.raises(DataError, match=rf"{kept.path.name} are damaged .*Delete the file"):
        again.get(0, IDENTITY)
    kept.path.unlink()  # the one that is open
    kept.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{kept.path.name} are damaged .*Delete the file"):
        FrozenFeatures(backbone, source, batch_size=2, folder=tmp_path)


def test_an_interrupted_or_failed_write_leaves_nothing(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path
) -> None:
    def failing(error: BaseException) -> Callable[[Tensor], tuple[Tensor, ...]]:
        calls = iter(range(99))

        def extract(images: Tensor) -> tuple[Tensor, ...]:
            if next(calls):
                raise error
            return backbone(images)  # type: ignore[no-any-return]

        return extract

    for error in (KeyboardInterrupt(), FileNotFoundError("photos/5.png")):  # the latter of reading an image
        with pytest.raises(type(error)):
            FrozenFeatures(backbone, fake_splits["train"], batch_size=4, folder=tmp_path, extract=failing(error))
        assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    FrozenFeatures(backbone, fake_splits["train"], batch_size=4, folder=tmp_path)


def test_progress_is_told(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    told = list[tuple[int, int]]()
    options: dict[str, Any] = {"batch_size": 6, "progress": lambda *numbers: told.append(numbers)}
    FrozenFeatures(backbone, fake_splits["train"], Augmentation(), **options)
    assert told == [(6, 16), (12, 16), (16, 16)]


def test_a_full_disk_is_explained(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("medusa_cl.data.features.os.replace", "h5py.Group.create_dataset", "h5py.File.__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(DataError, match=r"No space left.*free there.*Free some space, set strategy.cache_dir"):
                FrozenFeatures(backbone, fake_splits["train"], batch_size=4, folder=tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_processes_that_load_get_no_backbone_and_no_memory(
    backbone: Backbone, fake_splits: dict[str, HDF5Data], tmp_path: Path, where: str
) -> None:
    folder = tmp_path if where == "disk" else None
    kept = FrozenFeatures(backbone, fake_splits["train"], batch_size=4, folder=folder, progress=lambda *numbers: None)
    content = pickle.dumps(kept)
    assert len(content) < 10_000
    there = pickle.loads(content)
    assert there.row(3, IDENTITY) == 3
    if where == "disk":
        assert all(torch.equal(a, b) for a, b in zip(there.get(3, IDENTITY), kept.get(3, IDENTITY), strict=True))


class Broken:
    """A split whose second image cannot be read."""

    content_hash = "broken"
    fields = ("depth",)
    image_size = (32, 48)

    def __len__(self) -> int:
        return 4

    def image(self, index: int) -> Tensor:
        if index == 1:
            raise DataError("photos/1.png is damaged")
        return torch.zeros(3, 32, 48)

    def target(self, index: int, name: str) -> None:
        return None

    def has(self, name: str) -> Any:
        return torch.zeros(4, dtype=torch.bool).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(backbone: Backbone, workers: int) -> None:
    with pytest.raises(DataError) as raised:
        FrozenFeatures(backbone, Broken(), batch_size=2, workers=workers)
    assert str(raised.value) == "photos/1.png is damaged"


def test_bytes_are_readable() -> None:
    numbers = {0: "0 B", 999: "999 B", 1000: "0.977 KiB", 2048: "2 KiB", 1000 * 2**20: "0.977 GiB", 3 * 2**40: "3 TiB"}
    assert {n: size(n) for n in numbers} == numbers
