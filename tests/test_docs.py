"""What README and CONTRIBUTING tell people to type works."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

from fake_data import fake_dense_hdf5
from fake_folder import write_folder
from fake_nyud import write_nyud_pack
from fake_pascal import write_pascal
from medusa_cl import load_model, study_run
from medusa_cl.configs.check import check_overrides
from medusa_cl.job import run
from medusa_cl.prepare import main as prepare
from medusa_cl.resume import FREE
from medusa_cl.scenarios.folder import folder_incremental
from medusa_cl.strategies import compose as verdicts
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.study import plan
from small_run import without_pictures

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING, DATA, RUNNING, RESUMING = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "docs/data.md", "docs/running.md", "docs/resuming.md")
)
COMMANDS = re.findall(r"^python -m medusa_cl\.run(.*)$", README, re.MULTILINE)
STUDIES = [command for command in COMMANDS if "mode=study" in command]  # each learns what the others do, many times


def section(title: str) -> tuple[dict[str, str], int]:
    """Return the code blocks of a section of CONTRIBUTING by language, and how many lines of code they have."""
    text = CONTRIBUTING.split(f"## {title}\n")[1].split("\n## ")[0]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
    return blocks, sum(len(block.splitlines()) for block in blocks.values())


def small(data: Path, *overrides: str) -> list[str]:
    return [
        "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8", "head.mix_width=8",
        "trainer.base_steps=1", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.threads=1", "tracking=off",
        "references=none", f"scenario.root={data}", *overrides,
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return fake_dense_hdf5(tmp_path / "kitchens.h5", {"train": 4, "test": 2})


def test_add_a_task_as_told() -> None:
    blocks, lines = section("Add a task")
    assert lines <= 15
    names: dict[str, object] = {}
    exec(compile(blocks["python"], "CONTRIBUTING.md", "exec"), names)
    task = names["inverse_depth"]
    assert (task.name, task.unit, task.higher_is_better) == ("inverse_depth", "1/m", False)  # type: ignore[attr-defined]


def written(folder: Path, title: str, module: str, yaml: str) -> None:
    blocks, lines = section(title)
    assert lines <= 15
    (folder / f"{module}.py").write_text(blocks["python"])
    (folder / yaml).parent.mkdir(parents=True)
    (folder / yaml).write_text(blocks["yaml"])
    sys.modules.pop(module, None)
    importlib.invalidate_caches()


def test_add_a_scenario_as_told(data: Path, tmp_path: Path) -> None:
    written(tmp_path, "Add a scenario", "kitchens", "conf/scenario/kitchens.yaml")
    summary = run_with(tmp_path / "conf", *small(data), "scenario=kitchens")
    assert (summary["scenario"], summary["base"], summary["stream"]) == ("kitchens", ["depth"], ["normals"])


def test_add_a_strategy_as_told(data: Path, tmp_path: Path) -> None:
    written(tmp_path, "Add a strategy", "halve_loss", "conf/plugins/halve_loss.yaml")
    arguments = (
        "scenario=nyud_incremental",
        "plugins=[halve_loss]",
        "scenario.base=[depth]",
        "scenario.stream=[normals]",
    )
    assert run_with(tmp_path / "conf", *small(data), *arguments)["strategy"] == "medusa+halve_loss"


def run_with(folder: Path, *overrides: str) -> dict[str, object]:
    """As --config-dir does it: the user's folder is searched besides ours."""
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        cfg = compose("config", [f"hydra.searchpath=[file://{folder}]", *overrides])
    return run(cfg)


TINY = [
    "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8", "trainer.base_steps=1",
    "trainer.max_steps=1", "trainer.batch_size=2", "trainer.threads=1", "tracking=off", "references=none",
]  # fmt: skip
TINY_ROOMS = [
    *TINY,
    *(f"scenario.{key}" for key in ("image_size=[32,64]", "train_size=4", "val_size=0", "test_size=2")),
]


def learnt(*overrides: str) -> dict[str, object]:
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        cfg = compose("config", list(overrides))
    return run(cfg, overrides)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in STUDIES])
