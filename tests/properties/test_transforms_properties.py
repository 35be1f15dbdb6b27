"""Views against one worked out pixel by pixel, and what no view may break."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.batch import Sample
from medusa_cl.data.loader import Augmentation
from medusa_cl.data.transforms import MEAN_COLOUR, flip, pad, resample, rotate, zoom
from medusa_cl.tasks import DenseTask
from property_examples import examples

NAMES = ("semseg", "depth", "normals", "edges", "reshading", "curvature", "regression")
TASKS: dict[str, DenseTask] = {name: tasks.BUILT_IN[name]() if name != "semseg" else tasks.semseg(9) for name in NAMES}
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 10**6)
views = st.fixed_dictionaries(
    {
        "degrees": st.sampled_from([0.0, 90.0, -90.0, 180.0]) | st.floats(-180, 180),
        "factor": st.sampled_from([1.0, 2.0, 0.5]) | st.floats(0.3, 4),
        "top": st.floats(0, 1),
        "left": st.floats(0, 1),
        "size": st.none() | sizes,
        "mirror": st.booleans(),
    }
)


def sample(size: tuple[int, int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and targets of every kind, with a third of the pixels ignored, in each task others."""
    rng = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.rand(channels, *size, generator=rng)

    values = {
        "semseg": (draw(1)[0] * 9).long(),
        "depth": 0.5 + 8 * draw(1),
        "normals": torch.nn.functional.normalize(draw(3) - 0.5, dim=0),
        "edges": (draw(1) < 0.5).float(),
        "reshading": draw(1),
        "curvature": 20 * draw(2) - 10,
        "regression": 2000 * draw(1) - 1000,
    }
    for name, value in values.items():
        value[(draw(1)[0] < 1 / 3).expand_as(value)] = TASKS[name].ignore
    return draw(3), values


def labelled(name: str, target: Tensor) -> Tensor:
    """H W: where a target holds anything."""
    maps = target if target.ndim == 3 else target[None]
    return (maps != TASKS[name].ignore).any(0)


