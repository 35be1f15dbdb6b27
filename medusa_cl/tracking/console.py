"""What a run says on the terminal: a header, a progress bar, and the final table read from summary.json alone."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from medusa_cl import shell
from medusa_cl.tracking import finite, mean_transfer, reference_values
from medusa_cl.tracking.folded import Folded
from medusa_cl.tracking.numbers import UNKNOWN, metric_heading, number, percent

WIDTH = 120
QUIET_SECONDS = 15.0  # between two lines of progress where there is no terminal
NOTEBOOK_SECONDS = 0.5  # between two looks of the line that changes in a notebook
BAR = range(8, 31)  # columns that a bar may have
BESIDE_BAR = 71  # columns of all that stands beside it
LABEL = 24  # columns that lines of progress leave for what is done
GAINS = ("control_gain", "feature_gain", "head_gain", "attention_gain")  # columns of the table, in this order
NOISE = 1.0  # %; head seeds differ by 0.3 to 0.6 points, so less than this is nothing
# Shared by the tables: no vertical lines, so that they can be pasted anywhere.
LOOK: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
}


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave in silence: nobody reads any more."""
        self.quiet = True
        shell.unread()
        raise SystemExit(shell.PIPE_CLOSED)


def make_console() -> Console:
    """The console of a run: at most 120 columns, the same where there is no terminal.

    Colours follow NO_COLOR and FORCE_COLOR; only what is a terminal in truth gets anything that moves.
    """
    found = Console()
    terminal = found.file.isatty()
    width = min(found.width, WIDTH) if terminal else WIDTH
    return _Console(highlight=False, width=width, force_interactive=None if terminal else False)


def header(title: str, facts: Mapping[str, Any]) -> RenderableType:
    """The configuration in short: a line of title, then name and value in two columns; None is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            grid.add_row(name, Text(text))
    return Group(Rule(Text(title, style="bold"), align="left", style="dim"), grid)


class Bar:
    """The progress of one stage; made by `progress`."""

    def __init__(self, label: str, total: int, show: Callable[[Bar], None], clock: Any, pad: int = LABEL) -> None:
        self.label, self.total, self.done, self.images = label, total, 0, 0
        self._show, self._clock, self._pad = show, clock, pad
        self._started = clock()
        self._loss: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return float(self._clock() - self._started)

    @property
    def images_per_second(self) -> float | None:
        """Images a second since the stage began; None before the first."""
        return self.images / self.seconds if self.images and self.seconds > 0 else None

    def advance(self, steps: int = 1, images: int = 0, loss: float | None = None) -> None:
        """Count steps done and images seen; shows the last finite loss."""
        self.done, self.images = self.done + steps, self.images + images
        self._loss = finite(loss) if finite(loss) is not None else self._loss
        self._show(self)

    def to(self, done: int, total: int) -> None:
        """Show that `done` of `total` images are done, where each is a step."""
        self.total = total
        self.advance(done - self.done, done - self.done)

    def line(self) -> str:
        """Return all of it in one line."""
        width = len(str(self.total))
        parts = [f"{self.label:<{self._pad}} {self.done:>{width}}/{self.total}", f"{self.rate():>13}", self.loss()]
        return "  ".join(part for part in parts if part.strip())

    def rate(self) -> str:
        """Return the images a second; nothing before the first."""
        rate = self.images_per_second
        return "" if rate is None else f"{rate:.1f} images/s"

    def loss(self) -> str:
        """Return the last loss; nothing before the first."""
        return "" if self._loss is None else f"loss {self._loss:.4g}"


@contextmanager
def progress(label: str, total: int, console: Console | None = None, clock: Any = time.perf_counter) -> Iterator[Bar]:
    """A bar with images/s and loss while the block runs; without a terminal a line every 15 s. One line remains.

    In a notebook the line that remains is the one that has changed in place.
    """
    console = console or make_console()
    pad = max(0, min(LABEL, console.width - 50))
    if console.is_jupyter and (change := _notebook_line()) is not None:
        bar = Bar(label, total, _sparse(NOTEBOOK_SECONDS, clock, lambda text: change(text)), clock, pad)
        yield bar
        change(f"{bar.line()}  {bar.seconds:.1f} s")
        return
    if console.is_terminal and console.is_interactive:
        with Progress(*_columns(console), console=console, transient=True) as shown:
            task = shown.add_task(label, total=total, rate="", loss="")

            def move(bar: Bar) -> None:
                shown.update(task, completed=bar.done, total=bar.total, rate=bar.rate(), loss=bar.loss())

            bar = Bar(label, total, move, clock, pad)
            yield bar
    else:
        bar = Bar(label, total, _sparse(QUIET_SECONDS, clock, lambda text: console.print(Text(text))), clock, pad)
        yield bar
    console.print(Text(f"{bar.line()}  {bar.seconds:.1f} s"))


def _columns(console: Console) -> list[ProgressColumn]:
    """What stands in the line of a bar; in a narrow terminal first the bar gives way, then the time that is left."""
    bar = min(console.width - BESIDE_BAR, BAR[-1])
    spinner = SpinnerColumn("dots" if console.encoding.startswith("utf") else "line")
    found: list[ProgressColumn] = [spinner, TextColumn("{task.description:<22}")]
    if bar in BAR:
        found.append(BarColumn(bar_width=bar))
    found += [MofNCompleteColumn(), TextColumn("{task.fields[rate]:>14}"), TextColumn("{task.fields[loss]}")]
    return [*found, TimeRemainingColumn()] if console.width >= BESIDE_BAR else found


def _sparse(seconds: float, clock: Any, say: Callable[[str], None]) -> Callable[[Bar], None]:
    """Return what says how far a stage is, so many seconds apart, and not at its end."""
    said = clock()

    def show(bar: Bar) -> None:
        nonlocal said
        if clock() - said >= seconds and bar.done < bar.total:
            said = clock()
            say(bar.line())

    return show


def _notebook_line() -> Callable[[str], None] | None:
    """Return what shows a line in a notebook and changes it from then on; None where there is no IPython."""
    try:
        display = import_module("IPython.display").display
    except ImportError:
        return None
    shown: list[Any] = []

    def change(text: str) -> None:
        if shown:
            shown[0].update({"text/plain": text}, raw=True)
        else:
            shown.append(display({"text/plain": text}, raw=True, display_id=True))

    return change


@contextmanager
def bars(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `(what is done, images done, images in all) -> None`, which shows one bar after the other."""
    with ExitStack() as stack:
        shown: dict[str, Bar] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown[what] = stack.enter_context(progress(what, total, console))
            shown[what].to(done, total)

        yield advance


