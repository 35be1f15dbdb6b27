"""Runs that were stopped and go on: to the bit what they would have been, wherever they stop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from chaos_kills import compare
from fake_data import fake_dense_hdf5
from medusa_cl import kept, resume, rundir, snapshot
from medusa_cl.continuing import resumed
from medusa_cl.errors import ConfigError, DataError, SnapshotError, TrainingError
from medusa_cl.job import finish, learn_stream, run
from medusa_cl.keeper import Keeper
from medusa_cl.run import _with_comparisons
from medusa_cl.stopping import Stopped
from medusa_cl.study_run import run_study
from small_run import SMALL, config, miniature, without_pictures

PLAIN = "head=plain"  # the smallest head there is: what is kept besides the heads is in the plugins
STRATEGIES = {
    "medusa": [],
    "finetune": ["strategy=finetune", PLAIN],
    "ewc_replay": ["strategy=finetune", "plugins=[ewc,replay]", PLAIN],
    "lwf": ["strategy=finetune", "plugins=[lwf]"],
    "der": ["strategy=finetune", "plugins=[der]", PLAIN],
    "online_ewc_si": ["strategy=finetune", "plugins=[ewc_online,si]", PLAIN],
    "agem": ["strategy=finetune", "plugins=[agem]", PLAIN],
    "single_task": ["strategy=single_task", PLAIN],
    "joint_decoder": ["strategy=mtinet"],
    "epochs": ["trainer.max_steps=null", "trainer.base_steps=null", "trainer.epochs=2", "trainer.batch_size=3", PLAIN],
    "early_stopping": [
        "trainer.epochs=3",
        "trainer.max_steps=null",
        "scenario.val_fraction=0.25",
        "plugins=[early_stopping]",
        PLAIN,
    ],
    "disk_val": [
        "strategy.cache_features=disk",
        "trainer.workers=1",
        "scenario.val_fraction=0.25",
        "trainer.select=val",
        PLAIN,
    ],
}
STREAM = "scenario.stream=[normals]"


class KilledError(BaseException):
    """Stands for the end of the process."""


@dataclass
class Home:
    """A working directory, the data, and the runs made there that were never stopped."""

    data: Path
    folder: Path
    whole: dict[str, Path] = field(default_factory=dict)

    def learn(self, out: str, *overrides: str) -> dict[str, Any]:
        """Learn a stream on the miniature, each step saved."""
        shutil.rmtree("runs", ignore_errors=True)  # a base that was kept would shorten the next one
        given = ["references=none", "trainer.save_steps=1", STREAM, *overrides]
        own = [
            o for o in SMALL if not o.startswith("head.") or "strategy=mtinet" not in overrides
        ]  # its head has others
        return run(config(*own, f"scenario.root={self.data}", f"out={out}", "overwrite=true", *given), given)

    def never_stopped(self, name: str) -> Path:
        """Return the directory of such a run; as it was at the moments of CASES, it is kept for `stopped`."""
        if name not in self.whole:
            out, saves = f"whole-{name}", {saves for case, saves in CASES if case == name}
            with after_each_save(lambda done: shutil.copytree(out, f"kept/{name}-{done}") if done in saves else None):
                self.learn(out, *STRATEGIES[name])
            self.whole[name] = self.folder / out
        return self.whole[name]

    def stopped(self, name: str, saves: int) -> str:
        """Return the directory of such a run whose process was gone when it had been saved so many times."""
        whole, out = self.never_stopped(name), f"{name}-{saves}"
        for place in (out, "runs"):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(f"kept/{out}", out)
        for file in ("config.yaml", "overrides.yaml"):
            (Path(out) / file).write_text((Path(out) / file).read_text().replace(whole.name, out))
        return out


@contextmanager
def after_each_save(do: Callable[[int], object]) -> Iterator[None]:
    """Do something with the number of saves after each one."""
    save, done = Keeper._save, [0]

    def counting(self: Keeper, *arguments: Any) -> None:
        save(self, *arguments)
        done[0] += 1
        do(done[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "_save", counting)
        yield


def go_on(out: str, **options: Any) -> dict[str, Any]:
    """Go on with a run, as the command line would."""
    cfg: Any = OmegaConf.load(f"{out}/config.yaml")
    return run(cfg, folder=Path(out), **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Where all runs of this file are made; nothing is drawn."""
    folder, before = tmp_path_factory.mktemp("resume"), Path.cwd()
    made = Home(miniature(folder), folder)
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        yield made
    os.chdir(before)


@pytest.fixture(autouse=True)
def _there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.folder)


