"""The targets of rooms that are made of more than what a ray meets: curvature, key points, saliency, albedo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medusa_cl.data import geometry
from medusa_cl.data.hdf5 import FIELDS, as_tensor
from medusa_cl.data.rooms import __main__ as command
from medusa_cl.data.rooms import keypoints, render_room
from medusa_cl.data.rooms.curvature import STEEPEST, curvature
from medusa_cl.data.rooms.layout import build
from medusa_cl.data.rooms.panel import panel
from medusa_cl.data.rooms.render import FACES, View, look, unlit
from medusa_cl.data.rooms.saliency import BACKGROUND, saliency
from medusa_cl.data.rooms.scene import BALL, BOX, CLASSES, TUBE, Camera, Material, Part, Scene, rotation
from medusa_cl.data.rooms.splits import SPLITS, scene_of
from medusa_cl.data.rooms.style import HELD_OUT, STYLES
from medusa_cl.errors import ConfigError

SIZE = (64, 80)
PAINT = Material("plain", (0.6, 0.5, 0.4))
EYE = Camera((0.0, 1.0, -2.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), 0.6)


def seen(part: Part, size: tuple[int, int] = SIZE) -> tuple[View, np.ndarray, np.ndarray]:
    """One part in an empty room, seen from 2 m: the view, its curvatures H W 2 and where the part is."""
    scene = Scene(
        half=(4.0, 2.0, 4.0), shell=(PAINT,) * 6, parts=(part,), lights=(), ambient=(1, 1, 1), exposure=0.4, camera=EYE
    )
    rows, columns = np.divmod(np.arange(size[0] * size[1]), size[1])
    view = look(scene, columns.astype(np.float32) + 0.5, rows.astype(np.float32) + 0.5, size)
    pair = curvature(scene.parts, view.part, view.face % FACES, view.point)
    return view, pair.reshape(*size, 2), (view.part == 0).reshape(size)


def solid(shape: int, half: tuple[float, float, float], **more: Any) -> Part:
    return Part(shape, (0.0, 1.0, 0.0), half, PAINT, 0, 7, **more)


# Curvature

ROUND = {
    "ball": (solid(BALL, (0.5, 0.5, 0.5)), (2.0, 2.0)),
    "cylinder": (solid(TUBE, (0.4, 0.6, 0.4)), (2.5, 0.0)),
    "lying": (solid(TUBE, (0.6, 0.4, 0.4), lying=True), (2.5, 0.0)),
}


@pytest.mark.parametrize("name", ROUND)
def test_balls_and_cylinders_have_the_curvature_of_their_radius(name: str) -> None:
    part, expected = ROUND[name]
    view, pair, there = seen(part)
    side = there & (view.face.reshape(SIZE) % FACES == 6)
    assert side.mean() > 0.1
    np.testing.assert_allclose(pair[side], np.broadcast_to(expected, pair[side].shape), atol=0.01)
    assert not pair[~side].any()  # walls and caps
    assert pair.dtype == np.float32


SHAPES = {name: part for name, (part, _) in ROUND.items()} | {
    "ellipsoid": solid(BALL, (0.6, 0.35, 0.45), turn=rotation(0.3)),
    "elliptic": solid(TUBE, (0.5, 0.6, 0.35), turn=rotation(-0.2)),
    "cone": solid(TUBE, (0.4, 0.5, 0.4), taper=-0.4),
    "flared": solid(TUBE, (0.35, 0.5, 0.35), taper=0.3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_with_curvature_fitted_to_depth(name: str) -> None:
    """In sign, order and size: what is derived from depth elsewhere means the same."""
    view, pair, there = seen(SHAPES[name], (192, 240))
    height, width = 192, 240
    focal = width / (2 * EYE.reach)
    depth = view.depth.reshape(height, width)
    fitted = geometry.curvature_from_depth(depth, (focal, focal, width / 2 - 0.5, height / 2 - 0.5))
    side = there & (view.face.reshape(height, width) % FACES == 6)
    inner = side.copy()
    for shift in range(-14, 15):  # away from the rim, where the fit sees another surface
        inner &= np.roll(side, shift, 0) & np.roll(side, shift, 1)
    assert inner.sum() > 300
    assert np.median(np.abs(fitted - pair)[inner], axis=0).max() < 0.06
    assert (pair[..., 0] >= pair[..., 1]).all()


def test_the_tip_of_an_ellipsoid_and_the_waist_of_a_cone() -> None:
    """By hand: b / a^2 and b / c^2 at the tip of the half axis b; cos(slope) / r on a cone."""
    ball, cone = solid(BALL, (0.5, 0.25, 1.0)), solid(TUBE, (0.5, 0.25, 0.5), taper=-0.5)
    point = tuple(np.array([value], np.float32) for value in (0.0, 1.25, 0.0))
    number, face = np.zeros(1, np.int32), np.full(1, 6, np.int32)
    assert curvature((ball,), number, face, point)[0].tolist() == pytest.approx([1.0, 0.25])  # type: ignore[arg-type]
    waist = tuple(np.array([value], np.float32) for value in (0.5, 1.0, 0.0))
    # The side falls by 1 in 1 (0.5 in radius over 0.5 in height): cos 45 degrees / 0.5.
    expected = pytest.approx([np.sqrt(0.5) / 0.5, 0.0])
    assert curvature((cone,), number, face, waist)[0].tolist() == expected  # type: ignore[arg-type]


def test_flat_faces_have_none_and_thin_rods_the_most() -> None:
    _, pair, there = seen(solid(BOX, (0.5, 0.4, 0.3), turn=rotation(0.2)))
    assert there.any() and not pair.any()
    _, pair, there = seen(solid(TUBE, (0.03, 0.6, 0.03)))
    assert pair[there].max(axis=0).tolist() == [STEEPEST, 0.0]
    stored = as_tensor(FIELDS["curvature"], pair.astype(np.float16)).numpy()
    assert np.abs(stored).max() == geometry.STEEPEST_CURVATURE  # at the border of what is valid, not beyond it


# Key points


@pytest.fixture(scope="module")
def room() -> dict[str, np.ndarray]:
    return render_room(2, SIZE)


def test_key_points_are_those_of_any_other_image(room: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 33, 3)).astype(np.uint8)
    for image in (room["image"], noise, noise[:9, :8]):
        ours, theirs = keypoints.keypoints2d(image), geometry.keypoints2d(image)
        assert ours.dtype == np.float32 and ours.shape == image.shape[:2]
        assert np.abs(ours - theirs).max() < 1e-4
    expected = np.rint(geometry.keypoints2d(room["image"]) * 254)
    off = np.abs(room["keypoints2d"] - expected)
    assert off.max() <= 1 and (off > 0).mean() < 0.001 and room["keypoints2d"].max() > 50
    assert keypoints.BRIGHTEST == geometry.BRIGHTEST_KEYPOINT


def test_an_even_picture_has_no_key_points() -> None:
    for value in (0, 77, 255):
        assert not keypoints.keypoints2d(np.full((20, 30, 3), value, np.uint8)).round(3).any()


# Saliency

WALL, CHAIR, PICTURE = (CLASSES.index(name) for name in ("wall", "chair", "picture"))


def wall_with(*things: tuple[slice, slice, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey wall of 40 x 60 with things on it of some brightness: image, instances, semseg."""
    image, instances = np.full((40, 60, 3), 100, np.uint8), np.ones((40, 60), np.uint16)
    for number, (rows, columns, value) in enumerate(things, 7):
        image[rows, columns], instances[rows, columns] = value, number
    return image, instances, np.where(instances > 1, CHAIR, WALL).astype(np.uint8)


