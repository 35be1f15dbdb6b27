"""Furniture: each function draws one piece, its underside at y = 0 and its front towards +z."""

from medusa_cl.data.rooms.draws import Draw, shade
from medusa_cl.data.rooms.objects import books_lying, desk_things, pillow, table_lamp, trinket
from medusa_cl.data.rooms.scene import Material, Piece, Vec, moved, rotation
from medusa_cl.data.rooms.style import BLACK, WHITE, Style


def _legs(piece: Piece, half_x: float, half_z: float, height: float, width: float, material: Material) -> None:
    """Four square or round legs with their outer corners at (half_x, half_z)."""
    turned = width < 0.0
    w = abs(width)
    for x in (-half_x + w / 2, half_x - w / 2):
        for z in (-half_z + w / 2, half_z - w / 2):
            if turned:
                piece.tube(x, (0.0, height), z, w / 2, material, taper=0.2)
            else:
                piece.box((x - w / 2, x + w / 2), (0.0, height), (z - w / 2, z + w / 2), material)


def bed(draw: Draw, style: Style) -> Piece:
    """A bed with a frame, a headboard, a mattress, a blanket and pillows at its back (-z)."""
    width = draw.pick((0.95, 1.4, 1.6, 1.8)) + draw.uniform(-0.05, 0.05)
    depth, base = draw.uniform(1.95, 2.15), draw.uniform(0.22, 0.34)
    top = base + draw.uniform(0.16, 0.24)
    head = draw.uniform(0.75, 1.15)
    hx, hz = width / 2, depth / 2
    piece = Piece((width + 0.06, head, depth + 0.14)).start("bed")
    wood = style.wood()
    piece.box((-hx, hx), (0.07, base), (-hz, hz), wood)
    _legs(piece, hx, hz, 0.07, 0.08, wood)
    board = wood if draw.chance(0.6) else style.cloth(0.2)
    piece.box((-hx - 0.03, hx + 0.03), (0.0, head), (-hz - 0.06, -hz), board)
    if draw.chance(0.4):
        piece.box((-hx - 0.02, hx + 0.02), (0.0, base + 0.2), (hz, hz + 0.05), wood)
    sheet = Material("fabric", style.pale(), style.pale(), seed=draw.seed())
    piece.box((-hx + 0.02, hx - 0.02), (base, top), (-hz, hz - 0.02), sheet)
    start = -hz + draw.uniform(0.5, 0.75)
    blanket = style.cloth(0.6)
    piece.box((-hx - 0.012, hx + 0.012), (base - 0.06, top + 0.045), (start, hz + 0.005), blanket)
    if draw.chance(0.5):  # folded back
        fold = style.cloth(0.3)
        piece.box((-hx - 0.02, hx + 0.02), (base + 0.02, top + 0.07), (start - 0.02, start + 0.28), fold)
    count = 1 if width < 1.1 else 2
    for k in range(count):
        x = (k + 0.5 - count / 2) * width / count
        piece.attach(pillow(draw, style, lying=True), (x, top, -hz + 0.3), rotation(draw.uniform(-0.06, 0.06)))
    return piece


def nightstand(draw: Draw, style: Style) -> Piece:
    """A small chest with a lamp or things on it."""
    piece = chest(draw, style, width=draw.uniform(0.4, 0.55), height=draw.uniform(0.42, 0.6), depth=0.4)
    top = (draw.uniform(-0.06, 0.06), piece.size[1], draw.uniform(-0.05, 0.02))
    piece.attach(table_lamp(draw, style) if draw.chance(0.7) else trinket(draw, style), top)
    return piece