def report(summary: Mapping[str, Any], run_dir: Path | str | None = None, ui_line: str | None = None) -> RenderableType:
    """Everything said at the end of a run, from the dict of summary.json alone.

    Args:
        summary: the dict of summary.json; whatever is null is shown as an en dash.
        run_dir: the run directory, to say where the pictures are.
        ui_line: how to open the tracker's user interface.
    """
    parts: list[RenderableType] = [Text(), Folded(table(summary), keys=2)]
    if any(reference_values(summary).values()):
        parts += [Text(), Folded(reference_table(summary), keys=2)]
    parts += [Text(), *(Text(line) for line in reading(summary)), Text()]
    parts.append(_pairs(_closing(summary, run_dir, ui_line)))
    return Group(*parts)


def table(summary: Mapping[str, Any]) -> Table:
    """The result: base tasks, then new tasks with their transfer, each with raw values and units."""
    facts = [summary[key] for key in ("backbone", "head")]
    title = f"{summary['strategy']} on {summary['scenario']}: {', '.join(facts)}, seed {summary['seed']}"
    shown = Table(title=title, **LOOK)
    shown.add_column("task", no_wrap=True)
    shown.add_column("metric", no_wrap=True)
    for name in ("just\nlearnt", "now", "for-\ngetting", *(_heading(key) for key in GAINS)):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("ufl gain\n(reference)", justify="right", no_wrap=True)
    shown.add_column("params\nadded", justify="right", no_wrap=True)
    shown.add_column("train\nsec.", justify="right", no_wrap=True)
    for task in summary["base"]:
        shown.add_row(*_row(summary, task), end_section=task == summary["base"][-1])
    for task in summary["stream"]:
        shown.add_row(*_row(summary, task))
    return _with_means(shown, summary)


def reference_table(summary: Mapping[str, Any]) -> Table:
    """The raw values behind every percentage: what each reference reached on each new task."""
    references = reference_values(summary)
    names = list(dict.fromkeys(name for row in references.values() for name in row))
    shown = Table(title="Raw values of this run, just after learning, and of its references", **LOOK)
    for title in ("task", "metric"):
        shown.add_column(title, no_wrap=True)
    for name in ("this run", *names):
        shown.add_column(textwrap.fill(name.replace("_", " "), 14), justify="right", no_wrap=True)
    for task, row in references.items():
        values = [_learnt(summary, task), *(finite(row.get(name)) for name in names)]
        shown.add_row(_marked(summary, task), metric_heading(summary["primary"][task]), *map(number, values))
    return shown


