"""Small plugins that Avalanche lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from medusa_cl import distributed
from medusa_cl.data.loader import DenseDataset, DenseLoader
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.losses import at_size
from medusa_cl.strategies.medusa import MedusaPlugin
from medusa_cl.strategies.template import LOOK_EVERY, planned_steps
from medusa_cl.tasks import DenseTask

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


class ValSelection(SupervisedPlugin):
    """Keeps, of each experience, the weights of the epoch that is best on images set aside for choosing.

    An epoch takes the place of the one kept if the sum over the experience's tasks of s (M - K) / |M_1| is above 0,
    where M is the primary metric after it, K that of the epoch kept, M_1 the first one that is not 0 and s its
    direction. A task without a value counts -1 against one with a value. It goes before plugins that look at what an
    experience has taught (EWC): they should see the weights kept.

    Args:
        source: The val split; it must carry the tasks that are trained. None for that of the experience's scenario.

    Attributes:
        since_best: Epochs since the one that is kept.

    Raises:
        ConfigError: When training begins, `source` is None and the scenario has no val split.
    """

    def __init__(self, source: DenseData | None = None) -> None:
        super().__init__()
        self._given, self._source = source, source
        self.since_best = 0
        self._units, self._best = dict[str, float](), dict[str, float]()
        self._kept: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the experience before."""
        self._units, self._best, self._kept, self.since_best = {}, {}, {}, 0
        self._source = self._given or _val_split(strategy.experience, type(self).__name__)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Look how good the weights are."""
        values = self._values(strategy)
        for name, value in values.items():
            if math.isfinite(value) and value:
                self._units.setdefault(name, abs(value))
        self.since_best += 1
        known = any(math.isfinite(value) for value in self._best.values())
        if not known or self._gain(strategy.experience.tasks, values) > 0:
            self._best, self.since_best = values, 0
            self._kept = {name: value.detach().cpu().clone() for name, value in strategy.model.state_dict().items()}

    def _gain(self, tasks: Mapping[str, DenseTask], values: Mapping[str, float]) -> float:
        """How much better values are than those of the epoch kept."""
        total = 0.0
        for name, value in values.items():
            kept = self._best[name]
            if math.isfinite(value) and math.isfinite(kept):
                total += tasks[name].sign * (value - kept) / self._units.get(name, 1.0)
            else:
                total += math.isfinite(value) - math.isfinite(kept)
        return total

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Go back to the best ones."""
        if self._kept:
            strategy.model.load_state_dict(self._kept)

    def _values(self, strategy: Any) -> dict[str, float]:
        """The primary metric of each task on the val split."""
        tasks = strategy.experience.tasks
        metrics = {name: task.metric().to(strategy.device) for name, task in tasks.items()}
        assert self._source is not None
        dataset = DenseDataset(self._source, tasks, strategy.experience.task_label)
        features = next((p.features_of(strategy, self._source, tasks, "val") for p in _medusa(strategy)), None)
        options: dict[str, Any] = {"features": features, "workers": getattr(strategy, "workers", 0)}
        loader = DenseLoader(dataset, strategy.eval_mb_size, tasks=tasks, shard=distributed.shard(), **options)
        with _evaluating(strategy.model):
            for x, y, _ in loader:
                targets = y.to(strategy.device)
                rows = {name: entry.rows for name, entry in targets.entries.items()}
                answers = strategy.model.answer(x.to(strategy.device), rows)
                for name, (_, target, _) in targets.entries.items():
                    logits = at_size(answers.entries[name].value, tuple(target.shape[-2:]))
                    metrics[name].update(tasks[name].decode(logits), target)
        return {name: float(metric.compute()[tasks[name].primary]) for name, metric in metrics.items()}


def _medusa(strategy: Any) -> Iterator[MedusaPlugin]:
    yield from (plugin for plugin in strategy.plugins if isinstance(plugin, MedusaPlugin))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def _val_split(experience: Any, plugin: str) -> DenseData:
    """Return the images set aside for the tasks of a training experience."""
    benchmark = getattr(getattr(experience, "origin_stream", None), "benchmark", None)
    for other in getattr(benchmark, "val_stream", ()):
        if set(other.tasks) >= set(experience.tasks):
            source: DenseData = other.source
            return source
    raise ConfigError(
        f'{plugin} needs images set aside for choosing, but "{experience.name}" comes from a scenario without a val '
        "split. Set scenario.val_fraction (or scenario.val_size), or pass the split: "
        f"{plugin}(source=scenario.data['val'])."
    )


class EarlyStopping(ValSelection):
    """Ends an experience once it gets no better on val, and keeps its best epoch's weights (see `ValSelection`).

    Args:
        patience: Epochs without a better one after which training ends.
        source: See `ValSelection`.

    Raises:
        ConfigError: The patience is below 1; or, when training begins, there is no val split.
    """

    def __init__(self, patience: int = 5, source: DenseData | None = None) -> None:
        super().__init__(source)
        if patience < 1:
            raise ConfigError(f"Expected a patience of at least 1 epoch, but got {patience}.")
        self.patience = patience

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop here, not after an epoch: a stop asked for after the last one would end the next experience."""
        if self.since_best >= self.patience:
            strategy.stop_training()


class Progress(SupervisedPlugin):
    """Shows every training step.

    Args:
        bar: `(label, steps) -> context` of an object with `advance(steps, images, loss)`, `to(done, total)` and
            `images_per_second`.
        say: Called with lines on what else is done.

    Attributes:
        rates: Images a second by experience.
    """

    def __init__(
        self,
        bar: Callable[[str, int], AbstractContextManager[Any]],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self.bar, self.say, self._open = bar, say, ExitStack()
        self._bar: Any = None
        self.rates: dict[str, float] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Open a bar, unless there is nothing to do."""
        self._bar = None
        if steps := planned_steps(strategy):
            self._bar = self._open.enter_context(self.bar(strategy.experience.name, steps))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Advance it; to look at a loss on a device is to wait for it, so that is done seldom."""
        due = strategy.device.type == "cpu" or self._bar.done % LOOK_EVERY == 0
        loss = float(strategy.loss.detach()) if due else None
        self._bar.advance(1, len(strategy.mb_y) * distributed.world(), loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Close it."""
        if self._bar is not None:
            self.rates[strategy.experience.name] = self._bar.images_per_second or 0.0
        self.close()

    def close(self) -> None:
        """Close what is open, also after an error."""
        self._open.close()
