"""Which way normals point: every frame by its name, by depth, by what can be seen, and never by a guess."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fake_nyud import POINTS, intrinsics, room, stored_normals
from medusa_cl.data.frames import (
    FRAMES,
    OURS,
    Frame,
    detect_by_depth,
    detect_by_view,
    vectors_of_bytes,
    vectors_of_floats,
)
from medusa_cl.errors import ConfigError

SIZE = (48, 64)
CAMERA = intrinsics(SIZE)
ROOMS = [room(0, index, SIZE) for index in range(6)]
FACING = np.broadcast_to(np.float32([0, 0, -1]), (*SIZE, 3))  # a wall in front of the camera


def test_there_are_48_frames_each_of_three_different_axes() -> None:
    by_hand = {
        "".join(letters)
        for letters in itertools.product("rludfb", repeat=3)
        if abs(np.linalg.det([POINTS[letter] for letter in letters])) == 1
    }
    assert set(FRAMES) == by_hand and len(FRAMES) == 48


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_is_turned_into_ours(name: str) -> None:
    ours = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
    turned = Frame.parse(name).to_ours(stored_normals(ours, name))
    np.testing.assert_array_equal(turned, ours)
    assert turned.dtype == np.float32


def test_a_floor_stored_with_y_up_has_a_negative_y_in_ours() -> None:
    floor, left_wall, back_wall = np.float32([0, 1, 0]), np.float32([1, 0, 0]), np.float32([0, 0, 1])
    stored = np.stack([floor, left_wall, back_wall])[None]
    np.testing.assert_array_equal(Frame("rub").to_ours(stored)[0], [[0, -1, 0], [1, 0, 0], [0, 0, -1]])
    np.testing.assert_array_equal(Frame(OURS).to_ours(stored), stored)


def test_to_ours_leaves_its_argument_alone() -> None:
    stored = np.ones((2, 2, 3), np.float32)
    Frame("lub").to_ours(stored)
    assert (stored == 1).all()


def test_names_are_read_in_capitals_and_with_blanks() -> None:
    assert Frame.parse(" RUB ") == Frame("rub")


@pytest.mark.parametrize("name", ["", "rd", "rrf", "rlf", "xyz", "rubf"])
def test_a_name_that_is_none_is_refused_with_what_a_frame_is(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Unknown frame of normals.*one letter each of r/l .*rdf or rub"):
        Frame.parse(name)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ConfigError, match=r'Did you mean "ru[bf]"'):
        Frame.parse("rux")


def test_bytes_become_vectors() -> None:
    picture = np.array([[[255, 128, 128], [0, 127, 128], [128, 128, 128], [122, 133, 128]]], np.uint8)
    vectors = vectors_of_bytes(picture)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0, 0], [1, 1 / 255, 1 / 255], atol=1e-6)
    np.testing.assert_allclose(vectors[0, 1], [-1, -1 / 255, 1 / 255], atol=1e-6)
    assert not vectors[0, 2:].any()  # |v| = .007 and .06: no direction


def test_lengths_between_a_tenth_and_one_and_a_half_are_directions() -> None:
    picture = np.array([[[128 + 12, 128, 128], [128 + 14, 128, 128], [0, 0, 0], [255, 255, 255]]], np.uint8)
    assert vectors_of_bytes(picture).any(axis=-1).tolist() == [[False, True, False, False]]


def test_floats_that_are_no_direction_become_zero() -> None:
    vectors = np.array([[[0, 0, 0], [np.nan, 0, 1], [np.inf, 0, 0], [0, 0, -0.5]]], np.float64)
    assert vectors_of_floats(vectors).tolist() == [[[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, -0.5]]]
    assert np.isnan(vectors[0, 1, 0])  # the caller's array is as it was


# By depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_is_found_by_depth(name: str) -> None:
    pairs = [(stored_normals(scene["normals"], name), scene["depth"]) for scene in ROOMS[:2]]
    assert detect_by_depth(pairs, CAMERA) == Frame(name)


def test_normals_that_point_into_the_surfaces_are_a_frame_too() -> None:
    pairs = [(-scene["normals"], scene["depth"]) for scene in ROOMS[:2]]
    assert detect_by_depth(pairs, CAMERA) == Frame("lub")


def test_noise_holes_and_smoothing_change_nothing() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(3):
        scene = room(3, index, (120, 160))
        depth = scene["depth"] * rng.normal(1, 0.01, (120, 160))
        depth[rng.random(depth.shape) < 0.1] = 0
        pairs.append((_noisy(rng, stored_normals(scene["normals"], "luf"), 0.4, 1), depth.astype(np.float32)))
    assert detect_by_depth(pairs, intrinsics((120, 160))) == Frame("luf")


def test_large_images_are_looked_at_in_steps() -> None:
    scene = room(0, 0, (480, 640))
    pair = (stored_normals(scene["normals"], "ruf"), scene["depth"])
    assert detect_by_depth([pair], intrinsics((480, 640))) == Frame("ruf")


def test_a_facing_wall_alone_leaves_the_frame_undecided() -> None:
    fx, fy, cx, cy = CAMERA
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    plane = (3 / (1 + 0.02 * (x - cx) / fx + 0.02 * (y - cy) / fy)).astype(np.float32)  # (-.02, -.02, -1) n
    for tiny in (0, 0.004, -0.004):  # 8 bits have no zero: .004 is what comes of it
        assert detect_by_depth([(FACING + np.float32([tiny, tiny, 0]), plane)], CAMERA) is None


def test_a_floor_and_a_facing_wall_leave_the_side_undecided() -> None:
    scene = ROOMS[0]
    middle = np.s_[:, 28:36]  # no side wall
    normals, depth = scene["normals"].copy(), scene["depth"].copy()
    assert detect_by_depth([(normals, depth)], CAMERA) == Frame(OURS)
    normals[..., 0] = 0.01
    keep = np.zeros(SIZE, bool)
    keep[middle] = True
    depth[~keep] = 0
    assert detect_by_depth([(normals, depth)], CAMERA) is None


def test_normals_of_other_images_leave_the_frame_undecided() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(*SIZE, 3)).astype(np.float32)
    assert detect_by_depth([(noise, scene["depth"]) for scene in ROOMS], CAMERA) is None


def test_without_a_valid_pixel_nothing_is_decided() -> None:
    nothing = np.zeros(SIZE, np.float32)
    assert detect_by_depth([(ROOMS[0]["normals"], nothing)], CAMERA) is None
    assert detect_by_depth([(np.zeros((*SIZE, 3), np.float32), ROOMS[0]["depth"])], CAMERA) is None
    assert detect_by_depth([], CAMERA) is None


# By view -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rdf", "rub", "luf", "ruf", "ldf", "drf", "fur", "bld", "ubl", "lub"])
def test_frames_of_both_handednesses_are_found_by_view(name: str) -> None:
    assert detect_by_view([stored_normals(scene["normals"], name) for scene in ROOMS[:4]]) == Frame(name)


def test_smooth_and_noisy_maps_as_a_network_makes_them() -> None:
    rng = np.random.default_rng(0)
    maps = [_noisy(rng, stored_normals(scene["normals"], "rub"), 0.3, 2) for scene in ROOMS]
    assert detect_by_view(maps) == Frame("rub")


def test_an_image_of_another_frame_decides_nothing() -> None:
    maps = [stored_normals(room(1, index, SIZE)["normals"], "rub") for index in range(12)]
    assert detect_by_view([*maps, stored_normals(maps[0], "drf")]) == Frame("rub")


@pytest.mark.parametrize("pitch", [0.35, 0.55])
def test_cameras_that_look_down(pitch: float) -> None:
    maps = [stored_normals(room(0, index, SIZE, (pitch, pitch))["normals"], "rub") for index in range(8)]
    assert detect_by_view(maps) == Frame("rub")


def test_cameras_that_look_up_and_see_no_floor_are_undecided() -> None:
    maps = [room(0, index, SIZE, (-0.5, -0.4))["normals"] for index in range(8)]
    assert max(n[..., 1].max() for n in maps) < 0.1 and detect_by_view(maps) is None


def test_cameras_that_see_a_ceiling_and_no_floor_are_not_taken_in() -> None:
    maps = [scene["normals"][::-1] * np.float32([1, -1, 1]) for scene in ROOMS]
    assert maps[0][0, 40, 1] > 0.9  # above, something faces down
    assert detect_by_view(maps) in (Frame(OURS), None)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_are_weak_evidence(count: int) -> None:
    assert detect_by_view([scene["normals"] for scene in ROOMS[:count]]) is None


def test_maps_in_two_frames_are_undecided() -> None:
    maps = [stored_normals(scene["normals"], name) for scene in ROOMS[:4] for name in ("rub", "lub")]
    assert detect_by_view(maps) is None


def test_a_fifth_of_the_maps_in_another_frame_is_too_much() -> None:
    rooms = [room(1, index, SIZE)["normals"] for index in range(10)]
    assert detect_by_view([stored_normals(n, "lub" if i % 5 == 0 else "rub") for i, n in enumerate(rooms)]) is None


def test_facing_walls_are_undecided() -> None:
    rng = np.random.default_rng(0)
    assert detect_by_view([_noisy(rng, FACING, 0.3, 0) for _ in range(8)]) is None


def test_a_floor_and_a_wall_do_not_say_where_right_is() -> None:
    normals = FACING.copy()
    normals[30:] = [0, -1, 0]
    assert detect_by_view([normals] * 8) is None


@pytest.mark.parametrize("floor", [False, True])
def test_round_things_far_away_are_undecided(floor: bool) -> None:
    """The left of a ball faces left, of a room right; by parallel rays, all of its front is seen."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:96j, -1.33:1.33:128j]
    maps = []
    for _ in range(24):
        u, v = np.stack([x - rng.normal(0, 0.3), y - rng.normal(0, 0.3)]) / rng.uniform(0.3, 1.2)
        ball = np.stack([u, v, -np.sqrt(np.maximum(1 - u * u - v * v, 0))], axis=-1).astype(np.float32)
        ball[u * u + v * v >= 1] = [0, 0, -1]
        if floor:
            ball[(u * u + v * v >= 1) & (y > 0.25)] = [0, -1, 0]
        maps.append(ball)
    assert detect_by_view(maps) is None


def test_without_a_valid_map_nothing_is_decided() -> None:
    assert detect_by_view([]) is None
    assert detect_by_view([np.zeros((*SIZE, 3), np.float32)] * 4) is None


def _noisy(rng: np.random.Generator, normals: NDArray[np.float32], noise: float, blur: float) -> NDArray[np.float32]:
    rough = normals + rng.normal(0, noise, normals.shape)
    smooth = gaussian_filter(rough, (blur, blur, 0)) if blur else rough
    return (smooth / np.linalg.norm(smooth, axis=-1, keepdims=True)).astype(np.float32)
