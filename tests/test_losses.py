"""Losses against loops written by hand, and the promise that ignored values are never read."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_cl import losses

B, H, W, K = 2, 5, 7, 4
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def random_case(name: str, seed: int = 0, ignored: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, target and the map B H W of ignored pixels."""
    random = torch.Generator().manual_seed(seed)
    hole = torch.rand(B, H, W, generator=random) < ignored
    channels = {"cross_entropy": K, "l1_normals": 3, "l1_curvature": 2, "l1_regression": 2}.get(name, 1)
    logits = 3 * torch.randn(B, channels, H, W, generator=random)
    if name == "cross_entropy":
        target = torch.randint(0, K, (B, H, W), generator=random).masked_fill(hole, 255)
    elif name == "l1_normals":
        vectors = F.normalize(torch.randn(B, 3, H, W, generator=random), dim=1)
        target = vectors.masked_fill(hole[:, None], 0)
    elif name == "l1_depth":
        target = (0.5 + 5 * torch.rand(B, 1, H, W, generator=random)).masked_fill(hole[:, None], 0)
    elif name in ("l1_curvature", "l1_regression"):
        target = (4 * torch.randn(B, 2, H, W, generator=random)).clamp(-10, 10)
        target = target.masked_fill(hole[:, None], 255 if name == "l1_curvature" else losses.UNKNOWN)
    elif name == "l1_reshading":
        target = torch.rand(B, 1, H, W, generator=random).masked_fill(hole[:, None], 255)
    else:
        target = (torch.rand(B, 1, H, W, generator=random) < 0.3).float().masked_fill(hole[:, None], 255)
    return logits, target, hole


