"""Joint transforms of an image and its targets: where pixels go is said here, what their values become by each task.

A view is one resampling, however much it joins: every new pixel is looked up where its centre lies in the old picture.
The image is interpolated there (bilinearly, without a low-pass filter). Targets take the nearest pixel, so that labels
stay labels, normals stay unit vectors, and no ignored value is ever mixed with a known one. An ignored pixel stays
ignored: a task's rule for values is applied to labelled pixels only.

Where a view shows what lies outside the picture there is a border: ignored in every target, and of `MEAN_COLOUR` in
the image. A pixel is border in both or in neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medusa_cl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medusa_cl.tasks import DenseTask

Array = NDArray[Any]
Targets = dict[str, Tensor]

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""RGB of borders: ImageNet's mean, which is 0 once a backbone has normalised it."""

_ROUNDING = 1e-3
"""Pixels by which a place may leave the picture through float32's rounding alone."""


def flip(image: Tensor, targets: Mapping[str, Tensor], tasks: Mapping[str, DenseTask]) -> tuple[Tensor, Targets]:
    """Mirror left to right; `on_flip` changes the values (normals' x is negated).

    Args:
        image: 3 H W, any type.
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.

    Returns:
        Image and targets; flipping twice gives the same bits.
    """
    turned = {}
    for name, target in targets.items():
        mirrored = target.flip(-1)
        turned[name] = _labelled_only(tasks[name], mirrored, tasks[name].on_flip(mirrored))
    return image.flip(-1), turned


def zoom(
    image: Tensor,
    targets: Mapping[str, Tensor],
    tasks: Mapping[str, DenseTask],
    factor: float,
    top: float,
    left: float,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Targets]:
    """Scale by a factor and take a window; `on_zoom` changes the values (depth is divided).

    Seen with the same camera, a picture enlarged by `factor` is a world nearer by it: hence depth / factor. Below 1
    the picture shrinks and its surroundings are border.

    Args:
        image: 3 H W float32 in [0, 1].
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.
        factor: Any positive one.
        top: Where the window stands in the room it has, in [0, 1]: 0 at the upper border, 1 at the lower one. Where
            the scaled picture is smaller than the window, it is the picture's place in the window.
        left: The same from the left border to the right one.
        size: H, W of the window in new pixels; by default the image's. A window that is not scaled is moved to whole
            pixels, so that it is an exact cut.

    Returns:
        Image and targets of that size.

    Raises:
        ConfigError: The factor is not positive, the place is not in [0, 1], or the size is empty.
        DataError: A target differs in size from the image.
    """
    return resample(image, targets, tasks, factor=factor, top=top, left=left, size=size)


def rotate(
    image: Tensor, targets: Mapping[str, Tensor], tasks: Mapping[str, DenseTask], degrees: float
) -> tuple[Tensor, Targets]:
    """Rotate about the image's centre; `on_rotate` changes the values (normals' x and y turn with the image).

    The camera rolls about its optical axis, so depth along this axis is what it was.

    Args:
        image: 3 H W float32 in [0, 1].
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.
        degrees: Positive turns the picture counter-clockwise, as seen: its right side goes up, and by 90 degrees a wall
            at the left becomes a floor.

    Returns:
        Image and targets, of the size they had; corners that the picture does not reach are border.

    Raises:
        ConfigError: The angle is not finite.
        DataError: A target differs in size from the image.
    """
    return resample(image, targets, tasks, degrees=degrees)


