"""From an image index to a furnished room with lights and a camera."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from medusa_cl.data.rooms import fixtures, furniture, objects
from medusa_cl.data.rooms.draws import RGB, Draw, shade
from medusa_cl.data.rooms.scene import LABEL, Camera, Light, Piece, Scene, Turn, Vec, moved, rotation
from medusa_cl.data.rooms.style import Style
from medusa_cl.data.rooms.tracing import camera_rays, first_hits

Maker = Callable[[Draw, Style], Piece]
WALLS: tuple[Turn, ...] = ((1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 1.0))
"""Turns that make a piece's front (+z) face the room from the walls -z, +x, +z, -x."""
FIRST_INSTANCE = 7
"""Instances 1 to 6 are the shell's faces -x, +x, floor, ceiling, -z, +z."""

PLANS: dict[str, tuple[tuple[Maker, ...], tuple[Maker, ...]]] = {
    "bedroom": (
        (furniture.bed, furniture.nightstand, furniture.wardrobe),
        (furniture.tv_stand, furniture.dresser, furniture.desk, furniture.armchair, furniture.bookshelf, furniture.bed),
    ),
    "living": (
        (furniture.sofa, furniture.coffee_table, furniture.tv_stand),
        (furniture.armchair, furniture.bookshelf, furniture.sofa, fixtures.fireplace, furniture.table),
    ),
    "dining": (
        (furniture.table, furniture.dresser),
        (furniture.sofa, furniture.bookshelf, furniture.chair, furniture.wardrobe, furniture.armchair),
    ),
    "study": (
        (furniture.desk, furniture.bookshelf),
        (furniture.bookshelf, furniture.armchair, furniture.bed, furniture.dresser, furniture.sofa),
    ),
    "studio": (
        (furniture.bed, furniture.sofa, furniture.table),
        (furniture.wardrobe, furniture.tv_stand, furniture.bookshelf, furniture.desk, fixtures.kitchen),
    ),
    "kitchen": (
        (fixtures.kitchen, fixtures.fridge, furniture.table),
        (furniture.dresser, objects.bin_, furniture.bench, furniture.stool, fixtures.washbasin),
    ),
    "hall": (
        (furniture.coat_rack, furniture.bench, furniture.chest),
        (furniture.wardrobe, furniture.side_table, objects.cartons, furniture.armchair, furniture.piano),
    ),
    "nursery": (
        (furniture.bunk_bed, objects.toys, furniture.cot),
        (furniture.dresser, furniture.bookshelf, objects.toys, furniture.desk, objects.cartons, furniture.wardrobe),
    ),
    "bathroom": (
        (fixtures.bathtub, fixtures.washbasin, furniture.chest),
        (objects.bin_, furniture.stool, furniture.wardrobe, furniture.bench),
    ),
    "parlour": (
        (furniture.sofa, furniture.piano, fixtures.fireplace),
        (furniture.armchair, furniture.bookshelf, furniture.side_table, furniture.coffee_table, furniture.dresser),
    ),
}
"""Kinds of rooms: what always stands there, and what may."""
KINDS = (*PLANS, "bedroom", "bedroom", "living", "studio")
"""The kinds to draw from: what is named again is drawn more often."""
EXTRAS: tuple[Maker, ...] = (
    objects.floor_lamp, objects.plant, objects.plant, furniture.stool, furniture.chair,
    furniture.side_table, furniture.bench, furniture.coat_rack, objects.bin_, objects.cartons,
)  # fmt: skip
"""What may stand in any room."""
FREE = (furniture.table, furniture.coffee_table, furniture.stool, objects.toys)
"""Pieces that stand away from walls."""
LOOSE = (
    *FREE, furniture.sofa, furniture.armchair, furniture.chair, furniture.bench, furniture.side_table, objects.bin_,
    furniture.coat_rack, objects.cartons, objects.floor_lamp, objects.plant,
)  # fmt: skip
"""Pieces that may stand away from walls, or askew to them."""


