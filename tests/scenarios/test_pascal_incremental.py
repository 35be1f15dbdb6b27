"""PASCAL-Context: images of many sizes, images without people, distilled labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_pascal import Written, write_pascal
from medusa_cl.data.loader import DenseLoader
from medusa_cl.errors import DataError, MissingDataError, TaskError
from medusa_cl.losses import at_size
from medusa_cl.prepare import prepare
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.pascal import pascal_incremental, pascal_tasks

DISTILLED = "labels distilled: agreement with a network's answers"
EDGES = "labels derived by medusa_cl: thinned Laplacian of the context labels"


pytestmark = pytest.mark.usefixtures("nothing_elsewhere")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A pack of 3 training and 3 test images of three sizes, not to be changed."""
    return write_pascal(tmp_path_factory.mktemp("pascal"), train=3, test=3)


@pytest.fixture(scope="module")
def scenario(written: Written) -> DenseScenario:
    return pascal_incremental(root=str(written.root))


def test_the_stream_and_the_line_that_says_what_was_found(written: Written, scenario: DenseScenario) -> None:
    assert scenario.name == "pascal_incremental"
    assert scenario.groups == [("semseg", "human_parts", "saliency"), ("normals",), ("edges",)]
    assert scenario.about == (
        f"PASCAL_MT (PASCAL-Context) at {written.root}: 3 of 4998 train, 3 of 5105 test images of 48x64; "
        f"semseg, human_parts, saliency, normals (stored as rub), edges; "
        f"edges: {EDGES}; normals: {DISTILLED}; saliency: {DISTILLED}; "
        "edges computed at every read: python -m medusa_cl.prepare keeps such labels"
    )
    assert scenario.label_notes == {"edges": EDGES, "normals": DISTILLED, "saliency": DISTILLED}
    assert (scenario.augmentation.rotation, scenario.augmentation.scale) == (20.0, (0.75, 1.25))


def test_only_what_is_learnt_is_noted(written: Written) -> None:
    notes = pascal_incremental(root=str(written.root), base=["semseg"], stream=["normals"]).label_notes
    assert notes == {"normals": DISTILLED}


def test_tasks_are_those_of_the_field() -> None:
    known = {task.name: task for task in pascal_tasks()}
    assert {name: task.channels for name, task in known.items()} == {
        "semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3, "edges": 1,
    }  # fmt: skip
    assert known["edges"].options == {"tolerance": 0.0075}
    weights = {name: task.loss_weight for name, task in known.items()}
    assert weights == {"semseg": 1, "human_parts": 2, "saliency": 5, "normals": 10, "edges": 50}


def test_an_image_without_people_is_ignored_and_others_are_not(written: Written, scenario: DenseScenario) -> None:
    parts = [scenario.train_stream[0].dataset[i].targets["human_parts"] for i in range(3)]
    assert (parts[2] == 255).all()
    for image, target in zip(written.train[:2], parts, strict=False):
        height, width = written.sizes[image]
        assert set(target[:height, :width].unique().tolist()) == set(range(7))
    loss, count = scenario.tasks["human_parts"].loss(torch.randn(1, 7, *parts[2].shape), parts[2][None])
    assert (float(loss), float(count)) == (0, 0)


def test_images_of_many_sizes_make_batches(written: Written, scenario: DenseScenario) -> None:
    tasks = scenario.tasks
    train = DenseLoader(
        scenario.train_stream[0].dataset, 3, key=(0,), tasks=tasks, augmentation=scenario.augmentation, train=True
    )
    test = DenseLoader(scenario.test_stream[0].dataset, 3, tasks=tasks)
    assert len(set(written.sizes.values())) == 3
    for loader in (train, test):
        ((images, targets, _),) = list(loader)
        assert images.shape == (3, 3, 48, 64)
        assert {name: tuple(e.value.shape[-2:]) for name, e in targets.entries.items()} == {
            name: (48, 64) for name in ("semseg", "human_parts", "saliency")
        }


def test_what_is_beside_an_image_is_ignored(written: Written, scenario: DenseScenario) -> None:
    for stream in scenario.test_stream:
        for position, image in enumerate(written.test):
            height, width = written.sizes[image]
            sample = stream.dataset[position]
            for name, target in sample.targets.items():
                ignore = scenario.tasks[name].ignore
                assert (target[..., height:, :] == ignore).all() and (target[..., :, width:] == ignore).all()
                if name == "semseg":
                    assert torch.equal(target[:height, :width], torch.as_tensor(written.semseg[image]).long())


