"""Whether a file answers as the model it was made of: the same images through both, compared value by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medusa_cl.deploy.graph_files import Array, Runner
from medusa_cl.deploy.graphs import Form, Graph
from medusa_cl.deploy.predictor import value_unit
from medusa_cl.errors import MedusaError
from medusa_cl.tasks import DenseTask

TOLERANCE = 1e-4
"""By which share of their largest magnitude logits may differ."""
ROUNDING = 1e-6
BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Agreement:
    """How one task's answers compare, over all images tried.

    Attributes:
        task: The task's name.
        worst: The largest absolute difference, in `unit`; of classes the largest distance of their logits from a tie.
        unit: That of the values, or "logits".
        changed: The share of pixels of another class; None where answers are no classes.
        fault: What is wrong; empty where nothing is.
    """

    task: str
    worst: float
    unit: str
    changed: float | None = None
    fault: str = ""

    def shown(self) -> str:
        """Return it in words."""
        if self.changed is None:
            return f"{self.worst:.1g}" + f" {self.unit}" * (len(self.unit) <= 3)
        return f"{self.changed:.3%} of the pixels, all ties" if self.changed else "none"


def agreements(graph: Graph, runner: Runner, images: Sequence[Array]) -> tuple[Agreement, ...]:
    """Compare a file's answers with the model's on batches of images as `graph.form` has them.

    Raises:
        MedusaError: The file cannot be run.
    """
    found: dict[str, list[Agreement]] = {name: [] for name in graph.form.tasks}
    answers = runner.answers(images)
    for image in images:
        try:
            answer = next(answers)
        except Exception as error:  # runtimes raise anything
            said = " ".join(str(error).split())[:300]
            raise MedusaError(f"The graph does not run, so no file was written: {said}. Try dynamic=batch.") from error
        for one in compare(graph, torch.from_numpy(image), answer):
            found[one.task].append(one)
    return tuple(_pooled(ones, [image.size for image in images]) for ones in found.values())


def _pooled(ones: Sequence[Agreement], weights: Sequence[int]) -> Agreement:
    changed = None
    if all(one.changed is not None for one in ones):
        changed = float(np.average([one.changed or 0 for one in ones], weights=weights))
    fault = next((one.fault for one in ones if one.fault), "")
    return Agreement(ones[0].task, float(np.max([one.worst for one in ones])), ones[0].unit, changed, fault)


def images(form: Form) -> Iterator[Tensor]:
    """Make images to compare on, as `form` has them: noise, and scenes of shaded boxes; several numbers and sizes."""
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate(_sizes(form)):
        for batch in BATCHES if number == 0 else BATCHES[:2]:
            for make in (_noise, _scenes):
                floats = make(batch, size, generator)
                yield (floats * 255).round().byte().permute(0, 2, 3, 1) if form.input == "uint8" else floats


def _sizes(form: Form) -> list[tuple[int, int]]:
    height, width = form.size
    others = [(height + 13, max(width - 27, 33)), (max(height // 2 - 1, 33), width * 3 // 2)]
    return [form.size, *others] if form.dynamic == "all" else [form.size]


def _noise(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(batch, 3, *size, generator=generator)


def _scenes(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw what photographs have and noise lacks: smooth shading, flat areas, long edges."""
    shade = F.interpolate(torch.rand(batch, 3, 3, 4, generator=generator), size=size, mode="bilinear")
    for image in shade:
        for _ in range(6):
            a, b = torch.rand(2, 2, generator=generator).sort(dim=0).values.mul(torch.tensor(size)).long().tolist()
            image[:, a[0] : b[0], a[1] : b[1]] = torch.rand(3, 1, 1, generator=generator)
    return shade


def compare(graph: Graph, image: Tensor, answers: Mapping[str, Array]) -> list[Agreement]:
    """Compare the answers of a file with those of the model.

    Classes may differ where the model's logits are tied within twice the tolerance; other values by what a difference
    of the logits within the tolerance makes of them.

    Args:
        graph: The model's side.
        image: Images as `graph.form` has them.
        answers: The file's answers by task.
    """
    logits = graph.reference(image)
    decoded = graph.form.outputs == "decoded"
    return [_compared(graph.model.tasks[name], logits[name], answers[name], decoded) for name in graph.form.tasks]


def _compared(task: DenseTask, logits: Tensor, answer: Array, decoded: bool) -> Agreement:
    expected = task.decode(logits) if decoded else logits
    unit = value_unit(task) if decoded else "logits"
    got = torch.from_numpy(np.ascontiguousarray(answer))
    if got.shape != expected.shape or got.dtype != expected.dtype:
        fault = f"expected {tuple(expected.shape)} {expected.dtype}, but got {tuple(got.shape)} {got.dtype}"
        return Agreement(task.name, float("nan"), unit, fault=fault)
    tolerance = TOLERANCE * float(logits.abs().max())
    if decoded and task.output == "classes":
        return _compared_classes(task, logits, got, expected, tolerance)
    allowed = _slack(task, logits, tolerance) if decoded else torch.full_like(logits, tolerance)
    difference = (got.double() - expected.double()).abs()
    right = difference <= allowed + ROUNDING * (1 + expected.double().abs())
    fault = "" if right.all() else f"{_share(~right)} of the values differ by more than rounding explains"
    return Agreement(task.name, float(difference.max()), unit, fault=fault)


def _compared_classes(task: DenseTask, logits: Tensor, got: Tensor, expected: Tensor, tolerance: float) -> Agreement:
    changed = got != expected
    known = (got >= 0) & (got < logits.shape[1])
    chosen = logits.gather(1, got.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
    distance = (logits.amax(dim=1) - chosen) * changed
    wrong = changed & ~(known & (distance <= 2 * tolerance))
    fault = f"{_share(wrong)} of the pixels have another class, and not by a tie" if wrong.any() else ""
    return Agreement(task.name, float(distance.max()), "logits", float(changed.double().mean()), fault)


def _slack(task: DenseTask, logits: Tensor, tolerance: float) -> Tensor:
    """Return how far answers move when each channel's logits move by the tolerance, either way."""
    here = task.decode(logits).double()
    total = torch.zeros_like(here)
    for channel in range(logits.shape[1]):
        moves = []
        for step in (tolerance, -tolerance):
            moved = logits.clone()
            moved[:, channel] += step
            moves.append((task.decode(moved).double() - here).abs())
        total += torch.maximum(*moves)
    return 2 * total  # not linear where a vector is short


def _share(mask: Tensor) -> str:
    return f"{100 * float(mask.double().mean()):.3g} %"
