"""Counter-based randomness: every draw is a pure function of a key such as (seed, task, epoch, image).

Nothing here reads or changes a global random state. So neither the number of workers, nor a task's place in the stream,
nor a stop and a resume can change what is drawn.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where it is used: processes that only render must start fast
    import torch

Key = int | str


def generator(*key: Key) -> torch.Generator:
    """Return a CPU torch generator that depends on the key alone.

    Raises:
        TypeError: A part of the key is neither an integer nor a string (as in every function here).
    """
    import torch

    return torch.Generator().manual_seed(_seed(key))


def stream(*key: Key) -> np.random.Generator:
    """Return a numpy generator (Philox) that depends on the key alone."""
    return np.random.Generator(_philox(key))


def permutation(n: int, *key: Key) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1 that depends on n and the key alone."""
    # The order of raw words, not Generator.permutation: numpy keeps the former's bits in every version (NEP 19).
    words = _philox(("permutation", n, *key)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


@contextmanager
def seeded(*key: Key) -> Iterator[None]:
    """Let what draws from global states within depend on the key alone: torch's CPU generator and Python's own.

    Modules draw from the former at birth, Avalanche's memories from both. They are as before afterwards, also after an
    error.
    """
    import torch

    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed accelerators too.
        torch.default_generator.manual_seed(_seed(key))
        random.seed(_seed(key))
        try:
            yield
        finally:
            random.setstate(before)


def _digest(key: tuple[Key, ...]) -> bytes:
    """Hash a key so that no two keys look alike: kind and length of each part stand before it."""
    sha = hashlib.sha256()
    for part in key:
        # An index from an array is the same key as the plain integer.
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
        data = text.encode()
        sha.update(f"{kind}{len(data)}:".encode() + data)
    return sha.digest()


def _seed(key: tuple[Key, ...]) -> int:
    return int.from_bytes(_digest(key)[:8], "little") >> 1  # torch takes signed 64 bits


def _philox(key: tuple[Key, ...]) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(_digest(key)[:16], "little"))
