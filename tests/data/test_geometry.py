"""Derived targets against surfaces known in closed form, and against outside implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import hessian_matrix
from skimage.morphology import thin as skimage_thin
from skimage.segmentation import find_boundaries

from medusa_cl.data import geometry
from medusa_cl.data.geometry import (
    curvature_from_depth,
    edges_from_labels,
    edges_from_laplacian,
    keypoints2d,
    normals_from_depth,
    thin,
)

Array = NDArray[Any]

NYUD = (518.8579, 519.4696, 324.5824, 252.7362)  # of 480 x 640
CAMERA = (260.0, 262.0, 158.5, 121.5)  # of 240 x 320, off the centre and with two focal lengths
ROOM = (
    ((0.0, -1.0, 0.0), 1.0),  # floor: y = 1 (y points down), its normal up
    ((1.0, 0.0, 0.0), 1.3),  # wall to the left, x = -1.3, its normal to the right
    ((-0.6, 0.0, -0.8), 2.3),  # tilted wall to the right
    ((0.0, 0.0, -1.0), 3.0),  # wall ahead
)


def rays(camera: tuple[float, float, float, float] = CAMERA, size: tuple[int, int] = (240, 320)) -> Array:
    fx, fy, cx, cy = camera
    v, u = np.mgrid[: size[0], : size[1]]
    return np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(size)], axis=-1)


def room() -> tuple[Array, Array, Array]:
    """What the camera of NYUD-v2 sees: depth H W, true normals H W 3, and which plane of ROOM, H W."""
    towards = np.stack([-(rays(NYUD, (480, 640)) @ np.array(normal)) for normal, _ in ROOM])
    away = np.array([distance for _, distance in ROOM])[:, None, None]
    depths = np.where(towards > 1e-6, away / np.maximum(towards, 1e-6), np.inf)
    plane = depths.argmin(axis=0)
    return depths.min(axis=0), np.array([normal for normal, _ in ROOM])[plane], plane


def kinect(depth: Array, seed: int = 0) -> Array:
    """Noise of a structured-light camera: a disparity with an error of .05 px, rounded to eighths of a pixel."""
    focal_times_base = 580 * 0.075
    disparity = focal_times_base / depth + np.random.default_rng(seed).normal(0, 0.05, depth.shape)
    return focal_times_base / (np.round(disparity * 8) / 8)


def angles(one: Array, other: Array) -> Array:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other), axis=-1), (one * other).sum(axis=-1)))


def quadric(centre: tuple[float, float, float], radius: float, axis: Array | None = None) -> tuple[Array, Array]:
    """Depths of the near and the far side of a ball, or of a cylinder along `axis`; 0 where the ray misses."""
    off_axis = np.eye(3) if axis is None else np.eye(3) - np.outer(axis, axis)
    ray, place = rays(), np.array(centre)
    a = np.einsum("hwi,ij,hwj->hw", ray, off_axis, ray)
    b, c = ray @ off_axis @ place, place @ off_axis @ place - radius**2
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    return np.where(inside > 0, (b - root) / a, 0), np.where(inside > 0, (b + root) / a, 0)


# Normals


def far_from_creases(plane: Array, window: int) -> Array:
    return ndimage.maximum_filter(plane, window) == ndimage.minimum_filter(plane, window)


def test_normals_of_a_room_without_noise() -> None:
    depth, truth, plane = room()
    normals = normals_from_depth(depth, NYUD)
    assert normals.dtype == np.float32 and normals.shape == (480, 640, 3)
    error, smooth = angles(normals, truth), far_from_creases(plane, 9)
    assert all((plane[smooth] == i).sum() > 3000 for i in range(len(ROOM)))
    assert np.median(error) < 0.01 and error[smooth].max() < 0.5
    assert np.abs(np.linalg.norm(normals, axis=-1) - 1).max() < 1e-5


def test_normals_of_a_room_under_the_noise_of_a_depth_camera() -> None:
    depth, truth, plane = room()
    normals = normals_from_depth(kinect(depth), NYUD)
    error = angles(normals, truth)
    assert np.median(error) < 5
    assert all(np.median(error[plane == i]) < 7 for i in range(len(ROOM)))
    assert ((normals * rays(NYUD, (480, 640))).sum(axis=-1) < 0).all()  # they face the camera


def test_normals_are_taken_from_one_surface_at_a_depth_step() -> None:
    ramp = 1 / (0.5 + 0.1 * rays()[..., 0])  # a tilted plane; its right half stands behind a facing one
    depth = np.where(np.arange(320) < 160, 1.2, ramp)
    normals = normals_from_depth(depth, CAMERA)
    tilted = np.array([-0.1, 0, -0.5]) / np.hypot(0.1, 0.5)
    assert angles(normals[:, :160], np.array([0, 0, -1.0])).max() < 0.1
    assert angles(normals[:, 160:], tilted).max() < 0.1


def test_normals_are_zero_without_depth_and_where_too_few_neighbours_have_some() -> None:
    depth = np.full((40, 60), 2.0)
    depth[10:12, 20] = [0, np.nan]
    depth[12, 20], depth[13, 20] = -1, np.inf
    depth[30:, 40:] = 0
    depth[35, 50] = 2.0  # alone
    depth[37:, 57:] = 2.0
    depth[39, 59] = 0  # leaves a patch of eight
    depth[33:35, 40:] = 0
    depth[:, :2] = 3.0  # a strip of two columns on another surface
    known = (normals_from_depth(depth, CAMERA) != 0).any(axis=-1)
    assert not known[10:14, 20].any() and known[14, 20] and known[10, 21]
    assert not known[30:, 40:].any()
    assert not known[:, :2].any() and known[:, 2:40].sum() == 40 * 38 - 4


def test_eight_scattered_pixels_are_too_few_and_nine_are_enough() -> None:
    depth = np.zeros((9, 9))
    depth[::4, ::4] = 2.0
    assert normals_from_depth(depth, CAMERA)[4, 4] == pytest.approx([0, 0, -1], abs=1e-6)
    depth[8, 8] = 0
    assert not normals_from_depth(depth, CAMERA).any()


@pytest.mark.parametrize("shape", [(5, 7), (24, 9), (49, 30)])
def test_images_of_any_size_are_fitted_up_to_their_border(shape: tuple[int, int]) -> None:
    normals = normals_from_depth(1 / (0.5 + 0.002 * np.arange(shape[1]) + np.zeros(shape)), CAMERA)
    fx, _, cx, _ = CAMERA
    plane = np.array([-0.002 * fx, 0, -(0.5 + 0.002 * cx)])
    assert angles(normals, plane / np.linalg.norm(plane)).max() < 0.01


def test_depth_of_another_shape_and_even_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"H W, but got the shape \(1, 4, 4\)"):
        normals_from_depth(np.ones((1, 4, 4)), CAMERA)
    with pytest.raises(ValueError, match="2 n \\+ 1 pixels, but got 8"):
        normals_from_depth(np.ones((9, 9)), CAMERA, window=8)
    with pytest.raises(ValueError, match="6 n \\+ 1 pixels, but got 9"):
        curvature_from_depth(np.ones((9, 9)), CAMERA, window=9)


# Curvature


def inner(depth: Array, curvature: Array, margin: int) -> Array:
    """The curvatures at least `margin` pixels from where there is no depth, N 2."""
    return curvature[ndimage.binary_erosion(depth > 0, iterations=margin)]


@pytest.mark.parametrize("radius", [0.4, 0.8])
def test_curvature_of_a_ball_and_of_the_inside_of_a_bowl(radius: float) -> None:
    near, far = quadric((0.1, -0.05, 2.0), radius)
    for depth, sign in ((near, 1), (far, -1)):
        pairs = inner(depth, curvature_from_depth(depth, CAMERA), 25)
        assert len(pairs) > 300
        assert (pairs[:, 0] >= pairs[:, 1]).all()
        assert np.median(pairs * radius, axis=0) == pytest.approx([sign, sign], abs=0.05)
        assert np.abs(pairs * radius - sign).max() < 0.25


def test_curvature_of_a_cylinder_in_any_direction() -> None:
    for axis in ([1.0, 0, 0], [0, 1.0, 0], [0.6, 0.64, 0.48]):
        near, far = quadric((0.05, 0.1, 2.0), 0.5, np.array(axis))
        round_and_straight = np.median(inner(near, curvature_from_depth(near, CAMERA), 30), axis=0)
        assert round_and_straight == pytest.approx([2, 0], abs=0.06)
        straight_and_hollow = np.median(inner(far, curvature_from_depth(far, CAMERA), 30), axis=0)
        assert straight_and_hollow == pytest.approx([0, -2], abs=0.06)


def test_curvature_of_planes_is_zero_and_a_crease_is_clipped() -> None:
    depth, _, plane = room()
    curvature = curvature_from_depth(depth, NYUD)
    flat = far_from_creases(plane, 27)
    assert all((plane[flat] == i).sum() > 3000 for i in range(len(ROOM)))
    assert np.abs(curvature[flat]).max() < 0.01
    box = 1 + np.abs(rays()[..., 0])  # an edge towards the camera, at x = 0
    box = box / (1 - 1.5 * np.abs(rays()[..., 0])).clip(0.3)
    sharp = curvature_from_depth(0.2 * box, CAMERA)[100:140, 158:160]
    assert (sharp[..., 0] == 10).all() and np.abs(sharp[..., 1]).max() < 1


def test_curvature_is_unknown_without_normals() -> None:
    depth = np.full((60, 60), 2.0)
    depth[20:24, 30:33] = 0
    curvature = curvature_from_depth(depth, CAMERA)
    assert curvature.dtype == np.float32 and curvature.shape == (60, 60, 2)
    assert np.array_equal(np.all(curvature == 255, axis=-1), depth == 0)
    assert (np.abs(curvature[depth > 0]) <= 10).all()


def test_curvature_needs_neighbours_to_all_sides() -> None:
    depth = np.zeros((60, 60))
    depth[:, 10:15] = depth[:, 30:39] = 2.0
    unknown = np.all(curvature_from_depth(depth, CAMERA) == 255, axis=-1)
    assert unknown[:, :30].all() and not unknown[:, 30:39].any()


# Key points


def blob(contrast: float, shape: tuple[int, int] = (41, 51), place: tuple[int, int] = (15, 30)) -> Array:
    y, x = np.mgrid[: shape[0], : shape[1]]
    bump = np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * 2.0**2))
    return np.repeat(np.rint(255 * (0.4 + contrast * bump))[..., None], 3, axis=-1).astype(np.uint8)


def test_a_blob_of_sigma_2_and_a_quarter_of_contrast_is_one_at_its_centre() -> None:
    strength = keypoints2d(blob(0.25))
    assert strength.dtype == np.float32 and strength.shape == (41, 51)
    assert np.unravel_index(strength.argmax(), strength.shape) == (15, 30)
    assert strength.max() == pytest.approx(1, abs=0.03)
    assert keypoints2d(blob(0.125)).max() == pytest.approx(0.25, abs=0.02)  # the square of the contrast
    assert keypoints2d(blob(-0.25)).max() == pytest.approx(1, abs=0.03)  # dark ones as bright ones
    assert keypoints2d(blob(0.5)).max() == 1


def test_key_points_are_determinants_of_hessian() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    image = ndimage.gaussian_filter(image, (1.5, 1.5, 0))
    grey = (0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]) / 255
    rr, rc, cc = hessian_matrix(grey, 2, mode="nearest", use_gaussian_derivatives=True, order="rc")
    expected = np.clip((rr * cc - rc**2) * 4096, 0, 1)[10:-10, 10:-10]
    assert expected.max() > 0.1 and (expected == 0).any()
    assert np.abs(keypoints2d(image)[10:-10, 10:-10] - expected).max() < 0.005


def test_straight_edges_and_even_areas_are_no_key_points() -> None:
    image = np.full((40, 40, 3), 50, np.uint8)
    assert keypoints2d(image).max() < 1e-4
    image[:, 20:] = 220
    assert keypoints2d(image).max() < 1e-4


# Edges


def test_edges_are_between_regions_that_differ_in_any_map() -> None:
    classes, instances = np.zeros((12, 16), np.uint16), np.zeros((12, 16), np.uint8)
    classes[:, 8:] = 300
    instances[6:, 8:] = 1
    edge = edges_from_labels(classes, instances)
    assert edge.dtype == bool
    assert edge[1:-1, 7:9].sum(axis=1).tolist() == [1] * 10  # one pixel wide, in every row
    assert edge[5:7, 10:-1].sum(axis=0).tolist() == [1] * 5
    assert not edge[:, :7].any() and not edge[:5, 9:].any() and not edge[7:, 9:].any()
    assert not edges_from_labels(np.full((4, 5), 7)).any()


def test_edges_lie_on_the_boundaries_that_scikit_image_finds() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 8)).repeat(9, axis=0).repeat(11, axis=1)
    boundary = find_boundaries(labels, mode="thick", connectivity=1)
    assert np.array_equal(edges_from_labels(labels), skimage_thin(boundary))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_laplacian_edges_are_those_of_scipy(dtype: type) -> None:
    largest = min(459, np.iinfo(dtype).max)  # differences would wrap around in the type itself
    labels = np.random.default_rng(1).integers(0, largest, (5, 7), endpoint=True).repeat(8, axis=0).repeat(9, axis=1)
    labels[:, :2] = np.random.default_rng(2).integers(0, 3, (40, 2))  # what lies outside the border matters
    laplacian = ndimage.laplace(labels.astype(np.float64), mode="mirror")
    edge = edges_from_laplacian(labels.astype(dtype))
    assert edge.dtype == bool and 0 < edge.sum() < (laplacian != 0).sum()
    assert np.array_equal(edge, skimage_thin(laplacian != 0))


def test_thinning_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        blob = ndimage.gaussian_filter(random.normal(size=(20, 25)), random.uniform(0.3, 2)) > 0.1 * random.normal()
        assert np.array_equal(thin(blob), skimage_thin(blob))


@pytest.mark.parametrize("fill", [False, True])
def test_thinning_of_empty_and_full_images(fill: bool) -> None:
    image = np.full((6, 9), fill)
    assert np.array_equal(thin(image), skimage_thin(image)) and image.all() == fill


def test_the_band_is_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = kinect(room()[0])[:100, :150]
    one = normals_from_depth(depth, CAMERA)
    monkeypatch.setattr(geometry, "_BAND", 7)
    assert one.any() and np.array_equal(normals_from_depth(depth, CAMERA), one)
