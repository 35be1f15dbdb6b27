"""MLflow as a view of the run directory: the only module that talks to mlflow, which it imports on first use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import sqlite3
import tempfile
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl.errors import ConfigError, DataError, MedusaError
from medusa_cl.rundir import RUNS
from medusa_cl.tracking import KEY_TAG, clean_name, finite, said, views
from medusa_cl.tracking.explained import EXPERIMENT_NOTE, HEADING, model_note
from medusa_cl.tracking.holdings import Holdings
from medusa_cl.tracking.secrets import hide_in_logs, is_masked, mask_uri

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
# A run's directory on its machine, hashed: the directory's name alone may be that of another user's run.
PLACE_TAG = "medusa_cl.place"
NOTE_TAG = "mlflow.note.content"  # what the UI shows as the description
# The kind is by what the UI knows which of its modes an experiment is for.
EXPERIMENT_TAGS = {NOTE_TAG: EXPERIMENT_NOTE, "mlflow.experimentKind": "custom_model_development"}
SECTIONED = {"bwt": "forgetting/bwt"}  # what the UI would else put into a section for all that has none
PARAMS_PER_BATCH, METRICS_PER_BATCH, PARAM_LENGTH, DIGEST_LENGTH = 100, 1000, 6000, 36
# Where a run lies or what it continues is not what it does: these differ between equal runs, and params are immutable.
LOCAL_KEYS = frozenset({"out", "resume", "extend", "base", "overwrite", "hydra", "tracking"})
# Equal for all runs, or not about what a run learns.
BESIDE, CLASS_LEAVES = frozenset({"study", "compare", "remove"}), frozenset({"_target_", "_partial_"})
PATH_LEAVES = frozenset({"root", "checkpoint", "path", "cache", "cache_dir", "download"})
MODEL_PACKAGES = ("mlflow", "torch", "torchvision", "timm", "torchmetrics", "numpy", "safetensors", "pillow")
# One process may write while others wait, this many seconds; SQLite's default gives up after 5 s.
SQLITE_PATIENCE = 60
# Migrating a new database takes seconds, and a sweep's processes do it one after the other.
MIGRATION_PATIENCE = 300
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
        self._held = Holdings()
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
        """Open a run, or the one that is known: it gets the params it lacks, for those it has are immutable.

        Raises:
            ConfigError: the URI has lost its password.
        """
        if is_masked(self.uri):
            raise ConfigError(
                f"The tracking URI {self.uri} is kept without its secrets. Give the whole in $MLFLOW_TRACKING_URI, or "
                "by tracking.uri= (uri= of track sync)."
            )
        tags = {**_plugins_tag(config), **tags}
        if known is None or not self._reopen(known, tags, run_dir):
            self._create(tags, run_dir)
        self._log_params(config)
        self._start_monitor()
        return self._identity()

    def metrics(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Buffer values (0.13 ms each in a batch, 6 ms one by one); what is not finite or held is left out."""
        stamp = _milliseconds(clock.time() if time is None else time)
        for name, value in values.items():
            number, name = finite(value), clean_name(SECTIONED.get(name, name))
            if number is not None and not self._held.has_point(name, step):
                self._buffer.append((name, number, stamp, step))

    def flush(self) -> None:
        """Send the buffered metrics."""
        from mlflow.entities import Metric

        for batch in _chunks(self._buffer, METRICS_PER_BATCH):
            rows = [Metric(name, value, stamp, step) for name, value, stamp, step in batch]
            self.client.log_batch(self.run_id, metrics=rows)
        self._buffer.clear()

    def image(self, key: str, picture: NDArray[np.uint8] | Path, step: int) -> None:
        """Log one picture of the series `key`; a step that already has one (a resumed run) keeps it."""
        if (key, step) not in self._held.images:
            self._held.images.add((key, step))
            self.client.log_image(self.run_id, _open_image(picture), key=key, step=step)
        elif stem := self._held.halves.pop((key, step), None):
            self._log_preview(picture, stem)

    def figure(self, path: Path) -> None:
        """Put a picture file under figures/."""
        self.client.log_artifact(self.run_id, str(path), "figures")

    def table(self, rows: Mapping[str, Sequence[Any]], name: str) -> None:
        """Log a table as <name>.json, replacing an earlier one (mlflow's own would append to it)."""
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        file = f"{name}.json"
        cells = [[_cell(cell) for cell in row] for row in zip(*rows.values(), strict=True)]
        self.client.log_dict(self.run_id, {"columns": list(rows), "data": cells}, file)
        shown = json.loads(self._held.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        if (entry := {"path": file, "type": "table"}) not in shown:
            self._held.tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps([*shown, entry])
            self.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, self._held.tags[MLFLOW_LOGGED_ARTIFACTS])

    def note(self, text: str) -> None:
        """Describe the run by its result and how its model is loaded; what a user has written there stays."""
        held = self._held.tags.get(NOTE_TAG, "")
        whole = f"{HEADING}\n\n{text}\n{model_note(self.run_id)}"
        if held != whole and (not held or held.startswith(HEADING)):
            self.client.set_tag(self.run_id, NOTE_TAG, whole)
            self._held.tags[NOTE_TAG] = whole

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Log a dataset input; MLflow keeps at most 36 characters of the content hash."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if (name, digest[:DIGEST_LENGTH]) in self._held.datasets:
            return
        what = Dataset(name, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": source, "content_hash": digest}))
        self.client.log_inputs(self.run_id, [DatasetInput(what, [InputTag("mlflow.data.context", "training")])])

    def model(self, model_dir: Path) -> None:
        """Log model.json and model.safetensors as a pyfunc model from code: nothing is pickled.

        One that is there stays; one that was begun is completed.
        """
        from mlflow.entities import LoggedModelOutput

        model = self._held.model or self._begun_model()
        if str(model.status) == "READY":
            return
        if model.model_id not in self._held.outputs:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        with tempfile.TemporaryDirectory() as folder:
            _save_model(model, self.run_id, model_dir, Path(folder) / "model")
            self.client.log_model_artifacts(model.model_id, f"{folder}/model")
        self._held.model = self.client.finalize_logged_model(model.model_id, "READY")

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is buffered and close the run."""
        if self._monitor is not None:
            self._monitor.finish()
        self.flush()
        self.client.set_terminated(self.run_id, status)

    def ui_line(self) -> str:
        """How to look at this run: a command and a page for a local store, the page alone for a server."""
        page = views.page(self.experiment_id)
        if self.uri.startswith(("http://", "https://")):
            return mask_uri(self.uri).replace("***@", "").partition("?")[0].rstrip("/") + page
        command = ["python", "-m", "medusa_cl.track", "ui"]
        if self.uri != store_uri(None, RUNS):
            command.append(f"uri={_shown_uri(self.uri)}")
        return f"{shlex.join(command)}\nhttp://127.0.0.1:5000{page}"

    def _identity(self) -> dict[str, str]:
        return {"uri": mask_uri(self.uri), "experiment_id": self.experiment_id, "run_id": self.run_id}

    def _create(self, tags: Mapping[str, str], run_dir: Path) -> None:
        self.experiment_id = self.experiment_id or prepare_experiment(self.client, self.uri, self.experiment)
        run = self.client.create_run(
            self.experiment_id,
            start_time=_milliseconds(clock.time()),
            tags=self._tags(tags, run_dir),
            run_name=self.run_name or _run_name(tags, Path(run_dir)),
        )
        self.run_id = run.info.run_id
        self._held = Holdings(tags=dict(run.data.tags))

    def _reopen(self, known: Mapping[str, str], tags: Mapping[str, str], run_dir: Path) -> bool:
        run = self._noted(known) or self._searched(self._tags(tags, run_dir), "run_dir" in known)
        if run is None:
            return False
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        self._held = Holdings.of(self.client, run)
        self.client.update_run(self.run_id, status="RUNNING")
        self._complete_tags(self._tags(tags, run_dir))
        return True

    def _noted(self, known: Mapping[str, str]) -> Run | None:
        """Return the run that was noted, if it is of this store and still there."""
        from mlflow.exceptions import MlflowException

        if mask_uri(known.get("uri", "")) != mask_uri(self.uri):
            return None
        try:
            run = self.client.get_run(known["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            logger.warning("The run %s was deleted in MLflow: another one takes its place.", known["run_id"])
            return None
        return run

    def _searched(self, tags: Mapping[str, str], lost: bool) -> Run | None:
        """Return the run that bears the key, or the latest one of the directory where the key is lost."""
        self.experiment_id = prepare_experiment(self.client, self.uri, self.experiment)
        for name in (KEY_TAG, PLACE_TAG) if lost else (KEY_TAG,):
            if name not in tags:
                continue
            found = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{name}` = '{tags[name]}'",
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
            if found:
                return found[0]
        return None

    def _complete_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        held = self._held.tags
        moved = {name: text for name, text in tags.items() if name not in held}
        own = ("run_dir", PLACE_TAG, KEY_TAG)
        moved |= {name: tags[name] for name in own if name in tags and tags[name] != held.get(name)}
        if self._held.images:
            moved |= {"mlflow.loggedImages": "True"}  # by which the UI looks for pictures
        self.client.log_batch(self.run_id, tags=[RunTag(name, text) for name, text in moved.items()])

    def _log_preview(self, picture: NDArray[np.uint8] | Path, stem: str) -> None:
        """Log the small picture that the UI shows, for a large one that was logged without it."""
        from mlflow.tracking.multimedia import compress_image_size

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{stem}+compressed.webp"
            compress_image_size(_open_image(picture)).save(path)
            self.client.log_artifact(self.run_id, str(path), "images")

    def _tags(self, tags: Mapping[str, str], run_dir: Path) -> dict[str, str]:
        named = {"run_dir": str(run_dir), PLACE_TAG: _place(run_dir), **tags}
        if tags.get("git"):
            named["mlflow.source.git.commit"] = tags["git"]
        if self.parent_run_id:
            named["mlflow.parentRunId"] = self.parent_run_id
        return named

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        held = self._held.params
        params = [Param(name, value) for name, value in flat_params(config).items() if name not in held]
        for batch in _chunks(params, PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=batch)

    def _start_monitor(self) -> None:
        if self.system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
            self._monitor.start()

    def _begun_model(self) -> LoggedModel:
        params = self.client.get_run(self.run_id).data.params
        return self.client.create_logged_model(
            self.experiment_id, name="model", source_run_id=self.run_id, params=params
        )


def store_uri(uri: str | None, runs: Path) -> str:
    """The tracking URI: the one given, else $MLFLOW_TRACKING_URI, else <runs>/mlflow.db; SQLite paths made absolute.

    One that was kept, without its secrets, gives way to $MLFLOW_TRACKING_URI too.
    """
    exported = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and is_masked(uri):
        uri = exported or uri
    uri = uri or exported or f"{SQLITE}{runs / 'mlflow.db'}"
    path = sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{path.resolve()}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite URI; None for any other store."""
    return Path(uri[len(SQLITE) :].partition("?")[0]) if uri.startswith(SQLITE) else None


def quiet_client(uri: str) -> MlflowClient:
    """A client without migration logs, telemetry or minutes of retries; settings of the user's own win.

    Raises:
        DataError: An SQLite store stays locked by another process, or is damaged.
    """
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    hide_in_logs(uri, ("mlflow", "urllib3"))
    path = sqlite_path(uri)
    if path is None:
        return _client(uri)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  the slow part, before anybody waits for the lock

    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):  # processes that migrate a missing database together all fail
        _check_database(path)
        client = _client(f"{uri}?timeout={SQLITE_PATIENCE}")
    _be_patient(client)
    return client