def test_commands_of_the_readme_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, but for sizes; of a sweep the first combination."""
    without_pictures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments = [a for a in command.split("#")[0].split() if a != "-m"]
    check_overrides(arguments)
    single = [a.split(",")[0] if "[" not in a else a for a in arguments]
    if "base=last" in single:
        learnt(*TINY_ROOMS)
    if "resume=last" in single:
        learnt(*TINY_ROOMS)
    if "extend=last" in single:
        learnt(*TINY_ROOMS, "scenario.stream=[normals]")
        single = [*single, "tracking=off", "references=none"]
    on_disk = [a for a in single if re.match(r"scenario=(nyud|pascal|folder)|experiment=(nyud|pascal)", a)]
    if on_disk:
        write_nyud_pack(tmp_path / "data/NYUD_MT", "survey")
        write_pascal(tmp_path / "data")
        write_folder(tmp_path / "my_images")
    sizes = [] if {"extend=last", "resume=last"} & {*single} else TINY if on_disk else TINY_ROOMS
    summary = learnt(*single, *sizes)
    assert (Path(str(summary["run_dir"])) / "summary.json").is_file()


@pytest.mark.parametrize("command", STUDIES)
def test_studies_of_the_readme_are_planned(command: str) -> None:
    """As typed: its runs, and the configuration of the last; that studies are learnt is seen in tests of their own."""
    arguments = command.split("#")[0].split()
    check_overrides(arguments)
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        cfg = compose("config", arguments)
        held_out = [*cfg.scenario.base, *cfg.scenario.stream] if cfg.study.leave_one_out else ()
        planned = plan(cfg.study.members, cfg.study.seeds, cfg.study.orders, held_out)
        last = study_run._member_config(study_run._common(arguments), planned[-1])
    assert len(planned) == len({*planned}) >= 8
    assert last.seed == planned[-1].seed


def test_what_was_learnt_is_used_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that is no training, as typed, one after the other."""
    without_pictures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    learnt(*TINY_ROOMS, "scenario.stream=[normals]")  # a file is exported in a time that grows with its heads
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "green").save("photos/kitchen.jpg")
    commands = re.findall(r"^python -m medusa_cl\.(predict|export|heads|track) (.*)$", README, re.MULTILINE)
    assert {verb for verb, _ in commands} == {"predict", "export", "heads", "track"}
    for verb, rest in commands:
        arguments = shlex.split(rest.split("#")[0].split(">")[0])
        if arguments == ["ui"]:
            continue  # what it serves is looked at in a browser (make e2e)
        importlib.import_module(f"medusa_cl.{verb}").main(arguments)
    for place in ("predictions/kitchen.png", "model.onnx", "packs/normals/README.md", "models/robot/model.json"):
        assert Path(place).is_file()
    (run_dir,) = Path("runs/rooms_incremental").iterdir()
    again, before = load_model("models/robot").state_dict(), load_model(run_dir / "model").state_dict()
    assert all(torch.equal(again[key], value) for key, value in before.items())


def typed(text: str) -> list[list[str]]:
    lines = re.findall(r"^python -m medusa_cl\.prepare(.*)$", text, re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


def test_prepare_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_nyud_pack(tmp_path / "data/NYUD_MT", "survey")
    commands = [*typed(README), *typed(DATA)]
    assert len(commands) >= 4
    for arguments in commands:
        if "derive" in str(arguments):
            (tmp_path / "data/NYUD_MT.h5").unlink()
        prepare(arguments)
        assert "sha256" in capsys.readouterr().out


def test_the_folder_of_the_page_about_data(tmp_path: Path) -> None:
    (described,) = re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL)
    write_folder(tmp_path, tasks_yaml=described, splits=False)
    shutil.rmtree(tmp_path / "edges")  # which the page does not describe
    scenario = folder_incremental(root=str(tmp_path))
    assert scenario.groups == [("semseg",), ("depth",), ("normals",), ("temperature",)]


def test_keys_that_the_page_about_data_names_are_known() -> None:
    keys = [key for key in re.findall(r"`((?:scenario|trainer|experiment)[\w.=]*)", DATA) if "=" in key]
    assert len(keys) > 8
    for key in keys:
        check_overrides([f"{key}x" if key.endswith("=") else key])


