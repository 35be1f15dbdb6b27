"""A moment of a run as files: one tree of plain data and tensors, nothing pickled, every byte under a hash.

A snapshot is a folder: `tensors.safetensors`, `state.json` (the tree, tensors named in it) and `manifest.json` (what it
is, and the SHA-256 of the other two). It is written beside, flushed to the disk, read back, and only then renamed into
its place; the one before is kept.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medusa_cl.errors import SnapshotError
from medusa_cl.kept import digest, file_hash, flush, readable

FORMAT = "medusa-cl snapshot 1"
TREE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
NAME = re.compile(r"(\d{4,})-.+")


@dataclass(frozen=True)
class Snapshot:
    """What was read.

    Attributes:
        folder: Where it lies.
        about: What the manifest says of it.
        tree: The state.
    """

    folder: Path
    about: Mapping[str, Any]
    tree: Any


def write(folder: Path, tree: Any, about: Mapping[str, Any]) -> Path:
    """Write a snapshot; where that fails, nothing is left of it and nothing else is touched.

    Args:
        folder: Where it is to lie; not there yet.
        tree: None, bool, int, float, str, tensors, and lists, tuples and dicts (keys str or int) of these. Tensors keep
            type, shape and strides; they are read back on the CPU.
        about: Plain data for the manifest.

    Raises:
        OSError: It cannot be written: the disk is full, for instance.
        SnapshotError: What was written is not what is read back; or something in the tree is of another type.
    """
    part = folder.with_name(f"{folder.name}.part")
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_Packer(tensors).pack(tree, "state"), allow_nan=False)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with _as_os_error():
            save_file(tensors, part / TENSORS, metadata={"format": FORMAT})
            readable(part / TENSORS)
        (part / TREE).write_text(text, encoding="utf-8")
        manifest = _signed({"format": FORMAT, "about": dict(about), "files": _hashes(part)})
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in (*part.iterdir(), part):
            flush(path)
        verify(part)
        os.replace(part, folder)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def verify(folder: Path) -> dict[str, Any]:
    """Return what a snapshot's manifest says, after a look at every byte.

    Raises:
        SnapshotError: Something is missing, or is not what was written.
    """
    with _reading(folder):
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest != _signed(manifest):
            raise ValueError(f"{MANIFEST} is not what was written")
        if manifest["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, but got {manifest['format']!r}")
        for name, digest in manifest["files"].items():
            if file_hash(folder / name) != digest:
                raise ValueError(f"{name} is not what was written: its SHA-256 is another")
    return manifest


def read(folder: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        SnapshotError: Something is missing, or is not what was written.
    """
    manifest = verify(folder)
    with _reading(folder):
        packed = json.loads((folder / TREE).read_text(encoding="utf-8"))
        tree = _unpacked(packed, load_file(folder / TENSORS))
    return Snapshot(folder, manifest["about"], tree)


def every(folder: Path) -> list[Path]:
    """Return the snapshots in a folder, oldest first, whole or not."""
    found = [path for path in folder.glob("*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((path for path in found if not path.name.endswith(".part")), key=_number)


def next_name(folder: Path, label: str) -> Path:
    """Return where the next snapshot of a folder is to lie."""
    there = every(folder)
    return folder / f"{1 + (_number(there[-1]) if there else 0):04d}-{label}"


def drop_older(folder: Path, keep: int = 2) -> None:
    """Remove all snapshots of a folder but the newest ones, and what a process that was killed has begun."""
    for path in [*every(folder)[:-keep], *folder.glob("*.part")]:
        shutil.rmtree(path, ignore_errors=True)


def drop_newer(chosen: Path) -> None:
    """Remove the snapshots after one: what goes on from it makes others in their place."""
    for path in every(chosen.parent):
        if _number(path) > _number(chosen):
            shutil.rmtree(path)


def newest(folder: Path) -> Snapshot | None:
    """Read the newest snapshot of a folder; None where there is none.

    Raises:
        SnapshotError: It is damaged; the message names the newest whole one.
    """
    there = every(folder)
    if not there:
        return None
    try:
        return read(there[-1])
    except SnapshotError as error:
        raise SnapshotError(f"{error} {_offer(there[:-1])}") from error


def _offer(older: list[Path]) -> str:
    for path in reversed(older):
        try:
            about = verify(path)["about"]
        except SnapshotError:
            continue
        return f"The one before is whole ({about.get('at', 'earlier')}): go on from it with resume={path}"
    return "No older one is whole: learn anew, with overwrite=true."


def _number(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _hashes(folder: Path) -> dict[str, str]:
    return {name: file_hash(folder / name) for name in (TREE, TENSORS)}


def _signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the hash of all it says."""
    said = {key: manifest[key] for key in ("format", "about", "files")}
    return {**said, "sha256": digest(said)}


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Let what safetensors says of a full disk be what everything else says."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else 0, str(error)) from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise SnapshotError(f"The checkpoint {folder} is damaged: {error}.") from error


class _Packer:
    """Turns a tree into JSON, its tensors put aside under numbers; one that comes twice is kept once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._seen: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []  # an address could be given to another tensor otherwise

    def pack(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": str(value)}
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, list | tuple):
            packed = [self.pack(one, f"{where}[{i}]") for i, one in enumerate(value)]
            return packed if isinstance(value, list) else {"$tuple": packed}
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        raise SnapshotError(f"A checkpoint cannot hold {type(value).__name__} (at {where}).")

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise SnapshotError(f"A checkpoint cannot hold the key {key!r} (at {where}).")
        packed = {key: self.pack(one, f"{where}.{key}") for key, one in value.items()}
        plain = all(isinstance(key, str) and not key.startswith("$") for key in packed)
        return packed if plain else {"$dict": [[key, one] for key, one in packed.items()]}

    def _tensor(self, value: Tensor) -> Any:
        value = value.detach()
        key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.numel() > 0)
        if key not in self._seen or not value.numel():
            name = self._seen[key] = str(len(self._tensors))
            self._tensors[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
            self._alive.append(value)
        packed: dict[str, Any] = {"$tensor": self._seen[key]}
        if value.stride() != self._tensors[self._seen[key]].stride():
            packed["stride"] = list(value.stride())
        return packed


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(_unpacked(one, tensors) for one in value["$tuple"])
    if "$dict" in value:
        return {key: _unpacked(one, tensors) for key, one in value["$dict"]}
    if "$tensor" in value:
        return _laid_out(tensors[value["$tensor"]], value.get("stride"))
    return {key: _unpacked(one, tensors) for key, one in value.items()}


def _laid_out(value: Tensor, stride: list[int] | None) -> Tensor:
    """Return a tensor of its own memory, in the order in which it lay: what sums it up goes along the memory."""
    if stride is None:
        return value.clone()
    reach = 1 + sum((size - 1) * step for size, step in zip(value.shape, stride, strict=True))
    if value.numel() and reach != value.numel():  # a part of something larger, or one number many times
        return value.clone()
    return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
