"""Rooms: the same bits everywhere, targets that fit the geometry, a cache that survives what happens to caches."""

from __future__ import annotations

import dataclasses
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
from medusa_cl.data.rooms.fixtures import RECESS
from medusa_cl.data.rooms.golden import GOLDEN, fingerprints
from medusa_cl.data.rooms.layout import build
from medusa_cl.data.rooms.render import CREASE, JUMP, camera_normals, edge_map, facing, look
from medusa_cl.data.rooms.scene import BOX, TUBE, Material, Part, Scene, Turn
from medusa_cl.data.rooms.style import HELD_OUT, STYLES, Style
from medusa_cl.data.rooms.textures import PATTERNS, Spot, albedo
from medusa_cl.errors import ConfigError, DataError

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


def test_what_is_golden_stays_so_while_the_version_does() -> None:
    """rooms-v1 is never changed. Whoever makes rooms-v2 adds its line here."""
    pinned = {"v1": "698ffbb6d0f8bc7064858b6cd05009ef01a8d67975c1ef1f475dcc01e6b70d0a"}
    assert pinned[rooms.VERSION] == rooms.golden_hash()
    fields = {name for hashes in GOLDEN.values() for name in hashes}
    assert all(set(hashes) == fields == set(rooms.render_room(0, (8, 8))) for hashes in GOLDEN.values())
    firsts = sorted(rooms.SPLITS.values())
    indices = [int(key.split("@")[0]) for key in GOLDEN]
    assert {max(first for first in firsts if first <= index) for index in indices} == set(firsts)  # one of each split


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
        assert set(room) == {
            "image", "semseg", "depth", "normals", "edges", "reshading", "albedo", "curvature", "keypoints2d",
            "saliency", "instances",
        }  # fmt: skip
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
        assert np.abs(point[:, 0]).max() < scene.half[0] + RECESS + 1e-3 and point[:, 1].min() > -1e-3


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
    first = {"train": 0, "val": 5_000_000, "test": 10_000_000, "confirm": 20_000_000, "confirm_style": 30_000_000}
    assert first == rooms.SPLITS


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


# ---- the look


def cornered(part: Part, turn: Turn) -> tuple[list[float], list[float]] | None:
    """The corners of a part in the frame of a turn, if its sides lie along that frame's axes."""
    (c, s), (pc, ps), (x, y, z) = turn, part.turn, part.centre
    cosine, sine = pc * c + ps * s, ps * c - pc * s
    if min(abs(cosine), abs(sine)) > 1e-6:
        return None
    hx, hy, hz = part.half if abs(cosine) > 0.5 else (part.half[2], part.half[1], part.half[0])
    middle = x * c - z * s, y, x * s + z * c
    return [m - h for m, h in zip(middle, (hx, hy, hz), strict=True)], [
        m + h for m, h in zip(middle, (hx, hy, hz), strict=True)
    ]


def swallowed(scene: Scene, point: np.ndarray) -> bool:
    """Whether a point lies within some part, under the floor, above the ceiling, or in a wall away from openings."""
    if not 0.0 < point[1] < 2 * scene.half[1]:
        return True
    walled = abs(point[0]) > scene.half[0] or abs(point[2]) > scene.half[2]
    if walled and not any(
        (point > np.array(low) - 0.2).all() and (point < np.array(high) + 0.2).all() for low, high in scene.openings
    ):
        return True
    for part in scene.parts:
        if not part.lying:
            (c, s), (x, y, z) = part.turn, point - np.array(part.centre)
            local = np.array([x * c - z * s, y, x * s + z * c]) / np.array(part.half)
            flat = local[0] ** 2 + local[2] ** 2
            radius = 1.0 + part.taper * local[1]
            round_ = flat < radius * radius and abs(local[1]) < 1 if part.shape == TUBE else flat + local[1] ** 2 < 1
            if (np.abs(local) < 1).all() if part.shape == BOX else round_:
                return True
    return False


def fighting(scene: Scene) -> list[tuple[Part, Part]]:
    """Boxes and upright tubes whose faces look the same way within 1 mm of each other, overlap, and can be seen."""
    solids = [part for part in scene.parts if part.shape == BOX or (part.shape == TUBE and not part.lying)]
    found = []
    for number, first in enumerate(solids):
        low, high = cornered(first, first.turn) or ([], [])
        for second in solids[number + 1 :]:
            reach = sum(first.half) + sum(second.half)
            if any(abs(a - b) > reach for a, b in zip(first.centre, second.centre, strict=True)):
                continue
            other = cornered(second, first.turn)
            if other is None:
                continue
            starts = [max(a, b) for a, b in zip(low, other[0], strict=True)]
            ends = [min(a, b) for a, b in zip(high, other[1], strict=True)]
            wide = [b - a > 2e-3 for a, b in zip(starts, ends, strict=True)]
            for axis in range(3) if first.shape == second.shape == BOX else (1,):
                for corners, others, sign in ((low, other[0], -1), (high, other[1], 1)):
                    near = abs(corners[axis] - others[axis]) < 1e-3
                    if near and all(wide[k] for k in range(3) if k != axis):
                        middle = [(a + b) / 2 for a, b in zip(starts, ends, strict=True)]
                        middle[axis] = corners[axis] + sign * 2e-3
                        (c, s), (x, y, z) = first.turn, middle
                        if not swallowed(scene, np.array([x * c + z * s, y, z * c - x * s])):
                            found.append((first, second))
    return found


