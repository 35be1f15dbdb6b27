"""What a run records, small: a configuration, losses, evaluations, pictures, a summary."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_summary import fake_summary
from PIL import Image

from medusa_cl.tracking import RunRecorder
from medusa_cl.tracking.mlflow import MLflowTracker, quiet_client, store_uri

CONFIG = {
    "seed": 1,
    "out": "/somewhere",
    "resume": None,
    "scenario": {"name": "rooms", "root": "/data", "image_size": [128, 160], "base": ["semseg", "depth"]},
    "trainer": {"lr_head": 2e-3, "note": "x" * 7000},
    "many": {f"key{i}": i for i in range(230)},
}
SMALL = {"seed": 1, "trainer": {"lr_head": 2e-3}}
TAGS = {"strategy": "medusa", "scenario": "rooms", "backbone": "net", "seed": 1, "git": "abc123", "version": "0.1.0"}


def picture(value: int = 128) -> Any:
    return np.full((12, 16, 3), value, np.uint8)


def losses(recorder: RunRecorder, step: int, values: Mapping[str, float], rate: float | None = None) -> None:
    """What a training step records."""
    shown: dict[str, float | None] = {f"train/{task}_loss": loss for task, loss in values.items()}
    recorder.metrics(shown if rate is None else shown | {"train/images_per_s": rate}, step)


def evaluation(recorder: RunRecorder, learnt: int) -> None:
    """What an evaluation records: metrics, and pictures."""
    recorder.metrics({"test/semseg_miou": 40.0 + learnt, "test/semseg_nothing": None}, learnt)
    recorder.metrics({"forgetting/semseg": 0.0, "forgetting/mean": 0.0}, learnt)
    recorder.flush()
    recorder.predictions(learnt, {"semseg": [(picture(), None, picture(learnt))]})


def gone(recorder: RunRecorder) -> None:
    """What the system does once the process of a recorder is gone."""
    assert recorder._lock is not None
    recorder._lock.release()


def fill(recorder: RunRecorder) -> None:
    """Everything a run records."""
    recorder.start(CONFIG, TAGS)
    recorder.dataset("rooms/train", "f" * 64, "rooms 400 at 128x160")
    for step in range(5):
        losses(recorder, step, {"semseg": 1.0 / (step + 1), "depth": math.nan}, 30.0)
    for learnt in (2, 3):
        evaluation(recorder, learnt)
    recorder.panel(picture())
    recorder.summary(fake_summary(), "after,semseg\nbase,47.3\n")


def learn(recorder: RunRecorder, snapshots: dict[str, Any], lap: int) -> None:
    """A run in three parts, each with a snapshot before it; rates differ from lap to lap."""
    parts = (_train, _evaluate, _finish)
    for number in range(snapshots.get("part", 0), len(parts)):
        parts[number](recorder, lap)
        snapshots |= {"part": number + 1, "state": json.loads(json.dumps(recorder.state()))}
    recorder.finish()


def _train(recorder: RunRecorder, lap: int) -> None:
    recorder.dataset("rooms/train", "f" * 64, "rooms")
    for step in range(3):
        losses(recorder, step, {"semseg": 1.0 / (step + 1)}, 30.0 + lap)
        recorder.flush()


def _evaluate(recorder: RunRecorder, lap: int) -> None:
    evaluation(recorder, 2)
    losses(recorder, 3, {"semseg": 0.5}, 30.0 + lap)
    recorder.flush()
    evaluation(recorder, 3)


def _finish(recorder: RunRecorder, lap: int) -> None:
    recorder.summary(fake_summary(), "after,semseg\nbase,47.3\n")


def held(tracker: MLflowTracker) -> dict[str, Any]:
    """All that the store holds of the only run, without times and rates."""
    client: Any = tracker.client
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    id_ = run.info.run_id
    points = {key: client.get_metric_history(id_, key) for key in run.data.metrics}
    return {
        "status": run.info.status,
        "points": Counter((key, p.step) for key, row in points.items() for p in row),
        "values": {(key, p.step, p.value) for key, row in points.items() for p in row if "images_per_s" not in key},
        "params": run.data.params,
        "tags": {key for key in run.data.tags if key != "mlflow.source.git.commit"},
        "datasets": [d.dataset.name for d in run.inputs.dataset_inputs],
        "images": Counter(_picture(item.path) for item in client.list_artifacts(id_, "images")),
        "files": sorted(item.path for folder in ("", "figures") for item in client.list_artifacts(id_, folder)),
    }


def _picture(path: str) -> tuple[str, str, str]:
    parts = path.split("+")
    return parts[0], parts[2], Path(path).suffix


def draw_nothing(summary: Any, directory: Path) -> None:
    for name in ("forgetting_heatmap", "transfer_bars"):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(directory / f"{name}.png")


def store_in(folder: Path, factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated database: migrating takes seconds, copying does not."""
    made = factory.getbasetemp() / "migrated" / "mlflow.db"
    if not made.exists():
        quiet_client(store_uri(f"sqlite:///{made}", made.parent))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, folder / "mlflow.db")
    return folder
