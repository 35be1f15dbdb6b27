"""Procedural textures: (u, v) in metres -> colour, filtered over the pixel's footprint so that far patterns fade.

A pattern is a function (Spot) -> display colour, three arrays in [0, 1]. Add one by writing it and listing it in
PATTERNS.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from medusa_cl.data.rooms.draws import RGB, Floats, hashed, lattice, noise, octaves
from medusa_cl.data.rooms.scene import Material

Colours = tuple[Floats, Floats, Floats]


class Spot(NamedTuple):
    """Where a texture is read: metres along the face, the pixel's width there, the face's half sizes, the material."""

    u: Floats
    v: Floats
    width: Floats
    extent_u: Floats
    extent_v: Floats
    material: Material


def albedo(spot: Spot) -> Colours:
    """The display colour of a material at each spot."""
    if spot.material.turned:
        spot = spot._replace(u=spot.v, v=spot.u, extent_u=spot.extent_v, extent_v=spot.extent_u)
    return PATTERNS[spot.material.pattern](spot)


def mix(first: RGB | Colours, second: RGB | Colours, amount: Floats) -> Colours:
    """The first colour where amount is 0, the second where it is 1."""
    red, green, blue = (a + (b - a) * amount for a, b in zip(map(_f, first), map(_f, second), strict=True))
    return red, green, blue


def _f(value: float | Floats) -> Floats:
    return np.asarray(value, dtype=np.float32)


def scaled(colours: Colours, factor: Floats) -> Colours:
    """The colours times a factor, kept in [0, 1]."""
    red, green, blue = (np.minimum(c * factor, 1.0) for c in colours)
    return red, green, blue


def clamp(values: Floats) -> Floats:
    """Values kept in [0, 1]."""
    return np.minimum(np.maximum(values, 0.0), 1.0)


def fraction(values: Floats) -> Floats:
    """Distance above the next lower integer."""
    return values - np.floor(values)


def wave(values: Floats) -> Floats:
    """A smooth wave of period 1 in [0, 1], 1 at integers: a smoothed triangle, since there is no cosine here."""
    s = np.abs(2.0 * fraction(values) - 1.0)
    return s * s * (3.0 - 2.0 * s)


def lines(values: Floats, duty: float, width: Floats) -> Floats:
    """Coverage of lines of the given width centred on integers, box-filtered over `width` (all in periods)."""
    away = np.abs(fraction(values + 0.5) - 0.5)
    sharp = clamp((np.float32(duty * 0.5) - away) / np.maximum(width, np.float32(1e-4)) + 0.5)
    far = clamp(2.0 * width - 0.5)
    return sharp + (duty - sharp) * far


def inside(distance: Floats, width: Floats) -> Floats:
    """Coverage of the region where a signed distance is negative."""
    return clamp(0.5 - distance / np.maximum(width, np.float32(1e-4)))


def faded(values: Floats, middle: float, size: float, width: Floats) -> Floats:
    """Noise of the given grain size, faded to its mean where the pixel is wider than the grain."""
    return values + (middle - values) * clamp(width * (1.0 / size) - 0.4)


def plain(spot: Spot) -> Colours:
    """Paint: one colour with faint clouds."""
    m = spot.material
    cloud = octaves(spot.u * 2.3, spot.v * 2.3, m.seed)
    return scaled(mix(m.first, m.first, cloud), 0.965 + 0.07 * cloud)


def wood(spot: Spot) -> Colours:
    """Planed wood, its grain along the longer side of the face."""
    m = spot.material
    long_u = spot.extent_u >= spot.extent_v
    along, across = np.where(long_u, spot.u, spot.v), np.where(long_u, spot.v, spot.u)
    return _grain(spot, along, across, np.zeros_like(along), m.seed)


def _grain(spot: Spot, along: Floats, across: Floats, shift: Floats, seed: int) -> Colours:
    m = spot.material
    warp = noise(along * 1.1 + shift, across * 7.0 + shift, seed)
    rings = wave((across + shift) * (9.0 * m.scale) + warp * 2.6)
    fibre = noise(along * 7.0 + shift, across * 110.0, seed ^ 0x51ED27)
    rings = faded(rings, 0.5, 0.09 / m.scale, spot.width)
    fibre = faded(fibre, 0.5, 0.02, spot.width)
    return mix(m.first, m.second, clamp(0.62 * rings + 0.5 * fibre - 0.05))


def planks(spot: Spot) -> Colours:
    """A floor of boards, each with its own tone, dark gaps between them."""
    m = spot.material
    board = 0.14 * m.scale
    row = np.floor(spot.v * (1.0 / board))
    offset = hashed(lattice(row), lattice(row * 0.0), m.seed)
    place = spot.u * (1.0 / (9.0 * board)) + offset
    column = np.floor(place)
    tone = hashed(lattice(row), lattice(column), m.seed ^ 0x1234567)
    grain = _grain(spot, spot.u, spot.v, tone * 31.0, m.seed)
    gap = lines(spot.v * (1.0 / board), 0.035, spot.width * (1.0 / board))
    end = lines(place, 0.005, spot.width * (1.0 / (9.0 * board)))
    return mix(scaled(grain, 0.8 + 0.36 * tone), m.third, 0.75 * np.maximum(gap, end))


def parquet(spot: Spot) -> Colours:
    """Squares of boards laid in turning directions."""
    m = spot.material
    side = 0.42 * m.scale
    pu, pv = spot.u * (1.0 / side), spot.v * (1.0 / side)
    iu, iv = np.floor(pu), np.floor(pv)
    turned = fraction((iu + iv) * 0.5) > 0.25
    along, across = np.where(turned, spot.v, spot.u), np.where(turned, spot.u, spot.v)
    strip = np.floor(across * (5.0 / side))
    tone = hashed(lattice(iu * 7.0 + strip), lattice(iv * 5.0), m.seed)
    grain = _grain(spot, along, across, tone * 23.0, m.seed)
    gap = lines(across * (5.0 / side), 0.05, spot.width * (5.0 / side))
    edge = np.maximum(lines(pu, 0.012, spot.width * (1 / side)), lines(pv, 0.012, spot.width * (1 / side)))
    return mix(scaled(grain, 0.8 + 0.34 * tone), m.third, 0.6 * np.maximum(gap, edge))


def tiles(spot: Spot) -> Colours:
    """Square tiles with grout; two colours in a checkerboard when they differ."""
    m = spot.material
    side = 0.3 * m.scale
    pu, pv, width = spot.u * (1.0 / side), spot.v * (1.0 / side), spot.width * (1.0 / side)
    iu, iv = np.floor(pu), np.floor(pv)
    even = (fraction((iu + iv) * 0.5) > 0.25).astype(np.float32)
    tone = hashed(lattice(iu), lattice(iv), m.seed)
    stain = octaves(spot.u * 5.0 + tone * 9.0, spot.v * 5.0, m.seed)
    base = scaled(mix(m.first, m.second, faded(even, 0.5, 1.0, width)), 0.9 + 0.1 * tone + 0.06 * stain)
    return mix(base, m.third, np.maximum(lines(pu, 0.035, width), lines(pv, 0.035, width)))


def plaster(spot: Spot) -> Colours:
    """Lime on a rough wall: broad clouds and trowel marks."""
    m = spot.material
    cloud = octaves(spot.u * 1.6, spot.v * 1.6, m.seed, 3)
    trowel = faded(octaves(spot.u * 9.0 + cloud, spot.v * 22.0, m.seed ^ 0x3C3C), 0.5, 0.05, spot.width)
    return scaled(mix(m.first, m.second, clamp(2.0 * cloud - 0.5)), 0.9 + 0.16 * trowel)


def boards(spot: Spot) -> Colours:
    """Upright tongue-and-groove boards on a wall."""
    m = spot.material
    place, width = spot.u * (1.0 / (0.1 * m.scale)), spot.width * (1.0 / (0.1 * m.scale))
    tone = hashed(lattice(np.floor(place)), lattice(place * 0.0), m.seed)
    grain = _grain(spot, spot.v, spot.u, tone * 31.0, m.seed)
    return mix(scaled(grain, 0.92 + 0.14 * tone), m.third, 0.4 * lines(place, 0.05, width))


def scaffold(spot: Spot) -> Colours:
    """Used scaffold boards: rough wood with dark knots and spots of paint."""
    m = spot.material
    spots = clamp(6.0 * octaves(spot.u * 7.0, spot.v * 11.0, m.seed ^ 0x99, 3) - 4.5)
    knots = clamp(8.0 * noise(spot.u * 3.0, spot.v * 14.0, m.seed ^ 0x1F) - 7.0)
    return mix(mix(planks(spot), m.third, knots), (0.7, 0.7, 0.68), faded(spots, 0.05, 0.08, spot.width))


def herringbone(spot: Spot) -> Colours:
    """Boards of one by five laid in a zigzag, at 45 degrees to the walls."""
    m = spot.material
    board = 0.075 * m.scale
    x, y = (spot.u + spot.v) * (0.70710678 / board), (spot.u - spot.v) * (0.70710678 / board)
    ix, iy = np.floor(x), np.floor(y)
    # Along a row five cells belong to a board, the next five to five boards across it.
    k = ix - iy - 10.0 * np.floor((ix - iy) * 0.1)
    flat = k < 4.5
    i0, j0 = np.where(flat, ix - k, ix), np.where(flat, iy, iy + k - 9.0)
    along, across = np.where(flat, x - i0, y - j0), np.where(flat, y, x)
    tone = hashed(lattice(i0), lattice(j0), m.seed)
    grain = _grain(spot, along * np.float32(board), across * np.float32(board), tone * 23.0, m.seed)
    width = spot.width * (1.0 / board)
    gap = np.maximum(lines(across, 0.06, width), lines(along * 0.2, 0.012, width * 0.2))
    return mix(scaled(grain, 0.8 + 0.34 * tone), m.third, 0.6 * gap)


def terrazzo(spot: Spot) -> Colours:
    """Chips of stone in cement, two sizes of them."""
    m = spot.material
    out = plain(spot)
    for number, (cell, tone) in enumerate(((0.06 * m.scale, m.second), (0.035 * m.scale, m.third))):
        pu, pv = spot.u * (1.0 / cell), spot.v * (1.0 / cell)
        i, j = lattice(np.floor(pu)), lattice(np.floor(pv))
        size = 0.12 + 0.2 * hashed(i, j, m.seed + number & 0xFFFFFFFF)
        du = fraction(pu) - 0.35 - 0.3 * hashed(i, j, m.seed ^ 0x11)
        dv = fraction(pv) - 0.35 - 0.3 * hashed(i, j, m.seed ^ 0x22)
        chip = inside(np.abs(du) + np.abs(dv) + 0.4 * np.abs(du - dv) - size, spot.width * (1.0 / cell))
        out = mix(out, tone, faded(chip, 0.12, 1.5 * cell, spot.width))
    return out


def concrete(spot: Spot) -> Colours:
    """Cast concrete: stains, pores, the seams of its formwork and the holes of the ties."""
    m = spot.material
    wide, high = 1.25 * m.scale, 0.85 * m.scale
    pu, pv = spot.u * (1.0 / wide) + 0.3, spot.v * (1.0 / high) + 0.4
    tone = hashed(lattice(np.floor(pu)), lattice(np.floor(pv)), m.seed)
    stain = octaves(spot.u * 1.9 + tone * 7.0, spot.v * 1.1, m.seed, 3)
    pore = clamp(9.0 * noise(spot.u * 55.0, spot.v * 55.0, m.seed ^ 0x55) - 7.9)
    base = scaled(mix(m.first, m.second, clamp(2.4 * stain - 0.7)), 0.9 + 0.14 * tone)
    base = mix(base, m.third, 0.45 * faded(pore, 0.02, 0.02, spot.width))
    seam = np.maximum(lines(pu, 0.008, spot.width * (1.0 / wide)), lines(pv, 0.012, spot.width * (1.0 / high)))
    du, dv = (np.abs(np.abs(fraction(p) - 0.5) - 0.25) * size for p, size in ((pu, wide), (pv, high)))
    hole = inside(np.sqrt(du * du + dv * dv) - 0.016, spot.width)
    return mix(base, m.third, np.maximum(0.7 * seam, hole))


def steel(spot: Spot) -> Colours:
    """Bare or painted sheet metal: brushed, with patches of rust."""
    m = spot.material
    brushed = faded(noise(spot.u * 3.0, spot.v * 160.0, m.seed), 0.5, 0.012, spot.width)
    patch = octaves(spot.u * 4.0, spot.v * 4.0, m.seed ^ 0x7777, 3)
    return mix(mix(m.first, m.second, brushed), m.third, 0.8 * clamp(7.0 * patch - 4.4))


def tread(spot: Spot) -> Colours:
    """Chequer plate: raised lozenges in turning directions on steel."""
    m = spot.material
    cell = 0.1 * m.scale
    pu, pv, width = spot.u * (1.0 / cell), spot.v * (1.0 / cell), spot.width * (1.0 / cell)
    side = np.where(fraction((np.floor(pu) + np.floor(pv)) * 0.5) > 0.25, np.float32(1.0), np.float32(-1.0))
    du, dv = fraction(pu) - 0.5, fraction(pv) - 0.5
    lozenge = inside(np.abs(du + side * dv) * 0.8 + np.abs(du - side * dv) * 2.6 - 0.42, width)
    out = mix(steel(spot), (0.82, 0.83, 0.85), 0.6 * faded(lozenge, 0.15, 1.0, width))
    seam = np.maximum(lines(pu * 0.08, 0.004, width * 0.08), lines(pv * 0.08, 0.004, width * 0.08))
    return mix(out, m.third, seam)


def corrugated(spot: Spot) -> Colours:
    """Corrugated sheet: light and dark bands across u, and rows of screws."""
    m = spot.material
    period = 0.11
    place = spot.u * (1.0 / period)
    ridge = faded(wave(place), 0.5, period, spot.width)
    return scaled(mix(m.second, m.first, ridge), 0.92 + 0.14 * octaves(spot.u * 2.0, spot.v * 2.0, m.seed))


def brick(spot: Spot) -> Colours:
    """Staggered bricks with mortar."""
    m = spot.material
    wide, high = 0.24 * m.scale, 0.085 * m.scale
    pv = spot.v * (1.0 / high)
    row = np.floor(pv)
    pu = spot.u * (1.0 / wide) + 0.5 * row
    tone = hashed(lattice(np.floor(pu)), lattice(row), m.seed)
    rough = faded(octaves(spot.u * 40.0, spot.v * 40.0, m.seed), 0.5, 0.02, spot.width)
    base = scaled(mix(m.first, m.second, tone), 0.86 + 0.22 * rough)
    joint = np.maximum(lines(pv, 0.13, spot.width * (1.0 / high)), lines(pu, 0.046, spot.width * (1.0 / wide)))
    return mix(base, m.third, joint)


def fabric(spot: Spot) -> Colours:
    """Woven cloth: a fine weave and soft folds."""
    m = spot.material
    weave = faded(wave(spot.u * 90.0) * wave(spot.v * 90.0), 0.25, 0.011, spot.width)
    grain = faded(noise(spot.u * 55.0, spot.v * 55.0, m.seed), 0.5, 0.02, spot.width)
    fold = octaves(spot.u * 3.0, spot.v * 4.5, m.seed ^ 0xABCD, 2)
    return scaled(mix(m.first, m.second, clamp(0.25 * weave + 0.35 * grain)), 0.86 + 0.24 * fold)


def stripes(spot: Spot) -> Colours:
    """Cloth or paper with stripes along v."""
    m = spot.material
    period = 0.16 * m.scale
    place, width = spot.u * (1.0 / period), spot.width * (1.0 / period)
    band = lines(place, 0.48, width)
    thin = lines(place + 0.5, 0.07, width)
    return mix(fabric(spot), mix(m.second, m.third, thin), np.maximum(band, thin))


def dots(spot: Spot) -> Colours:
    """Dots in a staggered grid."""
    m = spot.material
    period = 0.13 * m.scale
    pv = spot.v * (1.0 / period)
    pu = spot.u * (1.0 / period) + 0.5 * np.floor(pv)
    width = spot.width * (1.0 / period)
    du, dv = fraction(pu) - 0.5, fraction(pv) - 0.5
    dot = inside(np.sqrt(du * du + dv * dv) - 0.24, width)
    return mix(plain(spot), m.second, faded(dot, 0.18, 1.0, width))


def plaid(spot: Spot) -> Colours:
    """Crossing bands, as on a blanket."""
    m = spot.material
    period = 0.3 * m.scale
    pu, pv, width = spot.u * (1.0 / period), spot.v * (1.0 / period), spot.width * (1.0 / period)
    bands = 0.5 * (lines(pu, 0.4, width) + lines(pv, 0.4, width))
    thin = np.maximum(lines(pu + 0.5, 0.05, width), lines(pv + 0.5, 0.05, width))
    return mix(mix(fabric(spot), m.second, bands), m.third, 0.8 * thin)


def discs(spot: Spot) -> Colours:
    """Wallpaper of large discs within discs."""
    m = spot.material
    period = 0.26 * m.scale
    pu, pv, width = spot.u * (1.0 / period), spot.v * (1.0 / period), spot.width * (1.0 / period)
    du, dv = fraction(pu) - 0.5, fraction(pv) - 0.5
    away = np.sqrt(du * du + dv * dv)
    out = plain(spot)
    for radius, share, tone in ((0.46, 0.38, m.second), (0.3, 0.22, m.third), (0.15, 0.07, m.first)):
        out = mix(out, tone, faded(inside(away - radius, width), share, 1.0, width))
    return out


def chequers(spot: Spot) -> Colours:
    """Cloth of small squares in two colours, each with a cross."""
    m = spot.material
    period = 0.12 * m.scale
    pu, pv, width = spot.u * (1.0 / period), spot.v * (1.0 / period), spot.width * (1.0 / period)
    even = (fraction((np.floor(pu) + np.floor(pv)) * 0.5) > 0.25).astype(np.float32)
    cross = np.maximum(lines(pu + 0.5, 0.14, width), lines(pv + 0.5, 0.14, width))
    return mix(mix(fabric(spot), m.second, faded(even, 0.5, 1.0, width)), m.third, 0.35 * cross)


def chevron(spot: Spot) -> Colours:
    """Cloth with broad zigzag bands."""
    m = spot.material
    period = 0.22 * m.scale
    zig = np.abs(fraction(spot.u * (1.0 / period)) - 0.5)
    place, width = spot.v * (1.0 / period) + zig, spot.width * (1.4 / period)
    thin = lines(place + 0.5, 0.12, width)
    return mix(fabric(spot), mix(m.second, m.third, thin), np.maximum(lines(place, 0.42, width), thin))


def patches(spot: Spot) -> Colours:
    """Cloth of oblong patches in three colours with dark seams."""
    m = spot.material
    wide, high = 0.3 * m.scale, 0.18 * m.scale
    pv = spot.v * (1.0 / high)
    pu = spot.u * (1.0 / wide) + 0.37 * np.floor(pv)
    i, j = lattice(np.floor(pu)), lattice(np.floor(pv))
    tints = hashed(i, j, m.seed), hashed(i, j, m.seed ^ 0x2222)
    out = mix(mix(fabric(spot), m.third, clamp(3.0 * tints[0] - 1.0)), m.second, clamp(4.0 * tints[1] - 3.0))
    seam = np.maximum(lines(pu, 0.02, spot.width * (1.0 / wide)), lines(pv, 0.03, spot.width * (1.0 / high)))
    return scaled(out, 1.0 - 0.6 * seam)


def damask(spot: Spot) -> Colours:
    """Wallpaper of curved diamonds with a small figure in each."""
    m = spot.material
    period = 0.24 * m.scale
    pu, pv, width = spot.u * (1.0 / period), spot.v * (0.6 / period), spot.width * (1.0 / period)
    bend = wave(pv * 2.0) * 0.08
    du, dv = np.abs(fraction(pu + bend) - 0.5), np.abs(fraction(pv) - 0.5)
    ring = inside(np.abs(du + dv - 0.5) - 0.045, width)
    figure = inside(np.sqrt(du * du + dv * dv * 2.2) - 0.16, width)
    return mix(plain(spot), m.second, faded(np.maximum(ring, figure), 0.3, 0.7, width))


def carpet(spot: Spot) -> Colours:
    """Pile: strong fine noise over soft patches."""
    m = spot.material
    pile = faded(noise(spot.u * 70.0, spot.v * 70.0, m.seed), 0.5, 0.015, spot.width)
    patch = octaves(spot.u * 2.0, spot.v * 2.0, m.seed ^ 0x77, 3)
    return scaled(mix(m.first, m.second, clamp(0.7 * pile + 0.3 * patch)), 0.82 + 0.28 * patch)


def marble(spot: Spot) -> Colours:
    """Stone with veins."""
    m = spot.material
    cloud = octaves(spot.u * 4.0, spot.v * 4.0, m.seed, 3)
    vein = wave((spot.u + 0.6 * spot.v) * 2.6 + cloud * 5.0)
    vein = faded(vein * vein * vein * vein, 0.2, 0.08, spot.width)
    return mix(m.first, m.second, clamp(0.9 * vein + 0.35 * cloud))


def persian(spot: Spot) -> Colours:
    """A rug with a border, a medallion and a field of small figures."""
    m = spot.material
    au, av = np.abs(spot.u), np.abs(spot.v)
    edge = np.minimum(spot.extent_u - au, spot.extent_v - av)
    field = dots(spot._replace(material=m._replace(scale=0.8)))
    star = (au / spot.extent_u) + (av / spot.extent_v)
    zig = 0.04 * wave(spot.u * 9.0) + 0.04 * wave(spot.v * 9.0)
    field = mix(field, m.third, inside(star + zig - 0.62, spot.width * 2.0))
    field = mix(field, m.second, inside(np.abs(star + zig - 0.4) - 0.06, spot.width * 2.0))
    border = mix(m.third, m.second, lines((spot.u + spot.v) * 7.0, 0.4, spot.width * 7.0))
    return mix(mix(field, border, inside(edge - 0.16, spot.width)), m.first, inside(edge - 0.045, spot.width))


def rings(spot: Spot) -> Colours:
    """Concentric bands."""
    m = spot.material
    radius = np.sqrt(spot.u * spot.u + spot.v * spot.v)
    period = 0.3 * m.scale
    band = lines(radius * (1.0 / period), 0.5, spot.width * (1.0 / period))
    return mix(fabric(spot), m.second, band)


def leaves(spot: Spot) -> Colours:
    """Foliage: two greens in small blotches with a paler midrib."""
    m = spot.material
    blotch = faded(octaves(spot.u * 26.0, spot.v * 26.0, m.seed, 2), 0.5, 0.05, spot.width)
    return mix(m.first, m.second, clamp(2.0 * blotch - 0.5))


def spines(spot: Spot) -> Colours:
    """A row of books: every spine its own colour, some with a title band; other faces are paper."""
    m = spot.material
    thick = 0.034 * m.scale
    place = spot.u * (1.0 / thick)
    jitter = 0.3 * hashed(lattice(np.floor(place)), lattice(place * 0.0), m.seed)
    book = lattice(np.floor(place + jitter))
    zero = lattice(place * 0.0)
    tints = [hashed(book, zero + np.uint32(k), m.seed) for k in range(4)]
    base = mix(mix(m.first, m.second, tints[0]), m.third, clamp(2.5 * tints[1] - 1.4))
    base = scaled(base, 0.55 + 0.75 * tints[2])
    height = spot.v / spot.extent_v
    title = inside(np.abs(height - 0.35) - 0.16, spot.width / spot.extent_v) * (tints[3] > 0.45)
    gap = lines(place, 0.14, spot.width * (1.0 / thick))
    return scaled(mix(base, (0.85, 0.8, 0.66), 0.7 * title), 1.0 - 0.6 * gap)


def paper(spot: Spot) -> Colours:
    """The edges of pages."""
    m = spot.material
    page = faded(noise(spot.u * 4.0, spot.v * 300.0, m.seed), 0.5, 0.004, spot.width)
    return scaled(mix(m.first, m.first, page), 0.88 + 0.14 * page)


def painting(spot: Spot) -> Colours:
    """A picture: a landscape, or an abstract of discs and bars."""
    m = spot.material
    x, y = spot.u / spot.extent_u, spot.v / spot.extent_v
    width = spot.width / np.minimum(spot.extent_u, spot.extent_v)
    return _landscape(x, y, width, m) if m.seed % 3 == 0 else _abstract(x, y, width, m)


def _landscape(x: Floats, y: Floats, width: Floats, m: Material) -> Colours:
    sky = mix(m.second, m.first, clamp(0.5 + 0.5 * y))
    out: Colours = sky
    for layer in range(3):
        ridge = 0.35 - 0.4 * layer + 0.5 * (noise(x * (1.3 + layer), x * 0.0, (m.seed + layer) & 0xFFFFFFFF) - 0.5)
        tone = mix(m.third, m.second, np.full_like(x, 0.45 - 0.2 * layer))
        out = mix(out, tone, inside(y - ridge, width))
    return scaled(out, 0.9 + 0.2 * noise(x * 9.0, y * 9.0, m.seed))


def _abstract(x: Floats, y: Floats, width: Floats, m: Material) -> Colours:
    out = mix(m.first, m.first, x)
    tones: Sequence[RGB] = (m.second, m.third, (0.93, 0.9, 0.82), (0.12, 0.12, 0.16), m.second)
    for number, tone in enumerate(tones):
        word = (m.seed >> (5 * number)) & 31
        cx, cy = (word % 8) / 4.0 - 0.9, (word // 4) / 4.0 - 0.9
        size = 0.22 + 0.07 * (word % 5)
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        gap = np.sqrt(dx * dx + dy * dy) - size if word % 2 else np.maximum(dx - size, dy - 0.6 * size)
        out = mix(out, tone, inside(gap, width))
    return scaled(out, 0.9 + 0.2 * noise(x * 12.0, y * 12.0, m.seed))


def screen(spot: Spot) -> Colours:
    """A dark screen with a soft sheen, or (when it glows) a picture."""
    m = spot.material
    if m.glow:
        return painting(spot)
    sheen = clamp(0.5 + 0.25 * spot.u / spot.extent_u + 0.25 * spot.v / spot.extent_v)
    return mix(m.first, m.second, sheen * sheen * 0.6)


def shade_cloth(spot: Spot) -> Colours:
    """A lampshade: pleats and a gradient, brightest in the middle."""
    m = spot.material
    height = spot.v / spot.extent_v
    pleat = faded(wave(spot.u * 45.0), 0.5, 0.02, spot.width)
    return scaled(mix(m.first, m.second, 0.3 * pleat), 1.0 - 0.3 * height * height)


def outdoors(spot: Spot) -> Colours:
    """The view through a window: sky, clouds, hills, houses, trees, a lawn with a path.

    v = 0 is the horizon and 10 m = 45 degrees. What is far is hazy and small; the material's scale says how built up
    the place is.
    """
    m = spot.material
    x, y, width = spot.u * 0.1, spot.v * 0.1, spot.width * 0.1
    cloud = clamp(3.0 * octaves(x * 1.3, y * 3.0, m.seed, 3) - 1.5)
    out = mix(mix(m.second, m.first, clamp(y * 1.3)), m.second, cloud * 0.7)
    blotch = faded(octaves(x * 22.0, y * 22.0, m.seed, 2), 0.5, 0.04, width)
    for layer, (height, rough) in enumerate(((0.2, 0.9), (0.12, 2.3))):
        ridge = height * (2.0 * noise(x * rough, x * 0.0, (m.seed + layer) & 0xFFFFFFFF) - 0.4)
        out = mix(out, mix(m.third, m.second, np.full_like(x, 0.75 - 0.3 * layer)), inside(y - ridge, width))
    for layer, (size, haze) in enumerate(((0.16, 0.55), (0.3, 0.15))):
        out = _houses(out, x, y, width, size, haze, m, (m.seed ^ 0xB10C + layer) & 0xFFFFFFFF)
    crowns = octaves(x * 6.0, x * 0.0, m.seed ^ 0x33, 3)
    tree = (0.55 * crowns * crowns * crowns + 0.05 * blotch) / (1.0 + m.scale) - 0.07
    out = mix(out, scaled(mix(m.third, m.third, x), 0.5 + 0.8 * blotch), inside(y - tree, width))
    return mix(out, _ground(x, y, blotch, m), inside(y + 0.13 + 0.05 * noise(x * 2.0, x * 0.0, m.seed), width))


def _houses(
    out: Colours, x: Floats, y: Floats, width: Floats, size: float, haze: float, m: Material, seed: int
) -> Colours:
    """A row of houses with windows, in cells of the given size; the taller the more built up the place is."""
    place = x * np.float32(1.0 / size)
    cell = lattice(np.floor(place))
    zero = lattice(place * 0.0)
    some, tall, tint = (hashed(cell, zero + np.uint32(k), seed) for k in range(3))
    high = np.where(some < 0.25 + 0.4 * m.scale, size * (0.3 + m.scale * (0.4 + 1.3 * tall)), np.float32(-1.0))
    across = np.abs(fraction(place) - 0.5)
    roof = (0.5 - across) * np.float32(0.5 * size) if m.scale < 1.3 else np.float32(0.0)
    wall = mix(mix(m.second, (0.62, 0.45, 0.38), tint), m.second, np.full_like(x, haze))
    lit = hashed(lattice(np.floor(place * 8.0)), lattice(np.floor(y * np.float32(8.0 / size))), seed)
    pane = (np.abs(fraction(place * 8.0) - 0.5) < 0.28) & (np.abs(fraction(y * np.float32(8.0 / size)) - 0.5) < 0.3)
    glass = np.where(pane & (lit > 0.15), 1.0 - np.float32(0.55) * (1.0 - haze), np.float32(1.0))
    wall = scaled(wall, faded(glass, 0.85, 0.25 * size, width))
    tiles_ = scaled(mix((0.5, 0.3, 0.25), m.second, np.full_like(x, haze)), 0.8 + 0.3 * tint)
    body = inside(np.maximum(across * size - 0.44 * size, y - high), width)
    top = inside(np.maximum(y - high - roof, high - y), width) * (some < 0.25 + 0.4 * m.scale)
    return mix(mix(out, tiles_, top), wall, body)


def _ground(x: Floats, y: Floats, blotch: Floats, m: Material) -> Colours:
    """A lawn, or paving in a town, with a path to the horizon."""
    near = 1.0 / np.maximum(-y, np.float32(0.05))
    lawn = scaled(mix(m.third, (0.62, 0.7, 0.45), clamp(0.2 + 0.03 * near)), 0.9 + 0.25 * blotch)
    lawn = mix(lawn, mix(m.third, (0.5, 0.5, 0.5), _f(0.6)), clamp(np.full_like(x, m.scale - 0.6)))
    path = inside(np.abs(x * near - (m.seed % 5 - 2.0) * 0.5) - 0.4, 0.06 * near)
    return mix(lawn, mix(m.second, (0.6, 0.56, 0.5), _f(0.7)), 0.8 * path)


_ALL: tuple[Callable[[Spot], Colours], ...] = (
    plain, wood, planks, boards, parquet, herringbone, tiles, terrazzo, plaster, fabric, stripes, dots, plaid, discs,
    chequers, damask, carpet, marble, persian, rings, leaves, spines, paper, painting, screen, shade_cloth, outdoors,
    concrete, brick, steel, tread, corrugated, scaffold, chevron, patches,
)  # fmt: skip
PATTERNS: dict[str, Callable[[Spot], Colours]] = {function.__name__: function for function in _ALL}
