"""Findings: by hand on cells whose values are chosen, and by NumPy and SciPy on random ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from claims_results import PLAN, SETTING, TASKS, drawn, drawn_results, results, values_of
from medusa_cl.claims import findings, nets, report
from medusa_cl.claims.cells import Cell, Pretraining, Probe
from medusa_cl.claims.findings import Pair
from medusa_cl.claims.plan import Plan
from medusa_cl.claims.record import Results
from medusa_cl.claims.spread import Estimate, over_seeds, ratio_of_sums
from medusa_cl.errors import ConfigError, DataError, TaskError
from medusa_cl.results import mtl_delta
from property_examples import examples

PLAIN, LIGHT = Pair("plain", "plain"), Pair("plain", "medusa_light")
OURS, CONTROL = Pair("medusa", "medusa_light"), Pair("plain", "control")


def main(found: Results, block: bool = False) -> findings.View:
    return findings.views(found, block)[0]


def only(**changes: Any) -> Plan:
    """Two tasks, one direction each, one setting."""
    small = replace(SETTING, **changes)
    return replace(PLAN, tasks=("depth", "edges"), base=("depth",), held_out=("depth", "edges"), settings=(small,))


# ---- by hand


def example(cell: Cell, task: str, split: str) -> float:
    """Depth has 20 % of headroom, edges 10 %; Medusa's features close half of the first and nothing of the second."""
    low = {"depth": 10.0, "edges": 50.0}
    best = {"depth": 8.0, "edges": 55.0}
    if not isinstance(cell, Probe):
        return {"depth": 7.0, "edges": 52.0}[task]
    if cell.head != "medusa_light":
        return {"depth": 12.5, "edges": 40.0}[task]
    if set(cell.backbone.tasks) == {"depth", "edges"}:
        return best[task]
    return 9.0 if (cell.backbone.source, task) == ("medusa", "depth") else low[task]


def test_headroom_by_hand() -> None:
    depth, edges = findings.headroom(main(results(example, only(seeds=(0,)))))
    assert (depth.plain.mean, depth.oracle.mean, depth.end_to_end.mean) == (10.0, 8.0, 7.0)
    assert (depth.to_oracle.mean, depth.to_end_to_end.mean) == (pytest.approx(20.0), pytest.approx(30.0))
    assert (edges.to_oracle.mean, edges.to_end_to_end.mean) == (pytest.approx(10.0), pytest.approx(4.0))
    assert depth.tells_apart and edges.tells_apart


def test_the_share_of_headroom_is_a_ratio_of_sums_by_hand() -> None:
    shares = {share.source: share for share in findings.shares(main(results(example, only(seeds=(0,)))))}
    medusa = shares["medusa"]
    assert medusa.per_task["depth"].mean == pytest.approx(0.5)
    assert medusa.per_task["edges"].mean == pytest.approx(0.0)
    assert medusa.pooled.mean == pytest.approx(10 / 30)  # the mean of the ratios would be 1/4
    assert shares["none"].pooled.mean == pytest.approx(0.0)


def test_gains_by_hand() -> None:
    view = main(results(example, only()))
    over_all = findings.contrast(view, OURS, PLAIN)
    assert over_all.per_task["depth"].mean == pytest.approx(100 * 3.5 / 12.5)
    assert over_all.per_task["edges"].mean == pytest.approx(25.0)
    assert over_all.overall.mean == pytest.approx((28.0 + 25.0) / 2)
    assert findings.contrast(view, OURS, LIGHT).overall.mean == pytest.approx(5.0)
    assert findings.contrast(view, LIGHT, CONTROL).overall.mean == pytest.approx((20.0 + 25.0) / 2)


@pytest.mark.parametrize(("oracle", "apart"), [(94.0, True), (94.1, False), (106.0, False)])
def test_six_percent_of_headroom_tells_features_apart(oracle: float, apart: bool) -> None:
    def value(cell: Cell, task: str, split: str) -> float:
        whole = isinstance(cell, Probe) and set(cell.backbone.tasks) == {"depth", "edges"}
        return oracle if whole else 100.0

    (depth, _) = findings.headroom(main(results(value, only())))
    assert depth.tells_apart is apart


