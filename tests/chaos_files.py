"""Damage every kind of file that is read, and look at what its reader makes of it.

    python tests/chaos_files.py [--cases 12000] [--seed 0] [--only NAME ...]

Files are cut short, zeroed in part, flipped, extended and mixed up. What a reader may do then is raise a `MedusaError`
that names the place, or return exactly what was written; of formats without checksums (a bitmap, a text) it may return
what is well formed. Not allowed: any other exception, other data, a hang, a crash, or a gigabyte of memory. Every
reader works in a process of its own, so that one that crashes is counted too.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fake_data import fake_dense_hdf5
from medusa_cl import kept, tasks
from medusa_cl.data import files
from medusa_cl.errors import MedusaError

PATIENCE = 20.0  # seconds a case; most take milliseconds
MEMORY = 1 << 30  # bytes more than before
SHOWN = 100  # failures in words


class Failure(NamedTuple):
    """What must not happen: which reader, which case, what it did."""

    reader: str
    case: int
    what: str


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
        make: Writes whole files into an empty folder.
        read: Reads them and returns all that was read.
        exact: Whether any other result than that of the whole files is wrong: there are checksums.
        weight: Its share of the cases.
        named: Whether errors are to name a place in the folder.
        only: Names of the files that are damaged; none for all.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    exact: bool = False
    weight: float = 1.0
    named: bool = True
    only: tuple[str, ...] = ()


# Damage


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _replace(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] = draw.choice((0, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(changed)


def _early(content: bytes, draw: random.Random) -> bytes:
    """Headers are short and what matters most."""
    head = min(len(content), draw.choice((16, 64, 256, 1024)))
    return _replace(content[:head], draw) + content[head:]


def _blank(content: bytes, draw: random.Random) -> bytes:
    size = draw.choice((1, 4, 16, 64, 512, 4096))
    start = draw.randrange(len(content))
    if size >= 512:
        start -= start % 512  # as lost blocks of a disk are
    end = min(len(content), start + size)
    return content[:start] + draw.choice((b"\0", b"\0", b"\xff")) * (end - start) + content[end:]


def _append(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice((b"\0" * 512, draw.randbytes(draw.randrange(1, 600)), content))


def _drop(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice((1, 4, 64, 512)) :]


def _insert(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + draw.randbytes(draw.choice((1, 4, 64))) + content[start:]


def _swap(content: bytes, draw: random.Random) -> bytes:
    size = min(len(content) // 2, draw.choice((4, 8, 64, 512)))
    one, other = sorted(draw.randrange(0, len(content) - size + 1) for _ in range(2))
    if other - one < size:
        return _flip(content, draw)
    first, second = content[one : one + size], content[other : other + size]
    return content[:one] + second + content[one + size : other] + first + content[other + size :]


def _other(content: bytes, draw: random.Random) -> bytes:
    noise = draw.randbytes(300)
    return draw.choice((b"", noise, b"\0" * len(content), b"{}", b"[]\n", b"\x89HDF\r\n\x1a\n" + noise, b"PK\x03\x04"))


DAMAGE = (_cut, _cut, *(_flip,) * 3, _replace, _early, _early, _blank, _blank, _append, _drop, _insert, _swap, _other)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return content that is not as it was."""
    for _ in range(20):
        changed = draw.choice(DAMAGE)(content, draw) if content else draw.randbytes(20)
        if changed != content:
            return changed
    return content + b"\0"


# Readers


