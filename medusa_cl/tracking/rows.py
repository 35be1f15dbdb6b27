"""The rows of a paper's tables: which runs repeat one configuration, and what tells configurations apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_cl import kept
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.resume import FREE
from medusa_cl.tracking.mlflow import settings

Summary = Mapping[str, Any]

# Of a configuration: what says who is compared, or how fast; not what is learnt.
ASIDE = (*FREE, "seed", "references", "compare", "study", "mode", "remove", "trainer.threads", "trainer.distributed")
_ORDER = "scenario.seed"  # by which a random order is drawn; by default the run's own
UNSET = "null"  # as is a key that the version of the run did not have yet
HASHES = ("begun", "data_hash", "weights_hash")
FACTS = ("strategy", "head", "backbone")
"""What a summary says of its configuration, in the order in which it names rows."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        summary: Its summary.json.
        settings: What it was configured to learn, by key.
        name: What a study calls it; else empty.
    """

    summary: Summary
    settings: Mapping[str, str]
    name: str = ""

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.summary["seed"])

    @property
    def arrangement(self) -> str:
        """The order of the stream where that is drawn: orders are repetitions, as seeds are."""
        return self.settings.get(_ORDER, "") if self.settings.get("scenario.order") == "random" else ""

    @property
    def identity(self) -> str:
        """All that makes a row of it: runs of one identity are averaged."""
        told = {key: value for key, value in self.settings.items() if key != _ORDER}
        facts = [*(self.summary.get(key) for key in FACTS), _provenance(self.summary, "weights_hash")]
        stream = () if self.arrangement else (self.summary["base"], self.summary["stream"])
        hashes = [_provenance(self.summary, key) for key in ("data_hash", "begun")]
        return json.dumps([facts, told, stream, *hashes], sort_keys=True)

    @property
    def measured(self) -> str:
        """What values must have in common to stand in one column: scenario, tasks, metrics and test images."""
        primary = self.summary["primary"]
        test = (_provenance(self.summary, "data_hash") or {}).get("test")
        return json.dumps([self.summary["scenario"], dict(primary), test], sort_keys=True)


def _provenance(summary: Summary, key: str) -> Any:
    return (summary.get("provenance") or {}).get(key)


@dataclass
class Group:
    """One row: its runs, and what names it."""

    runs: list[Run]
    label: str = ""

    @property
    def first(self) -> Summary:
        """The summary of the first run."""
        return self.runs[0].summary


Peers = Callable[[Run], Mapping[str, Summary]]
"""Finds the runs of a run's seed and stream by strategy."""


def run_of(summary: Summary, config: Mapping[str, Any], name: str = "") -> Run:
    """Return a run by its summary.json, its config.yaml and what its study calls it.

    No other run repeats the configuration of one that went on from what it does not describe, as in earlier versions.
    """
    if goes_on(config) and "begun" not in (found := summary.get("provenance") or {}):
        summary = {**summary, "provenance": {**found, "begun": kept.digest(summary)}}
    return Run(summary, deciding(config), name)


