from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from medusa_cl import tasks
from medusa_cl.errors import TaskError
from medusa_cl.tasks import BUILT_IN, DenseTask, from_description

SIZE = (6, 8)
VARIANTS = {
    "semseg": tasks.semseg(5),
    "semseg_named": tasks.semseg(["wall", "floor", "lamp"], name="things", loss_weight=3.0),
    "human_parts": tasks.human_parts(),
    "saliency": tasks.saliency(loss_weight=2.5),
    "edges": tasks.edges(tolerance=0.0075, name="contours"),
    "depth": tasks.depth(),
    "normals": tasks.normals(loss_weight=1.5),
    "reshading": tasks.reshading(),
    "albedo": tasks.albedo(loss_weight=2.0),
    "keypoints2d": tasks.keypoints2d(),
    "curvature": tasks.curvature(loss_weight=0.2),
    "regression": tasks.regression(3, unit="degC", shown=(10, 40), name="warmth"),
}


@pytest.fixture(params=sorted(VARIANTS))
def task(request: pytest.FixtureRequest) -> DenseTask:
    return VARIANTS[request.param]


def logits_for(task: DenseTask, batch: int = 2) -> Tensor:
    return torch.randn(batch, task.channels, *SIZE, generator=torch.Generator().manual_seed(0)) * 3


def target_for(task: DenseTask, ignored: bool = True) -> Tensor:
    """A target in the task's form, its first row ignored."""
    value = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(1))
    if task.kind in ("semseg", "human_parts"):
        target = (value[0] * task.channels).long()
    elif task.kind in ("curvature", "regression"):
        target = logits_for(task, 1)[0]
    elif task.kind == "albedo":
        target = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    elif task.kind == "normals":
        target = torch.nn.functional.normalize(logits_for(task, 1)[0], dim=0)
    else:
        target = (value > 0.5).float() if task.kind in ("edges", "saliency") else value + 0.1 * (task.kind == "depth")
    if ignored:
        target[..., 0, :] = task.ignore
    return target


def test_every_built_in_is_among_the_variants() -> None:
    assert {variant.kind for variant in VARIANTS.values()} == set(BUILT_IN)


def test_a_description_survives_json_and_makes_the_task_again(task: DenseTask) -> None:
    again = from_description(json.loads(json.dumps(task.describe())))
    assert again.describe() == task.describe()
    for key in ("name", "kind", "channels", "classes", "primary", "unit", "higher_is_better", "ignore", "loss_weight"):
        assert getattr(again, key) == getattr(task, key)
    logits, target = logits_for(task), target_for(task)
    assert torch.equal(again.decode(logits), task.decode(logits))
    assert torch.equal(again.loss(logits[:1], target[None])[0], task.loss(logits[:1], target[None])[0])


def test_names_of_classes_and_the_tolerance_are_described() -> None:
    assert from_description(VARIANTS["semseg_named"].describe()).classes == ("wall", "floor", "lamp")
    again = from_description(VARIANTS["edges"].describe())
    assert again.options["tolerance"] == 0.0075
    assert vars(again.metric())["tolerance"] == vars(VARIANTS["edges"].metric())["tolerance"]


def test_a_task_can_be_pickled(task: DenseTask) -> None:
    again = pickle.loads(pickle.dumps(task))
    assert again.describe() == task.describe()
    assert torch.equal(again.on_flip(target_for(task)), task.on_flip(target_for(task)))


def test_a_task_is_a_value(task: DenseTask) -> None:
    with pytest.raises(AttributeError):
        task.name = "other"  # type: ignore[misc]


def test_targets_are_drawn_with_their_ignored_pixels(task: DenseTask) -> None:
    picture = task.draw(target_for(task).numpy())
    assert picture.shape == (*SIZE, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture[0].reshape(-1, 3), axis=0)) == 1
    assert picture[1:].std() > 0


def test_predictions_are_drawn(task: DenseTask) -> None:
    picture = task.draw(task.decode(logits_for(task))[0].numpy())
    assert picture.shape == (*SIZE, 3)
    assert picture.dtype == np.uint8


