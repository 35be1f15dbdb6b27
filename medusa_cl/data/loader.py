"""Loading whose every choice is a pure function of a counter, never of a global state or a worker's.

The order of a pass is f(seed, tasks, epoch) and the view of an image f(seed, tasks, epoch, image index), so the same
numbers come out for any number of workers, and a run can go on from any step knowing only where it stopped.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medusa_cl.batch import Features, Sample, collate
from medusa_cl.data import transforms
from medusa_cl.data.parallel import loading_options
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, DataError, MedusaError, unknown
from medusa_cl.memory import lost_worker
from medusa_cl.randomness import generator, permutation, stream

if TYPE_CHECKING:
    from medusa_cl.tasks import DenseTask


T = TypeVar("T")
_images_wanted: ContextVar[bool] = ContextVar("images_wanted", default=True)


@contextmanager
def without_images() -> Iterator[None]:
    """Let datasets read targets alone, with images of no channels: where features stand in their place."""
    token = _images_wanted.set(False)
    try:
        yield
    finally:
        _images_wanted.reset(token)


def unit_image(source: DenseData, index: int) -> Tensor:
    """Return an image of a source as float32 3 H W in [0, 1], also where it is stored in bytes."""
    image = source.image(index)
    return image.float() / 255 if image.dtype == torch.uint8 else image


def padded_image(source: DenseData, index: int, canvas: tuple[int, int] | None = None) -> Tensor:
    """Return an image as `unit_image` does, padded at the bottom and the right.

    Args:
        source: The split.
        index: Which image.
        canvas: H, W to reach; by default the source's `image_size`.

    Returns:
        3 H W float32 in [0, 1], the border of `transforms.MEAN_COLOUR`.

    Raises:
        DataError: The image is larger than the canvas.
    """
    return _padded(source, index, unit_image(source, index), {}, {}, canvas or source.image_size)[0]


def _padded(
    source: DenseData,
    index: int,
    image: Tensor,
    targets: Mapping[str, Tensor],
    tasks: Mapping[str, DenseTask],
    canvas: tuple[int, int],
) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        return transforms.pad(image, targets, tasks, canvas)
    except DataError as error:
        larger = image.shape[-2] > canvas[0] or image.shape[-1] > canvas[1]
        advice = " Set scenario.image_size to the height and width of the largest image." if larger else ""
        raise DataError(f"Image {index} of {source}: {error}{advice}") from error


class DenseDataset(Dataset[Sample]):
    """The images of a source that carry at least one of some tasks, as samples of one size.

    Args:
        source: Where images and targets are read from.
        tasks: The tasks whose targets are read, by name. Names alone will do where all images have one size: samples
            are then not padded.
        label: The label of the experience.
        canvas: H, W to which images are padded at the bottom and the right, border ignored in every target; by default
            the source's `image_size`.
    """

    def __init__(
        self,
        source: DenseData,
        tasks: Mapping[str, DenseTask] | Sequence[str],
        label: int,
        canvas: tuple[int, int] | None = None,
    ) -> None:
        self.source, self.tasks, self.label = source, tuple(tasks), label
        self._known = tasks if isinstance(tasks, Mapping) else None
        self._canvas = canvas
        labelled = np.zeros(len(source), dtype=bool)
        for task in self.tasks:
            labelled |= np.asarray(source.has(task))
        self.indices = np.flatnonzero(labelled)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        index = int(self.indices[position])
        targets = {task: self.source.target(index, task) for task in self.tasks}
        present = {task: target for task, target in targets.items() if target is not None}
        image = self._image(index, present)
        if self._known is not None:
            canvas = self._canvas or self.source.image_size
            image, present = _padded(self.source, index, image, present, self._known, canvas)
        return Sample(image, present, index, self.label)

    def _image(self, index: int, targets: Mapping[str, Tensor]) -> Tensor:
        if _images_wanted.get() or not targets:
            return unit_image(self.source, index)
        return torch.empty(0, *next(iter(targets.values())).shape[-2:])


@dataclass(frozen=True)
class View:
    """One way of looking at an image: rotated, then scaled, a window of it taken, then mirrored, in one resampling.

    Attributes:
        flip: Mirrored left to right.
        zoom: Scaled by this factor and seen through a window at (`top`, `left`), fractions of the room there is.
        top: Where the window stands vertically, in [0, 1].
        left: Where it stands horizontally, in [0, 1].
        rotation: Degrees about the image's centre, counter-clockwise as seen.
        size: H, W of the window; None for the image's own.
    """

    flip: bool = False
    zoom: float = 1.0
    top: float = 0.0
    left: float = 0.0
    rotation: float = 0.0
    size: tuple[int, int] | None = None

    def of(self, sample: Sample, tasks: Mapping[str, DenseTask]) -> Sample:
        """Return the sample seen so, targets changed with the image."""
        if self == IDENTITY:
            return sample
        assert isinstance(sample.image, Tensor)  # features are those of a view already
        image, targets = transforms.resample(
            sample.image,
            sample.targets,
            tasks,
            degrees=self.rotation,
            factor=self.zoom,
            top=self.top,
            left=self.left,
            size=self.size,
            mirror=self.flip,
        )
        return sample._replace(image=image, targets=targets)


IDENTITY = View()


@dataclass(frozen=True)
class Augmentation:
    """How training images vary: a flip with probability one half, a scale, a rotation, a window.

    Attributes:
        flip: Whether images are mirrored.
        zooms: The zoom factors, drawn evenly.
        scale: Instead of `zooms`, the smallest and largest factor: uniform between them.
        rotation: The largest angle in degrees: uniform between -rotation and rotation.
        crop: H, W of a window drawn evenly from the scaled image; None for the image's own size.
        views: So many views of each image are drawn once, the same for every task, seed and epoch, and each draw is one
            of them: then a frozen backbone's features can be kept. None for new ones in every epoch.

    Raises:
        ConfigError: A number is out of its range, or both `zooms` and `scale` are given.
    """

    flip: bool = True
    zooms: tuple[float, ...] = (1.0,)
    scale: tuple[float, float] | None = None
    rotation: float = 0.0
    crop: tuple[int, int] | None = None
    views: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no view can be drawn of."""
        factors = self.zooms if self.scale is None else self.scale
        _require(len(self.zooms) > 0 and all(0 < f < math.inf for f in factors), "zooms or scale", "> 0", factors)
        _require(factors is self.zooms or factors[0] <= factors[1], "scale", "as [smallest, largest]", factors)
        _require(0 <= self.rotation <= 180, "rotation", "in [0, 180] degrees", self.rotation)
        _require(self.crop is None or min(self.crop) >= 1, "crop", "as [height, width] in pixels", self.crop)
        _require(self.views is None or self.views >= 1, "views", "of at least 1", self.views)
        if self.scale is not None and self.zooms != (1.0,):
            raise ConfigError(
                f"Expected scenario.augment.zooms or .scale, but got both: {list(self.zooms)} and {list(self.scale)}. "
                "Set scenario.augment.zooms=null to draw from the range, or scenario.augment.scale=null for the list."
            )

    def draw(self, *key: int | str) -> View:
        """Return the view that belongs to `key`, always the same.

        Args:
            *key: Counters, the last one the index of the image.
        """
        if self.views is not None:
            return self.views_of(int(key[-1]))[int(stream("view", *key).random() * self.views)]
        rng = stream("view", *key)
        flip, zoom, top, left = rng.random(4)
        scale, angle = rng.random(2)  # later options draw later numbers: the views of the earlier ones stay the same
        factor = self.zooms[int(zoom * len(self.zooms))] if self.scale is None else _between(*self.scale, scale)
        place = (float(top), float(left)) if factor != 1.0 or self.crop else (0.0, 0.0)
        degrees = _between(-self.rotation, self.rotation, angle) if self.rotation else 0.0
        return View(self.flip and bool(flip < 0.5), float(factor), *place, degrees, self.crop)

    @property
    def count(self) -> int | None:
        """How many views an image has; None where they are endless."""
        if self.views is not None:
            return self.views
        if any(zoom != 1.0 for zoom in self.zooms) or self.scale or self.rotation or self.crop:
            return None
        return 2 if self.flip else 1

    def views_of(self, index: int) -> tuple[View, ...]:
        """Return the views of an image, where they are not endless.

        Raises:
            ConfigError: They are.
        """
        if self.views is not None:
            return _fixed_views(replace(self, views=None), index, self.views)
        if self.count is None:
            raise ConfigError("The views of this augmentation are endless; scenario.augment.views=8 draws 8 an image.")
        return (IDENTITY, View(flip=True))[: self.count]


