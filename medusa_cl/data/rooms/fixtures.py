"""What belongs to the walls: doors, windows, curtains, pictures, shelves. Backs are at z = 0, y = 0 is the floor."""

from medusa_cl.data.rooms.draws import Draw, blend, shade
from medusa_cl.data.rooms.furniture import television
from medusa_cl.data.rooms.objects import books_lying, trinket
from medusa_cl.data.rooms.scene import Material, Piece, moved
from medusa_cl.data.rooms.style import BLACK, METAL, WHITE, Range, Style

RECESS = 0.14
"""How far a window's pane stands behind the face of the wall, in metres."""


def door(draw: Draw, style: Style) -> Piece:
    """A door with its frame, panels and a handle."""
    half, high = draw.uniform(0.4, 0.48), draw.uniform(1.98, 2.1)
    piece = Piece((2 * half + 0.16, high, 0.5)).start("door")
    wood, frame = style.wood(), style.wood()
    piece.box((-half, half), (0.005, high), (0.0, 0.03), wood, casts=False)
    for x in (-half - 0.08, half):
        piece.box((x, x + 0.08), (0.0, high + 0.08), (0.0, 0.05), frame, casts=False)
    piece.box((-half, half), (high, high + 0.08), (0.0, 0.05), frame, casts=False)
    inner = wood._replace(first=shade(wood.first, 0.85), second=shade(wood.second, 0.85))
    columns, rows = draw.integer(1, 2), draw.integer(1, 3)
    for column in range(columns):
        for row in range(rows):
            left = -half + 0.1 + column * (2 * half - 0.1) / columns
            low = 0.15 + row * (high - 0.2) / rows
            right, top = left + (2 * half - 0.1) / columns - 0.1, low + (high - 0.2) / rows - 0.1
            piece.box((left, right), (low, top), (0.0, 0.036), inner, casts=False)
    side = draw.pick((-1.0, 1.0))
    piece.ball((side * (half - 0.07), 1.02, 0.07), (0.03, 0.03, 0.03), style.metal(), casts=False)
    piece.ball((side * (half - 0.07), 1.02, 0.03), (0.035, 0.08, 0.012), METAL, casts=False)
    return piece


def window(draw: Draw, style: Style, wide: float, low: float, high: float) -> Piece:
    """A window of half width `wide` from `low` to `high`, set RECESS deep into the wall, perhaps with a blind.

    The wall must be open there (Scene.openings): reveals, sill and pane close the hole.
    """
    piece = Piece((2 * wide + 0.16, high, 0.2)).start("window")
    frame = style.woods[0] if draw.chance(0.5) else style.frame()
    piece.box((-wide - 0.4, wide + 0.4), (low - 0.4, high + 0.4), (-RECESS - 0.02, -RECESS), _view(style), casts=False)
    _reveals(piece, wide, low, high, frame)
    case = draw.uniform(0.05, 0.09)
    for x in (-wide - case, wide):
        piece.box((x, x + case), (low, high), (0.0, 0.022), frame, casts=False)
    piece.box((-wide - case, wide + case), (high, high + case), (0.0, 0.026), frame, casts=False)
    sill = 0.07 if low > 0.3 else 0.012
    piece.box((-wide - 0.1, wide + 0.1), (low - 0.04, low), (-0.002, sill), frame)
    piece.box((-wide, wide), (low - 0.03, low - 0.002), (-RECESS, 0.0), frame, casts=False)
    _sash(draw, style, piece, wide, low, high, frame)
    if draw.chance(0.25):
        bottom = high - (high - low) * draw.uniform(0.15, 0.6)
        piece.box((-wide + 0.01, wide - 0.01), (bottom, high), (-0.045, -0.04), style.cloth(0.4), casts=False)
        piece.rod((-wide + 0.01, wide - 0.01), bottom, -0.0425, 0.012, frame, casts=False)
    return piece


def _reveals(piece: Piece, wide: float, low: float, high: float, frame: Material) -> None:
    """The sides and the top of the hole in the wall, a hair behind the wall's face."""
    white = Material("plain", blend(frame.first, (0.93, 0.92, 0.9), 0.7), seed=frame.seed)
    for x in (-wide - 0.3, wide):
        piece.box((x, x + 0.3), (low - 0.3, high + 0.3), (-RECESS, -0.002), white, casts=False)
    piece.box((-wide, wide), (high, high + 0.3), (-RECESS, -0.003), white, casts=False)
    piece.box((-wide, wide), (low - 0.3, low - 0.03), (-RECESS, -0.003), white, casts=False)


