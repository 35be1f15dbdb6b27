"""Dataset-level metrics of dense tasks.

Every metric pools plain sums over all valid pixels it has seen, in states of fixed size that add up, so the value does
not depend on how the images were batched, ordered or spread over processes. ``update(prediction, target)`` takes
predictions as a task decodes them, at the target's size; ``compute()`` gives a dictionary of scalars, the primary one
first. Ignored pixels count nowhere, neither their target nor what was predicted there; what is undefined (nothing valid
seen, no edge to be found) is NaN, never 0.

No ``update`` but that of edges makes the host wait for the device: what is ignored is replaced, never picked out, since
the size of what is left would have to be known first.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from medusa_cl.data.geometry import BoolMap, thin
from medusa_cl.losses import IGNORED_LABEL, valid_depth, valid_map, valid_normals

__all__ = [
    "DepthMetric",
    "EdgeMetric",
    "ErrorMetric",
    "NormalsMetric",
    "SaliencyMetric",
    "SegmentationMetric",
    "match_edges",
    "ridges",
]

FloatMap = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


class _PooledMetric(Metric):
    """A metric whose states are sums: adds them up over batches and processes."""

    is_differentiable = False
    full_state_update = False

    def _add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class SegmentationMetric(_PooledMetric):
    """Mean intersection over union from one confusion matrix, and pixel accuracy; both in percent.

    A class absent from both predictions and targets of the whole split is left out of the mean (so does torchmetrics'
    ``MulticlassJaccardIndex(average="macro", ignore_index=255)``, whose value this is); a class that is only predicted
    counts as 0.

    Args:
        num_classes: K, the number of classes, at most 255.
        ignore_index: The target value to ignore.
    """

    higher_is_better = True
    confusion: Tensor
    wrong: Tensor

    def __init__(self, num_classes: int, ignore_index: int = IGNORED_LABEL, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._add_sum("confusion", num_classes, num_classes, dtype=torch.int64)
        self._add_sum("wrong", dtype=torch.int64)  # valid pixels of a class that there is not

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count class pairs.

        Args:
            prediction: B H W, int64, classes 0..K-1.
            target: B H W, int64, classes 0..K-1; 255 is ignored.

        Raises:
            ValueError: If the shapes differ, or a valid value is not one of the K classes. Of values on another device
                than the CPU that is said by `compute`.
        """
        _check_shapes(prediction, target)
        valid = target != self.ignore_index
        known = self._is_class(prediction) & self._is_class(target)
        pair = target.long() * self.num_classes + prediction.long()
        counts = _histogram(pair.where(known, self.num_classes**2), valid, self.num_classes**2 + 1)
        if target.device.type == "cpu" and counts[-1]:
            self._refuse(prediction[valid], target[valid])
        self.confusion += counts[:-1].view(self.num_classes, self.num_classes)
        self.wrong += counts[-1]

    def compute(self) -> dict[str, Tensor]:
        """Return miou and pixel_accuracy in percent.

        Raises:
            ValueError: A valid value was not one of the K classes.
        """
        if self.wrong:
            raise ValueError(
                f"Expected prediction and target classes in 0..{self.num_classes - 1}, but got others in "
                f"{int(self.wrong)} valid pixels. {self._advice}"
            )
        confusion = self.confusion.double()
        hit = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - hit
        present = union > 0
        miou = (hit[present] / union[present]).mean()
        return {"miou": 100 * miou, "pixel_accuracy": 100 * hit.sum() / confusion.sum()}

    def _is_class(self, values: Tensor) -> Tensor:
        return (values >= 0) & (values < self.num_classes)

    def _refuse(self, predicted: Tensor, true: Tensor) -> NoReturn:
        name, values = ("target", true) if bool(self._is_class(predicted).all()) else ("prediction", predicted)
        raise ValueError(
            f"Expected {name} classes in 0..{self.num_classes - 1}, but got {int(values.min())}..{int(values.max())}. "
            f"{self._advice}"
        )

    @property
    def _advice(self) -> str:
        return f"Set the task's number of classes to that of the data, or mark unknown pixels {self.ignore_index}."


