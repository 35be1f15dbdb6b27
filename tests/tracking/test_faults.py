"""What fails around a run does not end it, and what a tracker missed is delivered later."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_record import SMALL, TAGS, draw_nothing, held, learn, losses, store_in
from fake_server import Server, serving

from medusa_cl import track
from medusa_cl.errors import MedusaError
from medusa_cl.tracking import RunRecorder, files, read_metrics
from medusa_cl.tracking.mlflow import MLflowTracker

TAGGED = {**TAGS, "scenario": "rooms"}


@pytest.fixture
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
    return store_in(tmp_path / "runs", tmp_path_factory)


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with serving(runs) as made:
        yield made


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("medusa_cl.tracking")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the store holds of a run that nothing happens to."""
    folder = store_in(tmp_path_factory.mktemp("whole"), tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
        recorder = RunRecorder(folder / "rooms" / "a", MLflowTracker("rooms", uri=f"sqlite:///{folder / 'mlflow.db'}"))
        recorder.start(SMALL, TAGGED)
        learn(recorder, {}, 0)
        return held(MLflowTracker("rooms", uri=f"sqlite:///{folder / 'mlflow.db'}"))


# Down from the start on; an answer lost in the middle, when the server has done what was asked for; down at the end.
LOST: dict[str, Callable[[str, int], bool]] = {
    "made": lambda path, number: path.endswith("runs/create"),
    "middle": lambda path, number: path.endswith("runs/log-batch") and number > 6,
    "end": lambda path, number: path.endswith("table/task_matrix.json") or path.endswith("task_matrix.json"),
}


@pytest.mark.parametrize(
    "when",
    ["down", "middle", pytest.param("made", marks=pytest.mark.slow), pytest.param("end", marks=pytest.mark.slow)],
)
def test_what_a_server_missed_is_delivered_once_it_is_back(
    server: Server,
    runs: Path,
    undisturbed: dict[str, Any],
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    def lose(path: str) -> bool:
        seen.append(path)
        return when in LOST and LOST[when](path, len(seen))

    server.lose = lose
    if when == "down":
        server.stop()
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", uri=server.uri))
    with caplog.at_level(logging.WARNING):
        recorder.start({**SMALL, "tracking": {"uri": server.uri}}, TAGGED)
        learn(recorder, {}, 0)
    [warning] = warnings_of(caplog)
    assert "Tracking stopped" in warning and not recorder.tracking
    server.stop()
    with pytest.raises(MedusaError, match="is not delivered to"):
        track.main(["sync", f"run={recorder.run_dir}", f"uri={server.uri}"])
    server.lose = lambda path: False
    server.start()
    for _ in range(2):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)  # what the record keeps has no password
        track.main(["sync", f"run={recorder.run_dir}"])
    assert held(MLflowTracker("rooms", uri=server.uri)) == undisturbed
    shown = capsys.readouterr()
    kept = "".join(path.read_text() for path in recorder.run_dir.glob("*.json*"))
    assert "geheim" not in shown.out + shown.err + caplog.text + kept
    assert f"http://127.0.0.1:{server.port}/#/experiments" in shown.out


def test_a_uri_that_was_kept_without_its_password_is_asked_for(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", uri="http://***@host"))
    recorder.start({"tracking": {"uri": "http://***@host"}}, TAGGED)
    recorder.finish()
    assert not recorder.tracking and "$MLFLOW_TRACKING_URI" in caplog.text
    with pytest.raises(MedusaError, match=r"\$MLFLOW_TRACKING_URI"):
        track.main(["sync", f"run={recorder.run_dir}"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@host")
    assert MLflowTracker("rooms", uri="http://***@host").uri == "http://me:word@host"


def test_a_database_that_is_locked_for_a_while_is_waited_for(runs: Path) -> None:
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    recorder.start(SMALL, TAGGED)
    lock = sqlite3.connect(runs / "mlflow.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.0, lambda: lock.execute("ROLLBACK"))
    release.start()
    losses(recorder, 1, {"a": 1.0})
    recorder.flush()
    release.join()
    lock.close()
    assert recorder.tracking
    recorder.finish()
    assert held(MLflowTracker("rooms", runs=runs))["points"] == {("train/a_loss", 1): 1}


@pytest.mark.parametrize("when", ["start", "middle"])
def test_a_database_that_stays_locked_is_given_up(
    runs: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("medusa_cl.tracking.mlflow.SQLITE_PATIENCE", 0.2)
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    if when == "middle":
        recorder.start(SMALL, TAGGED)
    with closing(sqlite3.connect(runs / "mlflow.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        if when == "start":
            recorder.start(SMALL, TAGGED)
        losses(recorder, 1, {"a": 1.0})
        recorder.finish()
    [warning] = warnings_of(caplog)
    assert "locked" in warning and "track sync" in warning and not recorder.tracking
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track.main(["sync", f"run={recorder.run_dir}"])
    assert held(MLflowTracker("rooms", runs=runs))["points"] == {("train/a_loss", 1): 1}


def test_a_damaged_database_is_named_at_once(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (runs / "mlflow.db").write_bytes(b"no database" * 100)
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    recorder.start(SMALL, TAGGED)
    assert not recorder.tracking and f"{runs / 'mlflow.db'} cannot be written to" in caplog.text


def test_a_full_disk_under_the_store_does_not_end_the_run(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = MLflowTracker("rooms", runs=runs)
    recorder = RunRecorder(runs / "rooms" / "a", tracker)
    recorder.start(SMALL, TAGGED)
    with _full_database(tracker):
        for step in range(3000):
            losses(recorder, step, {"a": 1.0})
        recorder.flush()
    [warning] = warnings_of(caplog)
    assert "full" in warning and not recorder.tracking
    recorder.finish()
    track.main(["sync", f"run={recorder.run_dir}"])
    found = held(MLflowTracker("rooms", runs=runs))
    assert len(found["points"]) == 3000 == sum(found["points"].values()) and found["status"] == "FINISHED"


@contextmanager
def _full_database(tracker: MLflowTracker) -> Iterator[None]:
    """The database must not grow, as on a full disk."""
    from sqlalchemy import event

    def full(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes what is there for the least

    client: Any = tracker.client
    engine = client._tracking_client.store.engine
    event.listen(engine, "connect", full)
    engine.dispose()
    yield
    event.remove(engine, "connect", full)
    engine.dispose()


def test_a_full_disk_under_an_artifact_does_not_end_the_run(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, undisturbed: dict[str, Any]
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    recorder.start(SMALL, TAGGED)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifact", full)
        learn(recorder, {}, 0)
    assert "No space left" in caplog.text and not recorder.tracking
    track.main(["sync", f"run={recorder.run_dir}"])
    assert held(MLflowTracker("rooms", runs=runs)) == undisturbed


class FullDisk:
    """A file of a disk that has room for a few bytes more."""

    def __init__(self, path: Path, room: int, *mode: Any, **options: Any) -> None:
        self.file: Any = builtins.open(path, *mode, **options)  # noqa: SIM115  closed by __exit__
        self.room = room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        some = data[: self.room]
        self.room -= len(some)
        self.file.write(some)
        return len(some) if isinstance(data, memoryview) else self.write(data[len(some) :])


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_under_the_record_harms_nothing_in_it(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.start({"a": 1}, {})
    losses(recorder, 1, {"a": 1.0})
    state, whole = recorder.state(), (tmp_path / "metrics.jsonl").read_bytes()
    note = (tmp_path / "tracking.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *a, **k: FullDisk(path, room, *a, **k))
        with pytest.raises(OSError, match="No space left"):
            losses(recorder, 2, {"a": 2.0})
        with pytest.raises(OSError, match="No space left"):
            recorder.finish("FAILED")
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert (tmp_path / "tracking.json").read_bytes() == note
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["metrics.jsonl", "tracking.json"]
    again = RunRecorder(tmp_path)
    again.restore(state)
    again.start({"a": 1}, {})
    losses(again, 2, {"a": 2.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_full_disk_does_not_keep_the_tracker_from_being_told_the_end(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs))
    recorder.start(SMALL, TAGGED)
    monkeypatch.setattr(files, "write_whole", _no_space)
    with pytest.raises(OSError, match="No space left"):
        recorder.finish("FAILED")
    assert held(MLflowTracker("rooms", runs=runs))["status"] == "FAILED"


def _no_space(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_that_goes_on_is_not_ended_by_a_delivery(runs: Path) -> None:
    recorder = RunRecorder(runs / "rooms" / "a")
    recorder.start(SMALL, TAGGED)
    losses(recorder, 1, {"a": 1.0})
    track.main(["sync", f"run={recorder.run_dir}"])
    assert held(MLflowTracker("rooms", runs=runs))["status"] == "RUNNING"
    assert json.loads((recorder.run_dir / "tracking.json").read_text())["tracker"]["run_id"]
