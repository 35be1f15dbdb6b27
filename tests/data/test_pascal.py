from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image

from fake_pascal import HOLE, SIZES, SKY, Written, save_parts, write_pascal
from medusa_cl.data.hdf5 import decode, encode
from medusa_cl.data.pascal import CLASSES, HUMAN_PARTS, NORMALS_CLASSES, PascalPack
from medusa_cl.errors import ConfigError, DataError, MissingDataError
from medusa_cl.tasks import HUMAN_PARTS as TASKS_PARTS

ROOT = Path(__file__).parents[2]
TARGETS = {"semseg", "human_parts", "saliency", "normals", "edges"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_pascal(tmp_path_factory.mktemp("pascal"))


@pytest.fixture(scope="module")
def pack(written: Written) -> PascalPack:
    return PascalPack(written.root)


@pytest.fixture
def own(tmp_path: Path) -> Written:
    """One that a test may damage."""
    return write_pascal(tmp_path)


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    folders = [path for path in sorted(root.rglob("*")) if path.is_dir()]
    found = {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}
    return found | {str(path): ("", path.stat().st_mtime_ns) for path in folders}


def test_splits_are_those_of_the_files_and_val_is_our_test(pack: PascalPack, written: Written) -> None:
    assert pack.splits == {"train": written.train, "test": written.test}
    assert set(pack.fields) == TARGETS and pack.root == written.root
    assert pack.attrs == {"source": "pascal_mt", "distilled": ["normals", "saliency"], "source_frame": "rub"}
    assert set(pack.derived) == {"edges"}


def test_the_folder_above_is_found_too(pack: PascalPack, written: Written) -> None:
    assert PascalPack(written.root.parent).root == written.root


def test_images_keep_their_sizes_and_orientation(pack: PascalPack, written: Written) -> None:
    assert {pack.size(image) for image in written.train} == set(SIZES)
    for image in written.train + written.test:
        pixels, (height, width) = pack.image(image).astype(int), written.sizes[image]
        assert pixels.shape == (height, width, 3) and pack.size(image) == (height, width)
        assert abs(pixels[3, 3] - written.colours[image]).max() <= 3
        assert abs(pixels[3, -3] - 128).max() <= 3 and abs(pixels[-3, 3] - 128).max() <= 3


@pytest.mark.parametrize("target", ["semseg", "human_parts", "saliency"])
def test_labels_are_those_written(pack: PascalPack, written: Written, target: str) -> None:
    for image in written.train + written.test:
        assert pack.has(image, target)
        values = pack.target(image, target)
        np.testing.assert_array_equal(values, getattr(written, target)[image])
        np.testing.assert_array_equal(decode(pack.fields[target], encode(pack.fields[target], values)), values)


def test_planted_pixels(pack: PascalPack, written: Written) -> None:
    first, last, crowd = written.train[0], written.train[-1], written.test[0]
    semseg = pack.target(first, "semseg")
    assert semseg is not None and (semseg[2, 3], semseg[-2, -3], semseg[-1, 1], semseg[20, 20]) == (20, 15, 255, 0)
    parts = pack.target(crowd, "human_parts")
    assert parts is not None
    # Head, hair; neck over the head; torso; upper and lower arm; hand; upper leg; lower leg and foot; nothing.
    places = [(9, 4), (7, 4), (11, 5), (18, 6), (13, 10), (17, 11), (20, 11), (21, 5), (25, 4), (27, 7), (30, 30)]
    assert [parts[at] for at in places] == [1, 1, 2, 2, 3, 4, 4, 5, 6, 6, 0]
    assert [parts[y, x + 16] for y, x in places[:-1]] == [1, 1, 2, 2, 3, 4, 4, 5, 6, 6]  # the second person
    assert (pack.target(last, "human_parts") == 255).all()  # a bird with a head, and a person without parts
    saliency = pack.target(crowd, "saliency")
    assert saliency is not None and [saliency[y, 8] for y in (3, 5, 12, 16)] == [0, 1, 1, 0]  # 0, 255, 128, 127


def test_voc12_goes_before_pascal_context(pack: PascalPack, written: Written) -> None:
    assert "pascal-context" in str(pack.files(written.train[0], "semseg")[0])
    assert "VOC12" in str(pack.files(written.train[1], "semseg")[0])
    assert (np.asarray(pack.target(written.train[1], "semseg")) != 7).all()


@pytest.mark.parametrize("frame", ["rdf", "rub", "lub", "bur"])
def test_normals_come_in_our_frame(tmp_path: Path, frame: str) -> None:
    written = write_pascal(tmp_path, frame=frame)
    for asked in ("auto", frame.upper()):
        pack = PascalPack(tmp_path, normals_frame=asked)
        assert pack.attrs["source_frame"] == frame
        image = written.test[0]
        normals = pack.target(image, "normals")
        assert normals is not None and normals.dtype == np.float32
        assert abs(normals - written.normals[image]).max() < 0.005
        assert normals[-2, 20, 1] < -0.9 and normals[15, 1, 0] > 0.9 and normals[15, -2, 0] < -0.9  # floor, left, right
        assert normals[10, 18, 2] < -0.9


def test_normals_are_ignored_where_nothing_says_what_they_are(pack: PascalPack, written: Written) -> None:
    assert SKY not in NORMALS_CLASSES
    for image in written.train:
        stored = encode(pack.fields["normals"], np.asarray(pack.target(image, "normals")))
        assert not stored[HOLE].any() and not stored[written.context[image] == SKY].any()
        other = written.context[image] != SKY
        other[HOLE] = False
        assert stored[other].any(axis=-1).all()


def test_black_normals_are_invalid(own: Written) -> None:
    path = own.root / "normals_distill" / f"{own.train[0]}.png"
    picture = np.array(Image.open(path))
    picture[-4:, :5] = 0
    Image.fromarray(picture).save(path)
    normals = np.asarray(PascalPack(own.root, "rub").target(own.train[0], "normals"))
    assert not normals[-4:, :5].any() and normals[-4:, 5:9].any(axis=-1).all()


def test_edges_are_thin_and_where_context_labels_meet(pack: PascalPack, written: Written) -> None:
    for image in written.train:
        edges, context = np.asarray(pack.target(image, "edges")), written.context[image]
        assert set(np.unique(edges)) == {0, 1}
        meet = scipy.ndimage.maximum_filter(context, 3) != scipy.ndimage.minimum_filter(context, 3)
        assert (meet[edges == 1]).all()
        row = np.flatnonzero(np.diff(context[:, -2].astype(int)))[0]  # where the wall ends and the floor begins
        assert edges[row : row + 2, -8:-2].sum(axis=0).tolist() == [1] * 6


def test_an_image_without_a_file_of_parts_has_no_people(own: Written) -> None:
    image = own.train[1]
    (own.root / "human_parts" / f"{image}.mat").unlink()
    pack = PascalPack(own.root)
    parts = np.asarray(pack.target(image, "human_parts"))
    assert parts.shape == own.sizes[image] and (parts == 255).all()
    assert pack.files(image, "human_parts") == () and pack.has(image, "human_parts")


def test_targets_whose_folders_are_missing_are_not_offered(own: Written) -> None:
    shutil.rmtree(own.root / "sal_distill")
    shutil.rmtree(own.root / "pascal-context")  # normals need it as well
    pack = PascalPack(own.root)
    assert set(pack.fields) == {"semseg", "human_parts"}
    assert "source_frame" not in pack.attrs and pack.attrs["distilled"] == [] and pack.derived == {}
    assert pack.target(own.train[0], "edges") is None and not pack.has(own.train[0], "edges")


def test_classes_are_those_of_the_tasks() -> None:
    assert len(CLASSES) == 21 and CLASSES[15] == "person" and tuple(HUMAN_PARTS) == TASKS_PARTS
    assert sum(len(parts) for parts in HUMAN_PARTS.values()) == 24  # all that PASCAL-Part has of a person
    assert len(set(NORMALS_CLASSES)) == len(NORMALS_CLASSES) == 170


def test_nothing_is_written(own: Written) -> None:
    before = snapshot(own.root.parent)
    pack = PascalPack(own.root)
    for image in own.train + own.test:
        pack.image(image)
        for target in pack.fields:
            pack.target(image, target)
    assert snapshot(own.root.parent) == before


def test_it_can_be_pickled(pack: PascalPack, written: Written) -> None:
    copy = pickle.loads(pickle.dumps(pack))
    assert (copy.splits, copy.attrs, copy.fields) == (pack.splits, pack.attrs, pack.fields)
    np.testing.assert_array_equal(
        copy.target(written.train[0], "normals"), np.asarray(pack.target(written.train[0], "normals"))
    )


def test_reading_does_not_need_torch(written: Written) -> None:
    code = (
        "import sys; from medusa_cl.data.pascal import PascalPack\n"
        f"pack = PascalPack({str(written.root)!r})\n"
        f"[pack.target({written.train[0]!r}, t) for t in pack.fields]\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


# Wrong data ---------------------------------------------------------------------------------------------------------


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(MissingDataError, match=str(root)) as caught:
            PascalPack(root)
        assert "PASCAL_MT" in str(caught.value)


def test_another_data_set(tmp_path: Path) -> None:
    for name in ("gt_sets", "images"):
        (tmp_path / "NYUD_MT" / name).mkdir(parents=True)
    for root in (tmp_path, tmp_path / "NYUD_MT"):
        with pytest.raises(DataError, match="scenario=nyud_incremental"):
            PascalPack(root)
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match="ImageSets/Context/, but it holds JPEGImages"):
        PascalPack(tmp_path / "voc")
    (tmp_path / "PASCAL_MT.tgz").touch()
    with pytest.raises(DataError, match="unpack it"):
        PascalPack(tmp_path / "PASCAL_MT.tgz")


@pytest.mark.parametrize(
    "gone",
    ["JPEGImages/{}.jpg", "semseg/VOC12/{}.png", "sal_distill/{}.png", "normals_distill/{}.png"],
)
def test_a_listed_file_is_missing(own: Written, gone: str) -> None:
    image = own.test[0]
    if "semseg" in gone:
        (own.root / "semseg" / "pascal-context" / f"{image}.png").unlink()
    path = own.root / gone.format(image)
    path.unlink()
    with pytest.raises(DataError) as caught:
        PascalPack(own.root)
    assert image in str(caught.value) and "val.txt" in str(caught.value)


def test_parts_that_were_not_unpacked(own: Written) -> None:
    for path in (own.root / "human_parts").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="human_parts"):
        PascalPack(own.root)


