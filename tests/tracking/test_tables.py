"""Tables of a paper: numbers against numpy, what may be averaged, and text that its readers can parse."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_record import draw_nothing
from fake_summary import BASE, LEARNT, PRIMARY, REFERENCES, STREAM, fake_summary
from markdown_it import MarkdownIt

from medusa_cl import track
from medusa_cl.errors import ConfigError, MedusaError
from medusa_cl.kept import write_summary
from medusa_cl.resume import note_compared
from medusa_cl.study import Member, Outcome, Study
from medusa_cl.tracking import RunRecorder, gather, typeset
from medusa_cl.tracking import tables as paper
from medusa_cl.tracking.numbers import UNKNOWN
from medusa_cl.tracking.tables import Table, same_runs, tables
from medusa_cl.tracking.typeset import CSV_COLUMNS, MINUS, latex, markdown, tidy_csv

TASKS = (*BASE, *STREAM)
ALL = ("final", "forgetting", "transfer", "cost")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


def config(seed: int = 0, **settings: Any) -> dict[str, Any]:
    whole = {
        "seed": seed,
        "out": f"runs/{seed}",
        "head": {"name": "medusa_light", "width": 32},
        "trainer": {"max_steps": 60, "device": "cpu"},
        "scenario": {"name": "rooms_incremental", "root": f"/data/{seed}", "order": "listed", "seed": seed},
        "references": "auto",
    }
    for key, value in settings.items():
        group, _, leaf = key.partition("__")
        whole[group] = {**whole[group], leaf: value} if leaf else value  # type: ignore[dict-item]
    return whole


def of_seeds(strategy: str, *learnt: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Runs with seeds 0, 1, ...: what each learnt besides, or otherwise than, the usual."""
    return [fake_summary(strategy, seed=i, learnt={**LEARNT, **own}, **options) for i, own in enumerate(learnt)]


def only(made: Sequence[Table], name: str = "final") -> Table:
    [table] = [table for table in made if table.name == name]
    return table


def cell(table: Table, row: str, column: str) -> Any:
    [line] = [line for line in table.rows if line.label == row]
    return line.cells[[c.heading for c in table.columns if c.shown].index(column)]


# ---------------------------------------------------------------- numbers


def test_mean_and_deviation_are_those_of_numpy() -> None:
    values = {"semseg": [41.5, 47.25, 44.0], "depth": [0.5, 0.43, 0.47], "edges": [70.0, 77.0, 71.0]}
    runs = of_seeds("medusa", *({task: row[i] for task, row in values.items()} for i in range(3)))
    table = only(tables(runs))
    for task, row in values.items():
        found = cell(table, "medusa", task)
        assert found.mean == pytest.approx(np.mean(row), rel=1e-12)
        assert found.deviation == pytest.approx(np.std(row, ddof=1), rel=1e-12)
        assert found.n == 3
    assert "over 3 seeds (0, 1, 2)" in " ".join(table.caption)


def test_values_after_the_stream_and_just_after_learning() -> None:
    """Each later task takes 2 % away: three from the base tasks, one from edges, none from the last one."""
    made = tables(of_seeds("finetune", {}, lost=0.02), select=ALL)
    assert cell(only(made), "finetune", "semseg").mean == pytest.approx(47.3 * 0.94)
    assert cell(only(made), "finetune", "depth").mean == pytest.approx(0.44 * 1.06)
    assert cell(only(made, "transfer"), "finetune", "normals").mean == pytest.approx(14.31)
    forgetting = only(made, "forgetting")
    assert [c.heading for c in forgetting.columns if c.shown] == ["semseg", "depth", "normals", "edges", "mean"]
    lost = [entry.mean for entry, c in zip(forgetting.rows[0].cells, forgetting.columns, strict=True) if c.shown]
    assert lost == pytest.approx([6, 6, 4, 2, 4.5])
    assert cell(only(made), "finetune", "forgetting").mean == pytest.approx(4.5)


def test_gains_against_a_runs_own_references() -> None:
    """normals (20.57 - 14.31) / 20.57, edges (77.7 - 75.1) / 75.1, reshading (0.143 - 0.135) / 0.143."""
    table = only(tables([fake_summary()]), "transfer")
    gains = [100 * 6.26 / 20.57, 100 * 2.6 / 75.1, 100 * 0.008 / 0.143]
    assert cell(table, "medusa", "over plain").mean == pytest.approx(np.mean(gains))
    assert "over single" not in [column.heading for column in table.columns], "no run has such a reference"
    head = [100 * 6.17 / 20.57, 100 * 2.8 / 75.1, 100 * 0.009 / 0.143]
    assert cell(table, "medusa", "head gain").mean == pytest.approx(np.mean(head))
    thawed = only(tables([fake_summary(frozen=False)]), "transfer")
    assert cell(thawed, "medusa", "over plain").mean == pytest.approx(np.mean(gains)), "as for every strategy"
    assert "over control" not in [column.heading for column in thawed.columns if column.shown]


