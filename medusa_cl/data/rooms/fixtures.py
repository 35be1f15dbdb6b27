"""What belongs to the walls: doors, windows, curtains, pictures, shelves. Backs are at z = 0, y = 0 is the floor."""

from medusa_cl.data.rooms.draws import Draw, shade
from medusa_cl.data.rooms.furniture import television
from medusa_cl.data.rooms.objects import books_lying, trinket
from medusa_cl.data.rooms.scene import Material, Piece, moved
from medusa_cl.data.rooms.style import METAL, Style


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
    """A window of half width `wide` from `low` to `high`: frame, bars, pane, sill and perhaps curtains."""
    piece = Piece((2 * wide + 0.1, high, 0.2)).start("window")
    frame = style.woods[0] if draw.chance(0.5) else Material("plain", (0.92, 0.92, 0.9))
    piece.box((-wide, wide), (low, high), (0.0, 0.01), _view(draw, style), casts=False)
    bar = 0.05
    for x in (-wide - bar, wide):
        piece.box((x, x + bar), (low - bar, high + bar), (0.0, 0.06), frame, casts=False)
    for y in (low - bar, high):
        piece.box((-wide, wide), (y, y + bar), (0.0, 0.06), frame, casts=False)
    for k in range(1, draw.integer(1, 3)):
        x = -wide + 2 * wide * k / 2 if wide < 0.8 else -wide + 2 * wide * k / 3
        piece.box((x - 0.02, x + 0.02), (low, high), (0.0, 0.045), frame, casts=False)
    if draw.chance(0.4):
        y = low + (high - low) * draw.uniform(0.5, 0.75)
        piece.box((-wide, wide), (y - 0.018, y + 0.018), (0.0, 0.04), frame, casts=False)
    if low > 0.3:
        piece.box((-wide - 0.1, wide + 0.1), (low - bar - 0.03, low - bar), (0.0, 0.16), frame)
    if draw.chance(0.6):
        _curtains(draw, style, piece, wide, low, high)
    return piece


def _view(draw: Draw, style: Style) -> Material:
    """Day, dusk or night outside."""
    if style.evening:
        sky, haze = draw.colour((0.6, 0.72), (0.3, 0.6), (0.1, 0.25)), draw.colour((0.9, 1.08), (0.2, 0.5), (0.2, 0.4))
        return Material("outdoors", sky, haze, (0.05, 0.08, 0.06), seed=draw.seed(), glow=0.5)
    sky = draw.colour((0.53, 0.62), (0.15, 0.5), (0.75, 0.98))
    green = draw.colour((0.2, 0.36), (0.2, 0.5), (0.3, 0.5))
    return Material("outdoors", sky, (0.84, 0.88, 0.92), green, seed=draw.seed(), glow=1.5)


def _curtains(draw: Draw, style: Style, piece: Piece, wide: float, low: float, high: float) -> None:
    """Pleated curtains beside the window on a rod."""
    cloth = style.cloth(0.35)
    bottom = 0.03 if draw.chance(0.6) else max(low - 0.25, 0.03)
    folds, pitch = draw.integer(3, 6), draw.uniform(0.06, 0.085)
    for side in (-1.0, 1.0):
        for k in range(folds):
            x = side * (wide + 0.12 - k * pitch)
            piece.tube(x, (bottom, high + 0.12), 0.1, (pitch * 0.62, 0.035), cloth, casts=False)
    metal = style.metal()
    piece.rod((-wide - 0.25, wide + 0.25), high + 0.13, 0.1, 0.014, metal, casts=False)
    for x in (-wide - 0.26, wide + 0.26):
        piece.ball((x, high + 0.13, 0.1), (0.03, 0.03, 0.03), metal, casts=False)


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
    for k in range(draw.integer(2, 4)):
        small = books_lying(draw, style, 3) if draw.chance(0.3) else trinket(draw, style, 0.35)
        piece.attach(small, (half * (0.5 * k - 0.7), 0.03, 0.11))
    if draw.chance(0.7):
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
    piece.box((-0.006, 0.006), (0.0, radius * 0.7), (0.0, 0.04), dark, casts=False)
    piece.box((0.0, radius * 0.5), (-0.006, 0.006), (0.0, 0.04), dark, casts=False)
    return piece


def wall_television(draw: Draw, style: Style) -> Piece:
    """A television hung on the wall; y = 0 is its lower edge."""
    half = draw.uniform(0.45, 0.65)
    screen = television(draw, style, half, half * 1.15 + 0.06)
    piece = Piece((2 * half, half * 1.15 + 0.06, 0.08)).start("television")
    piece.parts = [moved(part, (0.0, 0.0, 0.035), (1.0, 0.0), 0) for part in screen.parts[2:]]
    return piece