def test_a_missing_split_file(own: Written) -> None:
    (own.root / "ImageSets" / "Context" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"Context/val\.txt"):
        PascalPack(own.root)


def test_an_image_in_both_splits_is_refused(own: Written) -> None:
    with (own.root / "ImageSets" / "Context" / "val.txt").open("a") as file:
        file.write(f"\n{own.train[0]}\n")
    with pytest.raises(DataError, match=rf"val\.txt lists {own.train[0]}, which train\.txt lists too"):
        PascalPack(own.root)


def test_a_folder_that_may_not_be_read_is_named(own: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("medusa_cl.data.pascal.os.listdir", refused)
    with pytest.raises(DataError, match=f"{own.root}/JPEGImages cannot be looked into: Permission denied"):
        PascalPack(own.root)


def test_saliency_of_one_bit(own: Written) -> None:
    path = own.root / FILES["saliency"].format(own.train[1])
    mask = np.zeros(own.sizes[own.train[1]], bool)
    mask[3, 4] = True
    _save(path, mask)
    saliency = np.asarray(PascalPack(own.root).target(own.train[1], "saliency"))
    assert saliency[3, 4] == 1 and saliency.sum() == 1


def test_no_targets_at_all(own: Written) -> None:
    for name in ("semseg", "human_parts", "sal_distill", "normals_distill", "pascal-context"):
        shutil.rmtree(own.root / name)
    with pytest.raises(DataError, match="no targets"):
        PascalPack(own.root)


def test_a_frame_that_cannot_be_told(own: Written) -> None:
    for path in (own.root / "normals_distill").iterdir():
        picture = np.array(Image.open(path))
        picture[:] = (128, 128, 255)  # nothing but walls ahead
        Image.fromarray(picture).save(path)
    pack = PascalPack(own.root)  # who wants no normals is not asked
    assert "source_frame" not in pack.attrs and "normals" in pack.fields
    assert pack.target(own.train[0], "semseg") is not None
    with pytest.raises(DataError, match=r"scenario\.normals_frame=") as caught:
        pack.target(own.train[0], "normals")
    assert "normals_distill" in str(caught.value)
    normals = np.asarray(PascalPack(own.root, "rub").target(own.train[0], "normals"))
    assert normals[-1, 0, 2] < -0.99
    with pytest.raises(ConfigError, match="rdx"):
        PascalPack(own.root, "rdx")


def test_one_damaged_picture_of_normals_does_not_hide_the_frame(tmp_path: Path) -> None:
    own = write_pascal(tmp_path, train=6)
    path = own.root / "normals_distill" / f"{own.train[0]}.png"
    path.write_bytes(path.read_bytes()[:100])
    pack = PascalPack(own.root)
    assert pack.attrs["source_frame"] == "rub"
    with pytest.raises(DataError, match=str(path)):
        pack.target(own.train[0], "normals")
    for other in path.parent.iterdir():
        other.write_bytes(b"")
    with pytest.raises(DataError, match=r"2008_00000\d\.png cannot be read"):
        PascalPack(own.root).target(own.train[0], "normals")


FILES = {
    "semseg": "semseg/VOC12/{}.png",
    "human_parts": "human_parts/{}.mat",
    "saliency": "sal_distill/{}.png",
    "normals": "normals_distill/{}.png",
    "edges": "pascal-context/trainval/{}.mat",
    "image": "JPEGImages/{}.jpg",
}


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_truncated_files_are_named(own: Written, target: str, share: float) -> None:
    image = own.train[1]
    pack, path = PascalPack(own.root), own.root / FILES[target].format(image)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError) as caught:
        pack.image(image) if target == "image" else pack.target(image, target)
    assert str(path) in str(caught.value)


