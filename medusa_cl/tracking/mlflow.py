"""MLflow as a view of the run directory: the only module that talks to mlflow, which it imports on first use."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time as clock
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl.tracking import clean_name, finite

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from numpy.typing import NDArray

SQLITE = "sqlite:///"
PARAMS_PER_BATCH, METRICS_PER_BATCH, PARAM_LENGTH, DIGEST_LENGTH = 100, 1000, 6000, 36
# Where a run lies or what it continues is not what it does: these differ between equal runs, and params are immutable.
LOCAL_KEYS = frozenset({"out", "resume", "extend", "base", "overwrite", "hydra", "tracking"})
PATH_LEAVES = frozenset({"root", "checkpoint", "path", "cache", "cache_dir", "download"})
MODEL_PACKAGES = ("mlflow", "torch", "torchvision", "timm", "torchmetrics", "numpy", "safetensors", "pillow")
# One process may write while others wait; SQLite's default gives up after 5 s.
SQLITE_PATIENCE = "60"
DEFAULT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # mlflow's own defaults (7 retries, 120 s) hold training up for minutes when the server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MLflowTracker:
    """Records one run in MLflow; a `medusa_cl.tracking.Tracker`.

    Args:
        experiment: MLflow's experiment, by convention the scenario's name.
        uri: tracking URI; None takes $MLFLOW_TRACKING_URI, else sqlite:///<runs>/mlflow.db. Artifacts of an SQLite
            store lie beside it in mlartifacts/.
        runs: folder of the default store.
        run_name: the name the UI shows; None takes the run directory's.
        parent_run_id: the run of the study or multirun this one belongs to.
        system_metrics: also sample CPU, memory and GPU use (needs psutil).
    """

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        runs: Path | str = "runs",
        run_name: str | None = None,
        parent_run_id: str | None = None,
        system_metrics: bool = False,
    ) -> None:
        self.experiment = experiment
        self.uri = store_uri(uri, Path(runs))
        self.run_name = run_name
        self.parent_run_id = parent_run_id
        self.system_metrics = system_metrics
        self.run_id = self.experiment_id = ""
        self._buffer: list[tuple[str, float, int, int]] = []
        self._images: set[tuple[str, int]] = set()
        self._monitor: Any = None

    @property
    def client(self) -> MlflowClient:
        """A client of this store, made on first use."""
        if not hasattr(self, "_client"):
            self._client = quiet_client(self.uri)
        return self._client

    def start(
        self, config: Mapping[str, Any], tags: Mapping[str, str], run_dir: Path, known: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Open a run, or reopen the one in `known`: params are immutable, so a reopened run gets none."""
        if known and known.get("uri") == self.uri and self._reopen(known["run_id"]):
            return self._identity()
        self.experiment_id = prepare_experiment(self.client, self.uri, self.experiment)
        run = self.client.create_run(
            self.experiment_id,
            start_time=_milliseconds(clock.time()),
            tags=self._tags(tags, run_dir),
            run_name=self.run_name or Path(run_dir).name,
        )
        self.run_id = run.info.run_id
        self._log_params(config)
        self._start_monitor()
        return self._identity()

    def metrics(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Buffer values (0.13 ms each in a batch, 6 ms one by one); what is not finite is left out."""
        stamp = _milliseconds(clock.time() if time is None else time)
        for name, value in values.items():
            number = finite(value)
            if number is not None:
                self._buffer.append((clean_name(name), number, stamp, step))

    def flush(self) -> None:
        """Send the buffered metrics."""
        from mlflow.entities import Metric

        for batch in _chunks(self._buffer, METRICS_PER_BATCH):
            rows = [Metric(name, value, stamp, step) for name, value, stamp, step in batch]
            self.client.log_batch(self.run_id, metrics=rows)
        self._buffer.clear()

    def image(self, key: str, picture: NDArray[np.uint8] | Path, step: int) -> None:
        """Log one picture of the series `key`; a step that already has one (a resumed run) keeps it."""
        if (key, step) in self._images:
            return
        self._images.add((key, step))
        self.client.log_image(self.run_id, _open_image(picture), key=key, step=step)

    def figure(self, path: Path) -> None:
        """Put a picture file under figures/."""
        self.client.log_artifact(self.run_id, str(path), "figures")

    def table(self, rows: Mapping[str, Sequence[Any]], name: str) -> None:
        """Log a table as <name>.json, replacing an earlier one (mlflow's own would append to it)."""
        file = f"{name}.json"
        data = {column: list(cells) for column, cells in rows.items()}
        if any(item.path == file for item in self.client.list_artifacts(self.run_id)):
            cells = [list(row) for row in zip(*data.values(), strict=True)]
            self.client.log_dict(self.run_id, {"columns": list(data), "data": cells}, file)
        else:
            with warnings.catch_warnings():  # of pandas, at how mlflow looks for text
                warnings.simplefilter("ignore")
                self.client.log_table(self.run_id, data, file)

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Log a dataset input; MLflow keeps at most 36 characters of the content hash."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        what = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source, "content_hash": digest}))
        self.client.log_inputs(self.run_id, [DatasetInput(what, [InputTag("mlflow.data.context", "training")])])

    def model(self, model_dir: Path) -> None:
        """Log model.json and model.safetensors as a pyfunc model from code: nothing is pickled."""
        import mlflow

        package = Path(__file__).resolve().parents[1]
        with self._active_run():
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(model_dir)},
                code_paths=[str(package)],
                pip_requirements=model_requirements(),
            )

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is buffered and close the run."""
        if self._monitor is not None:
            self._monitor.finish()
        self.flush()
        self.client.set_terminated(self.run_id, status)

    def ui_line(self) -> str:
        """How to look at this run: a command and a page for a local store, the page alone for a server."""
        # The UI opens in its GenAI mode otherwise.
        page = f"/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"
        if self.uri.startswith(("http://", "https://")):
            return self.uri.rstrip("/") + page
        command = f"{mlflow_command()} ui --backend-store-uri {_shown_uri(self.uri)} --host 127.0.0.1 --port 5000"
        return f"{command}\nhttp://127.0.0.1:5000{page}"

    def _identity(self) -> dict[str, str]:
        return {"uri": self.uri, "experiment_id": self.experiment_id, "run_id": self.run_id}

    def _reopen(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self.run_id, self.experiment_id = run_id, run.info.experiment_id
        self.client.update_run(run_id, status="RUNNING")
        self._images = _logged_images(self.client, run_id)
        self._start_monitor()
        return True

    def _tags(self, tags: Mapping[str, str], run_dir: Path) -> dict[str, str]:
        named = {"run_dir": str(run_dir), **tags}
        if tags.get("git"):
            named["mlflow.source.git.commit"] = tags["git"]
        if self.parent_run_id:
            named["mlflow.parentRunId"] = self.parent_run_id
        return named

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in flat_params(config).items()]
        for batch in _chunks(params, PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=batch)

    def _start_monitor(self) -> None:
        if self.system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
            self._monitor.start()

    @contextlib.contextmanager
    def _active_run(self) -> Iterator[None]:
        """A model can only be logged to the globally active run; the caller's own one is left as it was."""
        import mlflow

        before, exported = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)
        # Our models take two forms of image batch, which no signature describes: the warning leads nowhere.
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        try:
            with mlflow.start_run(run_id=self.run_id, nested=True, log_system_metrics=False):
                yield
            self.client.update_run(self.run_id, status="RUNNING")
        finally:
            mlflow.set_tracking_uri(before)
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # which mlflow exports by itself
            if exported is not None:
                os.environ["MLFLOW_TRACKING_URI"] = exported
            logging.getLogger("mlflow.pyfunc").setLevel(logging.NOTSET)


