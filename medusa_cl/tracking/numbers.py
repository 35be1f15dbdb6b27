"""How numbers are written wherever people read them: in as many digits as mean something, what is unknown as a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "\N{EN DASH}"  # how None is written


def digits(size: float) -> int:
    """Return after how many decimals a metric's value of this size says nothing more."""
    return 3 if abs(size) < 1 else 2 if abs(size) < 100 else 1


def number(value: float | None, unit: str = "") -> str:
    """A metric's value in as many digits as mean something, with its unit; an en dash for None."""
    if value is None:
        return UNKNOWN
    space = "" if unit in ("deg", "°", "") else " "
    return f"{value:.{digits(value)}f}{space}{'°' if unit == 'deg' else unit}"


def percent(value: float | None) -> str:
    """A signed percentage with one digit, never "-0.0 %"; an en dash for None."""
    return UNKNOWN if value is None else f"{round(value, 1) + 0.0:+.1f} %"


def metric_heading(primary: Mapping[str, Any]) -> str:
    """The metric of a task with its unit, and an arrow to where it is better.

    Args:
        primary: {"metric", "unit", "higher_is_better"} of summary.json; an empty one gives an empty text.
    """
    if not primary:
        return ""
    unit = {"deg": "°"}.get(primary["unit"], primary["unit"])
    return " ".join(filter(None, (primary["metric"], unit, "↑" if primary["higher_is_better"] else "↓")))
