"""Exported files: they answer as the model, say all that is needed, and are whole or not there."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor

from medusa_cl import export, tasks
from medusa_cl.checkpoint import save_model
from medusa_cl.deploy import agreement, graph_files, graphs
from medusa_cl.deploy.predictor import Predictor
from medusa_cl.errors import ConfigError, MedusaError, TaskError
from medusa_cl.models import AdaptedHead, Backbone, LinearHead, MedusaHead, MultiTaskModel, OwnNetHead
from medusa_cl.models.coupled import CoupledModel, PADNet

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "onnx_predict.py"
PAGE = ROOT / "docs" / "export.md"
SIZE = (40, 56)  # neither a multiple of 32
THINGS = tasks.semseg(["wall", "floor", "lamp"], name="things")
Make = Callable[..., MultiTaskModel]


def moved(model: MultiTaskModel) -> MultiTaskModel:
    """Move the statistics of BatchNorm away from their first values."""
    with torch.no_grad():
        model.train()(torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> MultiTaskModel:
    made = tiny_model(THINGS, head=partial(MedusaHead, width=8, mix_width=8, refine_blocks=0))
    for task in (tasks.depth(), tasks.normals(), tasks.edges()):
        made.add_head(task, seed=0, head=LinearHead)  # exported in less time
    return moved(made)


@pytest.fixture(scope="module")
def saved(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model, tmp_path_factory.mktemp("saved") / "model")


WALLED = """
import runpy, sys
for name in ("avalanche", "mlflow", "h5py", "torchmetrics", "hydra", "omegaconf"):
    sys.modules[name] = None
sys.argv = ["export", *sys.argv[1:]]
runpy.run_module("medusa_cl.export", run_name="__main__")
"""


@pytest.fixture(scope="module")
def written(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One export for most tests, by the command line and without what trains: any size, and what was printed."""
    out = tmp_path_factory.mktemp("made")
    command = f"run={saved} size={SIZE[0]}x{SIZE[1]} dynamic=all format=onnx licence=CC-BY-4.0".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = [sys.executable, "-c", WALLED, *command]
    done = subprocess.run(ran, capture_output=True, text=True, timeout=300, env=environment, cwd=out)
    assert done.returncode == 0, done.stderr
    assert "out=model.onnx" in done.stderr
    return out / "model.onnx", done.stdout


@pytest.fixture
def session(written: tuple[Path, str]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(written[0])


def answers(session: onnxruntime.InferenceSession, image: Tensor) -> dict[str, Tensor]:
    names = [output.name for output in session.get_outputs()]
    made = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, made, strict=True)}


@pytest.mark.parametrize("shape", [(1, 40, 56), (5, 40, 56), (3, 64, 96), (1, 101, 33), (2, 7, 200)], ids=str)
def test_the_file_predicts_as_the_model_whatever_the_batch_and_the_size(
    shape: tuple[int, int, int], model: MultiTaskModel, session: onnxruntime.InferenceSession
) -> None:
    image = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(shape[1]))
    ours, theirs = model.predict(image), answers(session, image)
    assert list(theirs) == ["things", "depth", "normals", "edges"]
    assert theirs["things"].dtype == torch.int64
    assert (theirs["things"] == ours["things"]).float().mean() > 0.999
    for name in ("depth", "normals", "edges"):
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


