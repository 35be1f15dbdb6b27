"""The report: its tables hold the numbers of the findings, its sentences follow from them, its pages are current."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from claims_results import PLAN, SETTING, SPLITS, TASKS, drawn, drawn_results, results
from medusa_cl.claims import findings, nets, published, report, sheets
from medusa_cl.claims.cells import Cell, Pretraining, Probe
from medusa_cl.claims.findings import Pair
from medusa_cl.claims.record import Results
from medusa_cl.claims.sheet import Sheet, interval, points, raw, share
from medusa_cl.claims.spread import Estimate, mean_of_all
from medusa_cl.errors import ConfigError
from medusa_cl.results import mtl_delta
from medusa_cl.tracking.numbers import UNKNOWN

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims_pages", ROOT / "benchmarks" / "claims.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load()


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of each table of a page below its heading, the first one being its heads."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| "):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {title: [rows[0], *rows[2:]] for title, rows in found.items()}


def the_head_is_all(cell: Cell, task: str, split: str) -> float:
    """The light head gains 10 % over the plain one, seed by seed a little more or less; features nothing."""
    seed = cell.backbone.seed if isinstance(cell, Probe) else cell.seed
    gain = 10.0 + (seed - 1) if isinstance(cell, Probe) and cell.head == "medusa_light" else 0.0
    better = {"semseg": 1, "edges": 1, "depth": -1, "normals": -1}[task]
    return 40.0 * (1 + better * gain / 100)


# ---- numbers


@pytest.mark.parametrize(
    ("estimate", "written"),
    [
        (Estimate({}, (0, 1)), UNKNOWN),
        (Estimate({0: 1.25}, (0,)), "+1.2"),
        (Estimate({0: -0.04}, (0,)), "+0.0"),
        (Estimate({0: 1.0, 1: 3.0}, (0, 1)), "+2.0 ± 1.4"),
        (Estimate({0: 1.0, 2: 3.0}, (0, 1, 2)), "+2.0 ± 1.4 (2 of 3)"),
    ],
)
def test_percentages_over_seeds(estimate: Estimate, written: str) -> None:
    assert points(estimate) == written


def test_metrics_shares_and_intervals_over_seeds() -> None:
    assert raw(Estimate({0: 0.5, 1: 0.6}, (0, 1))) == "0.550 ± 0.071"
    assert raw(Estimate({0: 18.0}, (0,))) == "18.00"
    assert share(Estimate({0: 0.25, 1: 0.5}, (0, 1))) == "+38 % ± 18 %"
    assert interval(Estimate({0: 1.0, 1: 2.0}, (0, 1))) == UNKNOWN
    # t(0.975, 2) = 4.303, standard error 1/sqrt(3)
    assert interval(Estimate({0: 1.0, 1: 2.0, 2: 3.0}, (0, 1, 2))) == "-0.5 to +4.5"


def test_a_sheet_is_a_table_of_markdown() -> None:
    sheet = Sheet("Name", ["", "a %", "why"], [["x|y", "1", "words"]], words=1, about="About.", notes=["One.", "Two."])
    assert sheet.markdown() == (
        "## Name\n\nAbout.\n\n|  | a % | why |\n| --- | ---: | --- |\n| x\\|y | 1 | words |\n\nOne.  \nTwo.\n"
    )


# ---- tables


def test_the_first_table_crosses_sources_and_heads_with_raw_values_beside_each_percentage() -> None:
    found = drawn_results(1)
    page = tables(report.markdown(found))
    title, (heads, *rows) = next(iter(page.items()))
    assert title == "One task left out: imagenet init, 100 % of the labels, confirm"
    assert [tuple(row[:2]) for row in rows] == [(s, h) for s in SETTING.sources for h in SETTING.heads]
    assert heads[4:] == ["semseg miou % ↑", "depth rmse m ↓", "normals mean ° ↓", "edges edge_f % ↑"]
    view = findings.views(found)[0]
    for row in rows:
        pair = Pair(row[0], row[1])
        assert row[4:] == [raw(view.raw(pair, task)) for task in PLAN.tasks]
        for cell, over in zip(row[2:4], (Pair("plain", "plain"), Pair("plain", pair.head)), strict=True):
            expected = "reference" if pair == over else points(findings.contrast(view, pair, over).overall)
            assert cell == expected


def test_every_part_has_a_table() -> None:
    titles = list(tables(report.markdown(drawn_results(1))))
    main = "imagenet init, 100 % of the labels, confirm"
    assert titles[:11] == [
        f"One task left out: {main}",
        f"Which differences exceed noise: {main}",
        f"Task by task: {main}",
        f"Headroom under a medusa_light head: {main}",
        f"Headroom under a plain head: {main}",
        "Share of the headroom that features close",
        f"All tasks together: {main}",
        f"Block split: {main}",
        f"Which differences exceed noise: block split, {main}",
        f"Ablations: block split, {main}",
        f"Features of one task: {main}",
    ]
    assert titles[-2:] == ["What is computed", "How it was run"]


def test_settings_that_are_not_begun_are_named_once_and_have_no_tables() -> None:
    found = results(drawn(1), keep=lambda cell: not isinstance(cell, Probe) or cell.labels == 1.0)
    named = [title for title in tables(report.markdown(found)) if "10 % of the labels" in title]
    few = "imagenet init, 10 % of the labels"
    said = [line for line in report.sentences(found) if few in line]
    assert not named and said == [f"Not computed yet: {few}, confirm; {few}, confirm_style."]
    assert any("10 % of the labels" in title for title in tables(report.markdown(drawn_results(1))))


def test_how_it_was_run_is_told() -> None:
    facts = dict(tables(report.markdown(drawn_results(1)))["How it was run"][1:])
    cells = len(drawn_results(1).cells)
    assert facts["commit"] == "abc1234"
    assert (facts["device"], facts["torch"], facts["score_on"]) == ("cpu", "2.9.0", ", ".join(SPLITS))
    assert facts["computed"] == "2026-01-02 to 2026-01-02"
    assert facts["CPU hours"] == f"{cells * 0.01:.2f}"


def test_changes_task_by_task_stand_between_their_raw_values() -> None:
    row = tables(report.markdown(results(the_head_is_all)))["Task by task: imagenet init, 100 % of the labels, confirm"]
    light = next(cells for cells in row if cells[0] == "medusa_light head over control, plain features")
    assert light[1:3] == ["40.00 to 44.00 (+10.0 ± 1.0 %)", "40.00 to 36.00 (+10.0 ± 1.0 %)"]


def test_a_plan_without_parts_leaves_their_tables_out() -> None:
    small = replace(PLAN, parity=(), ablations=(), single_task=False, settings=PLAN.settings[:1])
    titles = list(tables(report.markdown(results(drawn(1), small))))
    assert not [title for title in titles if title.startswith(("All tasks", "Ablations", "Features of one"))]


# ---- sentences


def test_sentences_say_what_the_gain_is_made_of() -> None:
    said = "\n".join(report.sentences(results(the_head_is_all)))
    ten = "+10.0 ± 1.0 % over 3 seeds (95 % interval +7.5 to +12.5): above noise"
    assert f"medusa features with a medusa_light head against plain features with a plain head: {ten}." in said
    assert (
        f"the head alone, plain features with a medusa_light head against plain features with a plain head: {ten}"
        in said
    )
    nothing = "+0.0 ± 0.0 % over 3 seeds (95 % interval +0.0 to +0.0): no more than noise"
    assert (
        f"The features alone, {Pair('medusa', 'medusa_light')} against {Pair('plain', 'medusa_light')}: {nothing}."
        in said
    )
    assert "is there for 0 of 4 tasks." in said
    assert f"medusa against mtinet, all tasks together: {nothing}." in said
    assert "medusa has 2.00 M parameters, mtinet 2.00 M (+0 %)" in said


def test_one_seed_is_never_said_to_exceed_noise() -> None:
    one = replace(PLAN, settings=(replace(SETTING, seeds=(1,)),))
    said = "\n".join(report.sentences(results(the_head_is_all, one)))
    assert "+10.0 % (one seed, so whether it exceeds noise is unknown)" in said
    assert "above noise" not in said


def test_what_is_not_in_the_plan_is_not_said_to_be_missing() -> None:
    few = replace(PLAN, settings=(replace(SETTING, heads=("medusa_light",)),), parity=("plain",))
    said = "\n".join(report.sentences(results(drawn(0), few)))
    assert "plain features with a plain head" not in said and "maintained" not in said
    assert "The features alone" in said and "Headroom" in said


# ---- what is missing


def test_an_empty_result_says_what_is_missing() -> None:
    empty = results(drawn(0), keep=lambda cell: False)
    text = report.markdown(empty)
    planned = sum(part.planned for part in findings.progress(empty))
    assert f"0 of {planned} cells are computed; the tables say which are not." in text
    page = tables(text)
    first = next(iter(page.values()))
    assert {cell for row in first[1:] for cell in row[2:]} == {UNKNOWN, "reference"}
    assert {
        row[-1] for row in page["Which differences exceed noise: imagenet init, 100 % of the labels, confirm"][1:]
    } == {"not computed"}
    assert [row[1] for row in page["What is computed"][1:]] == [
        f"0 of {part.planned}" for part in findings.progress(empty)
    ]
    assert f"{UNKNOWN} not computed yet: " in text
    assert "plain features with a plain head: not computed yet." in text


def test_a_missing_cell_is_named_below_the_tables_that_need_it() -> None:
    lost = Pretraining(source="mtinet", tasks=PLAN.tasks, seed=2)
    text = report.markdown(results(drawn(0), keep=lambda cell: cell != lost))
    assert f"{UNKNOWN} not computed yet: 1 of 9 cells of all tasks together: {lost.label}." in text
    assert text.count("not computed yet") == 1


@pytest.mark.parametrize("width", [60, 120])
def test_the_terminal_shows_the_answer_first_and_where_the_rest_is(width: int) -> None:
    out = io.StringIO()
    made = report.console(drawn_results(), Path("runs/x/claims"), "mlflow ui\nopen it")
    Console(file=out, width=width, highlight=False).print(made)
    text = out.getvalue()
    assert text.strip().startswith("One task left out:")
    assert "runs/x/claims/claims.json" in text
    assert "in MLflow    open it" in text
    assert max(map(len, text.splitlines())) <= width


# ---- published numbers


def test_published_rows_say_where_they_were_read() -> None:
    for benchmark, tasks in published.BENCHMARKS.items():
        for row in published.rows(benchmark):
            assert re.fullmatch(r"\d{4}\.\d{5}", row.arxiv), row
            assert row.read_at.startswith("https://"), row
            assert 2015 < row.year < 2026 and row.backbone and row.paper
            assert row.values and set(row.values) <= set(tasks), row
            assert bool(row.edges) is ("edges" in row.values), row
            for task, value in row.values.items():
                assert value.unit == {"depth": "m", "normals": "deg"}.get(task, "%")
                assert 0 < value.value < (2 if task == "depth" else 100), row


@pytest.mark.parametrize(
    ("benchmark", "reported"),
    [
        ("nyud", {"plain multitask": [-0.75], "PAD-Net": [1.13, 2.90], "MTI-Net": [6.36, 10.32]}),
        ("pascal", {"plain multitask": [-1.98], "MTI-Net": [2.72]}),
    ],
)
def test_published_values_make_the_multitask_gains_that_their_source_reports(benchmark: str, reported: Any) -> None:
    """The README of the survey has Delta MTL of unrounded values beside them: a slip of a digit would be seen."""
    ours = [row for row in published.rows(benchmark) if row.arxiv == "2004.13379"]
    values = [(row.model, {task: value.value for task, value in row.values.items()}) for row in ours]
    single = dict(values)["single-task nets"]
    better = {task: task not in ("depth", "normals") for task in single}
    found: dict[str, list[float]] = {}
    for model, row in values:
        delta = mtl_delta(row, single, better)
        assert delta is not None
        found.setdefault(model, []).append(delta)
    for model, deltas in reported.items():
        assert found[model] == pytest.approx(deltas, abs=0.25), model


def test_ours_stand_beside_theirs_and_edges_in_columns_of_their_own() -> None:
    plan = replace(PLAN, base=("semseg", "depth"))
    found = replace(
        results(drawn(0), plan), about={"data": "nyud_claims", "score_on": ["confirm"], "backbone": "hrnet"}
    )
    heads, *rows = tables(report.markdown(found))["NYUD-v2: ours and published"]
    assert heads[5:7] == ["edges edge_f % ↑", "edges odsF % ↑"]
    ours = [row for row in rows if row[0].startswith("ours")]
    assert [row[0] for row in ours] == ["ours, single-task nets", "ours, plain", "ours, medusa", "ours, mtinet"]
    view = findings.views(found)[0]
    expected = view.pretrained(Pretraining(source="mtinet", tasks=PLAN.tasks), "edges")
    assert ours[3][1] == "hrnet" and ours[3][5] == raw(expected) and ours[3][6] == UNKNOWN
    saliency = {row[0]: row[4] for row in tables(report.not_run("pascal"))["PASCAL-Context: ours and published"]}
    assert (saliency[""], saliency["InvPT"], saliency["PAD-Net"]) == ("saliency maxF % ↑", "84.81", "66.0 (mIoU)")
    theirs = next(row for row in rows if row[0] == "InvPT")
    assert theirs[1:7] == ["ViT-L", "53.56", "0.5183", "19.04", UNKNOWN, "78.1"]
    assert "Our edge_f is not odsF" in report.markdown(found)


def test_a_benchmark_is_known_by_its_name() -> None:
    assert [published.benchmark_of(name) for name in ("nyud_claims", "PASCAL_incremental", "rooms_claims")] == [
        "nyud",
        "pascal",
        None,
    ]
    with pytest.raises(ConfigError, match=r'Unknown benchmark "nyu".* Did you mean "nyud"'):
        published.rows("nyu")
    with pytest.raises(ConfigError, match='Unknown experiment "nyudd"'):
        report.not_run("nyudd")
    with pytest.raises(ConfigError, match='Unknown experiment "rooms"'):
        report.summary({"rooms": None})


# ---- pages


@pytest.mark.parametrize("name", list(report.COLUMNS))
def test_what_was_not_run_says_so_in_every_cell(name: str) -> None:
    page = tables(report.not_run(name))
    assert {row[1] for row in page["The answer"][1:]} == {"not run"}
    if name in published.BENCHMARKS:
        rows = [row for row in page[f"{report.COLUMNS[name]}: ours and published"] if row[0].startswith("ours")]
        own = len(published.BENCHMARKS[name])
        assert len(rows) == 4 and all(row[1 : 2 + own] == ["not run"] * (1 + own) for row in rows)


def test_the_summary_puts_experiments_side_by_side() -> None:
    text = report.summary({"rooms_v1": results(the_head_is_all), "nyud": None})
    rows = {row[0]: row[1:] for row in tables(text)[""]}
    assert rows["the head alone, on plain features"] == ["+10.0 ± 1.0 (above noise)", "not run"]
    for head in ("Medusa", "plain"):
        assert rows[f"the features alone, under {head} heads"] == ["+0.0 ± 0.0 (noise)", "not run"]
        assert rows[f"share of the headroom that they close, under {head} heads"] == [report.NO_ROOM, "not run"]
    assert rows["plain features with a medusa_light head"][0] == "44.00 ± 0.40"


def test_the_summary_says_what_features_close_under_each_head() -> None:
    def half_under_plain_heads(cell: Cell, task: str, split: str) -> float:
        if isinstance(cell, Pretraining) or cell.head != "plain":
            return 40.0
        better = 1 if TASKS[task]["higher_is_better"] else -1
        learnt = task in cell.backbone.tasks
        return 40.0 + better * (8.0 if learnt else 4.0 if cell.backbone.source == "medusa" else 0.0)

    half = results(half_under_plain_heads)
    said = [line for line in report.sentences(half) if "of that headroom" in line]
    assert [line.split(": ")[0] for line in said] == [
        "imagenet init, 100 % of the labels, confirm_style, plain head",
        *(f"imagenet init, 10 % of the labels, {split}, plain head" for split in SPLITS),
    ]
    assert said[0].endswith("closes +50 % ± 0 % (3 seeds, 95 % interval +50 to +50 %).")
    rows = {row[0]: row[1] for row in tables(report.summary({"rooms_v1": half}))[""]}
    assert rows["share of the headroom that they close, under plain heads"] == "+50 % ± 0 %"
    assert rows["share of the headroom that they close, under Medusa heads"] == report.NO_ROOM
    assert rows["the features alone, under plain heads"] == "+10.0 ± 0.0 (above noise)"
    some = results(half_under_plain_heads, keep=lambda cell: isinstance(cell, Pretraining) or cell.task != "edges")
    rows = {row[0]: row[1] for row in tables(report.summary({"rooms_v1": some}))[""]}
    assert rows["share of the headroom that they close, under plain heads"] == UNKNOWN


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with nothing but the two files that hold blocks."""
    for place in pages.BLOCKS:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    (tmp_path / pages.RESULTS / "claims").mkdir(parents=True)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    return tmp_path


