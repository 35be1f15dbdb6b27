"""Which format a path holds, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medusa_cl.data.files import looking_into
from medusa_cl.errors import DataError, MissingDataError, unknown

if TYPE_CHECKING:
    from medusa_cl.data.pack import Pack

HDF5 = (".h5", ".hdf5")
RAW_MAT = "nyu_depth_v2_labeled.mat"


def _nyud_mat(path: Path, normals_frame: str) -> Pack:
    from medusa_cl.data.nyud_mat import NYUDMat

    return NYUDMat(path)


def _nyud_mt(path: Path, normals_frame: str) -> Pack:
    from medusa_cl.data.nyud import nyud_pack

    return nyud_pack(path, normals_frame)


def _pascal_mt(path: Path, normals_frame: str) -> Pack:
    from medusa_cl.data.pascal import PascalPack

    return PascalPack(path, normals_frame)


def _folder(path: Path, normals_frame: str) -> Pack:
    from medusa_cl.data.folder import FolderPack

    return FolderPack(path)


SOURCES: Mapping[str, Callable[[Path, str], Pack]] = {
    "nyud_mat": _nyud_mat,
    "nyud_mt": _nyud_mt,
    "pascal_mt": _pascal_mt,
    "folder": _folder,
}

# What lies in a folder of each format, or in the folder above it.
SIGNS: Mapping[str, tuple[str, ...]] = {
    "folder": ("tasks.yaml",),
    "pascal_mt": ("JPEGImages", "PASCAL_MT"),
    "nyud_mt": ("gt_sets", "NYUD_MT", "NYUDv2"),
    "nyud_mat": (RAW_MAT,),
}
# Of these signs, those that are a pack themselves: several of them may lie side by side.
WHOLE = ("PASCAL_MT", "NYUD_MT", "NYUDv2", RAW_MAT)


def sniff(path: str | Path) -> str:
    """Return the name of the format (one of `SOURCES`) that a path holds: as that pack's own folder, or the one above.

    Raises:
        MissingDataError: There is nothing.
        DataError: It is none of them, the message lists what each looks like; or it holds several, or cannot be read.
    """
    path = Path(path)
    with looking_into(path):
        return _sniff(path)


def _sniff(path: Path) -> str:
    if path.is_file() and path.suffix == ".mat":
        return "nyud_mat"
    found = {sign: name for name, signs in SIGNS.items() for sign in signs if (path / sign).exists()}
    own = [name for sign, name in found.items() if sign not in WHOLE]
    if own or len(found) == 1:
        return next(iter(own or found.values()))
    if found:
        raise DataError(f"{path} holds {' and '.join(found)}. Name one: path={path / next(iter(found))}.")
    known = "; ".join(f"{name}: {' or '.join(signs)}" for name, signs in SIGNS.items())
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        state = "is an empty folder" if path.exists() else "does not exist"
        raise MissingDataError(f"{path} {state}. Expected a folder that holds one of: {known}.")
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise DataError(f"{path} is of no known format: it holds {inside}. Expected one of: {known}.")


def open_pack(path: str | Path, source: str = "auto", normals_frame: str = "auto") -> Pack:
    """Open other people's data.

    Args:
        path: The folder or file.
        source: One of `SOURCES`, or auto.
        normals_frame: The axes of stored normals as in `frames.Frame`, or auto: detected.

    Raises:
        MissingDataError: There is nothing.
        DataError: It is of no known format, or something is wrong with it.
    """
    name = sniff(path) if source == "auto" else source
    if name not in SOURCES:
        raise DataError(unknown("source", name, ["auto", *SOURCES]))
    return SOURCES[name](Path(path), normals_frame)