def prepare_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made if missing, with its artifacts beside an SQLite store and not in the cwd."""
    path = sqlite_path(uri)
    if path is None:
        return _experiment(client, name, None)
    with _lock(path):
        return _experiment(client, name, (path.parent / "mlartifacts").as_uri())


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that say something where runs are compared: without those of studies, and names of classes."""
    leaves = settings(config).items()
    return {
        name: text
        for name, text in leaves
        if name.partition(".")[0] not in BESIDE and name.rpartition(".")[2] not in CLASS_LEAVES
    }


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The resolved config as {"group.key": text}, without paths and without what a run continues."""
    params: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in LOCAL_KEYS or (prefix and key in PATH_LEAVES) or _is_path(value):
            continue
        if isinstance(value, Mapping):
            params |= settings(value, f"{name}.")
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


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what it raises as well
    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)  # opens the store, which creates or checks the database
    return client


def _lock(path: Path) -> contextlib.AbstractContextManager[Any]:
    from filelock import FileLock

    return FileLock(f"{path}.lock", timeout=MIGRATION_PATIENCE)


def _check_database(path: Path) -> None:
    """Wait until nobody writes: mlflow itself would try a locked or damaged database ten times, for minutes."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=SQLITE_PATIENCE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise DataError(f"The MLflow store {path} cannot be written to: {error}.") from error