def test_runs_of_a_table_are_references_for_those_of_their_seed() -> None:
    """Seed 0: normals 25 % and edges 10 % better than single nets; seed 1: normals 50 % and edges -20 %."""
    ours = of_seeds("medusa", {"normals": 15.0, "edges": 77.0}, {"normals": 10.0, "edges": 56.0})
    single = of_seeds("single_task", {"normals": 20.0, "edges": 70.0}, {"normals": 20.0, "edges": 70.0})
    made = tables([*single, *ours])
    gained = cell(only(made, "transfer"), "medusa", "over single")
    assert gained.mean == pytest.approx((35 / 3 + 10) / 2)
    assert gained.deviation == pytest.approx(np.std([35 / 3, 10], ddof=1))
    delta = cell(only(made), "medusa", "Δ MTL")
    assert delta.mean == pytest.approx((35 / 5 + 30 / 5) / 2), "the other tasks are equal"
    alone = only(tables([single[0], *ours]))
    assert cell(alone, "medusa", "Δ MTL").mean is None
    assert cell(alone, "medusa", "Δ MTL").why == (
        "seed 1: there is not one single_task run of its seed alone, or one has no value"
    )


def test_which_runs_are_references_is_said() -> None:
    ours, single = of_seeds("medusa", {}), of_seeds("single_task", {})
    caption = " ".join(only(tables([*ours, *single]), "transfer").caption)
    assert "trained end to end, those of the same seed in row single_task." in caption
    assert "frozen plain features, as each run's references= learnt them." in caption
    named = tables([*ours, *single], [config(), config()], ["ours", "alone"])
    assert "over single-task nets, those of the same seed in row alone." in " ".join(only(named).caption)


def test_two_rows_that_may_be_the_reference_are_said() -> None:
    runs = [*of_seeds("medusa", {}), *of_seeds("single_task", {}), *of_seeds("single_task", {})]
    made = tables(runs, [config(), config(trainer__max_steps=100), config(trainer__max_steps=200)], select=ALL)
    for name in ("final", "transfer"):
        [note] = only(made, name).notes
        assert note.startswith(
            "single_task stands in 2 rows (single_task trainer.max_steps=100; single_task trainer.max_steps=200)"
        )
    assert "over single" not in [column.heading for column in only(made, "transfer").columns]
    assert only(made, "cost").notes == ()
    seeds = [*of_seeds("medusa", {}, {}), *of_seeds("single_task", {}, {})]
    assert only(tables(seeds)).notes == (), "one for each seed"


def test_a_value_that_one_run_lacks_has_no_mean_but_a_reason() -> None:
    runs = of_seeds("medusa", {}, {"semseg": None}, {})
    found = cell(only(tables(runs)), "medusa", "semseg")
    assert (found.mean, found.deviation, found.n) == (None, None, 3)
    assert found.why == "seed 1: no valid pixel was evaluated, or the value is not finite"
    assert cell(only(tables(runs)), "medusa", "depth").mean == pytest.approx(0.44)
    text = markdown(tables(runs))
    assert f"{UNKNOWN}<sup>a</sup>" in text and "<sup>a</sup> seed 1: no valid pixel" in text
    rows = [row for row in csv.DictReader(io.StringIO(tidy_csv(tables(runs)))) if row["task"] == "semseg"]
    assert [(row["mean"], row["std"], row["n"]) for row in rows] == [("", "", "3")]
    assert not re.search(r"\bnan\b", (text + latex(tables(runs)) + tidy_csv(tables(runs))).lower())


def test_cost() -> None:
    table = only(tables([fake_summary()], select=["cost"]), "cost")
    found = [entry.mean for entry in table.rows[0].cells]
    assert found == pytest.approx([5_123_456, 981_234, 4.2, 155.7, (21.2 + 20.9 + 21.3) / 3])
    text = markdown([table])
    assert "| 5.12 | 0.981 | 4.20 | 156 | 21 |" in text
    later = fake_summary("finetune")
    del later["cost"]["train_seconds"]["base"]
    assert "63<sup>a</sup>" in markdown(tables([later], select=["cost"]))


# ---------------------------------------------------------------- rows