@functools.lru_cache(maxsize=4096)
def _fixed_views(augmentation: Augmentation, index: int, count: int) -> tuple[View, ...]:
    return tuple(augmentation.draw("fixed", number, index) for number in range(count))


def _between(low: float, high: float, share: float) -> float:
    return float(low + (high - low) * share)


def _require(met: bool, option: str, expected: str, got: object) -> None:
    if not met:
        raise ConfigError(f"Expected scenario.augment.{option} {expected}, but got {got}.")


def as_augmentation(options: Mapping[str, Any] | Augmentation | None) -> Augmentation:
    """Return an `Augmentation` of its options.

    Args:
        options: The attributes of `Augmentation` as a configuration gives them, all optional, null for the default; or
            the `Augmentation` itself; None for the default, a flip alone.

    Raises:
        ConfigError: An option is unknown or its value is of no use.
    """
    if options is None or isinstance(options, Augmentation):
        return options or Augmentation()
    known = {field.name for field in fields(Augmentation)}
    for name in options:
        if name not in known:
            raise ConfigError(unknown("option of scenario.augment", name, known))
    return Augmentation(**{name: _option(name, value) for name, value in options.items() if value is not None})


def _option(name: str, value: Any) -> Any:
    read, expected = _OPTIONS[name]
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Expected scenario.augment.{name} as {expected}, but got {value!r}.") from error


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):  # whose characters could be numbers
        raise TypeError(value)
    return tuple(float(number) for number in value)


