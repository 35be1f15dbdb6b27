"""The record of a run: a directory that is complete by itself, and trackers that are views of it.

`RunRecorder` writes the run directory; a `Tracker` (MLflow: `medusa_cl.tracking.mlflow`) is told the same things.
Nothing here imports mlflow, matplotlib or torch before it is needed.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medusa_cl.tracking.panels import Sample

__all__ = ["RunRecorder", "Tracker", "clean_name", "deliver", "final_metrics", "finite"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
TRACKING_FILE = "tracking.json"
HEATMAP_FILE = "forgetting_heatmap.png"
TRANSFER_FILE = "transfer_bars.png"
TABLE_NAME = "task_matrix"


class Tracker(Protocol):
    """Where a run can be looked at besides its directory. Any method may raise: `RunRecorder` survives it."""

    def start(
        self, config: Mapping[str, Any], tags: Mapping[str, str], run_dir: Path, known: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Open the run, or reopen the one identified by `known`; returns what identifies it (kept in tracking.json)."""

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
        self._note: dict[str, Any] = _read_note(self.run_dir)
        self._ui_line: str | None = None

    @property
    def run_id(self) -> str | None:
        """The tracker's own name of the run; None where nothing is tracked."""
        return (self._note.get("tracker") or {}).get("run_id") if self.tracking else None

    @property
    def tracking(self) -> bool:
        """Whether a tracker is still being told."""
        return self._tracker is not None

    def start(self, config: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Open the record: keeps config and tags (for later delivery) and starts the tracker."""
        tags = {key: str(value) for key, value in tags.items() if value is not None}
        self._remember(config=dict(config), tags=tags, datasets=self._note.get("datasets", {}))
        known = self._note.get("tracker")
        identity = self._forward(lambda t: t.start(config, tags, self.run_dir, known))
        if identity is not None:
            self._remember(tracker=identity)
            self._ui_line = self._forward(lambda t: t.ui_line())

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Record what is trained on: a name, the hash of its content and where it came from."""
        self._note.setdefault("datasets", {})[name] = {"digest": digest, "source": source}
        self._remember()
        self._forward(lambda t: t.dataset(name, digest, source))

    def metrics(self, values: Mapping[str, float | None], step: int) -> None:
        """Append one line to metrics.jsonl. Undefined or infinite values are null there and never reach a tracker."""
        now = self._clock()
        shown = {clean_name(name): finite(value) for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(now, 3), "values": shown}, allow_nan=False)
        with (self.run_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        known = {name: value for name, value in shown.items() if value is not None}
        self._forward(lambda t: t.metrics(known, step, round(now, 3)))

    def train(self, step: int, losses: Mapping[str, float], images_per_s: float | None = None) -> None:
        """Record training losses by task; `step` counts optimizer steps over the whole stream."""
        values: dict[str, float | None] = {f"train/{task}_loss": loss for task, loss in losses.items()}
        if images_per_s is not None:
            values["train/images_per_s"] = images_per_s
        self.metrics(values, step)

    def evaluation(
        self,
        learnt: int,
        scores: Mapping[str, Mapping[str, float | None]],
        forgetting: Mapping[str, float | None] | None = None,
    ) -> None:
        """Record an evaluation on the test split.

        Args:
            learnt: how many tasks have been learnt; the step of test/*, forgetting/*.
            scores: {task: {metric: value}}.
            forgetting: {task: value, "mean": value}, of the tasks that could have been forgotten by now.
        """
        values = {f"test/{task}_{metric}": value for task, row in scores.items() for metric, value in row.items()}
        values |= {f"forgetting/{task}": value for task, value in (forgetting or {}).items()}
        self.metrics(values, learnt)
        self.flush()

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
        (self.run_dir / "task_matrix.csv").write_text(matrix_csv, encoding="utf-8")
        (self.run_dir / "summary.json").write_text(text + "\n", encoding="utf-8")
        _draw_figures(summary, self.panels_dir)
        for values, step in final_metrics(summary):
            self.metrics(values, step)
        self.flush()
        self._forward(lambda t: _send_results(t, summary, self.panels_dir))

    def finish(self, status: str = "FINISHED") -> None:
        """Close the tracker's run with status FINISHED, FAILED or KILLED; the directory stays valid whatever it is."""
        self._remember(status=status)
        self._forward(lambda t: t.finish(status))

    def fail(self) -> None:
        """Close after an error, keeping everything recorded so far."""
        self.finish("FAILED")

    def ui_line(self) -> str | None:
        """How to open this run in the tracker's user interface; None when nothing is tracked."""
        return self._ui_line if self.tracking else None

    def state(self) -> dict[str, int]:
        """Where the record stands, for a checkpoint."""
        path = self.run_dir / METRICS_FILE
        return {"metrics_bytes": path.stat().st_size if path.exists() else 0}

    def restore(self, state: Mapping[str, int]) -> None:
        """Drop what was appended after the checkpoint, so that a resumed run's record has no line twice."""
        path = self.run_dir / METRICS_FILE
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(min(state["metrics_bytes"], path.stat().st_size))

    def _image(self, task: str, path: Path, learnt: int) -> None:
        self._forward(lambda t: t.image(f"predictions/{task}", path, learnt))

    def _remember(self, **entries: Any) -> None:
        self._note.update(entries)
        text = json.dumps(self._note, indent=2, default=str)
        (self.run_dir / TRACKING_FILE).write_text(text + "\n", encoding="utf-8")

    def _forward(self, call: Callable[[Tracker], T]) -> T | None:
        if self._tracker is None:
            return None
        try:
            return call(self._tracker)
        except Exception as error:  # whatever a tracker raises, training goes on
            self._tracker = None
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            logger.warning(
                "Tracking stopped: %s\nTraining goes on and nothing is lost: %s holds everything. "
                "Deliver it later with `python -m medusa_cl.track sync run=%s`.",
                _shorten(reason[0]),
                self.run_dir,
                self.run_dir,
            )
            return None


def deliver(run_dir: Path, tracker: Tracker) -> dict[str, str]:
    """Send a whole run directory to a tracker, for instance after its server was down.

    Metrics keep their step and time, so a second delivery into the same run adds nothing twice.

    Returns:
        What identifies the run at the tracker (also kept in tracking.json).

    Raises:
        FileNotFoundError: the directory holds no run.
    """
    note = _read_note(run_dir)
    if "config" not in note:
        raise FileNotFoundError(f"No {TRACKING_FILE} in {run_dir}: not a run directory, or one that never started.")
    identity = tracker.start(note["config"], note["tags"], run_dir, note.get("tracker"))
    for name, data in note.get("datasets", {}).items():
        tracker.dataset(name, data["digest"], data["source"])
    for record in read_metrics(run_dir):
        known = {name: value for name, value in record["values"].items() if value is not None}
        tracker.metrics(known, record["step"], record["time"])
    _send_pictures(tracker, run_dir, note)
    tracker.finish(note.get("status", "FINISHED"))
    note["tracker"] = identity
    (run_dir / TRACKING_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return identity


def read_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl; a line torn by a crash ends them."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


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


def _matrix_table(matrix: Mapping[str, Any], primary: Mapping[str, Any]) -> dict[str, list[Any]]:
    columns = {"after": list(matrix["after"])}
    for task, row in matrix["values"].items():
        columns[f"{task} ({primary[task]['metric']}, {primary[task]['unit'] or '1'})"] = list(row)
    return columns


def _send_pictures(tracker: Tracker, run_dir: Path, note: Mapping[str, Any]) -> None:
    for path in sorted((run_dir / "panels").glob("*.png")):
        if series := re.fullmatch(r"(.+)-(\d+)", path.stem):
            tracker.image(f"predictions/{series[1]}", path, int(series[2]))
        elif path.name not in (HEATMAP_FILE, TRANSFER_FILE):
            tracker.figure(path)
    summary = run_dir / "summary.json"
    if summary.exists():
        _send_results(tracker, json.loads(summary.read_text(encoding="utf-8")), run_dir / "panels")
    if "model" in note and (run_dir / note["model"]).is_dir():
        tracker.model(run_dir / note["model"])


def _read_note(run_dir: Path) -> dict[str, Any]:
    path = run_dir / TRACKING_FILE
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return note


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
