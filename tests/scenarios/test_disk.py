"""What scenarios of data on disk share: where data is looked for, which images are used, what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from fake_data import fake_dense_hdf5
from fake_folder import write_folder
from fake_nyud import write_nyud_pack
from fake_nyud_mat import write_nyud_mat
from fake_pascal import write_pascal
from medusa_cl.data.rooms import cache_dir
from medusa_cl.data.sources import open_pack
from medusa_cl.errors import ConfigError, DataError, MissingDataError, TaskError
from medusa_cl.scenarios import disk
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.disk import Place, disk_scenario, open_data
from medusa_cl.scenarios.folder import folder_incremental
from medusa_cl.scenarios.nyud import NYUD, nyud_incremental, nyud_tasks
from medusa_cl.scenarios.pascal import PASCAL, pascal_incremental

Make = Callable[..., DenseScenario]
BASE, STREAM = ("semseg", "depth"), ("normals", "edges")


pytestmark = pytest.mark.usefixtures("nothing_elsewhere")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above a survey pack of 12 training and 3 test images; not to be changed."""
    above = tmp_path_factory.mktemp("survey")
    write_nyud_pack(above / "NYUD_MT", "survey", train=12, test=3)
    return above


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A small survey pack to be damaged: 4 training and 2 test images."""
    write_nyud_pack(tmp_path / "own" / "NYUD_MT", "survey", train=4, test=2)
    return tmp_path / "own" / "NYUD_MT"


@pytest.fixture
def make(survey: Path) -> Make:
    def make(root: Path | None = None, **options: Any) -> DenseScenario:
        pack = open_pack(root or survey, normals_frame="rub")
        return disk_scenario(pack, nyud_tasks(), **{"base": BASE, "stream": STREAM, **options})  # type: ignore[arg-type]

    return make


def ids(scenario: DenseScenario, split: str) -> tuple[str, ...]:
    found: tuple[str, ...] = scenario.data[split].ids  # type: ignore[attr-defined]
    return found


# ---------------------------------------------------------------- where data is looked for


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# What lies in a place, whether its file itself is named, and where of it the data is found.
FORMS: dict[str, tuple[Place, str, str, str]] = {
    "prepared file": (NYUD, "NYUD_MT.h5", "NYUD_MT.h5", "NYUD_MT.h5"),
    "prepared file of another name": (NYUD, "mine.h5", "mine.h5", "mine.h5"),
    "folder of the prepared file": (NYUD, "NYUD_MT.h5", "", "NYUD_MT.h5"),
    "pack": (NYUD, "gt_sets/train.txt", "", ""),
    "folder above NYUD_MT": (NYUD, "NYUD_MT/gt_sets/train.txt", "", "NYUD_MT"),
    "folder above NYUDv2": (NYUD, "NYUDv2/gt_sets/train.txt", "", "NYUDv2"),
    "raw file": (NYUD, "nyu_depth_v2_labeled.mat", "nyu_depth_v2_labeled.mat", "nyu_depth_v2_labeled.mat"),
    "folder of the raw file": (NYUD, "nyu_depth_v2_labeled.mat", "", "nyu_depth_v2_labeled.mat"),
    "PASCAL's prepared file": (PASCAL, "PASCAL_MT.h5", "", "PASCAL_MT.h5"),
    "PASCAL's pack": (PASCAL, "JPEGImages/a.jpg", "", ""),
    "folder above PASCAL_MT": (PASCAL, "PASCAL_MT/JPEGImages/a.jpg", "", "PASCAL_MT"),
}


FIXED = {"data": "cwd/data", "cache": "cache"}  # folders whose names are given


@pytest.mark.parametrize("place", ["root", "environment", *FIXED])
@pytest.mark.parametrize("form", FORMS)
def test_each_place_may_be_the_data_or_hold_it(
    form: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, inside, named, found = FORMS[form]
    folder = tmp_path / FIXED.get(place, "elsewhere")
    touch(folder / inside)
    if place in FIXED and named == "mine.h5":
        return  # in a folder, only the usual name is looked for
    if place == "environment":
        monkeypatch.setenv("MEDUSA_CL_DATA", str(folder / named))
    root = str(folder / named) if place == "root" else None
    assert known.find(root).resolve() == (folder / found).resolve()


def test_the_places_are_looked_at_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / name / "NYUD_MT.h5" for name in ("root", "environment", "cwd/data", "cache")]
    touch(*places)
    monkeypatch.setenv("MEDUSA_CL_DATA", str(tmp_path / "environment"))
    assert NYUD.find(tmp_path / "root") == places[0]
    for path in places[1:]:
        assert NYUD.find(None).resolve() == path
        path.unlink()
    with pytest.raises(MissingDataError):
        NYUD.find(None)
    with pytest.raises(MissingDataError):
        NYUD.find(tmp_path / "none")


def test_a_given_root_is_the_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "environment" / "NYUD_MT.h5", Path("data/NYUD_MT.h5"))
    monkeypatch.setenv("MEDUSA_CL_DATA", str(tmp_path / "environment"))
    with pytest.raises(MissingDataError, match="absent") as caught:
        NYUD.find(tmp_path / "absent")
    assert str(tmp_path / "environment") not in str(caught.value)


def test_a_home_directory_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "me" / "NYUD_MT.h5")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert NYUD.find("~") == NYUD.find("~/NYUD_MT.h5") == tmp_path / "me" / "NYUD_MT.h5"


def test_two_data_sets_may_lie_side_by_side(survey: Path) -> None:
    Path("data").mkdir()
    (Path("data") / "NYUD_MT").symlink_to(survey / "NYUD_MT")
    write_pascal("data")
    assert nyud_incremental().about.startswith("survey pack of NYUD-v2 at data/NYUD_MT:")
    assert pascal_incremental().about.startswith("PASCAL_MT (PASCAL-Context) at data/PASCAL_MT:")


def test_a_raw_file_beside_another_data_set_is_found() -> None:
    write_nyud_mat("data", count=3)
    write_pascal("data")
    assert nyud_incremental().about.startswith("raw file of NYUD-v2 at data/nyu_depth_v2_labeled.mat:")
    assert pascal_incremental().about.startswith("PASCAL_MT (PASCAL-Context) at data/PASCAL_MT:")


def test_a_prepared_file_goes_before_the_pack_beside_it_and_the_pack_before_the_raw_file(tmp_path: Path) -> None:
    for inside, found in (
        ("nyu_depth_v2_labeled.mat", "nyu_depth_v2_labeled.mat"),
        ("NYUD_MT/gt_sets/train.txt", "NYUD_MT"),
        ("gt_sets/train.txt", ""),
        ("NYUD_MT.h5", "NYUD_MT.h5"),
    ):
        touch(tmp_path / inside)
        assert NYUD.find(tmp_path) == tmp_path / found


@pytest.mark.parametrize(("scenario", "names"), [
    (nyud_incremental, ("NYUD-v2 was not found", "NYUD_MT.h5", "NYUD_MT,", "NYUDv2", "nyu_depth_v2_labeled.mat")),
    (pascal_incremental, ("PASCAL-Context was not found", "PASCAL_MT.h5", "PASCAL_MT,", "JPEGImages")),
])  # fmt: skip
def test_what_is_found_nowhere_is_said_with_all_places(
    scenario: Any, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUSA_CL_DATA", str(tmp_path / "mounted"))
    with pytest.raises(MissingDataError) as caught:
        scenario()
    message = str(caught.value)
    places = (str(tmp_path / "mounted"), "data", str(cache_dir()))
    for word in (*names, *places, "scenario.root=", "$MEDUSA_CL_DATA", "scenario.download=true", "rooms_incremental"):
        assert word in message
    assert message.index(places[0]) < message.index(", data,") < message.index(places[2])
    assert "  " not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("scenario", [nyud_incremental, pascal_incremental, folder_incremental])
@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_root_that_is_missing_or_empty(scenario: Any, there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "mine").mkdir()
    with pytest.raises(MissingDataError, match="mine") as caught:
        scenario(root=str(tmp_path / "mine"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("scenario", [nyud_incremental, pascal_incremental])
def test_a_root_of_other_things_is_answered_with_what_is_there(scenario: Any, tmp_path: Path) -> None:
    touch(tmp_path / "mine" / "thesis.tex", tmp_path / "mine" / "photos" / "cat.jpg")
    with pytest.raises(DataError, match=r"mine.*photos, thesis\.tex.*Expected.*NYUD_MT.*PASCAL_MT|.*PASCAL_MT.*") as e:
        scenario(root=str(tmp_path / "mine"))
    assert not isinstance(e.value, MissingDataError)
    with pytest.raises(DataError, match=r"thesis\.tex"):
        scenario(root=str(tmp_path / "mine" / "thesis.tex"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, survey: Path) -> dict[str, Path]:
    """Data of every family by what it is."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("mat", "pascal", "folder", "prepared")}
    write_nyud_mat(made["mat"], count=3, size=(24, 32))
    write_pascal(made["pascal"])
    write_folder(made["folder"])
    for source in ("nyud/survey", "pascal_mt", "folder"):
        name = source.split("/")[0].split("_")[0]
        fake_dense_hdf5(made["prepared"] / f"{name}.h5", {"train": 1, "test": 1}, attrs={"source": source})
    return {
        "nyud pack": survey / "NYUD_MT", "above the nyud pack": survey, "nyud mat": made["mat"],
        "nyud mat file": made["mat"] / "nyu_depth_v2_labeled.mat", "pascal pack": made["pascal"] / "PASCAL_MT",
        "above the pascal pack": made["pascal"], "folder": made["folder"],
        **{f"{name} prepared": made["prepared"] / f"{name}.h5" for name in ("nyud", "pascal", "folder")},
    }  # fmt: skip


