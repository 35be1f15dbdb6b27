"""Pretraining that keeps features universal: what no base task claims stays, or is given something else to tell.

Medusa's claim (arXiv 2204.05698) is that attention over shared features makes them serve tasks that come later. These
terms, ours, act while the base tasks are learnt, beside the tasks' losses; without them stands the paper's form.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from medusa_cl.batch import TaskBatch
from medusa_cl.errors import ConfigError
from medusa_cl.models.attention import SharedFeatureAttention, SpatialAttention, upsample
from medusa_cl.randomness import generator, seeded

PATCH = 4  # pixels: the finest features are at stride 4, so each has a patch of so many squared to tell of
Masks = Sequence[Tensor]  # of one scale: B C H W in (0, 1), one for each task


class UniversalFeatures(SupervisedPlugin):
    """Terms on the shared features, added to the loss of experience 0; no term acts once the backbone is frozen.

    Args:
        anchor: Weight of `moved`: staying near the features that the backbone started with.
        reserve: Whether that holds only where no task's SFA masks; it needs heads with SFA.
        reconstruct: Weight of `untold`: telling the image, which needs no labels.
        sparsity: Weight of `claimed`: each task is to take little.
        diversity: Weight of `alike`: each task is to take something else.
        decorrelate: Weight of `correlated`: each channel is to tell something else.
        task_dropout: Share of steps in which a task is left out of the loss; one at least stays.
        detach_masks: Whether SFA's masks are made of features without their gradient: a mask is then no way by which a
            task changes the features.

    Raises:
        ConfigError: A weight is negative, task_dropout is not below 1, or (in training) no head has masks to act on.
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
        self.weights = {
            "anchor": anchor,
            "reconstruct": reconstruct,
            "sparsity": sparsity,
            "diversity": diversity,
            "decorrelate": decorrelate,
        }
        self.reserve, self.task_dropout, self.detach_masks = reserve, task_dropout, detach_masks
        if min(self.weights.values()) < 0 or not 0 <= task_dropout < 1:
            raise ConfigError(
                f"Expected weights of at least 0 and task_dropout in [0, 1), but got {self.weights} and {task_dropout}."
            )
        self._hooks: list[Any] = []
        self._first: nn.Module | None = None
        self._maps: tuple[Tensor, ...] = ()
        self._masks: dict[int, dict[str, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look at features and masks while the base tasks are learnt."""
        self._end(strategy)
        backbone = strategy.model.backbone
        if strategy.experience.task_label or backbone.frozen:
            return
        if self.weights["anchor"]:
            # In train mode, as the backbone itself: batch statistics on both sides, so that nothing has moved at first.
            self._first = copy.deepcopy(backbone).requires_grad_(False).train()
        self._hooks.append(backbone.register_forward_hook(self._keep_maps))
        self._look_at(list(_masks_of(strategy.model.heads)))
        if self.weights["reconstruct"]:
            _add_decoder(strategy)

    def _look_at(self, masks: Sequence[tuple[str, int, nn.Module]]) -> None:
        """Look at the masks as they are made."""
        if not masks and (self.reserve or self.detach_masks or self.weights["sparsity"] or self.weights["diversity"]):
            raise ConfigError("UniversalFeatures: reserve, sparsity, diversity and detach_masks need heads with SFA.")
        for task, scale, mask in masks:
            self._hooks.append(mask.register_forward_hook(self._keeper(scale, task)))
            if self.detach_masks:
                self._hooks.append(mask.register_forward_pre_hook(_detached))

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leave tasks out."""
        if not self._hooks or not self.task_dropout:
            return
        x, y, labels = strategy.mbatch
        key = (getattr(strategy, "seed", 0), strategy.clock.train_iterations)
        strategy.mbatch = [x, without_some(y, self.task_dropout, generator("task_dropout", *key)), labels]

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the terms to the loss."""
        if not self._maps:
            return
        masks = [list(of_task.values()) for _, of_task in sorted(self._masks.items())]
        for name, weight in self.weights.items():
            if weight:
                strategy.loss = strategy.loss + weight * self._term(name, strategy, masks)
        self._maps, self._masks = (), {}

    def _term(self, name: str, strategy: Any, masks: Sequence[Masks]) -> Tensor:
        if name == "anchor":
            assert self._first is not None
            with torch.no_grad():
                first = self._first(strategy.mb_x)
            return moved(self._maps, first, masks if self.reserve else None)
        if name == "reconstruct":
            return untold(self._maps, strategy.mb_x, strategy.model.decode_image)
        if name == "decorrelate":
            return torch.stack([correlated(x) for x in self._maps]).mean()
        of_scale = claimed if name == "sparsity" else alike
        return torch.stack([of_scale(scale) for scale in masks]).mean()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look no longer."""
        self._end(strategy)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that the backbone started with, where features are held to them."""
        return {} if self._first is None else {"first": self._first.state_dict()}

    def restore(self, state: Mapping[str, Any], strategy: Any, experiences: Sequence[Any]) -> None:
        """Hold features to the weights of `state_dict`, in the middle of an experience."""
        if state and self._first is not None:
            self._first.load_state_dict(state["first"])

    def _end(self, strategy: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._first, self._maps, self._masks = [], None, (), {}
        strategy.model.decode_image = None

    def _keep_maps(self, module: nn.Module, given: Any, maps: tuple[Tensor, ...]) -> None:
        self._maps = tuple(x.float() for x in maps)

    def _keeper(self, scale: int, task: str) -> Any:
        def keep(module: nn.Module, given: Any, logits: Tensor) -> None:
            self._masks.setdefault(scale, {})[task] = torch.sigmoid(logits.float())

        return keep


def moved(now: Sequence[Tensor], then: Sequence[Tensor], masks: Sequence[Masks] | None = None) -> Tensor:
    """Return how far features have moved: the mean over scales of ((F_s - F0_s) / std F0_s)^2, std by channel.

    Args:
        now: F_s, B C_s H_s W_s at each scale.
        then: F0_s, alike.
        masks: Of each scale: where the largest mask of any task, averaged over channels, is m, moving counts (1 - m).
    """
    terms = []
    for scale, (here, there) in enumerate(zip(now, then, strict=True)):
        there = there.float()
        squares = (here - there).square() / there.var(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
        if masks is not None:
            taken = torch.stack([mask.mean(dim=1, keepdim=True) for mask in masks[scale]]).amax(dim=0)
            squares = squares * (1 - taken.detach())
        terms.append(squares.mean())
    return torch.stack(terms).mean()


def untold(maps: Sequence[Tensor], images: Tensor, decode: Sequence[nn.Module]) -> Tensor:
    """Return how much of the images features cannot tell: L1 to their 4x4 patches, standardised by channel and batch.

    Args:
        maps: F_s, B C_s H_s W_s at strides 4, 8, ...
        images: B 3 H W.
        decode: A map of each scale to 48 channels; they are upsampled and summed.
    """
    size = maps[0].shape[-2:]
    below, right = (PATCH * side - given for side, given in zip(size, images.shape[-2:], strict=True))
    patches = F.pixel_unshuffle(F.pad(images, (0, right, 0, below)), PATCH)
    spread = patches.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3)
    target = (patches - patches.mean(dim=(0, 2, 3), keepdim=True)) / spread
    told = [upsample(of_scale(x), size) for of_scale, x in zip(decode, maps, strict=True)]
    return (torch.stack(told).sum(dim=0) - target).abs().mean()


def claimed(masks: Masks) -> Tensor:
    """Return the mean of the tasks' masks."""
    return torch.stack([mask.mean() for mask in masks]).mean()


def alike(masks: Masks) -> Tensor:
    """Return the mean cosine between the masks of two different tasks; 0 of one task."""
    flat = F.normalize(torch.stack([mask.flatten() for mask in masks]), dim=1)
    return _off_diagonal(flat @ flat.T)


def correlated(maps: Tensor) -> Tensor:
    """Return the mean squared correlation between two different channels of B C H W."""
    flat = maps.transpose(0, 1).flatten(1)
    flat = F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1, eps=1e-6)
    return _off_diagonal((flat @ flat.T).square())


def without_some(targets: TaskBatch, share: float, generator: torch.Generator) -> TaskBatch:
    """Return targets without those of tasks drawn with a probability; the one that came last to be drawn stays."""
    names = list(targets.entries)
    draws = torch.rand(len(names), generator=generator).tolist()
    last = max(draws, default=0.0)
    kept = [name for name, draw in zip(names, draws, strict=True) if draw >= share or draw == last]
    return TaskBatch({name: targets.entries[name] for name in kept}, len(targets))


def _off_diagonal(square: Tensor) -> Tensor:
    count = len(square)
    return (square.sum() - square.diagonal().sum()) / max(count * (count - 1), 1)


def _add_decoder(strategy: Any) -> None:
    """Give the model, for this experience, what tells the image; as a part of it, so that checkpoints hold it."""
    with seeded("decode_image", getattr(strategy, "seed", 0)):
        made = nn.ModuleList(nn.Conv2d(c, 3 * PATCH**2, kernel_size=1) for c in strategy.model.backbone.channels)
    strategy.model.decode_image = made.to(strategy.device)
    strategy.optimizer.add_param_group({"params": list(made.parameters()), "name": "decode_image"})


def _masks_of(heads: Mapping[str, nn.Module] | nn.ModuleDict) -> Iterator[tuple[str, int, nn.Module]]:
    """Go through what makes the masks of SFA: task, scale, convolution."""
    for task, head in heads.items():
        for part in (part for part in head.modules() if isinstance(part, SharedFeatureAttention)):
            for scale, attend in enumerate(part.scales):
                if isinstance(attend, SpatialAttention):
                    yield task, scale, attend.mask


def _detached(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in given)