class DepthMetric(_PooledMetric):
    """Root mean square error in metres; mean absolute relative error; percent of pixels within a factor 1.25."""

    higher_is_better = False
    squared: Tensor
    relative: Tensor
    within: Tensor
    pixels: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("squared", "relative", "within", "pixels"):
            self._add_sum(name)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add errors.

        Args:
            prediction: B 1 H W, float, metres; any sign.
            target: B 1 H W, float, metres; 0 is ignored.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(prediction, target)
        valid = valid_depth(target)
        predicted, true = (values.double().where(valid, ignored) for values, ignored in ((prediction, 0), (target, 1)))
        error = (predicted - true).where(valid, 0)
        self.squared += error.square().sum()
        self.relative += (error.abs() / true).sum()
        # Written as products, so that a prediction of zero or below is a miss and divides nothing.
        self.within += ((predicted < 1.25 * true) & (true < 1.25 * predicted)).sum()  # 0 against 1 is a miss
        self.pixels += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return rmse (m), abs_rel and delta1 (percent)."""
        return {
            "rmse": (self.squared / self.pixels).sqrt(),
            "abs_rel": self.relative / self.pixels,
            "delta1": 100 * self.within / self.pixels,
        }


class ErrorMetric(_PooledMetric):
    """Root mean square and mean absolute error of a quantity, in its unit.

    Args:
        valid: `target -> booleans` of the same shape: which values are known, one of the `valid_...` of `losses`.
        primary: Which of the two comes first, "rmse" or "mae".
    """

    higher_is_better = False
    squared: Tensor
    absolute: Tensor
    values: Tensor

    def __init__(self, valid: Callable[[Tensor], Tensor] = valid_map, primary: str = "rmse", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._valid, self._primary = valid, primary
        for name in ("squared", "absolute", "values"):
            self._add_sum(name)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add errors.

        Args:
            prediction: B C H W, float.
            target: B C H W, float; what is not valid is ignored.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(prediction, target)
        valid = self._valid(target)
        errors = (prediction.double() - target.double()).where(valid, 0)
        self.squared += errors.square().sum()
        self.absolute += errors.abs().sum()
        self.values += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return rmse and mae; NaN where nothing is valid."""
        errors = {"rmse": (self.squared / self.values).sqrt(), "mae": self.absolute / self.values}
        return dict(sorted(errors.items(), key=lambda item: item[0] != self._primary))