def resample(
    image: Tensor,
    targets: Mapping[str, Tensor],
    tasks: Mapping[str, DenseTask],
    *,
    degrees: float = 0.0,
    factor: float = 1.0,
    top: float = 0.0,
    left: float = 0.0,
    size: tuple[int, int] | None = None,
    mirror: bool = False,
) -> tuple[Tensor, Targets]:
    """Rotate, zoom, cut a window out and mirror, in this order but in one pass over the pixels.

    Args:
        image: 3 H W float32 in [0, 1], or 0 H W where only the targets matter.
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.
        degrees: As in `rotate`.
        factor: As in `zoom`, like the next three.
        top: Where the window stands vertically.
        left: Where it stands horizontally.
        size: Its height and width.
        mirror: Whether the window is flipped at last.

    Returns:
        Image and targets of the window's size.

    Raises:
        ConfigError: The angle or the factor is no sensible number, the place not in [0, 1], or the size empty.
        DataError: A target differs in size from the image.
    """
    old = (image.shape[-2], image.shape[-1])
    new = old if size is None else size
    _check_view(degrees, factor, top, left, new)
    _check_sizes(old, targets)
    unscaled = factor == 1 and not degrees
    if unscaled and new == old:
        return flip(image, targets, tasks) if mirror else (image, dict(targets))
    axes = _axes(old, new, factor, (top, left), mirror)
    axes = _turned(axes, old, degrees) if degrees else axes
    pixels = _Pixels.at(axes, old)
    moved = {}
    for name, target in targets.items():
        task, before = tasks[name], pixels.of(target, tasks[name].ignore)
        after = task.on_rotate(before, degrees) if degrees else before
        after = task.on_zoom(after, factor) if factor != 1 else after
        moved[name] = _labelled_only(task, before, task.on_flip(after) if mirror else after)
    if not len(image):
        return image.new_empty(0, *new), moved
    if unscaled:  # whole pixels, as for targets: a window that is moved only must not blur the image
        return pixels.of(image, MEAN_COLOUR), moved
    return pixels.framed(_interpolated(image, axes, new), MEAN_COLOUR), moved


def pad(
    image: Tensor, targets: Mapping[str, Tensor], tasks: Mapping[str, DenseTask], size: tuple[int, int]
) -> tuple[Tensor, Targets]:
    """Add a border at the bottom and at the right, so that images of different sizes make one batch.

    Args:
        image: 3 H W float32 in [0, 1], or 0 H W where only the targets matter.
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.
        size: Height and width to reach. An image of this size is given back as it is.

    Returns:
        Image and targets of that size; no value of theirs is changed.

    Raises:
        DataError: The image is larger, or a target differs in size from it.
    """
    height, width = image.shape[-2:]
    _check_sizes((height, width), targets)
    below, beside = size[0] - height, size[1] - width
    if below < 0 or beside < 0:
        raise DataError(f"Expected at most {size[0]}x{size[1]} pixels (height x width), but got {height}x{width}.")
    if not (below or beside):
        return image, dict(targets)
    canvas = image.new_tensor(MEAN_COLOUR[: len(image)]).view(-1, 1, 1).repeat(1, *size)
    canvas[:, :height, :width] = image
    extended = {name: F.pad(t, (0, beside, 0, below), value=tasks[name].ignore) for name, t in targets.items()}
    return canvas, extended


Axis = tuple[Tensor, ...]
"""Where new pixels' centres lie along one old axis: a sum of parts (1 W and H 1), old centres being at i + 1/2.

Kept apart, parts cost nothing until the last step: only after a rotation does an axis depend on row and column.
"""


def _axes(
    old: tuple[int, int], new: tuple[int, int], factor: float, start: tuple[float, float], mirror: bool
) -> tuple[Axis, Axis]:
    y, x = (_along(*axis, factor) for axis in zip(old, new, start, strict=True))
    return ((x.flip(0) if mirror else x)[None],), (y[:, None],)


def _along(old: int, new: int, start: float, factor: float) -> Tensor:
    return start * (old - new / factor) + (torch.arange(new, dtype=torch.float32) + 0.5) / factor


