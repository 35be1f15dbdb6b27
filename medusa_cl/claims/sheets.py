"""The tables of the answer, each from the findings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medusa_cl.claims import findings, nets, published
from medusa_cl.claims.cells import AS_IT_COMES
from medusa_cl.claims.findings import Contrast, Pair, Results, View
from medusa_cl.claims.plan import PLAIN_HEAD
from medusa_cl.claims.sheet import PLUS_MINUS, Sheet, heading, interval, points, raw, seeds, share
from medusa_cl.claims.spread import Estimate
from medusa_cl.tracking.numbers import UNKNOWN, metric_heading, number

NOT_RUN, REFERENCE = "not run", "reference"
SECTIONS: Mapping[str, str] = {
    "headroom": "headroom",
    "leave_one_out": "sources and heads, one task left out",
    "parity": "all tasks together",
    "block": "sources and heads, block split",
    "ablations": "ablations",
    "single_task": "sources of one task",
}


# ---------------------------------------------------------------- sources, heads, contrasts


def matrix(view: View) -> Sheet:
    """Every source under every head: gains, and beside them the raw values they come from."""
    plain = Pair(view.plan.plain, PLAIN_HEAD)
    heads = ["features", "head", "over plain features and head %", "over plain features, same head %"]
    rows = [
        [*pair, *(_gain(view, pair, over) for over in (plain, Pair(plain.source, pair.head))), *_raws(view, pair)]
        for pair in view.pairs
    ]
    return Sheet(
        f"{'Block split' if view.block else 'One task left out'}: {view.name}",
        [*heads, *(heading(view.results, task) for task in view.tasks)],
        rows,
        keys=2,
        about=_about_matrix(view),
        notes=missing_notes(view.results, ["block"] if view.block else ["headroom", "leave_one_out"]),
    )


def _gain(view: View, pair: Pair, over: Pair) -> str:
    if pair == over:
        return REFERENCE
    return points(findings.contrast(view, pair, over).overall) if over in view.pairs else UNKNOWN


def _raws(view: View, pair: Pair) -> list[str]:
    return [raw(view.raw(pair, task)) for task in view.tasks]


def _about_matrix(view: View) -> str:
    how = (
        f"Backbones learn {', '.join(view.plan.base)}, then are frozen; a head learns each other task."
        if view.block
        else "Backbones learn all tasks but one, then are frozen; a head learns the one left out."
    )
    over = f"Mean {PLUS_MINUS} standard deviation (n - 1) over {len(view.setting.seeds)} seeds"
    if len(view.setting.seeds) == 1:
        over = "One seed, so there is no spread"
    return (
        f"{how} Features {AS_IT_COMES}: the backbone as it comes. {over}. Gains are means over {len(view.tasks)} tasks "
        "of the relative change, positive is better."
    )


def comparisons(view: View) -> Sheet:
    """The differences that answer the question, with what can be said of each."""
    found = findings.contrasts(view)
    rows = [[c.label, points(c.overall), interval(c.overall), seeds(c.overall), c.overall.verdict] for c in found]
    return Sheet(
        f"Which differences exceed noise: {'block split, ' if view.block else ''}{view.name}",
        ["difference", "%", "95 % interval", "seeds", "exceeds noise"],
        rows,
        about=(
            "Paired by task and seed, averaged over tasks. Yes: the 95 % interval over seeds (Student's t) excludes 0. "
            f"Under 1 point is nothing in any case. Of {len(found)} differences one in 20 would exclude 0 by chance."
        ),
        notes=missing_notes(view.results, ["block"] if view.block else ["headroom", "leave_one_out"]),
    )


def by_task(view: View, chosen: Sequence[Contrast]) -> Sheet:
    """Differences task by task: both raw values and the change."""
    results = view.results
    rows = [[c.label, *(_change(view, c, task) for task in view.tasks)] for c in chosen]
    return Sheet(
        f"Task by task: {view.name}",
        ["difference", *(heading(results, task) for task in view.tasks)],
        rows,
        about="From what it stands against to what is judged, and the relative change; means over seeds.",
    )


def _change(view: View, of: Contrast, task: str) -> str:
    before, after = (view.raw(pair, task).mean for pair in (of.over, of.of))
    return f"{number(before)} to {number(after)} ({points(of.per_task[task])} %)"


# ---------------------------------------------------------------- headroom


def rooms(view: View) -> Sheet:
    """How much better features could be, task by task, under one head."""
    rows = [
        [
            heading(view.results, room.task),
            *(raw(value) for value in (room.plain, room.oracle)),
            points(room.to_oracle),
            raw(room.end_to_end),
            points(room.to_end_to_end),
            {True: "yes", False: "no", None: UNKNOWN}[room.tells_apart],
        ]
        for room in findings.headroom(view)
    ]
    return Sheet(
        f"Headroom under a {view.head} head: {'block split, ' if view.block else ''}{view.name}",
        ["task held out", "plain features", "features of all tasks", "%", "end to end", "%", "tells features apart"],
        rows,
        about=(
            f"All with a {view.head} head. Plain features that did not learn the task against plain features of "
            f"all tasks, itself among them. Under {findings.ENOUGH_HEADROOM:g} % a task cannot tell features apart."
            + (
                " So many labels are the heads'; backbones saw all, that of all tasks also those of the task."
                if view.setting.labels < 1
                else ""
            )
        ),
        notes=missing_notes(view.results, ["headroom"]),
    )


def closed(all_views: Sequence[View]) -> Sheet:
    """Which share of the headroom each source closes, in every setting."""
    rows = [
        [
            f"{view.name}{', block split' if view.block else ''}",
            view.head,
            s.source,
            share(s.pooled),
            _share_interval(s.pooled),
            seeds(s.pooled),
            share(s.everything),
            _tasks(s),
        ]
        for whole in all_views
        for view in whole.under_each_head
        for s in findings.shares(view)
    ]
    return Sheet(
        "Share of the headroom that features close",
        ["setting", "head", "features", "share", "95 % interval", "seeds", "over all tasks", "by task"],
        rows,
        keys=3,
        words=1,
        about=(
            "(source - plain) / (all tasks - plain) under the same head: the sum over tasks and seeds of the relative "
            "changes, divided by that of the headrooms, never a mean of ratios; the interval over seeds is that of a "
            f"ratio estimator. Only tasks with {findings.ENOUGH_HEADROOM:g} % of headroom count; the same seeds choose "
            "them, so beside it stands the share over all."
        ),
    )


def _share_interval(estimate: Estimate) -> str:
    bounds = estimate.interval
    return UNKNOWN if bounds is None else f"{100 * bounds[0]:+.0f} to {100 * bounds[1]:+.0f} %"


def _tasks(of: findings.Share) -> str:
    return ", ".join(f"{task} {share(estimate)}" for task, estimate in of.per_task.items()) or "none has enough"


# ---------------------------------------------------------------- parity, ablations, single tasks


def together(view: View) -> Sheet:
    """All tasks learnt together, end to end, beside single-task nets."""
    results = view.results
    rows = [
        [
            row.source or "single-task nets",
            *((points(row.delta), points(row.same_head)) if row.source else (REFERENCE, REFERENCE)),
            UNKNOWN if row.parameters is None else f"{row.parameters / 1e6:.2f}",
            UNKNOWN if row.gflops is None else f"{row.gflops:.2f}",
            *(raw(row.values[task]) for task in view.plan.tasks),
        ]
        for row in nets.parity(view)
    ]
    heads = ["learnt together", "Delta MTL %", "own head %", "params M", "GFLOPs"]
    return Sheet(
        f"All tasks together: {view.name}",
        [*heads, *(heading(results, task) for task in view.plan.tasks)],
        rows,
        about=(
            "Delta MTL: mean relative change over tasks against single-task nets with the Medusa head, end to end, "
            "same seed. Own head: against single-task nets with the same head as the row, where there are some."
        ),
        notes=missing_notes(results, ["headroom", "parity"]),
    )


def removed(view: View) -> Sheet:
    """What each part of the Medusa source is worth."""
    plan, found = view.plan, nets.ablations(view)
    tasks = (*plan.base, *plan.block)
    rows = [
        [row.source, *((points(row.base), points(row.new)) if row.source != plan.medusa else (REFERENCE, REFERENCE))]
        + [raw(row.values[task]) for task in tasks]
        for row in found
    ]
    return Sheet(
        f"Ablations: block split, {view.name}",
        ["source", "base tasks %", "new tasks %", *(heading(view.results, task) for task in tasks)],
        rows,
        about=(
            f"Against the {plan.medusa} source; base tasks end to end, new ones with a {plan.head} head on the frozen "
            "features. One seed: what of it is noise is unknown, under 1 point is nothing in any case."
        ),
        notes=missing_notes(view.results, ["block", "ablations"]),
    )


def lessons(view: View) -> Sheet:
    """What features of one task are worth to every other."""
    found, plan = nets.taught(view), view.plan
    rows = [[of, *(_lesson(to.get(task)) for task in plan.held_out)] for of, to in found.items()]
    return Sheet(
        f"Features of one task: {view.name}",
        ["learnt before", *(heading(view.results, task) for task in plan.held_out)],
        rows,
        about=(
            f"A {plan.head} head on frozen plain features of one task, and the relative change in percent against "
            "plain features of all other tasks. One seed: what of it is noise is unknown."
        ),
        notes=missing_notes(view.results, ["headroom", "single_task"]),
    )


def _lesson(found: tuple[float | None, float | None] | None) -> str:
    if found is None or found[0] is None:
        return UNKNOWN if found else ""
    value, change = found
    return number(value) + ("" if change is None else f" ({change:+.1f} %)")


# ---------------------------------------------------------------- beside what is published


def beside(benchmark: str, results: Results | None) -> Sheet:
    """Ours and what papers report, each with its backbone, its edge protocol and where it was read.

    Raises:
        ConfigError: There is no such benchmark.
    """
    theirs = published.rows(benchmark)
    tasks = published.BENCHMARKS[benchmark]
    heads = [f"{task} {metric_heading(published.METRICS[task])}" for task in tasks if task != "edges"]
    rows = [*_ours(tasks, results), *(_published(tasks, row) for row in theirs)]
    return Sheet(
        f"{published.TITLES[benchmark]}: ours and published",
        ["", "backbone", *heads, "edges edge_f % ↑", "edges odsF % ↑", "source", "edges scored by, and notes"],
        rows,
        keys=2,
        words=2,
        about=(
            f"{published.EDGES} Ours are end-to-end multitask nets, mean {PLUS_MINUS} standard deviation over seeds. "
            "Published values are other people's, with other training, resolutions and backbones; they were read where "
            "the source says."
        ),
    )


def _ours(tasks: Sequence[str], results: Results | None) -> list[list[str]]:
    """Return our rows, one for each net; "not run" in every cell where nothing was."""
    if results is None:
        names = ("single-task nets", "plain", "medusa", "mtinet")
        return [[f"ours, {name}", NOT_RUN, *[NOT_RUN] * len(tasks), UNKNOWN, "", ""] for name in names]
    backbone = str(results.about.get("backbone", UNKNOWN))
    rows = nets.parity(findings.views(results)[0])
    return [
        [f"ours, {row.source or 'single-task nets'}", backbone]
        + [raw(row.values[task]) if task in row.values else UNKNOWN for task in tasks]
        + [UNKNOWN, "this run", "edge_f"]
        for row in rows
    ]


def _published(tasks: Sequence[str], row: published.Row) -> list[str]:
    values = [_value(row, task) for task in tasks if task != "edges"]
    odsf = str(row.values["edges"].value) if "edges" in row.values else UNKNOWN
    source = f"[{row.arxiv}](https://arxiv.org/abs/{row.arxiv}) ({row.year}), {_linked(row.read_at)}"
    return [row.model, row.backbone, *values, UNKNOWN, odsf, source, "; ".join(filter(None, [row.edges, row.note]))]


def _value(row: published.Row, task: str) -> str:
    if task not in row.values:
        return UNKNOWN
    found = row.values[task]
    return str(found.value) + ("" if found.metric == published.METRICS[task]["metric"] else f" ({found.metric})")


def _linked(place: str) -> str:
    url, _, more = place.partition(" ")
    return f"[read here]({url})" + (f" {more}" if more else "")


# ---------------------------------------------------------------- what is missing, how it was run


def missing(results: Results) -> Sheet:
    """How far each section is."""
    parts = [part for part in findings.progress(results) if part.planned]
    rows = [[SECTIONS[part.section], f"{part.there} of {part.planned}", _few(part.missing, 1)] for part in parts]
    about = "A cell counts where it is first needed."
    return Sheet("What is computed", ["part", "cells", "missing"], rows, words=1, about=about)


def missing_notes(results: Results, sections: Sequence[str]) -> list[str]:
    """Say what a table's dashes are, where cells of its sections are missing."""
    parts = [part for part in findings.progress(results) if part.section in sections and part.missing]
    return [
        f"{UNKNOWN} not computed yet: {len(part.missing)} of {part.planned} cells of {SECTIONS[part.section]}: "
        f"{_few(part.missing)}."
        for part in parts
    ]


def _few(labels: Sequence[str], shown: int = 2) -> str:
    if not labels:
        return ""
    rest = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return ", ".join(sorted(labels)[:shown]) + rest


def provenance(results: Results) -> Sheet:
    """How it was run: what was given, and what the cells say of themselves."""
    cells = list(results.cells.values())
    facts = {str(key): _plain(value) for key, value in results.about.items()}
    facts |= {
        key: _plain(_distinct(cells, key)) for key in ("device", "version", "commit", "code") if _distinct(cells, key)
    }
    for name in sorted({name for cell in cells for name in cell.get("packages", {})}):
        facts[name] = _plain(
            sorted({str(cell["packages"][name]) for cell in cells if name in cell.get("packages", {})})
        )
    dates = sorted(str(cell["at"])[:10] for cell in cells if cell.get("at"))
    facts["computed"] = f"{dates[0]} to {dates[-1]}" if dates else NOT_RUN
    facts["CPU hours"] = f"{sum(float(cell.get('cpu_seconds') or 0) for cell in cells) / 3600:.2f}"
    return Sheet("How it was run", ["", "value"], [[key, value] for key, value in facts.items()], keys=2)


def _distinct(cells: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({str(cell[key]) for cell in cells if cell.get(key)})


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