def chest(
    draw: Draw, style: Style, width: float | None = None, height: float | None = None, depth: float | None = None
) -> Piece:
    """A chest of drawers."""
    width = width or draw.uniform(0.7, 1.3)
    height = height or draw.uniform(0.7, 1.05)
    depth = depth or draw.uniform(0.4, 0.5)
    hx, hz = width / 2, depth / 2
    piece = Piece((width, height, depth + 0.04)).start("cabinet")
    body, front, knob = style.wood(), style.wood(), style.metal()
    piece.box((-hx, hx), (0.06, height - 0.03), (-hz, hz), body)
    piece.box((-hx + 0.04, hx - 0.04), (0.0, 0.06), (-hz + 0.03, hz - 0.04), BLACK)
    piece.box((-hx - 0.015, hx + 0.015), (height - 0.03, height), (-hz, hz + 0.025), body)
    rows, columns = max(round(height / 0.24), 2), 2 if width > 0.85 else 1
    for row in range(rows):
        low = 0.08 + (height - 0.13) * row / rows
        high = 0.08 + (height - 0.13) * (row + 1) / rows - 0.02
        for column in range(columns):
            left = -hx + 0.02 + (width - 0.02) * column / columns
            right = left + (width - 0.02) / columns - 0.02
            piece.box((left, right), (low, high), (hz, hz + 0.02), front, casts=False)
            middle, y = (left + right) / 2, (low + high) / 2
            piece.rod((middle - 0.06, middle + 0.06), y, hz + 0.035, 0.011, knob, casts=False)
    return piece


def dresser(draw: Draw, style: Style) -> Piece:
    """A chest of drawers with things on top."""
    piece = chest(draw, style)
    _set_out(draw, style, piece, piece.size[0] * 0.4, 0.1, piece.size[1], draw.integer(1, 3))
    return piece


def _set_out(draw: Draw, style: Style, piece: Piece, half_x: float, half_z: float, height: float, count: int) -> None:
    """Stand things side by side on a top, as many of them as there is room for."""
    count = max(min(count, int(half_x * 2 / 0.27)), 1)
    for k in range(count):
        x = half_x * ((2 * k + 1) / count - 1.0 + draw.uniform(-0.3, 0.3) / count)
        at = (x, height, draw.uniform(-half_z, half_z))
        piece.attach(trinket(draw, style), at, rotation(draw.uniform(-0.6, 0.6)))


def wardrobe(draw: Draw, style: Style) -> Piece:
    """A tall cupboard with doors."""
    doors = draw.integer(2, 4)
    width, height, depth = doors * draw.uniform(0.42, 0.55), draw.uniform(1.75, 2.2), draw.uniform(0.5, 0.62)
    hx, hz = width / 2, depth / 2
    piece = Piece((width, height, depth + 0.04)).start("cabinet")
    body, front, knob = style.wood(), style.wood(), style.metal()
    panelled = draw.chance(0.5)
    piece.box((-hx, hx), (0.0, height - 0.003), (-hz, hz), body)
    piece.box((-hx - 0.025, hx + 0.025), (height - 0.05, height), (-hz + 0.003, hz + 0.045), body)
    for k in range(doors):
        left, right = -hx + 0.012 + k * width / doors, -hx + (k + 1) * width / doors - 0.012
        piece.box((left, right), (0.1, height - 0.08), (hz, hz + 0.022), front, casts=False)
        if panelled:
            for low, high in ((0.22, 0.95), (1.07, height - 0.2)):
                inner = front._replace(first=shade(front.first, 0.86), second=shade(front.second, 0.86))
                piece.box((left + 0.08, right - 0.08), (low, high), (hz, hz + 0.03), inner, casts=False)
        grip = right - 0.04 if k % 2 == 0 else left + 0.04
        piece.tube(grip, (0.95, 1.15), hz + 0.04, 0.011, knob, casts=False)
    return piece


