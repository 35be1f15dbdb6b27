"""`tasks.yaml`: what the files of a folder of one's own data mean.

    semseg:      {kind: semseg, classes: [floor, wall, cup]}
    depth:       {kind: depth, scale: 0.001}
    normals:     {kind: normals, frame: rub}
    temperature: {kind: regression, unit: degC, scale: 0.01, offset: -273.15, ignore: 0}
    splits:      {test: 0.2}

Each entry but `splits` is a task, in the folder of its name unless `folder` says another. Keys by kind:

    all           kind; folder; loss_weight; ignore: the stored number, or a list of them, for "no label" (as NaN is)
    semseg        classes: names, or how many. Files hold the class's number, from 0. 255 is always ignored
    human_parts   numbers of the 7 classes of `tasks.HUMAN_PARTS`; 255 is always ignored
    saliency      nonzero is 1; in a file of more than two values, what is above half of the type's range (floats: .5)
    edges         the same; tolerance: how far a predicted edge may lie from a true one, in diagonals
    depth         stored * scale + offset = metres; 0 is always ignored. Files of integers need a scale
    normals       8- or 16-bit colours for [-1, 1], or float H W 3; frame: where x, y, z point (default: rdf)
    reshading, keypoints2d    8 or 16 bits for [0, 1], or floats; stored * scale + offset where a scale is given
    albedo        the same, H W 3
    curvature     H W 2; stored * scale + offset = 1/m
    regression    stored * scale + offset; unit, channels, shown: [low, high] of pictures
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medusa_cl.data.files import read_map
from medusa_cl.data.frames import OURS, Frame, vectors_of_bytes, vectors_of_floats
from medusa_cl.data.hdf5 import FIELDS, Field
from medusa_cl.errors import ConfigError, DataError, TaskError, unknown

if TYPE_CHECKING:  # torch: a reader must start fast
    from medusa_cl.tasks import DenseTask

Array = NDArray[Any]

FILE = "tasks.yaml"
EXAMPLE = """\
semseg: {kind: semseg, classes: [floor, wall, cup]}
depth: {kind: depth, scale: 0.001}        # stored * scale = metres
temperature: {kind: regression, unit: degC, ignore: 0}
splits: {test: 0.2}                       # or splits/train.txt and splits/test.txt"""
RESERVED = ("image", "images", "splits", "has", "digest", "extent", "id")
UNKNOWN = -1_000_000_000  # `losses.UNKNOWN`, which only torch can import

_EVERY = ("kind", "folder", "loss_weight", "ignore")
_LINEAR = ("scale", "offset")
KEYS: Mapping[str, tuple[str, ...]] = {
    "semseg": (*_EVERY, "classes"),
    "human_parts": _EVERY,
    "saliency": _EVERY,
    "edges": (*_EVERY, "tolerance"),
    "depth": (*_EVERY, *_LINEAR, "unit"),
    "normals": (*_EVERY, "frame"),
    "reshading": (*_EVERY, *_LINEAR),
    "albedo": (*_EVERY, *_LINEAR),
    "keypoints2d": (*_EVERY, *_LINEAR),
    "curvature": (*_EVERY, *_LINEAR),
    "regression": (*_EVERY, *_LINEAR, "unit", "channels", "shown"),
}
_SHADES = ("saliency", "edges", "reshading", "keypoints2d")
_READ_AS = {"label": "semseg", "value": "regression", "vector": "normals", "image": "regression"}


