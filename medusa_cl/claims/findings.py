"""What the cells say: headroom, gains, contrasts and shares, each over seeds, as plain numbers.

Every comparison is a relative change in percent, 100 s (value - reference) / |reference|, of one task with one seed; it
is averaged over tasks within a seed, and then described over seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from medusa_cl.claims.cells import Cell
from medusa_cl.claims.nets import parity
from medusa_cl.claims.plan import PLAIN_HEAD
from medusa_cl.claims.record import Results
from medusa_cl.claims.spread import Estimate, mean_of_all, over_seeds, ratio_of_sums
from medusa_cl.claims.views import Pair, View, views
from medusa_cl.errors import ConfigError, unknown

__all__ = [
    "Contrast",
    "Headroom",
    "Pair",
    "Progress",
    "Results",
    "Share",
    "View",
    "contrast",
    "contrasts",
    "headroom",
    "measures",
    "progress",
    "shares",
    "views",
]

CONTROL_HEAD = "control"
ENOUGH_HEADROOM = 6.0
"""Percent between plain features and those of all tasks from which on a task tells features apart."""


# ---------------------------------------------------------------- features and heads


@dataclass(frozen=True)
class Contrast:
    """One source and head against another.

    Attributes:
        kind: What they differ in: "features" or "head".
        of: What is judged.
        over: What it stands against.
        per_task: By task, percent over seeds.
        overall: The mean over all tasks of the view, percent over seeds.
    """

    kind: str
    of: Pair
    over: Pair
    per_task: Mapping[str, Estimate]
    overall: Estimate

    @property
    def label(self) -> str:
        """What tables call it."""
        if self.kind == "features":
            return f"{self.of.source} features over {self.over.source}, {self.of.head} head"
        if self.kind == "head":
            return f"{self.of.head} head over {self.over.head}, {self.of.source} features"
        return f"{self.of} over {self.over}"


def contrast(view: View, of: Pair, over: Pair) -> Contrast:
    """Compare two pairs on every task and seed.

    Raises:
        ConfigError: The view has no such source or head.
    """
    for pair in (of, over):
        _known("source", pair.source, view.setting.sources)
        _known("head", pair.head, view.setting.heads)
    seeds = view.setting.seeds
    per_task = {task: over_seeds(seeds, functools.partial(view.gain, of, over, task)) for task in view.tasks}
    overall = over_seeds(seeds, lambda seed: mean_of_all(e.by_seed.get(seed) for e in per_task.values()))
    kind = "head" if of.source == over.source else "features" if of.head == over.head else "both"
    return Contrast(kind, of, over, per_task, overall)


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(unknown(f"{what} of this setting", name, known))


def contrasts(view: View) -> list[Contrast]:
    """Return the differences that answer the question: by features under each head, by heads on plain features."""
    plain, heads = view.plan.plain, view.setting.heads
    if plain not in view.setting.sources:
        return []
    others = [source for source in view.setting.sources if source != plain]
    pairs = [(Pair(source, head), Pair(plain, head)) for source in others for head in heads]
    against = CONTROL_HEAD if CONTROL_HEAD in heads else PLAIN_HEAD
    if against in heads:
        larger = [head for head in heads if head not in (PLAIN_HEAD, CONTROL_HEAD)]
        pairs += [(Pair(plain, head), Pair(plain, against)) for head in larger]
    if {PLAIN_HEAD, CONTROL_HEAD} <= set(heads):
        pairs.append((Pair(plain, CONTROL_HEAD), Pair(plain, PLAIN_HEAD)))
    return [contrast(view, of, over) for of, over in pairs]


# ---------------------------------------------------------------- headroom


@dataclass(frozen=True)
class Headroom:
    """How much better features could be for a task.

    Attributes:
        task: The held-out task.
        plain: Its metric on plain features that did not learn it, over seeds.
        oracle: On plain features of all tasks, itself among them, under the same head.
        end_to_end: Of the net that learns it alone, with the same head.
        to_oracle: Percent from plain to oracle.
        to_end_to_end: Percent from plain to end to end.
    """

    task: str
    plain: Estimate
    oracle: Estimate
    end_to_end: Estimate
    to_oracle: Estimate
    to_end_to_end: Estimate

    @property
    def tells_apart(self) -> bool | None:
        """Whether the task can tell features apart; None where its headroom is not computed."""
        return None if self.to_oracle.mean is None else self.to_oracle.mean >= ENOUGH_HEADROOM


def headroom(view: View) -> list[Headroom]:
    """Return the headroom of every held-out task, under the view's head."""
    return [_headroom(view, task) for task in view.tasks]


