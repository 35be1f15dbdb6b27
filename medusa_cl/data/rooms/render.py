"""The picture and the targets of one room, in the dtypes in which they are stored."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.curvature import curvature
from medusa_cl.data.rooms.draws import SEED, Floats, hashed
from medusa_cl.data.rooms.keypoints import keypoints2d
from medusa_cl.data.rooms.layout import FIRST_INSTANCE
from medusa_cl.data.rooms.lighting import clusters, openness, pattern, smoothed, sun_fraction
from medusa_cl.data.rooms.saliency import saliency
from medusa_cl.data.rooms.scene import LABEL, Light, Material, Scene
from medusa_cl.data.rooms.splits import scene_of
from medusa_cl.data.rooms.textures import Spot, albedo
from medusa_cl.data.rooms.tracing import Points, Rays, Surface, camera_rays, first_hits, into, surfaces

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]
Arrays = dict[str, npt.NDArray[np.generic]]

JUMP = 0.05
"""Neighbours on different surfaces whose depths differ by more than this fraction are an occlusion edge."""
CREASE = 0.85
"""Neighbours whose normals have a smaller dot product are a crease."""
FACES = 8
"""Names for faces: so many for each part, after those of the room itself."""
SUBPIXELS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))
_SHELL_LABELS = np.array([LABEL[n] for n in ("wall", "wall", "floor", "ceiling", "wall", "wall")], dtype=np.uint8)


class View(NamedTuple):
    """What rays see, N values each: depth, world point and normal, a name for the face, part, colour and reflection."""

    rays: Rays
    depth: Floats
    point: Points
    normal: Points
    face: Ints
    part: Ints
    colour: Points
    glow: Floats
    gloss: Floats


def render_room(index: int, size: tuple[int, int] = (128, 160)) -> Arrays:
    """Render room `index` of rooms-v1: the same bits on every machine, and for ever.

    No array of rooms-v1 is ever changed; what looks or counts differently is rooms-v2.

    Args:
        index: Which room; see SPLITS for the ranges of the splits. 0 <= index < 2**64.
        size: Height and width in pixels.

    Returns:
        image (H W 3, u8 RGB), semseg (H W, u8), depth (H W, u16 millimetres along the optical axis), normals (H W 3,
        i8, 127 n in the camera frame), edges (H W, u8 in {0, 1}), reshading (H W, u8, 254 times -n.view), albedo
        (H W 3, u8, 254 times the display value without light; 255 where the surface shines itself), curvature (H W 2,
        f16, 1/m, clipped to +-10), keypoints2d (H W, u8, 254 times that of the image), saliency (H W, u8 in {0, 1}),
        instances (H W, u16). All of what is seen first: a window is its pane, whatever is painted on it.
    """
    scene = scene_of(index)
    rows, columns = np.divmod(np.arange(size[0] * size[1]), size[1])
    column, row = columns.astype(np.float32) + 0.5, rows.astype(np.float32) + 0.5
    view = look(scene, column, row, size)
    normal = camera_normals(scene, view)
    pair = curvature(scene.parts, view.part, view.face % FACES, view.point)
    image = _image(scene, view, size, index)
    semseg, instances = _labels(scene, view).reshape(size), _instances(scene, view).reshape(size)
    return {
        "image": image,
        "semseg": semseg,
        "depth": np.floor(view.depth * 1000.0 + 0.5).astype(np.uint16).reshape(size),
        "normals": np.floor(normal * 127.0 + 0.5).astype(np.int8).reshape(*size, 3),
        "edges": edge_map(view.depth.reshape(size), normal.reshape(*size, 3), view.face.reshape(size)),
        "reshading": _shares(facing(view)).reshape(size),
        "albedo": unlit(view).reshape(*size, 3),
        "curvature": pair.astype(np.float16).reshape(*size, 2),
        "keypoints2d": _shares(keypoints2d(image)),
        "saliency": saliency(image, instances, semseg),
        "instances": instances,
    }


def _shares(values: Floats) -> npt.NDArray[np.uint8]:
    """Values in [0, 1] in steps of 1/254."""
    return np.floor(values * 254.0 + 0.5).astype(np.uint8)


def look(scene: Scene, column: Floats, row: Floats, size: tuple[int, int]) -> View:
    """Trace rays through points of the image and read the textures there."""
    rays = camera_rays(scene.camera, column, row, size)
    hits = first_hits(scene, rays, size)
    x, y, z = (d * hits.distance + np.float32(e) for d, e in zip(rays.direction, scene.camera.position, strict=True))
    count = column.shape
    normal, colour = _empty(count), _empty(count)
    face, glow, gloss = np.zeros(count, dtype=np.int32), np.zeros(count, np.float32), np.zeros(count, np.float32)
    pixel = np.float32(2.0 * scene.camera.reach / size[1])
    for surface in surfaces(scene, hits, (x, y, z), rays.direction):
        here = surface.rays
        ahead = tuple(d[here] for d in rays.direction)
        cosine = np.abs(sum_products(surface.normal, ahead))  # type: ignore[arg-type]
        # The pixel's width on the surface; the square root stands between the short and the long axis of its ellipse.
        width = hits.distance[here] * pixel / np.sqrt(np.maximum(cosine, np.float32(0.05)))
        face[here] = surface.number * FACES + FACES + surface.face
        for k in range(3):
            normal[k][here] = surface.normal[k]
        _paint(scene, surface, ahead, width, colour, glow, gloss)  # type: ignore[arg-type]
    depth = hits.distance * rays.forward
    return View(rays, depth, (x, y, z), normal, face, hits.part, colour, glow, gloss)


def _empty(count: tuple[int, ...]) -> Points:
    return np.zeros(count, np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32)


def sum_products(a: Points, b: Points) -> Floats:
    """Dot products of N vectors, in a fixed order."""
    products: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return products


def _paint(
    scene: Scene, surface: Surface, ahead: Points, width: Floats, colour: Points, glow: Floats, gloss: Floats
) -> None:
    """Read the material of one surface into the buffers (the shell has one material for each face)."""
    if surface.number >= 0:
        material = scene.parts[surface.number].material
        spot = Spot(surface.u, surface.v, width, surface.extent_u, surface.extent_v, material)
        if material.pattern == "outdoors":
            spot = _far(scene, surface, ahead, spot)
        _write(material, spot, surface.rays, colour, glow, gloss)
        return
    for number, material in enumerate(scene.shell):
        chosen = np.flatnonzero(surface.face == number)
        if chosen.size:
            spot = Spot(
                surface.u[chosen],
                surface.v[chosen],
                width[chosen],
                surface.extent_u[chosen],
                surface.extent_v[chosen],
                material,
            )
            _write(material, spot, surface.rays[chosen], colour, glow, gloss)


def _write(
    material: Material, spot: Spot, here: npt.NDArray[np.int64], colour: Points, glow: Floats, gloss: Floats
) -> None:
    for buffer, values in zip(colour, albedo(spot), strict=True):
        buffer[here] = values * values  # display value -> light: a gamma of 2, whose inverse is sqrt
    glow[here], gloss[here] = material.glow, material.gloss


def _far(scene: Scene, surface: Surface, ahead: Points, spot: Spot) -> Spot:
    """Where the view ray through a pane meets a plane 10 m behind it."""
    x, y, z = into(scene.parts[surface.number], *ahead)
    away = 10.0 / np.maximum(np.abs(z), np.float32(0.1))
    return spot._replace(u=surface.u + x * away, v=y * away, width=spot.width * 3.0)


def camera_normals(scene: Scene, view: View) -> Floats:
    """Unit normals (N 3) in the camera frame: x right, y down, z forward."""
    axes = (scene.camera.right, scene.camera.down, scene.camera.forward)
    n = view.normal
    return np.stack([n[0] * np.float32(a) + n[1] * np.float32(b) + n[2] * np.float32(c) for a, b, c in axes], axis=-1)


def facing(view: View) -> Floats:
    """-n . view direction in [0, 1]: 1 where the surface is seen head-on."""
    return np.minimum(np.maximum(-sum_products(view.normal, view.rays.direction), 0.0), 1.0)


def unlit(view: View) -> npt.NDArray[np.uint8]:
    """The display value of each texture without light, N 3: 254 times it; 255 where the surface shines itself.

    Lit lamps, screens and the view through a pane are light, not paint.
    """
    colour = np.stack([_shares(np.minimum(np.sqrt(channel), 1.0)) for channel in view.colour], axis=-1)
    return np.where(view.glow[:, None] > 0.0, np.uint8(255), colour)


def edge_map(depth: Floats, normal: Floats, face: Ints) -> npt.NDArray[np.uint8]:
    """Occlusion and crease edges, one pixel wide.

    Args:
        depth: H W, metres.
        normal: H W 3, unit.
        face: H W, equal for pixels of one smooth surface; a grazing plane is no occlusion, however steep its depth.

    Returns:
        H W, 1 on the nearer pixel of an occluding pair and on the left or upper pixel of a crease, else 0.
    """
    edges = np.zeros(depth.shape, dtype=np.bool_)
    for first, second in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
    ):
        a, b, n, m = depth[first], depth[second], normal[first], normal[second]
        apart = face[first] != face[second]
        jump = apart & (np.abs(a - b) > JUMP * np.minimum(a, b))
        dot = n[..., 0] * m[..., 0] + n[..., 1] * m[..., 1] + n[..., 2] * m[..., 2]
        crease = (dot < CREASE) & ~jump
        edges[first] |= (jump & (a <= b)) | crease
        edges[second] |= jump & (b < a)
    return edges.astype(np.uint8)


def _labels(scene: Scene, view: View) -> npt.NDArray[np.uint8]:
    table = np.array([part.label for part in scene.parts] + [0], dtype=np.uint8)
    return np.where(view.part < 0, _SHELL_LABELS[np.minimum(view.face, 5)], table[view.part])


def _instances(scene: Scene, view: View) -> npt.NDArray[np.uint16]:
    table = np.array([part.instance for part in scene.parts] + [0], dtype=np.uint16)
    shell = (np.minimum(view.face, FIRST_INSTANCE - 2) + 1).astype(np.uint16)
    return np.where(view.part < 0, shell, table[view.part])


def _image(scene: Scene, view: View, size: tuple[int, int], index: int) -> npt.NDArray[np.uint8]:
    """Light the picture, smooth its edges, expose and store it."""
    cell = pattern(size)
    # Off the surface along the normal, so that no ray starts inside what it left.
    x, y, z = (p + n * np.float32(0.004) for p, n in zip(view.point, view.normal, strict=True))
    seen = [_direct(light, view) for light in scene.lights]
    shares, groups = [], clusters(scene)
    for light, lit in zip(scene.lights, seen, strict=True):
        shares.append(smoothed(sun_fraction(scene, groups, light, (x, y, z), cell, lit), view.face, size))
    shares.append(smoothed(openness(scene, groups, (x, y, z), view.normal, cell), view.face, size))
    radiance = _radiance(scene, view, seen, shares)
    exposure = _exposure(scene, radiance)
    toned = np.stack([_tone(channel * exposure) for channel in radiance])
    _smooth_edges(scene, view, size, shares, exposure, toned)
    return _film(toned, index).reshape(*size, 3)


def _direct(light: Light, view: View) -> Floats:
    """Unshadowed irradiance from a light, per unit of its colour."""
    lx, ly, lz = (np.float32(c) - p for c, p in zip(light.centre, view.point, strict=True))
    square = lx * lx + ly * ly + lz * lz
    inverse = 1.0 / np.sqrt(np.maximum(square, np.float32(1e-4)))
    cosine = np.maximum(sum_products(view.normal, (lx, ly, lz)) * inverse, 0.0)
    if light.facing is not None:
        fx, fy, fz = light.facing
        cosine = cosine * np.maximum(-(lx * fx + ly * fy + lz * fz) * inverse, 0.0)
    irradiance: Floats = cosine / (square + 0.6)
    return irradiance


def _radiance(scene: Scene, view: View, seen: list[Floats], shares: list[Floats]) -> list[Floats]:
    """Light towards the camera: lights times their visible share, ambient light times openness, glow, highlights."""
    ny, opened = view.normal[1], shares[-1]
    ambient = opened * opened * (0.8 + 0.2 * ny) + 0.1 * opened
    shine = [_highlight(light, view) for light in scene.lights]
    floor = scene.shell[2].first
    out = []
    for k in range(3):
        bounce = scene.ambient[k] * (1.0 + 0.35 * (floor[k] * floor[k] - 0.35))
        total = ambient * np.float32(bounce)
        extra = np.zeros_like(total)
        for light, lit, share, spot in zip(scene.lights, seen, shares[:-1], shine, strict=True):
            total = total + lit * share * np.float32(light.colour[k])
            extra = extra + spot * share * np.float32(light.colour[k])
        out.append(view.colour[k] * (total + view.glow) + extra * view.gloss)
    return out


def _highlight(light: Light, view: View) -> Floats:
    """A Blinn highlight with exponent 32, by squaring five times."""
    lx, ly, lz = (np.float32(c) - p for c, p in zip(light.centre, view.point, strict=True))
    inverse = 1.0 / np.sqrt(np.maximum(lx * lx + ly * ly + lz * lz, np.float32(1e-4)))
    hx, hy, hz = (v * inverse - d for v, d in zip((lx, ly, lz), view.rays.direction, strict=True))
    length = np.sqrt(np.maximum(hx * hx + hy * hy + hz * hz, np.float32(1e-6)))
    power = np.maximum(sum_products(view.normal, (hx, hy, hz)) / length, 0.0)
    for _ in range(5):
        power = power * power
    shine: Floats = power * np.float32(0.12)
    return shine


def _exposure(scene: Scene, radiance: list[Floats]) -> float:
    """The factor that brings the median luminance to the scene's exposure (a median selects: no float sum)."""
    light = 0.25 * radiance[0] + 0.6 * radiance[1] + 0.15 * radiance[2]
    middle = float(np.sort(light)[light.size // 2])
    goal = scene.exposure * scene.exposure
    return min(max(goal / max(middle, 1e-4), 0.3), 4.0)


def _tone(light: Floats) -> Floats:
    """Light -> display value: a soft shoulder that reaches white at 3, then a gamma of 2."""
    return np.sqrt(np.minimum(light * (1.0 + light * (1.0 / 9.0)) / (1.0 + 0.6 * light), 1.0))


def _smooth_edges(
    scene: Scene, view: View, size: tuple[int, int], shares: list[Floats], exposure: float, toned: Floats
) -> None:
    """Anti-alias in place: four rays in each pixel whose neighbours lie on other faces.

    The expensive parts (shadow, occlusion) are taken from the nearest pixel on the same face.
    """
    face = view.face.reshape(size)
    mixed = np.zeros(size, dtype=np.bool_)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :])):
        apart = face[first] != face[second]
        mixed[first] |= apart
        mixed[second] |= apart
    pixels = np.flatnonzero(mixed.ravel())
    if not pixels.size:
        return
    many = np.concatenate([pixels] * len(SUBPIXELS))
    shift = np.repeat(np.array(SUBPIXELS, dtype=np.float32), pixels.size, axis=0)
    fine = look(scene, view.rays.column[many] + shift[:, 0], view.rays.row[many] + shift[:, 1], size)
    source = _same_face(face, many, fine.face)
    seen = [_direct(light, fine) for light in scene.lights]
    radiance = _radiance(scene, fine, seen, [share[source] for share in shares])
    for k, channel in enumerate(radiance):
        a, b, c, d = _tone(channel * exposure).reshape(len(SUBPIXELS), -1)
        toned[k][pixels] = (a + b + c + d) * 0.25


