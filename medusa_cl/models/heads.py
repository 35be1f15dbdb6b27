"""Heads: what turns shared features into one task's logits. No head sees another task.

Every head takes the feature maps, B C_s H_s W_s at strides 4, 8, 16, 32, and returns its logits B K H_0 W_0 at stride 4
and the tuple of each scale's own predictions B K H_s W_s for deep supervision (empty outside training). Nothing is
resized to the image here: that is `losses.at_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl.errors import ConfigError
from medusa_cl.models.attention import (
    MSA_MODES,
    SFA_MODES,
    MultiScaleAttention,
    SharedFeatureAttention,
    UngatedCombination,
    UngatedSelection,
    check_mode,
    upsample,
)

HeadFactory = Callable[[Sequence[int], int], nn.Module]
HeadOutput = tuple[Tensor, tuple[Tensor, ...]]


class ScaleMix(nn.Module):
    """A 1x1 convolution of the upsampled and concatenated scales: w1 of equation (6) on G of (5).

    A 1x1 convolution commutes with bilinear upsampling, and with a weight that all channels share. So it runs on every
    scale at its own size, and the results are upsampled and summed: the same function for a fraction of the
    multiplications.

    Args:
        channels: Channels C_s of each scale.
        width: Channels of the result.
        late: False for the plain order, upsample and concatenate first, to compare with.
    """

    def __init__(self, channels: Sequence[int], width: int, late: bool = True) -> None:
        super().__init__()
        self.late = late
        self.scales = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1, bias=False) for c in channels)
        # Each part is initialised as a slice of the one convolution it stands for, which has all channels as inputs.
        for conv, c in zip(self.scales, channels, strict=True):
            conv.get_parameter("weight").data.mul_((c / sum(channels)) ** 0.5)

    def forward(self, maps: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        """Return B width H_0 W_0 from the maps B C_s H_s W_s and optional weights of the scales B S H_0 W_0."""
        return self._mix_early(maps, weights) if self.late else self._mix_after_concatenation(maps, weights)

    def _mix_early(self, maps: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        mixed = [conv(x) for conv, x in zip(self.scales, maps, strict=True)]
        scales = _at_finest(mixed, weights)
        total = scales[0]
        for scale in scales[1:]:
            total += scale  # in place: new maps of all channels would be a quarter of a plain head's time
        return total

    def _mix_after_concatenation(self, maps: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        kernel = torch.cat([conv.get_parameter("weight") for conv in self.scales], dim=1)
        return F.conv2d(torch.cat(_at_finest(maps, weights), dim=1), kernel)


class ResidualBlock(nn.Module):
    """3x3-BN-ReLU-3x3-BN plus the input, then ReLU; B C H W to B C H W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + residual)


