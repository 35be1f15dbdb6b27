from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fake_folder import CLASSES, TASKS_YAML, UNKNOWN, Written, save, write_folder
from medusa_cl import losses, tasks
from medusa_cl.data import folder_tasks
from medusa_cl.data.folder import FolderPack
from medusa_cl.data.hdf5 import Field, decode, encode
from medusa_cl.errors import ConfigError, DataError, MissingDataError

ROOT = Path(__file__).parents[2]
SIZE = (6, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def pack(written: Written) -> FolderPack:
    return FolderPack(written.root)


@pytest.fixture
def own(tmp_path: Path) -> Written:
    """One that a test may damage."""
    return write_folder(tmp_path)


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    paths = sorted(root.rglob("*"))
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "", path.stat().st_mtime_ns)
        for path in paths
    }


def stored_as(root: Path, entry: str, array: Any, suffix: str = ".npy", name: str = "target") -> FolderPack:
    """Return the pack of a folder with two images of 6 x 8, the first of which has one target as given."""
    for image in ("a", "b"):
        save(root / "images" / f"{image}.png", np.zeros((*SIZE, 3), np.uint8))
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{'train' if image == 'a' else 'test'}.txt").write_text(image)
    save(root / name / f"a{suffix}", np.asarray(array))
    (root / "tasks.yaml").write_text(f"{name}: {{{entry}}}\n")
    return FolderPack(root)


def read(root: Path, entry: str, array: Any, suffix: str = ".npy") -> Any:
    """Return values that were stored in a file, as they come out of our format."""
    pack = stored_as(root, entry, array, suffix)
    field, values = pack.fields["target"], pack.target("a", "target")
    assert values is not None
    return decode(field, encode(field, values))


def around(value: float, dtype: str, at: Mapping[tuple[int, int], float]) -> np.ndarray:
    array = np.full(SIZE, value, dtype)
    for place, other in at.items():
        array[place] = other
    return array


# The whole folder --------------------------------------------------------------------------------------------------


def test_splits_sizes_and_tasks(pack: FolderPack, written: Written) -> None:
    assert pack.splits == {"train": written.train, "test": written.test}
    assert list(pack.fields) == list(pack.tasks) == ["semseg", "depth", "normals", "edges", "temperature"]
    assert pack.tasks["semseg"].classes == CLASSES == pack.fields["semseg"].classes
    assert pack.tasks["edges"].options == {"tolerance": 0.01}
    assert (pack.tasks["temperature"].kind, pack.tasks["temperature"].unit) == ("regression", "degC")
    assert pack.attrs["source"] == "folder" and pack.attrs["source_frame"] == "rub" and pack.derived == {}
    assert {pack.size(image) for image in written.train} == set(written.sizes.values())


def test_images_are_upright(pack: FolderPack, written: Written) -> None:
    for image, (height, width) in written.sizes.items():
        pixels = pack.image(image).astype(int)
        assert pixels.shape == (height, width, 3)
        assert abs(pixels[3, 3] - written.colours[image]).max() <= 3
        assert abs(pixels[3, -3] - 128).max() <= 3 and abs(pixels[-3, 3] - 128).max() <= 3


@pytest.mark.parametrize("task", ["semseg", "depth", "normals", "edges", "temperature"])
def test_values_are_those_written(pack: FolderPack, written: Written, task: str) -> None:
    field = pack.fields[task]
    for image in written.train + written.test:
        if image not in written.values[task]:
            assert task == "temperature" and image == "kitchen/001"
            continue
        values = pack.target(image, task)
        assert values is not None and pack.has(image, task)
        np.testing.assert_allclose(decode(field, encode(field, values)), written.values[task][image], rtol=1e-6)


def test_partial_labels(pack: FolderPack) -> None:
    assert not pack.has("kitchen/001", "temperature") and pack.has("kitchen/003", "temperature")
    assert pack.target("kitchen/001", "temperature") is None and pack.files("kitchen/001", "temperature") == ()


def test_files_are_named(pack: FolderPack, written: Written) -> None:
    assert pack.files("000", "depth") == (written.root / "depth" / "000.tiff",)
    assert pack.files("000", "image") == (written.root / "images" / "000.PNG",)
    assert pack.files("kitchen/001", "depth") == (written.root / "depth" / "kitchen" / "001.png",)


