"""The files of a run's record that are read back: metrics.jsonl, which grows, and tracking.json, replaced whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from medusa_cl.errors import DataError
from medusa_cl.kept import whole
from medusa_cl.rundir import locked

METRICS_FILE = "metrics.jsonl"
TRACKING_FILE = "tracking.json"
LOCK_FILE = ".tracking.lock"
Note = dict[str, Any]
_log = logging.getLogger(__name__)


def telling(run_dir: Path, patience: float = 0) -> BaseFileLock:
    """Take the right to tell a tracker of a run, until the lock is released or the process is gone.

    Args:
        run_dir: The run directory.
        patience: For how many seconds another process is waited for.

    Raises:
        ConfigError: Another process has it.
    """
    refusal = (
        f"Another process tells MLflow of {run_dir}: the run is going, or is being delivered. Deliver it once that has "
        "ended."
    )
    return locked(run_dir / LOCK_FILE, refusal, patience)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is the old one or the new one, whole, whenever the process or the machine stops."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Append a line, or nothing should the disk be full.

    Raises:
        OSError: The line could not be written.
    """
    rest = memoryview((line + "\n").encode())
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def cut(path: Path, size: int | None = None) -> int:
    """Drop what stands after the first `size` bytes, and a last line that is torn; returns what is left, in bytes."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        content = file.read() if size is None else file.read(size)
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        os.fsync(file.fileno())
    return whole


def durable_size(path: Path) -> int:
    """Return a file's size once all of it is on the disk."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def read_metrics(run_dir: Path, skip: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of metrics.jsonl; a last line that is torn is left out.

    Args:
        run_dir: The run directory.
        skip: Leave other damaged lines out too, and name them in a warning.

    Raises:
        DataError: Another line is damaged.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = _record(line, f"{path}, line {number}")
            except DataError as error:
                if not skip:
                    raise
                _log.warning("%s It is left out.", error)
                continue
            yield record


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        values = record["values"].values()
        whole = isinstance(record["step"], int) and all(v is None or isinstance(v, (int, float)) for v in values)
        float(record["time"])
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            f"{place}: expected a record with step, time and values, but got {line[:60]!r}. The line is damaged: "
            "take it out. A run that goes on by resume= makes anew what stands after its checkpoint, no line before."
        )
    return dict(record)


def read_note(run_dir: Path) -> Note:
    """Return what tracking.json says; nothing where there is none.

    Raises:
        DataError: It is damaged.
    """
    path = run_dir / TRACKING_FILE
    if not path.exists():
        return {}
    try:
        note = json.loads(path.read_bytes())
        whole = isinstance(note, dict) and all(isinstance(note.get(key, {}), dict) for key in ("config", "tags"))
        whole = whole and all(isinstance(note.get(key, {}), dict) for key in ("datasets", "tracker"))
        whole = whole and all(isinstance(note.get(key, ""), str) for key in ("key", "status", "model", "target"))
    except ValueError:
        whole = False
    if not whole:
        raise DataError(f"{path} is damaged: expected a JSON object with config, tags and tracker.")
    return dict(note)


def rebuilt_note(run_dir: Path) -> Note:
    """Return the note of a finished run whose tracking.json is damaged, from the files beside it.

    Raises:
        DataError: They do not tell.
    """
    import yaml

    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        tags = {key: str(config[key]["name"]) for key in ("scenario", "strategy", "backbone", "head")}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(
            f"{run_dir / TRACKING_FILE} is damaged, and config.yaml beside it does not tell what was in it ({error})."
        ) from error
    note = {"config": config, "tags": {**tags, "seed": str(config.get("seed"))}}
    return note | ({"model": "model"} if (run_dir / "model" / "model.json").is_file() else {})


def identity(note: Mapping[str, Any]) -> Note:
    """Return the part of a note by which a tracker's run is found again."""
    return {key: note[key] for key in ("key", "tracker") if key in note}
