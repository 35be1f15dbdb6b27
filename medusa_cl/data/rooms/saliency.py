"""Which things in a picture stand out: those that are large, in the middle and unlike what is around them.

Sums are of integers and quotients of Python's numbers, so that every machine chooses the same things.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medusa_cl.data.rooms.scene import LABEL

Ints = npt.NDArray[np.int64]

BACKGROUND = tuple(LABEL[name] for name in ("wall", "floor", "ceiling", "door", "window", "rug"))
"""Classes that never stand out: the room itself."""
SMALLEST, LARGEST, COVERED = 0.004, 0.35, 0.3
"""Share of the picture that a thing that stands out may have; and several of them together."""
ENOUGH = 0.15
"""More area than this share of the picture makes no thing stand out more."""
NEXT = 0.5
"""A further thing stands out where its score is at least this share of the best one's."""
MOST = 3


class Thing(NamedTuple):
    """One instance in a picture: its number, its score and its pixels."""

    instance: int
    score: float
    area: int


def saliency(
    image: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint16], semseg: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Mark the things that stand out.

    Args:
        image: H W 3, uint8, RGB.
        instances: H W, integers; an instance has one class.
        semseg: H W, classes (see `scene.CLASSES`).

    Returns:
        H W, 1 on the (at most three) instances of the largest area x centrality x contrast, else 0; all 0 where there
        is nothing but background.
    """
    things = _things(image, instances.astype(np.int64), semseg)
    things.sort(key=lambda thing: (-thing.score, thing.instance))
    chosen: list[int] = []
    covered = 0
    for thing in things[:MOST]:
        if thing.score >= NEXT * things[0].score and (not chosen or covered + thing.area <= COVERED * instances.size):
            chosen.append(thing.instance)
            covered += thing.area
    return np.isin(instances, chosen).astype(np.uint8)


def _things(image: npt.NDArray[np.uint8], instances: Ints, semseg: npt.NDArray[np.uint8]) -> list[Thing]:
    flat = instances.ravel()
    area = np.bincount(flat)
    label = np.zeros(area.size, np.int64)
    label[flat] = semseg.ravel()
    weight = np.bincount(flat, weights=_middle(instances.shape).ravel())  # exact: integers below 2^53
    good = (area >= SMALLEST * flat.size) & (area <= LARGEST * flat.size) & ~np.isin(label, BACKGROUND)
    things = []
    for number in np.flatnonzero(good).tolist():
        count = int(area[number])
        size = min(count / flat.size, ENOUGH)
        central = float(weight[number]) / (count * instances.size)
        things.append(Thing(number, size * central * _contrast(image, instances, number), count))
    return things


def _middle(size: tuple[int, ...]) -> Ints:
    """Integers that fall linearly from the middle to the borders: H W, at most H W."""
    rows, columns = (n - np.abs(2 * np.arange(n) - (n - 1)) for n in size)
    weights: Ints = rows[:, None] * columns[None, :]
    return weights


def _contrast(image: npt.NDArray[np.uint8], instances: Ints, number: int) -> float:
    """Distance of an instance's mean colour to that of what is around it: within its box, half as large again."""
    rows, columns = (np.flatnonzero((instances == number).any(axis=axis)) for axis in (1, 0))
    box = tuple(_wider(int(place[0]), int(place[-1]) + 1) for place in (rows, columns))
    here = instances[box] == number
    window = image[box].astype(np.int64)
    inside, every = window[here].sum(axis=0).tolist(), window.sum(axis=(0, 1)).tolist()
    count, rest = int(here.sum()), int((~here).sum())
    if not rest:
        return 0.0
    return float(sum(abs(i / count - (e - i) / rest) for i, e in zip(inside, every, strict=True)) / 255.0)


def _wider(start: int, stop: int) -> slice:
    more = (stop - start) // 4 + 1
    return slice(max(start - more, 0), stop + more)
