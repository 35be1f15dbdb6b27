"""The one file format that training reads: images and dense targets in HDF5, described by the file itself.

A file holds groups (`train`, `val`, `test`) and each group one dataset a field: `image` (N H W 3 uint8) and the
targets in compact types, one compressed chunk an image. A dataset's attributes say how its numbers become values
(`Field`), so a reader needs no list of tasks. Besides, a group holds

    digest        N 32 uint8     SHA-256 of each image's fields
    sum/<field>   N uint32       CRC-32 of each image's stored bytes, compared whenever they are read
    has/<field>   N bool         only where some images lack that target
    extent        N 2 uint16     only where images differ in size: the H, W of each, in the upper left of H W
    id            N string       only where images have names (UTF-8, at most 256 bytes)

and the file a dataset `about`, the facts as JSON. A group's attribute `seal` holds the number of images, the fields
they have, and a SHA-256 of all that is not the fields' bytes, made of one for each column of it: to add rows, no others
are read. Rows after that number belong to an interrupted append:
they are not read, and the next append writes over them. Texts are of fixed length throughout: what HDF5 keeps of
variable ones has no checksum, and it can hang on what is left of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet, WeakValueDictionary

import h5py
import numpy as np
from numpy.typing import NDArray

from medusa_cl.errors import DataError, MissingDataError, unknown

try:
    from isal.isal_zlib import crc32, decompress  # the same bytes, sooner
except ImportError:  # no wheel for this processor
    from zlib import crc32, decompress

if TYPE_CHECKING:  # torch is imported where a tensor is made: processes that only write must start fast
    from torch import Tensor

Array = NDArray[Any]
Columns = dict[str, tuple[Any, int]]  # by name: the SHA-256 of its first rows, and how many these are

FORMAT = "medusa_cl"
VERSION = 3
MEMORY_LIMIT = 1 << 30
ID_BYTES = 256  # of fixed length: HDF5's variable ones are lost with a process killed while it writes
TEXT_BYTES = 60_000  # of an attribute: HDF5 has room for 64 KiB
KINDS = ("image", "label", "value", "vector")


@dataclass(frozen=True, kw_only=True)
class Field:
    """How one field's stored numbers become values, and which of them mean "no label".

    Attributes:
        dtype: Stored numpy type, little-endian; of floats only for values.
        kind: `image` (H W 3, uint8), `label` (H W), `value` (H W, or H W C) or `vector` (H W 3, unit length).
        scale: value = stored * scale; labels and images are not scaled.
        unit: Unit of the values, for people.
        ignore: The stored and decoded value of a pixel without a label (a vector: all components); None = no such.
        limit: Largest stored value that is a valid one (for floats: largest magnitude); None = the type's.
        classes: Names of a label's classes; may be empty.
        components: The C of a value that has more than one a pixel.
    """

    dtype: str
    kind: str
    scale: float = 1.0
    unit: str = ""
    ignore: int | None = None
    limit: int | None = None
    classes: tuple[str, ...] = ()
    components: int = 1

    def __post_init__(self) -> None:
        """Give the type its one spelling, and refuse what the format does not have."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if self.kind not in KINDS or dtype.kind not in ("iuf" if self.kind == "value" else "iu"):
            raise DataError(
                f"Expected an integer type (floats for values only) and a kind of {KINDS}, "
                f"but got {dtype} and {self.kind!r}."
            )
        object.__setattr__(self, "dtype", dtype.str.lstrip("|"))

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape that follows N H W in the stored dataset."""
        if self.kind in ("image", "vector"):
            return (3,)
        return (self.components,) if self.components > 1 else ()

    @property
    def is_float(self) -> bool:
        """Whether values are stored as floats, neither scaled nor rounded."""
        return np.dtype(self.dtype).kind == "f"

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest valid stored value."""
        if self.is_float:
            limit = float(np.finfo(self.dtype).max) if self.limit is None else self.limit
            return -limit, limit
        return 0, int(np.iinfo(self.dtype).max) if self.limit is None else self.limit

    def labelled(self, stored: Array) -> Array:
        """Return H W bools: where stored numbers (see `encode`) hold a label."""
        if self.ignore is None:
            return np.ones(stored.shape[:2], bool)
        there = np.asarray(stored != self.ignore)
        return np.asarray(there.any(axis=-1)) if self.channels else there

    def write(self, attributes: h5py.AttributeManager) -> None:
        """Write the field's description as attributes of its dataset.

        Raises:
            DataError: The names of the classes are too long.
        """
        for key, value in (dataclasses.asdict(self) | {"classes": json.dumps(self.classes)}).items():
            if key != "dtype" and value is not None:
                attributes[key] = fixed(value) if isinstance(value, str) else value

    @classmethod
    def read(cls, dataset: h5py.Dataset) -> Field:
        """Read the description that `write` wrote."""
        found = {name: dataset.attrs[name] for name in ("scale", *_NUMBERS) if name in dataset.attrs}
        numbers = {key: int(found[key]) for key in _NUMBERS if key in found}
        return cls(
            dtype=dataset.dtype.newbyteorder("<").str.lstrip("|"),
            kind=text_of(dataset.attrs, "kind"),
            scale=float(found["scale"]),
            unit=text_of(dataset.attrs, "unit"),
            classes=tuple(json.loads(text_of(dataset.attrs, "classes"))),
            **numbers,
        )