def test_a_results_file_that_was_sent_makes_its_page_and_its_column(checkout: Path) -> None:
    (checkout / pages.RESULTS / "claims" / "nyud.json").write_text(results(the_head_is_all).to_json())
    (checkout / pages.RESULTS / "claims" / "other.json").write_text(drawn_results().to_json())
    assert pages.main([]) == 0
    readme = (checkout / "README.md").read_text()
    assert readme.startswith(f"before\n{pages.BEGIN}\n") and readme.endswith(f"{pages.END}\nafter\n")
    assert "| the head alone, on plain features | not run | +10.0 ± 1.0 (above noise) | not run |" in readme
    assert "(benchmarks/results/claims_nyud.md)" in readme and "old" not in readme
    found = (checkout / "docs/found.md").read_text()
    assert "(../benchmarks/results/claims_nyud.md)" in found and "rooms-v1 is not run yet" in found
    made = {path.name for path in (checkout / pages.RESULTS).glob("*.md")}
    assert made == {"claims_rooms_v1.md", "claims_nyud.md", "claims_pascal.md", "claims_other.md"}
    assert pages.main(["--check"]) == 0


def test_sentences_of_the_rooms_stand_in_the_page_of_what_was_found(checkout: Path) -> None:
    found = results(the_head_is_all)
    (checkout / pages.RESULTS / "claims" / "rooms_v1.json").write_text(found.to_json())
    assert pages.main([]) == 0
    text = (checkout / "docs/found.md").read_text()
    assert all(f"- {sentence}\n" in text for sentence in report.sentences(found))


