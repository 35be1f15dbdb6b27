"""Small things: pillows, lamps, plants, vases, books that lie about, what stands on a desk."""

from medusa_cl.data.rooms.draws import Draw, hsv, shade
from medusa_cl.data.rooms.scene import Material, Piece, moved, rotation
from medusa_cl.data.rooms.style import BLACK, METAL, Style


def pillow(draw: Draw, style: Style, lying: bool) -> Piece:
    """A pillow: flat on a bed, or leaning on a sofa's back."""
    piece = Piece().start("pillow")
    cloth = style.cloth(0.6)
    if lying:
        half = draw.uniform(0.26, 0.34), draw.uniform(0.07, 0.1), draw.uniform(0.18, 0.22)
        piece.ball((0.0, half[1] * 0.8, 0.0), half, cloth)
    else:
        size = draw.uniform(0.17, 0.23)
        piece.ball((0.0, size * 0.95, 0.0), (size, size, draw.uniform(0.08, 0.16)), cloth)
    return piece


def _shade(draw: Draw, style: Style, lit: bool) -> Material:
    base = draw.colour((0.06, 0.16), (0.05, 0.35), (0.8, 0.95))
    return Material("shade_cloth", base, shade(base, 0.8), seed=draw.seed(), glow=1.4 if lit else 0.0)


def table_lamp(draw: Draw, style: Style) -> Piece:
    """A lamp of 35 to 55 cm with a conical shade."""
    piece = Piece().start("lamp")
    high, radius = draw.uniform(0.2, 0.32), draw.uniform(0.1, 0.16)
    foot = style.glaze() if draw.chance(0.6) else style.metal()
    piece.tube(0.0, (0.0, 0.02), 0.0, 0.07, foot)
    if draw.chance(0.5):
        piece.ball((0.0, high * 0.45, 0.0), (0.06, high * 0.45, 0.06), foot)
    piece.tube(0.0, (0.0, high), 0.0, 0.012, foot)
    shell = _shade(draw, style, draw.chance(0.75 if style.evening else 0.3))
    piece.tube(0.0, (high, high + radius * 1.3), 0.0, radius, shell, taper=draw.uniform(-0.35, -0.1), casts=False)
    return piece


def floor_lamp(draw: Draw, style: Style) -> Piece:
    """A standing lamp."""
    high, radius = draw.uniform(1.35, 1.65), draw.uniform(0.16, 0.24)
    taper = draw.uniform(-0.4, 0.0)
    across = 2.0 * radius * (1.0 - taper)
    piece = Piece((across, high, across)).start("lamp")
    metal = style.metal()
    piece.tube(0.0, (0.0, 0.025), 0.0, 0.15, metal)
    piece.tube(0.0, (0.0, high - 0.2), 0.0, 0.014, metal)
    shell = _shade(draw, style, draw.chance(0.75 if style.evening else 0.3))
    piece.tube(0.0, (high - 0.28, high), 0.0, radius, shell, taper=taper, casts=False)
    return piece


def ceiling_lamp(draw: Draw, style: Style, lit: bool) -> Piece:
    """A pendant, a globe or a flat disc; y = 0 is the ceiling, so the lamp is at negative heights."""
    piece = Piece((0.5, 0.5, 0.5)).start("lamp")
    kind, glow = draw.integer(0, 2), 2.2 if lit else 0.0
    white = Material("plain", (0.95, 0.93, 0.86), seed=draw.seed(), glow=glow)
    if kind == 0:
        piece.tube(0.0, (-0.07, 0.0), 0.0, draw.uniform(0.18, 0.28), white, casts=False)
        return piece
    drop, radius = draw.uniform(0.25, 0.6), draw.uniform(0.12, 0.2)
    piece.tube(0.0, (-drop, 0.0), 0.0, 0.008, BLACK, casts=False)
    piece.tube(0.0, (-0.03, 0.0), 0.0, 0.05, METAL, casts=False)
    if kind == 1:
        piece.ball((0.0, -drop - radius * 0.8, 0.0), (radius, radius * 0.95, radius), white, casts=False)
    else:
        shell = _shade(draw, style, False)._replace(glow=0.8 * glow)
        piece.tube(0.0, (-drop - 0.2, -drop), 0.0, radius, shell, taper=-0.35, casts=False)
        piece.ball((0.0, -drop - 0.19, 0.0), (0.06, 0.05, 0.06), white, casts=False)
    return piece


