"""Nothing on disk or from the network may run code, land elsewhere or open a door: as written, and as tried."""

from __future__ import annotations

import ast
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fake_data import fake_dense_hdf5
from medusa_cl import kept, tasks
from medusa_cl.checkpoint import DESCRIPTION, load_model, save_model
from medusa_cl.data import hdf5
from medusa_cl.data.archive import extract
from medusa_cl.data.features import _File
from medusa_cl.data.files import read_map, read_mat
from medusa_cl.data.folder import FolderPack
from medusa_cl.data.hdf5 import HDF5Data
from medusa_cl.errors import ConfigError, DataError, MedusaError, WeightsError
from medusa_cl.models import MultiTaskModel
from medusa_cl.models.backbone import _read as read_weights

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("medusa_cl", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)

# What is written

FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "yaml.load": "makes objects; yaml.safe_load does not",
    "yaml.load_all": "makes objects; yaml.safe_load_all does not",
    "yaml.unsafe_load": "makes objects",
    "yaml.full_load": "makes objects",
    "tempfile.mktemp": "gives a name that another process may take",
    "ssl._create_unverified_context": "trusts any server",
}
PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def faults(source: str) -> list[str]:
    """Return what is dangerous in a module, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [(node.lineno, f"imports {n}") for n in names if n.partition(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            found += [(node.lineno, fault) for fault in _faults_of(node)]
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            found.append((node.lineno, "listens on every network"))
    return [f"{line}: {fault}" for line, fault in found]


def _faults_of(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    said = {key: value.value for key, value in options.items() if isinstance(value, ast.Constant)}
    if name in FORBIDDEN_CALLS:
        yield f"{name} {FORBIDDEN_CALLS[name]}"
    if name == "torch.load" and said.get("weights_only") is not True:
        yield "torch.load without weights_only=True unpickles"
    if name in ("np.load", "numpy.load") and said.get("allow_pickle", False) is not False:
        yield "np.load with allow_pickle unpickles"
    if "shell" in options and said.get("shell") is not False and name.rpartition(".")[2] in PROCESSES:
        yield "shell=True"
    if said.get("verify", True) is False:
        yield "verify=False trusts any server"
    if name.endswith(".extractall") and "filter" not in options and not name.startswith("packed."):
        yield "extractall without filter"
    if name.endswith((".extract", ".unpack_archive")) and name != "tarfile.extract":
        yield f"{name} unpacks without a filter"
    host = said.get("host", "127.0.0.1")
    if isinstance(host, str) and host not in ("127.0.0.1", "localhost", "::1"):
        yield f"a server on {host}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_does_what_files_could_abuse(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=1)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=given)",
        "os.system(line)",
        "tar.extractall(folder)",
        "shutil.unpack_archive(path)",
        "serve(host='0.0.0.0')",
        "server.bind(('0.0.0.0', 80))",
        "requests.get(url, verify=False)",
    ],
)
def test_the_check_sees_what_it_is_for(line: str) -> None:
    assert faults(f"def f():\n    {line}\n") != []


def test_the_check_lets_the_safe_forms_pass() -> None:
    calls = ("torch.load(p, weights_only=True)", "np.load(p)", "yaml.safe_load(t)", "run(a, shell=False)")
    assert faults("\n".join((*calls, "t.extractall(p, filter=f)"))) == []


# What is tried


class Trap:
    """What a pickle of it would do when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that must not be there in the end."""
    yield tmp_path / "the trap was sprung"
    assert not (tmp_path / "the trap was sprung").exists()


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_pickles_are_never_read(tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([Trap(mark)], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"map\.npy cannot be read"):
        read_map(tmp_path / "map.npy")
    torch.save({"weight": Trap(mark)}, tmp_path / "weights.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(mark)))
    for name in ("weights.pth", "plain.pth"):
        with pytest.raises(WeightsError, match=rf"Cannot read weights from .*{name}"):
            read_weights(tmp_path / name)


def test_weights_are_told_by_content_not_by_suffix(tmp_path: Path, mark: Path) -> None:
    torch.save({"weight": Trap(mark)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "weights.safetensors")
    (tmp_path / "map.npy").write_bytes(pickle.dumps(Trap(mark)))
    for read in (read_map, lambda path: read_mat(path, "x")):
        with pytest.raises(DataError, match=r"map\.npy"):
            read(tmp_path / "map.npy")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch x]", "!!python/name:os.system ''", "!x {}"])
def test_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "tasks.yaml").write_text(f"depth: {tag}\n")
    with pytest.raises(ConfigError, match=r"tasks\.yaml"):
        FolderPack(tmp_path / "own")
    assert not (tmp_path / "x").exists()


def test_yaml_that_unfolds_without_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "tasks.yaml").write_text("\n".join(lines))
    with pytest.raises(MedusaError) as caught:
        FolderPack(tmp_path)
    assert len(str(caught.value)) < 5000


# Archives


def tar_of(path: Path, *members: tuple[str, bytes | str], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = kind, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/medusa_out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_write_nothing_elsewhere(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "deep" / "packed"
    path.parent.mkdir()
    if kind == "tar":
        tar_of(path, ("good.txt", b"good"), (name, b"bad"))
    else:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("good.txt", "good")
            packed.writestr(zipfile.ZipInfo(name), "bad")
    with pytest.raises(DataError, match="leads out of the folder"):
        extract(path, tmp_path / "deep" / "tree")
    assert not list(tmp_path.rglob("*out.txt")) and not (tmp_path / "deep" / "tree").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd"])
def test_links_in_archives_lead_nowhere(tmp_path: Path, kind: bytes, target: str) -> None:
    path = tar_of(tmp_path / "packed", ("way", target), ("way/file.txt", b"bad"), kind=kind)
    with pytest.raises(DataError, match="may lead out of the folder"):
        extract(path, tmp_path / "tree")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_special_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataError, match="no file, folder or link"):
        extract(tar_of(tmp_path / "packed", ("device", ""), kind=kind), tmp_path / "tree")


# Weights


def lying(header: bytes, length: int | None = None, body: bytes = b"\0" * 64) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


LIES = {
    "a header longer than the file": lying(b"{}", 1 << 40),
    "a header of no length": lying(b"", 0),
    "numbers beyond the file": lying(b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
    "numbers that overlap": lying(
        b'{"w":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"v":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'
    ),
    "numbers that are fewer": lying(b'{"w":{"dtype":"F32","shape":[400],"data_offsets":[0,64]}}'),
    "a shape below zero": lying(b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,64]}}'),
    "an unknown type": lying(b'{"w":{"dtype":"OBJ","shape":[16],"data_offsets":[0,64]}}'),
    "deep JSON": lying(b'{"w":' + b"[" * 100_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_whose_header_lies(tmp_path: Path, tiny_model: Callable[..., MultiTaskModel], lie: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        tiny_model().load_head(path)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_weights(path)


def sealed(directory: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a model's description as one who knows how it is sealed."""
    description = json.loads((directory / DESCRIPTION).read_text())
    change(description)
    description["sha256"] = kept.digest({key: value for key, value in description.items() if key != "sha256"})
    (directory / DESCRIPTION).write_text(json.dumps(description))
    return directory


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["heads"]["depth"].update({"class": "os.system", "config": {"command": "touch sprung"}}),
        lambda d: d["heads"]["depth"].update({"class": "subprocess.Popen"}),
        lambda d: d["heads"]["depth"].update({"class": ["MedusaHead"]}),
        lambda d: d["heads"]["depth"].update({"config": {"head": "os.system"}}),
        lambda d: d["heads"]["depth"].update({"config": {"__class__": 1}}),
        lambda d: d["heads"]["depth"]["task"].update({"kind": "os.system"}),
        lambda d: d["heads"]["depth"]["task"].update({"options": {"__import__": "os"}}),
        lambda d: d.update(decoder={"class": "os.system", "config": {}}),
        lambda d: d.update(backbone="hf-hub:somebody/model"),
        lambda d: d.update(backbone="../../weights"),
        lambda d: d.update(backbone={"_target_": "os.system"}),
        lambda d: d.update(precision={"_target_": "os.system"}),
        lambda d: d.update(heads=None),
        lambda d: d.update(heads=[]),
    ],
)
def test_a_model_names_nothing_but_built_in_kinds(
    tmp_path: Path, tiny_model: Callable[..., MultiTaskModel], monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = sealed(save_model(tiny_model("depth"), tmp_path / "model"), change)
    with pytest.raises(MedusaError):
        load_model(saved)
    assert not (tmp_path / "sprung").exists()


def test_a_head_names_nothing_but_built_in_kinds(tmp_path: Path, tiny_model: Callable[..., MultiTaskModel]) -> None:
    model = tiny_model()
    said = {
        "format": "medusa-cl head 1",
        "task": json.dumps(tasks.depth().describe()),
        "backbone": json.dumps({"name": model.backbone.name, "hash": model.backbone.weights_hash()}),
    }
    for number, head in enumerate(({"class": "os.system", "config": {}}, {"class": {}, "config": {}}, [], None)):
        path = tmp_path / f"{number}.safetensors"
        save_file({"w": torch.zeros(1)}, path, said | {"head": json.dumps(head)})
        with pytest.raises(WeightsError):
            model.load_head(path)
    assert not model.tasks


# HDF5


def resealed(path: Path, change: Callable[[h5py.Group], object]) -> Path:
    """Change a file as one who knows how it is sealed."""
    with h5py.File(path, "r+") as file:
        change(file["train"])
        hdf5._seal(file["train"], len(file["train/digest"]))
    return path


def external(target: Path) -> Callable[[h5py.Group], object]:
    def change(group: h5py.Group) -> None:
        del group["depth"]
        group["depth"] = h5py.ExternalLink(target, "/train/depth")

    return change


def virtual(target: Path) -> Callable[[h5py.Group], object]:
    def change(group: h5py.Group) -> None:
        old, said = group["depth"], dict(group["depth"].attrs)
        layout = h5py.VirtualLayout(old.shape, old.dtype)
        layout[:] = h5py.VirtualSource(target, "/train/depth", old.shape)
        del group["depth"]
        group.create_virtual_dataset("depth", layout).attrs.update(said)

    return change


def elsewhere(target: Path) -> Callable[[h5py.Group], object]:
    def change(group: h5py.Group) -> None:
        old, said = group["depth"], dict(group["depth"].attrs)
        shape, dtype = old.shape, old.dtype
        del group["depth"]
        raw = [(str(target), 0, h5py.h5f.UNLIMITED)]
        group.create_dataset("depth", shape, dtype, external=raw).attrs.update(said)

    return change


@pytest.mark.parametrize("way", [external, virtual, elsewhere])
@pytest.mark.parametrize("memory_limit", [0, hdf5.MEMORY_LIMIT])
def test_a_file_reads_no_other_file(tmp_path: Path, way: Any, memory_limit: int) -> None:
    other = fake_dense_hdf5(tmp_path / "other.h5", fields=("depth",))
    path = resealed(fake_dense_hdf5(tmp_path / "data.h5", fields=("depth",)), way(other))
    with pytest.raises(DataError, match=r"data\.h5.*not in the file itself"):
        HDF5Data(path, "train", memory_limit=memory_limit)


def test_a_filter_of_ones_own_is_refused(tmp_path: Path) -> None:
    """HDF5 would load a library that the file names by a number from a folder that the environment names."""
    path = fake_dense_hdf5(tmp_path / "data.h5", fields=("depth",))

    def change(group: h5py.Group) -> None:
        old, said = group["depth"], dict(group["depth"].attrs)
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, *old.shape[1:]))
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(old.shape)
        kind = h5py.h5t.py_create(old.dtype)
        del group["depth"]
        h5py.Dataset(h5py.h5d.create(group.id, b"depth", kind, space, settings)).attrs.update(said)

    with pytest.raises(DataError, match=r"data\.h5.*filter"):
        HDF5Data(resealed(path, change), "train")


def test_a_group_within_itself_is_refused(tmp_path: Path) -> None:
    path = fake_dense_hdf5(tmp_path / "data.h5", fields=("depth",))
    with h5py.File(path, "r+") as file:
        file["train/train"] = file["train"]
    with pytest.raises(DataError, match=r"data\.h5.*lies deeper"):
        HDF5Data(path, "train")


def test_kept_features_read_no_other_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "kept.h5", "w") as file:
        file.attrs.update(format=hdf5.fixed("medusa-cl features 2"), key=hdf5.fixed("{}"))
        file["sums"] = np.zeros((1, 1), np.uint32)
        file["scale0"] = h5py.ExternalLink(tmp_path / "other.h5", "scale0")
    fake_dense_hdf5(tmp_path / "other.h5")
    with pytest.raises(DataError, match=r"kept\.h5 are damaged"):
        _File(tmp_path / "kept.h5", {})
