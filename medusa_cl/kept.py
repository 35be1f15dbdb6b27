"""What was computed once and is kept: small JSON files under runs/.cache named by a hash of all they depend on.

Summaries of runs are read and written here too, and files that are to be whole whenever a process or a machine stops.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medusa_cl.errors import DataError
from medusa_cl.rundir import RUNS

SUMMARY, SUMMARY_HASH = "summary.json", "summary.sha256"
_log = logging.getLogger(__name__)


def place(name: str, key: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Return where a thing is kept.

    Args:
        name: What it is; the file's name begins with it.
        key: All that it depends on, as plain data.
        folder: The folder of kept things; runs/.cache by default.
    """
    return (folder or RUNS / ".cache") / f"{name}-{digest(key)[:16]}.json"


def read(path: Path, sealed: bool = False) -> Any:
    """Return what is kept there; None where nothing is, or (with a warning) nothing whole.

    Args:
        path: The file.
        sealed: Take nothing but what `write` wrote, by its hash; else other JSON too.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return _nothing(path, str(error))
    keys = set(found) if isinstance(found, dict) else set()
    if not sealed and not keys & {"content", "sha256"}:
        return found
    if keys != {"content", "sha256"} or found["sha256"] != digest(found["content"]):
        return _nothing(path, "its content is not that of its hash")
    return found["content"]


def _nothing(path: Path, why: str) -> None:
    _log.warning("%s cannot be read (%s): what was kept there is made anew where it can be.", path, why)


def write(path: Path, content: Any) -> None:
    """Keep something, with its hash; a file is renamed into its place only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(json.dumps(content))  # as it will be read: keys are text then
    with whole(path) as part:
        part.write_text(json.dumps({"content": content, "sha256": digest(content)}), encoding="utf-8")


def write_summary(run_dir: Path, text: str) -> None:
    """Write a run's summary.json, with its SHA-256 beside it as `sha256sum -c` reads it.

    Args:
        run_dir: The run directory.
        text: The summary as JSON.
    """
    (run_dir / SUMMARY).unlink(missing_ok=True)  # while it is written anew the run has none: no hash of another one
    with whole(run_dir / SUMMARY_HASH) as part:
        part.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {SUMMARY}\n", encoding="utf-8")
    with whole(run_dir / SUMMARY) as part:
        part.write_bytes(text.encode())


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a finished run, after a look at every byte.

    One without a hash beside it, as earlier versions wrote it, is taken with a warning.

    Raises:
        DataError: It cannot be read, or is not what was written.
    """
    path = run_dir / SUMMARY
    try:
        content = path.read_bytes()
        if _summary_hash(run_dir) not in (None, hashlib.sha256(content).hexdigest().encode()):
            raise ValueError(f"its SHA-256 is not the one in {SUMMARY_HASH}")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or was edited: {error}. Put back the file as it was, or delete it and go on with the "
            f"run by resume={run_dir}, which makes it anew from the last checkpoint."
        ) from error
    return found


def _summary_hash(run_dir: Path) -> bytes | None:
    path = run_dir / SUMMARY_HASH
    try:
        return path.read_bytes().partition(b" ")[0]
    except FileNotFoundError:
        _log.warning("%s has no %s beside it: damage to it would not be seen.", run_dir / SUMMARY, SUMMARY_HASH)
        return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Say where to write a file, which gets its name once it is on the disk; should the block fail, nothing is left."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        flush(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def readable(path: Path) -> None:
    """Give a file the rights that any new file has here; safetensors makes its own for the owner alone."""
    new = path.with_name(f"{path.name}.rights")
    new.touch()
    shutil.copymode(new, path)
    new.unlink()


def flush(path: Path) -> None:
    """Let the disk have a file, or a folder's names, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data; the order of keys makes no difference, and what is no JSON counts as text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