def test_what_differs_in_its_seed_alone_is_one_row() -> None:
    runs = of_seeds("medusa", {}, {}, {})
    configs = [config(0), config(1, trainer__device="cuda"), config(2, references="none")]
    assert [row.seeds for row in only(tables(runs, configs)).rows] == [(0, 1, 2)]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}, {"trainer__max_steps": 100}], ["medusa trainer.max_steps=60", "medusa trainer.max_steps=100"]),
        ([{}, {"head__width": 8, "trainer__max_steps": 9}], ["medusa head.width=32", "medusa head.width=8"]),
        (
            [{}, {"head__width": 8}, {"head__width": 8, "trainer__max_steps": 9}],
            ["medusa head.width=32", "medusa head.width=8 trainer.max_steps=60",
             "medusa head.width=8 trainer.max_steps=9"],
        ),
    ],
)  # fmt: skip
def test_rows_are_told_apart_by_the_fewest_settings(settings: list[dict[str, Any]], labels: list[str]) -> None:
    runs = [fake_summary() for _ in settings]
    configs = [config(**own) for own in settings]
    table = only(tables([*runs, fake_summary("finetune")], [*configs, config()]))
    assert [row.label for row in table.rows] == [*labels, "finetune"]


def test_a_key_that_an_earlier_version_did_not_have_is_unset() -> None:
    runs = [*of_seeds("medusa", {}, {}), fake_summary(seed=2)]
    configs = [config(0), config(1, trainer__clip=None), config(2, trainer__clip=10.0)]
    labels = [(row.label, row.seeds) for row in only(tables(runs, configs)).rows]
    assert labels == [("medusa trainer.clip=null", (0, 1)), ("medusa trainer.clip=10.0", (2,))]


def test_heads_and_backbones_tell_apart_before_their_settings() -> None:
    plain = {**fake_summary(), "head": "plain"}
    configs = [config(), config(head={"name": "plain", "width": 8})]
    made = tables([fake_summary(), plain], configs)
    assert [row.label for row in only(made).rows] == ["medusa head=medusa_light", "medusa head=plain"]
    assert [row.label for row in only(tables([fake_summary(), plain], configs, by=["head"])).rows] == [
        "medusa_light", "plain",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r'"heads".*Did you mean "head"'):
        tables([plain], by=["heads"])


def test_names_of_a_study_are_kept_where_they_tell_rows_apart() -> None:
    runs = [fake_summary(), fake_summary("finetune")]
    assert [row.label for row in only(tables(runs, names=["ours", "theirs"])).rows] == ["ours", "theirs"]
    assert [row.label for row in only(tables(runs, names=["ours", "ours"])).rows] == ["medusa", "finetune"]
    assert [row.label for row in only(tables(runs, names=["ours", ""])).rows] == ["medusa", "finetune"]


def begun(run: dict[str, Any], by: str | None) -> dict[str, Any]:
    return {**run, "provenance": {"begun": by}}


def test_what_runs_went_on_from_tells_rows_apart() -> None:
    """Seeds 0 and 1 learnt all by their settings (one from a base kept); 2 and 3 went on from another base."""
    runs = [begun(fake_summary(seed=seed), None if seed < 2 else "ab" * 32) for seed in range(4)]
    configs = [config(0, base="auto"), config(1, base="/x"), config(2, base="/runs/a"), config(3, base="/runs/b")]
    assert [row.seeds for row in only(tables(runs, configs)).rows] == [(0, 1), (2, 3)]
    assert only(tables(runs, configs)).rows[0].label == "medusa begun=null"
    twice = [begun(fake_summary(), None), begun(fake_summary(), "ab" * 32)]
    assert same_runs(twice, [config(), config(extend="/runs/a")]) == {}


def test_what_an_older_run_went_on_from_is_not_guessed() -> None:
    runs = [fake_summary(seed=seed, learnt={**LEARNT, "semseg": seed}) for seed in range(4)]
    configs = [config(0), config(1, base="auto"), config(2, extend="/runs/a"), config(3, base="/runs/a")]
    assert [row.seeds for row in only(tables(runs, configs)).rows] == [(0, 1), (2,), (3,)]
    assert same_runs([runs[2], runs[2]], [configs[2]] * 2) == {0: 1}, "a copy is no other run"


def test_the_same_seed_twice_counts_once() -> None:
    runs = [fake_summary(learnt={**LEARNT, "semseg": value}) for value in (10.0, 20.0)]
    runs += [fake_summary(seed=1, learnt={**LEARNT, "semseg": 40.0})]
    configs = [config(), config(), config(1)]
    assert same_runs(runs, configs) == {0: 1}
    assert same_runs(runs, configs, [20, 10, 30]) == {1: 0}, "the one that was made last counts"
    found = cell(only(tables(runs, configs)), "medusa", "semseg")
    assert (found.mean, found.n) == (30.0, 2)
    assert same_runs([runs[0], *runs], [config(), *configs]) == {0: 2, 1: 2}


