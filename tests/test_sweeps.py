"""Sweeps: members side by side on one MLflow store, and what becomes of those that fail."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from mlflow import MlflowClient
from omegaconf import DictConfig

import medusa_cl.run
from medusa_cl.configs import sweep
from medusa_cl.configs.check import check_overrides
from medusa_cl.errors import ConfigError
from medusa_cl.tracking.mlflow import SECTIONED
from small_run import SMALL, miniature

TINY = [o for o in SMALL if o != "tracking=off"]
# As on the command line, but says in the end what the launcher handed to the sweeper.
LAUNCHED = """
from hydra.core.plugins import Plugins
from medusa_cl.run import main

class Told:
    def __init__(self, launcher):
        self.launcher = launcher

    def launch(self, *arguments, **named):
        returned = self.launcher.launch(*arguments, **named)
        print("returned", [r._return_value if r.status.name == "COMPLETED" else r.status.name for r in returned])
        return returned

instantiate = Plugins.instantiate_launcher
Plugins.instantiate_launcher = lambda *arguments, **named: Told(instantiate(*arguments, **named))
main()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that one stands in, with a store of its own."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return tmp_path / "home"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "streams"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.workers=1"], "[normals],[edges],[egdes]"),
        (["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"], "[normals],[edges]"),
    ],
    ids=["joblib", "submitit_local"],
)
def test_members_side_by_side(launcher: list[str], streams: str, home: Path, tmp_path: Path, empty_store: Path) -> None:
    """Two that learn, and one that cannot, on a store that none of them finds; on one that is there with submitit."""
    if "egdes" not in streams:
        (home / "runs").mkdir()
        shutil.copyfile(empty_store, home / "runs" / "mlflow.db")
    data = [f"scenario.root={miniature(tmp_path)}", "scenario.base=[depth]", f"scenario.stream={streams}"]
    arguments = ["-m", *launcher, *TINY, *data, "references=[frozen_plain]"]
    done = subprocess.run([sys.executable, "-c", LAUNCHED, *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    wrong = "egdes" in streams
    assert done.returncode == wrong, said
    assert f"2 finished, {wrong:d} failed" in said
    assert ('2  scenario.stream=[egdes]  failed: Unknown task "egdes". Did you mean "edges"' in said) == wrong

    runs = {json.loads((d / "summary.json").read_text())["stream"][0]: d for d in home.glob("runs/nyud_incremental/*")}
    assert set(runs) == {"normals", "edges"}
    assert [_tracked_whole(run) for run in runs.values()] == ["FINISHED", "FINISHED"]
    assert len(_store(home).search_runs(["1"])) == 2

    (returned,) = re.findall(r"^returned \[(.*)\]$", done.stdout, re.MULTILINE)
    objectives = returned.split(", ")
    assert objectives[2:] == ["None"] * wrong
    for task, value in zip(("normals", "edges"), objectives, strict=False):
        assert math.isfinite(float(value))
        assert float(value) == pytest.approx(_final(runs[task], "final/transfer_mean"))

    assert [path.name for path in home.iterdir()] == ["runs"], "nothing lies elsewhere"
    of_sweep = {path.name for path in (home / "runs/.sweeps/0").iterdir()}
    assert of_sweep - {".submitit", "2.json"} == {"multirun.yaml", "0.json", "1.json"}
    logs = [said] if wrong else [path.read_text() for path in home.glob("runs/.sweeps/0/.submitit/*/*log*")]
    assert "database is locked" not in "".join(logs)
    assert "".join(logs).count("Forgetting is exactly 0") == 2


def _tracked_whole(run: Path) -> str:
    """Compare every value of metrics.jsonl with MLflow's, and return the run's status there."""
    client = _store(run.parents[2])
    run_id = json.loads((run / "tracking.json").read_text())["tracker"]["run_id"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [(SECTIONED.get(k, k), line["step"], v) for line in lines for k, v in line["values"].items()]
    written = {(k, step): v for k, step, v in values if v is not None}
    assert len(written) > 20
    names = {name for name, _ in written}
    tracked = {(m.key, m.step): m.value for name in names for m in client.get_metric_history(run_id, name)}
    assert tracked == pytest.approx(written)
    return str(client.get_run(run_id).info.status)


def _store(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'runs/mlflow.db'}")


def _final(run: Path, name: str) -> float:
    lines = [json.loads(line)["values"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(float(line[name]) for line in lines if name in line)


@pytest.fixture
def swept(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`(*arguments) -> exit status` of a sweep that learns nothing: the objective is the seed; 1 and 2 fail."""

    def learnt(cfg: DictConfig, overrides: list[str]) -> float | None:
        if cfg.seed in (1, 2):
            raise (ConfigError, ValueError)[cfg.seed - 1](f"seed {cfg.seed}\nis not good")
        return None if cfg.seed == 5 else float(cfg.seed)

    def called(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["run", "-m", *arguments])
        try:
            medusa_cl.run.main()
        except SystemExit as stop:
            return int(str(stop.code))
        return 0

    monkeypatch.setattr(medusa_cl.run, "_with_comparisons", learnt)
    return called


def test_a_member_that_fails_is_named_and_the_others_finish(
    swept: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept("seed=1,0,2,3,5", "tracking=off", "head_width=8,16") == 1
    out, err = capsys.readouterr()
    table = out.split("6 finished, 4 failed\n")[1].splitlines()
    assert table[0] == "  0  seed=1 head_width=8  failed: seed 1"
    assert table[2] == "  2  seed=0 head_width=8  objective 0.000"
    assert table[5] == "  5  seed=2 head_width=16  failed: ValueError: seed 2"
    assert table[7] == "  7  seed=3 head_width=16  objective 3.000"
    assert table[9] == "  9  seed=5 head_width=16  no objective"
    assert len(table) == 10
    assert "error in member 1, seed=1 head_width=16: seed 1\nis not good" in err
    assert err.count("Traceback") == err.count("in learnt") == 2, "of the ValueErrors alone, and where they come from"
    note = json.loads((home / "runs/.sweeps/0/7.json").read_text())
    assert (note["overrides"], note["objective"]) == (["seed=3", "tracking=off", "head_width=16"], 3.0)


def test_a_member_that_fails_does_not_end_the_batches_after_it(
    swept: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept("seed=0,1,3,4", "hydra.sweeper.max_batch_size=2") == 1
    assert "3 finished, 1 failed\n" in capsys.readouterr().out


def test_one_member_at_a_time_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra, said = fitted(8, monkeypatch, "hydra/launcher=joblib", "trainer.device=cuda")
    assert hydra.launcher.n_jobs == 1
    assert said == ["sweep: 1 at once (one device); hydra.launcher.n_jobs=N for another number"]


def test_sweeps_get_folders_of_their_own(
    swept: Callable[..., int], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept("seed=0,3") == swept("seed=4") == 0
    assert {path.name for path in home.glob("runs/.sweeps/*/*.json")} == {"0.json", "1.json"}
    assert len(list(home.glob("runs/.sweeps/[01]/multirun.yaml"))) == 2
    assert [path.name for path in home.iterdir()] == ["runs"]
    assert capsys.readouterr().out.count("finished, 0 failed") == 2


def test_no_sweep_leaves_no_trace(home: Path, swept: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "seed=3"])
    GlobalHydra.instance().clear()
    medusa_cl.run.main()
    monkeypatch.setattr(sys, "argv", ["run", "seed=1"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit, match="1"):
        medusa_cl.run.main()
    assert not list(home.iterdir())


def fitted(cpus: int, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Any, list[str]]:
    monkeypatch.setattr(sweep, "_cpus", lambda: cpus)
    GlobalHydra.instance().clear()
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    from omegaconf import open_dict, read_write

    with read_write(cfg), open_dict(cfg):
        said = list(sweep._fitted(cfg, Path("runs/.sweeps/0")))
    return cfg.hydra, said


@pytest.mark.parametrize(("cpus", "threads", "together"), [(8, 2, 4), (2, 2, 1), (1, 2, 1), (7, 2, 3), (4, 1, 4)])
def test_as_many_members_at_once_as_there_are_cpus_for(
    cpus: int, threads: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib, said = fitted(cpus, monkeypatch, "hydra/launcher=joblib", f"trainer.threads={threads}")
    assert joblib.launcher.n_jobs == together
    assert said[0].startswith(f"sweep: {together} at once ({cpus} CPUs, trainer.threads={threads})")
    local, said = fitted(cpus, monkeypatch, "hydra/launcher=submitit_local", f"trainer.threads={threads}")
    assert local.sweeper.max_batch_size == together
    assert local.launcher.timeout_min == 7 * 24 * 60
    assert "runs/.sweeps/0/.submitit" in said[1]


def test_what_is_said_of_a_launcher_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    joblib, said = fitted(8, monkeypatch, "hydra/launcher=joblib", "hydra.launcher.n_jobs=-1")
    assert (joblib.launcher.n_jobs, said) == (-1, [])
    keys = ["hydra.launcher.timeout_min=5", "hydra.sweeper.max_batch_size=7"]
    local, said = fitted(8, monkeypatch, "hydra/launcher=submitit_local", *keys)
    assert (local.launcher.timeout_min, local.sweeper.max_batch_size, len(said)) == (5, 7, 1)
    basic, said = fitted(8, monkeypatch)
    assert (basic.sweeper.max_batch_size, said) == (None, [])


def test_a_launcher_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("basic", "joblib", "submitit_local", "submitit_slurm"):
        check_overrides(["-m", f"hydra/launcher={name}"])
    with pytest.raises(ConfigError, match=r'Unknown launcher "joblip"\. Did you mean "joblib"\?'):
        check_overrides(["-m", "hydra/launcher=joblip"])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("hydra_plugins") else found(name)
    )
    with pytest.raises(ConfigError, match=r"submitit_local is not installed: pip install 'medusa_cl\[sweep\]'"):
        check_overrides(["-m", "hydra/launcher=submitit_local"])


def test_members_are_not_processes_that_train_together() -> None:
    for argument in ("trainer=ddp", "trainer.distributed=true"):
        check_overrides([argument])
        with pytest.raises(ConfigError, match=f"cannot have {argument}: .* torchrun"):
            check_overrides(["-m", argument, "seed=0,1"])


def test_members_do_not_share_a_run_directory() -> None:
    with pytest.raises(ConfigError, match=r"would write to out=mine.*'out=mine-\$\{seed\}'"):
        check_overrides(["-m", "out=mine", "seed=0,1"])
    for fine in (["-m", "out=mine-${seed}"], ["-m", "out=a,b"], ["out=mine"]):
        check_overrides(fine)
