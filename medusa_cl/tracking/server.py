"""MLflow's pages on this machine: a server that lasts as long as the command that started it."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import IO, TYPE_CHECKING, NamedTuple

from filelock import FileLock, Timeout

from medusa_cl.errors import ConfigError, MedusaError
from medusa_cl.rundir import RUNS, find_run
from medusa_cl.tracking import TRACKING_FILE, delivery_note, views
from medusa_cl.tracking.mlflow import DEFAULT_ENVIRONMENT, quiet_client, sqlite_path, store_uri
from medusa_cl.tracking.secrets import mask_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOST, PORT, PORTS = "127.0.0.1", 5000, 100
# Seconds: importing mlflow alone takes ten on a busy machine.
PATIENCE, FAREWELL, PAUSE = 180, 10, 0.1
RUN_ID_LENGTH = 32
# MLflow's evaluation jobs for language models would start seven processes of 240 MB each.
ENVIRONMENT = {**DEFAULT_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
RUNS_LOOKED_AT = 200


class Recorded(NamedTuple):
    """A run as a store knows it."""

    uri: str
    run_id: str
    experiment_id: str = ""


def serve(uri: str | None, port: int | None, run: str | None) -> None:
    """Serve the pages of a store to this machine alone, say where they are, and wait until Ctrl-C ends it.

    Args:
        uri: The store; None for that of the run, else $MLFLOW_TRACKING_URI, else runs/mlflow.db.
        port: None takes 5000, or the next that is free.
        run: A run directory, "last" or an MLflow run id, whose page is named too.

    Raises:
        ConfigError: There is no such store or run, the store has a server already, or the port is taken.
        MedusaError: The server does not start.
    """
    recorded = None if run is None else find_recorded(run)
    store = store_uri(uri or (recorded.uri if recorded else None), RUNS)
    check_store(store, recorded)
    with _ended_by_signals(), held_port(port) as chosen:
        print(f"starting MLflow on {mask_uri(store)} ...", flush=True)  # it takes seconds
        pages = list(page_lines(store, f"http://{HOST}:{chosen}", recorded.run_id if recorded else None))
        with started(store, chosen) as process:
            print("\n".join([*pages, "ready; Ctrl-C ends it"]), flush=True)
            process.wait()
    raise MedusaError(f"MLflow's server has ended by itself, with status {process.returncode}.")


def find_recorded(run: str) -> Recorded:
    """Find a run's record.

    Raises:
        ConfigError: It is neither a run directory, nor "last", nor an MLflow run id, or it is not recorded in MLflow.
    """
    folder = find_run(run, "run") if run == "last" else Path(run)
    if not (folder / TRACKING_FILE).is_file():
        if len(run) == RUN_ID_LENGTH and set(run) <= set("0123456789abcdef"):
            return Recorded("", run)
        raise ConfigError(f"Expected run= a run directory, last, or an MLflow run id, but found no run in {run}.")
    known = delivery_note(folder).get("tracker") or {}
    if "run_id" not in known:
        raise ConfigError(
            f"The run in {folder} is not recorded in MLflow. Deliver it: python -m medusa_cl.track sync run={folder}"
        )
    return Recorded(_where(known["uri"], folder), known["run_id"], str(known.get("experiment_id") or ""))


def check_store(store: str, recorded: Recorded | None = None) -> None:
    """Refuse a store that cannot be served.

    Args:
        store: Its URI.
        recorded: A run in it whose page is to be named.

    Raises:
        ConfigError: It has a server, whose page is named, or there is none yet.
    """
    if store.startswith(("http://", "https://")):
        address = mask_uri(store).replace("***@", "").partition("?")[0].rstrip("/")
        found = recorded is not None and recorded.experiment_id
        page = views.page(recorded.experiment_id, recorded.run_id) if recorded is not None and found else "/"
        raise ConfigError(f"{mask_uri(store)} is a server with pages of its own. Open {address}{page} in a browser.")
    path = sqlite_path(store)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"There is no MLflow store {path} yet: a run makes it (python -m medusa_cl.run). One elsewhere is named by "
            "uri=sqlite:///PATH/mlflow.db."
        )


@contextmanager
def held_port(asked: int | None) -> Iterator[int]:
    """Keep a port for a block, against others that start here: the server takes it seconds later.

    Args:
        asked: The port; None for the first that is free from 5000 on, said where it is another.

    Raises:
        ConfigError: It is taken, or may not be used.
    """
    first = PORT if asked is None else asked
    for port in range(first, first + (PORTS if asked is None else 1)):
        if (lock := _reserved(port)) is not None:
            with lock:
                if port != first:
                    print(f"Port {first} {_why(first)}: {port} is used.", flush=True)
                yield port
            return
    if asked is None:
        raise ConfigError(f"No port from {PORT} to {PORT + PORTS - 1} is free. Choose another by port=.")
    raise ConfigError(f"Port {asked} {_why(asked)}. Choose another by port=, or leave that out.")


def page_lines(store: str, server: str, run_id: str | None = None) -> Iterator[str]:
    """Arrange the pages of every experiment with runs, and yield the lines that name them.

    Args:
        store: URI of the store.
        server: Where it is served, such as "http://127.0.0.1:5000".
        run_id: A run whose page comes first.

    Raises:
        ConfigError: The store has no such run, or none at all.
    """
    client = quiet_client(store)
    if run_id is not None:
        yield f"run       {server}{views.page(_experiment_of(client, run_id), run_id)}"
    empty = True
    for experiment in client.search_experiments():
        runs = client.search_runs([experiment.experiment_id], max_results=RUNS_LOOKED_AT)
        if runs:
            empty = False
            arranged = views.write(client, experiment.experiment_id, runs)
            yield f"{experiment.name}"
            for label, charts in (("charts", True), ("list", False)):
                yield f"  {label:7} {server}{views.page(experiment.experiment_id, charts=charts, view=arranged)}"
    if empty:
        raise ConfigError(f"The MLflow store {mask_uri(store)} has no runs yet: python -m medusa_cl.run makes one.")


@contextmanager
def started(store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server for a block, which begins when it answers.

    Raises:
        MedusaError: It ends, or does not answer in time.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    # The store is in the environment and not among the arguments, which all users of the machine see.
    environment = {**ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": store}
    with tempfile.TemporaryFile() as log:
        # In a session of its own, or Ctrl-C would reach it as well and it would print what it was doing.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, port, log)
            yield process
        finally:
            _end(process)


def _where(noted: str, folder: Path) -> str:
    """Return the store a run was recorded in; where its directory was moved, the one that was moved with it."""
    path, beside = sqlite_path(noted), folder.resolve().parent.parent / "mlflow.db"
    return f"sqlite:///{beside}" if path is not None and not path.is_file() and beside.is_file() else noted


def _reserved(port: int) -> FileLock | None:
    """Return a lock, taken, for a port that can be listened at."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"medusa_cl-{os.getuid()}-port-{port}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    if _refusal(port) is None:
        return lock
    lock.release()
    return None