def plant(draw: Draw, style: Style) -> Piece:
    """A pot with stems and clumps of leaves."""
    high = draw.uniform(0.5, 1.5)
    piece = Piece((0.5, high, 0.5)).start("plant")
    radius, tall = draw.uniform(0.12, 0.2), draw.uniform(0.2, 0.36)
    pot = Material("plain", draw.colour((0.0, 0.12), (0.1, 0.65), (0.4, 0.9)), seed=draw.seed(), gloss=0.2)
    piece.tube(0.0, (0.0, tall), 0.0, radius, pot, taper=draw.uniform(0.05, 0.3))
    piece.tube(0.0, (tall, tall + 0.01), 0.0, radius * 0.9, Material("carpet", (0.2, 0.13, 0.08), (0.12, 0.08, 0.05)))
    _foliage(draw, style, piece, tall, high, 0.26)
    return piece


def _foliage(draw: Draw, style: Style, piece: Piece, low: float, high: float, spread: float) -> None:
    """Leaves: ellipsoids turned every way around a stem, either blades or round clumps."""
    green = style.foliage()
    stem = Material("plain", (0.3, 0.26, 0.14))
    piece.tube(0.0, (low, low + (high - low) * 0.8), 0.0, 0.012, stem)
    blades = draw.chance(0.5)
    for _ in range(draw.integer(6, 10)):
        reach, y = spread * draw.uniform(0.2, 1.0), low + (high - low) * draw.uniform(0.3, 0.95)
        turn = rotation(draw.uniform(-1.0, 1.0))
        side = draw.pick((-1.0, 1.0))
        half = (reach * 0.6, 0.05, 0.035) if blades else (0.09, draw.uniform(0.06, 0.12), 0.08)
        half = (half[0], (high - low) * 0.22, half[2]) if blades and draw.chance(0.6) else half
        leaf = Piece(label=piece.label, item=piece.item)
        tone = green._replace(first=shade(green.first, draw.uniform(0.8, 1.2)))
        leaf.ball((0.0, y, 0.0), half, tone)
        c, s = turn
        centre = (side * c * reach * 0.6, y, -side * s * reach * 0.6)
        piece.parts.append(leaf.parts[0]._replace(centre=centre, turn=turn))


def trinket(draw: Draw, style: Style, limit: float = 1.0) -> Piece:
    """A thing to stand on furniture: a vase, bowl, cup, bottle, ball, box, little plant or books."""
    makers = (_vase, _bowl, _cup, _bottle, _ball, _carton, _small_plant, _pile, _photo)
    piece = draw.pick(makers)(draw, style)
    top = max(part.centre[1] + part.half[1] for part in piece.parts)
    return piece if top < limit else _cup(draw, style)


def _vase(draw: Draw, style: Style) -> Piece:
    piece, glaze = Piece().start("object"), style.glaze()
    radius, high = draw.uniform(0.05, 0.09), draw.uniform(0.1, 0.16)
    piece.ball((0.0, high * 0.8, 0.0), (radius, high * 0.8, radius), glaze)
    piece.tube(0.0, (high * 1.2, high * 1.9), 0.0, radius * 0.45, glaze, taper=0.3)
    if draw.chance(0.5):
        piece.start("plant")
        petal = draw.colour(saturation=(0.4, 0.8), value=(0.6, 0.95))
        flower = Material("leaves", petal, (0.3, 0.5, 0.2), seed=draw.seed())
        for _ in range(4):
            at = draw.uniform(-0.09, 0.09), high * draw.uniform(2.2, 3.0), draw.uniform(-0.09, 0.09)
            piece.ball(at, (0.05, 0.045, 0.05), flower)
    return piece


def _bowl(draw: Draw, style: Style) -> Piece:
    piece, radius = Piece().start("object"), draw.uniform(0.08, 0.13)
    piece.tube(0.0, (0.0, 0.07), 0.0, radius * 0.8, style.glaze(), taper=0.3)
    fruit = Material("plain", draw.colour((0.0, 0.3), (0.6, 0.9), (0.6, 0.9)), gloss=0.4)
    for k in range(3):
        x, z = (0.06 * ((k * 2) % 3 - 1), 0.04 * (k - 1))
        piece.ball((x, 0.085, z), (0.042, 0.042, 0.042), fruit)
    return piece


def _cup(draw: Draw, style: Style) -> Piece:
    piece = Piece().start("object")
    high = draw.uniform(0.08, 0.14)
    piece.tube(0.0, (0.0, high), 0.0, draw.uniform(0.04, 0.06), style.glaze(), taper=draw.uniform(-0.05, 0.2))
    return piece


