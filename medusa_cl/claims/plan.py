"""Which cells a study of claims needs, by section, what matters most first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_cl.claims.cells import AS_IT_COMES, Cell, Pretraining, Probe

PLAIN_HEAD = "plain"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Under which circumstances features are compared.

    Attributes:
        init: Where backbones start from.
        labels: Share of the training images that heads are learnt on (backbones see all).
        seeds: Of backbones and heads.
        heads: Names of the heads learnt on each backbone.
        sources: Names of the pretrainings compared.
        held_out: Tasks left out one at a time; None for those of the plan.
    """

    init: str
    labels: float
    seeds: tuple[int, ...]
    heads: tuple[str, ...]
    sources: tuple[str, ...]
    held_out: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.init} init, {100 * self.labels:g} % of the labels"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be found out.

    Attributes:
        tasks: All tasks.
        base: The base of the block split; the others are held out together. Without one there is no such split.
        held_out: Tasks left out one at a time, the base being all others.
        settings: Under which circumstances; the first one is the main one.
        plain: The source that others are measured against.
        medusa: The source whose head is the one under which sources are compared.
        head: The name of that head. The headroom is that under it and, where they are learnt, under plain heads.
        parity: Sources learnt on all tasks together, beside single-task nets.
        ablations: Sources compared to `medusa` on the block split, main setting, first seed.
        single_task: Whether nets of one task serve as sources too: main setting, first seed.
        end_to_end_too: Whether headroom is also that of nets of one task, learnt end to end.
    """

    tasks: tuple[str, ...]
    base: tuple[str, ...]
    held_out: tuple[str, ...]
    settings: tuple[Setting, ...]
    plain: str = "plain"
    medusa: str = "medusa"
    head: str = "medusa_light"
    parity: tuple[str, ...] = ()
    ablations: tuple[str, ...] = ()
    single_task: bool = True
    end_to_end_too: bool = True

    def others(self, task: str) -> tuple[str, ...]:
        """Return all tasks but one: the base of leave-one-out."""
        return tuple(name for name in self.tasks if name != task)

    @property
    def block(self) -> tuple[str, ...]:
        """The tasks held out together in the block split; none where it has no base."""
        return tuple(name for name in self.tasks if name not in self.base) if self.base else ()

    def sections(self) -> dict[str, list[Cell]]:
        """Return the cells by section, each where it is first needed."""
        sections = {
            "headroom": self._headroom(),
            "leave_one_out": self._leave_one_out(),
            "parity": self._parity(),
            "block": self._block(),
            "ablations": self._ablations(),
            "single_task": self._single_task(),
        }
        seen: set[Cell] = set()
        found: dict[str, list[Cell]] = {}
        for name, cells in sections.items():
            found[name] = [cell for cell in dict.fromkeys(cells) if cell not in seen]
            seen |= set(found[name])
        return found

    def cells(self) -> list[Cell]:
        """Return all cells in the order in which they are wanted: by seed, the main setting first."""
        every = [cell for section in self.sections().values() for cell in section]
        main = self.settings[0]

        def wanted(cell: Cell) -> tuple[int, bool]:
            backbone = cell if isinstance(cell, Pretraining) else cell.backbone
            return backbone.seed, (backbone.init, cell.labels) != (main.init, main.labels)

        return sorted(every, key=wanted)

    def left_out(self, setting: Setting) -> tuple[str, ...]:
        """Return the tasks left out one at a time in a setting."""
        return self.held_out if setting.held_out is None else setting.held_out

    def pretraining(self, source: str, tasks: tuple[str, ...], setting: Setting, seed: int) -> Pretraining:
        """Return a source's backbone in a setting; the one that comes with its first weights depends on no tasks."""
        if source == AS_IT_COMES:
            return Pretraining(source=source, init=setting.init, seed=seed)
        return Pretraining(source=source, tasks=tasks, init=setting.init, seed=seed)

    def probe(self, source: str, tasks: tuple[str, ...], setting: Setting, seed: int, task: str, head: str) -> Probe:
        """Return a head on it."""
        backbone = self.pretraining(source, tasks, setting, seed)
        return Probe(backbone=backbone, head=head, task=task, labels=setting.labels)

    def oracle(self, setting: Setting, seed: int, task: str, head: str) -> Probe:
        """Return the head on plain features of all tasks, the one held out among them."""
        return self.probe(self.plain, self.tasks, setting, seed, task, head)

    def end_to_end(self, setting: Setting, seed: int, task: str, head: str) -> Pretraining:
        """Return the single-task net with the same head."""
        source = self.medusa if head == self.head else self.plain
        return Pretraining(source=source, tasks=(task,), init=setting.init, seed=seed, labels=setting.labels)

    def alone_seeds(self, setting: Setting, head: str) -> tuple[int, ...]:
        """Return with which seeds headroom asks single-task nets: in the main setting, with plain heads the first."""
        if not self.end_to_end_too or setting.name != self.settings[0].name:
            return ()
        return setting.seeds if head == self.head else setting.seeds[:1]

    def heads_of(self, setting: Setting) -> tuple[str, ...]:
        """Return the heads under which there is a headroom."""
        return (self.head, *(PLAIN_HEAD for head in setting.heads if head == PLAIN_HEAD and head != self.head))

    def _headroom(self) -> Iterator[Cell]:
        for setting in self.settings:
            for seed, task in ((s, t) for s in setting.seeds for t in self.left_out(setting)):
                for head in self.heads_of(setting):
                    yield self.probe(self.plain, self.others(task), setting, seed, task, head)
                    yield self.oracle(setting, seed, task, head)
                    if seed in self.alone_seeds(setting, head):
                        yield self.end_to_end(setting, seed, task, head)

    def _leave_one_out(self) -> Iterator[Cell]:
        for setting in self.settings:
            for seed, source, task in (
                (n, s, t) for n in setting.seeds for s in setting.sources for t in self.left_out(setting)
            ):
                for head in setting.heads:
                    yield self.probe(source, self.others(task), setting, seed, task, head)

    def _parity(self) -> Iterator[Cell]:
        main = self.settings[0]
        for seed, source in ((n, s) for n in main.seeds for s in self.parity):
            yield self.pretraining(source, self.tasks, main, seed)
            for task in self.tasks:
                yield self.end_to_end(main, seed, task, self.head)

    def _block(self) -> Iterator[Cell]:
        main = self.settings[0]
        for seed, source, task in ((n, s, t) for n in main.seeds for s in main.sources for t in self.block):
            for head in self.heads_of(main):
                yield self.oracle(main, seed, task, head)
            for head in main.heads:
                yield self.probe(source, self.base, main, seed, task, head)

    def _ablations(self) -> Iterator[Cell]:
        main = self.settings[0]
        for source in (self.medusa, *self.ablations) if self.ablations else ():
            yield self.pretraining(source, self.base, main, main.seeds[0])
            for task in self.block:
                yield self.probe(source, self.base, main, main.seeds[0], task, self.head)

    def _single_task(self) -> Iterator[Cell]:
        main = self.settings[0]
        for of, task in ((o, t) for o in self.tasks for t in self.held_out if o != t and self.single_task):
            yield self.probe(self.plain, (of,), main, main.seeds[0], task, self.head)


def settings_of(entries: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Make settings of a configuration; what one does not say is as in `defaults`."""
    return tuple(_setting({**defaults, **entry}) for entry in entries)


def _setting(entry: Mapping[str, Any]) -> Setting:
    return Setting(
        init=str(entry["init"]),
        labels=float(entry["labels"]),
        seeds=tuple(int(seed) for seed in entry["seeds"]),
        heads=_names(entry["heads"]),
        sources=_names(entry["compared"]),
        held_out=None if entry.get("held_out") is None else _names(entry["held_out"]),
    )


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