def test_orders_of_a_seed_are_averaged_before_seeds_are() -> None:
    values = {(0, 1): 40.0, (0, 2): 44.0, (1, 1): 50.0, (1, 2): 60.0}
    runs, configs = [], []
    for (seed, order), value in values.items():
        run = fake_summary(seed=seed, learnt={**LEARNT, "semseg": value})
        runs.append({**run, "stream": list(STREAM if order == 1 else STREAM[::-1])})
        configs.append(config(seed, scenario__order="random", scenario__seed=order))
    found = cell(only(tables(runs, configs)), "medusa", "semseg")
    assert (found.mean, found.n) == (48.5, 2)
    assert found.deviation == pytest.approx(np.std([42, 55], ddof=1))


def other(what: str) -> dict[str, Any]:
    run = fake_summary("finetune")
    if what == "task":
        run["stream"].remove("edges")
        del run["primary"]["edges"], run["matrix"]["values"]["edges"]
    elif what == "metric":
        run["primary"]["edges"] = {**run["primary"]["edges"], "metric": "ods_f"}
    elif what == "scenario":
        run["scenario"] = "nyud_incremental"
    else:
        run["provenance"] = {"data_hash": {"test": "other"}}
    return run


@pytest.mark.parametrize("what", ["task", "metric", "scenario", "images"])
def test_what_was_not_measured_alike_stands_in_tables_of_its_own(what: str) -> None:
    made = tables([fake_summary(), other(what)], [config(), config()], select=["final"])
    assert [[row.label for row in table.rows] for table in made] == [["medusa"], ["finetune"]]
    assert len({table.key for table in made}) == 2
    if what == "task":
        assert "edges" not in [column.heading for column in made[1].columns]


def test_a_table_that_nobody_has_anything_for_is_left_out() -> None:
    joint = fake_summary("joint")
    joint |= {"base": list(TASKS), "stream": [], "forgetting": {"mean": None}, "forgetting_percent": {"mean": None}}
    assert [table.name for table in tables([joint], select=ALL)] == ["final", "cost"]
    both = only(tables([joint, fake_summary()]))
    assert cell(both, "joint", "forgetting").why == "there is one experience only: nothing could be forgotten"
    with pytest.raises(ConfigError, match=r'Unknown table "speed".*cost, final, forgetting, transfer'):
        tables([joint], select=["speed"])
    with pytest.raises(ConfigError, match="at least one finished run"):
        tables([])
    assert [table.name for table in tables([joint], select=["cost", "final", "cost"])] == ["cost", "final"]


# ---------------------------------------------------------------- what is best


def best(made: Sequence[Table], column: str) -> list[str]:
    table = only(made)
    return [row.label for row in table.rows if cell(table, row.label, column).best]


@pytest.mark.parametrize(
    ("ours", "theirs", "bold"),
    [
        ((0.40, 0.42), (0.60, 0.62), ["medusa"]),  # metres: less is better
        ((0.40, 0.42), (0.42, 0.44), ["medusa"]),  # 0.02 is more than 0.0141
        ((0.40, 0.42), (0.415, 0.425), []),  # 0.01 is less than 0.0141
        ((0.40, 0.42), (0.30, 0.60), []),  # the other one's spread counts too
        ((0.50, 0.52), (0.40, 0.42), ["finetune"]),
    ],
)
def test_the_best_is_marked_where_it_leads_by_more_than_the_spread(
    ours: Sequence[float], theirs: Sequence[float], bold: list[str]
) -> None:
    runs = of_seeds("medusa", *({"depth": value} for value in ours))
    runs += of_seeds("finetune", *({"depth": value} for value in theirs))
    assert best(tables(runs), "depth") == bold
    assert best(tables(runs), "semseg") == [], "equal in all"


def test_equals_lead_together_and_one_seed_leads_nobody() -> None:
    one, two = {"semseg": 50.0}, {"semseg": 51.0}
    runs = [*of_seeds("medusa", one, two), *of_seeds("joint", one, two), *of_seeds("finetune", {}, {})]
    assert best(tables(runs), "semseg") == ["medusa", "joint"]
    assert best(tables(runs[:2]), "semseg") == [], "nobody to lead"
    single = tables([runs[0], runs[4]])
    assert best(single, "semseg") == [] and "no spread" in " ".join(only(single).caption)
    assert "±" not in markdown(single).split("\n\n")[1]
    assert "**" not in markdown(single) and "Bold" not in markdown(single)


