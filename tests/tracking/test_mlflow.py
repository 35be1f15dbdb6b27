from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_record import CONFIG, TAGS, fill, losses, picture, store_in
from fake_summary import STREAM, fake_summary

from medusa_cl.tracking import RunRecorder, clean_name, deliver, read_metrics
from medusa_cl.tracking.mlflow import MLflowTracker, flat_params, quiet_client, store_uri


@pytest.fixture
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store_in(tmp_path / "runs", tmp_path_factory)


def finished(runs: Path, **options: Any) -> tuple[Any, MLflowTracker, Path]:
    tracker = MLflowTracker("rooms_incremental", runs=runs, **options)
    recorder = RunRecorder(runs / "rooms" / "medusa-0", tracker)
    fill(recorder)
    recorder.finish()
    assert recorder.tracking
    return tracker.client, tracker, recorder.run_dir


def artifacts(client: Any, run_id: str, path: str = "") -> list[str]:
    return sorted(item.path for item in client.list_artifacts(run_id, path))


def table(client: Any, run_id: str) -> list[list[Any]]:
    """The rows of the task matrix, which the UI shows because a tag names it."""
    assert "task_matrix.json" in client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    path = Path(client.download_artifacts(run_id, "task_matrix.json"))
    rows: list[list[Any]] = json.loads(path.read_text())["data"]
    return rows


def test_everything_logged_is_found_again(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "1" and run.data.params["scenario.image_size"] == "[128, 160]"
    assert len(run.data.params) == 236 and len(run.data.params["trainer.note"]) == 6000
    assert not {"out", "resume", "scenario.root"} & set(run.data.params)
    assert run.data.tags["strategy"] == "medusa" and run.data.tags["run_dir"] == str(run_dir)
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "test/semseg_miou")] == [
        (2, 42.0),
        (3, 43.0),
    ]
    assert len(client.get_metric_history(run.info.run_id, "train/semseg_loss")) == 5
    names = set(run.data.metrics)
    assert {"forgetting/semseg", "forgetting/mean", "train/images_per_s", "transfer/ufl_gain"} <= names
    assert {f"transfer/{task}" for task in STREAM} <= names
    assert {"final/forgetting_mean", "final/transfer_mean", "final/normals_mean"} <= names
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "f" * 36 and "f" * 64 in dataset.dataset.source


def test_pictures_and_table_are_found_again(runs: Path) -> None:
    client, tracker, _ = finished(runs)
    images = artifacts(client, tracker.run_id, "images")
    assert all(name.startswith("images/predictions~semseg+step+") for name in images)
    assert {name.split("+")[2] for name in images} == {"2", "3"}
    wanted = ["figures/forgetting_heatmap.png", "figures/overview.png", "figures/transfer_bars.png"]
    assert artifacts(client, tracker.run_id, "figures") == wanted
    assert [row[0] for row in table(client, tracker.run_id)] == ["base", *STREAM]
    assert "summary.json" not in artifacts(client, tracker.run_id)


