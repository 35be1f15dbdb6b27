"""Runs that go on from finished ones, on miniature data: to the bit what one uninterrupted stream would have been."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open

import medusa_cl
from medusa_cl.errors import ConfigError, DataError, TaskError
from medusa_cl.job import run
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.strategies import compose
from medusa_cl.strategies.medusa import Medusa
from small_run import SMALL, config, miniature, small, without_pictures

TIMED = ("train_seconds", "images_per_second", "peak_memory_bytes")


@dataclass
class Home:
    """A working directory, the data, and the runs made there by name."""

    data: Path
    folder: Path

    def run(self, out: str, *overrides: str) -> dict[str, Any]:
        """Learn a stream on the miniature."""
        return run(small(self.data, f"out={out}", *self._quietly(overrides)))

    def extend(self, out: str, *overrides: str) -> dict[str, Any]:
        """Go on with a finished run, as the command line would."""
        given = [f"out={out}", "tracking=off", *self._quietly(overrides)]
        return run(config(*given), given)

    @staticmethod
    def _quietly(overrides: tuple[str, ...]) -> list[str]:
        return [*overrides] if any("references=" in o for o in overrides) else ["references=none", *overrides]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Where base, base + normals, and base + normals + edges were learnt, with and without a freeze."""
    folder = tmp_path_factory.mktemp("extend")
    made, before = Home(miniature(folder), folder), Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        patch.setattr("medusa_cl.job_references._single_task_seconds", lambda _: float("inf"))
        made.run("full", "references=auto")
        made.run("normals", "scenario.stream=[normals]")
        made.run("tuned-normals", "strategy=finetune", "scenario.stream=[normals]")
        yield made
    os.chdir(before)


@pytest.fixture(autouse=True)
def _there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.folder)


def summary(run_dir: str) -> dict[str, Any]:
    """What a run's summary says, but how long it took and where it came from."""
    found: dict[str, Any] = json.loads((Path(run_dir) / "summary.json").read_text(encoding="utf-8"))
    del found["stages"], found["provenance"]["base"]
    for key in TIMED:
        assert found["cost"].pop(key)
    return found


def files(run_dir: str) -> dict[str, Any]:
    """What is in the heads, the model and the matrix: for weights the notes and the bytes of each array."""
    root = Path(run_dir)
    found = [*(root / "heads").glob("*.safetensors"), *(root / "model").iterdir(), root / "task_matrix.csv"]
    return {str(p.relative_to(root)): _weights(p) if p.suffix == ".safetensors" else p.read_bytes() for p in found}


