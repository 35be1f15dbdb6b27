"""NYUD-v2 from each of its packs, the raw file and prepared files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_data import DENSE, fake_dense_hdf5
from fake_nyud import write_nyud_pack
from fake_nyud_mat import write_nyud_mat
from medusa_cl.data import origins
from medusa_cl.data.rooms import cache_dir
from medusa_cl.errors import ConfigError, DataError, MissingDataError, TaskError
from medusa_cl.prepare import prepare
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.nyud import nyud_incremental, nyud_tasks

FIELDS = [name for name in DENSE if name != "reshading"]
LONG: dict[str, Any] = {
    "base": ["semseg"], "stream": ["depth", "normals", "edges", "curvature", "keypoints2d"],
    "name": "nyud_incremental_long",
}  # fmt: skip
CURVATURE = "labels derived by medusa_cl: principal curvatures fitted to depth"
KEYPOINTS = "labels derived by medusa_cl: determinant of Hessian of grey"


pytestmark = pytest.mark.usefixtures("nothing_elsewhere")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each miniature lies, not to be changed; 3 (raw file: 4) training and 2 test images of 48x64."""
    above = {name: tmp_path_factory.mktemp(name) for name in ("astmt", "survey", "atrc", "mat", "prepared", "file")}
    made = {name: above[name] / ("NYUDv2" if name == "atrc" else "NYUD_MT") for name in ("astmt", "survey", "atrc")}
    for kind, root in made.items():
        write_nyud_pack(root, kind)
    write_nyud_mat(above["mat"])
    prepare(made["survey"], above["prepared"] / "NYUD_MT.h5", workers=1)
    fake_dense_hdf5(above["file"] / "NYUD_MT.h5", {"train": 4, "test": 2}, fields=FIELDS, classes=40)
    return {**made, **{name: above[name] for name in ("mat", "prepared", "file")}}


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (folder, *folder.rglob("*")))


# ---------------------------------------------------------------- whichever it is

FOUND = {
    "astmt": "ASTMT pack of NYUD-v2 at {root}: 3 of 795 train, 2 of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rub), edges",
    "survey": "survey pack of NYUD-v2 at {root}: 3 of 795 train, 2 of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rub), edges",
    "atrc": "ATRC pack of NYUD-v2 at {root}: 3 of 795 train, 2 of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rub), edges",
    "mat": "raw file of NYUD-v2 at {root}/nyu_depth_v2_labeled.mat: 4 of 795 train, 2 of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rdf), edges; "
    "normals: labels derived by medusa_cl: plane fit on inverse depth, 9x9, neighbours within 5 % of the depth; "
    "edges: labels derived by medusa_cl: boundaries of labels and instances, thinned",
    "prepared": "prepared file {root}/NYUD_MT.h5 (nyud/survey): 3 of 795 train, 2 of 654 test images of 48x64; "
    "semseg, depth, normals (stored as rub), edges",
}


@pytest.mark.parametrize("kind", FOUND)
def test_the_same_stream_comes_of_every_pack_and_one_line_says_which(kind: str, roots: dict[str, Path]) -> None:
    before = snapshot(roots[kind])
    scenario = nyud_incremental(root=str(roots[kind]))
    assert scenario.name == "nyud_incremental"
    assert scenario.groups == [("semseg", "depth"), ("normals",), ("edges",)]
    anew = "; normals, edges computed at every read: python -m medusa_cl.prepare keeps such labels"
    assert scenario.about == FOUND[kind].format(root=roots[kind]) + (anew if kind == "mat" else "")
    assert set(scenario.label_notes) == ({"normals", "edges"} if kind == "mat" else set())
    assert scenario.augmentation.zooms == (1.0, 1.2, 1.5) and scenario.augmentation.flip
    count = 4 if kind == "mat" else 3
    assert [len(e.dataset) for e in scenario.train_stream] == [count] * 3
    assert [len(e.dataset) for e in scenario.test_stream] == [2] * 3
    for stream in scenario.streams.values():
        assert all(e.dataset[0].image.shape == (3, 48, 64) for e in stream)
    assert snapshot(roots[kind]) == before


