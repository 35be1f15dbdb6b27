"""Features of a frozen backbone, computed once per image and view, and kept in memory or on disk.

A frozen backbone answers the same image with the same features for ever, so every later head, and every reference on
the same images, can share them. In float32 what is kept is what the backbone answers, to the bit on a CPU.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medusa_cl import distributed
from medusa_cl.batch import Features, Sample
from medusa_cl.data.hdf5 import checksum, fixed, require_own, text_of
from medusa_cl.data.loader import Augmentation, View, next_batch, padded_image
from medusa_cl.data.parallel import loading_options
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, DataError, TrainingError, unknown
from medusa_cl.kept import digest
from medusa_cl.models.backbone import Backbone

AS_IT_IS = Augmentation(flip=False)
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""How features are kept: bf16 has 8 bits of mantissa (values to .4 %), fp16 has 11 (.05 %, up to 65504)."""
FORMAT = "medusa-cl features 2"
Extract = Callable[[Tensor], tuple[Tensor, ...]]
Shapes = tuple[tuple[int, ...], ...]


def in_batches_of(backbone: Extract, images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Run the backbone on batches of exactly `batch_size`, whatever the number of images.

    Kernels, and so the last bits, may differ between batch sizes; the last batch is padded by repeating an image.

    Args:
        backbone: A backbone in eval mode, or however else features are made of images B 3 H W.
        images: B 3 H W float32 in [0, 1].
        batch_size: Images a batch.

    Returns:
        B C_s H_s W_s for each scale.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)
        padded = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)]) if missing else batch
        parts.append([scale[: len(batch)] for scale in backbone(padded)])
    return tuple(torch.cat(scale) if len(parts) > 1 else scale[0] for scale in zip(*parts, strict=True))


ROUNDED = (
    "SiLU",
    "Swish",
    "GELU",
    "GELUTanh",
    "QuickGELU",
    "Sigmoid",
    "Tanh",
    "Mish",
    "ELU",
    "SELU",
    "CELU",
    "Softplus",
)
"""Activations that vectorised CPU kernels round another way for the last few numbers, which fill no vector."""


def at_a_time(backbone: Backbone, batch_size: int) -> int:
    """Return how many images at a time a frozen backbone is to see, so that their places in a batch change no bit.

    That is the batch size, but on a CPU 1 for networks with activations such as SiLU or GELU. So features made in the
    order of training are those that were kept, and whether they are kept changes no result.
    """
    exact = not any(type(module).__name__ in ROUNDED for module in backbone.modules())
    return batch_size if exact or backbone.mean.device.type != "cpu" else 1