def test_pages_that_are_not_current_are_named_and_left_as_they_are(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pages.main([]) == 0
    page = checkout / pages.RESULTS / "claims_nyud.md"
    page.write_text("edited")
    assert pages.main(["--check"]) == 1
    assert "claims_nyud.md is not what the results make" in capsys.readouterr().err
    assert page.read_text() == "edited"


def test_a_file_without_marks_is_named_and_the_others_are_written(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "README.md").write_text("no marks")
    assert pages.main([]) == 1
    assert f"Expected {pages.BEGIN} and then {pages.END} in README.md" in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == "no marks"
    assert "not run" in (checkout / "docs/found.md").read_text()


@pytest.mark.parametrize(
    "text", [pages.BEGIN, pages.END + pages.BEGIN, pages.BEGIN * 2 + pages.END, pages.BEGIN + pages.END * 2]
)
def test_marks_out_of_order_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"in x\.md, each once"):
        pages.with_block(text, "content", "x.md")


def test_a_damaged_results_file_is_named_and_nothing_is_written(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / pages.RESULTS / "claims" / "nyud.json").write_text(drawn_results().to_json()[:500])
    assert pages.main([]) == 1
    assert "nyud.json holds no results of mode=claims" in capsys.readouterr().err
    assert not list((checkout / pages.RESULTS).glob("*.md"))


