"""Tables as text: Markdown as GitHub renders it, LaTeX with booktabs, and tidy CSV with every digit."""

from __future__ import annotations

import csv
import io
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medusa_cl.tracking.columns import Column
from medusa_cl.tracking.numbers import UNKNOWN
from medusa_cl.tracking.rows import Summary
from medusa_cl.tracking.tables import Cell, Row, Table, decimals, tables

CSV_COLUMNS = (
    *("table", "scenario", "row", "strategy", "head", "backbone", "task", "measure", "metric", "unit", "better"),
    *("mean", "std", "n", "seeds", "note"),
)
PLUS_MINUS, MINUS, TIMES = "±", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
_TEX_LETTERS: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    PLUS_MINUS: r"$\pm$", MINUS: "$-$", UNKNOWN: "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "°": r"$^\circ$", "Δ": r"$\Delta$", "²": r"$^2$", TIMES: r"$\times$",
}  # fmt: skip


@dataclass(frozen=True)
class _Page:
    """What a table shows, in plain letters: a label and a text for every cell, and the notes that texts refer to."""

    heads: list[tuple[str, str]]
    rows: list[tuple[str, list[tuple[str, str, bool]]]]
    notes: list[tuple[str, str]]


def markdown(made: Sequence[Table], digits: int | None = None) -> str:
    """Return tables as Markdown: a caption, the table, its notes.

    Args:
        made: The tables.
        digits: Decimals of all values; None for as many as mean something.
    """
    return "\n".join(_markdown(table, digits) for table in made)


def latex(made: Sequence[Table], digits: int | None = None) -> str:
    r"""Return tables as LaTeX that needs \usepackage{booktabs} (and, before 2020's LaTeX, textcomp).

    Args:
        made: The tables.
        digits: Decimals of all values; None for as many as mean something.
    """
    return "\n".join(_latex(table, digits) for table in made)


def tidy_csv(made: Sequence[Table]) -> str:
    """Return everything that was computed as CSV (RFC 4180): a line for each row, task and measure, with all digits."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(CSV_COLUMNS)
    for table in made:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                lines.writerow(_record(table, row, column, cell))
    return text.getvalue()


def result_note(summary: Summary) -> str:
    """Return the result of one run as Markdown."""
    return markdown(tables([summary]))


FORMATS: Mapping[str, Callable[[Sequence[Table], int | None], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": lambda made, digits: tidy_csv(made),
}


def _record(table: Table, row: Row, column: Column, cell: Cell) -> list[str]:
    better = {True: "higher", False: "lower", None: ""}[column.higher_is_better]
    numbers = ["" if value is None else repr(float(value)) for value in (cell.mean, cell.deviation)]
    seeds = " ".join(map(str, row.seeds))
    about = [column.task, column.measure, column.metric, column.unit, better]
    named = [table.name, table.scenario, row.label, *row.facts.values()]
    return [*named, *about, *numbers, str(cell.n), seeds, cell.why or cell.remark]


def _page(table: Table, digits: int | None) -> _Page:
    shown = [i for i, column in enumerate(table.columns) if column.shown]
    heads = [(table.columns[i].heading, table.columns[i].below) for i in shown]
    places = {i: _places(table, i, digits) for i in shown}
    reasons: dict[str, str] = {}
    rows = []
    for row in table.rows:
        cells = []
        for i in shown:
            cell = row.cells[i]
            note = cell.why if cell.mean is None else cell.remark
            mark = _mark(reasons, note)
            cells.append((_text(table.columns[i], cell, places[i]), mark, cell.best))
        seeds = [(", ".join(map(str, row.seeds)), "", False)] if table.counted else []
        rows.append((row.label, [*seeds, *cells]))
    notes = [(mark, note) for note, mark in reasons.items()]
    return _Page([("seeds", ""), *heads] if table.counted else heads, rows, notes)


def _places(table: Table, i: int, digits: int | None) -> int:
    return decimals(table.columns[i], [row.cells[i] for row in table.rows]) if digits is None else digits


def _mark(reasons: dict[str, str], note: str) -> str:
    """Return the letter by which a note is referred to; equal notes share one."""
    if not note:
        return ""
    count = len(reasons)
    letters = string.ascii_lowercase
    return reasons.setdefault(note, letters[count] if count < len(letters) else str(count))


def _text(column: Column, cell: Cell, places: int) -> str:
    if cell.mean is None:
        return UNKNOWN
    mean = _number(cell.mean * column.scale, places, column.signed)
    fixed = cell.deviation == 0 and column.higher_is_better is None  # such as a count of parameters
    if cell.deviation is None or fixed:
        return mean
    return f"{mean} {PLUS_MINUS} {_number(cell.deviation * column.scale, places)}"


def _number(value: float, places: int, signed: bool = False) -> str:
    rounded = round(value, places) + 0.0
    return f"{rounded:{'+' if signed else ''}.{places}f}".replace("-", MINUS)


# ---------------------------------------------------------------- Markdown


def _markdown(table: Table, digits: int | None) -> str:
    page = _page(table, digits)
    heads = ["", *("<br>".join(map(_md, filter(None, head))) for head in page.heads)]
    lines = [_md_line(heads), _md_line(["---", *["---:"] * len(page.heads)])]
    lines += [_md_line([_md(label), *(_md_cell(*cell) for cell in cells)]) for label, cells in page.rows]
    notes = [f"<sup>{mark}</sup> {_md(note)}" for mark, note in page.notes] + [_md(note) for note in table.notes]
    fence = "``" if "`" in table.command else "`"
    made = [f"Made by {fence}{table.command}{fence}"] if table.command else []
    parts = [" ".join([*map(_md, table.caption), *made]), "\n".join(lines), "  \n".join(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(text: str, mark: str, best: bool) -> str:
    return (f"**{text}**" if best else _md(text)) + (f"<sup>{mark}</sup>" if mark else "")


def _md(text: str) -> str:
    """Escape what Markdown would take for its own."""
    escaped = "".join(f"\\{letter}" if letter in "\\|*`[]~" else letter for letter in text)
    return escaped.replace("_", r"\_").replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


# ---------------------------------------------------------------- LaTeX


def _latex(table: Table, digits: int | None) -> str:
    page = _page(table, digits)
    made = [rf"Made by \texttt{{{_tex(table.command)}}}"] if table.command else []
    lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{' '.join([*map(_tex, table.caption), *made])}}}"]
    lines += [rf"\label{{tab:{_label(table.key)}}}", r"\small", r"\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(page.heads)}}}", r"\toprule"]
    lines += [_tex_line(["", *(_tex(head[part]) for head in page.heads)]) for part in (0, 1)]
    lines += [r"\midrule"]
    lines += [_tex_line([_tex(label), *(_tex_cell(*cell) for cell in cells)]) for label, cells in page.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [rf"$^{{{mark}}}$ {_tex(note)}" for mark, note in page.notes] + [_tex(note) for note in table.notes]
    if notes:
        lines += [r"\par\smallskip", r"\footnotesize", "\\\\\n".join(notes)]
    return "\n".join([*lines, r"\end{table}", ""])


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells).lstrip() + r" \\"


def _tex_cell(text: str, mark: str, best: bool) -> str:
    shown = rf"\textbf{{{_tex(text)}}}" if best else _tex(text)
    return shown + (rf"$^{{{mark}}}$" if mark else "")


def _tex(text: str) -> str:
    """Escape what LaTeX would take for its own, and write signs by their commands."""
    return "".join(_TEX_LETTERS.get(letter, letter) for letter in text.replace("\n", " "))


def _label(key: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-.") else "-" for letter in key)
