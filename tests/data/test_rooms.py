"""Rooms: the same bits everywhere, targets that fit the geometry, a cache that survives what happens to caches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import medusa_cl
from medusa_cl.data import rooms
from medusa_cl.data.hdf5 import FIELDS, HDF5Data
from medusa_cl.data.rooms import cache
from medusa_cl.data.rooms.draws import Draw, noise
from medusa_cl.data.rooms.golden import GOLDEN, fingerprints
from medusa_cl.data.rooms.layout import build
from medusa_cl.data.rooms.render import CREASE, JUMP, camera_normals, edge_map, facing, look
from medusa_cl.errors import DataError

SIZE = (48, 64)
INDICES = (0, 11, 5_000_004, 10_000_000)


@pytest.fixture(scope="module")
def pictures() -> dict[int, dict[str, np.ndarray]]:
    return {index: rooms.render_room(index, SIZE) for index in INDICES}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(medusa_cl.__file__).parents[1]))  # for child processes
    monkeypatch.setattr(cache, "golden_ok", lambda: True)  # tested above; a second each time
    return tmp_path / "cache"


def geometry(index: int, size: tuple[int, int] = SIZE):
    rows, columns = np.divmod(np.arange(size[0] * size[1]), size[1])
    scene = build(index)
    return scene, look(scene, columns.astype(np.float32) + 0.5, rows.astype(np.float32) + 0.5, size)


# The same bits


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_rooms_are_the_same_bits(key: str) -> None:
    index, height, width = map(int, key.replace("@", "x").split("x"))
    assert fingerprints(index, (height, width)) == GOLDEN[key]


def test_golden_ok_notices_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medusa_cl.data.rooms.golden.GOLDEN", {"0@8x8": {"image": "0"}})
    assert not rooms.golden_ok()


def test_same_bits_without_any_dispatched_simd() -> None:
    from numpy._core import _multiarray_umath as umath

    found = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from numpy._core import _multiarray_umath as u\n"
        "assert not [n for n in u.__cpu_dispatch__ if u.__cpu_features__.get(n)]\n"
        "from medusa_cl.data.rooms import golden_ok; import sys; assert 'torch' not in sys.modules; print(golden_ok())"
    )
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(found)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr


def test_arithmetic_stays_float32() -> None:
    """A float64 intermediate would be rounded twice; all buffers of the renderer are float32."""
    for index in INDICES:
        _, view = geometry(index)
        for array in (view.depth, *view.point, *view.normal, *view.colour, *view.rays.direction):
            assert array.dtype == np.float32


def test_draws_are_a_function_of_the_index() -> None:
    first, again, other = Draw(3), Draw(3), Draw(4)
    words = [first.word() for _ in range(1000)]  # more than one refill
    assert words == [again.word() for _ in range(1000)]
    assert words != [other.word() for _ in range(1000)]
    assert all(1.0 <= first.uniform(1.0, 2.0) < 2.0 for _ in range(100))


def test_noise_is_smooth_and_in_range() -> None:
    u = np.linspace(-20, 20, 4001, dtype=np.float32)
    values = noise(u, u * 0.3, 7)
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    assert np.abs(np.diff(values)).max() < 0.05


# Targets


def test_arrays_are_in_stored_types(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for room in pictures.values():
        assert set(room) == {"image", "semseg", "depth", "normals", "edges", "reshading", "instances"}
        for name, array in room.items():
            assert array.dtype == np.dtype(FIELDS[name].dtype)
            assert array.shape == SIZE + FIELDS[name].channels


def test_normals_are_unit_and_face_the_camera(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for index, room in pictures.items():
        scene, view = geometry(index)
        exact = camera_normals(scene, view)
        assert np.abs((exact.astype(np.float64) ** 2).sum(-1) - 1).max() < 1e-4
        stored = room["normals"].reshape(-1, 3) / 127.0
        assert np.abs(stored - exact).max() <= 0.5 / 127 + 1e-6
        reach = scene.camera.reach
        columns, rows = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
        step = 2 * reach / SIZE[1]
        ray = np.stack([(columns - SIZE[1] / 2) * step, (rows - SIZE[0] / 2) * step, np.ones(SIZE)], -1).reshape(-1, 3)
        assert ((exact * ray).sum(-1) <= 1e-6).all()


def test_axes_of_the_camera_frame() -> None:
    """Floors point up (negative y) and ceilings down, in a right-handed frame that looks along +z."""
    for index in range(6):
        room = rooms.render_room(index, SIZE)
        for name, sign in (("floor", -1), ("ceiling", 1)):
            normal = room["normals"][room["semseg"] == rooms.CLASSES.index(name)]
            if len(normal):
                assert (normal[:, 1] * sign > 80).mean() > 0.95
        camera = build(index).camera
        axes = np.array([camera.right, camera.down, camera.forward])
        assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-9) and camera.down[1] < 0


def test_depth_is_along_the_axis_and_in_the_room(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for index, room in pictures.items():
        scene, view = geometry(index)
        assert room["depth"].min() > 0
        point = np.stack(view.point, -1).astype(np.float64)
        depth = (point - np.array(scene.camera.position)) @ np.array(scene.camera.forward)
        assert np.abs(room["depth"].ravel() - depth * 1000).max() < 1.0
        assert np.abs(point[:, 0]).max() < scene.half[0] + 1e-3 and point[:, 1].min() > -1e-3


def slow_edges(depth: np.ndarray, normal: np.ndarray, face: np.ndarray) -> np.ndarray:
    height, width = depth.shape
    edges = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v >= height or u >= width:
                    continue
                near = min(depth[y, x], depth[v, u])
                if face[y, x] != face[v, u] and abs(depth[y, x] - depth[v, u]) > np.float32(JUMP) * near:
                    edges[(y, x) if depth[y, x] <= depth[v, u] else (v, u)] = 1
                elif sum(normal[y, x, k] * normal[v, u, k] for k in range(3)) < CREASE:
                    edges[y, x] = 1
    return edges


def test_edges_follow_their_definition(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    index = INDICES[0]
    scene, view = geometry(index)
    normal = camera_normals(scene, view).reshape(*SIZE, 3)
    expected = slow_edges(view.depth.reshape(SIZE), normal, view.face.reshape(SIZE))
    assert (pictures[index]["edges"] == expected).all()
    assert 0.02 < expected.mean() < 0.4


def test_a_grazing_plane_is_no_edge_and_a_step_is_one_pixel() -> None:
    depth = np.cumprod(np.full((4, 8), 1.2, np.float32), axis=1)
    normal = np.broadcast_to(np.array([0, 0, -1], np.float32), (4, 8, 3))
    assert not edge_map(depth, normal, np.zeros((4, 8), np.int32)).any()
    step = np.where(np.arange(8) < 3, np.float32(1), np.float32(2)) * np.ones((4, 1), np.float32)
    face = (step > 1).astype(np.int32)
    assert (edge_map(step, normal, face) == (np.arange(8) == 2)).all()  # on the nearer side alone


def test_reshading_is_minus_normal_times_view(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for index, room in pictures.items():
        _, view = geometry(index)
        exact = -sum(n.astype(np.float64) * d for n, d in zip(view.normal, view.rays.direction, strict=True))
        assert np.abs(room["reshading"].ravel() / 254 - exact).max() < 0.5 / 254 + 1e-4
        assert room["reshading"].max() <= 254 and (facing(view) >= 0).all()


def test_every_class_occurs_and_pictures_are_varied() -> None:
    pictures = [rooms.render_room(index, (24, 32)) for index in range(30)]
    present = [set(np.flatnonzero(np.bincount(room["semseg"].ravel(), minlength=19) > 4)) for room in pictures]
    assert set().union(*present) == set(range(len(rooms.CLASSES)))
    assert np.mean([len(classes) for classes in present]) > 6
    assert len({room["image"].tobytes() for room in pictures}) == len(pictures)
    largest = [np.bincount(room["instances"].ravel()).max() / room["instances"].size for room in pictures]
    assert np.mean(largest) < 0.5


def test_instances_have_one_class(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for room in pictures.values():
        for instance in np.unique(room["instances"]):
            assert len(np.unique(room["semseg"][room["instances"] == instance])) == 1


def test_images_are_exposed_and_smooth_at_edges(pictures: dict[int, dict[str, np.ndarray]]) -> None:
    for room in pictures.values():
        assert 50 < np.median(room["image"]) < 180
        assert room["image"].std() > 15


def test_palette_and_splits() -> None:
    assert len(rooms.PALETTE) == len(rooms.CLASSES) == 19 == len(set(rooms.PALETTE))
    assert rooms.SPLITS == {"train": 0, "val": 5_000_000, "test": 10_000_000, "confirm": 20_000_000}


# The cache

TINY = (16, 24)


def stored(path: Path, split: str) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return file[split]["image"][:]


def rendered(split: str, count: int) -> np.ndarray:
    return np.stack([rooms.render_room(rooms.SPLITS[split] + k, TINY)["image"] for k in range(count)])


def make(train: int = 2, val: int = 1, **options: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rooms.rooms_file(TINY, {"train": train, "val": val}, workers=1, **options)


def test_cache_holds_the_rooms_and_grows(home: Path) -> None:
    told: list[tuple[int, int]] = []
    path = make(2, 1, progress=lambda done, total: told.append((done, total)))
    assert path.parent == home and told[-1] == (3, 3)
    before = stored(path, "train")
    assert make(1, 1, progress=lambda *_: pytest.fail("nothing was missing")) == path
    assert make(4, 1) == path
    assert (stored(path, "train")[:2] == before).all()
    assert (stored(path, "train") == rendered("train", 4)).all() and (stored(path, "val") == rendered("val", 1)).all()
    data = HDF5Data(path, "train", 2)
    data.verify()
    assert data.image_size == TINY and data.attrs["palette"][0] == list(rooms.PALETTE[0])
    assert data.field("semseg").classes == rooms.CLASSES
    make(4, 1)
    kept = [path.name, f"{path.name}.verified"]
    assert sorted(p.name for p in home.iterdir() if not p.name.endswith(".lock")) == kept


def test_sizes_have_files_of_their_own(home: Path) -> None:
    assert make() != rooms.rooms_path((24, 16)) and rooms.VERSION in make().name


@pytest.mark.parametrize("harm", ["truncated", "garbage", "foreign"])
def test_a_bad_file_is_made_again(home: Path, harm: str) -> None:
    path = make()
    if harm == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif harm == "garbage":
        path.write_bytes(b"not HDF5 at all")
    else:
        with h5py.File(path, "r+") as file:
            about = json.dumps({"source": "another"}).encode()
            del file["about"]
            file["about"] = np.frombuffer(about, np.uint8)
            file.attrs["about_sha256"] = np.bytes_(hashlib.sha256(about).hexdigest())
    with pytest.warns(UserWarning, match="made again"):
        assert rooms.rooms_file(TINY, {"train": 2}, workers=1) == path
    assert (stored(path, "train") == rendered("train", 2)).all()


def flip_a_byte(path: Path) -> None:
    """In the middle of an image as it is stored; the file opens and reads as before, or fails to unpack."""
    with h5py.File(path, "r") as file:
        where = file["train"]["image"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("grown", [False, True])
def test_a_flipped_byte_in_the_finished_file_is_found(home: Path, grown: bool) -> None:
    path, train = make(2), 4 if grown else 2
    make(2)  # found whole, and remembered
    flip_a_byte(path)
    with pytest.warns(UserWarning, match="damaged.*made again"):
        rooms.rooms_file(TINY, {"train": train, "val": 1}, workers=1)
    assert (stored(path, "train") == rendered("train", train)).all()
    HDF5Data(path, "train").verify()
    make(train)


def test_a_file_is_verified_once_for_each_state(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    verify = HDF5Data.verify
    monkeypatch.setattr(HDF5Data, "verify", lambda data: (verified.append(data.group), verify(data)))
    path = make(2, 1)
    for _ in range(3):
        make(2, 1)
    assert sorted(verified) == ["train", "val"]
    os.utime(path, ns=(1, 1))
    make(2, 1)
    assert len(verified) == 4


def test_an_interrupted_run_is_taken_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(4, 0, progress=stop)
    path = rooms.rooms_path(TINY)
    assert not path.exists() and path.with_name(path.name + ".part").exists()
    told: list[tuple[int, int]] = []
    assert make(4, 0, progress=lambda done, total: told.append((done, total))) == path
    assert told[-1] == (2, 2)
    assert (stored(path, "train") == rendered("train", 4)).all()


@pytest.mark.parametrize("harm", ["garbage", "flipped"])
def test_a_damaged_part_is_thrown_away(home: Path, harm: str) -> None:
    path = make()
    part = path.with_name(path.name + ".part")
    shutil.copy(path, part)
    if harm == "garbage":
        part.write_bytes(b"\x89HDF half a header")
    else:
        with h5py.File(part, "r+") as file:
            file["train"]["image"][0, 0, 0, 0] ^= 1
    with pytest.warns(UserWarning, match="damaged"):
        rooms.rooms_file(TINY, {"train": 3, "val": 1}, workers=1)
    assert (stored(path, "train") == rendered("train", 3)).all() and not part.exists()


def test_no_space_says_how_much_and_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make()
    usage = type(shutil.disk_usage(home))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DataError, match=r"bytes are needed, 1000 are free.*MEDUSA_CL_CACHE") as error:
        rooms.rooms_file(TINY, {"train": 10_000})
    assert str(path) in str(error.value)
    assert make() == path  # nothing to write: no space is needed


def test_unwritable_cache_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDUSA_CL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="MEDUSA_CL_CACHE"):
        make()


@pytest.mark.parametrize("counts", [{"trian": 1}, {"train": -1}, {"train": 5_000_001}])
def test_impossible_counts_are_refused(home: Path, counts: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"train"):
        rooms.rooms_file(TINY, counts)


def test_a_difference_from_golden_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "golden_ok", lambda: False)
    with pytest.warns(UserWarning, match="not comparable"):
        rooms.rooms_file(TINY, {"train": 1}, workers=1)


def test_two_processes_make_one_file_together(home: Path) -> None:
    code = (
        "import sys\nfrom medusa_cl.data.rooms import rooms_file\n"
        f"print(rooms_file({TINY}, {{'train': int(sys.argv[1])}}, workers=1))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, count], stdout=subprocess.PIPE, text=True)
        for count in ("5", "18")
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in running}
    assert len(paths) == 1 and all(process.returncode == 0 for process in running)
    path = Path(paths.pop())
    assert (stored(path, "train") == rendered("train", 18)).all()
    HDF5Data(path, "train").verify()


def test_worker_processes_make_the_same_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 2)
    path = rooms.rooms_file(TINY, {"train": 7, "test": 2}, workers=2)
    assert (stored(path, "train") == rendered("train", 7)).all() and (stored(path, "test") == rendered("test", 2)).all()


def test_a_script_without_the_guard_still_gets_its_rooms(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"from medusa_cl.data.rooms import rooms_file\nprint(rooms_file({TINY}, {{'train': 18}}, workers=2).name)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == rooms.rooms_path(TINY).name
