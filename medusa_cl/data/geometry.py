"""Dense targets derived from other ones: normals and curvature from depth, edges from labels, key points from images.

Plain numpy, the same on every machine up to rounding. Depth is along the optical axis. The camera frame is x right,
y down, z forward; column u and row v of an image are where the ray ((u - cx) / fx, (v - cy) / fy, 1) goes, so a pixel's
centre has whole coordinates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
BoolMap = NDArray[np.bool_]
Intrinsics = tuple[float, float, float, float]
"""fx, fy, cx, cy in pixels."""

NEAR = 0.05
"""A neighbour is on the surface of the centre where their depths differ by less than this share of the centre's."""
STEEPEST_CURVATURE = 10.0
"""Curvatures are clipped to this, in 1/m: a sharper bend than a 10 cm radius is a crease."""
UNKNOWN_CURVATURE = 255.0
KEYPOINT_SIGMA = 2.0
BRIGHTEST_KEYPOINT = 1 / 4096
"""The determinant of Hessian that counts as 1: that of a Gaussian blob of sigma 2 and a contrast of a quarter."""

_BAND = 24  # rows at a time: all buffers of a band stay in the processor's cache
_FEWEST_PIXELS = 9
_NARROWEST = 0.5  # px^2, the least spread across: lines of one or two pixels give no slope, three do (2/3)


def normals_from_depth(depth: Array, intrinsics: Intrinsics, window: int = 9) -> Floats:
    """Fit a plane to the surface around each pixel and return its normal.

    A plane is linear in inverse depth, 1/Z = a x + b y + c at the ray (x, y, 1), and its normal is along (a, b, c). In
    inverse depth the noise of a structured-light camera is the same everywhere, so that least squares weights the
    neighbours as they deserve; those on another surface are left out (`NEAR`).

    Args:
        depth: H W, float, metres; 0, negative and not finite values are ignored.
        intrinsics: fx, fy, cx, cy in pixels of this depth map.
        window: Side of the square of neighbours, odd.

    Returns:
        H W 3, float32, unit vectors in the camera frame that face the camera; zero where the pixel has no depth or too
        few neighbours on its surface.

    Raises:
        ValueError: The depth is no H W map, or the window is even.
    """
    depth = _valid(depth)
    fx, fy, _, _ = intrinsics
    x, y = _rays(depth.shape, intrinsics)
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    (value,), (right,), (down,), known = _fit_slopes(inverse[None], depth, window)
    a, b = right * np.float32(fx), down * np.float32(fy)
    return _unit(np.stack([-a, -b, a * x + b * y - value], axis=-1), known)  # times the ray: -value, to the camera


def curvature_from_depth(depth: Array, intrinsics: Intrinsics, window: int = 19) -> Floats:
    """Return the principal curvatures of the visible surface.

    They are the eigenvalues of the shape operator, dn = k dP: the normals' change (a least-squares slope over a window)
    against the surface point's change (in the tangent plane).

    Args:
        depth: H W, float, metres; 0, negative and not finite values are ignored.
        intrinsics: fx, fy, cx, cy in pixels of this depth map.
        window: Side of the square that the slope is fitted in, 6 n + 1 (every third pixel is used).

    Returns:
        H W 2, float32, 1/m: k1 >= k2, positive where the surface bulges towards the camera (a ball of radius r: 1/r
        twice), clipped to +-10; 255 twice where undecidable.

    Raises:
        ValueError: The depth is no H W map, or the window is not 6 n + 1.
    """
    depth = _valid(depth)
    normals = normals_from_depth(depth, intrinsics).transpose(2, 0, 1)
    there = np.any(normals != 0, axis=0)
    _, along_u, along_v, known = _fit_slopes(np.ascontiguousarray(normals), np.where(there, depth, 0), window, step=3)
    point_u, point_v = _tangents(depth, normals, intrinsics)
    first = _dot(point_u, point_u), _dot(point_u, point_v), _dot(point_v, point_v)
    crossed = (_dot(along_u, point_v) + _dot(along_v, point_u)) * np.float32(0.5)  # equal in theory, not in a fit
    pair = _eigenvalues(first, (_dot(along_u, point_u), crossed, _dot(along_v, point_v)))
    known &= np.isfinite(pair).all(axis=-1)
    return np.where(known[..., None], np.clip(pair, -STEEPEST_CURVATURE, STEEPEST_CURVATURE), UNKNOWN_CURVATURE).astype(
        np.float32
    )


def keypoints2d(image: Array) -> Floats:
    """Return how much each pixel stands out as a blob or a corner: the determinant of the Hessian of grey at sigma 2.

    Args:
        image: H W 3, uint8, RGB.

    Returns:
        H W, float32 in [0, 1]; 1 is `BRIGHTEST_KEYPOINT` and above, 0 is saddles, straight edges and even areas.
    """
    from scipy import ndimage  # costs as much to import as all the rest of this module

    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)
    xx, yy, xy = (  # cut at the usual 4 sigma, the second derivative of an even area would not be 0
        ndimage.gaussian_filter(grey, KEYPOINT_SIGMA, order=order, mode="nearest", truncate=6)
        for order in ((0, 2), (2, 0), (1, 1))
    )
    strength: Floats = np.clip((xx * yy - xy * xy) / np.float32(BRIGHTEST_KEYPOINT), 0, 1)
    return strength


