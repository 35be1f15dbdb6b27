"""Joint transforms: each rule on scenes whose answer is known analytically."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.data.transforms import flip, zoom
from medusa_cl.errors import ConfigError

HEIGHT, WIDTH = 24, 40
FOCAL = 30.0
TASKS = {
    task.name: task
    for task in (tasks.semseg(5), tasks.depth(), tasks.normals(), tasks.edges(), tasks.saliency(), tasks.reshading())
}


def rays() -> Tensor:
    """Viewing rays 3 H W of a pinhole camera whose axis goes through the middle."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return torch.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, torch.ones(HEIGHT, WIDTH)]).double()


def plane(normal: tuple[float, float, float], distance: float = 3.0) -> tuple[Tensor, Tensor]:
    """Depth 1 H W and normals 3 H W of the plane that crosses the optical axis at `distance`."""
    unit = torch.tensor(normal, dtype=torch.float64) / torch.tensor(normal, dtype=torch.float64).norm()
    depth = distance * unit[2] / (unit[:, None, None] * rays()).sum(0)
    return depth[None].float(), unit.float()[:, None, None].expand(3, HEIGHT, WIDTH).clone()


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
    assert torch.equal(image, copies[0])
    assert all(torch.equal(target, copies[1][name]) for name, target in targets.items())


@pytest.mark.parametrize(
    ("factor", "top", "left"), [(0.9, 0.5, 0.5), (1.5, -0.1, 0.5), (1.5, 0.5, 1.1), (float("nan"), 0.5, 0.5)]
)
def test_what_would_leave_borders_is_refused(factor: float, top: float, left: float) -> None:
    image, targets = sample()
    with pytest.raises(ConfigError, match="at least 1"):
        zoom(image, targets, TASKS, factor, top, left)