@dataclass(frozen=True, kw_only=True)
class FolderTask:
    """How the files of one task's folder become its values.

    Attributes:
        name: The task's name.
        kind: How files are read, one of `KEYS`.
        folder: The folder below the root.
        field: How the values are stored in our format.
        options: What `tasks.BUILT_IN[kind]` is called with, besides the name.
        scale: value = stored * scale + offset; None where nothing was said.
        offset: See `scale`.
        ignore: Stored numbers that mean "no label", besides NaN.
        frame: Where the components of stored normals point.
    """

    name: str
    kind: str
    folder: str
    field: Field
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: float | None = None
    offset: float = 0.0
    ignore: tuple[float, ...] = ()
    frame: str = OURS

    def values(self, path: Path) -> Array:
        """Read a file as `hdf5.encode` takes it.

        Returns:
            H W int64 for labels, H W uint8 in {0, 1} for edges and saliency, H W 3 float32 in our camera frame for
            normals, H W (C) float32 for the rest; `field.ignore` (normals: zero) where there is no label.

        Raises:
            DataError: It is damaged, or holds something else than its task's entry says.
        """
        # Shades are shares of the type's range; where numbers are said, they are the stored ones.
        shades = self.kind in _SHADES and self.scale is None and not self.ignore
        stored = _shaped(path, self.field, read_map(path, spread=shades))
        return _VALUES[self.kind](self, stored, path)

    def task(self) -> DenseTask:
        """Return the task itself.

        Raises:
            ConfigError: An option is out of range.
        """
        from medusa_cl.tasks import BUILT_IN

        try:
            return BUILT_IN[self.kind](name=self.name, **self.options)
        except TaskError as error:
            raise ConfigError(f"{FILE}, {self.name}: {error}") from error

    def stored(self) -> dict[str, Any]:
        """Return what was said of the files, as plain JSON data."""
        said = {key: getattr(self, key) for key in ("folder", "scale", "offset", "frame")}
        return {**said, "ignore": list(self.ignore)}


def folder_task(name: str, entry: Any, where: str = FILE) -> FolderTask:
    """Return what an entry of tasks.yaml says.

    Args:
        name: The task's name.
        entry: `{kind: ..., ...}`; the keys are in this module's description.
        where: What errors name.

    Raises:
        ConfigError: A kind or key is unknown, or a value is not one the key can have.
    """
    where = f"{where}, {name}"
    if not isinstance(name, str) or not name or name in RESERVED or set(name) & set("/\\"):
        raise ConfigError(f"{where}: expected a task's name, in quotes if need be and none of {', '.join(RESERVED)}.")
    if not isinstance(entry, Mapping) or "kind" not in entry:
        raise ConfigError(
            f"{where}: expected a kind and what else there is to say, like {{kind: depth, scale: 0.001}}."
        )
    kind = str(entry["kind"])
    if kind not in KEYS:
        raise ConfigError(f"{where}: {unknown('kind', kind, KEYS)}")
    for key in entry:
        if key not in KEYS[kind]:
            raise ConfigError(f"{where}: {unknown(f'key of a task of kind {kind},', key, KEYS[kind])}")
    said = {key: _CHECKS[key](f"{where}, {key}", value) for key, value in entry.items() if key in _CHECKS}
    options = {key: said.pop(key) for key in _OPTIONS if key in said}
    _check_unit(where, kind, options)
    field = field_of(kind, options, where)
    return FolderTask(name=name, kind=kind, folder=said.pop("folder", name), field=field, options=options, **said)


def python_task(task: DenseTask, entry: FolderTask | None, given: Field | None) -> FolderTask:
    """Return how the files of a task made in Python are read.

    Args:
        task: The task.
        entry: What tasks.yaml says of its files, if anything.
        given: How its values are stored; needed for kinds that are not built in.

    Raises:
        ConfigError: Nothing says how it is stored.
    """
    if given is None and task.kind not in KEYS:
        raise ConfigError(
            f'Task "{task.name}" is of kind "{task.kind}", which is not built in: say how its values are stored, '
            f'FolderPack(root, tasks=..., fields={{"{task.name}": Field(...)}}).'
        )
    stored = given or field_of(task.kind, {**task.options, "classes": task.classes}, f'Task "{task.name}"')
    kind = task.kind if task.kind in KEYS else entry.kind if entry else _READ_AS[stored.kind]
    read = entry or FolderTask(name=task.name, kind=kind, folder=task.name, field=stored)
    return dataclasses.replace(read, kind=kind, field=stored, options={})


def field_of(kind: str, options: Mapping[str, Any], where: str = FILE) -> Field:
    """Return how values of a built-in kind are stored: with no loss where the range is the user's own.

    Raises:
        ConfigError: There are no classes, or more than 255.
    """
    if kind == "semseg":
        names = tuple(options.get("classes", ()))
        if not 2 <= len(names) <= 255:
            raise ConfigError(f"{where}: expected classes, 2 to 255 names or how many, but got {len(names)}.")
        return dataclasses.replace(FIELDS[kind], limit=len(names) - 1, classes=names)
    if kind == "human_parts":
        return dataclasses.replace(FIELDS[kind], limit=6)
    if kind == "depth":
        return Field(dtype="<f4", kind="value", unit="m", ignore=0)
    if kind == "regression":
        unit, channels = str(options.get("unit", "")), int(options.get("channels", 1))
        return Field(dtype="<f4", kind="value", unit=unit, ignore=UNKNOWN, components=channels)
    return FIELDS[kind]