def edges_from_labels(*maps: Array) -> BoolMap:
    """Return the boundaries between regions: neighbours that differ in any of the maps, thinned to one pixel.

    Args:
        maps: H W each, integers of any meaning (classes, instances).

    Returns:
        H W, bool.
    """
    edge = np.zeros(maps[0].shape, bool)
    for labels in maps:  # both sides of a boundary, so that no side is preferred before thinning
        across, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= below
        edge[:-1] |= below
    return thin(edge)


def edges_from_laplacian(label_map: Array) -> BoolMap:
    """Return where the Laplacian of a label map is not zero, thinned: the usual edges of PASCAL-Context.

    Labels are taken as numbers, so a pixel whose neighbours above and below it cancel out is no edge.

    Args:
        label_map: H W, integers.

    Returns:
        H W, bool.
    """
    centre = label_map.astype(np.int32)
    around = np.pad(centre, 1, mode="reflect")  # the border's outer neighbour is its inner one
    laplacian = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * centre
    return thin(laplacian != 0)


def thin(edge: BoolMap) -> BoolMap:
    """Thin lines to one pixel without breaking them (Guo and Hall 1989, the first of their two algorithms).

    Args:
        edge: H W, bool.

    Returns:
        H W, bool; lines that are thin already stay as they are.
    """
    edge = edge.copy()
    while True:
        before = int(edge.sum())
        for turn in (0, 4):  # from the north-east, then from the south-west
            edge &= ~_removable(edge, turn)
        if int(edge.sum()) == before:
            return edge


def _removable(edge: BoolMap, turn: int) -> BoolMap:
    rows, columns = edge.shape
    padded = np.pad(edge, 1)
    # The neighbours x1..x8 counter-clockwise from the east, or from the west in the second turn.
    offsets = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
    x = [padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns] for dy, dx in offsets[turn:] + offsets[:turn]]
    crossings = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in range(0, 8, 2))
    even = sum((x[i] | x[i + 1]).astype(np.int8) for i in range(0, 8, 2))
    odd = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int8) for i in range(0, 8, 2))
    neighbours = np.minimum(even, odd)
    return edge & (crossings == 1) & (neighbours >= 2) & (neighbours <= 3) & ~((x[1] | x[2] | ~x[7]) & x[0])


def _valid(depth: Array) -> Floats:
    if depth.ndim != 2:
        raise ValueError(f"Expected depth as H W, but got the shape {depth.shape}.")
    depth = depth.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _rays(shape: tuple[int, ...], intrinsics: Intrinsics) -> tuple[Floats, Floats]:
    """Return x (1 W) and y (H 1) of the rays (x, y, 1) through the pixels."""
    fx, fy, cx, cy = intrinsics
    x = ((np.arange(shape[1]) - cx) / fx).astype(np.float32)
    y = ((np.arange(shape[0]) - cy) / fy).astype(np.float32)
    return x[None], y[:, None]


def _unit(vectors: Floats, known: BoolMap) -> Floats:
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]  # numpy reduces over a short axis ten times slower
    length = np.sqrt(x * x + y * y + z * z)
    scale = np.divide(1, length, out=np.zeros_like(length), where=known & (length > 0))
    unit: Floats = vectors * scale[..., None]
    return unit


def _dot(one: Floats, other: Floats) -> Floats:
    """Products of vectors 3 H W."""
    product: Floats = one[0] * other[0] + one[1] * other[1] + one[2] * other[2]
    return product


def _tangents(depth: Floats, normals: Floats, intrinsics: Intrinsics) -> tuple[Floats, Floats]:
    """How the surface point P = Z (x, y, 1) moves with the column and with the row, 3 H W each, in metres a pixel.

    It stays in the tangent plane, n . dP = 0, so that Z changes by -Z n_x / (fx n . ray) with the column.
    """
    fx, fy, _, _ = intrinsics
    x, y = _rays(depth.shape, intrinsics)
    towards = normals[0] * x + normals[1] * y + normals[2]
    step = np.divide(depth, towards, out=np.zeros_like(depth), where=towards < 0)
    along_u, along_v = -step * normals[0] / np.float32(fx), -step * normals[1] / np.float32(fy)
    return (
        np.stack([along_u * x + depth / np.float32(fx), along_u * y, along_u]),
        np.stack([along_v * x, along_v * y + depth / np.float32(fy), along_v]),
    )