def test_no_two_faces_lie_in_one_plane() -> None:
    """Else rounding decides, pixel by pixel, which of the two is seen."""
    for index in range(15):
        assert fighting(build(index)) == []


def test_faces_in_one_plane_are_found() -> None:
    scene = build(0)
    box = next(part for part in scene.parts if part.shape == BOX and part.label == rooms.CLASSES.index("door"))
    twin = box._replace(half=(box.half[0] / 2, *box.half[1:]))
    assert (box, twin) in fighting(dataclasses.replace(scene, parts=(box, twin)))


@pytest.mark.parametrize("index", range(0, 12))
def test_furniture_stands_within_the_room(index: int) -> None:
    scene = build(index)
    for part in scene.parts:
        if rooms.CLASSES[part.label] not in ("window", "rug"):  # windows reach into the wall, a rug may run under it
            reach = [abs(x) for x in part.turn]
            half_x = part.half[0] * reach[0] + part.half[2] * reach[1]
            half_z = part.half[2] * reach[0] + part.half[0] * reach[1]
            assert abs(part.centre[0]) + half_x < scene.half[0] + 0.04
            assert abs(part.centre[2]) + half_z < scene.half[2] + 0.04
            assert part.centre[1] - part.half[1] > -0.001


def test_windows_are_recessed_and_every_opening_is_closed() -> None:
    """Through an opening the eye meets reveals, frames or the pane: behind the wall's face, never beyond the pane."""
    deepest = []
    for index in range(12):
        scene, view = geometry(index)
        point = np.stack(view.point, -1)
        beyond = np.maximum(np.abs(point[:, 0]) - scene.half[0], np.abs(point[:, 2]) - scene.half[2])
        assert beyond.max() < RECESS + 0.001
        labels = np.array([part.label for part in scene.parts])
        assert (labels[view.part[beyond > 0.001]] == rooms.CLASSES.index("window")).all()
        assert (view.part[beyond > 0.001] >= 0).all()
        deepest.append(beyond.max())
    assert sum(depth > RECESS - 0.001 for depth in deepest) >= 3


def test_a_style_changes_the_materials_alone() -> None:
    for index in (3, 7):
        scenes = [build(index, name) for name in (*STYLES, HELD_OUT)]
        solids = [[part[:3] for part in scene.parts if part.label != rooms.CLASSES.index("window")] for scene in scenes]
        assert len({scene.half for scene in scenes}) == 1 and len({scene.camera for scene in scenes}) == 1
        assert all(solid == solids[0] for solid in solids)
        assert len({scene.shell for scene in scenes}) == len(scenes)


def test_training_rooms_have_every_training_style_and_never_the_other() -> None:
    names = [Style(Draw(index, 1)).name for index in range(100)]
    assert set(names) == set(STYLES) and HELD_OUT not in STYLES
    held = {part.material.pattern for index in range(8) for part in build(index, HELD_OUT).parts}
    scenes = [build(index) for index in range(20)]
    trained = {part.material.pattern for scene in scenes for part in scene.parts}
    assert held - trained >= {"steel", "scaffold", "chevron", "patches"}
    shells = {face.pattern for scene in scenes for face in scene.shell}
    assert not shells & {"concrete", "brick", "tread", "corrugated", "scaffold", "steel"}


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ConfigError, match=r'style of rooms "industial".*"industrial"'):
        build(0, "industial")


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_pattern_is_a_float32_colour_that_fades_far_away(name: str) -> None:
    u, v = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 96, dtype=np.float32), np.linspace(-1, 1, 96)))
    v = v.astype(np.float32)
    one = np.ones_like(u)
    material = Material(name, (0.8, 0.4, 0.3), (0.3, 0.5, 0.6), (0.1, 0.2, 0.1), 1.0, 7)
    for width in (0.002, 0.5):
        colours = np.stack(albedo(Spot(u, v, one * np.float32(width), one, one, material)))
        assert colours.dtype == np.float32 and colours.shape == (3, u.size)
        assert colours.min() >= 0.0 and colours.max() <= 1.0


def test_herringbone_lays_boards_of_one_by_five() -> None:
    """Every board has one tone; at 45 degrees its five squares lie in a row, and no two boards overlap."""
    side = 0.075
    x, y = (a.ravel().astype(np.float32) + 0.5 for a in np.meshgrid(np.arange(40), np.arange(40)))
    u, v = (x + y) * np.float32(side * 0.70710678), (x - y) * np.float32(side * 0.70710678)
    one = np.ones_like(u)
    flat = Material("herringbone", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, 3)
    red = albedo(Spot(u, v, one * np.float32(1e-3), one, one, flat))[0]
    sizes = np.unique(np.round(red, 5), return_counts=True)[1]
    assert np.median(sizes) == 5


def test_no_class_fills_the_picture() -> None:
    for index in range(20):
        room = rooms.render_room(index, (24, 32))["semseg"]
        assert np.bincount(room.ravel()).max() < 0.7 * room.size
