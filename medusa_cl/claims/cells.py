"""The cells that claims are made of: a pretraining, or a head learnt on what one left, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AS_IT_COMES = "none"
INITS = ("imagenet", "random")


@dataclass(frozen=True, kw_only=True, order=True)
class Pretraining:
    """A backbone and heads learnt together, end to end: of one task a single-task net, of all tasks the usual MTL.

    Attributes:
        source: Name of the recipe: which head, which plugins; AS_IT_COMES for a backbone that is not trained at all.
        tasks: Names of the tasks learnt together.
        init: Where the backbone starts from: "imagenet" or "random".
        seed: Of order, heads and a random backbone.
        labels: Share of the training images that is used.
    """

    source: str
    tasks: tuple[str, ...] = ()
    init: str = "imagenet"
    seed: int = 0
    labels: float = 1.0

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.source != AS_IT_COMES

    @property
    def label(self) -> str:
        """Its name in file names and progress lines."""
        tasks = "+".join(self.tasks) or "untrained"
        return f"{self.source}-{self.init}-{tasks}-s{self.seed}{_share(self.labels)}"


@dataclass(frozen=True, kw_only=True, order=True)
class Probe:
    """A head learnt on a frozen backbone.

    Attributes:
        backbone: What left the backbone.
        head: Name of the kind of head.
        task: What it learns.
        labels: Share of the training images that is used.
    """

    backbone: Pretraining
    head: str
    task: str
    labels: float = 1.0

    @property
    def label(self) -> str:
        """Its name in file names and progress lines."""
        return f"{self.head}-{self.task}{_share(self.labels)}-on-{self.backbone.label}"


Cell = Pretraining | Probe


def _share(labels: float) -> str:
    return "" if labels == 1.0 else f"-{100 * labels:g}%"


def grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells by the backbone that they need, each once, pretrainings before what is learnt on them."""
    groups: dict[Pretraining, dict[Cell, None]] = {}
    for cell in cells:
        backbone = cell if isinstance(cell, Pretraining) else cell.backbone
        group = groups.setdefault(backbone, {backbone: None} if backbone.trained else {})
        group.setdefault(cell)
    return [sorted(group, key=lambda cell: isinstance(cell, Probe)) for group in groups.values()]