def deciding(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that decide what is learnt from given data and weights, by key."""
    told = {key: text for key, text in settings(config).items() if text != UNSET}
    return {key: text for key, text in told.items() if not any(key == a or key.startswith(f"{a}.") for a in ASIDE)}


def goes_on(config: Mapping[str, Any]) -> bool:
    """Return whether a run was told what to go on from: a run to extend, or a base."""
    return bool(config.get("extend")) or config.get("base") not in (None, "auto")


def grouped(runs: Sequence[Run], by: Sequence[str]) -> list[Group]:
    """Return the rows: runs of one identity, each seed (and order) once, with a label that no other row has.

    Args:
        runs: What was measured alike. Of runs that are alike in everything the last one counts.
        by: What labels begin with: "strategy", "head", "backbone", or keys of the configuration.

    Raises:
        ConfigError: A key is unknown.
    """
    groups: dict[str, dict[tuple[int, str], Run]] = {}
    for run in runs:
        groups.setdefault(run.identity, {})[run.seed, run.arrangement] = run
    found = [Group(list(members.values())) for members in groups.values()]
    for key in by:
        if key not in (known := _keys(found)):
            raise ConfigError(unknown("key to name rows by", key, known))
    for group in found:
        group.runs.sort(key=lambda run: run.seed)
    _name(found, by)
    return found


def _name(groups: Sequence[Group], by: Sequence[str]) -> None:
    """Name rows as their study does, or by the fewest settings that tell them apart."""
    studied = [{run.name for run in group.runs} for group in groups]
    named = [next(iter(names)) for names in studied if len(names) == 1]
    if len(named) == len(groups) == len(set(named)) and all(named):
        for group, name in zip(groups, named, strict=True):
            group.label = name
        return
    for group in groups:
        group.label = " ".join(_said(key, _value(group, key)) for key in by)
    clusters: dict[str, list[Group]] = {}
    for group in groups:
        clusters.setdefault(group.label, []).append(group)
    for cluster in clusters.values():
        _tell_apart(cluster, [key for key in _keys(groups) if key not in by])


def _tell_apart(groups: Sequence[Group], keys: Sequence[str]) -> None:
    """Add a setting in which these groups differ to their labels, and go on with those that are alike in it."""
    if len(groups) < 2:
        return
    key = next((key for key in keys if len({_value(group, key) for group in groups}) > 1), None)
    if key is None:
        for i, group in enumerate(groups[1:], 2):
            group.label += f" ({i})"
        return
    parts: dict[str, list[Group]] = {}
    for group in groups:
        group.label = f"{group.label} {key}={_value(group, key)}".strip()
        parts.setdefault(_value(group, key), []).append(group)
    for part in parts.values():
        _tell_apart(part, [other for other in keys if other != key])


def _keys(groups: Sequence[Group]) -> list[str]:
    """Everything rows may differ in, what says most first."""
    settings = {key for group in groups for key in group.runs[0].settings}
    rest = sorted(settings, key=lambda key: (key.endswith("_target_"), key.count("."), key))
    rest = [key for key in rest if key != _ORDER]
    return [*FACTS, *rest, "base", "stream", *HASHES]


def _value(group: Group, key: str) -> str:
    if key in group.runs[0].settings:
        return group.runs[0].settings[key]
    if key in HASHES:
        found = _provenance(group.first, key)
        return UNSET if found is None else kept.digest(found)[:8]
    value = group.first.get(key, UNSET)
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _said(key: str, value: str) -> str:
    return value if key in FACTS else f"{key}={value}"


def found_peers(groups: Sequence[Group]) -> Peers:
    """Return what finds the runs of a run's seed and stream by strategy; none where there is more than one."""
    found: dict[tuple[Any, ...], list[Summary]] = {}
    for group in groups:
        for run in group.runs:
            found.setdefault((*_repetition(run), run.summary["strategy"]), []).append(run.summary)

    def peers(run: Run) -> Mapping[str, Summary]:
        own = _repetition(run)
        return {key[-1]: all_[0] for key, all_ in found.items() if key[:-1] == own and len(all_) == 1}

    return peers


def ambiguous(strategy: str, groups: Sequence[Group]) -> list[str]:
    """Return the labels of the rows of a strategy that share a seed and stream, so that none of them can be a peer."""
    rows: dict[tuple[int, str, str], list[str]] = {}
    for group in groups:
        for run in group.runs if group.first["strategy"] == strategy else ():
            rows.setdefault(_repetition(run), []).append(group.label)
    return list(dict.fromkeys(label for labels in rows.values() if len(labels) > 1 for label in labels))


def _repetition(run: Run) -> tuple[int, str, str]:
    return run.seed, run.arrangement, run.settings.get("scenario.held_out", UNSET)