def _bottle(draw: Draw, style: Style) -> Piece:
    piece, glaze = Piece().start("object"), style.glaze()
    high = draw.uniform(0.15, 0.22)
    piece.tube(0.0, (0.0, high), 0.0, 0.038, glaze)
    piece.tube(0.0, (high, high + 0.04), 0.0, 0.026, glaze, taper=-0.45)
    piece.tube(0.0, (high, high + 0.09), 0.0, 0.013, glaze)
    return piece


def _ball(draw: Draw, style: Style) -> Piece:
    piece, radius = Piece().start("object"), draw.uniform(0.05, 0.1)
    material = style.glaze()._replace(pattern=draw.pick(("plain", "stripes", "dots")), second=style.pale(), scale=0.6)
    piece.ball((0.0, radius, 0.0), (radius, radius, radius), material)
    return piece


def _carton(draw: Draw, style: Style) -> Piece:
    piece = Piece().start("object")
    hx, hz, high = draw.uniform(0.06, 0.13), draw.uniform(0.05, 0.09), draw.uniform(0.06, 0.16)
    piece.box((-hx, hx), (0.0, high), (-hz, hz), style.cloth(0.4))
    piece.box((-hx - 0.005, hx + 0.005), (high - 0.03, high + 0.003), (-hz - 0.005, hz + 0.005), style.glaze())
    return piece


def _small_plant(draw: Draw, style: Style) -> Piece:
    piece = Piece().start("plant")
    piece.tube(0.0, (0.0, 0.1), 0.0, 0.06, style.glaze(), taper=0.25)
    _foliage(draw, style, piece, 0.1, draw.uniform(0.22, 0.34), 0.1)
    return piece


def _photo(draw: Draw, style: Style) -> Piece:
    piece = Piece().start("picture")
    hx, high = draw.uniform(0.06, 0.1), draw.uniform(0.14, 0.22)
    piece.box((-hx, hx), (0.0, high), (-0.012, 0.012), style.wood())
    piece.box((-hx + 0.015, hx - 0.015), (0.015, high - 0.015), (0.0, 0.015), style.picture(), casts=False)
    return piece


def _pile(draw: Draw, style: Style) -> Piece:
    return books_lying(draw, style, draw.integer(2, 5))


def bin_(draw: Draw, style: Style) -> Piece:
    """A waste-paper bin or a basket."""
    radius, high = draw.uniform(0.11, 0.16), draw.uniform(0.26, 0.4)
    piece = Piece((2.4 * radius, high, 2.4 * radius)).start("object")
    shell = style.glaze() if draw.chance(0.5) else style.cloth(0.4)
    piece.tube(0.0, (0.0, high), 0.0, radius, shell, taper=draw.uniform(0.0, 0.2))
    piece.tube(0.0, (high, high + 0.004), 0.0, radius * 0.97, BLACK, casts=False)
    return piece


def cartons(draw: Draw, style: Style) -> Piece:
    """One to three boxes, stacked."""
    piece, y = Piece((0.56, 0.6, 0.48)).start("object"), 0.0
    for _ in range(draw.integer(1, 3)):
        hx, hz, high = draw.uniform(0.17, 0.24), draw.uniform(0.13, 0.18), draw.uniform(0.16, 0.28)
        card = Material("paper", hsv(draw.uniform(0.07, 0.1), 0.4, draw.uniform(0.5, 0.75)), seed=draw.seed())
        one = Piece(label=piece.label, item=piece.item)
        one.box((-hx, hx), (y, y + high), (-hz, hz), card if draw.chance(0.6) else style.wood())
        one.box((-0.03, 0.03), (y + 0.004, y + high + 0.002), (-hz - 0.002, hz + 0.002), style.cloth(0.0), casts=False)
        turn = rotation(draw.uniform(-0.12, 0.12))
        piece.parts += [moved(part, (0.0, 0.0, 0.0), turn, 0) for part in one.parts]
        y += high
    piece.size = (0.56, y, 0.48)
    return piece


