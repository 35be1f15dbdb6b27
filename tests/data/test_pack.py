"""What every pack shares: stored as our format stores it, errors that name files, subsets, checks of a whole split."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medusa_cl.data.derived import DERIVATIONS, Derived
from medusa_cl.data.files import read_image, read_map
from medusa_cl.data.hdf5 import FIELDS, Field, HDF5Data, HDF5Writer
from medusa_cl.data.pack import PackData, Subset, require_labels, usable
from medusa_cl.errors import DataError

SIZES = [(6, 8), (5, 8), (6, 7)]


@dataclasses.dataclass
class Plain:
    """Images and two targets as PNG and NPY, of different sizes; the last image has no depth."""

    root: Path
    name: str = "plain pack"
    splits: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {"train": ("a", "b", "c")})
    derived: dict[str, str] = dataclasses.field(default_factory=dict)
    fields: dict[str, Field] = dataclasses.field(
        default_factory=lambda: {
            "semseg": dataclasses.replace(FIELDS["semseg"], limit=4),
            "depth": FIELDS["depth"],
        }
    )
    attrs: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"source": "plain", "intrinsics": [8.0, 8.0, 4.0, 3.0]}
    )

    def size(self, image: str) -> tuple[int, int]:
        return read_image(self.root / f"{image}.png").shape[:2]  # type: ignore[return-value]

    def image(self, image: str) -> NDArray[Any]:
        return read_image(self.root / f"{image}.png")

    def has(self, image: str, target: str) -> bool:
        return self.files(image, target)[0].exists()

    def target(self, image: str, target: str) -> NDArray[Any]:
        return read_map(self.files(image, target)[0])

    def files(self, image: str, target: str) -> tuple[Path, ...]:
        return (self.root / (f"{image}.png" if target == "image" else f"{image}_{target}.npy"),)


@pytest.fixture
def pack(tmp_path: Path) -> Plain:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, size in zip("abc", SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}_semseg.npy", rng.integers(0, 5, size))
        if name != "c":
            np.save(tmp_path / f"{name}_depth.npy", rng.uniform(1, 5, size).astype(np.float32))
    return Plain(tmp_path)


def test_a_pack_gives_what_our_format_gives(pack: Plain, tmp_path: Path) -> None:
    data = PackData(pack, "train")
    assert (len(data), data.ids, data.image_size, data.fields) == (3, ("a", "b", "c"), (6, 8), ("depth", "semseg"))
    assert data.has("depth").tolist() == [True, True, False] and data.target(2, "depth") is None
    for index in range(3):
        names = [name for name in ("image", *data.fields) if data.stored(index, name) is not None]
        arrays = {name: data.stored(index, name)[None] for name in names}  # type: ignore[index]
        described = {name: data.field(name) for name in data.fields}
        with HDF5Writer(tmp_path / f"{index}.h5", fields=described) as writer:
            writer.append("train", arrays)
        prepared = HDF5Data(tmp_path / f"{index}.h5", "train")
        assert torch.equal(data.image(index), prepared.image(0))
        for name in prepared.fields:
            assert torch.equal(data.target(index, name), prepared.target(0, name))  # type: ignore[arg-type]


def test_values_that_a_field_cannot_hold_name_their_file(pack: Plain) -> None:
    np.save(pack.root / "b_semseg.npy", np.full((5, 8), 5))
    with pytest.raises(DataError, match=r"b_semseg\.npy.*\[0, 4\].*but got \[5, 5\]"):
        PackData(pack, "train").target(1, "semseg")


def test_a_target_of_another_size_than_its_image_is_refused(pack: Plain) -> None:
    np.save(pack.root / "b_semseg.npy", np.zeros((5, 9), int))
    with pytest.raises(DataError, match=r"b_semseg\.npy.*\(5, 8\).*\(5, 9\)"):
        PackData(pack, "train").target(1, "semseg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tain"}, 'Did you mean "train"'),
        ({"split": "train", "size": 4}, r"1\.\.3"),
        ({"split": "train", "tasks": ["dept"]}, 'Did you mean "depth"'),
    ],
)
def test_what_is_not_there_is_said(pack: Plain, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PackData(pack, **options)


def test_the_hash_tells_other_data_apart(pack: Plain) -> None:
    before = PackData(pack, "train").content_hash
    assert PackData(pack, "train").content_hash == before
    assert PackData(pack, "train", size=2).content_hash != before
    assert PackData(dataclasses.replace(pack, attrs={"source": "other"}), "train").content_hash != before
    np.save(pack.root / "b_semseg.npy", np.zeros((5, 8), int))
    assert PackData(pack, "train").content_hash != before


def test_it_can_be_pickled_without_images(pack: Plain) -> None:
    data = PackData(pack, "train")
    data.image(0)
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    assert torch.equal(pickle.loads(sent).image(1), data.image(1))


def test_a_subset_is_some_images_in_order(pack: Plain) -> None:
    data = PackData(pack, "train")
    some = Subset(data, [2, 0])
    assert (len(some), some.ids, some.has("depth").tolist()) == (2, ("c", "a"), [False, True])
    assert torch.equal(some.image(0), data.image(2)) and torch.equal(some.target(1, "depth"), data.target(0, "depth"))  # type: ignore[arg-type]
    assert len({some.content_hash, data.content_hash, Subset(data, [0, 2]).content_hash}) == 3


def test_damaged_images_are_found_and_named(pack: Plain) -> None:
    np.save(pack.root / "a_semseg.npy", np.full(SIZES[0], 99))
    whole = (pack.root / "c_semseg.npy").read_bytes()
    (pack.root / "c_semseg.npy").write_bytes(whole[:-20])
    seen: list[tuple[int, int]] = []
    good, faults = usable(PackData(pack, "train"), advance=lambda done, total: seen.append((done, total)))
    assert good == [1] and seen == [(1, 3), (2, 3), (3, 3)]
    assert set(faults) == {"a", "c"}
    assert "a_semseg.npy" in faults["a"] and "c_semseg.npy" in faults["c"] and "truncated" in faults["c"]


def test_a_target_without_any_label_is_refused_but_empty_images_are_normal(pack: Plain) -> None:
    np.save(pack.root / "a_depth.npy", np.zeros(SIZES[0], np.float32))
    require_labels(PackData(pack, "train"), ["depth", "semseg"])
    np.save(pack.root / "b_depth.npy", np.zeros(SIZES[1], np.float32))
    with pytest.raises(DataError, match="no pixel of `depth` has a label"):
        require_labels(PackData(pack, "train"), ["semseg", "depth"])


def test_derived_targets_are_made_of_what_is_stored(pack: Plain) -> None:
    data = Derived(PackData(pack, "train"), ["curvature", "keypoints2d"])
    assert set(data.fields) == {"depth", "semseg", "curvature", "keypoints2d"}
    assert data.has("curvature").tolist() == [True, True, False] and data.has("keypoints2d").all()
    assert data.target(0, "curvature").shape == (2, 6, 8)  # type: ignore[union-attr]
    points = data.target(2, "keypoints2d")
    assert points is not None and points.shape == (1, 6, 7) and points.min() >= 0 and points.max() <= 1
    assert data.attrs["derived"] == {name: DERIVATIONS[name].how for name in ("curvature", "keypoints2d")}
    assert torch.equal(data.target(1, "depth"), data.source.target(1, "depth"))  # type: ignore[arg-type]


def test_derived_targets_need_what_they_are_made_of(pack: Plain) -> None:
    with pytest.raises(DataError, match="intrinsics"):
        Derived(PackData(dataclasses.replace(pack, attrs={"source": "x"}), "train"), ["curvature"])
    with pytest.raises(DataError, match="derived of depth"):
        Derived(PackData(pack, "train", tasks=["semseg"]), ["curvature"])
    with pytest.raises(DataError, match='Did you mean "curvature"'):
        Derived(PackData(pack, "train"), ["curvatur"])
