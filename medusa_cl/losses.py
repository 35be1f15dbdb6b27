"""Losses of dense tasks: functions (logits, target) -> (sum, count) that never read ignored values.

Every function takes logits B K H W already at the target's size (see `at_size`) and returns two float32 scalars: the
sum of the loss over valid values, with its graph, and how many values it counts, without one. The mean is theirs to
divide, so batches, accumulation steps and processes can be pooled without weighting a half-empty image like a full one.
Nothing valid gives (0, 0), and 0 gradients.

Ignored pixels are replaced on the *inputs*: masking a finished loss map would leave NaN * 0 = NaN in the gradient.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "IGNORED_LABEL",
    "UNKNOWN",
    "at_size",
    "balanced_bce",
    "class_frequencies",
    "cross_entropy",
    "l1_curvature",
    "l1_depth",
    "l1_normals",
    "l1_regression",
    "l1_reshading",
    "valid_curvature",
    "valid_depth",
    "valid_labels",
    "valid_map",
    "valid_normals",
    "valid_values",
    "weighted_bce",
]

IGNORED_LABEL = 255
UNKNOWN = -1e9  # the ignored value of quantities that may take any other; exact in float32
MAX_CURVATURE = 10.0
STRIDE = 32  # images are padded to a multiple of the backbone's coarsest stride
# A predicted normal shorter than this is divided by this: bounds the gradient of the normalisation near the origin.
MIN_LENGTH = 1e-3


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a head's answer to the image it belongs to: the one place where predictions are resized.

    Args:
        logits: B K h w, float; the answer for the image padded at the bottom and right to a multiple of 32.
        size: H, W of the image before padding.

    Returns:
        B K H W: bilinear (align_corners=False) to the padded size, then cropped.
    """
    height, width = (-(-n // STRIDE) * STRIDE for n in size)
    if logits.shape[-2:] == (height, width):
        return logits[..., : size[0], : size[1]]
    rows = _interpolation(logits.shape[-2], size[0], logits.device)
    columns = _interpolation(logits.shape[-1], size[1], logits.device)
    # Two matrix products: several times faster than the library's kernel backwards, and deterministic on CUDA.
    with torch.autocast(logits.device.type, enabled=False):
        return rows @ (logits.float() @ columns.T)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _interpolation(known: int, wanted: int, device: torch.device) -> Tensor:
    """Return the matrix (wanted, known) of 1-d bilinear interpolation to the padded size, cropped to `wanted` rows."""
    padded = -(-wanted // STRIDE) * STRIDE
    place = ((torch.arange(wanted, dtype=torch.float32) + 0.5) * known / padded - 0.5).clamp(min=0)
    low = place.floor().long().clamp(max=known - 1)
    high = (low + 1).clamp(max=known - 1)
    matrix = torch.zeros(wanted, known)
    matrix[torch.arange(wanted), low] += 1 - (place - low)
    matrix[torch.arange(wanted), high] += place - low
    return matrix.to(device)


def valid_labels(target: Tensor) -> Tensor:
    """Where a class map B H W holds a class: everything but 255."""
    return target != IGNORED_LABEL


def valid_depth(target: Tensor) -> Tensor:
    """Where a depth map in metres is measured: positive and finite (0 is ignored)."""
    return (target > 0) & (target < math.inf)


def valid_normals(target: Tensor) -> Tensor:
    """Where a normal map B 3 H W holds a unit vector, as B 1 H W (the zero vector is ignored).

    Half the unit length is the border, so that rounding of stored vectors matters on neither side.
    """
    squared = _squared_length(target)
    return (squared > 0.25) & (squared < math.inf)


def valid_map(target: Tensor) -> Tensor:
    """Where a map with values in [0, 1] is known: not above 1.5 (255 by convention), not negative, not NaN."""
    return (target >= 0) & (target <= 1.5)


def valid_curvature(target: Tensor) -> Tensor:
    """Where a curvature in 1/m is known: at most 10 in magnitude (255 by convention is not)."""
    return target.abs() <= MAX_CURVATURE


def valid_values(target: Tensor) -> Tensor:
    """Where a quantity of any range is known: finite, and not -1e9."""
    return (target > UNKNOWN) & (target < math.inf)


def cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of classes.

    Args:
        logits: B K H W, float, any value.
        target: B H W, int64, classes 0..K-1; 255 is ignored.

    Returns:
        Sum over valid pixels in nats; number of valid pixels.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    _check_shapes(logits, target, expected=(logits.shape[0], *logits.shape[2:]))
    valid = valid_labels(target)
    logits = _keep(logits.float(), valid.unsqueeze(1))
    return F.cross_entropy(logits, target, ignore_index=IGNORED_LABEL, reduction="sum"), _count(valid)


def l1_depth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of depth.

    Args:
        logits: B 1 H W, float, metres.
        target: B 1 H W, float, metres; 0 is ignored.

    Returns:
        Sum of absolute errors in metres; number of valid pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    return _l1(logits, target, valid_depth(target))


def l1_reshading(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of a map in [0, 1]: reshading, key points, albedo.

    Args:
        logits: B K H W, float.
        target: B K H W, float in [0, 1]; values above 1.5 (255) are ignored.

    Returns:
        Sum of absolute errors; number of valid values.

    Raises:
        ValueError: If the shapes differ.
    """
    return _l1(logits, target, valid_map(target))


def l1_curvature(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of principal curvatures.

    Args:
        logits: B 2 H W, float, 1/m.
        target: B 2 H W, float, 1/m in [-10, 10]; larger magnitudes (255) are ignored.

    Returns:
        Sum of absolute errors over both curvatures; number of valid values.

    Raises:
        ValueError: If the shapes differ.
    """
    return _l1(logits, target, valid_curvature(target))


def l1_regression(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of a quantity of any range.

    Args:
        logits: B C H W, float.
        target: B C H W, float; -1e9 and what is not finite is ignored.

    Returns:
        Sum of absolute errors over the components; number of valid values.

    Raises:
        ValueError: If the shapes differ.
    """
    return _l1(logits, target, valid_values(target))


def l1_normals(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error of surface normals, after the logits are L2-normalised.

    Args:
        logits: B 3 H W, float, any length.
        target: B 3 H W, float unit vectors; the zero vector is ignored.

    Returns:
        Sum of absolute errors over the three components; 3 x the number of valid pixels. The count is of components,
        not of pixels: published code does it either way, and a loss weight means three times more under the other.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(logits, target, expected=tuple(logits.shape))
    valid = valid_normals(target)
    logits, target = _kept(valid, logits.float(), target)
    total: Tensor = _DirectionError.apply(logits, target)
    return total, 3 * _count(valid)


class _DirectionError(torch.autograd.Function):
    """Sum of |v / |v| - t| over vectors B 3 H W; with its derivative written out, in half the passes over memory.

    With u = v / |v| and s = sign(u - t) the gradient is (s - u (u . s)) / |v|; where |v| is below MIN_LENGTH, v is
    divided by that and the gradient is s / MIN_LENGTH.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, target: Tensor) -> Tensor:
        """Return the sum, a scalar."""
        squared = _squared_length(vectors)
        shrink = squared.clamp(min=MIN_LENGTH**2).rsqrt()
        unit = vectors * shrink
        error = unit - target
        ctx.save_for_backward(unit, error, shrink, squared)
        return error.abs().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the vectors."""
        unit, error, shrink, squared = ctx.saved_tensors
        sign = error.sign()
        along = _dot(sign, unit) * (squared > MIN_LENGTH**2)
        return torch.addcmul(sign, unit, along, value=-1).mul_(shrink * given), None


def weighted_bce(logits: Tensor, target: Tensor, positive_weight: float = 0.95) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy with fixed class weights, for edges.

    Args:
        logits: B 1 H W, float, before the sigmoid.
        target: B 1 H W, float, 0 or 1; values above 1.5 (255) are ignored.
        positive_weight: Weight of the ones, in [0, 1]; the zeros get the rest.

    Returns:
        Sum of the weighted loss in nats; number of valid pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    return _bce(logits, target, valid_map(target), positive_weight)


def class_frequencies(target: Tensor) -> Tensor:
    """Count the classes of a binary target.

    Args:
        target: B 1 H W, float, 0 or 1; values above 1.5 (255) are ignored.

    Returns:
        float32 2: how many valid pixels are zeros, and how many are valid.
    """
    valid = valid_map(target)
    return torch.stack([(1 - _keep(target.float(), valid)).where(valid, 0).sum(), _count(valid)])


def balanced_bce(logits: Tensor, target: Tensor, frequencies: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy in which both classes of the batch weigh the same, for saliency.

    The ones weigh the share of zeros among the batch's valid pixels and the zeros the share of ones. A batch of one
    class only therefore has the loss 0: there is nothing to balance it against.

    Args:
        logits: B 1 H W, float, before the sigmoid.
        target: B 1 H W, float, 0 or 1; values above 1.5 (255) are ignored.
        frequencies: `class_frequencies` of the whole batch, where this is a share of it; None counts the target's own.

    Returns:
        Sum of the weighted loss in nats; number of valid pixels.

    Raises:
        ValueError: If the shapes differ.
    """
    zeros, count = class_frequencies(target) if frequencies is None else frequencies
    return _bce(logits, target, valid_map(target), zeros / count.clamp(min=1))


def _bce(logits: Tensor, target: Tensor, valid: Tensor, positive_weight: Tensor | float) -> tuple[Tensor, Tensor]:
    _check_shapes(logits, target, expected=tuple(logits.shape))
    target = _keep(target.float(), valid)
    weight = positive_weight * target + (1 - positive_weight) * (1 - target)
    logits = _keep(logits.float(), valid)
    total = F.binary_cross_entropy_with_logits(logits, target, weight=_keep(weight, valid), reduction="sum")
    return total, _count(valid)


def _l1(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(logits, target, expected=tuple(logits.shape))
    logits, target = _kept(valid, logits.float(), target)
    return (logits - target).abs().sum(), _count(valid)


def _keep(values: Tensor, valid: Tensor) -> Tensor:
    """Values where valid, 0 elsewhere, with a gradient of exactly 0 there."""
    return _kept(valid, values)[0]


def _kept(valid: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    if valid.device.type == "cpu" and bool(valid.all()):
        return tensors  # there, a look costs less than two copies
    return tuple(torch.where(valid, values, values.new_zeros(())) for values in tensors)


def _squared_length(vectors: Tensor) -> Tensor:
    return _dot(vectors, vectors)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """B 3 H W -> B 1 H W; by component, as a reduction over so short a dimension is several times slower."""
    (ax, ay, az), (bx, by, bz) = one.unbind(1), other.unbind(1)
    return (ax * bx + ay * by + az * bz).unsqueeze(1)


def _count(valid: Tensor) -> Tensor:
    return valid.sum().float()


def _check_shapes(logits: Tensor, target: Tensor, expected: tuple[int, ...]) -> None:
    # B 1 H W against B H W would broadcast to B B H W without a word.
    if tuple(target.shape) != expected:
        raise ValueError(
            f"Expected a target of shape {expected} for logits of shape {tuple(logits.shape)}, "
            f"but got {tuple(target.shape)}. "
            "Resize the logits with at_size(logits, target.shape[-2:]) and keep the batch dimension."
        )