KINDS = (
    *("nyud pack", "above the nyud pack", "nyud mat", "nyud mat file", "nyud prepared"),
    *("pascal pack", "above the pascal pack", "pascal prepared", "folder", "folder prepared"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", [nyud_incremental, pascal_incremental, folder_incremental])
def test_data_of_another_kind_is_answered_with_its_scenario(scenario: Any, kind: str, families: Any) -> None:
    right = next(name for name in ("nyud", "pascal", "folder") if name in kind)
    if scenario.__name__.startswith(right):
        return
    with pytest.raises(DataError, match=f"scenario={right}_incremental") as caught:
        scenario(root=str(families[kind]))
    assert str(families[kind]) in str(caught.value)


def test_a_prepared_file_under_another_name_is_named_where_its_folder_is_given(tmp_path: Path) -> None:
    fake_dense_hdf5(tmp_path / "mine" / "a.h5", {"train": 1, "test": 1}, classes=40)
    with pytest.raises(DataError, match=r"scenario\.root=.*a\.h5"):
        nyud_incremental(root=str(tmp_path / "mine"))


def test_a_prepared_file_of_unknown_origin_is_taken(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "mine.h5", {"train": 1, "test": 1})
    assert open_data(path, "nyud") == open_data(path, "pascal") == path


# ---------------------------------------------------------------- which tasks and images


def test_tasks_come_in_an_order_drawn_with_the_seed(make: Make) -> None:
    stream = ("depth", "normals", "edges")
    drawn = [make(base=("semseg",), stream=stream, order="random", seed=seed, train_size=2).stream for seed in range(8)]
    assert len(set(drawn)) > 2
    assert all(sorted(names) == sorted(stream) for names in drawn)
    again = make(base=("semseg",), stream=("edges", "depth", "normals"), order="random", seed=3, train_size=2)
    assert again.stream == drawn[3]


def test_a_task_can_be_left_for_last(make: Make) -> None:
    assert make(held_out="semseg").groups == [("depth", "normals", "edges"), ("semseg",)]
    assert make(held_out=["edges", "depth"]).groups == [("semseg", "normals"), ("edges",), ("depth",)]
    with pytest.raises(TaskError, match='Did you mean "normals"'):
        make(held_out="normal")


def test_the_first_images_may_do(make: Make, survey: Path) -> None:
    scenario = make(train_size=5, test_size=2)
    listed = (survey / "NYUD_MT" / "gt_sets" / "train.txt").read_text().split()
    assert ids(scenario, "train") == tuple(listed[:5])
    assert {len(e.dataset) for e in scenario.test_stream} == {2}
    with pytest.raises(DataError, match=r"1\.\.12 for split train, but got 13"):
        make(train_size=13)


def test_val_is_set_aside_of_train_the_same_for_every_seed(make: Make) -> None:
    whole = make()
    assert set(whole.data) == {"train", "test"}
    chosen = [make(val_fraction=0.25, seed=seed, order="random") for seed in range(3)]
    for scenario in chosen:
        assert ids(scenario, "val") == ids(chosen[0], "val")
        assert len(ids(scenario, "val")) == 3
        assert sorted(ids(scenario, "val") + ids(scenario, "train")) == sorted(ids(whole, "train"))
        assert ids(scenario, "test") == ids(whole, "test")
        assert [len(e.dataset) for e in scenario.val_stream] == [3] * 3
        assert {e.augmentation for e in scenario.val_stream} == {None}
    assert [ids(whole, "train").index(image) for image in ids(chosen[0], "val")] == [0, 2, 8], "in every version"
    assert list(ids(chosen[0], "train")) == [i for i in ids(whole, "train") if i not in ids(chosen[0], "val")]


def test_images_set_aside_keep_their_samples(make: Make) -> None:
    whole, split = make(), make(val_fraction=0.25)
    for name in ("train", "val"):
        for i, image in enumerate(ids(split, name)):
            j = ids(whole, "train").index(image)
            assert torch.equal(split.data[name].image(i), whole.data["train"].image(j))
            assert torch.equal(split.data[name].target(i, "depth"), whole.data["train"].target(j, "depth"))  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.01, 0.99, 1.0, -0.5])
