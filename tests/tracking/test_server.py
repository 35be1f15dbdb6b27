"""The server of MLflow's pages: which store, which port, what it says, how its pages are arranged."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from medusa_cl import track
from medusa_cl.errors import ConfigError, MedusaError
from medusa_cl.tracking import server, views


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run of our kind in one experiment, and nothing in MLflow's own; made once: it takes long."""
    folder = tmp_path_factory.mktemp("store")
    client = server.quiet_client(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("rooms", (folder / "mlartifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    for name, value in {"final/forgetting_mean": 1, "final/transfer_mean": 2, "final/gflops": 3, "bwt": 4}.items():
        client.log_metric(run, name, value)
    for step in (2, 3):
        client.log_image(run, np.zeros((4, 4, 3), np.uint8), key="predictions/depth", step=step)
    return folder / "mlflow.db"


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of it, where `track ui` looks for one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copy(made, "runs/mlflow.db")
    return server.store_uri(None, Path("runs"))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which something listens that is no MLflow."""
    with http.server.HTTPServer((server.HOST, 0), http.server.BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        yield other.server_port
        other.shutdown()


def refused(port: int) -> None:
    with server.held_port(port):
        pytest.fail("taken twice")


def state_of(client: MlflowClient, experiment: str) -> dict[str, Any]:
    """The arrangement in a store, read as MLflow's page does."""
    tag = client.get_experiment(experiment).tags["mlflow.sharedViewState.medusa_cl"]
    envelope = json.loads(tag)
    assert envelope.keys() == {"name", "createdAt", "state"}
    form, packed = envelope["state"].split(";")
    assert form == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_pages_are_named_and_arranged_once(store: str) -> None:
    lines = list(server.page_lines(store, "http://here"))
    assert lines[0] == "rooms"
    asked = "viewStateShareKey=medusa_cl&compareRunsMode=CHART&workflowType=machine_learning"
    assert lines[1].split() == ["charts", f"http://here/#/experiments/1/runs?{asked}"]
    assert len(lines) == 3  # none for MLflow's own, empty experiment
    client = server.quiet_client(store)
    state = state_of(client, "1")
    scatter, forgetting, _transfer, pictures = state["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("final/forgetting_mean", "final/transfer_mean")
    assert (forgetting["type"], forgetting["metricKey"]) == ("BAR", "final/forgetting_mean")
    assert (pictures["imageKeys"], pictures["step"]) == (["predictions/depth"], 3)
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    assert [sections[chart["metricSectionId"]] for chart in (scatter, pictures)] == [
        "which strategy?",
        "what it predicts",
    ]
    assert "metrics.`final/transfer_mean`" in state["selectedColumns"]
    assert not [column for column in state["selectedColumns"] if "gflops" in column or "bwt" in column]
    assert set(state["columnWidths"]) == set(state["columnOrder"])


def test_an_arrangement_is_written_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    list(server.page_lines(store, ""))
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", lambda *arguments: pytest.fail("written again"))
    assert any("viewStateShareKey" in line for line in server.page_lines(store, ""))


def test_where_no_tag_can_be_written_the_plain_page_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError("attempt to write a readonly database")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    lines = list(server.page_lines(store, "http://here"))
    assert lines[2].split() == ["list", "http://here/#/experiments/1/runs?workflowType=machine_learning"]


def test_older_pages_get_the_arrangement_itself(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views.metadata, "version", lambda name: "3.10.1")
    list(server.page_lines(store, ""))
    tag = server.quiet_client(store).get_experiment("1").tags[views.TAG]
    assert json.loads(zlib.decompress(base64.b64decode(tag.removeprefix("deflate;"))))["compareRunSections"]


def test_no_store_no_run_no_server_of_ones_own(store: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no MLflow store .*elsewhere/mlflow.db yet: a run makes it"):
        track.main(["ui", f"uri=sqlite:///{tmp_path}/elsewhere/mlflow.db"])
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(MedusaError, match=r"http://\*\*\*@host is a server with pages.* Open http://host/ in"):
        track.main(["ui", "uri=http://me:word@host"])
    with pytest.raises(ConfigError, match="found no run in nowhere"):
        track.main(["ui", "run=nowhere"])
    with pytest.raises(ConfigError, match=f"The store has no run {'0' * 32}"):
        track.main(["ui", f"run={'0' * 32}"])
    with pytest.raises(ConfigError, match="port"):
        track.main(["ui", "port=70000"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tracking.json").write_text(json.dumps({"tags": {}, "config": {}}))
    with pytest.raises(
        ConfigError, match=r"not recorded in MLflow. Deliver it: python -m medusa_cl.track sync run=run"
    ):
        track.main(["ui", "run=run"])


def test_a_run_that_was_moved_is_looked_up_beside_it(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs/rooms/a"
    folder.mkdir(parents=True)
    known = {"uri": "sqlite:////gone/mlflow.db", "run_id": "b", "experiment_id": "1"}
    (folder / "tracking.json").write_text(json.dumps({"tags": {}, "config": {}, "tracker": known}))
    assert server.find_recorded(str(folder)) == (store, "b", "1")


def test_the_page_of_a_run_on_a_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    known = {"uri": "https://***@host/mlflow?x=1", "run_id": "b", "experiment_id": "7"}
    (tmp_path / "tracking.json").write_text(json.dumps({"tags": {}, "config": {}, "tracker": known}))
    with pytest.raises(ConfigError, match=r"Open https://host/mlflow/#/experiments/7/runs/b\?\S+ in a browser"):
        track.main(["ui", f"run={tmp_path}"])


def test_the_last_run_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run=last, but no run under runs/ is finished yet"):
        track.main(["sync", "run=last"])
    for name, time in (("a", 2), ("b", 1)):
        folder = tmp_path / "runs/rooms" / name
        folder.mkdir(parents=True)
        (folder / "tracking.json").write_text(json.dumps({"tags": {"scenario": "rooms"}, "config": {}}))
        (folder / "summary.json").write_text("{}")
        os.utime(folder / "summary.json", (time, time))
    delivered: list[Path] = []
    monkeypatch.setattr("medusa_cl.tracking.deliver", lambda folder, tracker: delivered.append(folder))
    monkeypatch.setattr("medusa_cl.tracking.mlflow.MLflowTracker.ui_line", lambda self: "")
    track.main(["sync", "run=last"])
    assert delivered == [Path("runs/rooms/a")]


def test_a_taken_port_is_said(taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=f"Port {taken} is taken by another program. Choose another by port="):
        refused(taken)
    monkeypatch.setattr(server, "PORT", taken)
    with server.held_port(None) as chosen, server.held_port(None) as another:
        assert taken < chosen < another < taken + server.PORTS
        with pytest.raises(ConfigError, match=f"Port {chosen} is taken by a server that is just starting"):
            refused(chosen)
    assert capsys.readouterr().out == (
        f"Port {taken} is taken by another program: {chosen} is used.\n"
        f"Port {taken} is taken by another program: {another} is used.\n"
    )
    with server.held_port(chosen) as again:
        assert again == chosen


def test_a_server_that_does_not_start_is_quoted(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    popen = subprocess.Popen

    def fail(command: list[str], env: dict[str, str], **options: Any) -> Any:
        started.append((command, env))
        return popen([sys.executable, "-c", "print('no such thing'); raise SystemExit(7)"], **options)

    monkeypatch.setattr(subprocess, "Popen", fail)
    with (
        pytest.raises(MedusaError, match=r"ended with status 7. It said:\nno such thing"),
        server.started("x://me:word@db", 9),
    ):
        pytest.fail("not started")
    [(command, environment)] = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "x://me:word@db"
    assert "word" not in " ".join(command)
    assert "MLFLOW_BACKEND_STORE_URI" not in os.environ
