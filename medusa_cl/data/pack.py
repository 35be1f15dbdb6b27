"""Packs: other people's files, read as they stand and given out as our HDF5 would give them, to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medusa_cl.data.hdf5 import FIELDS, Array, Field, as_tensor, encode
from medusa_cl.data.split import StoredData
from medusa_cl.errors import DataError, unknown

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 64


class Pack(Protocol):
    """A reader of one format. It can be pickled, opens files when they are asked for and never writes.

    Attributes:
        name: For people, as "survey pack of NYUD-v2".
        root: The folder or file.
        splits: Image ids by split, "train" and "test" (and "val" where there are both).
        fields: How each target is stored in our format.
        derived: The targets that are not in the pack but made of what is, and how.
        attrs: Facts to be recorded, plain JSON: "source", "source_frame" of normals, "intrinsics", ...
    """

    name: str
    root: Path
    splits: dict[str, tuple[str, ...]]
    fields: dict[str, Field]
    derived: dict[str, str]
    attrs: dict[str, Any]

    def size(self, image: str) -> tuple[int, int]:
        """Return H, W of an image, from its file's header."""
        ...

    def image(self, image: str) -> Array:
        """Return H W 3 uint8 RGB."""
        ...

    def has(self, image: str, target: str) -> bool:
        """Return whether an image has a target, without reading it."""
        ...

    def target(self, image: str, target: str) -> Array | None:
        """Return a target's values as `hdf5.encode` takes them; normals in our camera frame."""
        ...

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        """Return the files from which a target (or "image") is read."""
        ...


