"""How much light reaches a point: soft shadows of area lights and ambient occlusion, both by a few short rays.

Neighbouring pixels send their rays to different places of the light (a 4 x 4 pattern), and an edge-aware mean over the
neighbourhood puts the pattern together again.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.draws import Floats
from medusa_cl.data.rooms.scene import Light, Part, Scene, Vec
from medusa_cl.data.rooms.tracing import TINY, Index, Points, crossing, into

REACH = np.float32(0.9)
"""Length of the ambient occlusion rays in metres."""
_GOLD = 1.618033988749895
_RATIO = 0.5773502691896258  # 1 / sqrt(3)
_LONG, _SHORT = 0.85065080835204, 0.5257311121191336  # an icosahedron's vertex


def _sphere() -> list[Vec]:
    """32 directions spread over the sphere: the vertices of an icosahedron and a dodecahedron."""
    signs = (-1.0, 1.0)
    cube = [(a * _RATIO, b * _RATIO, c * _RATIO) for a in signs for b in signs for c in signs]
    ico = [(0.0, a * _SHORT, b * _LONG) for a in signs for b in signs]
    dode = [(0.0, a * _RATIO / _GOLD, b * _RATIO * _GOLD) for a in signs for b in signs]
    for x, y, z in ico[:4] + dode[:4]:
        cube += [(x, y, z), (y, z, x), (z, x, y)]
    return cube


# An order in which any few that follow each other lie far apart.
DIRECTIONS = np.array([_sphere()[(k * 13) % 32] for k in range(32)], dtype=np.float32)
_CELL = np.array([0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5], dtype=np.int32)


def pattern(size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """The cell 0..15 of each pixel (H W, flat) in a 4 x 4 ordered pattern."""
    rows, columns = np.arange(size[0])[:, None] % 4, np.arange(size[1])[None, :] % 4
    cells: npt.NDArray[np.int32] = _CELL[(rows * 4 + columns).ravel()]
    return cells


class Cluster(NamedTuple):
    """The shadow-casting parts of one instance and the box around them, to pass over all of them at once."""

    parts: tuple[Part, ...]
    low: Vec
    high: Vec


def clusters(scene: Scene) -> list[Cluster]:
    """The parts that cast shadows, by instance."""
    members: dict[int, list[Part]] = {}
    for part in scene.parts:
        if part.casts:
            members.setdefault(part.instance, []).append(part)
    return [_cluster(parts) for parts in members.values()]


def _cluster(parts: Sequence[Part]) -> Cluster:
    corners = [_bounds(part) for part in parts]
    low = tuple(min(corner[0][k] for corner in corners) for k in range(3))
    high = tuple(max(corner[1][k] for corner in corners) for k in range(3))
    return Cluster(tuple(parts), (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _reach(part: Part) -> Vec:
    """Half sizes of the part's box along the world's axes."""
    c, s = abs(part.turn[0]), abs(part.turn[1])
    hx, hy, hz = part.half
    grow = 1.0 + abs(part.taper)
    return grow * (hx * c + hz * s), hy, grow * (hz * c + hx * s)


def _bounds(part: Part) -> tuple[Vec, Vec]:
    """The corners of the part's box along the world's axes."""
    (x, y, z), (rx, ry, rz) = part.centre, _reach(part)
    return (x - rx, y - ry, z - rz), (x + rx, y + ry, z + rz)


def sun_fraction(
    scene: Scene, groups: Sequence[Cluster], light: Light, points: Points, cell: npt.NDArray[np.int32], lit: Floats
) -> Floats:
    """The part of a light each point sees, from 4 rays to the 4 quarters of the light; 0 where `lit` is 0."""
    awake = np.flatnonzero(lit > 1e-4)
    start = points[0][awake], points[1][awake], points[2][awake]
    # A pixel's place within a quarter of the light, whose edges run from -1 to 1.
    a, b = (k[awake].astype(np.float32) * 0.25 - 0.375 for k in (cell % 4, cell // 4))
    clear = [np.ones(awake.shape, dtype=np.bool_) for _ in range(4)]
    axis = [s - np.float32(c) for s, c in zip(start, light.centre, strict=True)]
    spread = 1.5 * math.sqrt(max(sum(a * a for a in light.edge_u), sum(a * a for a in light.edge_v)))
    for group in groups:
        behind = _in_shade(axis, light, spread, group.low, group.high)
        for part in group.parts if behind.size else ():
            near = behind[_in_shade([k[behind] for k in axis], light, spread, *_bounds(part))]
            if near.size:
                origin = start[0][near], start[1][near], start[2][near]
                for free, met in zip(clear, _blocked(part, light, origin, a[near], b[near]), strict=True):
                    free[near] &= ~met
    seen = np.zeros(lit.shape, dtype=np.float32)
    for free in clear:
        seen[awake] += np.where(free, np.float32(0.25), np.float32(0.0))
    return seen


def _blocked(part: Part, light: Light, start: Points, a: Floats, b: Floats) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether the part stands between the points and each quarter of the light."""
    origin = into(part, *(s - np.float32(c) for s, c in zip(start, part.centre, strict=True)))
    middle = into(part, *(m - c for m, c in zip(light.centre, part.centre, strict=True)))
    edge_u, edge_v = into(part, *light.edge_u), into(part, *light.edge_v)
    base = [a * u + b * v - o for u, v, o in zip(edge_u, edge_v, origin, strict=True)]
    for du, dv in ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)):
        x, y, z = (w + (m + du * u + dv * v) for w, m, u, v in zip(base, middle, edge_u, edge_v, strict=True))
        near, far = crossing(part, origin, (x, y, z))
        yield (near < far) & (far > 1e-3) & (near < 1.0)


