"""Heads as files: what is added, merged, packed or fetched answers to the bit as where it was learnt, or is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medusa_cl import heads, kept, predict, rundir, tasks
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.data import download
from medusa_cl.deploy import packs
from medusa_cl.deploy.graphs import published_licence
from medusa_cl.deploy.predictor import Predictor, training_size
from medusa_cl.errors import ConfigError, DataError, TaskError, WeightsError
from medusa_cl.job import run
from medusa_cl.models import AdaptedHead, Backbone, LinearHead, MedusaHead, MultiTaskModel, OwnNetHead, PlainHead
from medusa_cl.models.coupled import CoupledModel, MTINet, PADNet
from medusa_cl.models.multitask import FILE_FORMAT, WITHOUT_HASH, _hash_of, describe_head
from medusa_cl.trained import find
from small_run import miniature, small, without_pictures

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "heads.md").read_text(encoding="utf-8")
FULL, NORMALS, EDGES = "runs/nyud/full-0", "runs/nyud/normals-0", "runs/nyud/edges-0"
IMAGE = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
INNER = partial(MedusaHead, width=8, mix_width=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with three runs: base + normals + edges, and each of the two alone after the same base."""
    folder, before = tmp_path_factory.mktemp("heads"), Path.cwd()
    data = miniature(folder)
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        run(small(data, f"out={FULL}", "references=none"))
        run(small(data, f"out={NORMALS}", "references=none", "scenario.stream=[normals]"))
        run(small(data, f"out={EDGES}", "references=none", "scenario.stream=[edges]"))
        yield folder
    os.chdir(before)


