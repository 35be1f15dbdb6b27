"""The raw file of NYUD-v2: values planted at known pixels come out where they belong, and damage is said."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from fake_nyud_mat import (
    FULL_SIZE,
    INTRINSICS,
    NAMED,
    THING,
    UNLABELLED,
    UNMEASURED,
    Written,
    write_nyud_mat,
    write_splits,
)
from medusa_cl.data import hdf5
from medusa_cl.data.geometry import normals_from_depth
from medusa_cl.data.nyud_mat import NYUDMat
from medusa_cl.errors import DataError, MissingDataError

Array = NDArray[Any]

OTHERPROP = 39
TARGETS = ("semseg", "depth", "normals", "edges")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_nyud_mat(tmp_path_factory.mktemp("nyud"))


@pytest.fixture(scope="module")
def pack(written: Written) -> NYUDMat:
    return NYUDMat(written.path)


@pytest.fixture
def folder(written: Written, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(written.path.parent, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder: Path, name: str, edit: Callable[[Array], Array]) -> None:
    """Replace a dataset by what `edit` makes of it."""
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "r+") as file:
        array = edit(file[name][()])
        del file[name]
        file[name] = array


def plant(folder: Path, name: str, place: tuple[int, ...], value: float) -> None:
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "r+") as file:
        file[name][place] = value


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*"))}


# The miniature is what it says


def test_the_miniature_is_a_matlab_file_of_version_7_3(written: Written) -> None:
    header = written.path.read_bytes()[:512]
    assert header.startswith(b"MATLAB 7.3 MAT-file") and header[124:128] == b"\x00\x02IM"
    with pytest.raises(NotImplementedError, match="HDF reader"):
        scipy.io.loadmat(written.path)
    with h5py.File(written.path) as file:
        assert file.userblock_size == 512 and {"#refs#", "#subsystem#", "namesToIds", "scenes"} <= set(file)
        assert file["images"].shape == (6, 3, 64, 48) and file["labels"].shape == (6, 64, 48)
        assert file["names"].shape == (1, 894) and file[file["names"][0, 0]].shape[1] == 1


# Values


def test_path_is_the_file_or_its_folder(written: Written) -> None:
    for path in (written.path, written.path.parent, str(written.path)):
        assert NYUDMat(path).root == written.path


def test_splits_are_names_counted_from_one(pack: NYUDMat, written: Written) -> None:
    assert (written.train, written.test) == ([1, 2, 4, 5], [3, 6])
    assert pack.splits == {"train": ("0001", "0002", "0004", "0005"), "test": ("0003", "0006")}


def test_another_split_file_may_be_given(written: Written, tmp_path: Path) -> None:
    write_splits(tmp_path / "mine.mat", [6, 2], [1])
    assert NYUDMat(written.path, tmp_path / "mine.mat").splits == {"train": ("0006", "0002"), "test": ("0001",)}


def test_images_come_out_as_they_were_with_the_axes_in_order(pack: NYUDMat, written: Written) -> None:
    for split in pack.splits.values():
        for image in split:
            got = pack.image(image)
            assert got.dtype == np.uint8 and got.flags.c_contiguous
            assert np.array_equal(got, written.images[int(image) - 1])
            assert pack.size(image) == (48, 64)


def test_the_37_names_become_their_class_and_all_others_otherprop(pack: NYUDMat, written: Written) -> None:
    semseg = pack.target("0002", "semseg")
    assert semseg is not None
    assert semseg[5, 2] == 0 and semseg[46, 60] == 1  # wall, floor
    assert (semseg[UNLABELLED] == 255).all() and (semseg[THING] == OTHERPROP).all()
    raw = written.labels[1]
    assert np.array_equal(semseg == 0, raw == written.label("wall"))
    assert np.array_equal(semseg == 1, raw == written.label("floor"))
    assert pack.attrs["class_mapping"] == "by name, all others otherprop"
    assert pack.fields["semseg"].limit == OTHERPROP and len(pack.fields["semseg"].classes) == 40


def test_each_name_has_the_right_number(folder: Path, written: Written) -> None:
    row = np.array([written.label(name) for name in (*NAMED, "floor trim", "wall decoration")], np.uint16)
    with h5py.File(folder / written.path.name, "r+") as file:
        file["labels"][0, : len(row), 7] = row
    semseg = NYUDMat(folder).target("0001", "semseg")
    assert semseg is not None
    assert semseg[7, : len(row)].tolist() == [*range(37), OTHERPROP, OTHERPROP]


def test_depth_is_the_filled_one_where_it_was_measured(pack: NYUDMat, written: Written) -> None:
    depth = pack.target("0005", "depth")
    assert depth is not None and depth.dtype == np.float32
    assert (depth[UNMEASURED] == 0).all()
    measured = written.raw_depths[4] > 0
    assert measured.sum() == depth.size - 4 * 6
    assert np.array_equal(depth[measured], written.depths[4][measured])


def test_depths_that_are_no_depths_are_ignored(folder: Path) -> None:
    for column, value in enumerate((np.nan, np.inf, -1.0, 0.0)):
        plant(folder, "depths", (2, column, 40), value)
    plant(folder, "rawDepths", (2, 9, 40), np.nan)
    depth = NYUDMat(folder).target("0003", "depth")
    assert depth is not None
    assert (depth[40, [0, 1, 2, 3, 9]] == 0).all() and (depth[40, 4:9] > 0).all()


def test_normals_point_out_of_the_surfaces(pack: NYUDMat, written: Written) -> None:
    normals = pack.target("0001", "normals")
    assert normals is not None and normals.shape == (48, 64, 3) and normals.dtype == np.float32
    assert normals[24, 3] == pytest.approx([1, 0, 0], abs=1e-3)  # left wall: to the right
    assert normals[46, 40] == pytest.approx([0, -1, 0], abs=1e-3)  # floor: up
    assert normals[10, 36] == pytest.approx([0, 0, -1], abs=1e-3)  # wall ahead: to the camera
    assert (normals[UNMEASURED] == 0).all()
    depth = pack.target("0001", "depth")
    assert depth is not None
    assert np.array_equal(normals, normals_from_depth(depth, pack.attrs["intrinsics"]))
    assert (pack.attrs["source"], pack.attrs["source_frame"]) == ("nyud/mat", "rdf")


def test_edges_are_between_labels_and_between_instances(pack: NYUDMat, written: Written) -> None:
    edges = pack.target("0001", "edges")
    assert edges is not None and set(np.unique(edges)) == {0, 1, 255}
    labels, instances = written.labels[0], written.instances[0]
    (step,) = np.flatnonzero(instances[10, :40] != instances[10, 1:41])[:1]  # both walls have one label
    assert labels[10, step] == labels[10, step + 1] and edges[10, step : step + 2].sum() == 1
    drop = int(np.flatnonzero(labels[:-1, 55] != labels[1:, 55])[-1])  # wall ahead to floor
    assert edges[drop : drop + 2, 55].sum() == 1
    assert (edges[22:26, 42:48] == 0).all() and (edges[20:28, 39:41].sum(axis=1) == 1)[1:-1].all()  # around the thing


def test_inside_unlabelled_regions_edges_are_unknown(pack: NYUDMat, written: Written) -> None:
    edges = pack.target("0001", "edges")
    assert edges is not None
    assert (edges[3:5, 31:37] == 255).all()
    assert np.array_equal(edges == 255, (written.labels[0] == 0) & (edges != 1))
    assert edges[3, 29:31].tolist().count(1) == 1  # where the region begins is known


def test_what_is_derived_is_said(pack: NYUDMat) -> None:
    assert set(pack.fields) == set(TARGETS)
    assert set(pack.derived) == {"normals", "edges"} and "9x9" in pack.derived["normals"]
    assert all(pack.has("0001", name) for name in TARGETS)
    assert not pack.has("0001", "albedo") and not pack.has("0007", "depth")


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_can_be_stored(pack: NYUDMat, name: str) -> None:
    for image in pack.splits["test"]:
        values = pack.target(image, name)
        assert values is not None
        assert hdf5.encode(pack.fields[name], values).any()


# Crop


def test_at_full_size_only_the_valid_part_is_given_out(tmp_path: Path) -> None:
    written = write_nyud_mat(tmp_path, count=3, size=FULL_SIZE)
    pack = NYUDMat(tmp_path)
    assert pack.size("0001") == (425, 560) and pack.attrs["crop"] == [45, 470, 40, 600]
    fx, fy, cx, cy = INTRINSICS
    assert pack.attrs["intrinsics"] == pytest.approx([fx, fy, cx - 40, cy - 45])
    assert np.array_equal(pack.image("0002"), written.images[1, 45:470, 40:600])
    depth, normals = pack.target("0002", "depth"), pack.target("0002", "normals")
    assert depth is not None and normals is not None
    assert depth[0, 0] == written.depths[1, 45, 40] and depth[-1, -1] == written.depths[1, 469, 599]
    truth = written.normals[45:470, 40:600]
    assert np.median(np.abs(normals - truth).max(axis=-1)) < 1e-3
    whole = NYUDMat(tmp_path, crop=None)
    assert whole.size("0001") == FULL_SIZE and whole.attrs["intrinsics"] == pytest.approx(INTRINSICS)


def test_a_crop_of_ones_own_moves_the_camera_along(written: Written, pack: NYUDMat) -> None:
    part = NYUDMat(written.path, crop=(4, 44, 10, 60))
    assert part.size("0001") == (40, 50)
    assert np.array_equal(part.image("0004"), written.images[3, 4:44, 10:60])
    fx, fy, cx, cy = pack.attrs["intrinsics"]
    assert (fx, fy) == pytest.approx((INTRINSICS[0] / 10, INTRINSICS[1] / 10))
    assert part.attrs["intrinsics"] == pytest.approx([fx, fy, cx - 10, cy - 4])
    normals = part.target("0004", "normals")
    assert normals is not None
    assert normals[24 - 4, 36 - 10] == pytest.approx([0, 0, -1], abs=1e-3)
    with pytest.raises(DataError, match=r"within 48 x 64, but got \(0, 49, 0, 64\)"):
        NYUDMat(written.path, crop=(0, 49, 0, 64))


# classMapping40.mat


def mapping(written: Written) -> Array:
    """Names that are not among the 37 alternate between otherstructure, otherfurniture and otherprop."""
    return np.array([[NAMED.index(n) + 1 if n in NAMED else 38 + i % 3 for i, n in enumerate(written.names)]], np.uint8)


def test_a_mapping_beside_the_file_tells_the_other_classes_apart(folder: Path, written: Written) -> None:
    classes = mapping(written)
    classes[0, written.label("thing 3") - 1] = 39
    scipy.io.savemat(folder / "classMapping40.mat", {"mapClass": classes})
    pack = NYUDMat(folder)
    semseg = pack.target("0001", "semseg")
    assert semseg is not None
    assert (semseg[THING] == 38).all() and semseg[5, 2] == 0 and (semseg[UNLABELLED] == 255).all()
    assert pack.attrs["class_mapping"] == "classMapping40.mat"
    assert pack.files("0001", "semseg") == (folder / written.path.name, folder / "classMapping40.mat")
    assert pack.files("0001", "image") == pack.files("0001", "edges") == (folder / written.path.name,)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c[:, :-1], "expected `mapClass` with 894 numbers in 1..40, one a name, but got 893 in 1..40"),
        (lambda c: c + 1, "894 numbers in 1..40, one a name, but got 894 in 2..41"),
        (lambda c: c[:, ::-1], "it belongs to another list of names"),
    ],
)
def test_a_mapping_of_other_names_is_refused(
    folder: Path, written: Written, edit: Callable[[Array], Array], message: str
) -> None:
    scipy.io.savemat(folder / "classMapping40.mat", {"mapClass": edit(mapping(written))})
    with pytest.raises(DataError, match=message) as error:
        NYUDMat(folder)
    assert str(folder / "classMapping40.mat") in str(error.value)


# Processes


def image_sum(pack: NYUDMat, image: str) -> int:
    return int(pack.image(image).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_the_file_for_themselves(written: Written, method: str) -> None:
    pack, twin = NYUDMat(written.path), NYUDMat(written.path)
    image_sum(pack, "0001")  # opens it here
    image_sum(twin, "0001")
    packs, images = [pack, twin] * 6, [f"{i:04d}" for i in range(1, 7) for _ in range(2)]
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        sums = list(pool.map(image_sum, packs, images))
    assert sums[::2] == sums[1::2] == [int(image.sum()) for image in written.images]


def test_a_forked_process_closes_what_it_inherits(written: Written) -> None:
    pack = NYUDMat(written.path)
    pack.image("0001")
    child = os.fork()
    if child == 0:
        os._exit(0 if pack._file is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pack._file is not None


def test_a_pickle_holds_no_data(pack: NYUDMat) -> None:
    pack.image("0001")
    state = pickle.dumps(pack)
    assert len(state) < 20_000
    again = pickle.loads(state)
    assert np.array_equal(again.image("0006"), pack.image("0006")) and again.splits == pack.splits


def test_nothing_is_written_beside_the_file(folder: Path) -> None:
    before = digests(folder)
    pack = NYUDMat(folder)
    pack.image("0001")
    assert all(pack.target("0001", name) is not None for name in TARGETS)
    pack.close()
    assert digests(folder) == before and len(before) == 2


def test_chunks_that_several_images_share_stay_in_memory(tmp_path: Path) -> None:
    written = write_nyud_mat(tmp_path, count=12, size=(96, 128), images_a_chunk=12)
    pack = NYUDMat(tmp_path)
    assert np.array_equal(pack.image("0008"), written.images[7])
    assert pack._file is not None
    *_, held, _ = pack._file.id.get_access_plist().get_cache()
    assert held >= written.images.nbytes > 400_000


# Wrong data


def test_a_path_without_the_file_says_where_to_get_it(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nyu_depth_v2_labeled.mat"):
        with pytest.raises(MissingDataError, match=r"nyu_depth_v2_labeled.mat, but there is none. Fetch it from https"):
            NYUDMat(path)


def test_missing_splits_say_where_to_get_them(folder: Path) -> None:
    (folder / "splits.mat").unlink()
    url = "https://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"
    with pytest.raises(DataError, match=f"splits.mat is missing.*{url}"):
        NYUDMat(folder)


def test_a_v5_file_is_refused_where_v7_3_is_needed(folder: Path) -> None:
    with pytest.raises(DataError, match=r"splits.mat is a MATLAB v5 file, but NYUD-v2's own file is of v7.3"):
        NYUDMat(folder / "splits.mat")


def test_a_v7_3_file_is_refused_where_v5_is_needed(folder: Path, written: Written) -> None:
    shutil.copy(folder / written.path.name, folder / "splits.mat")
    with pytest.raises(DataError, match=r"splits.mat is a MATLAB v7.3 file"):
        NYUDMat(folder)


@pytest.mark.parametrize("kept", [0, 100, 3_000, -1_000])
def test_a_file_that_is_cut_short_is_named(folder: Path, written: Written, kept: int) -> None:
    file = folder / written.path.name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"nyu_depth_v2_labeled.mat cannot be read as MATLAB v7.3 .*Fetch it again"):
        NYUDMat(folder)


def test_a_damaged_picture_is_named(folder: Path, written: Written) -> None:
    file = folder / written.path.name
    with h5py.File(file) as opened:
        start = opened["images"].id.get_chunk_info(4).byte_offset
    raw = bytearray(file.read_bytes())
    raw[start + 100 : start + 400] = bytes(300)
    raw[start + 612 : start + 900] = bytes(288)
    file.write_bytes(raw)
    pack = NYUDMat(folder)
    assert np.array_equal(pack.image("0004"), written.images[3])
    with pytest.raises(DataError, match=r"nyu_depth_v2_labeled.mat: `images` of image 0005 is damaged"):
        pack.image("0005")


@pytest.mark.parametrize("name", ["images", "depths", "rawDepths", "labels", "instances", "names"])
def test_a_missing_dataset_is_named(folder: Path, written: Written, name: str) -> None:
    with h5py.File(folder / written.path.name, "r+") as file:
        del file[name]
    with pytest.raises(DataError, match=f"labeled.mat has no dataset `{name}`.*Known: #refs#"):
        NYUDMat(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("depths", lambda a: a[:5], r"expected `depths` .*\(6, 64, 48\).*got \(5, 64, 48\)"),
        ("labels", lambda a: a.transpose(0, 2, 1), r"expected `labels` .*\(6, 64, 48\).*got \(6, 48, 64\)"),
        ("images", lambda a: a.transpose(0, 3, 2, 1), r"expected `images` .*got \(6, 48, 64, 3\)"),
        ("images", lambda a: a.astype(np.float32), r"expected `images` .*type like 'u1', but got .*'<f4'"),
        ("images", lambda a: a[:, 0], r"expected `images` .*got \(6, 64, 48\)"),
        ("labels", lambda a: a.astype(np.float64), r"expected `labels` .*type like 'u', but got .*'<f8'"),
        ("names", lambda a: np.arange(894), r"labeled.mat: `names` cannot be read"),
    ],
)
def test_wrong_shapes_and_types_are_named(
    folder: Path, name: str, edit: Callable[[Array], Array], message: str
) -> None:
    change(folder, name, edit)
    with pytest.raises(DataError, match=message):
        NYUDMat(folder)


def test_names_of_another_data_set_are_refused(folder: Path, written: Written) -> None:
    with h5py.File(folder / written.path.name, "r+") as file:
        for name in ("bed", "night stand"):
            codes = file[file["names"][0, written.label(name) - 1]]
            codes[...] = ord("x")
    with pytest.raises(DataError, match=r"`names` lacks bed, night stand \(2 of NYUD-v2's 37 named classes\)"):
        NYUDMat(folder)


def test_a_label_above_the_number_of_names_is_named(folder: Path) -> None:
    plant(folder, "labels", (1, 20, 30), 895)
    pack = NYUDMat(folder)
    for target in ("semseg", "edges"):
        with pytest.raises(DataError, match=r"labeled.mat: image 0002 has the label 895, but there are 894 names"):
            pack.target("0002", target)
    assert pack.target("0001", "semseg") is not None


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1, 2, 7], [3], "expected trainNdxs as whole numbers in 1..6, the number of images, but got 3 in 1..7"),
        ([1, 2], [0], "expected testNdxs as whole numbers in 1..6, the number of images, but got 1 in 0..0"),
        ([1], [], "expected testNdxs as whole numbers in 1..6"),
        ([1, 2], [2, 3], "lists an image twice, or for training and test"),
        ([1, 1], [3], "lists an image twice, or for training and test"),
    ],
)
def test_splits_that_do_not_fit_are_refused(folder: Path, train: list[int], test: list[int], message: str) -> None:
    write_splits(folder / "splits.mat", train, test)
    with pytest.raises(DataError, match=message) as error:
        NYUDMat(folder)
    assert str(folder / "splits.mat") in str(error.value)


def test_damaged_splits_cannot_be_skipped(folder: Path) -> None:
    for name in ("splits.mat", "classMapping40.mat"):
        (folder / name).write_bytes(b"")
        with pytest.raises(DataError, match=f"{name} cannot be read") as error:
            NYUDMat(folder)
        assert "on_bad_sample" not in str(error.value)


def test_splits_without_their_variables_are_refused(folder: Path) -> None:
    scipy.io.savemat(folder / "splits.mat", {"trainNdx": np.array([[1]])})
    with pytest.raises(DataError, match=r'splits.mat: Unknown variable "trainNdxs"'):
        NYUDMat(folder)


def test_unknown_images_and_targets_are_refused_with_the_nearest_known(pack: NYUDMat) -> None:
    with pytest.raises(DataError, match=r'Unknown target "normal".*Did you mean "normals"'):
        pack.target("0001", "normal")
    with pytest.raises(DataError, match='Unknown image "1"'):
        pack.image("1")
