"""Heads that bring a part of the network along: small blocks beside a frozen backbone, or a whole net of their own.

Both wrap a head of any other kind, which turns the features into logits. `MultiTaskModel.add_head` shows them the
shared backbone (`adapt`), from which they make their own part; the backbone itself is left as it is, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl.errors import ConfigError, unknown
from medusa_cl.models.backbone import Backbone, hooked
from medusa_cl.models.heads import BUILT_IN, HeadFactory, HeadOutput

KINDS = ("lora", "residual")
Layer = Mapping[str, Any]
"""What a block must fit, as plain data: `type` (conv or linear), channels `in` and `out`, a convolution's geometry."""


class LowRankBlock(nn.Module):
    """A map of low rank beside a layer: the layer's own kind down to `rank` channels, then a 1x1 up, zero at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685), section 4.1.

    Args:
        layer: The layer.
        rank: Channels between the two maps.
    """

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        self.layer = dict(layer)
        self.down: nn.Module
        self.up: nn.Module
        if layer["type"] == "linear":
            self.down, self.up = nn.Linear(layer["in"], rank, bias=False), nn.Linear(rank, layer["out"], bias=False)
        else:
            self.down, self.up = _conv(layer, rank), nn.Conv2d(rank, layer["out"], kernel_size=1, bias=False)
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is to be added to the layer's output for its input: B C H W, or ... C of a linear layer."""
        out: Tensor = self.up(self.down(_padded(x, self.layer)))
        return out


class ParallelConv(nn.Module):
    """A 1x1 convolution beside one with a larger kernel, grouped as that one is, zero at first.

    Rebuffi, Bilen, Vedaldi, "Efficient Parametrization of Multi-Domain Deep Neural Networks", CVPR 2018
    (arXiv 1803.10082), section 3.1: parallel adapters.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            layer["in"], layer["out"], kernel_size=1, stride=tuple(layer["stride"]), groups=layer["groups"], bias=False
        )
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is to be added to the layer's output B C' H' W' for its input B C H W."""
        out: Tensor = self.conv(x)
        return out


class WrappedHead(nn.Module):
    """A head of another kind, to which `features` brings other features than the shared ones.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
        head: Makes the inner head; or its `class`, one of the built-in ones, and `config`, as `config` has them.

    Attributes:
        config: What remakes the head, as plain data.

    Raises:
        ConfigError: The inner head's class is unknown.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, head: HeadFactory | Mapping[str, Any]) -> None:
        super().__init__()
        self.head = _made(head, channels, out_channels)
        inner = {"class": type(self.head).__name__, "config": getattr(self.head, "config", {})}
        self.config: dict[str, Any] = {"head": inner}

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Answer as the inner head does, from B C_s H_s W_s at strides 4, 8, 16, 32."""
        answer: HeadOutput = self.head(features)
        return answer


class AdaptedHead(WrappedHead):
    """A head with small blocks of its own beside the layers of the frozen backbone: its task sees other features.

    Blocks are zero at first, so a fresh head answers as one without them. A head made while the backbone is trainable
    gets none and is like any other: the backbone itself can learn its task.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
        head: The inner head (see `WrappedHead`).
        kind: "lora": beside every convolution and linear layer but depthwise ones; "residual": beside every
            convolution with a kernel larger than 1.
        rank: Channels inside a block of kind "lora".
        layers: What there is to stand beside, by its name in the backbone's net; empty to find out in `adapt`.

    Raises:
        ConfigError: `kind` is unknown, `rank` is below 1, or the inner head's class is unknown.
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        *,
        head: HeadFactory | Mapping[str, Any],
        kind: str = "lora",
        rank: int = 4,
        layers: Mapping[str, Layer] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(unknown("kind of adapters, head.kind,", str(kind), KINDS))
        if rank < 1:
            raise ConfigError(f"Expected head.rank to be at least 1, but got {rank}.")
        super().__init__(channels, out_channels, head)
        self.config |= {"kind": kind, "rank": rank, "layers": {}}
        self.blocks = nn.ModuleDict()
        self._stand_beside(layers or {})

    @property
    def takes_image(self) -> bool:
        """Whether there are blocks, so that shared features do not do."""
        return len(self.blocks) > 0

    def adapt(self, backbone: Backbone) -> None:
        """Make blocks for a frozen backbone; nothing for a trainable one, or where there are some.

        Raises:
            ConfigError: The backbone has no layer that blocks of this kind could stand beside.
        """
        if not backbone.frozen or len(self.blocks):
            return
        found = {name: layer for name, layer in _layers_of(backbone).items() if _fits(layer, self.config["kind"])}
        if not found:
            other = next(kind for kind in KINDS if kind != self.config["kind"])
            raise ConfigError(
                f"Backbone {backbone.name} has no layer for adapters of kind {self.config['kind']!r}; try {other!r}."
            )
        self._stand_beside(found)

    def features(self, backbone: Backbone, image: Tensor) -> tuple[Tensor, ...]:
        """Return this task's features B C_s H_s W_s of images B 3 H W, float RGB in [0, 1]."""
        blocks = {name: self.blocks[_key(name)] for name in self.config["layers"]}
        return backbone(image, blocks)  # type: ignore[no-any-return]

    def _stand_beside(self, layers: Mapping[str, Layer]) -> None:
        for name, layer in layers.items():
            lora = self.config["kind"] == "lora"
            self.blocks[_key(name)] = LowRankBlock(layer, self.config["rank"]) if lora else ParallelConv(layer)
            self.config["layers"][name] = dict(layer)