class Footprint(NamedTuple):
    """The upright box that a piece occupies: centre, half sizes, turn and heights."""

    x: float
    z: float
    half_x: float
    half_z: float
    turn: Turn
    low: float
    high: float

    def apart(self, other: "Footprint", gap: float = 0.0) -> bool:
        """Whether two footprints keep clear of each other (separating axes in the plane, intervals in height)."""
        if self.low >= other.high or other.low >= self.high:
            return True
        dx, dz = other.x - self.x, other.z - self.z
        for c, s in (self.turn, other.turn):
            for ax, az in ((c, -s), (s, c)):
                if abs(dx * ax + dz * az) > self.reach(ax, az) + other.reach(ax, az) + gap:
                    return True
        return False

    def reach(self, ax: float, az: float) -> float:
        """Half the length of the footprint's shadow on an axis."""
        c, s = self.turn
        return self.half_x * abs(c * ax - s * az) + self.half_z * abs(s * ax + c * az)


class Room:
    """A room being furnished."""

    def __init__(self, draw: Draw, style: Style) -> None:
        self.draw = draw
        self.style = style
        self.half: Vec = (draw.uniform(1.6, 2.7), draw.uniform(1.2, 1.5), draw.uniform(1.5, 2.4))
        self.content = Piece()
        self.taken: list[Footprint] = []
        self.openings: list[tuple[Vec, Vec]] = []
        self.panes: list[tuple[Vec, Vec, Vec, Vec]] = []
        self.targets: list[Vec] = []

    def put(self, piece: Piece, at: Vec, turn: Turn) -> None:
        """Add a piece without asking."""
        self.content.attach(piece, at, turn)

    def try_put(self, piece: Piece, at: Vec, turn: Turn, low: float = 0.0, gap: float = 0.04) -> bool:
        """Add a piece if its footprint is free and within the walls."""
        width, height, depth = piece.size
        print_ = Footprint(at[0], at[2], width / 2, depth / 2, turn, low, low + height)
        fits = print_.reach(1.0, 0.0) + abs(at[0]) <= self.half[0]
        fits = fits and print_.reach(0.0, 1.0) + abs(at[2]) <= self.half[2]
        if not fits or not all(print_.apart(other, gap) for other in self.taken):
            return False
        self.taken.append(print_)
        self.put(piece, at, turn)
        return True

    def wall_point(self, wall: int, along: float, away: float) -> Vec:
        """The point at a place along a wall, some distance into the room."""
        c, s = WALLS[wall]
        deep = self.half[2] if wall % 2 == 0 else self.half[0]
        return c * along + s * (away - deep), 0.0, c * (away - deep) - s * along

    def wall_length(self, wall: int) -> float:
        """Half the length of a wall."""
        return self.half[0] if wall % 2 == 0 else self.half[2]

    def against_wall(self, piece: Piece, loose: bool = False, tries: int = 14) -> bool:
        """Stand a piece with its back to a wall, sometimes in a corner; what is loose is sometimes askew."""
        draw = self.draw
        for _ in range(tries):
            wall = draw.integer(0, 3)
            free = self.wall_length(wall) - piece.size[0] / 2 - 0.03
            if free < 0.0:
                continue
            along = draw.pick((-free, free)) if draw.chance(0.3) else draw.uniform(-free, free)
            askew = loose and draw.chance(0.3) and piece.size[0] < 1.2
            turn, extra = _turned(WALLS[wall], draw.uniform(-0.12, 0.12)) if askew else WALLS[wall], 0.1 * askew
            at = self.wall_point(wall, along, piece.size[2] / 2 + 0.03 + extra)
            if self.try_put(piece, at, turn):
                self.targets.append((at[0], piece.size[1] * 0.5, at[2]))
                return True
        return False

    def standing_free(self, piece: Piece, tries: int = 14) -> bool:
        """Stand a piece somewhere in the room, turned anyhow or along the walls."""
        draw = self.draw
        for _ in range(tries):
            x, z = (draw.uniform(-0.75, 0.75) * self.half[0], draw.uniform(-0.75, 0.75) * self.half[2])
            turn = draw.pick(WALLS)
            if draw.chance(0.5):
                turn = _turned(turn, draw.uniform(-0.4, 0.4))
            if self.try_put(piece, (x, 0.0, z), turn):
                self.targets.append((x, piece.size[1] * 0.6, z))
                return True
        return False

    def on_wall(self, piece: Piece, low: float, high: float, middle: float) -> bool:
        """Hang a piece on a free stretch of wall, its own y = 0 at `middle`."""
        draw = self.draw
        for _ in range(8):
            wall = draw.integer(0, 3)
            free = self.wall_length(wall) - piece.size[0] / 2 - 0.1
            if free < 0.0:
                continue
            along = draw.uniform(-free, free)
            x, _, z = self.wall_point(wall, along, piece.size[2] / 2 + 0.001)
            print_ = Footprint(x, z, piece.size[0] / 2, piece.size[2] / 2, WALLS[wall], low, high)
            if all(print_.apart(other, 0.04) for other in self.taken):
                self.taken.append(print_)
                x, _, z = self.wall_point(wall, along, 0.0)
                self.put(piece, (x, middle, z), WALLS[wall])
                return True
        return False