def test_the_committed_pages_are_what_the_committed_results_make() -> None:
    named = pages.read(ROOT)
    for place, text in pages.pages(named).items():
        assert (ROOT / place).read_text(encoding="utf-8") == text, f"{place}: run python benchmarks/claims.py"
    for place in pages.BLOCKS:
        text = (ROOT / place).read_text(encoding="utf-8")
        if place == "README.md" and pages.BEGIN not in text:
            continue
        assert pages.with_block(text, pages.block(named, place), place) == text, f"{place}: run benchmarks/claims.py"


def searched(name: str) -> tuple[findings.View, findings.View]:
    """Return what a round of the search found, under a medusa_light and a plain head."""
    text = (ROOT / pages.RESULTS / "claims" / f"{name}.json").read_text(encoding="utf-8")
    light, plain = findings.views(Results.from_json(text), block=True)[0].under_each_head
    return light, plain


def change(view: findings.View, source: str, over: str = "plain") -> Estimate:
    """Return the mean change over other features under the head of a view."""
    return findings.contrast(view, Pair(source, view.head), Pair(over, view.head)).overall


def test_the_figures_of_the_search_are_those_of_its_results() -> None:
    page = (ROOT / "docs/universal.md").read_text(encoding="utf-8")
    light, plain = searched("rooms_features")
    shares = sorted(findings.shares(plain), key=lambda share: -(share.everything.mean or 0.0))
    rows = [
        f"| {s.source} | {100 * (s.everything.mean or 0):+.0f} % | {100 * (s.per_task['normals'].mean or 0):+.0f} % | "
        f"{change(plain, s.source).mean:+.1f} % | {change(light, s.source).mean:+.1f} % |\n"
        for s in shares
    ]
    assert "".join(rows) in page and len(rows) == 16
    words = " ".join(page.split())
    nothing = sorted(room.to_oracle.mean or 0.0 for room in findings.headroom(light))
    assert f"(between {nothing[0]:+.1f} and {nothing[-1]:+.1f} %)" in words
    some = {room.task: room.to_oracle.mean for room in findings.headroom(plain)}
    assert f"normals have {some['normals']:+.1f} %, albedo {some['albedo']:+.1f} %" in words
    assert f"keypoints2d {some['keypoints2d']:+.1f} %" in words
    light, plain = searched("rooms_features_seeds")
    shares = sorted(findings.shares(plain), key=lambda share: -(share.everything.mean or 0.0))
    rows = [
        f"| {s.source} | {share(Estimate({0: s.everything.mean or 0.0}))} | "
        f"{sheets._share_interval(s.everything)} | {change(plain, s.source).mean:+.1f} % | "
        f"{change(light, s.source).mean:+.1f} % |\n"
        for s in shares
    ]
    assert "".join(rows) in page and [s.source for s in shares] == ["reconstruct", "task_dropout", "medusa"]
    assert min(shares[0].everything.by_seed.values()) > 0
    for medusa in (change(view, "medusa") for view in (light, plain)):
        assert medusa.above_noise is False
    assert change(light, "reconstruct").above_noise is False