def _refusal(port: int) -> int | None:
    """Return why a port cannot be listened at, as errno has it; None where it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left a moment ago is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return None


def _why(port: int) -> str:
    """Return what is the matter with a port."""
    error = _refusal(port)
    if error is None:
        return "is taken by a server that is just starting"
    if error != errno.EADDRINUSE:
        return f"cannot be used: {os.strerror(error)}"
    version = _answer(f"http://{HOST}:{port}/version")
    by = f"an MLflow server, version {version}" if version and version[:1].isdigit() else "another program"
    return f"is taken by {by}"


def _answer(url: str, seconds: float = 2) -> str | None:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is never behind a proxy
        with direct.open(url, timeout=seconds) as reply:
            return str(reply.read(100).decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException):  # nobody is there, or does not speak HTTP
        return None


def _experiment_of(client: MlflowClient, run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ConfigError(f"The store has no run {run_id}: it may have been deleted there for good.") from None


def _wait(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = monotonic() + PATIENCE
    while _answer(f"http://{HOST}:{port}/health") != "OK":
        if process.poll() is not None or monotonic() > end:
            how = "does not answer" if process.returncode is None else f"ended with status {process.returncode}"
            log.seek(0)
            told = log.read().decode(errors="replace").strip()[-2000:]
            raise MedusaError(f"MLflow's server {how}. It said:\n{told}")
        sleep(PAUSE)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL)
            return


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a terminal that closes, or a `kill`, end the server too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
