"""What a study compares and what comes out of it: names, hand-computed measures, and the tables."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from rich.console import Console

from medusa_cl import kept
from medusa_cl.errors import ConfigError
from medusa_cl.job import run
from medusa_cl.study import MEASURES, Member, Outcome, Study, Summary, plan
from medusa_cl.study_run import run_study
from medusa_cl.tracking.comparison import COLUMNS, gains_table, markdown, study_report, values_table
from medusa_cl.tracking.numbers import UNKNOWN
from small_run import SMALL, miniature, typed, without_pictures

PRIMARY = {
    "depth": {"metric": "rmse", "unit": "m", "higher_is_better": False},
    "normals": {"metric": "mean", "unit": "deg", "higher_is_better": False},
    "edges": {"metric": "edge_f", "unit": "%", "higher_is_better": True},
}

# ---------------------------------------------------------------- the plan


def test_members_are_named_by_what_makes_them() -> None:
    texts = {
        "medusa": ("medusa", ("strategy=medusa",)),
        "finetune+ewc+replay": ("finetune+ewc+replay", ("strategy=finetune", "plugins=[ewc,replay]")),
        "medusa head=medusa": ("medusa head=medusa", ("strategy=medusa", "head=medusa")),
        "finetune+lwf strategy.freeze=stages": (
            "finetune+lwf strategy.freeze=stages", ("strategy=finetune", "plugins=[lwf]", "strategy.freeze=stages"),
        ),
        "strategy=joint plugins=[si]": ("joint+si", ("strategy=joint", "plugins=[si]")),
        "head=plain": ("head=plain", ("head=plain",)),
    }  # fmt: skip
    planned = plan(list(texts), [0])
    assert [(member.name, member.overrides) for member in planned] == list(texts.values())


def test_all_members_of_a_seed_come_before_the_next_seed() -> None:
    planned = plan(["medusa", "joint"], [3, 1])
    assert [(m.name, m.seed, m.variant, m.arrangement) for m in planned] == [
        ("medusa", 3, "", ()), ("joint", 3, "", ()), ("medusa", 1, "", ()), ("joint", 1, "", ()),
    ]  # fmt: skip
    assert [m.label for m in planned] == ["medusa-s3", "joint-s3", "medusa-s1", "joint-s1"]


def test_orders_replace_the_listed_one() -> None:
    planned = plan(["medusa"], [0, 1], orders=2)
    assert [(m.variant, m.seed, m.arrangement) for m in planned] == [
        ("order 1", 0, ("scenario.order=random", "scenario.seed=1")),
        ("order 1", 1, ("scenario.order=random", "scenario.seed=1")),
        ("order 2", 0, ("scenario.order=random", "scenario.seed=2")),
        ("order 2", 1, ("scenario.order=random", "scenario.seed=2")),
    ]
    assert planned[0].label == "medusa-s0-order-1"


def test_each_task_is_held_out_once() -> None:
    planned = plan(["medusa head=a/b", "joint"], [0], held_out=["depth", "edges"])
    assert [(m.variant, m.arrangement) for m in planned[::2]] == [
        ("depth alone", ("scenario.held_out=depth",)),
        ("edges alone", ("scenario.held_out=edges",)),
    ]
    assert planned[0].label == "medusa_head=a_b-s0-depth-alone"


def test_one_member_and_one_seed_need_no_list() -> None:
    assert plan("medusa", 2) == [Member("medusa", ("strategy=medusa",), 2)]


@pytest.mark.parametrize(
    ("members", "seeds"),
    [
        ([], [0]),
        (["medusa"], []),
        (["medusa", "medusa"], [0]),
        (["finetune+ewc", "finetune plugins=[ewc]"], [0]),
        (["medusa"], [1, 1]),
    ],
)
def test_nothing_and_repetitions_are_refused(members: list[str], seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"study\.members and study\.seeds without repetitions"):
        plan(members, seeds)


def test_orders_and_held_out_tasks_are_two_studies() -> None:
    with pytest.raises(ConfigError, match=r"study\.orders or study\.leave_one_out, but got both"):
        plan(["medusa"], [0], orders=1, held_out=["depth"])


# ---------------------------------------------------------------- the report


def a_summary(
    values: Mapping[str, Sequence[float | None]],
    base: Sequence[str] = ("depth",),
    forgetting: float | None = 0.0,
    seconds: Mapping[str, float] | None = None,
) -> Summary:
    seconds = seconds or {"base": 10.0, "normals": 2.0, "edges": 4.0}
    added = {"depth": 1_000_000, "normals": 2_000_000, "edges": 4_000_000}
    return {
        "base": list(base),
        "stream": [task for task in values if task not in base],
        "primary": {task: PRIMARY[task] for task in values},
        "matrix": {"values": values},
        "forgetting_percent": {"mean": forgetting},
        "cost": {"params_total": 8_500_000, "params_added": added, "gflops": 1.25, "train_seconds": seconds},
    }


# Seed 0: plain heads reach normals 40, edges 50; single nets depth 2, normals 32, edges 60.
SEED_0: Mapping[str, Summary] = {
    "medusa": a_summary({"depth": [2.5] * 3, "normals": [None, 30.0, 30.0], "edges": [None, None, 55.0]}),
    "finetune": a_summary(
        {"depth": [2.4, 2.6, 3.0], "normals": [None, 28.0, 36.0], "edges": [None, None, 66.0]}, forgetting=26.5
    ),
    "frozen_plain": a_summary({"depth": [2.5] * 3, "normals": [None, 40.0, 40.0], "edges": [None, None, 50.0]}),
    "single_task": a_summary({"depth": [2.0] * 3, "normals": [None, 32.0, 32.0], "edges": [None, None, 60.0]}),
    "joint": a_summary(
        {"depth": [2.2], "normals": [36.0], "edges": [45.0]},
        base=("depth", "normals", "edges"), forgetting=None, seconds={"base": 90.0},
    ),
}  # fmt: skip
# Seed 1: plain heads reach normals 50, edges 40.
SEED_1: Mapping[str, Summary] = {
    "medusa": a_summary({"depth": [2.0] * 3, "normals": [None, 40.0, 40.0], "edges": [None, None, 41.0]}),
    "frozen_plain": a_summary({"depth": [2.0] * 3, "normals": [None, 50.0, 50.0], "edges": [None, None, 40.0]}),
}


def a_study(*seeds: Mapping[str, Summary], planned: Sequence[Member] | None = None) -> Study:
    """The study of all summaries given, one mapping a seed."""
    names = list(seeds[0])
    study = Study(planned or plan(names, range(len(seeds))))
    for member in study.planned:
        if member.seed < len(seeds) and member.name in seeds[member.seed]:
            study.outcomes.append(Outcome(member, seeds[member.seed][member.name], f"runs/x/{member.label}"))
    return study


def means(report: Mapping[str, Any], measure: str) -> dict[str, float | None]:
    return {name: entry["aggregates"][measure]["mean"] for name, entry in report["members"].items()}


def test_new_tasks_against_plain_features_with_plain_heads() -> None:
    """medusa: normals (40 - 30) / 40 = 25 %, edges (55 - 50) / 50 = 10 %; finetune 30 and 32 before it forgets."""
    found = means(a_study(SEED_0).report(), "transfer_plain")
    assert found == pytest.approx(
        {"medusa": 17.5, "finetune": 31.0, "frozen_plain": 0.0, "single_task": 20.0, "joint": 0.0}
    )


def test_new_tasks_against_single_nets() -> None:
    """medusa: normals (32 - 30) / 32 = 6.25 %, edges (55 - 60) / 60 = -8.33 %; joint -12.5 % and -25 %."""
    found = means(a_study(SEED_0).report(), "transfer_single")
    assert found == pytest.approx(
        {"medusa": (6.25 - 25 / 3) / 2, "finetune": 11.25, "frozen_plain": (-25 - 50 / 3) / 2, "single_task": 0.0,
         "joint": -18.75}
    )  # fmt: skip


def test_all_tasks_against_single_nets_in_the_end() -> None:
    """finetune: depth (2 - 3) / 2 = -50 %, normals (32 - 36) / 32 = -12.5 %, edges 10 %."""
    found = means(a_study(SEED_0).report(), "mtl_delta")
    assert found == pytest.approx(
        {"medusa": (-25 + 6.25 - 25 / 3) / 3, "finetune": -17.5, "frozen_plain": (-25 - 25 - 50 / 3) / 3,
         "single_task": 0.0, "joint": (-10 - 12.5 - 25) / 3}
    )  # fmt: skip


def test_forgetting_and_cost() -> None:
    report = a_study(SEED_0).report()
    forgetting = {"medusa": 0.0, "finetune": 26.5, "frozen_plain": 0.0, "single_task": 0.0, "joint": None}
    assert means(report, "forgetting_percent") == forgetting
    assert means(report, "params_total")["medusa"] == 8_500_000
    assert means(report, "params_added")["medusa"] == 3_000_000
    assert means(report, "gflops")["medusa"] == 1.25
    assert (means(report, "train_seconds")["medusa"], means(report, "seconds_added")["medusa"]) == (16.0, 3.0)
    assert (means(report, "train_seconds")["joint"], means(report, "seconds_added")["joint"]) == (90.0, 90.0)


def test_mean_and_sample_deviation_over_seeds() -> None:
    """medusa: 17.5 with seed 0, and (20 + 2.5) / 2 = 11.25 with seed 1."""
    report = a_study({name: SEED_0[name] for name in ("medusa", "frozen_plain")}, SEED_1).report()
    medusa = report["members"]["medusa"]
    assert [run["transfer_plain"] for run in medusa["runs"]] == pytest.approx([17.5, 11.25])
    found = medusa["aggregates"]["transfer_plain"]
    assert found["mean"] == pytest.approx(14.375)
    assert found["spread"] == pytest.approx(6.25 / 2**0.5)
    assert (found["n"], found["why_null"]) == (2, "")
    assert medusa["values"]["normals"] == {"mean": 35.0, "spread": pytest.approx(50**0.5), "n": 2, "why_null": ""}
    assert [run["seed"] for run in medusa["runs"]] == [0, 1]
    assert [run["run_dir"] for run in medusa["runs"]] == ["runs/x/medusa-s0", "runs/x/medusa-s1"]
    assert (report["missing"], report["failures"]) == ([], {})


def test_a_missing_reference_is_null_with_a_reason() -> None:
    report = a_study({name: SEED_0[name] for name in ("medusa", "finetune")}).report()
    found = report["members"]["medusa"]["aggregates"]
    for measure in ("transfer_plain", "transfer_single", "mtl_delta"):
        assert (found[measure]["mean"], found[measure]["spread"]) == (None, None)
        assert found[measure]["why_null"] == "1 of 1 runs have no value"
    assert found["forgetting_percent"]["mean"] == 0.0


def test_a_reference_without_a_value_or_near_zero_is_null() -> None:
    for value in (None, 0.0):
        plain = a_summary({"depth": [2.5] * 3, "normals": [None, 40.0, 40.0], "edges": [None, None, value]})
        assert means(a_study({**SEED_0, "frozen_plain": plain}).report(), "transfer_plain")["medusa"] is None


def test_a_partial_study_says_what_is_missing() -> None:
    """A seed without its reference makes the mean undefined, not a mean over the others."""
    partial = a_study({name: SEED_0[name] for name in ("medusa", "frozen_plain")}, {"medusa": SEED_1["medusa"]})
    report = partial.report()
    assert report["missing"] == ["frozen_plain-s1"]
    found = report["members"]["medusa"]["aggregates"]["transfer_plain"]
    assert (found["mean"], found["why_null"]) == (None, "1 of 2 runs have no value")
    nothing = Study(partial.planned).report()
    assert nothing["missing"] == ["medusa-s0", "frozen_plain-s0", "medusa-s1", "frozen_plain-s1"]
    assert nothing["members"]["medusa"] == {
        "overrides": ["strategy=medusa"],
        "aggregates": {},
        "values": {},
        "runs": [],
    }


def test_what_failed_is_missing_and_says_why() -> None:
    study = a_study({name: SEED_0[name] for name in ("medusa", "frozen_plain")}, planned=plan(["medusa", "joint"], [0]))
    study.outcomes.append(Outcome(study.planned[1], failure="The loss is nan"))
    report = study.report()
    assert report["failures"] == {"joint-s0": "The loss is nan"}
    assert report["missing"] == ["joint-s0"]
    assert report["members"]["joint"]["runs"] == []


def test_members_are_compared_within_a_seed_and_a_variant() -> None:
    """Leave one out: joint is the same run each time; what is new is the task that was held out.

    normals alone: (40 - 30) / 40 = 25 %, joint (40 - 36) / 40 = 10 %; edges alone: (54 - 45) / 45 = 20 %, joint 0.
    """
    bases = {"normals": ("depth", "edges"), "edges": ("depth", "normals")}
    medusa = {
        "normals": a_summary({"depth": [2.0] * 2, "edges": [50.0] * 2, "normals": [None, 30.0]}, bases["normals"]),
        "edges": a_summary({"depth": [2.0] * 2, "normals": [30.0] * 2, "edges": [None, 54.0]}, bases["edges"]),
    }
    plain = {
        "normals": a_summary({"depth": [2.0] * 2, "edges": [50.0] * 2, "normals": [None, 40.0]}, bases["normals"]),
        "edges": a_summary({"depth": [2.0] * 2, "normals": [30.0] * 2, "edges": [None, 45.0]}, bases["edges"]),
    }
    study = Study(plan(["medusa", "frozen_plain", "joint"], [0], held_out=["normals", "edges"]))
    for member in study.planned:
        task = member.variant.split()[0]
        summaries = {"medusa": medusa[task], "frozen_plain": plain[task], "joint": SEED_0["joint"]}
        study.outcomes.append(Outcome(member, summaries[member.name]))
    report = study.report()
    gains = {name: [run["transfer_plain"] for run in entry["runs"]] for name, entry in report["members"].items()}
    assert gains["medusa"] == pytest.approx([25.0, 20.0])
    assert gains["joint"] == pytest.approx([10.0, 0.0])
    assert means(report, "transfer_plain")["medusa"] == pytest.approx(22.5)


# ---------------------------------------------------------------- the tables


LONG = ["finetune+feature_distillation+replay_balanced", "medusa head=medusa"]


def large() -> Mapping[str, Any]:
    """A report with every number as long as it gets, in three seeds."""
    names = ["medusa", "frozen_plain", "single_task", "finetune+ewc+replay", *LONG, "joint"]
    seeds = []
    for factor in (1.0, 1.4, 0.7):
        seconds = {"base": 9000.0 * factor, "normals": 2000.0 * factor, "edges": 3000.0 * factor}
        values = {"depth": [12.345 * factor] * 3, "normals": [None, 130.0, 130.0 * factor]}
        edges = {"edges": [None, None, 5.55 / factor]}
        seeds.append(
            {name: a_summary({**values, **edges}, forgetting=123.4 * factor, seconds=seconds) for name in names}
        )
        seeds[-1]["frozen_plain"] = a_summary(
            {"depth": [2.0] * 3, "normals": [None, 40.0, 40.0], "edges": [None, None, 50.0]}, seconds=seconds
        )
        seeds[-1]["joint"] = SEED_0["joint"]
    return a_study(*seeds).report()


def rendered(what: Any, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_member_takes_one_line() -> None:
    report = large()
    for table in (gains_table(report, "title"), values_table(report)):
        lines = rendered(table)
        (rule,) = (i for i, line in enumerate(lines) if line.strip().startswith("──"))
        body = [line for line in lines[rule + 1 :] if line.strip()]
        assert len(body) == len(report["members"])
        for line, (name, *cells) in zip(body, zip(*(c.cells for c in table.columns), strict=True), strict=True):
            assert line.split()[-len(cells) :] == cells, "a cell was folded or cut"
            assert line.strip().startswith(str(name)[:12])


def test_the_tables_hold_means_spreads_and_nothing_undefined() -> None:
    names = ("medusa", "frozen_plain", "joint")
    report = a_study({name: SEED_0[name] for name in names}, {**SEED_1, "joint": SEED_0["joint"]}).report()
    text = "\n".join(rendered(study_report(report, Path("runs/x/study-0"), "mlflow ui\nhttp://here")))
    medusa, values = (line.split()[1:] for line in text.splitlines() if line.split()[:1] == ["medusa"])
    # against plain, against single, Delta, forgetting, params, a task more, GFLOPs, seconds, a task more
    assert medusa == ["+14.4±4.4", UNKNOWN, UNKNOWN, "0.0", "8.50", "3.00", "1.25", "16", "3"]
    assert values == ["2.25±0.354", "35.00±7.07", "48.00±9.90"]
    assert "nan" not in text.lower()
    assert "None" not in text
    assert "mean and spread over 2 runs" in text
    assert "Not there yet" not in text
    assert "runs/x/study-0/study.json" in text
    assert "http://here" in text


def test_what_is_missing_is_said_below_the_tables() -> None:
    partial = a_study({name: SEED_0[name] for name in ("medusa", "frozen_plain")}, {"medusa": SEED_1["medusa"]})
    assert "Not there yet: frozen_plain-s1." in rendered(study_report(partial.report(), Path("here")))
    assert rendered(study_report(Study(partial.planned).report(), Path("here")))


def test_markdown_has_the_same_cells() -> None:
    report = a_study({name: SEED_0[name] for name in ("medusa", "frozen_plain", "joint")}).report()
    gains, values = markdown(report).rstrip().split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in gains.splitlines()]
    assert {len(row) for row in rows} == {1 + len(COLUMNS)}
    assert set(rows[1]) == {"---"}
    assert rows[0][:5] == [
        "member", "new tasks against plain heads %", "new tasks against single %", "Delta MTL %", "forgetting %",
    ]  # fmt: skip
    assert rows[2] == ["medusa", "+17.5", UNKNOWN, UNKNOWN, "0.0", "8.50", "3.00", "1.25", "16", "3"]
    assert rows[4][:5] == ["joint", "+0.0", UNKNOWN, UNKNOWN, UNKNOWN]
    assert values.splitlines()[0] == "| member | depth rmse m ↓ | normals mean ° ↓ | edges edge_f % ↑ |"
    assert values.splitlines()[2] == "| medusa | 2.50 | 30.00 | 55.00 |"
    assert "nan" not in gains.lower() + values.lower()


def test_every_measure_has_a_column() -> None:
    assert list(COLUMNS) == list(MEASURES)


# ---------------------------------------------------------------- mode=study


MEMBERS = ("medusa", "finetune", "frozen_plain", "single_task", "joint")


class Interrupted(Exception):
    """Stands for Ctrl-C, which would end pytest too."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[Path, list[str]]]:
    """A working directory and the command line of a study in it."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copyfile(empty_store, folder / "store.db")
    own = ["mode=study", f"study.members=[{','.join(MEMBERS)}]", "study.seeds=[0,1]", "trainer.max_steps=1"]
    tracked = ["tracking=mlflow", "tracking.uri=sqlite:///store.db", f"scenario.root={miniature(folder)}"]
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        yield folder, [*SMALL, *own, *tracked]
    os.chdir(before)


def study_of(overrides: Sequence[str]) -> Path:
    """Compute a study, as the command line does but in this process, and return its folder."""
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        run_study(compose("config", list(overrides)), list(overrides))
    (folder,) = Path("runs/nyud_incremental").glob("study-*")
    return folder


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what depends on the clock, and on what was computed before."""
    for member in report["members"].values():
        for entry in (member["aggregates"], *member["runs"]):
            for key in ("train_seconds", "seconds_added", "kept"):
                entry.pop(key, None)
    return report


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return found