def picture(height: int = 24, width: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Something that no block of a picture repeats."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _pillow(name: str, *mode: str, **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from PIL import Image

        image = Image.fromarray(picture())
        (image.convert(*mode) if mode else image).save(folder / name, **options)

    return make


def _png16(folder: Path) -> None:
    from PIL import Image

    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(folder / "map.png")


def _tiff(folder: Path) -> None:
    import tifffile

    tifffile.imwrite(folder / "map.tif", picture()[..., 0].astype(np.float32))


def _mat(folder: Path) -> None:
    import scipy.io

    content = {"trainNdxs": np.arange(20)[:, None], "testNdxs": np.arange(5)[:, None], "text": "some text"}
    scipy.io.savemat(folder / "splits.mat", content, do_compression=True)


def _plain_mat(folder: Path) -> None:
    """Uncompressed, as no checksum of zlib stands before scipy then; with all that annotations are made of."""
    import scipy.io

    parts = [{"mask": np.eye(4, dtype=np.uint8), "name": "arm"}, {"mask": np.zeros((4, 4), np.uint8), "name": "leg"}]
    content = {"anno": {"objects": parts, "cells": np.array(["a", "bc"], dtype=object)}, "numbers": np.arange(6.0)}
    scipy.io.savemat(folder / "x.mat", content, do_compression=False)


def _image(name: str, folder: Path) -> Any:
    array = files.read_image(folder / name)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    assert len(files.image_size(folder / name)) == 2
    return array


def _map(name: str, folder: Path) -> Any:
    array = files.read_map(folder / name)
    assert isinstance(array, np.ndarray) and array.nbytes < MEMORY
    return array


def _split(folder: Path) -> list[str]:
    ids = files.ids_of(folder / "train.txt")
    assert ids and all(isinstance(name, str) for name in ids)
    return ids


def _snapshot(folder: Path) -> None:
    from medusa_cl import snapshot

    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(5, 7, generator=draw)
    tree = {"model": {"w": weights, "b": weights.t()}, "plugins": [{3: (1, None, 0.5)}, "x"], "at": {"epoch": 2}}
    snapshot.write(folder / "0001-step", tree, {"at": "step 3"})


def _read_snapshot(folder: Path) -> Any:
    from medusa_cl import snapshot

    found = snapshot.read(folder / "0001-step")
    return [found.about, found.tree]


def _hdf5(folder: Path) -> None:
    fields = ("semseg", "depth", "normals")
    fake_dense_hdf5(folder / "data.h5", {"train": 3, "test": 2}, (16, 24), fields, classes=5)


def _read_hdf5(folder: Path) -> Any:
    from medusa_cl.data import hdf5

    found: list[Any] = [hdf5.attrs_of(folder / "data.h5"), hdf5.groups(folder / "data.h5")]
    for group, limit in (("train", 0), ("test", 1 << 20)):
        data = hdf5.HDF5Data(folder / "data.h5", group, memory_limit=limit)
        found += [data.content_hash, data.image_size, data.ids, *(data.field(name) for name in data.fields)]
        for index in range(len(data)):
            found += [data.image(index), *(data.target(index, name) for name in data.fields)]
            data.check(index)
        data.close()
    return found


def _unequal(folder: Path) -> None:
    """Images of several sizes, with names, of which some lack a target."""
    from medusa_cl.data.hdf5 import HDF5Writer

    rng = np.random.default_rng(0)
    with HDF5Writer(folder / "data.h5", {"source": "fake"}) as writer:
        for group, count in (("train", 3), ("test", 2)):
            arrays = {
                "image": rng.integers(0, 256, (count, 9, 13, 3), np.uint8),
                "depth": rng.integers(1, 9000, (count, 9, 13), np.uint16),
            }
            extents = np.array([[9, 13], [5, 12], [7, 3]][:count])
            present = {"depth": [True, False, True][:count]}
            writer.append(group, arrays, present=present, extents=extents, ids=[f"{group}/{i}" for i in range(count)])


KEY = {"backbone": "abc", "data": ["x", 3]}


def _features(precision: torch.dtype, folder: Path) -> None:
    from medusa_cl.data import features

    def fill(store: Any) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = ((4, 6, 6), (8, 3, 3))
        store.open(5, shapes, precision)
        for start in (0, 3):
            store.put(start, [torch.rand(min(3, 5 - start), *shape, generator=draw).to(precision) for shape in shapes])

    features._write_file(folder / "kept.h5", KEY, fill)


def _read_features(folder: Path) -> Any:
    from medusa_cl.data import features

    store = features._File(folder / "kept.h5", KEY)
    try:
        return [*store.take(torch.arange(5)), *store.take(torch.tensor([4, 0]))]
    finally:
        if store._file is not None:
            store._file.close()


def _rooms(folder: Path) -> None:
    _rooms_in(folder, {"train": 2, "test": 1})


def _rooms_in(folder: Path, counts: Mapping[str, int]) -> Path:
    from medusa_cl.data.rooms import rooms_file

    os.environ["MEDUSA_CL_CACHE"] = str(folder)
    return rooms_file((8, 8), counts, workers=1)


def _read_rooms(folder: Path) -> Any:
    from medusa_cl.data.hdf5 import HDF5Data

    path = _rooms_in(folder, {"train": 2, "test": 1})
    sets = [HDF5Data(path, group) for group in ("train", "test")]
    return [data.target(i, name) for data in sets for i in range(len(data)) for name in ("semseg", "depth")]


def _archive(kind: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        (tree / "deep").mkdir(parents=True)
        (tree / "a.txt").write_text("some text\n" * 50)
        (tree / "deep" / "b.bin").write_bytes(picture().tobytes())
        made = shutil.make_archive(str(Path(place) / "made"), kind, tree)
        shutil.copy(made, folder / "packed")


def _unpack(folder: Path) -> Any:
    from medusa_cl.data.archive import extract

    tree, around = folder / "out" / "tree", {"packed", "out"}
    try:
        extract(folder / "packed", tree)
        return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    finally:
        assert {path.name for path in folder.iterdir()} <= around, "something was written elsewhere"
        shutil.rmtree(folder / "out", ignore_errors=True)


SENT = picture(60, 80).tobytes()


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        part = SENT[first:]
        if not part:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(SENT)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(SENT) - 1}/{len(SENT)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *arguments: Any) -> None: ...


_serving: dict[int, int] = {}


def _address() -> str:
    if os.getpid() not in _serving:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _serving[os.getpid()] = server.server_port
    return f"http://127.0.0.1:{_serving[os.getpid()]}/data.bin"


def _download(folder: Path) -> None:
    """A whole file with its note, and another of which a part is there."""
    md5 = hashlib.md5(SENT, usedforsecurity=False).hexdigest()
    (folder / "whole.bin").write_bytes(SENT)
    (folder / "md5.bin.part").write_bytes(SENT[:3000])
    (folder / "md5.bin.part.from").write_text("0" * 64 + ' "1"\n')
    state = (folder / "whole.bin").stat()
    note = f"{state.st_size} bytes, changed at {state.st_mtime_ns} ns, md5 {md5}\n"
    (folder / "whole.bin.verified").write_text(note)


def _fetch(folder: Path) -> Any:
    from medusa_cl.data.download import Source, fetch

    md5 = hashlib.md5(SENT, usedforsecurity=False).hexdigest()
    names = ("whole.bin", "md5.bin")
    return [fetch(Source(_address(), name, md5=md5), folder).read_bytes() for name in names]


def _model_of_heads() -> Any:
    from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel

    backbone = Backbone.create("test_efficientnet", pretrained=False)
    return MultiTaskModel(backbone, partial(MedusaHead, width=8, mix_width=8))


def _model(folder: Path) -> None:
    from medusa_cl.checkpoint import save_model

    model = _model_of_heads()
    model.add_heads([tasks.semseg(3), tasks.depth()], seed=0)
    save_model(model, folder / "model")


def _load_model(folder: Path) -> Any:
    from medusa_cl.checkpoint import load_model

    model = load_model(folder / "model")
    return [model.state_dict(), [task.describe() for task in model.tasks.values()], model.precision]


def _head(folder: Path) -> None:
    model = _model_of_heads()
    model.add_heads([tasks.depth()], seed=0)
    model.save_head("depth", folder / "depth.safetensors")


_bare: list[Any] = []


def _load_head(folder: Path) -> Any:
    if not _bare:
        _bare.append(_model_of_heads())
    model = _bare[0]
    for name in tuple(model.tasks):
        model.remove_head(name)
    task = model.load_head(folder / "depth.safetensors")
    return [model.heads[task.name].state_dict(), task.describe()]


def _weights(name: str, folder: Path) -> None:
    from safetensors.torch import save_file

    state = _model_of_heads().backbone.net.state_dict()
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)