class ScalewiseHead(nn.Module):
    """What the Medusa head and its control share: project, select, refine, combine, merge, predict.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
        sfa: Shared feature attention: `gated` | `mask` | `none`.
        msa: Multi-scale attention: `gated` | `mask` | `scale_softmax` | `none`.
        refine_blocks: Residual blocks between the two at each scale, 0, 1 or 2. With 0 the two attentions stand in
            series, and switching one off is the same function as switching off the other.
        deep_supervision: Whether each scale predicts by itself in training.
        mix_width: Channels in which the scales are merged; None for the sum of theirs.
        width: Channels to which every scale is projected first (1x1-BN); None for the backbone's own. Keeps
            heads small on wide backbones.
        late_mix: False for the plain order of merging: the same function, several times dearer (see `ScaleMix`).

    Raises:
        ConfigError: A switch has a value that it does not know.
    """

    selection: Callable[[Sequence[int], str], nn.Module]
    combination: Callable[[Sequence[int], str], nn.Module]

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        *,
        sfa: str = "mask",
        msa: str = "mask",
        refine_blocks: int = 1,
        deep_supervision: bool = True,
        mix_width: int | None = 64,
        width: int | None = None,
        late_mix: bool = True,
    ) -> None:
        super().__init__()
        _check_switches(sfa, msa, refine_blocks)
        self.config: dict[str, Any] = {"sfa": sfa, "msa": msa, "refine_blocks": refine_blocks}
        self.config |= {
            "deep_supervision": deep_supervision,
            "mix_width": mix_width,
            "width": width,
            "late_mix": late_mix,
        }
        widths = [c if width is None else width for c in channels]
        mixed = mix_width or sum(widths)
        self.project = nn.ModuleList(_projection(c, width) for c in channels)
        self.sfa = type(self).selection(widths, sfa)
        self.refine = nn.ModuleList(nn.Sequential(*(ResidualBlock(w) for _ in range(refine_blocks))) for w in widths)
        self.initial = nn.ModuleList(nn.Conv2d(w, out_channels, kernel_size=1) for w in widths if deep_supervision)
        self.msa = type(self).combination(widths, msa)
        self.mix = ScaleMix(widths, mixed, late=late_mix)
        self.predict = _prediction(mixed, out_channels)

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Return logits B K H_0 W_0 and, in training with deep supervision, the initial predictions B K H_s W_s."""
        maps = self.sfa([project(x) for project, x in zip(self.project, features, strict=True)])
        maps = [refine(x) for refine, x in zip(self.refine, maps, strict=True)]
        merged, weights = self.msa(maps)
        return self.predict(self.mix(merged, weights)), self._initial(maps)

    def _initial(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not (self.training and len(self.initial)):
            return ()
        return tuple(predict(x) for predict, x in zip(self.initial, maps, strict=True))


class MedusaHead(ScalewiseHead):
    """The dual-attention head of Medusa (arXiv 2204.05698), reconstructed; the defaults are its light form."""

    selection = SharedFeatureAttention
    combination = MultiScaleAttention


class ControlHead(ScalewiseHead):
    """The Medusa head with its attention replaced by ungated 3x3 residuals of equally many parameters.

    What Medusa gains over this head is due to attention, not to size; `sfa` and `msa` say which attention to match.
    """

    selection = UngatedSelection
    combination = UngatedCombination


class PlainHead(nn.Module):
    """The field's baseline head: scales upsampled and concatenated, 1x1-BN-ReLU, 1x1.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
        mix_width: Channels between the two convolutions; None for the sum of the backbone's.
        late_mix: False for the plain order of merging: the same function, several times dearer (see `ScaleMix`).
    """

    def __init__(
        self, channels: Sequence[int], out_channels: int, *, mix_width: int | None = None, late_mix: bool = True
    ) -> None:
        super().__init__()
        mixed = mix_width or sum(channels)
        self.config: dict[str, Any] = {"mix_width": mix_width, "late_mix": late_mix}
        self.mix = ScaleMix(channels, mixed, late=late_mix)
        self.predict = _prediction(mixed, out_channels)

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Return logits B K H_0 W_0; this head has no coarser predictions."""
        return self.predict(self.mix(features)), ()


class LinearHead(nn.Module):
    """A linear probe: one linear map of the upsampled and concatenated scales, pixel by pixel.

    Each channel is standardised by BatchNorm without scale and shift first. The head stays linear where it is used, and
    learns at the same rate on backbones whose features differ in size by orders of magnitude.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, affine=False) for c in channels)
        self.mix = ScaleMix(channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Return logits B K H_0 W_0; this head has no coarser predictions."""
        maps = [norm(x) for norm, x in zip(self.norms, features, strict=True)]
        return self.mix(maps) + self.bias.view(1, -1, 1, 1), ()


BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    head.__name__: head for head in (MedusaHead, PlainHead, ControlHead, LinearHead)
}
"""The kinds of heads that files of heads and models may name; those of `adapters` join them."""


def _at_finest(maps: Sequence[Tensor], weights: Tensor | None) -> list[Tensor]:
    maps = [upsample(x, maps[0].shape[-2:]) for x in maps]
    return maps if weights is None else [x * weights[:, s : s + 1] for s, x in enumerate(maps)]


def _prediction(width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out_channels, kernel_size=1))


def _projection(channels: int, width: int | None) -> nn.Module:
    if width is None:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, bias=False), nn.BatchNorm2d(width))


def _check_switches(sfa: str, msa: str, refine_blocks: int) -> None:
    check_mode("sfa", sfa, SFA_MODES)
    check_mode("msa", msa, MSA_MODES)
    if refine_blocks not in (0, 1, 2):
        raise ConfigError(f"Expected head switch refine_blocks to be 0, 1 or 2, but got {refine_blocks!r}.")