def stamps(*folders: Path) -> dict[Path, int]:
    """When each file of the runs was written."""
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_a_study_is_computed_once(
    lab: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted, finished, called again, and once more after a member was lost."""
    home, overrides = lab
    monkeypatch.chdir(home)
    labels = [f"{name}-s{seed}" for seed in (0, 1) for name in MEMBERS]
    _interrupt_after(3, overrides)
    (folder,) = Path("runs/nyud_incremental").glob("study-*")
    assert read(folder)["missing"] == labels[3:]
    begun = stamps(*(folder / label for label in labels[:3]))

    assert study_of(overrides) == folder
    assert stamps(*(folder / label for label in labels[:3])) == begun, "what was there is not learnt again"
    report = read(folder)
    _complete(report, folder, labels)
    _tracked(home, report)

    there = stamps(Path("runs/.cache"), *(folder / label for label in labels))
    capsys.readouterr()
    assert typed(*overrides) == 0
    assert "mean and spread over 2 runs" in capsys.readouterr().out
    assert stamps(Path("runs/.cache"), *(folder / label for label in labels)) == there
    again = read(folder)
    assert all(run["kept"] for member in again["members"].values() for run in member["runs"])
    assert untimed(again) == untimed(report)
    _tracked(home, report)

    lost = str(folder / "finetune-s1")
    notes = [path for path in Path("runs/.cache").glob("run-*.json") if kept.read(path)["run_dir"] == lost]
    assert len(notes) == 1
    notes[0].unlink()
    shutil.rmtree(lost)
    study_of(overrides)
    assert untimed(read(folder)) == untimed(report)
    assert (Path(lost) / "summary.json").is_file()


def _interrupt_after(count: int, overrides: Sequence[str]) -> None:
    done = []

    def learn(cfg: Any, overrides: Sequence[str]) -> Any:
        if len(done) == count:
            raise Interrupted
        done.append(cfg.out)
        return run(cfg, overrides)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("medusa_cl.job.run", learn)
        study_of(overrides)
    assert len(done) == count


def _complete(report: Mapping[str, Any], folder: Path, labels: Sequence[str]) -> None:
    assert (report["missing"], report["failures"]) == ([], {})
    assert list(report["members"]) == list(MEMBERS)
    found = [run["run_dir"] for member in report["members"].values() for run in member["runs"]]
    assert sorted(found) == sorted(str(folder / label) for label in labels)
    values = {name: entry["values"] for name, entry in report["members"].items()}
    for name, entry in report["members"].items():
        assert set(entry["values"]) == {"semseg", "depth", "normals", "edges"}
        gains = entry["aggregates"]
        assert (gains["transfer_plain"]["n"], gains["transfer_plain"]["why_null"]) == (2, ""), name
        assert gains["transfer_single"]["mean"] is not None
        assert gains["transfer_plain"]["spread"] > 0 or name == "frozen_plain"
    assert report["members"]["frozen_plain"]["aggregates"]["transfer_plain"]["mean"] == 0
    assert report["members"]["single_task"]["aggregates"]["transfer_single"]["mean"] == 0
    for member in ("medusa", "joint"):  # by hand from what the runs themselves say
        gain = [_transfer(folder, member, task, seed) for task in ("normals", "edges") for seed in (0, 1)]
        assert report["members"][member]["aggregates"]["transfer_plain"]["mean"] == pytest.approx(sum(gain) / 4)
    assert values["medusa"]["depth"] != values["finetune"]["depth"]
    assert (folder / "study.md").read_text(encoding="utf-8") == markdown(report)


def _transfer(folder: Path, member: str, task: str, seed: int) -> float:
    def value(name: str) -> float:
        found = json.loads((folder / f"{name}-s{seed}" / "summary.json").read_text(encoding="utf-8"))
        return float(next(v for v in found["matrix"]["values"][task] if v is not None))

    sign = {"normals": -1, "edges": 1}[task]
    return 100 * sign * (value(member) - value("frozen_plain")) / value("frozen_plain")


def _tracked(home: Path, report: Mapping[str, Any]) -> None:
    """One parent with the aggregates, and a child for each run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'store.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "nyud_incremental")
    found = client.search_runs([experiment.experiment_id])
    (parent,) = (r for r in found if "study" in r.data.tags)
    children = [r for r in found if r is not parent]
    assert {r.data.tags.get("mlflow.parentRunId") for r in children} == {parent.info.run_id}
    named = {Path(r.data.tags["run_dir"]).name for r in children}
    assert named == {Path(run["run_dir"]).name for m in report["members"].values() for run in m["runs"]}
    assert len(children) == 10
    assert (parent.info.status, {r.info.status for r in children}) == ("FINISHED", {"FINISHED"})
    for name in MEMBERS:
        mean = report["members"][name]["aggregates"]["transfer_plain"]["mean"]
        assert parent.data.metrics[f"transfer_plain/{name}"] == pytest.approx(mean)


def test_a_member_that_is_misspelt_is_said(lab: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    home, overrides = lab
    monkeypatch.chdir(home)
    with pytest.raises(ConfigError, match=r'Unknown strategy "medussa".*Did you mean "medusa"'):
        study_of([*overrides, "study.members=[medussa]"])
