"""The job the project exists for, end to end, on miniatures of what people have on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from avalanche.core import SupervisedPlugin
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from fake_folder import write_folder
from fake_nyud import write_nyud_pack
from fake_nyud_mat import write_nyud_mat
from fake_pascal import write_pascal
from medusa_cl import build
from medusa_cl import job as verb
from medusa_cl.errors import DataError
from medusa_cl.job import run
from medusa_cl.prepare import prepare
from medusa_cl.strategies.plugins import ValSelection
from medusa_cl.strategies.references import HEAD_OF
from small_run import typed, without_pictures

TINY = [
    "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8", "head.mix_width=8",
    "trainer.base_steps=1", "trainer.max_steps=1", "trainer.batch_size=2", "trainer.threads=1", "trainer.device=cpu",
    "tracking=off",
]  # fmt: skip
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders above each data set, not to be changed."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("nyud", "mat", "pascal", "folder")}
    write_nyud_pack(made["nyud"] / "NYUD_MT", "survey", train=4)
    write_nyud_mat(made["mat"])
    write_pascal(made["pascal"])
    write_folder(made["folder"])
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where nothing is drawn."""
    without_pictures(monkeypatch)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def config(*overrides: str) -> DictConfig:
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        return compose("config", [*overrides[:1], *TINY, *overrides[1:]])


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (folder, *folder.rglob("*")))


# ---------------------------------------------------------------- every scenario

DISTILLED = "labels distilled: agreement with a network's answers"
DERIVED = "labels derived by medusa_cl: "
JOBS: dict[str, tuple[str, list[str], list[str], dict[str, str]]] = {
    "nyud": ("nyud_incremental", ["semseg", "depth"], ["normals", "edges"], {}),
    "mat": (
        "nyud_incremental_long",
        ["semseg"],
        ["depth", "normals", "edges", "curvature", "keypoints2d"],
        {
            "normals": f"{DERIVED}plane fit on inverse depth, 9x9, neighbours within 5 % of the depth",
            "edges": f"{DERIVED}boundaries of labels and instances, thinned",
            "curvature": f"{DERIVED}principal curvatures fitted to depth",
            "keypoints2d": f"{DERIVED}determinant of Hessian of grey",
        },
    ),
    "pascal": (
        "pascal_incremental",
        ["semseg", "human_parts", "saliency"],
        ["normals", "edges"],
        {
            "saliency": DISTILLED,
            "normals": DISTILLED,
            "edges": f"{DERIVED}thinned Laplacian of the context labels",
        },
    ),
    "folder": ("folder_incremental", ["semseg"], ["depth", "normals", "edges", "temperature"], {}),
}


JOB_OPTIONS = {
    "mat": ["references=[frozen_plain]"],
    "pascal": ["scenario.image_size=[64,64]"],
    "folder": ["references=[frozen_plain]", "scenario.base=[semseg]"],
}


@pytest.fixture(scope="module", params=JOBS)
def job(
    request: pytest.FixtureRequest, miniatures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, dict[str, Any], bool]]:
    """A finished run with its references: which, its working directory, its summary, whether the data is as before."""
    name, home, before = request.param, tmp_path_factory.mktemp("home"), Path.cwd()
    scenario, data = JOBS[name][0], snapshot(miniatures[request.param])
    os.chdir(home)
    try:
        summary = run(config(f"scenario={scenario}", f"scenario.root={miniatures[name]}", *JOB_OPTIONS.get(name, [])))
        yield name, home, summary, snapshot(miniatures[name]) == data
    finally:
        os.chdir(before)


Job = tuple[str, Path, dict[str, Any], bool]


def test_every_task_is_learnt_and_reported(job: Job) -> None:
    name, home, summary, _ = job
    scenario, base, stream, labels = JOBS[name]
    kept = json.loads((home / summary["run_dir"] / "summary.json").read_text())
    assert (kept["scenario"], kept["base"], kept["stream"]) == (scenario, base, stream)
    assert kept["labels"] == labels
    assert set(kept["primary"]) == {*base, *stream}
    last = {task: values[-1] for task, values in kept["matrix"]["values"].items()}
    assert all(value is None or np.isfinite(value) for value in last.values())
    assert None not in [last[task] for task in ("semseg", "normals", "depth", "temperature") if task in last]
    assert kept["forgetting"]["mean"] == 0
    assert kept["provenance"]["skipped"] == {} and kept["provenance"]["rooms_golden_ok"] is None
    assert all(len(digest) == 64 for digest in kept["provenance"]["data_hash"].values())


def test_references_are_learnt_on_the_same_data(job: Job) -> None:
    name, _, summary, _ = job
    names = ["frozen_plain"] if name in ("mat", "folder") else list(HEAD_OF)
    assert set(names) <= set(summary["transfer"]["references"])
    for reference in names:
        values = summary["transfer"]["reference_values"][reference]
        assert set(values) == set(JOBS[name][2])
        assert np.isfinite(values["normals"])


