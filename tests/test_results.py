"""The arithmetic of a run's summary, against numbers worked out by hand."""

import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_cl.errors import DataError, TaskError
from medusa_cl.results import TaskMatrix, better_by, mean_and_spread, mtl_delta, summary_parts, transfer

HIGHER = {"semseg": True, "depth": False, "normals": False, "edges": True}


def stream() -> TaskMatrix:
    """Two base tasks, then normals, then edges; depth gets better in the end, semseg worse, normals worse."""
    matrix = TaskMatrix([["semseg", "depth"], ["normals"], ["edges"]], HIGHER)
    matrix.set_row(0, {"semseg": 40.0, "depth": 0.50})
    matrix.set_row(1, {"semseg": 44.0, "depth": 0.60, "normals": 20.0})
    matrix.set_row(2, {"semseg": 38.0, "depth": 0.40, "normals": 25.0, "edges": 70.0})
    return matrix


REFERENCES: dict[str, dict[str, float | None]] = {
    "single_task": {"semseg": 50.0, "depth": 0.5, "normals": 16.0, "edges": 80.0},
    "frozen_plain": {"normals": 25.0, "edges": 56.0},
    "frozen_plain_control": {"normals": 21.0, "edges": 68.0},
    "frozen_plain_medusa": {"normals": 22.5, "edges": 63.0},
}


def test_direction_is_known_in_one_place() -> None:
    assert better_by(3.0, 1.0, higher_is_better=True) == 2.0
    assert better_by(3.0, 1.0, higher_is_better=False) == -2.0
    assert math.copysign(1, better_by(1.0, 1.0, higher_is_better=False)) == 1  # 0.0, not -0.0


@pytest.mark.parametrize(
    ("value", "reference", "higher", "expected"),
    [
        (44.0, 40.0, True, 10.0),
        (36.0, 40.0, True, -10.0),
        (0.45, 0.5, False, 10.0),
        (0.55, 0.5, False, -10.0),
        (-4.0, -5.0, True, 20.0),
        (5.0, 5.0, False, 0.0),
        (0.0, 5.0, True, -100.0),
    ],
)
def test_transfer(value: float, reference: float, higher: bool, expected: float) -> None:
    assert transfer(value, reference, higher) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "reference"), [(None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -1e-9), (math.nan, 1.0), (1.0, math.inf)]
)
def test_undefined_transfer_is_none(value: float | None, reference: float | None) -> None:
    assert transfer(value, reference, True) is None


def test_mtl_delta() -> None:
    values = {"semseg": 55.0, "depth": 0.4, "normals": 17.0}
    single = {"semseg": 50.0, "depth": 0.5, "normals": 16.0}
    assert mtl_delta(values, single, HIGHER) == pytest.approx((10 + 20 - 100 / 16) / 3)
    assert mtl_delta(values, single | {"depth": None}, HIGHER) is None
    assert mtl_delta({}, {}, HIGHER) is None


def test_forgetting_counts_every_base_task_and_not_the_last_task() -> None:
    matrix = stream()
    assert matrix.old_tasks == ("semseg", "depth", "normals")
    assert matrix.forgetting("semseg") == pytest.approx(2.0)
    assert matrix.forgetting("depth") == pytest.approx(-0.1)
    assert matrix.forgetting("normals") == pytest.approx(5.0)
    assert matrix.forgetting("edges") is None
    assert matrix.mean_forgetting() == pytest.approx((2.0 - 0.1 + 5.0) / 3)
    assert matrix.bwt() == pytest.approx(-(2.0 - 0.1 + 5.0) / 3)
    assert matrix.forgetting_best("semseg") == pytest.approx(6.0)
    assert matrix.forgetting_best("depth") == pytest.approx(-0.1)
    assert matrix.forgetting_percent("semseg") == pytest.approx(5.0)
    assert matrix.forgetting_percent("depth") == pytest.approx(-20.0)
    assert matrix.forgetting_percent("normals") == pytest.approx(25.0)


