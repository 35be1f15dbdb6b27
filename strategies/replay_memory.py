"""A memory of dense samples that is balanced over tasks."""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer


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
