"""The tutorial runs, and what it prints is what happened; a user's type checker accepts it."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin

import medusa_cl
from medusa_cl import tasks
from medusa_cl.data.arrays import ArrayData
from medusa_cl.data.rooms import render_room
from medusa_cl.errors import DataError
from medusa_cl.scenarios.dense import dense_scenario
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.template import dense_model

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "examples/tutorial.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the tutorial has defined when it is over, and what it has printed; its warnings are `heard`."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch, patch.context() as here:
        here.chdir(folder)
        here.setattr(sys, "argv", [str(TUTORIAL), "--small"])
        lines: list[str] = []
        here.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(map(str, values))))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            names = runpy.run_path(str(TUTORIAL))
        names["heard"] = heard
        names["folder"] = folder / names["folder"]
    return names, "\n".join(lines)


def test_the_freeze_forgets_exactly_nothing_and_fine_tuning_is_measured(told: tuple[dict[str, Any], str]) -> None:
    names, printed = told
    heard = names["heard"]
    medusa, finetune, protected = (names[name].matrix for name in ("medusa", "finetune", "protected"))
    assert medusa.after == ("base", "normals", "support")
    assert [medusa.forgetting(task) for task in ("semseg", "depth", "normals")] == [0.0, 0.0, 0.0]
    assert "mean forgetting: 0\n" in f"{printed}\n"
    assert "-0.00" not in printed
    assert names["cell"](-0.001) == "0.00"
    assert [str(one.message) for one in heard if "Call to deprecated function update" in str(one.message)] == []
    for matrix in (finetune, protected):
        assert all(matrix.forgetting(task) != 0 for task in ("depth", "normals"))
    old = medusa.R(0, "depth")
    assert old == finetune.R(0, "depth") == protected.R(0, "depth"), "the base is the same for all three"
    assert finetune.R(2, "depth") != protected.R(2, "depth"), "the plugins have done something"


def test_it_composes_what_it_says_it_composes(told: tuple[dict[str, Any], str]) -> None:
    plugins = told[0]["protected"].plugins
    (ewc,) = (plugin for plugin in plugins if isinstance(plugin, EWCPlugin))
    (replay,) = (plugin for plugin in plugins if isinstance(plugin, ReplayPlugin))
    assert len(ewc.importances) == 3
    assert 0 < len(replay.storage_policy.buffer) <= 40


def test_the_printed_tables_are_the_matrices(told: tuple[dict[str, Any], str]) -> None:
    names, printed = told
    for title, name in (("Medusa", "medusa"), ("fine-tuning", "finetune"), ("fine-tuning, protected", "protected")):
        matrix = names[name].matrix
        (table,) = re.findall(rf"^{title} +semseg .*\n((?:.+\n){{4}})", printed, re.MULTILINE)
        base, *_, last, lost = (re.split(r" {2,}", line.strip()) for line in table.splitlines())
        assert base == ["base", *(f"{matrix.R(0, task):.2f}" for task in ("semseg", "depth")), "-", "-"]
        assert last == ["support", *(f"{matrix.R(2, task):.2f}" for task in matrix.tasks)]
        assert lost[1] == f"{100 * matrix.forgetting('semseg') / matrix.R(0, 'semseg'):.2f}"


def test_transfer_is_against_a_net_of_its_own(told: tuple[dict[str, Any], str]) -> None:
    names, printed = told
    alone = names["alone"]["normals"]
    assert list(alone.model.tasks) == ["normals"]
    assert not alone.model.backbone.frozen
    own, learnt = alone.matrix.R(0, "normals"), names["medusa"].matrix.R(1, "normals")
    better = 100 * (own - learnt) / own  # degrees: less is better
    assert names["gains"](names["medusa"].matrix)["normals"] == pytest.approx(better)
    (row,) = re.findall(r"^Medusa {2,}0\.0 +(\S+) +\S+$", printed, re.MULTILINE)
    assert row == f"{better:+.1f}"


def test_the_task_of_the_tutorial_is_right(told: tuple[dict[str, Any], str]) -> None:
    names, _ = told
    room = render_room(3, names["SIZE"])
    target = names["data"]["train"].target(3, "support")
    assert torch.equal(target[0] == 1, torch.from_numpy(room["normals"][..., 1] / 127 < -0.8))
    assert 0 < target.mean() < 1
    support = names["support"]
    logits, truth = torch.tensor([[[[2.0, -2.0, 0.5, 9.0]]]]), torch.tensor([[[[1.0, 1.0, 0.0, 255.0]]]])
    total, count = support.loss(logits, truth)
    expected = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0)), np.log1p(np.exp(0.5))]
    assert (float(total), float(count)) == (pytest.approx(sum(expected), rel=1e-6), 3)
    metric = support.metric()
    metric.update(support.decode(logits), truth)
    assert float(metric.compute()["iou"]) == pytest.approx(100 / 3)  # one pixel of both, three of either
    assert support.draw(truth[0].numpy())[0, :3].tolist() == [[255] * 3, [255] * 3, [0] * 3]


def test_what_it_keeps_answers_as_what_it_learnt(told: tuple[dict[str, Any], str]) -> None:
    names, printed = told
    again = medusa_cl.load_model(names["folder"], tasks={"support": names["support"]})
    image = names["data"]["test"].image(0)[None].float() / 255
    expected = names["network"].predict(image)
    for task, answer in again.predict(image).items():
        assert torch.equal(answer, expected[task])
    assert names["answers"]["depth"].shape == (120, 160)
    assert f"{100 * (names['answers']['support'] > 0.5).mean():.0f} % of the picture" in printed


# ---- arrays in memory


def pictures(count: int = 3, size: tuple[int, int] = (32, 48)) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 3, *size), np.uint8)


def test_arrays_are_read_as_they_were_given() -> None:
    images, depth = pictures(), np.random.default_rng(1).uniform(1, 5, (3, 1, 32, 48))
    classes = np.arange(3 * 32 * 48).reshape(3, 32, 48) % 7
    data = ArrayData(images, {"depth": [depth[0], None, depth[2]], "semseg": classes})
    assert (len(data), data.image_size, data.fields) == (3, (32, 48), ("depth", "semseg"))
    assert np.array_equal(data.image(1).numpy(), images[1])
    assert data.has("depth").tolist() == [True, False, True]
    assert data.target(1, "depth") is None
    found, label = data.target(2, "depth"), data.target(2, "semseg")
    assert found is not None and label is not None
    assert (found.dtype, label.dtype) == (torch.float32, torch.int64)
    assert np.array_equal(found.numpy(), depth[2].astype(np.float32))
    assert np.array_equal(label.numpy(), classes[2])
    with pytest.raises(DataError, match=r'Did you mean "depth"'):
        data.target(0, "dept")


def test_the_hash_of_arrays_is_of_all_that_they_hold() -> None:
    images, depth = pictures(), np.ones((3, 1, 32, 48), np.float32)
    changed, moved = images.copy(), depth.copy()
    changed[2, 1, 5, 5] ^= 1
    moved[0, 0, 31, 47] = 2
    splits = [
        ArrayData(images, {"depth": depth}),
        ArrayData(changed, {"depth": depth}),
        ArrayData(images, {"depth": moved}),
        ArrayData(images, {"distance": depth}),
        ArrayData(images, {"depth": [depth[0], depth[1], None]}),
        ArrayData(images[:, :, :16].repeat(2, axis=2), {"depth": depth}),
        ArrayData(images),
    ]
    assert len({split.content_hash for split in splits}) == len(splits)
    assert ArrayData(images.copy(), {"depth": torch.ones(3, 1, 32, 48)}).content_hash == splits[0].content_hash


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (pictures().transpose(0, 2, 3, 1), {}, r"\(32, 48, 3\). Move the channels to the front"),
        (pictures()[:, :1], {}, r"Expected images as 3 H W, but got image 0 as \(1, 32, 48\)"),
        (pictures() * 1.0, {}, r"image 0 is float64 in \[0, 255\]. Divide floats by 255"),
        (pictures().astype(np.int64), {}, r"image 0 is int64"),
        (pictures().astype(np.uint16), {}, r"image 0 is uint16 in \[0, 255\]"),
        ([*pictures(), None], {}, "Expected image 3 as an array of numbers, but got None. An image that could not be"),
        (None, {}, "sequence of arrays, but got None"),
        (pictures(), {"depth": None}, 'targets of "depth" as one array, or a sequence of arrays, but got None'),
        (pictures(), {"depth": ["a", "b", "c"]}, 'Expected a target of "depth" as an array of numbers, but got str'),
        (pictures()[:0], {}, "at least one image"),
        (pictures(), {"depth": np.ones((3, 32, 48))}, r"float64 of \(32, 48\). One value a pixel still has a channel"),
        (pictures(), {"depth": np.ones((3, 1, 32, 40))}, r'"depth" .* H W = \(32, 48\)'),
        (pictures(), {"depth": np.ones((2, 1, 32, 48))}, 'Expected 3 targets of "depth", one an image, but got 2'),
        (pictures(), {"support": np.ones((3, 32, 48), bool)}, r"bool of \(32, 48\)"),
        (pictures(), {"image": np.ones((3, 1, 32, 48))}, 'A target cannot be called "image"'),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_advice(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayData(images, targets)


def test_arrays_as_opencv_gives_them_are_taken(recwarn: pytest.WarningsRecorder) -> None:
    """Turned from BGR by a view, read-only, or of another machine's byte order: the same images."""
    bgr = [np.ascontiguousarray(image.transpose(1, 2, 0)[..., ::-1]) for image in pictures()]
    turned = [image[..., ::-1].transpose(2, 0, 1) for image in bgr]
    fixed = pictures()
    fixed.setflags(write=False)
    depth = np.ones((3, 1, 32, 48), np.float32)
    plain = ArrayData(pictures(), {"depth": depth}).content_hash
    for images in (turned, fixed):
        assert ArrayData(images, {"depth": depth.astype(">f4")[..., ::-1]}).content_hash == plain
    assert not recwarn.list


