"""Joint transforms: each rule on scenes whose answer is known analytically."""

from __future__ import annotations

import cmath
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.data.transforms import MEAN_COLOUR, flip, pad, resample, rotate, zoom
from medusa_cl.errors import ConfigError, DataError

HEIGHT, WIDTH = 24, 40
FOCAL = 30.0
TASKS = {
    task.name: task
    for task in (tasks.semseg(5), tasks.depth(), tasks.normals(), tasks.edges(), tasks.saliency(), tasks.reshading())
}


def rays(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Viewing rays 3 H W of a pinhole camera whose axis goes through the middle."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([(x - width / 2) / FOCAL, (y - height / 2) / FOCAL, torch.ones(height, width)]).double()


def unit(*normal: float) -> Tensor:
    vector = torch.tensor(normal, dtype=torch.float64)
    return vector / vector.norm()


def plane(normal: tuple[float, float, float], distance: float = 3.0) -> tuple[Tensor, Tensor]:
    """Depth 1 H W and normals 3 H W of the plane that crosses the optical axis at `distance`."""
    n = unit(*normal)
    depth = distance * n[2] / (n[:, None, None] * rays()).sum(0)
    return depth[None].float(), n.float()[:, None, None].expand(3, HEIGHT, WIDTH).clone()


FLOOR, LEFT_WALL, RIGHT_WALL, CEILING = (0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def side(normal: tuple[float, float, float], height: int = HEIGHT, width: int = WIDTH) -> dict[str, Tensor]:
    """Depth and normals of a plane 1 m from the camera that runs along the optical axis; ignored beyond 20 m."""
    n = unit(*normal)[:, None, None]
    towards = -(n * rays(height, width)).sum(0)
    seen = towards > 1 / 20
    depth = torch.where(seen, 1 / torch.where(seen, towards, 1), 0)
    return {"depth": depth[None].float(), "normals": torch.where(seen, n, 0).float()}


def sample(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    depth, normals = plane((0.4, -0.2, -1.0))
    grey = torch.rand(1, HEIGHT, WIDTH, generator=rng)
    targets = {
        "semseg": torch.randint(0, 5, (HEIGHT, WIDTH), generator=rng),
        "depth": depth,
        "normals": normals,
        "edges": (grey > 0.8).float(),
        "saliency": (grey > 0.5).float(),
        "reshading": grey,
    }
    return torch.rand(3, HEIGHT, WIDTH, generator=rng), targets


def with_holes(targets: dict[str, Tensor], hole: Tensor) -> dict[str, Tensor]:
    """The targets with the pixels of `hole` (H W) ignored."""
    return {name: torch.where(hole, torch.tensor(TASKS[name].ignore, dtype=t.dtype), t) for name, t in targets.items()}


def ignored(name: str, target: Tensor) -> Tensor:
    where = target == TASKS[name].ignore
    return where if where.ndim == 2 else where.all(0)


def hole_of(seed: int = 1) -> Tensor:
    return torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) < 0.3


def test_flip_twice_is_the_identity() -> None:
    image, targets = sample()
    targets = with_holes(targets, hole_of())
    again, twice = flip(*flip(image, targets, TASKS), TASKS)
    assert torch.equal(again, image)
    for name, target in targets.items():
        assert twice[name].dtype == target.dtype
        assert torch.equal(twice[name], target)


def test_flip_of_a_slanted_plane_is_the_mirrored_plane() -> None:
    image, _ = sample()
    depth, normals = plane((0.5, 0.3, -1.0))
    expected_depth, expected_normals = plane((-0.5, 0.3, -1.0))
    _, turned = flip(image, {"depth": depth, "normals": normals}, TASKS)
    torch.testing.assert_close(turned["depth"], expected_depth)
    torch.testing.assert_close(turned["normals"], expected_normals)


def test_flip_makes_a_left_wall_a_right_wall_and_leaves_a_floor() -> None:
    image, _ = sample()
    for before, after in ((LEFT_WALL, RIGHT_WALL), (FLOOR, FLOOR), (CEILING, CEILING)):
        _, turned = flip(image, side(before), TASKS)
        for name, expected in side(after).items():
            torch.testing.assert_close(turned[name], expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_flip_of_any_size_twice_is_the_identity_to_the_bit(height: int, width: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    targets = {
        "semseg": torch.randint(0, 256, (height, width), generator=rng),
        "normals": torch.randn(3, height, width, generator=rng) * torch.randint(0, 2, (height, width), generator=rng),
    }
    image = torch.rand(3, height, width, generator=rng)
    again, twice = flip(*flip(image, targets, TASKS), TASKS)
    assert torch.equal(again, image)
    for name, target in targets.items():
        assert torch.equal(twice[name], target)
        assert twice[name].dtype == target.dtype


def test_flip_moves_labels_with_the_image() -> None:
    image, targets = sample()
    turned_image, turned = flip(image, targets, TASKS)
    for name in ("semseg", "depth", "edges", "saliency", "reshading"):
        assert torch.equal(turned[name], targets[name].flip(-1))
    assert torch.equal(turned_image[:, :, 0], image[:, :, -1])


@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0, 3.0])
def test_zoom_about_the_middle_gives_points_of_the_nearer_world(factor: float) -> None:
    # A camera of the same focal length sees (X, Y, Z / factor): its depth there is known for every plane.
    image, _ = sample()
    depth, _ = plane((0.4, -0.2, -1.0))
    _, zoomed = zoom(image, {"depth": depth}, TASKS, factor, 0.5, 0.5)
    expected, _ = plane((0.4, -0.2, -1.0 * factor), 3.0 / factor)
    step = (depth[0, :, 1:] - depth[0, :, :-1]).abs().max() + (depth[0, 1:] - depth[0, :-1]).abs().max()
    assert (zoomed["depth"] - expected).abs().max() <= step / factor  # the nearest pixel is at most half a pixel off


def test_zoom_by_two_takes_the_window_and_doubles_its_pixels() -> None:
    image, targets = sample()
    _, zoomed = zoom(image, targets, TASKS, 2.0, 0.5, 1.0)
    window = (slice(HEIGHT // 4, HEIGHT * 3 // 4), slice(WIDTH // 2, WIDTH))
    for name, target in targets.items():
        doubled = target[(..., *window)].repeat_interleave(2, -1).repeat_interleave(2, -2)
        assert torch.equal(zoomed[name], doubled / 2 if name == "depth" else doubled)


def test_zoom_interpolates_the_image_like_a_resize() -> None:
    image, _ = sample()
    zoomed, _ = zoom(image, {}, {}, 2.0, 0.0, 0.0)
    whole = torch.nn.functional.interpolate(image[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(zoomed, whole[:, :HEIGHT, :WIDTH])


def test_zoom_by_one_changes_nothing() -> None:
    image, targets = sample()
    same_image, same = zoom(image, targets, TASKS, 1.0, 0.3, 0.7)
    torch.testing.assert_close(same_image, image, atol=1e-5, rtol=0)
    assert all(torch.equal(same[name], target) for name, target in targets.items())


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("factor", [1.0, 1.2, 1.5, 7.3])
def test_zoom_keeps_sizes_types_labels_and_unit_normals(factor: float, place: tuple[float, float]) -> None:
    image, targets = sample()
    zoomed_image, zoomed = zoom(image, targets, TASKS, factor, *place)
    assert zoomed_image.shape == image.shape
    assert zoomed_image.min() >= 0 and zoomed_image.max() <= 1
    for name, target in targets.items():
        assert zoomed[name].shape == target.shape
        assert zoomed[name].dtype == target.dtype
        assert set(zoomed["semseg"].unique().tolist()) <= set(range(5))
    torch.testing.assert_close(zoomed["normals"].norm(dim=0), torch.ones(HEIGHT, WIDTH))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_ignored_pixels_stay_ignored_and_others_labelled(name: str) -> None:
    image, targets = sample()
    hole = hole_of()
    holed = with_holes(targets, hole)
    where = hole.to(torch.int64)
    _, turned = flip(image, holed, TASKS)
    assert torch.equal(ignored(name, turned[name]), where.flip(-1).bool())
    _, zoomed = zoom(image, holed | {"semseg": where}, TASKS, 1.5, 0.2, 0.9)
    moved = zoomed["semseg"].bool()
    if name != "semseg":
        assert torch.equal(ignored(name, zoomed[name]), moved)
    else:
        assert torch.equal(ignored(name, zoom(image, holed, TASKS, 1.5, 0.2, 0.9)[1][name]), moved)


def test_ignored_values_decide_nothing() -> None:
    image, targets = sample()
    other = with_holes(targets, hole_of())
    for name in targets:
        both = [zoom(image, t, TASKS, 1.5, 0.5, 0.5)[1][name] for t in (targets, other)]
        known = ~ignored(name, both[1])
        assert torch.equal(both[0][..., known], both[1][..., known])


def test_a_rule_of_ones_own_is_kept_from_ignored_pixels() -> None:
    disparity = dataclasses.replace(
        tasks.reshading(), name="disparity", on_zoom=lambda target, factor: target * factor, on_flip=lambda t: 1 - t
    )
    target = torch.full((1, HEIGHT, WIDTH), 0.25)
    target[:, :5] = 255
    image, _ = sample()
    _, turned = flip(image, {"disparity": target}, {"disparity": disparity})
    _, zoomed = zoom(image, {"disparity": target}, {"disparity": disparity}, 2.0, 0.0, 0.0)
    assert set(turned["disparity"].unique().tolist()) == {0.75, 255.0}
    assert set(zoomed["disparity"].unique().tolist()) == {0.5, 255.0}


def test_the_input_is_left_alone() -> None:
    image, targets = sample()
    copies = image.clone(), {name: target.clone() for name, target in targets.items()}
    flip(image, targets, TASKS)
    zoom(image, targets, TASKS, 1.5, 0.5, 0.5)
    resample(image, targets, TASKS, degrees=20, factor=0.7, mirror=True)
    pad(image, targets, TASKS, (HEIGHT + 1, WIDTH))
    assert torch.equal(image, copies[0])
    assert all(torch.equal(target, copies[1][name]) for name, target in targets.items())


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.75])
def test_a_smaller_picture_is_of_a_farther_world_and_its_surroundings_are_border(factor: float) -> None:
    image = torch.full((3, HEIGHT, WIDTH), 0.9)
    depth, normals = plane((0.4, -0.2, -1.0))
    smaller, moved = zoom(image, {"depth": depth, "normals": normals}, TASKS, factor, 0.5, 0.5)
    expected, _ = plane((0.4, -0.2, -1.0 * factor), 3.0 / factor)
    inside = in_picture(factor=factor, top=0.5, left=0.5)
    assert 0 < inside.sum() < HEIGHT * WIDTH
    step = (depth[0, :, 1:] - depth[0, :, :-1]).abs().max() + (depth[0, 1:] - depth[0, :-1]).abs().max()
    assert (moved["depth"] - expected)[0, inside].abs().max() <= step / factor
    torch.testing.assert_close(moved["normals"][:, inside], normals[:, inside])
    for name in moved:
        assert torch.equal(ignored(name, moved[name]), ~inside)
    torch.testing.assert_close(smaller[:, inside], image[:, inside])  # the border's colour is not mixed in
    assert (smaller[:, ~inside] == torch.tensor(MEAN_COLOUR)[:, None]).all()


@pytest.mark.parametrize(("top", "left"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_half_the_picture_stands_where_it_is_put(top: float, left: float) -> None:
    image, targets = sample()
    _, moved = zoom(image, targets, TASKS, 0.5, top, left)
    corner = slice(int(top * HEIGHT / 2), None), slice(int(left * WIDTH / 2), None)
    window = moved["semseg"][corner][: HEIGHT // 2, : WIDTH // 2]
    assert torch.equal(window, targets["semseg"][1::2, 1::2])
    assert (moved["semseg"] == 255).sum() == HEIGHT * WIDTH * 3 // 4
    assert moved["semseg"].dtype == torch.int64


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 4), st.floats(0, 1), st.floats(0, 1))
def test_depth_is_divided_by_any_zoom(factor: float, top: float, left: float) -> None:
    image, _ = sample()
    places = torch.arange(1, HEIGHT * WIDTH + 1).view(HEIGHT, WIDTH)
    targets = {"semseg": places, "depth": places[None].float()}
    _, moved = zoom(image, targets, TASKS, factor, top, left)
    labelled = ~ignored("depth", moved["depth"])
    assert labelled.any()
    torch.testing.assert_close(moved["depth"][0, labelled] * factor, moved["semseg"][labelled].float())
    assert (moved["semseg"][~labelled] == 255).all()


def test_a_window_of_the_picture_is_an_exact_cut() -> None:
    image, targets = sample()
    size, place = (10, 13), (0.61, 0.34)
    top, left = round(0.61 * (HEIGHT - 10)), round(0.34 * (WIDTH - 13))
    cut, moved = zoom(image, targets, TASKS, 1.0, *place, size)
    window = (..., slice(top, top + 10), slice(left, left + 13))
    assert torch.equal(cut, image[window])
    assert all(torch.equal(moved[name], target[window]) for name, target in targets.items())


def test_a_window_larger_than_the_picture_shows_all_of_it_and_border() -> None:
    image, targets = sample()
    grown, moved = zoom(image, targets, TASKS, 1.0, 0.5, 1.0, (HEIGHT + 4, WIDTH + 6))
    window = (..., slice(2, 2 + HEIGHT), slice(6, 6 + WIDTH))
    assert torch.equal(grown[window], image)
    for name, target in targets.items():
        assert torch.equal(moved[name][window], target)
        border = (HEIGHT + 4) * (WIDTH + 6) - HEIGHT * WIDTH
        assert ignored(name, moved[name]).sum() == ignored(name, target).sum() + border
    assert (grown[:, :, 0] == torch.tensor(MEAN_COLOUR)[:, None]).all()


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (20, 50), (60, 30)])
def test_scale_and_crop_is_the_scaled_pictures_window(size: tuple[int, int]) -> None:
    image, targets = sample()
    scaled, moved = resample(image, targets, TASKS, factor=2.0, top=1.0, left=0.0, size=size)
    whole, doubled = resample(image, targets, TASKS, factor=2.0, size=(2 * HEIGHT, 2 * WIDTH))
    torch.testing.assert_close(scaled[:, -20:, :30], whole[:, -20:, :30])
    for name in targets:
        assert moved[name].shape[-2:] == size
        assert torch.equal(moved[name][..., -20:, :30], doubled[name][..., -20:, :30])
        again = targets[name].repeat_interleave(2, -1).repeat_interleave(2, -2)
        assert torch.equal(doubled[name], again / 2 if name == "depth" else again)


def test_a_quarter_turn_to_the_left_makes_a_left_wall_a_floor() -> None:
    square = torch.zeros(3, 32, 32)
    around = [LEFT_WALL, FLOOR, RIGHT_WALL, CEILING, LEFT_WALL]
    for before, after in itertools.pairwise(around):
        for degrees, start, end in ((90, before, after), (-90, after, before)):
            _, turned = rotate(square, side(start, 32, 32), TASKS, degrees)
            for name, expected in side(end, 32, 32).items():
                torch.testing.assert_close(turned[name], expected, atol=1e-6, rtol=1e-6)


def test_a_turn_to_the_left_brings_the_right_side_up() -> None:
    image, labels = torch.zeros(3, 9, 9), torch.zeros(9, 9, dtype=torch.int64)
    image[:, 4, 8], labels[4, 8] = 1, 3
    turned, moved = rotate(image, {"semseg": labels}, TASKS, 90)
    assert moved["semseg"][0, 4] == 3
    assert (moved["semseg"] > 0).sum() == 1
    torch.testing.assert_close(turned, image.rot90(1, (1, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [20.0, -20.0, 7.5, 135.0])
@pytest.mark.parametrize("normal", [(0.4, -0.2, -1.0), (0.0, -0.6, -1.0), (0.7, 0.0, -1.0)])
def test_rotation_of_a_slanted_plane_is_the_plane_seen_by_a_rolled_camera(
    degrees: float, normal: tuple[float, float, float]
) -> None:
    image, _ = sample()
    depth, normals = plane(normal)
    _, turned = rotate(image, {"depth": depth, "normals": normals}, TASKS, degrees)
    expected_depth, expected_normals = plane(rolled(normal, degrees))
    inside = in_picture(degrees=degrees)
    assert 0 < inside.sum() < HEIGHT * WIDTH
    for name in turned:
        assert torch.equal(ignored(name, turned[name]), ~inside)
    step = (depth[0, :, 1:] - depth[0, :, :-1]).abs().max() + (depth[0, 1:] - depth[0, :-1]).abs().max()
    assert (turned["depth"] - expected_depth)[0, inside].abs().max() <= step
    torch.testing.assert_close(turned["normals"][:, inside], expected_normals[:, inside])


def test_a_view_that_joins_all_is_the_plane_rolled_brought_near_and_mirrored() -> None:
    image, _ = sample()
    depth, normals = plane((0.4, -0.2, -1.0))
    view: dict[str, Any] = {"degrees": 20.0, "factor": 1.25, "top": 0.5, "left": 0.5, "mirror": True}
    _, seen = resample(image, {"depth": depth, "normals": normals}, TASKS, **view)
    x, y, z = rolled((0.4, -0.2, -1.0), 20)
    expected, _ = plane((-x, y, 1.25 * z), 3.0 / 1.25)
    inside = in_picture(**view)
    assert 0 < (~inside).sum() < HEIGHT * WIDTH / 2
    step = (depth[0, :, 1:] - depth[0, :, :-1]).abs().max() + (depth[0, 1:] - depth[0, :-1]).abs().max()
    assert (seen["depth"] - expected)[0, inside].abs().max() <= step / 1.25
    torch.testing.assert_close(seen["normals"][:, 12, 20], unit(-x, y, z).float())


def rolled(normal: tuple[float, float, float], degrees: float) -> tuple[float, float, float]:
    """The normal after a turn to the left: in a plane whose imaginary axis points up, a factor of e^(i angle)."""
    turned = complex(normal[0], -normal[1]) * cmath.exp(1j * math.radians(degrees))
    return turned.real, -turned.imag, normal[2]


def sources(
    degrees: float = 0.0,
    factor: float = 1.0,
    top: float = 0.0,
    left: float = 0.0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    mirror: bool = False,
) -> list[list[complex]]:
    """Where each new pixel's centre comes from, x right and (imaginary) y up, pixel by pixel."""

    def source(row: int, column: int) -> complex:
        column = size[1] - 1 - column if mirror else column
        x = left * (WIDTH - size[1] / factor) + (column + 0.5) / factor - WIDTH / 2
        y = top * (HEIGHT - size[0] / factor) + (row + 0.5) / factor - HEIGHT / 2
        return complex(x, -y) * cmath.exp(-1j * math.radians(degrees)) + complex(WIDTH / 2, -HEIGHT / 2)

    return [[source(row, column) for column in range(size[1])] for row in range(size[0])]


def in_picture(**view: Any) -> Tensor:
    """Which new pixels show the picture: H W."""
    return torch.tensor([[0 <= p.real < WIDTH and 0 <= -p.imag < HEIGHT for p in row] for row in sources(**view)])


VIEWS = st.fixed_dictionaries(
    {
        "degrees": st.floats(-180, 180),
        "factor": st.floats(0.4, 3),
        "top": st.floats(0, 1),
        "left": st.floats(0, 1),
        "size": st.sampled_from([(HEIGHT, WIDTH), (10, 50), (33, 17)]),
        "mirror": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None)
@given(VIEWS)
def test_image_and_targets_come_from_the_same_places(view: dict[str, Any]) -> None:
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    # Interpolated ramps tell a place to a fraction of a pixel; blue tells a picture, however dark, from its border.
    image = torch.stack([columns / WIDTH, rows / HEIGHT, torch.ones(HEIGHT, WIDTH)]).float()
    image_seen, moved = resample(image, {"semseg": rows * WIDTH + columns + 256}, TASKS, **view)
    labelled = moved["semseg"] != 255
    assert torch.equal(labelled, (image_seen[2] - 1).abs() < 1e-3)
    place = torch.tensor(sources(**view))
    margin = torch.stack([place.real, WIDTH - place.real, -place.imag, HEIGHT + place.imag]).amin(0)
    assert labelled[margin > 0.01].all()
    assert not labelled[margin < -0.01].any()
    pixel = moved["semseg"][margin > 0.01] - 256
    inner = place[margin > 0.01]
    assert ((pixel % WIDTH + 0.5 - inner.real).abs() < 0.51).all()
    assert ((pixel // WIDTH + 0.5 + inner.imag).abs() < 0.51).all()
    deep = margin > 0.5  # nearer to the border the interpolation takes the outermost pixels
    torch.testing.assert_close(image_seen[0, deep] * WIDTH + 0.5, place.real[deep].float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(image_seen[1, deep] * HEIGHT + 0.5, -place.imag[deep].float(), atol=2e-3, rtol=0)


@settings(max_examples=40, deadline=None)
@given(VIEWS, st.integers(0, 9))
def test_every_view_keeps_types_holes_and_unit_normals(view: dict[str, Any], seed: int) -> None:
    image, targets = sample(seed)
    hole = hole_of(seed)
    seen, moved = resample(image, with_holes(targets, hole), TASKS, **view)
    _, where = resample(image, {"semseg": hole.long()}, TASKS, **view)
    expected = where["semseg"] > 0  # 1 is a hole, 255 the border
    assert seen.shape == (3, *view["size"])
    for name, target in targets.items():
        assert moved[name].dtype == target.dtype
        assert moved[name].shape[-2:] == view["size"]
        assert torch.equal(ignored(name, moved[name]), expected)
    length = moved["normals"].norm(dim=0)
    torch.testing.assert_close(length[~expected], torch.ones(int((~expected).sum())))
    assert not length[expected].any()
    known = {name: moved[name] for name in ("semseg", "edges", "saliency")}
    assert all(set(known[name].unique().tolist()) <= {0, 1, 2, 3, 4, 255} for name in known)


def test_only_normals_change_their_values_under_rotation() -> None:
    image, targets = sample()
    _, turned = rotate(image, targets, TASKS, 33.0)
    plain = {name: dataclasses.replace(tasks.reshading(), ignore=TASKS[name].ignore) for name in targets}
    _, moved = rotate(image, targets, plain, 33.0)
    same = {name: torch.equal(turned[name], moved[name]) for name in targets}
    assert [name for name in same if not same[name]] == ["normals"]


def test_a_rotation_of_ones_own_is_told_the_angle() -> None:
    angle = dataclasses.replace(tasks.reshading(), name="angle", on_rotate=lambda target, degrees: target + degrees)
    target = torch.zeros(1, HEIGHT, WIDTH)
    target[:, :, : WIDTH // 2] = 255
    image, _ = sample()
    _, turned = rotate(image, {"angle": target}, {"angle": angle}, 45.0)
    assert set(turned["angle"].unique().tolist()) == {45.0, 255.0}


def test_pad_adds_border_at_the_bottom_and_the_right() -> None:
    image, targets = sample()
    padded, extended = pad(image, targets, TASKS, (HEIGHT + 3, WIDTH + 2))
    assert torch.equal(padded[:, :HEIGHT, :WIDTH], image)
    beyond = torch.ones(HEIGHT + 3, WIDTH + 2, dtype=torch.bool)
    beyond[:HEIGHT, :WIDTH] = False
    assert (padded[:, beyond] == torch.tensor(MEAN_COLOUR)[:, None]).all()
    for name, target in targets.items():
        assert extended[name].dtype == target.dtype
        assert torch.equal(extended[name][..., :HEIGHT, :WIDTH], target)
        assert ignored(name, extended[name])[beyond].all()


def test_pad_to_the_same_size_copies_nothing() -> None:
    image, targets = sample()
    padded, extended = pad(image, targets, TASKS, (HEIGHT, WIDTH))
    assert padded is image
    assert all(extended[name] is target for name, target in targets.items())


@pytest.mark.parametrize("size", [(HEIGHT - 1, WIDTH), (HEIGHT + 5, WIDTH - 1)])
def test_pad_refuses_what_is_larger(size: tuple[int, int]) -> None:
    image, targets = sample()
    with pytest.raises(DataError, match=rf"{size[0]}x{size[1]}.*{HEIGHT}x{WIDTH}"):
        pad(image, targets, TASKS, size)


def test_targets_of_another_size_than_the_image_are_refused() -> None:
    image, targets = sample()
    targets["depth"] = targets["depth"][:, :-1]
    for change in (lambda: rotate(image, targets, TASKS, 5), lambda: pad(image, targets, TASKS, (99, 99))):
        with pytest.raises(DataError, match=r"`depth`.*\(24, 40\).*\(23, 40\)"):
            change()


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"factor": 0.0}, "positive zoom"),
        ({"factor": -1.5}, "positive zoom"),
        ({"factor": float("nan")}, "positive zoom"),
        ({"factor": float("inf")}, "positive zoom"),
        ({"degrees": float("nan")}, "finite angle"),
        ({"factor": 1.5, "top": -0.1}, r"\[0, 1\]"),
        ({"factor": 1.5, "left": 1.1}, r"\[0, 1\]"),
        ({"size": (0, 5)}, r"\(0, 5\)"),
    ],
)
def test_views_that_are_none_are_refused(view: dict[str, Any], message: str) -> None:
    image, targets = sample()
    with pytest.raises(ConfigError, match=message):
        resample(image, targets, TASKS, **view)