def store_uri(uri: str | None, runs: Path) -> str:
    """The tracking URI: the one given, else $MLFLOW_TRACKING_URI, else <runs>/mlflow.db; SQLite paths made absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{runs / 'mlflow.db'}"
    path = sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{path.resolve()}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite URI; None for any other store."""
    return Path(uri[len(SQLITE) :].partition("?")[0]) if uri.startswith(SQLITE) else None


def quiet_client(uri: str) -> MlflowClient:
    """A client without migration logs, telemetry or minutes of retries; settings of the user's own win."""
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    path = sqlite_path(uri)
    if path is None:
        return _client(uri)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  the slow part, before anybody waits for the lock

    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):  # processes that migrate a missing database together all fail
        return _client(f"{uri}?timeout={SQLITE_PATIENCE}")


def prepare_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made if missing, with its artifacts beside an SQLite store and not in the cwd."""
    path = sqlite_path(uri)
    if path is None:
        return _experiment(client, name, None)
    with _lock(path):
        return _experiment(client, name, (path.parent / "mlartifacts").as_uri())


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The resolved config as {"group.key": text}, without paths and without what a run continues."""
    params: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in LOCAL_KEYS or (prefix and key in PATH_LEAVES) or _is_path(value):
            continue
        if isinstance(value, Mapping):
            params |= flat_params(value, f"{name}.")
        else:
            params[clean_name(name)] = _param_text(value)
    return params


def model_requirements() -> list[str]:
    """What the logged model needs, pinned to the versions here."""
    versions = {}
    for package in MODEL_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package).partition("+")[0]
    return [f"{package}=={version}" for package, version in versions.items()]


def mlflow_command() -> str:
    """How to call mlflow from this shell: by name when that finds this environment's, else by its path."""
    here = Path(sys.executable).with_name("mlflow")
    found = shutil.which("mlflow")
    if found and (not here.exists() or Path(found).resolve() == here.resolve()):
        return "mlflow"
    return _relative(here) if here.exists() else f"{_relative(Path(sys.executable))} -m mlflow"


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)  # opens the store, which creates or checks the database
    return client


def _lock(path: Path) -> contextlib.AbstractContextManager[Any]:
    from filelock import FileLock

    return FileLock(f"{path}.lock", timeout=300)


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location))
        except MlflowException as error:  # another client of the same server was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    return str(found.experiment_id)


def _logged_images(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    found = set()
    for item in client.list_artifacts(run_id, "images"):
        # mlflow names them images/<key with ~ (once #) for />+step+<n>+timestamp+...; + was once %.
        if match := re.match(r"images/(.+?)[+%]step[+%](\d+)[+%]", item.path):
            found.add((re.sub("[~#]", "/", match[1]), int(match[2])))
    return found


def _open_image(picture: NDArray[np.uint8] | Path) -> Any:
    from PIL import Image

    if isinstance(picture, Path):
        with Image.open(picture) as image:
            return image.convert("RGB")
    return Image.fromarray(picture)


def _is_path(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "~/", "./", "../")))


def _param_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 1] + "…"


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _relative(path: Path) -> str:
    """Relative to the working directory where the path lies below it; the text a user can paste."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _shown_uri(uri: str) -> str:
    path = sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{_relative(path)}"