@pytest.mark.parametrize(
    ("known", "target", "message"),
    [
        (tasks.depth(), np.ones((3, 32, 48), np.uint16), r'"depth" as N C H W, .* array\[:, None\]'),
        (tasks.semseg(["a", "b"]), np.ones((3, 1, 32, 48)), r'"semseg" as integers N H W, .* array\[:, 0\]'),
    ],
)
def test_targets_of_another_form_than_their_tasks_are_refused(known: Any, target: Any, message: str) -> None:
    data = ArrayData(pictures(), {known.name: [None, *target[1:]]})
    with pytest.raises(DataError, match=message):
        dense_scenario([known], {"train": data, "test": data}, base=[known.name], stream=[])


def test_images_of_several_sizes_are_learnt_from_with_features_kept_or_not() -> None:
    """The stream ends with the same bits whether features of the frozen backbone are kept."""
    rng = np.random.default_rng(0)
    sizes = [(32, 48), (40, 32), (32, 32), (40, 48)]
    images = [rng.random((3, *size), np.float32) for size in sizes]
    known = [tasks.depth(), tasks.reshading()]
    targets = {task.name: [rng.random((1, *size)) + 0.1 for size in sizes] for task in known}
    targets["reshading"][1] = None
    data = {"train": ArrayData(images, targets), "test": ArrayData(images[:2], {k: v[:2] for k, v in targets.items()})}
    scenario = dense_scenario(known, data, base=["depth"], stream=["reshading"])
    assert [len(experience.dataset) for experience in scenario.train_stream] == [4, 3]
    weights = []
    for where in ("memory", "off"):
        model = dense_model("test_efficientnet", pretrained=False)
        strategy = Medusa(model=model, batch_size=2, epochs=2, cache_features=where)
        for k, experience in enumerate(scenario.train_stream):
            strategy.train(experience, eval_streams=[])
            strategy.eval(scenario.test_stream[: k + 1])
        assert strategy.matrix.mean_forgetting() == 0
        weights.append(strategy.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# ---- what scripts rely on beside


def test_medusa_takes_what_dense_model_makes_or_the_network_in_it(tiny_scenario: Any) -> None:
    module = dense_model("test_efficientnet", pretrained=False, seed=5, batch_size=99)
    strategy = Medusa(model=module, seed=1, batch_size=2, max_steps=1)
    assert strategy.model.model is module.model
    assert (strategy.model.seed, strategy.model.batch_size) == (1, 2), "those of the strategy, not of the module"
    strategy.train(tiny_scenario.train_stream[0], eval_streams=[])
    assert list(module.model.tasks) == ["semseg", "depth"]


def test_the_matrix_of_a_strategy_is_that_of_its_evaluator(tiny_scenario: Any) -> None:
    evaluator = dense_evaluator()
    strategy = Medusa(model=dense_model("test_efficientnet", pretrained=False), evaluator=evaluator, max_steps=1)
    assert strategy.matrix is evaluator.metrics[2].matrix
    evaluator.metrics.pop(2)
    with pytest.raises(medusa_cl.MedusaError, match="dense_evaluator"):
        _ = strategy.matrix


def example(name: str) -> str:
    """The indented lines of a public name's docstring that come before its sections."""
    text = getattr(medusa_cl, name).__doc__ or ""
    before = re.split(r"\n    (?:Args|Attributes|Returns|Raises):", text)[0]
    return "\n".join(re.findall(r"^        (.*)$", before, re.MULTILINE))


def small(code: str) -> str:
    made = code.replace('dense_model("tf_efficientnet_lite0")', 'dense_model("test_efficientnet", pretrained=False)')
    return made.replace("base_steps=300, max_steps=200", "base_steps=1, max_steps=1").replace('"runs/', 'folder + "/')


def test_examples_in_docstrings_run_and_give_what_they_say(
    tiny_scenario: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avalanche.training.supervised import Naive

    monkeypatch.chdir(tmp_path)
    place = re.search(r'"runs/(.*?)"', example("load_model"))
    assert place is not None
    medusa_cl.save_model(tiny_model("depth"), tmp_path / place[1])
    arrays = {task: np.ones((2, size, 32, 48)) for task, size in (("depth", 1), ("normals", 3), ("edges", 1))}
    given = {name: getattr(medusa_cl, name) for name in medusa_cl._HOME}
    given |= {"np": np, "torch": torch, "tasks": tasks, "Naive": Naive, "dataclasses": __import__("dataclasses")}
    given |= {"scenario": tiny_scenario, "folder": str(tmp_path), "test_images": pictures(2)}
    given |= {"targets": arrays, "test_targets": arrays}
    shown = [name for name in sorted(medusa_cl._HOME) if example(name)]
    assert {"ArrayData", "DenseTask", "Medusa", "MedusaPlugin", "TaskMatrix", "dense_scenario", "load_model"} <= set(
        shown
    )
    for name in shown:
        names = given | {"images": torch.rand(2, 3, 32, 48) if name == "load_model" else pictures(2)}
        for statement, said in statements(small(example(name))):
            if said is None:
                exec(statement, names)
            else:
                assert repr(eval(statement, names)) == said, (name, statement)


def statements(code: str) -> list[tuple[str, str | None]]:
    """Split code into what is run, and expressions of one line with the value that the comment behind them says."""
    found: list[tuple[str, str | None]] = []
    for line in code.splitlines():
        statement, _, said = line.partition("  # ")
        value = said if re.match(r"^[\[(\d]", said) and " = " not in statement else None
        if found and line.startswith(" "):
            found[-1] = f"{found[-1][0]}\n{line}", None
        else:
            found.append((statement, value))
    return found
