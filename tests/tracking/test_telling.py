"""One process at a time tells a tracker of a run, and what was not told is known."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_record import SMALL, TAGS, draw_nothing, gone, held, learn, losses, store_in

from medusa_cl import resume, track
from medusa_cl.errors import ConfigError
from medusa_cl.tracking import RunRecorder, deliver, files, owed
from medusa_cl.tracking.mlflow import MLflowTracker, run_dir_of

DEAD = "http://me:p%40ss@127.0.0.1:9/?token=tok99"


class KilledError(BaseException):
    """The process ends here."""


class Untold:
    """A tracker that holds nothing; what is given happens when it is started, or finished."""

    uri = "http://me:word@host"

    def __init__(self, **happening: Callable[[], Any]) -> None:
        self.happening, self.status = happening, "RUNNING"

    def start(self, *arguments: Any) -> dict[str, str]:
        self.happening.get("start", str)()
        return {"uri": "http://***@host", "run_id": "1"}

    def finish(self, status: str = "FINISHED") -> None:
        self.happening.get("finish", str)()
        self.status = status

    def ui_line(self) -> str:
        return "the page"

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.fixture
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
    monkeypatch.setattr("medusa_cl.tracking.DELIVERY_PATIENCE", 0)
    return store_in(tmp_path / "runs", tmp_path_factory)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    return DEAD


def note_of(run_dir: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads((run_dir / "tracking.json").read_text())
    return note


def a_run(run_dir: Path, tracker: Any = None) -> RunRecorder:
    recorder = RunRecorder(run_dir, tracker)
    recorder.start(SMALL, {**TAGS, "run_dir": str(run_dir)})
    return recorder


def test_a_run_is_delivered_by_one_process_at_a_time(tmp_path: Path) -> None:
    a_run(tmp_path).finish()

    def again() -> None:
        with pytest.raises(ConfigError, match="is being delivered"):
            deliver(tmp_path, Untold())

    deliver(tmp_path, Untold(start=again))
    deliver(tmp_path, Untold())


@pytest.mark.parametrize("stops", [False, True])
def test_a_run_that_goes_on_at_its_tracker_is_not_delivered(tmp_path: Path, stops: bool) -> None:
    def fails() -> None:
        raise ConnectionError

    recorder = a_run(tmp_path, Untold(**({"start": fails} if stops else {})))
    with pytest.raises(ConfigError, match="the run is going"):
        deliver(tmp_path, Untold())
    recorder.finish()
    deliver(tmp_path, tracker := Untold())
    assert tracker.status == "FINISHED"


def test_a_process_that_is_killed_leaves_its_run_to_others(tmp_path: Path) -> None:
    code = (
        "import pathlib, medusa_cl.tracking.files as files; "
        f"lock = files.telling(pathlib.Path({str(tmp_path)!r})); print(flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline()
    with pytest.raises(ConfigError):
        files.telling(tmp_path)
    other.kill()
    other.communicate()
    files.telling(tmp_path).release()


@pytest.mark.parametrize("patience", [0, 60])
def test_a_run_that_begins_waits_for_its_delivery(
    tmp_path: Path, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medusa_cl.tracking.DELIVERY_PATIENCE", patience)
    lock = files.telling(tmp_path)
    ends = threading.Timer(0.3, lock.release)
    ends.start()
    recorder = a_run(tmp_path, Untold())
    ends.join()
    assert recorder.tracking is (patience > 0)
    assert note_of(tmp_path)["target"] == "http://***@host"
    recorder.finish()
    assert (owed(tmp_path) is None) is recorder.tracking


def test_a_run_that_ends_while_it_is_delivered_keeps_its_note(tmp_path: Path) -> None:
    recorder = a_run(tmp_path)
    (tmp_path / "model").mkdir()

    def ends() -> None:
        recorder.model(tmp_path / "model")
        recorder.finish("FAILED")

    deliver(tmp_path, tracker := Untold(start=ends))
    assert tracker.status == "FAILED"
    assert {key: note_of(tmp_path)[key] for key in ("status", "model")} == {"status": "FAILED", "model": "model"}
    assert note_of(tmp_path)["tracker"]["run_id"] == "1"


def test_a_run_killed_while_the_tracker_is_told_of_its_end_is_delivered(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = a_run(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.set_terminated", _killed)
        with pytest.raises(KilledError):
            learn(recorder, {}, 0)
    assert "status" not in note_of(recorder.run_dir) and held(MLflowTracker("x", runs=runs))["status"] == "RUNNING"
    assert f"sync run={recorder.run_dir} " in str(owed(recorder.run_dir))
    track.main(["sync", f"run={recorder.run_dir}"])
    assert held(MLflowTracker("x", runs=runs))["status"] == "FINISHED" and owed(recorder.run_dir) is None


def _killed(*arguments: Any, **options: Any) -> None:
    raise KilledError


def test_what_a_tracker_missed_is_owed_until_it_is_delivered(tmp_path: Path) -> None:
    def fails() -> None:
        raise ConnectionError

    recorder = a_run(tmp_path, Untold(finish=fails))
    assert recorder.ui_line() == "the page"
    recorder.finish()
    line = f"python -m medusa_cl.track sync run={tmp_path} delivers what is missing"
    assert recorder.ui_line() == owed(tmp_path) == line
    deliver(tmp_path, Untold())
    assert owed(tmp_path) is None


def test_a_run_without_a_tracker_owes_nothing(tmp_path: Path) -> None:
    recorder = a_run(tmp_path)
    recorder.finish()
    assert recorder.ui_line() is None and owed(tmp_path) is None and not (tmp_path / files.LOCK_FILE).exists()


def test_a_dead_server_does_not_pass_for_one_that_does_not_know_the_run(
    runs: Path, dead: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(runs.parent)
    with pytest.raises(ConfigError, match=r"http://\*\*\*@127.*cannot be asked") as error:
        resume.find("ab" * 16, lambda run_id: run_dir_of(run_id, dead))
    logging.getLogger("mlflow.system_metrics").warning("Skip logging to %s", dead)
    assert "Retrying" in caplog.text and "Skip logging" in caplog.text  # the first of urllib3, with the token
    assert not any(secret in caplog.text + str(error.value) for secret in ("tok99", "p%40ss", "p@ss"))


def test_the_store_is_asked_for_a_directory_and_not_made(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = a_run(tmp_path / "a", MLflowTracker("rooms", runs=runs))
    store = f"sqlite:///{runs / 'mlflow.db'}"
    assert run_dir_of(str(recorder.run_id), store) == str(tmp_path / "a")
    assert run_dir_of("ab" * 16, store) is None
    assert run_dir_of("ab" * 16, f"sqlite:///{tmp_path}/none.db") is None and not (tmp_path / "none.db").exists()


def test_a_damaged_line_is_named_and_the_rest_is_told(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = a_run(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    for step in range(3):
        losses(recorder, step, {"a": 1.0})
    state = recorder.state()
    gone(recorder)
    path = recorder.run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 1', b'{"stop": 1'))
    again = RunRecorder(recorder.run_dir, MLflowTracker("rooms", runs=runs))
    again.restore(state)
    again.start(SMALL, TAGS)
    losses(again, 3, {"a": 1.0})
    again.finish()
    assert again.tracking and "metrics.jsonl, line 2" in caplog.text
    deliver(recorder.run_dir, MLflowTracker("rooms", runs=runs))
    assert held(MLflowTracker("rooms", runs=runs))["points"] == {("train/a_loss", step): 1 for step in (0, 2, 3)}


def test_a_run_whose_store_failed_is_delivered_where_it_was_to_go(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    database = (runs / "mlflow.db").read_bytes()
    (runs / "mlflow.db").write_bytes(b"no database" * 100)
    recorder = RunRecorder(Path("run"), MLflowTracker("rooms", runs=runs))
    recorder.start({**SMALL, "tracking": {"uri": None, "parent": "ab" * 16}}, TAGS)
    recorder.finish()
    (runs / "mlflow.db").write_bytes(database)
    track.main(["sync", "run=run"])
    tracker = MLflowTracker("rooms", runs=runs)
    assert "mlflow.parentRunId" in held(tracker)["tags"]
    assert [path.name for path in tmp_path.rglob("mlflow.db")] == ["mlflow.db"]


def test_a_run_that_was_never_tracked_is_delivered_to_the_store_of_all_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.parent)
    a_run(Path("run")).finish()
    track.main(["sync", "run=run"])
    assert held(MLflowTracker("rooms", runs=runs))["status"] == "FINISHED"
    assert [path.parent for path in runs.parent.rglob("mlflow.db")] == [runs]


@pytest.mark.parametrize("other", ["machine", "folder"])
def test_a_damaged_note_does_not_lead_to_a_run_elsewhere(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    ids = []
    for whose in ("theirs", "mine"):
        monkeypatch.setattr("platform.node", lambda whose=whose: whose if other == "machine" else "one")
        folder = tmp_path / (whose if other == "folder" else "one")
        Path(folder, "run").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        if whose == "mine":
            Path("run", "tracking.json").write_text("{")
        recorder = a_run(Path("run"), MLflowTracker("rooms", runs=runs))
        recorder.finish()
        ids.append(recorder.run_id)
    assert ids[0] != ids[1] and None not in ids
