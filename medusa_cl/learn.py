"""The loop: for each experience, train, evaluate every task learnt so far, and hand the row on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medusa_cl.checkpoint import describe
from medusa_cl.data.loader import DenseDataset
from medusa_cl.errors import SnapshotError
from medusa_cl.keeper import Keeper
from medusa_cl.results import TaskMatrix

if TYPE_CHECKING:
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.tasks import DenseTask

Scores = Mapping[str, Mapping[str, float]]


def learn(
    scenario: DenseScenario,
    strategy: Medusa,
    *,
    start: int = 0,
    rows: Sequence[Mapping[str, float | None]] = (),
    learnt: Callable[[int, TaskMatrix, Scores], None] = lambda k, matrix, scores: None,
    seconds: dict[str, float] | None = None,
    keeper: Keeper | None = None,
    also: Callable[[], dict[str, Any]] = dict,
    resumed: dict[str, Any] | None = None,
) -> TaskMatrix:
    """Learn a stream.

    Args:
        scenario: What comes when.
        strategy: What learns.
        start: The first experience to train on; earlier ones have been learnt (their heads were loaded).
        rows: The first rows of the matrix, where they are known already.
        learnt: Called after each experience with its number, the matrix so far and every metric of every task.
        seconds: Filled with the seconds of training by experience ("base", then the task) and of "evaluation".
        keeper: Saves the run as it goes.
        also: Returns what else is to be saved with it.
        resumed: What was saved of this run before it stopped: it goes on from there. The strategy's model must be the
            one that `description` in it tells of, with its weights. What only the strategy needs is taken out of it.

    Returns:
        The primary metric of every task after every experience, on the test split.
    """
    stream = _Stream(scenario, strategy, {} if seconds is None else seconds, keeper, also)
    if resumed is not None:
        rows = [*resumed["rows"], *rows[len(resumed["rows"]) :]]
        stream.go_on(resumed)
    for k, experience in enumerate(scenario.train_stream):
        if k < stream.experience:
            stream.matrix.set_row(k, rows[k])
            continue
        if k < start:
            strategy.adopt(experience)
        elif not stream.trained:
            stream.train(experience)
        if k < len(rows):
            stream.matrix.set_row(k, rows[k])
            strategy.recall(rows[k])
        else:
            learnt(k, stream.matrix, stream.evaluate())
        stream.next(save=k >= start - 1)  # what was only gone through is quickly gone through again
    return stream.matrix


class _Stream:
    """How far a stream has been learnt."""

    def __init__(
        self,
        scenario: DenseScenario,
        strategy: Medusa,
        seconds: dict[str, float],
        keeper: Keeper | None,
        also: Callable[[], dict[str, Any]],
    ) -> None:
        self.scenario, self.strategy, self.seconds, self.keeper, self.also = scenario, strategy, seconds, keeper, also
        better = {name: task.higher_is_better for name, task in scenario.tasks.items()}
        self.matrix = TaskMatrix(scenario.groups, better)
        self.experience, self.trained = 0, False
        self._since: tuple[str, float] | None = None

    def go_on(self, resumed: dict[str, Any]) -> None:
        self.experience, self.trained = resumed["experience"], resumed["trained"]
        self.seconds |= resumed["seconds"]
        # Nobody else is to hold it: it takes as much memory as the model and its optimizer.
        self.strategy.resume(resumed.pop("strategy"), list(self.scenario.train_stream))

    def train(self, experience: Any) -> None:
        label = self.matrix.after[self.experience]
        self._since = label, time.perf_counter()
        self.strategy.each_step = self._step
        self.strategy.train(experience, eval_streams=[])
        self.seconds |= self._spent()
        self._since, self.trained = None, True
        self._save(f"{label} learnt")

    def evaluate(self) -> Scores:
        k = self.experience
        with timed(self.seconds, "evaluation"):
            self.strategy.eval(self.scenario.test_stream[: k + 1])
        scores = self.strategy.results
        self.matrix.set_row(k, {name: scores[name][self.scenario.tasks[name].primary] for name in scores})
        return scores

    def next(self, save: bool) -> None:
        label = self.matrix.after[self.experience]
        self.experience, self.trained = self.experience + 1, False
        if save:
            self._save(f"{label} evaluated")

    def _spent(self) -> dict[str, float]:
        if self._since is None:
            return {}
        label, since = self._since
        return {label: self.seconds.get(label, 0.0) + time.perf_counter() - since}

    def _step(self) -> None:
        if self.keeper is not None and not self.strategy.resumable:
            self.keeper.pass_over("a plugin makes the batches, so this run can go on from the end of a task only")
        elif self.keeper is not None:
            place = f"{self.strategy.experience.name} step {self.strategy.steps_done}"
            self.keeper.step(self.state, {"at": place})

    def _save(self, place: str) -> None:
        if self.keeper is not None:
            self.keeper.boundary(self.state, {"at": place})

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on.

        Raises:
            SnapshotError: A plugin has something by now that cannot be kept.
        """
        strategy = self.strategy.state()
        for known in strategy["ranks"]:
            if missing := known["plugins"]["lacking"]:
                raise SnapshotError("; ".join(f"{plugin}: {reason}" for plugin, reason in missing.items()))
        return {
            "experience": self.experience,
            "trained": self.trained,
            "rows": [dict(row) for row in self.matrix.rows],
            "seconds": {**self.seconds, **self._spent()},
            "description": describe(self.strategy.model.model, without=strategy["learning"]),
            "strategy": strategy,
            **self.also(),
        }


@contextmanager
def timed(seconds: dict[str, float], label: str) -> Iterator[None]:
    """Add the seconds that the block takes to `seconds[label]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - started


def pictures(
    scenario: DenseScenario, model: MultiTaskModel, count: int = 4
) -> tuple[list[Any], dict[str, list[tuple[Any, Any]]]]:
    """Draw what the model makes of some test images, always the same ones, evenly spread.

    Returns:
        The images, H W 3 uint8, and for each task learnt (target or None, prediction) of each image, drawn alike.
    """
    source = scenario.data["test"]
    samples = DenseDataset(source, scenario.tasks, 0)
    count = min(count, len(samples))
    shown = [samples[i * len(samples) // count] for i in range(count)]
    sizes = [tuple(source.image(sample.index).shape[-2:]) for sample in shown]  # without padding
    images = torch.stack([sample.image for sample in shown])  # type: ignore[misc]
    predictions = model.predict(images.to(next(model.parameters()).device))

    def draw(task: DenseTask, value: Tensor | None, size: tuple[int, ...]) -> Any:
        return None if value is None else _framed(task.draw(value.cpu().numpy()), size, sizes)

    drawn = {
        name: [
            (draw(task, sample.targets.get(name), size), draw(task, predicted, size))
            for sample, predicted, size in zip(shown, predictions[name], sizes, strict=True)
        ]
        for name, task in model.tasks.items()
    }
    rgb = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [_framed(picture, size, sizes) for picture, size in zip(rgb, sizes, strict=True)], drawn


def _framed(picture: Any, size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]) -> Any:
    """Cut padding off, and put the picture into the middle of a white one that is large enough for all."""
    height, width = (max(one[side] for one in sizes) for side in (0, 1))
    frame = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    frame[top : top + size[0], left : left + size[1]] = picture[: size[0], : size[1]]
    return frame
