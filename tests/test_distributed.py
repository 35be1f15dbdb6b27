"""Two gloo ranks: what they agree on with one process, what stays equal on both, and how they end when one fails."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ranks_job
from medusa_cl import distributed
from medusa_cl.build import check
from medusa_cl.errors import ConfigError
from medusa_cl.job import run
from medusa_cl.losses import balanced_bce, class_frequencies
from medusa_cl.run import _join
from medusa_cl.strategies.ranks import average_statistics
from small_run import SMALL, config, miniature, small

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# Every image is normalised by itself, so that a share of a batch gives the same answers as the whole.
HEAD = "head._target_=ranks_job.head_without_batch_statistics"
ALIKE = ["backbone.name=test_efficientnet_gn", "head=plain", HEAD, "references=[frozen_plain]"]


class Launches:
    """Everything that is started by torchrun here, at once: starting takes longer than the work."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        shutil.copyfile(store, folder / "mlflow.db")
        data = miniature(folder)
        given = [o for o in SMALL if o != "tracking=off"] + [f"scenario.root={data}", *ALIKE]
        job = [str(ROOT / "tests" / "ranks_job.py"), str(folder)]
        self._started = {
            "ranks": self._start([*job, "ranks", "failing"]),
            "run": self._start(["-m", "medusa_cl.run", "trainer=ddp", "out=runs/both", *given]),
        }
        self.overrides = [f"scenario.root={data}", *ALIKE]
        self._done: dict[str, tuple[int, str, str]] = {}

    def _start(self, arguments: list[str]) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": paths, "TMPDIR": str(self.folder)}
        env["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder / 'mlflow.db'}"
        pipe = subprocess.PIPE
        command = [*TORCHRUN, *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def done(self, name: str) -> tuple[int, str, str]:
        """Wait for one: status, output and errors."""
        if name not in self._done:
            output, errors = self._started[name].communicate(timeout=300)
            self._done[name] = self._started[name].returncode, output, errors
        return self._done[name]

    def end(self) -> None:
        """End what is left."""
        for process in self._started.values():
            process.kill()


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Launches]:
    """The launches of this module."""
    made = Launches(tmp_path_factory.mktemp("ddp"), empty_store)
    yield made
    made.end()


@pytest.fixture(scope="module")
def one(launches: Launches) -> dict[str, Any]:
    """What one process finds, while the others run."""
    return ranks_job.proofs()


@pytest.fixture(scope="module")
def both(launches: Launches) -> list[dict[str, Any]]:
    """What each of two ranks found before one failed."""
    _, _, errors = launches.done("ranks")
    files = [launches.folder / f"ranks-{rank}.pt" for rank in (0, 1)]
    assert all(file.is_file() for file in files), errors[-4000:]
    return [torch.load(file, weights_only=False) for file in files]


PROOFS = ("frozen", "tuned", "kept_statistics")


@pytest.mark.parametrize("proof", PROOFS)
def test_two_ranks_take_one_processs_steps(one: dict[str, Any], both: list[dict[str, Any]], proof: str) -> None:
    expected, found = one[proof], [rank["proofs"][proof] for rank in both]
    assert len(expected["curve"]) == 2 * ranks_job.STEPS
    for step, *ranks in zip(expected["curve"], *(f["curve"] for f in found), strict=True):
        for rank in ranks:
            assert rank == pytest.approx({task: step[task] for task in rank}, rel=1e-4)
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found[0]["weights"][name], value, rtol=1e-3, atol=1e-4)
    assert set(expected["values"]) == {"0/semseg", "0/saliency", "1/semseg", "1/saliency", "1/normals"}
    for task, row in expected["values"].items():
        assert found[0]["values"][task] == pytest.approx(row, rel=2e-3, nan_ok=True)


