"""The dual attention of Medusa (Spencer et al., arXiv 2204.05698) and its ungated control.

Feature maps come as one tensor per scale, B C_s H_s W_s, finest first. Attention always acts at a map's own scale:
at stride 4 the coarse maps would cost tens of times more for the same function of the same values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl.errors import ConfigError, unknown

SFA_MODES = ("gated", "mask", "none")
MSA_MODES = ("gated", "mask", "scale_softmax", "none")


class SpatialAttention(nn.Module):
    """Attention of one map to itself: `sigmoid(Wa * x) . (Wf * x)`, or `sigmoid(Wa * x) . x`; 3x3 without bias.

    Args:
        channels: Channels C of the map.
        gated: Whether the map itself goes through Wf; without it the mask acts on the map as it is.
    """

    def __init__(self, channels: int, gated: bool) -> None:
        super().__init__()
        self.mask = _conv3x3(channels, channels)
        self.value = _conv3x3(channels, channels) if gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, B C H W as `x`."""
        attended: Tensor = torch.sigmoid(self.mask(x)) * self.value(x)
        return attended


class SharedFeatureAttention(nn.Module):
    """SFA: one task's choice among the shared features, at every scale.

    Args:
        channels: Channels C_s of each scale.
        mode: `gated` S = sigmoid(Wa * F) . (Wf * F) | `mask` S = sigmoid(Wa * F) . F | `none` S = F.

    Raises:
        ConfigError: `mode` is none of these.
    """

    def __init__(self, channels: Sequence[int], mode: str = "mask") -> None:
        super().__init__()
        check_mode("sfa", mode, SFA_MODES)
        self.scales = nn.ModuleList(_attention(c, mode) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the attended maps, each as its feature map B C_s H_s W_s."""
        return [attend(x) for attend, x in zip(self.scales, features, strict=True)]


class MultiScaleAttention(nn.Module):
    """MSA: what each scale brings to one task's final prediction.

    Args:
        channels: Channels C_s of each scale.
        mode: `gated` and `mask` attend to each scale by itself, as in `SharedFeatureAttention` | `scale_softmax` weighs
            the scales against each other, pixel by pixel | `none`.

    Raises:
        ConfigError: `mode` is none of these.
    """

    def __init__(self, channels: Sequence[int], mode: str = "mask") -> None:
        super().__init__()
        check_mode("msa", mode, MSA_MODES)
        self.across = mode == "scale_softmax"
        if self.across:
            self.scales = nn.ModuleList(_conv3x3(c, 1) for c in channels)
        else:
            self.scales = nn.ModuleList(_attention(c, mode) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Return the maps to merge, B C_s H_s W_s, and the weights of the scales.

        The weights are B S H_0 W_0, summing to 1 over the S scales at the finest size, or None where every scale
        weighs 1. They stay apart from the maps because a weight that all channels share commutes with the 1x1
        convolution that follows.
        """
        results = [attend(x) for attend, x in zip(self.scales, maps, strict=True)]
        if not self.across:
            return results, None
        size = maps[0].shape[-2:]
        return list(maps), torch.cat([upsample(x, size) for x in results], dim=1).softmax(dim=1)


class UngatedResidual(nn.Module):
    """`x + W2 * relu(W1 * relu(x))`, or `x + W1 * relu(x)` at depth 1; 3x3 without bias, B C H W to B C H W."""

    def __init__(self, channels: int, depth: int, groups: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential()
        for _ in range(depth):
            self.residual.extend([nn.ReLU(), _conv3x3(channels, channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its residual added."""
        added: Tensor = x + self.residual(x)
        return added


class UngatedSelection(nn.Module):
    """The control of SFA: as many 3x3 weights without any gate.

    Args:
        channels: Channels C_s of each scale.
        mode: The attention to match, parameter for parameter: two convolutions for `gated`, one for `mask`,
            a depthwise one for `scale_softmax`, nothing for `none`.
    """

    def __init__(self, channels: Sequence[int], mode: str) -> None:
        super().__init__()
        check_mode("control", mode, MSA_MODES)
        self.scales = nn.ModuleList(_ungated(c, mode) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps B C_s H_s W_s with their residuals added."""
        return [residual(x) for residual, x in zip(self.scales, maps, strict=True)]


class UngatedCombination(UngatedSelection):
    """The control of MSA: as `UngatedSelection`, in the form that `MultiScaleAttention` answers."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], None]:  # type: ignore[override]
        """Return the maps B C_s H_s W_s with their residuals added, and no weights of the scales."""
        return super().forward(maps), None


def check_mode(switch: str, mode: str, known: Sequence[str]) -> None:
    """Refuse a value that a switch does not have.

    Raises:
        ConfigError: `mode` is not among `known`.
    """
    if mode not in known:
        raise ConfigError(unknown(f"value of head switch {switch}", str(mode), known))


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize B C H W to `size` (H, W), bilinear, align_corners=False: U of the equations."""
    size = tuple(size)  # as it is: an exporter's sizes are symbols
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _conv3x3(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, groups=groups, bias=False)


def _attention(channels: int, mode: str) -> nn.Module:
    return nn.Identity() if mode == "none" else SpatialAttention(channels, gated=mode == "gated")


def _ungated(channels: int, mode: str) -> nn.Module:
    if mode == "none":
        return nn.Identity()
    # A scale-softmax logit has 9 C weights, and so has a depthwise convolution.
    groups = channels if mode == "scale_softmax" else 1
    return UngatedResidual(channels, depth=2 if mode == "gated" else 1, groups=groups)