def test_ignored_classes_are_black_and_labels_are_not() -> None:
    colours = tasks.palette()
    assert not colours[255].any()
    assert colours[:40].any(axis=1).all()
    assert len(np.unique(colours[:40], axis=0)) == 40


def test_predictions_have_the_form_of_targets(task: DenseTask) -> None:
    prediction, target = task.decode(logits_for(task))[0], target_for(task)
    assert prediction.shape == target.shape
    assert prediction.dtype == target.dtype


def test_the_metric_takes_what_decode_gives_and_answers_the_primary_first(task: DenseTask) -> None:
    metric = task.metric()
    metric.update(task.decode(logits_for(task, 1)), target_for(task)[None])
    assert next(iter(metric.compute())) == task.primary


def test_the_loss_reads_no_ignored_pixel(task: DenseTask) -> None:
    logits, target = logits_for(task, 1), target_for(task)[None]
    other = logits.clone()
    other[..., 0, :] += 100
    for ours, theirs in zip(task.loss(logits, target), task.loss(other, target), strict=True):
        assert torch.equal(ours, theirs)


def test_the_sign_is_the_metrics_direction() -> None:
    signs = {name: variant.sign for name, variant in VARIANTS.items()}
    assert {name for name, sign in signs.items() if sign == 1} == {
        "semseg", "semseg_named", "human_parts", "saliency", "edges",
    }  # fmt: skip
    assert {name for name, sign in signs.items() if sign == -1} == {
        "depth", "normals", "reshading", "albedo", "keypoints2d", "curvature", "regression",
    }  # fmt: skip


def test_a_flip_turns_normals_and_leaves_every_other_value(task: DenseTask) -> None:
    target = target_for(task)
    flipped = task.on_flip(target)
    if task.kind == "normals":
        assert torch.equal(flipped[0], -target[0])
        assert torch.equal(flipped[1:], target[1:])
        assert not flipped[:, 0].any()  # ignored stays ignored
    else:
        assert torch.equal(flipped, target)
    assert torch.equal(task.on_flip(flipped), target)


def test_a_zoom_brings_depth_nearer_and_leaves_every_other_value(task: DenseTask) -> None:
    target = target_for(task)
    zoomed = task.on_zoom(target, 1.5)
    if task.kind == "depth":
        torch.testing.assert_close(zoomed * 1.5, target)
        assert not zoomed[:, 0].any()
    else:
        assert torch.equal(zoomed, target)


def test_normals_are_drawn_in_the_usual_colours() -> None:
    facing = np.zeros((3, 1, 1), np.float32)
    facing[2] = -1
    assert tasks.normals().draw(facing)[0, 0].tolist() == pytest.approx([127, 127, 255], abs=1)


def test_an_unknown_kind_is_answered_by_the_nearest() -> None:
    described = tasks.depth().describe() | {"kind": "dept"}
    with pytest.raises(TaskError, match=r'"dept".*Did you mean "depth"\?.*own'):
        from_description(described)


CHANGED = {
    "unit": dataclasses.replace(tasks.depth(), unit="cm"),
    "primary": dataclasses.replace(tasks.depth(), primary="abs_rel"),
    "channels": dataclasses.replace(tasks.normals(), channels=4),
    "options": dataclasses.replace(tasks.depth(), options={"far": 3}),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_built_in_task_does_not_come_back_as_the_plain_one(what: str) -> None:
    described = json.loads(json.dumps(CHANGED[what].describe()))
    with pytest.raises(TaskError, match=r"DenseTask itself.*load_model\(tasks=.*load_head\(task="):
        from_description(described)


def test_what_was_changed_is_said() -> None:
    with pytest.raises(TaskError, match=r"\"depth\" is no built-in.*unit 'cm' \(built in: 'm'\)"):
        from_description(CHANGED["unit"].describe())


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a\\b", "type", "values", "keys", "training"])
def test_a_name_that_cannot_be_saved_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match="Rename it"):
        tasks.depth(name=name)
    with pytest.raises(TaskError, match="Rename it"):
        from_description(tasks.depth().describe() | {"name": name})


def test_one_class_is_none_to_choose_from() -> None:
    with pytest.raises(TaskError, match=r"at least 2 classes"):
        tasks.semseg(["all"])
