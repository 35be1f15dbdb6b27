"""A study on the terminal and as Markdown: members x what they gained, forgot and cost, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medusa_cl.tracking.console import LOOK, WIDTH
from medusa_cl.tracking.folded import Folded
from medusa_cl.tracking.numbers import UNKNOWN, metric_heading, number

Entry = Mapping[str, Any]
# measure -> heading, how its mean and spread are written
COLUMNS: Mapping[str, tuple[str, str]] = {
    "transfer_plain": ("new tasks against plain heads %", "{:+.1f}"),
    "transfer_single": ("new tasks against single %", "{:+.1f}"),
    "mtl_delta": ("Delta MTL %", "{:+.1f}"),
    "forgetting_percent": ("for- getting %", "{:.1f}"),
    "params_total": ("params M", "{:.2f}"),
    "params_added": ("a task more M", "{:.2f}"),
    "gflops": ("GFLOPs all tasks", "{:.2f}"),
    "train_seconds": ("train s", "{:.0f}"),
    "seconds_added": ("a task more s", "{:.0f}"),
}
MILLIONS = ("params_total", "params_added")
SHORTEST_NAME = 12  # letters of a member's name that are shown however many columns there are


def study_report(report: Mapping[str, Any], folder: Path, ui_line: str | None = None) -> RenderableType:
    """Everything said at the end of a study, from its report alone."""
    runs = max((len(entry["runs"]) for entry in report["members"].values()), default=0)
    parts: list[RenderableType] = [Text(), Folded(gains_table(report, f"mean and spread over {runs} runs")), Text()]
    parts += [Folded(values_table(report)), Text()]
    parts += [Text(line) for line in _without_reference(report)]
    if report["missing"]:
        parts.append(Text(f"Not there yet: {', '.join(report['missing'])}."))
    parts.append(Text(f"everything   {folder / 'study.json'}, {folder / 'study.md'}"))
    parts += [Text(f"in MLflow    {line}") for line in (ui_line or "").splitlines()]
    return Group(*parts)


def _without_reference(report: Mapping[str, Any]) -> list[str]:
    needs = {
        "frozen_plain": "transfer against plain heads",
        "single_task": "transfer against single nets, no Delta MTL",
    }
    return [
        f"No {what}: for that {name} must be among study.members."
        for name, what in needs.items()
        if name not in report["members"]
    ]


def gains_table(report: Mapping[str, Any], title: str) -> Table:
    """What each member gained, forgot and cost."""
    members = report["members"].items()
    rows = [[name, *(_measure(key, entry["aggregates"].get(key, {})) for key in COLUMNS)] for name, entry in members]
    return _table(title, ["member", *(heading for heading, _ in COLUMNS.values())], rows)


def values_table(report: Mapping[str, Any]) -> Table:
    """The raw values, in the end."""
    members = report["members"].items()
    tasks = list(dict.fromkeys(task for _, entry in members for task in entry["values"]))
    headings = [f"{task} {metric_heading(report['primary'].get(task, {}))}".rstrip() for task in tasks]
    rows = [[name, *(_value(entry["values"].get(task, {})) for task in tasks)] for name, entry in members]
    return _table("Values in the end", ["member", *headings], rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The same two tables for a paper's notes."""
    blocks = []
    for table in (gains_table(report, ""), values_table(report)):
        rows = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
        heads = [str(column.header).replace("- ", "") for column in table.columns]
        lines = [heads, ["---"] * len(heads), *rows]
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def _table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    """Every number on one line: columns are as narrow as words allow, and long names give way."""
    table = Table(title=title, **LOOK)
    widths = [max(map(len, [*heading.split(), *cells])) for heading, *cells in zip(headings, *rows, strict=True)]
    left = WIDTH - sum(widths[1:]) - 2 * len(headings) - 1
    table.add_column(headings[0], no_wrap=True, max_width=max(left, SHORTEST_NAME))
    for heading, width in zip(headings[1:], widths[1:], strict=True):
        table.add_column(heading, justify="right", min_width=width, max_width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _measure(key: str, entry: Entry) -> str:
    scale, form = 1e-6 if key in MILLIONS else 1.0, COLUMNS[key][1]
    plain = form.replace("+", "")
    return _spread(entry, lambda value: form.format(value * scale), lambda value: plain.format(value * scale))


def _value(entry: Entry) -> str:
    return _spread(entry, number, number)


def _spread(entry: Entry, mean: Any, deviation: Any) -> str:
    if entry.get("mean") is None:
        return UNKNOWN
    text = str(mean(entry["mean"]))
    spread = entry.get("spread")
    return text if not spread else f"{text}±{deviation(spread)}"
