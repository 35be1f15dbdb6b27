"""A small table of text, as Markdown or on the terminal, and how numbers over seeds are written in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medusa_cl.claims.record import Results
from medusa_cl.claims.spread import Estimate
from medusa_cl.tracking.numbers import UNKNOWN, digits, metric_heading

if TYPE_CHECKING:
    from rich.table import Table

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: What it shows.
        heads: Headings of its columns.
        rows: Its cells.
        keys: So many columns name a row.
        words: So many of the last columns hold words.
        about: Sentences above it.
        notes: Sentences below it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    words: int = 0
    about: str = ""
    notes: Sequence[str] = ()

    def markdown(self, level: int = 2) -> str:
        """Return it as Markdown under a heading of a level."""
        sides = ["---"] * self.keys + ["---:"] * (len(self.heads) - self.keys - self.words) + ["---"] * self.words
        lines = [_line(map(_escaped, self.heads)), _line(sides), *(_line(map(_escaped, row)) for row in self.rows)]
        parts = [f"{'#' * level} {self.title}" if level else "", self.about, "\n".join(lines), "  \n".join(self.notes)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def table(self) -> Table:
        """Return it for the terminal."""
        from rich.table import Table

        from medusa_cl.tracking.console import LOOK

        table = Table(title=self.title, **LOOK)
        for place, heading in enumerate(self.heads):
            left = place < self.keys or place >= len(self.heads) - self.words
            table.add_column(heading, justify="left" if left else "right", no_wrap=not left)
        for row in self.rows:
            table.add_row(*row)
        return table


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


# ---------------------------------------------------------------- numbers


def points(estimate: Estimate) -> str:
    """Write percent over seeds without the unit: "+1.2 ± 0.4", and how many seeds where some are missing."""
    return _over_seeds(estimate, lambda value, signed: f"{round(value, 1) + 0.0:{'+' if signed else ''}.1f}")


def raw(estimate: Estimate) -> str:
    """Write a metric over seeds in as many digits as mean something, without its unit."""
    places = digits(estimate.mean or 0.0)
    return _over_seeds(estimate, lambda value, signed: f"{value:.{places}f}")


def share(estimate: Estimate) -> str:
    """Write a share over seeds in percent."""
    return _over_seeds(estimate, lambda value, signed: f"{round(100 * value) + 0:{'+' if signed else ''}d} %")


def _over_seeds(estimate: Estimate, write: Callable[[float, bool], str]) -> str:
    if estimate.mean is None:
        return UNKNOWN
    spread = "" if estimate.deviation is None else f" {PLUS_MINUS} {write(estimate.deviation, False)}"
    return write(estimate.mean, True) + spread + ("" if estimate.whole else f" ({seeds(estimate)})")


def seeds(estimate: Estimate) -> str:
    """Write over how many seeds a number is."""
    return str(estimate.n) if estimate.whole else f"{estimate.n} of {len(estimate.seeds)}"


def interval(estimate: Estimate) -> str:
    """Write the 95 % interval of a percentage."""
    return UNKNOWN if estimate.interval is None else "{:+.1f} to {:+.1f}".format(*(v + 0.0 for v in estimate.interval))


def heading(results: Results, task: str) -> str:
    """Return a task with its metric, unit and direction."""
    about = results.task(task)
    keys = {"metric": about["primary"], "unit": about["unit"], "higher_is_better": about["higher_is_better"]}
    return f"{task} {metric_heading(keys)}"