def _turned(turn: Turn, t: float) -> Turn:
    c, s = rotation(t)
    return turn[0] * c - turn[1] * s, turn[1] * c + turn[0] * s


def build(index: int, style: str | None = None) -> Scene:
    """The scene of an image index.

    Args:
        index: Which room. 0 <= index < 2**64.
        style: A name of STYLES, or HELD_OUT; None draws one of STYLES. The style has a random stream of its own: rooms
            of one index in two styles have the same furniture in the same places.

    Returns:
        A pure function of both.

    Raises:
        ConfigError: There is no such style.
    """
    draw = Draw(index)
    room = Room(draw, Style(Draw(index, 1), style))
    _openings(room)
    _furnish(room)
    _hang(room)
    _skirting(room)
    lamp = _hang_lamp(room)
    parts = tuple(moved(part, (0.0, 0.0, 0.0), (1.0, 0.0), FIRST_INSTANCE) for part in room.content.parts)
    scene = Scene(
        half=room.half,
        shell=_shell(room),
        parts=parts,
        openings=tuple(room.openings),
        lights=_lights(room, lamp),
        ambient=_ambient(room),
        exposure=draw.uniform(*room.style.look.exposure),
        camera=Camera((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), 0.6),
    )
    return _with_camera(room, scene)


def _openings(room: Room) -> None:
    """Doors and windows, before any furniture."""
    draw = room.draw
    for _ in range(draw.integer(1, 3)):
        wall = draw.integer(0, 3)
        wide = min(draw.uniform(0.45, 1.1), room.wall_length(wall) - 0.5)
        low = 0.12 if draw.chance(0.12) else draw.uniform(0.75, 1.05)
        high = min(draw.uniform(1.95, 2.2), 2 * room.half[1] - 0.25)
        free = room.wall_length(wall) - wide - 0.3
        along = draw.uniform(-free, free) if free > 0 else 0.0
        x, _, z = room.wall_point(wall, along, 0.1)
        print_ = Footprint(x, z, wide + 0.29, 0.1, WALLS[wall], max(low - 0.1, 0.0), high + 0.2)
        if all(print_.apart(other) for other in room.taken):
            room.taken.append(print_)
            room.put(fixtures.window(draw, room.style, wide, low, high), room.wall_point(wall, along, 0.0), WALLS[wall])
            _cut(room, wall, along, wide, low, high)
            if draw.chance(0.6):
                _curtain(room, wall, along, wide, low, high)
    for _ in range(draw.integer(1, 2)):
        piece = fixtures.door(draw, room.style)
        room.on_wall(piece, 0.0, piece.size[1], 0.0)


