"""What was computed once and is kept under runs/.cache: small JSON files named by a hash of all they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medusa_cl.rundir import RUNS


def place(name: str, key: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Return where a thing is kept.

    Args:
        name: What it is; the file's name begins with it.
        key: All that it depends on, as plain data.
        folder: The folder of kept things; runs/.cache by default.
    """
    text = json.dumps(key, sort_keys=True, default=str)
    return (folder or RUNS / ".cache") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read(path: Path) -> Any:
    """Return what is kept there; None where nothing is, or nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(path: Path, content: Any) -> None:
    """Keep something; a file is renamed into its place only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, path)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
