"""The results as one looks at them: in one setting, on one split, for one way to hold tasks out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from medusa_cl.claims.cells import Pretraining
from medusa_cl.claims.plan import Plan, Setting
from medusa_cl.claims.record import Results
from medusa_cl.claims.spread import Estimate, over_seeds
from medusa_cl.results import transfer


class Pair(NamedTuple):
    """A source of features and a head on them."""

    source: str
    head: str

    def __str__(self) -> str:
        return f"{self.source} features with a {self.head} head"


@dataclass(frozen=True)
class View:
    """The results in one setting, on one split, for one way to hold tasks out.

    Attributes:
        results: The results.
        setting: Where backbones start, how many labels there are, which seeds.
        split: The images scored on.
        block: Whether the tasks are held out together, or else one at a time.
        under: The head under which features are compared; empty for that of the plan.
    """

    results: Results
    setting: Setting
    split: str
    block: bool = False
    under: str = ""

    @property
    def head(self) -> str:
        """The head under which features are compared."""
        return self.under or self.plan.head

    @property
    def plan(self) -> Plan:
        """The plan of the results."""
        return self.results.plan

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.setting.name}, {self.split}"

    @property
    def begun(self) -> bool:
        """Whether anything of it is computed."""
        seeds, pairs = self.setting.seeds, self.pairs
        return any(self.value(p, task, n) is not None for n in seeds for p in pairs for task in self.tasks)

    @property
    def under_each_head(self) -> list[View]:
        """This view under each head for which there is a headroom, that of the plan first."""
        return [dataclasses.replace(self, under=head) for head in self.plan.heads_of(self.setting)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks held out."""
        return self.plan.block if self.block else self.plan.left_out(self.setting)

    @property
    def pairs(self) -> list[Pair]:
        """All that is compared."""
        return [Pair(source, head) for source in self.setting.sources for head in self.setting.heads]

    def value(self, pair: Pair, task: str, seed: int) -> float | None:
        """Return the primary metric of a held-out task, learnt by a head on frozen features."""
        base = self.plan.base if self.block else self.plan.others(task)
        cell = self.plan.probe(pair.source, base, self.setting, seed, task, pair.head)
        return self.results.score(cell, task, self.split)

    def raw(self, pair: Pair, task: str) -> Estimate:
        """Return the primary metric over seeds, in its unit."""
        return over_seeds(self.setting.seeds, lambda seed: self.value(pair, task, seed))

    def gain(self, of: Pair, over: Pair, task: str, seed: int) -> float | None:
        """Return how much better one is than another, in percent."""
        return self.change(task, self.value(of, task, seed), self.value(over, task, seed))

    def change(self, task: str, value: float | None, reference: float | None) -> float | None:
        """Return the relative change of a task's metric in percent; positive is better."""
        return transfer(value, reference, bool(self.results.task(task)["higher_is_better"]))

    def paired(self, task: str, of: Estimate, over: Estimate) -> Estimate:
        """Return the relative change of one over another, seed by seed."""
        return over_seeds(of.seeds, lambda seed: self.change(task, of.by_seed.get(seed), over.by_seed.get(seed)))

    def pretrained(self, cell: Pretraining, task: str) -> Estimate:
        """Return the metric of a task learnt end to end, over the setting's seeds."""
        return over_seeds(self.setting.seeds, lambda seed: self.results.score(_seeded(cell, seed), task, self.split))


def _seeded(cell: Pretraining, seed: int) -> Pretraining:
    return Pretraining(source=cell.source, tasks=cell.tasks, init=cell.init, seed=seed, labels=cell.labels)


def views(results: Results, block: bool = False) -> list[View]:
    """Return the main setting on the main split first, then all others; tasks are held out together in the main one."""
    settings = results.plan.settings[:1] if block else results.plan.settings
    return [View(results, setting, split, block) for setting in settings for split in results.splits]
