"""What papers report on the real benchmarks: facts from published.json, each with the place where it was read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medusa_cl.errors import ConfigError, unknown

PLACE = Path(__file__).with_name("published.json")
BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    "nyud": ("semseg", "depth", "normals", "edges"),
    "pascal": ("semseg", "human_parts", "saliency", "normals", "edges"),
}
"""The tasks of each benchmark, in the order of tables."""
METRICS: Mapping[str, Mapping[str, Any]] = {
    "semseg": {"metric": "mIoU", "unit": "%", "higher_is_better": True},
    "human_parts": {"metric": "mIoU", "unit": "%", "higher_is_better": True},
    "saliency": {"metric": "maxF", "unit": "%", "higher_is_better": True},
    "depth": {"metric": "RMSE", "unit": "m", "higher_is_better": False},
    "normals": {"metric": "mErr", "unit": "deg", "higher_is_better": False},
    "edges": {"metric": "odsF", "unit": "%", "higher_is_better": True},
}
"""How papers score each task; a value that is scored otherwise says so."""
TITLES: Mapping[str, str] = {"nyud": "NYUD-v2", "pascal": "PASCAL-Context"}
EDGES = (
    "Our edge_f is not odsF: it matches edges within the tolerance without pairing them one to one, so the two columns "
    "do not compare."
)


@dataclass(frozen=True)
class Value:
    """A number as it was published, in its unit."""

    metric: str
    value: float
    unit: str


@dataclass(frozen=True)
class Row:
    """One model of one paper on one benchmark.

    Attributes:
        model: What the paper calls it, or what it is.
        paper: Authors and title.
        arxiv: The paper's number on arXiv.
        year: When it was published.
        backbone: The backbone.
        resolution: Of the images, where the place that was read says it.
        edges: How edges were scored, where they were.
        values: By task.
        read_at: Where the values were read.
        note: What is to be known of them.
    """

    model: str
    paper: str
    arxiv: str
    year: int
    backbone: str
    resolution: str | None
    edges: str | None
    values: Mapping[str, Value]
    read_at: str
    note: str


@dataclass(frozen=True)
class Claim:
    """What the abstract of Medusa claims; `value` is None where it gives no number."""

    name: str
    value: float | None
    unit: str
    note: str


def rows(benchmark: str) -> list[Row]:
    """Return what is published on a benchmark.

    Raises:
        ConfigError: There is no such benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(unknown("benchmark", benchmark, BENCHMARKS))
    return [_row(entry) for entry in _content()["rows"] if entry["benchmark"] == benchmark]


def claims() -> list[Claim]:
    """Return what the paper's abstract claims: the only part of it that this project could read."""
    return [Claim(**entry) for entry in _content()["medusa"]["claims"]]


def benchmark_of(data: str) -> str | None:
    """Return the benchmark that a scenario's name speaks of, if any: "nyud" of "nyud_claims"."""
    return next((name for name in BENCHMARKS if name in data.lower()), None)


def _row(entry: Mapping[str, Any]) -> Row:
    values = {task: Value(**value) for task, value in entry["values"].items()}
    return Row(**{**{key: entry[key] for key in entry if key != "benchmark"}, "values": values})


@functools.cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(PLACE.read_text(encoding="utf-8"))
    return content
