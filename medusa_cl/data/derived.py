"""Targets that are made of other fields of the same image, the same for a pack and for the file prepared of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medusa_cl.data import geometry
from medusa_cl.data.hdf5 import FIELDS, Array, Field, as_tensor, decode, encode
from medusa_cl.errors import DataError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from medusa_cl.data.split import StoredData

Intrinsics = tuple[float, float, float, float]


@dataclass(frozen=True)
class Derivation:
    """How a target is made.

    Attributes:
        of: The field it is made of, "depth" or "image".
        how: In a few words, for people.
        make: `(values of that field, fx fy cx cy or None) -> values`.
        calibrated: Whether the camera must be known.
    """

    of: str
    how: str
    make: Callable[[Array, Intrinsics | None], Array]
    calibrated: bool = False


def _curvature(depth: Array, intrinsics: Intrinsics | None) -> Array:
    assert intrinsics is not None
    return geometry.curvature_from_depth(depth, intrinsics)


def _keypoints2d(image: Array, intrinsics: Intrinsics | None) -> Array:
    return geometry.keypoints2d(image)


DERIVATIONS: Mapping[str, Derivation] = {
    "curvature": Derivation("depth", "principal curvatures fitted to depth", _curvature, calibrated=True),
    "keypoints2d": Derivation("image", "determinant of Hessian of grey", _keypoints2d),
}


class Derived:
    """A split with more targets, computed anew each time they are read (`prepare` keeps them).

    Args:
        source: The split; a target that it has already is taken from it.
        names: The targets to add, of `DERIVATIONS`.

    Raises:
        DataError: A name is unknown, or the split lacks what the target is made of.
    """

    def __init__(self, source: StoredData, names: Sequence[str]) -> None:
        self.made = {name: _derivation(source, name) for name in names if name not in source.fields}
        self.source, self.path = source, source.path
        self.fields = (*source.fields, *self.made)
        self.ids, self.image_size = source.ids, source.image_size
        self.unreadable, self.written = source.unreadable, source.written
        how = {name: derivation.how for name, derivation in self.made.items()}
        self.attrs = source.attrs | {"derived": source.attrs.get("derived", {}) | how}
        self.content_hash = hashlib.sha256(f"{source.content_hash} {sorted(self.made)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def field(self, name: str) -> Field:
        """Return how a target (or `image`) is stored."""
        return FIELDS[name] if name in self.made else self.source.field(name)

    def has(self, name: str) -> Array:
        """Return N bools: which images have the target, or what it is made of."""
        if name in self.made:
            name = self.made[name].of
        there: Array = np.ones(len(self), bool) if name == "image" else np.asarray(self.source.has(name))
        return there

    def image(self, index: int) -> Tensor:
        """Return an image: 3 H W uint8, RGB."""
        return self.source.image(index)

    def target(self, index: int, name: str) -> Tensor | None:
        """Return a target, or None where the image has none."""
        stored = self.stored(index, name)
        return None if stored is None else as_tensor(self.field(name), stored)

    def stored(self, index: int, name: str) -> Array | None:
        """Return a target (or `image`) as our format stores it; None where the image has none."""
        if name not in self.made:
            return self.source.stored(index, name)
        derivation = self.made[name]
        stored = self.source.stored(index, derivation.of)
        if stored is None:
            return None
        values = decode(self.source.field(derivation.of), stored)  # as stored, so that a prepared file gives the same
        return encode(FIELDS[name], derivation.make(values, self.attrs.get("intrinsics")))

    def check(self, index: int) -> None:
        """Read all of an image that is not derived."""
        self.source.check(index)


def _derivation(source: StoredData, name: str) -> Derivation:
    if name not in DERIVATIONS:
        raise DataError(unknown("target to derive", name, DERIVATIONS))
    derivation = DERIVATIONS[name]
    if derivation.of not in ("image", *source.fields):
        raise DataError(f"{source}: `{name}` is derived of {derivation.of}, which is not there.")
    if derivation.calibrated and "intrinsics" not in source.attrs:
        raise DataError(f"{source}: `{name}` needs the camera's intrinsics, which are not known for this data.")
    return derivation