def _sash(draw: Draw, style: Style, piece: Piece, wide: float, low: float, high: float, frame: Material) -> None:
    """The frame that holds the glass, with a mullion between its wings and thinner bars between the panes."""
    rim, back = 0.045, -RECESS
    for x in (-wide, wide - rim):
        piece.box((x, x + rim), (low, high), (back, back + 0.05), frame, casts=False)
    for y in (low, high - rim):
        piece.box((-wide + rim, wide - rim), (y, y + rim), (back, back + 0.046), frame, casts=False)
    columns, rows = (least + draw.integer(0, 1) for least in style.look.lights)
    columns += wide > 0.75
    for k in range(1, columns):
        x, half = -wide + 2 * wide * k / columns, 0.03 if 2 * k == columns else 0.014
        piece.box((x - half, x + half), (low + rim, high - rim), (back, back + 0.03 + 0.3 * half), frame, casts=False)
    for k in range(1, rows):
        y = low + (high - low) * k / rows
        piece.box((-wide + rim, wide - rim), (y - 0.012, y + 0.012), (back, back + 0.028), frame, casts=False)


def _view(style: Style) -> Material:
    """Day or night outside."""
    draw, town = style.draw, style.draw.uniform(*style.look.town)
    if style.evening:
        sky, haze = draw.colour((0.6, 0.72), (0.3, 0.6), (0.1, 0.25)), draw.colour((0.9, 1.08), (0.2, 0.5), (0.2, 0.4))
        return Material("outdoors", sky, haze, (0.05, 0.08, 0.06), town, draw.seed(), gloss=0.6, glow=0.5)
    sky = draw.colour((0.53, 0.62), (0.15, 0.5), (0.75, 0.98))
    green = draw.colour((0.2, 0.36), (0.2, 0.5), (0.3, 0.5))
    return Material("outdoors", sky, (0.84, 0.88, 0.92), green, town, draw.seed(), glow=1.3)


def curtains(draw: Draw, style: Style, wide: float, bottom: float, high: float) -> Piece:
    """Pleated curtains before the sides of a window, hung from a rod clear of the wall; folds stand fore and aft."""
    piece = Piece((2 * wide + 0.5, high, 0.2)).start("window")
    cloth = style.cloth(0.35)._replace(turned=False)
    folds, pitch = draw.integer(4, 7), draw.uniform(0.055, 0.075)
    for side in (-1.0, 1.0):
        for k in range(folds):
            x, z = side * (wide + 0.2 - k * pitch), 0.105 + 0.018 * (k % 2)
            hem = bottom + 0.006 * (k % 3)
            radius = (pitch * draw.uniform(0.6, 0.75), draw.uniform(0.026, 0.036))
            piece.tube(x, (hem, high + 0.1 - 0.002 * k), z, radius, cloth, casts=False)
    metal = style.metal()
    piece.rod((-wide - 0.27, wide + 0.27), high + 0.115, 0.114, 0.013, metal, casts=False)
    for x in (-wide - 0.27, wide + 0.27):
        piece.ball((x, high + 0.115, 0.114), (0.03, 0.03, 0.03), metal, casts=False)
        piece.box((x - 0.008, x + 0.008), (high + 0.107, high + 0.123), (0.0, 0.114), metal, casts=False)
    return piece


def picture(draw: Draw, style: Style) -> Piece:
    """A framed picture; y = 0 is its middle."""
    half, tall = draw.uniform(0.15, 0.45), draw.uniform(0.15, 0.38)
    piece = Piece((2 * half, 2 * tall, 0.06)).start("picture")
    rim = draw.uniform(0.015, 0.05)
    piece.box((-half, half), (-tall, tall), (0.0, 0.025), style.wood(), casts=False)
    inner = rim
    if draw.chance(0.4):
        inner = rim + 0.05
        mount = Material("plain", style.pale())
        piece.box((rim - half, half - rim), (rim - tall, tall - rim), (0.0, 0.028), mount, casts=False)
    piece.box((inner - half, half - inner), (inner - tall, tall - inner), (0.0, 0.031), style.picture(), casts=False)
    return piece


