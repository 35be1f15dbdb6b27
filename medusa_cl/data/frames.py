"""Which way the components of stored normals point, and how that is found out where nobody wrote it down.

A frame is named by three letters, the directions in which the first, second and third component grow, seen from the
camera: r(ight) or l(eft), d(own) or u(p), f(orward) or b(ack). Ours is `rdf`; `rub` (x right, y up, z back) is common.
A pack whose normals point into the surfaces has a frame as well: that with every letter reversed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medusa_cl.errors import ConfigError, unknown

Array = NDArray[Any]

OURS = "rdf"
_AXES = {"r": (0, 1), "l": (0, -1), "d": (1, 1), "u": (1, -1), "f": (2, 1), "b": (2, -1)}
"""Letter -> the axis of our frame and the sense along it."""
FRAMES = tuple(
    "".join(letters) for letters in itertools.permutations(_AXES, 3) if len({_AXES[c][0] for c in letters}) == 3
)
"""The names of all 48 frames, of both handednesses."""

SHORT, LONG = 0.1, 1.5
_UNIT = (np.arange(256, dtype=np.float32) * 2 / 255 - 1).astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """Where each component of stored vectors points.

    Attributes:
        name: Three letters, one of `FRAMES`.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse names that are none."""
        if self.name not in FRAMES:
            raise ConfigError(
                f"{unknown('frame of normals', self.name, FRAMES)} A frame says where x, y and z point, one letter "
                "each of r/l (right, left), d/u (down, up), f/b (forward, back), for instance rdf or rub."
            )

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the frame of a name, in small or capital letters.

        Raises:
            ConfigError: There is no such frame.
        """
        return cls(str(name).strip().lower())

    @cached_property
    def components(self) -> tuple[tuple[int, int], ...]:
        """For each axis of our frame the stored component that lies along it, and the sign."""
        places = {_AXES[letter][0]: (place, _AXES[letter][1]) for place, letter in enumerate(self.name)}
        return tuple(places[axis] for axis in range(3))

    def to_ours(self, vectors: Array) -> Array:
        """Return stored vectors in our frame: x right, y down, z forward.

        Args:
            vectors: ... 3, float.

        Returns:
            The same shape and type, in new memory.
        """
        ours = np.empty_like(vectors)
        for axis, (place, sign) in enumerate(self.components):
            np.multiply(vectors[..., place], sign, out=ours[..., axis])
        return ours


def vectors_of_bytes(picture: Array) -> Array:
    """Decode normals stored as a picture, 2 x / 255 - 1.

    Args:
        picture: H W 3 uint8.

    Returns:
        H W 3 float32; zero where the stored vector is no direction: shorter than .1 (8 bits have no exact zero), or
        longer than 1.5, as black and white are.
    """
    return _without(_UNIT[picture], SHORT**2, LONG**2)


def vectors_of_floats(vectors: Array) -> Array:
    """Return normals stored as numbers, H W 3, as float32: zero where they are NaN, infinite or of no length."""
    return _without(vectors.astype(np.float32), 0, np.inf)


