"""What a split of images and targets is to the library, whatever it is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # processes that only read and write files must start without torch
    from torch import Tensor

    from medusa_cl.data.hdf5 import Array, Field


class DenseData(Protocol):
    """A split of images and targets.

    Attributes:
        content_hash: A hash of all that the split holds.
        fields: Names of the targets it offers.
        image_size: H, W that the largest images have; smaller ones are padded to it when batches are made.
    """

    content_hash: str
    fields: tuple[str, ...]
    image_size: tuple[int, int]

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


class StoredData(DenseData, Protocol):
    """A split that also gives out its fields as our format stores them: `HDF5Data`, `PackData` and what wraps them.

    Attributes:
        path: The file or folder it is read from.
        ids: The images' names, where they have some.
        attrs: Facts about the data, plain JSON.
        unreadable: What is known at once to be wrong with some images, by name.
        written: A hash of when the files were written, where `content_hash` is not of every byte of them.
    """

    path: Path
    ids: tuple[str, ...] | None
    attrs: dict[str, Any]
    unreadable: Mapping[str, str]
    written: str

    def field(self, name: str) -> Field:
        """Return how a target (or `image`) is stored."""
        ...

    def stored(self, index: int, name: str) -> Array | None:
        """Return a field of an image as it is stored, H W or H W C; None where the image has none."""
        ...

    def check(self, index: int) -> None:
        """Read all of an image; raise a DataError that names the file where something is wrong with it."""
        ...