def _save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "colours": ("semseg", lambda path: _save(path, np.zeros((48, 36, 3), np.uint8)), "1 channel"),
    "16 bits": ("saliency", lambda path: _save(path, np.zeros((48, 36), np.uint16)), "8 bits"),
    "grey": ("normals", lambda path: _save(path, np.zeros((48, 36), np.uint8)), "3 channel"),
    "size": ("saliency", lambda path: _save(path, np.zeros((36, 48), np.uint8)), "36 x 48, but its image is 48 x 36"),
    "key": ("edges", lambda path: scipy.io.savemat(path, {"labelmap": np.zeros((48, 36))}), 'Did you mean "labelmap"'),
    "map size": ("edges", lambda path: scipy.io.savemat(path, {"LabelMap": np.zeros((8, 8))}), "8 x 8"),
    "struct": ("human_parts", lambda path: scipy.io.savemat(path, {"anno": np.zeros((2, 2))}), "PASCAL-Part"),
    "no struct": ("human_parts", lambda path: scipy.io.savemat(path, {"parts": np.zeros((2, 2))}), '"anno"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(own: Written, case: str) -> None:
    target, damage, said = WRONG[case]
    path = own.root / FILES[target].format(own.train[1])
    pack = PascalPack(own.root)
    damage(path)
    with pytest.raises(DataError) as caught:
        pack.target(own.train[1], target)
    assert str(path) in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(("part", "size", "said"), [("hands", (48, 36), "lhand"), ("lhand", (36, 48), "36 x 48")])
def test_unknown_or_misshapen_parts(own: Written, part: str, size: tuple[int, int], said: str) -> None:
    path = own.root / "human_parts" / f"{own.train[1]}.mat"
    found = np.zeros((1, 1), [("part_name", object), ("mask", object)])
    found[0, 0] = (part, np.ones(size, np.uint8))
    save_parts(path, own.train[1], [("person", np.array([[15]], np.uint8), np.ones(size, np.uint8), found)])
    with pytest.raises(DataError, match=said) as caught:
        PascalPack(own.root).target(own.train[1], "human_parts")
    assert str(path) in str(caught.value)


def test_a_class_out_of_range_is_refused(own: Written) -> None:
    _save(own.root / FILES["semseg"].format(own.train[1]), np.full((48, 36), 21, np.uint8))
    pack = PascalPack(own.root)
    with pytest.raises(DataError, match="21"):
        encode(pack.fields["semseg"], np.asarray(pack.target(own.train[1], "semseg")))