def test_artifacts_lie_beside_the_store_and_not_in_the_working_directory(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    client, tracker, _ = finished(Path("runs"))
    assert client.get_run(tracker.run_id).info.artifact_uri.startswith((runs / "mlartifacts").as_uri())
    assert sorted(path.name for path in runs.parent.iterdir()) == ["runs"]


def test_undefined_values_are_null_in_the_file_and_never_sent(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    metrics = client.get_run(tracker.run_id).data.metrics
    assert "train/depth_loss" not in metrics and "test/semseg_nothing" not in metrics
    assert "transfer/ufl_delta" not in metrics
    assert all(math.isfinite(value) and abs(value) < 1e300 for value in metrics.values())
    first = next(iter(read_metrics(run_dir)))
    assert first["values"]["train/depth_loss"] is None and set(first) == {"step", "time", "values"}


def test_a_reopened_run_gets_no_params_and_no_picture_twice(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    before = artifacts(client, tracker.run_id, "images")
    again = RunRecorder(run_dir, MLflowTracker("rooms_incremental", runs=runs))
    again.start({**CONFIG, "seed": 2}, TAGS)
    again.predictions(3, {"semseg": [(picture(), None, picture())]})
    again.predictions(4, {"semseg": [(picture(), None, picture())]})
    again.summary(fake_summary(), "")
    again.finish()
    assert again.tracking
    assert len(client.search_runs([tracker.experiment_id])) == 1
    assert client.get_run(tracker.run_id).data.params["seed"] == "1"
    assert len(artifacts(client, tracker.run_id, "images")) == len(before) + 2
    assert len(table(client, tracker.run_id)) == 4


def test_a_run_that_could_not_be_tracked_is_delivered_later_and_only_once(runs: Path) -> None:
    recorder = RunRecorder(runs / "a")
    fill(recorder)
    recorder.finish()
    for _ in range(2):
        identity = deliver(recorder.run_dir, MLflowTracker("rooms_incremental", runs=runs))
    client = quiet_client(identity["uri"])
    assert len(client.search_runs([identity["experiment_id"]])) == 1
    run = client.get_run(identity["run_id"])
    assert len(client.get_metric_history(run.info.run_id, "train/semseg_loss")) == 5
    assert run.data.params["seed"] == "1" and run.info.status == "FINISHED"
    assert len(artifacts(client, run.info.run_id, "images")) == 4  # two steps, each as PNG and as preview


def test_child_runs_name_their_parent(runs: Path) -> None:
    parent = MLflowTracker("rooms_incremental", runs=runs)
    parent.start({}, {}, runs / "study")
    client, child, _ = finished(runs, parent_run_id=parent.run_id)
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


NOTE = "mlflow.note.content"


def described(client: Any, run_id: str) -> str:
    return str(client.get_run(run_id).data.tags[NOTE])


def test_a_run_is_described_by_its_result_and_how_its_model_is_loaded(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    note = described(client, tracker.run_id)
    assert "| medusa | 47.30 | 0.440 | 14.31 | 77.70 | 0.135 | 0.0 |" in note
    assert f'mlflow.pyfunc.load_model("runs:/{tracker.run_id}/model")' in note
    [script] = re.findall(r"```python\n(.*?)```", note, re.DOTALL)
    compile(script, "the note", "exec")
    assert f"medusa_cl.predict run={tracker.run_id}" in note
    again = RunRecorder(run_dir, MLflowTracker("rooms_incremental", runs=runs))
    again.start(CONFIG, TAGS)
    again.summary(fake_summary("finetune", lost=0.02), "")
    assert "| finetune | 44.46 |" in described(client, tracker.run_id)
    again.finish()


def test_a_description_of_a_users_own_stays(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    client.set_tag(tracker.run_id, NOTE, "Our best one.")
    deliver(run_dir, MLflowTracker("rooms_incremental", runs=runs))
    assert described(client, tracker.run_id) == "Our best one."


def test_an_experiment_explains_the_names_of_its_metrics(runs: Path) -> None:
    client, tracker, _ = finished(runs)
    tags = client.get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    told = set(re.findall(r"`((?:final|transfer|forgetting|relative)/\w+)`", tags[NOTE]))
    logged = client.get_run(tracker.run_id).data.metrics
    defined = {*logged, "final/mtl_delta"}  # for which this run has no reference
    assert {"final/forgetting_mean", "final/transfer_mean", "final/mtl_delta"} <= told <= defined
    sections = {name.rpartition("/")[0] for name in logged}
    assert sections <= set(re.findall(r"`(\w+)/", tags[NOTE]))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("finetune-net_a0-s3-0", "finetune+ewc+replay s3"),
        ("finetune+ewc+replay-net_a0-s3-12", "finetune+ewc+replay s3-12"),
        ("finetune_head=plain-s3", "finetune+ewc+replay_head=plain-s3"),
        ("finetune+ewc+replay_head=plain-s3", "finetune+ewc+replay_head=plain-s3"),
        ("mine", "mine"),
    ],
)
def test_plugins_tell_runs_apart(runs: Path, folder: str, name: str) -> None:
    tracker = MLflowTracker("x", runs=runs)
    config = {"plugins": {"ewc": {"lambda": 1}, "replay": {"size": 9}}}
    tracker.start(config, {"strategy": "finetune", "backbone": "net_a0", "seed": "3"}, runs / folder)
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.run_name, run.data.tags["plugins"]) == (name, "ewc+replay")
    tracker.metrics({"bwt": -2.0}, 3)
    tracker.finish()
    assert tracker.client.get_run(tracker.run_id).data.metrics == {"forgetting/bwt": -2.0}


def test_a_run_without_plugins_has_no_such_tag(runs: Path) -> None:
    client, tracker, run_dir = finished(runs)
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == run_dir.name and "plugins" not in run.data.tags


def test_a_failed_run_keeps_what_was_buffered(runs: Path) -> None:
    tracker = MLflowTracker("x", runs=runs)
    recorder = RunRecorder(runs / "a", tracker)
    recorder.start({}, {})
    losses(recorder, 7, {"depth": 0.5})
    recorder.finish("FAILED")
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.status == "FAILED" and run.data.metrics == {"train/depth_loss": 0.5}


def test_a_dead_server_costs_one_warning_and_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow.store.tracking.rest_store  # noqa: F401  not part of the time measured

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    recorder = RunRecorder(tmp_path / "a", MLflowTracker("x", uri="http://127.0.0.1:9"))
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        fill(recorder)
        recorder.finish()
    assert time.perf_counter() - start < 10
    [warning] = [record for record in caplog.records if record.name == "medusa_cl.tracking"]
    assert "track sync" in warning.message and str(recorder.run_dir) in warning.message
    assert not recorder.tracking and f"track sync run={recorder.run_dir}" in str(recorder.ui_line())
    found = {path.relative_to(recorder.run_dir).as_posix() for path in recorder.run_dir.rglob("*") if path.is_file()}
    assert found >= {"metrics.jsonl", "summary.json", "task_matrix.csv", "panels/semseg-02.png", "panels/overview.png"}
    assert json.loads((recorder.run_dir / "summary.json").read_text())["strategy"] == "medusa"


def test_a_tracker_that_breaks_midway_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(MLflowTracker):
        def start(self, *args: Any, **kwargs: Any) -> dict[str, str]:
            return {}

        def metrics(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("gone")

    recorder = RunRecorder(tmp_path, Breaking("x", runs=tmp_path))
    fill(recorder)
    assert len([record for record in caplog.records if record.name == "medusa_cl.tracking"]) == 1
    assert len(list(read_metrics(tmp_path))) > 5


@pytest.mark.slow
def test_processes_starting_together_on_a_missing_database_all_work(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from medusa_cl.tracking import RunRecorder; "
        "from medusa_cl.tracking.mlflow import MLflowTracker; "
        "r = RunRecorder(Path(sys.argv[1], str(os.getpid())), "
        "MLflowTracker('x', uri='sqlite:///' + sys.argv[1] + '/mlflow.db')); "
        "r.start({'a': 1}, {}); r.metrics({'b': 1.0}, 1); r.finish(); assert r.tracking"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert said == [(b"", b"")] * 3  # no migration chatter either
    client = quiet_client(store_uri(f"sqlite:///{tmp_path}/mlflow.db", tmp_path))
    [experiment] = client.search_experiments(filter_string="name = 'x'")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.data.metrics for run in runs] == [{"b": 1.0}] * 3


def test_the_model_is_logged_from_code_and_predicts(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import torch

    class Model(torch.nn.Module):
        def predict(self, image: Any, tasks: Any = None) -> dict[str, Any]:
            return {"depth": image.mean(1, keepdim=True), "semseg": image.argmax(1)}

    checkpoint = ModuleType("medusa_cl.checkpoint")
    checkpoint.load_model = lambda path: Model() if (path / "model.safetensors").exists() else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medusa_cl.checkpoint", checkpoint)
    folder = runs / "a" / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    tracker = MLflowTracker("x", runs=runs)
    recorder = RunRecorder(runs / "a", tracker)
    recorder.start({}, {})
    recorder.model(folder)
    assert recorder.tracking and tracker.client.get_run(tracker.run_id).info.status == "RUNNING"
    recorder.finish()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracker.uri)
    try:
        place = Path(mlflow.artifacts.download_artifacts(f"runs:/{tracker.run_id}/model"))
        model = mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)
    names = {path.name for path in place.rglob("*") if path.is_file()}
    assert {"pyfunc_model.py", "model.json", "model.safetensors", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]
    assert "torch==" in (place / "requirements.txt").read_text()
    bytes_in = np.full((2, 8, 8, 3), 255, np.uint8)
    floats_in = np.ones((2, 3, 8, 8), np.float32)
    for batch in (bytes_in, floats_in):
        out = model.predict(batch)
        assert out["depth"].shape == (2, 1, 8, 8) and np.allclose(out["depth"], 1)
        assert out["semseg"].dtype == np.int64
    with pytest.raises(ValueError, match="B H W 3 uint8"):
        model.predict(np.zeros((8, 8, 3), np.uint8))


def test_the_hint_names_a_command_and_the_right_page(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    tracker = MLflowTracker("x", runs="runs")
    tracker.experiment_id = "3"
    command, page = tracker.ui_line().splitlines()
    assert command == "python -m medusa_cl.track ui"
    elsewhere = MLflowTracker("x", runs=runs.parent / "else where").ui_line().splitlines()[0]
    assert elsewhere == "python -m medusa_cl.track ui 'uri=sqlite:///else where/mlflow.db'"
    assert page == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"
    server = MLflowTracker("x", uri="http://tracking.example:80/")
    server.experiment_id = "3"
    assert server.ui_line() == "http://tracking.example:80/#/experiments/3/runs?workflowType=machine_learning"


def test_the_record_is_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, clock=lambda: 5.0)
    recorder.start({}, {})
    losses(recorder, 1, {"a": 1.0})
    state = recorder.state()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    losses(recorder, 2, {"a": 2.0})
    RunRecorder(tmp_path).restore(state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert list(read_metrics(tmp_path)) == [{"step": 1, "time": 5.0, "values": {"train/a_loss": 1.0}}]


def test_nan_is_refused_in_the_summary_before_anything_is_written(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        recorder.summary({**fake_summary(), "x": math.nan}, "")
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("name", "clean"),
    [("test/a_b", "test/a_b"), ("a@b#c", "a_b_c"), ("//a//b/", "a/b"), ("", "_"), ("a/../b", "a/b"), ("é", "_")],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def test_params_carry_no_paths() -> None:
    params = flat_params({"base": "runs/a", "x": {"file": "/data/a.h5", "b": None}, "tracking": {"uri": "u"}})
    assert params == {"x.b": "null"}


def test_params_say_nothing_that_no_comparison_needs() -> None:
    config = {"study": {"seeds": [0]}, "compare": ["a"], "remove": [], "head": {"_target_": "a.B", "_partial_": True}}
    assert flat_params({**config, "seed": 1, "head_width": 8, "strategy": {"compare": 2}}) == {
        "seed": "1",
        "head_width": "8",
        "strategy.compare": "2",
    }


def test_importing_the_tracking_package_costs_nothing() -> None:
    code = "import sys, medusa_cl.tracking, medusa_cl.tracking.mlflow; " + (
        "print([name for name in ('mlflow', 'matplotlib', 'torch', 'avalanche') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