def padded_and_alone(scenario: DenseScenario, written: Written, name: str, seed: int) -> tuple[Any, Any]:
    """A task's metric of random logits: of one padded batch, and image by image, cut to the image's own pixels."""
    task, k = scenario.tasks[name], next(i for i, group in enumerate(scenario.groups) if name in group)
    ((_, targets, _),) = list(DenseLoader(scenario.test_stream[k].dataset, 3, tasks=scenario.tasks))
    target = targets.entries[name].value
    coarse = torch.randn(3, task.channels, 12, 16, generator=torch.Generator().manual_seed(seed))
    logits = at_size(coarse, (48, 64))
    together, apart = task.metric(), task.metric()
    together.update(task.decode(logits), target)
    for i, image in enumerate(written.test):
        height, width = written.sizes[image]
        own: Tensor = target[i : i + 1, ..., :height, :width]
        apart.update(task.decode(logits[i : i + 1, :, :height, :width]), own)
    return together.compute(), apart.compute()


SCORED = ["semseg", "human_parts", "saliency", "normals", "edges"]


@pytest.mark.parametrize("name", SCORED)
def test_metrics_are_of_the_images_own_pixels(name: str, scenario: DenseScenario, written: Written) -> None:
    for seed in range(4):
        together, apart = padded_and_alone(scenario, written, name, seed)
        assert {key: float(v) for key, v in together.items()} == pytest.approx(
            {key: float(v) for key, v in apart.items()}, rel=1e-6, nan_ok=True
        )


@pytest.mark.parametrize("name", SCORED)
def test_a_larger_canvas_changes_no_metric(name: str, scenario: DenseScenario, written: Written) -> None:
    """The protocol's 512x512, in small."""
    large = pascal_incremental(root=str(written.root), image_size=[96, 96])
    assert large.test_stream[0].dataset[0].image.shape == (3, 96, 96)
    k = next(i for i, group in enumerate(scenario.groups) if name in group)
    task, values = scenario.tasks[name], []
    for one in (scenario, large):
        metric = task.metric()
        for i, image in enumerate(written.test):
            height, width = written.sizes[image]
            target = one.test_stream[k].dataset[i].targets[name][None]
            logits = torch.zeros(1, task.channels, *target.shape[-2:])
            own = torch.Generator().manual_seed(i)
            logits[..., :height, :width] = torch.randn(1, task.channels, height, width, generator=own)
            metric.update(task.decode(logits), target)
        values.append({key: float(v) for key, v in metric.compute().items()})
    assert values[0] == pytest.approx(values[1], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("options", [{}, {"image_size": [64, 64]}, {"val_fraction": 0.4}])
def test_a_prepared_file_gives_the_packs_samples_to_the_bit(
    options: Any, written: Written, scenario: DenseScenario, tmp_path: Path
) -> None:
    prepare(written.root, tmp_path / "PASCAL_MT.h5", workers=1)
    direct = pascal_incremental(root=str(written.root), **options)
    made = pascal_incremental(root=str(tmp_path), **options)
    assert made.label_notes == direct.label_notes
    assert made.about.startswith(f"prepared file {tmp_path}/PASCAL_MT.h5 (pascal_mt): ")
    for split in direct.streams:
        for one, other in zip(direct.streams[split], made.streams[split], strict=True):
            for i in range(len(one.dataset)):
                first, second = one.dataset[i], other.dataset[i]
                assert torch.equal(first.image, second.image)
                assert all(torch.equal(first.targets[name], second.targets[name]) for name in first.targets)


def test_the_first_images_of_a_prepared_file_are_padded_as_the_packs(written: Written, tmp_path: Path) -> None:
    prepare(written.root, tmp_path / "PASCAL_MT.h5", workers=1)
    for root in (written.root, tmp_path):
        first = pascal_incremental(root=str(root), train_size=1, test_size=1)
        assert first.train_stream[0].dataset[0].image.shape == (3, *written.sizes[written.train[0]])


def test_the_frame_of_normals_may_be_said(written: Written, scenario: DenseScenario) -> None:
    other = pascal_incremental(root=str(written.root), normals_frame="rdf")
    found, said = (s.test_stream[1].dataset[0].targets["normals"] for s in (scenario, other))
    assert torch.equal(found, said * torch.tensor([1, -1, -1]).view(3, 1, 1))


def test_fetching_is_answered_with_the_steps_by_hand() -> None:
    with pytest.raises(MissingDataError) as caught:
        pascal_incremental(download=True)
    assert "PASCAL-Context was not found" in str(caught.value)
    assert "PASCAL_MT.tgz" in str(caught.value) and "tar -xzf" in str(caught.value)
    assert caught.value.exit_code == 2


def test_names_are_checked_before_any_file_is_looked_for() -> None:
    with pytest.raises(TaskError, match='Did you mean "human_parts"'):
        pascal_incremental(root="absent", base=["human_part"])


def test_a_split_without_people_is_refused(tmp_path: Path) -> None:
    written = write_pascal(tmp_path, train=1, test=1)  # the one training image is without people
    with pytest.raises(DataError, match=r"PASCAL_MT \(train.*`human_parts`"):
        pascal_incremental(root=str(written.root), normals_frame="rub")
    assert pascal_incremental(root=str(written.root), normals_frame="rub", base=["semseg"]).base == ("semseg",)
