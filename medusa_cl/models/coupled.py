"""Coupled decoders, what Medusa argues against: PAD-Net and MTI-Net, in which every task reads every other task.

Written from the papers. A task more or less changes the shapes of what all tasks share and adds connections from and to
every other task, so nothing of a trained decoder can be kept: all tasks are retrained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl.batch import take
from medusa_cl.errors import TaskError
from medusa_cl.models.attention import SpatialAttention, upsample
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import HeadFactory, HeadOutput, PlainHead, ScaleMix
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.randomness import seeded
from medusa_cl.tasks import DenseTask

DecoderFactory = Callable[[Sequence[int], Mapping[str, int]], nn.Module]

EXPANSION = 4  # a bottleneck's inner width is its outer one divided by this
PROPAGATION_RATIO = 4  # likewise of the hidden layers that make MTI-Net's masks
EXCITATION_RATIO = 16


class BasicBlock(nn.Module):
    """3x3-BN-ReLU-3x3-BN plus the input (through 1x1-BN where the widths differ), then ReLU.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*_conv_norm(inputs, outputs, 3), nn.ReLU(), *_conv_norm(outputs, outputs, 3))
        self.skip = _skip(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return B outputs H W from B inputs H W."""
        return F.relu(self.residual(x) + self.skip(x))


class Bottleneck(nn.Module):
    """1x1-3x3-1x1, each with BN, at a quarter of the width; plus the input as in `BasicBlock`, then ReLU.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = max(outputs // EXPANSION, 1)
        self.residual = nn.Sequential(
            *_conv_norm(inputs, inner, 1),
            nn.ReLU(),
            *_conv_norm(inner, inner, 3),
            nn.ReLU(),
            *_conv_norm(inner, outputs, 1),
        )
        self.skip = _skip(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return B outputs H W from B inputs H W."""
        return F.relu(self.residual(x) + self.skip(x))


class SqueezeExcitation(nn.Module):
    """Each channel times a gate in (0, 1) that depends on the means of all channels.

    Args:
        channels: Channels C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // EXCITATION_RATIO, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return B C H W as `x`."""
        gated: Tensor = x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]
        return gated


class Distillation(nn.Module):
    """Multi-modal distillation: each task's features plus the gated features of every other task.

    PAD-Net (arXiv 1805.04409), module C: F'_t = F_t + sum over u != t of sigmoid(Wa * F_u) . (Wf * F_u), with weights
    of their own for each of the T (T - 1) pairs.

    Args:
        names: Names of the T tasks.
        channels: Channels C of each task's features.
    """

    def __init__(self, names: Sequence[str], channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleDict(
            {
                name: nn.ModuleDict({other: SpatialAttention(channels, gated=True) for other in names if other != name})
                for name in names
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return B C H W by task from B C H W by task."""
        return {name: self._distil(name, features) for name in features}

    def _distil(self, name: str, features: Mapping[str, Tensor]) -> Tensor:
        total = features[name]
        for other, gate in self.gates.get_submodule(name).named_children():
            total = total + gate(features[other])
        return total


class Propagation(nn.Module):
    """Feature propagation of MTI-Net (arXiv 2001.06902, section 3.3): what one scale hands to the next finer one.

    The tasks' features are weighed against each other, channel by channel and pixel by pixel, by a softmax over the
    tasks; what they then share is brought to one task's width, gated for each task and added to its own features.

    Args:
        names: Names of the T tasks.
        channels: Channels C of each task's features.
    """

    def __init__(self, names: Sequence[str], channels: int) -> None:
        super().__init__()
        together = len(names) * channels
        inner = max(together // PROPAGATION_RATIO, 1)
        self.mask = nn.Sequential(
            BasicBlock(together, inner), BasicBlock(inner, inner), nn.Conv2d(inner, together, kernel_size=1)
        )
        self.shared = BasicBlock(together, channels)
        self.excite = nn.ModuleDict({name: SqueezeExcitation(channels) for name in names})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return B C H W by task from B C H W by task."""
        together = torch.cat([features[name] for name in self.excite], dim=1)
        shape = (len(self.excite), -1)
        mask = self.mask(together).unflatten(1, shape).softmax(dim=1)
        shared = self.shared((mask * together.unflatten(1, shape)).flatten(1, 2))
        return {name: excite(shared) + features[name] for name, excite in self.excite.items()}


class PADNet(nn.Module):
    """The decoder of PAD-Net (Xu et al., CVPR 2018, arXiv 1805.04409) on a pyramid.

    The scales are merged at stride 4; each task takes features and an initial prediction from them, distils from every
    other task, and predicts.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        outputs: Channels K of each task's logits, by name.
        tricks: False as published, the scales upsampled and concatenated before they are merged; True to merge them at
            their own sizes (see `ScaleMix`). The same function.
        features: Channels of each task's features.
        width: Channels to which every scale is projected first (1x1-BN), as in the heads; None for the backbone's own.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: Mapping[str, int],
        *,
        tricks: bool = False,
        features: int = 256,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"tricks": tricks, "features": features, "width": width}
        widths = [width or c for c in channels]
        self.project = _projections(channels, width)
        self.mix = ScaleMix(widths, sum(widths), late=tricks)
        self.norm = nn.Sequential(nn.BatchNorm2d(sum(widths)), nn.ReLU())
        self.refine = nn.ModuleDict({name: _bottlenecks(sum(widths), features) for name in outputs})
        self.initial = nn.ModuleDict({name: nn.Conv2d(features, k, kernel_size=1) for name, k in outputs.items()})
        self.distil = Distillation(list(outputs), features)
        self.predict = nn.ModuleDict(
            {
                name: nn.Sequential(_bottlenecks(features, features), nn.Conv2d(features, k, kernel_size=1))
                for name, k in outputs.items()
            }
        )

    def forward(self, features: Sequence[Tensor]) -> dict[str, HeadOutput]:
        """Return for each task its logits B K H_0 W_0 and, in training, its one initial prediction B K H_0 W_0."""
        maps = [project(x) for project, x in zip(self.project, features, strict=True)]
        merged = self.norm(self.mix(maps))
        refined = {name: refine(merged) for name, refine in self.refine.items()}
        distilled = self.distil(refined)
        return {
            name: (predict(distilled[name]), (self.initial[name](refined[name]),) if self.training else ())
            for name, predict in self.predict.items()
        }


class MTINet(nn.Module):
    """The decoder of MTI-Net (Vandenhende et al., ECCV 2020, arXiv 2001.06902).

    From coarse to fine, each task takes features and an initial prediction from a scale, helped by what the tasks
    propagate from the scale before; tasks distil from each other at every scale; a plain head merges a task's scales.

    Args:
        channels: Channels C_s of the backbone at strides 4, 8, 16, 32.
        outputs: Channels K of each task's logits, by name.
        tricks: False as published, a task's scales upsampled and concatenated before they are merged; True to merge
            them at their own sizes (see `ScaleMix`). The same function.
        width: Channels to which every scale is projected first (1x1-BN), as in the heads; None for the backbone's own.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: Mapping[str, int],
        *,
        tricks: bool = False,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"tricks": tricks, "width": width}
        names, widths = list(outputs), [width or c for c in channels]
        self.project = _projections(channels, width)
        inputs = [own + coarser for own, coarser in pairwise([*widths, 0])]
        self.refine = nn.ModuleList(
            nn.ModuleDict({name: nn.Sequential(BasicBlock(i, c), BasicBlock(c, c)) for name in names})
            for i, c in zip(inputs, widths, strict=True)
        )
        self.initial = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv2d(c, k, kernel_size=1) for name, k in outputs.items()}) for c in widths
        )
        self.propagate = nn.ModuleList(Propagation(names, c) for c in widths[1:])
        self.distil = nn.ModuleList(Distillation(names, c) for c in widths)
        self.predict = nn.ModuleDict({name: PlainHead(widths, k, late_mix=tricks) for name, k in outputs.items()})

    def forward(self, features: Sequence[Tensor]) -> dict[str, HeadOutput]:
        """Return for each task its logits B K H_0 W_0 and, in training, its initial predictions B K H_s W_s."""
        maps = [project(x) for project, x in zip(self.project, features, strict=True)]
        refined = self._coarse_to_fine(maps)
        distilled = [distil(by_task) for distil, by_task in zip(self.distil, refined, strict=True)]
        return {
            name: (predict([scale[name] for scale in distilled])[0], self._initial(name, refined))
            for name, predict in self.predict.items()
        }

    def _coarse_to_fine(self, maps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the features of each task before distillation, scale by scale, finest first."""
        names, found = list(self.predict), [dict[str, Tensor]() for _ in maps]
        for s in reversed(range(len(maps))):
            inputs = dict.fromkeys(names, maps[s])
            if s + 1 < len(maps):
                handed = self.propagate[s](found[s + 1])
                size = maps[s].shape[-2:]
                inputs = {name: torch.cat([maps[s], upsample(handed[name], size)], dim=1) for name in names}
            found[s] = {name: self.refine[s].get_submodule(name)(inputs[name]) for name in names}
        return found

    def _initial(self, name: str, refined: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        if not self.training:
            return ()
        scales = zip(self.initial, refined, strict=True)
        return tuple(initial.get_submodule(name)(by_task[name]) for initial, by_task in scales)


DECODERS: Mapping[str, Callable[..., nn.Module]] = {decoder.__name__: decoder for decoder in (PADNet, MTINet)}


class CoupledModel(MultiTaskModel):
    """A shared backbone under one decoder that couples all tasks; every task it is to have comes at once.

    It answers as `MultiTaskModel` does, but none of its tasks can be added, removed, frozen or saved by itself.

    Args:
        backbone: Shared features.
        decoder: Makes the decoder from the backbone's channels and each task's number of output channels.
        precision: As in `MultiTaskModel`.

    Attributes:
        heads: Holds the one decoder, as `heads["decoder"]`; empty before `add_heads`.
    """

    def __init__(self, backbone: Backbone, decoder: DecoderFactory, precision: str = "32") -> None:
        super().__init__(backbone, _no_heads, precision)
        self.decoder_factory = decoder

    def add_heads(self, tasks: Sequence[DenseTask], seed: int) -> None:
        """Make the decoder for these tasks, as a pure function of (seed, names of the tasks in their order).

        Args:
            tasks: All tasks that the model is ever to have.
            seed: Seed of the initialisation; the global random state is neither read nor changed.

        Raises:
            TaskError: The model has a decoder already, or a name occurs twice, or there is no task.
        """
        if self.tasks:
            self._refuse(f"adding {', '.join(task.name for task in tasks)} to {', '.join(self.tasks)}")
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise TaskError(f"Expected tasks with names of their own for a coupled decoder, but got {names}.")
        with seeded("decoder", seed, *names):
            decoder = self.decoder_factory(self.backbone.channels, {task.name: task.channels for task in tasks})
        self.heads["decoder"] = self._settled(decoder)
        self.tasks.update({task.name: task for task in tasks})

    def parameters_of(self, name: str) -> int:
        """Return the number of parameters that the decoder would not have without this task.

        Unlike a head's, it grows with the number of the other tasks, and the parameters of all tasks together are not
        their sum.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        others = {other: task.channels for other, task in self.tasks.items() if other != name}
        return _count(self.heads["decoder"]) - (self._count_for(others) if others else 0)

    def _count_for(self, outputs: Mapping[str, int]) -> int:
        with torch.device("meta"), seeded("replaced"):
            return _count(self.decoder_factory(self.backbone.channels, outputs))

    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        tasks: Sequence[str] | Mapping[str, Tensor] | None = None,
        extract: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
    ) -> dict[str, HeadOutput]:
        """Run the decoder, for all its tasks and the whole batch, and answer what was asked for.

        Args:
            image: As in `MultiTaskModel.forward`.
            tasks: As in `MultiTaskModel.forward`; rows are selected from the answers, not from what the decoder sees.
            extract: As in `MultiTaskModel.forward`.

        Returns:
            As `MultiTaskModel.forward`.

        Raises:
            TaskError: The model has no such task.
        """
        wanted = self._wanted(tasks)
        if not wanted:
            return {}
        answers = self._decode((extract or self.features)(image) if isinstance(image, Tensor) else image)
        return {name: _select(answers[name], chosen) for name, chosen in wanted.items()}

    def _decode(self, maps: Sequence[Tensor]) -> dict[str, HeadOutput]:
        features = [x.contiguous(memory_format=self.memory_format) for x in maps]
        with self._autocast(features[0]):
            answers: dict[str, HeadOutput] = self.heads["decoder"](features)
        return answers

    def needs_images(self, names: Iterable[str] | None = None) -> bool:
        """Return False: features alone serve the decoder.

        Raises:
            TaskError: There is no such task.
        """
        for name in names or ():
            self._known(name)
        return False

    def add_head(self, task: DenseTask, seed: int, head: HeadFactory | None = None) -> NoReturn:
        """Refuse: a coupled decoder is made for all tasks at once, by `add_heads`.

        Raises:
            TaskError: Always.
        """
        self._refuse(f"adding {task.name}")

    def remove_head(self, name: str) -> NoReturn:
        """Refuse: other tasks have learnt to read this one.

        Raises:
            TaskError: Always.
        """
        self._refuse(f"removing {name}")

    def unfreeze_head(self, name: str) -> None:
        """Let the decoder learn; it serves this task and all others.

        Raises:
            TaskError: There is no such task.
        """
        self._known(name)
        self.heads.requires_grad_(True)

    def freeze_head(self, name: str) -> NoReturn:
        """Refuse: no part of the decoder belongs to one task alone.

        Raises:
            TaskError: Always.
        """
        self._refuse(f"freezing {name}")

    def save_head(self, name: str, path: str | Path) -> NoReturn:
        """Refuse: no part of the decoder answers one task alone.

        Raises:
            TaskError: Always.
        """
        self._refuse(f"saving {name}")

    def load_head(self, path: str | Path, task: DenseTask | None = None, head: HeadFactory | None = None) -> NoReturn:
        """Refuse: a head cannot be added to a coupled decoder.

        Raises:
            TaskError: Always.
        """
        self._refuse(f"loading a head from {path}")

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise TaskError(
            f"A coupled decoder serves all of its tasks together, so {what} means to make a new one and to retrain all "
            "tasks. Give add_heads all tasks at once (strategy=joint) and save the whole model "
            "(checkpoint.save_model), or use independent heads (head=medusa_light, head=plain)."
        )


def _no_heads(channels: Sequence[int], out_channels: int) -> NoReturn:
    raise TaskError("A coupled model has one decoder instead of heads. Give add_heads all tasks at once.")


def _select(answer: HeadOutput, rows: Tensor | None) -> HeadOutput:
    logits, initial = (answer[0].float(), tuple(x.float() for x in answer[1]))
    return (logits, initial) if rows is None else (take(logits, rows), tuple(take(x, rows) for x in initial))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _conv_norm(inputs: int, outputs: int, kernel: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)


def _skip(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Sequential(*_conv_norm(inputs, outputs, 1))


def _bottlenecks(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Bottleneck(inputs, outputs), Bottleneck(outputs, outputs))


def _projections(channels: Sequence[int], width: int | None) -> nn.ModuleList:
    return nn.ModuleList(nn.Identity() if width is None else nn.Sequential(*_conv_norm(c, width, 1)) for c in channels)