def confirmed() -> list[findings.View]:
    """Return what the confirmation of the search found, in each setting and on each split under each head."""
    text = (ROOT / pages.RESULTS / "claims" / "rooms_universal.json").read_text(encoding="utf-8")
    return [under for view in findings.views(Results.from_json(text)) for under in view.under_each_head]


def test_the_figures_of_the_confirmation_are_those_of_its_results() -> None:
    page = (ROOT / "docs/universal.md").read_text(encoding="utf-8")
    compared = [("medusa", "plain"), ("reconstruct", "plain"), ("reconstruct", "medusa"), ("reconstruct", "none")]
    views, rows, ahead = confirmed(), [], dict.fromkeys(compared, 0)
    for view in views:
        assert view.setting.seeds == (0, 1, 2, 3, 4)
        room = mean_of_all(room.to_oracle.mean for room in findings.headroom(view))
        changes = [change(view, *pair) for pair in compared]
        assert all(estimate.whole for estimate in changes)
        written = [f"{estimate.mean:+.1f} ({interval(estimate)})" for estimate in changes]
        labels = f"{100 * view.setting.labels:g} %"
        rows.append(" | ".join([f"| {view.split}", labels, view.head, f"{room:+.1f}", *written]) + " |\n")
        for pair, estimate in zip(compared, changes, strict=True):
            ahead[pair] += bool(estimate.above_noise)
        if view.setting.labels == 1:
            assert room < 2 and room < min(estimate.mean or 0 for estimate in changes[:2])
            assert changes[1].above_noise
    assert "".join(rows) in page and len(rows) == 8
    assert list(ahead.values()) == [4, 6, 1, 5]
    few = [view for view in views if view.setting.labels == 0.1 and change(view, "medusa").above_noise]
    assert [(view.split, view.head) for view in few] == [("confirm", "medusa_light")]
    assert min(change(view, "reconstruct").mean or 0 for view in views) > 1
    main = {view.head: change(view, "reconstruct").mean for view in views[:2]}
    said = f"{main['plain']:+.1f} % (plain head) and {main['medusa_light']:+.1f} % (Medusa head)"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
    (told,) = [view for view in views if any(room.tells_apart for room in findings.headroom(view))]
    assert (told.split, told.setting.labels, told.head) == ("confirm_style", 0.1, "plain")
    closed = {one.source: one.pooled for one in findings.shares(told)}
    words = " ".join(page.split())
    for name in ("reconstruct", "medusa"):
        assert f"{share(Estimate({0: closed[name].mean or 0}))} ({sheets._share_interval(closed[name])})" in words