def _same_face(face: Ints, pixels: npt.NDArray[np.int64], wanted: Ints) -> npt.NDArray[np.int64]:
    """For each pixel, itself or the neighbour that lies on the wanted face (itself when there is none)."""
    height, width = face.shape
    rows, columns = np.divmod(pixels, width)
    found = pixels.copy()
    done = face.ravel()[pixels] == wanted
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            place = np.clip(rows + dy, 0, height - 1) * width + np.clip(columns + dx, 0, width - 1)
            good = ~done & (face.ravel()[place] == wanted)
            found = np.where(good, place, found)
            done |= good
    return found


def _film(toned: Floats, index: int) -> npt.NDArray[np.uint8]:
    """Display values 3 N -> N 3 u8, with a little grain."""
    place = np.arange(toned.shape[1], dtype=np.uint32)
    salt = np.uint32((index ^ SEED) & 0xFFFFFFFF)
    out = np.empty((toned.shape[1], 3), dtype=np.uint8)
    for k in range(3):
        grain = hashed(place, np.full_like(place, k), int(salt)) + hashed(place, np.full_like(place, k + 7), int(salt))
        value = toned[k] * 255.0 + (grain - 1.0) * 3.5 + 0.5
        out[:, k] = np.floor(np.minimum(np.maximum(value, 0.0), 255.0)).astype(np.uint8)
    return out