def commands_of_the_page_about_running() -> list[list[str]]:
    joined = RUNNING.replace("\\\n", " ")
    lines = re.findall(r"^(?:srun )?(?:python|torchrun .*) -m medusa_cl\.run(.*)$", joined, re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


# What a test of a few seconds cannot have; launchers and processes that train together are in tests of their own.
NOT_HERE = ("trainer=gpu", "trainer=ddp", "trainer.compile=true", "tracking.uri=", "hydra/launcher=", "-m")
RUN_HERE = [a for a in commands_of_the_page_about_running() if not any(o.startswith(NOT_HERE) for o in a)]


def test_all_that_the_page_about_running_tells_to_type_is_known() -> None:
    commands = commands_of_the_page_about_running()
    assert len(commands) >= 12
    for arguments in commands:
        check_overrides(arguments)
    said = [a for arguments in commands for a in arguments]
    assert {"trainer=ddp", "hydra/launcher=joblib", "hydra/launcher=submitit_local"} <= set(said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", RUN_HERE, ids=" ".join)
def test_commands_of_the_page_about_running_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    summary = learnt(*arguments, *TINY_ROOMS, "scenario.stream=[normals]")
    assert (Path(str(summary["run_dir"])) / "summary.json").is_file()


def test_keys_that_the_page_about_running_names_are_known() -> None:
    named = re.findall(r"^\| `([\w.]+)` \|", RUNNING, re.MULTILINE)
    ours = [key for key in named if not key.startswith("hydra.")]
    assert len(ours) >= 10
    check_overrides([f"{key}=0" for key in ours])
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        defaults = compose("config")
    for key in ours:
        assert OmegaConf.select(defaults, key, default="none such") != "none such"
    # Those of a launcher are known to the launcher itself, with their default values.
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        slurm = compose("config", ["hydra/launcher=submitit_slurm"], return_hydra_config=True).hydra.launcher
    theirs = re.findall(r"hydra\.launcher(?=\.)((?:`?,? ?`?\.\w+)+)", RUNNING.split("## SLURM")[1])
    keys = {key for text in theirs for key in re.findall(r"\.(\w+)", text)}
    assert len(keys) >= 9
    assert keys <= set(slurm)


def test_links_of_the_page_about_running_lead_somewhere() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", RUNNING):
        assert (ROOT / "docs" / link).is_file(), link


def test_all_that_the_page_about_resuming_tells_to_type_is_known() -> None:
    lines = re.findall(r"^python -m medusa_cl\.run(.*)$", RESUMING, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        check_overrides(line.split("#")[0].split())
    assert set(re.findall(r"`(trainer\.\w+)`", RESUMING)) <= {key for key in FREE if key.startswith("trainer.")}
    targets = re.findall(r"`make (\w+)`", RESUMING)
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_the_script_of_the_page_about_resuming(tmp_path: Path, tiny_scenario: Any, tiny_model: Any) -> None:
    """The first lines run in the middle of a step's end, as they say, the others afterwards."""
    (script,) = re.findall(r"```python\n(.*?)```", RESUMING, re.DOTALL)
    first, rest = script.split("saved = ")
    whole = Medusa(model=tiny_model(), batch_size=4, max_steps=3, epochs=9)
    old = tiny_model(*tiny_scenario.train_stream[0].tasks.values())
    again = Medusa(model=old, batch_size=4, max_steps=3, epochs=9)
    names: dict[str, Any] = {
        "folder": tmp_path / "0001-x",
        "strategy": whole,
        "scenario": tiny_scenario,
        "again": again,
    }

    def save() -> None:
        if whole.experience.task_label == 1 and whole.steps_done == 2:
            exec(first, names)

    whole.train(tiny_scenario.train_stream[0], eval_streams=[])
    old.load_state_dict(whole.model.state_dict())
    whole.each_step = save
    whole.train(tiny_scenario.train_stream[1], eval_streams=[])
    exec(f"saved = {rest}", names)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_the_readme_names_commands() -> None:
    assert len(COMMANDS) >= 4
    for target in ("make demo", "make test"):
        assert target in README
    for picture in re.findall(r"\]\(((?!http)[^)#]+\.(?:png|webp))\)", README):
        assert (ROOT / picture).is_file()


def test_the_plain_avalanche_script_of_the_readme() -> None:
    """As written, but for sizes."""
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(script.splitlines()) <= 15
    for written, small in (
        ("train_size=400, test_size=100", "image_size=(32, 64), train_size=4, val_size=0, test_size=2"),
        ('"tf_efficientnet_lite0"', '"test_efficientnet", pretrained=False'),
        ("train_mb_size=8", "train_mb_size=4"),
        ("train_epochs=4", "train_epochs=1"),
    ):
        assert written in script
        script = script.replace(written, small)
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)
    results = names["strategy"].evaluator.metrics[0].results  # type: ignore[attr-defined]
    assert set(results) == {"semseg", "depth", "normals", "edges", "reshading"}


def test_what_composes_is_what_the_code_says() -> None:
    """The tables of the README and of docs/composition.md are printed by the one place that knows."""
    assert verdicts.short_table() in README
    assert verdicts.table() in (ROOT / "docs/composition.md").read_text(encoding="utf-8")