def sofa(draw: Draw, style: Style, width: float | None = None) -> Piece:
    """A sofa with arms, seat and back cushions, feet and pillows."""
    width = width or draw.uniform(1.6, 2.3)
    depth, seat = draw.uniform(0.82, 0.98), draw.uniform(0.4, 0.46)
    back, arm, side = draw.uniform(0.75, 0.95), draw.uniform(0.55, 0.68), draw.uniform(0.12, 0.24)
    hx, hz = width / 2, depth / 2
    piece = Piece((width, back, depth)).start("sofa")
    cloth = style.leather() if draw.chance(0.2) else style.cloth(0.2)
    dark = cloth._replace(first=shade(cloth.first, 0.9))
    piece.box((-hx + 0.006, hx - 0.006), (0.106, seat - 0.14), (-hz + 0.006, hz - 0.02), dark)
    piece.box((-hx + 0.003, hx - 0.003), (0.103, back - 0.03), (-hz + 0.003, -hz + 0.2), dark)
    _arms(draw, piece, hx, hz, arm, side, cloth)
    _legs(piece, hx - 0.05, hz - 0.05, 0.11, 0.05, style.wood())
    inner, count = hx - side, 1 if width < 1.2 else draw.integer(2, 3)
    for k in range(count):
        left, right = -inner + 2 * inner * k / count + 0.006, -inner + 2 * inner * (k + 1) / count - 0.006
        piece.box((left, right), (seat - 0.14, seat), (-hz + 0.2, hz), cloth)
        piece.box((left, right), (seat, back), (-hz + 0.12, -hz + 0.33), cloth)
    for _ in range(draw.integer(0 if width < 1.2 else 1, 1 if width < 1.2 else 4)):
        x = draw.uniform(-inner + 0.2, inner - 0.2) if inner > 0.3 else 0.0
        piece.attach(pillow(draw, style, lying=False), (x, seat, -hz + 0.45), rotation(draw.uniform(-0.2, 0.2)))
    return piece


def _arms(draw: Draw, piece: Piece, hx: float, hz: float, arm: float, side: float, cloth: Material) -> None:
    """Square arms, or arms with a rolled top."""
    rolled = draw.chance(0.35)
    for left, right in ((-hx, -hx + side), (hx - side, hx)):
        piece.box((left, right), (0.1, arm), (-hz, hz - 0.01), cloth)
        if rolled:
            middle = (left + right) / 2
            roll = Piece(label=piece.label, item=0)
            roll.rod((-hz, hz), 0.0, 0.0, side * 0.62, cloth)
            turned = roll.parts[0]._replace(centre=(middle, arm, 0.005), turn=(0.0, 1.0), instance=piece.item)
            piece.parts.append(turned)


def armchair(draw: Draw, style: Style) -> Piece:
    """A sofa for one."""
    return sofa(draw, style, draw.uniform(0.8, 0.98))


def chair(draw: Draw, style: Style, wood: Material | None = None) -> Piece:
    """A chair with legs, a seat and a back of slats, bars or one panel."""
    wood = wood or style.wood()
    half, seat, top = draw.uniform(0.19, 0.23), draw.uniform(0.43, 0.48), draw.uniform(0.8, 1.05)
    kind, leg = draw.integer(0, 2), draw.uniform(0.035, 0.05)
    piece = Piece((2 * half, top, 2 * half + 0.05)).start("chair")
    _legs(piece, half - 0.004, half - 0.004, seat, leg, wood)
    padded = draw.chance(0.4)
    piece.box((-half, half), (seat - 0.03, seat + 0.005), (-half, half + 0.02), wood)
    if padded:
        piece.box((-half + 0.02, half - 0.02), (seat, seat + 0.045), (-half + 0.03, half), style.cloth(0.3))
    for x in (-half + 0.004, half - leg - 0.004):
        piece.box((x, x + leg), (seat, top), (-half + 0.004, -half + leg), wood)
    low, high = (-half + 0.006, -half + leg - 0.008), (-half + leg, half - leg)
    if kind == 0:
        piece.box(high, (seat + 0.16, top - 0.01), low, wood)
    elif kind == 1:
        for k in range(3):
            y = seat + 0.1 + (top - seat - 0.1) * (k + 0.4) / 3
            piece.box(high, (y, y + 0.07), low, wood)
    else:
        piece.box(high, (top - 0.07, top - 0.005), low, wood)
        for k in range(3):
            x = (2 * half - 2 * leg) * (k + 0.5) / 3 - half + leg
            piece.box((x - 0.014, x + 0.014), (seat, top - 0.07), low, wood)
    return piece