@pytest.fixture
def there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own in which the runs are too."""
    (tmp_path / "runs").symlink_to(home / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "cache"))
    return tmp_path


Tiny = Callable[..., MultiTaskModel]


def moved(model: MultiTaskModel, seed: int = 5) -> MultiTaskModel:
    """The model with heads and statistics that no initialisation gives; the backbone stays."""
    draw = torch.Generator().manual_seed(seed)
    for value in model.heads.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=draw) * 0.05)
    return model.eval()


def same_answers(model: MultiTaskModel, other: MultiTaskModel, names: dict[str, str]) -> bool:
    """Whether tasks of one model, by the name that they have in the other, answer to the bit alike."""
    ours, theirs = model.predict(IMAGE), other.predict(IMAGE)
    return all(torch.equal(ours[mine], theirs[its]) for mine, its in names.items())


def alike(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def content(folder: Path | str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def weights(path: Path | str) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as file:
        arrays = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118 - it is no dict
        return arrays | file.metadata()


# ---------------------------------------------------------------- merge


def test_tasks_learnt_apart_and_merged_are_the_stream(there: Path) -> None:
    heads.main(["merge", f"runs=[{NORMALS},{EDGES}]", "out=models/both"])
    for name in ("model.json", "model.safetensors"):
        assert Path("models/both", name).read_bytes() == Path(FULL, "model", name).read_bytes()
    for name in ("semseg", "depth", "normals", "edges"):
        assert weights(f"models/both/heads/{name}.safetensors") == weights(f"{FULL}/heads/{name}.safetensors")
    merged, stream = load_model("models/both"), find(FULL).load()
    assert list(merged.tasks) == list(stream.tasks) == ["semseg", "depth", "normals", "edges"]
    state = stream.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in merged.state_dict().items())
    assert same_answers(merged, stream, alike(*stream.tasks))
    assert sorted(p.name for p in Path("models").iterdir()) == ["both"]


def test_tasks_come_in_the_order_of_the_runs(there: Path) -> None:
    assert list(heads.merge([EDGES, NORMALS]).tasks) == ["semseg", "depth", "edges", "normals"]
    assert list(heads.merge([EDGES, FULL]).tasks) == ["semseg", "depth", "edges", "normals"]


def test_different_heads_of_one_name_are_not_merged(there: Path, tiny_model: Tiny) -> None:
    one = save_model(moved(tiny_model("depth", "normals")), "one")
    two = save_model(moved(tiny_model("depth"), seed=6), "two")
    with pytest.raises(TaskError, match=r'"depth" of one and "depth" of two differ in their weights.*as=depth_2'):
        heads.merge([one, two])
    kind = save_model(tiny_model("depth", head=partial(PlainHead, mix_width=8)), "kind")
    with pytest.raises(TaskError, match="differ in their kinds of heads"):
        heads.merge([one, kind])
    described = save_model(moved(tiny_model(tasks.depth(loss_weight=3.0))), "described")
    with pytest.raises(TaskError, match="differ in their descriptions"):
        heads.merge([one, described])


def test_the_way_out_that_the_message_tells_works(there: Path, tiny_model: Tiny, capsys: Any) -> None:
    model, other = moved(tiny_model("depth")), moved(tiny_model("depth", "edges"), seed=6)
    heads.save(model, "one")
    heads.save(other, "two")
    with pytest.raises(TaskError) as caught:
        heads.merge(["one", "two"])
    take, add = re.findall(r"python -m medusa_cl\.heads (.*?)\)", str(caught.value))
    heads.main(take.replace("DIR", "rest").split())
    heads.main(["merge", "runs=[one,rest]", "out=MERGED"])
    heads.main(add.split())
    found = load_model("MERGED")
    assert list(found.tasks) == ["depth", "edges", "depth_2"]
    assert same_answers(found, model, alike("depth"))
    assert same_answers(found, other, {"edges": "edges", "depth_2": "depth"})


def test_other_backbones_and_single_models_are_not_merged(there: Path, tiny_model: Tiny) -> None:
    save_model(tiny_model("edges", weights_seed=9), "other")
    with pytest.raises(WeightsError, match=r"has backbone test_efficientnet with weights \w{12}, but other has"):
        heads.merge([FULL, "other"])
    with pytest.raises(ConfigError, match="at least two"):
        heads.merge([FULL])


def test_another_precision_is_told(there: Path, tiny_model: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tiny_model("depth"), "full")
    half = tiny_model("edges", precision="bf16")
    save_model(half, "half")
    assert heads.merge(["full", "half"]).precision == "32"
    half.save_head("edges", "edges.safetensors")
    heads.add(["edges.safetensors"], "full")
    assert ["bf16" in record.getMessage() for record in caplog.records] == [True, True]


def test_heads_with_parts_of_the_network_of_their_own(there: Path, tiny_model: Tiny) -> None:
    """Those of strategy=adapters and strategy=single_task; the shared backbone is the same."""
    model = tiny_model("depth")
    model.freeze_backbone()
    model.add_head(tasks.normals(), seed=1, head=partial(AdaptedHead, head=INNER, kind="lora", rank=2))
    model.add_head(tasks.edges(), seed=1, head=partial(AdaptedHead, head=PlainHead, kind="residual"))
    heads.save(moved(model), "adapted")
    own = tiny_model()
    own.add_head(tasks.reshading(), seed=1, head=partial(OwnNetHead, head=INNER))
    own.add_head(tasks.saliency(), seed=1, head=partial(OwnNetHead, head=LinearHead))
    heads.save(moved(own, seed=6), "own")
    merged = load_model(heads.save(heads.merge(["adapted", "own"]), "merged"))
    assert same_answers(merged, model, alike("depth", "normals", "edges"))
    assert same_answers(merged, own, alike("reshading", "saliency"))
    for name, whole in (("normals", model), ("reshading", own)):
        packs.pack("merged", name, f"pack-{name}", "MIT", backbone=True)
        assert same_answers(heads.add([f"pack-{name}"]), whole, alike(name))
    rows = {row.task: row for row in heads.listed(["merged"])}
    assert rows["normals"].parameters == model.parameters_of("normals")
    assert rows["reshading"].parameters == own.parameters_of("reshading")


@pytest.mark.parametrize(
    "decoder", [partial(PADNet, features=8, width=4), partial(MTINet, width=4)], ids=["PAD", "MTI"]
)
def test_coupled_decoders_are_listed_and_else_refused_with_the_reason(
    there: Path, tiny_model: Tiny, decoder: Any
) -> None:
    model = CoupledModel(tiny_model().backbone, decoder)
    model.add_heads([tasks.depth(), tasks.normals()], seed=1)
    save_model(model, "coupled")
    heads.save(tiny_model("edges"), "plain")
    rows = heads.listed(["coupled"])
    assert [(row.task, row.head, row.parameters) for row in rows] == [
        ("depth", decoder.func.__name__, None),
        ("normals", decoder.func.__name__, None),
    ]
    refused: list[Callable[[], object]] = [
        lambda: heads.merge(["coupled", "plain"]),
        lambda: heads.merge(["plain", "coupled"]),
        lambda: heads.remove("coupled", ["depth"]),
        lambda: heads.add(["plain/heads/edges.safetensors"], "coupled"),
        lambda: heads.pack("coupled", "depth", "pack", "MIT"),
    ]
    for call in refused:
        with pytest.raises(TaskError, match=r"coupled has no heads: a decoder couples all of its tasks"):
            call()
    with pytest.raises(TaskError, match="coupled decoder"):
        heads.save(model, "saved")
    assert sorted(p.name for p in there.iterdir()) == ["coupled", "plain", "runs"]


# ---------------------------------------------------------------- add, remove


def test_an_added_head_answers_as_where_it_was_learnt(there: Path) -> None:
    heads.main(["add", f"run={NORMALS}", f"head={EDGES}/heads/edges.safetensors", "out=more"])
    more, normals, edges = load_model("more"), find(NORMALS).load(), find(EDGES).load()
    assert same_answers(more, normals, alike("semseg", "depth", "normals"))
    assert same_answers(more, edges, alike("edges"))
    assert find("more").run is None and sorted(p.name for p in Path("more/heads").iterdir()) == [
        "depth.safetensors", "edges.safetensors", "normals.safetensors", "semseg.safetensors",
    ]  # fmt: skip


def predicted(run: str, out: str, *options: str) -> dict[str, bytes]:
    predict.main([f"run={run}", "images=photo.png", f"out={out}", "tasks=[edges]", *options])
    return {name: data for name, data in content(out).items() if name.endswith(".npz")}


def test_a_changed_model_sees_photographs_as_the_run_did(there: Path) -> None:
    noise = torch.randint(0, 256, (150, 210, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save("photo.png")
    expected = predicted(FULL, "run")
    assert expected != predicted(FULL, "own", "size=own")
    heads.main(["remove", f"run={FULL}", "tasks=[normals]", "out=fewer"])
    heads.main(["add", f"run={NORMALS}", f"head={FULL}/heads/edges.safetensors", "out=more"])
    packs.pack(FULL, "edges", "pack", "MIT", backbone=True)
    heads.main(["add", "head=pack", "out=fresh"])
    heads.main(["merge", "runs=[fresh,fewer]", "out=merged"])
    size = json.loads(Path(FULL, "model/model.json").read_text())["image_size"]
    for name in ("fewer", "more", "fresh", "merged"):
        assert predicted(name, f"of-{name}") == expected
        assert training_size(find(name)) == tuple(size) == describe_head(f"{name}/heads/edges.safetensors").image_size


def test_models_of_an_earlier_version_get_their_size_of_their_run(
    there: Path, tiny_model: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(FULL, "old")
    model = find("old").load()
    model.image_size = None
    heads.save(model, "sizeless")
    for name in ("model.json", "model.safetensors"):
        shutil.copy(f"sizeless/{name}", f"old/model/{name}")
    shutil.copy("sizeless/heads/edges.safetensors", "old/heads/edges.safetensors")
    assert "image_size" not in json.loads(Path("old/model/model.json").read_text())
    size = training_size(find(FULL))
    assert size is not None and heads.remove("old", ["depth"]).image_size is None  # its images kept their own size
    configured = Path("old/config.yaml").read_text()
    assert "  image_size: null\n" in configured
    Path("old/config.yaml").write_text(configured.replace("  image_size: null\n", f"  image_size: {list(size)}\n"))
    assert heads.remove("old", ["depth"]).image_size == heads.merge(["old", FULL]).image_size == size
    assert heads.add(["old/heads/edges.safetensors"], "sizeless", ["e"]).image_size == size
    assert Predictor("sizeless").longest is None
    assert "seen at their own size. Give size= the pixels" in caplog.text
    model.image_size = (512, 512)
    heads.save(model, "large")
    caplog.clear()
    assert heads.merge([FULL, "large"]).image_size == size
    assert "large was learnt on images of 512x512" in caplog.text


def test_two_that_change_one_model_at_once_both_do(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads.save(find(NORMALS).load(), "model")
    reading, write = threading.Event(), heads._put

    def slow(*given: Any) -> Path:
        reading.set()
        finished.wait(1)  # so long the second has to read the model before the first has written it
        return write(*given)

    def add(name: str, put: Any) -> None:
        monkeypatch.setattr(heads, "_put", put)
        heads.main(["add", "run=model", f"head={EDGES}/heads/edges.safetensors", f"as={name}"])

    finished, first = threading.Event(), threading.Thread(target=add, args=("first", slow))
    first.start()
    assert reading.wait(60)
    add("second", write)
    finished.set()
    first.join()
    assert {"first", "second"} < {*load_model("model").tasks}
    lock = rundir.locked(Path("model/.lock"), "")
    monkeypatch.setattr(heads, "PATIENCE", 0.0)
    with pytest.raises(ConfigError, match="model is being changed by another process"):
        heads.main(["remove", "run=model", "tasks=[first]"])
    lock.release()


def test_what_cannot_be_written_is_refused_before_models_are_read(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "with_heads", None)
    monkeypatch.setattr(heads, "with_heads", None)
    monkeypatch.setattr(heads, "fetch", None)
    Path("file").touch()
    for verb in (
        ["merge", f"runs=[{NORMALS},{EDGES}]"], ["remove", f"run={FULL}", "tasks=[depth]"],
        ["add", f"run={FULL}", "head=x"], ["pack", f"run={FULL}", "task=depth", "licence=MIT"],
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"^\. is there already"):
            heads.main([*verb, "out=."])
    with pytest.raises(ConfigError, match="Expected out=DIR"):
        heads.main(["add", "head=https://example.org/pack"])
    monkeypatch.undo()


def test_the_folder_one_is_in_can_be_filled(there: Path, tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    heads.save(tiny_model("depth"), ".")
    assert list(load_model(there / "empty").tasks) == ["depth"]


def test_a_model_by_itself_is_changed_in_place(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(find(NORMALS).load(), "model")
    heads.main(
        ["add", "run=model", f"head=[{EDGES}/heads/edges.safetensors,{FULL}/heads/depth.safetensors]", "as=[e,d]"]
    )
    changed = load_model("model")
    assert list(changed.tasks) == ["semseg", "depth", "normals", "e", "d"]
    assert same_answers(changed, find(EDGES).load(), {"e": "edges", "d": "depth"})
    assert "run=model" in capsys.readouterr().out
    heads.main(["remove", "run=model", "tasks=[depth,e]"])
    assert list(load_model("model").tasks) == ["semseg", "normals", "d"]
    assert sorted(p.stem for p in Path("model/heads").iterdir()) == ["d", "normals", "semseg"]
    assert same_answers(load_model("model"), find(NORMALS).load(), {**alike("semseg", "normals"), "d": "depth"})


@pytest.mark.parametrize("place", [FULL, f"{FULL}/model", f"{FULL}/checkpoints/experience_0"])
def test_a_run_is_never_changed(there: Path, place: str) -> None:
    before = content(FULL)
    for arguments in (["add", f"head={NORMALS}/heads/normals.safetensors", "as=n"], ["remove", "tasks=[depth]"]):
        with pytest.raises(ConfigError, match=r"is never changed.*out=DIR"):
            heads.main([*arguments, f"run={place}"])
    heads.main(["remove", "tasks=[depth]", f"run={place}", "out=made"])
    assert content(FULL) == before
    assert "depth" not in load_model("made").tasks


def test_nothing_is_left_of_what_failed(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, name: str, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MultiTaskModel, "save_head", full)
    with pytest.raises(DataError, match="the disk is full"):
        heads.main(["remove", f"run={FULL}", "tasks=[depth]", "out=deep/made"])
    assert [p for p in Path("deep").iterdir()] == []
    Path("taken").mkdir()
    Path("taken/file").touch()
    with pytest.raises(ConfigError, match="taken is there already"):
        heads.main(["remove", f"run={FULL}", "tasks=[depth]", "out=taken"])


def test_what_cannot_be_added(there: Path, tiny_model: Tiny) -> None:
    file = f"{FULL}/heads/edges.safetensors"
    with pytest.raises(TaskError, match=r'has a task "edges" already.*as=edges_2'):
        heads.add([file], EDGES)
    with pytest.raises(TaskError, match=r'has a task "x" already'):
        heads.add([file, f"{FULL}/heads/depth.safetensors"], NORMALS, ["x", "x"])
    with pytest.raises(ConfigError, match="as many names as head= has heads, 1, but got 2"):
        heads.add([file], NORMALS, ["x", "y"])
    with pytest.raises(TaskError, match=r"Expected a task.s name without"):
        heads.add([file], NORMALS, ["../x"])
    save_model(tiny_model("depth", weights_seed=9), "other")
    here = describe_head(file).backbone_hash[:12]
    with pytest.raises(WeightsError, match=rf"learnt on backbone test_efficientnet with weights {here}, but this is"):
        heads.add([file], "other")
    with pytest.raises(ConfigError, match="To take all heads of a run, use heads merge"):
        heads.add([NORMALS], EDGES)
    with pytest.raises(ConfigError, match=r"Expected head= the file of a head .* but got none\.safetensors"):
        heads.add(["none.safetensors"], EDGES)
    with pytest.raises(ConfigError, match=r"Expected run= a model to add .*backbone=true"):
        heads.add([file])


def test_what_cannot_be_removed(there: Path) -> None:
    with pytest.raises(TaskError, match=r'Unknown task "edge".*Did you mean "edges"'):
        heads.remove(FULL, ["edge"])
    with pytest.raises(ConfigError, match="Nothing would be left"):
        heads.remove(FULL, ["semseg", "depth", "normals", "edges"])


WETNESS = dataclasses.replace(tasks.depth(name="wetness"), kind="wetness", unit="%")


def test_tasks_of_ones_own_are_for_python(there: Path, tiny_model: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = moved(tiny_model("depth", WETNESS))
    own = {"wetness": WETNESS}
    heads.save(model, "wet")
    heads.save(moved(tiny_model("edges")), "plain")
    heads.main(["list", "run=wet", "head=wet/heads/wetness.safetensors"])
    assert capsys.readouterr().out.count("wetness") >= 3
    with pytest.raises(TaskError, match='Unknown kind of task "wetness"') as caught:
        heads.main(["add", "run=plain", "head=wet/heads/wetness.safetensors"])
    assert "heads.add([...], tasks={'wetness': task})" in caught.value.__notes__[0]
    added = heads.add(["wet/heads/wetness.safetensors"], "plain", tasks=own)
    assert same_answers(added, model, alike("wetness"))
    assert added.tasks["wetness"].unit == "%"
    renamed = heads.add(["wet/heads/wetness.safetensors"], "plain", ["damp"], tasks=own)
    assert same_answers(renamed, model, {"damp": "wetness"})
    assert list(heads.merge(["plain", "wet"], tasks=own).tasks) == ["edges", "depth", "wetness"]
    assert list(heads.remove("wet", ["depth"], tasks=own).tasks) == ["wetness"]
    packs.pack("wet", "wetness", "pack", "MIT", tasks=own)
    assert "a task of its author's own (kind wetness, 1 channels)" in Path("pack/README.md").read_text()
    assert same_answers(heads.add(["pack"], "plain", tasks=own), model, alike("wetness"))


# ---------------------------------------------------------------- files, list


def test_a_list_says_what_is_known_of_each_head(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads.main(["list", f"run={FULL}", "format=json"])
    rows = json.loads(capsys.readouterr().out)
    summary, model = json.loads(Path(FULL, "summary.json").read_text()), find(FULL).load()
    assert [row["task"] for row in rows] == ["semseg", "depth", "normals", "edges"]
    for row in rows:
        values = [value for value in summary["matrix"]["values"][row["task"]] if value is not None]
        assert (row["learnt"], row["now"]) == (values[0], values[-1])
        assert row["parameters"] == summary["cost"]["params_added"][row["task"]] == model.parameters_of(row["task"])
        assert row["backbone_hash"] == model.backbone.weights_hash()
        assert (row["data"], row["head"]) == ("nyud_incremental", "MedusaHead")
        state = model.heads[row["task"]].state_dict()
        assert row["size"] == sum(value.numel() * value.element_size() for value in state.values())
    assert [row["unit"] for row in rows] == ["%", "m", "deg", "%"]
    heads.main(["list", f"run=[{FULL},{NORMALS}]", f"head={EDGES}/heads/edges.safetensors"])
    shown = capsys.readouterr().out
    assert shown.count("\n\n") == 2
    assert f"{rows[1]['learnt']:.4g} m" in shown and rows[0]["backbone_hash"][:12] in shown


def test_a_file_of_the_earlier_format_is_described_and_added(
    there: Path, tiny_model: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model = moved(tiny_model("depth"))
    model.save_head("depth", "new.safetensors")
    told = {k: v for k, v in weights("new.safetensors").items() if k in ("task", "head", "backbone")}
    save_file(load_file("new.safetensors"), "old.safetensors", told | {"format": WITHOUT_HASH})
    old, new = describe_head("old.safetensors"), describe_head("new.safetensors")
    assert (old.format, old.precision, new.format, new.precision) == (WITHOUT_HASH, None, FILE_FORMAT, "32")
    assert (old.task, old.head, old.backbone_hash) == (new.task, new.head, model.backbone.weights_hash())
    assert old.parameters == new.parameters == model.parameters_of("depth")
    assert "has no hash" in caplog.text
    save_model(tiny_model("edges"), "plain")
    assert same_answers(heads.add(["old.safetensors"], "plain"), model, alike("depth"))


@pytest.mark.parametrize("key", ["task", "head", "backbone"])
@pytest.mark.parametrize("value", ["[]", "3", "{}", '{"name": 3, "kind": 3, "class": 3, "hash": 3}', "[[[", '"x"'])
def test_a_file_that_describes_nothing_is_no_head(there: Path, tiny_model: Tiny, key: str, value: str) -> None:
    tiny_model("depth").save_head("depth", "head.safetensors")
    told = {k: v for k, v in weights("head.safetensors").items() if k in ("task", "head", "backbone")}
    save_file({"x": torch.zeros(1)}, "head.safetensors", told | {"format": WITHOUT_HASH, key: value})
    with pytest.raises(WeightsError, match=r"head\.safetensors does not describe a head"):
        describe_head("head.safetensors")


# ---------------------------------------------------------------- packs


def packed(out: str = "pack", task: str = "normals", **options: Any) -> Path:
    return packs.pack(NORMALS, task, out, "CC-BY-4.0", **options)


def test_a_pack_says_all_that_the_run_knows(there: Path) -> None:
    shutil.copytree(NORMALS, "run")
    summary = json.loads(Path("run/summary.json").read_text())
    summary["transfer"]["reference_values"] = {"frozen_plain": {"normals": 30.5, "depth": 1.0}, "other": {"depth": 2.0}}
    summary["matrix"]["values"]["normals"] = [None, 20.25, 21.5]
    summary["labels"] = {"normals": "from depth"}
    kept.write_summary(Path("run"), json.dumps(summary))
    Path("run/panels").mkdir(exist_ok=True)
    for name in ("normals-02", "normals-03", "normals-x-09", "depth-09"):
        Path(f"run/panels/{name}.png").write_text(name)
    packs.pack("run", "normals", "pack", "CC-BY-4.0", author="Ada")
    rows = [row for row in heads.listed(["run"], ["pack"]) if row.task == "normals"]
    assert [(row.learnt, row.now, row.data) for row in rows] == [(20.25, 21.5, "nyud_incremental")] * 2
    said = json.loads(Path("pack/pack.json").read_text())
    model = find(NORMALS).load()
    assert said["metrics"] == {
        "metric": "mean", "unit": "deg", "higher_is_better": False, "split": "test",
        "value": 21.5, "just_learnt": 20.25, "references": {"frozen_plain": 30.5},
    }  # fmt: skip
    text = Path("pack/README.md").read_text()
    for line in (
        "| | mean, deg (lower is better) |", "| **this head** | 21.5 |", "| reference `frozen_plain` | 30.5 |",
        "| this head, before later tasks were learnt | 20.25 |", "On the test split. Its labels: from depth.",
        "| learnt | after semseg, depth; at most 3 steps of 4 images, seed 0 |",
    ):  # fmt: skip
        assert line in text
    assert (said["licence"], said["author"], said["task"]["kind"]) == ("CC-BY-4.0", "Ada", "normals")
    assert said["backbone"] == {"name": "test_efficientnet", "hash": model.backbone.weights_hash()}
    assert said["learnt"]["data_hash"] == summary["provenance"]["data_hash"]
    assert said["learnt"]["trainer"] == {
        "base_steps": 3, "max_steps": 3, "epochs": 100, "batch_size": 4, "lr_head": 2e-3, "lr_backbone": 1e-3,
    }  # fmt: skip
    assert said["parameters"] == model.parameters_of("normals")
    assert set(said["files"]) == {"head.safetensors", "README.md", "panel.png"}
    for name, entry in said["files"].items():
        path = Path("pack", name)
        command = ["sha256sum", str(path)]
        assert entry["sha256"] == subprocess.run(command, capture_output=True, text=True).stdout.split()[0]
        assert entry["size"] == path.stat().st_size
    assert Path("pack/panel.png").read_text() == "normals-03"
    assert weights("pack/head.safetensors") == weights(f"{NORMALS}/heads/normals.safetensors")
    packs.pack("run", "normals", "bare", "MIT", picture=False)
    assert sorted(p.name for p in Path("bare").iterdir()) == ["README.md", "head.safetensors", "pack.json"]


def test_hubs_can_read_the_card_and_people_use_it(there: Path) -> None:
    packed(author="Ada", backbone=True)
    text = Path("pack/README.md").read_text()
    found = ModelCard(text).data
    said = found.to_dict()
    value = json.loads(Path("pack/pack.json").read_text())["metrics"]["value"]
    assert (said["license"], said["library_name"]) == ("cc-by-4.0", "medusa_cl")
    assert said["pipeline_tag"] == "image-to-image"
    (result,) = found.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("mean", value, "test")
    assert found.datasets == ["nyud"] and {"normals", "test_efficientnet"} <= {*found.tags}
    assert f"| **this head** | {value:.4g} |" in text and "x right, y down, z forward" in text
    add, predict = re.findall(r"^python -m medusa_cl\.(.*)$", text, re.MULTILINE)
    heads.main(add.replace("PACK", "pack").split()[1:])
    folder = re.findall(r"run=(\S+)", predict)[0]
    assert same_answers(find(folder).load(), find(NORMALS).load(), alike("normals"))
    kind = yaml.safe_load(Path(packed("depth", "depth"), "README.md").read_text().split("---\n")[1])["pipeline_tag"]
    assert kind == "depth-estimation"


@pytest.mark.parametrize("kind", tasks.BUILT_IN)
def test_a_card_can_be_written_for_every_kind_of_task(kind: str) -> None:
    from medusa_cl.deploy.cards import predicts

    said = predicts(tasks.BUILT_IN[kind]().describe())
    assert "H W" in said and "author" not in said


def test_a_model_without_its_run_has_no_numbers_to_tell(there: Path, tiny_model: Tiny) -> None:
    save_model(tiny_model("depth"), "model")
    packs.pack("model", "depth", "pack", "LicenseRef-Internal")
    said = json.loads(Path("pack/pack.json").read_text())
    assert said["metrics"] is None and said["learnt"] is None
    front = yaml.safe_load(Path("pack/README.md").read_text().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "licenseref-internal")
    assert "model-index" not in front
    assert [row.now for row in heads.listed((), ["pack"])] == [None]


def test_what_cannot_be_packed(there: Path) -> None:
    with pytest.raises(ConfigError, match="Expected licence=ID"):
        heads.main(["pack", f"run={FULL}", "task=depth", "out=pack"])
    with pytest.raises(ConfigError, match="an SPDX identifier"):
        packs.pack(FULL, "depth", "pack", "do what you want")
    with pytest.raises(TaskError, match='Unknown task "dept"'):
        packs.pack(FULL, "dept", "pack", "MIT")
    assert not Path("pack").exists()


def test_a_stranger_needs_nothing_but_the_pack(there: Path) -> None:
    packed("normals", backbone=True)
    packs.pack(EDGES, "edges", "edges", "MIT")
    heads.main(["add", "head=[normals,edges]", "out=model"])
    model = load_model("model")
    assert same_answers(model, find(NORMALS).load(), alike("normals"))
    assert same_answers(model, find(EDGES).load(), alike("edges"))
    with pytest.raises(WeightsError, match=r"has no backbone\.safetensors.*backbone=true"):
        heads.add(["edges"])
    with pytest.raises(ConfigError, match=r"Expected out=DIR"):
        heads.main(["add", "head=normals"])


def test_the_backbone_of_a_pack_must_be_the_one_it_tells(there: Path, tiny_model: Tiny) -> None:
    packed("normals", backbone=True)
    packs.save_backbone(tiny_model(weights_seed=9).backbone, Path("normals/backbone.safetensors"))
    resealed(Path("normals"), lambda said: said["files"].update(entry("normals", "backbone.safetensors")))
    with pytest.raises(WeightsError, match="is not the one that its head fits"):
        heads.add(["normals"])


def test_licence_and_data_go_with_a_head(there: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    packed("normals", author="Ada", backbone=True)
    before = json.loads(Path("normals/pack.json").read_text())
    heads.main(["add", "head=normals", "as=n", "out=hall"])
    heads.main(["add", "run=hall", f"head={EDGES}/heads/edges.safetensors"])
    heads.main(["merge", f"runs=[hall,{FULL}]", "out=all"])
    heads.main(["remove", "run=all", "tasks=[depth]", "out=fewer"])
    (row,) = (row for row in heads.listed(["fewer"]) if row.task == "n")
    assert (row.now, row.data, row.licence) == (before["metrics"]["value"], "nyud_incremental", "CC-BY-4.0")
    (row,) = heads.listed(heads=["fewer/heads/n.safetensors"])
    assert (row.now, row.licence) == (before["metrics"]["value"], "CC-BY-4.0")
    assert "CC-BY-4.0" in capsys.readouterr().out
    caplog.clear()
    packs.pack("fewer", "n", "again", "MIT")
    assert "came from a pack under CC-BY-4.0 by Ada, and you publish it under MIT" in caplog.text
    after = json.loads(Path("again/pack.json").read_text())
    assert {key: after[key] for key in ("metrics", "learnt")} == {key: before[key] for key in ("metrics", "learnt")}
    assert (after["licence"], after["author"], after["came"]) == (
        "MIT", "Ada", [{"licence": "CC-BY-4.0", "author": "Ada"}],
    )  # fmt: skip
    text = Path("again/README.md").read_text()
    assert "The head came from a pack under CC-BY-4.0, by Ada." in text and "after semseg, depth; at most" in text
    heads.add(["again"], FULL, ["n2"])
    heads.main(["add", f"run={FULL}", "head=again", "as=n2", "out=third"])
    caplog.clear()
    packs.pack("third", "n2", "last", "MIT")
    assert "you publish it" not in caplog.text
    assert json.loads(Path("last/pack.json").read_text())["came"] == after["came"]
    said = json.loads(Path("third/heads.json").read_text())
    said["heads"]["n2"]["licence"] = "CC0-1.0"
    Path("third/heads.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=r"heads\.json is damaged, or was edited"):
        packs.pack("third", "n2", "forged", "CC0-1.0")


def test_heads_of_runs_keep_their_numbers_where_they_are_put(there: Path) -> None:
    heads.main(["merge", f"runs=[{NORMALS},{EDGES}]", "out=both"])
    ours, theirs = ({row.task: row for row in heads.listed([run])} for run in ("both", EDGES))
    assert ours["edges"].now == theirs["edges"].now is not None
    packs.pack("both", "edges", "of-model", "MIT")
    packs.pack(EDGES, "edges", "of-run", "MIT")
    one, two = (json.loads(Path(folder, "pack.json").read_text()) for folder in ("of-model", "of-run"))
    assert one["learnt"] == two["learnt"] and one["metrics"] == two["metrics"] is not None


def test_a_backbone_has_a_licence_of_its_own(
    there: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, message in ((None, "test_efficientnet, is unknown"), ("cc-by-nc-4.0", "are under cc-by-nc-4.0")):
        monkeypatch.setattr("medusa_cl.deploy.graphs.published_licence", lambda backbone, known=known: known)
        caplog.clear()
        folder = packs.pack(FULL, "depth", f"pack-{known}", "MIT", backbone=True)
        assert json.loads((folder / "pack.json").read_text())["backbone_licence"] == known
        assert message in (folder / "README.md").read_text() and message in caplog.text


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_the_published_licence_is_found_for_every_kind_of_net(name: str) -> None:
    import timm

    backbone = Backbone.create(name, pretrained=False)
    assert published_licence(backbone) == timm.get_pretrained_cfg(name).license is not None


def test_misspelt_licences_are_told(there: Path, caplog: pytest.LogCaptureFixture) -> None:
    for licence, warned in (("CC-BYE-4.0", True), ("LicenseRef-Mine", False), ("CC-BY-NC-SA-4.0", False)):
        caplog.clear()
        packs.pack(FULL, "depth", licence, licence)
        assert ('Did you mean "CC-BY-4.0"?' in caplog.text) == warned


def test_a_card_says_the_arrays_that_predict_writes(there: Path) -> None:
    assert "forward: H W 3 float32." in Path(packed("normals"), "README.md").read_text()
    assert "from 0: H W uint8. The classes are" in Path(packed("classes", "semseg"), "README.md").read_text()


def forged(path: str, **said: object) -> None:
    """Change what a head's file says, as one who means ill can: with the hash that belongs to it."""
    tensors = load_file(path)
    told = {key: value for key, value in weights(path).items() if key not in tensors and key != "sha256"}
    for key, value in said.items():
        told[key] = json.dumps(json.loads(told[key]) | value)
    save_file(tensors, path, told | {"sha256": _hash_of(tensors, told)})