def _cut(room: Room, wall: int, along: float, wide: float, low: float, high: float) -> None:
    """Open the wall for a window, and note its light."""
    (c, s), middle, half = WALLS[wall], (low + high) / 2, (high - low) / 2
    x, _, z = room.wall_point(wall, along, 0.0)
    across = abs(c) * wide + abs(s) * 0.05, abs(s) * wide + abs(c) * 0.05
    room.openings.append(((x - across[0], low, z - across[1]), (x + across[0], high, z + across[1])))
    x, _, z = room.wall_point(wall, along, 0.03 - fixtures.RECESS)
    room.panes.append(((x, middle, z), (c * wide, 0.0, -s * wide), (0.0, half, 0.0), (s, 0.0, c)))


def _curtain(room: Room, wall: int, along: float, wide: float, low: float, high: float) -> None:
    """Curtains, down to the floor or a little below the sill; nothing may stand where they hang."""
    bottom = 0.03 if room.draw.chance(0.6) else max(low - 0.25, 0.03)
    piece = fixtures.curtains(room.draw, room.style, wide, bottom, high)
    room.put(piece, room.wall_point(wall, along, 0.0), WALLS[wall])
    for side in (-1.0, 1.0):
        x, _, z = room.wall_point(wall, along + side * wide, 0.1)
        room.taken.append(Footprint(x, z, 0.3, 0.1, WALLS[wall], bottom, high + 0.2))


def _furnish(room: Room) -> None:
    """The furniture of one kind of room, then more while there is space."""
    draw, style = room.draw, room.style
    always, perhaps = PLANS[draw.pick(KINDS)]
    rest = [maker for maker in perhaps if draw.chance(0.65)]
    extras = [draw.pick(EXTRAS) for _ in range(draw.integer(2, 5))]
    for maker in (*always, *rest, *extras):
        piece = maker(draw, style)
        loose = maker in LOOSE
        if maker in FREE or (not room.against_wall(piece, loose) and loose):
            room.standing_free(piece)
    if draw.chance(0.6):
        mat = furniture.rug(draw, style)
        x, z = draw.uniform(-0.35, 0.35) * room.half[0], draw.uniform(-0.35, 0.35) * room.half[2]
        room.put(mat, (x, 0.0, z), _turned((1.0, 0.0), draw.uniform(-1.0, 1.0) if draw.chance(0.4) else 0.0))


def _hang(room: Room) -> None:
    """Pictures, shelves, a clock, a radiator on free stretches of wall."""
    draw, style = room.draw, room.style
    for _ in range(draw.integer(2, 5)):
        piece, middle = fixtures.picture(draw, style), draw.uniform(1.4, 1.75)
        room.on_wall(piece, middle - piece.size[1] / 2, middle + piece.size[1] / 2, middle)
    if draw.chance(0.5):
        room.on_wall(fixtures.wall_shelf(draw, style), 1.3, 1.7, 1.32)
    if draw.chance(0.2):
        room.on_wall(fixtures.mirror(draw, style), 1.2, 1.85, 1.5)
    if draw.chance(0.25):
        room.on_wall(fixtures.clock(draw, style), 1.7, 2.1, 1.9)
    if draw.chance(0.35):
        room.on_wall(fixtures.wall_television(draw, style), 1.0, 1.8, 1.0)
    if draw.chance(0.3):
        room.against_wall(furniture.radiator(draw, style), tries=6)


