"""Joint transforms of an image and its targets: where pixels go is said here, what their values become by each task.

Targets take the nearest pixel, so that labels stay labels, normals stay unit vectors, and no ignored value is ever
mixed with a known one. An ignored pixel stays ignored: a task's rule for values is applied to labelled pixels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_cl.errors import ConfigError

if TYPE_CHECKING:
    from medusa_cl.tasks import DenseTask

Targets = dict[str, Tensor]


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
) -> tuple[Tensor, Targets]:
    """Enlarge a window of 1/factor of each side to the full size; `on_zoom` changes the values (depth is divided).

    Seen with the same camera, a picture enlarged by `factor` is a world nearer by it: hence depth / factor.

    Args:
        image: 3 H W, float; interpolated bilinearly.
        targets: {task: H W or C H W}, as the data gives them.
        tasks: The tasks of these targets, by name; more are no matter.
        factor: At least 1, so that there is no border without a picture.
        top: Where the window stands in the room it has, in [0, 1]: 0 at the upper border, 1 at the lower one.
        left: The same from the left border to the right one.

    Returns:
        Image and targets, of the size they had.

    Raises:
        ConfigError: The factor is below 1, or the place is not in [0, 1].
    """
    if not (factor >= 1 and 0 <= top <= 1 and 0 <= left <= 1):
        raise ConfigError(f"Expected a zoom of at least 1 at a place in [0, 1], but got {factor} at ({top}, {left}).")
    rows, columns = _places(image.shape[-2], factor, top), _places(image.shape[-1], factor, left)
    moved = {}
    for name, target in targets.items():
        # A place p lies in pixel floor(p); the last one's sum may round up to the size.
        y, x = (places.long().clamp(max=n - 1) for places, n in zip((rows, columns), target.shape[-2:], strict=True))
        enlarged = target[..., y[:, None], x]
        moved[name] = _labelled_only(tasks[name], enlarged, tasks[name].on_zoom(enlarged, factor))
    return _interpolated(image, rows, columns), moved


def _places(size: int, factor: float, start: float) -> Tensor:
    """Return where the centres of the `size` new pixels lie among the old ones, whose own centres lie at i + 1/2."""
    return start * (size - size / factor) + (torch.arange(size, dtype=torch.float32) + 0.5) / factor


def _interpolated(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    y, x = (places * 2 / len(places) - 1 for places in (rows, columns))
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def _labelled_only(task: DenseTask, before: Tensor, after: Tensor) -> Tensor:
    """Return the changed values where there is a label, and the ignored value elsewhere."""
    if after is before:
        return before
    ignored = before == task.ignore
    if before.ndim == 3:  # a vector is ignored where all its components are
        ignored = ignored.all(dim=0, keepdim=True)
    return torch.where(ignored, before, after)
