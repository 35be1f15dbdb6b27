"""MLflow's page of an experiment, arranged beforehand: which columns, which charts, in which order.

MLflow keeps such an arrangement as an experiment tag that a link names. Its form is that of MLflow's own pages and not
documented, so nothing stands on it: pages that do not know it show their own arrangement instead.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

VIEW = "medusa_cl"
TAG = f"mlflow.sharedViewState.{VIEW}"
# Older pages read the arrangement itself, newer ones list it by its name among the page's views.
NAMED_SINCE = (3, 17)
LONGEST_TAG = 5000  # of the oldest MLflow that is supported
# The UI opens in its GenAI mode otherwise.
TRAINING = {"workflowType": "machine_learning"}
ANSWER, PICTURES = "which strategy?", "what it predicts"
# A section is what stands before a metric's last slash: the answer first, then what it is made of, then how it came.
SECTIONS = (ANSWER, "final", "forgetting", "transfer", "test", PICTURES, "predictions", "relative", "train")
CLOSED = ("predictions", "relative", "train")
SIZES = {ANSWER: {"columns": 2, "cardHeight": 400}, PICTURES: {"columns": 1, "cardHeight": 640}}
SCATTER = ("final/forgetting_mean", "final/transfer_mean")
BARS = (*SCATTER, "final/forgetting_percent")
# Of a series: MLflow 3 writes ~ for the slashes in its key, MLflow 2 wrote #.
PICTURE = re.compile(r"images/(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%]")
RUNS_WITH_PICTURES = 20
# MLflow's own: name, and when it was begun.
FIRST_COLUMNS = {"attributes.`Run Name`": 200, "runDateAndNestInfo": 125}
# Columns of the list of runs, from the left, with their widths in pixels.
TAGS = {"strategy": 95, "plugins": 100, "head": 115, "backbone": 150, "seed": 55}
SCORE_WIDTH = 150
# Of what is final, these say how the answer comes about, and not what it is: they have bars, but no column.
GAINS = ("attention_gain", "control_gain", "feature_gain", "head_gain")
BESIDES = (*GAINS, "gflops", "params_total", "ufl_gain")


def page(experiment: str, run: str | None = None, charts: bool = False, view: bool = False) -> str:
    """Return the part of a page's address after the server's.

    Args:
        experiment: id of the experiment.
        run: id of the run, for its own page.
        charts: Its charts, and not its list of runs.
        view: Arranged by `write`.
    """
    if run is not None:
        return f"/#/experiments/{experiment}/runs/{run}?{urlencode(TRAINING)}"
    asked = {"viewStateShareKey": VIEW} if view else {}
    asked |= {"compareRunsMode": "CHART"} if charts else {}
    return f"/#/experiments/{experiment}/runs?{urlencode(asked | TRAINING)}"


def write(client: MlflowClient, experiment: str, runs: Sequence[Run]) -> bool:
    """Arrange the pages of an experiment; one that is arranged so already stays as it is.

    Args:
        client: of the store.
        experiment: its id.
        runs: its runs.

    Returns:
        Whether `page(..., view=True)` shows the arrangement.
    """
    try:
        text = _tag(arrangement({name for run in runs for name in run.data.metrics}, _series(client, runs)))
        if len(text) > LONGEST_TAG:
            return False
        if client.get_experiment(experiment).tags.get(TAG) != text:
            client.set_experiment_tag(experiment, TAG, text)
    except Exception as error:  # the plain page does as well
        logger.info("The pages of experiment %s are not arranged: %s", experiment, type(error).__name__)
        return False
    return True


def arrangement(metrics: Iterable[str], series: Mapping[str, int]) -> dict[str, Any]:
    """Return the state of MLflow's page: the columns of the list, the sections of the charts, and the first charts.

    Charts that are not named here MLflow makes itself, one for each metric.

    Args:
        metrics: names of all that runs have logged.
        series: of pictures, with the step that is shown first.
    """
    finals = sorted(name for name in set(metrics) if name.startswith("final/"))
    columns = _columns(finals)
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": [*FIRST_COLUMNS, *columns],
        "columnWidths": FIRST_COLUMNS | columns,
        "compareRunSections": [_section(name) for name in SECTIONS],
        "isAccordionReordered": True,  # or they would be sorted by name
        "compareRunCharts": [
            _scatter(),
            *(_bar(name) for name in BARS if name in finals),
            *([_pictures(series)] if series else []),
        ],
        "hideEmptyCharts": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "autoRefreshEnabled": True,
    }


def _columns(finals: Sequence[str]) -> dict[str, int]:
    """Return the width of every column of the list of runs, from the left."""
    first = [name for name in BARS if name in finals]
    scores = [name for name in finals if name not in first and name.removeprefix("final/") not in BESIDES]
    tags = {_column("tags", tag): width for tag, width in TAGS.items()}
    return tags | {_column("metrics", name): SCORE_WIDTH for name in (*first, *scores)}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _section(name: str) -> dict[str, Any]:
    named = {"uuid": f"{VIEW} {name}", "name": name, "display": name not in CLOSED}
    size = SIZES.get(name, {})
    return {**named, **size, "isReordered": False, "isGenerated": False, "deleted": False}


def _scatter() -> dict[str, Any]:
    x, y = ({"key": name, "type": "METRIC"} for name in SCATTER)
    return {**_chart("SCATTER", "answer"), "xaxis": x, "yaxis": y, "runsCountToCompare": 100}


def _bar(metric: str) -> dict[str, Any]:
    return {**_chart("BAR", metric), "metricKey": metric}


def _pictures(series: Mapping[str, int]) -> dict[str, Any]:
    """Return the grid with a row for each task and a column for each run; the params of each would fill the card."""
    shown = {"imageKeys": list(series), "step": max(series.values()), "showRunParams": False}
    return {**_chart("IMAGE", "pictures", PICTURES), **shown}


def _series(client: MlflowClient, runs: Sequence[Run]) -> dict[str, int]:
    """Return the last step of every series of pictures, in the order in which they begin; none has a step 0."""
    found: dict[str, list[int]] = {}
    for run in [run for run in runs if "mlflow.loggedImages" in run.data.tags][:RUNS_WITH_PICTURES]:
        for file in client.list_artifacts(run.info.run_id, "images"):
            if picture := PICTURE.match(file.path):
                key = re.sub("[~#]", "/", picture["key"])
                found.setdefault(key, []).append(int(picture["step"]))
    return {key: max(found[key]) for key in sorted(found, key=lambda key: (min(found[key]), key))}


def _chart(kind: str, name: str, section: str = ANSWER) -> dict[str, Any]:
    placed = {"type": kind, "uuid": f"{VIEW} {name}", "metricSectionId": f"{VIEW} {section}"}
    return {**placed, "runsCountToCompare": 20, "deleted": False, "isGenerated": False}


def _tag(state: Mapping[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    packed = f"deflate;{packed}"
    if _release() < NAMED_SINCE:
        return packed
    return json.dumps({"name": VIEW, "createdAt": 0, "state": packed})


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version("mlflow").split(".")[:2])