def _skirting(room: Room) -> None:
    """Boards along the foot of the walls, sometimes a moulding under the ceiling."""
    draw = room.draw
    material = room.style.woods[0] if draw.chance(0.5) else room.style.wall()._replace(pattern="plain")
    bands = [(0.0, draw.uniform(0.06, 0.12))] if draw.chance(0.8) else []
    if draw.chance(0.35):
        bands.append((2 * room.half[1] - draw.uniform(0.05, 0.1), 2 * room.half[1]))
    board = Piece().start("wall")
    for wall in range(4):
        for low, high in bands:
            strip = Piece(label=LABEL["wall"], item=0)
            long = room.wall_length(wall) - 0.016 * (wall % 2)
            strip.box((-long, long), (low, high), (0.0, 0.016), material, casts=False)
            board.parts += [moved(p, room.wall_point(wall, 0.0, 0.0), WALLS[wall], 0) for p in strip.parts]
    room.put(board, (0.0, 0.0, 0.0), (1.0, 0.0))


def _hang_lamp(room: Room) -> tuple[Vec, bool]:
    """A lamp on the ceiling; where its light comes from and whether it is on."""
    draw = room.draw
    lit = room.style.evening or not room.panes or draw.chance(0.5)
    piece = objects.ceiling_lamp(draw, room.style, lit)
    x, z = draw.uniform(-0.3, 0.3) * room.half[0], draw.uniform(-0.3, 0.3) * room.half[2]
    room.put(piece, (x, 2 * room.half[1], z), (1.0, 0.0))
    lowest = min(part.centre[1] - part.half[1] for part in piece.parts)
    return (x, 2 * room.half[1] + lowest - 0.05, z), lit


def _lights(room: Room, lamp: tuple[Vec, bool]) -> tuple[Light, ...]:
    """The ceiling lamp when it is on, and the largest windows by day: at most two lights."""
    draw, lights = room.draw, []
    at, lit = lamp
    blue = draw.uniform(*room.style.look.warmth)
    warm: RGB = (1.0, 0.55 + 0.45 * blue, blue)
    if lit:
        power = draw.uniform(3.0, 4.5)
        lights.append(Light(at, (0.16, 0.0, 0.0), (0.0, 0.0, 0.16), _times(warm, power), None))
    panes = sorted(room.panes, key=lambda pane: -math.sqrt(_square(pane[1]) * _square(pane[2])))
    red = draw.uniform(*room.style.look.daylight)
    cold: RGB = (red, 0.5 + 0.5 * red, 1.0)
    if not room.style.evening:
        for centre, edge_u, edge_v, facing in panes[: 2 - len(lights)]:
            area = 4 * math.sqrt(_square(edge_u) * _square(edge_v))
            lights.append(Light(centre, edge_u, edge_v, _times(cold, draw.uniform(3.0, 5.5) * area), facing))
    return tuple(lights)


def _ambient(room: Room) -> RGB:
    draw = room.draw
    day = not room.style.evening and bool(room.panes)
    tint: RGB = (0.93, 0.97, 1.0) if day else (1.0, 0.92, 0.8)
    return _times(tint, draw.uniform(0.38, 0.7))


def _square(vector: Vec) -> float:
    return vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]


def _times(colour: RGB, factor: float) -> RGB:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _shell(room: Room) -> tuple:  # type: ignore[type-arg]
    """Materials of the six faces; one wall may differ."""
    draw, style = room.draw, room.style
    common = style.wall()
    walls = [common] * 4
    if draw.chance(0.3):
        walls[draw.integer(0, 3)] = style.wall()
    elif draw.chance(0.2):
        walls[draw.integer(0, 3)] = common._replace(first=shade(common.first, 0.7), second=shade(common.second, 0.7))
    return walls[3], walls[1], style.floor(), style.ceiling(), walls[0], walls[2]


def _with_camera(room: Room, scene: Scene) -> Scene:
    """The best of a few free places to look from, judged on a coarse picture."""
    best, score = scene, -1e9
    for _ in range(7):
        trial = _place_camera(room, scene)
        worth = _interest(trial)
        if worth > score:
            best, score = trial, worth
    return best


