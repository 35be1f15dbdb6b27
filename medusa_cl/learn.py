"""The loop: for each experience, train, evaluate every task learnt so far, and hand the row on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medusa_cl.data.loader import DenseDataset
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
) -> TaskMatrix:
    """Learn a stream.

    Args:
        scenario: What comes when.
        strategy: What learns.
        start: The first experience to train on; earlier ones have been learnt (their heads were loaded).
        rows: The first rows of the matrix, where they are known already.
        learnt: Called after each experience with its number, the matrix so far and every metric of every task.
        seconds: Filled with the seconds of training by experience ("base", then the task) and of "evaluation".

    Returns:
        The primary metric of every task after every experience, on the test split.
    """
    seconds = {} if seconds is None else seconds
    matrix = TaskMatrix(scenario.groups, {name: task.higher_is_better for name, task in scenario.tasks.items()})
    for k, experience in enumerate(scenario.train_stream):
        if k >= start:
            with timed(seconds, matrix.after[k]):
                strategy.train(experience, eval_streams=[])
        else:
            strategy.adopt(experience)
        if k < len(rows):
            matrix.set_row(k, rows[k])
            strategy.recall(rows[k])
            continue
        with timed(seconds, "evaluation"):
            strategy.eval(scenario.test_stream[: k + 1])
        scores = strategy.results
        matrix.set_row(k, {name: scores[name][scenario.tasks[name].primary] for name in scores})
        learnt(k, matrix, scores)
    return matrix


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