@pytest.mark.parametrize("kind", ["survey", "mat", "prepared"])
def test_the_long_stream_marks_what_is_derived(kind: str, roots: dict[str, Path]) -> None:
    before = snapshot(roots[kind])
    scenario = nyud_incremental(root=str(roots[kind]), **LONG)
    assert scenario.groups == [(name,) for name in ("semseg", "depth", "normals", "edges", "curvature", "keypoints2d")]
    notes = dict(scenario.label_notes)
    assert (notes.pop("curvature"), notes.pop("keypoints2d")) == (CURVATURE, KEYPOINTS)
    assert set(notes) == ({"normals", "edges"} if kind == "mat" else set())
    assert f"; curvature: {CURVATURE}; keypoints2d: {KEYPOINTS}" in scenario.about
    samples = [experience.dataset[0].targets for experience in scenario.train_stream]
    shapes = {name: tuple(value.shape) for sample in samples for name, value in sample.items()}
    assert (shapes["curvature"], shapes["keypoints2d"]) == ((2, 48, 64), (1, 48, 64))
    assert snapshot(roots[kind]) == before


def test_what_is_derived_of_a_target_that_is_not_learnt(roots: dict[str, Path]) -> None:
    scenario = nyud_incremental(root=str(roots["survey"]), base=["semseg"], stream=["curvature"])
    assert list(scenario.train_stream[1].dataset[0].targets) == ["curvature"]
    assert list(scenario.train_stream[0].dataset[0].targets) == ["semseg"]


def samples(scenario: DenseScenario) -> list[Any]:
    return [
        experience.dataset[i]
        for stream in (scenario.train_stream, scenario.test_stream)
        for experience in stream
        for i in range(len(experience.dataset))
    ]


@pytest.mark.parametrize("options", [{}, LONG, {"image_size": [50, 66]}, {"val_fraction": 0.4}, {"train_size": 2}])
def test_a_prepared_file_gives_the_packs_samples_to_the_bit(options: Any, roots: dict[str, Path]) -> None:
    direct, made = (samples(nyud_incremental(root=str(roots[name]), **options)) for name in ("survey", "prepared"))
    assert len(direct) == len(made) > 5
    for one, other in zip(direct, made, strict=True):
        assert torch.equal(one.image, other.image)
        assert (one.index, one.label, list(one.targets)) == (other.index, other.label, list(other.targets))
        assert all(torch.equal(one.targets[name], other.targets[name]) for name in one.targets)


def test_targets_prepared_and_derived_anew_are_the_same(roots: dict[str, Path], tmp_path: Path) -> None:
    """`derive=` of prepare keeps what would be derived; the notes stay."""
    prepare(roots["survey"], tmp_path / "long.h5", derive=["curvature", "keypoints2d"], workers=1)
    direct = nyud_incremental(root=str(roots["survey"]), **LONG)
    kept = nyud_incremental(root=str(tmp_path / "long.h5"), **LONG)
    assert kept.label_notes == direct.label_notes
    for one, other in zip(samples(direct), samples(kept), strict=True):
        assert all(torch.equal(one.targets[name], other.targets[name]) for name in one.targets)


