"""Damaged files: a few hundred of the cases of chaos_files.py, and those that chance seldom meets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import chaos_files
from fake_data import fake_dense_hdf5
from medusa_cl import kept, tasks
from medusa_cl.checkpoint import DESCRIPTION, WEIGHTS, load_model, save_model
from medusa_cl.data import features, hdf5
from medusa_cl.data.hdf5 import HDF5Data, HDF5Writer
from medusa_cl.errors import DataError, MedusaError, WeightsError
from medusa_cl.models import MultiTaskModel
from medusa_cl.strategies import references

SHARES = {name: max(5, count) for name, count in chaos_files.shares(400).items()}


@pytest.mark.parametrize("name", chaos_files.READERS)
def test_readers_refuse_damage_or_return_what_was_written(name: str) -> None:
    assert chaos_files.run(name, min(SHARES[name], 2 if name == "rooms" else 40)) == []


class KilledError(BaseException):
    """Stands for the end of the process."""


@contextlib.contextmanager
def killed_after(events: int) -> Any:
    """End the block before one more file gets its name or is flushed."""
    left = [events]

    def count(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            return real(*arguments)

        return counted

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KilledError):
        patch.setattr(os, "replace", count(os.replace))
        patch.setattr(kept, "flush", count(kept.flush))
        yield


# The check itself


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[bytes], Any]], list[chaos_files.Failure]]:
    """Do some cases with a reader of one's own, of bytes."""

    def cases(read: Callable[[bytes], Any]) -> list[chaos_files.Failure]:
        def make(folder: Path) -> None:
            (folder / "a").write_bytes(WHOLE)

        def of_folder(folder: Path) -> Any:
            content = (folder / "a").read_bytes()
            try:
                return read(content)
            except MedusaError as error:
                raise MedusaError(f"{folder}: {error}") from error

        own = chaos_files.Reader(make, of_folder, exact=True)
        monkeypatch.setitem(chaos_files.READERS, "own", own)
        monkeypatch.setattr(chaos_files, "MEMORY", 1 << 27)
        return chaos_files.run("own", 4)

    return cases


WHOLE = b"12345678" * 64


def _whole(content: bytes) -> bool:
    return content == WHOLE


def _refusing(content: bytes) -> bytes:
    if not _whole(content):
        raise MedusaError("damaged")
    return content


def _crashing(content: bytes) -> None:
    import ctypes

    if not _whole(content):
        ctypes.string_at(0)


def _hanging(content: bytes) -> None:
    import time

    if not _whole(content):
        time.sleep(30)


def _greedy(content: bytes) -> int:
    return 0 if _whole(content) else len(bytearray(b"1") * (9 << 25)) * 0


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (_refusing, None),
        (_whole, "other data"),
        (lambda content: int(content), "ValueError|other data"),
        (_crashing, "crashes with status -11"),
        (_greedy, r"took \d{9} bytes"),
    ],
)
def test_the_check_sees_what_it_is_for(reader: Any, read: Callable[[bytes], Any], expected: str | None) -> None:
    import re

    found = reader(read)
    assert bool(found) == (expected is not None)
    assert all(re.search(expected or "", failure.what) for failure in found)


def test_the_check_sees_a_hang(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_files, "PATIENCE", 0.5)
    found = reader(_hanging)
    assert [failure.what for failure in found] == ["hangs for 0.5 s"] * 4


def test_cases_are_the_same_for_the_same_seed() -> None:
    import random

    content = bytes(range(256)) * 8
    made = [chaos_files.damaged(content, random.Random(f"0/x/{n}")) for n in range(50)]
    assert made == [chaos_files.damaged(content, random.Random(f"0/x/{n}")) for n in range(50)]
    assert content not in made and len(set(made)) > 40


# A prepared file


