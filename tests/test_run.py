"""The main job end to end on miniature data, and every error a user meets on the way to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medusa_cl.errors import ConfigError, DataError, MissingDataError, TaskError, TrainingError, WeightsError
from medusa_cl.job import run
from medusa_cl.strategies.references import HEAD_OF
from small_run import SMALL, config, miniature, small, typed, without_pictures


@pytest.fixture(scope="session")
def nyud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of NYUD-v2 in our format."""
    return miniature(tmp_path_factory.mktemp("nyud"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where nothing is drawn."""
    without_pictures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def no_clock() -> Iterator[None]:
    """Single-task nets are learnt where an estimate in seconds allows it: no clock decides a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_cl.job_references._single_task_seconds", lambda _: float("inf"))
        yield


@pytest.fixture(scope="module")
def finished(nyud: Path, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, dict[str, Any]]:
    """A working directory in which one run was finished, and its summary as returned."""
    home = tmp_path_factory.mktemp("finished")
    (home / "runs").mkdir()
    shutil.copyfile(empty_store, home / "runs" / "mlflow.db")
    before = Path.cwd()
    os.chdir(home)
    try:
        return home, run(small(nyud, "tracking=mlflow", "tracking.uri=sqlite:///runs/mlflow.db"))
    finally:
        os.chdir(before)


def test_the_run_directory_is_complete(finished: tuple[Path, dict[str, Any]]) -> None:
    home, summary = finished
    folder = home / summary["run_dir"]
    assert folder == home / "runs/nyud_incremental/medusa-test_efficientnet-s0-0"
    expected = [
        "config.yaml", "overrides.yaml", "metrics.jsonl", "task_matrix.csv", "summary.json",
        "heads/semseg.safetensors", "heads/edges.safetensors", "checkpoints/experience_0/model.safetensors",
        "model/model.json", "panels/overview.png", "panels/normals-03.png", "panels/semseg-04.png",
        "panels/forgetting_heatmap.png", "panels/transfer_bars.png",
    ]  # fmt: skip
    assert [name for name in expected if not (folder / name).is_file()] == []


def test_the_summary_says_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    home, summary = finished
    kept = json.loads((home / summary["run_dir"] / "summary.json").read_text())
    assert kept == {k: v for k, v in summary.items() if k not in ("run_dir", "objective")}
    keys = "scenario strategy backbone head seed version device base stream primary matrix forgetting forgetting_best "
    keys += "forgetting_percent transfer relative cost provenance frozen steps_left_out labels stages"
    assert set(keys.split()) == set(kept)
    assert (kept["base"], kept["stream"]) == (["semseg", "depth"], ["normals", "edges"])
    assert kept["primary"]["depth"] == {"metric": "rmse", "unit": "m", "higher_is_better": False}
    assert kept["matrix"]["after"] == ["base", "normals", "edges"]
    assert kept["matrix"]["values"]["edges"][:2] == [None, None]
    assert kept["forgetting"] == {"semseg": 0.0, "depth": 0.0, "normals": 0.0, "mean": 0.0}
    assert kept["transfer"]["references"] == ["frozen_plain", "frozen_plain_control", "frozen_plain_medusa"]
    assert kept["transfer"]["ufl_delta"] is None
    assert "single_task" in kept["transfer"]["why_null"]["ufl_delta"]
    assert all(kept["cost"]["params_added"][task] > 0 for task in ("semseg", "depth", "normals", "edges"))
    assert kept["cost"]["gflops"] > 0
    assert set(kept["provenance"]["data_hash"]) == {"train", "test"}


def test_transfer_is_measured_against_named_references(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    for task, direction in (("normals", -1), ("edges", 1)):
        entry = summary["transfer"]["per_task"][task]
        plain, medusa = (entry["references"][name] for name in ("frozen_plain", "frozen_plain_medusa"))
        value = next(v for v in summary["matrix"]["values"][task] if v is not None)
        assert entry["gain"] == pytest.approx(100 * direction * (value - plain) / plain)
        assert entry["feature_gain"] == pytest.approx(100 * direction * (value - medusa) / medusa)
        assert entry["head_gain"] == pytest.approx(100 * direction * (medusa - plain) / plain)


def test_mlflow_holds_the_run(finished: tuple[Path, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    home, summary = finished
    client = MlflowClient(f"sqlite:///{home / 'runs/mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "nyud_incremental")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["strategy"] == "medusa"
    assert found.data.params["trainer.max_steps"] == "3"
    assert found.data.metrics["final/forgetting_mean"] == 0
    assert found.data.metrics["test/depth_rmse"] == pytest.approx(summary["matrix"]["values"]["depth"][-1])
    learnt = client.get_metric_history(found.info.run_id, "test/depth_rmse")
    assert [point.step for point in learnt] == [2, 3, 4]
    assert (home / "runs/mlartifacts").is_dir()
    assert not (home / "mlruns").exists()


def test_the_same_seed_gives_the_same_numbers(finished: tuple[Path, dict[str, Any]], nyud: Path, home: Path) -> None:
    again = run(small(nyud, "references=none", "trainer.workers=2"))
    assert again["matrix"] == finished[1]["matrix"]


def test_a_run_can_start_from_anothers_base(
    finished: tuple[Path, dict[str, Any]], nyud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning from Medusa's base: the same first row, the base's references, and forgetting."""
    home, summary = finished
    monkeypatch.chdir(home)
    tuned = run(small(nyud, "strategy=finetune", f"base={summary['run_dir']}", "trainer.lr_backbone=0.1"))
    row = {task: values[0] for task, values in tuned["matrix"]["values"].items()}
    assert row == {task: values[0] for task, values in summary["matrix"]["values"].items()}
    assert tuned["transfer"]["reference_values"] == summary["transfer"]["reference_values"]
    assert tuned["forgetting"]["semseg"] != 0 or tuned["forgetting"]["depth"] != 0
    assert tuned["transfer"]["ufl_gain"] is None
    assert "frozen" in tuned["transfer"]["why_null"]["ufl_gain"]
    assert tuned["objective"] is not None
    assert "base" not in tuned["cost"]["train_seconds"]


def test_references_are_kept(
    finished: tuple[Path, dict[str, Any]], nyud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, summary = finished
    monkeypatch.chdir(home)
    kept = {p: p.stat().st_mtime_ns for p in (home / "runs/.cache").rglob("*") if p.is_file()}
    names = sorted(
        path.name.rpartition("-")[0] for path in kept if path.suffix == ".json" and path.name != "model.json"
    )
    tasks = [f"{name}-{task}" for name in HEAD_OF for task in ("edges", "normals")]
    assert names == sorted(["base", "run", *tasks])
    again = run(small(nyud))
    assert again["run_dir"].endswith("-s0-1")
    assert again["transfer"]["reference_values"] == summary["transfer"]["reference_values"]
    assert {p: p.stat().st_mtime_ns for p in (home / "runs/.cache").rglob("*") if p.is_file() and p in kept} == kept


def test_single_task_nets_give_delta(nyud: Path, home: Path) -> None:
    summary = run(small(nyud, "references=[single_task]", "scenario.base=[depth]", "scenario.stream=[normals]"))
    assert summary["transfer"]["ufl_delta"] is not None
    assert summary["relative"]["mtl_delta"] is not None
    assert summary["transfer"]["ufl_gain"] is None


def test_composed_plugins_are_named(nyud: Path, home: Path) -> None:
    summary = run(small(nyud, "strategy=finetune", "plugins=[ewc,replay]", "references=none"))
    assert summary["strategy"] == "finetune+ewc+replay"


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ("scenario.stream=[normal]", TaskError, 'Unknown task "normal".*Did you mean "normals"'),
        ("scenario.stream=[depth]", TaskError, '"depth" would be learnt twice'),
        ("scenario.stream=[normals,normals]", TaskError, '"normals" would be learnt twice'),
        ("scenario.base=[]", TaskError, "scenario.base is empty"),
        ("backbone.name=test_eficientnet", ConfigError, 'Did you mean "test_efficientnet"'),
        ("trainer.device=cuda", ConfigError, "finds no CUDA device. Use trainer.device=auto or cpu"),
        ("trainer.device=gpu", ConfigError, 'Unknown trainer.device "gpu"'),
        ("trainer.precision=16", ConfigError, 'Unknown trainer.precision "16"'),
        ("trainer.schedule=cosin", ConfigError, 'Did you mean "cosine"'),
        ("trainer.select=test", ConfigError, 'Unknown trainer.select "test".*Known: last, val'),
        ("trainer.select=val", ConfigError, r"needs a val split.*Set scenario\.val_fraction=0\.1"),
        ("scenario.held_out=normal", TaskError, 'Unknown task to hold out "normal".*Did you mean "normals"'),
        ("scenario.order=radom", ConfigError, 'Unknown scenario.order "radom"'),
        ("scenario.on_bad_sample=ignore", ConfigError, 'Unknown scenario.on_bad_sample "ignore"'),
        ("scenario.image_size=[8,8]", ConfigError, r"scenario\.image_size of at least \[32, 48\]"),
        ("references=[frozen_plan]", ConfigError, 'Did you mean "frozen_plain"'),
        ("references=some", ConfigError, "Expected references=auto, none or a list"),
        ("base=nowhere", ConfigError, "no model.json in nowhere"),
        ("base=last", ConfigError, "no run under runs/ has learnt"),
        ("head.sfa=gatd", ConfigError, 'Did you mean "gated"'),
        ("strategy.freeze=al", ConfigError, 'Unknown strategy.freeze "al"'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(nyud: Path, home: Path, override: str, error: type[Exception], said: str) -> None:
    if override.startswith("trainer.device=cuda"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=said):
        run(small(nyud, override))
    assert not list(home.glob("runs/*/*/config.yaml")), "a run that never began leaves nothing"


def test_weights_that_are_not_to_be_had_are_an_error(nyud: Path, home: Path) -> None:
    with pytest.raises(WeightsError, match="checkpoint"):
        run(small(nyud, "backbone.pretrained=true"))


def test_missing_data_lists_the_places(home: Path) -> None:
    with pytest.raises(MissingDataError, match=r"NYUD_MT\.h5.*scenario\.root=.*rooms_incremental") as caught:
        run(config(*SMALL))
    assert caught.value.exit_code == 2


def test_a_damaged_file_is_named(nyud: Path, home: Path) -> None:
    broken = home / "broken.h5"
    broken.write_bytes(nyud.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"broken\.h5"):
        run(small(broken))


def test_a_run_directory_in_use_is_refused(nyud: Path, home: Path) -> None:
    quick = ("out=mine", "references=none", "scenario.stream=[normals]")
    run(small(nyud, *quick))
    kept = (home / "mine" / "summary.json").read_text()
    with pytest.raises(ConfigError, match=r"mine is not empty\. Add overwrite=true"):
        run(small(nyud, *quick))
    with pytest.raises(DataError):
        run(small(home / "none.h5", *quick, "overwrite=true"))
    assert (home / "mine" / "summary.json").read_text() == kept, "a run that could not begin replaces nothing"
    again = run(small(nyud, *quick, "overwrite=true", "seed=1"))
    assert json.loads((home / "mine" / "summary.json").read_text())["seed"] == again["seed"] == 1
    assert [path.name for path in home.iterdir() if path.name.startswith("mine")] == ["mine"]


def test_only_runs_are_ever_replaced(nyud: Path, home: Path) -> None:
    (home / "thesis").mkdir()
    (home / "thesis" / "precious.txt").write_text("keep")
    with pytest.raises(ConfigError, match="thesis holds something else"):
        run(small(nyud, "out=thesis", "overwrite=true"))
    assert (home / "thesis" / "precious.txt").read_text() == "keep"


def test_a_loss_that_explodes_leaves_a_valid_directory(nyud: Path, home: Path) -> None:
    said = r'The loss is .* at step [2-5] of "semseg\+depth" \(in: (semseg|depth).*Try a lower trainer\.lr_head'
    with pytest.raises(TrainingError, match=said):
        run(small(nyud, "trainer.lr_head=1e30", "trainer.clip=null", "trainer.base_steps=5", "out=here"))
    assert (home / "here" / "config.yaml").is_file()
    for line in (
        (home / "here" / "metrics.jsonl").read_text().splitlines() if (home / "here/metrics.jsonl").exists() else []
    ):
        json.loads(line)
    assert json.loads((home / "here" / "tracking.json").read_text())["status"] == "FAILED"
    assert not (home / "here" / "summary.json").exists()


def test_single_task_nets_are_learnt_where_they_are_cheaper_than_the_run(
    nyud: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medusa_cl.job_references._single_task_seconds", lambda _: 0.0)
    summary = run(small(nyud, "scenario.base=[depth]", "scenario.stream=[normals]"))
    assert "single_task" in summary["transfer"]["reference_values"]


def test_references_can_be_learnt_beside_the_run(finished: tuple[Path, dict[str, Any]], nyud: Path, home: Path) -> None:
    """In a second process: the same numbers as in this one."""
    summary = run(small(nyud, "trainer.processes=2"))
    assert summary["transfer"]["reference_values"] == finished[1]["transfer"]["reference_values"]
    assert summary["matrix"] == finished[1]["matrix"]


def test_a_full_disk_is_said(nyud: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from medusa_cl import checkpoint

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match=r"No space left on device.*here"):
        run(small(nyud, "out=here", "references=none"))
    assert json.loads((home / "here" / "tracking.json").read_text())["status"] == "FAILED"


def test_a_dead_server_does_not_end_a_run_and_it_can_be_delivered_later(
    nyud: Path, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    from medusa_cl.track import main as track

    dead = ["tracking=mlflow", "tracking.uri=http://127.0.0.1:9", "references=none", "scenario.stream=[normals]"]
    summary = run(small(nyud, *dead, "out=here"))
    assert "track sync run=here" in caplog.text
    track(["sync", "run=here", "uri=sqlite:///later.db"])
    client = MlflowClient("sqlite:///later.db")
    (found,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments() if e.name == "nyud_incremental"]
    )
    assert found.data.metrics["test/depth_rmse"] == pytest.approx(summary["matrix"]["values"]["depth"][-1])


def test_the_command_line(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As a user types it: exit statuses, and one line without a traceback. One that learns is in test_rooms_job.py."""
    command = [sys.executable, "-m", "medusa_cl.run", "scenario=rooms_incremantal"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == (
        'error: Unknown scenario "rooms_incremantal". Did you mean "rooms_incremental"? '
        "Known: folder_incremental, nyud_incremental, nyud_incremental_long, pascal_incremental, rooms_incremental, "
        "rooms_long."
    )
    capfd.readouterr()
    assert typed(*SMALL) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: NYUD-v2 was not found.")
    assert "Traceback" not in said
    assert not list(home.iterdir()), "nothing was learnt, so nothing is left"