def _turned(axes: tuple[Axis, Axis], old: tuple[int, int], degrees: float) -> tuple[Axis, Axis]:
    """Return the places in a picture that is rotated about its centre: the opposite turn leads back to them."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    ((x,), (y,)), (middle_y, middle_x) = axes, (n / 2 for n in old)
    x, y = x - middle_x, y - middle_y
    # y points down: a turn to the left, as seen, takes (x, y) to (cos x + sin y, cos y - sin x).
    return (cos * x + middle_x, -sin * y), (sin * x + middle_y, cos * y)


class _Pixels(NamedTuple):
    """Which old pixel each new one shows, both counted row after row.

    Attributes:
        shown: int32, the old pixel of each new one.
        border: int64, the new pixels that show none, ascending.
        size: H, W of the new picture.
    """

    shown: Tensor
    border: Tensor
    size: tuple[int, int]

    @classmethod
    def at(cls, axes: tuple[Axis, Axis], old: tuple[int, int]) -> _Pixels:
        """Return the pixels that the places lie in: a place p lies in pixel floor(p)."""
        x, y = (functools.reduce(torch.add, axis) for axis in axes)
        border = np.flatnonzero(_outside(x, old[1]) | _outside(y, old[0]))
        shown = _clamped(y, old[0]).mul_(old[1]) + _clamped(x, old[1])
        return cls(shown.flatten(), torch.from_numpy(border), (shown.shape[0], shown.shape[1]))

    def of(self, picture: Tensor, border: float | tuple[float, ...]) -> Tensor:
        """Return the new picture (... H W) of an old one, borders filled with a value or with one a channel."""
        shown = picture.flatten(-2).index_select(-1, self.shown).view(*picture.shape[:-2], *self.size)
        return self.framed(shown, border)

    def framed(self, picture: Tensor, border: float | tuple[float, ...]) -> Tensor:
        """Fill the borders of a new picture, in place."""
        channels = picture.view(-1, self.size[0] * self.size[1])
        values = border if isinstance(border, tuple) else (border,) * len(channels)
        for channel, value in zip(channels, values, strict=True):
            channel.index_fill_(0, self.border, value)
        return picture


def _outside(places: Tensor, count: int) -> Array:
    values = places.numpy()  # which compares three times faster than torch
    return (values < -_ROUNDING) | (values >= count + _ROUNDING)


def _clamped(places: Tensor, count: int) -> Tensor:
    return places.clamp(0, count - 1).to(torch.int32)


def _interpolated(image: Tensor, axes: tuple[Axis, Axis], size: tuple[int, int]) -> Tensor:
    grid = image.new_empty(*size, 2)
    for k, (axis, count) in enumerate(zip(axes, (image.shape[-1], image.shape[-2]), strict=True)):
        first, *rest = (part * 2 / count for part in axis)
        grid[..., k] = functools.reduce(torch.add, rest, first - 1)
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def _labelled_only(task: DenseTask, before: Tensor, after: Tensor) -> Tensor:
    """Return the changed values where there is a label, and the ignored value elsewhere."""
    if after is before:
        return before
    channels = before.numpy() if before.ndim == 3 else before.numpy()[None]
    # A vector is ignored where all its components are; `all` over so few is ten times slower.
    ignored = functools.reduce(np.logical_and, (channel == task.ignore for channel in channels))
    return torch.where(torch.from_numpy(ignored), before, after)


def _check_view(degrees: float, factor: float, top: float, left: float, size: tuple[int, int]) -> None:
    if not (math.isfinite(degrees) and 0 < factor < math.inf):
        raise ConfigError(f"Expected a finite angle and a positive zoom, but got {degrees} degrees and {factor}.")
    if not (0 <= top <= 1 and 0 <= left <= 1 and min(size) >= 1):
        raise ConfigError(f"Expected a window of pixels at a place in [0, 1], but got {size} at ({top}, {left}).")


def _check_sizes(size: tuple[int, int], targets: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        if target.shape[-2:] != size:
            raise DataError(f"Expected `{name}` of the image's size {size}, but got {tuple(target.shape[-2:])}.")