def test_all_whole_images_are_counted_plainly(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from medusa_cl.scenarios import nyud

    monkeypatch.setattr(nyud, "NYUD", nyud.NYUD.__class__(**{**vars(nyud.NYUD), "sizes": {"train": 3, "test": 9}}))
    assert ": 3 train, 2 of 9 test images of " in nyud_incremental(root=str(roots["survey"])).about


# ---------------------------------------------------------------- options of its own


def test_the_frame_of_normals_may_be_said(roots: dict[str, Path]) -> None:
    found = nyud_incremental(root=str(roots["survey"]))
    said = nyud_incremental(root=str(roots["survey"]), normals_frame="rub")
    other = nyud_incremental(root=str(roots["survey"]), normals_frame="rdf")
    normals = [scenario.test_stream[1].dataset[0].targets["normals"] for scenario in (found, said, other)]
    assert torch.equal(normals[0], normals[1])
    assert torch.equal(normals[0], normals[2] * torch.tensor([1, -1, -1]).view(3, 1, 1))
    assert "normals (stored as rdf)" in other.about
    with pytest.raises(ConfigError, match="rux"):
        nyud_incremental(root=str(roots["survey"]), normals_frame="rux")


def test_what_was_fetched_is_read(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the second time it is found in the cache."""
    asked: list[Path] = []

    def fetched(folder: Path, progress: Callable[[int, int | None], None] | None = None) -> Path:
        asked.append(Path(folder))
        folder.mkdir(parents=True)
        (folder / "NYUD_MT").symlink_to(roots["survey"])
        assert progress is not None
        progress(1, None)
        progress(2, 4)
        return folder / "NYUD_MT"

    monkeypatch.setattr(origins, "nyud", fetched)
    told: list[tuple[str, int, int]] = []
    for _ in range(2):
        scenario = nyud_incremental(download=True, progress=lambda *done: told.append(done))
        assert scenario.about.startswith(f"survey pack of NYUD-v2 at {cache_dir() / 'NYUD_MT'}: 3 of 795 train")
    assert asked == [cache_dir()]
    assert told == [("downloading", 1, 1), ("downloading", 2, 4)]


def test_the_raw_file_is_found_where_it_was_fetched_to(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(folder: Path, progress: Any = None) -> Path:
        folder.mkdir(parents=True)
        for file in roots["mat"].iterdir():
            (folder / file.name).symlink_to(file)
        return folder

    monkeypatch.setattr(origins, "nyud", fetched)
    first = nyud_incremental(download=True)
    assert first.about.startswith("raw file of NYUD-v2 at ")
    assert nyud_incremental().about == first.about


def test_nothing_is_fetched_that_is_there_or_was_not_asked_for(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "nyud", lambda *_: pytest.fail("fetched"))
    nyud_incremental(root=str(roots["survey"]), download=True)
    with pytest.raises(MissingDataError, match=r"scenario\.download=true"):
        nyud_incremental()
    with pytest.raises(TaskError):
        nyud_incremental(download=True, stream=["normls"])


def test_what_cannot_be_fetched_is_said_with_the_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real sources are tried, with a `fetch` that fails as without a network."""

    def fails(source: Any, *_: Any) -> Path:
        raise DataError(f"{source.name}: no network")

    monkeypatch.setattr(origins, "fetch", fails)
    with pytest.raises(MissingDataError) as caught:
        nyud_incremental(download=True)
    for word in ("splits.mat: no network", "NYUD_MT.tgz: no network", "By hand", "horatio", f"={cache_dir()}"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- a file in our format


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_file_is_named(damage: str, roots: dict[str, Path], tmp_path: Path) -> None:
    path, content = tmp_path / "broken.h5", (roots["file"] / "NYUD_MT.h5").read_bytes()
    path.write_bytes(content[: len(content) // 3] if damage == "cut" else b"no hdf5 at all" * 100)
    with pytest.raises(DataError, match=r"broken\.h5") as caught:
        nyud_incremental(root=str(path))
    assert not isinstance(caught.value, MissingDataError)


def test_names_are_checked_before_any_file_is_looked_for() -> None:
    for wrong in ({"stream": ["normls"]}, {"base": []}, {"stream": ["depth"]}):
        with pytest.raises(TaskError):
            nyud_incremental(root="absent.h5", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 3])
def test_val_is_opened_where_the_file_has_images_of_it(count: int, roots: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"train": 4, "test": 2} | ({"val": count} if count else {})
    path = fake_dense_hdf5(tmp_path / "NYUD_MT.h5", sizes, fields=FIELDS, classes=40)
    scenario = nyud_incremental(root=str(path))
    assert set(scenario.streams) == set(scenario.content_hash) == set(sizes)
    if count:
        assert [len(e.dataset) for e in scenario.val_stream] == [count] * 3
        assert {e.augmentation for e in scenario.val_stream} == {None}


def test_base_stream_and_augmentation_are_chosen(roots: dict[str, Path]) -> None:
    root = str(roots["file"])
    chosen = nyud_incremental(root=root, base=["edges"], stream=["depth"], augment={"flip": False})
    assert chosen.groups == [("edges",), ("depth",)]
    assert (chosen.augmentation.flip, chosen.augmentation.zooms) == (False, (1.0,))


def test_a_target_that_the_data_lacks_is_named(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "few.h5", {"train": 1, "test": 1}, fields=("semseg", "depth"), classes=40)
    with pytest.raises(DataError, match=r'few\.h5.*"normals".*Known: depth, semseg'):
        nyud_incremental(root=str(path))


def test_targets_have_the_shared_form(roots: dict[str, Path]) -> None:
    known = {task.name: task for task in nyud_tasks()}
    assert known["semseg"].channels == 40
    assert known["edges"].options == {"tolerance": 0.011}
    scenario = nyud_incremental(root=str(roots["file"]))
    first = [experience.dataset[0] for experience in scenario.train_stream]
    targets = first[0].targets | first[1].targets | first[2].targets
    assert {name: (tuple(t.shape), t.dtype) for name, t in targets.items()} == {
        "semseg": ((32, 48), torch.int64),
        "depth": ((1, 32, 48), torch.float32),
        "normals": ((3, 32, 48), torch.float32),
        "edges": ((1, 32, 48), torch.float32),
    }
    assert all((targets[name][..., 0, 0] == known[name].ignore).all() for name in targets)
    assert first[0].image.dtype == torch.float32
    assert first[0].image.max() <= 1