class Need(NamedTuple):
    """What features of a split would take.

    Attributes:
        images: Images.
        views: Views of each.
        bytes_a_row: Bytes of the features of one view.
    """

    images: int
    views: int
    bytes_a_row: int

    @property
    def rows(self) -> int:
        """Views of all images."""
        return self.images * self.views

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.rows * self.bytes_a_row

    def __str__(self) -> str:
        views = f" x {self.views} views" if self.views > 1 else ""
        return f"{self.images} images{views}, {size(self.bytes)}"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def need(
    extract: Extract, source: DenseData, augmentation: Augmentation, precision: str, device: torch.device | str = "cpu"
) -> Need:
    """Return what features of a split would take, from those of the first view of its first image."""
    images = _Images(source, augmentation)
    with torch.no_grad():
        maps = extract(images[0][None].to(device))
    values = sum(scale.numel() for scale in maps)
    return Need(len(source), len(images) // len(source), values * PRECISIONS[precision].itemsize)


class FrozenFeatures:
    """The features of one split under one frozen backbone, by image and view.

    Args:
        backbone: A frozen backbone.
        source: The split's images.
        augmentation: Its countable views are kept; by default images as they are.
        batch_size: Images a batch; the same as in training and evaluation.
        device: Where the backbone runs.
        extract: How the backbone is called on a batch (to run it under autocast, for instance).
        precision: "32", "bf16" or "fp16"; what `take` gives has this type.
        folder: Where the file is kept; None for memory.
        on_device: Keep them in the device's memory.
        key: What else the features depend on, as plain data; a file is only read under the key it was written under.
        workers: Processes that load images while features are computed.
        progress: Called with the number of views done and of all.

    Attributes:
        path: The file, None in memory.

    Raises:
        TrainingError: The backbone is trainable, so its features would go stale.
        ConfigError: The views are endless, or the precision is unknown.
        DataError: The file was written under another key, or cannot be written.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: DenseData,
        augmentation: Augmentation = AS_IT_IS,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        extract: Extract | None = None,
        precision: str = "32",
        folder: Path | None = None,
        on_device: bool = False,
        key: Mapping[str, Any] | None = None,
        workers: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if not backbone.frozen:
            raise TrainingError("Features can be kept only of a frozen backbone. Set strategy.cache_features=off.")
        if precision not in PRECISIONS:
            raise ConfigError(unknown("strategy.cache_precision", str(precision), PRECISIONS))
        if augmentation.count is None:
            raise ConfigError("Expected views that can be listed, but got endless ones. Set scenario.augment.views=8.")
        self._backbone = backbone
        self._source, self._augmentation, self._views = source, augmentation, augmentation.count
        self._batch_size, self._device, self._extract = batch_size, torch.device(device), extract or backbone
        self._dtype, self._workers, self._progress = PRECISIONS[precision], workers, progress
        self._key = {"backbone": backbone.weights_hash(), **key_of(source, augmentation, batch_size, precision)}
        self._key |= dict(key or {})
        self.path = None if folder is None else folder / f"{self.digest[:32]}.h5"
        self._store: _Store = self._made(on_device)

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the features depend on."""
        return digest(self._key)

    @property
    def on_disk(self) -> bool:
        """Whether they lie in a file."""
        return self.path is not None

    def row(self, index: int, view: View) -> int:
        """Return the number under which a view of an image is kept.

        Raises:
            KeyError: The view was not kept.
        """
        try:
            return index * self._views + self._augmentation.views_of(index).index(view)
        except ValueError:
            raise KeyError(view) from None

    def take(self, rows: Tensor) -> Features:
        """Return features B C_s H_s W_s of every scale, of rows int64 B."""
        return Features(self._store.take(rows))

    def get(self, index: int, view: View) -> tuple[Tensor, ...]:
        """Return the features C_s H_s W_s of every scale of one image.

        Raises:
            KeyError: The view was not kept.
        """
        return tuple(scale[0] for scale in self.take(torch.tensor([self.row(index, view)])))

    @property
    def nbytes(self) -> int:
        """Bytes taken, wherever they lie."""
        return self._store.nbytes

    def _made(self, on_device: bool) -> _Store:
        if self.path is None:
            memory = _Memory(self._device if on_device else torch.device("cpu"))
            self._fill(memory)
            return memory
        with _locked(self.path) if distributed.is_main() else nullcontext():
            if not distributed.agreed(self.path.is_file()):
                if distributed.is_main():
                    _write_file(self.path, self._key, self._fill)
                else:
                    self._fill(_Nowhere())
                distributed.barrier()
        return _File(self.path, self._key)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a process that loads does not need: the backbone, and features in memory."""
        without = dict.fromkeys(("_backbone", "_extract", "_progress"))
        return self.__dict__ | without | ({} if self.on_disk else {"_store": _Nowhere()})

    @torch.no_grad()
    def _fill(self, store: _Store) -> None:
        """Compute every row once, each process its share of the batches."""
        rows = len(self._source) * self._views
        batches = -(-rows // self._batch_size)
        for group, first, images in self._loaded(batches):
            maps = in_batches_of(self._extract, images.to(self._device), at_a_time(self._backbone, self._batch_size))
            kept = [x.to(self._dtype).contiguous() for x in maps]
            shared = [distributed.gathered(x) for x in kept]
            if group == 0:
                store.open(rows, tuple(tuple(x.shape[1:]) for x in kept), self._dtype)
            for rank in range(distributed.world()):
                start = (first + rank) * self._batch_size
                if start < rows:
                    store.put(start, [scale[rank][: rows - start] for scale in shared])
            self._progress(min((first + distributed.world()) * self._batch_size, rows), rows)

    def _loaded(self, batches: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (group, first batch of the group, this process's images of it); every process has one of each group."""
        world, rank = distributed.world(), distributed.rank()
        firsts = range(0, batches, world)
        mine = [min(first + rank, batches - 1) for first in firsts]
        images = _Images(self._source, self._augmentation)
        sampler = [
            [min(row, len(images) - 1) for row in range(n * self._batch_size, (n + 1) * self._batch_size)] for n in mine
        ]
        options = loading_options(self._workers) | {"pin_memory": self._device.type == "cuda"}
        loading = iter(DataLoader(images, batch_sampler=sampler, generator=torch.Generator(), **options))
        for group, first in enumerate(firsts):
            yield group, first, next_batch(loading)


def key_of(source: DenseData, augmentation: Augmentation, batch_size: int, precision: str) -> dict[str, Any]:
    """Return what features depend on besides the backbone and the machine, as plain data."""
    return {
        "data": [source.content_hash, getattr(source, "written", ""), len(source), list(source.image_size)],
        "views": str(augmentation),
        "batch_size": batch_size,
        "kept": precision,
        "format": FORMAT,
    }


class _Images(Dataset[Tensor]):
    """Views of images, by row."""

    def __init__(self, source: DenseData, augmentation: Augmentation) -> None:
        self._source, self._augmentation, self._views = source, augmentation, augmentation.count or 1
        self._last: tuple[int, Tensor] | None = None  # the views of an image follow one another

    def __len__(self) -> int:
        return len(self._source) * self._views

    def __getitem__(self, row: int) -> Tensor:
        index, number = divmod(row, self._views)
        if self._last is None or self._last[0] != index:
            self._last = index, padded_image(self._source, index)
        seen = self._augmentation.views_of(index)[number].of(Sample(self._last[1], {}, index, 0), {}).image
        assert isinstance(seen, Tensor)
        return seen


class _Store(Protocol):
    """Where rows of features lie."""

    def open(self, rows: int, shapes: Shapes, dtype: torch.dtype) -> None:
        """Make room."""

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        """Keep consecutive rows from `start` on."""

    def take(self, rows: Tensor) -> Iterable[Tensor]:
        """Return rows of every scale."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        ...


class _Nowhere:
    """For processes whose share another one writes."""

    nbytes = 0

    def open(self, rows: int, shapes: Shapes, dtype: torch.dtype) -> None: ...

    def put(self, start: int, maps: Sequence[Tensor]) -> None: ...

    def take(self, rows: Tensor) -> Iterable[Tensor]:
        raise KeyError(rows)


class _Memory:
    """Rows in memory, this machine's or the device's."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._maps = device, list[Tensor]()

    def open(self, rows: int, shapes: Shapes, dtype: torch.dtype) -> None:
        self._maps = [torch.empty(rows, *shape, dtype=dtype, device=self._device) for shape in shapes]

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        for kept, new in zip(self._maps, maps, strict=True):
            kept[start : start + len(new)] = new.to(self._device)

    def take(self, rows: Tensor) -> Iterable[Tensor]:
        rows = rows.to(self._device, non_blocking=True)
        return [kept.index_select(0, rows) for kept in self._maps]

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._maps)


