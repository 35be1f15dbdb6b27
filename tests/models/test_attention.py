import pytest
import torch
from torch import Tensor, nn

from medusa_cl.errors import ConfigError
from medusa_cl.models.attention import (
    MSA_MODES,
    SFA_MODES,
    MultiScaleAttention,
    SharedFeatureAttention,
    UngatedCombination,
    UngatedSelection,
)

CHANNELS = (4, 6, 8, 10)


@pytest.fixture
def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, 16 // 2**s, 24 // 2**s, generator=generator) for s, c in enumerate(CHANNELS)]


def test_gated_is_equation_1(maps: list[Tensor]) -> None:
    attention = SharedFeatureAttention(CHANNELS, "gated")
    for scale, x, y in zip(attention.scales, maps, attention(maps), strict=True):
        mask = nn.functional.conv2d(x, scale.mask.weight, padding=1)
        value = nn.functional.conv2d(x, scale.value.weight, padding=1)
        torch.testing.assert_close(y, value / (1 + torch.exp(-mask)))


def test_mask_only_ever_weakens_features(maps: list[Tensor]) -> None:
    for x, y in zip(maps, SharedFeatureAttention(CHANNELS, "mask")(maps), strict=True):
        assert (y.abs() <= x.abs()).all()
        assert (y * x >= 0).all()


def test_none_is_the_identity(maps: list[Tensor]) -> None:
    selected = SharedFeatureAttention(CHANNELS, "none")(maps)
    combined, weights = MultiScaleAttention(CHANNELS, "none")(maps)
    control = UngatedSelection(CHANNELS, "none")(maps)
    assert weights is None
    for x, *ys in zip(maps, selected, combined, control, strict=True):
        assert all(torch.equal(x, y) for y in ys)


def test_scale_softmax_weighs_the_scales_against_each_other(maps: list[Tensor]) -> None:
    attention = MultiScaleAttention(CHANNELS, "scale_softmax")
    combined, weights = attention(maps)
    assert weights is not None
    assert weights.shape == (2, len(CHANNELS), 16, 24)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 16, 24))
    assert all(x is y for x, y in zip(maps, combined, strict=True))


@pytest.mark.parametrize("mode", ["gated", "mask"])
def test_scales_are_attended_to_separately(maps: list[Tensor], mode: str) -> None:
    attention = MultiScaleAttention(CHANNELS, mode)
    before, weights = attention(maps)
    after, _ = attention([maps[0] + 1, *maps[1:]])
    assert weights is None
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(x, y) for x, y in zip(before[1:], after[1:], strict=True))


@pytest.mark.parametrize("mode", MSA_MODES)
def test_control_has_exactly_the_parameters_of_the_attention(mode: str) -> None:
    expected = _size(MultiScaleAttention(CHANNELS, mode))
    assert _size(UngatedCombination(CHANNELS, mode)) == _size(UngatedSelection(CHANNELS, mode)) == expected


@pytest.mark.parametrize("mode", SFA_MODES)
def test_control_is_a_residual_without_gates(maps: list[Tensor], mode: str) -> None:
    control = UngatedSelection(CHANNELS, mode)
    for parameter in control.parameters():
        nn.init.zeros_(parameter)
    combined, weights = UngatedCombination(CHANNELS, mode)(maps)
    assert weights is None
    assert [x.shape for x in combined] == [x.shape for x in maps]
    assert all(torch.equal(x, y) for x, y in zip(maps, control(maps), strict=True))


@pytest.mark.parametrize("attention", [SharedFeatureAttention, MultiScaleAttention, UngatedSelection])
def test_unknown_mode_comes_with_the_nearest(attention: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r'"gate".*Did you mean "gated"'):
        attention(CHANNELS, "gate")


def _size(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())