def _headroom(view: View, task: str) -> Headroom:
    plan, setting, head = view.plan, view.setting, view.head

    def reached(cell: Callable[..., Cell], seeds: Sequence[int]) -> Estimate:
        return over_seeds(seeds, lambda seed: view.results.score(cell(setting, seed, task, head), task, view.split))

    plain, oracle = view.raw(Pair(plan.plain, head), task), reached(plan.oracle, setting.seeds)
    alone = reached(plan.end_to_end, plan.alone_seeds(setting, head))
    return Headroom(task, plain, oracle, alone, view.paired(task, oracle, plain), view.paired(task, alone, plain))


@dataclass(frozen=True)
class Share:
    """Which share of the headroom the features of a source close; 1 is all of it, below 0 they are worse than plain.

    All are sums of gains divided by sums of headrooms, never means of ratios; see `spread.ratio_of_sums`.

    Attributes:
        source: The source.
        tasks: The tasks that tell features apart, which `pooled` is over.
        per_task: Their shares, each over seeds.
        pooled: The share over these tasks and seeds.
        everything: The same over all held-out tasks.
    """

    source: str
    tasks: tuple[str, ...]
    per_task: Mapping[str, Estimate]
    pooled: Estimate
    everything: Estimate


def shares(view: View) -> list[Share]:
    """Return the share of the headroom that each source but the plain one closes, under the view's head."""
    plan, setting = view.plan, view.setting
    if Pair(plan.plain, view.head) not in view.pairs or not view.tasks:
        return []
    rooms = {room.task: room for room in headroom(view)}
    others = [source for source in setting.sources if source != plan.plain]
    return [_share(view, source, rooms) for source in others]


def _share(view: View, source: str, rooms: Mapping[str, Headroom]) -> Share:
    head, seeds = view.head, view.setting.seeds
    gains = contrast(view, Pair(source, head), Pair(view.plan.plain, head)).per_task
    apart = tuple(task for task, room in rooms.items() if room.tells_apart)

    def pooled(tasks: Sequence[str]) -> Estimate:
        gain = over_seeds(seeds, lambda n: mean_of_all(gains[t].by_seed.get(n) for t in tasks))
        room = over_seeds(seeds, lambda n: mean_of_all(rooms[t].to_oracle.by_seed.get(n) for t in tasks))
        return ratio_of_sums(gain, room)

    per_task = {task: pooled((task,)) for task in apart}
    return Share(source, apart, per_task, pooled(apart), pooled(tuple(rooms)))


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Progress:
    """How far a section is: how many of its cells are there, and which are not."""

    section: str
    there: int
    planned: int
    missing: tuple[str, ...]


def progress(results: Results) -> list[Progress]:
    """Return how far every section is; a cell counts where it is first needed."""
    return [_progress(section, cells, results) for section, cells in results.sections.items()]


def _progress(section: str, cells: Sequence[Cell], results: Results) -> Progress:
    missing = tuple(cell.label for cell in cells if cell not in results.cells)
    return Progress(section, len(cells) - len(missing), len(cells), missing)


def measures(results: Results) -> dict[str, float]:
    """Return what was found in the main setting as single numbers by name, as far as it is known."""
    return dict(_measures(results))


def _measures(results: Results) -> Iterator[tuple[str, float]]:
    counts = progress(results)
    yield "cells/done", float(sum(part.there for part in counts))
    yield "cells/planned", float(sum(part.planned for part in counts))
    view = views(results, block=not results.plan.held_out)[0]
    named: dict[str, Estimate] = {f"{c.kind}/{c.label}": c.overall for c in contrasts(view)}
    named |= {f"headroom/{room.task}": room.to_oracle for room in headroom(view)}
    named |= {f"headroom closed/{share.source}": share.pooled for share in shares(view)}
    named |= {f"delta MTL/{row.source}": row.delta for row in parity(view)[1:]}
    yield from ((name, estimate.mean) for name, estimate in named.items() if estimate.mean is not None)
