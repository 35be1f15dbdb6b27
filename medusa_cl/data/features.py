"""Features of a frozen backbone, computed once per image and view and kept in memory.

A frozen backbone answers the same image with the same features for ever, so every later head can share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medusa_cl.batch import Sample
from medusa_cl.data.loader import IDENTITY, View, padded_image
from medusa_cl.data.split import DenseData
from medusa_cl.errors import TrainingError
from medusa_cl.models.backbone import Backbone


def in_batches_of(
    backbone: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, batch_size: int
) -> tuple[Tensor, ...]:
    """Run the backbone on batches of exactly `batch_size`, whatever the number of images.

    Kernels, and so the last bits, may differ between batch sizes; the last batch is padded by repeating an image.

    Args:
        backbone: A backbone in eval mode, or however else features are made of images B 3 H W.
        images: B 3 H W float32 in [0, 1].
        batch_size: Images a batch.

    Returns:
        B C_s H_s W_s for each scale.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)
        padded = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)]) if missing else batch
        parts.append([scale[: len(batch)] for scale in backbone(padded)])
    return tuple(torch.cat(scale) if len(parts) > 1 else scale[0] for scale in zip(*parts, strict=True))


class FrozenFeatures:
    """The features of one split under one frozen backbone, by image and view, on the CPU.

    Args:
        backbone: A frozen backbone.
        source: The split's images.
        views: The views that will be asked for.
        batch_size: Images a batch; the same as in training and evaluation.
        device: Where the backbone runs.
        forward: How the backbone is called on a batch (to run it under autocast, for instance).

    Raises:
        TrainingError: The backbone is trainable, so its features would go stale.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: DenseData,
        views: Sequence[View] = (IDENTITY,),
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        forward: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
    ) -> None:
        if not backbone.frozen:
            raise TrainingError("Features can be kept only of a frozen backbone. Set strategy.cache_features=off.")
        self._forward = forward or backbone
        self._source, self._batch_size, self._device = source, batch_size, device
        self._kept: dict[View, tuple[Tensor, ...]] = {}
        for view in views:
            self.add(view)

    @torch.no_grad()
    def add(self, view: View) -> None:
        """Compute and keep a view of every image, unless it is there."""
        if view in self._kept:
            return
        parts = []
        for start in range(0, len(self._source), self._batch_size):
            indices = range(start, min(start + self._batch_size, len(self._source)))
            parts.append(self._compute(indices, view))
        self._kept[view] = tuple(torch.cat(scale) for scale in zip(*parts, strict=True))

    def _compute(self, indices: Sequence[int], view: View) -> list[Tensor]:
        seen = torch.stack([self._seen(i, view) for i in indices])
        features = in_batches_of(self._forward, seen.to(self._device), self._batch_size)
        return [scale.to("cpu", torch.float32, memory_format=torch.contiguous_format) for scale in features]

    def _seen(self, index: int, view: View) -> Tensor:
        image = view.of(Sample(padded_image(self._source, index), {}, index, 0), {}).image
        assert isinstance(image, Tensor)
        return image

    def get(self, index: int, view: View) -> tuple[Tensor, ...]:
        """Return the features C_s H_s W_s of every scale of one image.

        Raises:
            KeyError: The view was not kept.
        """
        return tuple(scale[index] for scale in self._kept[view])

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(scale.nbytes for scales in self._kept.values() for scale in scales)