def test_unlike_numbers_of_seeds_are_shown() -> None:
    table = only(tables([*of_seeds("medusa", {}, {}), *of_seeds("finetune", {})]))
    assert table.counted
    cells = rendered(markdown([table]))
    assert [row[:2] for row in cells] == [["", "seeds"], ["medusa", "0, 1"], ["finetune", "0"]]


# ---------------------------------------------------------------- text


NASTY = "_a_ b|c*d%e&f#g$h{i}j\\k~l^m<n>o`p[q]"


def nasty() -> list[Table]:
    first, second = of_seeds("medusa", {"semseg": 50.0}, {"semseg": 51.0}), of_seeds("finetune", {}, {"edges": None})
    for run in (*first, *second):
        run["backbone"] = NASTY
        run["labels"] = {"normals": f"derived from depth by {NASTY}"}
    return tables([*first, *second], names=[NASTY, NASTY, "x", "x"], select=ALL, command=f"python {NASTY}")


def rendered(text: str) -> list[list[str]]:
    """The cells of the first table as Markdown renders it."""
    html = MarkdownIt("commonmark").enable("table").render(text)
    table = html.partition("<table>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[plain(entry) for entry in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def plain(html: str) -> str:
    text = html.replace("<br>", " ")
    text = re.sub(r"<sup>\w+</sup>|</?strong>", "", text)
    assert "<" not in text, text
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, letter)
    return text


def test_markdown_renders_as_what_it_says() -> None:
    for table in nasty():
        cells = rendered(markdown([table]))
        shown = [column for column in table.columns if column.shown]
        assert [len(row) for row in cells] == [1 + len(shown)] * 3
        assert [row[0] for row in cells] == ["", NASTY, "x"]
        assert cells[0][1:] == [f"{column.heading} {column.below}".strip() for column in shown]
    final = rendered(markdown([only(nasty())]))
    assert final[0][3] == "normals* mean ° ↓"
    assert final[1][1] == "50.50 ± 0.71" and "**50.50 ± 0.71**" in markdown([only(nasty())])
    assert [row[4] for row in final[1:]] == ["77.70 ± 0.00", UNKNOWN]


def test_a_number_of_digits_can_be_asked_for() -> None:
    made = tables(of_seeds("medusa", {"semseg": 50.0}, {"semseg": 51.0}))
    assert rendered(markdown(made, 4))[1][1] == "50.5000 ± 0.7071"
    assert rendered(markdown(made, 0))[1][1] == "50 ± 1"
    assert r"50.5 $\pm$ 0.7" in latex(made, 1)


def test_no_minus_stands_before_zero() -> None:
    summary = fake_summary("finetune", lost=-1e-6)
    assert rendered(markdown(tables([summary])))[1][-1] == "0.0"
    worse = rendered(markdown(tables([fake_summary("finetune", lost=-0.02)])))
    assert worse[1][-1] == f"{MINUS}4.5"