def office_chair(draw: Draw, style: Style) -> Piece:
    """A swivel chair: a star foot, a column, a padded seat and back."""
    cloth = style.cloth(0.1) if draw.chance(0.5) else BLACK
    seat = draw.uniform(0.44, 0.52)
    piece = Piece((0.56, 1.0, 0.56)).start("chair")
    piece.tube(0.0, (0.06, seat - 0.06), 0.0, 0.03, BLACK)
    for k, turn in enumerate(((1.0, 0.0), rotation(0.4142), (0.0, 1.0), rotation(-0.4142))):
        bar = Piece().start("chair")
        bar.box((-0.28, 0.28), (0.03 + 0.003 * k, 0.06 + 0.003 * k), (-0.02, 0.02), BLACK)
        piece.parts.append(bar.parts[0]._replace(turn=turn))
    piece.box((-0.23, 0.23), (seat - 0.06, seat + 0.02), (-0.22, 0.24), cloth)
    piece.box((-0.03, 0.03), (seat - 0.04, seat + 0.2), (-0.27, -0.24), BLACK)
    piece.ball((0.0, seat + 0.36, -0.24), (0.23, 0.27, 0.06), cloth)
    return piece


def stool(draw: Draw, style: Style) -> Piece:
    """A round stool or an upholstered pouffe."""
    piece = Piece((0.4, 0.46, 0.4)).start("chair")
    if draw.chance(0.5):
        piece.tube(0.0, (0.0, 0.4), 0.0, 0.22, style.cloth(0.5), taper=draw.uniform(-0.08, 0.08))
    else:
        wood = style.wood()
        _legs(piece, 0.16, 0.16, 0.44, -0.04, wood)
        piece.tube(0.0, (0.44, 0.48), 0.0, 0.19, wood)
    return piece


def table(draw: Draw, style: Style) -> Piece:
    """A dining table, square or round, with chairs around it and things on it."""
    height = draw.uniform(0.71, 0.78)
    wood = style.wood()
    chairs = wood if draw.chance(0.5) else style.wood()
    piece = Piece().start("table")
    if draw.chance(0.3):
        radius = draw.uniform(0.45, 0.65)
        piece.tube(0.0, (height - 0.035, height), 0.0, radius, wood)
        piece.tube(0.0, (0.03, height - 0.03), 0.0, 0.05, wood)
        piece.tube(0.0, (0.0, 0.04), 0.0, radius * 0.38, wood, taper=-0.2)
        hx = hz = radius
    else:
        hx, hz = draw.uniform(0.5, 0.95), draw.uniform(0.38, 0.48)
        top = _top(draw, style, wood)
        piece.box((-hx, hx), (height - 0.035, height), (-hz, hz), top)
        piece.box((-hx + 0.08, hx - 0.08), (height - 0.11, height - 0.03), (-hz + 0.05, hz - 0.05), wood)
        _legs(piece, hx - 0.03, hz - 0.03, height - 0.03, draw.uniform(0.05, 0.09) * draw.pick((1.0, -1.0)), wood)
    _set_out(draw, style, piece, hx * 0.7, hz * 0.5, height, draw.integer(1, 4))
    _seat(draw, style, piece, hx, hz, chairs)
    piece.size = (2 * hx + 0.75, height + 0.2, 2 * hz + 0.8)
    return piece


def _top(draw: Draw, style: Style, wood: Material) -> Material:
    if draw.chance(0.75):
        return wood
    return Material("marble", style.pale(), shade(style.pale(), 0.6), seed=draw.seed(), gloss=0.5)


def _seat(draw: Draw, style: Style, piece: Piece, hx: float, hz: float, wood: Material) -> None:
    """Chairs on the sides of a table, each pushed in or out and turned a little."""
    places: list[tuple[Vec, tuple[float, float]]] = [
        ((draw.uniform(-0.3, 0.3) * hx, 0.0, hz + draw.uniform(-0.1, 0.14)), (-1.0, 0.0)),
        ((draw.uniform(-0.3, 0.3) * hx, 0.0, -hz - draw.uniform(-0.1, 0.14)), (1.0, 0.0)),
        ((hx + draw.uniform(-0.1, 0.12), 0.0, 0.0), (0.0, -1.0)),
        ((-hx - draw.uniform(-0.1, 0.12), 0.0, 0.0), (0.0, 1.0)),
    ]
    first = draw.integer(0, 3)
    for k in range(draw.integer(2, 4)):
        at, turn = places[(first + k) % 4]
        c, s = rotation(draw.uniform(-0.15, 0.15))
        piece.attach(chair(draw, style, wood), at, (turn[0] * c - turn[1] * s, turn[1] * c + turn[0] * s))


