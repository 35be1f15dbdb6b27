from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medusa_cl.batch import Features
from medusa_cl.data.features import FrozenFeatures, in_batches_of
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.data.loader import IDENTITY, Augmentation, DenseDataset, DenseLoader, View
from medusa_cl.errors import TrainingError
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


def test_kept_features_are_what_the_backbone_answers(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    source = fake_splits["train"]
    kept = FrozenFeatures(backbone, source, (IDENTITY, FLIPPED), batch_size=3)
    for view in (IDENTITY, FLIPPED):
        expected = in_batches_of(backbone, torch.stack([seen(source, i, view.flip) for i in range(8)]), 3)
        for index in range(8):
            for ours, theirs in zip(kept.get(index, view), expected, strict=True):
                assert torch.equal(ours, theirs[index])
                assert not ours.requires_grad
    assert kept.nbytes == 2 * sum(scale.nbytes for scale in expected)


def test_a_view_is_computed_once_in_full_batches(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    spy = Spy(backbone)
    kept = FrozenFeatures(backbone, fake_splits["train"], (IDENTITY,), batch_size=5, forward=spy)
    assert spy.sizes == [5, 5]
    kept.add(IDENTITY)
    assert spy.sizes == [5, 5]
    kept.add(FLIPPED)
    assert spy.sizes == [5] * 4


def test_a_zoomed_view_is_kept_zoomed(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    source, view = fake_splits["val"], View(zoom=1.5, top=0.5, left=0.5)
    dataset = DenseDataset(source, ["depth"], 0)
    kept = FrozenFeatures(backbone, source, (view,), batch_size=2)
    zoomed = torch.stack([view.of(dataset[i], {"depth": depth()}).image for i in range(2)])  # type: ignore[misc]
    for ours, theirs in zip(kept.get(1, view), backbone(zoomed), strict=True):
        assert torch.equal(ours, theirs[1])


def test_a_view_not_kept_is_no_other_one(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    kept = FrozenFeatures(backbone, fake_splits["val"], (IDENTITY,), batch_size=2)
    with pytest.raises(KeyError):
        kept.get(0, FLIPPED)


def test_a_trainable_backbone_is_refused(backbone: Backbone, fake_splits: dict[str, HDF5Data]) -> None:
    backbone.unfreeze()
    with pytest.raises(TrainingError, match=r"frozen backbone.*cache_features=off"):
        FrozenFeatures(backbone, fake_splits["val"], batch_size=2)


def test_loading_features_equals_loading_images_and_running_the_backbone(
    backbone: Backbone, fake_splits: dict[str, HDF5Data]
) -> None:
    source = fake_splits["train"]
    dataset, augmentation = DenseDataset(source, ["depth"], 0), Augmentation()
    features = FrozenFeatures(backbone, source, augmentation.views or (), batch_size=4)

    def loader(features: FrozenFeatures | None) -> DenseLoader:
        return DenseLoader(
            dataset,
            4,
            key=(0, "depth"),
            tasks={"depth": depth()},
            augmentation=augmentation,
            train=True,
            features=features,
        )

    for (x, y, _), (maps, other, _) in zip(loader(None), loader(features), strict=True):
        assert isinstance(maps, Features)
        assert all(torch.equal(a, b) for a, b in zip(in_batches_of(backbone, x, 4), maps, strict=True))
        assert torch.equal(y.entries["depth"].value, other.entries["depth"].value)
