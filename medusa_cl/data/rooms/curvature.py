"""Principal curvatures of what is seen, from the shapes themselves."""

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.draws import Floats
from medusa_cl.data.rooms.scene import BALL, Part
from medusa_cl.data.rooms.tracing import Points, half_sizes, into

STEEPEST = 10.0
"""Curvatures are clipped to this, in 1/m, as where they are fitted to depth (`geometry.STEEPEST_CURVATURE`)."""
ROUND = 6
"""The face of a ball, and of a tube's side."""
Ints = npt.NDArray[np.int32]


def bend(part: Part, point: Points) -> tuple[Floats, Floats]:
    """Principal curvatures on the round face of a part.

    All round shapes are quadrics f(p) = 0 with a diagonal Hessian (h0, h1, h2). With the unit normal n, the gradient g
    of f over its length, the two curvatures add up to sum_i h_i (1 - n_i^2) / |g|, and their product is
    (h1 h2 n0^2 + h0 h2 n1^2 + h0 h1 n2^2) / |g|^2 (Goldman, Curvature formulas for implicit curves and surfaces, 2005).

    Args:
        part: A ball or a tube.
        point: Points on it in the world, N values each.

    Returns:
        k1 >= k2 in 1/m, N each; not below 0, as every shape is convex. Not clipped.
    """
    x, y, z = into(part, *(p - np.float32(c) for p, c in zip(point, part.centre, strict=True)))
    a, b, c = (1.0 / half for half in half_sizes(part))
    if part.shape == BALL:
        hessian = a * a, b * b, c * c
        gradient = x * hessian[0], y * hessian[1], z * hessian[2]
    else:
        # x^2 a^2 + z^2 c^2 = (1 + taper b y)^2: a cone, or a cylinder, on an ellipse
        slope = part.taper * b
        hessian = a * a, -slope * slope, c * c
        gradient = x * hessian[0], -slope * (1.0 + slope * y), z * hessian[2]
    squares = tuple(g * g for g in gradient)
    square = np.maximum(squares[0] + squares[1] + squares[2], np.float32(1e-12))
    scale = 1.0 / np.sqrt(square)
    n0, n1, n2 = (s / square for s in squares)
    h0, h1, h2 = hessian
    total = (h0 * (1.0 - n0) + h1 * (1.0 - n1) + h2 * (1.0 - n2)) * scale
    if part.shape != BALL:
        return np.maximum(total, 0.0), np.zeros_like(total)  # cones and cylinders are bent in one direction only
    product = (h1 * h2 * n0 + h0 * h2 * n1 + h0 * h1 * n2) * scale * scale
    middle = 0.5 * total
    apart = np.sqrt(np.maximum(middle * middle - product, 0.0))
    return middle + apart, np.maximum(middle - apart, 0.0)


def curvature(parts: tuple[Part, ...], number: Ints, face: Ints, point: Points) -> Floats:
    """Principal curvatures of what rays have met: 0 on flat faces, those of `bend` on round ones.

    Args:
        parts: The scene's.
        number: N, integers: which part each ray has met; negative = the room's walls, floor or ceiling.
        face: N, integers: which face of it.
        point: Where, in the world, N values each.

    Returns:
        N 2, 1/m: k1 >= k2, positive where the surface bulges towards the viewer, clipped to 10.
    """
    pair = np.zeros((*number.shape, 2), dtype=np.float32)
    bent = np.flatnonzero((number >= 0) & (face == ROUND))
    for which in np.unique(number[bent]).tolist():
        here = bent[number[bent] == which]
        for k, values in enumerate(bend(parts[which], (point[0][here], point[1][here], point[2][here]))):
            pair[here, k] = np.minimum(values, np.float32(STEEPEST))
    return pair
