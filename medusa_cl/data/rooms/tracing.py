"""Where rays meet solids: float32, element by element, so that every machine gets the same bits.

Only + - * /, sqrt, floor, abs, min, max and where are used; each is correctly rounded, so SIMD width does not matter.
Points and directions are tuples (x, y, z) of arrays (or of floats, for a shared origin).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.draws import Floats
from medusa_cl.data.rooms.scene import BALL, BOX, Camera, Part, Scene, Vec

Index = npt.NDArray[np.int64]
Points = tuple[Floats, Floats, Floats]
FAR = np.float32(1e9)
TINY = np.float32(1e-6)
OFF_ZERO = np.float32(1.2345e-13)
"""Added to a divisor that may be exactly 0: far below the last bit of any other value that occurs."""
START = np.float32(1e-3)
BEHIND = np.float32(8.0)
"""How far behind an opening in the wall a ray may meet what closes it, in metres."""


class Rays(NamedTuple):
    """Unit rays from the camera: their pixel coordinates (N), and directions in the world (3 x N)."""

    column: Floats
    row: Floats
    direction: Points
    forward: Floats
    """Cosine to the optical axis: distance along the ray times this is depth."""


class Hits(NamedTuple):
    """What each ray meets first: distance along it (N) and the number of the part (N; -1 = the room's shell)."""

    distance: Floats
    part: npt.NDArray[np.int32]


class Surface(NamedTuple):
    """One part's share of the hits: which rays, and their local points, world normals, faces, texture coordinates."""

    number: int
    rays: Index
    local: Points
    normal: Points
    face: npt.NDArray[np.int32]
    u: Floats
    v: Floats
    extent_u: Floats
    extent_v: Floats


def camera_rays(camera: Camera, column: Floats, row: Floats, size: tuple[int, int]) -> Rays:
    """Rays through points of the image; a pixel's centre is its number + 0.5."""
    step = 2.0 * camera.reach / size[1]
    a = (column - np.float32(size[1] / 2.0)) * np.float32(step)
    b = (row - np.float32(size[0] / 2.0)) * np.float32(step)
    forward = 1.0 / np.sqrt(1.0 + a * a + b * b)
    x, y, z = (
        (a * np.float32(r) + b * np.float32(d) + np.float32(f)) * forward
        for r, d, f in zip(camera.right, camera.down, camera.forward, strict=True)
    )
    return Rays(column, row, (x, y, z), forward)


def into(part: Part, x: Floats | float, y: Floats | float, z: Floats | float) -> tuple[Floats, Floats, Floats]:
    """A world vector in the part's frame; a lying tube has its axis along y there."""
    c, s = part.turn
    lx, lz = (x, z) if s == 0.0 and c == 1.0 else (x * c - z * s, x * s + z * c)
    return (y, lx, lz) if part.lying else (lx, y, lz)  # type: ignore[return-value]


def out_of(part: Part, local: Points) -> Points:
    """The inverse of `into`."""
    c, s = part.turn
    lx, y, lz = (local[1], local[0], local[2]) if part.lying else local
    return lx * c + lz * s, y, lz * c - lx * s


def half_sizes(part: Part) -> Vec:
    """Half sizes in the order of `into`."""
    hx, hy, hz = part.half
    return (hy, hx, hz) if part.lying else (hx, hy, hz)


def slabs(origin: Points, direction: Points, half: Vec) -> tuple[Floats, Floats]:
    """Where rays enter and leave the box |p| <= half (they miss it where entry >= exit)."""
    near, far = None, None
    for o, d, h in zip(origin, direction, half, strict=True):
        inverse = 1.0 / (d + OFF_ZERO)
        middle, reach = o * inverse, np.abs(inverse) * np.float32(h)
        low, high = -reach - middle, reach - middle
        near = low if near is None else np.maximum(near, low)
        far = high if far is None else np.minimum(far, high)
    assert near is not None and far is not None
    return near, far


def ball(origin: Points, direction: Points, half: Vec) -> tuple[Floats, Floats]:
    """Where rays enter and leave an ellipsoid."""
    ox, oy, oz = (o * (1.0 / h) for o, h in zip(origin, half, strict=True))
    dx, dy, dz = (d * (1.0 / h) for d, h in zip(direction, half, strict=True))
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0.0))
    return np.where(square > 0.0, (-b - root) / a, FAR), (root - b) / a


def tube(origin: Points, direction: Points, half: Vec, taper: float) -> tuple[Floats, Floats]:
    """Where rays enter and leave a cylinder or cone frustum: its cone cut by the slab |y| <= half[1]."""
    ox, oy, oz = (o * (1.0 / h) for o, h in zip(origin, half, strict=True))
    dx, dy, dz = (d * (1.0 / h) for d, h in zip(direction, half, strict=True))
    radius, growth = 1.0 + taper * oy, taper * dy
    a = dx * dx + dz * dz - growth * growth + OFF_ZERO
    b = ox * dx + oz * dz - growth * radius
    c = ox * ox + oz * oz - radius * radius
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0.0))
    first, second = (-b - root) / a, (root - b) / a
    if taper:
        # Where a < 0 the ray is steeper than the cone: it is inside before one root or after the other.
        steep, widening = a < 0.0, growth > 0.0
        low, high = np.minimum(first, second), np.maximum(first, second)
        first = np.where(steep, np.where(widening, high, -FAR), first)
        second = np.where(steep, np.where(widening, FAR, low), second)
    inverse = 1.0 / (dy + OFF_ZERO)
    middle, reach = oy * inverse, np.abs(inverse)
    near = np.maximum(first, -reach - middle)
    return np.where(square > 0.0, near, FAR), np.minimum(second, reach - middle)