def _eigenvalues(first: tuple[Floats, Floats, Floats], second: tuple[Floats, Floats, Floats]) -> Floats:
    """Principal curvatures H W 2, the larger first, from both fundamental forms; NaN where the first is singular."""
    (uu, uv, vv), (e, f, g) = ([m.astype(np.float64) for m in form] for form in (first, second))
    area = uu * vv - uv * uv
    area = np.where(area > 0, area, np.nan)
    mean, product = (e * vv - 2 * f * uv + g * uu) / (2 * area), (e * g - f * f) / area
    half = np.sqrt(np.maximum(mean * mean - product, 0))
    return np.stack([mean + half, mean - half], axis=-1)


def _fit_slopes(values: Floats, depth: Floats, window: int, step: int = 1) -> tuple[Floats, Floats, Floats, BoolMap]:
    """Fit C values linearly in column and row around each pixel, over the neighbours that are on its surface.

    Args:
        values: C H W.
        depth: H W, metres; pixels of 0 take no part.
        window: Side of the square of neighbours, odd.
        step: Use every so many pixels of the window only; enough where the values change no faster.

    Returns:
        The fitted values at the pixel, their slopes along the columns and along the rows (C H W each, a pixel), and
        where the fit is decided (H W).
    """
    if window <= 1 or (window - 1) % (2 * step):
        raise ValueError(f"Expected a window of {2 * step} n + 1 pixels, but got {window}.")
    half, (rows, columns) = window // 2, depth.shape
    padded = np.pad(depth, half)  # outside the image there is no depth, so nothing there takes part
    around = np.pad(values, ((0, 0), (half, half), (half, half)))
    fitted = np.empty((3, *values.shape), np.float32)
    known = np.empty((rows, columns), bool)
    for top in range(0, rows, _BAND):
        band = slice(top, min(top + _BAND, rows))
        halo = slice(top, band.stop + 2 * half)
        fitted[:, :, band], known[band] = _solve(
            *_sums(around[:, halo], padded[halo], half, step), _NARROWEST * step**2
        )
    return fitted[0], fitted[1], fitted[2], known


def _sums(values: Floats, depth: Floats, half: int, step: int) -> tuple[Floats, Floats]:
    """Sums over the neighbours on the surface: of 1, x, y, xx, xy, yy (6 h w) and of v, xv, yv (3 C h w).

    x and y are offsets in pixels; arrays come with a margin of `half` pixels.
    """
    height, width = depth.shape[0] - 2 * half, depth.shape[1] - 2 * half
    centre = depth[half : half + height, half : half + width]
    reach = np.float32(NEAR) * centre  # 0 at a pixel without depth: nothing is nearer than that
    moments = np.zeros((6, height, width), np.float32)
    products = np.zeros((3, len(values), height, width), np.float32)
    for dy in range(-half, half + 1, step):
        row = np.s_[half + dy : half + dy + height]
        count, mixed = _row_sums(values[:, row], depth[row], centre, reach, range(-half, half + 1, step))
        moments += np.stack([count[0], count[1], dy * count[0], count[2], dy * count[1], dy * dy * count[0]])
        products += np.stack([mixed[0], mixed[1], dy * mixed[0]])
    return moments, products


def _row_sums(values: Floats, depth: Floats, centre: Floats, reach: Floats, offsets: range) -> tuple[Floats, Floats]:
    """Sums over one row of neighbours: of 1, x, xx (3 h w) and of v, xv (2 C h w)."""
    width = centre.shape[1]
    count = np.zeros((3, *centre.shape), np.float32)
    mixed = np.zeros((2, len(values), *centre.shape), np.float32)
    near, part = np.empty_like(centre), np.empty_like(mixed[0])
    for dx in offsets:
        start = dx - offsets[0]
        column = np.s_[start : start + width]
        np.subtract(depth[:, column], centre, out=near)
        np.abs(near, out=near)
        np.less(near, reach, out=near, casting="unsafe")
        np.multiply(values[:, :, column], near, out=part)
        count[0] += near
        mixed[0] += part
        part *= np.float32(dx)
        mixed[1] += part
        near *= np.float32(dx)
        count[1] += near
        near *= np.float32(dx)
        count[2] += near
    return count, mixed


def _solve(moments: Floats, products: Floats, narrowest: float) -> tuple[Floats, BoolMap]:
    """Solve the normal equations of `_sums`: value at the centre, both slopes (3 C h w), and where they are decided."""
    n, x, y, xx, xy, yy = moments
    n = np.maximum(n, 1)
    xx, xy, yy = xx - x * x / n, xy - x * y / n, yy - y * y / n  # about the mean, for the digits
    v, xv, yv = products[0], products[1] - x * products[0] / n, products[2] - y * products[0] / n
    # The smaller eigenvalue of the offsets' scatter: whether they spread in both directions.
    narrow = (xx + yy) / 2 - np.sqrt((xx - yy) ** 2 / 4 + xy * xy)
    known = (n >= _FEWEST_PIXELS) & (narrow >= narrowest * n)
    scale = np.divide(1, xx * yy - xy * xy, out=np.zeros_like(n), where=known)
    right, down = (xv * yy - yv * xy) * scale, (yv * xx - xv * xy) * scale
    return np.stack([(v - right * x - down * y) / n, right, down]), known
