from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fake_data import DENSE, fake_dense_hdf5
from medusa_cl.errors import DataError, MissingDataError, TaskError
from medusa_cl.scenarios.nyud import FILE, find, nyud_incremental, nyud_tasks

FIELDS = [name for name in DENSE if name != "reshading"]


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDUSA_CL_DATA", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nyud")
    fake_dense_hdf5(path / FILE, {"train": 4, "test": 2}, fields=FIELDS, classes=40)
    return path


@pytest.mark.parametrize("root", [lambda folder: folder / FILE, lambda folder: folder], ids=["file", "folder"])
def test_the_root_may_be_the_file_or_its_folder(root: Callable[[Path], Path], folder: Path) -> None:
    scenario = nyud_incremental(root=str(root(folder)))
    assert scenario.name == "nyud_incremental"
    assert scenario.groups == [("semseg", "depth"), ("normals",), ("edges",)]
    assert [len(e.dataset) for e in scenario.train_stream] == [4, 4, 4]
    assert [len(e.dataset) for e in scenario.test_stream] == [2, 2, 2]
    assert scenario.augmentation.zooms == (1.0, 1.2, 1.5)


def test_a_file_of_another_name_may_be_the_root(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.h5").write_bytes((folder / FILE).read_bytes())
    assert find(str(tmp_path / "mine.h5")) == tmp_path / "mine.h5"


@pytest.mark.parametrize("place", ["environment", "environment file", "data", "cache"])
def test_the_usual_places_are_looked_at(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.startswith("environment"):
        monkeypatch.setenv("MEDUSA_CL_DATA", str(folder / FILE if place.endswith("file") else folder))
    else:
        target = tmp_path / ("cwd/data" if place == "data" else "cache")
        target.mkdir()
        (target / FILE).symlink_to(folder / FILE)
    assert len(nyud_incremental().train_stream) == 3


def test_the_environment_goes_before_the_other_places(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd" / "data").mkdir()
    (tmp_path / "cwd" / "data" / FILE).write_bytes(b"damaged")
    monkeypatch.setenv("MEDUSA_CL_DATA", str(folder))
    assert find(None) == folder / FILE


def test_missing_data_lists_the_places_and_the_way_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_CL_DATA", str(tmp_path / "mounted"))
    with pytest.raises(MissingDataError) as caught:
        nyud_incremental()
    message = str(caught.value)
    for place in (tmp_path / "mounted", Path("data"), tmp_path / "cache"):
        assert str(place / FILE) in message
    assert "scenario=rooms_incremental" in message
    assert "scenario.root" in message
    assert caught.value.exit_code == 2


def test_a_root_that_is_not_there_is_no_other_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUSA_CL_DATA", str(folder))
    with pytest.raises(MissingDataError, match=r"absent.h5"):
        nyud_incremental(root=str(tmp_path / "absent.h5"))


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_file_is_named(damage: str, folder: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "broken.h5", (folder / FILE).read_bytes()
    path.write_bytes(content[: len(content) // 3] if damage == "cut" else b"no hdf5 at all" * 100)
    with pytest.raises(DataError, match=r"broken\.h5") as caught:
        nyud_incremental(root=str(path))
    assert not isinstance(caught.value, MissingDataError)


def test_the_first_images_may_do(folder: Path) -> None:
    scenario = nyud_incremental(root=str(folder), train_size=3, test_size=1)
    assert {len(e.dataset) for e in scenario.train_stream} == {3}
    assert {len(e.dataset) for e in scenario.test_stream} == {1}
    with pytest.raises(DataError, match=r"1\.\.4.*got 5"):
        nyud_incremental(root=str(folder), train_size=5)


def test_names_are_checked_before_any_file_is_looked_for() -> None:
    for wrong in ({"stream": ["normls"]}, {"base": []}, {"stream": ["depth"]}):
        with pytest.raises(TaskError):
            nyud_incremental(root="absent.h5", **wrong)


@pytest.mark.parametrize("count", [0, 3])
def test_val_is_opened_where_the_file_has_images_of_it(count: int, folder: Path, tmp_path: Path) -> None:
    assert set(nyud_incremental(root=str(folder)).streams) == {"train", "test"}
    sizes = {"train": 4, "test": 2} | ({"val": count} if count else {})
    path = fake_dense_hdf5(tmp_path / FILE, sizes, fields=FIELDS, classes=40)
    scenario = nyud_incremental(root=str(path))
    if count:
        assert [len(e.dataset) for e in scenario.val_stream] == [count] * 3
        assert {e.augmentation for e in scenario.val_stream} == {None}
    assert ("val" in scenario.content_hash) == bool(count)


def test_base_stream_and_augmentation_are_chosen(folder: Path) -> None:
    chosen = nyud_incremental(root=str(folder), base=["edges"], stream=["depth"], augment={"flip": False})
    assert chosen.groups == [("edges",), ("depth",)]
    assert (chosen.augmentation.flip, chosen.augmentation.zooms) == (False, (1.0,))


def test_an_unknown_task_is_answered_by_the_nearest(folder: Path) -> None:
    with pytest.raises(TaskError, match=r'Did you mean "normals"\?'):
        nyud_incremental(root=str(folder), stream=["normls"])


def test_targets_have_the_shared_form(folder: Path) -> None:
    known = {task.name: task for task in nyud_tasks()}
    assert known["semseg"].channels == 40
    assert known["edges"].options == {"tolerance": 0.011}
    scenario = nyud_incremental(root=str(folder))
    samples = [experience.dataset[0] for experience in scenario.train_stream]
    targets = samples[0].targets | samples[1].targets | samples[2].targets
    assert {name: (tuple(t.shape), t.dtype) for name, t in targets.items()} == {
        "semseg": ((32, 48), torch.int64),
        "depth": ((1, 32, 48), torch.float32),
        "normals": ((3, 32, 48), torch.float32),
        "edges": ((1, 32, 48), torch.float32),
    }
    assert all((targets[name][..., 0, 0] == known[name].ignore).all() for name in targets)
    assert samples[0].image.dtype == torch.float32
    assert samples[0].image.max() <= 1