def test_zeroed_chunks_of_features_are_found(tmp_path: Path) -> None:
    """Lost blocks of a disk read as zeros, and HDF5's own checksum of zeros is zero."""
    chaos_files._features(torch.float32, tmp_path)
    path = tmp_path / "kept.h5"
    with h5py.File(path) as file:
        chunk = file["scale1"].id.get_chunk_info(2)
        assert file["scale1"].chunks == (1, *file["scale1"].shape[1:])
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    path.write_bytes(content)
    store = features._File(path, chaos_files.KEY)
    list(store.take(torch.tensor([1, 3])))
    with pytest.raises(DataError, match=r"row 2 of /scale1.*Delete the file"):
        store.take(torch.tensor([1, 2]))


def test_images_that_changed_places_are_found(tmp_path: Path) -> None:
    """Each is whole by itself."""
    path = fake_dense_hdf5(tmp_path / "a.h5", fields=("depth",))
    with h5py.File(path, "r+") as file:
        depth = file["train/depth"]
        depth[1], depth[2] = depth[2], depth[1]
    for limit in (0, hdf5.MEMORY_LIMIT):
        data = HDF5Data(path, "train", memory_limit=limit)
        with pytest.raises(DataError, match=r"image 1 of group train is damaged. Delete the file"):
            data.target(1, "depth")
        data.close()
    streamed = HDF5Data(path, "train", memory_limit=0)
    streamed.target(0, "depth"), streamed.image(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group["depth"].attrs.modify("scale", 0.01),
        lambda group: group["depth"].attrs.modify("ignore", 7),
        lambda group: group["digest"].__setitem__((1, 5), group["digest"][1, 5] ^ 1),
        lambda group: group["extent"].__setitem__((1, 0), 4),
        lambda group: group["id"].__setitem__(1, b"train/9"),
        lambda group: group["has/depth"].__setitem__(1, True),
        lambda group: group["sum/depth"].__setitem__(0, 1),
    ],
)
def test_what_is_said_of_images_is_sealed(tmp_path: Path, change: Callable[[h5py.Group], Any]) -> None:
    chaos_files._unequal(tmp_path)
    path = tmp_path / "data.h5"
    with h5py.File(path, "r+") as file:
        change(file["train"])
    with pytest.raises(DataError, match=r"data\.h5 is damaged: group train is not what it was sealed as.*Delete"):
        HDF5Data(path, "train")
    assert len(HDF5Data(path, "test")) == 2, "the other group is whole"
    images = {"image": np.zeros((1, 9, 13, 3), np.uint8), "depth": np.ones((1, 9, 13), np.uint16)}
    with HDF5Writer(path, {"source": "fake"}) as writer, pytest.raises(DataError, match=r"sealed|holds"):
        writer.append("train", images, extents=np.array([[9, 13]]), ids=["new"])


def test_a_seal_is_of_the_images_before_an_interrupted_append(tmp_path: Path) -> None:
    """All came but the seal: those images do not count, and are written again."""
    rows = {"image": np.full((2, 8, 8, 3), 7, np.uint8), "depth": np.ones((2, 8, 8), np.uint16)}
    with HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append("train", rows)
    with h5py.File(tmp_path / "a.h5") as file:
        before = file["train"].attrs["seal"]
    with HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append("train", rows | {"edges": np.ones((2, 8, 8), np.uint8)})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["train"].attrs.modify("seal", before)
    data = HDF5Data(tmp_path / "a.h5", "train")
    assert (len(data), data.fields, hdf5.groups(tmp_path / "a.h5")) == (2, ("depth",), {"train": 2})
    data.verify()
    data.close()
    with HDF5Writer(tmp_path / "a.h5") as writer:
        assert writer.count("train") == 2
        writer.append("train", rows)
    again = HDF5Data(tmp_path / "a.h5", "train")
    assert (len(again), again.has("depth").tolist()) == (4, [True] * 4)
    again.verify()