def coffee_table(draw: Draw, style: Style) -> Piece:
    """A low table with things on it."""
    height, hx, hz = draw.uniform(0.36, 0.48), draw.uniform(0.35, 0.6), draw.uniform(0.25, 0.36)
    wood = style.wood()
    piece = Piece((2 * hx, height, 2 * hz)).start("table")
    if draw.chance(0.3):
        hx = hz
        piece.size = (2 * hx, height, 2 * hz)
        piece.tube(0.0, (height - 0.04, height), 0.0, hz, _top(draw, style, wood))
        _legs(piece, hz * 0.7, hz * 0.7, height - 0.03, -0.045, style.wood())
    else:
        piece.box((-hx, hx), (height - 0.04, height), (-hz, hz), _top(draw, style, wood))
        _legs(piece, hx - 0.004, hz - 0.004, height - 0.03, 0.05, wood)
        if draw.chance(0.5):
            piece.box((-hx + 0.03, hx - 0.03), (0.12, 0.14), (-hz + 0.03, hz - 0.03), wood)
    _set_out(draw, style, piece, hx * 0.6, hz * 0.4, height, draw.integer(1, 3))
    return piece


def desk(draw: Draw, style: Style) -> Piece:
    """A desk against a wall, with drawers, a monitor or a lamp, and a chair."""
    height, hx, hz = draw.uniform(0.71, 0.77), draw.uniform(0.5, 0.8), draw.uniform(0.28, 0.36)
    wood = style.wood()
    piece = Piece((2 * hx, height, 2 * hz + 0.5)).start("table")
    piece.box((-hx, hx), (height - 0.035, height), (-hz, hz), wood)
    _legs(piece, hx - 0.004, hz - 0.004, height - 0.03, 0.05, wood)
    if draw.chance(0.6):
        piece.start("cabinet")
        piece.box((hx - 0.42, hx - 0.06), (0.06, height - 0.04), (-hz + 0.02, hz - 0.03), wood)
        for k in range(3):
            y = 0.08 + k * (height - 0.13) / 3
            front = (hx - 0.41, hx - 0.07), (y, y + (height - 0.13) / 3 - 0.015), (hz - 0.03, hz - 0.015)
            piece.box(*front, style.woods[0], casts=False)
    desk_things(draw, style, piece, hx, hz, height)
    seat = office_chair(draw, style) if draw.chance(0.5) else chair(draw, style)
    c, s = rotation(draw.uniform(-0.3, 0.3))
    piece.attach(seat, (draw.uniform(-0.2, 0.1), 0.0, hz + draw.uniform(0.1, 0.35)), (-c, s))
    # The frame's middle is that of the whole footprint, so that the desk stands at the wall.
    piece.parts = [moved(part, (0.0, 0.0, -0.25), (1.0, 0.0), 0) for part in piece.parts]
    return piece


def bookshelf(draw: Draw, style: Style) -> Piece:
    """A tall or low bookcase with runs of books and a few things."""
    width, depth = draw.uniform(0.7, 1.2), draw.uniform(0.26, 0.34)
    rows = draw.integer(2, 6)
    gap = draw.uniform(0.3, 0.37)
    height = rows * gap + 0.1
    hx, hz = width / 2, depth / 2
    piece = Piece((width, height, depth)).start("shelf")
    wood = style.wood()
    for x in (-hx, hx - 0.025):
        piece.box((x, x + 0.025), (0.0, height), (-hz, hz), wood)
    back = wood._replace(first=shade(wood.first, 0.8), second=shade(wood.second, 0.8))
    piece.box((-hx + 0.02, hx - 0.02), (0.03, height - 0.003), (-hz + 0.002, -hz + 0.014), back)
    for row in range(rows + 1):
        y = 0.05 + row * gap
        piece.box((-hx + 0.02, hx - 0.02), (y, y + 0.025), (-hz + 0.004, hz - 0.005), wood)
    for row in range(rows):
        _fill(draw, style, piece, hx - 0.04, hz, 0.075 + row * gap, gap - 0.04)
    return piece