def test_the_file_says_all_that_its_users_need(
    written: tuple[Path, str], session: onnxruntime.InferenceSession, model: MultiTaskModel
) -> None:
    said = session.get_modelmeta().custom_metadata_map
    assert said["format"] == graphs.FORMAT
    assert (said["opset"], said["licence"]) == ("18", "CC-BY-4.0")
    assert re.fullmatch(r"medusa_cl \d+\.\d+\.\d+", said["version"])
    described = {task["name"]: task for task in json.loads(said["tasks"])}
    assert list(described) == list(model.tasks)
    assert described["things"]["classes"] == ["wall", "floor", "lamp"]
    assert described["things"]["ignore"] == 255
    assert described["things"]["decoding"] == "inside: argmax over the channels"
    assert described["depth"]["unit"] == "m"
    assert described["normals"]["axes"] == "x right, y down, z forward"
    assert described["edges"]["unit"] == "probability"
    backbone = json.loads(said["backbone"])
    assert (backbone["name"], backbone["hash"]) == ("test_efficientnet", model.backbone.weights_hash())
    given = json.loads(said["input"])
    assert (given["name"], given["layout"], given["values"]) == ("image", "B 3 H W float32", "0..1")
    assert (given["size"], given["dynamic"]) == ([*SIZE], ["batch", "height", "width"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [output.shape[0] for output in session.get_outputs()] == ["batch"] * 4
    assert [path.name for path in written[0].parent.iterdir()] == ["model.onnx"]  # no data beside it
    assert {entry.version for entry in onnx.load(written[0]).opset_import if not entry.domain} == {18}


def test_what_is_printed(written: tuple[Path, str]) -> None:
    path, printed = written
    assert re.search(rf"^{path.name}: \d\.\d MB, ONNX opset 18, test_efficientnet$", printed, re.MULTILINE)
    assert re.search(r"^input +image +B 3 H W float32 +RGB 0\.\.1$", printed, re.MULTILINE)
    assert re.search(r"^output +depth +B 1 H W float32 +m +\S+ m$", printed, re.MULTILINE)
    assert re.search(r"^output +things +B H W int64 +class +(none|.* ties)$", printed, re.MULTILINE)
    assert "onnxruntime answers 28 images as the model does" in printed


def test_a_wrong_weight_is_found(written: tuple[Path, str], model: MultiTaskModel, tmp_path: Path) -> None:
    """One weight of one head a little off: that task's answers are refused, and no others."""
    proto = onnx.load(written[0])
    weight = next(one for one in proto.graph.initializer if ".heads.depth." in one.name and len(one.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    graph = graphs.Graph(model, graphs.Form(tuple(model.tasks), SIZE))
    images = [image.numpy() for image in agreement.images(graph.form)]
    found = agreement.agreements(graph, graph_files._OnnxRunner(tmp_path / "wrong.onnx"), images)
    assert [one.task for one in found if one.fault] == ["depth"]


class Runner:
    """Answers as the model does, after a change."""

    def __init__(self, graph: graphs.Graph, change: Callable[[dict[str, Any]], object]) -> None:
        self.graph, self.change = graph, change

    def answers(self, images: list[Any]) -> Any:
        for image in images:
            with torch.no_grad():
                made = {name: value.numpy() for name, value in self.graph(torch.from_numpy(image)).items()}
            self.change(made)
            yield made

    def milliseconds(self, image: Any) -> float:
        return 1.0


def fill(name: str, value: float) -> Callable[[dict[str, Any]], object]:
    return lambda made: made[name][0].flat.__setitem__(0, value)


def outside(made: dict[str, Any]) -> None:
    """Put the first and the last class just outside of those that there are."""
    made["things"][made["things"] == 0] = -1
    made["things"][made["things"] == 2] = 3


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a class": lambda made: made["things"].__iadd__(1).__imod__(3),
    "no class": outside,
    "NaN": fill("depth", float("nan")),
    "a length": lambda made: made["normals"].__imul__(1.01),
    "a probability": fill("edges", 0.9),
    "a shape": lambda made: made.update(depth=made["depth"][:, 0]),
    "a type": lambda made: made.update(things=made["things"].astype(np.int32)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_file_is_written_whose_answers_differ(
    name: str, model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the one before")

    def write(graph: graphs.Graph, part: Path, metadata: Any, opset: int) -> Runner:
        part.write_bytes(b"wrong")
        return Runner(graph, CHANGES[name])

    monkeypatch.setattr(graph_files, "write_onnx", write)
    with pytest.raises(MedusaError, match="does not answer as the model does"):
        export.export_onnx(model, out, SIZE, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == b"the one before"


def test_ties_and_rounding_are_no_fault(model: MultiTaskModel) -> None:
    graph = graphs.Graph(model, graphs.Form(tuple(model.tasks), SIZE))
    image = next(iter(agreement.images(graph.form)))
    logits = graph.reference(image)["things"]
    second = logits.topk(2, dim=1).indices[:, 1]
    gap = logits.topk(2, dim=1).values.diff(dim=1).abs().squeeze(1)
    place = tuple(int(i) for i in np.unravel_index(int(gap.argmin()), gap.shape))
    answer = model.tasks["things"].decode(logits).clone()
    answer[place] = second[place]
    tight, loose = (
        agreement._compared_classes(THINGS, logits, answer, logits.argmax(1), float(gap.min()) * factor)
        for factor in (0.49, 0.51)
    )
    assert (bool(tight.fault), bool(loose.fault)) == (True, False)
    assert loose.changed == pytest.approx(1 / gap.numel())
    assert loose.worst == pytest.approx(float(gap.min()))


def test_short_vectors_may_turn_further_than_long_ones() -> None:
    """By hand: (0.1, 0, 0) moved by 0.001 turns by 0.01; the slack is twice that for each of the three channels."""
    logits = torch.tensor([[0.1, 0.0, 0.0], [10.0, 0.0, 0.0]]).view(2, 3, 1, 1)
    slack = agreement._slack(tasks.normals(), logits, 0.001)
    assert float(slack[0, 1]) == pytest.approx(0.02, rel=0.01)
    assert float(slack[1, 1]) == pytest.approx(0.0002, rel=0.01)


def unlike_first(model: MultiTaskModel) -> MultiTaskModel:
    """Move all weights: some stand for nothing at first."""
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return moved(model)


def test_bytes_in_logits_out_of_heads_that_read_each_other_and_a_fresh_process(tmp_path: Path) -> None:
    """A .pt2 file of two tasks, in other forms than the ONNX file's; batches other than the one it was made with."""
    coupled = CoupledModel(Backbone.create("test_efficientnet", pretrained=False), partial(PADNet, features=8, width=4))
    coupled.add_heads([tasks.edges(), THINGS, tasks.depth()], seed=0)
    model = unlike_first(coupled)
    out = tmp_path / "model.pt2"
    done = export.export_pt2(model, out, SIZE, tasks=["depth", "edges"], input="uint8", outputs="logits")
    assert [one.task for one in done.agreements] == ["depth", "edges"]
    assert "fresh torch answers 16 images" in export.report(done)
    found: dict[str, Any] = {graph_files.PT2_METADATA: ""}
    program = torch.export.load(out, extra_files=found)
    described = json.loads(json.loads(found[graph_files.PT2_METADATA])["tasks"])
    assert [task["layout"] for task in described] == ["B 1 H W float32"] * 2
    image = torch.randint(0, 256, (3, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = program.module()(image)
    expected = model.predict(image.permute(0, 3, 1, 2) / 255)
    assert list(made) == ["depth", "edges"]
    torch.testing.assert_close(made["depth"], expected["depth"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made["edges"].sigmoid(), expected["edges"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", [AdaptedHead, OwnNetHead])
def test_heads_with_blocks_of_their_own_are_exported_too(head: Any, tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model()
    model.freeze_backbone()
    model.add_head(tasks.depth(), seed=0, head=partial(head, head=LinearHead))
    model = unlike_first(model)
    image = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    if head is AdaptedHead:
        done = export.export_onnx(model, tmp_path / "model.onnx", SIZE)
        depth = answers(onnxruntime.InferenceSession(done.path), image)["depth"]
    else:  # traced alone: the rest is the same, and takes seconds
        depth = graphs.traced(graphs.Graph(model, graphs.Form(("depth",), SIZE))).module()(image)["depth"]
    torch.testing.assert_close(depth, model.predict(image)["depth"], rtol=1e-3, atol=1e-4)


def test_a_model_is_left_as_it_is_and_exported_in_float32(tiny_model: Make) -> None:
    model = tiny_model("depth", "edges", precision="bf16").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = graphs.Graph(model, graphs.Form(("edges",), SIZE))
    assert list(graph.model.heads) == ["edges"]
    assert (graph.model.precision, graph.training and graph.model.training) == ("32", False)
    assert (list(model.heads), model.precision, model.training) == (["depth", "edges"], "bf16", True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


WITHOUT = """
import runpy, sys
for name in ("medusa_cl", "torch", "timm"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_example_needs_nothing_but_the_file(
    written: tuple[Path, str], model: MultiTaskModel, tmp_path: Path
) -> None:
    shade = np.linspace(0, 255, 61 * 56 * 3).reshape(61, 56, 3).astype(np.uint8)
    Image.fromarray(shade).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", WITHOUT, EXAMPLE, written[0], tmp_path / "photo.png", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^depth: \S+ \.\. \S+ m$", done.stdout, re.MULTILINE)
    names = {
        "things.npy",
        "things.png",
        "depth.png",
        "depth_mm.png",
        "normals.npy",
        "normals.png",
        "edges.npy",
        "edges.png",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"photo_{name}" for name in names}
    with Image.open(tmp_path / "out/photo_depth_mm.png") as picture:
        assert (picture.mode, picture.size) == ("I;16", (56, 61))
    normals = np.load(tmp_path / "out/photo_normals.npy")
    assert normals.shape == (3, 61, 56)
    assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    # What the network sees is the picture at 56 x 51: its longer side as in training, though that was the other one.
    seen = np.array(Image.fromarray(shade).resize((51, 56), Image.Resampling.BILINEAR))
    classes = model.predict(torch.from_numpy(seen).permute(2, 0, 1)[None] / 255)["things"][0].numpy()
    rows, columns = np.arange(61) * 56 // 61, np.arange(56) * 51 // 56
    assert (np.load(tmp_path / "out/photo_things.npy") == classes[rows][:, columns]).mean() > 0.99


def test_the_example_sees_pictures_at_the_scale_of_predict(saved: Path) -> None:
    fitted = runpy.run_path(str(EXAMPLE))["fitted"]
    predictor = Predictor(saved, size=max(SIZE))
    meta: dict[str, Any] = {"size": [*SIZE], "dynamic": ["batch", "height", "width"], "mean": [0.5, 0.5, 0.5]}
    for size in ((480, 640), (640, 480), (61, 57), (31, 97), (1, 300), *((n, 113) for n in range(3, 113, 7))):
        seen, *sides = fitted(np.zeros((*size, 3), np.uint8), meta)
        assert (*sides,) == seen.shape[:2] == predictor.seen_size(*size)
    # A file of 40 x 56 alone: upright pictures get smaller than those that lie.
    for size, sides in (((40, 56), (40, 56)), ((80, 112), (40, 56)), ((112, 80), (40, 29)), ((20, 56), (20, 56))):
        seen, *found = fitted(np.full((*size, 3), 255, np.uint8), meta | {"dynamic": ["batch"]})
        assert (*found,) == sides and seen.shape == (*SIZE, 3)
        assert (seen[: sides[0], : sides[1]] == 255).all() and (seen[sides[0] :] == 128).all()


def test_the_example_says_that_a_picture_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"name": "image", "size": [*SIZE], "dynamic": ["batch"], "mean": [0.5] * 3, "layout": "B H W 3 uint8"}
    said = types.SimpleNamespace(custom_metadata_map={"input": json.dumps(given), "tasks": "[]"})
    session = types.SimpleNamespace(get_modelmeta=lambda: said, run=lambda *asked: [])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda model: session)
    main = runpy.run_path(str(EXAMPLE))["main"]
    for size, lines in (((40, 56), 0), ((112, 80), 1)):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "photo.png")
        main("m.onnx", str(tmp_path / "photo.png"), str(tmp_path / "out"))
        printed = capsys.readouterr().out
        assert printed.count("smaller than in training") == lines
    assert "photo.png is seen at 40x29" in printed and "size=56x40" in printed


def test_metadata_of_ones_own_takes_no_place(model: MultiTaskModel) -> None:
    graph = graphs.Graph(model, graphs.Form(("depth",), SIZE))
    assert graphs.described(graph, {"licence": "MIT"})["licence"] == "MIT"
    for key in ("tasks", "input", "opset", "format"):
        with pytest.raises(ConfigError, match=f"cannot say {key}"):
            graphs.described(graph, {key: "x"})


REFUSED = {
    "out=model.pt2": "format=pt2",
    "out=model.txt": r"\.onnx at its end",
    "out=there.onnx": "overwrite=true",
    "out=m.onnx size=40": "480x640",
    "out=m.onnx": "give size=",
    "out=m.onnx size=40x56 tasks=[dept]": 'Did you mean "depth"',
    "out=m.onnx size=40x56 opset=9": r"18 \.\. ",
    "out=m.onnx dynamic=some": "batch",
    "out=m.onnx input=int8": "uint8",
}


@pytest.mark.parametrize("said", REFUSED)
def test_refusals(said: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_bytes(b"mine")
    with pytest.raises((ConfigError, TaskError), match=REFUSED[said]):
        export.main([f"run={saved}", *said.split()])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("there.onnx", b"mine")]


@pytest.mark.parametrize("package", graph_files.PACKAGES)
def test_a_missing_package_is_named(package: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*pip install 'medusa_cl\[export\]'"):
        export.main([f"run={saved}", f"out={tmp_path / 'm.onnx'}", "size=40x56"])


def test_what_torch_cannot_export_is_said_in_one_message(model: MultiTaskModel, tmp_path: Path) -> None:
    graph = graphs.Graph(model, graphs.Form(("depth",), SIZE))
    graph.model.backbone.register_forward_pre_hook(lambda module, given: given[0].sum().item() and None)
    with pytest.raises(
        ConfigError, match=r"test_efficientnet with dynamic=batch cannot be exported: torch.export .*says"
    ):
        graph_files.write_pt2(graph, tmp_path / "m.pt2", {})


def test_a_task_called_as_the_input_is_refused(tiny_model: Make, tmp_path: Path) -> None:
    named = tiny_model(tasks.depth(name="image"))
    with pytest.raises(ConfigError, match="name of the input"):
        export.export_onnx(named, tmp_path / "m.onnx", SIZE)


def test_a_stopped_export_leaves_the_file_that_was_there(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the one before")

    def write(graph: graphs.Graph, part: Path, metadata: Any, opset: int) -> Runner:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_files, "write_onnx", write)
    with pytest.raises(KeyboardInterrupt):
        export.main([f"run={saved}", f"out={out}", "size=40x56", "overwrite=true"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"the one before")]


def commands() -> list[list[str]]:
    lines = re.findall(r"^python -m medusa_cl\.export(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [line.split("#")[0].split() for line in (*lines, *export.USAGE.examples)]


def test_commands_of_the_help_and_the_page_are_known() -> None:
    assert len(commands()) >= 8
    for arguments in commands():
        options = export.USAGE.parse(arguments)
        export._free(options["out"] or f"run.{options['format']}", options["format"], overwrite=True)


def test_the_script_of_the_page(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    asked: list[Any] = []
    real = inspect.signature(export.export_onnx)
    monkeypatch.setattr(export, "export_onnx", lambda *given, **named: asked.append((given, named)))
    monkeypatch.setattr("medusa_cl.load_model", lambda path: model, raising=False)
    exec(script, {})
    ((given, named),) = asked
    assert real.bind(*given, **named).arguments["size"] == (480, 640)
    assert given[0] is model


def test_help_waits_for_nothing() -> None:
    code = "import sys\nfrom medusa_cl import export\nassert not {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (5, 1, 2), (1, 2, 1), (6, 4, 1)]
)
def test_same_padding_by_numbers_is_that_by_the_sides(kernel: int, stride: int, dilation: int) -> None:
    conv = Conv2dSame(3, 4, kernel, stride, dilation=dilation)
    x = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    net = torch.nn.Sequential(conv)
    graphs._pad_by_numbers(net)  # type: ignore[arg-type]
    assert torch.equal(net(x), expected) and "forward" in vars(conv)