MIDDLE, SECOND = np.s_[14:26, 18:34], np.s_[14:26, 36:52]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((np.s_[0:12, 0:16], 255), [7]),  # as large and unlike, but in a corner
        ((np.s_[18:20, 40:48], 255), [7]),  # small
        ((SECOND, 130), [7]),  # like the wall
        ((SECOND, 250), [7, 8]),
        ((np.s_[5:35, 36:53], 250), [7, 8]),  # 29 % together
        ((np.s_[4:36, 36:53], 250), [7]),  # 31 %: too much together
        ((np.s_[0:40, 37:60], 255), [7]),  # too large by itself
    ],
)
def test_large_central_and_unlike_things_stand_out(other: tuple[tuple[slice, slice], int], expected: list[int]) -> None:
    (rows, columns), value = other
    image, instances, semseg = wall_with((*MIDDLE, 250), (rows, columns, value))
    mask = saliency(image, instances, semseg)
    assert np.unique(instances[mask == 1]).tolist() == expected
    assert mask.dtype == np.uint8 and np.array_equal(mask, np.isin(instances, expected))  # whole things
    for turned in (np.s_[::-1], np.s_[:, ::-1]):  # no side is preferred
        assert np.array_equal(saliency(image[turned], instances[turned], semseg[turned]), mask[turned])