def _fill(draw: Draw, style: Style, piece: Piece, half_x: float, half_z: float, y: float, room: float) -> None:
    """Runs of books of different heights along one shelf, with gaps and things between them."""
    holder = Piece().start("books")
    x = -half_x + draw.uniform(0.0, 0.1)
    while x < half_x - 0.08:
        kind = draw.uniform()
        if kind < 0.72:
            long = min(draw.uniform(0.08, 0.34), half_x - x)
            high, deep = room * draw.uniform(0.6, 0.94), draw.uniform(0.0, 0.07)
            holder.box((x, x + long), (y, y + high), (-half_z + 0.015, half_z - 0.02 - deep), style.books())
            x += long + (draw.uniform(0.0, 0.15) if draw.chance(0.3) else 0.002)
        elif kind < 0.9:
            small = books_lying(draw, style, 2) if draw.chance(0.3) else trinket(draw, style, limit=room)
            if half_x - x > 0.28:
                piece.attach(small, (x + 0.14, y, 0.02))
            x += 0.28
        else:
            x += draw.uniform(0.08, 0.2)
    if holder.parts:
        piece.attach(holder, (0.0, 0.0, 0.0))


def tv_stand(draw: Draw, style: Style) -> Piece:
    """A low cabinet with a television on it."""
    width, height = draw.uniform(1.1, 1.7), draw.uniform(0.38, 0.55)
    piece = chest(draw, style, width, height, 0.42)
    half, tall = draw.uniform(0.42, min(0.62, width / 2)), 0.0
    tall = half * 1.14
    piece.attach(television(draw, style, half, tall), (0.0, height, -0.02))
    if draw.chance(0.5):
        piece.attach(trinket(draw, style), (draw.pick((-1.0, 1.0)) * (width / 2 - 0.1), height, 0.1))
    piece.size = (width, height + tall, 0.46)
    return piece


def television(draw: Draw, style: Style, half: float, tall: float) -> Piece:
    """A flat screen on a foot, on or off."""
    piece = Piece((2 * half, tall, 0.2)).start("television")
    piece.box((-0.2, 0.2), (0.0, 0.015), (-0.1, 0.1), BLACK)
    piece.box((-0.04, 0.04), (0.01, 0.08), (-0.026, 0.0), BLACK)
    piece.box((-half, half), (0.06, tall), (-0.03, 0.02), BLACK)
    if draw.chance(0.35):
        face = style.picture()._replace(pattern="screen", glow=0.8)
    else:
        face = Material("screen", (0.05, 0.05, 0.06), (0.3, 0.33, 0.38), gloss=0.8)
    piece.box((-half + 0.02, half - 0.02), (0.085, tall - 0.02), (0.0, 0.023), face, casts=False)
    return piece


def rug(draw: Draw, style: Style) -> Piece:
    """A rug, square or round."""
    if draw.chance(0.3):
        radius = draw.uniform(0.7, 1.2)
        material = style.rug()
        material = material._replace(pattern="rings" if "rings" in style.look.rugs else material.pattern)
        piece = Piece((2 * radius, 0.012, 2 * radius)).start("rug")
        piece.tube(0.0, (0.0, 0.012), 0.0, radius, material, casts=False)
        return piece
    hx, hz = draw.uniform(0.8, 1.4), draw.uniform(0.6, 1.0)
    piece = Piece((2 * hx, 0.012, 2 * hz)).start("rug")
    material = style.rug()
    material = material._replace(pattern="stripes") if material.pattern == "rings" else material
    piece.box((-hx, hx), (0.0, 0.012), (-hz, hz), material, casts=False)
    return piece


