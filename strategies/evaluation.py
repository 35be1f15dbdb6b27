"""Dense metrics as an Avalanche metric: one torchmetrics metric per task, pooled over the split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.plugins import EvaluationPlugin
from torchmetrics import Metric

from medusa_cl.losses import at_size


class DenseMetrics(PluginMetric[dict[str, dict[str, float]]]):
    """Every metric of every task of the experiences evaluated, published as `<stream>/<task>_<metric>`.

    The step of a published value is the number of tasks learnt.

    Attributes:
        results: Values by task and metric of the last evaluation; NaN where a task had no valid pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, dict[str, float]] = {}
        self._running: dict[str, Metric] = {}

    def result(self) -> dict[str, dict[str, float]]:
        """Return `results`."""
        return self.results

    def reset(self) -> None:
        """Forget the last evaluation."""
        self.results = {}

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self.reset()

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin an experience."""
        self._running = {name: task.metric().to(strategy.device) for name, task in strategy.experience.tasks.items()}

    def after_eval_iteration(self, strategy: Any) -> None:
        """Score a batch: logits are resized to the targets here and decoded by the task."""
        for name, metric in self._running.items():
            target = strategy.mb_y.entries.get(name)
            if target is None:
                continue
            output = strategy.mb_output.entries[name]
            logits = output.value[(output.rows[:, None] == target.rows).any(1)]
            prediction = strategy.experience.tasks[name].decode(at_size(logits, tuple(target.value.shape[-2:])))
            metric.update(prediction, target.value)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Publish an experience's values."""
        stream, learnt = strategy.experience.origin_stream.name, len(strategy.model.tasks)
        published = []
        for name, metric in self._running.items():
            values = {key: float(value) for key, value in metric.compute().items()}
            self.results[name] = values
            published += [MetricValue(self, f"{stream}/{name}_{key}", v, learnt) for key, v in values.items()]
        return published

    def __str__(self) -> str:
        return "dense"


class TrainingMetrics(PluginMetric[dict[str, float]]):
    """The losses by task and the images per second of training, every few steps, as `train/...`.

    Args:
        every: Steps between two values.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__()
        self.every, self.step, self._images, self._since = every, 0, 0, time.perf_counter()

    def result(self) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Start the clock."""
        self._images, self._since = 0, time.perf_counter()

    def before_training_epoch(self, strategy: Any) -> None:
        """Start the clock."""
        self.reset()

    def after_training_iteration(self, strategy: Any) -> list[MetricValue] | None:
        """Publish, every few steps."""
        self.step += 1
        self._images += len(strategy.mb_y)
        if self.step % self.every:
            return None
        rate = self._images / max(time.perf_counter() - self._since, 1e-9)
        losses = getattr(strategy, "mb_losses", None) or {"total": strategy.loss}
        values = {f"train/{task}_loss": float(loss.detach()) for task, loss in losses.items()}
        self.reset()
        return [MetricValue(self, k, v, self.step) for k, v in (values | {"train/images_per_s": rate}).items()]

    def __str__(self) -> str:
        return "training"


def dense_evaluator(loggers: Sequence[Any] = (), every: int = 10) -> EvaluationPlugin:
    """Make the evaluator of dense strategies; Avalanche's default one computes accuracies and fails on dense output."""
    import warnings

    with warnings.catch_warnings():  # no logger is a choice here, not an oversight
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(DenseMetrics(), TrainingMetrics(every), loggers=list(loggers), collect_all=False)
