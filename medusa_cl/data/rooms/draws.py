"""Random numbers and noise that are the same bits on every machine.

Scene parameters are Python floats made by hand from the raw words of a Philox counter generator; noise over pixels is
an integer hash. Neither touches a distribution of numpy, whose streams may change between versions.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
"""Arrays of float32 (said by name: numpy's stubs widen float32 * float to float64, numpy does not)."""
Words = npt.NDArray[np.uint32]
RGB = tuple[float, float, float]
T = TypeVar("T")

SEED = 0x4D45445553410001
"""First word of every Philox key, plus the stream's number; the second is the image's index."""


class Draw:
    """A stream of random choices, a pure function of one image index and the stream's number."""

    def __init__(self, index: int, stream: int = 0) -> None:
        self._philox = np.random.Philox(key=np.array([SEED + stream, index], dtype=np.uint64))
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            self._words = self._philox.random_raw(512).tolist()[::-1]
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + self.word() % (high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.word() % len(items)]

    def seed(self) -> int:
        """32 bits for the noise of a material."""
        return self.word() & 0xFFFFFFFF

    def colour(
        self,
        hue: tuple[float, float] = (0.0, 1.0),
        saturation: tuple[float, float] = (0.1, 0.5),
        value: tuple[float, float] = (0.4, 0.9),
    ) -> RGB:
        """A colour, in display values, from ranges of hue, saturation and value."""
        return hsv(self.uniform(*hue), self.uniform(*saturation), self.uniform(*value))


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """RGB in [0, 1] of a hue in turns, a saturation and a value."""
    ramps = [min(max(abs((hue * 6.0 + shift) % 6.0 - 3.0) - 1.0, 0.0), 1.0) for shift in (0.0, 4.0, 2.0)]
    red, green, blue = (value * (1.0 - saturation * (1.0 - ramp)) for ramp in ramps)
    return red, green, blue


def shade(colour: RGB, factor: float) -> RGB:
    """The colour made lighter (factor > 1) or darker, kept in [0, 1]."""
    red, green, blue = (min(max(channel * factor, 0.0), 1.0) for channel in colour)
    return red, green, blue


def blend(first: RGB, second: RGB, amount: float) -> RGB:
    """The colour `amount` of the way from the first to the second."""
    red, green, blue = (a + (b - a) * amount for a, b in zip(first, second, strict=True))
    return red, green, blue


def lattice(values: Floats) -> Words:
    """Floats that hold integers -> uint32, through int32: a negative float cast to unsigned is undefined in C."""
    return values.astype(np.int32).astype(np.uint32)


def hashed(i: Words, j: Words, seed: int) -> Floats:
    """Uniform noise in [0, 1) at integer points: uint32 multiply and xor-shift, 24 bits kept."""
    h = i * np.uint32(0x9E3779B1) ^ j * np.uint32(0x85EBCA77) ^ np.uint32(seed)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    h = h ^ (h >> np.uint32(15))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def noise(u: Floats, v: Floats, seed: int) -> Floats:
    """Smooth value noise in [0, 1) with cells of size 1."""
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3.0 - 2.0 * fu), fv * fv * (3.0 - 2.0 * fv)
    i, j = lattice(iu), lattice(iv)
    i1, j1 = i + np.uint32(1), j + np.uint32(1)
    low = hashed(i, j, seed)
    low = low + (hashed(i1, j, seed) - low) * fu
    high = hashed(i, j1, seed)
    high = high + (hashed(i1, j1, seed) - high) * fu
    mixed: Floats = low + (high - low) * fv
    return mixed


def octaves(u: Floats, v: Floats, seed: int, count: int = 2) -> Floats:
    """A sum of noise at doubling frequencies, in [0, 1)."""
    total, weight, scale = noise(u, v, seed), 1.0, 1.0
    for _ in range(count - 1):
        scale *= 2.0
        weight *= 0.5
        total = total + weight * noise(scale * u + 17.3, scale * v + 5.7, seed ^ 0x5BD1E995)
    return total * (1.0 / (2.0 - weight))
