"""Joint transforms (temporary)."""

from __future__ import annotations
from typing import Any


def flip(image: Any, targets: Any, tasks: Any) -> Any:
    return image.flip(-1), {n: tasks[n].on_flip(t.flip(-1)) for n, t in targets.items()}


def zoom(image: Any, targets: Any, tasks: Any, factor: float, top: float, left: float) -> Any:
    raise NotImplementedError
