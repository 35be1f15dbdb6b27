"""Dense metrics as Avalanche metrics: the values of each task, and what became of them over the stream."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.base_sgd import PeriodicEval
from torchmetrics import Metric

from medusa_cl import distributed
from medusa_cl.losses import at_size
from medusa_cl.results import TaskMatrix
from medusa_cl.tasks import DenseTask

WITHIN_TRAINING = "/eval_phase/"
"""Part of the names of values that were measured while an experience was being learnt."""


class DenseMetrics(PluginMetric[dict[str, dict[str, float]]]):
    """Every metric of every task of the experiences evaluated, published as `<stream>/<task>_<metric>`.

    The step of a published value is the number of tasks learnt. An evaluation inside training (`eval_every`) publishes
    `<task>_<metric>/eval_phase/<stream>_stream/Task.../Exp...` instead, the form in which Avalanche's EarlyStopping
    looks for values, at the number of steps taken; such a name is gone when the next experience begins, so that no
    experience is stopped by the values of the one before.

    Attributes:
        results: Values by task and metric of the last evaluation; NaN where a task had no valid pixel.
        within_training: Whether a training is running.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, dict[str, float]] = {}
        self.within_training = False
        self._running: dict[tuple[int, str], Metric] = {}

    def result(self) -> dict[str, dict[str, float]]:
        """Return `results`."""
        return self.results

    def reset(self) -> None:
        """Forget the last evaluation."""
        self.results = {}

    def before_training(self, strategy: Any) -> None:
        """Take note that a training begins, and spare it the evaluation before its first step."""
        self.within_training = True
        for plugin in strategy.plugins:
            if isinstance(plugin, PeriodicEval):
                plugin.do_initial = False  # the tasks about to be learnt have no heads yet

    def before_training_exp(self, strategy: Any) -> None:
        """Drop what was measured within the experience before."""
        last = strategy.evaluator.last_metric_results
        for name in [name for name in last if WITHIN_TRAINING in name]:
            del last[name]

    def after_training(self, strategy: Any) -> None:
        """Take note that a training is over."""
        self.within_training = False

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self.reset()
        self._running = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Begin the tasks that are answered in the pass to come."""
        source = strategy.experience.source
        for name, task in self._answered(strategy).items():
            self._running[id(source), name] = task.metric().to(strategy.device)

    @staticmethod
    def _answered(strategy: Any) -> dict[str, DenseTask]:
        together: dict[str, DenseTask] | None = getattr(strategy, "evaluated_together", None)
        return dict(strategy.experience.tasks) if together is None else together

    def after_eval_iteration(self, strategy: Any) -> None:
        """Score a batch: logits are resized to the targets here and decoded by the task."""
        source = strategy.experience.source
        for name, target in strategy.mb_y.entries.items():
            task, output = strategy.model.tasks[name], strategy.mb_output.entries[name]
            if not torch.equal(output.rows, target.rows):
                output = output.pick((output.rows[:, None] == target.rows).any(1).nonzero().flatten(), target.rows)
            prediction = task.decode(at_size(output.value, tuple(target.value.shape[-2:])))
            self._running[id(source), name].update(prediction, target.value)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Publish an experience's values."""
        experience = strategy.experience
        running = {name: self._running[id(experience.source), name] for name in experience.tasks}
        values = {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in running.items()}
        self.results |= values
        flat = {f"{name}_{key}": value for name, row in values.items() for key, value in row.items()}
        stream = experience.origin_stream.name
        if not self.within_training:
            learnt = len(strategy.model.tasks)
            return [MetricValue(self, f"{stream}/{name}", value, learnt) for name, value in flat.items()]
        place = f"{stream}_stream/Task{experience.task_label:03d}/Exp{experience.current_experience:03d}"
        step = strategy.clock.train_iterations
        # A NaN is left out: it would stay the best value for ever, as nothing compares with it.
        known = {name: value for name, value in flat.items() if not math.isnan(value)}
        return [MetricValue(self, f"{name}{WITHIN_TRAINING}{place}", value, step) for name, value in known.items()]

    def __str__(self) -> str:
        return "dense"