def test_which_differences_are_asked_for() -> None:
    labels = [c.label for c in findings.contrasts(main(drawn_results()))]
    assert labels == [
        *(f"{s} features over plain, {h} head" for s in ("none", "medusa") for h in SETTING.heads),
        "medusa_light head over control, plain features",
        "medusa head over control, plain features",
        "control head over plain, plain features",
    ]
    few = findings.views(drawn_results())[2]
    assert few.setting.labels == 0.1
    heads = [c.label for c in findings.contrasts(few) if c.kind == "head"]
    assert heads == ["medusa_light head over plain, plain features"]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([], "not computed"),
        ([5.0], "one seed: unknown"),
        ([5.0, 5.0], "two seeds: unknown"),
        ([5.0, 5.2, 4.8], "yes"),
        ([-5.0, -5.2, -4.8], "yes"),
        ([0.5, 0.51, 0.49], "yes, but under 1 point"),
        ([5.0, -4.0, 1.0], "no"),
    ],
)
def test_what_is_said_of_noise(values: list[float], verdict: str) -> None:
    assert Estimate(dict(enumerate(values)), tuple(range(len(values)))).verdict == verdict


def test_a_ratio_of_sums_by_hand() -> None:
    seeds = (0, 1, 2)
    same = ratio_of_sums(Estimate({0: 2.0, 1: 4.0, 2: 6.0}, seeds), Estimate({0: 10.0, 1: 20.0, 2: 30.0}, seeds))
    assert (same.mean, same.deviation) == (pytest.approx(0.2), pytest.approx(0.0))
    # A seed whose whole is all but 0 has no say of its own: the mean of ratios would be 33.
    odd = ratio_of_sums(Estimate({0: 1.0, 1: 1.0, 2: 1.0}, seeds), Estimate({0: 10.0, 1: 10.0, 2: 0.01}, seeds))
    assert odd.mean == pytest.approx(3 / 20.01)
    assert ratio_of_sums(Estimate({0: 1.0}, (0,)), Estimate({0: 0.5}, (0,))).mean is None
    part = ratio_of_sums(Estimate({0: 1.0, 1: 3.0}, seeds), Estimate({1: 6.0, 2: 9.0}, seeds))
    assert (part.mean, part.n, part.whole) == (0.5, 1, False)


def test_the_spread_of_a_ratio_is_that_of_the_ratio_estimator() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, 5), rng.normal(9, 1, 5)
    found = ratio_of_sums(*(Estimate(dict(enumerate(map(float, v))), tuple(range(5))) for v in (x, y)))
    ratio = x.sum() / y.sum()
    error = math.sqrt(((x - ratio * y) ** 2).sum() / 4 / 5) / y.mean()  # Cochran (1977), eq. 6.13 without f
    half = stats.t.ppf(0.975, 4) * error
    assert found.mean == pytest.approx(ratio)
    assert found.interval == (pytest.approx(ratio - half), pytest.approx(ratio + half))


# ---- against NumPy and SciPy


def array_of(found: Results, pair: Pair, task: str) -> np.ndarray[Any, Any]:
    """Return the values of a pair over seeds, read from the cells themselves."""
    values = []
    for seed in SETTING.seeds:
        rest = tuple(name for name in PLAN.tasks if name != task)
        learnt = () if pair.source == "none" else rest
        backbone = Pretraining(source=pair.source, tasks=learnt, init="imagenet", seed=seed)
        cell = found.cells[Probe(backbone=backbone, head=pair.head, task=task)]
        values.append(cell["scores"]["confirm"][task][TASKS[task]["primary"]])
    return np.array(values)


def test_contrasts_are_those_of_numpy_and_scipy() -> None:
    found = drawn_results(1)
    for contrast in findings.contrasts(main(found)):
        gains = []
        for task in PLAN.tasks:
            of, over = (array_of(found, pair, task) for pair in (contrast.of, contrast.over))
            gains.append(100 * (of - over) / over * (1 if TASKS[task]["higher_is_better"] else -1))
        by_seed = np.mean(gains, axis=0)
        overall = contrast.overall
        assert overall.mean == pytest.approx(by_seed.mean())
        assert overall.deviation == pytest.approx(by_seed.std(ddof=1))
        expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
        assert overall.interval == (pytest.approx(expected.low), pytest.approx(expected.high))
        assert overall.above_noise is bool(stats.ttest_1samp(by_seed, 0).pvalue < 0.05)