def _read_weights(name: str, folder: Path) -> Any:
    from medusa_cl.models.backbone import _read

    return sorted(map(str, _read(folder / name)))


def _note(folder: Path) -> None:
    content = {"summary": {"mean": None, "values": [1.5, 2.0], "final": {"depth": 0.25}}, "run_dir": "runs/x"}
    kept.write(folder / "run-0.json", content)


def _read_note(folder: Path) -> Any:
    found = kept.read(folder / "run-0.json", sealed=True)
    if found is None:
        raise MedusaError(f"{folder}: nothing is kept")
    return found


def _summary(hashed: bool, folder: Path) -> None:
    content = {"stream": ["edges"], "matrix": {"after": ["base"], "values": {"depth": [1.25, None], "edges": [50.0]}}}
    kept.write_summary(folder, json.dumps(content, indent=2) + "\n")
    if not hashed:
        (folder / kept.SUMMARY_HASH).unlink()


def _matrix(folder: Path) -> None:
    lines = ["after,semseg,depth,normals,edges", "base,10.0,1.0,,", "normals,11.0,1.25,30.0,", "edges,12.0,,31.0,50.0"]
    (folder / "task_matrix.csv").write_text("\n".join(lines) + "\n")


def _read_matrix(folder: Path) -> Any:
    from medusa_cl.results import TaskMatrix

    higher = {"semseg": True, "depth": False, "normals": False, "edges": True}
    matrix = TaskMatrix.from_csv(folder / "task_matrix.csv", higher)
    return [matrix.R(k, task) for k in range(matrix.last + 1) for task in matrix.tasks]


