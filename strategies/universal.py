"""Pretraining that keeps features universal: what no base task claims stays, or is given something else to tell.

Medusa's claim (arXiv 2204.05698) is that attention over shared features makes them serve tasks that come later. These
terms act while the base tasks are learnt, beside the tasks' losses; with all weights at 0 it is the paper's form.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from medusa_cl.errors import ConfigError
from medusa_cl.models.attention import SharedFeatureAttention, SpatialAttention, upsample
from medusa_cl.randomness import generator, seeded

PATCH = 4  # pixels: the finest features are at stride 4, so each has a patch of so many squared to tell of


class UniversalFeatures(SupervisedPlugin):
    """Terms on the shared features of experience 0, added to the loss of its tasks.

    Args:
        anchor: Weight of staying near the features that the backbone started with: the mean over scales of
            ((F_s - F0_s) / std(F0_s))^2, standard deviations by channel and batch.
        reserve: Weigh that by 1 - the largest mask that any task's SFA lays there: what no task claims is what stays.
            It needs heads with SFA.
        reconstruct: Weight of telling the image from the finest scale of the merged features: L1 of its 4x4 patches,
            standardised by channel, under a linear map. It needs no labels.
        sparsity: Weight of the mean mask of SFA: each task is to take little.
        diversity: Weight of the mean cosine between the masks of two tasks: each is to take something else.
        decorrelate: Weight of the mean squared correlation between two channels of a scale.
        task_dropout: Share of steps in which a task is left out of the loss; at least one stays.
        detach_masks: Whether masks of SFA are made of features without their gradient: a mask is then no way by which a
            task changes the features.

    Raises:
        ConfigError: A weight is negative, or task_dropout not below 1.
    """

    def __init__(
        self,
        *,
        anchor: float = 0.0,
        reserve: bool = False,
        reconstruct: float = 0.0,
        sparsity: float = 0.0,
        diversity: float = 0.0,
        decorrelate: float = 0.0,
        task_dropout: float = 0.0,
        detach_masks: bool = False,
    ) -> None:
        super().__init__()
        self.anchor, self.reserve, self.reconstruct = anchor, reserve, reconstruct
        self.sparsity, self.diversity, self.decorrelate = sparsity, diversity, decorrelate
        self.task_dropout, self.detach_masks = task_dropout, detach_masks
        weights = (anchor, reconstruct, sparsity, diversity, decorrelate, task_dropout)
        if min(weights) < 0 or task_dropout >= 1:
            raise ConfigError(f"Expected weights of at least 0, and task_dropout below 1, but got {weights}.")
        self._hooks: list[Any] = []
        self._first: nn.Module | None = None
        self._decode: nn.ModuleList | None = None
        self._maps: tuple[Tensor, ...] = ()
        self._masks: dict[int, dict[str, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look at features and masks while the base tasks are learnt."""
        self._forget()
        backbone = strategy.model.backbone
        if strategy.experience.task_label or backbone.frozen:
            return
        if self.anchor:
            self._first = copy.deepcopy(backbone)
            self._first.freeze()
        self._hooks.append(backbone.register_forward_hook(self._keep_maps))
        for task, scale, mask in _masks_of(strategy.model.heads):
            self._hooks.append(mask.register_forward_hook(self._keeper(scale, task)))
            if self.detach_masks:
                self._hooks.append(mask.register_forward_pre_hook(_detached))
        if self.reconstruct:
            with seeded("reconstruct", getattr(strategy, "seed", 0)):
                made = nn.ModuleList(nn.Conv2d(c, 3 * PATCH * PATCH, 1) for c in backbone.channels)
            self._decode = made.to(strategy.device)
            strategy.model.decode_image = self._decode  # so that checkpoints hold it
            strategy.optimizer.add_param_group({"params": list(made.parameters()), "name": "decode_image"})

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leave tasks out."""
        if not self._hooks or not self.task_dropout:
            return
        _, y, _ = strategy.mbatch
        names = list(y.entries)
        step = strategy.clock.train_iterations
        draw = torch.rand(len(names), generator=generator("task_dropout", getattr(strategy, "seed", 0), step))
        kept = [name for name, value in zip(names, draw.tolist(), strict=True) if value >= self.task_dropout]
        kept = kept or [names[int(draw.argmax())]]
        strategy.mbatch[1] = type(y)({name: y.entries[name] for name in kept}, y.size)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the terms to the loss."""
        if not self._hooks or not self._maps:
            return
        for weight, term in (
            (self.anchor, self._moved),
            (self.reconstruct, self._untold),
            (self.sparsity, self._claimed),
            (self.diversity, self._alike),
            (self.decorrelate, self._correlated),
        ):
            if weight:
                strategy.loss = strategy.loss + weight * term(strategy.mb_x)
        self._maps, self._masks = (), {}

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look no longer."""
        self._forget()
        strategy.model.decode_image = None

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._first, self._decode, self._maps, self._masks = [], None, None, (), {}

    def _keep_maps(self, module: nn.Module, given: Any, maps: tuple[Tensor, ...]) -> None:
        self._maps = tuple(x.float() for x in maps)

    def _keeper(self, scale: int, task: str) -> Any:
        def keep(module: nn.Module, given: Any, logits: Tensor) -> None:
            self._masks.setdefault(scale, {})[task] = torch.sigmoid(logits.float())

        return keep

    def _moved(self, images: Tensor) -> Tensor:
        assert self._first is not None
        with torch.no_grad():
            first = [x.float() for x in self._first(images)]
        terms = []
        for scale, (now, then) in enumerate(zip(self._maps, first, strict=True)):
            spread = then.var(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
            moved = (now - then).square() / spread
            if self.reserve:
                masks = torch.stack([mask.mean(dim=1, keepdim=True) for mask in self._masks[scale].values()])
                moved = moved * (1 - masks.amax(dim=0).detach())
            terms.append(moved.mean())
        return torch.stack(terms).mean()

    def _untold(self, images: Tensor) -> Tensor:
        assert self._decode is not None
        size = self._maps[0].shape[-2:]
        below, right = (PATCH * side - given for side, given in zip(size, images.shape[-2:], strict=True))
        patches = F.pixel_unshuffle(F.pad(images, (0, right, 0, below)), PATCH)
        spread = patches.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3)
        target = (patches - patches.mean(dim=(0, 2, 3), keepdim=True)) / spread
        told = [upsample(decode(x), size) for decode, x in zip(self._decode, self._maps, strict=True)]
        return (torch.stack(told).sum(dim=0) - target).abs().mean()

    def _claimed(self, images: Tensor) -> Tensor:
        return torch.stack([mask.mean() for masks in self._masks.values() for mask in masks.values()]).mean()

    def _alike(self, images: Tensor) -> Tensor:
        terms = []
        for masks in self._masks.values():
            flat = F.normalize(torch.stack([mask.flatten() for mask in masks.values()]), dim=1)
            cosines = flat @ flat.T
            count = len(masks)
            terms.append((cosines.sum() - cosines.diagonal().sum()) / max(count * (count - 1), 1))
        return torch.stack(terms).mean()

    def _correlated(self, images: Tensor) -> Tensor:
        return torch.stack([_correlation(x) for x in self._maps]).mean()


def _masks_of(heads: nn.ModuleDict) -> Iterator[tuple[str, int, nn.Module]]:
    """Go through what makes the masks of SFA: task, scale, convolution."""
    for task, head in heads.items():
        for part in (part for part in head.modules() if isinstance(part, SharedFeatureAttention)):
            for scale, attend in enumerate(part.scales):
                if isinstance(attend, SpatialAttention):
                    yield task, scale, attend.mask


def _detached(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in given)


def _correlation(maps: Tensor) -> Tensor:
    """Return the mean squared correlation between two different channels of B C H W."""
    flat = maps.transpose(0, 1).flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)
    squares = (flat @ flat.T).square()
    count = len(squares)
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))
