"""`make demo` in miniature: one subprocess in an empty folder, as a user starts it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = [
    "experiment=demo", "compare=['strategy=finetune trainer.max_steps=2']",
    "scenario.image_size=[32,64]", "scenario.train_size=8", "scenario.val_size=0", "scenario.test_size=4",
    "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8", "head.mix_width=8",
    "trainer.base_steps=2", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.threads=1",
]  # fmt: skip
UNSET = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")


class Demo(NamedTuple):
    """What the demo left behind."""

    home: Path
    output: str
    errors: str
    runs: dict[str, Any]  # MLflow's, by strategy

    def folder(self, strategy: str) -> Path:
        """The run directory."""
        return self.home / str(self.runs[strategy].data.tags["run_dir"])

    def summary(self, strategy: str) -> dict[str, Any]:
        """Its summary.json."""
        found: dict[str, Any] = json.loads((self.folder(strategy) / "summary.json").read_text())
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The miniature, run once for this module."""
    home = tmp_path_factory.mktemp("demo")
    kept = {key: value for key, value in os.environ.items() if key not in UNSET}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # a bare checkout is enough
    # A wide terminal, so that no line is broken where a test looks for words.
    env = kept | {"MEDUSA_CL_CACHE": str(home / "cache"), "COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "default", "-m", "medusa_cl.run", *MINIATURE]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return Demo(home, done.stdout, done.stderr, recorded(home))


def recorded(home: Path) -> dict[str, Any]:
    """MLflow's runs by strategy: exactly one of each."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'runs/mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    strategies = sorted(run.data.tags["strategy"] for run in runs)
    assert strategies == ["finetune", "medusa"]
    return {run.data.tags["strategy"]: run for run in runs}


def test_the_first_line_names_the_device(demo: Demo) -> None:
    first = next(line for line in demo.output.splitlines() if line.strip())
    assert first.startswith("medusa_cl 0.1.0 on ")
    assert "CPU, 1 thread" in first or "NVIDIA" in first


def test_nothing_is_written_elsewhere(demo: Demo) -> None:
    assert sorted(path.name for path in demo.home.iterdir()) == ["cache", "runs"]


def test_it_speaks_plainly_and_warns_of_nothing(demo: Demo) -> None:
    """With every warning shown, in a pipe: neither other packages' warnings nor control characters."""
    heard = [line for line in demo.errors.splitlines() if "renders the golden rooms differently" not in line]
    assert [line for line in heard if not line.startswith("  ")] == []
    assert not set("\r\x1b\x08") & set(demo.output)


def test_mlflow_holds_both_runs_beside_their_artifacts(demo: Demo) -> None:
    assert {run.info.status for run in demo.runs.values()} == {"FINISHED"}
    assert any((demo.home / "runs/mlartifacts").rglob("*.png"))
    assert not list(demo.home.rglob("mlruns"))
    for run in demo.runs.values():
        assert math.isfinite(run.data.metrics["final/transfer_mean"])
    assert demo.runs["medusa"].data.metrics["final/forgetting_mean"] == 0


def test_the_ui_line_opens_the_right_page(demo: Demo) -> None:
    run = demo.runs["medusa"]
    assert f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs" in demo.output
    assert "python -m medusa_cl.track ui" in demo.output


def test_the_rooms_are_those_of_every_machine(demo: Demo) -> None:
    golden = demo.summary("medusa")["provenance"]["rooms_golden_ok"]
    assert golden is True or "renders the golden rooms differently" in demo.errors


@pytest.mark.parametrize("strategy", ["medusa", "finetune"])
def test_panels_are_pictures(demo: Demo, strategy: str) -> None:
    panels = demo.folder(strategy) / "panels"
    names = {path.name for path in panels.glob("*.png")}
    assert {"overview.png", "forgetting_heatmap.png", "transfer_bars.png", "reshading-05.png"} <= names
    for name in names:
        with Image.open(panels / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) >= 64, name
        assert pixels.std() > 5, f"{name} is blank"


def test_finetune_starts_from_the_base_of_medusa(demo: Demo) -> None:
    base = demo.folder("medusa").relative_to(demo.home)
    assert "starts from" in demo.output and str(base) in demo.output.split("starts from", 1)[1]
    values, tuned = (demo.summary(strategy)["matrix"]["values"] for strategy in ("medusa", "finetune"))
    for task in ("semseg", "depth"):
        # Not to the last bit: kept features and those of a backbone that trains come in batches of different sizes.
        assert tuned[task][0] == pytest.approx(values[task][0], rel=1e-6)


def test_medusa_forgets_nothing(demo: Demo) -> None:
    assert "Forgetting is exactly 0" in demo.output
    assert set(demo.summary("medusa")["forgetting"].values()) == {0.0}
