"""The tables of a paper, from the summaries of finished runs: a row per configuration, mean and spread over seeds.

Nothing is averaged that differs in more than its seed, and what was not measured on the same test images does not stand
in one table. `medusa_cl.tracking.typeset` writes what is computed here as Markdown, LaTeX or CSV.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medusa_cl.errors import ConfigError, unknown
from medusa_cl.results import FROZEN_PLAIN, SINGLE_TASK
from medusa_cl.study import aggregate
from medusa_cl.tracking.columns import COLUMNS, GAINS, Column, has_peer
from medusa_cl.tracking.mlflow import LOCAL_KEYS
from medusa_cl.tracking.numbers import digits
from medusa_cl.tracking.rows import (
    ASIDE,
    FACTS,
    HASHES,
    Group,
    Peers,
    Run,
    Summary,
    ambiguous,
    found_peers,
    grouped,
    run_of,
)

TITLES: Mapping[str, str] = {
    "final": "Test results after the whole stream",
    "forgetting": "Forgetting",
    "transfer": "Transfer to new tasks",
    "cost": "Cost",
}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MAIN = ("final", "transfer")
"""The tables that a paper's main text holds."""


@dataclass(frozen=True)
class Cell:
    """A measure over the seeds of a row.

    Attributes:
        mean: The mean, None where a run has no value.
        deviation: The standard deviation (n - 1); None for one seed.
        n: How many seeds.
        why: Why there is no mean.
        best: Whether it leads its column by more than the spread.
        remark: What is to be known of the value.
    """

    mean: float | None
    deviation: float | None
    n: int
    why: str = ""
    best: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Row:
    """One configuration: what names it, and a cell for every column."""

    label: str
    facts: Mapping[str, str]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One table, ready to be written.

    Attributes:
        name: "final", "forgetting", "transfer" or "cost".
        scenario: The scenario.
        caption: Sentences that say what stands in it.
        columns: The columns.
        rows: The rows.
        notes: Sentences below it.
        command: What makes it; else empty.
        key: What it is referred to by; unlike that of every other table.
    """

    name: str
    scenario: str
    caption: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    command: str = ""
    key: str = ""

    @property
    def counted(self) -> bool:
        """Whether rows have unlike numbers of seeds, which then stand in a column."""
        return len({row.seeds for row in self.rows}) > 1


def tables(
    summaries: Sequence[Summary],
    configs: Sequence[Mapping[str, Any]] = (),
    names: Sequence[str] = (),
    *,
    select: Sequence[str] = MAIN,
    by: Sequence[str] = ("strategy",),
    command: str = "",
) -> list[Table]:
    """Return the tables of a set of finished runs.

    Args:
        summaries: The summary.json of each run. Of runs that differ in nothing, not even the seed, the last one counts.
        configs: The config.yaml of each; without them strategy, head, backbone, tasks and data alone tell runs apart.
        names: What a study calls each, which then names the rows; an empty text for none.
        select: Tables, of "final", "forgetting", "transfer" and "cost".
        by: What rows are named by before anything else that tells them apart: "strategy", "head", "backbone", or keys
            of the configuration.
        command: What makes the tables, for the caption.

    Returns:
        The tables selected, for each set of tasks and test images by itself. One without a column, such as transfer
        where no new task was learnt, is left out.

    Raises:
        ConfigError: There is no such table, or no run.
    """
    for name in select:
        if name not in TITLES:
            raise ConfigError(unknown("table", name, TITLES))
    if not summaries:
        raise ConfigError("Expected at least one finished run to make tables of, but got none.")
    runs = [
        run_of(summary, configs[i] if configs else {}, names[i] if names else "") for i, summary in enumerate(summaries)
    ]
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.measured, []).append(run)
    made = [_table(name, found, by, command) for found in together.values() for name in dict.fromkeys(select)]
    return _with_keys([table for table in made if table.columns])


def check_names(by: Sequence[str]) -> None:
    """Refuse what no run can be named by, without a look at any.

    Raises:
        ConfigError: A key is neither a fact of a run nor in any group of the configuration.
    """
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir() and not path.name.startswith("_")}
    keys = re.findall(r"^(\w+):", (CONFIGS / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    none = {*ASIDE, *LOCAL_KEYS, "defaults", "experiment"}
    known = ({*groups, *keys} - none) | {*FACTS, "base", "stream", *HASHES}
    for key in by:
        if key.split(".")[0] not in known:
            raise ConfigError(unknown("key to name rows by", key, known))


def same_runs(
    summaries: Sequence[Summary], configs: Sequence[Mapping[str, Any]], times: Sequence[float] = ()
) -> dict[int, int]:
    """Return the positions of runs that another one repeats, seed and all, each with the position of the last one.

    Args:
        summaries: The summary.json of each run.
        configs: The config.yaml of each.
        times: When each was made; without, in the order of the summaries.
    """
    alike: dict[tuple[str, int, str, str], list[int]] = {}
    for i in sorted(range(len(summaries)), key=lambda i: times[i] if times else i):
        run = run_of(summaries[i], configs[i])
        alike.setdefault((run.identity, run.seed, run.arrangement, run.measured), []).append(i)
    return {i: last for *earlier, last in alike.values() for i in sorted(earlier)}


def _table(name: str, runs: Sequence[Run], by: Sequence[str], command: str) -> Table:
    groups = grouped(runs, by)
    peers = found_peers(groups)
    columns = tuple(COLUMNS[name](groups, peers))
    columns = tuple(column for column in columns if _is_there(column, groups, peers))
    rows = tuple(_row(group, columns, peers) for group in groups)
    scenario = str(groups[0].first["scenario"])
    notes = (*_label_notes(runs), *_open_references(name, groups))
    table = Table(name, scenario, (), columns, _with_best(rows, columns), notes, command)
    return replace(table, caption=_caption(table, groups, peers))


def _with_keys(made: Sequence[Table]) -> list[Table]:
    taken: dict[str, int] = {}
    keyed = []
    for table in made:
        plain = f"{table.scenario}-{table.name}".replace("_", "-")
        taken[plain] = taken.get(plain, 0) + 1
        key = plain if taken[plain] == 1 else f"{plain}-{taken[plain]}"
        keyed.append(replace(table, key=key))
    return keyed


def _is_there(column: Column, groups: Sequence[Group], peers: Peers) -> bool:
    """Whether any run has a value; the raw values of tasks stay, with the reason for what is missing."""
    if column.measure in ("final", "just_learnt"):
        return True
    return any(column.of(run, peers(run))[0] is not None for group in groups for run in group.runs)


def _row(group: Group, columns: Sequence[Column], peers: Peers) -> Row:
    seeds = [run.seed for run in group.runs]
    cells = tuple(_cell(column, group.runs, seeds, peers) for column in columns)
    facts = {key: str(group.first.get(key, "")) for key in FACTS}
    return Row(group.label, facts, tuple(dict.fromkeys(seeds)), cells)


def _cell(column: Column, runs: Sequence[Run], seeds: Sequence[int], peers: Peers) -> Cell:
    outcomes = [column.of(run, peers(run)) for run in runs]
    over = aggregate(seeds, [value for value, _ in outcomes])
    lacking = [(run.seed, why) for run, (value, why) in zip(runs, outcomes, strict=True) if value is None]
    why = lacking[0][1] if lacking else ""
    if lacking and len(lacking) < len(runs):
        why = f"seed {', '.join(str(seed) for seed, _ in lacking)}: {why}"
    remark = next((why for value, why in outcomes if value is not None and why), "")
    return Cell(over["mean"], over["spread"], over["n"], why, remark=remark)


def _with_best(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    marks = [_leaders([row.cells[i] for row in rows], column.higher_is_better) for i, column in enumerate(columns)]
    marked = []
    for number, row in enumerate(rows):
        cells = (replace(c, best=number in marks[i]) for i, c in enumerate(row.cells))
        marked.append(replace(row, cells=tuple(cells)))
    return tuple(marked)


def _leaders(cells: Sequence[Cell], higher_is_better: bool | None) -> set[int]:
    """Return who is best, if the lead over the next one exceeds the spread of either."""
    known = {i: (cell.mean, cell.deviation) for i, cell in enumerate(cells) if cell.mean is not None}
    if higher_is_better is None or not known:
        return set()
    sign = 1.0 if higher_is_better else -1.0
    top = max(sign * mean for mean, _ in known.values())
    best = {i for i, (mean, _) in known.items() if sign * mean == top}
    others = {i: sign * mean for i, (mean, _) in known.items() if i not in best}
    if not others:
        return set()
    second = max(others.values())
    near = [known[i][1] for i in (*best, *(i for i, value in others.items() if value == second))]
    spreads = [deviation for deviation in near if deviation is not None]
    return best if len(spreads) == len(near) and top - second > max(spreads) else set()


# ---------------------------------------------------------------- words


def _caption(table: Table, groups: Sequence[Group], peers: Peers) -> tuple[str, ...]:
    facts = [(key, sorted({str(group.first.get(key)) for group in groups})) for key in ("backbone", "head")]
    shared = ", ".join(f"{key} {values[0]}" for key, values in facts if len(values) == 1)
    lines = [
        f"{TITLES[table.name]} on {table.scenario}{f' ({shared})' if shared else ''}.",
        *_about(table, groups, peers),
    ]
    lines += [_spread_sentence(table), _bold_sentence(table), _origin(groups)]
    return tuple(filter(None, lines))


def _about(table: Table, groups: Sequence[Group], peers: Peers) -> list[str]:
    there = {column.measure for column in table.columns if column.shown}
    single, plain = (_whose(reference, groups, peers) for reference in (SINGLE_TASK, FROZEN_PLAIN))
    own = {
        "mtl_delta": f"Δ MTL: mean gain of all tasks over single-task nets, {single}.",
        "forgetting_percent": "Forgetting: loss since a task was learnt, in % of its value then"
        + (", mean over the earlier tasks." if table.name == "final" else "."),
        "just_learnt": "Values are those just after a task was learnt; gains are means over the new tasks.",
        "transfer_plain": f"Over plain: against plain heads on frozen plain features, {plain}.",
        "transfer_single": f"Over single: against single-task nets trained end to end, {single}.",
        "params_added": "A task more: the mean over new tasks.",
        "gflops": "GFLOPs: 2 x multiply-adds for one image.",
    }
    gains = {key: f"{heading[0].upper()}{heading[1:]}: against {what}." for key, heading, what in GAINS}
    return [sentence for key, sentence in {**own, **gains}.items() if key in there]


def _whose(reference: str, groups: Sequence[Group], peers: Peers) -> str:
    """Say which nets are a reference: those of a row, or of each run by itself."""
    if not has_peer(reference, groups, peers):
        return "as each run's references= learnt them"
    labels = dict.fromkeys(group.label for group in groups if group.first["strategy"] == reference)
    return f"those of the same seed in {_rows(list(labels))}"


def _rows(labels: Sequence[str]) -> str:
    return f"row{'s' if len(labels) > 1 else ''} {', '.join(labels)}"


def _open_references(name: str, groups: Sequence[Group]) -> tuple[str, ...]:
    """Say of which reference there is more than one for a seed, so that none of them is taken."""
    compared = {"final": (SINGLE_TASK,), "transfer": (SINGLE_TASK, FROZEN_PLAIN)}
    notes = []
    for reference in compared.get(name, ()):
        rows = ambiguous(reference, groups)
        if rows and len(rows) < len(groups):
            notes.append(
                f"{reference} stands in {len(rows)} rows ({'; '.join(rows)}): which of them others are to be measured "
                "against is open, so none is for the seeds they share. Name the runs of one of them alone by runs=."
            )
    return tuple(notes)


def _spread_sentence(table: Table) -> str:
    counts = {row.seeds for row in table.rows}
    if all(len(seeds) == 1 for seeds in counts):
        which = f"seed {next(iter(counts))[0]}" if len(counts) == 1 else "seeds as listed"
        return f"One run each ({which}), so there is no spread."
    if len(counts) == 1:
        (seeds,) = counts
        return f"Mean ± standard deviation (n - 1) over {len(seeds)} seeds ({', '.join(map(str, seeds))})."
    return "Mean ± standard deviation (n - 1) over the seeds listed; one seed has no spread."


def _bold_sentence(table: Table) -> str:
    if not any(cell.best for row in table.rows for cell in row.cells):
        return ""
    return "Bold: best, where it leads the next by more than the standard deviation of either."


def _origin(groups: Sequence[Group]) -> str:
    summaries = [run.summary for group in groups for run in group.runs]
    versions = sorted({str(summary.get("version")) for summary in summaries})
    commits = sorted({str(commit) for s in summaries if (commit := (s.get("provenance") or {}).get("git"))})
    named = f", commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}" if commits else ""
    return f"medusa_cl {', '.join(versions)}{named}."


def _label_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    notes = {task: note for run in runs for task, note in (run.summary.get("labels") or {}).items()}
    return tuple(f"* {task}: {note}." for task, note in notes.items())


def decimals(column: Column, cells: Sequence[Cell]) -> int:
    """Return how many decimals the values of a column mean something in."""
    if column.decimals is not None:
        return column.decimals
    return digits(max((abs(cell.mean * column.scale) for cell in cells if cell.mean is not None), default=0.0))


def said_command(arguments: Sequence[str]) -> str:
    """Return what was typed to make tables."""
    return shlex.join(["python", "-m", "medusa_cl.track", "table", *arguments])