def test_every_result_after_any_experience() -> None:
    """After normals, semseg had gained 4 and depth had lost 0.1; nothing could be forgotten after the base."""
    matrix = stream()
    assert [matrix.learnt_before(k) for k in range(3)] == [(), ("semseg", "depth"), ("semseg", "depth", "normals")]
    assert matrix.forgetting("semseg", 1) == -4.0 and matrix.forgetting("semseg", 2) == 2.0
    assert matrix.forgetting("depth", 1) == pytest.approx(0.1)
    assert matrix.forgetting_best("semseg", 1) == -4.0 and matrix.forgetting_best("semseg", 2) == 6.0
    assert matrix.forgetting_percent("semseg", 1) == -10.0
    assert matrix.forgetting_percent("depth", 1) == pytest.approx(20.0)
    assert matrix.mean_forgetting(1) == pytest.approx(-3.9 / 2) and matrix.bwt(1) == pytest.approx(3.9 / 2)
    assert matrix.mean_forgetting_percent(1) == pytest.approx(5.0)
    assert matrix.mean_forgetting_best() == pytest.approx((6.0 - 0.1 + 5.0) / 3)
    assert matrix.forgetting("normals", 1) is None
    assert matrix.mean_forgetting(0) is matrix.bwt(0) is matrix.mean_forgetting_best(0) is None


@pytest.mark.parametrize("k", [-1, 3])
def test_an_experience_without_a_row_is_refused(k: int) -> None:
    for ask in (lambda m: m.forgetting("depth", k), lambda m: m.bwt(k), lambda m: m.relative({}, k)):
        with pytest.raises(ValueError, match=f"0 to 2, but got {k}"):
            ask(stream())


def test_forward_transfer_by_hand() -> None:
    """Ahead of their experiences: normals 60 against 90 untrained (30 better), edges 5 against 8 (3 worse)."""
    matrix = stream()
    untrained = {"normals": 90.0, "edges": 8.0}
    assert matrix.fwt(untrained) is None
    matrix.set_ahead("normals", 60.0)
    assert matrix.fwt(untrained, 1) == 30.0 and matrix.fwt(untrained) is None
    matrix.set_ahead("edges", 5.0)
    assert matrix.fwt(untrained) == pytest.approx((30.0 - 3.0) / 2)
    assert matrix.fwt(untrained, 0) is matrix.fwt({"normals": 90.0}) is matrix.fwt(None) is None
    assert matrix.R(0, "normals") is None and matrix.ahead("normals") == 60.0
    with pytest.raises(TaskError, match="learnt in experience 0"):
        matrix.set_ahead("depth", 1.0)
    with pytest.raises(TaskError, match='Did you mean "edges"'):
        matrix.set_ahead("edge", 1.0)


def test_forward_transfer_in_the_summary() -> None:
    matrix = stream()
    assert "fwt" not in summary_parts(matrix, REFERENCES)["transfer"]
    references = {**REFERENCES, "untrained": {"normals": 90.0, "edges": 8.0}}
    lacking = summary_parts(matrix, references)["transfer"]
    assert lacking["fwt"] is None
    assert lacking["why_null"]["fwt"].startswith("normals: it has no value before it was learnt; edges: ")
    for task, value in {"normals": 60.0, "edges": 5.0}.items():
        matrix.set_ahead(task, value)
    assert summary_parts(matrix, references)["transfer"]["fwt"] == pytest.approx(13.5)


def test_relative_to_a_reference_after_any_experience() -> None:
    matrix, single = stream(), REFERENCES["single_task"]
    assert matrix.relative(single, 0) == pytest.approx({"semseg": -20.0, "depth": 0.0, "mean": -10.0})
    assert matrix.relative(single, 1) == pytest.approx(
        {"semseg": -12.0, "depth": -20.0, "normals": -25.0, "mean": -57.0 / 3}
    )
    assert matrix.relative(single)["mean"] == summary_parts(matrix, REFERENCES)["relative"]["mtl_delta"]
    near_zero = matrix.relative({**single, "depth": 1e-7})
    assert near_zero["depth"] is near_zero["mean"] is None and near_zero["semseg"] == -24.0