@contextmanager
def dying(saves: int) -> Iterator[pytest.ExceptionInfo[KilledError]]:
    """Let what is learnt in the block die as soon as it was saved so many times."""

    def die(done: int) -> None:
        if done == saves:
            raise KilledError

    with pytest.raises(KilledError) as killed, after_each_save(die):
        yield killed


# Saved are 3 steps of the base, its end, its evaluation, and the same of one new task: 10 times. Single-task nets learn
# the two base tasks one after the other, a joint decoder all tasks at once.
CASES = [
    *[("medusa", saves) for saves in (1, 3, 4, 5, 7, 10)],
    *[(name, saves) for name in ("finetune", "ewc_replay", "lwf", "der") for saves in (2, 7)],
    *[("online_ewc_si", 7), ("agem", 7), ("single_task", 2), ("single_task", 5), ("single_task", 10)],
    *[("joint_decoder", 2), ("disk_val", 6), ("epochs", 6), ("epochs", 9), ("early_stopping", 8)],
]


@pytest.mark.parametrize(("name", "saves"), CASES)
def test_a_resumed_run_is_the_run_that_was_never_stopped(home: Home, name: str, saves: int) -> None:
    out = home.stopped(name, saves)
    go_on(out)
    compare(home.never_stopped(name), Path(out))


def test_it_may_stop_again_and_again_and_change_its_workers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Keeper._save

    def once(self: Keeper, *arguments: Any) -> None:
        save(self, *arguments)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "_save", once)
        with pytest.raises(KilledError):
            home.learn("again", *STRATEGIES["finetune"])
        for workers in (0, 1, 0, 2, 0, 0, 0, 0, 0):
            cfg: Any = OmegaConf.load("again/config.yaml")
            cfg.trainer.workers = workers
            with pytest.raises(KilledError):
                run(cfg, folder=Path("again"))
    go_on("again")
    compare(home.never_stopped("finetune"), Path("again"))


def test_a_run_that_died_before_anything_was_saved_starts_from_the_beginning(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "step", die)
        with pytest.raises(KilledError):
            home.learn("early", *STRATEGIES["medusa"])
    assert not snapshot.every(Path("early/checkpoints"))
    go_on("early")
    compare(home.never_stopped("medusa"), Path("early"))


def test_a_run_that_starts_from_another_ones_base_goes_on_without_it(home: Home) -> None:
    shutil.copytree(home.never_stopped("medusa"), "base-of-it", dirs_exist_ok=True)
    whole = home.learn("on-base", "base=base-of-it")
    with dying(4):
        home.learn("on-base-4", "base=base-of-it")
    shutil.rmtree("base-of-it")
    go_on("on-base-4")
    compare(Path(whole["run_dir"]), Path("on-base-4"))


def test_an_extension_goes_on(home: Home) -> None:
    base = str(home.never_stopped("medusa"))
    given = [f"extend={base}", "scenario.stream=[edges]", "trainer.save_steps=1", "references=none", "tracking=off"]
    whole = run(config(*given, "out=extended"), [*given, "out=extended"])
    with dying(3):
        run(config(*given, "out=extended-3"), [*given, "out=extended-3"])
    go_on("extended-3")
    compare(Path(whole["run_dir"]), Path("extended-3"))


def test_an_older_checkpoint_takes_the_place_of_newer_ones(home: Home) -> None:
    out = home.stopped("medusa", 7)
    older, _ = snapshot.every(Path(out) / "checkpoints")
    cfg: Any = OmegaConf.load(f"{out}/config.yaml")
    finish(learn_stream(cfg, folder=Path(out), chosen=older))
    compare(home.never_stopped("medusa"), Path(out))