def wall_shelf(draw: Draw, style: Style) -> Piece:
    """A board on the wall with things on it; y = 0 is the board's underside."""
    half = draw.uniform(0.3, 0.55)
    piece = Piece((2 * half, 0.35, 0.24)).start("shelf")
    piece.box((-half, half), (0.0, 0.03), (0.0, 0.22), style.wood())
    books = draw.chance(0.6)
    left, right = -0.95 * half, (0.25 if books else 0.95) * half
    count = int((right - left) / 0.27)
    for k in range(count):
        small = books_lying(draw, style, 3) if draw.chance(0.3) else trinket(draw, style, 0.35)
        piece.attach(small, (left + (right - left) * (k + 0.5) / count, 0.03, 0.11))
    if books:
        row = Piece().start("books")
        row.box((half * 0.35, half * 0.95), (0.03, draw.uniform(0.2, 0.3)), (0.01, 0.17), style.books())
        piece.attach(row, (0.0, 0.0, 0.0))
    return piece


def clock(draw: Draw, style: Style) -> Piece:
    """A wall clock; y = 0 is its middle."""
    radius = draw.uniform(0.12, 0.2)
    piece = Piece((2 * radius, 2 * radius, 0.06)).start("object")
    face = Material("plain", style.pale())
    for deep, size, material in ((0.03, radius, style.glaze()), (0.034, radius * 0.88, face)):
        piece.ball((0.0, 0.0, 0.0), (size, size, deep), material, casts=False)
    dark = Material("plain", (0.1, 0.1, 0.1))
    piece.box((-0.006, 0.006), (0.0, radius * 0.7), (0.0, 0.042), dark, casts=False)
    piece.box((0.0, radius * 0.5), (-0.006, 0.006), (0.0, 0.04), dark, casts=False)
    return piece


def kitchen(draw: Draw, style: Style) -> Piece:
    """A kitchen counter with doors, a sink, a hob and things on it, often with cupboards above."""
    units = draw.integer(3, 4)
    wide, deep, high = units * draw.uniform(0.5, 0.58), 0.6, draw.uniform(0.86, 0.94)
    hx, hz = wide / 2, deep / 2
    upper = draw.chance(0.65)
    piece = Piece((wide + 0.02, 2.1 if upper else high, deep + 0.06)).start("cabinet")
    body, front, knob = style.wood(), style.wood(), style.metal()
    piece.box((-hx + 0.005, hx - 0.005), (0.0, 0.1), (-hz, hz - 0.05), BLACK)
    piece.box((-hx, hx), (0.1, high - 0.04), (-hz, hz), body)
    _fronts(piece, hx, units, (0.12, high - 0.06), hz, front, knob, high - 0.12)
    piece.box((-hx - 0.01, hx + 0.01), (high - 0.04, high), (-hz, hz + 0.03), style.stone())
    if upper:
        piece.start("cabinet")
        piece.box((-hx, hx), (1.4, 2.1), (-hz, -hz + 0.32), body)
        _fronts(piece, hx, units, (1.41, 2.09), -hz + 0.32, front, knob, 1.48)
    side = draw.pick((-1.0, 1.0))
    _sink(piece.start("object"), side * (hx - 0.3), high)
    _hob(piece.start("object"), -side * (hx - 0.34), high)
    if draw.chance(0.6):
        pan = -side * (hx - 0.34) + 0.13, high + 0.012
        piece.start("object").tube(pan[0], (pan[1], pan[1] + draw.uniform(0.06, 0.16)), 0.0, 0.1, style.glaze())
    for x in (-0.12, 0.12):
        if draw.chance(0.6):
            piece.attach(trinket(draw, style, 0.4), (x, high, -hz + 0.2))
    return piece


def _fronts(
    piece: Piece, hx: float, units: int, span: Range, z: float, front: Material, knob: Material, grip: float
) -> None:
    """Doors side by side with a rod for a handle each."""
    for k in range(units):
        left, right = -hx + 2 * hx * k / units + 0.006, -hx + 2 * hx * (k + 1) / units - 0.006
        piece.box((left, right), span, (z, z + 0.02), front, casts=False)
        middle = (left + right) / 2
        piece.rod((middle - 0.08, middle + 0.08), grip, z + 0.033, 0.008, knob, casts=False)