TASKS = """semseg: {kind: semseg, classes: [wall, floor, lamp]}
depth: {kind: depth, scale: 0.001, ignore: 0}
splits: {test: 0.4}
"""


def _own_folder(folder: Path) -> None:
    from PIL import Image

    for name in ("images", "semseg", "depth"):
        (folder / name).mkdir()
    for i in range(6):
        Image.fromarray(picture(8, 10)).save(folder / "images" / f"{i}.png")
        Image.fromarray(picture(8, 10)[..., 0] % 3).save(folder / "semseg" / f"{i}.png")
        Image.fromarray(picture(8, 10)[..., 0].astype(np.uint16) * 9).save(folder / "depth" / f"{i}.png")
    (folder / "tasks.yaml").write_text(TASKS)


def _read_own_folder(folder: Path) -> Any:
    from medusa_cl.data.folder import FolderPack
    from medusa_cl.data.pack import PackData

    pack = FolderPack(folder)
    sets = [PackData(pack, split) for split in pack.splits]
    return [data.target(i, name) for data in sets for i in range(len(data)) for name in data.fields]


def _nyud_mat(folder: Path) -> None:
    from fake_nyud_mat import write_nyud_mat

    write_nyud_mat(folder, 3, (24, 32))


def _read_nyud_mat(folder: Path) -> Any:
    from medusa_cl.data.nyud_mat import NYUDMat

    pack = NYUDMat(folder)
    try:
        names = [image for split in pack.splits.values() for image in split[:1]]
        return [pack.image(names[0]), *(pack.target(name, "semseg") for name in names), pack.target(names[0], "depth")]
    finally:
        pack.close()