def test_a_fraction_that_leaves_nothing_is_refused(make: Make, fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"val_fraction"):
        make(val_fraction=fraction)


def test_val_is_not_set_aside_where_there_is_one(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5", {"train": 4, "val": 2, "test": 1}, classes=40)
    assert len(disk_scenario(path, nyud_tasks(), base=["depth"], stream=["edges"]).val_stream[0].dataset) == 2
    with pytest.raises(ConfigError, match=r"val split of 2 images.*val_fraction"):
        disk_scenario(path, nyud_tasks(), base=["depth"], stream=["edges"], val_fraction=0.5)


def test_images_are_padded_to_a_canvas(make: Make) -> None:
    scenario = make(image_size=[50, 70], val_fraction=0.25)
    for stream in (scenario.train_stream, scenario.val_stream, scenario.test_stream):
        first, normals = stream[0].dataset[0], stream[1].dataset[0]
        assert first.image.shape == (3, 50, 70)
        assert (first.targets["semseg"][48:] == 255).all() and (first.targets["semseg"][:, 64:] == 255).all()
        assert (first.targets["depth"][:, 48:] == 0).all() and (normals.targets["normals"][:, :, 64:] == 0).all()
    plain = make()
    assert torch.equal(scenario.test_stream[0].dataset[0].image[:, :48, :64], plain.test_stream[0].dataset[0].image)


@pytest.mark.parametrize("size", [[47, 64], [48, 63]])
def test_a_canvas_that_is_too_small_is_refused(make: Make, size: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"scenario\.image_size of at least \[48, 64\].*padded to it, never cut"):
        make(image_size=size)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_bad_sample": "skp"}, ConfigError, 'Did you mean "skip"'),
        ({"order": "radom"}, ConfigError, 'Did you mean "random"'),
        ({"augment": {"flp": True}}, ConfigError, 'Did you mean "flip"'),
        ({"stream": ("normls",)}, TaskError, 'Did you mean "normals"'),
        ({"stream": ("depth",)}, TaskError, "learnt twice"),
        ({"base": ()}, TaskError, "base is empty"),
    ],
)
def test_wrong_options_are_answered(make: Make, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


# ---------------------------------------------------------------- damaged and empty data


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def read_all(scenario: DenseScenario) -> Iterator[Any]:
    for stream in scenario.streams.values():
        for experience in stream:
            yield from (experience.dataset[i] for i in range(len(experience.dataset)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_image_stops_with_its_file(own: Path, split: str, make: Make) -> None:
    path = cut(own / "normals" / f"{ids(make(own), split)[-1]}.npy")
    scenario = make(own)
    with pytest.raises(DataError, match=path.name) as caught:
        list(read_all(scenario))
    assert str(path) in str(caught.value) and "on_bad_sample=skip" in str(caught.value)


def test_damaged_images_are_left_out_listed_and_remembered(
    own: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(own)
    bad = [cut(own / "depth" / f"{ids(whole, 'train')[1]}.npy"), cut(own / "edge" / f"{ids(whole, 'test')[0]}.npy")]
    told: list[tuple[str, int, int]] = []
    scenario = make(own, on_bad_sample="skip", progress=lambda *done: told.append(done))
    assert ids(scenario, "train") == tuple(i for i in ids(whole, "train") if i != bad[0].stem)
    assert ids(scenario, "test") == ids(whole, "test")[1:]
    assert {split: list(faults) for split, faults in scenario.skipped.items()} == {
        "train": [bad[0].stem], "test": [bad[1].stem],
    }  # fmt: skip
    assert str(bad[0]) in scenario.skipped["train"][bad[0].stem]
    assert told[0][1:] == (1, 4) and told[-1][1:] == (2, 2)
    assert scenario.about.startswith(f"survey pack of NYUD-v2 at {own}: 3 train, 1 test images")
    assert len(list(read_all(scenario))) == 3 * (3 + 1)
    notes = list((cache_dir() / "checked").iterdir())
    assert len(notes) == 2
    monkeypatch.setattr(disk, "usable", lambda *_, **__: pytest.fail("read a second time"))
    again = make(own, on_bad_sample="skip")
    assert again.skipped == scenario.skipped and again.content_hash == scenario.content_hash
    assert again.content_hash["train"] != whole.content_hash["train"]


def test_changed_data_is_read_again(own: Path, make: Make) -> None:
    path = own / "depth" / f"{ids(make(own), 'train')[1]}.npy"
    content = path.read_bytes()
    cut(path)
    assert list(make(own, on_bad_sample="skip").skipped) == ["train"]
    path.write_bytes(content)
    assert make(own, on_bad_sample="skip").skipped == {}


def test_a_file_made_again_is_read_again_though_its_size_is_the_same(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5", {"train": 4, "test": 2}, classes=40)
    whole = path.read_bytes()

    def skipped() -> dict[str, Any]:
        return dict(disk_scenario(path, nyud_tasks(), base=["semseg"], stream=["depth"], on_bad_sample="skip").skipped)

    assert skipped() == {}
    damage(path)
    assert list(skipped()["train"]) == ["2"]
    path.unlink()
    path.write_bytes(whole)
    assert skipped() == {}


def test_a_note_that_is_damaged_is_made_anew(own: Path, make: Make) -> None:
    cut(own / "depth" / f"{ids(make(own), 'train')[1]}.npy")
    first = make(own, on_bad_sample="skip").skipped
    for note in (cache_dir() / "checked").iterdir():
        note.write_text("[[0")
    assert make(own, on_bad_sample="skip").skipped == first


def test_skipping_needs_no_cache_that_can_be_written(own: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(own / "depth" / f"{ids(make(own), 'train')[1]}.npy")
    Path("file").write_text("")
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(Path("file").resolve()))
    assert list(make(own, on_bad_sample="skip").skipped) == ["train"]


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_picture_that_is_none_is_left_out_too(content: bytes, own: Path, make: Make) -> None:
    image = ids(make(own), "train")[1]
    (own / "images" / f"{image}.jpg").write_bytes(content)
    assert list(make(own, on_bad_sample="skip").skipped["train"]) == [image]


def test_whole_data_skips_nothing(make: Make) -> None:
    scenario = make(on_bad_sample="skip")
    assert scenario.skipped == {} and scenario.content_hash == make().content_hash


def test_a_split_of_damaged_images_alone_is_refused(own: Path, make: Make) -> None:
    for image in ids(make(own), "test"):
        cut(own / "edge" / f"{image}.npy")
    with pytest.raises(DataError, match=r"every image is damaged.*edge"):
        make(own, on_bad_sample="skip")


def damage(path: Path) -> None:
    """Change the depth of training image 2."""
    with h5py.File(path, locking=False) as file:
        place = file["train/depth"].id.get_chunk_info(2).byte_offset + 20
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.unlink()  # readers may still hold the old one
    path.write_bytes(content)


def test_damaged_images_of_a_prepared_file_are_left_out_too(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5", {"train": 4, "test": 2}, classes=40)
    damage(path)
    scenario = disk_scenario(path, nyud_tasks(), base=["semseg"], stream=["depth"], on_bad_sample="skip")
    assert {split: list(faults) for split, faults in scenario.skipped.items()} == {"train": ["2"]}
    assert [len(e.dataset) for e in scenario.train_stream] == [3, 3]
    assert len(list(read_all(scenario))) == 2 * (3 + 2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_target_that_is_empty_in_a_whole_split_is_refused(own: Path, split: str, make: Make) -> None:
    for image in ids(make(own), split):
        np.save(own / "depth" / f"{image}.npy", np.zeros((48, 64), np.float32))
    with pytest.raises(DataError, match=rf"NYUD_MT \({split}.*`depth`.*ignored value 0") as caught:
        make(own)
    assert "unit" in str(caught.value)
    assert make(own, base=("semseg",)).groups == [("semseg",), ("normals",), ("edges",)]


def test_an_image_without_any_label_is_fine(own: Path, make: Make) -> None:
    image = ids(make(own), "train")[0]
    np.save(own / "depth" / f"{image}.npy", np.zeros((48, 64), np.float32))
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(own / "segmentation" / f"{image}.png")
    sample = make(own).train_stream[0].dataset[0]
    assert (sample.targets["semseg"] == 255).all() and (sample.targets["depth"] == 0).all()