def check_latex(text: str) -> list[list[list[str]]]:
    """Whether LaTeX would take this: balanced, escaped, and as many cells as columns. Returns the cells by table."""
    environments: list[str] = []
    for what, name in re.findall(r"(?<!\\)\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert environments == []
    depth, in_math = 0, False
    bare = re.sub(r"\\[\\{}$&#%_]", "", text)  # what is escaped, and ends of lines
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        in_math ^= letter == "$"
        assert depth >= 0
        assert letter.isascii(), letter
        assert letter not in "~#%<>|`\"'", letter
        assert letter not in "^_" or in_math, letter
    assert (depth, in_math) == (0, False)
    return [_rows(body, len(columns)) for columns, body in _TABULAR.findall(text)]


_TABULAR = re.compile(r"\\begin\{tabular\}\{(l[lr]*)\}\n(.*?)\\end\{tabular\}", re.DOTALL)


def _rows(body: str, columns: int) -> list[list[str]]:
    assert [line for line in body.splitlines() if not line.endswith(r"\\")] == [
        r"\toprule", r"\midrule", r"\bottomrule",
    ]  # fmt: skip
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    rows = [[entry.strip() for entry in re.split(r"(?<!\\)&", line)] for line in lines]
    assert {len(row) for row in rows} == {columns}
    return rows


def test_latex_is_whole() -> None:
    made = nasty()
    text = latex(made)
    cells = check_latex(text)
    assert len(cells) == len(made) == text.count(r"\caption{") == 4
    assert re.findall(r"\\label\{(.*?)\}", text) == [f"tab:rooms-incremental-{name}" for name in ALL]
    final = cells[0]
    assert final[0][1:4] == ["semseg", "depth", "normals*"]
    assert final[1][1:3] == [r"miou \% $\uparrow$", r"rmse m $\downarrow$"]
    assert final[2][1] == r"\textbf{50.50 $\pm$ 0.71}" and final[3][0] == "x"
    assert final[3][4] == "--$^{a}$" and "$^{a}$ seed 1: no valid pixel" in text


def test_the_caption_says_what_stands_there() -> None:
    run = fake_summary()
    run["provenance"] = {"git": "abc123"}
    caption = " ".join(only(tables([run], command="python -m medusa_cl.track table runs=x")).caption)
    for part in ("rooms_incremental", "tf_efficientnet_lite0", "medusa_light", "seed 0", "0.1.0", "abc123"):
        assert part in caption
    assert "runs=x" in latex(tables([run], command="python -m medusa_cl.track table runs=x"))
    assert "derived from depth" in " ".join(nasty()[0].notes)


def test_csv_is_read_back_with_every_digit() -> None:
    values = [47.123456789012345, 44.3, 41.1]
    made = tables(of_seeds("medusa", *({"semseg": value} for value in values)), names=['a "b", c'] * 3, select=ALL)
    text = tidy_csv(made)
    assert text.count("\r\n") == text.count("\n") and text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS and all(None not in row.values() for row in rows)
    assert {row["row"] for row in rows} == {'a "b", c'}
    frame = pd.read_csv(io.StringIO(text), float_precision="round_trip")
    [entry] = frame[(frame.table == "final") & (frame.task == "semseg")].to_dict("records")
    assert (entry["mean"], entry["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-15)
    assert (entry["n"], entry["unit"], entry["better"], entry["seeds"]) == (3, "%", "higher", "0 1 2")
    normals = frame[(frame.measure == "gain") & (frame.task == "normals")]
    assert normals["mean"].item() == pytest.approx(100 * 6.26 / 20.57)
    raw = frame[(frame.measure == "forgetting") & (frame.task == "depth")]
    assert (raw.unit.item(), raw.better.item()) == ("m", "lower")
    assert not frame.duplicated(["table", "row", "task", "measure"]).any()


# ---------------------------------------------------------------- the command


def written(folder: Path, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
    """A finished run, written as runs are."""
    recorder = RunRecorder(folder)
    recorder.start(settings, {"strategy": summary["strategy"]})
    recorder.summary(summary, "after\n")
    recorder.finish()
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two strategies of two seeds under runs/rooms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
    for strategy in ("medusa", "finetune"):
        for seed, run in enumerate(of_seeds(strategy, {"semseg": 40.0}, {"semseg": 42.0})):
            written(Path("runs/rooms") / f"{strategy}-s{seed}", run, config(seed))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[list[str]], str]:
    capsys.readouterr()
    track.main(["table", *arguments])
    shown = capsys.readouterr()
    return rendered(shown.out), shown.err


@pytest.mark.parametrize(
    ("runs", "seeds"),
    [
        ("runs/rooms", {"finetune": 2, "medusa": 2}),
        ("runs/rooms/*", {"finetune": 2, "medusa": 2}),
        ("runs/*/medusa-s[01]", {"medusa": 2}),
        ("[runs/rooms/medusa-s0,runs/rooms/finetune-s1,runs/../runs/rooms/medusa-s0]", {"medusa": 1, "finetune": 1}),
        ("runs/rooms/medusa-s1", {"medusa": 1}),
        ("runs/*", {"finetune": 2, "medusa": 2}),
        ("run?", {"finetune": 2, "medusa": 2}),
        ("runs", {"finetune": 2, "medusa": 2}),
        (".", {"finetune": 2, "medusa": 2}),
    ],
)
def test_runs_are_found(home: Path, capsys: pytest.CaptureFixture[str], runs: str, seeds: dict[str, int]) -> None:
    for other in ("runs/mlflow.db", "runs/.cache/summary.json", "runs/elsewhere/notes/x.txt"):
        Path(other).parent.mkdir(parents=True, exist_ok=True)
        Path(other).touch()
    track.main(["table", f"runs={runs}", "format=csv"])
    shown = capsys.readouterr()
    found = {row["row"]: int(row["n"]) for row in csv.DictReader(io.StringIO(shown.out))}
    assert list(found.items()) == list(seeds.items()) and shown.err == ""


def test_the_last_run_and_an_id_of_mlflow(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("runs/rooms/medusa-s1")
    (place / "model").mkdir()
    (place / "model" / "model.json").write_text("{}")
    note = json.loads((place / "tracking.json").read_text())
    (place / "tracking.json").write_text(json.dumps({**note, "tracker": {"run_id": "ab" * 16}}))
    for name, label in (("ab" * 16, "medusa"), ("last", "finetune")):
        cells, _ = printed(capsys, f"runs={name}")
        assert [row[0] for row in cells] == ["", label]
    with pytest.raises(ConfigError, match="found no"):
        track.main(["table", f"runs={'cd' * 16}"])


def test_what_is_unfinished_or_damaged_is_named_and_left_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/rooms/medusa-s1/summary.json").unlink()
    damaged = Path("runs/rooms/finetune-s0/summary.json")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    cells, said = printed(capsys, "runs=runs/rooms")
    assert [row[0] for row in cells] == ["", "finetune", "medusa"]
    assert "runs/rooms/medusa-s1 is not finished" in said
    assert "runs/rooms/finetune-s0 is left out" in said and "damaged" in said
    early = fake_summary("frozen_plain")
    del early["primary"], early["relative"]
    (Path("runs/rooms/early")).mkdir()
    write_summary(Path("runs/rooms/early"), json.dumps(early))
    (Path("runs/rooms/early/tracking.json")).write_text(json.dumps({"config": {}}))
    cells, said = printed(capsys, "runs=runs/rooms")
    assert [row[0] for row in cells] == ["", "finetune", "medusa"]
    assert "runs/rooms/early is left out: its summary.json is of another version, without primary, relative" in said
    with pytest.raises(ConfigError, match="no finished run"):
        track.main(["table", "runs=runs/rooms/medusa-s1"])


@pytest.mark.parametrize("runs", ["nowhere", "nowhere/*", "empty"])
def test_what_leads_nowhere_is_refused(home: Path, runs: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=f"runs=.*{re.escape(runs)}|{runs} is none"):
        track.main(["table", f"runs={runs}"])


def test_an_older_run_made_by_compare_is_one_of_its_configuration(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It began with the base of the run beside it; another one that was given a base has a row of its own."""
    first = Path("runs/rooms/medusa-s0").resolve()
    for seed in (2, 3):
        run = written(Path(f"runs/rooms/finetune-s{seed}"), fake_summary("finetune", seed=seed), config(seed))
        note = json.loads((run / "tracking.json").read_text())
        note["config"]["base"] = str(first)
        (run / "tracking.json").write_text(json.dumps(note))
    note_compared(first, "strategy=finetune", Path("runs/rooms/finetune-s2"))
    track.main(["table", "runs=runs/rooms/finetune-*", "format=csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(dict.fromkeys(row["seeds"] for row in rows)) == ["0 1 2", "3"]


def test_where_runs_are_is_said_to_who_found_none(home: Path) -> None:
    Path("empty/inside").mkdir(parents=True)
    for runs in ("empty", "empty/*", "nowhere/*"):
        with pytest.raises(ConfigError, match=r"There are some in runs=runs/rooms\."):
            track.main(["table", f"runs={runs}"])
    shutil.rmtree("runs")
    with pytest.raises(ConfigError, match="There is none under runs/ yet"):
        track.main(["table", "runs=empty"])


def test_of_equal_runs_the_last_one_made_counts_whatever_its_name(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name medusa-s0-10 comes before medusa-s0-9, but it was made after it."""
    for number, value in ((9, 10.0), (10, 20.0)):
        place = Path(f"runs/rooms/medusa-s0-{number}")
        written(place, fake_summary(learnt={**LEARNT, "semseg": value}), config())
        os.utime(place / "summary.json", (number, number))
    cells, said = printed(capsys, "runs=runs/rooms/medusa-s0-*")
    assert cells[1][:2] == ["medusa", "20.00"]
    assert said == (
        "runs/rooms/medusa-s0-9 is left out: runs/rooms/medusa-s0-10, made later, has the same configuration and "
        "seed.\n"
    )


def test_a_study_is_a_table_with_its_members_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As mode=study writes it; one run was computed before, elsewhere, and one is gone."""
    folder = Path("runs/rooms/study-1")
    planned = [Member(name, (), seed) for seed in (0, 1) for name in ("ours", "finetune")]
    study = Study([*planned, Member("joint", (), 0)])
    for member in planned:
        strategy = "medusa" if member.name == "ours" else "finetune"
        there = folder / member.label
        if member.label != "finetune-s0":
            there.parent.mkdir(exist_ok=True)
            shutil.copytree(f"runs/rooms/{strategy}-s{member.seed}", there)
        place = "runs/rooms/finetune-s0" if member.label == "finetune-s0" else str(there)
        study.outcomes.append(Outcome(member, fake_summary(strategy, seed=member.seed), place))
    (folder / "study.json").write_text(json.dumps(study.report()))
    shutil.rmtree(folder / "ours-s1")
    cells, said = printed(capsys, f"runs={folder}")
    assert [row[:2] for row in cells] == [["", "seeds"], ["ours", "0"], ["finetune", "0, 1"]]
    assert "a run of ours is gone" in said and "joint-s0 is not finished" in said
    (folder / "study.json").write_text("{")
    with pytest.raises(ConfigError, match=r"study\.json is damaged"):
        track.main(["table", f"runs={folder}"])


def test_a_file_is_written_whole_and_stdout_is_the_table_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["runs=runs/rooms", "tables=[final,cost]", "format=latex", "digits=2"]
    track.main(["table", *arguments])
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith(r"\begin{table}") and shown.out.endswith("\\end{table}\n")
    check_latex(shown.out)
    track.main(["table", *arguments, "out=paper/table.tex"])
    again = capsys.readouterr()
    assert again.out == "" and again.err == "4 runs: paper/table.tex\n"
    assert Path("paper/table.tex").read_text() == shown.out
    assert [path.name for path in Path("paper").iterdir()] == ["table.tex"]
    with pytest.raises(ConfigError):
        track.main(["table", "runs=runs/rooms", "tables=speed", "out=paper/none.tex"])
    assert not Path("paper/none.tex").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("format=late", 'Unknown format "late". Did you mean "latex"'),
        ("tables=final,cst", 'Unknown table "cst". Did you mean "cost"'),
        ("by=stratgy", 'Unknown key to name rows by "stratgy". Did you mean "strategy"'),
        ("by=strategy,traner.max_steps", 'Unknown key to name rows by "traner.max_steps"'),
        ("by=seed", 'Unknown key to name rows by "seed"'),
    ],
)
def test_wrong_words_are_refused_before_a_run_is_read(monkeypatch: pytest.MonkeyPatch, option: str, said: str) -> None:
    monkeypatch.setattr(gather, "gather", lambda *arguments: pytest.fail("runs were read"))
    with pytest.raises(ConfigError, match=re.escape(said)):
        track.main(["table", "runs=runs", option])


def test_a_table_asked_for_twice_is_printed_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track.main(["table", "runs=runs", "tables=final,final"])
    assert capsys.readouterr().out.count("Test results after") == 1


def test_the_help_names_what_there_is() -> None:
    assert tuple(typeset.FORMATS) == track.FORMATS
    assert tuple(paper.TITLES) == track.TABLES and paper.MAIN == track.MAIN


def test_nothing_slow_is_loaded(home: Path) -> None:
    code = (
        "import sys; from medusa_cl import track; track.main(['table', 'runs=runs/rooms', 'tables=final']); "
        "print([n for n in ('torch', 'mlflow', 'avalanche', 'numpy', 'PIL', 'rich', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stderr == ""


def test_help_and_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, (usage, _) in track.VERBS.items():
        track.main([verb, "--help"])
        assert capsys.readouterr().out == f"{usage.help()}\n"
        assert usage.examples
        for example in usage.examples:
            usage.parse(shlex.split(example.partition(" > ")[0], comments=True))
    for wrong in (["tables"], ["table"], ["table", "run=x"]):
        with pytest.raises(ConfigError):
            track.main(wrong)
    with pytest.raises(MedusaError, match="decimals"):
        track.main(["table", "runs=x", "digits=-1"])


def test_commands_of_the_page_about_tables(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^python -m medusa_cl\.track table (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 4
    shutil.move("runs/rooms", "runs/rooms_incremental")
    folder = Path("runs/rooms_incremental/study-1a2b3c4d")
    folder.mkdir()
    study = Study([Member("medusa", (), 0)])
    study.outcomes.append(Outcome(study.planned[0], fake_summary(), "runs/rooms_incremental/medusa-s0"))
    (folder / "study.json").write_text(json.dumps(study.report()))
    for line in lines:
        track.main(["table", *shlex.split(line.partition(" > ")[0], comments=True)])
    assert "medusa" in capsys.readouterr().out


def test_the_example_of_the_page_about_tables() -> None:
    [script] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"summaries": [fake_summary(), fake_summary("finetune")]}
    exec(compile(script, str(PAGE), "exec"), names)
    assert names["text"].startswith(r"\begin{table}")


def test_primary_metrics_are_those_of_the_page() -> None:
    """The page's example of a table is one that these runs make."""
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"{task}<br>" in text for task in PRIMARY) and set(REFERENCES) <= set(text.split("`"))
