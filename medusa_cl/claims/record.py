"""Computed cells with all that is needed to read them, as one JSON file that can be sent."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from medusa_cl.claims.cells import Cell, Pretraining, Probe
from medusa_cl.claims.plan import Plan, Setting
from medusa_cl.errors import ConfigError, DataError, TaskError, unknown
from medusa_cl.tracking import finite

FORMAT = 1
MADE = ("device", "packages", "version", "commit", "code")  # of a cell: the same for many, so each stands once
TASK_KEYS = ("primary", "unit", "higher_is_better")


@dataclass(frozen=True)
class Results:
    """What was computed of a plan; a cell that is missing is simply not there.

    Attributes:
        plan: What is to be found out.
        tasks: By name, `DenseTask.describe()`.
        cells: What `Lab.compute` returned for each cell.
        about: Where it comes from, as plain data: "experiment", "data" (its name), "data_hash", "commit" and the like;
            "score_on" names the splits, the main one first.

    Raises:
        ConfigError: A task of the plan has no description.
    """

    plan: Plan
    tasks: Mapping[str, Mapping[str, Any]]
    cells: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a plan whose tasks are not described: nothing could be said of their direction."""
        for name in (*self.plan.tasks, *self.plan.base, *self.plan.held_out):
            if name not in self.tasks or not set(TASK_KEYS) <= set(self.tasks[name]):
                raise ConfigError(f'Expected a description of task "{name}" with {", ".join(TASK_KEYS)}.')

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that cells are scored on, the main one first."""
        named = self.about.get("score_on") or next((tuple(c["scores"]) for c in self.cells.values()), ("test",))
        return tuple(str(split) for split in named)

    @functools.cached_property
    def sections(self) -> Mapping[str, list[Cell]]:
        """The cells of the plan by section."""
        return self.plan.sections()

    def task(self, name: str) -> Mapping[str, Any]:
        """Return the description of a task.

        Raises:
            TaskError: There is no such task.
        """
        if name not in self.tasks:
            raise TaskError(unknown("task", name, self.tasks))
        return self.tasks[name]

    def score(self, cell: Cell, task: str, split: str = "") -> float | None:
        """Return the primary metric of a task in a cell; None where the cell is missing or the value is not finite.

        Args:
            cell: The cell.
            task: The task.
            split: The split; the main one by default.

        Raises:
            TaskError: There is no such task.
            ConfigError: There is no such split.
        """
        primary, split = self.task(task)["primary"], split or self.splits[0]
        if split not in self.splits:
            raise ConfigError(unknown("split", split, self.splits))
        content = self.cells.get(cell)
        value = None if content is None else content["scores"].get(split, {}).get(task, {}).get(primary)
        return finite(value)

    def metrics(self) -> dict[str, float]:
        """Return what was found as single numbers by name, for a tracker."""
        from medusa_cl.claims.findings import measures

        return measures(self)

    def to_json(self) -> str:
        """Return everything as JSON, a line for each cell."""
        made: list[dict[str, Any]] = []
        lines = [json.dumps(_cell_entry(content, made)) for content in self.cells.values()]
        head = {"format": FORMAT, "about": self.about, "plan": asdict(self.plan), "tasks": self.tasks, "made": made}
        cells = ",\n  ".join(sorted(lines))
        return json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n  {cells}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str, name: str = "claims.json") -> Results:
        """Read what `to_json` wrote.

        Args:
            text: The JSON.
            name: What it is called where it cannot be read.

        Raises:
            DataError: It is no such file.
        """
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {found['format']}, and this version reads {FORMAT}")
            contents = [_content(entry, found["made"]) for entry in found["cells"]]
            cells = {_cell_of(content["cell"]): content for content in contents}
            return cls(_plan_of(found["plan"]), found["tasks"], cells, found["about"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, ConfigError) as error:
            raise DataError(
                f"{name} holds no results of mode=claims: {type(error).__name__}: {error}. Expected the claims.json "
                "that such a run writes, as it was written."
            ) from error


def _cell_entry(content: Mapping[str, Any], made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a cell's content with what is the same for many as a number."""
    common = {key: content[key] for key in MADE if key in content}
    if common not in made:
        made.append(common)
    rest = {key: value for key, value in content.items() if key not in MADE}
    return {**rest, "made": made.index(common)}


def _content(entry: Mapping[str, Any], made: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {
        split: {task: {metric: finite(value) for metric, value in found.items()} for task, found in tasks.items()}
        for split, tasks in entry["scores"].items()
    }
    return {**{key: entry[key] for key in entry if key != "made"}, **made[entry["made"]], "scores": scores}


def _cell_of(entry: Mapping[str, Any]) -> Cell:
    """Return the cell that `asdict` made an entry of."""
    if "backbone" not in entry:
        return Pretraining(**{**entry, "tasks": tuple(entry["tasks"])})
    return Probe(**{**entry, "backbone": _cell_of(entry["backbone"])})


def _plan_of(entry: Mapping[str, Any]) -> Plan:
    settings = tuple(Setting(**_with_tuples(setting)) for setting in entry["settings"])
    known = {key: value for key, value in entry.items() if key in {f.name for f in fields(Plan)}}
    return Plan(**{**_with_tuples(known), "settings": settings})


def _with_tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
