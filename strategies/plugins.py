"""Small plugins that Avalanche lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from medusa_cl.errors import ConfigError, unknown
from medusa_cl.strategies.template import planned_steps

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "poly": lambda progress: (1 - progress) ** 0.9,
}


class LRSchedule(SupervisedPlugin):
    """Sets the learning rates by the share of an experience's steps that is done.

    Args:
        name: "cosine", "poly" (power 0.9) or "constant".

    Raises:
        ConfigError: The name is unknown.
    """

    def __init__(self, name: str = "cosine") -> None:
        super().__init__()
        if name not in SCHEDULES:
            raise ConfigError(unknown("trainer.schedule", name, SCHEDULES))
        self._factor = SCHEDULES[name]
        self._step = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start anew."""
        self._step = 0

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the rates of the step to come."""
        total = planned_steps(strategy)
        for group in strategy.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self._factor(min(self._step / total, 1.0))
        self._step += 1


class GradientClipping(SupervisedPlugin):
    """Scales the gradient down to a largest L2 norm.

    Args:
        max_norm: The largest norm.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__()
        self.max_norm = max_norm

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Clip what the optimizer is about to use."""
        parameters = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class Progress(SupervisedPlugin):
    """Shows every training step.

    Args:
        bar: `(label, steps) -> context` of an object with `advance(steps, images, loss)` and `images_per_second`.

    Attributes:
        rates: Images a second by experience.
    """

    def __init__(self, bar: Callable[[str, int], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._make, self._open = bar, ExitStack()
        self._bar: Any = None
        self.rates: dict[str, float] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Open a bar."""
        self._bar = self._open.enter_context(self._make(strategy.experience.name, planned_steps(strategy)))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Advance it."""
        self._bar.advance(1, len(strategy.mb_y), float(strategy.loss.detach()))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Close it."""
        self.rates[strategy.experience.name] = self._bar.images_per_second or 0.0
        self.close()

    def close(self) -> None:
        """Close what is open, also after an error."""
        self._open.close()
