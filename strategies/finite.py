"""Numbers that are not finite: a step whose loss or gradient is NaN or infinite ends training, or is left out.

A step that is left out counts as taken (schedule, loader, progress), but changes nothing: the optimizer is not asked,
plugins see gradients of 0, and batch statistics are put back to what they were before the forward pass. A plugin that
learns from a step in another way has a method `undo_step(strategy)`, called before `after_update`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medusa_cl import distributed
from medusa_cl.errors import ConfigError, TrainingError, unknown

ON_NAN = ("stop", "skip")
MANY_IN_A_ROW = 50
"""Steps left out one after the other that end training: weights or data are beyond repair."""

SMALL = 4096
"""Elements of a tensor that it costs less to copy than to add up by itself."""

SAID_EACH, SAID_EVERY = 10, 100
"""So many steps left out are said one by one; after them, every so-manieth."""


@torch.no_grad()
def all_finite(values: Sequence[Tensor]) -> bool:
    """Return whether nothing is NaN or infinite; on a device this waits for it.

    Args:
        values: Any shapes; one NaN or infinity makes a sum NaN or infinite, and a sum is the quickest look there is.
    """
    # Small ones together: to call for so many sums would take longer than the sums.
    parts = [value.flatten() if value.numel() < SMALL else value.sum().view(1) for value in values]
    return not parts or math.isfinite(torch.cat(parts).sum().item())


class StepGuard:
    """Leaves steps out whose numbers are not finite.

    Args:
        on_nan: "stop" leaves none out, "skip" does.

    Attributes:
        skips: Whether it does.
        skipped: Steps left out so far, over the whole stream.
        in_a_row: Of these, how many were the last ones.
        leaving_out: Whether the step that is being taken is left out.

    Raises:
        ConfigError: `on_nan` is neither.
    """

    def __init__(self, on_nan: str = "stop") -> None:
        if on_nan not in ON_NAN:
            raise ConfigError(unknown("trainer.on_nan", str(on_nan), ON_NAN))
        self.skips = on_nan == "skip"
        self.skipped = self.in_a_row = 0
        self.leaving_out = False
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def begin(self, model: nn.Module) -> None:
        """Keep the statistics that a forward pass will change; needed only where steps may be left out."""
        self.leaving_out = False
        if self.skips:
            trained = (module for module in model.modules() if module.training)
            buffers = [buffer for module in trained for buffer in module.buffers(recurse=False)]
            self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def leave_out(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the step come to nothing: gradients become 0, not NaN or None, for plugins multiply and add them up."""
        self.leaving_out = True
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def end(self, why: str, strategy: Any) -> None:
        """Put back what the step has changed, and say so.

        Raises:
            TrainingError: It is the last of too many in a row.
        """
        with torch.no_grad():
            for buffer, before in self._statistics:
                buffer.copy_(before)
        for plugin in strategy.plugins:
            if hasattr(plugin, "undo_step"):
                plugin.undo_step(strategy)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= MANY_IN_A_ROW:
            raise TrainingError(f"{why} It is the last of {self.in_a_row} steps in a row that were left out.")
        if distributed.is_main() and (self.skipped <= SAID_EACH or self.skipped % SAID_EVERY == 0):
            warnings.warn(f"Step left out (number {self.skipped}): {why}", stacklevel=2)

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` returned."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
