"""The HDF5 format: what goes in comes out, for any reader process, and damage is said."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fake_data import fake_dense_hdf5, fake_scene
from medusa_cl.data import hdf5
from medusa_cl.data.hdf5 import FIELDS, Field, HDF5Data, HDF5Writer, decode, encode
from medusa_cl.errors import DataError, MissingDataError

EVERY = tuple(name for name in FIELDS if name != "image")
Arrays = dict[str, NDArray[Any]]


def rows(
    size: int, seed: int = 0, fields: tuple[str, ...] = ("depth", "semseg"), shape: tuple[int, int] = (8, 12)
) -> Arrays:
    """Random stored arrays."""
    rng = np.random.default_rng(seed)
    made: Arrays = {"image": rng.integers(0, 256, (size, *shape, 3), dtype=np.uint8)}
    for name in fields:
        field = FIELDS[name]
        low = -127 if field.kind == "vector" else 0
        made[name] = rng.integers(
            low, min(field.range[1], 5000), (size, *shape, *field.channels), endpoint=True
        ).astype(field.dtype)
    return made


def write(path: Path, *batches: Arrays, group: str = "train", **options: Any) -> Path:
    with HDF5Writer(path, **options) as writer:
        for batch in batches:
            writer.append(group, batch)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_dense_hdf5(tmp_path_factory.mktemp("whole") / "all.h5", fields=EVERY, classes=40)


# Values


@given(st.integers(0, 65535))
def test_depth_is_kept_to_the_millimetre(millimetres: int) -> None:
    stored = np.array([[millimetres]], "<u2")
    metres = decode(FIELDS["depth"], stored)
    assert metres[0, 0] == pytest.approx(millimetres / 1000, rel=1e-6)
    assert encode(FIELDS["depth"], metres) == stored


@pytest.mark.parametrize("name", ["edges", "saliency", "reshading", "semseg", "human_parts", "instances"])
def test_every_stored_value_survives_a_round_trip(name: str) -> None:
    field = FIELDS[name]
    stored = np.append(np.arange(field.range[1] + 1), [] if field.ignore is None else field.ignore)
    stored = stored.astype(field.dtype)
    assert np.array_equal(encode(field, decode(field, stored)), stored)


def test_every_stored_unit_vector_survives_a_round_trip() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 40, 3))
    stored = encode(FIELDS["normals"], vectors)
    values = decode(FIELDS["normals"], stored)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert np.abs(values - unit).max() < 0.01
    assert np.allclose(np.linalg.norm(values, axis=-1), 1, atol=1e-6)
    assert np.array_equal(encode(FIELDS["normals"], values), stored)


def test_short_and_missing_vectors_are_ignored() -> None:
    vectors = np.array([[[0, 0, 0], [0.03, 0, -0.05], [np.nan, 0, 1], [0, 0, -0.5]]])
    stored = encode(FIELDS["normals"], vectors)
    assert stored.tolist() == [[[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, -127]]]
    assert decode(FIELDS["normals"], stored)[0].tolist() == [[0, 0, 0]] * 3 + [[0, 0, -1]]


def test_ignored_values_are_the_tasks_ones() -> None:
    assert decode(FIELDS["reshading"], encode(FIELDS["reshading"], np.array([[0.0, 1.0, 255.0, np.nan]]))).tolist() == [
        [0.0, 1.0, 255.0, 255.0]
    ]
    assert decode(FIELDS["edges"], np.array([[0, 1, 255]], np.uint8)).tolist() == [[0.0, 1.0, 255.0]]
    assert decode(FIELDS["depth"], encode(FIELDS["depth"], np.array([[0, np.nan, np.inf, 2]]))).tolist() == [
        [0, 0, 0, 2]
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 70.0), ("depth", -1.0), ("semseg", 300), ("semseg", -1), ("reshading", 1.5), ("edges", 2)],
)
def test_values_that_do_not_fit_are_refused(name: str, value: float) -> None:
    with pytest.raises(DataError, match="Expected values in"):
        encode(FIELDS[name], np.array([[value]]))


def test_a_field_is_of_a_known_kind_and_an_integer_type() -> None:
    with pytest.raises(DataError, match="kind"):
        Field(dtype="u1", kind="lable")
    with pytest.raises(DataError, match="integer"):
        Field(dtype="f4", kind="label")
    assert Field(dtype="uint16", kind="value") == Field(dtype="<u2", kind="value")


# Reading what was written


@pytest.mark.parametrize("memory_limit", [0, hdf5.MEMORY_LIMIT])
def test_targets_have_the_form_that_all_the_library_shares(whole: Path, memory_limit: int) -> None:
    data = HDF5Data(whole, "train", memory_limit=memory_limit)
    scene = fake_scene(0, "train", 3, (32, 48), 40)
    assert data.fields == tuple(sorted(EVERY))
    assert (len(data), data.image_size, data.attrs) == (8, (32, 48), {"source": "fake"})
    assert torch.equal(data.image(3), torch.from_numpy(scene["image"].transpose(2, 0, 1).copy()))
    for name in ("semseg", "human_parts", "instances"):
        target = data.target(3, name)
        assert target is not None and target.dtype == torch.int64
        assert torch.equal(target, torch.from_numpy(scene[name]))
    for name, error in {"depth": 6e-4, "edges": 0, "saliency": 0, "reshading": 0.003}.items():
        target = data.target(3, name)
        assert target is not None and target.dtype == torch.float32
        np.testing.assert_allclose(target.numpy(), scene[name][None], atol=error, rtol=0)
    normals = data.target(3, "normals")
    assert normals is not None and normals.shape == (3, 32, 48) and normals.is_contiguous()
    np.testing.assert_allclose(normals.numpy(), scene["normals"].transpose(2, 0, 1), atol=0.01)
    assert (normals[:, :2, :3] == 0).all()


def test_a_target_is_the_readers_own_to_change(whole: Path) -> None:
    data = HDF5Data(whole, "train")
    for read in (lambda: data.image(0), *(functools.partial(data.target, 0, name) for name in EVERY)):
        before = read().clone()  # type: ignore[union-attr]
        read().zero_()  # type: ignore[union-attr]
        assert torch.equal(read(), before)  # type: ignore[arg-type]


def test_classes_and_fields_are_described_by_the_file(whole: Path) -> None:
    data = HDF5Data(whole, "test")
    assert len(data.field("semseg").classes) == 40
    assert data.field("depth") == FIELDS["depth"]


def test_a_field_of_ones_own_needs_no_code_to_be_read(tmp_path: Path) -> None:
    disparity = Field(dtype="<u2", kind="value", scale=0.5, unit="px", ignore=65535, limit=65000)
    batch = rows(2) | {"disparity": np.array([3, 65535], "<u2").repeat(96).reshape(2, 8, 12)}
    data = HDF5Data(write(tmp_path / "own.h5", batch, fields={"disparity": disparity}), "train")
    assert data.field("disparity") == disparity
    assert [data.target(i, "disparity").unique().tolist() for i in (0, 1)] == [[1.5], [65535.0]]  # type: ignore[union-attr]


def test_values_of_several_components_and_of_floats(tmp_path: Path) -> None:
    flow = Field(dtype="<f4", kind="value", unit="px", ignore=-(10**9), components=2)
    values = np.zeros((1, 8, 12, 2))
    values[0, 1, 2], values[0, 3, 4], values[0, 5, 6, 0] = (-1.5, 2.25), (np.nan, 0), -1e9
    stored = encode(flow, values)
    assert stored.dtype == np.float32
    batch = rows(1) | {"flow": stored}
    target = HDF5Data(write(tmp_path / "flow.h5", batch, fields={"flow": flow}), "train").target(0, "flow")
    assert target is not None and target.shape == (2, 8, 12)
    assert target[:, 1, 2].tolist() == [-1.5, 2.25]
    assert (target[:, 3, 4] == -1e9).all() and (target[:, 5, 6] == -1e9).all()  # one unknown component spoils a pixel
    assert flow.labelled(stored[0]).sum() == 8 * 12 - 2


@pytest.mark.parametrize("memory_limit", [0, hdf5.MEMORY_LIMIT])
def test_images_of_different_sizes_come_back_in_their_own(tmp_path: Path, memory_limit: int) -> None:
    batch = rows(3)
    extents = np.array([[8, 12], [5, 12], [6, 7]])
    with HDF5Writer(tmp_path / "sizes.h5") as writer:
        writer.append("train", {k: v[:1] for k, v in batch.items()}, extents=extents[:1], ids=["a"])
        writer.append("train", {k: v[1:] for k, v in batch.items()}, extents=extents[1:], ids=["b/c", "d"])
    data = HDF5Data(tmp_path / "sizes.h5", "train", memory_limit=memory_limit)
    assert (data.ids, data.image_size) == (("a", "b/c", "d"), (8, 12))
    for i, (height, width) in enumerate(extents):
        assert torch.equal(data.image(i), torch.from_numpy(batch["image"][i, :height, :width]).permute(2, 0, 1))
        assert data.target(i, "depth").shape == (1, height, width)  # type: ignore[union-attr]
    data.verify()


def test_digests_are_of_the_images_not_of_their_borders(tmp_path: Path) -> None:
    """So the same images have one content hash, however wide the widest of their file is."""
    batch, wide = rows(2), {}
    for name, array in batch.items():
        wide[name] = np.pad(array, [(0, 0), (0, 3), (0, 5), *[(0, 0)] * (array.ndim - 3)])
    small = HDF5Data(write(tmp_path / "small.h5", batch), "train")
    with HDF5Writer(tmp_path / "wide.h5") as writer:
        writer.append("train", wide, extents=np.array([[8, 12], [8, 12]]))
    assert HDF5Data(tmp_path / "wide.h5", "train").content_hash == small.content_hash


def test_names_and_extents_are_for_all_images_or_for_none(tmp_path: Path) -> None:
    with HDF5Writer(tmp_path / "mixed.h5") as writer:
        writer.append("train", rows(1), ids=["a"])
        with pytest.raises(DataError, match="ids"):
            writer.append("train", rows(1))
        assert writer.count("train") == 1


def test_only_the_targets_asked_for_are_offered(whole: Path) -> None:
    data = HDF5Data(whole, "train", tasks=["depth"])
    assert data.fields == ("depth",)
    with pytest.raises(DataError, match='Unknown target "semseg"'):
        data.target(0, "semseg")
    with pytest.raises(DataError, match='Did you mean "normals"'):
        HDF5Data(whole, "train", tasks=["normal"])


def test_indexes_outside_are_refused(whole: Path) -> None:
    data = HDF5Data(whole, "train", size=3)
    for index in (3, -1):
        with pytest.raises(IndexError):
            data.image(index)


def test_attributes_come_back(tmp_path: Path) -> None:
    attrs = {"source": "somewhere", "intrinsics": [518.8, 519.4], "palette": {"wall": [1, 2, 3]}, "pack": None}
    assert HDF5Data(write(tmp_path / "a.h5", rows(1), attrs=attrs), "train").attrs == attrs


def test_storage_is_one_compressed_chunk_an_image(whole: Path) -> None:
    with h5py.File(whole) as file:
        assert file.attrs["format"] == b"medusa_cl" and file.attrs["version"] == hdf5.VERSION
        for name in ("image", *EVERY):
            stored = file["train"][name]
            assert stored.chunks == (1, *stored.shape[1:])
            assert (stored.compression, stored.compression_opts, stored.shuffle) == ("gzip", 4, True)


# Partial labels


def test_images_may_lack_targets(tmp_path: Path) -> None:
    path = tmp_path / "partial.h5"
    with HDF5Writer(path) as writer:
        writer.append("train", rows(2, 0, ("depth",)))
        writer.append("train", rows(2, 1), present={"semseg": [False, True]})
        writer.append("train", rows(1, 2, ("semseg",)))
    data = HDF5Data(path, "train")
    assert data.has("depth").tolist() == [True, True, True, True, False]
    assert data.has("semseg").tolist() == [False, False, False, True, True]
    for name in data.fields:
        assert [data.target(i, name) is not None for i in range(5)] == data.has(name).tolist()
    assert np.array_equal(data.target(4, "semseg"), rows(1, 2, ("semseg",))["semseg"][0])  # type: ignore[arg-type]
    data.verify()


@pytest.mark.parametrize("present", [{"normals": [True, False]}, {"depth": [True]}, {"image": [True, False]}])
def test_presence_is_told_for_each_image_of_a_target_given(tmp_path: Path, present: dict[str, list[bool]]) -> None:
    with pytest.raises(DataError, match="one truth value an image"), HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append("train", rows(2), present=present)


def test_without_gaps_every_image_has_the_target(whole: Path) -> None:
    assert HDF5Data(whole, "train", 3).has("depth").tolist() == [True] * 3


# Appending


def test_appending_gives_the_file_that_one_write_gives(tmp_path: Path) -> None:
    batches = [rows(2, 0), rows(1, 1), rows(3, 2)]
    together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    once = HDF5Data(write(tmp_path / "once.h5", together), "train")
    for batch in batches:
        write(tmp_path / "thrice.h5", batch)
    thrice = HDF5Data(tmp_path / "thrice.h5", "train")
    assert len(thrice) == len(once) == 6
    assert once.content_hash == thrice.content_hash
    for index in range(6):
        assert torch.equal(once.image(index), thrice.image(index))
        assert torch.equal(once.target(index, "depth"), thrice.target(index, "depth"))  # type: ignore[arg-type]
    thrice.verify()


def test_groups_are_counted_apart(tmp_path: Path) -> None:
    with HDF5Writer(tmp_path / "g.h5") as writer:
        assert writer.count("train") == 0
        writer.append("train", rows(2))
        writer.append("val", rows(1))
        assert (writer.count("train"), writer.count("val"), writer.count("test")) == (2, 1, 0)


def test_what_an_interrupted_append_left_is_not_read_and_is_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.h5", rows(2, 0))
    expected = HDF5Data(path, "train").content_hash
    with h5py.File(path, "r+") as file:  # the rows came, their digests did not
        for name in ("image", "depth"):
            file["train"][name].resize(5, axis=0)
    data = HDF5Data(path, "train")
    assert (len(data), data.content_hash) == (2, expected)
    data.close()
    write(path, rows(1, 1))
    data = HDF5Data(path, "train")
    assert len(data) == 3
    data.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("image"), "image"),
        (lambda a: a.update(depth=a["depth"].astype(np.float32)), "uint16"),
        (lambda a: a.update(depth=a["depth"][:, :4]), "shape"),
        (lambda a: a.update(depth=a["depth"][:1]), "shape"),
        (lambda a: a.update(normals=np.zeros((2, 8, 12), np.int8)), "shape"),
        (lambda a: a.update(dept=a.pop("depth")), 'Did you mean "depth"'),
        (lambda a: a.update(rows(2, shape=(4, 4))), "holds"),
        (lambda a: a.update({name: array[:0] for name, array in a.items()}), "at least one"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_leave_the_file_whole(
    tmp_path: Path, change: Callable[[Arrays], Any], message: str
) -> None:
    path = write(tmp_path / "a.h5", rows(2))
    batch = rows(2, 1)
    change(batch)
    with pytest.raises(DataError, match=message), HDF5Writer(path) as writer:
        writer.append("train", batch)
    data = HDF5Data(path, "train")
    assert len(data) == 2
    data.verify()


def test_a_field_cannot_change_its_meaning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", rows(1))
    metres = Field(dtype="<u2", kind="value", scale=0.01, unit="m", ignore=0)
    with pytest.raises(DataError, match=r"scale=0\.01"):
        write(path, rows(1), fields={"depth": metres})
    with pytest.raises(DataError, match="attributes"):
        write(path, rows(1), attrs={"source": "other"})


# Content hash


def test_content_hash_of_the_first_images_is_that_of_a_smaller_file(tmp_path: Path) -> None:
    small = fake_dense_hdf5(tmp_path / "small.h5", {"train": 3})
    large = fake_dense_hdf5(tmp_path / "large.h5", {"train": 5})
    assert HDF5Data(small, "train").content_hash == HDF5Data(large, "train", 3).content_hash
    assert HDF5Data(small, "train").content_hash != HDF5Data(large, "train").content_hash
    expected = HDF5Data(large, "train").content_hash
    with h5py.File(large) as file:
        assert file["train"].attrs["content_hash"].decode() == expected


def test_content_hash_is_sha256_of_the_digests(whole: Path) -> None:
    with h5py.File(whole) as file:
        digests = file["train/digest"][:2].tobytes()
    assert HDF5Data(whole, "train", 2).content_hash == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize("name", ["image", "depth", "semseg"])
def test_content_hash_sees_every_field(tmp_path: Path, name: str) -> None:
    batch = rows(2)
    one = HDF5Data(write(tmp_path / "one.h5", batch), "train").content_hash
    batch[name] = batch[name].copy()
    batch[name][1, 0, 0] ^= 1
    assert HDF5Data(write(tmp_path / "other.h5", batch), "train").content_hash != one


# Processes and memory


def _sums(data: HDF5Data) -> list[int]:
    return [int(data.image(i).sum()) + int(data.target(i, "semseg").sum()) for i in range(len(data))]  # type: ignore[union-attr]


def test_pickled_readers_carry_no_data_and_read_the_same(whole: Path) -> None:
    data = HDF5Data(whole, "train")
    expected = _sums(data)
    pickled = pickle.dumps(data)
    assert len(pickled) < 5000
    assert _sums(pickle.loads(pickled)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "memory_limit"), [("fork", 0), ("fork", hdf5.MEMORY_LIMIT), ("spawn", hdf5.MEMORY_LIMIT)]
)
def test_workers_read_what_the_parent_reads(whole: Path, method: str, memory_limit: int) -> None:
    data = HDF5Data(whole, "train", memory_limit=memory_limit)
    expected = _sums(data)  # opened before the workers start
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
        assert pool.map(_sums, [data] * 4) == [expected] * 4
    assert _sums(data) == expected


def test_forked_children_do_not_use_the_parents_handle(whole: Path) -> None:
    data = HDF5Data(whole, "train", memory_limit=0)
    data.image(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if data._file is None and _sums(data) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert data._file is not None
    data.image(1)


def test_a_split_that_fits_is_read_once_and_shared(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5")
    one, other = (HDF5Data(path, "train", tasks=[task]) for task in ("depth", "semseg"))
    one.image(0), other.image(1)
    assert one._arrays["image"] is other._arrays["image"]
    streamed = HDF5Data(path, "train", memory_limit=1)
    streamed.image(0)
    assert not streamed._arrays


def test_a_file_made_anew_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    old = HDF5Data(write(path, rows(2, 0)), "train")
    old.image(0)
    old.close()
    path.unlink()
    new = HDF5Data(write(path, rows(2, 1)), "train")
    assert torch.equal(new.image(0), torch.from_numpy(rows(2, 1)["image"][0].transpose(2, 0, 1).copy()))


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys, medusa_cl.data.hdf5; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Damage


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"none\.h5"):
        HDF5Data(tmp_path / "none.h5", "train")


def test_foreign_and_cut_files_are_said(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "cut.h5").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "empty.h5").touch()
    for name in ("text.h5", "cut.h5", "empty.h5"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as HDF5.*Delete"):
            HDF5Data(tmp_path / name, "train")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["train/image"] = np.zeros(3)
    with pytest.raises(DataError, match=r"foreign\.h5 is HDF5 of another format"):
        HDF5Data(tmp_path / "foreign.h5", "train")
    with pytest.raises(DataError, match="another format"):
        HDF5Writer(tmp_path / "foreign.h5")


def test_a_file_that_is_open_elsewhere_is_not_to_be_deleted(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "r+"), pytest.raises(DataError, match="is open elsewhere") as caught:
        HDF5Data(path, "train")
    assert "Delete" not in str(caught.value)


def test_a_newer_version_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "new.h5", rows(1))
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = hdf5.VERSION + 1
    with pytest.raises(DataError, match="update medusa_cl"):
        HDF5Data(path, "train")


def test_groups_and_sizes_that_are_not_there_are_said(whole: Path) -> None:
    with pytest.raises(DataError, match=r'Unknown group "trian".*Did you mean "train"'):
        HDF5Data(whole, "trian")
    for size in (0, -1, 9):
        with pytest.raises(DataError, match=r"in 1\.\.8"):
            HDF5Data(whole, "train", size)


def test_verify_names_the_image_that_changed(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["test/depth"][2, 5, 5] += 1
    HDF5Data(path, "train").verify()
    HDF5Data(path, "test", 2).verify()
    with pytest.raises(DataError, match="image 2 of group test is damaged"):
        HDF5Data(path, "test").verify()
    with pytest.raises(DataError, match="image 2"):
        HDF5Data(path, "test", tasks=["semseg"]).verify()


@pytest.mark.parametrize("memory_limit", [0, hdf5.MEMORY_LIMIT])
def test_a_chunk_that_cannot_be_read_is_said(tmp_path: Path, memory_limit: int) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5")
    with h5py.File(path) as file:
        chunk = file["train/image"].id.get_chunk_info(1)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\x00" * 64)
    data = HDF5Data(path, "train", memory_limit=memory_limit)
    with pytest.raises(DataError, match=r"of group train is damaged\. Delete"):
        data.image(1)
    with pytest.raises(DataError, match="image 1 of group train"):
        data.verify()


def test_a_dataset_that_lacks_images_is_said(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["train/depth"].resize(3, axis=0)
    with pytest.raises(DataError, match=r"\['depth'\] of group train lack images"):
        HDF5Data(path, "train")


def test_damaged_descriptions_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", rows(2))
    with h5py.File(path, "r+") as file:
        del file["train/depth"].attrs["scale"]
    with pytest.raises(DataError, match=r"a\.h5 is damaged"):
        HDF5Data(path, "train")
    with h5py.File(path, "r+") as file:
        file["about"][-1] = 0
    with pytest.raises(DataError, match=r"a\.h5 is damaged"):
        hdf5.attrs_of(path)


def test_names_have_a_length_that_fits(tmp_path: Path) -> None:
    name = "küche/" + "x" * 240
    with HDF5Writer(tmp_path / "a.h5") as writer:
        writer.append("train", rows(1), ids=[name])
        with pytest.raises(DataError, match="at most 256 bytes"):
            writer.append("train", rows(1), ids=["x" * 257])
        assert writer.last_id("train") == name
    assert HDF5Data(tmp_path / "a.h5", "train").ids == (name,)