def _sink(piece: Piece, x: float, high: float) -> None:
    """A steel basin, seen as its rim and dark inside, with a tap."""
    piece.box((x - 0.22, x + 0.22), (high, high + 0.008), (-0.18, 0.22), METAL, casts=False)
    inside = METAL._replace(first=(0.3, 0.3, 0.32))
    piece.box((x - 0.19, x + 0.19), (high, high + 0.011), (-0.13, 0.19), inside, casts=False)
    piece.tube(x, (high, high + 0.26), -0.19, 0.014, METAL)
    piece.box((x - 0.011, x + 0.011), (high + 0.238, high + 0.258), (-0.19, -0.02), METAL)


def _hob(piece: Piece, x: float, high: float) -> None:
    """A plate of dark glass with four rings."""
    piece.box((x - 0.28, x + 0.28), (high, high + 0.01), (-0.24, 0.24), BLACK._replace(gloss=0.8), casts=False)
    for k, radius in enumerate((0.1, 0.07, 0.07, 0.1)):
        at = x + (0.13 if k % 2 == 0 else -0.13), 0.11 if k < 2 else -0.11
        ring = Material("rings", (0.2, 0.2, 0.21), (0.3, 0.3, 0.31), scale=0.12)
        piece.tube(at[0], (high, high + 0.013), at[1], radius, ring, casts=False)


def fridge(draw: Draw, style: Style) -> Piece:
    """A refrigerator with one door or two, and bars for handles."""
    half, high = draw.uniform(0.28, 0.34), draw.pick((0.0, 0.85)) + draw.uniform(0.9, 1.05)
    piece = Piece((2 * half, high, 0.68)).start("cabinet")
    shell = style.glaze() if draw.chance(0.3) else draw.pick((WHITE, METAL))._replace(gloss=0.5)
    piece.box((-half + 0.003, half - 0.003), (0.03, high - 0.003), (-0.32, 0.26), shell)
    piece.box((-half + 0.02, half - 0.02), (0.0, 0.03), (-0.3, 0.24), BLACK)
    split = high * 0.65 if high > 1.2 else high
    for low, top in ((0.05, split - 0.006), (split + 0.006, high)):
        if top - low > 0.1:
            piece.box((-half, half), (low, top), (0.265, 0.31), shell)
            middle = min(max((low + top) / 2, 0.6), 1.35)
            piece.tube(half - 0.05, (middle - 0.16, middle + 0.16), 0.335, 0.012, METAL, casts=False)
    return piece


def bathtub(draw: Draw, style: Style) -> Piece:
    """A bathtub with water in it and a tap at its end."""
    hx, hz, high, rim = draw.uniform(0.75, 0.85), draw.uniform(0.34, 0.4), draw.uniform(0.52, 0.6), 0.06
    shell = WHITE._replace(gloss=0.7) if draw.chance(0.8) else style.glaze()
    piece = Piece((2 * hx, high, 2 * hz)).start("object")
    for x in (-hx, hx - rim):
        piece.box((x, x + rim), (0.0, high), (-hz + rim, hz - rim), shell)
    for z in (-hz, hz - rim):
        piece.box((-hx, hx), (0.0, high), (z, z + rim), shell)
    water = Material("plain", (0.62, 0.78, 0.8), gloss=0.9) if draw.chance(0.5) else shell
    piece.box((-hx + rim, hx - rim), (0.0, high - 0.17), (-hz + rim, hz - rim), water)
    piece.tube(hx - 0.03, (high, high + 0.16), 0.0, 0.015, METAL)
    piece.box((hx - 0.16, hx - 0.03), (high + 0.13, high + 0.15), (-0.012, 0.012), METAL)
    return piece