class NormalsMetric(_PooledMetric):
    """Angle between predicted and true normals: mean and median in degrees, percent under 11.25, 22.5 and 30 degrees.

    Angles are atan2(|p x t|, p . t) in float64: exact near 0, where arccos loses half the digits. A predicted vector
    without a direction (zero or not finite) counts as 90 degrees, what a blind guess gets on average. Mean and
    percentages are exact; the median is read from a histogram of 18000 bins of 0.01 degrees, so it is right to within
    0.005.
    """

    higher_is_better = False
    WITHIN = (11.25, 22.5, 30.0)
    BINS = 18000
    angles: Tensor
    within: Tensor
    histogram: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sum("angles")
        self._add_sum("within", len(self.WITHIN))
        self._add_sum("histogram", self.BINS, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add angles.

        Args:
            prediction: B 3 H W, float, vectors of any length.
            target: B 3 H W, float, unit vectors; the zero vector is ignored.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(prediction, target)
        valid = valid_normals(target).squeeze(1)
        angles = _angles(prediction.double(), target.double()).where(valid, 0)
        self.angles += angles.sum()
        self.within += torch.stack([((angles < limit) & valid).sum() for limit in self.WITHIN])
        bins = (angles * (self.BINS / 180)).long().clamp(max=self.BINS - 1)
        self.histogram += _histogram(bins, valid, self.BINS)

    def compute(self) -> dict[str, Tensor]:
        """Return mean, median (degrees), within_11_25, within_22_5 and within_30 (percent)."""
        pixels = self.histogram.sum()
        within = 100 * self.within / pixels
        shares = {"within_" + f"{limit:g}".replace(".", "_"): within[i] for i, limit in enumerate(self.WITHIN)}
        return {"mean": self.angles / pixels, "median": self._median(), **shares}

    def _median(self) -> Tensor:
        below = self.histogram.cumsum(0)
        pixels = below[-1]
        if pixels == 0:
            return torch.full_like(self.angles, math.nan)
        middle = torch.stack([(pixels - 1) // 2, pixels // 2])  # both middle ranks of an even number of pixels
        bins = torch.searchsorted(below, middle, right=True)
        return (bins.double().mean() + 0.5) * (180 / self.BINS)


class SaliencyMetric(_PooledMetric):
    """Best F-measure (beta^2 = 0.3) over 255 thresholds, and intersection over union at 0.5; both in percent.

    Threshold k = 0..254 calls a pixel salient where its probability is above k / 255. Counts are pooled over the split
    at each threshold before F is formed. F is undefined if nothing in the split is salient.
    """

    higher_is_better = True
    THRESHOLDS = 255
    BETA_SQUARED = 0.3
    passed: Tensor
    at_half: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sum("passed", 2, self.THRESHOLDS + 1, dtype=torch.int64)  # class x number of thresholds passed
        self._add_sum("at_half", 2, dtype=torch.int64)  # intersection, union

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count pixels by class and thresholds passed.

        Args:
            prediction: B 1 H W, float, probability of being salient.
            target: B 1 H W, float, 0 or 1; values above 1.5 (255) are ignored.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(prediction, target)
        valid = valid_map(target)
        probability, salient = prediction.float(), target > 0.5
        thresholds = torch.arange(self.THRESHOLDS, device=probability.device, dtype=torch.float32) / self.THRESHOLDS
        bins = self.THRESHOLDS + 1
        passed = torch.bucketize(probability, thresholds)  # how many thresholds are strictly below
        self.passed += _histogram(passed + bins * salient, valid, 2 * bins).view(2, bins)
        half, salient = (probability > 0.5) & valid, salient & valid
        self.at_half += torch.stack([(half & salient).sum(), (half | salient).sum()])

    def compute(self) -> dict[str, Tensor]:
        """Return max_f and iou in percent."""
        at_least = self.passed.flip(1).cumsum(1).flip(1)[:, 1:].double()  # pixels that pass threshold k, by class
        false_hits, hits = at_least
        positives = self.passed[1].sum()
        score = (1 + self.BETA_SQUARED) * hits / (self.BETA_SQUARED * positives + hits + false_hits)
        best = score.max() if positives > 0 else torch.full_like(score[0], math.nan)
        return {"max_f": 100 * best, "iou": 100 * self.at_half[0].double() / self.at_half[1]}


class EdgeMetric(_PooledMetric):
    """Best F-measure of edges over 19 thresholds, with a tolerance; precision and recall there; all in percent.

    The probability is thinned to its ridges, the target to lines of one pixel. At each threshold, precision is the
    share of predicted pixels within the tolerance of a target pixel, recall the share of target pixels within the
    tolerance of a predicted one; counts are pooled over the split before F is formed. Pixels are not matched one to
    one, so this is not the ODS-F of the Berkeley benchmark.

    The tolerance is max(1, tolerance x diagonal) pixels, compared with exact Euclidean distances and not rounded: 0.005
    at 128 x 160 is 1.02, that is the four nearest neighbours; 0.011 at 480 x 640 is 8.8. F is undefined if the split
    has no edge; precision is if nothing is predicted at any threshold (F and recall are 0 then).

    Args:
        tolerance: Fraction of the diagonal of the image, without what is ignored all along its bottom and its right
            (padding).
    """

    higher_is_better = True
    THRESHOLDS = (np.arange(1, 20, dtype=np.float32) / np.float32(20)).astype(np.float32)  # .05 ... .95
    predicted: Tensor
    correct: Tensor
    found: Tensor
    edges: Tensor

    def __init__(self, tolerance: float = 0.011, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tolerance = tolerance
        for name in ("predicted", "correct", "found"):
            self._add_sum(name, len(self.THRESHOLDS), dtype=torch.int64)
        self._add_sum("edges", dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count matches of each image (on the CPU; all that is needed for it is fetched at once).

        Args:
            prediction: B 1 H W, float, probability of being an edge.
            target: B 1 H W, float, 0 or 1; values above 1.5 (255) are ignored.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(prediction, target)
        maps = torch.cat([prediction.detach().float(), target > 0.5, valid_map(target)], dim=1).cpu().numpy()
        counts = [self._match(probability, edge > 0, known > 0) for probability, edge, known in maps]
        for name, images in zip(("predicted", "correct", "found", "edges"), zip(*counts, strict=True), strict=False):
            state = getattr(self, name)
            state += torch.as_tensor(np.sum(images, axis=0), device=state.device)

    def _match(self, probability: FloatMap, edge: BoolMap, known: BoolMap) -> tuple[Counts, Counts, Counts, Counts]:
        height, width = _extent(known)
        # Cut off, not masked: ridges beside the border are measured as where there is no padding.
        inner = (slice(height), slice(width))
        radius = max(1.0, self.tolerance * math.hypot(height, width))
        return match_edges(probability[inner], edge[inner], known[inner], radius, self.THRESHOLDS)

    def compute(self) -> dict[str, Tensor]:
        """Return edge_f, precision and recall in percent."""
        precision = self.correct.double() / self.predicted
        recall = self.found.double() / self.edges
        score = 2 * precision * recall / (precision + recall)
        # No prediction at a threshold, or no match at all: F is 0 there, as long as there is something to find.
        score = torch.where(self.correct > 0, score, torch.zeros_like(score))
        best = int(score.argmax())
        edge_f = score[best] if self.edges > 0 else torch.full_like(score[best], math.nan)
        return {"edge_f": 100 * edge_f, "precision": 100 * precision[best], "recall": 100 * recall[best]}


def match_edges(
    probability: FloatMap, edge: BoolMap, valid: BoolMap, radius: float, thresholds: FloatMap
) -> tuple[Counts, Counts, Counts, Counts]:
    """Compare one predicted edge map with its target.

    Args:
        probability: H W, probability of being an edge; values where not valid are not used.
        edge: H W, the target's edges.
        valid: H W, where the target is known.
        radius: Tolerance in pixels.
        thresholds: T rising values; a ridge pixel is predicted at those not above its probability.

    Returns:
        Pixels predicted at each threshold (T); those of them within the tolerance of an edge (T); edge pixels within
        the tolerance of a predicted one at each threshold (T); edge pixels (scalar).
    """
    crest = ridges(np.where(valid, probability, np.float32(0)))
    line = thin(edge & valid)
    # The EDT of a map without zeros is not defined: without an edge nothing is near one.
    near = ndimage.distance_transform_edt(~line) <= radius if line.any() else np.zeros_like(line)
    predicted = _passed(crest[valid], thresholds)
    correct = _passed(crest[valid & near], thresholds)
    found = _passed(_highest_within(crest, line, radius), thresholds)
    return predicted, correct, found, np.asarray(line.sum(), dtype=np.int64)


def ridges(probability: FloatMap, sigma: float = 1.0) -> FloatMap:
    """Keep a map where it is highest across its own ridge, and set it to 0 elsewhere.

    The direction across a ridge is that of the strongest downward curvature (the eigenvector of the most negative
    eigenvalue of the Hessian, after a Gaussian). A pixel stays if it is above its neighbour one pixel to one side and
    not below the one on the other side, both interpolated bilinearly: on a plateau of two equal pixels exactly one
    stays. Outside the image the map is 0.

    Args:
        probability: H W, float32, >= 0.
        sigma: Width in pixels of the Gaussian that the curvature is measured with.

    Returns:
        H W, float32.
    """
    order = {"xx": (0, 2), "yy": (2, 0), "xy": (1, 1)}
    h = {axes: ndimage.gaussian_filter(probability, sigma, order=n, mode="nearest") for axes, n in order.items()}
    # The axis of the largest eigenvalue is at atan2(2 Hxy, Hxx - Hyy) / 2; the most negative one is orthogonal to it.
    across = 0.5 * np.arctan2(2 * h["xy"], h["xx"] - h["yy"]) + np.pi / 2
    step = np.stack([np.sin(across), np.cos(across)])
    here = np.indices(probability.shape, dtype=np.float32)
    one, other = (
        ndimage.map_coordinates(probability, here + sign * step, order=1, mode="constant", cval=0.0) for sign in (-1, 1)
    )
    return np.where((probability > one) & (probability >= other), probability, np.float32(0))


def _highest_within(crest: FloatMap, line: BoolMap, radius: float) -> FloatMap:
    """The highest crest within the radius of each pixel of a line.

    A pixel at distance d <= radius of a prediction at threshold t is one with a crest >= t in its disc: all thresholds
    at once, instead of a distance transform for each.
    """
    reach = math.floor(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = dy**2 + dx**2 <= radius**2
    padded = np.pad(crest, reach)
    y, x = np.nonzero(line)
    disc = padded[(y + reach)[:, None] + dy[inside], (x + reach)[:, None] + dx[inside]]
    highest: FloatMap = disc.max(axis=1)
    return highest


def _extent(known: BoolMap) -> tuple[int, int]:
    """H, W up to the last row and column of which something is known; 1, 1 where nothing is."""
    places = np.argwhere(known)
    height, width = places.max(axis=0) + 1 if len(places) else (1, 1)
    return int(height), int(width)


def _passed(values: FloatMap, thresholds: FloatMap) -> Counts:
    """How many values are at or above each threshold."""
    bins = np.bincount(np.searchsorted(thresholds, values, side="right"), minlength=len(thresholds) + 1)
    return bins[::-1].cumsum()[::-1][1:].astype(np.int64)


def _histogram(bins: Tensor, valid: Tensor, size: int) -> Tensor:
    """How many valid values are in each of `size` bins, int64; bins and valid of one shape.

    Not by `bincount`, which makes the host wait for the largest value on CUDA.
    """
    counts = torch.zeros(size, dtype=torch.int64, device=bins.device)
    # Not valid is bin 0, with a weight of 0: what stood there may be no bin at all.
    return counts.index_add_(0, bins.where(valid, 0).flatten(), valid.flatten().long())


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """B 3 H W -> B H W: angles in degrees between vectors; 90 where `one` has no direction."""
    # By component, as a reduction over so short a dimension is several times slower.
    (ax, ay, az), (bx, by, bz) = one.unbind(1), other.unbind(1)
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    angles = torch.rad2deg(torch.atan2((x * x + y * y + z * z).sqrt(), ax * bx + ay * by + az * bz))
    size = ax.abs() + ay.abs() + az.abs()
    return angles.where((size > 0) & size.isfinite(), 90.0)


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"Expected a prediction of the target's shape {tuple(target.shape)}, but got {tuple(prediction.shape)}. "
            "Decode the logits at the target's size: task.decode(at_size(logits, target.shape[-2:]))."
        )