_NUMBERS = ("ignore", "limit", "components")


def fixed(text: str) -> Array:
    """Return a text as an attribute of fixed length.

    Raises:
        DataError: It is too long for one.
    """
    content = text.encode()
    if len(content) > TEXT_BYTES:
        raise DataError(f"Expected a text of at most {TEXT_BYTES} bytes, but got {len(content)}: {text[:60]}... ")
    return np.array(content, f"S{max(1, len(content))}")


def text_of(attributes: h5py.AttributeManager, name: str) -> str:
    """Read a text that `fixed` made.

    Raises:
        KeyError: There is no such attribute.
        ValueError: It is no text, or of variable length.
    """
    if attributes.get_id(name).dtype.kind != "S":
        raise ValueError(f"{name} is no text of fixed length")
    return bytes(attributes[name]).decode()


FIELDS: Mapping[str, Field] = {
    "image": Field(dtype="u1", kind="image", unit="RGB"),
    "semseg": Field(dtype="u1", kind="label", ignore=255, limit=254),
    "human_parts": Field(dtype="u1", kind="label", ignore=255, limit=254),
    "depth": Field(dtype="<u2", kind="value", scale=0.001, unit="m", ignore=0),
    "normals": Field(dtype="i1", kind="vector", scale=1 / 127, ignore=0),
    "edges": Field(dtype="u1", kind="value", ignore=255, limit=1),
    "saliency": Field(dtype="u1", kind="value", ignore=255, limit=1),
    "reshading": Field(dtype="u1", kind="value", scale=1 / 254, ignore=255, limit=254),
    "albedo": Field(dtype="u1", kind="value", scale=1 / 254, ignore=255, limit=254, components=3),
    "instances": Field(dtype="<u2", kind="label"),
    "curvature": Field(dtype="<f2", kind="value", unit="1/m", ignore=255, limit=10, components=2),
    "keypoints2d": Field(dtype="u1", kind="value", scale=1 / 254, ignore=255, limit=254),
}


def encode(field: Field, values: Array) -> Array:
    """Turn values into the numbers stored.

    Args:
        field: The field's description.
        values: ... H W, or ... H W C where the field has components. NaN counts as ignored, as do vectors shorter
            than .1 (8-bit pictures of normals cannot hold an exact zero).

    Returns:
        The same shape in `field.dtype`.

    Raises:
        DataError: A value cannot be stored in this field.
    """
    if field.kind == "vector":
        return _encode_vectors(field, values)
    values = np.asarray(values)
    ignored = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if field.ignore is not None:
        ignored |= values == field.ignore
    if field.kind == "value" and field.channels:
        ignored = np.broadcast_to(ignored.any(axis=-1, keepdims=True), values.shape)
    stored = values if field.scale == 1 else values.astype(np.float64) / field.scale
    stored = np.where(ignored, 0, stored)
    stored = np.rint(stored) if stored.dtype.kind == "f" and not field.is_float else stored
    _refuse_outside(field, stored, ignored)
    return np.where(ignored, field.ignore or 0, stored).astype(field.dtype)


def _refuse_outside(field: Field, stored: Array, ignored: Array) -> None:
    if ignored.any() and field.ignore is None:
        raise DataError("Expected finite values, but got NaN or infinity in a field that has no ignored value.")
    low, high = (stored.min(), stored.max()) if stored.size else (0, 0)
    smallest, largest = field.range
    if low < smallest or high > largest:
        raise DataError(
            f"Expected values in [{smallest * field.scale:g}, {largest * field.scale:g}] {field.unit} "
            f"(ignored: {field.ignore}), but got [{low * field.scale:g}, {high * field.scale:g}]. "
            "Mark what is out of range as ignored, or pass the writer a Field of a larger dtype or scale."
        )


def _encode_vectors(field: Field, values: Array) -> Array:
    x, y, z = (np.asarray(values[..., i], np.float64) for i in range(3))
    length = np.sqrt(x * x + y * y + z * z)  # by component: numpy reduces over a short axis ten times slower
    valid = np.isfinite(length) & (length >= 0.1)
    factor = 1 / np.where(valid, length * field.scale, 1)
    stored = np.empty(values.shape, field.dtype)
    for i, component in enumerate((x, y, z)):
        stored[..., i] = np.rint(np.where(valid, component, 0) * factor)
    return stored