def test_steps_of_the_summary() -> None:
    gains = summary_parts(stream(), REFERENCES)["transfer"]
    assert gains["bwt"] == pytest.approx(-2.3)
    assert gains["steps"]["base"] == {"mtl_delta": pytest.approx(-10.0)}
    assert gains["steps"]["normals"] == pytest.approx(
        {
            "forgetting": -1.95,
            "forgetting_best": -1.95,
            "forgetting_percent": 5.0,
            "bwt": 1.95,
            "mtl_delta": -19.0,
        }
    )
    assert gains["steps"]["edges"]["forgetting_best"] == pytest.approx(10.9 / 3)


def test_a_value_near_zero_has_no_percentage_but_can_be_forgotten() -> None:
    matrix = TaskMatrix([["semseg", "depth"], ["edges"]], HIGHER)
    matrix.set_row(0, {"semseg": 50.0, "depth": 1e-8})
    matrix.set_row(1, {"semseg": 45.0, "depth": 0.5, "edges": 70.0})
    assert matrix.forgetting("depth") == pytest.approx(0.5) and matrix.mean_forgetting() == pytest.approx(2.75)
    assert matrix.forgetting_percent("depth") is None and matrix.forgetting_percent("semseg") == 10.0
    assert matrix.mean_forgetting_percent() is None


def test_an_empty_row_leaves_forgetting_undefined_with_a_reason() -> None:
    matrix = TaskMatrix([["depth"], ["normals"], ["edges"]], HIGHER)
    for k, row in enumerate(({}, {"depth": 0.5, "normals": 20.0}, {"depth": 0.75, "normals": 22.0, "edges": 70.0})):
        matrix.set_row(k, row)
    assert matrix.forgetting("depth") is None and matrix.forgetting("normals") == 2.0
    assert matrix.forgetting_best("depth") == 0.25
    assert matrix.bwt() is matrix.forgetting("depth", 1) is None
    why = summary_parts(matrix, {})["transfer"]["why_null"]
    assert why["bwt"] == "depth: it has no value before the last row"
    assert why["steps.normals.forgetting"] == "depth: it has no value before row normals"


def test_a_matrix_grows_with_the_stream() -> None:
    grown = TaskMatrix([], {})
    for names, row in zip(stream().experiences, stream().rows, strict=True):
        grown.grow(names, HIGHER)
        grown.set_row(grown.last + 1, row)
    assert summary_parts(grown, REFERENCES) == summary_parts(stream(), REFERENCES)
    with pytest.raises(TaskError, match="2 times"):
        grown.grow(["depth"], HIGHER)
    with pytest.raises(TaskError, match="direction"):
        grown.grow(["flow"], HIGHER)
    assert grown.tasks == stream().tasks


@pytest.mark.parametrize("values", [[3.0, 5.0, 10.0], [-1.0, -1.0], [1e8 + 1, 1e8 + 2, 1e8 + 3]])
def test_mean_and_spread(values: list[float]) -> None:
    mean, deviation, why = mean_and_spread(values)
    assert mean == pytest.approx(statistics.mean(values)) and why == ""
    assert deviation == pytest.approx(statistics.stdev(values))


def test_mean_and_spread_say_what_is_missing() -> None:
    assert mean_and_spread([7.0]) == (7.0, None, "one run has no spread")
    assert mean_and_spread([]) == (None, None, "there is no run")
    assert mean_and_spread([1.0, None, math.nan]) == (None, None, "2 of 3 runs have no value")


def test_matrix_cells() -> None:
    matrix = stream()
    assert matrix.after == ("base", "normals", "edges")
    assert matrix.R(0, "normals") is None and matrix.R(1, "normals") == 20.0 and matrix.R(5, "normals") is None
    assert matrix.just_learnt("edges") == matrix.final("edges") == 70.0
    assert (matrix.base, matrix.stream, matrix.last) == (("semseg", "depth"), ("normals", "edges"), 2)


def test_a_row_recorded_again_is_replaced_and_later_ones_stay() -> None:
    matrix = stream()
    matrix.set_row(1, {"semseg": 1.0, "depth": 2.0, "normals": 3.0})
    assert matrix.R(1, "semseg") == 1.0 and matrix.R(2, "semseg") == 38.0 and matrix.last == 2


