"""Counter-based randomness: every draw is a pure function of a key."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def _digest(key: tuple[int | str, ...]) -> bytes:
    return hashlib.sha256(json.dumps(list(key)).encode()).digest()


def generator(*key: int | str) -> torch.Generator:
    """Return a torch generator that depends on the key alone."""
    import torch

    made = torch.Generator()
    made.manual_seed(int.from_bytes(_digest(key)[:7], "little"))
    return made


def stream(*key: int | str) -> np.random.Generator:
    """Return a numpy generator that depends on the key alone."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(_digest(key)[:16], dtype=np.uint64)))


def permutation(n: int, *key: int | str) -> Any:
    """Return a permutation of range(n) that depends on the key alone."""
    return stream(*key).permutation(n)