def _in_shade(axis: Sequence[Floats], light: Light, spread: float, low: Vec, high: Vec) -> Index:
    """Points whose segment to the light's middle (`axis` = point - middle) comes near a box: its shade, generously."""
    middle = [(a + b) / 2 - m for a, b, m in zip(low, high, light.centre, strict=True)]
    sizes = [b - a for a, b in zip(low, high, strict=True)]
    reach = 0.5 * math.sqrt(sizes[0] * sizes[0] + sizes[1] * sizes[1] + sizes[2] * sizes[2]) + spread
    wx, wy, wz = axis
    cx, cy, cz = middle
    square = np.maximum(wx * wx + wy * wy + wz * wz, TINY)
    along = np.minimum(np.maximum((wx * cx + wy * cy + wz * cz) / square, 0.0), 1.0)
    dx, dy, dz = wx * along - cx, wy * along - cy, wz * along - cz
    return np.flatnonzero(dx * dx + dy * dy + dz * dz < reach * reach)


def openness(
    scene: Scene, groups: Sequence[Cluster], points: Points, normal: Points, cell: npt.NDArray[np.int32], count: int = 4
) -> Floats:
    """Ambient light that gets through, in [0, 1]: the mean free fraction of cosine-weighted rays of length REACH."""
    ways = [_hemisphere(normal, (cell * 2 + k * 9) % 32) for k in range(count)]
    nearest = [_to_shell(scene, points, way) for way in ways]
    for group in groups:
        around = _within(points, group.low, group.high)
        for part in group.parts if around.size else ():
            chosen = around[_within((points[0][around], points[1][around], points[2][around]), *_bounds(part))]
            if chosen.size:
                _shorten(part, points, chosen, ways, nearest)
    total = nearest[0]
    for best in nearest[1:]:
        total = total + best
    return total * np.float32(1.0 / count)


def _shorten(part: Part, points: Points, chosen: Index, ways: list[Points], nearest: list[Floats]) -> None:
    """Cut the free fraction of the chosen points' rays where they meet the part."""
    origin = into(part, *(points[k][chosen] - np.float32(part.centre[k]) for k in range(3)))
    for best, way in zip(nearest, ways, strict=True):
        near, far = crossing(part, origin, into(part, *(w[chosen] for w in way)))
        meets = (near < far) & (far > 2e-3) & (near < 1.0)
        held = best[chosen]
        best[chosen] = np.where(meets, np.minimum(held, np.maximum(near, 0.0)), held)


def _within(points: Points, low: Vec, high: Vec) -> Index:
    """Points so near a box that an occlusion ray could meet it."""
    inside = (points[1] > low[1] - REACH) & (points[1] < high[1] + REACH)
    inside &= (points[0] > low[0] - REACH) & (points[0] < high[0] + REACH)
    inside &= (points[2] > low[2] - REACH) & (points[2] < high[2] + REACH)
    return np.flatnonzero(inside)


def _hemisphere(normal: Points, choice: npt.NDArray[np.int32]) -> Points:
    """Cosine-weighted directions of length REACH: a point of the unit sphere standing on the normal's tip."""
    x, y, z = (n * 1.02 + DIRECTIONS[choice, k] for k, n in enumerate(normal))
    scale = REACH / np.sqrt(np.maximum(x * x + y * y + z * z, np.float32(1e-4)))
    return x * scale, y * scale, z * scale


def _to_shell(scene: Scene, points: Points, way: Points) -> Floats:
    """The fraction of each short ray that fits inside the room, at most 1; points in an opening see out of it."""
    best = np.ones_like(points[0])
    hx, hy, hz = scene.half
    for p, w, low, high in zip(points, way, (-hx, 0.0, -hz), (hx, 2.0 * hy, hz), strict=True):
        far = np.where(p > np.float32(high), p + REACH, np.float32(high))
        near = np.where(p < np.float32(low), p - REACH, np.float32(low))
        wall = np.where(w > 0.0, far, near) - p
        step = wall / np.where(np.abs(w) < TINY, TINY, w)
        best = np.minimum(best, np.where(np.abs(w) < TINY, np.float32(1.0), np.maximum(step, 0.0)))
    return best


def smoothed(values: Floats, key: npt.NDArray[np.int32], size: tuple[int, int], reach: int = 2) -> Floats:
    """The mean over the neighbours (2 reach + 1 squared) that lie on the same face; flat H W in and out."""
    image, names = values.reshape(size), key.reshape(size)
    for axis in (1, 0):
        total, count = image.copy(), np.ones(size, dtype=np.float32)
        for step in range(1, reach + 1):
            ahead = [slice(None), slice(None)]
            behind = [slice(None), slice(None)]
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            front, back = tuple(ahead), tuple(behind)
            same = names[front] == names[back]
            total[back] += np.where(same, image[front], np.float32(0.0))
            total[front] += np.where(same, image[back], np.float32(0.0))
            count[back] += same
            count[front] += same
        image = total / count
    return image.ravel()