def places(old: tuple[int, int], new: tuple[int, int], view: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where each new pixel's centre lies in the old picture, x and y H W in float64, one pixel after the other."""
    x, y = np.empty(new), np.empty(new)
    angle = math.radians(view["degrees"])
    for row in range(new[0]):
        for column in range(new[1]):
            across = new[1] - 1 - column if view["mirror"] else column
            u = view["left"] * (old[1] - new[1] / view["factor"]) + (across + 0.5) / view["factor"] - old[1] / 2
            v = view["top"] * (old[0] - new[0] / view["factor"]) + (row + 0.5) / view["factor"] - old[0] / 2
            # A picture turned to the left by the angle is looked up by turning right; y points down.
            x[row, column] = math.cos(angle) * u - math.sin(angle) * v + old[1] / 2
            y[row, column] = math.sin(angle) * u + math.cos(angle) * v + old[0] / 2
    return x, y


@examples(150)
@given(sizes, views, seeds)
def test_every_pixel_is_the_one_it_should_be(size: tuple[int, int], view: dict[str, Any], seed: int) -> None:
    """Labels and depths, but for pixels whose centre falls on the line between two old ones, or is cut whole."""
    image, targets = sample(size, seed)
    seen, moved = resample(image, targets, TASKS, **view)
    new = view["size"] or size
    assert seen.shape == (3, *new)
    whole = view["factor"] == 1 and not view["degrees"]  # moved to whole pixels
    x, y = places(size, new, view)
    reach = 0.51 if whole else 0.002
    sure = (abs(x - x.round()) > reach) & (abs(y - y.round()) > reach)
    inside = (x > 0) & (x < size[1]) & (y > 0) & (y < size[0])
    for name in ("semseg", "depth"):
        old = targets[name].reshape(size).numpy()
        expected = np.full(new, TASKS[name].ignore, old.dtype)
        expected[inside] = old[y[inside].astype(int), x[inside].astype(int)]
        known = expected != TASKS[name].ignore
        scale = view["factor"] if name == "depth" else 1
        found = moved[name].reshape(new).numpy()
        np.testing.assert_allclose(found[sure & known], expected[sure & known] / scale, rtol=1e-6)
        assert (found[sure & ~known] == TASKS[name].ignore).all()


@examples(150)
@given(sizes, views, seeds)
def test_no_view_breaks_a_target(size: tuple[int, int], view: dict[str, Any], seed: int) -> None:
    """Types and sizes stay; normals are unit or zero; no value comes up that was not there; ignored is ignored."""
    image, targets = sample(size, seed)
    before = {name: target.clone() for name, target in targets.items()}
    seen, moved = resample(image, targets, TASKS, **view)
    new = tuple(view["size"] or size)
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1 + 1e-6
    for name, target in moved.items():
        assert target.dtype == before[name].dtype
        assert target.shape[-2:] == new
        assert torch.equal(targets[name], before[name])
        if name not in ("depth", "normals"):
            assert set(target.unique().tolist()) <= {*before[name].unique().tolist(), TASKS[name].ignore}
    length = moved["normals"].norm(dim=0)
    assert (((length - 1).abs() < 1e-5) | (length == 0)).all()
    depths = moved["depth"][moved["depth"] > 0] * view["factor"]
    old = before["depth"].flatten().sort().values
    if len(depths):
        near = torch.searchsorted(old, depths).clamp(max=len(old) - 1)
        gap = torch.minimum((old[near] - depths).abs(), (old[(near - 1).clamp(min=0)] - depths).abs())
        assert (gap <= 1e-5 * depths).all()


@examples(80)
@given(sizes, views, seeds)
def test_holes_go_with_their_task_alone(size: tuple[int, int], view: dict[str, Any], seed: int) -> None:
    """A task is ignored where it was, whichever other tasks are seen with it, and border is border for all."""
    image, targets = sample(size, seed)
    _, together = resample(image, targets, TASKS, **view)
    full = {name: torch.ones_like(target) for name, target in targets.items()}
    _, bare = resample(image, full, TASKS, **view)
    border = ~labelled("semseg", bare["semseg"])
    for name, target in targets.items():
        _, alone = resample(image, {name: target}, TASKS, **view)
        assert torch.equal(alone[name], together[name])
        assert torch.equal(~labelled(name, bare[name]), border)
        assert not labelled(name, together[name])[border].any()


@examples(80)
@given(sizes, seeds)
def test_flip_undoes_itself(size: tuple[int, int], seed: int) -> None:
    image, targets = sample(size, seed)
    once = flip(image, targets, TASKS)
    twice_image, twice = flip(*once, TASKS)
    assert torch.equal(twice_image, image)
    assert all(torch.equal(twice[name], target) for name, target in targets.items())
    for name, target in targets.items():
        assert torch.equal(labelled(name, once[1][name]), labelled(name, target).flip(-1))


@examples(80)
@given(st.integers(1, 10), seeds, st.sampled_from([90.0, 180.0, -90.0]))
def test_quarter_turns_of_a_square_lose_nothing(side: int, seed: int, degrees: float) -> None:
    """They are numpy's own, and four of them nothing at all."""
    image, targets = sample((side, side), seed)
    turned_image, turned = rotate(image, targets, TASKS, degrees)
    quarters = round(degrees / 90)
    for name in ("semseg", "depth", "curvature"):
        np.testing.assert_array_equal(turned[name], np.rot90(targets[name].numpy(), quarters, axes=(-2, -1)))
    np.testing.assert_allclose(turned_image, np.rot90(image.numpy(), quarters, axes=(-2, -1)), atol=1e-4)
    _, back = rotate(turned_image, turned, TASKS, -degrees)
    torch.testing.assert_close(back["normals"], targets["normals"], atol=1e-5, rtol=0)
    assert torch.equal(back["semseg"], targets["semseg"])


@examples(80)
@given(sizes, st.integers(1, 4), seeds, st.floats(0, 1), st.floats(0, 1))
def test_a_whole_zoom_repeats_pixels_and_brings_depth_nearer(
    size: tuple[int, int], factor: int, seed: int, top: float, left: float
) -> None:
    """Enlarged to a window as large as the whole, every pixel is there factor x factor times."""
    image, targets = sample(size, seed)
    window = size[0] * factor, size[1] * factor
    _, near = zoom(image, targets, TASKS, factor, top, left, window)
    repeated = targets["semseg"].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    assert torch.equal(near["semseg"], repeated)
    depth = targets["depth"].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    torch.testing.assert_close(near["depth"] * factor, depth, rtol=1e-6, atol=0)


@examples(80)
@given(sizes, sizes, seeds)
def test_what_is_padded_can_be_cut_off_again(size: tuple[int, int], more: tuple[int, int], seed: int) -> None:
    image, targets = sample(size, seed)
    canvas = size[0] + more[0] - 1, size[1] + more[1] - 1
    padded, extended = pad(image, targets, TASKS, canvas)
    assert padded.shape == (3, *canvas)
    border = torch.ones(canvas, dtype=torch.bool)
    border[: size[0], : size[1]] = False
    assert torch.equal(padded[:, : size[0], : size[1]], image)
    for channel, mean in zip(padded, MEAN_COLOUR, strict=True):
        assert (channel[border] == torch.tensor(mean)).all()
    for name, target in extended.items():
        assert torch.equal(target[..., : size[0], : size[1]], targets[name])
        assert not labelled(name, target)[border].any()


augmentations = st.builds(
    Augmentation,
    flip=st.booleans(),
    scale=st.none() | st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
    rotation=st.floats(0, 180),
    crop=st.none() | sizes,
    views=st.none() | st.integers(1, 4),
)


@examples(80)
@given(augmentations, st.integers(0, 9), st.integers(0, 5), st.integers(0, 40), seeds)
def test_a_view_is_what_its_key_says(
    augmentation: Augmentation, seed: int, epoch: int, index: int, content: int
) -> None:
    """Within its options, the same each time, one of its image's views where they are counted."""
    view = augmentation.draw(seed, epoch, index)
    assert view == augmentation.draw(seed, epoch, index)
    low, high = augmentation.scale or (1.0, 1.0)
    assert low <= view.zoom <= high
    assert abs(view.rotation) <= augmentation.rotation
    assert 0 <= view.top <= 1
    assert 0 <= view.left <= 1
    assert augmentation.flip or not view.flip
    if augmentation.count is not None:
        assert view in augmentation.views_of(index)
        assert len(augmentation.views_of(index)) == augmentation.count
    image, targets = sample((9, 7), content)
    seen = view.of(Sample(image, targets, index, 0), TASKS)
    assert isinstance(seen.image, Tensor)
    assert seen.image.shape[-2:] == (augmentation.crop or (9, 7))