def test_delta_mtl_is_that_of_the_library() -> None:
    found = drawn_results(2)
    rows = {row.source: row for row in nets.parity(main(found))}
    better = {task: bool(about["higher_is_better"]) for task, about in TASKS.items()}
    for source in PLAN.parity:
        for seed in SETTING.seeds:
            together = Pretraining(source=source, tasks=PLAN.tasks, seed=seed)
            alone = {t: found.score(Pretraining(source="medusa", tasks=(t,), seed=seed), t) for t in PLAN.tasks}
            expected = mtl_delta({t: found.score(together, t) for t in PLAN.tasks}, alone, better)
            assert rows[source].delta.by_seed[seed] == pytest.approx(expected)
    assert rows["medusa"].same_head == rows["medusa"].delta
    assert rows["mtinet"].same_head.mean is None  # there are no single-task nets with its head
    assert (rows[""].parameters, rows["plain"].parameters, rows["plain"].gflops) == (8_000_000, 2_000_000, None)


def test_single_task_nets_with_the_same_head_count_where_they_are_there() -> None:
    found = drawn_results(2)
    own = {Pretraining(source="plain", tasks=(task,)): 50.0 for task in PLAN.tasks}
    contents = {c: {"scores": {"confirm": {c.tasks[0]: {TASKS[c.tasks[0]]["primary"]: v}}}} for c, v in own.items()}
    row = next(
        row for row in nets.parity(main(replace(found, cells={**found.cells, **contents}))) if row.source == "plain"
    )
    together = Pretraining(source="plain", tasks=PLAN.tasks)
    better = {task: bool(about["higher_is_better"]) for task, about in TASKS.items()}
    values = {task: found.score(together, task) for task in PLAN.tasks}
    expected = mtl_delta(values, dict.fromkeys(PLAN.tasks, 50.0), better)
    assert row.same_head.by_seed[0] == pytest.approx(expected)


def test_ablations_are_against_the_medusa_source_with_one_seed() -> None:
    def value(cell: Cell, task: str, split: str) -> float:
        source = cell.source if isinstance(cell, Pretraining) else cell.backbone.source
        worse = {"sfa_none": 0.9, "msa_none": 1.0}.get(source, 1.0)
        return 40.0 * (worse if TASKS[task]["higher_is_better"] else 1 / worse)

    whole, sfa, msa = nets.ablations(main(results(value)))
    assert (whole.source, sfa.source, msa.source) == ("medusa", "sfa_none", "msa_none")
    expected = (-10.0 + 100 * (1 - 1 / 0.9)) / 2
    assert (sfa.base.mean, sfa.new.mean) == (pytest.approx(expected), pytest.approx(expected))
    assert (msa.base.mean, msa.new.mean, msa.new.verdict) == (0.0, 0.0, "one seed: unknown")


def test_features_of_one_task_are_against_plain_ones_of_all_others() -> None:
    found = drawn_results(3)
    value, change = nets.taught(main(found))["depth"]["edges"]
    probe = Probe(backbone=Pretraining(source="plain", tasks=("depth",)), head="medusa_light", task="edges")
    assert value == found.score(probe, "edges")
    reference = array_of(found, LIGHT, "edges")[0]
    assert change == pytest.approx(100 * (value - reference) / reference)


def test_the_block_split_has_its_own_backbones() -> None:
    view = main(drawn_results(4), block=True)
    assert view.tasks == ("normals", "edges")
    backbone = Pretraining(source="medusa", tasks=PLAN.base, seed=1)
    expected = view.results.score(Probe(backbone=backbone, head="control", task="edges"), "edges")
    assert view.value(Pair("medusa", "control"), "edges", 1) == expected


def test_every_split_is_a_view_of_its_own() -> None:
    found = drawn_results(5)
    assert [view.name for view in findings.views(found)] == [
        f"imagenet init, {labels} % of the labels, {split}"
        for labels in (100, 10)
        for split in ("confirm", "confirm_style")
    ]
    first, second = findings.views(found)[:2]
    assert first.value(OURS, "depth", 0) != second.value(OURS, "depth", 0)


# ---- what is missing


def test_a_missing_cell_takes_its_seed_out_of_what_needs_it() -> None:
    lost = Probe(backbone=Pretraining(source="plain", tasks=PLAN.others("edges"), seed=1), head="control", task="edges")
    found = results(drawn(6), keep=lambda cell: cell != lost)
    control = findings.contrast(main(found), CONTROL, PLAIN)
    assert (control.overall.n, control.overall.whole, set(control.overall.by_seed)) == (2, False, {0, 2})
    assert control.per_task["depth"].n == 3
    assert findings.contrast(main(found), LIGHT, PLAIN).overall.whole
    part = next(p for p in findings.progress(found) if p.missing)
    assert (part.section, part.planned - part.there, part.missing) == ("leave_one_out", 1, (lost.label,))