def test_the_words_on_what_we_found_hold_in_the_results() -> None:
    """What docs/found.md says in words; where results say otherwise now, the words are to be changed."""
    found = Results.from_json((ROOT / pages.RESULTS / "claims" / "rooms_v1.json").read_text(encoding="utf-8"))
    light, plain = findings.views(found)[0].under_each_head
    assert (len(light.setting.seeds), len(light.tasks)) == (3, 7)

    def gain(view: findings.View, of: tuple[str, str], over: tuple[str, str] = ("plain", "plain")) -> Estimate:
        estimate = findings.contrast(view, Pair(*of), Pair(*over)).overall
        assert estimate.whole and estimate.mean is not None
        return estimate

    head, control = gain(light, ("plain", "medusa_light")), gain(light, ("plain", "control"))
    assert head.verdict == control.verdict == "yes" and (head.mean or 0) > 6
    assert (control.mean or 0) / (head.mean or 1) == pytest.approx(2 / 3, abs=0.05)  # two thirds
    assert gain(light, ("plain", "medusa_light"), ("plain", "control")).verdict == "yes"
    other_style = findings.views(found)[1]
    assert other_style.split == "confirm_style" and other_style.setting == light.setting
    assert gain(plain, ("medusa", "plain")).verdict == gain(other_style, ("medusa", "plain")).verdict == "yes"
    (low, _), (clearly, _) = (gain(view, ("medusa", "plain")).interval or (0, 0) for view in (plain, other_style))
    assert low < 0.5 < 1 < clearly
    (closed,) = [share for share in findings.shares(plain) if share.source == "medusa"]
    assert closed.tasks == ("normals",) and closed.pooled.mean == pytest.approx(1 / 4, abs=0.03)  # a quarter
    assert gain(light, ("medusa", "medusa_light"), ("plain", "medusa_light")).above_noise is False
    assert not any(room.tells_apart for room in findings.headroom(light))
    few = next(view for view in findings.views(found) if view.setting.labels == 0.1)
    assert [room.task for room in findings.headroom(few) if room.tells_apart] == ["saliency"]
    for under in few.under_each_head:
        assert gain(under, ("medusa", under.head), ("plain", under.head)).above_noise is False
    for name in light.setting.heads:
        _, high = gain(light, ("none", name), ("plain", name)).interval or (None, 0.0)
        assert high > 0
    two_tasks, plain_too = findings.views(found, block=True)[0].under_each_head
    assert gain(two_tasks, ("plain", "medusa_light")).mean == pytest.approx(head.mean, abs=0.5)
    assert (gain(two_tasks, ("plain", "control")).mean or 0) / (head.mean or 1) > 0.85
    assert gain(two_tasks, ("plain", "medusa_light"), ("plain", "control")).above_noise is False
    assert 0 < (gain(plain_too, ("medusa", "plain")).mean or 0) < 1