def test_shares_without_a_label_occur(both: list[dict[str, Any]]) -> None:
    """Otherwise the proofs say less than they seem to."""
    noted = [["saliency" in step for step in rank["proofs"]["frozen"]["curve"]] for rank in both]
    assert any(a != b for a, b in zip(*noted, strict=True))


@pytest.mark.parametrize("part", [*PROOFS, "batch_statistics"])
def test_ranks_hold_equal_weights_and_find_equal_values(both: list[dict[str, Any]], part: str) -> None:
    first, second = (rank["equal_ranks"][part] if part == "batch_statistics" else rank["proofs"][part] for rank in both)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert str(first["values"]) == str(second["values"])
    assert [step["all"] for step in first["curve"]] == [step["all"] for step in second["curve"]]


def test_what_does_not_go_with_it_is_refused(both: list[dict[str, Any]]) -> None:
    assert all("DenseDER does not go with trainer.distributed" in rank["equal_ranks"]["refused"] for rank in both)
    assert all('rank 1 are no longer those of rank 0 (first in "heads.n' in r["equal_ranks"]["drifted"] for r in both)


def test_a_step_is_left_out_by_all_ranks_where_one_meets_nan(both: list[dict[str, Any]]) -> None:
    first, second = (rank["left_out"] for rank in both)
    assert first["skipped"] == second["skipped"] == 3
    for name, value in first["weights"].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, second["weights"][name]), name


def test_training_goes_on_from_the_middle_of_an_epoch(both: list[dict[str, Any]]) -> None:
    assert [rank["gone_on"] for rank in both] == [True, True]
    assert ranks_job.gone_on()