def test_the_room_itself_never_stands_out() -> None:
    image, instances, semseg = wall_with((*MIDDLE, 250))
    assert saliency(image, instances, semseg).sum() == 12 * 16
    for label in BACKGROUND:
        assert not saliency(image, instances, np.where(semseg == CHAIR, label, semseg).astype(np.uint8)).any()


def test_rooms_have_a_few_salient_things() -> None:
    shares, counts = [], []
    for index in range(8):
        found = render_room(index, (36, 48))
        marked = np.unique(found["instances"][found["saliency"] == 1])
        assert not np.isin(found["semseg"][found["saliency"] == 1], BACKGROUND).any()
        assert np.array_equal(np.isin(found["instances"], marked), found["saliency"])
        shares.append(found["saliency"].mean())
        counts.append(len(marked))
    assert max(counts) <= 3 and np.mean(np.array(counts) > 0) > 0.9
    assert 0.05 < np.mean(shares) < 0.25 and max(shares) <= 0.36


# Albedo


def test_albedo_is_the_texture_without_light(room: dict[str, np.ndarray]) -> None:
    scene = build(2)
    dark = replace(scene, lights=(), ambient=(0.0, 0.0, 0.0))
    rows, columns = np.divmod(np.arange(SIZE[0] * SIZE[1]), SIZE[1])
    view = look(dark, columns.astype(np.float32) + 0.5, rows.astype(np.float32) + 0.5, SIZE)
    shining = view.glow.reshape(SIZE) > 0
    assert np.array_equal((room["albedo"] == 255).all(-1), shining)
    colour = np.sqrt(np.stack(view.colour, -1)).reshape(*SIZE, 3)
    assert np.abs(room["albedo"] / 254 - colour)[~shining].max() < 0.5 / 254 + 1e-6
    values = as_tensor(FIELDS["albedo"], room["albedo"]).numpy()
    assert values.shape == (3, *SIZE) and values[:, ~shining].max() <= 1.0


def test_paint_keeps_its_colour_and_what_shines_is_ignored() -> None:
    view, _, there = seen(solid(BALL, (0.5, 0.5, 0.5)))
    found = unlit(view).reshape(*SIZE, 3)[there] / 254
    assert np.abs(found / np.array(PAINT.first) - 1).max() < 0.05  # plain paint has faint clouds
    lamp = solid(BALL, (0.5, 0.5, 0.5))._replace(material=PAINT._replace(glow=1.0))
    view, _, there = seen(lamp)
    assert np.array_equal((unlit(view) == 255).all(-1).reshape(SIZE), there)


# Splits


def test_one_split_alone_is_in_the_style_held_out() -> None:
    first = SPLITS["confirm_style"]
    assert HELD_OUT not in STYLES
    for index in (first, first + 4_999_999):
        assert scene_of(index) == build(index, HELD_OUT) != build(index)
    for index in (0, first - 1, first + 5_000_000):
        assert scene_of(index) == build(index) != build(index, HELD_OUT)


# The picture of all targets


def test_a_picture_of_all_targets_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = panel([0, 3], (24, 32))
    assert drawn.shape == (10 * (24 + 14), 2 * 32 + 2, 3)
    assert np.array_equal(drawn[14:38, 34:], render_room(3, (24, 32))["image"])
    command.main(["--help"])
    assert "python -m medusa_cl.data.rooms rooms.webp" in capsys.readouterr().out
    for wrong in (["rooms.docx"], ["rooms.png", "one"]):
        with pytest.raises(ConfigError, match="Expected"):
            command.main(wrong)
    command.main([str(tmp_path / "rooms.webp"), "0"])
    with Image.open(tmp_path / "rooms.webp") as picture:
        assert picture.size == (160, 10 * (128 + 14))