def test_no_text_of_a_prepared_file_is_of_variable_length(tmp_path: Path) -> None:
    """HDF5 keeps these without a checksum, and hangs on what zeroed blocks leave of them."""
    kinds = list[Any]()

    def look(name: str, part: Any) -> None:
        kinds.extend(part.attrs.get_id(key).dtype.kind for key in part.attrs)
        kinds.append(part.dtype.kind if isinstance(part, h5py.Dataset) else "group")

    chaos_files._unequal(tmp_path)
    chaos_files._features(torch.float32, tmp_path)
    for name in ("data.h5", "kept.h5"):
        with h5py.File(tmp_path / name) as file:
            look("/", file)
            file.visititems(look)
    assert "O" not in kinds and "S" in kinds


def test_an_append_looks_at_no_images_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, real = list[int](), hdf5._column

    def column(group: Any, name: str, rows: int, columns: Any) -> str:
        looked.append(rows - columns.get(name, (None, 0))[1])
        return real(group, name, rows, columns)

    monkeypatch.setattr(hdf5, "_column", column)
    rows = {"image": np.zeros((1, 8, 8, 3), np.uint8), "depth": np.ones((1, 8, 8), np.uint16)}
    with HDF5Writer(tmp_path / "a.h5") as writer:
        for number in range(6):
            present, extents = {"depth": [number != 1]}, np.array([[8, 8]])
            writer.append("train", rows, ids=[str(number)], present=present, extents=extents)
    assert max(looked) == 1
    HDF5Data(tmp_path / "a.h5", "train").verify()


def test_what_a_failed_append_left_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(value: int) -> dict[str, Any]:
        return {"image": np.full((2, 8, 8, 3), value, np.uint8), "depth": np.ones((2, 8, 8), np.uint16)}

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    with HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append("train", rows(1))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(hdf5, "_seal", full)
            writer.append("train", rows(2))
        writer.append("train", rows(3))
    data = HDF5Data(tmp_path / "a.h5", "train")
    assert [int(data.image(i).max()) for i in range(len(data))] == [1, 1, 3, 3]
    data.verify()


def before(path: Path, version: int) -> Path:
    """Make a file look as one of an earlier version."""
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = version
        if version == 1:
            file.attrs["format"], file.attrs["about"] = "medusa_cl", "{}"  # of variable length
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_earlier_version_is_told_from_a_foreign_one(tmp_path: Path, version: int) -> None:
    path = before(fake_dense_hdf5(tmp_path / "a.h5", fields=("depth",)), version)
    said = rf"a\.h5 was made by an earlier version.*version {version} .*medusa_cl\.prepare path=DATA out={path}`"
    for read in (HDF5Writer, hdf5.groups, lambda path: HDF5Data(path, "train")):
        with pytest.raises(DataError, match=said):
            read(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = hdf5.fixed("another")
    with pytest.raises(DataError, match="another format"):
        hdf5.groups(path)


@pytest.mark.parametrize("harm", ["old", "damaged"])
def test_rooms_that_are_made_again_are_said_once(tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path))
    path = chaos_files._rooms_in(tmp_path, {"train": 1})
    before(path, 2) if harm == "old" else path.write_bytes(path.read_bytes()[:-100])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chaos_files._rooms_in(tmp_path, {"train": 1})
    expected = "was made by an earlier version of medusa_cl. It is made again" if harm == "old" else "is damaged"
    (one,) = said
    assert f"{path} {expected}" in str(one.message)
    assert hdf5.groups(path) == {"train": 1}


# Models and heads


@pytest.fixture
def saved(tiny_model: Callable[..., MultiTaskModel], tmp_path: Path) -> Path:
    return save_model(tiny_model(tasks.semseg(3), "depth"), tmp_path / "model")