def _range(value: Any) -> tuple[float, float]:
    low, high = _numbers(value)
    return low, high


def _window(value: Any) -> tuple[int, int]:
    height, width = value
    return operator.index(height), operator.index(width)


_OPTIONS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "flip": (_flag, "true or false"),
    "zooms": (_numbers, "a list of factors"),
    "scale": (_range, "[smallest, largest] factor"),
    "rotation": (float, "a number of degrees"),
    "crop": (_window, "[height, width] in whole pixels"),
    "views": (operator.index, "a whole number"),
}


class FeatureSource(Protocol):
    """Gives the features of images' views without running the backbone."""

    @property
    def on_disk(self) -> bool:
        """Whether they are read from a file, which the processes that load do."""
        ...

    def row(self, index: int, view: View) -> int:
        """Return the number of an image's view."""
        ...

    def take(self, rows: Tensor) -> Features:
        """Return the features B C_s H_s W_s of every scale, of views int64 B."""
        ...


class _Views(Dataset[Sample]):
    """Samples by (position, epoch); the epoch decides the view."""

    def __init__(
        self,
        dataset: Dataset[Sample],
        tasks: Mapping[str, DenseTask],
        draw: Callable[[int, int], View],
        features: FeatureSource | None,
    ) -> None:
        self.dataset, self.tasks, self.draw, self.features = dataset, tasks, draw, features

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, epoch = key
        if self.features is None:
            sample = self.dataset[position]
            return self._view(sample, epoch).of(sample, self.tasks)
        with without_images():
            sample = self.dataset[position]
        view = self._view(sample, epoch)
        return view.of(sample, self.tasks)._replace(image=torch.tensor(self.features.row(sample.index, view)))

    def _view(self, sample: Sample, epoch: int) -> View:
        return self.draw(sample.index, epoch)


def _identity_view(index: int, epoch: int) -> View:
    return IDENTITY


