"""`DenseLoader` as a pure function of its counters, and the draws it stands on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.batch import Sample
from medusa_cl.data.loader import Augmentation, DenseDataset, DenseLoader
from medusa_cl.randomness import generator, permutation, seeded, stream
from property_examples import examples

TASKS = {"depth": tasks.depth()}
Pass = list[list[float]]


class Numbered:
    """Images of two pixels side by side: 100 x their number, and one more."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Sample:
        pixels = torch.tensor([100.0 * position, 100.0 * position + 1]).expand(3, 1, 2)
        return Sample(pixels, {"depth": pixels[:1] + 1}, position, 0)


def numbers(batch: list[Any]) -> list[float]:
    """What identifies a batch: the first pixel of each image, which tells its view too."""
    images: Tensor = batch[0]
    assert torch.equal(batch[1].entries["depth"].value, images[:, :1] + 1)
    return images[:, 0, 0, 0].tolist()


def positions(batch: list[float]) -> list[int]:
    return [int(value) // 100 for value in batch]


counts = st.integers(1, 23)
batch_sizes = st.integers(1, 6)
keys = st.tuples(st.integers(0, 9), st.sampled_from(["depth", "depth+semseg"]))


def loader(count: int, batch_size: int, key: Any = (0, "depth"), **options: Any) -> DenseLoader:
    defaults = {"key": key, "tasks": TASKS, "augmentation": Augmentation(), "train": True}
    return DenseLoader(Numbered(count), batch_size, **(defaults | options))


def read(made: DenseLoader, epochs: int) -> list[Pass]:
    return [[numbers(batch) for batch in made] for _ in range(epochs)]


@examples(60)
@given(counts, batch_sizes, keys)
def test_every_epoch_is_a_permutation(count: int, size: int, key: Any) -> None:
    """All images where they fill the batches, else all but a few, none twice; another order each time."""
    made = loader(count, size, key)
    for epoch in read(made, 3):
        seen = [position for batch in epoch for position in positions(batch)]
        assert len(seen) == len(set(seen)) == (count if count < size else count // size * size)
        assert set(seen) <= set(range(count))
        assert len(epoch) == len(made)
        assert all(len(batch) == min(size, count) for batch in epoch)


@examples(60)
@given(counts, batch_sizes, keys, st.none() | st.integers(1, 40), st.data())
def test_what_follows_a_place_is_known_from_the_place(
    count: int, size: int, key: Any, max_steps: int | None, data: st.DataObject
) -> None:
    """`go_to` anywhere gives the rest of the same passes, of a fresh loader or of one that has been elsewhere."""
    options = {"max_steps": max_steps}
    made = loader(count, size, key, **options)
    epochs = made.epochs or 3
    whole = read(made, epochs)
    total = sum(map(len, whole))
    assert total == (max_steps or 3 * len(made))
    epoch = data.draw(st.integers(0, epochs - 1))
    batch = data.draw(st.integers(0, len(whole[epoch])))
    for other in (loader(count, size, key, **options), made):
        if data.draw(st.booleans()):
            next(iter(other), None)
        other.go_to(epoch, batch)
        assert other.position == (epoch, batch)
        assert other.step == epoch * len(made) + batch
        rest = read(other, epochs - epoch)
        assert rest == [whole[epoch][batch:], *whole[epoch + 1 :]]


@examples(60)
@given(counts, batch_sizes, keys, st.data())
def test_the_place_is_that_of_the_last_batch(count: int, size: int, key: Any, data: st.DataObject) -> None:
    """A loader stopped after any batch, and one that goes to that place, hand out the same next one."""
    made = loader(count, size, key)
    stop = data.draw(st.integers(1, 2 * len(made)))
    taken = 0
    for _ in range(2):
        for _ in made:
            taken += 1
            if taken == stop:
                break
        if taken == stop:
            break
    epoch, batch = made.position
    assert epoch * len(made) + batch == stop
    after = loader(count, size, key)
    after.go_to(epoch, batch)
    following = read(loader(count, size, key), 3)
    assert read(after, 1)[0] == following[epoch][batch:]


@examples(40)
@given(counts, st.integers(1, 3), st.integers(1, 3), keys, st.integers(0, 3))
def test_processes_share_the_batches_of_one(count: int, world: int, each: int, key: Any, epoch: int) -> None:
    if count < world:
        return
    size = world * each
    whole = loader(count, size, key).batches(epoch)
    shares = [loader(count, size, key, shard=(rank, world)).batches(epoch) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(item for part in parts for item in part) == sorted(batch)
        assert all(part == batch[rank::world] for rank, part in enumerate(parts))


@pytest.mark.parametrize("max_steps", [None, 7])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (1, 1), (1, 5)])
def test_processes_that_load_go_to_any_place(max_steps: int | None, place: tuple[int, int]) -> None:
    for workers in (0, 2):
        made = loader(11, 2, workers=workers, max_steps=max_steps)
        whole = read(loader(11, 2, max_steps=max_steps), 2)
        next(iter(made))
        made.go_to(*place)
        assert read(made, 2 - place[0]) == [whole[place[0]][place[1] :], *whole[place[0] + 1 :]]


class Labelled:
    """Images of which some have no target."""

    image_size = (1, 2)

    def __init__(self, present: list[bool]) -> None:
        self.present = present

    def __len__(self) -> int:
        return len(self.present)

    def has(self, name: str) -> np.ndarray[Any, Any]:
        return np.array(self.present)

    def image(self, index: int) -> Tensor:
        return torch.full((3, 1, 2), 100.0 * index)

    def target(self, index: int, name: str) -> Tensor | None:
        return self.image(index)[:1] + 1 if self.present[index] else None


@examples(60)
@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any), batch_sizes)
def test_evaluation_sees_each_labelled_image_once_in_order(present: list[bool], size: int) -> None:
    """And a batch holds what is labelled of so many consecutive images."""
    made = DenseLoader(DenseDataset(Labelled(present), ["depth"], 0), size, tasks=TASKS)  # type: ignore[arg-type]
    seen = [positions(numbers(batch)) for batch in made]
    assert [i for batch in seen for i in batch] == [i for i, known in enumerate(present) if known]
    assert all(len({i // size for i in batch}) == 1 for batch in seen)
    assert len(seen) == len(made) == len({i // size for i, known in enumerate(present) if known})


parts = st.integers(-(10**20), 10**20) | st.text(max_size=5)
places = st.lists(parts, max_size=4).map(tuple)


@examples(100)
@given(places, places)
def test_draws_depend_on_the_whole_key_and_nothing_else(key: Any, other: Any) -> None:
    """No two keys are one key, however their parts look side by side."""
    first = stream(*key).random(4).tolist()
    assert first == stream(*key).random(4).tolist()
    assert (first == stream(*other).random(4).tolist()) is (key == other)
    weights = torch.rand(4, generator=generator(*key))
    assert torch.equal(weights, torch.rand(4, generator=generator(*key)))
    assert torch.equal(weights, torch.rand(4, generator=generator(*other))) is (key == other)


@examples(60)
@given(st.integers(0, 300), places)
def test_a_permutation_is_one(count: int, key: Any) -> None:
    order = permutation(count, *key)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == permutation(count, *key).tolist()


@examples(40)
@given(places, st.integers(0, 99), st.booleans())
def test_seeded_leaves_global_states_as_they_were(key: Any, before: int, fails: bool) -> None:
    torch.manual_seed(before)
    random.seed(before)
    states = torch.get_rng_state(), random.getstate()
    drawn = []
    for _ in range(2):
        try:
            with seeded(*key):
                drawn.append((torch.rand(3).tolist(), random.random()))
                if fails:
                    raise KeyError(key)
        except KeyError:
            pass
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