def test_descriptions_make_the_tasks_again(pack: FolderPack) -> None:
    import json

    for name, described in json.loads(json.dumps(pack.attrs["tasks"])).items():
        assert tasks.from_description(described).describe() == pack.tasks[name].describe()
    assert pack.attrs["tasks"]["temperature"]["stored"] == {
        **{"folder": "temperature", "scale": 0.01, "offset": -273.15, "ignore": [0], "frame": "rdf"}
    }


def test_nothing_is_written(own: Written) -> None:
    before = snapshot(own.root)
    pack = FolderPack(own.root)
    for image in own.train + own.test:
        pack.image(image)
        for task in pack.fields:
            pack.target(image, task)
    assert snapshot(own.root) == before


def test_a_pickled_copy_reads_without_torch(own: Written, tmp_path: Path) -> None:
    mine = tasks.regression(unit="K", name="temperature")
    object.__setattr__(mine, "draw", lambda target: target)  # which cannot be pickled
    pack = FolderPack(own.root, tasks={"temperature": mine})
    (tmp_path / "pack.pkl").write_bytes(pickle.dumps(pack))
    code = (
        "import pickle, sys\n"
        f"pack = pickle.load(open({str(tmp_path / 'pack.pkl')!r}, 'rb'))\n"
        "[pack.target('000', t) for t in pack.fields]; pack.image('000')\n"
        "assert 'torch' not in sys.modules\n"
        "print(len(pack.fields), pack.splits['train'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"5 {own.train}"


# Splits --------------------------------------------------------------------------------------------------------------


def test_fractions_depend_on_ids_alone(tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path / "images" / f"{number:03d}.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "edges" / "000.png", np.zeros((4, 4), np.uint8))
    said = tmp_path / "tasks.yaml"
    said.write_text("edges: {kind: edges}\nsplits: {test: 0.3}")
    before = FolderPack(tmp_path).splits
    assert set(before) == {"train", "test"} and not set(before["train"]) & set(before["test"])
    # Written down: no other version, machine or order of files may move an image to another split.
    tested = "000 010 015 018 023 026 029 031 034 035 037 040 042 044 045 049 050 057 058 059"
    assert before["test"] == tuple(tested.split()) and len(before["train"]) == 40
    said.write_text("edges: {kind: edges}\nsplits: 0.3")
    assert FolderPack(tmp_path).splits == before
    said.write_text("edges: {kind: edges}\nsplits: {val: 0.3, test: 0.3}")
    three = FolderPack(tmp_path).splits
    assert three["test"] == before["test"] and set(three["val"]) < set(before["train"])
    said.write_text("edges: {kind: edges}\nsplits: {test: 0.3}")
    for number in range(60, 80):
        save(tmp_path / "images" / f"{number:03d}.png", np.zeros((4, 4, 3), np.uint8))
    after = FolderPack(tmp_path).splits
    for split in ("train", "test"):
        assert set(before[split]) <= set(after[split])


def test_val_and_blanks_in_names(own: Written) -> None:
    (own.root / "images" / "my room.png").write_bytes((own.root / "images" / "000.PNG").read_bytes())
    (own.root / "splits" / "val.txt").write_text("\ufeffmy room\r\n\r\n", encoding="utf-8")
    assert FolderPack(own.root).splits["val"] == ("my room",)


def test_an_image_in_no_split_is_left_out(own: Written) -> None:
    (own.root / "splits" / "train.txt").write_text("000")
    assert FolderPack(own.root).splits["train"] == ("000",)


# What is stored ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "u1"), (".png", "u2"), (".npy", "i8"), (".tiff", "f4")])
def test_labels(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = around(1, dtype, {(0, 1): 2, (5, 7): 0, (3, 2): 255, (2, 2): 7})
    labels = read(tmp_path, "kind: semseg, classes: 3, ignore: 7", array, suffix)
    assert (labels[0, 1], labels[5, 7], labels[3, 2], labels[2, 2], labels[1, 0]) == (2, 0, 255, 255, 1)
    assert np.bincount(labels.ravel()).tolist()[:3] == [1, 44, 1]


def test_several_ignored_labels(tmp_path: Path) -> None:
    array = around(1, "i4", {(0, 0): -1, (0, 1): 0, (0, 2): 65535})
    labels = read(tmp_path, "kind: semseg, classes: [no_one, wall], ignore: [-1, 0, 65535]", array)
    assert labels[0].tolist() == [255, 255, 255, 1, 1, 1, 1, 1]


def test_palettes_hold_numbers(tmp_path: Path) -> None:
    pack = stored_as(tmp_path, "kind: semseg, classes: 4", around(0, "u1", {(2, 5): 3}), ".png")
    picture = Image.fromarray(around(0, "u1", {(2, 5): 3}), mode="P")
    picture.putpalette([200] * 768)
    picture.save(pack.files("a", "target")[0])
    labels = np.asarray(pack.target("a", "target"))
    assert labels[2, 5] == 3 and labels.sum() == 3


@pytest.mark.parametrize("kind", ["edges", "saliency"])
@pytest.mark.parametrize(
    ("values", "dtype", "suffix", "expected"),
    [
        ((0, 1, 1), "u1", ".png", (0, 1, 1)),
        ((0, 255, 0), "u1", ".png", (0, 1, 0)),
        ((0, 3, 3), "u1", ".png", (0, 1, 1)),
        ((127, 128, 200), "u1", ".png", (0, 1, 1)),
        ((0, 1, 0), "?", ".png", (0, 1, 0)),
        ((0, 65535, 30000), "u2", ".png", (0, 1, 0)),
        ((0.4, 0.6, 1.0), "f4", ".tiff", (0, 1, 1)),
        ((0, 1, 0), "i8", ".npy", (0, 1, 0)),
        ((np.nan, 1, 0), "f8", ".npy", (255, 1, 0)),
    ],
)
def test_yes_and_no(tmp_path: Path, kind: str, values: Any, dtype: str, suffix: str, expected: Any) -> None:
    array = np.zeros(SIZE, dtype)
    array[2, 3:6] = values
    found = read(tmp_path, f"kind: {kind}", array, suffix)
    assert tuple(found[2, 3:6]) == expected and found[0, 0] == 0


def test_yes_no_and_ignored(tmp_path: Path) -> None:
    array = around(0, "u1", {(1, 1): 1, (2, 2): 255})
    found = read(tmp_path, "kind: edges, ignore: 255", array, ".png")
    assert (found[1, 1], found[2, 2], found[0, 0]) == (1, 255, 0)


@pytest.mark.parametrize(
    ("entry", "stored", "dtype", "suffix", "metres"),
    [
        ("scale: 0.001", (0, 1, 65535), "u2", ".png", (0, 0.001, 65.535)),
        ("scale: 1e-3, ignore: 65535", (0, 1500, 65535), "u2", ".png", (0, 1.5, 0)),
        ("", (0, 81.25, np.nan), "f4", ".tiff", (0, 81.25, 0)),
        ("", (np.inf, 1.23456789, 0), "f8", ".npy", (0, np.float32(1.23456789), 0)),
        ("scale: -1, ignore: -1000", (-2, -1000, -3), "f4", ".npy", (2, 0, 3)),
        ("scale: 0.01, offset: 1, ignore: 0, unit: m", (0, 100, 200), "u1", ".png", (0, 2, 3)),
    ],
)
def test_depth(tmp_path: Path, entry: str, stored: Any, dtype: str, suffix: str, metres: Any) -> None:
    array = np.full(SIZE, stored[1], dtype)
    array[4, 1:4] = stored
    found = read(tmp_path, f"kind: depth, {entry}", array, suffix)
    assert found.dtype == np.float32 and found[4, 1:4].tolist() == pytest.approx(list(metres), rel=1e-7)


@pytest.mark.parametrize(
    ("entry", "stored", "dtype", "expected"),
    [
        ("scale: 0.01, offset: -273.15, ignore: 0", (29315, 0, 27315), "u2", (20, UNKNOWN, 0)),
        ("", (-5.5, np.nan, 0), "f4", (-5.5, UNKNOWN, 0)),
        ("ignore: nan", (-5.5, -np.inf, 255), "f8", (-5.5, UNKNOWN, 255)),
        ("ignore: [.nan, -9999.9]", (1, -9999.9, 2), "f4", (1, UNKNOWN, 2)),
    ],
)
def test_regression(tmp_path: Path, entry: str, stored: Any, dtype: str, expected: Any) -> None:
    array = np.full(SIZE, stored[0], dtype)
    array[1, 5:8] = stored
    found = read(tmp_path, f"kind: regression, {entry}", array)
    assert found[1, 5:8].tolist() == pytest.approx(list(expected), abs=1e-4)
    assert (found == losses.UNKNOWN).sum() == 1


def test_regression_of_several_channels(tmp_path: Path) -> None:
    array = np.arange(6 * 8 * 2, dtype=np.float32).reshape(6, 8, 2)
    array[0, 1, 1], array[5, 2] = np.nan, -1
    pack = stored_as(tmp_path, "kind: regression, channels: 2, unit: px, scale: 2, ignore: -1", array)
    assert pack.fields["target"].components == 2 == pack.tasks["target"].channels
    values = np.asarray(pack.target("a", "target"))
    assert values.shape == (6, 8, 2) and values[1, 0].tolist() == [32, 34]
    assert (values[0, 1] == UNKNOWN).all() and (values[5, 2] == UNKNOWN).all() and (values == UNKNOWN).sum() == 4


@pytest.mark.parametrize("kind", ["reshading", "keypoints2d"])
@pytest.mark.parametrize(
    ("entry", "stored", "dtype", "suffix"),
    [("", 51, "u1", ".png"), ("", 13107, "u2", ".png"), ("", 0.2, "f4", ".tiff"), (", scale: 0.01", 20, "u1", ".png")],
)
def test_shares(tmp_path: Path, kind: str, entry: str, stored: float, dtype: str, suffix: str) -> None:
    array = around(0, dtype, {(3, 4): stored, (0, 7): 7})
    found = read(tmp_path, f"kind: {kind}, ignore: 7{entry}", array, suffix)
    assert found[3, 4] == pytest.approx(0.2, abs=0.002) and found[0, 0] == 0 and found[0, 7] == 255


def test_albedo(tmp_path: Path) -> None:
    array = np.full((*SIZE, 3), 255, np.uint8)
    array[2, 3], array[0, 0] = (51, 0, 255), 7
    found = read(tmp_path, "kind: albedo, ignore: 7", array, ".png")
    assert found[2, 3].tolist() == pytest.approx([0.2, 0, 1], abs=0.002) and found[1, 1].tolist() == [1, 1, 1]
    assert found[0, 0].tolist() == [255, 255, 255]


def test_curvature(tmp_path: Path) -> None:
    array = np.zeros((*SIZE, 2), np.float32)
    array[2, 3], array[0, 0] = (1.5, -2), np.nan
    found = read(tmp_path, "kind: curvature", array)
    assert found[2, 3].tolist() == [1.5, -2] and found[0, 0].tolist() == [255, 255] and found[1, 1].tolist() == [0, 0]


@pytest.mark.parametrize(("dtype", "suffix"), [("u1", ".png"), ("u2", ".tiff"), ("f4", ".npy")])
def test_normals(tmp_path: Path, dtype: str, suffix: str) -> None:
    up, right, black, short = (0, 1, 0), (1, 0, 0), (-1, -1, -1), (0, 0, 0)
    array = np.zeros((*SIZE, 3))
    array[:] = (0, 0, 1)  # back to the camera, where z points back
    array[5, 2], array[1, 6], array[0, 0], array[0, 1] = up, right, black if dtype != "f4" else short, short
    array[0, 2] = (0.6, 0, 0.8)
    if dtype != "f4":
        array = np.rint((array + 1) / 2 * np.iinfo(dtype).max)
    ignored = [round(float(v), 6) for v in array[0, 2]]
    assert len(set(ignored)) > 1  # no single number means "ignored" here
    found = read(tmp_path, "kind: normals, frame: rub", array.astype(dtype), suffix)
    expected = {(5, 2): (0, -1, 0), (1, 6): (1, 0, 0), (3, 3): (0, 0, -1), (0, 2): (0.6, 0, -0.8)}
    for place, vector in expected.items():
        assert found[place].tolist() == pytest.approx(vector, abs=0.01)
    assert not found[0, :2].any()


def test_normals_ignored_by_number(tmp_path: Path) -> None:
    array = np.zeros((*SIZE, 3), np.uint8)
    array[:], array[2, 2], array[3, 3] = (128, 128, 0), 200, (200, 200, 0)
    found = read(tmp_path, "kind: normals, ignore: 200", array, ".png")
    assert not found[2, 2].any() and found[3, 3].any() and found[0, 0, 2] < -0.99


def test_another_folder_and_folders_left_alone(own: Written) -> None:
    (own.root / "edges").rename(own.root / "contours")
    (own.root / "tasks.yaml").write_text(TASKS_YAML.replace("kind: edges", "kind: edges, folder: contours"))
    for name in ("_raw", ".cache"):
        (own.root / name).mkdir()
    for name in (".DS_Store", "Thumbs.db"):
        (own.root / "depth" / name).touch()
    (own.root / "README.md").touch()
    pack = FolderPack(own.root)
    assert pack.files("000", "edges") == (own.root / "contours" / "000.png",)
    np.testing.assert_array_equal(np.asarray(pack.target("000", "edges")), own.values["edges"]["000"])


def test_links_to_folders_are_followed(own: Written, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "kitchen"
    (own.root / "images" / "kitchen").rename(elsewhere)
    (own.root / "images" / "kitchen").symlink_to(elsewhere)
    assert FolderPack(own.root).splits["train"] == own.train


def test_grey_of_few_bits_is_numbers_for_labels_and_shades_for_masks(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[2, 3] = True
    for kind, expected in {"semseg, classes: 2": 1, "edges": 1, "saliency": 1, "reshading": 1, "regression": 1}.items():
        found = read(tmp_path / kind[:4], f"kind: {kind}", mask, ".png")
        assert found[2, 3] == expected and found.sum() == expected


def test_a_mark_at_the_start_of_a_split_file_and_blanks_in_ids(own: Written) -> None:
    for path in sorted(own.root.glob("*/000.*")):
        path.rename(path.with_stem("a b"))
    path = own.root / "splits" / "train.txt"
    path.write_text("\ufeff" + path.read_text().replace("000", "a b"), encoding="utf-8")
    assert FolderPack(own.root).splits["train"] == tuple("a b" if i == "000" else i for i in own.train)


def test_damaged_splits_and_yaml_cannot_be_skipped(own: Written) -> None:
    for path in (own.root / "splits" / "test.txt", own.root / "tasks.yaml"):
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match=f"{path} cannot be read") as caught:
            FolderPack(own.root)
        assert "on_bad_sample" not in str(caught.value)


@pytest.mark.parametrize("to", [".", "..", "../.."])
def test_a_link_to_a_folder_that_holds_it(own: Written, to: str) -> None:
    link = own.root / "images" / "again"
    link.symlink_to(to)
    with pytest.raises(DataError, match=f"{link} links to .*a folder that holds it"):
        FolderPack(own.root)


def test_a_name_that_is_not_utf8(own: Written) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save(own.root / "images" / name, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"images/caf\\udce9\.png': its name is not in UTF-8") as caught:
        FolderPack(own.root)
    str(caught.value).encode()


def test_a_folder_that_may_not_be_read_is_named(own: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen, real = own.root / "images" / "kitchen", os.scandir

    def refused(folder: Any) -> Any:
        if str(folder) == str(kitchen):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=f"{kitchen} cannot be looked into: Permission denied"):
        FolderPack(own.root)


# Tasks --------------------------------------------------------------------------------------------------------------


def test_every_built_in_kind_can_be_described(tmp_path: Path) -> None:
    assert set(folder_tasks.KEYS) == set(tasks.BUILT_IN) and folder_tasks.UNKNOWN == losses.UNKNOWN
    for kind in tasks.BUILT_IN:
        more = {"classes": 5} if kind == "semseg" else {}
        described = folder_tasks.folder_task("mine", {"kind": kind, "loss_weight": 3, **more})
        task, field = described.task(), described.field
        assert (task.name, task.kind, task.loss_weight, task.ignore) == ("mine", kind, 3.0, field.ignore)
        assert field.channels in ((), (task.channels,))


def test_a_task_of_python_replaces_and_extends(own: Written) -> None:
    save(own.root / "roughness" / "000.npy", np.full(own.sizes["000"], 0.25, np.float32))
    save(own.root / "floor" / "000.png", (own.values["semseg"]["000"] == 0).astype(np.uint8))
    import dataclasses

    celsius = tasks.regression(unit="degC", shown=(0, 40), name="temperature", loss_weight=7)
    rough = dataclasses.replace(tasks.regression(name="roughness"), kind="roughness")
    floor = tasks.semseg(["other", "floor"], name="floor")
    given = {"temperature": celsius, "roughness": rough, "floor": floor}
    field = Field(dtype="u1", kind="value", scale=0.01, ignore=255)
    pack = FolderPack(own.root, tasks=given, fields={"roughness": field})
    assert list(pack.tasks) == ["semseg", "depth", "normals", "edges", "temperature", "roughness", "floor"]
    assert all(pack.tasks[name] is given[name] for name in given)
    assert set(pack.attrs["tasks"]) == {"semseg", "depth", "normals", "edges"}
    # tasks.yaml still says how its files are read.
    assert np.asarray(pack.target("000", "temperature"))[20, 20] == pytest.approx(20, abs=1e-3)
    assert pack.fields["roughness"] == field and (np.asarray(pack.target("000", "roughness")) == 0.25).all()
    assert encode(field, np.asarray(pack.target("000", "roughness"))).max() == 25
    assert pack.fields["floor"].limit == 1 and np.asarray(pack.target("000", "floor"))[-1, 0] == 1


def test_a_task_of_python_may_be_of_another_kind_than_its_entry(own: Written) -> None:
    pack = FolderPack(own.root, tasks={"semseg": tasks.semseg(2), "edges": tasks.regression(name="edges", unit="x")})
    assert pack.fields["semseg"].limit == 1 and pack.fields["edges"].unit == "x"
    assert np.asarray(pack.target("000", "edges")).max() == 255  # no longer yes or no


def test_tasks_of_python_alone_need_no_yaml(own: Written) -> None:
    (own.root / "tasks.yaml").unlink()
    for name in ("depth", "normals", "edges", "temperature"):
        shutil.rmtree(own.root / name)
    pack = FolderPack(own.root, tasks={"semseg": tasks.semseg(CLASSES)})
    assert list(pack.fields) == ["semseg"] and pack.attrs == {"source": "folder", "tasks": {}}
    np.testing.assert_array_equal(np.asarray(pack.target("000", "semseg")), own.values["semseg"]["000"])


def test_a_task_of_python_of_an_unknown_kind_needs_a_field(own: Written) -> None:
    import dataclasses

    odd = dataclasses.replace(tasks.depth(name="odd"), kind="odd")
    with pytest.raises(ConfigError, match=r"fields=\{\"odd\": Field"):
        FolderPack(own.root, tasks={"odd": odd})
    with pytest.raises(ConfigError, match='"odd" under "even"'):
        FolderPack(own.root, tasks={"even": odd})


# Wrong data ---------------------------------------------------------------------------------------------------------


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(MissingDataError, match=str(root)):
            FolderPack(root)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        FolderPack(tmp_path / "file")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _copy(root: Path, source: str, target: str) -> None:
    shutil.copy(root / source, root / target)


LAYOUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images folder": (lambda root: (root / "images").rename(root / "photos"), "images' does not exist|/images does"),
    "no image": (lambda root: (shutil.rmtree(root / "images"), (root / "images").mkdir()), "/images holds no file"),
    "no yaml": (lambda root: (root / "tasks.yaml").unlink(), r"tasks\.yaml does not exist.*\n\nsemseg: \{kind"),
    "empty folder": (lambda root: (shutil.rmtree(root / "depth"), (root / "depth").mkdir()), "/depth holds no file"),
    "no folder": (lambda root: shutil.rmtree(root / "depth"), "/depth does not exist, but task `depth`"),
    "jpeg target": (lambda root: _write(root / "depth" / "001.jpg", ""), r"depth/001\.jpg: expected \.png, \.npy"),
    "mat image": (lambda root: _write(root / "images" / "x.mat", ""), r"images/x\.mat: expected \.jpg"),
    "two of one id": (lambda root: _copy(root, "depth/000.tiff", "depth/000.tif"), r"000\.tif and \.tiff are of one"),
    "target alone": (lambda root: _copy(root, "depth/000.tiff", "depth/009.tiff"), r"/depth holds .*: 009\.tiff\."),
    "not described": (lambda root: (root / "depths").mkdir(), 'depths is in no entry.*Did you mean "depth"'),
    "no splits": (lambda root: shutil.rmtree(root / "splits"), r"splits: \{test: 0.2\}"),
    "no test": (lambda root: (root / "splits" / "test.txt").rename(root / "splits" / "tests.txt"), "test.txt does not"),
    "both splits": (lambda root: _write(root / "tasks.yaml", TASKS_YAML + "splits: 0.5"), "Keep one"),
    "missing image": (lambda root: _write(root / "splits" / "test.txt", "kitchen/01"), 'mean "kitchen/001"'),
    "suffix in split": (lambda root: _write(root / "splits" / "test.txt", "000.PNG"), "without the suffix"),
    "in two splits": (lambda root: _write(root / "splits" / "test.txt", "000"), "which train.txt lists too"),
    "twice": (lambda root: _write(root / "splits" / "test.txt", "004\n004\n"), "lists 004 twice"),
    "empty split": (lambda root: _write(root / "splits" / "test.txt", "\n"), "test.txt lists no image"),
}


@pytest.mark.parametrize("case", LAYOUT)
def test_a_wrong_layout(own: Written, case: str) -> None:
    damage, said = LAYOUT[case]
    FolderPack(own.root)
    damage(own.root)
    with pytest.raises(DataError, match=f"(?s){said}") as caught:
        FolderPack(own.root)
    assert str(own.root) in str(caught.value)


YAML: dict[str, tuple[str, str]] = {
    "{kind: semsegg, classes: 3}": ("kind", 'unknown kind "semsegg".*mean "semseg"'),
    "{kind: depth, scales: 3}": ("key", 'unknown key.*"scales".*mean "scale"'),
    "{kind: semseg, classes: 3, scale: 2}": ("key of the kind", '"scale"'),
    "{classes: 3}": ("no kind", "expected a kind"),
    "7": ("no entry", "expected a kind"),
    "{kind: semseg}": ("no classes", "2 to 255 names"),
    "{kind: semseg, classes: 300}": ("many classes", "got 300"),
    "{kind: semseg, classes: [yes, no]}": ("booleans", "in quotes"),
    "{kind: semseg, classes: [a, a]}": ("same names", "different names"),
    "{kind: depth, scale: mm}": ("text", "scale: expected a number, but got 'mm'"),
    "{kind: depth, scale: 0}": ("zero", "other than 0"),
    "{kind: depth, scale: true}": ("boolean", "expected a number"),
    "{kind: depth, loss_weight: -1}": ("weight", "loss_weight: expected a number above 0, but got -1"),
    "{kind: edges, tolerance: -0.01}": ("tolerance", "tolerance: expected a number above 0, but got -0.01"),
    "{kind: depth, scale: 2024-13-01}": ("no date", "is not YAML"),
    "{kind: depth, unit: mm}": ("unit", "depth is in m, but got 'mm'"),
    "{kind: depth, ignore: none}": ("ignore", "ignore: expected a number"),
    "{kind: depth, folder: ../x}": ("outside", "folder: expected the name"),
    "{kind: normals, frame: xyz}": ("frame", "frame: .*xyz"),
    "{kind: regression, channels: 1.5}": ("channels", "whole number"),
    "{kind: regression, shown: 3}": ("shown", r"expected \[low, high\]"),
    "{kind: regression, shown: [3, 1]}": ("shown", "low < high"),
    "{kind: edges": ("not yaml", "is not YAML"),
}


@pytest.mark.parametrize("entry", YAML, ids=[f"{what}: {entry}" for entry, (what, _) in YAML.items()])
def test_a_wrong_entry(tmp_path: Path, entry: str) -> None:
    said = YAML[entry][1]
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "tasks.yaml").write_text(f"mine: {entry}\nsplits: 0.5\n")
    with pytest.raises(ConfigError, match=f"(?is){said}") as caught:
        FolderPack(tmp_path)
    assert "tasks.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "describes no task"),
        ("- depth", "expected entries by task, but got list"),
        ("image: {kind: depth}", "expected a task's name"),
        ("3: {kind: depth}", "expected a task's name"),
        ("edges: {kind: edges}\nsplits: {tests: 0.2}", 'unknown split "tests".*mean "test"'),
        ("edges: {kind: edges}\nsplits: {test: 1.2}", "leave something to train"),
        ("edges: {kind: edges}\nsplits: {val: 0.2}", "leave something to train"),
        ("edges: {kind: edges}\nsplits: many", "expected a number"),
    ],
)
def test_a_wrong_yaml(tmp_path: Path, text: str, said: str) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "tasks.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"(?is){said}") as caught:
        FolderPack(tmp_path)
    assert str(tmp_path / "tasks.yaml") in str(caught.value)


