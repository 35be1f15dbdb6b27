"""One run, asked to stop and killed twice by SIGKILL (`make chaos` kills twenty and more), and requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chaos_kills import MINIATURE, STRATEGIES, Chaos
from medusa_cl import snapshot
from medusa_cl.job import run
from medusa_cl.stopping import Stopped, StopRequest, deaf, listening
from small_run import config, without_pictures

STATUSES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_goes_on(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop, then killed as MLflow is told something, then in the middle of a checkpoint: as if it never was.

    Processes that load are there when it is stopped, and when it is killed for the second time.
    """
    chaos = Chaos(tmp_path, store=empty_store)
    folder = chaos.place("stopped")
    _stopped(chaos, folder)
    chaos.die(folder, "metric delivery", 2, ["resume=run", "trainer.workers=0"])
    chaos.die(folder, "checkpoint writing", 3, ["resume=run", "trainer.workers=1"])
    chaos.finish(folder, _never_stopped(chaos.place("whole"), monkeypatch), ["resume=run", "trainer.workers=0"])


def _stopped(chaos: Chaos, folder: Path) -> None:
    """Ask a run to stop, and all processes that load for it too, as many schedulers do."""
    command = [sys.executable, "-m", "medusa_cl.run", *MINIATURE, *STRATEGIES["medusa"], "trainer.workers=1", "out=run"]
    # Its own session: the signal is for all of its processes, and not for this one.
    options: dict[str, Any] = {"cwd": folder, "env": chaos.environment(folder), "start_new_session": True}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, **options, **pipes)
    _wait_for_a_checkpoint(folder / "run", running)
    os.killpg(running.pid, signal.SIGTERM)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 143, errors
    assert "Traceback" not in errors
    assert "resume=run" in output
    newest = snapshot.newest(folder / "run" / "checkpoints")
    assert newest is not None
    assert f"from {newest.folder.name}" in output


def _never_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Learn the same in this process, told to nobody."""
    monkeypatch.chdir(folder)
    without_pictures(monkeypatch)
    given = [*MINIATURE, *STRATEGIES["medusa"], "out=run", "tracking=off"]
    run(config(*given), given)
    return folder / "run"


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


@pytest.mark.parametrize(("number", "status"), STATUSES)
def test_every_request_is_heard_and_has_its_status(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, listening(StopRequest()):
        signal.raise_signal(number)
    assert stopped.value.code == status
    assert signal.getsignal(number) == before


def test_helpers_leave_requests_to_whoever_has_started_them() -> None:
    """A terminal sends them to all; SIGTERM ends a helper when it comes twice."""
    child = os.fork()
    if child == 0:
        try:
            deaf()
            for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                signal.raise_signal(number)
            signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
            signal.raise_signal(signal.SIGUSR1)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
