"""A memory of dense samples that is balanced over tasks, and loading from memories by counters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Dataset

from medusa_cl.batch import Sample
from medusa_cl.data.loader import DenseLoader, _Views
from medusa_cl.errors import ConfigError
from medusa_cl.randomness import Key, permutation


class TaskBalancedBuffer(BalancedExemplarsBuffer[ReservoirSamplingBuffer]):
    """Divides a memory equally over the labels of its samples, each label's share kept by reservoir sampling.

    What Avalanche's class-balanced memory is for classes: that one repacks every sample as (image, class).

    Args:
        max_size: Samples in all.
    """

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)

    @property
    def buffer(self) -> AvalancheDataset:
        """All samples; `task_set` holds them by label, as loaders ask that balance each batch over tasks."""
        whole = concat_datasets(self.buffer_datasets)
        whole.task_set = {label: group.buffer for label, group in self.buffer_groups.items()}
        return whole

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Make room for an experience's labels and take samples of it."""
        found: dict[int, list[int]] = {}
        for position, label in enumerate(exp.dataset.targets_task_labels):
            found.setdefault(int(label), []).append(position)
        for label in found:
            self.buffer_groups.setdefault(label, ReservoirSamplingBuffer(self.max_size))
        for label, positions in found.items():
            self.buffer_groups[label].update_from_dataset(exp.dataset.subset(positions))
        for size, group in zip(
            self.get_group_lengths(len(self.buffer_groups)), self.buffer_groups.values(), strict=True
        ):
            group.resize(agent, size)


class Memory:
    """Groups of samples of which every step takes some: which ones is a pure function of the step.

    Each group is gone through in one random order after another, none of its samples twice in an order; what is left
    over at the end of an order waits for the next one, so that every step takes as many.

    Args:
        groups: Datasets; empty ones are left out.
        size: Samples a step, shared equally by the groups, the first ones having what is left over.
        key: What the orders depend on besides the group and how often it was gone through.

    Raises:
        ConfigError: A step has no room for a sample of each group.
    """

    def __init__(self, groups: Sequence[Any], size: int, *key: Key) -> None:
        self._groups = [group for group in groups if len(group)]
        self._key, count = key, len(self._groups)
        if count > size:
            raise ConfigError(
                f"Expected room for a sample of each of {count} experiences in a batch of the memory, but got {size}. "
                "Set batch_size_mem (or sample_size) of the plugin, or trainer.batch_size, to at least as many."
            )
        self._sizes = [size // count + (number < size % count) for number in range(count)]
        self.samples: Dataset[Sample] = ConcatDataset(self._groups)

    def at(self, step: int) -> list[tuple[int, int]]:
        """Return where a step's samples are in `samples`, and how often their group was gone through before."""
        found, start = list[tuple[int, int]](), 0
        for number, (group, size) in enumerate(zip(self._groups, self._sizes, strict=True)):
            turn, batch = divmod(step, max(len(group) // size, 1))
            order = _order(len(group), *self._key, number, turn)[batch * size : (batch + 1) * size]
            found.extend((start + int(position), turn) for position in order)
            start += len(group)
        return found


@functools.lru_cache(maxsize=64)
def _order(count: int, *key: Key) -> NDArray[np.int64]:
    """Return an order of a group; kept, as many steps ask for the same one."""
    return permutation(count, "memory", *key)


class ReplayLoader(DenseLoader):
    """Batches of an experience, each followed by samples of a memory; goes as far as the experience's own loader.

    The experience's part is what it is without a memory. The memory's part at a step depends on the key and the step,
    the view of one of its images on the key, how often the memory was gone through, and the image.

    Args:
        dataset: The experience's samples.
        batch_size: Images a batch, of all processes that train together and without the memory's.
        memory: Datasets that share the memory's part of each batch equally.
        memory_size: Images of the memory a batch, of all processes.
        **options: Options of `DenseLoader`.

    Raises:
        ConfigError: A batch cannot be divided evenly among processes, or has no room for each part of the memory.
    """

    def __init__(
        self, dataset: Any, batch_size: int, *, memory: Sequence[Any], memory_size: int, **options: Any
    ) -> None:
        super().__init__(dataset, batch_size, train=True, **options)
        key = ("replay", *self.key)
        self.memory = Memory(memory, memory_size, *key)
        remembered = DenseLoader(self.memory.samples, 1, **options | {"key": key})
        self._views = _Joined(self._views, len(dataset), remembered._views)

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Return the (position, epoch) of all samples of each batch of a pass, the memory's after the experience's."""
        first, (rank, world), count = epoch * self.batches_per_epoch, self.shard, len(self.dataset)
        joined = []
        for number, own in enumerate(super().batches(epoch)):
            drawn = self.memory.at(first + number)[rank::world]
            joined.append([*own, *((count + position, turn) for position, turn in drawn)])
        return joined


class _Joined(_Views):
    """Views of an experience's samples, `count` of them, then those of a memory."""

    def __init__(self, views: _Views, count: int, remembered: _Views) -> None:
        super().__init__(views.dataset, views.tasks, views.draw, views.features)
        self._count, self._remembered = count, remembered

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, turn = key
        return super().__getitem__(key) if position < self._count else self._remembered[position - self._count, turn]