class OwnNetHead(WrappedHead):
    """A head with a whole backbone of its own, which learns with it: a single-task net as one head among others.

    It starts as a copy of the shared backbone as that is when the head is added.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        out_channels: Channels K of the task's logits.
        head: The inner head (see `WrappedHead`).
        backbone: Name of the backbone that weights are about to be loaded into; empty to wait for `adapt`.

    Attributes:
        backbone: The backbone; there is none before `adapt`.

    Raises:
        ConfigError: The backbone or the inner head's class is unknown.
    """

    takes_image = True
    uses_backbone = False

    def __init__(
        self, channels: Sequence[int], out_channels: int, *, head: HeadFactory | Mapping[str, Any], backbone: str = ""
    ) -> None:
        super().__init__(channels, out_channels, head)
        self.config["backbone"] = backbone
        self.backbone: Backbone | None = Backbone.create(backbone, pretrained=False) if backbone else None

    def adapt(self, backbone: Backbone) -> None:
        """Copy the shared backbone; the copy is trainable, whatever the shared one is."""
        self.backbone = copy.deepcopy(backbone)
        self.backbone.unfreeze()
        self.config["backbone"] = backbone.name

    def features(self, backbone: Backbone, image: Tensor) -> tuple[Tensor, ...]:
        """Return the own backbone's features B C_s H_s W_s of images B 3 H W, float RGB in [0, 1]."""
        assert self.backbone is not None, "add_head calls adapt"
        return self.backbone(image)  # type: ignore[no-any-return]


def _layers_of(backbone: Backbone) -> dict[str, Layer]:
    """Return the convolutions and linear layers that a frozen backbone runs, in that order, by their names in its net.

    Found by running it once on a small image: a layer whose weights are used without calling it cannot be stood beside,
    nor one whose output is not of the size that its geometry says.
    """
    found: dict[str, Layer] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.update({name: described} if (described := _describe(layer, inputs[0], output)) else {})

        return hook

    named = [n for n, m in backbone.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with hooked(backbone.net, {name: look(name) for name in named}):
        backbone(torch.zeros(1, 3, 64, 96, device=backbone.mean.device))
    return found


def _describe(layer: nn.Module, x: Tensor, out: Tensor) -> Layer | None:
    if isinstance(layer, nn.Linear):
        return {"type": "linear", "in": layer.in_features, "out": layer.out_features}
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return None
    described = {"type": "conv", "in": layer.in_channels, "out": layer.out_channels, "groups": layer.groups}
    described |= {key: list(getattr(layer, key)) for key in ("kernel_size", "stride", "padding", "dilation")}
    fits = [same for same in (False, True) if _output_size(x, {**described, "same": same}) == out.shape[-2:]]
    return described | {"same": fits[0]} if fits else None


def _output_size(x: Tensor, layer: Layer) -> tuple[int, ...]:
    if layer["same"]:
        return tuple(-(-n // s) for n, s in zip(x.shape[-2:], layer["stride"], strict=True))
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in _geometry(x, layer))


def _geometry(x: Tensor, layer: Layer) -> Iterator[tuple[int, int, int, int, int]]:
    """Go through height and width: size, kernel, stride, padding, dilation."""
    keys = ("kernel_size", "stride", "padding", "dilation")
    yield from zip(x.shape[-2:], *(layer[key] for key in keys), strict=True)


def _fits(layer: Layer, kind: str) -> bool:
    if layer["type"] == "linear":
        return kind == "lora"
    if kind == "lora":
        return bool(layer["groups"] == 1)
    # Where padding makes up for the kernel, a 1x1 convolution gives as many outputs.
    geometry = zip(layer["kernel_size"], layer["padding"], layer["dilation"], strict=True)
    return max(layer["kernel_size"]) > 1 and (layer["same"] or all(2 * p == d * (k - 1) for k, p, d in geometry))


def _conv(layer: Layer, out_channels: int) -> nn.Conv2d:
    geometry: dict[str, Any] = {key: tuple(layer[key]) for key in ("kernel_size", "stride", "padding", "dilation")}
    return nn.Conv2d(layer["in"], out_channels, bias=False, **geometry)


def _padded(x: Tensor, layer: Layer) -> Tensor:
    """Pad as TensorFlow's "same" does, where the layer does: ceil(n / stride) outputs, the odd pixel at the end."""
    if not layer.get("same"):
        return x
    missing = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, _, d in _geometry(x, layer)]
    return F.pad(x, [side for total in reversed(missing) for side in (total // 2, total - total // 2)])


def _key(name: str) -> str:
    # Names of submodules have no dots.
    return name.replace(".", "/")


def _made(head: HeadFactory | Mapping[str, Any], channels: Sequence[int], out_channels: int) -> nn.Module:
    if not isinstance(head, Mapping):
        return head(channels, out_channels)
    if head["class"] not in BUILT_IN:
        raise ConfigError(unknown("kind of head", head["class"], BUILT_IN))
    return BUILT_IN[head["class"]](channels, out_channels, **head["config"])


BUILT_IN |= {head.__name__: head for head in (AdaptedHead, OwnNetHead)}
