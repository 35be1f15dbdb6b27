"""The three packs of NYUD-v2: what is planted at known pixels comes out, and what is wrong is said with its file."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from fake_nyud import LAST_CLASS, NO_DEPTH, NO_LABEL, NO_NORMAL, stored_normals, write_nyud_pack
from medusa_cl.data import nyud
from medusa_cl.data.hdf5 import encode
from medusa_cl.data.nyud import CLASSES, NYUDPack, find_pack, intrinsics_of, nyud_pack
from medusa_cl.data.pack import Pack, PackData
from medusa_cl.errors import ConfigError, DataError, MissingDataError

Array = NDArray[Any]
Truth = dict[str, dict[str, Array]]

KINDS = ("astmt", "survey", "atrc")
TARGETS = ("semseg", "depth", "normals", "edges")
SIZE = (48, 64)
PIXEL = (5, 40)  # row, column: at another place after a flip or a transposition


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Truth]]:
    """Root and true values of one miniature a kind, not to be changed."""
    roots = {kind: tmp_path_factory.mktemp(kind) / ("NYUDv2" if kind == "atrc" else "NYUD_MT") for kind in KINDS}
    return {kind: (root, write_nyud_pack(root, kind)) for kind, root in roots.items()}


@pytest.fixture
def copy(packs: dict[str, tuple[Path, Truth]], tmp_path: Path) -> Callable[[str], Path]:
    """`(kind) -> root` of a copy that may be changed."""

    def copied(kind: str) -> Path:
        return Path(shutil.copytree(packs[kind][0], tmp_path / "data" / packs[kind][0].name))

    return copied


def first(root: Path, folder: str) -> Path:
    """The file of the first training image in a folder."""
    name = (root / "gt_sets" / "train.txt").read_text().split()[0]
    return next((root / folder).glob(f"{name}.*"))


def store(path: Path, values: Array, key: str = "") -> None:
    """Write an array as what the file's extension says."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {key: values})
    else:
        Image.fromarray(values).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