class PackData:
    """One split of a pack; holds no image in memory.

    Args:
        pack: The reader.
        split: "train", "val" or "test".
        size: Use the first `size` images only; None = all.
        tasks: Names of the targets to offer; none = all that the pack has.

    Attributes:
        path: The pack's root.
        fields: Names of the targets offered.
        image_size: H, W of the largest image.
        ids: The images' names.
        attrs: The pack's facts, its name, and which targets are derived.
        unreadable: What is wrong with the images whose size cannot be told, by name: reading them will fail.
        written: A hash of the times at which the files were written.
        content_hash: SHA-256 over paths and sizes of all files and the bytes of a sample of them: a fingerprint that
            takes seconds. A prepared file's hash is of every byte.

    Raises:
        DataError: There is no such split or target, or fewer images than asked for.
    """

    def __init__(self, pack: Pack, split: str, size: int | None = None, tasks: Sequence[str] = ()) -> None:
        if split not in pack.splits:
            raise DataError(f"{pack.root}: {unknown('split', split, pack.splits)}")
        images = pack.splits[split]
        if size is not None and not 0 < size <= len(images):
            raise DataError(f"{pack.root}: expected a size in 1..{len(images)} for split {split}, but got {size}.")
        for name in tasks:
            if name not in pack.fields:
                raise DataError(f"{pack.root}: {unknown('target', name, pack.fields)}")
        self.pack, self.split, self.path = pack, split, pack.root
        self._images = images[:size]
        self.ids: tuple[str, ...] | None = self._images
        self.fields = tuple(tasks) or tuple(sorted(pack.fields))
        self.attrs: dict[str, Any] = pack.attrs | {"pack": pack.name, "derived": dict(pack.derived)}
        self.unreadable: Mapping[str, str] = {}
        self.image_size: tuple[int, int] = self._largest()
        self._has = {name: np.array([pack.has(image, name) for image in self._images]) for name in self.fields}
        files = list(self._files())
        self.content_hash = self._fingerprint(files)
        self.written = hashlib.sha256(json.dumps([path.stat().st_mtime_ns for path in files]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"{self.pack.root} ({self.split}, {len(self)} images)"

    def field(self, name: str) -> Field:
        """Return how a target (or `image`) is stored."""
        if name == "image":
            return FIELDS["image"]
        if name not in self.fields:
            raise DataError(f"{self.pack.root}, {self.split}: {unknown('target', name, self.fields)}")
        return self.pack.fields[name]

    def has(self, name: str) -> Array:
        """Return N bools: which images have the target."""
        self.field(name)
        return self._has[name]

    def image(self, index: int) -> Tensor:
        """Return an image: 3 H W uint8, RGB."""
        return as_tensor(FIELDS["image"], self.pack.image(self._images[index]))

    def target(self, index: int, name: str) -> Tensor | None:
        """Return a target as `hdf5.as_tensor` makes it, or None where the image has none.

        Raises:
            DataError: Naming the file that is damaged, or holds what the field cannot.
        """
        stored = self.stored(index, name)
        return None if stored is None else as_tensor(self.field(name), stored)

    def stored(self, index: int, name: str) -> Array | None:
        """Return a target (or `image`) as our format stores it; None where the image has none."""
        image = self._images[index]
        if name == "image":
            return self.pack.image(image)
        field = self.field(name)
        values = self.pack.target(image, name) if self._has[name][index] else None
        if values is None:
            return None
        files = ", ".join(map(str, self.pack.files(image, name)))
        try:
            stored = encode(field, values)
        except DataError as error:
            raise DataError(f"{files}: `{name}` of image {image}: {error}") from error
        if stored.shape[:2] != (size := self.pack.size(image)):
            raise DataError(f"{files}: expected `{name}` of {size} pixels, as the image, but got {stored.shape[:2]}.")
        return stored

    def check(self, index: int) -> None:
        """Read all of an image.

        Raises:
            DataError: Naming the file that is wrong.
        """
        for name in ("image", *self.fields):
            self.stored(index, name)

    def _largest(self) -> tuple[int, int]:
        sizes = []
        for image in self._images:
            try:
                sizes.append(self.pack.size(image))
            except DataError as error:
                self.unreadable = {**self.unreadable, image: str(error)}
        if not sizes:
            raise DataError(
                f"{self}: no image can be read, the first one for this: {next(iter(self.unreadable.values()))}"
            )
        heights, widths = zip(*sizes, strict=True)
        return max(heights), max(widths)

    def _fingerprint(self, files: Sequence[Path]) -> str:
        facts = json.dumps([self.split, self._images, self.pack.attrs], sort_keys=True, default=str)
        sha = hashlib.sha256(facts.encode())
        for path in files:
            sha.update(f"{_below(path, self.pack.root)} {path.stat().st_size}\n".encode())
        for path in files[:: max(1, len(files) // SAMPLED)]:
            with path.open("rb") as file:
                sha.update(file.read(1 << 20))
        return sha.hexdigest()

    def _files(self) -> Iterator[Path]:
        found = (
            path
            for name in ("image", *self.fields)
            for i, image in enumerate(self._images)
            if name == "image" or self._has[name][i]
            for path in self.pack.files(image, name)
        )
        return iter(dict.fromkeys(found))


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


class Subset:
    """Some images of a split, in the order given.

    Args:
        source: The split.
        indices: Which images.
    """

    def __init__(self, source: StoredData, indices: Sequence[int]) -> None:
        self.source, self.indices = source, [int(i) for i in indices]
        self.path, self.unreadable, self.written = source.path, source.unreadable, source.written
        self.fields, self.attrs, self.image_size = source.fields, source.attrs, source.image_size
        self.ids = None if source.ids is None else tuple(source.ids[i] for i in self.indices)
        chosen = json.dumps([source.content_hash, self.indices]).encode()
        self.content_hash = hashlib.sha256(chosen).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"{len(self)} images of {self.source}"

    def field(self, name: str) -> Field:
        """Return how a target (or `image`) is stored."""
        return self.source.field(name)

    def has(self, name: str) -> Array:
        """Return N bools: which images have the target."""
        there: Array = np.asarray(self.source.has(name))[self.indices]
        return there

    def image(self, index: int) -> Tensor:
        """Return an image: 3 H W uint8, RGB."""
        return self.source.image(self.indices[index])

    def target(self, index: int, name: str) -> Tensor | None:
        """Return a target, or None where the image has none."""
        return self.source.target(self.indices[index], name)

    def stored(self, index: int, name: str) -> Array | None:
        """Return a field of an image as it is stored."""
        return self.source.stored(self.indices[index], name)

    def check(self, index: int) -> None:
        """Read all of an image."""
        self.source.check(self.indices[index])


def require_labels(source: StoredData, tasks: Sequence[str]) -> None:
    """Refuse a target that is invalid over the whole split (in one image, it may well be).

    Images are looked at in a spread order until one has a labelled pixel: nearly always the first.

    Raises:
        DataError: Naming the target; usually a wrong unit, ignored value or folder.
    """
    for task in tasks:
        if not any(_labelled(source, index, task) for index in _spread(np.flatnonzero(source.has(task)))):
            field = source.field(task)
            raise DataError(
                f"{source}: no pixel of `{task}` has a label: all {len(source)} images hold the ignored value "
                f"{field.ignore} everywhere, or lack the target. Check its unit, its ignored value and its files, "
                "or take the task out of scenario.base or scenario.stream."
            )


def _labelled(source: StoredData, index: int, task: str) -> bool:
    stored = source.stored(index, task)
    return stored is not None and bool(source.field(task).labelled(stored).any())


def _spread(indices: Array) -> Iterator[int]:
    """All of them, far apart ones first."""
    step = max(1, len(indices) // 16)
    yield from (int(i) for start in range(step) for i in indices[start::step])


def usable(
    source: StoredData, *, advance: Callable[[int, int], None] | None = None
) -> tuple[list[int], Mapping[str, str]]:
    """Read every image of a split once, and say which are whole.

    Args:
        source: The split.
        advance: Called with (images read, images in all).

    Returns:
        The indices of the images without a fault, and what is wrong with the others, by name.
    """
    from concurrent.futures import ThreadPoolExecutor

    good, faults = [], {}
    with ThreadPoolExecutor() as pool:  # decoding gives up the lock
        for index, fault in enumerate(pool.map(lambda i: _fault(source, i), range(len(source)))):
            if fault is None:
                good.append(index)
            else:
                faults[source.ids[index] if source.ids else str(index)] = fault
            if advance is not None:
                advance(index + 1, len(source))
    return good, faults


def _fault(source: StoredData, index: int) -> str | None:
    try:
        source.check(index)
    except DataError as error:
        return str(error)
    return None
