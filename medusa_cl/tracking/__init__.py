"""The record of a run: a directory that is complete by itself, and trackers that are views of it.

`RunRecorder` writes the run directory; a `Tracker` (MLflow: `medusa_cl.tracking.mlflow`) is told the same things.
Whatever stops a process, and whenever, a tracker holds each thing once in the end: a run that is opened again asks the
tracker what it holds, and delivers the rest. Nothing here imports mlflow, matplotlib or torch before it is needed.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from medusa_cl import kept
from medusa_cl.errors import DataError
from medusa_cl.tracking import files
from medusa_cl.tracking.files import METRICS_FILE, TRACKING_FILE, read_metrics
from medusa_cl.tracking.secrets import mask_text, mask_uri, masked

if TYPE_CHECKING:
    import numpy as np
    from filelock import BaseFileLock
    from numpy.typing import NDArray

    from medusa_cl.tracking.panels import Sample

__all__ = [
    "METRICS_FILE",
    "TRACKING_FILE",
    "RunRecorder",
    "Tracker",
    "clean_name",
    "deliver",
    "final_metrics",
    "finite",
    "owed",
    "read_metrics",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Names a run at its tracker. It is kept before the run is made there, and so finds one that was made but not noted.
KEY_TAG = "medusa_cl.key"
# For so many seconds a run that begins waits for its delivery by `track sync`.
DELIVERY_PATIENCE = 60
HEATMAP_FILE = "forgetting_heatmap.png"
TRANSFER_FILE = "transfer_bars.png"
TABLE_NAME = "task_matrix"


class Tracker(Protocol):
    """Where a run can be looked at besides its directory. Any method may raise: `RunRecorder` survives it.

    Of a run that was opened again, whatever the tracker holds already is skipped when it is recorded once more: of
    metrics, as many points of a name and step as it holds.
    """

    uri: str

    def start(
        self, config: Mapping[str, Any], tags: Mapping[str, str], run_dir: Path, known: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Open the run.

        Args:
            config: its parameters.
            tags: what it is found by; `KEY_TAG` is its own.
            run_dir: its directory.
            known: None for a new run. Else it may be there, and is looked for: {} by its key, or what `start` returned
                before, or {"run_dir": ...} by its directory, where the key is lost.

        Returns:
            What identifies the run (kept in tracking.json), without secrets.
        """

    def metrics(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Record finite values at a step; `time` is in seconds since 1970. May be buffered until `flush`."""

    def flush(self) -> None:
        """Send what is buffered."""

    def image(self, key: str, picture: NDArray[np.uint8] | Path, step: int) -> None:
        """Record one picture (H W 3 uint8 or a PNG file) of a series that a slider can step through."""

    def figure(self, path: Path) -> None:
        """Record a finished figure file."""

    def table(self, rows: Mapping[str, Sequence[Any]], name: str) -> None:
        """Record a table given as {column: cells}."""

    def note(self, text: str) -> None:
        """Describe the run in Markdown; what a user wrote in its place stays."""

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Record what the run was trained on, by content hash."""

    def model(self, model_dir: Path) -> None:
        """Record the trained model from a directory holding model.json and model.safetensors."""

    def finish(self, status: str = "FINISHED") -> None:
        """Flush and close the run with status FINISHED, FAILED or KILLED."""

    def ui_line(self) -> str:
        """How to look at this run, for the console."""


class RunRecorder:
    """Writes the run directory and forwards everything to an optional tracker.

    The directory is written first and is complete by itself. Whatever the tracker raises is caught in one place
    (`_forward`), said once, and the tracker is dropped: a tracking server that is down never ends a training run.

    Args:
        run_dir: the run directory; made when missing.
        tracker: where else to record, or None.
        clock: seconds since 1970, for the "time" of metrics.jsonl.
    """

    def __init__(self, run_dir: Path, tracker: Tracker | None = None, clock: Callable[[], float] = time.time) -> None:
        self.run_dir = Path(run_dir)
        self.panels_dir = self.run_dir / "panels"
        self.panels_dir.mkdir(parents=True, exist_ok=True)
        self._tracker = tracker
        self._clock = clock
        self._note = _opened_note(self.run_dir)
        self._ui_line: str | None = None
        self._lock: BaseFileLock | None = None

    @property
    def run_id(self) -> str | None:
        """The tracker's own name of the run; None where nothing is tracked."""
        return (self._note.get("tracker") or {}).get("run_id") if self.tracking else None

    @property
    def tracking(self) -> bool:
        """Whether a tracker is still being told."""
        return self._tracker is not None

    def start(self, config: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Open the record: keeps config and tags (for later delivery) and starts the tracker.

        A run whose directory was opened before goes on at the tracker, which is told what it lacks; call `restore`
        first. Until `finish`, no other process tells a tracker of this run.
        """
        if self._tracker is not None:
            self._note |= {"target": mask_uri(self._tracker.uri), "missed": False}
        self._lock = self._forward(lambda t: files.telling(self.run_dir, DELIVERY_PATIENCE))
        files.cut(self.run_dir / METRICS_FILE)
        known = self._note.get("tracker", {}) if files.identity(self._note) else None
        self._note.pop("status", None)
        self._note.setdefault("key", uuid.uuid4().hex)
        tags = {key: mask_text(str(value)) for key, value in tags.items() if value is not None}
        self._remember(config=masked(config), tags=tags, datasets=self._note.get("datasets", {}))
        identity = self._forward(lambda t: _started(t, self._note, self.run_dir, known))
        if identity is None:
            return
        self._remember(tracker=identity)
        self._ui_line = self._forward(lambda t: t.ui_line()) or self._ui_line
        if known is not None:
            self._forward(lambda t: _send_all(t, self.run_dir, self._note))

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Record what is trained on: a name, the hash of its content and where it came from."""
        source = mask_text(source)
        self._note.setdefault("datasets", {})[name] = {"digest": digest, "source": source}
        self._remember()
        self._forward(lambda t: t.dataset(name, digest, source))

    def metrics(self, values: Mapping[str, float | None], step: int) -> None:
        """Append one line to metrics.jsonl. Undefined or infinite values are null there and never reach a tracker.

        Raises:
            OSError: The line could not be written; those before it are as they were.
        """
        now = self._clock()
        shown = {clean_name(name): finite(value) for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(now, 3), "values": shown}, allow_nan=False)
        files.append_line(self.run_dir / METRICS_FILE, line)
        known = {name: value for name, value in shown.items() if value is not None}
        self._forward(lambda t: t.metrics(known, step, round(now, 3)))

    def predictions(self, learnt: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Draw what each task predicts now, always for the same test images: panels/<task>-<learnt>.png."""
        from medusa_cl.tracking import panels

        for task, rows in samples.items():
            path = self.panels_dir / f"{task}-{learnt:02d}.png"
            panels.save(panels.predictions_panel(task, rows, f"after {learnt} tasks"), path)
            self._image(task, path, learnt)

    def panel(self, picture: NDArray[np.uint8], name: str = "overview") -> Path:
        """Keep a finished picture (H W 3 uint8) as panels/<name>.png, also among the tracker's figures."""
        from medusa_cl.tracking import panels

        path = panels.save(picture, self.panels_dir / f"{name}.png")
        self._forward(lambda t: t.figure(path))
        return path

    def table(self, rows: Mapping[str, Sequence[Any]], name: str) -> None:
        """Hand a table by column to the tracker."""
        self._forward(lambda t: t.table(rows, name))

    def model(self, model_dir: Path) -> None:
        """Hand a directory with model.json and model.safetensors to the tracker."""
        folder = Path(model_dir).resolve()
        inside = folder.is_relative_to(self.run_dir.resolve())
        self._remember(model=str(folder.relative_to(self.run_dir.resolve()) if inside else folder))
        self._forward(lambda t: t.model(model_dir))

    def flush(self) -> None:
        """Send the tracker's buffered values; done at every evaluation, to be called at every epoch."""
        self._forward(lambda t: t.flush())

    def summary(self, summary: Mapping[str, Any], matrix_csv: str) -> None:
        """Write summary.json and task_matrix.csv, draw the figures, record transfer/*, relative/* and final/*.

        Raises:
            ValueError: the summary holds NaN or infinity; undefined values must be null with a reason.
        """
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        files.write_whole(self.run_dir / "task_matrix.csv", matrix_csv)
        kept.write_summary(self.run_dir, text + "\n")
        _draw_figures(summary, self.panels_dir)
        for values, step in final_metrics(summary):
            self.metrics(values, step)
        self.flush()
        self._forward(lambda t: _send_results(t, summary, self.panels_dir))

    def finish(self, status: str = "FINISHED") -> None:
        """Close the tracker's run with status FINISHED, FAILED or KILLED; the directory stays valid whatever it is."""
        try:
            self._forward(lambda t: t.finish(status))
            self._remember(status=status)  # once it has been told: a run without it was not
        finally:
            if self._lock is not None:
                self._lock.release()

    def ui_line(self) -> str | None:
        """How to open this run in the tracker's user interface, or how to deliver it there; None without a tracker."""
        return self._ui_line

    def state(self) -> dict[str, Any]:
        """Where the record stands, for a checkpoint, as plain data; what it counts is on the disk."""
        size = files.durable_size(self.run_dir / METRICS_FILE)
        return {"metrics_bytes": size, "tracking": files.identity(self._note)}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Drop what was appended after the checkpoint, so that a resumed run's record has no line twice.

        Args:
            state: of the checkpoint; None where there is none, so that all is made anew.
        """
        wanted = state["metrics_bytes"] if state else 0
        if files.cut(self.run_dir / METRICS_FILE, wanted) < wanted:
            logger.warning("%s has lost lines that the checkpoint counts on.", self.run_dir / METRICS_FILE)
        if state and "key" not in self._note:
            self._note.update(state.get("tracking", {}))

    def _image(self, task: str, path: Path, learnt: int) -> None:
        self._forward(lambda t: t.image(f"predictions/{task}", path, learnt))

    def _remember(self, **entries: Any) -> None:
        self._note.update(entries)
        _keep_note(self.run_dir, self._note)

    def _forward(self, call: Callable[[Tracker], T]) -> T | None:
        if self._tracker is None:
            return None
        try:
            return call(self._tracker)
        except Exception as error:  # whatever a tracker raises, training goes on
            reason, command = said(error, self._tracker), sync_line(self.run_dir)
            self._tracker, self._ui_line, self._note["missed"] = None, _delivers(self.run_dir), True
            logger.warning(
                "Tracking stopped: %s\nTraining goes on and nothing is lost: %s holds everything. "
                "When the run has ended, deliver it with `%s`.",
                reason,
                self.run_dir,
                command,
            )
            return None


def deliver(run_dir: Path, tracker: Tracker) -> dict[str, str]:
    """Send to a tracker what it lacks of a run directory, for instance after its server was down.

    Returns:
        What identifies the run at the tracker (also kept in tracking.json).

    Raises:
        FileNotFoundError: the directory holds no run.
        DataError: tracking.json is damaged and cannot be rebuilt.
        ConfigError: another process tells a tracker of this run.
    """
    lock = files.telling(run_dir)
    try:
        return _delivered(run_dir, tracker)
    finally:
        lock.release()


def _delivered(run_dir: Path, tracker: Tracker) -> dict[str, str]:
    note = delivery_note(run_dir)
    note.setdefault("key", uuid.uuid4().hex)
    _keep_note(run_dir, note)
    identity = _started(tracker, note, run_dir, note.get("tracker", {}))
    note = _amended(run_dir, tracker=identity)
    ended = "status" in note or (run_dir / "summary.json").exists()
    _send_all(tracker, run_dir, note)
    if ended:
        status = note.get("status", "FINISHED")
        tracker.finish(status)
        _amended(run_dir, status=status, missed=False)
    return identity


def _amended(run_dir: Path, **entries: Any) -> dict[str, Any]:
    """Set entries of a note as it is by now: a run without a tracker may go on, and end, while it is delivered."""
    note = files.read_note(run_dir) | entries
    _keep_note(run_dir, note)
    return note


def sync_line(run_dir: Path) -> str:
    """Return the command that delivers a run."""
    return f"python -m medusa_cl.track sync run={shlex.quote(str(run_dir))}"


def owed(run_dir: Path) -> str | None:
    """Return how to deliver what the tracker of a finished run was not told; None where there is no such thing."""
    try:
        note = files.read_note(run_dir)
    except DataError:
        return _delivers(run_dir)
    told = "status" in note and not note.get("missed")
    return None if told or "target" not in note else _delivers(run_dir)


def _delivers(run_dir: Path) -> str:
    return f"{sync_line(run_dir)} delivers what is missing"


def delivery_note(run_dir: Path) -> dict[str, Any]:
    """Return what tracking.json tells of a run, rebuilt where that is damaged.

    Raises:
        FileNotFoundError: the directory holds no run.
        DataError: it is damaged and cannot be rebuilt.
    """
    try:
        note = files.read_note(run_dir)
    except DataError as error:
        note = files.rebuilt_note(run_dir)
        logger.warning("%s It is made anew from config.yaml.", error)
        return note | {"tracker": {"run_dir": str(run_dir)}}
    if "config" not in note:
        raise FileNotFoundError(f"No {TRACKING_FILE} in {run_dir}: not a run directory, or one that never started.")
    return note


def said(error: Exception, tracker: Tracker | None = None, limit: int = 200) -> str:
    """Return what an error says in one line, shortened, without the secrets of the tracker's URI."""
    # SQLAlchemy begins with how it came to it.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as a result of")]
    lines = lines or [type(error).__name__]
    text = mask_text(lines[0], getattr(tracker, "uri", None))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def finite(value: Any) -> float | None:
    """The value as a float; None when it is None, NaN or infinite (MLflow would turn inf into 1.8e308)."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def clean_name(name: str) -> str:
    """A metric name every tracker accepts: letters, digits, `_ - . / space`; no empty part between slashes."""
    parts = (re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII).strip() for part in name.split("/"))
    return "/".join(part for part in parts if part and set(part) != {"."}) or "_"


def final_metrics(summary: Mapping[str, Any]) -> list[tuple[dict[str, float | None], int]]:
    """Values of a finished run as (metrics, step).

    transfer/<task> stands at the step its task was learnt, the means at the end; final/* at step 0, for which MLflow's
    UI draws bars that compare runs (a single later step becomes a lone dot in a line chart).
    """
    transfer, stream = summary["transfer"], list(summary["stream"])
    end = len(summary["base"]) + len(stream)
    records: list[tuple[dict[str, float | None], int]] = []
    for position, task in enumerate(stream, start=len(summary["base"]) + 1):
        gain = finite(_task_transfer(transfer["per_task"].get(task) or {}))
        records.append(({f"transfer/{task}": gain}, position))
    ufl = {f"transfer/{key}": transfer.get(key) for key in ("ufl_delta", "ufl_gain")}
    records.append(({**ufl, "relative/mtl_delta": summary["relative"]["mtl_delta"]}, end))
    records.append((_final(summary), 0))
    return records


def reference_values(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Raw values behind the gains: {new task: {reference: value}}; a reference without a value is left out."""
    transfer = summary["transfer"]
    values: dict[str, dict[str, float | None]] = {}
    for task in summary["stream"]:
        row = {name: tasks.get(task) for name, tasks in (transfer.get("reference_values") or {}).items()}
        row |= (transfer["per_task"].get(task) or {}).get("references") or {}
        values[task] = {name: finite(value) for name, value in row.items() if finite(value) is not None}
    return values


def mean_transfer(summary: Mapping[str, Any]) -> float | None:
    """Mean over all new tasks of their transfer; None if one has none, for the mean over some is another quantity."""
    entries = summary["transfer"]["per_task"]
    gains = [finite(_task_transfer(entries.get(task) or {})) for task in summary["stream"]]
    known = [gain for gain in gains if gain is not None]
    return sum(known) / len(known) if known and len(known) == len(gains) else None


def _final(summary: Mapping[str, Any]) -> dict[str, float | None]:
    cost, transfer = summary["cost"], summary["transfer"]
    values: dict[str, float | None] = {
        "forgetting_mean": summary["forgetting"].get("mean"),
        # The mean above adds metres to degrees, as defined; this one can be compared between streams.
        "forgetting_percent": (summary.get("forgetting_percent") or {}).get("mean"),
        "transfer_mean": mean_transfer(summary),
        "mtl_delta": summary["relative"]["mtl_delta"],
        "params_total": cost.get("params_total"),
        "gflops": cost.get("gflops"),
        "train_seconds": _total(cost.get("train_seconds") or {}),
    }
    gains = ("ufl_delta", "ufl_gain", "head_gain", "feature_gain", "control_gain", "attention_gain")
    values |= {key: transfer.get(key) for key in gains}
    for task, row in summary["matrix"]["values"].items():
        values[f"{task}_{summary['primary'][task]['metric']}"] = row[-1]
    return {f"final/{name}": value for name, value in values.items()}


def _total(seconds: Mapping[str, float | None]) -> float | None:
    known = [value for value in map(finite, seconds.values()) if value is not None]
    return sum(known) if known else None


def _task_transfer(entry: Mapping[str, float | None]) -> float | None:
    """Transfer against the frozen plain reference, else against the single-task net."""
    return entry["gain"] if entry.get("gain") is not None else entry.get("delta")


def _draw_figures(summary: Mapping[str, Any], directory: Path) -> None:
    from medusa_cl.tracking import panels

    title = f"{summary['strategy']} on {summary['scenario']}, seed {summary['seed']}"
    panels.save(panels.heatmap(summary["matrix"], summary["primary"], title), directory / HEATMAP_FILE)
    panels.save(panels.transfer_bars(summary), directory / TRANSFER_FILE)


def _send_results(tracker: Tracker, summary: Mapping[str, Any], directory: Path) -> None:
    tracker.table(_matrix_table(summary["matrix"], summary["primary"]), TABLE_NAME)
    for name in (HEATMAP_FILE, TRANSFER_FILE):
        tracker.figure(directory / name)
    from medusa_cl.tracking.typeset import result_note

    tracker.note(result_note(summary))


def _matrix_table(matrix: Mapping[str, Any], primary: Mapping[str, Any]) -> dict[str, list[Any]]:
    columns = {"after": list(matrix["after"])}
    for task, row in matrix["values"].items():
        columns[f"{task} ({primary[task]['metric']}, {primary[task]['unit'] or '1'})"] = list(row)
    return columns


def _started(
    tracker: Tracker, note: Mapping[str, Any], run_dir: Path, known: Mapping[str, str] | None
) -> dict[str, str]:
    return tracker.start(note["config"], {**note.get("tags", {}), KEY_TAG: note["key"]}, run_dir, known)


def _send_all(tracker: Tracker, run_dir: Path, note: Mapping[str, Any]) -> None:
    """Tell a tracker all that the directory holds; it skips what it has."""
    for name, data in note.get("datasets", {}).items():
        tracker.dataset(name, data["digest"], data["source"])
    for record in read_metrics(run_dir, skip=True):
        known = {name: value for name, value in record["values"].items() if value is not None}
        tracker.metrics(known, record["step"], record["time"])
    tracker.flush()
    _send_pictures(tracker, run_dir, note)


def _send_pictures(tracker: Tracker, run_dir: Path, note: Mapping[str, Any]) -> None:
    for path in sorted((run_dir / "panels").glob("*.png")):
        if series := re.fullmatch(r"(.+)-(\d+)", path.stem):
            tracker.image(f"predictions/{series[1]}", path, int(series[2]))
        elif path.name not in (HEATMAP_FILE, TRANSFER_FILE):
            tracker.figure(path)
    if (run_dir / "summary.json").exists():
        _send_results(tracker, kept.read_summary(run_dir), run_dir / "panels")
    if "model" in note and (run_dir / note["model"]).is_dir():
        tracker.model(run_dir / note["model"])


def _opened_note(run_dir: Path) -> dict[str, Any]:
    try:
        return files.read_note(run_dir)
    except DataError as error:
        logger.warning("%s It is written anew; the run is looked for at the tracker by its directory.", error)
        return {"tracker": {"run_dir": str(run_dir)}}


def _keep_note(run_dir: Path, note: Mapping[str, Any]) -> None:
    files.write_whole(run_dir / TRACKING_FILE, json.dumps(note, indent=2, default=str) + "\n")