def test_panels_and_heads_are_there(job: Job) -> None:
    name, home, summary, _ = job
    folder = home / summary["run_dir"]
    tasks = [*JOBS[name][1], *JOBS[name][2]]
    expected = [
        *(f"heads/{task}.safetensors" for task in tasks), *(f"panels/{task}-{len(tasks):02d}.png" for task in tasks),
        "panels/overview.png", "panels/forgetting_heatmap.png", "config.yaml", "task_matrix.csv",
    ]  # fmt: skip
    assert [path for path in expected if not (folder / path).is_file()] == []


def test_nothing_is_written_beside_the_data(job: Job) -> None:
    assert job[3]
    assert [path.name for path in job[1].iterdir()] == ["runs"]


def test_what_was_found_is_printed(miniatures: dict[str, Path], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["scenario=folder_incremental", "scenario.base=[depth]", "scenario.stream=[edges]", "references=none"]
    run(config(*one, f"scenario.root={miniatures['folder']}"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"data: folder of your own data at {miniatures['folder']}: 4 train, 2 test images of 48x48; depth" in said


# ---------------------------------------------------------------- pack and prepared file


def test_the_prepared_file_gives_the_packs_summary(miniatures: dict[str, Path], home: Path) -> None:
    prepare(miniatures["nyud"], home / "made.h5", workers=1)
    tasks = ["scenario.base=[semseg,depth]", "scenario.stream=[normals]", "references=[frozen_plain]"]
    summaries = [
        run(config("scenario=nyud_incremental", *tasks, "trainer.base_steps=3", f"scenario.root={root}"))
        for root in (miniatures["nyud"], home / "made.h5")
    ]
    hashes = [summary["provenance"].pop("data_hash") for summary in summaries]
    assert set(hashes[0].values()).isdisjoint(hashes[1].values())
    for summary in summaries:
        for key in ("run_dir", "stages"):
            summary.pop(key)
        for key in ("train_seconds", "images_per_second", "peak_memory_bytes"):
            summary["cost"].pop(key)
    assert summaries[0] == summaries[1]
    assert summaries[0]["matrix"]["values"]["depth"][-1] > 0


# ---------------------------------------------------------------- options of the run


ARRANGED = {
    "scenario.order=random seed=1": (["semseg", "depth"], ["edges", "normals"]),
    "scenario.held_out=depth": (["semseg", "normals", "edges"], ["depth"]),
    "scenario.held_out=depth scenario.base=[semseg,depth,edges] scenario.stream=[]": (["semseg", "edges"], ["depth"]),
}


@pytest.mark.parametrize("options", ARRANGED)
def test_the_configuration_kept_says_what_was_learnt_when(
    options: str, miniatures: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that config.yaml, the line at the top and runs that start from this one agree."""
    monkeypatch.setattr(verb, "_learn", lambda made: None)
    made = verb.learn_stream(
        config("scenario=nyud_incremental", *options.split(), f"scenario.root={miniatures['nyud']}")
    )
    kept = OmegaConf.load(made.run_dir / "config.yaml").scenario
    assert (list(kept.base), list(kept.stream)) == ARRANGED[options]
    assert (list(made.scenario.base), list(made.scenario.stream)) == ARRANGED[options]


def test_a_scenario_of_ones_own_may_have_a_seed_and_no_base(home: Path) -> None:
    cfg = OmegaConf.create({"scenario": {"seed": 3}})
    OmegaConf.set_struct(cfg, True)
    build.arrange_stream(cfg)
    assert cfg == {"scenario": {"seed": 3}}


def test_leaving_one_out(miniatures: dict[str, Path], home: Path) -> None:
    options = ["scenario.held_out=depth", "references=none", f"scenario.root={miniatures['nyud']}"]
    summary = run(config("scenario=nyud_incremental", *options))
    assert (summary["base"], summary["stream"]) == (["semseg", "normals", "edges"], ["depth"])


class Probe(SupervisedPlugin):
    """What a plugin that looks at the weights after each experience sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append({name: value.clone() for name, value in strategy.model.state_dict().items()})


def test_the_epoch_kept_is_chosen_on_val(
    miniatures: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one epoch there is nothing to choose; where the first of two is better, it is as if it had been the only one.

    What other plugins see after an experience is what is kept.
    """
    probe, looked = Probe(), list[str]()
    monkeypatch.setattr(verb, "plugins_of", lambda cfg: [probe])
    options = ["scenario.val_fraction=0.25", "scenario.stream=[normals]", "references=none", "trainer.max_steps=null"]
    options += ["trainer.base_steps=null", f"scenario.root={miniatures['nyud']}"]

    def learnt(select: str, epochs: int) -> dict[str, Any]:
        probe.seen.clear()
        given = [*options, f"trainer.select={select}", f"trainer.epochs={epochs}"]
        return run(config("scenario=nyud_incremental", *given))

    last, chosen = learnt("last", 1), learnt("val", 1)
    assert chosen["matrix"] == last["matrix"]
    assert set(chosen["provenance"]["data_hash"]) == {"train", "val", "test"}
    once = probe.seen[:]

    def worse_each_time(selection: ValSelection, strategy: Any) -> dict[str, float]:
        looked.append(strategy.experience.name)
        return {name: -task.sign * float(len(looked)) for name, task in strategy.experience.tasks.items()}

    monkeypatch.setattr(ValSelection, "_values", worse_each_time)
    assert learnt("val", 2)["matrix"] == chosen["matrix"]
    assert looked == ["semseg+depth", "semseg+depth", "normals", "normals"]
    for one, other in zip(once, probe.seen, strict=True):
        assert all((other[name] == value).all() for name, value in one.items())


# ---------------------------------------------------------------- damage on the way


def damaged(folder: Path, split: str = "train") -> Path:
    """Write a survey pack of which the last image of a split has a depth that is cut short, and return that file."""
    write_nyud_pack(folder / "NYUD_MT", "survey", train=4)
    image = (folder / "NYUD_MT" / "gt_sets" / f"{split}.txt").read_text().split()[-1]
    path = folder / "NYUD_MT" / "depth" / f"{image}.npy"
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_stops_the_run_with_its_path(split: str, home: Path) -> None:
    """In training, or in the first evaluation (the pack's val is our test)."""
    path = damaged(home / "mine", split)
    steps = 9 if split == "train" else 1
    with pytest.raises(DataError, match="on_bad_sample=skip") as caught:
        run(config("scenario=nyud_incremental", "scenario.root=mine", f"trainer.base_steps={steps}", "out=here"))
    assert str(path.relative_to(home)) in str(caught.value)
    assert json.loads((home / "here" / "tracking.json").read_text())["status"] == "FAILED"


def test_a_damaged_image_may_be_left_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(home / "mine")
    options = ["scenario.root=mine", "scenario.on_bad_sample=skip", "references=none", "scenario.stream=[normals]"]
    summary = run(config("scenario=nyud_incremental", *options))
    assert summary["provenance"]["skipped"] == {"train": [path.stem]}
    said = "".join(capsys.readouterr().out.split())
    assert "1trainimagesareleftout:" in said and f"{path.stem}:mine/NYUD_MT/depth/{path.name}" in said


# ---------------------------------------------------------------- as typed


FOUND = (
    "data: survey pack of NYUD-v2 at data/NYUD_MT: {train} of 795 train, {test} of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rub), edges"
)


def test_the_bare_command_beside_data_finds_it_and_says_that_weights_are_missing(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_nyud_pack(home / "data" / "NYUD_MT", "survey")
    assert typed("scenario=nyud_incremental") == 1
    said, wrong = capfd.readouterr()
    assert FOUND.format(train=3, test=2) in " ".join(said.split())
    assert wrong.startswith("error: ") and "Traceback" not in wrong
    for way in ('backbone "hrnet_w18_small_v2"', "checkpoint", "backbone.pretrained=false"):
        assert way in wrong


@pytest.mark.slow
def test_the_bare_command_on_random_weights_finishes(home: Path) -> None:
    write_nyud_pack(home / "data" / "NYUD_MT", "survey")
    sizes = [
        "scenario.train_size=2",
        "scenario.test_size=1",
        "trainer.epochs=1",
        "trainer.batch_size=2",
        "trainer.threads=1",
    ]
    command = [sys.executable, "-m", "medusa_cl.run", "scenario=nyud_incremental", "backbone.pretrained=false", *sizes]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub")}
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    done = subprocess.run([*command, "tracking=off", "references=none"], **options, check=False)
    assert done.returncode == 0, done.stderr
    assert FOUND.format(train=2, test=1) in " ".join(done.stdout.split())
    (summary,) = home.glob("runs/nyud_incremental/medusa-hrnet_w18_small_v2-s0-0/summary.json")
    assert json.loads(summary.read_text())["stream"] == ["normals", "edges"]
    assert sorted(path.name for path in home.iterdir()) == ["data", "runs"]


def test_a_damaged_image_ends_the_command_with_one_line(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where another process has read it."""
    name = damaged(home / "data").name
    assert typed("scenario=nyud_incremental", *TINY, "trainer.base_steps=9", "trainer.workers=1") == 1
    said = capfd.readouterr().err
    assert said.startswith(f"error: data/NYUD_MT/depth/{name} cannot be read: ")
    assert "Traceback" not in said and "Caught" not in said
    _, how = said.strip().splitlines()
    assert how.startswith("To go on from the beginning, as nothing was saved yet: python -m medusa_cl.run resume=runs/")