def _weights(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        return {key: (array.dtype, array.shape, array.tobytes()) for key, array in arrays.items()} | file.metadata()


def same(one: str, other: str) -> None:
    """Check that two runs came to the same, to the bit."""
    assert summary(one) == summary(other)
    assert files(one).keys() == files(other).keys()
    assert [name for name, content in files(one).items() if content != files(other)[name]] == []


# ---------------------------------------------------------------- extend, remove


def test_an_extended_run_is_the_uninterrupted_stream(home: Home) -> None:
    made = home.extend("extended", "extend=normals", "scenario.stream=[edges]", "references=auto")
    same("extended", "full")
    assert summary("full")["transfer"]["per_task"]["edges"]["gain"] is not None
    assert made["provenance"]["base"] == "normals/model"
    theirs = json.loads(Path("normals/summary.json").read_text(encoding="utf-8"))["cost"]["train_seconds"]
    seconds = made["cost"]["train_seconds"]
    assert list(seconds) == ["base", "normals", "edges"]
    assert {label: seconds[label] for label in theirs} == theirs, "what was learnt before took what it took"


def test_an_extended_run_can_be_extended(home: Home) -> None:
    home.run("base", "scenario.stream=[]")
    home.extend("once", "extend=base", "scenario.stream=[normals]")
    home.extend("twice", "extend=once", "scenario.stream=[edges]", "references=auto")
    same("once", "normals")
    same("twice", "full")


def test_a_trainable_backbone_goes_on_too(home: Home) -> None:
    home.run("tuned", "strategy=finetune", "base=null")
    home.extend("tuned-extended", "extend=tuned-normals", "scenario.stream=[edges]")
    same("tuned-extended", "tuned")
    assert len(set(summary("tuned")["matrix"]["values"]["depth"])) == 3, "the backbone was trained"
    short = json.loads(Path("tuned-normals/summary.json").read_text(encoding="utf-8"))
    base = short["provenance"]["base"]
    assert base.endswith("full/checkpoints/experience_0"), "a base is shared by what differs in the freeze alone"
    with pytest.raises(ConfigError, match=r"learnt with a trainable backbone.*strategy\.freeze=backbone"):
        home.extend("refused", "extend=tuned", "remove=[edges]")


def test_a_run_without_a_task_is_the_stream_that_never_had_it(home: Home) -> None:
    home.extend("without_edges", "extend=full", "remove=[edges]")
    same("without_edges", "normals")
    home.run("edges", "scenario.stream=[edges]")
    home.extend("without_normals", "extend=full", "remove=[normals]")
    same("without_normals", "edges")


def test_all_new_tasks_can_be_removed(home: Home) -> None:
    made = home.extend("bare", "extend=full", "remove=[normals,edges]")
    assert (made["base"], made["stream"]) == (["semseg", "depth"], [])
    assert {task: len(values) for task, values in made["matrix"]["values"].items()} == {"semseg": 1, "depth": 1}


def test_a_task_can_be_replaced(home: Home) -> None:
    """The same one in its place is the same run; with another head only that head differs."""
    home.extend("again", "extend=full", "remove=[edges]", "scenario.stream=[edges]", "references=auto")
    same("again", "full")
    home.extend("plain", "extend=full", "remove=[edges]", "scenario.stream=[edges]", "head=plain")
    heads = json.loads(Path("plain/model/model.json").read_text(encoding="utf-8"))["heads"]
    assert {task: entry["class"] for task, entry in heads.items()} == {
        "semseg": "MedusaHead", "depth": "MedusaHead", "normals": "MedusaHead", "edges": "PlainHead",
    }  # fmt: skip
    theirs, ours = files("full"), files("plain")
    different = {name for name in theirs if theirs[name] != ours[name]}
    heads_kept = {f"heads/{task}.safetensors" for task in ("semseg", "depth", "normals")}
    assert not different & heads_kept
    assert "heads/edges.safetensors" in different


def test_a_summary_that_was_changed_is_refused_and_can_be_made_anew(home: Home) -> None:
    shutil.copytree("normals", "changed")
    path, before = Path("changed/summary.json"), summary("changed")
    depth = str(before["matrix"]["values"]["depth"][0])
    for damaged in (path.read_text().replace(depth, "0.5"), path.read_text()[:-20]):
        path.write_text(damaged)
        said = r"changed/summary\.json is damaged, or was edited.*delete it and go on with the run by resume=changed"
        with pytest.raises(DataError, match=said):
            home.extend("refused", "extend=changed", "scenario.stream=[edges]")
        with pytest.raises(DataError, match=said):
            home.run("refused", "base=changed")
        with pytest.raises(DataError, match=said):
            run(config("resume=changed"), ["resume=changed"])
    path.unlink()
    run(config("resume=changed"), ["resume=changed"])
    assert summary("changed") == before


def test_new_heads_can_have_another_width_and_take_more_steps(home: Home) -> None:
    extension = ("extend=normals", "scenario.stream=[edges]", "head_width=16", "trainer.max_steps=1")
    made = home.extend("wide", *extension)
    heads = json.loads(Path("wide/model/model.json").read_text(encoding="utf-8"))["heads"]
    assert {task: entry["config"]["width"] for task, entry in heads.items()} == {
        "semseg": 8, "depth": 8, "normals": 8, "edges": 16,
    }  # fmt: skip
    assert made["matrix"]["values"]["edges"][-1] != summary("full")["matrix"]["values"]["edges"][-1]


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["extend=full", "strategy=finetune"], ConfigError, r'"strategy" cannot be set\. What can: remove, out'),
        (["extend=full", "seed=1"], ConfigError, '"seed" cannot be set'),
        (["extend=full", "scenario.base=[depth]"], ConfigError, r'"scenario\.base" cannot be set'),
        (["extend=full", "backbone.name=hrnet_w18"], ConfigError, r'"backbone\.name" cannot be set'),
        (["extend=full", "base=normals"], ConfigError, '"base" cannot be set'),
        (["extend=full", "+compare=[x]"], ConfigError, '"compare" cannot be set'),
        (["extend=full", "scenario.stream=[edges]"], TaskError, '"edges" would be learnt twice'),
        (["extend=full", "scenario.stream=[depth]"], TaskError, '"depth" would be learnt twice'),
        (["extend=full", "scenario.stream=[edge]"], TaskError, 'Unknown task "edge"'),
        (["extend=full", "remove=[depth]"], ConfigError, '"depth" is a base task'),
        (["extend=full", "remove=[edge]"], TaskError, 'Unknown task to remove "edge".*Did you mean "edges"'),
        (["extend=nowhere"], ConfigError, r"found no summary\.json in nowhere"),
    ],
)
def test_what_cannot_be_extended_is_said(home: Home, overrides: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        home.extend("refused", *overrides)
    assert not Path("refused").exists(), "a run that never began leaves nothing"


def test_the_last_run_under_runs_can_be_extended(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run under runs/ is finished yet"):
        home.extend("refused", "extend=last", "scenario.stream=[edges]")
    shutil.copytree(home.folder / "normals", "runs/nyud_incremental/medusa-0")
    home.extend("mine", "extend=last", "scenario.stream=[edges]")
    assert files("mine") == files(str(home.folder / "full"))


# ---------------------------------------------------------------- bases learnt before


def test_the_base_is_learnt_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    anew = home.run("anew", "base=null")
    assert "as learnt before" not in capsys.readouterr().out
    again = home.run("again-with-base")
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoints/experience_0 (base=null learns it anew)" in said
    same("again-with-base", "anew")
    assert anew["provenance"]["base"] is None
    assert str(again["provenance"]["base"]).endswith("full/checkpoints/experience_0")
    seconds = json.loads(Path("full/summary.json").read_text(encoding="utf-8"))["cost"]["train_seconds"]
    assert again["cost"]["train_seconds"]["base"] == seconds["base"]


def test_plugins_see_a_base_learnt_before(home: Home) -> None:
    """EWC takes its importances from it, replay its memory: the same run as one that learns the base itself."""
    tuned = ("strategy=finetune", "plugins=[ewc,replay]", "scenario.stream=[normals]")
    home.run("composed-anew", *tuned, "base=null")
    made = home.run("composed", *tuned)
    same("composed", "composed-anew")
    assert made["provenance"]["base"] is not None
    assert files("composed")["model/model.safetensors"] != files("tuned-normals")["model/model.safetensors"]


@pytest.mark.parametrize("strategy", ["adapters", "cumulative", "single_task"])
def test_baselines_go_on_too(home: Home, strategy: str) -> None:
    home.run(f"{strategy}-whole", f"strategy={strategy}", "base=null")
    home.run(f"{strategy}-part", f"strategy={strategy}", "scenario.stream=[normals]")
    home.extend(f"{strategy}-more", f"extend={strategy}-part", "scenario.stream=[edges]")
    same(f"{strategy}-more", f"{strategy}-whole")


@pytest.mark.parametrize(
    ("strategy", "published"), [("mtinet", ["head.tricks=false"]), ("padnet", ["head.tricks=false", "head.features=8"])]
)
def test_what_is_learnt_together_is_learnt_once(
    home: Home, strategy: str, published: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A coupled decoder, in its published form: the second run takes it from the first."""
    overrides = [f"strategy={strategy}", *published, "references=none", f"scenario.root={home.data}"]
    common = [o for o in SMALL if not o.startswith("head.")]
    for out in (strategy, f"{strategy}-again"):
        run(config(*common, *overrides, f"out={out}"))
    assert "as learnt before" in " ".join(capsys.readouterr().out.split())
    same(strategy, f"{strategy}-again")


def test_a_head_of_ones_own_is_learnt_anew_when_it_changes(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(home.folder))
    module = Path("own_heads.py")
    module.write_text("from medusa_cl.models import PlainHead\n\n\nclass OwnHead(PlainHead):\n    pass\n")
    said = []
    for out in ("own", "own-again", "own-changed"):
        if out == "own-changed":
            module.write_text(module.read_text() + "\n\nCHANGED = True\n")
        home.run(out, "head=plain", "head._target_=own_heads.OwnHead")
        said.append("as learnt before" in " ".join(capsys.readouterr().out.split()))
    assert said == [False, True, False]
    assert files("own") == files("own-again")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=single_task"], "uses the backbone as it comes"),
        (["strategy=frozen_imagenet"], "uses the backbone as it comes"),
    ],
)
def test_a_base_is_refused_by_what_uses_the_backbone_as_it_comes(home: Home, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        home.run("none", "base=full", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=joint", "scenario.order=listed"], "strategy=joint learns all tasks together"),
        (["strategy=mtinet", "head=plain"], "strategy=mtinet needs head=mtinet"),
        (["strategy=cumulative", "strategy.freeze=backbone"], "trains everything on everything"),
        (["trainer.max_steps=abc"], "Expected a whole number"),
    ],
)
def test_what_does_not_go_together_is_said(home: Home, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        home.run("none", *overrides)


def test_a_model_can_be_named_by_one_of_its_files(home: Home) -> None:
    made = home.run("by-file", "base=full/checkpoints/experience_0/model.safetensors")
    assert files("by-file") == files("full")
    assert made["provenance"]["base"] == "full/checkpoints/experience_0"


@pytest.mark.parametrize(
    "other",
    [
        ["seed=1"],
        ["head=plain"],
        ["scenario.base=[depth]"],
        ["strategy=finetune", "plugins=[si]"],
        ["scenario.val_fraction=0.25", "plugins=[early_stopping]"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_another_base_is_learnt_anew(home: Home, other: list[str]) -> None:
    alone = other[-1].startswith("plugins")  # what acts on the base shares it with nobody
    for number in range(1 + alone):
        made = home.run(f"{other[-1].split('=')[0]}-{number}", "overwrite=true", *other, "scenario.stream=[]")
        assert made["provenance"]["base"] is None


def test_what_the_freeze_does_to_the_base_itself_is_not_shared(home: Home) -> None:
    """With freeze_from=0 the freeze acts while the base is learnt."""
    bits = []
    for number, freeze in enumerate(("backbone", "none", "backbone")):
        made = home.run(
            f"frozen-{number}", "strategy=frozen_imagenet", f"strategy.freeze={freeze}", "scenario.stream=[]"
        )
        assert (made["provenance"]["base"] is None) == (number < 2)
        bits.append(files(f"frozen-{number}")["model/model.safetensors"])
    assert bits[0] == bits[2] != bits[1]


NAMES = sorted(path.stem for path in (Path(medusa_cl.__file__).parent / "configs" / "plugins").glob("*.yaml"))


def plugins(name: str) -> list[Any]:
    """What plugins=[name] makes."""
    return [instantiate(plugin) for plugin in config(f"plugins=[{name}]").plugins.values()]


IDLE = [name for name in NAMES if all(map(compose.idle_at_first, plugins(name)))]


Learn = Callable[[list[Any]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def learn_base(tiny_model: Callable[..., MultiTaskModel], tiny_scenario: DenseScenario) -> Learn:
    """`(plugins) -> the weights after the base`."""

    def learn(composed: list[Any]) -> dict[str, torch.Tensor]:
        options = {"freeze": "none", "freeze_old_heads": False, "batch_size": 4, "max_steps": 5, "epochs": 9}
        strategy = Medusa(model=tiny_model(), plugins=composed, **options)
        strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
        return {key: value.clone() for key, value in strategy.model.state_dict().items()}

    return learn


@pytest.fixture(scope="module")
def base_without_plugins(learn_base: Learn) -> dict[str, torch.Tensor]:
    return learn_base([])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IDLE)
def test_plugins_that_share_a_base_do_nothing_to_it(
    name: str, learn_base: Learn, base_without_plugins: dict[str, torch.Tensor]
) -> None:
    state = learn_base(plugins(name))
    assert [key for key, value in base_without_plugins.items() if not torch.equal(value, state[key])] == []


def test_some_plugins_share_a_base() -> None:
    assert {"ewc", "replay", "lwf", "der"} <= set(IDLE)
    assert not {"si", "rwalk", "early_stopping"} & set(IDLE)


@pytest.mark.parametrize("plugin", ["si", "rwalk"])
def test_what_lives_on_steps_cannot_follow(home: Home, plugin: str) -> None:
    said = r"cannot follow tasks that were loaded\. Train from the start"
    with pytest.raises(ConfigError, match=said):
        home.run("refused", "strategy=finetune", f"plugins=[{plugin}]", "base=full")
    shutil.copytree("tuned-normals", f"with-{plugin}")
    theirs = OmegaConf.load(f"with-{plugin}/config.yaml")
    theirs.plugins = config(f"plugins=[{plugin}]").plugins
    OmegaConf.save(theirs, f"with-{plugin}/config.yaml")
    with pytest.raises(ConfigError, match=said):
        home.extend("refused", f"extend=with-{plugin}", "scenario.stream=[edges]")
    assert not Path("refused").exists()
