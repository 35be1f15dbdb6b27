"""TaskBatch: the targets (or the predictions) of a batch in which each image may carry other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One image and what is known of it.

    Attributes:
        image: 3 H W float32 RGB in [0, 1], or the image's features, one tensor C_s H_s W_s per scale.
        targets: Target by task name; a task the image has no label for is absent.
        index: The image's index in its split: the counter of everything random about it.
        label: The label of the experience the sample was drawn for.
    """

    image: Tensor | tuple[Tensor, ...]
    targets: dict[str, Tensor]
    index: int  # type: ignore[assignment]  # hides a method of tuples that has no use here
    label: int


class Entry(NamedTuple):
    """One task's part of a batch.

    Attributes:
        rows: int64 n on the CPU, the images of the batch that carry the task, ascending.
        value: n ..., their targets or their logits.
        aux: Further tensors n ... with the same rows (logits of deep supervision).
    """

    rows: Tensor
    value: Tensor
    aux: tuple[Tensor, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Entry:
        """Apply `function` to values and aux; which images they belong to stays as it is."""
        return self._replace(value=function(self.value), aux=tuple(function(a) for a in self.aux))

    def pick(self, positions: Tensor, rows: Tensor) -> Entry:
        """Keep the entries at `positions` and call their images `rows`, both int64 on the CPU."""
        return Entry(rows, self.value, self.aux).map(lambda t: t[_beside(positions, t)])


class TaskBatch:
    """{task: (rows, tensor)} over `size` images; stands where Avalanche expects a tensor of targets or outputs.

    It can be sliced, indexed by a tensor of rows or a boolean mask, moved, and joined by `torch.cat`, always by images.
    Rows are bookkeeping and stay on the CPU, where a look at them does not have to wait for a device.

    Args:
        entries: What each task has.
        size: The number of images B of the batch.
    """

    def __init__(self, entries: Mapping[str, Entry], size: int) -> None:
        self.entries = dict(entries)
        self._size = size

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of which the batch holds something."""
        return tuple(self.entries)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        inside = ", ".join(f"{task}: {tuple(e.value.shape)}" for task, e in self.entries.items())
        return f"TaskBatch({len(self)} images; {inside})"

    def size(self, dim: int = 0) -> int:
        """Return the number of images, as `Tensor.size(0)` does."""
        if dim != 0:
            raise IndexError(f"Expected dim 0 (the images), the only one tasks share, but got {dim}.")
        return self._size

    @property
    def shape(self) -> torch.Size:
        """`(B,)`: the images are the only dimension tasks share."""
        return torch.Size([self._size])

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next((e.value.device for e in self.entries.values()), torch.device("cpu"))

    def _map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        return TaskBatch({task: entry.map(function) for task, entry in self.entries.items()}, self._size)

    def to(self, *args: Any, **kwargs: Any) -> TaskBatch:
        """Move values and aux."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def pin_memory(self) -> TaskBatch:
        """Copy values and aux to page-locked memory."""
        return self._map(Tensor.pin_memory)

    def clone(self) -> TaskBatch:
        """Copy values and aux."""
        return self._map(Tensor.clone)

    def detach(self) -> TaskBatch:
        """Cut values and aux from their graph."""
        return self._map(Tensor.detach)

    def cpu(self) -> TaskBatch:
        """Move values and aux to the CPU."""
        return self._map(Tensor.cpu)

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> TaskBatch:
        """Select images, in the order given."""
        chosen = torch.arange(self._size)[_as_index(index)]
        kept = {task: _select(entry, chosen, self._size) for task, entry in self.entries.items()}
        return TaskBatch({task: entry for task, entry in kept.items() if len(entry.rows)}, len(chosen))

    @classmethod
    def cat(cls, batches: Sequence[TaskBatch]) -> TaskBatch:
        """Join batches image after image."""
        parts: dict[str, list[Entry]] = {}
        offset = 0
        for batch in batches:
            for task, entry in batch.entries.items():
                parts.setdefault(task, []).append(entry._replace(rows=entry.rows + offset))
            offset += len(batch)
        return cls({task: _join(entries) for task, entries in parts.items()}, offset)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer the torch functions that Avalanche's plugins call on targets and outputs."""
        options = kwargs or {}
        if func is torch.cat and options.get("dim", args[1] if len(args) > 1 else 0) == 0:
            return cls.cat(args[0])
        if func is torch.norm:
            return args[0]._norm()
        return NotImplemented

    def _norm(self) -> Tensor:
        """B: the L2 norm of all that each image was answered, as MAS asks for."""
        total = torch.zeros(self._size, device=self.device)
        for entry in self.entries.values():
            rows = _beside(entry.rows, entry.value)
            total = total.index_add(0, rows, entry.value.flatten(1).square().sum(1))
        return (total + 1e-12).sqrt()


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return the images B ... at `rows`, int64 n on the CPU: x itself where that is all of them, in order."""
    everything = len(rows) == len(x) and torch.equal(rows, torch.arange(len(x)))
    return x if everything else x[_beside(rows, x)]


def _beside(rows: Tensor, x: Tensor) -> Tensor:
    return rows.to(x.device, non_blocking=True)


def _as_index(index: slice | Tensor | Sequence[int]) -> slice | Tensor:
    return index if isinstance(index, slice) else torch.as_tensor(index, device="cpu")


def _select(entry: Entry, chosen: Tensor, size: int) -> Entry:
    position = torch.full((size,), -1, dtype=torch.int64)
    position[entry.rows] = torch.arange(len(entry.rows))
    found = position[chosen]
    rows = (found >= 0).nonzero().flatten()
    return entry.pick(found[rows], rows)


def _join(entries: Sequence[Entry]) -> Entry:
    aux = tuple(torch.cat(tensors) for tensors in zip(*(e.aux for e in entries), strict=True))
    return Entry(torch.cat([e.rows for e in entries]), torch.cat([e.value for e in entries]), aux)


class Features(tuple[Tensor, ...]):
    """The features of a batch, one tensor B C_s H_s W_s per scale, standing where Avalanche expects images."""

    __slots__ = ()

    def to(self, *args: Any, **kwargs: Any) -> Features:
        """Move every scale."""
        return Features(t.to(*args, **kwargs) for t in self)

    def pin_memory(self) -> Features:
        """Copy every scale to page-locked memory."""
        return Features(t.pin_memory() for t in self)

    def size(self, dim: int = 0) -> int:
        """Return the size of the first scale along `dim`; `size(0)` is the number of images."""
        return self[0].size(dim)

    def select(self, rows: Tensor) -> Features:
        """Keep the images of `rows`, int64 n."""
        return Features(t[_beside(rows, t)] for t in self)


def collate(samples: Sequence[Sample]) -> list[Any]:
    """Make a batch `[images B 3 H W or Features, TaskBatch of targets, labels int64 B]` of samples.

    Raises:
        ValueError: Images, or one task's targets, differ in size.
    """
    first = samples[0].image
    images: Tensor | Features
    if isinstance(first, Tensor):
        images = torch.stack([s.image for s in samples])  # type: ignore[misc]
    else:
        images = Features(torch.stack(scale) for scale in zip(*(s.image for s in samples), strict=True))
    names = dict.fromkeys(name for s in samples for name in s.targets)
    entries = {name: _gather(name, samples) for name in names}
    return [images, TaskBatch(entries, len(samples)), torch.tensor([s.label for s in samples])]


def _gather(name: str, samples: Sequence[Sample]) -> Entry:
    rows = [i for i, sample in enumerate(samples) if name in sample.targets]
    return Entry(torch.tensor(rows), torch.stack([samples[i].targets[name] for i in rows]))