# Planted values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_is_what_was_written(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    root, truth = packs[kind]
    pack: Pack = nyud_pack(root)
    assert sorted(pack.fields) == sorted(TARGETS)
    for image, true in truth.items():
        np.testing.assert_array_equal(pack.target(image, "semseg"), true["semseg"])
        np.testing.assert_array_equal(pack.target(image, "depth"), true["depth"])
        np.testing.assert_array_equal(pack.target(image, "edges"), true["edges"])
        got = pack.target(image, "normals")
        assert got is not None
        np.testing.assert_array_equal(got.any(axis=-1)[NO_NORMAL], False)
        wrong = _angle(got, true["normals"])[true["normals"].any(axis=-1)]
        # JPEG at quality 95 blurs edges between surfaces; 8 bits alone are half a degree.
        assert np.percentile(wrong, 80) < {"astmt": 3, "survey": 0.05, "atrc": 0.5}[kind]
        assert wrong.max() < {"astmt": 15, "survey": 0.05, "atrc": 0.5}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_rgb_and_upright(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    root, truth = packs[kind]
    pack = nyud_pack(root)
    for image, true in truth.items():
        got = pack.image(image)
        assert got.dtype == np.uint8 and got.shape == (*SIZE, 3) and pack.size(image) == SIZE
        wrong = np.abs(got.astype(int) - true["image"]).mean()
        assert wrong == 0 if kind == "atrc" else wrong < 8  # JPEG stores colours at half the size
        others = [got[:, ::-1], got[::-1], got[..., ::-1]]
        assert all(np.abs(other.astype(int) - true["image"]).mean() > 10 for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_moved_by_one_and_zero_is_ignored(kind: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "segmentation")
    raw = np.full(SIZE, 1, np.uint8)
    raw[PIXEL], raw[0, 0], raw[-1, 0], raw[0, -1] = 40, 0, 2, 39
    store(path, raw, "segmentation")
    labels = nyud_pack(root).target(path.stem, "semseg")
    assert labels is not None
    assert (labels[PIXEL], labels[0, 0], labels[-1, 0], labels[0, -1], labels[1, 1]) == (39, 255, 1, 38, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_upright_in_metres_and_zero_where_it_is_none(kind: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "depth")
    raw = np.full(SIZE, 2.5)
    raw[PIXEL], raw[0, 1], raw[0, 2], raw[0, 3], raw[0, 4] = 7.25, 0, -1, np.nan, np.inf
    store(path, raw, "depth")
    depth = nyud_pack(root).target(path.stem, "depth")
    assert depth is not None and depth.dtype == np.float32
    assert depth[PIXEL] == 7.25 and depth[0, 0] == 2.5 and (depth == 7.25).sum() == 1
    assert depth[0, 1:5].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["astmt", "atrc"])
def test_edges_of_pictures_are_rounded(kind: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "edge")
    raw = np.zeros(SIZE, np.uint8)
    raw[PIXEL], raw[0, 1], raw[0, 2], raw[0, 3] = 255, 1, 127, 128
    store(path, raw)
    edges = nyud_pack(root).target(path.stem, "edges")
    assert edges is not None
    assert edges[PIXEL] == 1 and edges[0, :4].tolist() == [0, 0, 0, 1] and edges.sum() == 2


def test_edges_of_one_bit_are_edges(copy: Callable[[str], Path]) -> None:
    root = copy("atrc")
    path = first(root, "edge")
    raw = np.zeros(SIZE, bool)
    raw[PIXEL] = True
    store(path, raw)
    assert path.read_bytes()[24:26] == b"\x01\x00"  # one bit, grey
    edges = nyud_pack(root).target(path.stem, "edges")
    assert edges is not None and edges[PIXEL] == 1 and edges.sum() == 1


def test_edges_of_arrays_may_be_unknown(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    path = first(root, "edge")
    raw = np.zeros(SIZE, np.float64)
    raw[PIXEL], raw[0, 1], raw[0, 2], raw[0, 3] = 1, 255, np.nan, 0.25
    store(path, raw)
    edges = nyud_pack(root).target(path.stem, "edges")
    assert edges is not None
    assert edges[PIXEL] == 1 and edges[0, :4].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", ["rub", "rdf", "luf", "ruf", "bld"])
def test_normals_of_any_frame_come_out_in_ours(kind: str, frame: str, tmp_path: Path) -> None:
    write_nyud_pack(tmp_path, kind, frame=frame)
    pack = nyud_pack(tmp_path)
    assert (pack.attrs["source_frame"], pack.attrs["frame_detected"]) == (frame, True)
    for image in pack.splits["train"]:
        normals = pack.target(image, "normals")
        assert normals is not None and normals.dtype == np.float32
        np.testing.assert_allclose(normals[10:20, 28:34].mean((0, 1)), [0, 0, -1], atol=0.15)  # the back wall
        assert normals[10:30, :4, 0].mean() > 0.9 and normals[10:30, -4:, 0].mean() < -0.9  # left, right
        floor = normals[..., 1] < -0.9
        assert floor[-4:].mean() > 0.15 and not floor[:16].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_normal_is_found_at_its_pixel(kind: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "normals")
    vectors = np.tile(np.float32([0, 0, -1]), (*SIZE, 1))
    vectors[8:16, 40:48] = [0, -1, 0]  # whole blocks of JPEG
    vectors[16:24, 8:16] = [0.6, 0, -0.8]
    vectors[32:40, 8:16] = 0
    stored = stored_normals(vectors, "rub")
    store(path, stored if path.suffix == ".npy" else np.rint((stored + 1) * 127.5).astype(np.uint8))
    normals = nyud_pack(root, "rub").target(path.stem, "normals")
    assert normals is not None
    tolerance = 0.08 if kind == "astmt" else 0.005
    np.testing.assert_allclose(normals[12, 44], [0, -1, 0], atol=tolerance)
    np.testing.assert_allclose(normals[20, 12], [0.6, 0, -0.8], atol=tolerance)
    np.testing.assert_allclose(normals[0, 0], [0, 0, -1], atol=tolerance)
    assert not normals[33:39, 9:15].any() and normals.any(axis=-1).mean() > 0.96


def test_float_normals_that_are_none_are_zero(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    path = first(root, "normals")
    stored = np.load(path)
    stored[0, 20], stored[0, 21] = np.nan, 0
    store(path, stored)
    normals = nyud_pack(root).target(path.stem, "normals")
    assert normals is not None
    assert normals[0, 20].tolist() == normals[0, 21].tolist() == [0, 0, 0] and normals[0, 22].any()


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_are_those_of_the_miniature(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    """That the miniature has what the other tests rely on, at corners that tell up from down and left from right."""
    root, truth = packs[kind]
    pack = nyud_pack(root)
    for image in truth:
        semseg, depth = pack.target(image, "semseg"), pack.target(image, "depth")
        assert semseg is not None and depth is not None
        assert (semseg[NO_LABEL] == 255).all() and (semseg == 255).sum() == 5 * 7
        assert (semseg[LAST_CLASS] == 39).all() and (semseg == 39).sum() == 6 * 8
        assert (depth[NO_DEPTH] == 0).all() and (depth == 0).sum() == 4 * 6


def test_maps_with_a_third_axis_are_read(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    edge, segmentation = first(root, "edge"), first(root, "segmentation")
    edges, labels = np.load(edge), np.array(Image.open(segmentation))
    store(edge, edges[..., None])
    store(segmentation, np.repeat(labels[..., None], 3, axis=-1))
    pack = nyud_pack(root)
    np.testing.assert_array_equal(pack.target(edge.stem, "edges"), edges)
    np.testing.assert_array_equal(pack.target(edge.stem, "semseg"), np.where(labels == 0, 255, labels.astype(int) - 1))


def test_palette_pictures_give_their_indices(copy: Callable[[str], Path]) -> None:
    root = copy("atrc")
    path = first(root, "segmentation")
    labels = np.full(SIZE, 3, np.uint8)
    labels[PIXEL] = 40
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([7 * i % 256 for i in range(768)])
    picture.save(path)
    got = nyud_pack(root).target(path.stem, "semseg")
    assert got is not None and got[PIXEL] == 39 and got[0, 0] == 2


# What the pack says of itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_split_files_in_their_order(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    root, truth = packs[kind]
    pack = nyud_pack(root)
    assert pack.splits["train"] + pack.splits["test"] == tuple(truth)
    assert list(pack.splits["train"]) == (root / "gt_sets" / "train.txt").read_text().split()
    assert len(pack.splits["train"]) == 3 and len(pack.splits["test"]) == 2 and set(pack.splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("kind", "name"), [("astmt", "ASTMT pack of NYUD-v2"), ("survey", "survey pack of NYUD-v2"), ("atrc", "ATRC")]
)
def test_the_pack_says_which_it_is(kind: str, name: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    pack = nyud_pack(packs[kind][0])
    assert pack.name.startswith(name) and pack.attrs["source"] == f"nyud/{kind}" and pack.derived == {}


@pytest.mark.parametrize("kind", KINDS)
def test_fields_take_what_the_pack_gives(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    pack = nyud_pack(packs[kind][0])
    assert pack.fields["semseg"].limit == 39 and pack.fields["semseg"].classes == CLASSES
    for split in ("train", "test"):
        data = PackData(pack, split)
        for index in range(len(data)):
            data.check(index)
    with pytest.raises(DataError):
        encode(pack.fields["semseg"], np.full((1, 1), 40))


def test_the_classes_are_nyud_40() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 40
    assert CLASSES[0] == "wall" and CLASSES[21] == "ceiling" and CLASSES[39] == "otherprop"


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_has(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    root, truth = packs[kind]
    pack = nyud_pack(root)
    image = next(iter(truth))
    for target in ("image", *TARGETS):
        assert all(path.is_file() and path.stem == image for path in pack.files(image, target))
        assert len(pack.files(image, target)) == 1
    assert pack.has(image, "depth") and not pack.has(image, "saliency")
    assert pack.target(image, "saliency") is None and pack.files(image, "saliency") == ()


def test_the_camera_is_known_for_whole_and_cropped_images(tmp_path: Path) -> None:
    assert intrinsics_of((480, 640)) == (518.8579, 519.4696, 324.5824, 252.7362)
    assert intrinsics_of((425, 560)) == pytest.approx((518.8579, 519.4696, 324.5824 - 40, 252.7362 - 45))
    # Half the size: what lay at the corner of pixel 0, -.5, still does.
    assert intrinsics_of((240, 320)) == pytest.approx((259.42895, 259.7348, 162.0412, 126.1181))
    assert intrinsics_of((448, 576)) is None
    write_nyud_pack(tmp_path, "atrc", train=1, test=1, size=(425, 560))
    assert nyud_pack(tmp_path).attrs["intrinsics"] == pytest.approx([518.8579, 519.4696, 284.5824, 207.7362])


def test_sizes_of_an_unknown_camera_are_not_given_one(tmp_path: Path) -> None:
    write_nyud_pack(tmp_path, "survey", train=2, test=1, size=(48, 72), frame="luf")
    pack = nyud_pack(tmp_path)
    assert "intrinsics" not in pack.attrs and pack.attrs["source_frame"] == "luf"


def test_the_root_may_be_the_folder_above(packs: dict[str, tuple[Path, Truth]]) -> None:
    for kind in KINDS:
        root = packs[kind][0]
        assert find_pack(root) == find_pack(root.parent) == nyud_pack(str(root.parent)).root == root


def test_a_folder_of_something_else_is_no_pack(tmp_path: Path) -> None:
    assert find_pack(tmp_path) is None and find_pack(tmp_path / "nowhere") is None
    (tmp_path / "images").mkdir()
    assert find_pack(tmp_path) is None
    (tmp_path / "depth").mkdir()
    assert find_pack(tmp_path) == tmp_path
    (tmp_path / "tasks.yaml").write_text("tasks: {}\n")  # the user's own data
    assert find_pack(tmp_path) is None


@pytest.mark.parametrize("missing", ["segmentation", "depth", "normals", "edge"])
def test_a_target_without_a_folder_is_not_offered(missing: str, copy: Callable[[str], Path]) -> None:
    for kind in ("survey", "astmt"):
        root = copy(kind)
        shutil.rmtree(root / missing)
        pack = nyud_pack(root)
        target = {"segmentation": "semseg", "edge": "edges"}.get(missing, missing)
        assert set(pack.fields) == set(TARGETS) - {target} and pack.attrs["source"] == f"nyud/{kind}"
        assert pack.target(pack.splits["train"][0], target) is None
        assert ("source_frame" in pack.attrs) == (missing != "normals")
        shutil.rmtree(root)


# The normals' axes ---------------------------------------------------------------------------------------------------


def test_without_depth_the_axes_are_seen(tmp_path: Path) -> None:
    write_nyud_pack(tmp_path, "atrc", train=4, frame="ruf")
    shutil.rmtree(tmp_path / "depth")
    assert nyud_pack(tmp_path).attrs["source_frame"] == "ruf"


def test_undecidable_axes_are_asked_for(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    for path in (root / "normals").iterdir():
        np.save(path, np.tile(np.float32([0, 0, 1]), (*SIZE, 1)))
    undecided = nyud_pack(root)  # who wants no normals is not asked
    assert "source_frame" not in undecided.attrs and "normals" in undecided.fields
    assert undecided.target(undecided.splits["train"][0], "depth") is not None
    with pytest.raises(DataError, match=rf"{root}/normals.*scenario\.normals_frame=rdf.*scenario\.normals_frame=rub"):
        undecided.target(undecided.splits["train"][0], "normals")
    pack = nyud_pack(root, "rub")
    assert (pack.attrs["source_frame"], pack.attrs["frame_detected"]) == ("rub", False)
    normals = pack.target(pack.splits["train"][0], "normals")
    assert normals is not None and normals[0, 0].tolist() == [0, 0, -1]


def test_a_frame_that_is_given_is_not_doubted(packs: dict[str, tuple[Path, Truth]]) -> None:
    pack = nyud_pack(packs["survey"][0], "luf")
    assert (pack.attrs["source_frame"], pack.attrs["frame_detected"]) == ("luf", False)


def test_a_frame_that_is_none_is_refused(packs: dict[str, tuple[Path, Truth]]) -> None:
    with pytest.raises(ConfigError, match='Unknown frame of normals "xyz"'):
        nyud_pack(packs["survey"][0], "xyz")


def test_few_images_are_read_for_it_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nyud_pack(tmp_path, "survey", train=20, test=2)
    read: list[Path] = []

    def watched(path: Path) -> Array:
        read.append(path)
        return original(path)

    original = nyud.read_map
    monkeypatch.setattr(nyud, "read_map", watched)
    nyud_pack(tmp_path)
    once = list(read)
    nyud_pack(tmp_path)
    assert len(once) == 2 * 8 and read == once * 2
    train = set((tmp_path / "gt_sets" / "train.txt").read_text().split())
    assert {path.stem for path in once} <= train and len({path.stem for path in once}) == 8


def test_a_damaged_image_does_not_keep_the_axes_from_being_found(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    path = first(root, "normals")
    path.write_bytes(path.read_bytes()[:2000])
    assert nyud_pack(root).attrs["source_frame"] == "rub"
    for other in (root / "normals").iterdir():
        other.write_bytes(b"")
    with pytest.raises(DataError, match=r"normals/\d+\.npy cannot be read"):
        nyud_pack(root).target(path.stem, "normals")


# Pickling and leaving things alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_pack_knows_its_frame_and_holds_no_image(
    kind: str, packs: dict[str, tuple[Path, Truth]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, truth = packs[kind]
    pack = nyud_pack(root)
    image = next(iter(truth))
    expected = pack.target(image, "normals")
    stored = pickle.dumps(pack)
    assert len(stored) < 5000
    for name in ("detect_by_depth", "detect_by_view"):
        monkeypatch.delattr(nyud, name)
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.target(image, "normals"), expected)
    assert (again.attrs, again.splits, again.fields) == (pack.attrs, pack.splits, pack.fields)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_into_the_root(kind: str, packs: dict[str, tuple[Path, Truth]]) -> None:
    root, truth = packs[kind]
    before = _snapshot(root)
    pack = nyud_pack(root)
    for image in truth:
        pack.image(image)
        for target in TARGETS:
            pack.target(image, target)
    assert _snapshot(root) == before and len(before) > 20


# Wrong data ----------------------------------------------------------------------------------------------------------


def test_a_missing_root_is_named_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere does not exist.*images/.*gt_sets/.*train.txt.*scenario.root"):
        nyud_pack(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match="nowhere does not exist"):
        NYUDPack(tmp_path / "nowhere")


def test_an_empty_root_is_named_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=rf"{tmp_path} is empty.*images/.*gt_sets/.*NYUD_MT or NYUDv2"):
        nyud_pack(tmp_path)


def test_a_root_of_other_things_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(MissingDataError, match=r"holds holiday\.jpg.*Expected a pack"):
        nyud_pack(tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "NYUD_MT.tgz").write_bytes(b"")
    with pytest.raises(DataError, match=r"NYUD_MT\.tgz is a file.*Unpack it"):
        nyud_pack(tmp_path / "NYUD_MT.tgz")


@pytest.mark.parametrize("below", ["JPEGImages", "PASCAL_MT", "ImageSets"])
def test_pascal_is_sent_to_its_own_scenario(below: str, tmp_path: Path) -> None:
    (tmp_path / below).mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path} holds PASCAL-Context.*scenario=pascal_incremental"):
        nyud_pack(tmp_path)


def test_of_two_packs_one_is_to_be_named(packs: dict[str, tuple[Path, Truth]], tmp_path: Path) -> None:
    for kind in ("survey", "atrc"):
        shutil.copytree(packs[kind][0], tmp_path / packs[kind][0].name)
    with pytest.raises(DataError, match=r"holds NYUD_MT and NYUDv2.*scenario\.root="):
        nyud_pack(tmp_path)
    assert nyud_pack(tmp_path / "NYUDv2").attrs["source"] == "nyud/atrc"


@pytest.mark.parametrize("split", ["train.txt", "val.txt"])
def test_a_missing_split_file_is_named(split: str, copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    (root / "gt_sets" / split).unlink()
    with pytest.raises(DataError, match=f"gt_sets/{split} is missing"):
        nyud_pack(root)


def test_an_image_in_both_splits_is_refused(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    image = (root / "gt_sets" / "train.txt").read_text().split()[1]
    with (root / "gt_sets" / "val.txt").open("a") as file:
        file.write(f"{image}\n")
    with pytest.raises(DataError, match=rf"val\.txt lists {image}, which train\.txt lists too"):
        nyud_pack(root)


def test_a_folder_that_may_not_be_read_is_named(copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy("survey")

    def refused(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(nyud.os, "scandir", refused)
    with pytest.raises(DataError, match=rf"{root}/images cannot be looked into: Permission denied"):
        nyud_pack(root)


@pytest.mark.parametrize("split", ["train.txt", "val.txt"])
def test_a_listed_image_that_is_missing_is_named(split: str, copy: Callable[[str], Path]) -> None:
    root = copy("atrc")
    with (root / "gt_sets" / split).open("a") as file:
        file.write("9999\n")
    with pytest.raises(DataError, match=rf"gt_sets/{split} lists images whose files are missing: .*images/9999\.png"):
        nyud_pack(root)


@pytest.mark.parametrize("folder", ["images", "segmentation", "edge", "normals", "depth"])
def test_a_target_that_one_image_lacks_is_named(folder: str, copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    path = first(root, folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"train\.txt lists images whose files are missing: {path}\. "):
        nyud_pack(root)


def test_images_alone_are_no_pack(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    for folder in ("segmentation", "edge", "normals", "depth"):
        shutil.rmtree(root / folder)
    with pytest.raises(DataError, match="no folder of a target"):
        nyud_pack(root)


def test_targets_alone_are_no_pack(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    shutil.rmtree(root / "images")
    with pytest.raises(MissingDataError, match=f"{root}/images is missing"):
        nyud_pack(root)


def test_the_segmentation_of_one_pack_and_the_depth_of_another(
    packs: dict[str, tuple[Path, Truth]], copy: Callable[[str], Path]
) -> None:
    root = copy("survey")
    shutil.rmtree(root / "depth")
    shutil.copytree(packs["astmt"][0] / "depth", root / "depth")
    with pytest.raises(DataError) as caught:
        nyud_pack(root)
    message = str(caught.value)
    assert str(root) in message and "mixture" in message and "depth/: .mat" in message
    assert "segmentation/: .png" in message
    assert all(name in message for name in ("ASTMT pack (images/*.jpg", "survey pack (", "ATRC pack ("))


def test_two_packs_unpacked_over_one_another(packs: dict[str, tuple[Path, Truth]], copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    shutil.copytree(packs["astmt"][0], root, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"Found images/: 5 \.jpg, .*depth/: 5 \.mat and 5 \.npy.*Unpack one of them"):
        nyud_pack(root)


def test_a_folder_of_unknown_files(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    for path in (root / "depth").iterdir():
        path.rename(path.with_suffix(".exr"))
    with pytest.raises(DataError, match=r"not one of the three packs.*depth/: 5 \.exr"):
        nyud_pack(root)


def test_files_that_are_no_listed_image_do_no_harm(copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    for name in ("Thumbs.db", "readme.txt", "7777.png", "._0011.mat"):
        (root / "segmentation" / name).write_bytes(b"")
    assert nyud_pack(root).attrs["source"] == "nyud/survey"


CASES = [
    (kind, target, folder)
    for kind in KINDS
    for target, folder in (("semseg", "segmentation"), ("depth", "depth"), ("edges", "edge"), ("normals", "normals"))
]


@pytest.mark.parametrize(("kind", "target", "folder"), CASES)
def test_a_target_of_another_size_is_refused(kind: str, target: str, folder: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, folder)
    shape = (SIZE[1], SIZE[0], 3) if target == "normals" else (SIZE[1], SIZE[0])  # transposed
    dtype = np.float32 if path.suffix == ".npy" or target == "depth" else np.uint8
    store(path, np.full(shape, 1, dtype), folder)
    pack = nyud_pack(root)
    with pytest.raises(DataError, match=rf"{path} is 64 x 48, but its image is 48 x 64"):
        pack.target(path.stem, target)


@pytest.mark.parametrize(("kind", "target", "folder"), CASES)
def test_a_truncated_file_is_named(kind: str, target: str, folder: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, folder)
    whole = path.read_bytes()
    pack = nyud_pack(root)
    for length in (0, 20, 150, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[: max(0, length)])
        with pytest.raises(DataError, match=f"{path}"):
            pack.target(path.stem, target)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} does not exist"):
        pack.target(path.stem, target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_image_is_named(kind: str, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "images")
    pack = nyud_pack(root)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        pack.image(path.stem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [41, 255])
def test_a_class_out_of_range_is_refused(kind: str, value: int, copy: Callable[[str], Path]) -> None:
    root = copy(kind)
    path = first(root, "segmentation")
    raw = np.ones(SIZE, np.uint8)
    raw[PIXEL] = value
    store(path, raw, "segmentation")
    with pytest.raises(DataError, match=rf"{path}: expected 0 \(no label\) or a class 1\.\.40.*but got {value}\."):
        nyud_pack(root).target(path.stem, "semseg")


@pytest.mark.parametrize("value", [-1, 3.5, np.nan])
def test_a_class_that_is_no_number_is_refused(value: float, copy: Callable[[str], Path]) -> None:
    root = copy("astmt")
    path = first(root, "segmentation")
    raw = np.ones(SIZE)
    raw[PIXEL] = value
    store(path, raw, "segmentation")
    with pytest.raises(DataError, match=f"{path}: expected .* but got {value}"):
        nyud_pack(root).target(path.stem, "semseg")


def test_matlab_doubles_are_classes(copy: Callable[[str], Path]) -> None:
    root = copy("astmt")
    path = first(root, "segmentation")
    store(path, np.full(SIZE, 40.0), "segmentation")
    labels = nyud_pack(root).target(path.stem, "semseg")
    assert labels is not None and labels.dtype == np.uint8 and (labels == 39).all()


@pytest.mark.parametrize(("target", "folder"), [("semseg", "segmentation"), ("depth", "depth")])
def test_a_mat_of_version_7_3_is_refused(target: str, folder: str, copy: Callable[[str], Path]) -> None:
    root = copy("astmt")
    path = first(root, folder)
    pack = nyud_pack(root)
    path.unlink()
    with h5py.File(path, "w", userblock_size=512) as file:
        file[folder] = np.ones(SIZE[::-1])
    with path.open("r+b") as header:
        header.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    with pytest.raises(DataError, match=rf"{path} is a MATLAB v7\.3 file.*version 5 is expected"):
        pack.target(path.stem, target)


def test_a_mat_without_the_variable_says_which_it_has(copy: Callable[[str], Path]) -> None:
    root = copy("astmt")
    path = first(root, "depth")
    store(path, np.ones(SIZE), "depths")
    with pytest.raises(DataError, match=rf'{path}: Unknown variable "depth".*"depths"'):
        nyud_pack(root).target(path.stem, "depth")


@pytest.mark.parametrize(("target", "folder"), [("depth", "depth"), ("edges", "edge"), ("normals", "normals")])
def test_pickled_objects_are_not_unpickled(target: str, folder: str, copy: Callable[[str], Path]) -> None:
    root = copy("survey")
    path = first(root, folder)
    pack = nyud_pack(root)
    marker = root.parent / "executed"
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Attack(marker)], object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        pack.target(path.stem, target)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "target", "folder", "values", "message"),
    [
        ("survey", "depth", "depth", np.ones((*SIZE, 2), np.float32), "expected numbers H x W"),
        ("survey", "depth", "depth", np.full(SIZE, "far"), "expected numbers H x W"),
        ("survey", "normals", "normals", np.ones(SIZE, np.float32), "expected normals H x W x 3"),
        ("survey", "normals", "normals", np.ones((3, *SIZE), np.float32), "expected normals H x W x 3"),
        ("survey", "normals", "normals", np.ones((*SIZE, 3), np.uint16), "expected normals in 8 bits or as floats"),
        ("survey", "edges", "edge", np.full(SIZE, 128, np.uint8), "expected 1 at edges"),
        ("survey", "edges", "edge", np.full(SIZE, -1.0), "expected 1 at edges"),
        ("atrc", "edges", "edge", np.full(SIZE, 65535, np.uint16), "expected a picture of 8 bits"),
        ("atrc", "normals", "normals", np.ones(SIZE, np.uint8), "expected normals H x W x 3"),
        ("atrc", "normals", "normals", np.ones((*SIZE, 4), np.uint8), "expected normals H x W x 3"),
        ("atrc", "semseg", "segmentation", np.eye(48, 64, dtype=np.uint8)[..., None] * [1, 2, 3], "H x W"),
    ],
)
def test_what_a_target_cannot_be_is_refused(
    kind: str, target: str, folder: str, values: Array, message: str, copy: Callable[[str], Path]
) -> None:
    root = copy(kind)
    path = first(root, folder)
    store(path, values if values.dtype != np.int64 else values.astype(np.uint8))
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        nyud_pack(root).target(path.stem, target)


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _angle(a: Array, b: Array) -> Array:
    """Angle between vectors, degrees."""
    cross = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.rad2deg(np.arctan2(cross, (a * b).sum(axis=-1)))


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in [root, *root.rglob("*")]
    }
