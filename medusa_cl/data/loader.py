"""Loading whose every choice is a pure function of a counter, never of a global state or a worker's.

The order of a pass is f(seed, tasks, epoch) and the view of an image f(seed, tasks, epoch, image index), so the same
numbers come out for any number of workers, and a run can go on from any step knowing only where it stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medusa_cl.batch import Sample, collate
from medusa_cl.data import transforms
from medusa_cl.randomness import generator, permutation, stream

if TYPE_CHECKING:
    from medusa_cl.tasks import DenseTask


class DenseData(Protocol):
    """A split of images and targets, whatever it is stored in."""

    content_hash: str
    fields: tuple[str, ...]

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Return image `index`: 3 H W float32 in [0, 1] (or uint8, which is scaled)."""
        ...

    def target(self, index: int, name: str) -> Tensor | None:
        """Return its target of a task, in the task's form; None where the image has no such label."""
        ...

    def has(self, name: str) -> Any:
        """Return which images have a label of a task: boolean, N."""
        ...


def unit_image(source: DenseData, index: int) -> Tensor:
    """Return an image of a source as float32 3 H W in [0, 1], also where it is stored in bytes."""
    image = source.image(index)
    return image.float() / 255 if image.dtype == torch.uint8 else image


class DenseDataset(Dataset[Sample]):
    """The images of a source that carry at least one of some tasks, as samples.

    Args:
        source: Where images and targets are read from.
        tasks: Names of the tasks whose targets are read.
        label: The label of the experience.
    """

    def __init__(self, source: DenseData, tasks: Sequence[str], label: int) -> None:
        self.source, self.tasks, self.label = source, tuple(tasks), label
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
        return Sample(unit_image(self.source, index), present, index, self.label)


@dataclass(frozen=True)
class View:
    """One way of looking at an image.

    Attributes:
        flip: Mirrored left to right.
        zoom: Enlarged by this factor around a window at (`top`, `left`), fractions of the room there is.
        top: Where the window stands vertically, in [0, 1].
        left: Where it stands horizontally, in [0, 1].
    """

    flip: bool = False
    zoom: float = 1.0
    top: float = 0.0
    left: float = 0.0

    def of(self, sample: Sample, tasks: Mapping[str, DenseTask]) -> Sample:
        """Return the sample seen so, targets changed with the image."""
        image, targets = sample.image, sample.targets
        if self == IDENTITY:
            return sample
        assert isinstance(image, Tensor)  # features are those of a view already
        if self.zoom != 1.0:
            image, targets = transforms.zoom(image, targets, tasks, self.zoom, self.top, self.left)
        if self.flip:
            image, targets = transforms.flip(image, targets, tasks)
        return sample._replace(image=image, targets=targets)


IDENTITY = View()


@dataclass(frozen=True)
class Augmentation:
    """How training images vary: a flip with probability one half, a zoom drawn from a list.

    Attributes:
        flip: Whether images are mirrored.
        zooms: The zoom factors, drawn evenly.
    """

    flip: bool = True
    zooms: tuple[float, ...] = (1.0,)

    def draw(self, *key: int | str) -> View:
        """Return the view that belongs to `key`, always the same."""
        rng = stream("view", *key)
        flip, zoom, top, left = rng.random(4)
        factor = float(self.zooms[int(zoom * len(self.zooms))])
        mirrored = self.flip and flip < 0.5
        return View(mirrored) if factor == 1.0 else View(mirrored, factor, float(top), float(left))

    @property
    def views(self) -> tuple[View, ...] | None:
        """All the views there are, or None where they are too many to be listed."""
        if any(zoom != 1.0 for zoom in self.zooms):
            return None
        return (IDENTITY, View(flip=True)) if self.flip else (IDENTITY,)


def as_augmentation(options: Mapping[str, Any] | Augmentation | None) -> Augmentation:
    """Return an `Augmentation` of its options.

    Args:
        options: `flip` and `zooms` as a configuration gives them, both optional; or the `Augmentation` itself; None
            for the default, a flip alone.
    """
    if options is None or isinstance(options, Augmentation):
        return options or Augmentation()
    zooms = tuple(float(zoom) for zoom in options.get("zooms", (1.0,)))
    return Augmentation(flip=bool(options.get("flip", True)), zooms=zooms)


class FeatureSource(Protocol):
    """Gives the features of an image's view without running the backbone."""

    def get(self, index: int, view: View) -> tuple[Tensor, ...]:
        """Return the features C_s H_s W_s of every scale."""
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
        sample = self.dataset[position]
        view = self.draw(sample.index, epoch)
        seen = view.of(sample, self.tasks)
        if self.features is None:
            return seen
        return seen._replace(image=self.features.get(sample.index, view))


def _identity_view(index: int, epoch: int) -> View:
    return IDENTITY


class DenseLoader:
    """Batches of a dataset, epoch after epoch; each iteration over it is the next epoch.

    Args:
        dataset: Samples by position, any dataset of the scenario or a concatenation of such.
        batch_size: Images a batch.
        key: What order and views depend on besides epoch and image: (seed, names of the tasks).
        tasks: Every task whose targets may occur.
        augmentation: How images vary; None for training and evaluation as they are.
        features: Gives features in place of images.
        train: Shuffle, and drop a ragged last batch unless it is the only one.
        max_steps: Batches in all, over all epochs.
        workers: Processes that load; 0 loads in this one.
        pin_memory: Whether batches are put in page-locked memory.
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
    ) -> None:
        self.dataset, self.batch_size, self.key, self.train = dataset, batch_size, key, train
        self.max_steps, self.epoch, self.step = max_steps, 0, 0
        draw = functools.partial(_drawn, augmentation, key) if augmentation else _identity_view
        self._views = _Views(dataset, tasks, draw, features)
        self._options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}

    @property
    def batches_per_epoch(self) -> int:
        """Full batches a pass, or the only one."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return max(full, 1) if self.train else full + bool(rest)

    @property
    def epochs(self) -> int | None:
        """Passes needed for `max_steps`; None without such a limit."""
        return None if self.max_steps is None else -(-self.max_steps // self.batches_per_epoch)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Return the (position, epoch) of every sample of every batch of a pass."""
        count = len(self.dataset)
        order = permutation(count, "order", *self.key, epoch) if self.train else np.arange(count)
        keys = [(int(position), epoch) for position in order]
        return [keys[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches_per_epoch)]

    def __iter__(self) -> Iterator[list[Any]]:
        batches = self.batches(self.epoch)
        if self.max_steps is not None:
            batches = batches[: self.max_steps - self.step]
        # A generator of its own: the default one would draw the workers' base seed from the global state.
        seed = generator("workers", *self.key, self.epoch)
        self.epoch += 1
        for batch in DataLoader(
            self._views, batch_sampler=batches, collate_fn=collate, generator=seed, **self._options
        ):
            self.step += 1
            yield batch


def _drawn(augmentation: Augmentation, key: tuple[int | str, ...], index: int, epoch: int) -> View:
    return augmentation.draw(*key, epoch, index)
