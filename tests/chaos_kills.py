"""Kill runs (SIGKILL) in every phase, resume them by the command line, and compare with runs that were never stopped.

    python tests/chaos_kills.py [--kills 20] [--seed 0]

Each kill takes one of the strategies, one of the phases and a number of loading processes, so that pairs of these recur
as seldom as can be; the call in the middle of which the process dies is drawn. What must be equal afterwards: all of
summary.json but seconds, rates and memory, all values of metrics.jsonl but rates, the weights, and in MLflow one run,
every point once, every parameter, one model.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = [
    "scenario.image_size=[32,64]", "scenario.train_size=8", "scenario.val_size=0", "scenario.test_size=4",
    "scenario.stream=[normals,edges]", "backbone.name=test_efficientnet", "backbone.pretrained=false",
    "head_width=8", "head.mix_width=8", "trainer.base_steps=3", "trainer.max_steps=3", "trainer.batch_size=4",
    "trainer.threads=1", "trainer.device=cpu", "trainer.save_steps=2", "references=[frozen_plain]", "base=null",
]  # fmt: skip
STRATEGIES = {
    "medusa": ["strategy.cache_features=memory"],
    "medusa on disk": ["strategy.cache_features=disk"],
    "medusa without cache": ["strategy.cache_features=off"],
    "finetune": ["strategy=finetune"],
    "ewc+replay": ["strategy=finetune", "plugins=[ewc,replay]"],
    "lwf": ["strategy=finetune", "plugins=[lwf]"],
    "der": ["strategy=finetune", "plugins=[der]"],
}
TEMPLATE = "medusa_cl.strategies.template.DenseTemplate"
# Where each phase can die: before or after a call of these; the last part of a name is looked up in the one before.
PHASES = {
    "data generation": ["medusa_cl.data.hdf5.HDF5Writer.append"],
    "pretraining": [f"{TEMPLATE}.optimizer_step"],
    "head training": [f"{TEMPLATE}.optimizer_step"],
    "evaluation": [f"{TEMPLATE}._after_eval_iteration"],
    "checkpoint writing": ["medusa_cl.snapshot.flush", "medusa_cl.snapshot.verify"],
    "cache building": ["medusa_cl.data.features._Memory.put", "medusa_cl.data.features._Writer.put"],
    "metric delivery": ["mlflow.MlflowClient.log_batch", "mlflow.MlflowClient.log_image"],
    "references": ["medusa_cl.strategies.references._learn"],
}
WORKERS = (0, 2)
CACHED = ("memory", "disk")


class Kill(NamedTuple):
    """One kill: what runs, where it dies, with how many loading processes before and after."""

    strategy: str
    phase: str
    workers: int


# ---------------------------------------------------------------- the process that dies


def victim(phase: str, number: int, counts: str, arguments: Sequence[str]) -> None:
    """Run the command, and die in the middle of a phase at its call of that number; write how many calls there were."""
    called = dict.fromkeys(PHASES, 0)

    def die(name: str) -> None:
        called[name] += 1
        if name == phase and called[name] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    for name, places in PHASES.items():
        for place in places:
            _watch(name, place, die)
    sys.argv = ["run", *arguments]
    importlib.import_module("medusa_cl.run").main()
    Path(counts).write_text(json.dumps(called), encoding="utf-8")


def _watch(phase: str, place: str, die: Callable[[str], None]) -> None:
    owner, name = _found(place)
    original = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        if phase in ("pretraining", "head training"):
            first = arguments[0].experience.task_label == 0
            if first != (phase == "pretraining"):
                return original(*arguments, **options)
        die(phase)
        found = original(*arguments, **options)
        die(phase)
        return found

    setattr(owner, name, watched)


def _found(place: str) -> tuple[Any, str]:
    parts = place.split(".")
    for size in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise ModuleNotFoundError(place)


# ---------------------------------------------------------------- the one that looks on


class Chaos:
    """Where runs are made, killed and compared.

    Args:
        home: An empty folder.
        seed: What is drawn depends on it.
        store: A database of MLflow without runs; None makes one.
    """

    def __init__(self, home: Path, seed: int = 0, store: Path | None = None) -> None:
        self.home, self.random = home, random.Random(seed)
        self._store = store or empty_store(home / "empty")
        self._whole: dict[str, tuple[Path, dict[str, int]]] = {}
        self._made = 0

    def whole(self, strategy: str) -> tuple[Path, dict[str, int]]:
        """Return the directory of a run that was never stopped, and how often each phase was entered."""
        if strategy not in self._whole:
            folder, counts = self.place(f"whole {strategy}"), self.home / f"{strategy}.json"
            done = self.start(
                folder, ["--victim", "", "0", str(counts)], [*MINIATURE, *STRATEGIES[strategy], "out=run"]
            )
            assert done.returncode == 0, done.stderr
            found = json.loads(counts.read_text(encoding="utf-8"))
            self._made = max(self._made, found["data generation"])  # by the first run alone: it is kept for the others
            self._whole[strategy] = folder / "run", {**found, "data generation": self._made}
        return self._whole[strategy]

    def kill(self, kill: Kill) -> str:
        """Kill a run and resume it.

        Returns:
            At which call of how many it died.

        Raises:
            AssertionError: It is not what the run is that was never stopped.
        """
        whole, counts = self.whole(kill.strategy)
        number = self.random.randint(1, counts[kill.phase])
        folder = self.place(f"{kill.strategy} {kill.phase} {kill.workers} {number}")
        cache = folder / "cache" if kill.phase == "data generation" else None
        chosen = [*MINIATURE, *STRATEGIES[kill.strategy], f"trainer.workers={kill.workers}", "out=run"]
        self.die(folder, kill.phase, number, chosen, cache)
        other = WORKERS[1 - WORKERS.index(kill.workers)]
        self.finish(folder, whole, ["resume=run", f"trainer.workers={other}"], cache)
        return f"{number} of {counts[kill.phase]}"

    def die(self, folder: Path, phase: str, number: int, arguments: Sequence[str], cache: Path | None = None) -> None:
        """Run the command in a folder until it dies in the middle of a phase, at its call of that number.

        Raises:
            AssertionError: It ends in another way, or has written nothing before.
        """
        died = self.start(folder, ["--victim", phase, str(number), "unused"], arguments, cache)
        assert died.returncode == -signal.SIGKILL, died.stderr
        if not (folder / "run" / "overrides.yaml").is_file():
            raise AssertionError("nothing was written before it died")

    def finish(self, folder: Path, whole: Path, arguments: Sequence[str], cache: Path | None = None) -> None:
        """Go on in a folder to the end.

        Raises:
            AssertionError: It is not what the run is that was never stopped.
        """
        resumed = self.start(folder, [], arguments, cache)
        assert resumed.returncode == 0, resumed.stderr
        compare(whole, folder / "run")
        look_into_mlflow(folder / "run", self._uri(folder))

    def place(self, name: str) -> Path:
        """Make a folder with an empty store."""
        folder = self.home / name.replace(" ", "-").replace("+", "-")
        (folder / "runs").mkdir(parents=True)
        shutil.copyfile(self._store, folder / "runs" / "mlflow.db")
        return folder

    def start(
        self, folder: Path, before: Sequence[str], arguments: Sequence[str], cache: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in a folder, by way of this script where `before` is given, and wait for its end."""
        how = [str(Path(__file__).resolve()), *before, "--"] if before else ["-m", "medusa_cl.run"]
        options: dict[str, Any] = {"cwd": folder, "env": self.environment(folder, cache), "text": True, "timeout": 300}
        return subprocess.run([sys.executable, *how, *arguments], capture_output=True, check=False, **options)

    def environment(self, folder: Path, cache: Path | None = None) -> dict[str, str]:
        """Return what a process in a folder of this one is given."""
        own = {"MEDUSA_CL_CACHE": str(cache or self.home / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return {**os.environ, **own, "MLFLOW_TRACKING_URI": self._uri(folder)}

    @staticmethod
    def _uri(folder: Path) -> str:
        return f"sqlite:///{folder / 'runs' / 'mlflow.db'}"


def empty_store(folder: Path) -> Path:
    """Make a database of MLflow that holds no run, to be copied: to make its tables takes seconds."""
    from medusa_cl.tracking.mlflow import quiet_client, store_uri

    quiet_client(store_uri(f"sqlite:///{folder / 'mlflow.db'}", folder))
    return folder / "mlflow.db"


def compare(whole: Path, resumed: Path) -> None:
    """Compare two run directories to the bit, but for clocks and memory."""
    for read in (summary_of, metrics_of, weights_of):
        expected, got = read(whole), read(resumed)
        assert got == expected, f"{read.__name__} of {resumed}: {_first_difference(expected, got)}"


def summary_of(folder: Path) -> Any:
    """Return what summary.json says, but what clocks and memory have to do with."""
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    del found["stages"]
    for key in ("train_seconds", "images_per_second", "peak_memory_bytes"):
        del found["cost"][key]
    return found


def metrics_of(folder: Path) -> Any:
    """Return steps and values of metrics.jsonl, but rates and seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], {k: v for k, v in line["values"].items() if not _timed(k)}) for line in lines]


def weights_of(folder: Path) -> bytes:
    """Return every weight."""
    return (folder / "model" / "model.safetensors").read_bytes()


def _timed(name: str) -> bool:
    return "images_per_s" in name or "seconds" in name


def _first_difference(expected: Any, got: Any) -> str:
    if isinstance(expected, dict) and isinstance(got, dict):
        keys = [key for key in {**expected, **got} if expected.get(key) != got.get(key)]
        return f"{keys[0]}: {_first_difference(expected.get(keys[0]), got.get(keys[0]))}"
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return next(_first_difference(a, b) for a, b in zip(expected, got, strict=True) if a != b)
    if isinstance(expected, list) and isinstance(got, list):
        return f"{len(got)} entries for {len(expected)}"
    return f"{str(got)[:200]} for {str(expected)[:200]}"


def look_into_mlflow(folder: Path, uri: str) -> None:
    """See that MLflow has one run, with every point of metrics.jsonl once, and one model."""
    from medusa_cl.tracking.mlflow import SECTIONED, quiet_client

    client = quiet_client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert run.info.status == "FINISHED", run.info.status
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    got = sorted((name, point.step) for name, history in points.items() for point in history)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [(k, line["step"], value) for line in lines for k, value in line["values"].items()]
    told = sorted((SECTIONED.get(k, k), step) for k, step, value in values if value is not None)
    assert got == told, f"{len(got)} points in MLflow for {len(told)}: {sorted(set(got) ^ set(told))}"
    assert len(client.search_logged_models(experiments)) == 1
    assert run.data.params["trainer.max_steps"] == "3"
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    series = [path.split("+timestamp")[0] for path in images if path.endswith(".png")]
    assert len(set(series)) == len(series), sorted(series)


def pairwise(count: int, rng: random.Random, possible: Callable[[Kill], bool]) -> Iterator[Kill]:
    """Draw combinations so that each adds as many pairs as can be that were not there yet."""
    every = [kill for one in itertools.product(STRATEGIES, PHASES, WORKERS) if possible(kill := Kill(*one))]
    seen = dict[tuple[Any, Any], int]()
    for _ in range(count):
        rng.shuffle(every)
        chosen = min(every, key=lambda kill: sum(seen.get(pair, 0) for pair in itertools.combinations(kill, 2)))
        for pair in itertools.combinations(chosen, 2):
            seen[pair] = seen.get(pair, 0) + 1
        every.remove(chosen)
        yield chosen


def has_phase(kill: Kill) -> bool:
    """Return whether a strategy goes through a phase: only a frozen backbone's features are kept."""
    return kill.phase != "cache building" or kill.strategy in ("medusa", "medusa on disk")


def main() -> int:
    """Do all kills, and say what was not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="a folder for what is made, in place of a temporary one")
    given = parser.parse_args()
    home = Path(given.keep or tempfile.mkdtemp(prefix="medusa_cl-kills-")).resolve()
    home.mkdir(exist_ok=True)
    chaos, failed = Chaos(home, given.seed), 0
    for kill in pairwise(given.kills, chaos.random, has_phase):
        begun = time.monotonic()
        try:
            said = f"equal, after death at call {chaos.kill(kill)}"
        except AssertionError as error:
            failed, said = failed + 1, f"FAILED: {error}"
        what = f"{kill.strategy}, {kill.phase}, {kill.workers} workers"
        print(f"{what:<48} {time.monotonic() - begun:5.1f} s  {said}", flush=True)
    print(f"{given.kills} kills, {failed} of them not survived")
    if not given.keep and not failed:
        shutil.rmtree(home)
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        victim(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[6:])
    else:
        sys.exit(main())