def _be_patient(client: MlflowClient) -> None:
    """Let a locked database be waited for as long as we say: mlflow sets its own 20 s for every session."""
    from sqlalchemy import event

    engine = getattr(client._tracking_client.store, "engine", None)  # shared by all clients of a URI
    if engine is not None and not event.contains(engine, "before_cursor_execute", _longer):
        event.listen(engine, "before_cursor_execute", _longer, retval=True)


def _longer(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    if statement.startswith("PRAGMA busy_timeout"):
        statement = f"PRAGMA busy_timeout = {_milliseconds(SQLITE_PATIENCE)};"
    return statement, parameters


def _save_model(model: LoggedModel, run_id: str, model_dir: Path, place: Path) -> None:
    import mlflow
    from mlflow.models import Model

    quiet = logging.getLogger("mlflow.pyfunc")  # our models take two forms of image batch, which no signature describes
    quiet.setLevel(logging.ERROR)
    try:
        mlflow.pyfunc.save_model(
            path=str(place),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run_id,
                model_id=model.model_id,
            ),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(model_dir)},
            code_paths=[str(Path(__file__).resolve().parents[1])],
            pip_requirements=model_requirements(),
        )
    finally:
        quiet.setLevel(logging.NOTSET)


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location, tags=EXPERIMENT_TAGS))
        except MlflowException as error:  # another client of the same server was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f'The experiment "{name}" was deleted in MLflow. Restore it (mlflow experiments restore --experiment-id '
            f"{found.experiment_id}), or remove it for good (mlflow gc)."
        )
    return str(found.experiment_id)


