"""Metrics against implementations from outside: torchmetrics, scikit-image, scipy and loops written by hand."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics.functional as reference
import torchmetrics.functional.classification as classification
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.draw import circle_perimeter, line
from skimage.morphology import thin as skimage_thin
from torch import Tensor
from torchmetrics import Metric

from fake_data import fake_scene
from medusa_cl import metrics
from medusa_cl.losses import valid_curvature

H, W, K = 24, 30, 5
DIAGONAL = math.hypot(H, W)


def random_lines(random: np.random.Generator, height: int = H, width: int = W, count: int = 4) -> np.ndarray:
    drawn = np.zeros((height, width), dtype=bool)
    for _ in range(count):
        drawn[line(*random.integers(0, [height, width, height, width]))] = True
        y, x, radius = random.integers(3, min(height, width) - 3, 3)
        drawn[circle_perimeter(y, x, max(2, radius // 3), shape=drawn.shape)] = True
    return drawn


def semseg_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.integers(0, K - 1, size)  # class K-1 never occurs in targets
    return np.where(random.random(size) < 0.5, target, random.integers(0, K, size)), target, 255


def depth_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.uniform(0.5, 8, (size[0], 1, *size[1:]))
    return target * random.normal(1, 0.3, target.shape), target, 0


def normals_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.normal(size=(size[0], 3, *size[1:]))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    return (
        (target + random.normal(0, 0.4, target.shape)) * random.uniform(0.1, 9, (*target.shape[:1], 1, 1, 1)),
        target,
        0,
    )


def curvature_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.normal(0, 3, (size[0], 2, *size[1:])).clip(-10, 10)
    return target + random.normal(0, 2, target.shape), target, 255


def map_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.random((size[0], 1, *size[1:]))
    return target + random.normal(0, 0.1, target.shape), target, 255


def saliency_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = random.random((size[0], 1, *size[1:])) < 0.3
    return np.clip(0.3 * target + random.random(target.shape) * 0.7, 0, 1), target, 255


def edges_case(random: np.random.Generator, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, float]:
    target = np.stack([random_lines(random, *size[1:]) for _ in range(size[0])])
    false = np.stack([random_lines(random, *size[1:], count=1) for _ in range(size[0])])
    moved = (np.roll(target, 1, axis=2) | false) * random.uniform(0.3, 1, target.shape)
    moved[:, : size[1] // 3] = 0  # missed
    blurred = ndimage.gaussian_filter(moved, (0, 0.8, 0.8)) * 2 + random.random(target.shape) * 0.1
    return np.clip(blurred, 0, 1)[:, None], target[:, None], 255


Case = Callable[[np.random.Generator, tuple[int, ...]], tuple[np.ndarray, np.ndarray, float]]
METRICS: dict[str, tuple[Callable[[], Metric], Case]] = {
    "semseg": (lambda: metrics.SegmentationMetric(K), semseg_case),
    "depth": (metrics.DepthMetric, depth_case),
    "normals": (metrics.NormalsMetric, normals_case),
    "reshading": (metrics.ErrorMetric, map_case),
    "curvature": (lambda: metrics.ErrorMetric(valid_curvature, primary="mae"), curvature_case),
    "saliency": (metrics.SaliencyMetric, saliency_case),
    "edges": (lambda: metrics.EdgeMetric(0.04), edges_case),
}
KEYS = {
    "semseg": ["miou", "pixel_accuracy"],
    "depth": ["rmse", "abs_rel", "delta1"],
    "normals": ["mean", "median", "within_11_25", "within_22_5", "within_30"],
    "reshading": ["rmse", "mae"],
    "curvature": ["mae", "rmse"],
    "saliency": ["max_f", "iou"],
    "edges": ["edge_f", "precision", "recall"],
}


def case(name: str, seed: int = 0, images: int = 3, ignored: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and the map B H W of ignored pixels; half of each image is free of holes."""
    random = np.random.default_rng(seed)
    prediction, target, mark = METRICS[name][1](random, (images, H, W))
    hole = random.random((images, H, W)) < ignored
    hole[:, :, : W // 2] &= ignored > 1
    kind = torch.int64 if name == "semseg" else torch.float32
    shown = hole if name == "semseg" else hole[:, None]
    return (
        torch.as_tensor(prediction).to(kind),
        torch.as_tensor(np.where(shown, mark, target)).to(kind),
        torch.as_tensor(hole),
    )


def value(name: str, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = METRICS[name][0]()
    for prediction, target in batches:
        metric.update(prediction, target)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")  # torchmetrics: called before update
        return {key: float(number) for key, number in metric.compute().items()}


def valid_values(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of valid pixels, N x channels, float64."""
    prediction, target, hole = case(name, seed)
    if name == "semseg":
        return prediction[~hole].numpy(), target[~hole].numpy()
    return prediction.movedim(1, -1)[~hole].double().numpy(), target.movedim(1, -1)[~hole].double().numpy()


# ---- every metric ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_keys_come_primary_first_and_are_scalars(name: str) -> None:
    prediction, target, _ = case(name)
    metric = METRICS[name][0]()
    metric.update(prediction, target)
    computed = metric.compute()
    assert list(computed) == KEYS[name]
    assert all(v.shape == () and v.isfinite() for v in computed.values())


@pytest.mark.parametrize("name", METRICS)
def test_nothing_seen_and_nothing_valid_are_nan_for_every_key(name: str) -> None:
    prediction, target, _ = case(name, ignored=2.0)
    for result in (value(name), value(name, (prediction, target)), value(name, (prediction[:0], target[:0]))):
        assert list(result) == KEYS[name] and all(math.isnan(v) for v in result.values())


@pytest.mark.parametrize("name", METRICS)
def test_an_image_without_valid_pixels_contributes_nothing(name: str) -> None:
    seen, empty = case(name), case(name, seed=1, ignored=2.0)
    assert value(name, seen[:2], empty[:2]) == value(name, seen[:2])


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_batching_and_order_do_not_matter(name: str, order: list[int], cut: int) -> None:
    prediction, target, _ = case(name, images=5)
    parts = [(prediction[rows], target[rows]) for rows in (order[:cut], order[cut:]) if rows]
    assert value(name, *parts) == pytest.approx(value(name, (prediction, target)), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_processes_add_up(name: str) -> None:
    one, two = METRICS[name][0](), METRICS[name][0]()
    first, second = case(name, seed=1), case(name, seed=2)
    one.update(*first[:2])
    two.update(*second[:2])
    one.merge_state(two)
    merged = {key: float(number) for key, number in one.compute().items()}
    assert merged == pytest.approx(value(name, first[:2], second[:2]), rel=1e-12)
    assert all(function.__name__ == "dim_zero_sum" for function in one._reductions.values())


OTHER_IGNORED = {
    "semseg": (255,),
    "depth": (0.0, -1.0, math.nan, math.inf),
    "normals": (0.0, 0.2, math.nan, math.inf),
    "reshading": (255.0, 2.0, math.nan, math.inf, -1.0),
    "curvature": (255.0, -10.5, math.nan, math.inf),
    "saliency": (255.0, 2.0, math.nan, math.inf, -1.0),
    "edges": (255.0, 2.0, math.nan, math.inf, -1.0),
}


@pytest.mark.parametrize("name", METRICS)
def test_ignored_values_change_nothing(name: str) -> None:
    prediction, target, hole = case(name)
    shown = hole if name == "semseg" else hole[:, None]
    expected = value(name, (prediction, target))
    for mark in OTHER_IGNORED[name]:
        for poison in (0, 1, 10**6) if name == "semseg" else (0.0, 1.0, math.nan, math.inf, -math.inf):
            changed = prediction.masked_fill(shown, poison)
            assert value(name, (changed, target.masked_fill(shown, mark))) == expected


@pytest.mark.parametrize("name", METRICS)
def test_shapes_must_agree(name: str) -> None:
    prediction, target, _ = case(name)
    with pytest.raises(ValueError, match="at_size"):
        METRICS[name][0]().update(prediction[..., :-1], target)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_prediction_is_perfect(name: str) -> None:
    _, target, hole = case(name)
    prediction = target.masked_fill(hole if name == "semseg" else hole[:, None], 0)
    perfect = {
        "semseg": [100, 100],
        "depth": [0, 0, 100],
        "normals": [0, 0.005, 100, 100, 100],
        "reshading": [0, 0],
        "curvature": [0, 0],
        "saliency": [100, 100],
    }
    if name != "edges":  # ignored pixels cut its lines: below
        assert list(value(name, (prediction, target)).values()) == pytest.approx(perfect[name], abs=1e-4)


# ---- segmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_torchmetrics_macro_jaccard(seed: int) -> None:
    prediction, target, _ = case("semseg", seed)
    expected = classification.multiclass_jaccard_index(prediction, target, K, average="macro", ignore_index=255)
    accuracy = classification.multiclass_accuracy(prediction, target, K, average="micro", ignore_index=255)
    result = value("semseg", (prediction, target))
    assert result["miou"] == pytest.approx(100 * float(expected), rel=1e-6)
    assert result["pixel_accuracy"] == pytest.approx(100 * float(accuracy), rel=1e-6)


def test_miou_by_hand_leaves_out_absent_classes_only() -> None:
    target = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 255]]])
    prediction = torch.tensor([[[0, 0, 1, 1], [1, 2, 3, 0]]])
    # 0: 2/3. 1: 2/4. 2: predicted only, 0/1. 3 and 4: nowhere (3 is predicted at an ignored pixel).
    result = value("semseg", (prediction, target))
    assert result["miou"] == pytest.approx(100 * (2 / 3 + 2 / 4 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


def test_one_class_images_are_pooled_before_the_ratio() -> None:
    zeros, ones = torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64)
    result = value("semseg", (zeros, zeros), (zeros, ones), (ones, ones))
    assert result["miou"] == pytest.approx(50.0)


@pytest.mark.parametrize("wrong", [-1, K])
def test_a_class_outside_the_range_is_named(wrong: int) -> None:
    fine = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"target classes in 0..{K - 1}, but got {wrong}"):
        metrics.SegmentationMetric(K).update(fine, torch.full_like(fine, wrong))


def test_classes_outside_the_range_are_named_by_compute_where_update_may_not_look() -> None:
    """On another device than the CPU; here, such pixels are put in by hand."""
    metric = metrics.SegmentationMetric(K)
    metric.update(*case("semseg")[:2])
    metric.wrong += 2
    with pytest.raises(ValueError, match=rf"classes in 0..{K - 1}, but got others in 2 valid pixels"):
        metric.compute()


@pytest.mark.parametrize("wrong", [-1, K])
def test_a_predicted_class_outside_the_range_is_named(wrong: int) -> None:
    fine = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"prediction classes in 0..{K - 1}, but got {wrong}..{wrong}"):
        metrics.SegmentationMetric(K).update(torch.full_like(fine, wrong), fine)


# ---- regressions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_depth_by_loop_and_by_torchmetrics(seed: int) -> None:
    prediction, target = (v[:, 0] for v in valid_values("depth", seed))
    result = value("depth", case("depth", seed)[:2])
    rmse = reference.mean_squared_error(torch.from_numpy(prediction), torch.from_numpy(target), squared=False)
    pairs = list(zip(prediction, target, strict=True))
    assert result["rmse"] == pytest.approx(float(rmse), rel=1e-9)
    assert result["abs_rel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / len(pairs), rel=1e-9)
    within = sum(p > 0 and max(p / t, t / p) < 1.25 for p, t in pairs) / len(pairs)
    assert result["delta1"] == pytest.approx(100 * within, rel=1e-9)


def test_padding_changes_no_edge_score() -> None:
    prediction, target, _ = case("edges", images=2, ignored=0)
    padded = [torch.nn.functional.pad(t, (0, 40, 0, 60), value=v) for t, v in ((prediction, 0.5), (target, 255))]
    assert value("edges", (prediction, target)) == value("edges", (padded[0], padded[1]))


def test_depth_of_zero_or_below_is_a_miss() -> None:
    result = value("depth", (torch.tensor([[[[0.0, -2.0, 2.0]]]]), torch.full((1, 1, 1, 3), 2.0)))
    assert result["delta1"] == pytest.approx(100 / 3) and math.isfinite(result["rmse"])


@pytest.mark.parametrize("name", ["reshading", "curvature"])
def test_errors_by_torchmetrics(name: str) -> None:
    prediction, target = (torch.from_numpy(v).flatten() for v in valid_values(name, 0))
    result = value(name, case(name)[:2])
    rmse = float(reference.mean_squared_error(prediction, target, squared=False))
    assert result["rmse"] == pytest.approx(rmse, rel=1e-9)
    assert result["mae"] == pytest.approx(float(reference.mean_absolute_error(prediction, target)), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_normals_by_loop(seed: int) -> None:
    angles = []
    for p, t in zip(*valid_values("normals", seed), strict=True):
        cosine = float(p @ t) / math.sqrt(float(p @ p)) / math.sqrt(float(t @ t))
        angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    result = value("normals", case("normals", seed)[:2])
    assert result["mean"] == pytest.approx(np.mean(angles), rel=1e-7)
    assert result["median"] == pytest.approx(np.median(angles), abs=0.0051)
    for key, limit in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30)):
        assert result[key] == pytest.approx(100 * np.mean(np.array(angles) < limit))


def turned(*degrees: float) -> tuple[Tensor, Tensor]:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    vectors = torch.stack([radians.sin(), torch.zeros_like(radians), -radians.cos()])
    return vectors[None, :, None].float(), torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 1, len(degrees))


def test_small_angles_are_not_lost() -> None:
    assert value("normals", turned(0.001))["mean"] == pytest.approx(0.001, rel=1e-4)
    assert value("normals", turned(180.0))["median"] == pytest.approx(180, abs=0.006)


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    assert value("normals", turned(10, 20, 50, 170))["median"] == pytest.approx(35, abs=0.0051)
    assert value("normals", turned(10, 20, 50))["median"] == pytest.approx(20, abs=0.0051)


@pytest.mark.parametrize("broken", [0.0, math.nan, math.inf])
def test_a_vector_without_direction_is_no_perfect_answer(broken: float) -> None:
    _, target = turned(0.0)
    assert value("normals", (torch.full((1, 3, 1, 1), broken), target))["mean"] == 90.0


# ---- saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_max_f_by_torchmetrics_at_every_threshold(seed: int) -> None:
    prediction, target = (v[:, 0] for v in valid_values("saliency", seed))
    probability, salient = torch.from_numpy(prediction).float(), torch.from_numpy(target).long()
    scores = [
        float(
            classification.binary_fbeta_score((probability > torch.tensor(k / 255.0)).long(), salient, math.sqrt(0.3))
        )
        for k in range(255)
    ]
    result = value("saliency", case("saliency", seed)[:2])
    assert result["max_f"] == pytest.approx(100 * max(scores), rel=1e-5)
    assert result["iou"] == pytest.approx(
        100 * float(classification.binary_jaccard_index(probability, salient)), rel=1e-5
    )


def test_saliency_is_not_squashed_twice() -> None:
    target = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    for low, high in ((0.0, 0.01), (0.97, 0.98), (0.4, 0.45)):  # a narrow gap anywhere is found by some threshold
        assert value("saliency", (target * (high - low) + low, target))["max_f"] == pytest.approx(100.0)


def test_saliency_without_salient_pixels() -> None:
    none = torch.zeros(1, 1, 2, 2)
    assert all(math.isnan(v) for v in value("saliency", (none, none)).values())
    result = value("saliency", (none + 0.9, none))
    assert math.isnan(result["max_f"]) and result["iou"] == 0.0
    assert value("saliency", (none, none + 1)) == {"max_f": 0.0, "iou": 0.0}


# ---- edges -----------------------------------------------------------------------------------------------------------


def ridges_by_loop(probability: np.ndarray) -> np.ndarray:
    """The same ridges, pixel by pixel, with an eigenvector of the Hessian and a bilinear sample written out."""
    h = {o: ndimage.gaussian_filter(probability, 1.0, order=o, mode="nearest") for o in ((2, 0), (1, 1), (0, 2))}
    padded = np.pad(probability, 3).astype(np.float64)

    def sample(y: float, x: float) -> float:
        y0, x0 = math.floor(y), math.floor(x)
        weights = np.outer([y0 + 1 - y, y - y0], [x0 + 1 - x, x - x0])
        return float((padded[y0 + 3 : y0 + 5, x0 + 3 : x0 + 5] * weights).sum())

    kept = np.zeros_like(probability)
    for y, x in np.ndindex(probability.shape):
        hessian = [[h[2, 0][y, x], h[1, 1][y, x]], [h[1, 1][y, x], h[0, 2][y, x]]]
        dy, dx = np.linalg.eigh(hessian)[1][:, 0]  # of the smallest eigenvalue
        here, sides = probability[y, x], (sample(y - dy, x - dx), sample(y + dy, x + dx))
        if here > max(sides):
            kept[y, x] = here
    return kept


def test_ridges_by_loop() -> None:
    random = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(random.random((20, 25)), 1.0).astype(np.float32)
    inner = (
        slice(1, -1),
        slice(1, -1),
    )  # at the border the outside is 0 for both, but scipy does not interpolate to it
    ours, loop = metrics.ridges(smooth)[inner], ridges_by_loop(smooth)[inner]
    assert (ours > 0).sum() > 30
    assert ((ours > 0) != (loop > 0)).sum() == 0


@pytest.mark.parametrize("angle", [0, 17, 45, 90, 133])
def test_the_ridge_of_a_blurred_line_is_one_pixel_wide_and_in_its_place(angle: float) -> None:
    y, x = np.mgrid[-20:21, -20:21]
    distance = np.abs(np.cos(np.deg2rad(angle)) * y - np.sin(np.deg2rad(angle)) * x)
    crest = metrics.ridges(np.exp(-(distance**2) / 8).astype(np.float32))[3:-3, 3:-3] > 0
    assert distance[3:-3, 3:-3][crest].max() < 0.75
    assert 35 <= crest.sum() <= 1.7 * 35  # a stair may keep both pixels of a step


def test_a_plateau_of_two_pixels_leaves_one() -> None:
    probability = np.zeros((9, 9), dtype=np.float32)
    probability[:, 4:6] = 0.8
    assert ((metrics.ridges(probability)[1:-1] > 0).sum(axis=1) == 1).all()


def edge_reference(prediction: np.ndarray, target: np.ndarray, radius: float) -> dict[str, float]:
    """Precision, recall and F with a distance transform for each threshold and image."""
    best = {"edge_f": 0.0, "precision": math.nan, "recall": 0.0}
    for threshold in np.float32([k / 20 for k in range(1, 20)]):
        predicted = correct = edges = found = 0
        for p, t in zip(prediction, target, strict=True):
            crest = metrics.ridges(np.where(t < 2, p, 0)) >= threshold
            thinned = skimage_thin(t == 1)
            far = np.full(p.shape, np.inf)
            to_edge = ndimage.distance_transform_edt(~thinned) if thinned.any() else far
            to_crest = ndimage.distance_transform_edt(~crest) if crest.any() else far
            predicted, correct = predicted + crest.sum(), correct + (crest & (to_edge <= radius)).sum()
            edges, found = edges + thinned.sum(), found + (thinned & (to_crest <= radius)).sum()
        if correct:
            precision, recall = correct / predicted, found / edges
            score = 2 * precision * recall / (precision + recall)
            if score > best["edge_f"]:
                best = {"edge_f": score, "precision": precision, "recall": recall}
    return {key: 100 * v for key, v in best.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.001, 0.04, 0.1])
def test_edge_f_by_a_distance_transform_per_threshold(seed: int, tolerance: float) -> None:
    prediction, target, _ = case("edges", seed)
    metric = metrics.EdgeMetric(tolerance)
    metric.update(prediction, target)
    expected = edge_reference(prediction[:, 0].numpy(), target[:, 0].numpy(), max(1, tolerance * DIAGONAL))
    assert {key: float(v) for key, v in metric.compute().items()} == pytest.approx(expected, rel=1e-9)
    assert 20 < expected["edge_f"] < 100


def test_a_predicted_line_is_found_within_one_pixel_and_not_within_two() -> None:
    target = torch.zeros(1, 1, 128, 160)
    target[..., 60, 10:150] = 1
    for shift, expected in ((0, 100.0), (1, 100.0), (2, 0.0)):
        metric = metrics.EdgeMetric(0.005)  # 1.02 pixels here
        metric.update(target.roll(shift, dims=2) * 0.9, target)
        assert float(metric.compute()["edge_f"]) == pytest.approx(expected)


@pytest.mark.parametrize(("size", "radius"), [((128, 160), 1), ((32, 40), 1), ((480, 640), 4)])
def test_the_tolerance_is_a_fraction_of_the_diagonal_and_at_least_a_pixel(size: tuple[int, int], radius: int) -> None:
    target = torch.zeros(1, 1, *size)
    target[..., size[0] // 2, :] = 1
    for shift in (radius, radius + 1):
        metric = metrics.EdgeMetric(0.005)
        metric.update(target.roll(shift, dims=2), target)
        assert float(metric.compute()["recall"]) == (100 if shift == radius else 0)


def test_edges_that_are_predicted_as_they_are() -> None:
    random = np.random.default_rng(5)
    target = torch.as_tensor(np.stack([random_lines(random, 64, 80) for _ in range(4)]))[:, None].float()
    metric = metrics.EdgeMetric(0.005)
    metric.update(target.clone(), target)
    assert float(metric.compute()["edge_f"]) > 99.5


def test_edges_without_edges() -> None:
    none = torch.zeros(1, 1, H, W)
    some = torch.as_tensor(random_lines(np.random.default_rng(0)))[None, None].float()
    assert all(math.isnan(v) for v in value("edges", (none, none)).values())
    nothing_to_find = value("edges", (some, none))
    assert math.isnan(nothing_to_find["edge_f"]) and nothing_to_find["precision"] == 0
    nothing_found = value("edges", (none, some))
    assert nothing_found["edge_f"] == nothing_found["recall"] == 0 and math.isnan(nothing_found["precision"])


def test_false_edges_in_an_empty_image_lower_the_precision_of_the_split() -> None:
    some = torch.as_tensor(random_lines(np.random.default_rng(0)))[None, None].float()
    alone, both = value("edges", (some, some)), value("edges", (some, some), (some, torch.zeros_like(some)))
    assert both["precision"] == pytest.approx(alone["precision"] / 2) and both["recall"] == alone["recall"]


def soft(edge: np.ndarray) -> np.ndarray:
    """Edges as a net draws them: some pixels wide, with a crest of 1."""
    blurred = ndimage.gaussian_filter(edge.astype(np.float32), 1.2)
    return blurred / blurred.max()


def predicted_edges(seed: int, index: int, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, np.ndarray]:
    """A prediction that misses some edges and invents others (those of another scene, fainter), and its target."""
    true, other = (fake_scene(seed, split, index, size)["edges"] == 1 for split in ("test", "other"))
    trust = ndimage.gaussian_filter(np.random.default_rng([seed, index]).normal(size=size), 6)
    trust = 0.5 + 0.5 * trust / np.abs(trust).max()
    return np.maximum(soft(true) * trust, soft(other) * 0.5 * trust[::-1]).astype(np.float32), true


def ods_f(pairs: list[tuple[np.ndarray, np.ndarray]], tolerance: float) -> float:
    """The F-measure of the Berkeley benchmark: pixels are matched one to one, thinned at each threshold."""
    from pyEdgeEval._lib import correspond_pixels

    scores = []
    for threshold in metrics.EdgeMetric.THRESHOLDS:
        correct = predicted = found = edges = 0
        for probability, target in pairs:
            crest, line = skimage_thin(metrics.ridges(probability) >= threshold), skimage_thin(target)
            mine, theirs, _, _ = correspond_pixels(crest, line, max_dist=tolerance)
            correct, predicted = correct + (mine > 0).sum(), predicted + crest.sum()
            found, edges = found + (theirs > 0).sum(), edges + line.sum()
        precision, recall = correct / max(predicted, 1), found / edges
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(max(scores))


@pytest.mark.parametrize("seed", range(2))
def test_edge_f_is_near_that_of_the_berkeley_benchmark(seed: int) -> None:
    pytest.importorskip("pyEdgeEval", reason="the extra `edges` is not installed")
    pairs = [predicted_edges(seed, index) for index in range(2)]
    metric = metrics.EdgeMetric(0.011)
    for probability, target in pairs:
        metric.update(torch.as_tensor(probability)[None, None], torch.as_tensor(target)[None, None].float())
    ours = float(metric.compute()["edge_f"]) / 100
    assert 0.8 < ours < 0.97
    assert ours == pytest.approx(ods_f(pairs, 0.011), abs=0.03)