def bunk_bed(draw: Draw, style: Style) -> Piece:
    """Two beds above each other with posts, rails and a ladder at the front."""
    width, depth, high = draw.uniform(1.9, 2.05), draw.uniform(0.85, 0.95), draw.uniform(1.5, 1.65)
    hx, hz, wood = width / 2, depth / 2, style.wood()
    piece = Piece((width, high, depth + 0.1)).start("bed")
    _legs(piece, hx, hz, high, 0.07, wood)
    for base in (0.25, high - 0.5):
        piece.start("bed")
        piece.box((-hx + 0.005, hx - 0.005), (base, base + 0.13), (-hz + 0.005, hz - 0.005), wood)
        sheet = Material("fabric", style.pale(), style.pale(), seed=draw.seed())
        piece.box((-hx + 0.07, hx - 0.07), (base + 0.05, base + 0.2), (-hz + 0.03, hz - 0.03), sheet)
        left = -hx + draw.uniform(0.5, 0.7)
        piece.box((left, hx - 0.072), (base + 0.06, base + 0.235), (-hz + 0.025, hz - 0.025), style.cloth(0.7))
        piece.attach(pillow(draw, style, lying=True), (-hx + 0.35, base + 0.2, 0.0), (0.0, 1.0))
    piece.start("bed")
    for z in (-hz + 0.015, hz - 0.045):
        piece.box((-hx + 0.07, hx - 0.45), (high - 0.12, high - 0.05), (z, z + 0.03), wood)
    for x in (hx - 0.42, hx - 0.12):
        piece.box((x, x + 0.04), (0.0, high - 0.15), (hz, hz + 0.03), wood)
    for k in range(5):
        piece.rod((hx - 0.4, hx - 0.1), 0.25 + 0.24 * k, hz + 0.016, 0.014, wood)
    return piece


def cot(draw: Draw, style: Style) -> Piece:
    """A child's bed with bars."""
    hx, hz, high, wood = draw.uniform(0.58, 0.68), draw.uniform(0.3, 0.36), draw.uniform(0.8, 0.95), style.wood()
    piece = Piece((2 * hx, high, 2 * hz)).start("bed")
    _legs(piece, hx, hz, high, 0.05, wood)
    piece.box((-hx + 0.01, hx - 0.01), (0.3, 0.36), (-hz + 0.01, hz - 0.01), wood)
    sheet = Material("fabric", style.pale(), style.pale(), seed=draw.seed())
    piece.box((-hx + 0.05, hx - 0.05), (0.36, 0.46), (-hz + 0.04, hz - 0.04), sheet)
    piece.box((-hx + 0.4, hx - 0.052), (0.37, 0.485), (-hz + 0.035, hz - 0.035), style.cloth(0.8))
    for x in (-hx + 0.008, hx - 0.033):
        piece.box((x, x + 0.025), (0.36, high - 0.04), (-hz + 0.05, hz - 0.05), wood)
    for z in (-hz + 0.025, hz - 0.025):
        piece.rod((-hx + 0.03, hx - 0.03), high - 0.06, z, 0.022, wood)
        for k in range(8):
            x = (hx - 0.06) * ((2 * k + 1) / 8 - 1.0)
            piece.tube(x, (0.36, high - 0.06), z, 0.011, wood)
    piece.attach(pillow(draw, style, lying=True), (-hx + 0.26, 0.46, 0.0), (0.0, 1.0))
    return piece


def bench(draw: Draw, style: Style) -> Piece:
    """A bench with a plank or a padded seat."""
    hx, hz, high = draw.uniform(0.4, 0.75), draw.uniform(0.16, 0.21), draw.uniform(0.42, 0.47)
    wood = style.wood()
    piece = Piece((2 * hx, high + 0.05, 2 * hz)).start("chair")
    piece.box((-hx, hx), (high - 0.04, high), (-hz, hz), wood)
    if draw.chance(0.5):
        _legs(piece, hx - 0.02, hz - 0.01, high - 0.03, 0.05, wood)
    else:
        for x in (-hx + 0.06, hx - 0.1):
            piece.box((x, x + 0.04), (0.0, high - 0.03), (-hz + 0.02, hz - 0.02), wood)
        piece.box((-hx + 0.1, hx - 0.1), (0.12, 0.17), (-0.02, 0.02), wood)
    if draw.chance(0.5):
        piece.box((-hx + 0.02, hx - 0.02), (high, high + 0.05), (-hz + 0.015, hz - 0.015), style.cloth(0.5))
    return piece


def side_table(draw: Draw, style: Style) -> Piece:
    """A small table with a lamp or a thing on it."""
    half, high, wood = draw.uniform(0.18, 0.26), draw.uniform(0.45, 0.62), style.wood()
    piece = Piece((2 * half, high, 2 * half)).start("table")
    if draw.chance(0.5):
        piece.tube(0.0, (high - 0.03, high), 0.0, half, _top(draw, style, wood))
        piece.tube(0.0, (0.02, high - 0.02), 0.0, 0.025, style.metal())
        piece.tube(0.0, (0.0, 0.025), 0.0, half * 0.65, style.metal(), taper=-0.1)
    else:
        piece.box((-half, half), (high - 0.03, high), (-half, half), wood)
        _legs(piece, half - 0.01, half - 0.01, high - 0.02, 0.035, wood)
        piece.box((-half + 0.02, half - 0.02), (0.15, 0.17), (-half + 0.02, half - 0.02), wood)
    thing = table_lamp(draw, style) if draw.chance(0.5) else trinket(draw, style)
    piece.attach(thing, (0.0, high, 0.0), rotation(draw.uniform(-0.5, 0.5)))
    return piece


