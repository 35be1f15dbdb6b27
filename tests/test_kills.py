"""Two kills by SIGKILL, resumed by the command line (`make chaos` does twenty and more), and requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chaos_kills import MINIATURE, STRATEGIES, Chaos, Kill, compare, look_into_mlflow
from medusa_cl import snapshot
from medusa_cl.stopping import Stopped, StopRequest


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    """Where the runs are made."""
    return Chaos(tmp_path_factory.mktemp("kills"), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [Kill("medusa", "checkpoint writing", 2), Kill("medusa", "metric delivery", 0)])
def test_a_run_survives_sigkill(chaos: Chaos, kill: Kill) -> None:
    chaos.kill(kill)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_request_to_stop_ends_a_run_that_can_go_on(chaos: Chaos, number: signal.Signals, status: int) -> None:
    folder = chaos._place(f"stopped-by-{status}")
    environment = chaos.environment(folder)
    # Its own session: a terminal would send the signal to every process of the run.
    options: dict[str, Any] = {"cwd": folder, "env": environment, "text": True, "start_new_session": True}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "medusa_cl.run", *MINIATURE, *STRATEGIES["medusa"], "trainer.workers=1", "out=run"]
    running = subprocess.Popen(command, **options, **pipes)
    _wait_for_a_checkpoint(folder / "run", running)
    os.killpg(running.pid, number)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    assert "resume=run" in output
    newest = snapshot.newest(folder / "run" / "checkpoints")
    assert newest is not None
    assert f"from {newest.folder.name}" in output
    if number != signal.SIGINT:  # how it went on from a checkpoint is the same
        return
    whole, _ = chaos.whole("medusa")
    again = subprocess.run([sys.executable, "-m", "medusa_cl.run", "resume=run"], **options, **pipes, check=False)
    assert again.returncode == 0, again.stderr
    compare(whole, folder / "run")
    look_into_mlflow(folder / "run", environment["MLFLOW_TRACKING_URI"])


def _wait_for_a_checkpoint(run_dir: Path, running: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if list((run_dir / "checkpoints").glob("0*[a-z0-9]")):
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing was saved within two minutes")


def test_a_step_is_finished_first_and_a_second_request_stops_at_once() -> None:
    said: list[str] = []
    request = StopRequest()
    request.say = said.append
    with pytest.raises(Stopped) as stopped:
        request.hear(signal.SIGTERM)
    assert stopped.value.code == 143, "outside steps there is nothing to wait for"
    request = StopRequest()
    request.say, request.patient = said.append, True
    request.hear(signal.SIGINT)
    assert said == ["Stopping when this step is over and saved. Once more stops at once."]
    with pytest.raises(Stopped) as stopped:
        request.obey()
    assert stopped.value.code == 130
    with pytest.raises(Stopped):
        request.hear(signal.SIGINT)