# What a key may hold -----------------------------------------------------------------------------------------------


def number(where: str, value: Any) -> float:
    """Return a finite number; YAML takes 1e-3, without a point, for text.

    Raises:
        ConfigError: It is none.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{where}: expected a number, but got {value!r}.")
    return found


def _nonzero(where: str, value: Any) -> float:
    if (found := number(where, value)) == 0:
        raise ConfigError(f"{where}: expected a number other than 0.")
    return found


def _positive(where: str, value: Any) -> float:
    if (found := number(where, value)) <= 0:
        raise ConfigError(f"{where}: expected a number above 0, but got {value!r}.")
    return found


def _ignored_numbers(where: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    kept = [v for v in values if v is not None and not _is_nan(v)]  # NaN is ignored in any case
    return tuple(number(where, v) for v in kept)


def _is_nan(value: Any) -> bool:
    return str(value).strip().lower().lstrip(".") == "nan"


def _names(where: str, value: Any) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [f"class_{i}" for i in range(value)]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f"{where}: expected how many or a list of names, but got {value!r}. Put names like no, on and 1 in quotes."
        )
    if len(set(value)) < len(value):
        raise ConfigError(f"{where}: expected different names, but got {value}.")
    return value


def _folder_name(where: str, value: Any) -> str:
    if not isinstance(value, str) or value in ("", ".", "..", "images", "splits") or set(value) & set("/\\"):
        raise ConfigError(f"{where}: expected the name of a folder beside {FILE}, but got {value!r}.")
    return value


def _frame_name(where: str, value: Any) -> str:
    try:
        return Frame.parse(value).name
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _whole(where: str, value: Any) -> int:
    found = number(where, value)
    if found != int(found) or found < 1:
        raise ConfigError(f"{where}: expected a whole number of at least 1, but got {value!r}.")
    return int(found)


def _bounds(where: str, value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{where}: expected [low, high], but got {value!r}.")
    return [number(where, bound) for bound in value]


def _text(where: str, value: Any) -> str:
    return str(value)


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "folder": _folder_name,
    "loss_weight": _positive,
    "ignore": _ignored_numbers,
    "classes": _names,
    "tolerance": _positive,
    "scale": _nonzero,
    "offset": number,
    "frame": _frame_name,
    "unit": _text,
    "channels": _whole,
    "shown": _bounds,
}
_OPTIONS = ("classes", "tolerance", "unit", "channels", "shown", "loss_weight")


def _check_unit(where: str, kind: str, options: dict[str, Any]) -> None:
    """Depth is in metres: another unit would be believed, but change nothing."""
    if kind == "depth" and (unit := options.pop("unit", "m")) != "m":
        raise ConfigError(
            f"{where}, unit: depth is in m, but got {unit!r}. Say scale: what is stored times it = metres."
        )


# What files hold ---------------------------------------------------------------------------------------------------


def _shaped(path: Path, field: Field, stored: Array) -> Array:
    """Return an array of numbers, H W or H W C as the field says."""
    if stored.ndim == 3 and stored.shape[2] == 1 and not field.channels:
        stored = stored[..., 0]
    if stored.ndim != 2 + len(field.channels) or stored.shape[2:] != field.channels or stored.dtype.kind not in "buif":
        expected = f"H W {field.channels[0]}" if field.channels else "H W, one number a pixel"
        colours = " Colours are not class numbers: save the numbers." if field.kind == "label" else ""
        raise DataError(f"{path}: expected {expected}, but got {stored.dtype} of shape {stored.shape}.{colours}")
    return stored


def _unlabelled(task: FolderTask, stored: Array) -> Array:
    """Return H W bools: where a pixel has no label. Of several components, one NaN or all ignored ones mean that."""
    numbers = stored if stored.ndim == 3 else stored[..., None]
    gone: Array = np.asarray(~np.isfinite(numbers).all(axis=-1))
    for value in task.ignore:
        same = numbers == (stored.dtype.type(value) if stored.dtype.kind == "f" else value)
        np.logical_or(gone, same.all(axis=-1), out=gone)
    return gone


def _filled(task: FolderTask, values: Array, gone: Array, path: Path) -> Array:
    """Put the field's ignored value where there is no label."""
    if task.field.ignore is None and gone.any():
        raise DataError(f"{path}: has pixels without a label, but the Field of `{task.name}` has no ignored value.")
    values[gone] = task.field.ignore or 0
    return values