def decode(field: Field, stored: Array) -> Array:
    """Turn stored integers back into values, in the same shape.

    Returns:
        uint8 images, int64 labels, float32 values (ignored ones equal to `field.ignore`) and float32 unit vectors
        (zero where ignored).
    """
    if field.kind == "image":
        return stored
    if field.kind == "label":
        return stored.astype(np.int64)
    if field.kind == "vector":
        return np.moveaxis(_unit_vectors(field, np.moveaxis(stored, -1, 0)), 0, -1)
    values: Array = stored.astype(np.float32) * np.float32(field.scale)
    if field.ignore and field.scale != 1:  # zero stays zero under any scale
        values[stored == field.ignore] = field.ignore
    return values


def as_tensor(field: Field, stored: Array) -> Tensor:
    """Turn the stored numbers of one image's field into what a `Sample` holds.

    Args:
        field: The field's description.
        stored: H W or H W C, as `encode` gives them.

    Returns:
        uint8 3 H W for images, int64 H W for labels, float32 C H W for values and unit vectors; ignored pixels hold
        the field's `ignore` (vectors: zero).
    """
    import torch

    first = stored if stored.ndim == 2 else np.array(stored.transpose(2, 0, 1), order="C")
    if field.kind == "vector":
        return torch.from_numpy(_unit_vectors(field, first))
    values = decode(field, first)
    return torch.from_numpy(values[None] if values.ndim == 2 and field.kind == "value" else values)


def _unit_vectors(field: Field, stored: Array) -> Array:
    """3 H W: component by component, as numpy reduces over a short last axis ten times slower."""
    values: Array = np.multiply(stored, np.float32(field.scale), dtype=np.float32)
    x, y, z = values
    length = x * x
    length += y * y
    length += z * z
    np.sqrt(length, out=length)
    np.copyto(length, 1, where=length == 0)
    values /= length
    return values