def pixels(logits: Tensor, target: Tensor, hole: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and target of each valid pixel, as float64 vectors."""
    target = target if target.ndim == 4 else target[:, None]
    for b in range(B):
        for y in range(H):
            for x in range(W):
                if not hole[b, y, x]:
                    yield logits[b, :, y, x].double().numpy(), target[b, :, y, x].double().numpy()


def by_hand_cross_entropy(p: np.ndarray, t: np.ndarray) -> float:
    return math.log(sum(math.exp(v) for v in p)) - p[int(t[0])]


def by_hand_l1(p: np.ndarray, t: np.ndarray) -> float:
    return sum(abs(a - b) for a, b in zip(p, t, strict=True))


def by_hand_normals(p: np.ndarray, t: np.ndarray) -> float:
    length = math.sqrt(sum(v * v for v in p))
    return sum(abs(v / length - w) for v, w in zip(p, t, strict=True))


def by_hand_bce(p: np.ndarray, t: np.ndarray, positive_weight: float) -> float:
    probability = 1 / (1 + math.exp(-p[0]))
    return -positive_weight * math.log(probability) if t[0] == 1 else -(1 - positive_weight) * math.log(1 - probability)


LOSSES: dict[str, Loss] = {
    name: getattr(losses, name)
    for name in (
        "cross_entropy",
        "l1_depth",
        "l1_normals",
        "l1_reshading",
        "l1_curvature",
        "l1_regression",
        "weighted_bce",
        "balanced_bce",
    )
}


def by_hand(name: str, logits: Tensor, target: Tensor, hole: Tensor) -> tuple[float, int]:
    pairs = list(pixels(logits, target, hole))
    if name == "cross_entropy":
        return sum(by_hand_cross_entropy(p, t) for p, t in pairs), len(pairs)
    if name == "l1_normals":
        return sum(by_hand_normals(p, t) for p, t in pairs), 3 * len(pairs)
    if name == "weighted_bce":
        return sum(by_hand_bce(p, t, 0.95) for p, t in pairs), len(pairs)
    if name == "balanced_bce":
        weight = sum(t[0] == 0 for _, t in pairs) / len(pairs)
        return sum(by_hand_bce(p, t, weight) for p, t in pairs), len(pairs)
    return sum(by_hand_l1(p, t) for p, t in pairs), logits.shape[1] * len(pairs)


def by_torch(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """The library's own losses, over the valid pixels alone."""
    if name == "cross_entropy":
        return F.cross_entropy(logits, target, ignore_index=255, reduction="sum")
    logits, target = logits[target < 2], target[target < 2]
    positive = 0.95 if name == "weighted_bce" else (1 - target).mean()
    weight = torch.where(target == 1, positive, 1 - positive)
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")


@pytest.mark.parametrize("name", ["cross_entropy", "weighted_bce", "balanced_bce"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_librarys_own(name: str, seed: int) -> None:
    logits, target, hole = random_case(name, seed)
    total, count = LOSSES[name](logits, target)
    torch.testing.assert_close(total, by_torch(name, logits, target), rtol=1e-5, atol=1e-5)
    assert count == (~hole).sum()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ignored", [0.0, 0.4, 0.9])
def test_equals_a_loop_over_valid_pixels(name: str, seed: int, ignored: float) -> None:
    logits, target, hole = random_case(name, seed, ignored)
    total, count = LOSSES[name](logits, target)
    expected, expected_count = by_hand(name, logits, target, hole)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == expected_count
    assert not count.requires_grad and total.dtype == count.dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_that_of_the_mean_over_valid_pixels_alone(name: str) -> None:
    logits, target, hole = random_case(name, seed=1)
    logits.requires_grad_()
    LOSSES[name](logits, target)[0].backward()
    alone = logits.detach().movedim(1, -1)[~hole].T.clone().requires_grad_()  # channels x valid pixels
    kept = (target if target.ndim == 4 else target[:, None]).movedim(1, -1)[~hole].T
    kept = kept.reshape(1, *kept.shape[1:], 1) if name == "cross_entropy" else kept[None, ..., None]
    LOSSES[name](alone[None, ..., None], kept)[0].backward()
    assert logits.grad is not None and alone.grad is not None
    torch.testing.assert_close(logits.grad.movedim(1, -1)[~hole].T, alone.grad, rtol=1e-5, atol=1e-6)
    assert (logits.grad.movedim(1, -1)[hole] == 0).all()


OTHER_IGNORED: dict[str, tuple[float, ...]] = {
    "cross_entropy": (255,),
    "l1_depth": (0.0, -3.0, math.nan, math.inf),
    "l1_normals": (0.0, 0.1, math.nan, math.inf),
    "l1_reshading": (255.0, 2.0, math.nan, math.inf, -1.0),
    "l1_curvature": (255.0, -11.0, math.nan, math.inf),
    "l1_regression": (losses.UNKNOWN, -2e9, math.nan, math.inf),
    "weighted_bce": (255.0, 2.0, math.nan, math.inf, -1.0),
    "balanced_bce": (255.0, 2.0, math.nan, math.inf, -1.0),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_ignored_values_change_nothing(name: str, poison: float) -> None:
    logits, target, hole = random_case(name)
    reference = logits.clone().requires_grad_()
    expected, expected_count = LOSSES[name](reference, target)
    expected.backward()
    for mark in OTHER_IGNORED[name]:
        poisoned = logits.masked_fill(hole[:, None], poison).requires_grad_()
        marked = target.masked_fill(hole if target.ndim == 3 else hole[:, None], mark)
        total, count = LOSSES[name](poisoned, marked)
        total.backward()
        assert total.item() == expected.item() and count.item() == expected_count.item()
        assert poisoned.grad is not None and reference.grad is not None
        assert torch.equal(poisoned.grad, reference.grad)
        assert (poisoned.grad.movedim(1, -1)[hole] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_is_zero_over_zero_and_still_has_a_graph(name: str) -> None:
    logits, target, _ = random_case(name, ignored=2.0)
    logits.requires_grad_()
    total, count = LOSSES[name](logits, target)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_summed_in_float32(name: str) -> None:
    logits, target, _ = random_case(name)
    total, _ = LOSSES[name](logits.bfloat16(), target)
    expected, _ = LOSSES[name](logits.bfloat16().float(), target)
    assert total.dtype == torch.float32 and total.item() == expected.item()


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    logits, target, _ = random_case(name)
    with pytest.raises(ValueError, match="Expected a target of shape"):
        LOSSES[name](logits, target[:1])
    with pytest.raises(ValueError, match="at_size"):
        LOSSES[name](logits, target[..., :-1])


@pytest.mark.parametrize("positive", [0.0, 1.0])
def test_balanced_bce_of_one_class_has_nothing_to_balance(positive: float) -> None:
    logits, _, _ = random_case("balanced_bce")
    total, count = losses.balanced_bce(logits, torch.full((B, 1, H, W), positive))
    assert (total.item(), count.item()) == (0.0, B * H * W)


def test_normals_do_not_depend_on_length_and_zero_vectors_do_not_explode() -> None:
    logits, target, _ = random_case("l1_normals")
    torch.testing.assert_close(losses.l1_normals(7 * logits, target), losses.l1_normals(logits, target))
    zero = torch.zeros_like(logits).requires_grad_()
    losses.l1_normals(zero, target)[0].backward()
    assert zero.grad is not None and zero.grad.abs().max() < 1e4


@pytest.mark.parametrize("length", [1.0, 0.1 * losses.MIN_LENGTH])
def test_the_gradient_of_normals_is_that_of_differences(length: float) -> None:
    """Also where vectors are too short to be normalised."""
    _, target, _ = random_case("l1_normals")
    vectors = F.normalize(torch.randn(target.shape, generator=torch.Generator().manual_seed(4)).double(), dim=1)
    given = (length * vectors).requires_grad_()
    step = 1e-6 * length
    assert torch.autograd.gradcheck(losses._DirectionError.apply, (given, target.double()), eps=step, rtol=1e-4)


@pytest.mark.parametrize(("size", "padded"), [((64, 96), (64, 96)), ((50, 70), (64, 96)), ((1, 33), (32, 64))])
@pytest.mark.parametrize("stride", [4, 32])
def test_at_size_resizes_to_the_padded_size_and_crops(
    size: tuple[int, int], padded: tuple[int, int], stride: int
) -> None:
    logits = torch.randn(2, 3, padded[0] // stride, padded[1] // stride)
    resized = losses.at_size(logits, size)
    whole = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
    assert resized.shape == (2, 3, *size)
    torch.testing.assert_close(resized, whole[:, :, : size[0], : size[1]], atol=2e-6, rtol=1e-5)


def test_at_size_leaves_the_right_size_alone() -> None:
    logits = torch.randn(1, 2, 32, 64)
    assert torch.equal(losses.at_size(logits, (32, 64)), logits)