def _record(folder: Path) -> None:
    lines = [{"step": step, "time": 1.5, "values": {"loss": step / 3, "depth/loss": None}} for step in range(8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_record(folder: Path) -> Any:
    from medusa_cl.tracking import read_metrics

    return list(read_metrics(folder))


READERS: dict[str, Reader] = {
    "png": Reader(_pillow("a.png"), partial(_image, "a.png")),
    "jpeg": Reader(_pillow("a.jpg"), partial(_image, "a.jpg")),
    "bmp": Reader(_pillow("a.bmp"), partial(_image, "a.bmp")),
    "webp": Reader(_pillow("a.webp", lossless=True), partial(_image, "a.webp")),
    "ppm": Reader(_pillow("a.ppm"), partial(_image, "a.ppm")),
    "palette": Reader(_pillow("map.png", "P"), partial(_map, "map.png")),
    "bits": Reader(_pillow("map.png", "1"), partial(_map, "map.png")),
    "png16": Reader(_png16, partial(_map, "map.png")),
    "npy": Reader(lambda folder: np.save(folder / "map.npy", picture()), partial(_map, "map.npy")),
    "tiff": Reader(_tiff, partial(_map, "map.tif")),
    "mat, plain": Reader(_plain_mat, lambda folder: len(files.read_mat(folder / "x.mat", "anno", "numbers"))),
    "mat": Reader(_mat, lambda folder: files.read_mat(folder / "splits.mat", "trainNdxs", "testNdxs")),
    "split": Reader(lambda folder: [(folder / "train.txt").write_text("a/1\nb/ü\nc\n"), None][1], _split),
    "hdf5": Reader(_hdf5, _read_hdf5, exact=True, weight=6),
    "hdf5 unequal": Reader(_unequal, _read_hdf5, exact=True, weight=4),
    "features": Reader(partial(_features, torch.float32), _read_features, exact=True, weight=4),
    "features bf16": Reader(partial(_features, torch.bfloat16), _read_features, exact=True, weight=2),
    "rooms": Reader(_rooms, _read_rooms, exact=True, weight=0.1),
    "tar": Reader(partial(_archive, "tar"), _unpack),
    "tar.gz": Reader(partial(_archive, "gztar"), _unpack, exact=True),
    "tar.xz": Reader(partial(_archive, "xztar"), _unpack, exact=True),
    "tar.bz2": Reader(partial(_archive, "bztar"), _unpack, exact=True),
    "zip": Reader(partial(_archive, "zip"), _unpack),
    "download": Reader(_download, _fetch, exact=True, weight=0.3, named=False),
    "model": Reader(_model, _load_model, exact=True, weight=2),
    "head": Reader(_head, _load_head, exact=True, weight=2),
    "weights": Reader(partial(_weights, "w.safetensors"), partial(_read_weights, "w.safetensors"), weight=0.5),
    "torch weights": Reader(partial(_weights, "w.pth"), partial(_read_weights, "w.pth"), weight=0.5),
    "snapshot": Reader(_snapshot, _read_snapshot, exact=True, weight=3),
    "kept": Reader(_note, _read_note, exact=True, weight=2),
    "summary": Reader(partial(_summary, True), kept.read_summary, exact=True, weight=2),
    "summary before": Reader(partial(_summary, False), kept.read_summary),
    "matrix": Reader(_matrix, _read_matrix),
    "folder": Reader(_own_folder, _read_own_folder, weight=0.5),
    "tasks.yaml": Reader(_own_folder, _read_own_folder, only=("tasks.yaml",)),
    "nyud mat": Reader(_nyud_mat, _read_nyud_mat),
    "metrics": Reader(_record, _read_record),
}


NETS = ("model", "head", "weights", "torch weights")


# Running


def fingerprint(value: Any) -> str:
    """Return a hash of nested data, to the bit."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            part = part.detach().contiguous()
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        elif isinstance(part, Mapping):
            add([item for pair in part.items() for item in pair])
        elif isinstance(part, list | tuple):
            sha.update(f"[{len(part)}".encode())
            for item in part:
                add(item)
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _lay(folder: Path, tree: Mapping[str, bytes]) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _case(name: str, number: int, seed: int, folder: Path, whole: Mapping[str, bytes], expected: str) -> str:
    """Damage one file and read; return what is wrong with that, or nothing."""
    reader, draw = READERS[name], random.Random(f"{seed}/{name}/{number}")
    before = _peak()
    chosen = draw.choice([file for file in whole if not reader.only or file in reader.only])
    _lay(folder, {**whole, chosen: damaged(whole[chosen], draw)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fingerprint(reader.read(folder))
    except MedusaError as error:
        if _peak() > before + MEMORY:
            return f"{chosen}: took {_peak() - before} bytes"
        unnamed = reader.named and str(folder) not in str(error)
        return f"{chosen}: the error names no place: {error}" if unnamed else ""
    except BaseException as error:
        return f"{chosen}: {type(error).__name__}: {error}"
    if _peak() > before + MEMORY:
        return f"{chosen}: took {_peak() - before} bytes"
    return f"{chosen}: other data without an error" if reader.exact and found != expected else ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(name: str, numbers: Sequence[int], seed: int, folder: Path, out: int) -> None:
    """Do cases, in a process of its own, and say of each what came of it."""
    reader = READERS[name]
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    logging.disable()
    reader.make(folder)
    whole = _tree(folder)
    expected = fingerprint(reader.read(folder))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * MEMORY, resource.RLIM_INFINITY))  # asked for, not yet used
    os.write(out, b"ready\n")
    for number in numbers:
        wrong = _case(name, number, seed, folder, whole, expected)
        os.write(out, json.dumps(wrong[:600]).encode() + b"\n")


def _lines(source: int, patience: float) -> Iterator[str | None]:
    """The lines that a process writes; None where it takes too long, and nothing more."""
    held = b""
    while True:
        if not select.select([source], [], [], patience)[0]:
            yield None
            return
        piece = os.read(source, 1 << 16)
        if not piece:
            return
        *whole, held = (held + piece).split(b"\n")
        yield from (line.decode() for line in whole)


def _forked(name: str, numbers: Sequence[int], seed: int, folder: Path) -> tuple[int, int]:
    source, out = os.pipe()
    child = os.fork()
    if child:
        os.close(out)
        return child, source
    os.close(source)
    status = 3
    try:
        faulthandler.disable()  # a crash is counted, its stack is of no use
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _work(name, numbers, seed, folder, out)
        status = 0
    except BaseException as error:
        os.write(2, f"{name}: {error!r}\n".encode())
    finally:
        os._exit(status)


def run(name: str, cases: int, seed: int = 0, start: int = 0) -> list[Failure]:
    """Do cases of one reader; one that crashes or hangs is noted, and the others go on."""
    if name in NETS and not _bare:
        _bare.append(_model_of_heads())  # what it imports takes seconds, here once for all processes
    failures, done, end = list[Failure](), start, start + cases
    while done < end:
        with tempfile.TemporaryDirectory() as place:
            child, source = _forked(name, range(done, end), seed, Path(place) / "files")
            ready = hung = False
            for line in _lines(source, PATIENCE):
                if line is None:
                    hung = True
                    os.kill(child, signal.SIGKILL)
                    break
                if not ready:
                    ready = True
                    continue
                if wrong := json.loads(line):
                    failures.append(Failure(name, done, wrong))
                done += 1
            os.close(source)
            status = os.waitpid(child, 0)[1]
        if not ready:
            raise RuntimeError(f"{name} does not even read whole files (status {status})")
        if done < end:
            what = f"hangs for {PATIENCE:g} s" if hung else f"crashes with status {os.waitstatus_to_exitcode(status)}"
            failures.append(Failure(name, done, what))
            done += 1
    return failures


def shares(cases: int) -> dict[str, int]:
    """Return how many cases each reader gets, at least one."""
    whole = sum(reader.weight for reader in READERS.values())
    return {name: max(1, -int(-cases * reader.weight // whole)) for name, reader in READERS.items()}


def main() -> int:
    """Do all, say what each took, and list the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first case, to repeat one")
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    failures, total = list[Failure](), 0
    for name, count in shares(given.cases).items():
        if given.only and name not in given.only:
            continue
        begun = time.monotonic()
        found = run(name, count, given.seed, given.start)
        failures, total = failures + found, total + count
        seconds = time.monotonic() - begun
        print(f"{name:>14} {count:6} cases {seconds:6.1f} s  {len(found) or 'no'} failures", flush=True)
    for failure in failures[:SHOWN]:
        print(f"{failure.reader}, case {failure.case} of seed {given.seed}: {failure.what}")
    print(f"{total} cases, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
