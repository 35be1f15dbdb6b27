"""Tables wider than the terminal: the columns that have no room stand below, beside the first ones again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table


class Folded:
    """A table that is shown whole where there is room, and else in parts of whole columns, none of them cut.

    Args:
        table: The table.
        keys: So many columns, those that name a row, stand in every part.
    """

    def __init__(self, table: Table, keys: int = 1) -> None:
        self.table, self.keys = table, keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the table, or its parts one below the other."""
        for number, columns in enumerate(self._parts(console, options)):
            yield self._part(columns, title=not number)

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[list[Column]]:
        keys, rest = self.table.columns[: self.keys], self.table.columns[self.keys :]
        if self._width(self.table.columns, console, options) <= options.max_width:
            yield [*keys, *rest]
            return
        part: list[Column] = []
        for column in rest:
            if part and self._width([*keys, *part, column], console, options) > options.max_width:
                yield [*keys, *part]
                part = []
            part.append(column)
        yield [*keys, *part]

    def _width(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> int:
        part = self._part(columns, title=False)
        return Measurement.get(console, options.update(width=10_000), part).maximum

    def _part(self, columns: Sequence[Column], title: bool) -> Table:
        """Return a table of some of the columns."""
        whole = self.table
        part = Table(
            title=whole.title if title else None,
            title_justify=whole.title_justify,
            title_style=whole.title_style,
            box=whole.box,
            padding=whole.padding,
            show_footer=whole.show_footer,
        )
        for column in columns:
            part.add_column(
                column.header,
                column.footer,
                justify=column.justify,
                no_wrap=column.no_wrap,
                min_width=column.min_width,
                max_width=column.max_width,
            )
        cells = [list(column.cells) for column in columns]
        for index, row in enumerate(whole.rows):
            part.add_row(*(column[index] for column in cells), end_section=row.end_section)
        return part
