"""What keeps the processes that train one model (see `medusa_cl.distributed`) together, besides averaged gradients."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from medusa_cl import distributed
from medusa_cl.errors import TrainingError


class EqualRanks(SupervisedPlugin):
    """Averages batch statistics over the processes, and makes sure that all hold the same weights.

    Every process has statistics of its own batches, so what is trained with them answers as the whole only once they
    are averaged: after each epoch, before anything is evaluated. It goes before every plugin that looks at the model.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check that new heads are the same everywhere."""
        check_equal(strategy.model)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Average the statistics of what is in training."""
        average_statistics(strategy.model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check that nothing has drifted apart."""
        average_statistics(strategy.model)
        check_equal(strategy.model)


def average_statistics(model: nn.Module) -> None:
    """Set the buffers of modules in training to their mean over the processes; whole numbers to those of rank 0.

    Args:
        model: The model; modules in evaluation mode, frozen ones among them, keep their bytes.
    """
    buffers = [b for module in model.modules() if module.training for b in module.buffers(recurse=False)]
    distributed.average_(b for b in buffers if b.is_floating_point())
    for buffer in buffers:
        if not buffer.is_floating_point():
            buffer.copy_(distributed.gathered(buffer)[0])


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of modules in training by name: until an epoch is over, each process has its own."""
    trained = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if module.training
        for key, _ in module.named_buffers(recurse=False)
    }
    return {name: value.detach().cpu() for name, value in model.state_dict().items() if name in trained}


def check_equal(model: nn.Module) -> None:
    """Refuse to go on with weights that differ between processes.

    Raises:
        TrainingError: They do; says which is the first.
    """
    state = model.state_dict()
    sums = torch.stack([_checksum(value) for value in state.values()])
    first, *others = distributed.gathered(sums)
    for rank, other in enumerate(others, 1):
        if not torch.equal(first, other):
            name = list(state)[int((first != other).nonzero()[0])]
            raise TrainingError(
                f'The weights of rank {rank} are no longer those of rank 0 (first in "{name}"): something changes the '
                "model on one process alone. Leave out plugins of your own, or train with trainer.distributed=false."
            )


def _checksum(values: Tensor) -> Tensor:
    """Return the sum of the bits as whole numbers: exact, and blind to nothing that rounding could hide."""
    whole = values.detach().float().contiguous().view(torch.int32) if values.is_floating_point() else values
    return whole.long().sum()