class _File:
    """Rows in an HDF5 file, a chunk and its checksum for each; opened anew in every process that reads.

    Args:
        path: The file.
        key: What its features should depend on.

    Raises:
        DataError: It is damaged, or its features depend on something else.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path, self._pid = path, -1
        self._file: Any = None
        self._sums = np.empty((0, 0), np.uint32)
        written = self._said()
        if written != json.loads(json.dumps(dict(key), default=str)):
            differing = [k for k in {*written, *key} if str(written.get(k)) != str(key.get(k))]
            raise DataError(
                f"The kept features in {path} were computed under another {', '.join(sorted(differing)) or 'key'}. "
                "Delete the file: it is computed anew."
            )

    def _said(self) -> dict[str, Any]:
        try:
            said = self._scales()[0].file.attrs
            content: dict[str, Any] = json.loads(text_of(said, "key"))
            if (found := text_of(said, "format")) != FORMAT:
                raise ValueError(f"format {found!r}, expected {FORMAT!r}")
            if not isinstance(content, dict):
                raise ValueError("its key is none")
        except _DAMAGE as error:
            raise self._damaged(error) from error
        return content

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"The kept features in {self._path} are damaged ({error}). Delete the file: it is computed anew."
        )

    def _scales(self) -> list[Any]:
        if self._pid != os.getpid():  # a handle must not be shared with a process forked off
            self._file, self._pid = h5py.File(self._path, "r"), os.getpid()
            require_own(self._file)
            self._sums = self._file["sums"][()]
        return [self._file[f"scale{number}"] for number in range(self._sums.shape[1])]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_pid": -1, "_sums": None}

    def open(self, rows: int, shapes: Shapes, dtype: torch.dtype) -> None: ...

    def put(self, start: int, maps: Sequence[Tensor]) -> None: ...

    def take(self, rows: Tensor) -> Iterable[Tensor]:
        wanted = rows.tolist()
        try:
            scales = self._scales()
            return [_read(scale, wanted, self._sums[wanted, place]) for place, scale in enumerate(scales)]
        except _DAMAGE as error:
            raise self._damaged(error) from error

    @property
    def nbytes(self) -> int:
        return self._path.stat().st_size


_DAMAGE = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError)
"""What reading a damaged HDF5 file raises."""


def _read(scale: Any, rows: Sequence[int], sums: NDArray[np.uint32]) -> Tensor:
    found = np.empty((len(rows), *scale.shape[1:]), scale.dtype)
    for place, row in enumerate(rows):
        scale.read_direct(found, np.s_[row], np.s_[place])
        if checksum(found[place]) != sums[place]:
            raise ValueError(f"row {row} of {scale.name} is not that of its checksum")
    kept = torch.from_numpy(found)
    return kept.view(torch.bfloat16) if scale.dtype == np.uint16 else kept


class _Writer:
    """Writes the rows of a file."""

    nbytes = 0

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path

    def open(self, rows: int, shapes: Shapes, dtype: torch.dtype) -> None:
        stored = np.uint16 if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch."))
        with _writing(self._path):
            # HDF5's own checksum takes a chunk and a checksum of zeros for whole, which lost blocks of a disk are.
            self._file.create_dataset("sums", (rows, len(shapes)), np.uint32)
            for number, shape in enumerate(shapes):
                self._file.create_dataset(f"scale{number}", (rows, *shape), stored, chunks=(1, *shape))

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        for number, new in enumerate(maps):
            values = new.cpu()
            values = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
            with _writing(self._path):
                self._file[f"scale{number}"][start : start + len(new)] = values.numpy()
                self._file["sums"][start : start + len(new), number] = [checksum(row) for row in values.numpy()]

    def take(self, rows: Tensor) -> Iterable[Tensor]:
        raise KeyError(rows)


def _write_file(path: Path, key: Mapping[str, Any], fill: Callable[[_Store], None]) -> None:
    """Write a file under another name; it gets its own when it is whole, so that there is never half a file.

    Raises:
        DataError: The disk is full or the folder cannot be written.
    """
    part = path.with_suffix(".part")  # alone: others wait at the lock
    with _writing(path):
        file = h5py.File(part, "w", libver="latest")
        file.attrs["format"], file.attrs["key"] = fixed(FORMAT), fixed(json.dumps(dict(key), default=str))
    try:
        fill(_Writer(file, path))
        with _writing(path):
            file.close()
            os.replace(part, path)
    finally:
        with suppress(OSError, RuntimeError):
            file.close()
        with suppress(OSError):
            part.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes off a file, so that runs side by side compute it once."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = size(shutil.disk_usage(path.parent).free) if path.parent.is_dir() else "nothing"
        raise DataError(
            f"Cannot keep features in {path}: {error} ({free} free there). Free some space, set strategy.cache_dir to "
            "another folder, or strategy.cache_features=off."
        ) from error
