"""What is kept under a hash of all it depends on, and what a run may start with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from medusa_cl import kept, rundir
from medusa_cl.errors import ConfigError, TaskError
from medusa_cl.start import from_base, from_kept, from_run, keep_base


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_place_depends_on_all_of_the_key_and_not_on_its_order() -> None:
    key = {"seed": 0, "head": {"width": 8, "sfa": "mask"}}
    first = kept.place("base", key)
    assert first.parent == Path("runs/.cache")
    assert first.name.startswith("base-")
    assert kept.place("base", {"head": {"sfa": "mask", "width": 8}, "seed": 0}) == first
    others = [kept.place("base", key | {"seed": 1}), kept.place("run", key), kept.place("base", {"seed": 0})]
    assert len({first, *others}) == 4
    assert kept.place("base", key, Path("elsewhere")) == Path("elsewhere") / first.name


def test_what_is_written_is_read_and_nothing_else_is_left() -> None:
    path = kept.place("run", {"seed": 0})
    assert kept.read(path) is None
    content = {"summary": {"mean": None, "values": [1.5, 2.0]}, "run_dir": "runs/ä"}
    kept.write(path, {"old": 1})
    kept.write(path, content)
    assert kept.read(path) == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b'{"model": "runs/x", "ha', b"\xff\xfe\x00{}"])
def test_a_damaged_file_is_none(damage: bytes) -> None:
    path = kept.place("base", {})
    kept.write(path, {"model": "runs/x"})
    path.write_bytes(damage)
    assert kept.read(path) is None
    assert from_kept(path) is None


def test_a_write_that_fails_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept.place("base", {})
    kept.write(path, {"whole": True})

    def full(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text.encode()[:4])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        kept.write(path, {"whole": False})
    assert kept.read(path) == {"whole": True}


def test_a_files_hash_is_that_of_its_content() -> None:
    Path("weights").write_bytes(b"12345" * 100_000)
    assert kept.file_hash(Path("weights")) == hashlib.sha256(b"12345" * 100_000).hexdigest()


def a_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


# ---------------------------------------------------------------- the base that another run has learnt


def test_a_kept_base_comes_with_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    model, place = a_model(Path("runs/nyud/medusa-0") / rundir.BASE), kept.place("base", {}).resolve()
    keep_base(place, model, 12.5, 40.0, "abc")
    monkeypatch.chdir(model)  # wherever it is asked for
    start = from_kept(place)
    assert start is not None
    assert (start.model, start.experiences) == (home / model, 1)
    assert (start.seconds, start.rates, start.weights_hash) == ({"base": 12.5}, {"base": 40.0}, "abc")
    assert (start.removed, list(start.rows), start.parent, start.references) == ((), [], None, False)
    assert "base=null" in start.said


@pytest.mark.parametrize("lost", ["model.safetensors", "model.json"])
def test_a_base_that_vanished_is_learnt_anew(lost: str) -> None:
    model, place = a_model(Path("here")), kept.place("base", {})
    keep_base(place, model, 1.0, 1.0, "abc")
    assert from_kept(place) is not None
    (model / lost).unlink()
    assert from_kept(place) is None


def test_a_base_whose_weights_changed_is_learnt_anew() -> None:
    model, place = a_model(Path("here")), kept.place("base", {})
    keep_base(place, model, 1.0, 1.0, "abc")
    (model / "model.safetensors").write_bytes(b"weighty")
    assert from_kept(place) is None


def test_a_base_can_be_a_run_or_a_model_in_it_or_any_model() -> None:
    run = Path("runs/nyud/medusa-0")
    model = a_model(run / rundir.BASE)
    for name in (str(run), str(model), "last"):
        start = from_base(name)
        assert (start.model, start.parent, start.experiences, start.references) == (model, run, 1, True)
    bare = a_model(Path("bare"))
    assert (from_base("bare").model, from_base("bare").parent) == (bare, None)
    with pytest.raises(ConfigError, match=r"found no model\.json in nowhere"):
        from_base("nowhere")


# ---------------------------------------------------------------- a finished run


def a_run(folder: Path = Path("mine"), **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "base": ["semseg", "depth"],
        "stream": ["normals", "edges"],
        "frozen": True,
        "matrix": {
            "after": ["base", "normals", "edges"],
            "values": {
                "semseg": [10.0, 11.0, 12.0],
                "depth": [1.0, None, 1.2],
                "normals": [None, 30.0, 31.0],
                "edges": [None, None, 50.0],
            },
        },
        "cost": {
            "train_seconds": {"base": 9.0, "normals": 2.0, "edges": 3.0},
            "images_per_second": {"base": 90.0, "normals": 20.0, "edges": 30.0},
        },
        "provenance": {"weights_hash": "abc", "data_hash": {"train": "d"}},
    }
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    return folder


def test_all_of_a_run_is_known() -> None:
    start = from_run(a_run())
    assert (start.model, start.experiences, start.parent, start.weights_hash) == (
        Path("mine/model"), 3, Path("mine"), "abc",
    )  # fmt: skip
    assert start.rows == [
        {"semseg": 10.0, "depth": 1.0},
        {"semseg": 11.0, "depth": None, "normals": 30.0},
        {"semseg": 12.0, "depth": 1.2, "normals": 31.0, "edges": 50.0},
    ]
    assert start.seconds == {"base": 9.0, "normals": 2.0, "edges": 3.0}
    assert start.rates == {"base": 90.0, "normals": 20.0, "edges": 30.0}
    assert start.said == "goes on from mine"
    assert not start.references, "another stream has other references"


def test_a_run_without_a_task_in_the_middle() -> None:
    start = from_run(a_run(), ["normals"])
    assert (start.removed, start.experiences) == (("normals",), 2)
    assert start.rows == [{"semseg": 10.0, "depth": 1.0}, {"semseg": 12.0, "depth": 1.2, "edges": 50.0}]
    assert start.seconds == {"base": 9.0, "edges": 3.0}
    assert start.rates == {"base": 90.0, "edges": 30.0}
    assert start.said == "goes on from mine, without normals"


def test_a_run_without_any_of_its_stream() -> None:
    start = from_run(a_run(), ["edges", "normals"])
    assert start.experiences == 1
    assert start.rows == [{"semseg": 10.0, "depth": 1.0}]


def test_what_cannot_be_removed_is_said() -> None:
    with pytest.raises(ConfigError, match='"depth" is a base task'):
        from_run(a_run(), ["depth"])
    with pytest.raises(TaskError, match=r'Unknown task to remove "normal".*Did you mean "normals"'):
        from_run(a_run(), ["edges", "normal"])
    for unfrozen in ({"frozen": False}, {"frozen": None}):
        with pytest.raises(ConfigError, match='"edges" was learnt with a trainable backbone'):
            from_run(a_run(**unfrozen), ["edges"])
        assert from_run(a_run(**unfrozen)).experiences == 3, "going on from it is another matter"
