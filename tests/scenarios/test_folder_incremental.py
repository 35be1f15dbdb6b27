"""A folder of one's own data as a stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_folder import CLASSES, UNKNOWN, Written, save, write_folder
from medusa_cl import tasks
from medusa_cl.data.hdf5 import Field
from medusa_cl.data.loader import DenseLoader
from medusa_cl.errors import ConfigError, DataError, TaskError
from medusa_cl.losses import UNKNOWN as MARK
from medusa_cl.prepare import prepare
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.folder import folder_incremental

TASKS = ("semseg", "depth", "normals", "edges", "temperature")


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """4 training and 2 test images; training image 1 has no temperature. Not to be changed."""
    return write_folder(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def prepared(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "own.h5"
    prepare(written.root, path, workers=1)
    return path


def groups(root: Path, **options: Any) -> list[tuple[str, ...]]:
    return folder_incremental(root=str(root), **options).groups


def test_the_order_of_tasks_yaml_makes_the_stream(written: Written) -> None:
    scenario = folder_incremental(root=str(written.root))
    assert scenario.name == "folder_incremental"
    assert scenario.groups == [(name,) for name in TASKS]
    assert scenario.about == (
        f"folder of your own data at {written.root}: 4 train, 2 test images of 48x48; "
        "semseg, depth, normals (stored as rub), edges, temperature"
    )
    assert scenario.label_notes == {}
    assert scenario.tasks["semseg"].classes == CLASSES
    assert scenario.augmentation.flip and scenario.augmentation.zooms == (1.0,)


def test_another_order_in_tasks_yaml_makes_another_stream(tmp_path: Path) -> None:
    text = "edges: {kind: edges}\nsemseg: {kind: semseg, classes: [floor, wall, cup]}\n"
    written = write_folder(tmp_path / "own", tasks_yaml=text)
    for name in ("depth", "normals", "temperature"):
        (written.root / name).rename(written.root / f"_{name}")
    assert groups(written.root) == [("edges",), ("semseg",)]


def test_a_prepared_file_keeps_the_order_of_tasks_yaml(prepared: Path) -> None:
    assert groups(prepared) == [(name,) for name in TASKS]


def test_base_or_stream_alone_leave_the_rest_to_the_other(written: Written) -> None:
    rest = [(name,) for name in TASKS if name not in ("depth", "edges")]
    assert groups(written.root, base=["edges", "depth"]) == [("edges", "depth"), *rest]
    assert groups(written.root, stream=["edges", "depth"]) == [
        ("semseg", "normals", "temperature"), ("edges",), ("depth",),
    ]  # fmt: skip
    assert groups(written.root, base=["depth"], stream=["edges"]) == [("depth",), ("edges",)]


def test_one_task_alone_is_learnt_too(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "own", tasks_yaml="edges: {kind: edges}\n")
    for name in TASKS:
        if name != "edges":
            (written.root / name).rename(written.root / f"_{name}")
    assert groups(written.root) == [("edges",)]


def test_a_task_may_be_held_out_without_naming_the_others(written: Written) -> None:
    assert groups(written.root, held_out="depth") == [("semseg", "normals", "edges", "temperature"), ("depth",)]


def test_wrong_names_are_answered(written: Written) -> None:
    with pytest.raises(TaskError, match='Did you mean "temperature"'):
        groups(written.root, stream=["temprature"])
    with pytest.raises(TaskError, match='Did you mean "depth"'):
        groups(written.root, held_out="deph")


def test_no_root_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"scenario\.root=DIR.*tasks\.yaml"):
        folder_incremental()


def test_values_of_a_quantity_of_ones_own(written: Written) -> None:
    """16-bit numbers become degrees; unknown pixels and padding are ignored, by the loss and the metric too."""
    scenario = folder_incremental(root=str(written.root))
    task = scenario.tasks["temperature"]
    assert (task.kind, task.unit, task.higher_is_better) == ("regression", "degC", False)
    experience = scenario.test_stream[4]
    for position, image in enumerate(written.test):
        height, width = written.sizes[image]
        values = torch.as_tensor(written.values["temperature"][image])
        target = experience.dataset[position].targets["temperature"][0]
        known = values != UNKNOWN
        torch.testing.assert_close(target[:height, :width][known], values[known].float())
        assert (target[:height, :width][~known] == MARK).all() and not known.all()
        assert (target[height:] == MARK).all() and (target[:, width:] == MARK).all()
        metric = task.metric()
        metric.update(torch.where(target == MARK, 0, target + 2)[None, None], target[None, None])
        assert float(metric.compute()[task.primary]) == pytest.approx(2, rel=1e-4)


def test_an_image_may_lack_a_target(written: Written) -> None:
    scenario = folder_incremental(root=str(written.root), base=["semseg", "temperature"], stream=["depth"])
    base = scenario.train_stream[0].dataset
    assert [list(base[i].targets) for i in range(4)] == [
        ["semseg", "temperature"], ["semseg"], ["semseg", "temperature"], ["semseg", "temperature"],
    ]  # fmt: skip
    alone = folder_incremental(root=str(written.root)).train_stream[4].dataset
    assert [alone[i].index for i in range(len(alone))] == [0, 2, 3]
    ((images, targets, _),) = list(DenseLoader(base, 4, tasks=scenario.tasks))
    assert images.shape == (4, 3, 48, 48)
    assert targets.entries["temperature"].rows.tolist() == [0, 2, 3]


def test_a_prepared_file_needs_no_yaml(written: Written, prepared: Path) -> None:
    direct = folder_incremental(root=str(written.root), base=["semseg", "depth"], stream=TASKS[2:])
    made = folder_incremental(root=str(prepared), base=["semseg", "depth"], stream=TASKS[2:])
    assert made.groups == direct.groups
    assert made.about == direct.about.replace(f"folder of your own data at {written.root}", f"prepared file {prepared} (folder)")  # fmt: skip  # noqa: E501
    assert {n: t.describe() for n, t in made.tasks.items()} == {n: t.describe() for n, t in direct.tasks.items()}
    for split in ("train", "test"):
        for one, other in zip(direct.streams[split], made.streams[split], strict=True):
            for i in range(len(one.dataset)):
                first, second = one.dataset[i], other.dataset[i]
                assert torch.equal(first.image, second.image) and list(first.targets) == list(second.targets)
                assert all(torch.equal(first.targets[name], second.targets[name]) for name in first.targets)


def test_a_fraction_in_tasks_yaml_splits(tmp_path: Path) -> None:
    text = "depth: {kind: depth, scale: 0.001}\nsplits: {test: 0.4, val: 0.2}\n"
    written = write_folder(tmp_path / "own", train=6, test=0, tasks_yaml=text, splits=False)
    for name in TASKS:
        if name != "depth":
            (written.root / name).rename(written.root / f"_{name}")
    scenario = folder_incremental(root=str(written.root))
    assert set(scenario.data) == {"train", "val", "test"}
    assert sum(len(data) for data in scenario.data.values()) == 6
    with pytest.raises(ConfigError, match="val split"):
        folder_incremental(root=str(written.root), val_fraction=0.5)


def metres(name: str = "depth") -> tasks.DenseTask:
    """Metres, learnt and judged as a plain quantity."""
    return tasks.regression(name=name, unit="m")


def test_a_task_made_in_python_goes_before_that_of_tasks_yaml(written: Written) -> None:
    """tasks.yaml still says how the files are read: millimetres."""
    scenario = folder_incremental(root=str(written.root), tasks={"depth": metres()}, stream=["depth"])
    assert (scenario.tasks["depth"].kind, scenario.tasks["semseg"].kind) == ("regression", "semseg")
    assert scenario.groups[1:] == [("depth",)]
    assert float(scenario.test_stream[1].dataset[0].targets["depth"][0, 20, 20]) == pytest.approx(2.004)


def test_a_task_of_ones_own_kind_says_how_it_is_stored(written: Written) -> None:
    own = dataclasses.replace(metres(), kind="metres")
    stored = Field(dtype="<f4", kind="value", unit="m", ignore=MARK)
    made = folder_incremental(root=str(written.root), tasks={"depth": own}, fields={"depth": stored}, stream=["depth"])
    assert float(made.test_stream[1].dataset[0].targets["depth"][0, 20, 20]) == pytest.approx(2.004)
    with pytest.raises(ConfigError, match=r"metres.*not built in"):
        folder_incremental(root=str(written.root), tasks={"depth": own})


def test_a_task_made_in_python_may_be_learnt_from_a_prepared_file(prepared: Path) -> None:
    heavier = tasks.depth(loss_weight=7)
    made = folder_incremental(root=str(prepared), tasks={"depth": heavier}, base=["depth"], stream=["edges"])
    assert made.tasks["depth"] is heavier


def test_a_task_that_takes_another_value_for_no_label_is_refused(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"`depth` is stored with 0 for no label, but its task takes -1e\+09"):
        folder_incremental(root=str(prepared), tasks={"depth": metres()})
    few = tasks.semseg(2)
    with pytest.raises(DataError, match=r"`semseg` has 3 classes, but its task 2"):
        folder_incremental(root=str(prepared), tasks={"semseg": few})


def test_python_alone_describes_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for image, split in (("a", "train"), ("b", "test")):
        save(root / "images" / f"{image}.png", np.full((32, 40, 3), 90, np.uint8))
        save(root / "height" / f"{image}.npy", np.full((32, 40), 1.5, np.float32))
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.txt").write_text(f"{image}\n")
    scenario = folder_incremental(root=str(root), tasks={"height": metres("height")})
    assert scenario.groups == [("height",)]
    assert float(scenario.train_stream[0].dataset[0].targets["height"].max()) == 1.5


def test_a_damaged_target_names_its_file(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "own")
    path = written.root / "normals" / f"{written.train[3]}.npy"
    path.write_bytes(path.read_bytes()[:-40])
    dataset = folder_incremental(root=str(written.root)).train_stream[2].dataset
    with pytest.raises(DataError, match=r"normals/.*\.npy"):
        _ = dataset[3]


def test_nothing_is_written_into_the_folder(written: Written) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in (written.root, *written.root.rglob("*")))
    scenario: DenseScenario = folder_incremental(root=str(written.root), on_bad_sample="skip", val_fraction=0.25)
    assert len(scenario.data["val"]) == 1
    assert sorted((str(p), p.stat().st_mtime_ns) for p in (written.root, *written.root.rglob("*"))) == before
