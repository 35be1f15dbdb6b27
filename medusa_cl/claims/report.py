"""The answer: sentences that follow from the numbers, and the tables, as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_cl.claims import findings, nets, published, sheet, sheets
from medusa_cl.claims.cells import AS_IT_COMES
from medusa_cl.claims.findings import CONTROL_HEAD, Pair, Results, View
from medusa_cl.claims.nets import Parity
from medusa_cl.claims.plan import PLAIN_HEAD
from medusa_cl.claims.sheet import Sheet
from medusa_cl.claims.sheets import NOT_RUN
from medusa_cl.claims.spread import Estimate
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.tracking.numbers import UNKNOWN

if TYPE_CHECKING:
    from rich.console import RenderableType

NOT_COMPUTED, NOT_PART = "not computed yet", "not part of this plan"
NO_ROOM = "no task has enough"
UNDEFINED = "no value, as one of the numbers that it compares is 0 or not finite"
FEW = 4  # sources that can each have a sentence
COLUMNS: Mapping[str, str] = {"rooms_v1": "rooms-v1", "nyud": "NYUD-v2", "pascal": "PASCAL-Context"}
"""The experiments that tables for everyone show, by the names of their files."""
EXPERIMENTS: Mapping[str, str] = {"rooms_v1": "rooms_claims", "nyud": "nyud_claims", "pascal": "pascal_claims"}


def markdown(results: Results) -> str:
    """Return all that was found as Markdown: sentences, then tables, the first one being the answer."""
    name = str(results.about.get("data", "")) or "these tasks"
    lines = "\n".join(f"- {sentence}" for sentence in sentences(results))
    parts = [f"# What features are worth: {name}\n", lines + "\n", *(made.markdown() for made in all_sheets(results))]
    return "\n".join(parts)


def console(results: Results, folder: Path | None = None, ui_line: str | None = None) -> RenderableType:
    """Return the answer for the terminal: the main tables, sentences, and where the rest is.

    Args:
        results: The results.
        folder: Where claims.json and claims.md were written.
        ui_line: How to open the run in a tracker.
    """
    from rich.console import Group
    from rich.text import Text

    from medusa_cl.tracking.folded import Folded

    parts: list[RenderableType] = [Text()]
    for made in main_sheets(results):
        parts += [Folded(made.table(), made.keys), Text()]
    parts += [Text(f"- {sentence}") for sentence in sentences(results)]
    if folder is not None:
        parts += [Text(), Text(f"everything   {folder / 'claims.json'}, {folder / 'claims.md'}")]
    parts += [Text(f"in MLflow    {line}") for line in (ui_line or "").splitlines()]
    return Group(*parts)


def main_sheets(results: Results) -> list[Sheet]:
    """Return the tables that hold the answer."""
    main = _views(results)[0]
    made = [sheets.matrix(main), sheets.comparisons(main), *map(sheets.rooms, main.under_each_head)]
    made += [sheets.closed([view for view in _views(results) if view.begun])]
    made += [sheets.together(main), sheets.missing(results)]
    return [one for one in made if one.rows]


def _views(results: Results) -> list[View]:
    """Return the views that hold the answer: tasks left out one at a time, or together if the plan does only that."""
    return findings.views(results, block=not results.plan.held_out)


def all_sheets(results: Results) -> list[Sheet]:
    """Return every table; one without a row is left out."""
    main, *others = _views(results)
    others = [view for view in others if view.begun]
    block = findings.views(results, block=True)[:1] if results.plan.held_out and results.plan.block else []
    chosen = [c for c in findings.contrasts(main) if c.of.head == results.plan.head or c.kind == "head"]
    made = [sheets.matrix(main), sheets.comparisons(main), sheets.by_task(main, chosen)]
    made += [
        *map(sheets.rooms, main.under_each_head),
        sheets.closed([main, *others, *block]),
        sheets.together(main),
    ]
    made += [make(view) for view in block for make in (sheets.matrix, sheets.comparisons)]
    made += [sheets.removed(main), sheets.lessons(main)]
    for view in others:
        made += [sheets.matrix(view), sheets.comparisons(view), *map(sheets.rooms, view.under_each_head)]
    benchmark = published.benchmark_of(str(results.about.get("data", "")))
    made += [sheets.beside(benchmark, results)] if benchmark else []
    made += [sheets.missing(results), sheets.provenance(results)]
    return [one for one in made if one.rows]


# ---------------------------------------------------------------- sentences


def sentences(results: Results) -> list[str]:
    """Return what follows from the numbers of the main setting; each is true of the tables, whatever they say."""
    view, *rest = _views(results)
    others = [_elsewhere(under) for other in rest if other.begun for under in other.under_each_head]
    if later := [other.name for other in rest if not other.begun]:
        others.append(f"Not computed yet: {'; '.join(later)}.")
    rooms = [line for under in view.under_each_head for line in _headroom(under)]
    said = [*_universal(view), *rooms, *others, *_maintained(view), _efficient(view), _complete(results)]
    nothing = NOT_COMPUTED if _missing(results) else UNDEFINED
    return [line.replace(NOT_COMPUTED, nothing) for line in said if NOT_PART not in line]


def _universal(view: View) -> Iterator[str]:
    plan, heads = view.plan, view.setting.heads
    plain, light, ours = (
        Pair(plan.plain, PLAIN_HEAD), Pair(plan.plain, plan.head), Pair(plan.medusa, plan.head)
    )  # fmt: skip
    claim = published.claims()[0]
    yield (
        f"Universal features: the paper's abstract says {claim.value:+.2f} %, not relative to what. Here, over "
        f"{len(view.tasks)} tasks held out {_how(view)} ({view.name}), {ours} against {plain}: "
        f"{_between(view, ours, plain)}."
    )
    yield f"Of it the head alone, {light} against {plain}: {_between(view, light, plain)}."
    for under in view.under_each_head:
        over = Pair(plan.plain, under.head)
        for source in _trained(view):
            yield f"The features alone, {Pair(source, under.head)} against {over}: {_learnt(under, source)}."
    if CONTROL_HEAD in heads:
        control = Pair(plan.plain, CONTROL_HEAD)
        yield f"Attention alone, {light} against {control} of equal parameters: {_between(view, light, control)}."


def _how(view: View) -> str:
    return "together" if view.block else "one at a time"


def _trained(view: View) -> list[str]:
    """Return the sources that have a sentence: the Medusa source, whether or not it is there, and a few others."""
    known = dict.fromkeys([view.plan.medusa, *view.setting.sources])
    judged = [source for source in known if source not in (view.plan.plain, AS_IT_COMES)]
    return judged if len(judged) <= FEW else judged[:1]


def _learnt(view: View, source: str) -> str:
    return _between(view, Pair(source, view.head), Pair(view.plan.plain, view.head))


def _between(view: View, of: Pair, over: Pair, say: Callable[[Estimate], str] | None = None) -> str:
    known = {of, over} <= set(view.pairs)
    return (say or said)(findings.contrast(view, of, over).overall) if known else NOT_PART


def said(estimate: Estimate) -> str:
    """Say a percentage over seeds in words: its mean, its spread, and whether it exceeds the noise."""
    if estimate.mean is None:
        return NOT_COMPUTED
    start = f"{sheet.points(Estimate(estimate.by_seed))} %"
    if estimate.interval is None:
        seeds = "one seed" if estimate.n == 1 else "two seeds"
        return f"{start} ({seeds}, so whether it exceeds noise is unknown)"
    words = {"no": "no more than noise", "yes": "above noise"}.get(estimate.verdict, "above noise, but under 1 point")
    return f"{start} over {estimate.n} seeds (95 % interval {sheet.interval(estimate)}): {words}"


def _headroom(view: View) -> Iterator[str]:
    rooms = findings.headroom(view)
    apart, known = [r.task for r in rooms if r.tells_apart], [r for r in rooms if r.tells_apart is not None]
    if not known:
        yield f"Headroom under a {view.head} head: {NOT_COMPUTED}."
        return
    yield (
        f"Headroom of {findings.ENOUGH_HEADROOM:g} % or more under a {view.head} head, by which a task can tell "
        f"features apart, is there for {len(apart)} of {len(known)} tasks{': ' if apart else ''}{', '.join(apart)}."
    )
    for share in _closing(view):
        yield f"Share of it that {share.source} features close over these tasks: {_said_share(share.pooled)}."


def _elsewhere(view: View) -> str:
    """Say where else features can be told apart, and whether they are."""
    plan, rooms = view.plan, findings.headroom(view)
    known, apart = [r for r in rooms if r.tells_apart is not None], [r.task for r in rooms if r.tells_apart]
    if not known:
        return f"{view.name}, {view.head} head: {NOT_COMPUTED}."
    enough = f"headroom enough for {len(apart)} of {len(known)} tasks{': ' if apart else ''}{', '.join(apart)}"
    gains = [f"{source} against {plan.plain} features: {_learnt(view, source)}" for source in _trained(view)]
    closed = [f"of that headroom {share.source} closes {_said_share(share.pooled)}" for share in _closing(view)]
    return "; ".join([f"{view.name}, {view.head} head: {enough}", *gains, *closed]) + "."


def _closing(view: View) -> list[findings.Share]:
    """Return the shares of what is spoken of, of tasks with enough headroom; none where no task has it."""
    return [share for share in findings.shares(view) if share.tasks and share.source in _trained(view)]


def _said_share(estimate: Estimate) -> str:
    if estimate.mean is None:
        return NOT_COMPUTED
    bounds = estimate.interval
    how = "one seed" if estimate.n == 1 else f"{estimate.n} seeds"
    inside = "" if bounds is None else f", 95 % interval {100 * bounds[0]:+.0f} to {100 * bounds[1]:+.0f} %"
    return f"{sheet.share(Estimate(estimate.by_seed))} ({how}{inside})"


def _maintained(view: View) -> Iterator[str]:
    rows = {row.source: row for row in nets.parity(view)}
    plan = view.plan
    if plan.medusa not in rows:
        return
    ours = rows[plan.medusa]
    yield (
        "Multitask performance maintained, as the abstract says: Delta MTL of "
        f"{plan.medusa} against single-task nets with its head: {said(ours.delta)}."
    )
    for name, row in rows.items():
        if name not in ("", plan.medusa):
            change = nets.mean_change(view, ours.values, row.values)
            yield f"{plan.medusa} against {name}, all tasks together: {said(change)}."


def _efficient(view: View) -> str:
    claim = published.claims()[2]
    rows = {row.source: row for row in nets.parity(view)}
    ours = rows.get(view.plan.medusa)
    others = [row for name, row in rows.items() if name not in ("", view.plan.medusa)]
    counted = [text for row in others if ours is not None for text in _costs(ours, row)]
    start = f"{claim.value:g} % more efficient, as the abstract says, not how it is counted: "
    return start + ("; ".join(counted) if counted else NOT_COMPUTED if others else NOT_PART) + "."


def _costs(ours: Parity, other: Parity) -> Iterator[str]:
    if ours.parameters and other.parameters:
        change = 100 * (ours.parameters / other.parameters - 1)
        yield (
            f"{ours.source} has {ours.parameters / 1e6:.2f} M parameters, {other.source} {other.parameters / 1e6:.2f} "
            f"M ({change:+.0f} %)"
        )
    if ours.gflops and other.gflops:
        yield f"{ours.gflops:.2f} against {other.gflops:.2f} GFLOPs ({100 * (ours.gflops / other.gflops - 1):+.0f} %)"


def _missing(results: Results) -> bool:
    return any(part.missing for part in findings.progress(results))


def _complete(results: Results) -> str:
    parts = findings.progress(results)
    there, planned = sum(part.there for part in parts), sum(part.planned for part in parts)
    return f"{there} of {planned} cells are computed{'' if there == planned else '; the tables say which are not'}."


# ---------------------------------------------------------------- for everyone: several experiments in one table


def summary(named: Mapping[str, Results | None]) -> str:
    """Return the answer on every experiment as one small table, and the values of the first one that was run.

    Args:
        named: By name, of `COLUMNS`; None for one that was not run.

    Raises:
        ConfigError: There is no such experiment.
    """
    for name in named:
        if name not in COLUMNS:
            raise ConfigError(unknown("experiment", name, COLUMNS))
    found = {name: {} if results is None else _answers(results) for name, results in named.items()}
    rows = [
        [question, *(NOT_RUN if named[name] is None else found[name].get(question, UNKNOWN) for name in named)]
        for question in QUESTIONS
    ]
    about = (
        "Mean relative change over held-out tasks, ± standard deviation over seeds; positive is better. "
        "In brackets: above noise where the 95 % interval over seeds excludes 0."
    )
    table = Sheet("", ["relative change, %", *(COLUMNS[name] for name in named)], rows, about=about)
    return "\n".join([table.markdown(0), *(key_values(results).markdown(0) for results in named.values() if results)])


QUESTIONS = (
    "Medusa's features and head over plain ones",
    "the head alone, on plain features",
    "attention alone: over a control head of equal parameters",
    "the features alone, under Medusa heads",
    "the features alone, under plain heads",
    "share of the headroom that they close, under Medusa heads",
    "share of the headroom that they close, under plain heads",
    "all tasks together, over single-task nets",
)


def _answers(results: Results) -> dict[str, str]:
    view, plan = _views(results)[0], results.plan
    plain, light, ours = (
        Pair(plan.plain, PLAIN_HEAD), Pair(plan.plain, plan.head), Pair(plan.medusa, plan.head)
    )  # fmt: skip
    compared = [(ours, plain), (light, plain), (light, Pair(plan.plain, CONTROL_HEAD)), (ours, light)]
    compared.append((Pair(plan.medusa, PLAIN_HEAD), plain))
    cells = [_between(view, of, over, _with_verdict).replace(NOT_PART, UNKNOWN) for of, over in compared]
    cells += [_closed(replace(view, under=head)) for head in (plan.head, PLAIN_HEAD)]
    rows = {row.source: row.delta for row in nets.parity(view)}
    delta = rows.get(plan.medusa)
    cells.append(UNKNOWN if delta is None else _with_verdict(delta))
    return dict(zip(QUESTIONS, cells, strict=True))


def _closed(view: View) -> str:
    """Return the share of the headroom that Medusa's features close under the view's head."""
    apart = [room.tells_apart for room in findings.headroom(view)]
    if None in apart:  # a few tasks are no answer
        return UNKNOWN
    closed = {share.source: sheet.share(share.pooled) for share in findings.shares(view)}
    return closed.get(view.plan.medusa, UNKNOWN) if any(apart) else NO_ROOM


def _with_verdict(estimate: Estimate) -> str:
    if estimate.mean is None:
        return UNKNOWN
    verdict = {"no": "noise", "yes": "above noise"}.get(estimate.verdict, estimate.verdict)
    counted = "" if estimate.whole else f", {sheet.seeds(estimate)} seeds"
    return f"{sheet.points(Estimate(estimate.by_seed))} ({verdict}{counted})"


def key_values(results: Results) -> Sheet:
    """Return the raw values behind the answer: a few rows from plain features and heads to end to end."""
    view, plan = _views(results)[0], results.plan
    pairs = [Pair(plan.plain, PLAIN_HEAD), Pair(plan.plain, CONTROL_HEAD), Pair(plan.plain, plan.head)]
    pairs.append(Pair(plan.medusa, plan.head))
    known = [pair for pair in pairs if pair in view.pairs]
    rooms = findings.headroom(view)
    rows = [[str(pair), *(sheet.raw(view.raw(pair, task)) for task in view.tasks)] for pair in known]
    rows.append([f"features of all tasks, {plan.head} head", *(sheet.raw(room.oracle) for room in rooms)])
    rows.append([f"end to end, {plan.head} head", *(sheet.raw(room.end_to_end) for room in rooms)])
    name = str(results.about.get("data", ""))
    return Sheet(
        "",
        ["", *(sheet.heading(results, task) for task in view.tasks)],
        rows,
        about=f"The values behind it, {name or 'as computed'}, {view.name}:",
        notes=[f"{UNKNOWN} not computed yet: {_complete(results)}"] if _missing(results) else [],
    )


def not_run(name: str) -> str:
    """Return the page of an experiment that was not run: what it takes, and every cell saying so.

    Raises:
        ConfigError: There is no such experiment.
    """
    if name not in COLUMNS:
        raise ConfigError(unknown("experiment", name, COLUMNS))
    heads: Sequence[str] = ("", COLUMNS[name])
    table = Sheet("The answer", heads, [[question, NOT_RUN] for question in QUESTIONS])
    tables = [table, *([sheets.beside(name, None)] if name in published.BENCHMARKS else [])]
    how = (
        f"Not run. `python -m medusa_cl.run experiment={EXPERIMENTS[name]}` runs it where the data is, and goes on "
        f"where it was stopped. The claims.json that it writes, put at benchmarks/results/claims/{name}.json, makes "
        "these tables by `python benchmarks/claims.py`.\n"
    )
    return "\n".join([f"# What features are worth: {COLUMNS[name]}\n", how, *(one.markdown() for one in tables)])