def washbasin(draw: Draw, style: Style) -> Piece:
    """A basin on a pedestal or a cupboard, with a tap and a mirror above it."""
    hx, high = draw.uniform(0.26, 0.36), draw.uniform(0.82, 0.88)
    piece = Piece((2 * hx, 1.85, 0.46)).start("object")
    china = WHITE._replace(gloss=0.7)
    piece.box((-hx, hx), (high - 0.14, high), (-0.23, 0.2), china)
    piece.ball((0.0, high - 0.002, 0.02), (hx * 0.75, 0.008, 0.14), china._replace(first=(0.66, 0.67, 0.68)))
    piece.tube(0.0, (high, high + 0.13), -0.17, 0.014, METAL)
    piece.box((-0.011, 0.011), (high + 0.105, high + 0.125), (-0.17, -0.04), METAL)
    if draw.chance(0.5):
        piece.tube(0.0, (0.0, high - 0.14), -0.08, 0.09, china, taper=-0.15)
    else:
        piece.start("cabinet")
        piece.box((-hx + 0.02, hx - 0.02), (0.0, high - 0.14), (-0.22, 0.16), style.wood())
        _fronts(piece, hx - 0.03, 2, (0.08, high - 0.17), 0.16, style.wood(), style.metal(), high - 0.24)
    piece.attach(mirror(draw, style), (0.0, 1.5, -0.23 - 0.015))
    return piece


def mirror(draw: Draw, style: Style) -> Piece:
    """A framed glass, plain and glossy; y = 0 is its middle."""
    half, tall = draw.uniform(0.2, 0.28), draw.uniform(0.26, 0.34)
    piece = Piece((2 * half, 2 * tall, 0.04)).start("picture")
    glass = Material("screen", (0.55, 0.6, 0.62), (0.82, 0.86, 0.88), gloss=1.0)
    piece.box((-half, half), (-tall, tall), (0.015, 0.035), style.wood(), casts=False)
    piece.box((0.025 - half, half - 0.025), (0.025 - tall, tall - 0.025), (0.02, 0.039), glass, casts=False)
    return piece


def fireplace(draw: Draw, style: Style) -> Piece:
    """A chimneypiece with a hearth, logs, a fire in the evening and things on the mantelpiece."""
    hx, high, hole = draw.uniform(0.55, 0.72), draw.uniform(1.0, 1.2), draw.uniform(0.32, 0.4)
    stone = style.stone() if draw.chance(0.5) else style.wall()
    piece = Piece((2 * hx + 0.1, high, 0.62)).start("object")
    for x in (-hx, hole):
        piece.box((x, x + hx - hole), (0.0, high - 0.07), (-0.31, 0.05), stone)
    piece.box((-hole, hole), (0.68, high - 0.07), (-0.31, 0.046), stone)
    soot = Material("carpet", (0.1, 0.09, 0.08), (0.05, 0.05, 0.05), seed=draw.seed())
    piece.box((-hole, hole), (0.0, 0.68), (-0.31, -0.27), soot)
    piece.box((-hx - 0.05, hx + 0.05), (high - 0.07, high), (-0.31, 0.1), style.wood())
    piece.box((-hx - 0.02, hx + 0.02), (0.0, 0.035), (0.05, 0.31), style.stone())
    bark = Material("wood", (0.36, 0.24, 0.15), (0.2, 0.13, 0.08), seed=draw.seed())
    for x, y, z in ((0.0, 0.06, -0.16), (0.0, 0.06, -0.04), (0.03, 0.15, -0.1)):
        piece.rod((x - 0.24, x + 0.2), y, z, 0.055, bark)
    for k in range(3 if style.evening else 0):
        flame = Material("plain", (0.95, 0.4 + 0.08 * k, 0.08), glow=1.2)
        piece.ball(
            (0.1 * k - 0.1, 0.24 + 0.06 * (k % 2), -0.1), (0.032, 0.11 + 0.05 * (k % 2), 0.03), flame, casts=False
        )
    for k in range(draw.integer(1, 3)):
        piece.attach(trinket(draw, style, 0.4), (hx * (0.6 * k - 0.6), high, -0.12))
    return piece


def wall_television(draw: Draw, style: Style) -> Piece:
    """A television hung on the wall; y = 0 is its lower edge."""
    half = draw.uniform(0.45, 0.65)
    screen = television(draw, style, half, half * 1.15 + 0.06)
    piece = Piece((2 * half, half * 1.15 + 0.06, 0.08)).start("television")
    piece.parts = [moved(part, (0.0, 0.0, 0.035), (1.0, 0.0), 0) for part in screen.parts[2:]]
    return piece