def test_a_strangers_head_writes_nothing_to_the_terminal(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(f"{FULL}/heads/depth.safetensors", "head.safetensors")
    for key in ("name", "kind"):
        forged("head.safetensors", task={key: "depth\x1b]0;x\x07"})
        for call in (lambda: heads.listed(heads=["head.safetensors"]), lambda: heads.add(["head.safetensors"], FULL)):
            with pytest.raises(WeightsError, match="is no name") as caught:
                call()
            assert "\x1b" not in str(caught.value)
        shutil.copy(f"{FULL}/heads/depth.safetensors", "head.safetensors")
    forged("head.safetensors", task={"unit": "m\x1b[2J\ud800"})
    heads.main(["list", "head=head.safetensors"])
    assert "\x1b" not in capsys.readouterr().out
    for change in (
        lambda said: said.update(author="\x1b[2J"), lambda said: said.update(licence=3),
        lambda said: said.update(metrics=[]), lambda said: said.update(came=3),
    ):  # fmt: skip
        folder = packed(f"pack-{len(list(there.glob('pack-*')))}")
        resealed(folder, change)
        with pytest.raises(WeightsError, match="it does not say"):
            packs.fetch(folder)


def entry(folder: str, name: str) -> dict[str, Any]:
    path = Path(folder, name)
    return {name: {"size": path.stat().st_size, "sha256": kept.file_hash(path)}}


def resealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change what a pack says, as one who means ill can: with the hash that belongs to it."""
    path = folder / "pack.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said | {"sha256": packs.seal(said)}))
    return path.read_bytes()


ONE: dict[str, Any] = {"size": 1, "sha256": "0" * 64}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "traversal": (lambda said: said["files"].update({"../../x": ONE}), r"lists '\.\./\.\./x'"),
    "absolute": (lambda said: said["files"].update({"/etc/x": ONE}), "lists '/etc/x'"),
    "another": (lambda said: said["files"].update({"run.py": ONE}), r"lists 'run\.py'"),
    "no head": (lambda said: said["files"].pop("head.safetensors"), r"lists no head\.safetensors"),
    "no size": (lambda said: said["files"]["head.safetensors"].pop("size"), "says no size and SHA-256"),
    "odd size": (lambda said: said["files"]["head.safetensors"].update(size=True), "says no size and SHA-256"),
    "odd hash": (lambda said: said["files"]["head.safetensors"].update(sha256="../x"), "says no size and SHA-256"),
    "files": (lambda said: said.update(files=["head.safetensors"]), r"lists no head\.safetensors"),
    "format": (lambda said: said.update(format="medusa-cl pack 9"), "expected format 'medusa-cl pack 1', but got"),
    "task": (lambda said: said["task"].update(name="depth"), "differ in what they say of the task"),
    "backbone": (lambda said: said["backbone"].update(name="x"), "differ in what they say of the backbone"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_pack_that_says_something_wrong_is_refused(there: Path, case: str) -> None:
    change, message = WRONG[case]
    resealed(packed(), change)
    with pytest.raises(WeightsError, match=message):
        packs.fetch("pack")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}" + b" " * (1 << 20)], ids=range(5))
def test_what_is_no_pack_is_refused(there: Path, content: bytes) -> None:
    (packed() / "pack.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"Expected a pack in pack, but pack\.json"):
        packs.fetch("pack")


def test_a_damaged_pack_is_refused(there: Path) -> None:
    text = (packed() / "pack.json").read_text()
    Path("pack/pack.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(WeightsError, match="damaged, or was edited"):
        packs.fetch("pack")
    Path("pack/pack.json").write_text(text)
    Path("pack/README.md").write_text("The card may be edited.")
    assert packs.fetch("pack") == packs.fetch("pack/pack.json") == Path("pack")
    assert packs.fetch(f"file://{Path('pack').absolute()}") == Path("pack").absolute()
    damaged = bytearray(Path("pack/head.safetensors").read_bytes())
    damaged[-1] ^= 1
    Path("pack/head.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"pack/head\.safetensors is missing or damaged"):
        packs.fetch("pack")


# ---------------------------------------------------------------- packs by their address


class Handler(BaseHTTPRequestHandler):
    """Sends files from a dict; of one in `cut` only so many bytes, once."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        name = self.path.partition("?")[0]
        if (elsewhere := self.server.moved.get(name)) is not None:
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.end_headers()
            return
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut.pop(name, len(body))])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []

    def give(self, folder: Path) -> str:
        self.files = {f"/{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
        return f"http://127.0.0.1:{self.server_port}/{folder.name}"


@pytest.fixture
def server(there: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAITS", ())
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def test_a_pack_is_fetched_once_by_its_address(server: Server) -> None:
    url = server.give(packed(backbone=True))
    folder = packs.fetch(url)
    assert [path for path, _ in server.asked] == ["/pack/pack.json", "/pack/head.safetensors"]
    assert folder.is_relative_to("cache/packs") or folder.is_relative_to(Path.cwd() / "cache/packs")
    heads.main(["add", f"run={EDGES}", f"head={url}/pack.json?token=x", "out=more"])
    assert same_answers(load_model("more"), find(NORMALS).load(), alike("normals"))
    server.asked.clear()
    server.files.clear()
    assert packs.fetch(url) == folder
    assert server.asked == []
    with pytest.raises(DataError, match="404"):
        packs.fetch(url, refresh=True)
    url = server.give(Path("pack"))
    assert packs.fetch(url, backbone=True) == folder
    assert same_answers(heads.add([url]), find(NORMALS).load(), alike("normals"))


def test_a_pack_that_was_changed_is_fetched_anew_when_asked_for(server: Server) -> None:
    url = server.give(packed())
    first = packs.fetch(url)
    server.give(packs.pack(FULL, "edges", "other/pack", "MIT"))
    assert packs.fetch(url) == first
    second = packs.fetch(url, refresh=True)
    assert describe_head(second / "head.safetensors").task["name"] == "edges"
    assert packs.fetch(url) == second


def test_an_interrupted_transfer_goes_on(server: Server) -> None:
    url = server.give(packed())
    whole = len(server.files["/pack/head.safetensors"])
    server.cut["/pack/head.safetensors"] = 1000
    with pytest.raises(DataError, match=f"broke off after 1000 of {whole} bytes"):
        packs.fetch(url)
    server.asked.clear()
    folder = packs.fetch(url)
    assert server.asked == [("/pack/head.safetensors", "bytes=1000-")]
    assert weights(folder / "head.safetensors") == weights("pack/head.safetensors")


def test_files_that_are_not_what_was_promised_are_not_kept(server: Server) -> None:
    url = server.give(packed())
    good = server.files["/pack/head.safetensors"]
    for wrong, message in (
        (good[:-1] + b"x", "its SHA-256 is another"),
        (good[:-9], "bytes, but"),
        (good + b"x", "bytes, but"),
    ):
        server.files["/pack/head.safetensors"] = wrong
        with pytest.raises(DataError, match=message):
            packs.fetch(url)
        assert not list(Path("cache").rglob("head.safetensors"))
    server.files["/pack/head.safetensors"] = good
    folder = packs.fetch(url)
    (folder / "pack.json").write_text("{}")
    (folder / "head.safetensors").write_bytes(good[:-1] + b"x")
    assert kept.file_hash(packs.fetch(url) / "head.safetensors") == kept.file_hash(Path("pack/head.safetensors"))


def test_a_server_cannot_send_one_to_an_unsafe_address(server: Server) -> None:
    url = server.give(packed())
    server.moved = {"/pack/pack.json": "/pack/on", "/pack/on": "http://pack.invalid/pack.json"}
    with pytest.raises(ConfigError, match=r"but got http://pack\.invalid"):
        packs.fetch(url)
    server.files["/pack/on"] = server.files["/pack/pack.json"]
    server.moved = {"/pack/pack.json": f"http://localhost:{server.server_port}/pack/on"}
    assert (packs.fetch(url) / "head.safetensors").is_file()


def test_a_large_transfer_shows_how_far_it_is(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packs, "LARGE", 1000)
    packs.fetch(server.give(packed()))
    assert "head.safetensors, MB" in capsys.readouterr().out


def test_addresses_without_a_pack(server: Server) -> None:
    url = server.give(packed())
    with pytest.raises(DataError, match="404") as caught:
        packs.fetch(f"{url}/elsewhere")
    assert "the folder in which its pack.json lies" in caught.value.__notes__[0]
    server.files["/pack/pack.json"] = b" " * (packs.LIMIT + 1)
    with pytest.raises(DataError, match=f"more than {packs.LIMIT} bytes"):
        packs.fetch(url)
    server.files["/pack/pack.json"] = resealed(Path("pack"), WRONG["traversal"][0])
    with pytest.raises(WeightsError, match=r"lists '\.\./\.\./x'"):
        packs.fetch(url)
    for other in ("http://example.org/pack", "ftp://127.0.0.1/pack", "gdrive://x"):
        with pytest.raises(ConfigError, match=r"https:// or file:// address"):
            packs.fetch(other)
    assert not [path for path in Path("cache").rglob("*") if path.suffix == ".safetensors" or "asking" in path.name]


# ---------------------------------------------------------------- the verbs


@pytest.mark.parametrize("verb", heads.USAGES)
def test_help_shows_examples_that_can_be_typed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, usage = heads.USAGES[verb]
    heads.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert 3 <= len(usage.examples) <= 5
    for example in usage.examples:
        assert f"python -m medusa_cl.heads {verb} {example}" in shown
        usage.parse(shlex.split(example, comments=True))


def test_help_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    heads.main([])
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(heads.USAGES)
    with pytest.raises(ConfigError, match=r'Unknown verb of heads "marge".*Did you mean "merge"\?'):
        heads.main(["marge"])
    with pytest.raises(ConfigError, match="Expected run= a run or a model, or head="):
        heads.main(["list"])


COMMANDS = [shlex.split(line) for line in re.findall(r"^python -m medusa_cl\.heads (.*)$", PAGE, re.MULTILINE)]


def test_all_that_the_page_tells_to_type_works(there: Path, server: Server) -> None:
    assert {command[0] for command in COMMANDS} == set(heads.USAGES)
    for command in COMMANDS:
        if "https://" in str(command):
            url = server.give(Path("packs/normals"))
            command = [part.replace("https://example.org/packs/normals", url) for part in command]
            heads.main(["remove", "run=models/small", "tasks=[normals]"])
        heads.main(command)
    assert sorted(p.name for p in Path("models").iterdir()) == ["fetched", "hall", "kitchen", "more", "small"]
    assert all(list(load_model(path).tasks) for path in Path("models").iterdir())


def test_heads_need_no_training_library(there: Path) -> None:
    packed()
    code = (
        "import sys\nfrom medusa_cl import heads\nlight = {n.split('.')[0] for n in sys.modules}\n"
        f"heads.main(['add', 'run={EDGES}', 'head=pack', 'out=more'])\nheads.fetch('pack')\n"
        "print('light', *sorted(light))\nprint('loaded', *sorted({n.split('.')[0] for n in sys.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    light, loaded = ({*line.split()[1:]} for line in done.stdout.splitlines()[-2:])
    assert "torch" in loaded
    assert light & {"torch", "numpy", "PIL", "rich", "timm"} == set()
    assert loaded & {"avalanche", "mlflow", "h5py", "torchmetrics", "hydra", "omegaconf"} == set()