def _place_camera(room: Room, scene: Scene) -> Scene:
    """A camera at eye height in free space, looking at some of the furniture, with a little roll."""
    draw = room.draw
    for attempt in range(60):
        x = draw.uniform(-0.92, 0.92) * (room.half[0] - 0.15)
        z = draw.uniform(-0.92, 0.92) * (room.half[2] - 0.15)
        y = draw.uniform(1.1, 1.75)
        eye = Footprint(x, z, 0.12, 0.12, (1.0, 0.0), y - 0.3, y + 0.2)
        if all(eye.apart(other, 0.2 if attempt < 30 else 0.05) for other in room.taken):
            break
    look = draw.pick(room.targets) if room.targets else (0.0, 0.8, 0.0)
    middle = draw.uniform(0.1, 0.6)
    target = look[0] * (1 - middle), max(look[1], 0.5) + draw.uniform(0.1, 0.95), look[2] * (1 - middle)
    return _aimed(scene, (x, y, z), target, draw.uniform(-0.03, 0.03), draw.uniform(0.6, 0.85))


def _aimed(scene: Scene, eye: Vec, target: Vec, roll: float, reach: float) -> Scene:
    """The scene seen from `eye` towards `target`."""
    dx, dy, dz = target[0] - eye[0], target[1] - eye[1], target[2] - eye[2]
    flat = max(math.sqrt(dx * dx + dz * dz), 1e-6)
    dy = min(max(dy, -0.55 * flat), 0.2 * flat)
    length = math.sqrt(flat * flat + dy * dy)
    fx, fy, fz = dx / length, dy / length, dz / length
    level = math.sqrt(fx * fx + fz * fz)
    right = (fz / level, 0.0, -fx / level)
    down = (fy * right[2], fz * right[0] - fx * right[2], -fy * right[0])
    down = (-down[0], -down[1], -down[2]) if down[1] > 0 else down
    c, s = rotation(roll)
    mixed = [(c * r + s * d, c * d - s * r) for r, d in zip(right, down, strict=True)]
    camera = Camera(
        eye,
        (mixed[0][0], mixed[1][0], mixed[2][0]),
        (mixed[0][1], mixed[1][1], mixed[2][1]),
        (fx, fy, fz),
        reach,
    )
    return replace(scene, camera=camera)


def _interest(scene: Scene) -> float:
    """How much there is to see in a 12 x 16 picture of the larger parts: classes, instances, nothing near by."""
    size = (12, 16)
    scene = replace(scene, parts=tuple(part for part in scene.parts if sorted(part.half)[1] > 0.13))
    rows, columns = np.divmod(np.arange(size[0] * size[1]), size[1])
    rays = camera_rays(scene.camera, columns.astype(np.float32) + 0.5, rows.astype(np.float32) + 0.5, size)
    hits = first_hits(scene, rays, size)
    seen, counts = np.unique(hits.part, return_counts=True)
    area: dict[int, int] = {}
    classes: dict[int, int] = {}
    for number, count in zip(seen.tolist(), counts.tolist(), strict=True):
        if number >= 0:
            part = scene.parts[number]
            area[part.instance] = area.get(part.instance, 0) + count
            classes[part.label] = classes.get(part.label, 0) + count
    visible = sum(1 for count in area.values() if count >= 2)
    kinds = sum(1 for count in classes.values() if count >= 2)
    largest = max(area.values(), default=0) / hits.part.size
    deep = float(np.sort(hits.distance)[hits.part.size // 2])
    near = int((hits.distance < 0.8).sum()) / hits.part.size
    furnished = sum(area.values()) / hits.part.size
    good = 1.0 * min(visible, 14) + 1.5 * kinds + 14.0 * min(furnished, 0.5) + 1.5 * min(deep, 4.0)
    close = 10.0 if float(hits.distance.min()) < 0.4 else 0.0
    return good - 20.0 * max(largest - 0.3, 0.0) - 25.0 * near - close