class HDF5Writer:
    """Creates a file or appends to one; use it as a context manager.

    Args:
        path: The file. Its folder is made when it is missing.
        attrs: Facts about the whole file (source, palette, intrinsics, ...), plain JSON data. An existing file must
            have been written with the same ones.
        fields: Descriptions of fields that are not in `FIELDS`, or that replace those.
        classes: Class names by label field.

    Raises:
        DataError: The path holds something else, or a file with other attributes.
    """

    def __init__(
        self,
        path: str | Path,
        attrs: Mapping[str, Any] | None = None,
        *,
        fields: Mapping[str, Field] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path = Path(path)
        self.attrs = dict(attrs or {})
        self.fields = {**FIELDS, **(fields or {})}
        for name, names in (classes or {}).items():
            self.fields[name] = dataclasses.replace(self.fields[name], classes=tuple(names))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sealed: dict[str, Columns] = {}
        self._file = self._open()

    def _open(self) -> h5py.File:
        about = json.dumps(self.attrs)  # in their order: that of tasks means something
        if not self.path.exists():
            file = h5py.File(self.path, "w")
            file["about"] = np.frombuffer(about.encode(), np.uint8)
            file.attrs.update(format=fixed(FORMAT), version=VERSION, about_sha256=fixed(_sha256(about.encode())))
            return file
        file = _open(self.path, "r+")
        with _header(self.path):
            found = _about(file)
        if found != json.loads(about):
            file.close()
            raise DataError(
                f"{self.path} was written with the attributes {found}, but {about} are to be appended. "
                "Write to another path, or delete the file."
            )
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()

    def count(self, group: str) -> int:
        """Return how many images the group holds; 0 where there is no such group."""
        return _sealed(self._file[group])[0] if group in self._file else 0

    def last_id(self, group: str) -> str | None:
        """Return the name of the group's last image; None where there is none, or none has a name."""
        count = self.count(group)
        return str(self._file[f"{group}/id"].asstr()[count - 1]) if count and f"{group}/id" in self._file else None

    def append(
        self,
        group: str,
        arrays: Mapping[str, Array],
        *,
        present: Mapping[str, Sequence[bool] | Array] | None = None,
        extents: Array | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Add images at the end of a group.

        Args:
            group: `train`, `val`, `test` or any other name.
            arrays: `{field: N H W or N H W 3}`, stored types (see `encode`); `image` is among them. A field that other
                images of the group have may be missing: these images then lack that target.
            present: `{field: N bools}`, which of these images have the target; a field not named is there for all.
            extents: N 2 integers, the H, W that each image really has, in the upper left of its arrays; None = all.
            ids: The images' names; a group has names for all its images or for none.

        Raises:
            DataError: An array does not fit its field or the images before it.
        """
        size = self._check(group, arrays)
        has = {name: np.ones(size, bool) for name in arrays} | _present(present or {}, arrays)
        cut = [(slice(None),) * 2] * size if extents is None else [tuple(map(slice, extent)) for extent in extents]
        digests = np.stack([self._digest(arrays, has, row, cut[row]) for row in range(size)])
        parts = self._file.require_group(group)
        start, columns = self._start(parts, group)
        self._describe(parts, start, extents, ids, size)
        for name in sorted({*arrays, *_fields(parts)}):
            self._extend(parts, name, start, arrays.get(name), has.get(name, np.zeros(size, bool)))
        self._file.flush()
        _put(parts, "digest", start, digests)
        parts.attrs["content_hash"] = fixed(_column(parts, "digest", start + size, columns))
        self._file.flush()
        _seal(parts, start + size, columns)  # last: it is what makes the rows count
        self._file.flush()
        self._sealed[group] = columns

    def _start(self, parts: h5py.Group, group: str) -> tuple[int, Columns]:
        """Return how many images there are, and their columns' hashes.

        Damage must not get a new seal, so the old one is looked at once, and again after an append that failed.
        """
        rows, names, said = _sealed(parts)
        if rows and group not in self._sealed:
            columns: Columns = {}
            if _seal_of(parts, rows, names, columns) != said:
                raise DataError(f"{self.path} is damaged: group {group} is not what it was sealed as. {_REMAKE}")
            return rows, columns
        return rows, self._sealed.pop(group, {})

    def _check(self, group: str, arrays: Mapping[str, Array]) -> int:
        if "image" not in arrays:
            raise DataError(f"Expected an array `image` among those to append, but got only {sorted(arrays)}.")
        size = arrays["image"].shape[:3]
        for name, array in arrays.items():
            if name not in self.fields:
                advice = f'Pass HDF5Writer(fields={{"{name}": Field(...)}}) for a field of your own.'
                raise DataError(f"{unknown('field', name, self.fields)} {advice}")
            field = self.fields[name]
            if array.dtype != np.dtype(field.dtype) or array.shape != size + field.channels or not size[0]:
                expected = f"{np.dtype(field.dtype)} of shape {size + field.channels} (at least one image)"
                got = f"{array.dtype} of shape {array.shape}"
                raise DataError(f"Expected `{name}` as {expected}, but got {got}. `encode` makes the stored type.")
            self._compare(group, name, size)
        return int(size[0])

    def _compare(self, group: str, name: str, size: tuple[int, ...]) -> None:
        if group not in self._file or name not in _fields(self._file[group]):
            return
        stored = self._file[group][name]
        before, now = (stored.shape[1:3], Field.read(stored)), (size[1:], self.fields[name])
        if before != now:
            raise DataError(f"{self.path}: `{name}` of group {group} holds {before}, but {now} is to be appended.")

    def _digest(self, arrays: Mapping[str, Array], has: Mapping[str, Array], row: int, cut: tuple[slice, ...]) -> Array:
        return _digest({name: (self.fields[name], arrays[name][row][cut]) for name in arrays if has[name][row]})

    def _describe(
        self, group: h5py.Group, start: int, extents: Array | None, ids: Sequence[str] | None, size: int
    ) -> None:
        """Write what is known of the images besides their fields."""
        if start and (("extent" in group) != (extents is not None) or ("id" in group) != (ids is not None)):
            raise DataError(f"{self.path}: the images before have extents or ids and these have not, or the reverse.")
        rows = {
            "extent": None if extents is None else np.asarray(extents, np.uint16).reshape(size, 2),
            "id": None if ids is None else _names(ids),
        }
        for name, array in rows.items():
            if array is not None:
                _put(group, name, start, array)
            elif name in group:
                del group[name]  # an interrupted first append left it

    def _extend(self, group: h5py.Group, name: str, start: int, array: Array | None, has: Array) -> None:
        late = name not in group and start > 0  # the images before have no such target
        if f"has/{name}" not in group and (late or not has.all()):
            _put(group, f"has/{name}", 0, np.full(start, not late))
        if f"has/{name}" in group:
            _put(group, f"has/{name}", start, has)
        sums = [checksum(row) if there else 0 for row, there in zip(() if array is None else array, has, strict=False)]
        _put(group, f"sum/{name}", start, np.array(sums or [0] * len(has), np.uint32))
        if array is None:
            group[name].resize(start + len(has), axis=0)
        else:
            _put(group, name, start, array)
            self.fields[name].write(group[name].attrs)


class HDF5Data:
    """Reads one group of a file, whole or its first images; nothing is read twice that fits in memory.

    It may be pickled and used in forked or spawned workers: each process opens the file for itself.

    Args:
        path: A file written by `HDF5Writer`.
        group: `train`, `val`, `test` or any other that the file holds.
        size: Use the first `size` images only; None = all.
        tasks: Names of the targets to offer; none = all that the file has.
        memory_limit: Hold the stored arrays in memory where image and targets take at most so many bytes.

    Attributes:
        fields: Names of the targets offered.
        content_hash: SHA-256 over the stored bytes of all fields of the images used.
        image_size: H, W of the largest image.
        ids: The images' names, where the file has them.
        unreadable: None; a pack may know of some.
        written: Empty; a pack says here when its files were written.
        attrs: Facts about the whole file, as given to the writer.

    Raises:
        MissingDataError: There is no such file.
        DataError: The file is damaged or foreign, or lacks the group, the images or the targets asked for.
    """

    def __init__(
        self,
        path: str | Path,
        group: str,
        size: int | None = None,
        tasks: Sequence[str] = (),
        *,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.path, self.group = Path(path), group
        self.unreadable: Mapping[str, str] = {}
        self.written = ""  # the content hash is of every byte
        with _open(self.path, "r") as file, _header(self.path):
            self._read_header(file, size, tasks, memory_limit)
        self._arrays: dict[str, Array] = {}
        self._file: h5py.File | None = None
        self._datasets: dict[str, tuple[h5py.Dataset, bool]] = {}
        _READERS.add(self)

    def _read_header(self, file: h5py.File, size: int | None, tasks: Sequence[str], memory_limit: int) -> None:
        parts, stored, names = self._group_of(file)
        self._size = stored if size is None else size
        if not 0 < self._size <= stored:
            raise DataError(f"{self.path}: expected a size in 1..{stored} for group {self.group}, but got {size}.")
        for name in tasks:
            if name not in names:
                raise DataError(f"{self.path}, group {self.group}: {unknown('target', name, set(names) - {'image'})}")
        self._sums = {name: parts["sum"][name][: self._size] for name in names}
        self.fields = tuple(tasks) or tuple(name for name in names if name != "image")
        self._described = {name: Field.read(parts[name]) for name in ("image", *self.fields)}
        self._has = {name: parts["has"][name][: self._size] for name in self.fields if f"has/{name}" in parts}
        self.content_hash = _content_hash(parts["digest"][: self._size])
        self._extents: Array | None = parts["extent"][: self._size] if "extent" in parts else None
        sizes = parts["image"].shape[1:3] if self._extents is None else self._extents.max(axis=0)
        self.image_size: tuple[int, int] = (int(sizes[0]), int(sizes[1]))
        self.ids = tuple(parts["id"].asstr()[: self._size]) if "id" in parts else None
        self.attrs: dict[str, Any] = _about(file)
        self._in_memory = sum(self._bytes_of(parts[name]) for name in self._described) <= memory_limit

    def _group_of(self, file: h5py.File) -> tuple[h5py.Group, int, tuple[str, ...]]:
        """Return the group, how many images it holds and its fields, after its seal."""
        if self.group not in file or not _sealed(file[self.group])[0]:
            known = [name for name in file if _sealed(file[name])[0]]
            raise DataError(f"{self.path}: {unknown('group', self.group, known)}")
        parts = file[self.group]
        rows, names, said = _sealed(parts)
        short = [name for name in names if len(parts[name]) < rows]
        if short:
            raise DataError(f"{self.path}: {short} of group {self.group} lack images. {_REMAKE}")
        if _seal_of(parts, rows, names) != said:
            raise DataError(f"{self.path} is damaged: group {self.group} is not what it was sealed as. {_REMAKE}")
        return parts, rows, names

    def _bytes_of(self, dataset: h5py.Dataset) -> int:
        return int(self._size * np.prod(dataset.shape[1:]) * dataset.dtype.itemsize)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"{self.path} ({self.group}, {self._size} images)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}, "_file": None, "_datasets": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _READERS.add(self)

    def field(self, name: str) -> Field:
        """Return how a target (or `image`) is stored: kind, unit, ignored value, class names."""
        if name not in self._described:
            raise DataError(f"{self.path}, group {self.group}: {unknown('target', name, self.fields)}")
        return self._described[name]

    def has(self, name: str) -> Array:
        """Return N bools: which images have the target."""
        self.field(name)
        there: Array = self._has.get(name, np.ones(self._size, bool))
        return there

    def image(self, index: int) -> Tensor:
        """Return an image: 3 H W uint8, RGB."""
        return as_tensor(self.field("image"), self._whole("image", index))

    def target(self, index: int, name: str) -> Tensor | None:
        """Return a target as `as_tensor` makes it, or None where the image has none.

        Raises:
            DataError: There is no such target, or its bytes are damaged.
        """
        stored = self.stored(index, name)
        return None if stored is None else as_tensor(self.field(name), stored)

    def stored(self, index: int, name: str) -> Array | None:
        """Return a field (or `image`) of an image as it is stored, H W or H W C; None where the image has none."""
        self.field(name)
        if name in self._has and not self._has[name][index]:
            return None
        return self._whole(name, index)

    def check(self, index: int) -> None:
        """Read all of an image and compare it with the digest that was stored when it was written.

        Raises:
            DataError: It differs or cannot be read.
        """
        with _header(self.path):
            parts = self._handle()[self.group]
            described = {name: Field.read(parts[name]) for name in self._sums}
            there = {name for name in described if f"has/{name}" not in parts or parts["has"][name][index]}
        arrays = {name: (described[name], self._cut(self._read(name, index), index)) for name in there}
        with _header(self.path):
            if _digest(arrays).tobytes() != parts["digest"][index].tobytes():
                raise DataError(self._damaged(index))

    def verify(self) -> None:
        """Check every image.

        Raises:
            DataError: Naming the group and the first image that differs or cannot be read.
        """
        for index in range(self._size):
            self.check(index)

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._datasets.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _handle(self) -> h5py.File:
        if self._file is None:
            self._file = _open(self.path, "r")
        return self._file

    def _whole(self, name: str, index: int) -> Array:
        if not 0 <= index < self._size:
            raise IndexError(f"Expected an index in 0..{self._size - 1} for group {self.group}, but got {index}.")
        return self._cut(self._held(name)[index] if self._in_memory else self._read(name, index), index)

    def _cut(self, stored: Array, index: int) -> Array:
        """Take the border away that fills an image up to the size of the largest."""
        if self._extents is None:
            return stored
        height, width = self._extents[index]
        return stored[:height, :width]

    def _read(self, name: str, index: int | slice) -> Array:
        try:
            dataset, direct = self._dataset(name)
            stored: Array = _inflated(dataset, index) if direct and isinstance(index, int) else dataset[index]
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(self._damaged(index)) from error
        first, rows = (index, stored[None]) if isinstance(index, int) else (0, stored)
        for place, row in enumerate(rows, first):
            there = name not in self._has or self._has[name][place]
            if there and checksum(row) != self._sums[name][place]:
                raise DataError(self._damaged(place))
        return stored

    def _dataset(self, name: str) -> tuple[h5py.Dataset, bool]:
        """Return a dataset, and whether a chunk of it is one compressed image: to ask HDF5 each time takes long."""
        if name not in self._datasets:
            found = self._handle()[self.group][name]
            plain = found.compression == "gzip" and found.shuffle and not found.fletcher32
            self._datasets[name] = found, plain and found.chunks == (1, *found.shape[1:])
        return self._datasets[name]

    def _held(self, name: str) -> Array:
        if name not in self._arrays:
            state = self.path.stat()
            key = (str(self.path.resolve()), state.st_mtime_ns, state.st_size, self.group, name, self._size)
            array = _HELD.get(key)
            if array is None:
                array = _HELD[key] = self._read(name, slice(0, self._size))
            self._arrays[name] = array
        return self._arrays[name]

    def _damaged(self, index: int | slice) -> str:
        where = f"image {index}" if isinstance(index, int) else "an image"
        return f"{self.path}: {where} of group {self.group} is damaged. {_REMAKE}"


class EarlierVersionError(DataError):
    """A file of our format is whole as far as one can tell, but was made by an earlier version."""


def groups(path: str | Path) -> dict[str, int]:
    """Return the groups of a file of our format and how many images each holds.

    Raises:
        MissingDataError: There is no such file.
        DataError: The file is damaged or foreign.
    """
    with _open(Path(path), "r") as file, _header(Path(path)):
        return {name: rows for name in file if (rows := _sealed(file[name])[0])}


def attrs_of(path: str | Path) -> dict[str, Any]:
    """Return the facts about a file of our format, as given to the writer.

    Raises:
        MissingDataError: There is no such file.
        DataError: The file is damaged or foreign.
    """
    with _open(Path(path), "r") as file, _header(Path(path)):
        return _about(file)


def _about(file: h5py.File) -> dict[str, Any]:
    content = file["about"][()].tobytes()
    if _sha256(content) != text_of(file.attrs, "about_sha256"):
        raise ValueError("`about` is not what was written")
    about: dict[str, Any] = json.loads(content)
    return about


_REMAKE = "Delete the file and make or fetch it again."

# Readers of the same stored array in one process share it (a stream opens the images once a task).
_HELD: WeakValueDictionary[tuple[Any, ...], Array] = WeakValueDictionary()
_READERS: WeakSet[HDF5Data] = WeakSet()


def _close_inherited() -> None:
    for reader in list(_READERS):
        reader.close()  # a forked handle shares its file offset with the parent's


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def _header(path: Path) -> Iterator[None]:
    """Turn what HDF5 raises about damaged metadata into a `DataError` that names the file."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: its description cannot be read ({error}). {_REMAKE}") from error


def _open(path: Path, mode: str) -> h5py.File:
    """Open a file of our format, or say why that cannot be."""
    if not path.is_file():
        raise MissingDataError(f"Expected an HDF5 file at {path}, but there is none. Check the path, or make the file.")
    try:
        # Locks fail on many network file systems, and readers do not need them.
        file = h5py.File(path, mode, locking=False if mode == "r" else None)
    except OSError as error:
        raise DataError(f"{path} {_why_not_open(error)}") from error
    try:
        with _header(path):
            found = _format_of(file)
            version = int(file.attrs["version"]) if found == FORMAT else 0
            if version == VERSION:
                require_own(file)
    except DataError:
        file.close()
        raise
    if found == FORMAT and version == VERSION:
        return file
    file.close()
    if found == FORMAT and version > VERSION:
        raise DataError(f"{path} has version {version} of the format, newer than {VERSION}: update medusa_cl.")
    if found == FORMAT:
        raise EarlierVersionError(
            f"{path} was made by an earlier version of medusa_cl (version {version} of the format, not {VERSION}): "
            f"damage to it might not be found. Delete it and make it again as it was made, for instance by "
            f"`python -m medusa_cl.prepare path=DATA out={path}`."
        )
    raise DataError(
        f"{path} is HDF5 of another format (attribute `format`: {found!r}, not {FORMAT!r}). Convert it by "
        "`python -m medusa_cl.prepare` or `HDF5Writer`."
    )


_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


def require_own(group: h5py.Group, depth: int = 3) -> None:
    """Refuse what makes HDF5 open other files: links, virtual and external data, filters that it has to load.

    Args:
        group: The file, or a group.
        depth: How deep groups may lie in one another: a group can be put into itself.

    Raises:
        ValueError: Naming the link or the dataset.
    """
    for name in group:
        where = f"{group.name.rstrip('/')}/{name}"
        if group.get(name, getlink=True, getclass=True) is not h5py.HardLink:
            raise ValueError(f"{where} is a link, not in the file itself")
        if group.get(name, getclass=True) is h5py.Group:
            if depth == 1:
                raise ValueError(f"{where} lies deeper than any group of ours")
            require_own(group[name], depth - 1)
        else:
            _require_own_data(group[name], where)


def _require_own_data(dataset: h5py.Dataset, where: str) -> None:
    settings = dataset.id.get_create_plist()
    if dataset.is_virtual or settings.get_external_count():
        raise ValueError(f"the data of {where} are not in the file itself")
    filters = [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]
    if odd := sorted(set(filters) - set(_FILTERS)):
        raise ValueError(f"{where} needs a filter that HDF5 does not have by itself, number {odd[0]}")


def _format_of(file: h5py.File) -> str | None:
    try:
        return text_of(file.attrs, "format")
    except KeyError:
        return None
    except ValueError:  # of variable length, as in version 1, which HDF5 may hang on: it is known by what is beside it
        return FORMAT if "about" in file.attrs and file.attrs.get("version") == 1 else None


def _why_not_open(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"cannot be opened: {error}. Check who may read it."
    if " lock" in str(error) or "already open" in str(error):
        # Advice to delete what another program is just writing would cost the user that file.
        return (
            f"is open elsewhere, or on a file system without locks: {error}. Close it there; without locks, set "
            "HDF5_USE_FILE_LOCKING=FALSE."
        )
    return f"cannot be read as HDF5, it is cut short or of another format: {error}. {_REMAKE}"


def _present(present: Mapping[str, Sequence[bool] | Array], arrays: Mapping[str, Array]) -> dict[str, Array]:
    has = {name: np.asarray(there, bool) for name, there in present.items()}
    for name, there in has.items():
        if name == "image" or name not in arrays or there.shape != arrays[name].shape[:1]:
            raise DataError(
                f"Expected `present` to hold one truth value an image for targets among {sorted(arrays)}, "
                f"but got {there.shape} for `{name}`."
            )
    return has


def _fields(group: h5py.Group) -> tuple[str, ...]:
    return tuple(sorted(name for name in group if "kind" in group[name].attrs))


def _inflated(dataset: h5py.Dataset, index: int) -> Array:
    """Read one image's chunk: decompressed here, which takes about half the time that HDF5's own zlib takes.

    Raises:
        OSError: The chunk is damaged.
        ValueError: It is of another length.
    """
    shape, dtype = dataset.shape[1:], dataset.dtype
    mask, packed = dataset.id.read_direct_chunk((index, *(0 for _ in shape)))
    if mask:  # a filter was left out when it was written
        return np.asarray(dataset[index])
    try:
        plain = decompress(packed)
    except Exception as error:  # isal's and zlib's own, which share no base
        raise OSError(f"chunk {index} cannot be decompressed") from error
    planes = np.frombuffer(plain, np.uint8).reshape(dtype.itemsize, -1)
    # Shuffled: all lowest bytes, then all second ones, ... Put together as numbers, five times faster than as bytes.
    joined = planes[0] if len(planes) == 1 else planes[0].astype(f"<u{len(planes)}")
    for place, plane in enumerate(planes[1:], 1):
        joined |= plane.astype(joined.dtype) << (8 * place)
    stored: Array = joined.view(dtype).reshape(shape)
    return stored


def _names(ids: Sequence[str]) -> Array:
    names = [name.encode("utf-8") for name in ids]
    if longest := max((name for name in names if len(name) > ID_BYTES), default=None):
        raise DataError(f"Expected image names of at most {ID_BYTES} bytes, but got {len(longest)}: {longest!r}.")
    return np.array(names, h5py.string_dtype("utf-8", ID_BYTES))


def _put(group: h5py.Group, name: str, start: int, rows: Array) -> None:
    """Write rows from `start` on; what stood there or after is gone."""
    if name not in group:
        picture: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        group.create_dataset(
            name,
            shape=(0, *rows.shape[1:]),
            maxshape=(None, *rows.shape[1:]),
            dtype=rows.dtype,
            chunks=(1 if rows.ndim > 2 else 1024, *rows.shape[1:]),
            **(picture if rows.ndim > 2 or rows.dtype.kind == "S" else {}),
        )
    group[name].resize(start + len(rows), axis=0)
    if len(rows):
        group[name][start:] = rows


def _digest(image: Mapping[str, tuple[Field, Array]]) -> Array:
    """Hash one image's fields with what its numbers mean."""
    sha = hashlib.sha256()
    for name in sorted(image):
        field, stored = image[name]
        stored = np.ascontiguousarray(stored, np.dtype(field.dtype))
        sha.update(json.dumps([name, field.dtype, stored.shape, field.kind, field.scale, field.ignore]).encode())
        sha.update(stored.data)
    return np.frombuffer(sha.digest(), np.uint8)


def checksum(stored: Array) -> int:
    """Return the CRC-32 of an array's bytes."""
    return int(crc32(np.ascontiguousarray(stored).data))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _seal(group: h5py.Group, rows: int, columns: Columns | None = None) -> None:
    """Say how many rows count, in place and in a fixed length: there is then no moment without a seal."""
    names = _fields(group)
    said = json.dumps({"rows": rows, "fields": names, "sha256": _seal_of(group, rows, names, columns)}).encode()
    group.attrs.modify("seal", np.bytes_(said.ljust(-(-len(said) // 1024) * 1024)))


def _sealed(group: h5py.Group) -> tuple[int, tuple[str, ...], str]:
    """Return how many rows count, their fields, and the hash to be found."""
    if "seal" not in group.attrs:
        return 0, (), ""
    said = json.loads(text_of(group.attrs, "seal"))
    return int(said["rows"]), tuple(said["fields"]), said["sha256"]


def _seal_of(group: h5py.Group, rows: int, names: Sequence[str], columns: Columns | None = None) -> str:
    """Hash all that is said of the first rows: what their numbers mean, where they are, their checksums and names.

    Args:
        group: The group.
        rows: How many rows.
        names: Its fields.
        columns: Hashes of fewer rows of its columns, which are brought up to these.
    """
    columns = {} if columns is None else columns
    described = [[name, group[name].shape[1:], dataclasses.asdict(Field.read(group[name]))] for name in names]
    said = [f"{kind}/{name}" for name in names for kind in ("has", "sum")] + ["digest", "extent", "id"]
    hashes = [_column(group, name, rows, columns) for name in said]
    return _sha256(json.dumps([group.name, rows, described, hashes]).encode())


def _column(group: h5py.Group, name: str, rows: int, columns: Columns) -> str:
    """Hash the first rows of a dataset, going on from those that are hashed already; empty where there is none."""
    sha, done = columns.get(name, (hashlib.sha256(), 0))
    if name not in group and not name.startswith("has/"):
        return ""
    more = group[name][done:rows] if name in group else np.ones(rows - done, bool)  # all have it
    sha.update(more.tobytes())
    columns[name] = sha, rows
    return str(sha.hexdigest())


def _content_hash(digests: Array) -> str:
    return hashlib.sha256(digests.tobytes()).hexdigest()
