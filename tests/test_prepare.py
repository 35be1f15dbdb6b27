"""Packs to one file: the same samples come out of both, and no call loses work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fake_folder import write_folder
from fake_nyud import write_nyud_pack
from fake_nyud_mat import write_nyud_mat
from fake_pascal import write_pascal
from medusa_cl import prepare as verb
from medusa_cl.data import hdf5
from medusa_cl.data.hdf5 import HDF5Data, groups
from medusa_cl.data.pack import PackData
from medusa_cl.data.sources import open_pack, sniff
from medusa_cl.errors import ConfigError, DataError, MedusaError, MissingDataError
from medusa_cl.prepare import main, prepare, verify

WRITERS: dict[str, Callable[[Path], Any]] = {
    "astmt": lambda root: write_nyud_pack(root / "NYUD_MT", "astmt"),
    "survey": lambda root: write_nyud_pack(root / "NYUD_MT", "survey"),
    "atrc": lambda root: write_nyud_pack(root / "NYUDv2", "atrc"),
    "mat": write_nyud_mat,
    "pascal": write_pascal,
    "folder": write_folder,
}
SOURCE = {"astmt": "nyud_mt", "survey": "nyud_mt", "atrc": "nyud_mt", "mat": "nyud_mat", "pascal": "pascal_mt"}


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def pack(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            WRITERS[name](made[name])
        return made[name]

    return pack


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_prepared_file_gives_the_packs_samples_to_the_bit(
    name: str, packs: Callable[[str], Path], tmp_path: Path
) -> None:
    root = packs(name)
    before = snapshot(root)
    assert sniff(root) == SOURCE.get(name, "folder")
    seen: list[tuple[int, int]] = []
    prepare(root, tmp_path / "made.h5", workers=1, progress=lambda *told: seen.append(told))
    pack = open_pack(root)
    total = sum(map(len, pack.splits.values()))
    assert seen[-1] == (total, total)
    assert {"train", "test"} <= set(groups(tmp_path / "made.h5")) == set(pack.splits)
    for split in pack.splits:
        direct, made = PackData(pack, split), HDF5Data(tmp_path / "made.h5", split)
        facts = {key: value for key, value in made.attrs.items() if key != "made_of"}
        assert (made.ids, made.fields, facts) == (direct.ids, direct.fields, direct.attrs)
        for index in range(len(direct)):
            assert torch.equal(made.image(index), direct.image(index))
            for task in direct.fields:
                one, other = made.target(index, task), direct.target(index, task)
                assert (one is None) == (other is None)
                assert one is None or (one.dtype == other.dtype and torch.equal(one, other))  # type: ignore[union-attr,arg-type]
    assert snapshot(root) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.h5"]


def test_processes_change_nothing(
    packs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "CHUNK", 2)
    for workers in (1, 2):
        prepare(packs("survey"), tmp_path / f"{workers}.h5", workers=workers)
    one, two = (HDF5Data(tmp_path / f"{workers}.h5", "train") for workers in (1, 2))
    assert one.content_hash == two.content_hash and one.ids == two.ids


def test_derived_targets_are_kept_and_marked(packs: Callable[[str], Path], tmp_path: Path) -> None:
    prepare(packs("survey"), tmp_path / "made.h5", derive=["curvature", "keypoints2d"], workers=1)
    made = HDF5Data(tmp_path / "made.h5", "train")
    assert {"curvature", "keypoints2d"} <= set(made.fields) and set(made.attrs["derived"]) == {
        "curvature",
        "keypoints2d",
    }


def test_a_second_call_goes_on(packs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "CHUNK", 1)
    out = tmp_path / "made.h5"
    assert prepare(packs("survey"), tmp_path / "whole.h5", workers=1).left_out == {}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(packs("survey"), out, workers=1, progress=stop)
    assert not out.exists() and groups(Path(f"{out}.part")) == {"train": 2}
    seen: list[int] = []
    prepare(packs("survey"), out, workers=1, progress=lambda done, total: seen.append(done))
    assert seen[0] == 3
    for split in ("train", "test"):
        assert HDF5Data(out, split).content_hash == HDF5Data(tmp_path / "whole.h5", split).content_hash
    before = out.stat().st_mtime_ns
    prepare(packs("survey"), out, workers=1, progress=lambda *told: pytest.fail("it is whole"))
    assert out.stat().st_mtime_ns == before


def test_a_killed_call_is_gone_on_from(packs: Callable[[str], Path], tmp_path: Path) -> None:
    out, part = tmp_path / "made.h5", tmp_path / "made.h5.part"
    script = (
        "import time, sys; from medusa_cl import prepare as verb; verb.CHUNK = 1\n"
        "verb.prepare(sys.argv[1], sys.argv[2], workers=1, progress=lambda d, t: time.sleep(0.3 if d == 3 else 0))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(packs("survey")), str(out)])
    while process.poll() is None and not part.exists():
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    prepare(packs("survey"), out, workers=1)
    verify(out)


def test_a_damaged_image_stops_with_its_path_or_is_left_out(tmp_path: Path) -> None:
    write_nyud_pack(tmp_path / "NYUD_MT", "survey")
    images = open_pack(tmp_path).splits["train"]
    damaged = tmp_path / "NYUD_MT" / "depth" / f"{images[1]}.npy"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{images[1]}.npy"):
        prepare(tmp_path, tmp_path / "made.h5", workers=1)
    faults = prepare(tmp_path, tmp_path / "made.h5", workers=1, on_bad_sample="skip").left_out
    assert list(faults) == [images[1]] and damaged.name in faults[images[1]]
    assert HDF5Data(tmp_path / "made.h5", "train").ids == tuple(i for i in images if i != images[1])


def test_images_left_out_before_an_interruption_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "CHUNK", 1)
    write_nyud_pack(tmp_path / "NYUD_MT", "survey")
    first = open_pack(tmp_path).splits["train"][0]
    (tmp_path / "NYUD_MT/edge" / f"{first}.npy").write_bytes(b"")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, tmp_path / "made.h5", workers=1, on_bad_sample="skip", progress=stop)
    made = prepare(tmp_path, tmp_path / "made.h5", workers=1, on_bad_sample="skip")
    assert list(made.left_out) == [first]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["NYUD_MT", "made.h5"]


def test_data_that_has_changed_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "CHUNK", 1)
    write_nyud_pack(tmp_path / "NYUD_MT", "survey", train=4)
    listed = tmp_path / "NYUD_MT/gt_sets/train.txt"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, tmp_path / "made.h5", workers=1, progress=stop)
    listed.write_text("\n".join(reversed(listed.read_text().split())))
    with pytest.warns(UserWarning, match="begun anew"):
        prepare(tmp_path, tmp_path / "made.h5", workers=1)
    assert HDF5Data(tmp_path / "made.h5", "train").ids == tuple(listed.read_text().split())
    depth = next((tmp_path / "NYUD_MT/depth").glob("*.npy"))
    depth.write_bytes(depth.read_bytes())
    os.utime(depth, ns=(1, 1))
    with pytest.raises(DataError, match="have changed since"):
        prepare(tmp_path, tmp_path / "made.h5", workers=1)


def test_a_damaged_part_is_begun_anew(packs: Callable[[str], Path], tmp_path: Path) -> None:
    part = tmp_path / "made.h5.part"
    part.write_bytes(b"half")
    with pytest.warns(UserWarning, match="begun anew"):
        prepare(packs("survey"), tmp_path / "made.h5", workers=1)
    verify(tmp_path / "made.h5")


def test_a_flipped_byte_is_found(packs: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "made.h5"
    prepare(packs("survey"), out, workers=1)
    with h5py.File(out) as file:
        place = file["test/depth"].id.get_chunk_info(1).byte_offset + 20
    content = bytearray(out.read_bytes())
    content[place] ^= 1
    out.write_bytes(content)
    with pytest.raises(DataError, match="image 1 of group test is damaged"):
        verify(out)
    with pytest.raises(DataError, match="damaged"):
        main([f"out={out}", "--check"])


def test_what_a_class_id_means_is_checked(tmp_path: Path) -> None:
    from fake_data import fake_dense_hdf5

    path = fake_dense_hdf5(tmp_path / "odd.h5", {"train": 1}, fields=["semseg"], classes=["wall", "floor"])
    with h5py.File(path, "r+") as file:
        file["train/semseg"].attrs["classes"] = hdf5.fixed('["wall"]')
        hdf5._seal(file["train"], 1)
    with pytest.raises(DataError, match="has a meaning"):
        verify(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["path=nowhere", "out=x.h5"], MissingDataError, "nowhere does not exist"),
        (["path=.", "out=x.h5"], MissingDataError, "empty folder"),
        (["path=.", "out=x.npz"], ConfigError, "FILE.h5"),
        (["path=."], ConfigError, "out="),
        (["out=x.h5"], ConfigError, "path="),
        (["pth=.", "out=x.h5"], ConfigError, 'Did you mean "path"'),
        (["path=.", "out=x.h5", "workers=0"], ConfigError, "workers"),
        (["path=.", "out=x.h5", "on_bad_sample=skp"], ConfigError, 'Did you mean "skip"'),
        (["path=.", "out=x.h5", "source=nyud"], DataError, "Unknown source"),
        (["out=absent.h5", "--check"], MissingDataError, "absent.h5"),
    ],
)
def test_slips_are_answered(
    arguments: list[str], error: type[MedusaError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        main(arguments)
    assert not any(tmp_path.glob("*"))


def test_out_in_a_place_that_cannot_be_written(packs: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose another out"):
        prepare(packs("survey"), tmp_path / "file" / "made.h5", workers=1)


def test_other_data_is_not_written_over(packs: Callable[[str], Path], tmp_path: Path) -> None:
    prepare(packs("pascal"), tmp_path / "made.h5", workers=1)
    before = (tmp_path / "made.h5").read_bytes()
    with pytest.raises(DataError, match="other data"):
        prepare(packs("survey"), tmp_path / "made.h5", workers=1)
    assert (tmp_path / "made.h5").read_bytes() == before


def test_as_typed(packs: Callable[[str], Path], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "medusa_cl.prepare",
        f"path={packs('mat')}",
        f"out={tmp_path}/nyud.h5",
        "workers=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "train, 4 images of 48x64" in done.stdout
    assert "derived by medusa_cl" in done.stdout and "% labelled" in done.stdout
    again = subprocess.run([*command[:3], f"out={tmp_path}/nyud.h5", "--check"], capture_output=True, text=True)
    assert again.returncode == 0 and "sha256" in again.stdout
    bad = subprocess.run([*command[:3], "out=x.h5", "pth=y"], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.startswith("error: ") and "Traceback" not in bad.stderr


def test_found_values_are_those_of_the_file(packs: Callable[[str], Path], tmp_path: Path) -> None:
    prepare(packs("survey"), tmp_path / "made.h5", workers=1)
    data = HDF5Data(tmp_path / "made.h5", "train")
    found = verify(tmp_path / "made.h5")["train"]
    depth = torch.cat([data.target(i, "depth").flatten() for i in range(len(data))])  # type: ignore[union-attr]
    known = depth[depth > 0]
    assert found["depth"].low == pytest.approx(float(known.min())) and found["depth"].high == pytest.approx(
        float(known.max())
    )
    assert found["depth"].labelled == pytest.approx(len(known) / len(depth))
    assert found["semseg"].high <= 39 and np.isfinite(found["normals"].low)
