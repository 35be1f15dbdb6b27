"""Whenever a run is stopped, its tracker holds each thing once in the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_record import SMALL as CONFIG
from fake_record import TAGS, draw_nothing, gone, held, learn, losses, store_in

from medusa_cl.tracking import RunRecorder, deliver, read_metrics
from medusa_cl.tracking.mlflow import MLflowTracker

CHAOS = os.environ.get("HYPOTHESIS_PROFILE") == "chaos"
WRITES = ("create_run", "log_batch", "log_inputs", "set_tag", "update_run_info")
# Where an undisturbed run writes: more points than there are only end it unharmed.
POINTS = range(60) if CHAOS else (0, 1, 2, 4, 7, 9, 12, 15, 18)


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SQLite store, and figures that take no time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
    monkeypatch.setattr("medusa_cl.tracking.DELIVERY_PATIENCE", 0)
    return store_in(tmp_path / "runs", tmp_path_factory)


def recorder_in(runs: Path, lap: int = 0) -> RunRecorder:
    return RunRecorder(runs / "rooms" / "a", MLflowTracker("rooms", runs=runs), clock=lambda: 1e9 + 1000 * lap)


def held_in(runs: Path) -> dict[str, Any]:
    return held(MLflowTracker("rooms", runs=runs))


@contextmanager
def killing(at: int, after: bool) -> Iterator[None]:
    """End the process at a write to the store or to its artifacts, just before it or just after it is done."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    left = [at]

    def deadly(write: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1 and not after:
                raise KilledError
            answer = write(*arguments, **options)
            if left[0] == -1:
                raise KilledError
            return answer

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(SqlAlchemyStore, name, deadly(getattr(SqlAlchemyStore, name)))
        patch.setattr(LocalArtifactRepository, "log_artifact", deadly(LocalArtifactRepository.log_artifact))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("medusa_cl.tracking._draw_figures", draw_nothing)
        runs = store_in(tmp_path_factory.mktemp("whole"), tmp_path_factory)
        recorder = recorder_in(runs)
        recorder.start(CONFIG, TAGS)
        learn(recorder, {}, 0)
        return held_in(runs)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", POINTS)
def test_a_run_killed_at_any_write_and_resumed_is_held_once(
    runs: Path, undisturbed: dict[str, Any], at: int, after: bool
) -> None:
    snapshots: dict[str, Any] = {}
    recorder = recorder_in(runs)
    try:
        with killing(at, after):
            recorder.start(CONFIG, TAGS)
            learn(recorder, snapshots, 0)
    except KilledError:
        gone(recorder)
        recorder = recorder_in(runs, lap=1)
        recorder.restore(snapshots.get("state"))
        recorder.start({**CONFIG, "seed": 2}, TAGS)
        learn(recorder, snapshots, 1)
    assert recorder.tracking
    found = held_in(runs)
    # A killed run that had no params yet takes those it is resumed with.
    found["params"] = found["params"] | {"seed": "1"}
    assert found == undisturbed
    values = [value for record in read_metrics(recorder.run_dir) for value in record["values"].values()]
    assert sum(value is not None for value in values) == sum(found["points"].values())


def test_delivery_after_a_resumed_run_adds_nothing(runs: Path, undisturbed: dict[str, Any]) -> None:
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    snapshots: dict[str, Any] = {}
    learn(recorder, snapshots, 0)
    (recorder.run_dir / "metrics.jsonl").write_text(
        (recorder.run_dir / "metrics.jsonl").read_text().replace('"time": 1000000000.0', '"time": 1000005000.0')
    )
    for _ in range(2):
        deliver(recorder.run_dir, MLflowTracker("rooms", runs=runs))
    assert held_in(runs) == undisturbed


def test_a_fresh_run_asks_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a new run has nothing to be asked for")

    monkeypatch.setattr("medusa_cl.tracking.holdings.Holdings.of", asked)
    monkeypatch.setattr("mlflow.MlflowClient.search_runs", asked)
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    assert recorder.tracking


@pytest.mark.parametrize("restored", [True, False])
def test_a_damaged_note_is_written_anew_and_the_run_found_again(runs: Path, restored: bool) -> None:
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    losses(recorder, 0, {"semseg": 1.0})
    recorder.flush()
    state = recorder.state()
    (recorder.run_dir / "tracking.json").write_text('{"config": {"seed"')
    gone(recorder)
    again = recorder_in(runs, lap=1)
    again.restore(state if restored else None)
    again.start(CONFIG, TAGS)
    losses(again, 0 if not restored else 1, {"semseg": 1.0})
    again.finish()
    assert again.run_id == recorder.run_id
    points = {("train/semseg_loss", 0): 1} | ({("train/semseg_loss", 1): 1} if restored else {})
    assert held_in(runs)["points"] == points


def test_a_damaged_note_is_rebuilt_for_delivery(runs: Path) -> None:
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    losses(recorder, 0, {"semseg": 1.0})
    recorder.finish()
    (recorder.run_dir / "tracking.json").write_bytes(b"\x00" * 40)
    parts = "".join(f"{part}: {{name: {part}}}\n" for part in ("scenario", "strategy", "backbone", "head"))
    (recorder.run_dir / "config.yaml").write_text(f"seed: 1\n{parts}")
    assert deliver(recorder.run_dir, MLflowTracker("rooms", runs=runs))["run_id"] == recorder.run_id
    assert json.loads((recorder.run_dir / "tracking.json").read_text())["tags"]["strategy"] == "strategy"
    assert sum(held_in(runs)["points"].values()) == 1


@pytest.mark.parametrize("for_good", [False, True])
def test_a_deleted_run_is_said_and_replaced(runs: Path, caplog: pytest.LogCaptureFixture, for_good: bool) -> None:
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    losses(recorder, 0, {"semseg": 1.0})
    recorder.finish()
    first, tracker = recorder.run_id, MLflowTracker("rooms", runs=runs)
    tracker.client.delete_run(str(first))
    if for_good:
        tracker.client._tracking_client.store._hard_delete_run(first)
    again = recorder_in(runs, lap=1)
    again.start(CONFIG, TAGS)
    again.finish()
    assert again.run_id != first and f"{first} was deleted" in caplog.text
    assert held_in(runs)["points"] == {("train/semseg_loss", 0): 1} and held_in(runs)["params"]["seed"] == "1"


def test_a_deleted_experiment_is_named(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = recorder_in(runs)
    recorder.start(CONFIG, TAGS)
    client: Any = MLflowTracker("rooms", runs=runs).client
    client.delete_experiment(client.get_experiment_by_name("rooms").experiment_id)
    gone(recorder)
    again = recorder_in(runs, lap=1)
    with caplog.at_level(logging.WARNING):
        again.start(CONFIG, TAGS)
    assert not again.tracking and 'The experiment "rooms" was deleted' in caplog.text


def test_a_model_that_was_begun_is_completed_and_never_logged_twice(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runs / "rooms" / "a" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_outputs", _killed)
        recorder = recorder_in(runs)
        recorder.start(CONFIG, TAGS)
        with pytest.raises(KilledError):
            recorder.model(model)
    gone(recorder)
    with monkeypatch.context() as patch:
        patch.setattr("medusa_cl.tracking.mlflow._save_model", _killed)
        second = recorder_in(runs)
        with pytest.raises(KilledError):
            second.start(CONFIG, TAGS)  # which delivers what is lacking
    gone(second)
    for _ in range(2):
        again = recorder_in(runs)
        again.start(CONFIG, TAGS)
        again.model(model)
        gone(again)
    assert again.tracking
    client: Any = MLflowTracker("rooms", runs=runs).client
    run = client.get_run(str(again.run_id))
    [logged] = client.search_logged_models([run.info.experiment_id])
    assert str(logged.status) == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]


def _killed(*arguments: Any, **options: Any) -> Any:
    raise KilledError


@pytest.mark.parametrize("torn", [b'{"step": 3, "ti', b'{"step": 3, "time": 1.0, "values": {}}', b"\x00\x00\x00"])
def test_a_torn_last_line_is_dropped_before_the_next(tmp_path: Path, torn: bytes) -> None:
    recorder = RunRecorder(tmp_path, clock=lambda: 5.0)
    recorder.start({}, {})
    losses(recorder, 1, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    again = RunRecorder(tmp_path, clock=lambda: 6.0)
    again.start({}, {})
    losses(again, 2, {"a": 2.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    from medusa_cl.errors import DataError

    recorder = RunRecorder(tmp_path)
    for step in range(3):
        losses(recorder, step, {"a": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(lines[0] + lines[1].replace(b"values", b"valuez") + lines[2])
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        list(read_metrics(tmp_path))


def test_lines_that_the_checkpoint_counts_on_are_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = RunRecorder(tmp_path)
    losses(recorder, 1, {"a": 1.0})
    state = recorder.state()
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    RunRecorder(tmp_path).restore(state)
    assert "has lost lines" in caplog.text


def test_a_record_opened_again_may_grow_by_a_point_of_the_same_step(runs: Path) -> None:
    """A study that goes on records its means anew, at step 0."""
    for lap in range(2):
        recorder = recorder_in(runs, lap)
        recorder.start(CONFIG, TAGS)
        recorder.metrics({"mean/medusa": float(lap)}, 0)
        recorder.finish()
    assert held_in(runs)["values"] == {("mean/medusa", 0, 0.0), ("mean/medusa", 0, 1.0)}
    assert len(list(read_metrics(recorder.run_dir))) == 2