def _labels(task: FolderTask, stored: Array, path: Path) -> Array:
    gone = _unlabelled(task, stored)
    numbers = np.where(gone, 0, stored)
    labels: Array = numbers.astype(np.int64)
    if (labels != numbers).any():
        odd = numbers[labels != numbers].flat[0]
        raise DataError(f"{path}: expected whole class numbers, but got {odd:g}. Is this a map of another kind?")
    return _filled(task, labels, gone, path)


def _binary(task: FolderTask, stored: Array, path: Path) -> Array:
    gone = _unlabelled(task, stored)
    seen = np.unique(stored[~gone])
    some = seen[seen != 0]
    plain = len(some) <= 1 and not (some < 0).any()
    ones = stored != 0 if plain else stored > _half(task, path, some)
    return _filled(task, ones.astype(np.uint8), gone, path)


def _half(task: FolderTask, path: Path, some: Array) -> float:
    """Return above what a soft map's values count as 1, given the nonzero ones that occur."""
    kind, most = some.dtype.kind, _most(some.dtype)
    if some.min() < 0 or some.max() > most or kind == "i":
        raise DataError(
            f"{path}: expected 0 and 1 (or 0 and 255) for `{task.name}`, but got {len(some)} values other than 0 "
            f"from {some.min():g} to {some.max():g}. Say which means no label, ignore: in {FILE}, or save 0 and 1."
        )
    if kind == "u" and list(some) == [1, most]:
        raise DataError(
            f"{path}: 1 and {most:g} both occur in `{task.name}`: which means yes? If {most:g} means no label, say "
            f"ignore: {most:g} in {FILE}; if 1 does, ignore: 1."
        )
    return most / 2


def _most(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def _numbers(task: FolderTask, stored: Array, path: Path, scale: float = 1.0) -> Array:
    gone = _unlabelled(task, stored)
    exact = np.where(gone[..., None] if stored.ndim == 3 else gone, 0, stored).astype(np.float64)
    values = (exact * (scale if task.scale is None else task.scale) + task.offset).astype(np.float32)
    return _filled(task, values, gone, path)


def _depth(task: FolderTask, stored: Array, path: Path) -> Array:
    if task.scale is None and stored.dtype.kind != "f":
        raise DataError(
            f"{path}: holds integers ({stored.dtype}): say scale: in {FILE}, 0.001 where they are millimetres."
        )
    values = _numbers(task, stored, path)
    if (values < 0).any():
        raise DataError(
            f"{path}: expected depth in metres in front of the camera, but got {values.min():g}. Say which stored "
            f"number means no label (ignore:), or a negative scale:, in {FILE}."
        )
    return values


def _share(task: FolderTask, stored: Array, path: Path) -> Array:
    return _numbers(task, stored, path, scale=1 / _most(stored.dtype))


def _normals(task: FolderTask, stored: Array, path: Path) -> Array:
    if stored.dtype.kind not in "uf":
        raise DataError(f"{path}: expected unsigned colours or floats for normals, but got {stored.dtype}.")
    gone = _unlabelled(task, stored)
    if stored.dtype == np.uint8:
        vectors = vectors_of_bytes(stored)
    elif stored.dtype.kind == "u":
        gone = gone | ~stored.any(axis=-1)  # black is no unit vector
        vectors = vectors_of_floats(stored.astype(np.float32) * np.float32(2 / _most(stored.dtype)) - np.float32(1))
    else:
        vectors = vectors_of_floats(stored)
    vectors[gone] = 0
    return Frame.parse(task.frame).to_ours(vectors)


_VALUES: Mapping[str, Callable[[FolderTask, Array, Path], Array]] = {
    "semseg": _labels,
    "human_parts": _labels,
    "saliency": _binary,
    "edges": _binary,
    "depth": _depth,
    "normals": _normals,
    "reshading": _share,
    "albedo": _share,
    "keypoints2d": _share,
    "curvature": _numbers,
    "regression": _numbers,
}