def test_the_words_on_nets_and_their_parts_hold_in_the_results() -> None:
    found = Results.from_json((ROOT / pages.RESULTS / "claims" / "rooms_v1.json").read_text(encoding="utf-8"))
    view = findings.views(found)[0]
    nets_of = {row.source: row for row in nets.parity(view)}
    ours, plain, mtinet = (nets_of[name] for name in ("medusa", "plain", "mtinet"))
    assert len(ours.values) == 7 and (ours.delta.mean or 0) > 0 and ours.delta.above_noise is False
    for other, by in ((plain, 10), (mtinet, 3)):
        ahead = nets.mean_change(view, ours.values, other.values)
        assert ahead.whole and ahead.verdict == "yes" and (ahead.mean or 0) > by
    assert (ours.parameters or 0) / (mtinet.parameters or 1) == pytest.approx(0.5, abs=0.01)
    assert (ours.gflops or 1) / (mtinet.gflops or 1) < 1 / 3
    assert (ours.parameters or 0) < (plain.parameters or 0) and (ours.gflops or 0) > (plain.gflops or 1)
    parts = {row.source: row for row in nets.ablations(view)}
    ablated = ("medusa_gated", "sfa_none", "msa_none", "scale_softmax", "unsupervised_scales", "ungated")
    assert tuple(parts) == ("medusa", *ablated)
    assert all(-0.05 < (row.new.mean or 0) < 1.05 for row in parts.values())
    changed = {name: round(row.base.mean or 0) for name, row in parts.items()}
    assert changed["ungated"] == changed["scale_softmax"] == -3 and changed["unsupervised_scales"] == 4
    by_one = nets.taught(view)
    better = {of: [task for task, (_, change) in to.items() if (change or 0) > 1] for of, to in by_one.items()}
    assert better.pop("semseg") == ["depth", "keypoints2d", "saliency"] and better.pop("edges") == ["semseg"]
    assert not any(better.values())


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys, pathlib; from medusa_cl.claims import report; from medusa_cl.claims.record import Results; "
        "report.markdown(Results.from_json(sys.stdin.read())); assert 'torch' not in sys.modules"
    )
    text = drawn_results().to_json()
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_published_numbers_are_found_beside_the_module(tmp_path: Path) -> None:
    copied = shutil.copy(published.PLACE, tmp_path)
    assert Path(copied).read_text(encoding="utf-8").count('"benchmark"') == sum(
        len(published.rows(name)) for name in published.BENCHMARKS
    )
    assert [(claim.value, claim.unit) for claim in published.claims()] == [(13.18, "%"), (None, ""), (25.0, "%")]
    assert isinstance(sheets.beside("pascal", None).rows, list) and Results is findings.Results