class DenseLoader:
    """Batches of a dataset, epoch after epoch; each iteration over it is the next epoch.

    Where `max_steps` says how long training is, the processes that load stay from the first epoch to the last. What
    comes after any batch is known from its place alone, so loading can go on from there (`go_to`).

    Args:
        dataset: Samples by position, any dataset of the scenario or a concatenation of such.
        batch_size: Images a batch, of all processes that train together.
        key: What order and views depend on besides epoch and image: (seed, names of the tasks).
        tasks: Every task whose targets may occur.
        augmentation: How images vary; None for training and evaluation as they are.
        features: Gives features in place of images.
        train: Shuffle, and drop a ragged last batch unless it is the only one. Otherwise a `DenseDataset` comes in
            order, and a batch holds what is labelled of `batch_size` consecutive images: it is the same whichever
            other tasks are asked for.
        max_steps: Batches in all, over all epochs.
        workers: Processes that load; 0 loads in this one.
        pin_memory: Whether batches are put in page-locked memory.
        shard: (rank, world): this process takes the positions rank::world of every batch.

    Raises:
        ConfigError: A batch cannot be divided evenly among the processes that train.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        key: tuple[int | str, ...] = (),
        tasks: Mapping[str, DenseTask],
        augmentation: Augmentation | None = None,
        features: FeatureSource | None = None,
        train: bool = False,
        max_steps: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset, self.batch_size, self.key, self.train = dataset, batch_size, key, train
        self.max_steps, self.shard = max_steps, shard
        self._epoch = self._batch = 0  # of what was handed out last
        self._begun = False
        self.features, self._pin = features, pin_memory
        draw = functools.partial(_drawn, augmentation, key) if augmentation else _identity_view
        self._views = _Views(dataset, tasks, draw, features)
        read = features.take if features is not None and features.on_disk else None
        self._options: dict[str, Any] = {
            **loading_options(workers),
            "pin_memory": pin_memory,
            "collate_fn": functools.partial(_collate, read),
        }
        self._running: tuple[int, Iterator[list[Any]]] | None = None
        if train and (batch_size % shard[1] or len(dataset) < shard[1]):
            raise ConfigError(
                f"Expected batches of {shard[1]} equal parts, one for each process, but got trainer.batch_size="
                f"{batch_size} and {len(dataset)} images. Change the batch size or the number of processes."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches a pass, or the only one."""
        return max(len(self.dataset) // self.batch_size, 1) if self.train else len(self.batches(0))

    @property
    def epochs(self) -> int | None:
        """Passes needed for `max_steps`; None without such a limit."""
        return None if self.max_steps is None else -(-self.max_steps // self.batches_per_epoch)

    def __len__(self) -> int:
        return self.batches_per_epoch

    @property
    def position(self) -> tuple[int, int]:
        """The epoch that is being handed out, and how many of its batches have been."""
        return self._epoch, self._batch

    @property
    def step(self) -> int:
        """Batches handed out over all epochs."""
        return self._epoch * self.batches_per_epoch + self._batch

    def go_to(self, epoch: int, batch: int) -> None:
        """Let the next iteration be the rest of an epoch from a batch on, with the same batches as ever; maybe none."""
        self._epoch, self._batch, self._begun, self._running = epoch, batch, False, None

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Return the (position, epoch) of every sample of every batch of a pass, this process's share of them."""
        rank, world = self.shard
        shares = ([(int(position), epoch) for position in batch[rank::world]] for batch in self._whole_batches(epoch))
        return [share for share in shares if share]

    def _whole_batches(self, epoch: int) -> list[Any]:
        count, size = len(self.dataset), self.batch_size
        if self.train:
            order = permutation(count, "order", *self.key, epoch)
            return [order[i * size : (i + 1) * size] for i in range(self.batches_per_epoch)]
        images = self.dataset.indices if isinstance(self.dataset, DenseDataset) else np.arange(count)
        starts = np.flatnonzero(np.diff(images // size)) + 1
        return np.split(np.arange(count), starts)

    def __iter__(self) -> Iterator[list[Any]]:
        if self._begun:
            self._epoch, self._batch = self._epoch + 1, 0
        self._begun = True
        epoch, first = self.position
        left = math.inf if self.max_steps is None else self.max_steps - self.step
        count = int(min(self.batches_per_epoch - first, left))
        if count > 0 and (self._running is None or self._running[0] != epoch):
            self._running = epoch, self._loaded(epoch, first)
        for number in range(1, count + 1):
            assert self._running is not None
            loading = self._running[1]
            batch = next_batch(loading)
            self._batch += 1
            if number == count:  # before it is handed out: who takes it may not come back for the end
                self._running = (epoch + 1, loading) if count < left < math.inf else None
            yield self._filled(batch)

    def _loaded(self, epoch: int, first: int) -> Iterator[list[Any]]:
        """Load this epoch from a batch on, and where `max_steps` says how many follow, those too."""
        last = epoch + 1 if self.epochs is None else max(self.epochs, epoch + 1)
        sampler = itertools.islice(
            itertools.chain.from_iterable(map(self.batches, range(epoch, last))),
            first,
            None if self.max_steps is None else first + max(self.max_steps - self.step, 0),
        )
        # A generator of its own: the default one would draw the workers' base seed from the global state.
        seed = generator("workers", *self.key, epoch)
        loader: DataLoader[Any] = DataLoader(self._views, batch_sampler=sampler, generator=seed, **self._options)
        return iter(loader)

    def _filled(self, batch: list[Any]) -> list[Any]:
        if self.features is None or self.features.on_disk:
            return batch
        found = self.features.take(batch[0])
        pinned = self._pin and found[0].device.type == "cpu"
        return [found.pin_memory() if pinned else found, *batch[1:]]


def _collate(read: Callable[[Tensor], Features] | None, samples: Sequence[Sample]) -> list[Any]:
    images, *rest = collate(samples)
    return [images if read is None else read(images), *rest]


def next_batch(loading: Iterator[T]) -> T:
    """Return the next batch; an error of ours that a process which loads has met is raised as it was there.

    Raises:
        TrainingError: A process that loads was killed.
    """
    try:
        return next(loading)
    except (RuntimeError, ConnectionError, EOFError) as error:
        if getattr(loading, "_num_workers", 0) and (lost := lost_worker(error)):
            raise lost from error
        raise
    except MedusaError as error:
        text = str(error)  # of a worker, torch puts the whole traceback before what was said
        if not text.startswith("Caught "):
            raise
        raise type(error)(text.rpartition(f"errors.{type(error).__name__}: ")[2].strip()) from None


def _drawn(augmentation: Augmentation, key: tuple[int | str, ...], index: int, epoch: int) -> View:
    return augmentation.draw(*key, epoch, index)
