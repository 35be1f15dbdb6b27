"""What an MLflow run holds already: a run that is opened again is sent the rest, and nothing twice."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# images/<key with ~ (once #) for />+step+<n>+timestamp+...; + was once %.
_PICTURE = re.compile(r"images/(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%].*?(?P<preview>[+%]compressed)?\.(png|webp)")


@dataclass
class Holdings:
    """What a run holds; nothing for a new one.

    Attributes:
        params: Names of its parameters.
        tags: Its tags.
        points: How many points it has by metric and step: its times and rates differ from those made anew.
        datasets: (name, digest) of its data sets.
        images: (key, step) of its pictures.
        halves: Pictures without the preview that the UI shows: their name without ending, by (key, step).
        model: The model that was logged, or begun.
        outputs: Ids of the models that it names as its own.
    """

    params: frozenset[str] = frozenset()
    tags: dict[str, str] = field(default_factory=dict)
    points: Counter[tuple[str, int]] = field(default_factory=Counter)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    images: set[tuple[str, int]] = field(default_factory=set)
    halves: dict[tuple[str, int], str] = field(default_factory=dict)
    model: LoggedModel | None = None
    outputs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, client: MlflowClient, run: Run) -> Holdings:
        """Ask for all that a run holds."""
        inputs: Any = run.inputs.dataset_inputs if run.inputs else ()
        images, halves = _pictures(client, run.info.run_id)
        return cls(
            params=frozenset(run.data.params),
            tags=dict(run.data.tags),
            points=_points(client, run),
            datasets={(given.dataset.name, given.dataset.digest) for given in inputs},
            images=images,
            halves=halves,
            model=_model(client, run),
            outputs=frozenset(output.model_id for output in (run.outputs.model_outputs if run.outputs else ())),
        )

    def has_point(self, name: str, step: int) -> bool:
        """Return whether the run holds this point; each point that it holds answers once."""
        if self.points[name, step] < 1:
            return False
        self.points[name, step] -= 1
        return True


def _points(client: MlflowClient, run: Run) -> Counter[tuple[str, int]]:
    run_id = run.info.run_id
    return Counter((name, point.step) for name in run.data.metrics for point in client.get_metric_history(run_id, name))


def _pictures(client: MlflowClient, run_id: str) -> tuple[set[tuple[str, int]], dict[tuple[str, int], str]]:
    found: dict[tuple[str, int], str] = {}
    previewed = set()
    for item in client.list_artifacts(run_id, "images"):
        if match := _PICTURE.fullmatch(item.path):
            place = (re.sub("[~#]", "/", match["key"]), int(match["step"]))
            if match["preview"]:
                previewed.add(place)
            else:
                found[place] = PurePosixPath(item.path).stem
    return set(found), {place: stem for place, stem in found.items() if place not in previewed}


def _model(client: MlflowClient, run: Run) -> LoggedModel | None:
    info = run.info
    found = client.search_logged_models([info.experiment_id], f"source_run_id = '{info.run_id}'", max_results=50)
    return max(found, key=lambda model: str(model.status) == "READY", default=None)