def _plugins_tag(config: Mapping[str, Any]) -> dict[str, str]:
    plugins = config.get("plugins")
    return {"plugins": "+".join(plugins)} if plugins and isinstance(plugins, Mapping) else {}


def _run_name(tags: Mapping[str, str], run_dir: Path) -> str:
    """Short, for a chart's legend: "finetune+ewc s0" where the directory has the name that runs get, else that name."""
    strategy, plugins, place = tags.get("strategy", ""), tags.get("plugins", ""), run_dir.name
    whole = f"{strategy}+{plugins}" if plugins else strategy
    own = rf"{re.escape(strategy)}(\+[^-]*)?-{re.escape(tags.get('backbone', ''))}-s{tags.get('seed', '')}-(?P<nth>\d+)"
    if strategy and (match := re.fullmatch(own, place)):
        return f"{whole} s{tags['seed']}{'' if match['nth'] == '0' else '-' + match['nth']}"
    unsaid = strategy and plugins and plugins not in place and place.startswith(strategy)
    return f"{whole}{place.removeprefix(strategy)}" if unsaid else place


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


def _cell(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _relative(path: Path) -> str:
    """Relative to the working directory where the path lies below it; the text a user can paste."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _place(run_dir: Path) -> str:
    return hashlib.sha256(f"{platform.node()}:{Path(run_dir).resolve()}".encode()).hexdigest()[:32]


def _shown_uri(uri: str) -> str:
    path = sqlite_path(uri)
    return mask_uri(uri) if path is None else f"{SQLITE}{_relative(path)}"


def run_dir_of(run_id: str, uri: str | None = None) -> str | None:
    """Return the directory that was noted with a run; None where the store has no such run.

    Raises:
        ConfigError: The store cannot be asked.
        DataError: It is damaged, or stays locked by another process.
    """
    tracker = MLflowTracker("", uri=uri)
    path = sqlite_path(tracker.uri)
    if path is not None and not path.exists():
        return None
    try:
        return tracker.client.get_run(run_id).data.tags.get("run_dir")
    except MedusaError:
        raise
    except Exception as error:  # of mlflow or of what it stands on
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise ConfigError(
            f"The directory of the run {run_id} is not known here, and MLflow at {mask_uri(tracker.uri)} cannot be "
            f"asked for it: {said(error, tracker)} Name the directory itself."
        ) from None
