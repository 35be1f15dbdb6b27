"""An Avalanche logger that hands metric values to a tracker: any plain Avalanche script can log to MLflow."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger

from medusa_cl.strategies.evaluation import WITHIN_TRAINING


class MetricSink(Protocol):
    """What a logger writes to: a `RunRecorder`, or a started `MLflowTracker`."""

    def metrics(self, values: dict[str, Any], step: int) -> None:
        """Record values at a step."""

    def flush(self) -> None:
        """Send what is buffered."""


class TrackerLogger(BaseLogger, SupervisedPlugin):
    """Logs numbers by name and step, in batches; pictures and other values are left to other loggers.

    Values measured inside training for plugins to act on (EarlyStopping) are left out.

    Args:
        sink: What to write to.
    """

    def __init__(self, sink: MetricSink) -> None:
        super().__init__()
        self.sink = sink

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Hand on what was published together, grouped by step."""
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for value in metric_values:
            if isinstance(value.value, (int, float)) and WITHIN_TRAINING not in value.name:
                by_step[int(value.x_plot)][value.name] = float(value.value)
        for step, values in by_step.items():
            self.sink.metrics(values, step)

    def after_training_epoch(self, strategy: Any, metric_values: list[MetricValue], **kwargs: Any) -> None:
        """Send what is buffered."""
        self.sink.flush()

    def after_eval(self, strategy: Any, metric_values: list[MetricValue], **kwargs: Any) -> None:
        """Send what is buffered."""
        self.sink.flush()