def piano(draw: Draw, style: Style) -> Piece:
    """An upright piano with its keys, a bench before it and things on top."""
    wide, high, deep = draw.uniform(1.4, 1.5), draw.uniform(1.08, 1.25), 0.34
    hx, wood = wide / 2, style.wood() if draw.chance(0.6) else BLACK._replace(gloss=0.6)
    piece = Piece((wide, high, 1.1)).start("object")
    back = -0.55
    piece.box((-hx, hx), (0.0, high - 0.03), (back, back + deep), wood)
    piece.box((-hx - 0.02, hx + 0.02), (high - 0.03, high), (back, back + deep + 0.03), wood)
    for x in (-hx + 0.002, hx - 0.062):
        piece.box((x, x + 0.06), (0.0, 0.76), (back + deep, back + deep + 0.27), wood)
    piece.box((-hx + 0.062, hx - 0.062), (0.58, 0.66), (back + deep, back + deep + 0.26), wood)
    piece.box((-hx + 0.07, hx - 0.07), (0.66, 0.69), (back + deep, back + deep + 0.24), WHITE._replace(gloss=0.4))
    count = 14
    for k in range(count):
        if k % 7 not in (2, 6):
            x = (hx - 0.1) * ((2 * k + 2) / count - 1.0)
            piece.box((x - 0.022, x + 0.022), (0.69, 0.705), (back + deep, back + deep + 0.14), BLACK, casts=False)
    sheet = Material("spines", (0.9, 0.9, 0.86), (0.85, 0.85, 0.82), (0.2, 0.2, 0.2), 0.4, draw.seed())
    piece.box((-0.2, 0.2), (0.8, 1.02), (back + deep, back + deep + 0.02), sheet, casts=False)
    piece.attach(stool(draw, style), (draw.uniform(-0.1, 0.1), 0.0, 0.3))
    for side in (-1.0, 1.0):
        if draw.chance(0.6):
            piece.attach(trinket(draw, style), (side * hx * 0.6, high, back + deep / 2))
    return piece


def coat_rack(draw: Draw, style: Style) -> Piece:
    """A pole on a foot with pegs, and a few coats and a bag on them."""
    high = draw.uniform(1.65, 1.85)
    pole = style.wood() if draw.chance(0.6) else style.metal()
    piece = Piece((0.5, high, 0.5)).start("object")
    piece.tube(0.0, (0.0, 0.03), 0.0, 0.2, pole, taper=-0.15)
    piece.tube(0.0, (0.0, high), 0.0, 0.022, pole)
    piece.ball((0.0, high, 0.0), (0.035, 0.035, 0.035), pole)
    for k, turn in enumerate(((1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 1.0))):
        peg = Piece(label=piece.label, item=piece.item)
        peg.rod((0.0, 0.15), high - 0.12 - 0.02 * k, 0.0, 0.012, pole)
        if draw.chance(0.6):
            hem, collar = high - 0.2 - draw.uniform(0.6, 1.0), high - 0.1 - 0.02 * k
            peg.tube(0.14, (hem, collar), 0.0, (0.075, 0.17), style.cloth(0.2), taper=-0.25)
        piece.parts += [moved(part, (0.0, 0.0, 0.0), turn, 0) for part in peg.parts]
    return piece


def radiator(draw: Draw, style: Style) -> Piece:
    """Ribs along a wall."""
    count = draw.integer(6, 10)
    piece = Piece((count * 0.08, 0.65, 0.12)).start("object")
    for k in range(count):
        x = (k + 0.5 - count / 2) * 0.08
        piece.tube(x, (0.1, 0.62), 0.0, (0.03, 0.05), WHITE)
    return piece