class TaskMatrixMetric(PluginMetric[TaskMatrix]):
    """What the stream has cost the tasks learnt earlier, after each evaluation that follows a training.

    Publishes `forgetting/<task>`, `forgetting/mean`, `forgetting_best/mean`, `forgetting_percent/mean` and `bwt`, as
    far as they are defined (see `TaskMatrix`), at the number of tasks learnt. The stream may be evaluated at once or
    experience by experience; evaluations inside training and of other streams do not count.

    Args:
        scores: Where the values come from; it goes before this one among the evaluator's metrics.
        stream: The stream whose values count.

    Attributes:
        matrix: The primary metric of each task after each training; experiences that were learnt but not evaluated
            have an empty row.
    """

    def __init__(self, scores: DenseMetrics, stream: str = "test") -> None:
        super().__init__()
        self.scores, self.stream = scores, stream
        self.matrix = TaskMatrix([], {})
        self._row: dict[str, float] = {}
        self._label: int | None = None  # of the experience learnt last

    def result(self) -> TaskMatrix:
        """Return `matrix`."""
        return self.matrix

    def reset(self) -> None:
        """Begin a new stream."""
        self.matrix, self._row = TaskMatrix([], {}), {}

    def before_training(self, strategy: Any) -> None:
        """Take note of tasks that were loaded, as the experiences they were learnt in."""
        self._adopt(strategy.model)

    def before_training_exp(self, strategy: Any) -> None:
        """Begin a row: what was evaluated so far was before this experience."""
        self._row = {}

    def after_training_exp(self, strategy: Any) -> None:
        """Take note of the tasks that were learnt, together."""
        known = (name for names in strategy.model.tasks_of.values() for name in names)
        self._learnt(strategy.model, strategy.experience.task_label, list(dict.fromkeys(known)))

    def after_eval_exp(self, strategy: Any) -> None:
        """Take the primary metric of an experience's tasks."""
        experience = strategy.experience
        if experience.origin_stream.name == self.stream and not self.scores.within_training:
            self._row |= {name: self.scores.results[name][task.primary] for name, task in experience.tasks.items()}

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Record the row, and publish what follows from it."""
        if not self._row:
            return []
        self._adopt(strategy.model)
        last = len(self.matrix.experiences) - 1
        for k in range(self.matrix.last + 1, last):
            self.matrix.set_row(k, {})
        self.matrix.set_row(last, self._row)
        learnt = len(strategy.model.tasks)
        return [MetricValue(self, name, value, learnt) for name, value in self._values().items() if value is not None]

    def recall(self, model: Any, row: Mapping[str, float | None]) -> None:
        """Take the row of experiences that were learnt and evaluated before, in an earlier run."""
        self._adopt(model)
        self.matrix.set_row(len(self.matrix.experiences) - 1, row)

    def _values(self) -> dict[str, float | None]:
        matrix = self.matrix
        lost = {task: matrix.forgetting(task) for task in matrix.old_tasks}
        means = {
            "forgetting/mean": matrix.mean_forgetting(),
            "forgetting_best/mean": matrix.mean_forgetting_best(),
            "forgetting_percent/mean": matrix.mean_forgetting_percent(),
            "bwt": matrix.bwt(),
        }
        return {f"forgetting/{task}": value for task, value in lost.items()} | means

    def _adopt(self, model: Any) -> None:
        for label, names in model.tasks_of.items():
            self._learnt(model, label, names)

    def _learnt(self, model: Any, label: int, names: Sequence[str]) -> None:
        """Note new tasks as an experience; those of one label are of one, though nets may learn them by turns."""
        if new := [name for name in names if name not in self.matrix.tasks]:
            better = {name: model.tasks[name].higher_is_better for name in new}
            self.matrix.grow(new, better, with_last=label == self._label)
            self._label = label

    def __str__(self) -> str:
        return "task_matrix"


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
        self._images += len(strategy.mb_y) * distributed.world()
        if self.step % self.every:
            return None
        rate = self._images / max(time.perf_counter() - self._since, 1e-9)
        losses = getattr(strategy, "mb_losses", None) or {"total": strategy.loss}
        values = {f"train/{task}_loss": float(loss.detach()) for task, loss in losses.items()}
        guard = getattr(strategy, "guard", None)
        if guard is not None and guard.skips:
            values["train/steps_left_out"] = float(guard.skipped)
        self.reset()
        return [MetricValue(self, k, v, self.step) for k, v in (values | {"train/images_per_s": rate}).items()]

    def __str__(self) -> str:
        return "training"


OURS = (DenseMetrics, TaskMatrixMetric, TrainingMetrics)
"""The metrics that know of tasks evaluated together."""


def dense_evaluator(loggers: Sequence[Any] = (), every: int = 10, stream: str = "test") -> EvaluationPlugin:
    """Make the evaluator of dense strategies; Avalanche's default one computes accuracies and fails on dense output.

    Args:
        loggers: Avalanche's, or a `TrackerLogger`.
        every: See `TrainingMetrics`.
        stream: See `TaskMatrixMetric`.

    Returns:
        An evaluator with the metrics `DenseMetrics`, `TrainingMetrics` and `TaskMatrixMetric`, in this order.
    """
    import warnings

    scores = DenseMetrics()
    metrics = scores, TrainingMetrics(every), TaskMatrixMetric(scores, stream)
    with warnings.catch_warnings():  # no logger is a choice here, not an oversight
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, loggers=list(loggers), collect_all=False)