def reading(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences computed from them: forgetting, whose gain it is, and what attention adds."""
    readers = (_read_forgetting, _read_gain, _read_attention, _read_control)
    notes = [f"* {task}: {note}." for task, note in summary.get("labels", {}).items()]
    return [line for line in (read(summary) for read in readers) if line] + notes


# ---------------------------------------------------------------- the table's cells


def _row(summary: Mapping[str, Any], task: str) -> list[str | Text]:
    """One task; the unit stands once, beside the metric's name."""
    entry = summary["transfer"]["per_task"].get(task, {})
    return [
        _marked(summary, task),
        metric_heading(summary["primary"][task]),
        number(_learnt(summary, task)),
        number(finite(summary["matrix"]["values"][task][-1])),
        _forgetting(summary, task),
        *(_gain(entry.get(key)) for key in GAINS),
        _ufl(entry, reference_values(summary).get(task, {}).get("frozen_plain")),
        _count((summary["cost"].get("params_added") or {}).get(task)),
        _seconds(summary, task),
    ]


def _marked(summary: Mapping[str, Any], task: str) -> str:
    """The task's name, with a star where its labels are no measurements."""
    return f"{task}*" if task in summary.get("labels", {}) else task


def _seconds(summary: Mapping[str, Any], task: str) -> str:
    """Training seconds; the base tasks were learnt together, so only the first of them shows a number."""
    base = summary["base"]
    if task in base[1:]:
        return "joint"
    seconds = finite((summary["cost"].get("train_seconds") or {}).get("base" if task in base else task))
    return UNKNOWN if seconds is None else f"{seconds:.1f}"


def _with_means(shown: Table, summary: Mapping[str, Any]) -> Table:
    """The last line: means over the new tasks, and the totals."""
    transfer, cost = summary["transfer"], summary["cost"]
    seconds = [value for value in map(finite, (cost.get("train_seconds") or {}).values()) if value is not None]
    mean = finite((summary.get("forgetting_percent") or {}).get("mean"))
    footer: list[str | Text] = [
        "mean, total", "", "", "",
        UNKNOWN if mean is None else _loss(mean),
        *(_gain(transfer.get(key)) for key in (*GAINS, "ufl_gain")),
        _count(cost.get("params_total")),
        f"{sum(seconds):.1f}" if seconds else UNKNOWN,
    ]  # fmt: skip
    for column, text in zip(shown.columns, footer, strict=True):
        column.footer = text
    shown.show_footer = True
    return shown


def _heading(key: str) -> str:
    return key.replace("_", "\n").replace("attention", "attent.")  # the whole word would cost two columns of 120


def _learnt(summary: Mapping[str, Any], task: str) -> float | None:
    values = (finite(value) for value in summary["matrix"]["values"][task])
    return next((value for value in values if value is not None), None)


def _forgetting(summary: Mapping[str, Any], task: str) -> str | Text:
    """0 is said as 0 only when it is exactly that; the last task cannot have been forgotten yet."""
    lost = finite((summary.get("forgetting_percent") or {}).get(task))
    if lost is None:
        return number(finite(summary["forgetting"].get(task)))
    return _loss(lost)


def _loss(lost: float) -> str | Text:
    if lost == 0:
        return Text("0", style="green")
    return Text(percent(lost) if abs(lost) >= 0.05 else f"{lost:+.0e} %", style="red" if lost > NOISE else "")


def _gain(value: Any) -> Text:
    gain = finite(value)
    style = "dim" if gain is None or abs(gain) < NOISE else "green" if gain > 0 else "red"
    return Text(percent(gain), style=style)


def _ufl(entry: Mapping[str, Any], reference: float | None) -> Text:
    text = _gain(entry.get("gain"))
    if reference is not None:
        text.append(f" ({number(reference)})", style="dim")
    return text


def _count(count: Any) -> str:
    value = finite(count)
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e3 else f"{value:.0f}"


# ---------------------------------------------------------------- the sentences


def _read_forgetting(summary: Mapping[str, Any]) -> str:
    raw = [value for task, value in summary["forgetting"].items() if task != "mean"]
    if raw and all(value == 0 for value in raw):  # not None: what is unknown is not 0
        return "Forgetting is exactly 0: no later task changed an earlier one."
    mean = finite((summary.get("forgetting_percent") or {}).get("mean"))
    if mean is None:
        return ""
    verb = "lost" if mean > 0 else "gained"
    return f"Since they were learnt, the earlier tasks {verb} {abs(mean):.1f} % on average."


def _read_gain(summary: Mapping[str, Any]) -> str:
    transfer = summary["transfer"]
    head, features, both = (finite(transfer.get(key)) for key in ("head_gain", "feature_gain", "ufl_gain"))
    if head is None or features is None:
        return _read_missing(summary, both)
    total = "" if both is None else f" of {percent(both)}"
    return (
        f"The gain{total} over plain heads on plain features is {percent(head)} (head) and {percent(features)} "
        f"(features): {_whose(head, features)}."
    )


def _whose(head: float, features: float) -> str:
    if max(head, features) < NOISE:
        return f"there is no gain beyond noise ({NOISE:.0f} %)"
    if features < NOISE:
        worse = ", which are worse than plain ones" if features < -NOISE else ""
        return f"it comes from the head, not from better features{worse}"
    if head < NOISE:
        return "it comes from the features, not from the head"
    return f"most of it comes from the {'head' if head > features else 'features'}"


def _read_missing(summary: Mapping[str, Any], both: float | None) -> str:
    """The gain cannot be taken apart: say what there is, and why there is no more."""
    if not summary["stream"]:
        return "All tasks were learnt together, so nothing was transferred, or forgotten."
    transfer = summary["transfer"]
    why = transfer.get("why_null") or {}
    reason = next((str(why[key]) for key in ("ufl_gain", "feature_gain", "head_gain") if key in why), "")
    reason = reason.partition(";")[0]  # the same for the other tasks, mostly
    tail = f" ({reason})" if reason else ""
    if both is not None:
        return f"The gain over plain heads on plain features is {percent(both)}; head or features is open{tail}."
    mean = mean_transfer(summary)
    if mean is None:
        return f"No transfer could be measured{f': {reason}' if reason else ''}."
    if transfer.get("ufl_delta") is not None:
        return f"Just after learning, the new tasks were {percent(mean)} against single-task nets trained end to end."
    return f"Just after learning, the new tasks were {percent(mean)} against plain heads on plain features{tail}."


def _read_attention(summary: Mapping[str, Any]) -> str:
    """Attention alone: the same plain features below both heads, which are of equal size."""
    attention = finite(summary["transfer"].get("attention_gain"))
    if attention is None:
        return ""
    if abs(attention) < NOISE:
        verdict = f"attention adds nothing measurable (under {NOISE:.0f} % is noise between seeds)"
    else:
        verdict = "the share of attention, from one seed" if attention > 0 else "attention costs quality here"
    return f"Medusa against ungated heads of equal size, both on plain features, is {percent(attention)}: {verdict}."


def _read_control(summary: Mapping[str, Any]) -> str:
    """Features and attention together, so no verdict on either."""
    control = finite(summary["transfer"].get("control_gain"))
    if control is None:
        return ""
    return f"Against an ungated head of equal size on plain features, this run as a whole is {percent(control)}."


# ---------------------------------------------------------------- the closing lines


def _closing(summary: Mapping[str, Any], run_dir: Path | str | None, ui_line: str | None) -> list[tuple[str, str]]:
    cost = summary["cost"]
    lines = [("seconds", _stages(summary.get("stages") or {}))]
    rates = {k: finite(v) for k, v in (cost.get("images_per_second") or {}).items()}
    lines.append(("images/s", " · ".join(f"{name} {rate:.0f}" for name, rate in rates.items() if rate is not None)))
    memory = finite(cost.get("peak_memory_bytes"))
    lines.append(("peak memory", "" if memory is None else f"{memory / 2**30:.2f} GiB"))
    if run_dir is not None:
        lines.append(("run directory", str(run_dir)))
        lines.append(("pictures", str(Path(run_dir) / "panels")))
    if ui_line:
        lines.append(("MLflow", ui_line))
    return [(name, text) for name, text in lines if text]


def _stages(stages: Mapping[str, Any]) -> str:
    known = {name: value for name, value in ((n, finite(v)) for n, v in stages.items()) if value is not None}
    if not known:
        return ""
    return f"{sum(known.values()):.0f} = " + " + ".join(f"{name} {value:.0f}" for name, value in known.items())


def _pairs(lines: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(name, Text(text))
    return grid