def _without(vectors: Array, low: float, high: float) -> Array:
    """Zero the vectors whose squared length is not between low and high."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]  # numpy reduces over a short axis ten times slower
    with np.errstate(over="ignore", invalid="ignore"):
        squared = x * x + y * y + z * z
        invalid = ~((squared > low) & (squared < high))
    vectors[invalid] = 0
    return vectors


# By depth ----------------------------------------------------------------------------------------------------------

_WIDTH = 160  # of the grid on which frames are looked for: more pixels change nothing but the time
_WINDOW = 5  # on that grid; at 640 pixels, planes are so fitted to squares of 20
_LEAD = 0.6  # of the best frame's sum of cosines over the next one's, so that each is at least half of it
_VARIETY = 0.01  # mean square of a component, below which the images show nothing along that axis


def detect_by_depth(pairs: Iterable[tuple[Array, Array]], intrinsics: Sequence[float]) -> Frame | None:
    """Find the frame in which stored normals agree with the geometry of the depth.

    Normals are fitted to the depth (in our frame, facing the camera) and the cosine of every stored component, over
    all pixels, with every fitted one is taken. Of the 48 frames the one with the largest sum of its three cosines is
    returned if it leads by at least .6; as turning one axis round costs twice its cosine, each is then .3 or more. An
    axis along which no surface of the images is tilted (a mean square below .01) leaves the frame undecided.

    Args:
        pairs: Of one image each: normals H W 3 float as stored (zero invalid) and depth H W float, m (0 invalid).
        intrinsics: fx, fy, cx, cy in pixels of these images.

    Returns:
        The frame, or None where the evidence does not decide.
    """
    products, squares, fitted_squares = np.zeros((3, 3)), np.zeros(3), np.zeros(3)
    for normals, depth in pairs:
        stored, fitted = _beside(normals, depth, intrinsics)
        products += stored.T @ fitted
        squares += np.square(stored).sum(axis=0)
        fitted_squares += np.square(fitted).sum(axis=0)
    total = squares.sum()  # of normals: the number of pixels
    if total == 0 or min(squares.min(), fitted_squares.min()) < _VARIETY * total:
        return None
    return _best_agreement(products / np.sqrt(np.outer(squares, fitted_squares)))


def _beside(normals: Array, depth: Array, intrinsics: Sequence[float]) -> tuple[Array, Array]:
    """Return stored and fitted unit normals, N 3 each, of the pixels of a coarse grid that have both."""
    from medusa_cl.data.geometry import normals_from_depth

    step = max(1, depth.shape[1] // _WIDTH)
    fx, fy, cx, cy = (value / step for value in intrinsics)  # pixel centres have whole coordinates
    fitted = normals_from_depth(depth[::step, ::step], (fx, fy, cx, cy), _WINDOW).reshape(-1, 3)
    stored = normals[::step, ::step].reshape(-1, 3).astype(np.float64)
    both = fitted.any(axis=1) & stored.any(axis=1)
    stored = stored[both] / np.linalg.norm(stored[both], axis=1, keepdims=True)
    return stored, fitted[both].astype(np.float64)


def _best_agreement(cosines: Array) -> Frame | None:
    frames = [Frame(name) for name in FRAMES]
    terms = np.array([[sign * cosines[place, axis] for axis, (place, sign) in enumerate(f.components)] for f in frames])
    order = np.argsort(sums := terms.sum(axis=1))
    best, second = order[-1], order[-2]
    return frames[best] if sums[best] - sums[second] >= _LEAD else None


# By view -----------------------------------------------------------------------------------------------------------

_GRID = 64  # cells that an image is wide
_WHOLE = 0.9  # length of a cell's mean normal; those of cells on two surfaces are shorter
_FLAT = 0.98  # cosine of the normals of cells two apart on one plane
_FOCAL = 1.0  # in image widths; a long guess is the careful one, it takes rays for more parallel than they are
_MARGIN = 0.05  # a plane may seem to turn away by so much (cosine): noise, and the guessed focal length
_FLOOR, _CLEAR, _FACING = 0.25, 0.2, 0.05  # the weights of what `detect_by_view` adds up
_DEARER, _ACCORD, _MOST = 0.0005, 0.8, 0.02
_IMAGES, _ENOUGH = 2.5, 0.01


def detect_by_view(maps: Iterable[Array]) -> Frame | None:
    """Find the frame in which the surfaces of stored normals can be seen at all. No depth is needed.

    A frame costs, in each image,

        mean over planes of max(0, n . view - .05)                       seen surfaces face the camera: n . view < 0
        - .25 max(0, mean of -n_y below - mean of |n_y| above - .2)      floors point up, what is above is upright
        + .05 mean of n_z                                                most surfaces are not seen edge-on

    where below and above are the lower and the upper third. The first and the last decide z, the second y. The sense of
    x is decided by the first alone: side walls and the sides of furniture at the left face right, those at the right
    face left; mirrored, they would be seen from behind. Round things are left out there: by nearly parallel rays they
    are seen to turn away further than the focal length assumed allows. Nothing is assumed of handedness.

    The cheapest of the 48 frames is returned if each other one costs more beyond doubt: by .0005 on average, without
    more than a tenth of all differences (each at most .02, so that an odd image decides nothing) speaking against it,
    and in three images or so. Frontal walls alone, or round things alone, leave the frame undecided.

    Args:
        maps: Normals as stored, H W 3 float, zero invalid; some dozens of images.

    Returns:
        The frame, or None where the evidence does not decide.
    """
    costs = np.array([_costs(normals) for normals in maps]).reshape(-1, len(FRAMES))
    if not len(costs):
        return None
    best = int(costs.mean(axis=0).argmin())
    worse = np.delete(costs, best, axis=1) - costs[:, [best]]
    return Frame(FRAMES[best]) if _dearer(worse).all() else None


def _dearer(worse: Array) -> Array:
    """Return, for differences N K of costs, which of the K frames are too dear beyond doubt."""
    weighed, counted = np.clip(worse, -_MOST, _MOST), np.clip(worse, -_ENOUGH, _ENOUGH)
    total = weighed.sum(axis=0)
    clear = (total >= _DEARER * len(worse)) & (total >= _ACCORD * np.abs(weighed).sum(axis=0))
    result: Array = clear & (counted.sum(axis=0) ** 2 >= _IMAGES * np.square(counted).sum(axis=0))
    return result


def _costs(normals: Array) -> Array:
    """Return what each of the 48 frames costs in one image."""
    cells, valid = _cells(normals)
    if not valid.any():
        return np.zeros(len(FRAMES))  # no evidence
    rays, flat = _view_rays(*valid.shape)[valid], _flat(cells)[valid]
    row = np.broadcast_to(np.linspace(0, 1, len(cells))[:, None], valid.shape)[valid]
    return np.array([_cost(Frame(name).to_ours(cells[valid]), rays, flat, row) for name in FRAMES])


def _cells(normals: Array) -> tuple[Array, Array]:
    """Return the mean unit normals h w 3 of a coarse grid's cells, and which of them lie on one surface."""
    step = max(1, normals.shape[1] // _GRID)
    height, width = normals.shape[0] // step, normals.shape[1] // step
    blocks = normals[: height * step, : width * step].reshape(height, step, width, step, 3)
    means = blocks.mean(axis=(1, 3))
    length = np.linalg.norm(means, axis=-1, keepdims=True)
    cells = np.divide(means, length, out=np.zeros_like(means), where=length > _WHOLE)
    return cells, cells.any(axis=-1)


def _flat(cells: Array) -> Array:
    """Return which cells are on a plane: both pairs of neighbours across them point the same way."""
    flat = np.zeros(cells.shape[:2], bool)
    along = (cells[1:-1, 2:] * cells[1:-1, :-2]).sum(axis=-1) > _FLAT
    flat[1:-1, 1:-1] = along & ((cells[2:, 1:-1] * cells[:-2, 1:-1]).sum(axis=-1) > _FLAT)
    return flat


def _cost(normals: Array, rays: Array, flat: Array, row: Array) -> float:
    """Return the cost of unit normals N 3 along rays N 3; rows N run from 0 at the top to 1."""
    away = (flat * np.maximum(np.einsum("nk,nk->n", normals, rays) - _MARGIN, 0)).mean()
    above, below = normals[row < 1 / 3, 1], normals[row > 2 / 3, 1]
    floor = -below.mean() - np.abs(above).mean() if len(above) and len(below) else 0.0
    return float(away + _FACING * normals[:, 2].mean() - _FLOOR * max(0.0, floor - _CLEAR))


def _view_rays(height: int, width: int) -> Array:
    """Return unit viewing rays H W 3 of a camera of the guessed focal length."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    focal = _FOCAL * width
    rays = np.stack([(x + 0.5 - width / 2) / focal, (y + 0.5 - height / 2) / focal, np.ones_like(x)], axis=-1)
    unit: Array = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    return unit