def test_what_a_matrix_refuses() -> None:
    matrix = TaskMatrix([["depth"], ["edges"]], HIGHER)
    with pytest.raises(ValueError, match="got 1"):
        matrix.set_row(1, {"depth": 1.0})
    with pytest.raises(TaskError, match="learnt in 1"):
        matrix.set_row(0, {"edges": 1.0})
    with pytest.raises(TaskError, match='Did you mean "depth"'):
        matrix.set_row(0, {"dept": 1.0})
    with pytest.raises(TaskError, match="2 times"):
        TaskMatrix([["depth"], ["depth"]], HIGHER)
    with pytest.raises(TaskError, match="direction"):
        TaskMatrix([["flow"]], HIGHER)
    with pytest.raises(TaskError, match="mean"):
        TaskMatrix([["mean"]], {"mean": True})


def test_summary_parts_of_a_frozen_stream() -> None:
    parts = summary_parts(stream(), REFERENCES)
    assert list(parts) == ["matrix", "forgetting", "forgetting_best", "forgetting_percent", "transfer", "relative"]
    assert parts["matrix"]["after"] == ["base", "normals", "edges"]
    assert parts["matrix"]["values"]["normals"] == [None, 20.0, 25.0]
    assert parts["forgetting"]["mean"] == pytest.approx(2.3)
    assert parts["forgetting_percent"]["mean"] == pytest.approx(10 / 3)
    gains = parts["transfer"]
    normals = gains["per_task"]["normals"]
    assert normals.pop("references") == {name: values["normals"] for name, values in REFERENCES.items()}
    assert normals == pytest.approx(
        {
            "value": 20.0,
            "delta": -25.0,
            "gain": 20.0,
            "feature_gain": 100 * 2.5 / 22.5,
            "control_gain": 100 / 21,
            "head_gain": 10.0,
            "attention_gain": -100 * 1.5 / 21,
        }
    )
    assert gains["ufl_delta"] == pytest.approx((-25.0 - 12.5) / 2)
    assert gains["ufl_gain"] == pytest.approx((20.0 + 25.0) / 2)
    assert gains["head_gain"] == pytest.approx((10.0 + 12.5) / 2)
    assert gains["feature_gain"] == pytest.approx((100 * 2.5 / 22.5 + 100 * 7 / 63) / 2)
    assert gains["control_gain"] == pytest.approx((100 / 21 + 100 * 2 / 68) / 2)
    assert gains["attention_gain"] == pytest.approx((-100 * 1.5 / 21 - 100 * 5 / 68) / 2)
    assert gains["references"] == list(REFERENCES) and gains["reference_values"] == REFERENCES
    assert gains["why_null"] == {}
    assert parts["relative"]["mtl_delta"] == pytest.approx((-24.0 + 20.0 - 56.25 - 12.5) / 4)