def test_a_plan_that_holds_tasks_out_together_only_is_answered_by_that() -> None:
    setting = replace(SETTING, heads=("medusa_light",), sources=("none", "plain", "medusa", "anchor"), seeds=(0,))
    plan = replace(PLAN, held_out=(), settings=(setting,), parity=(), ablations=(), single_task=False)
    found = results(drawn(0), plan)
    text = report.markdown(found)
    page = tables(text)
    heads, *rows = next(iter(page.values()))
    assert next(iter(page)).startswith("Block split: ") and heads[4:] == ["normals mean ° ↓", "edges edge_f % ↑"]
    view = findings.views(found, block=True)[0]
    gain = findings.contrast(view, Pair("anchor", "medusa_light"), Pair("plain", "medusa_light")).overall
    assert rows[3][:4] == ["anchor", "medusa_light", UNKNOWN, points(gain)]
    of, over = Pair("anchor", "medusa_light"), Pair("plain", "medusa_light")
    assert f"The features alone, {of} against {over}: {gain.mean:+.1f} %" in text
    assert not [title for title in page if title.startswith("One task left out")]
    assert found.metrics()["features/anchor features over plain, medusa_light head"] == gain.mean


def test_of_many_sources_only_medusa_has_sentences() -> None:
    many = tuple(f"source{number}" for number in range(report.FEW))
    setting = replace(SETTING, sources=("none", "plain", "medusa", *many))
    said = " ".join(report.sentences(results(drawn(0), replace(PLAN, settings=(setting,)))))
    assert "medusa features" in said and "source0" not in said
    few = replace(SETTING, sources=("none", "plain", "medusa", *many[1:]))
    assert "source1 features" in " ".join(report.sentences(results(drawn(0), replace(PLAN, settings=(few,)))))