def test_exchanges(both: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(rank["exchanges"] for rank in both):
        assert found["shard"] == (rank, 2)
        assert found["unchanged"]
        assert torch.equal(found["summed"], torch.ones(2, 3))
        averaged = [torch.full((2, 3), 0.5), torch.tensor([1.5]), torch.tensor([0.5], dtype=torch.float64)]
        assert all(map(torch.equal, found["averaged"], averaged))
        # By hand: ([2, 0] + [2, 4]) / 2; (nothing + [1, 1]) / 2; nobody has any.
        assert found["gradients"][0].tolist() == [2, 2]
        assert found["gradients"][1].tolist() == [0.5, 0.5]
        assert found["gradients"][2] is None
        assert found["agreed"] == {"rank": 0}
        assert [value.tolist() for value in found["gathered"]] == [[0, 7], [1, 7]]


def test_ranks_compute_features_together(both: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = ranks_job.kept_features(tmp_path)
    assert list(alone) == ["32, memory", "32, disk", "bf16, disk"]
    for rank in both:
        for place, scales in alone.items():
            assert all(map(torch.equal, rank["kept_features"][place], scales)), place


def test_one_that_fails_ends_all_with_one_message(launches: Launches) -> None:
    status, output, errors = launches.done("ranks")
    assert status != 0
    ours, _, _ = errors.partition("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")
    assert ours.count("error (rank 1): the disk of this one is full") == 1
    assert "ranks_job.py" not in ours  # no traceback of any rank
    assert output == ""
    assert not list(launches.folder.glob("failing-*.pt"))


def test_a_run_leaves_one_record(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    status, output, errors = launches.done("run")
    assert status == 0, errors[-4000:]
    assert output.count("medusa_cl") and output.count("2 processes, each on CPU, 1 thread") == 1
    assert [path.parent.name for path in launches.folder.glob("runs/**/metrics.jsonl")] == ["both"]
    assert not list(launches.folder.glob("medusa_cl-*"))  # what the other rank wrote is gone
    with sqlite3.connect(launches.folder / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]

    monkeypatch.chdir(launches.folder)
    alone = run(small(launches.folder / "NYUD_MT.h5", *launches.overrides[1:], "out=runs/alone"))
    together = json.loads((launches.folder / "runs/both/summary.json").read_text())
    assert set(alone["matrix"]["values"]) == {"semseg", "depth", "normals", "edges"}
    for task, column in alone["matrix"]["values"].items():
        assert together["matrix"]["values"][task][-1] == pytest.approx(column[-1], rel=1e-2), task
    references = together["transfer"]["reference_values"]["frozen_plain"]
    assert all(value > 0 for value in references.values())


# ---------------------------------------------------------------- in one process


def test_one_process_is_left_alone() -> None:
    values = torch.tensor([1.0, 2.0])
    assert distributed.summed(values) is values
    assert distributed.gathered(values) == [values]
    assert distributed.agreed("this") == "this"
    assert distributed.shard() == (0, 1)
    distributed.average_([values])
    distributed.barrier()
    average_statistics(torch.nn.BatchNorm2d(2))
    with distributed.first_on_machine():
        assert values.tolist() == [1, 2]


def test_frequencies_of_the_whole_batch_weigh_its_shares() -> None:
    """Worked by hand: of 4 valid pixels 3 are zeros, so the one weighs 3/4 and each zero 1/4; log 2 at logits 0."""
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 255.0, 255.0]).view(2, 1, 1, 3)
    logits = torch.zeros(2, 1, 1, 3)
    whole = class_frequencies(target)
    assert whole.tolist() == [3, 4]
    assert class_frequencies(torch.zeros(0)).tolist() == [0, 0]
    shares = [balanced_bce(logits[i : i + 1], target[i : i + 1], frequencies=whole)[0] for i in (0, 1)]
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(torch.stack(shares), torch.stack([(0.75 + 0.25 * 2) * log2, 0.25 * log2]))
    torch.testing.assert_close(sum(shares, start=torch.zeros(())), balanced_bce(logits, target)[0])


def test_terms_hand_the_frequencies_to_the_loss(tiny_model: Any) -> None:
    """The loss of a batch is as it was when it counted by itself."""
    from medusa_cl.batch import Entry, TaskBatch
    from medusa_cl.strategies.template import DenseCriterion

    model = tiny_model("saliency")
    target = torch.zeros(1, 1, 32, 32)
    target[..., :8] = 1
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def batch(value: Tensor) -> TaskBatch:
        return TaskBatch({"saliency": Entry(torch.arange(1), value)}, 1)

    loss = DenseCriterion(model.tasks).terms(batch(logits), batch(target))["saliency"]
    total, count = balanced_bce(logits, target)
    torch.testing.assert_close(loss, model.tasks["saliency"].loss_weight * total / count)


def test_without_torchrun_the_command_is_said() -> None:
    with pytest.raises(ConfigError, match=r"Run: torchrun --nproc_per_node=2 -m medusa_cl\.run trainer=ddp"):
        distributed.start("cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "torchrun has started 2 processes, but each would train alone. Add trainer=ddp"),
        (["trainer=ddp", "mode=study"], "learn one run, with those of compare="),
    ],
)
def test_torchrun_for_what_is_not_one_run(monkeypatch: pytest.MonkeyPatch, given: list[str], message: str) -> None:
    for name in distributed.GIVEN:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match=message):
        _join(config(*given))


def test_a_batch_is_divided_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(ConfigError, match=r"trainer.batch_size=8 .* multiple of 3.* Set trainer.batch_size=9"):
        check(config("trainer.batch_size=8"))


def test_too_few_devices_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert distributed.own_device(2) == f"cuda:{rank}"
        with pytest.raises(ConfigError, match=r"got 1 for 2 on this machine.*--nproc_per_node=1"):
            distributed.own_device(1)


WAITING = """
import ctypes, signal
from medusa_cl import distributed
with distributed.ending_together():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # another thread gets it: this one waits on
    print("waiting", flush=True)
    ctypes.CDLL(None).sleep(60)
"""


def test_a_process_that_waits_where_no_signal_is_seen_ends_too() -> None:
    """As one that waits for a device whose peers are gone."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", WAITING], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.terminate()
    assert process.wait(timeout=40) == 128 + 15