def test_weights_that_are_not_those_described_are_named(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    key = next(key for key in weights if key.endswith("weight"))
    weights[key].view(-1)[0] += 1
    save_file(weights, saved / WEIGHTS)  # a file that is whole by itself
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged, or not the file.*another checkpoint"):
        load_model(saved)


def test_a_description_that_was_edited_is_refused(saved: Path) -> None:
    path = saved / DESCRIPTION
    path.write_text(path.read_text().replace('"precision": "32"', '"precision": "bf16"'))
    with pytest.raises(WeightsError, match=r"model\.json is damaged, or was edited"):
        load_model(saved)


def test_a_model_of_the_format_before_is_loaded_with_a_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = load_model(saved)
    assert caplog.messages == []
    description = json.loads((saved / DESCRIPTION).read_text())
    del description["sha256"], description["weights"]
    (saved / DESCRIPTION).write_text(json.dumps(description | {"format": "medusa-cl model 1"}))
    old = load_model(saved)
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())
    assert [str(saved / WEIGHTS) in message and "without hashes" in message for message in caplog.messages] == [True]
    (saved / DESCRIPTION).write_text(json.dumps(description | {"format": "medusa-cl model 2"}))
    with pytest.raises(WeightsError, match="SHA-256"):
        load_model(saved)


def test_a_model_that_only_says_it_is_of_the_format_before_is_refused(saved: Path) -> None:
    path = saved / DESCRIPTION
    whole = path.read_text().replace("medusa-cl model 2", "medusa-cl model 1")
    path.write_text(whole)
    with pytest.raises(WeightsError, match=r"model\.json is damaged, or was edited"):
        load_model(saved)
    description = json.loads(whole)
    del description["sha256"]
    path.write_text(json.dumps(description))
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        load_model(saved)


