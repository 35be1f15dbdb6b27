"""Randomness: pure functions of a key that touch no global state."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa_cl.randomness import _digest, generator, permutation, seeded, stream

PARTS = st.integers() | st.text()
KEYS = st.lists(PARTS, max_size=4).map(tuple)


def states() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state()
    return (random.getstate(), torch.get_rng_state().tolist(), kind, tuple(words), rest)


def born() -> torch.Tensor:
    with seeded("head", 3, "depth"):
        return torch.nn.Linear(4, 4).weight.detach()


DRAWS: list[Callable[[], Any]] = [
    lambda: torch.rand(5, generator=generator(1, "a")).tolist(),
    lambda: stream(1, "a").random(5).tolist(),
    lambda: permutation(20, 1, "a").tolist(),
    lambda: born().tolist(),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_depends_on_the_key_alone_and_leaves_the_global_states(draw: Callable[[], Any]) -> None:
    first = draw()
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = states()
    assert draw() == first
    assert states() == before


def test_keeps_its_bits_between_versions() -> None:
    expected = hashlib.sha256(b"i1:0s6:semseg").digest()[:8]
    assert generator(0, "semseg").initial_seed() == int.from_bytes(expected, "little") // 2
    assert permutation(8, 0, "depth", 3).tolist() == [5, 0, 7, 4, 1, 3, 6, 2]
    assert stream(0, "edges").bit_generator.random_raw() == 9802980593288750199


@given(KEYS, KEYS)
def test_different_keys_are_hashed_differently(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (_digest(one) == _digest(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [(("a", 1), ("a1",)), ((1, 2), (12,)), ((1,), ("1",)), (("a", ""), ("a",)), (("i1:1",), (1, "1"))]
)
def test_look_alike_keys_differ(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert generator(*one).initial_seed() != generator(*other).initial_seed()


def test_an_index_from_an_array_is_the_same_key_as_the_integer() -> None:
    assert generator("view", np.int64(7)).initial_seed() == generator("view", 7).initial_seed()
    assert generator("view", torch.tensor(7)).initial_seed() == generator("view", 7).initial_seed()


@pytest.mark.parametrize("part", [1.0, None, b"a", (1,)])
def test_other_parts_of_a_key_are_refused(part: Any) -> None:
    with pytest.raises(TypeError):
        generator("a", part)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_each_index_once(n: int) -> None:
    order = permutation(n, "order", 0)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


def test_permutations_of_different_keys_differ_and_are_even() -> None:
    firsts = [int(permutation(4, "order", epoch)[0]) for epoch in range(400)]
    assert min(firsts.count(i) for i in range(4)) > 60
    assert permutation(50, 0).tolist() != permutation(50, 1).tolist()


def test_seeded_restores_the_state_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded("x"):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_differs_by_key() -> None:
    with seeded("head", 0, "depth"):
        one = torch.rand(4)
    with seeded("head", 1, "depth"):
        other = torch.rand(4)
    assert not torch.equal(one, other)


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys, medusa_cl.randomness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