def test_nothing_is_divided_by_nothing_and_nan_is_missing() -> None:
    def value(cell: Cell, task: str, split: str) -> float:
        return {"depth": 0.0, "edges": math.nan}.get(task, 40.0)

    found = findings.contrast(main(results(value)), LIGHT, PLAIN)
    assert [found.per_task[task].mean for task in ("depth", "edges", "normals")] == [None, None, 0.0]
    assert found.overall.mean is None


@given(seed=st.integers(0, 10), share=st.floats(0, 1))
@examples(8)
def test_missing_cells_never_raise_and_change_no_whole_number(seed: int, share: float) -> None:
    value, all_of_them = drawn(seed), drawn_results(seed)
    rng = np.random.default_rng(seed)
    some = results(value, keep=lambda cell: bool(rng.random() < share))
    assert report.markdown(some).startswith("# ")
    assert report.summary({"rooms_v1": some})
    assert all(math.isfinite(number) for number in some.metrics().values())
    for part, whole in zip(findings.views(some), findings.views(all_of_them), strict=True):
        for few, every in zip(findings.contrasts(part), findings.contrasts(whole), strict=True):
            assert few.overall.by_seed.items() <= every.overall.by_seed.items()
        for room, complete in zip(findings.headroom(part), findings.headroom(whole), strict=True):
            assert room.to_oracle.by_seed.items() <= complete.to_oracle.by_seed.items()


def test_single_numbers_for_a_tracker() -> None:
    numbers = results(example, only()).metrics()
    assert numbers["headroom/depth"] == pytest.approx(20.0)
    assert numbers["headroom closed/medusa"] == pytest.approx(1 / 3)
    assert numbers["features/medusa features over plain, medusa_light head"] == pytest.approx(5.0)
    assert numbers["cells/done"] == numbers["cells/planned"] > 20
    assert results(example, only(), keep=lambda cell: False).metrics().keys() == {"cells/done", "cells/planned"}


# ---- the file


def test_results_are_read_as_they_were_written() -> None:
    found = results(drawn(7), keep=lambda cell: "edges" not in cell.label)
    again = Results.from_json(found.to_json())
    assert again == found
    assert again.to_json() == found.to_json()
    assert again.metrics() == found.metrics()
    assert len(json.loads(found.to_json())["made"]) == 1


def test_results_without_a_cell_are_read_too() -> None:
    found = results(drawn(7), keep=lambda cell: False)
    assert Results.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"a": 1}',
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"scores"', '"results"'),
        lambda text: text.replace('"normals"', '"albedo"', 1),
        lambda text: text.replace('"rmse": 4', '"rmse": "four'),
        lambda text: text.replace('"made": 0', '"made": 7'),
        lambda text: text.replace('"head":', '"hat":'),
    ],
)
def test_a_damaged_file_is_named(damage: Any) -> None:
    text = drawn_results(7).to_json()
    assert damage(text) != text
    with pytest.raises(DataError, match=r"sent\.json holds no results of mode=claims"):
        Results.from_json(damage(text), "sent.json")


def test_unknown_names_are_refused() -> None:
    found = drawn_results()
    with pytest.raises(TaskError, match='Unknown task "depht"'):
        found.score(Pretraining(source="plain"), "depht")
    with pytest.raises(ConfigError, match='Unknown split "test"'):
        found.score(Pretraining(source="plain"), "depth", "test")
    with pytest.raises(ConfigError, match='Unknown source of this setting "medussa"'):
        findings.contrast(main(found), Pair("medussa", "plain"), PLAIN)
    with pytest.raises(ConfigError, match='Unknown head of this setting "heavy"'):
        findings.contrast(main(found), Pair("medusa", "heavy"), PLAIN)
    with pytest.raises(ConfigError, match='task "edges"'):
        Results(PLAN, {name: about for name, about in TASKS.items() if name != "edges"})


def test_values_over_seeds_keep_to_what_is_finite() -> None:
    found = over_seeds((0, 1, 2), lambda seed: (1.0, None, math.inf)[seed])
    assert (found.by_seed, found.n, found.whole, found.mean) == ({0: 1.0}, 1, False, 1.0)
    assert values_of({"scores": {}}) == []