def crossing(part: Part, origin: Points, direction: Points) -> tuple[Floats, Floats]:
    """Where rays, given in the part's frame, enter and leave it."""
    half = half_sizes(part)
    if part.shape == BOX:
        return slabs(origin, direction, half)
    if part.shape == BALL:
        return ball(origin, direction, half)
    return tube(origin, direction, half, part.taper)


def screen_boxes(parts: Sequence[Part], camera: Camera, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The pixels (left, right, top, bottom; P x 4) within which each part is seen; left is huge when it is not."""
    numbers = np.array([(*p.centre, *p.half, *p.turn, 1.0 + abs(p.taper)) for p in parts]).reshape(-1, 9).T
    away = [numbers[k] - camera.position[k] for k in range(3)]
    hx, hy, hz, c, s = numbers[3] * numbers[8], numbers[4], numbers[5] * numbers[8], numbers[6], numbers[7]
    middle, ex, ey, ez = [], [], [], []
    for x, y, z in (camera.right, camera.down, camera.forward):
        middle.append(away[0] * x + away[1] * y + away[2] * z)
        ex.append(hx * (c * x - s * z))
        ey.append(hy * y)
        ez.append(hz * (s * x + c * z))
    span = np.abs(ex[2]) + np.abs(ey[2]) + np.abs(ez[2])
    behind, near = middle[2] + span < 0.02, middle[2] - span < 0.02
    low, high = [np.full(len(parts), 1e9)] * 2, [np.full(len(parts), -1e9)] * 2
    scale = size[1] / (2.0 * camera.reach)
    for i, j, k in ((i, j, k) for i in (-1.0, 1.0) for j in (-1.0, 1.0) for k in (-1.0, 1.0)):
        px, py, pz = (m + i * x + j * y + k * z for m, x, y, z in zip(middle, ex, ey, ez, strict=True))
        factor = scale / np.where(near, 1.0, pz)
        for axis, place in enumerate((size[1] / 2.0 + px * factor, size[0] / 2.0 + py * factor)):
            low[axis], high[axis] = np.minimum(low[axis], place), np.maximum(high[axis], place)
    # One pixel of margin: float32 rays and these float64 corners need not agree to the last bit.
    box = [low[0] - 1.0, high[0] + 1.0, low[1] - 1.0, high[1] + 1.0]
    whole = 0.0, float(size[1]), 0.0, float(size[0])
    box = [np.where(near, full, edge) for full, edge in zip(whole, box, strict=True)]
    box[0] = np.where(behind, 1e9, box[0])
    return np.stack(box, axis=-1)


def shell_exit(scene: Scene, position: Vec, direction: Points) -> Floats:
    """Where rays from inside the room meet its walls, floor or ceiling."""
    local = position[0], position[1] - scene.half[1], position[2]
    return slabs(local, direction, scene.half)[1]  # type: ignore[arg-type]


def _past_openings(scene: Scene, direction: Points, distance: Floats) -> Floats:
    """Distances to the shell, made longer where a ray leaves through an opening."""
    points = [d * distance + np.float32(e) for d, e in zip(direction, scene.camera.position, strict=True)]
    out = distance.copy()
    for corners in scene.openings:
        within = np.ones(distance.shape, dtype=np.bool_)
        for p, low, high in zip(points, *corners, strict=True):
            within &= (p > np.float32(low)) & (p < np.float32(high))
        out[within] += BEHIND
    return out


def first_hits(scene: Scene, rays: Rays, size: tuple[int, int]) -> Hits:
    """What each camera ray meets first; every part looks only at the rays inside its screen rectangle."""
    eye = scene.camera.position
    distance = _past_openings(scene, rays.direction, shell_exit(scene, eye, rays.direction))
    owner = np.full(distance.shape, -1, dtype=np.int32)
    boxes = screen_boxes(scene.parts, scene.camera, size).tolist()
    for number, (part, box) in enumerate(zip(scene.parts, boxes, strict=True)):
        if box[0] > size[1] or box[1] < 0.0 or box[2] > size[0] or box[3] < 0.0:
            continue
        inside = (rays.column >= box[0]) & (rays.column <= box[1]) & (rays.row >= box[2]) & (rays.row <= box[3])
        chosen = np.flatnonzero(inside)
        if not chosen.size:
            continue
        origin = into(part, *(eye[k] - part.centre[k] for k in range(3)))
        direction = into(part, *(d[chosen] for d in rays.direction))
        near, far = crossing(part, origin, direction)
        best = distance[chosen]
        won = (near < far) & (near > START) & (near < best)
        distance[chosen] = np.where(won, near, best)
        owner[chosen[won]] = number
    return Hits(distance, owner)


def surfaces(scene: Scene, hits: Hits, points: Points, direction: Points) -> Iterator[Surface]:
    """The hits grouped by part, with normals towards the viewer, faces and texture coordinates."""
    order = np.argsort(hits.part, kind="stable")
    bounds = np.searchsorted(hits.part[order], np.arange(-1, len(scene.parts) + 1))
    for number in range(-1, len(scene.parts)):
        rays = order[bounds[number + 1] : bounds[number + 2]]
        if rays.size:
            world = points[0][rays], points[1][rays], points[2][rays]
            ahead = direction[0][rays], direction[1][rays], direction[2][rays]
            yield _surface(scene, number, rays, world, ahead)


def _surface(scene: Scene, number: int, rays: Index, world: Points, ahead: Points) -> Surface:
    """Geometry of one part (or of the shell, seen from inside) at its hits."""
    shell = number < 0
    part = _shell_part(scene) if shell else scene.parts[number]
    away = (w - np.float32(c) for w, c in zip(world, part.centre, strict=True))
    local = into(part, *away)
    half = half_sizes(part)
    if part.shape == BOX:
        face, normal, (u, v), (eu, ev) = _box_face(local, half)
    else:
        face, normal, (u, v), (eu, ev) = _round_face(part, local, half)
    out = out_of(part, normal)
    # At rims the rounding of the hit may choose the neighbouring face; a visible surface always faces the viewer.
    facing = out[0] * ahead[0] + out[1] * ahead[1] + out[2] * ahead[2]
    sign = np.where(facing > 0.0, np.float32(-1.0), np.float32(1.0))
    return Surface(number, rays, local, (out[0] * sign, out[1] * sign, out[2] * sign), face, u, v, eu, ev)


def _shell_part(scene: Scene) -> Part:
    return Part(BOX, (0.0, scene.half[1], 0.0), scene.half, scene.shell[0], 0, 0)


Face = tuple[npt.NDArray[np.int32], Points, tuple[Floats, Floats], tuple[Floats, Floats]]


def _box_face(local: Points, half: Vec) -> Face:
    """The face (2 axis + side) whose plane is nearest, its normal, and metres along it (v upwards on walls)."""
    (x, y, z), (hx, hy, hz) = local, half
    gx, gy, gz = (np.abs(p) - np.float32(h) for p, h in zip(local, half, strict=True))
    on_x, on_y = (gx >= gy) & (gx >= gz), gy >= gz
    on_y = on_y & ~on_x
    side = np.where(on_x, x, np.where(on_y, y, z)) > 0.0
    axis = np.where(on_x, 0, np.where(on_y, 1, 2)).astype(np.int32)
    sign = np.where(side, np.float32(1.0), np.float32(-1.0))
    zero = np.zeros_like(sign)
    normal = np.where(on_x, sign, zero), np.where(on_y, sign, zero), np.where(on_x | on_y, zero, sign)
    u, v = np.where(on_x, z, x), np.where(on_y, z, y)
    extent_u = np.where(on_x, np.float32(hz), np.float32(hx))
    extent_v = np.where(on_y, np.float32(hz), np.float32(hy))
    return axis * 2 + side, normal, (u, v), (extent_u, extent_v)


def _round_face(part: Part, local: Points, half: Vec) -> Face:
    """Faces of a tube (2, 3: its caps; 6: its side) or a ball (6), the normal and metres around and up."""
    (x, y, z), (hx, hy, hz) = local, half
    a, b, c = x * (1.0 / hx), y * (1.0 / hy), z * (1.0 / hz)
    if part.shape == BALL:
        cap = np.zeros(x.shape, dtype=np.bool_)
        nx, ny, nz = a * (1.0 / hx), b * (1.0 / hy), c * (1.0 / hz)
    else:
        rim = 1.0 + part.taper * b
        cap = np.abs(np.sqrt(a * a + c * c) - rim) > np.abs(1.0 - np.abs(b))
        nx, ny, nz = a * (1.0 / hx), rim * (-part.taper / hy), c * (1.0 / hz)
    up = np.where(b > 0.0, np.float32(1.0), np.float32(-1.0))
    length = 1.0 / np.sqrt(np.maximum(nx * nx + ny * ny + nz * nz, np.float32(1e-12)))
    zero = np.float32(0.0)
    normal = np.where(cap, zero, nx * length), np.where(cap, up, ny * length), np.where(cap, zero, nz * length)
    # A rational stand-in for the angle around the axis: 4 per turn.
    ratio = a / np.maximum(np.abs(a) + np.abs(c), TINY)
    around = np.where(c >= 0.0, 1.0 - ratio, 3.0 + ratio) * np.float32(1.57 * hx)
    face = np.where(cap, np.where(b > 0.0, 3, 2), 6).astype(np.int32)
    u, v = np.where(cap, x, around), np.where(cap, z, y)
    extent_u = np.where(cap, np.float32(hx), np.float32(3.14 * hx))
    extent_v = np.where(cap, np.float32(hz), np.float32(hy))
    return face, normal, (u, v), (extent_u, extent_v)