@pytest.mark.parametrize(("name", "said"), [("a.b", 'name without "."'), ("keys", "torch's modules use that name")])
def test_a_name_that_no_task_can_have(tmp_path: Path, name: str, said: str) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "tasks.yaml").write_text(f"{name}: {{kind: edges}}\n")
    with pytest.raises(ConfigError, match=f"tasks.yaml, {name}: .*{said}"):
        FolderPack(tmp_path)


def test_a_fraction_that_leaves_a_split_empty(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "edges" / "a.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "tasks.yaml").write_text("edges: {kind: edges}\nsplits: 0.5\n")
    with pytest.raises(DataError, match="no image of 1 fell into"):
        FolderPack(tmp_path)


FILES: dict[str, tuple[str, Any, str, str]] = {
    "colours": ("kind: semseg, classes: 3", np.zeros((*SIZE, 3), np.uint8), ".png", "Colours are not class numbers"),
    "fractions": ("kind: semseg, classes: 3", np.full(SIZE, 0.5, np.float32), ".npy", "expected whole class numbers"),
    "size": ("kind: semseg, classes: 3", np.zeros((8, 6), np.uint8), ".png", "8 x 6, but its image is 6 x 8"),
    "rank": ("kind: depth", np.zeros(6, np.float32), ".npy", r"shape \(6,\)"),
    "complex": ("kind: depth", np.zeros(SIZE, np.complex64), ".npy", "complex64"),
    "integers": ("kind: depth", np.ones(SIZE, np.uint16), ".png", "say scale: in tasks.yaml"),
    "behind": ("kind: depth", np.full(SIZE, -2, np.float32), ".npy", "got -2"),
    "yes": ("kind: edges", around(0, "u1", {(0, 0): 1, (0, 1): 255}), ".png", "which means yes"),
    "yes -1": ("kind: edges", around(0, "i4", {(0, 0): 1, (0, 1): -1}), ".npy", "Say which means no label"),
    "yes 2": ("kind: edges", around(0, "f4", {(0, 0): 1, (0, 1): 2}), ".npy", "expected 0 and 1"),
    "signed": ("kind: normals", np.zeros((*SIZE, 3), np.int8), ".npy", "unsigned colours or floats"),
    "vectors": ("kind: normals", np.zeros((3, *SIZE), np.float32), ".npy", "expected H W 3"),
    "objects": ("kind: depth", np.full(SIZE, None), ".npy", "cannot be read"),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_files_are_named(tmp_path: Path, case: str) -> None:
    entry, array, suffix, said = FILES[case]
    pack = stored_as(tmp_path, entry, array, suffix)
    with pytest.raises(DataError, match=said) as caught:
        pack.target("a", "target")
    assert str(tmp_path / "target" / f"a{suffix}") in str(caught.value)


def test_sixteen_bit_colours_are_refused(tmp_path: Path) -> None:
    pack = stored_as(tmp_path, "kind: regression, channels: 3", np.zeros((*SIZE, 3), np.uint8), ".png")
    path = pack.files("a", "target")[0]
    path.write_bytes(path.read_bytes()[:24] + b"\x10" + path.read_bytes()[25:])
    with pytest.raises(DataError, match="16 bits in several channels") as caught:
        pack.target("a", "target")
    assert str(path) in str(caught.value)


def test_a_class_out_of_range_is_refused(tmp_path: Path) -> None:
    pack = stored_as(tmp_path, "kind: semseg, classes: 3", around(0, "u1", {(1, 1): 3}), ".png")
    with pytest.raises(DataError, match=r"\[0, 2\].*got \[0, 3\]"):
        encode(pack.fields["target"], np.asarray(pack.target("a", "target")))


@pytest.mark.parametrize("suffix", [".png", ".npy", ".tiff"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    rng = np.random.default_rng(0)
    pack = stored_as(tmp_path, "kind: depth, scale: 1", rng.integers(0, 9000, SIZE).astype(np.uint16), suffix)
    path = pack.files("a", "target")[0]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError) as caught:
        pack.target("a", "target")
    assert str(path) in str(caught.value)


def test_a_file_gone_since(own: Written) -> None:
    pack = FolderPack(own.root)
    for path in (*pack.files("000", "edges"), *pack.files("000", "image")):
        path.unlink()
    for name, call in {"edges": lambda: pack.target("000", "edges"), "images": lambda: pack.image("000")}.items():
        with pytest.raises(DataError, match=f"{name}/000"):
            call()


def test_unknown_targets_and_images(pack: FolderPack) -> None:
    assert not pack.has("000", "albedo") and pack.target("000", "albedo") is None
    with pytest.raises(DataError, match="has no 999"):
        pack.image("999")


def test_tiff_of_floats_in_the_file_is_what_was_planted(tmp_path: Path) -> None:
    """The writer of the miniature is not what is tested: the file itself is looked at."""
    written = write_folder(tmp_path)
    stored = tifffile.imread(written.root / "depth" / "000.tiff")
    assert stored.dtype == np.float32 and stored[4, 11] == 0 and stored[4, 2] == 1000
    depth = np.asarray(FolderPack(tmp_path).target("000", "depth"))
    assert (depth[4, 11], depth[4, 2], depth[20, 20]) == (0, np.float32(1), np.float32(2))
