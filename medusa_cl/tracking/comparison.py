"""A study on the terminal and as Markdown: members x what they gained, forgot and cost, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medusa_cl.tracking.console import LOOK
from medusa_cl.tracking.panels import UNKNOWN, number

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


def study_report(report: Mapping[str, Any], folder: Path, ui_line: str | None = None) -> RenderableType:
    """Everything said at the end of a study, from its report alone."""
    runs = max((len(entry["runs"]) for entry in report["members"].values()), default=0)
    parts: list[RenderableType] = [Text(), gains_table(report, f"mean and spread over {runs} runs"), Text()]
    parts += [values_table(report), Text()]
    if report["missing"]:
        parts.append(Text(f"Not there yet: {', '.join(report['missing'])}."))
    parts.append(Text(f"everything   {folder / 'study.json'}, {folder / 'study.md'}"))
    parts += [Text(f"in MLflow    {line}") for line in (ui_line or "").splitlines()]
    return Group(*parts)


def gains_table(report: Mapping[str, Any], title: str) -> Table:
    """What each member gained, forgot and cost."""
    table = _table(title, ["member", *(heading for heading, _ in COLUMNS.values())])
    for name, entry in report["members"].items():
        table.add_row(name, *(_measure(key, entry["aggregates"].get(key, {})) for key in COLUMNS))
    return table


def values_table(report: Mapping[str, Any]) -> Table:
    """The raw values, in the end."""
    tasks = list(dict.fromkeys(task for entry in report["members"].values() for task in entry["values"]))
    headings = [" ".join([task, *_metric(report["primary"].get(task, {}))]) for task in tasks]
    table = _table("Values in the end", ["member", *headings])
    for name, entry in report["members"].items():
        table.add_row(name, *(_value(entry["values"].get(task, {})) for task in tasks))
    return table


def markdown(report: Mapping[str, Any]) -> str:
    """The same two tables for a paper's notes."""
    blocks = []
    for table in (gains_table(report, ""), values_table(report)):
        rows = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
        heads = [str(column.header).replace("- ", "-").replace("\n", " ") for column in table.columns]
        lines = [heads, ["---"] * len(heads), *rows]
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title, **LOOK)
    for position, heading in enumerate(headings):
        if position:
            table.add_column(heading, justify="right", overflow="fold", max_width=11)
        else:
            table.add_column(heading, no_wrap=True, max_width=28)
    return table


def _measure(key: str, entry: Entry) -> str:
    scale = 1e-6 if key in MILLIONS else 1.0
    return _spread(
        entry, lambda value: COLUMNS[key][1].format(value * scale), lambda value: f"{abs(value) * scale:.1f}"
    )


def _value(entry: Entry) -> str:
    return _spread(entry, number, number)


def _spread(entry: Entry, mean: Any, deviation: Any) -> str:
    if entry.get("mean") is None:
        return UNKNOWN
    text = str(mean(entry["mean"]))
    spread = entry.get("deviation")
    return text if not spread else f"{text}±{deviation(spread)}"


def _metric(primary: Entry) -> list[str]:
    if not primary:
        return []
    unit = {"deg": "°"}.get(primary["unit"], primary["unit"])
    return [part for part in (primary["metric"], unit, "↑" if primary["higher_is_better"] else "↓") if part]