def nulls(tree: object, path: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [p for key, node in tree.items() for p in nulls(node, f"{path}.{key}".lstrip("."))]
    return [path] if tree is None else []


def test_every_null_has_a_reason_and_nothing_else_has() -> None:
    matrix = stream()
    matrix.set_row(2, {"semseg": math.nan, "depth": 0.4, "normals": 25.0, "edges": 70.0})
    references = {"frozen_plain": {"normals": 25.0}, "single_task": {**REFERENCES["single_task"], "edges": 0.0}}
    parts = summary_parts(matrix, references)
    json.dumps(parts, allow_nan=False)
    why = parts["transfer"]["why_null"]
    assert parts["forgetting"]["semseg"] is None and parts["forgetting"]["depth"] == pytest.approx(-0.1)
    assert why["matrix.edges.semseg"] and why["forgetting.mean"].startswith("semseg: ")
    assert "has no value for it" in why["per_task.edges.gain"] and "edges: " in why["ufl_gain"]
    assert "too near 0" in why["per_task.edges.delta"]
    assert why["feature_gain"].startswith("normals: there is no reference frozen_plain_medusa")
    shown = {key: part for key, part in parts.items() if key not in ("transfer", "matrix")}
    paths = nulls(shown) + nulls(parts["transfer"])
    assert set(paths) == {path for path in why if not path.startswith("matrix.")}
    assert all(isinstance(reason, str) and reason for reason in why.values())


def test_means_are_for_frozen_backbones_and_feature_gain_for_medusa_heads() -> None:
    tuned = summary_parts(stream(), REFERENCES, frozen=False)["transfer"]
    assert [tuned[k] for k in ("ufl_delta", "ufl_gain", "feature_gain", "control_gain")] == [None] * 4
    assert tuned["head_gain"] is not None and tuned["attention_gain"] is not None
    assert tuned["per_task"]["edges"]["delta"] == -12.5
    assert tuned["why_null"]["ufl_gain"] == "the backbone was not frozen"
    plain = summary_parts(stream(), REFERENCES, medusa_head=False)["transfer"]
    assert plain["feature_gain"] is None and plain["ufl_gain"] is not None


def test_a_single_experience_forgets_nothing_and_learns_nothing_new() -> None:
    matrix = TaskMatrix([["semseg", "depth"]], HIGHER)
    matrix.set_row(0, {"semseg": 40.0, "depth": 0.5})
    parts = summary_parts(matrix, {})
    assert parts["forgetting"] == {"mean": None} and parts["transfer"]["ufl_delta"] is None
    assert "one experience" in parts["transfer"]["why_null"]["forgetting.mean"]
    assert parts["transfer"]["why_null"]["ufl_delta"] == "no new task was learnt"


def test_an_empty_matrix_has_no_numbers() -> None:
    parts = summary_parts(TaskMatrix([["depth"], ["edges"]], HIGHER), {})
    assert parts["matrix"] == {"after": [], "values": {"depth": [], "edges": []}}
    assert parts["relative"]["mtl_delta"] is None


def test_exactly_zero_forgetting_is_plus_zero() -> None:
    matrix = TaskMatrix([["depth"], ["edges"]], HIGHER)
    matrix.set_row(0, {"depth": 0.5})
    matrix.set_row(1, {"depth": 0.5, "edges": 70.0})
    assert json.dumps(summary_parts(matrix, {})["forgetting"]) == '{"depth": 0.0, "mean": 0.0}'
    assert json.dumps(matrix.bwt()) == "0.0"


values = st.floats(1.0, 100.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(values, min_size=6, max_size=6), st.lists(values, min_size=3, max_size=3))
def test_turning_every_metric_round_changes_no_result(cells: list[float], reference: list[float]) -> None:
    def parts(sign: float) -> dict[str, object]:
        matrix = TaskMatrix([["a"], ["b"], ["c"]], dict.fromkeys("abc", sign > 0))
        for k, stop in enumerate((1, 3, 6)):
            matrix.set_row(k, {t: sign * v for t, v in zip("abc", cells[stop - k - 1 : stop], strict=False)})
        result = summary_parts(matrix, {"single_task": {t: sign * v for t, v in zip("abc", reference, strict=True)}})
        for task in result["transfer"]["per_task"].values():
            del task["value"], task["references"]
        del result["matrix"], result["transfer"]["reference_values"]
        return result

    assert parts(1.0) == parts(-1.0)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_csv_round_trip(tmp_path: Path, rows: int) -> None:
    whole, matrix = stream(), TaskMatrix(stream().experiences, HIGHER)
    whole.rows[1]["depth"] = 1 / 3
    for k in range(rows):
        matrix.set_row(k, whole.rows[k])
    matrix.set_ahead("edges", 2.5)
    path = tmp_path / "task_matrix.csv"
    matrix.to_csv(path)
    again = TaskMatrix.from_csv(path, HIGHER)
    assert again.ahead("edges") == 2.5 and again.ahead("normals") is None
    assert again.experiences == matrix.experiences
    assert [[again.R(k, t) for t in again.tasks] for k in range(rows)] == [
        [matrix.R(k, t) for t in matrix.tasks] for k in range(rows)
    ]
    assert again.last == matrix.last


def test_csv_as_people_read_it(tmp_path: Path) -> None:
    path = tmp_path / "task_matrix.csv"
    stream().to_csv(path)
    lines = path.read_text().splitlines()
    assert lines[:3] == ["after,semseg,depth,normals,edges", "base,40.0,0.5,,", "normals,44.0,0.6,20.0,"]


@pytest.mark.parametrize("text", ["", "after,depth\nbase,much\n", "after,depth,edges\nbase,1.0\n"])
def test_a_foreign_csv_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task_matrix.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="Expected a task matrix"):
        TaskMatrix.from_csv(path, HIGHER)