@pytest.mark.parametrize("again", [0, 3])
@pytest.mark.parametrize("events", range(8))
def test_a_process_killed_while_it_saves_leaves_a_whole_model(
    tiny_model: Callable[..., MultiTaskModel], tmp_path: Path, events: int, again: int
) -> None:
    models = [tiny_model(*names) for names in (("depth",), ("depth", "edges"), ("normals",))]
    possible = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]

    def found() -> int:
        loaded = load_model(tmp_path).state_dict()
        return next(
            number
            for number, state in enumerate(possible)
            if state.keys() == loaded.keys() and all(torch.equal(state[key], loaded[key]) for key in state)
        )

    save_model(models[0], tmp_path)
    with killed_after(events):
        save_model(models[1], tmp_path)
    there = found()
    assert there == (events > 3), "three flushes, then the weights get their name"
    with killed_after(again):
        save_model(models[2], tmp_path)
    assert found() == there
    save_model(models[2], tmp_path)
    assert found() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_files_get_their_names_on_the_disk(
    tiny_model: Callable[..., MultiTaskModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that outlives a power cut must not stand for missing bytes."""
    flushed, real = set[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.add(os.fstat(handle).st_ino), real(handle)))
    model = tiny_model("depth")
    save_model(model, tmp_path / "model")
    model.save_head("depth", tmp_path / "depth.safetensors")
    kept.write(tmp_path / "note.json", {})
    kept.write_summary(tmp_path, "{}")
    assert {path.name for path in tmp_path.rglob("*") if path.stat().st_ino not in flushed} == set()


@pytest.mark.parametrize("what", ["weights", "task", "name"])
def test_heads_that_were_changed_are_refused(
    tiny_model: Callable[..., MultiTaskModel], tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = tiny_model("depth"), tmp_path / "depth.safetensors"
    model.save_head("depth", path)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("weight"))
    if what == "weights":
        tensors[key].view(-1)[-1] += 1
    elif what == "name":
        tensors[f"{key}x"] = tensors.pop(key)
    else:
        said["task"] = said["task"].replace("1.0", "2.0", 1)
        assert "2.0" in said["task"]
    save_file(tensors, path, said)
    model.remove_head("depth")
    with pytest.raises(WeightsError, match=r"depth\.safetensors is damaged"):
        model.load_head(path)
    if what == "weights":
        save_file(tensors, path, said | {"format": "medusa-cl head 1"})
        with pytest.raises(WeightsError, match=r"depth\.safetensors is damaged"):
            model.load_head(path)
        del said["sha256"]
        save_file(tensors, path, said | {"format": "medusa-cl head 1"})
        model.load_head(path)
        assert ["no hash" in message for message in caplog.messages] == [True]


# What is kept


def test_a_note_that_was_changed_is_nothing_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run-0.json"
    kept.write(path, {"summary": {"mean": 1.5, 3: None}})
    assert kept.read(path, sealed=True) == {"summary": {"mean": 1.5, "3": None}}
    path.write_text(path.read_text().replace("1.5", "2.5"))
    assert kept.read(path) is None and kept.read(path, sealed=True) is None
    assert [str(path) in message and "made anew" in message for message in caplog.messages] == [True, True]
    path.write_text('{"mean": 1}')
    assert (kept.read(path), kept.read(path, sealed=True)) == ({"mean": 1}, None)
    assert kept.read(tmp_path / "absent.json") is None and len(caplog.messages) == 3


def test_a_reference_without_its_hash_is_learnt_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "single_task-depth.json"
    recipe: Any = SimpleNamespace(
        scenario=SimpleNamespace(tasks={"depth": None}), place=lambda name, task: place, notify=lambda line: None
    )
    monkeypatch.setattr(references, "_single_task", lambda recipe, names: iter([{"depth": 1.5}]))
    place.write_text('{"value": 99.0}')
    assert references.reference_values(recipe, ["single_task"]) == {"single_task": {"depth": 1.5}}
    monkeypatch.setattr(references, "_single_task", None)
    assert references.reference_values(recipe, ["single_task"]) == {"single_task": {"depth": 1.5}}, "kept now"


# Summaries

SUMMARY = '{"forgetting": {"mean": 0.25}}\n'


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (kept.SUMMARY, lambda text: text.replace("0.25", "0.35")),
        (kept.SUMMARY, lambda text: text[:-9]),
        (kept.SUMMARY_HASH, lambda text: text[1:]),
        (kept.SUMMARY_HASH, lambda text: ""),
    ],
)
def test_a_summary_that_is_not_what_was_written_is_refused(
    tmp_path: Path, name: str, damage: Callable[[str], str]
) -> None:
    kept.write_summary(tmp_path, SUMMARY)
    assert (tmp_path / kept.SUMMARY).read_text() == SUMMARY
    assert (tmp_path / kept.SUMMARY_HASH).read_text().split() == [
        hashlib.sha256(SUMMARY.encode()).hexdigest(), "summary.json",
    ]  # fmt: skip
    assert kept.read_summary(tmp_path) == {"forgetting": {"mean": 0.25}}
    path = tmp_path / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=rf"summary\.json is damaged, or was edited.*resume={tmp_path}"):
        kept.read_summary(tmp_path)


def test_a_summary_of_before_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.write_summary(tmp_path, SUMMARY)
    kept.read_summary(tmp_path)
    assert caplog.messages == []
    (tmp_path / kept.SUMMARY_HASH).unlink()
    assert kept.read_summary(tmp_path) == {"forgetting": {"mean": 0.25}}
    assert ["would not be seen" in message and str(tmp_path) in message for message in caplog.messages] == [True]
    for content in ("[]", "", "{"):
        (tmp_path / kept.SUMMARY).write_text(content)
        with pytest.raises(DataError, match=r"summary\.json is damaged"):
            kept.read_summary(tmp_path)


@pytest.mark.parametrize("events", range(6))
def test_a_process_killed_while_it_writes_a_summary_leaves_none_or_a_whole_one(tmp_path: Path, events: int) -> None:
    kept.write_summary(tmp_path, SUMMARY)
    with killed_after(events):
        kept.write_summary(tmp_path, '{"new": 1}')
    there = (tmp_path / kept.SUMMARY).exists()
    assert there == (events > 4), "two flushes and a name for each file; the folder's last flush comes after"
    assert not there or kept.read_summary(tmp_path) == {"new": 1}
    assert not list(tmp_path.glob("*.part"))