def toys(draw: Draw, style: Style) -> Piece:
    """Building bricks, a ball and a teddy on the floor."""
    piece = Piece((0.8, 0.4, 0.7)).start("object")
    for _ in range(draw.integer(4, 8)):
        side, x, z = draw.uniform(0.03, 0.06), draw.uniform(-0.32, 0.32), draw.uniform(0.02, 0.28)
        brick = Piece(label=piece.label, item=piece.item)
        brick.box((-side * draw.pick((1.0, 2.0)), side), (0.0, 2 * side), (-side, side), _bright(draw))
        turn = rotation(draw.uniform(-1.0, 1.0))
        piece.parts += [moved(part, (x, 0.0, z), turn, 0) for part in brick.parts]
    piece.start("object")
    radius = draw.uniform(0.08, 0.13)
    ball = _bright(draw)._replace(pattern=draw.pick(("stripes", "dots", "plain")), second=style.pale(), scale=0.8)
    piece.ball((0.25, radius, -0.2), (radius, radius, radius), ball)
    _teddy(draw, piece.start("object"))
    return piece


def _bright(draw: Draw) -> Material:
    return Material("plain", draw.colour(saturation=(0.6, 0.9), value=(0.6, 0.95)), seed=draw.seed(), gloss=0.4)


def _teddy(draw: Draw, piece: Piece) -> None:
    """A sitting bear of six ellipsoids."""
    size, base = draw.uniform(0.8, 1.3), hsv(draw.uniform(0.04, 0.12), draw.uniform(0.3, 0.6), draw.uniform(0.4, 0.8))
    fur = Material("carpet", base, shade(base, 0.7), seed=draw.seed())
    limbs = [((0.0, 0.11, 0.0), (0.09, 0.11, 0.08)), ((0.0, 0.27, 0.01), (0.075, 0.07, 0.07))]
    for side in (-1.0, 1.0):
        limbs.append(((side * 0.055, 0.34, 0.0), (0.028, 0.028, 0.018)))
        limbs.append(((side * 0.08, 0.035, 0.1), (0.035, 0.035, 0.075)))
        limbs.append(((side * 0.1, 0.15, 0.03), (0.03, 0.07, 0.03)))
    for at, half in limbs:
        place = (at[0] * size - 0.18, at[1] * size, at[2] * size - 0.2)
        piece.ball(place, (half[0] * size, half[1] * size, half[2] * size), fur)


def books_lying(draw: Draw, style: Style, count: int) -> Piece:
    """A pile of books, each turned a little."""
    piece, y = Piece().start("books"), 0.0
    for _ in range(count):
        thick = draw.uniform(0.02, 0.045)
        book = Piece(label=piece.label, item=piece.item)
        hx, hz = draw.uniform(0.09, 0.13), draw.uniform(0.07, 0.09)
        cover = Material("plain", draw.colour(saturation=(0.2, 0.7)), seed=draw.seed(), gloss=0.2)
        book.box((-hx, hx), (y, y + thick), (-hz, hz), cover)
        turn = rotation(draw.uniform(-0.2, 0.2))
        piece.parts += [part._replace(turn=turn) for part in book.parts]
        y += thick
    return piece


def desk_things(draw: Draw, style: Style, piece: Piece, hx: float, hz: float, height: float) -> None:
    """A monitor and keyboard, a lamp or books, and a thing on a desk."""
    side = draw.pick((-1.0, 1.0))
    if draw.chance(0.65):
        screen = Piece().start("television")
        wide, tall = draw.uniform(0.22, 0.32), draw.uniform(0.38, 0.48)
        screen.box((-0.1, 0.1), (0.0, 0.012), (-0.08, 0.08), BLACK)
        screen.box((-0.025, 0.025), (0.0, 0.16), (-0.03, -0.01), BLACK)
        screen.box((-wide, wide), (0.1, tall), (-0.02, 0.015), BLACK)
        lit = draw.chance(0.5)
        dark = Material("screen", (0.05, 0.06, 0.08), (0.25, 0.3, 0.36), gloss=0.8)
        face = style.picture()._replace(pattern="screen", glow=0.8) if lit else dark
        screen.box((-wide + 0.012, wide - 0.012), (0.115, tall - 0.012), (0.0, 0.018), face, casts=False)
        piece.attach(screen, (-0.12 * side, height, -hz + 0.14), rotation(draw.uniform(-0.1, 0.1)))
        keys = Piece().start("object")
        keys.box((-0.2, 0.2), (0.0, 0.02), (-0.07, 0.07), BLACK)
        piece.attach(keys, (0.05 * side, height, hz - 0.14))
    lamp = table_lamp(draw, style) if draw.chance(0.6) else books_lying(draw, style, 3)
    piece.attach(lamp, (side * (hx - 0.16), height, -hz + 0.16))
    piece.attach(trinket(draw, style), (-side * (hx - 0.14), height, hz - 0.14))
