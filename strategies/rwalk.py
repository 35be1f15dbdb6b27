"""Riemannian walk for models that grow heads: Avalanche's plugin with its faults mended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import RWalkPlugin
from avalanche.training.utils import ParamData, copy_params_dict
from torch import Tensor

from medusa_cl.errors import ConfigError

Values = dict[str, ParamData]
KEPT = ("exp_scores", "exp_params", "exp_importance", "exp_penalties", "iter_importance")


class RWalk(RWalkPlugin):
    """Riemannian walk: weights that mattered, by their Fisher information and by their path, are held back.

    Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018 (equations 6 to 8). What differs from
    Avalanche 0.6's plugin: parameters added by a later experience have scores of their own (there: KeyError) and are
    protected after it (there: never); the last, shorter stretch of an experience counts, so that one of fewer than
    `delta_t` steps gives numbers (there: 0/0); weights without a gradient keep their importance (there: lost), and
    frozen ones are not read from old gradients; the model trains in train mode (there: in eval mode, since the plugin
    leaves it so).

    Args:
        ewc_lambda: Weight of the penalty.
        ewc_alpha: Weight of the new in the moving average of the importance, in [0, 1].
        delta_t: Steps between two updates of the scores.

    Raises:
        ConfigError: A number is out of its range.
    """

    exp_scores: Values | None
    iter_importance: Values | None
    iter_grad: Values

    def __init__(self, ewc_lambda: float = 0.1, ewc_alpha: float = 0.9, delta_t: int = 10) -> None:
        if not 0 <= ewc_alpha <= 1 or delta_t < 1 or ewc_lambda < 0:
            raise ConfigError(
                "Expected ewc_lambda of at least 0, ewc_alpha in [0, 1] and delta_t of at least 1, but got "
                f"{ewc_lambda}, {ewc_alpha} and {delta_t}. Set them in plugins.rwalk."
            )
        super().__init__(ewc_lambda, ewc_alpha, delta_t)
        self._steps = 0
        self._before: Values | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start every parameter's path here, where new heads are already there."""
        self._steps = 0
        self._forget(tuple(f"heads.{name}." for name in strategy.experience.tasks))
        super().before_training(strategy)

    def _forget(self, prefixes: tuple[str, ...]) -> None:
        """Drop what is known of a head that was removed and is now learnt anew."""
        for name in KEPT:
            known: Values = getattr(self, name) or {}
            if known:
                setattr(self, name, {key: value for key, value in known.items() if not key.startswith(prefixes)})

    def _update_grad(self, strategy: Any) -> None:
        training = strategy.model.training
        strategy.model.zero_grad()  # the optimizer clears only what it trains; gradients of what was frozen would stay
        super()._update_grad(strategy)
        strategy.model.train(training)

    def _update_importance(self, strategy: Any) -> None:
        self._before = self.iter_importance
        super()._update_importance(strategy)
        self.iter_importance = (self._before or {}) | (self.iter_importance or {})

    def undo_step(self, strategy: Any) -> None:
        """Forget the gradients of a step that was left out, as they may be NaN."""
        self.iter_importance, self.iter_grad = self._before, {}

    def _is_checkpoint_iter(self, strategy: Any) -> bool:
        return bool(self._steps % self.delta_t == 0)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count a step and follow the path."""
        self._steps += 1
        super().after_training_iteration(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Make the penalty of the experiences to come: both terms scaled to at most 1 (equation 8)."""
        if self._steps % self.delta_t:
            self._update_score(strategy)
        before = self.exp_scores or {}
        self.exp_scores = {key: _average(before.get(key), score) for key, score in self.checkpoint_scores.items()}
        self.exp_importance = dict(self.iter_importance or {})
        self.exp_params = copy_params_dict(strategy.model)
        known = [key for key in self.exp_scores if key in self.exp_importance]
        importance = _scaled({key: self.exp_importance[key].data for key in known})
        scores = _scaled({key: self.exp_scores[key].data.relu() for key in known})
        self.exp_penalties = {key: _param(key, importance[key] + scores[key]) for key in known}


def _param(key: str, value: Tensor) -> ParamData:
    return ParamData(key, device=value.device, init_tensor=value)


def _average(before: ParamData | None, score: ParamData) -> ParamData:
    """The mean of a score and the one before; a parameter's first score stands alone."""
    return score if before is None else _param(score.name, 0.5 * (before.data + score.data))


def _scaled(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide by the largest of all values; where that is 0 there is nothing to tell them apart by."""
    largest = max((float(value.max()) for value in values.values()), default=0.0)
    return {key: value / largest if largest > 0 else torch.zeros_like(value) for key, value in values.items()}
