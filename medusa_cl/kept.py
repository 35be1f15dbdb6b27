"""What was computed once and is kept under runs/.cache: small JSON files named by a hash of all they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medusa_cl.rundir import RUNS

_log = logging.getLogger(__name__)


def place(name: str, key: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Return where a thing is kept.

    Args:
        name: What it is; the file's name begins with it.
        key: All that it depends on, as plain data.
        folder: The folder of kept things; runs/.cache by default.
    """
    text = json.dumps(key, sort_keys=True, default=str)
    return (folder or RUNS / ".cache") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read(path: Path, sealed: bool = False) -> Any:
    """Return what is kept there; None where nothing is, or (with a warning) nothing whole.

    Args:
        path: The file.
        sealed: Take nothing but what `write` wrote, by its hash; else other JSON too, as of a run's summary.json.
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
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"content": content, "sha256": digest(content)}), encoding="utf-8")
    os.replace(part, path)


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data, as JSON gives it back; the order of keys makes no difference."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