def test_a_plugin_that_comes_to_hold_what_cannot_be_kept_costs_no_checkpoint(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medusa_cl.strategies.plugins import LRSchedule

    def hold(self: Any, strategy: Any, **kwargs: Any) -> None:
        if strategy.experience.task_label == 1:
            self.held = strategy.model

    monkeypatch.setattr(LRSchedule, "after_training_iteration", hold, raising=False)
    home.learn("held", *STRATEGIES["medusa"])
    assert "A checkpoint could not be written (LRSchedule: " in capsys.readouterr().out
    assert snapshot.every(Path("held/checkpoints"))[-1].name == "0005-base-evaluated"


def test_a_plugin_with_batches_of_its_own_leaves_checkpoints_at_the_ends_of_tasks(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medusa_cl.strategies.plugins import LRSchedule

    def feed(self: Any, strategy: Any, **kwargs: Any) -> None:
        strategy.dataloader = list(strategy.dataloader)
        self._step = 0

    monkeypatch.setattr(LRSchedule, "before_training_exp", feed)
    home.learn("fed", *STRATEGIES["medusa"])
    assert "No checkpoints inside this task: a plugin makes the batches" in capsys.readouterr().out
    assert snapshot.every(Path("fed/checkpoints"))[-1].name == "0004-normals-evaluated"


def test_seconds_go_on_from_what_was_spent(home: Home) -> None:
    out = home.stopped("medusa", 7)
    saved = snapshot.newest(Path(out) / "checkpoints")
    assert saved is not None
    assert 0 < saved.tree["seconds"]["normals"] < go_on(out)["cost"]["train_seconds"]["normals"]


def test_a_finished_run_is_shown_and_not_learnt_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medusa_cl.job._set_up", None)
    summary = go_on(str(home.never_stopped("medusa")))
    assert summary["matrix"]
    assert "normals" in capsys.readouterr().out


# ---------------------------------------------------------------- what is refused


def test_damage_is_named_and_the_checkpoint_before_is_offered(home: Home) -> None:
    out = home.stopped("medusa", 7)
    before, last = snapshot.every(Path(out) / "checkpoints")
    weights = last / "tensors.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SnapshotError, match=rf"{last} is damaged.*SHA-256.*resume={before}") as refusal:
        go_on(out)
    folder, chosen = resume.find(str(refusal.value).rpartition("resume=")[2])
    cfg: Any = OmegaConf.load(folder / "config.yaml")
    finish(learn_stream(cfg, folder=folder, chosen=chosen))
    compare(home.never_stopped("medusa"), Path(out))


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_every_part_of_a_checkpoint_is_looked_at(home: Home, name: str, damage: str) -> None:
    if not Path("kept-stopped").exists():
        shutil.copytree(home.stopped("medusa", 7), "kept-stopped")
    shutil.rmtree("damaged", ignore_errors=True)
    shutil.copytree("kept-stopped", "damaged")
    path = snapshot.every(Path("damaged/checkpoints"))[-1] / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(SnapshotError, match="is damaged"):
        go_on("damaged")


def test_another_configuration_is_refused_with_the_difference(home: Home) -> None:
    out = home.stopped("medusa", 7)
    cfg: Any = OmegaConf.load(f"{out}/config.yaml")
    cfg.trainer.lr_head, cfg.trainer.workers = 0.5, 1
    with pytest.raises(SnapshotError, match=r"trainer.lr_head: 0.002 in the run, 0.5 now\. Leave") as refusal:
        run(cfg, folder=Path(out))
    assert "workers" not in str(refusal.value)
    cfg = OmegaConf.load(f"{out}/config.yaml")
    cfg.scenario.stream = ["normals", "edges"]
    with pytest.raises(SnapshotError, match=r"scenario.stream.*extend=medusa-7 scenario.stream="):
        run(cfg, folder=Path(out))


def test_changed_data_is_refused(home: Home) -> None:
    out = home.stopped("medusa", 7)
    shutil.move(home.data, "kept.h5")
    try:
        fields = ("semseg", "depth", "normals", "edges")
        fake_dense_hdf5(home.data, {"train": 8, "test": 5}, fields=fields, classes=40, seed=1)
        with pytest.raises(DataError, match=r"data of medusa-7 has changed since it was stopped \(train, test\)"):
            go_on(out)
    finally:
        shutil.move("kept.h5", home.data)


def test_a_run_that_is_being_learnt_is_left_to_whoever_learns_it(home: Home) -> None:
    out = home.stopped("medusa", 7)
    lock = rundir.held(Path(out))
    try:
        with pytest.raises(ConfigError, match=rf"The run in {out} is being learnt by another process"):
            go_on(out)
        with pytest.raises(ConfigError, match="is being learnt by another process"):
            home.learn(out, *STRATEGIES["medusa"])
    finally:
        lock.release()
    go_on(out)


def test_what_other_code_has_finished_is_not_kept_for_studies(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = home.stopped("medusa", 7)
    monkeypatch.setattr("medusa_cl.build.__version__", "another")
    go_on(out)
    assert "bits may differ from here on" in capsys.readouterr().out
    assert not list(Path("runs/.cache").glob("run-*"))


def test_a_run_is_found_by_its_name_and_by_the_latest(home: Home) -> None:
    home.stopped("medusa", 7)
    with pytest.raises(ConfigError, match="no run under runs/"):
        resume.find("last")
    for name in ("a", "b", "c"):
        shutil.copytree("medusa-7", f"runs/some/{name}")
        os.utime(f"runs/some/{name}/overrides.yaml", (0, {"a": 3, "b": 2, "c": 4}[name]))
    resume.note_compared(Path("runs/some/a"), "strategy=finetune", Path("runs/some/c"))
    assert resume.find("last")[0] == Path("runs/some/a"), "a run that is compared to another one goes on with that"
    for age, name in enumerate("abc"):
        Path(f"runs/some/{name}/summary.json").touch()
        os.utime(f"runs/some/{name}/summary.json", (0, age))
    assert rundir.find_run("last", "extend") == Path("runs/some/b")
    (checkpoint, _) = snapshot.every(Path("runs/some/b/checkpoints"))
    assert resume.find(str(checkpoint)) == (Path("runs/some/b"), checkpoint)
    Path("runs/some/b/tracking.json").write_text(f'{{"tracker": {{"run_id": "{"ab" * 16}"}}}}')
    assert resume.find("ab" * 16)[0] == Path("runs/some/b")
    with pytest.raises(ConfigError, match="no run under runs/ has that MLflow run id"):
        resume.find("cd" * 16)
    assert resume.find("cd" * 16, lambda _: "medusa-7")[0] == Path("medusa-7")
    with pytest.raises(ConfigError, match="found no run in nowhere"):
        resume.find("nowhere")


# ---------------------------------------------------------------- the files


def test_a_snapshot_gives_back_what_it_was_given(tmp_path: Path) -> None:
    last = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    tree = {
        "plain": [None, True, 3, -0.0, float("inf"), "x", (1, "y", ())],
        "keys": {0: "a", 7: {}, "$tensor": 1},
        "tensors": [last, last, last[:, 0], torch.ones(2, dtype=torch.bfloat16), torch.tensor(3), torch.empty(0, 2)],
    }
    snapshot.write(tmp_path / "0001-a", tree, {"at": "a"})
    found = snapshot.read(tmp_path / "0001-a").tree
    assert repr(found["plain"]) == repr(tree["plain"])
    assert found["keys"] == tree["keys"]
    for got, expected in zip(found["tensors"], tree["tensors"], strict=True):
        assert isinstance(expected, torch.Tensor)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    assert found["tensors"][0].stride() == last.stride(), "sums go along the memory"
    found["tensors"][0].zero_()
    assert found["tensors"][1].any(), "what was read shares no memory"
    with pytest.raises(SnapshotError, match=r"set \(at state.x\[1\]\)"):
        snapshot.write(tmp_path / "0002-b", {"x": [0, {1}]}, {"at": "b"})


def test_the_last_two_are_kept_and_a_part_is_none(tmp_path: Path) -> None:
    for n in range(4):
        snapshot.write(snapshot.next_name(tmp_path, "x"), {"n": n}, {"at": str(n)})
        snapshot.drop_older(tmp_path)
    (tmp_path / "0009-y.part").mkdir()
    assert [path.name for path in snapshot.every(tmp_path)] == ["0003-x", "0004-x"]
    found = snapshot.newest(tmp_path)
    assert found is not None
    assert found.tree == {"n": 3}
    assert snapshot.next_name(tmp_path, "x").name == "0005-x"


def test_a_full_disk_harms_nothing_and_training_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flush, done = kept.flush, [0]

    def full(path: Path) -> None:
        done[0] += 1
        if 12 < done[0] < 30:  # five a checkpoint: the third to the sixth cannot be written
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr("medusa_cl.snapshot.flush", full)
    home.learn("full", *STRATEGIES["medusa"])
    assert "A checkpoint could not be written ([Errno 28] No space left on device)" in capsys.readouterr().out
    compare(home.never_stopped("medusa"), Path("full"))
    assert not list(Path("full/checkpoints").glob("*.part"))


def test_what_cannot_be_put_back_is_said_at_the_beginning(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medusa_cl.strategies.state.lacking", lambda _: {"Mine": "attribute `file` is no plain data"})
    home.learn("lacking", *STRATEGIES["medusa"])
    assert "No checkpoints are kept" in capsys.readouterr().out
    assert not snapshot.every(Path("lacking/checkpoints"))


# ---------------------------------------------------------------- as the command line does it


def test_what_may_be_set_anew_and_what_is_refused(home: Home) -> None:
    out = home.stopped("medusa", 7)
    given = [f"resume={out}", "trainer.workers=1", "trainer.lr_head=2e-3", "tracking=off"]
    cfg, overrides, folder, chosen = resumed(config(*given), given)
    assert (cfg.trainer.workers, cfg.trainer.lr_head, cfg.out) == (1, 2e-3, out)
    assert (folder, chosen) == (Path(out), None)
    assert "trainer.save_steps=1" in overrides
    for given, message in {
        ("strategy=finetune",): r"strategy\.name: medusa in the run, finetune now",
        ("trainer.max_steps=9", "trainer.workers=1"): r"trainer\.max_steps: 3 in the run, 9 now\. Leave",
        ("scenario.stream=[edges]",): r"extend=medusa-7 scenario\.stream=",
        (
            "experiment=demo",
        ): r"medusa-7 is a run of another configuration: head_width: 8 in the run, 32 now.* and 19 more\.",
    }.items():
        with pytest.raises(SnapshotError, match=message):
            resumed(config(f"resume={out}", *given), [f"resume={out}", *given])


def test_runs_that_are_compared_go_on_with_the_first_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(out: str) -> None:
        shutil.rmtree("runs", ignore_errors=True)
        own = [*SMALL, f"scenario.root={home.data}", "references=none", "trainer.save_steps=1", STREAM]
        given = [*own, "compare=['strategy=finetune']", f"out={out}"]
        _with_comparisons(compose("config", given), given)

    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        learn("first")
        (second,) = resume.compared(Path("first")).values()
        for folder in ("first", second):
            shutil.copytree(folder, Path("whole") / Path(folder).name)
        shutil.rmtree("first")
        with dying(13) as killed:  # in the second run, for the first is saved ten times
            learn("first")
        assert killed.value.__notes__ == ["To go on from 0010-normals-evaluated: python -m medusa_cl.run resume=first"]
        assert not Path("first/summary.json").exists()
        _with_comparisons(*resumed(compose("config", ["resume=first"]), ["resume=first"]))
    for folder in ("first", second):
        compare(Path("whole") / Path(folder).name, Path(folder))


def test_a_member_of_a_study_goes_on_in_the_middle(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    own = [*SMALL, f"scenario.root={home.data}", "trainer.save_steps=1", STREAM]
    given = [*own, "mode=study", "study.members=[medusa]", "study.seeds=[0]", "out=study"]
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        with dying(7):
            run_study(compose("config", given), given)
        steps = []
        monkeypatch.setattr(Keeper, "step", lambda self, state, about: steps.append(about["at"]))
        run_study(compose("config", given), given)
    assert steps == ["normals step 3"], "two of three steps of the new task were saved"
    (member,) = Path("study").glob("*/summary.json")
    compare(home.never_stopped("medusa"), member.parent)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB"),
            TrainingError,
            "trainer.batch_size=4",
        ),
        (OSError(28, "No space left on device"), DataError, "No space left on device, in .* Free some"),
        (Stopped(15), Stopped, "143"),
    ],
)
def test_whatever_ends_a_run_says_how_to_go_on(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[BaseException],
    said: str,
) -> None:
    def fail(self: object, *arguments: Any) -> None:
        raise error

    out = f"ended-{kind.__name__}"
    with monkeypatch.context() as patch:
        patch.setattr("medusa_cl.strategies.medusa.Medusa.eval", fail)
        with pytest.raises(kind, match=said) as ended:
            home.learn(out, *STRATEGIES["medusa"])
    assert ended.value.__notes__ == [f"To go on from 0004-base-learnt: python -m medusa_cl.run resume={out}"]
    go_on(out)
    compare(home.never_stopped("medusa"), Path(out))


def test_a_run_that_met_nan_goes_on_without_that_step(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from medusa_cl.strategies.template import DenseTemplate

    criterion = DenseTemplate.criterion

    def poisoned(self: DenseTemplate) -> torch.Tensor:
        loss = criterion(self)
        return loss * torch.nan if self.experience.task_label == 1 and self.steps_done == 1 else loss

    monkeypatch.setattr(DenseTemplate, "criterion", poisoned)
    with pytest.raises(TrainingError, match=r"step 2 of .*normals.*trainer\.on_nan=skip"):
        home.learn("poisoned", *STRATEGIES["medusa"])
    with pytest.raises(TrainingError, match="step 2"):
        go_on("poisoned")
    given = ["resume=poisoned", "trainer.on_nan=skip"]
    summary = run(config(*given), given)
    assert summary["steps_left_out"] == 1


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_a_damaged_configuration_is_named(home: Home, name: str) -> None:
    out = home.stopped("medusa", 7)
    (Path(out) / name).write_bytes(b"trainer: {lr_head: 0.1, \x00")
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        resumed(config(f"resume={out}"), [f"resume={out}"])
