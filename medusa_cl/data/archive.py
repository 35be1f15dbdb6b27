"""Unpacking archives from the network: nothing lands elsewhere, nothing half-unpacked is taken for whole."""

from __future__ import annotations

import logging
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NoReturn

from medusa_cl.data.download import FULL, alone, disk_errors, reason_of, require_space
from medusa_cl.errors import DataError

_CHUNK = 1 << 18
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
)
"""What damaged archives make their readers raise, besides an OSError without a number."""
_log = logging.getLogger(__name__)


def extract(archive: Path | str, folder: Path | str) -> Path:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive; where all of it is in one folder, that folder's content.

    It is unpacked beside its place and renamed when it is whole. A folder that is there and not empty is therefore
    taken as unpacked before, and left alone.

    Args:
        archive: The archive.
        folder: What the unpacked tree is to be called.

    Returns:
        `folder`.

    Raises:
        DataError: The archive is missing, truncated or damaged, or holds names or links that lead out of the folder
            (absolute, or with `..`) or special files; or the disk is full. Nothing is left behind then.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"{archive} does not exist. Fetch it first.")
    with alone(folder):
        if filled(folder):
            return folder
        beside = folder.with_name(f".{folder.name}.unpacking")
        with disk_errors(beside):
            if beside.exists():
                shutil.rmtree(beside)  # of a process that was killed
            beside.mkdir()
        try:
            _log.info("Unpacking %s to %s", archive, folder)
            _unpack(archive, beside)
            _put(beside, folder, archive)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def filled(folder: Path) -> bool:
    """Whether there is a folder with something in it."""
    with disk_errors(folder):
        return folder.exists() and any(folder.iterdir())


def _put(beside: Path, folder: Path, archive: Path) -> None:
    with disk_errors(folder):
        entries = list(beside.iterdir())
        if not entries:
            raise DataError(f"{archive} is empty. Delete it and fetch it again.")
        single = len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink()
        if folder.exists():
            folder.rmdir()  # empty; not every system renames onto it
        os.replace(entries[0] if single else beside, folder)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with archive.open("rb") as file:
            zipped = file.read(2) == b"PK"
        (_unzip if zipped else _untar)(archive, folder)
    except _DAMAGE as error:
        raise DataError(_damaged(archive, error)) from error
    except OSError as error:
        if error.errno is None:  # what gzip and bz2 raise
            raise DataError(_damaged(archive, error)) from error
        reason = "the disk is full" if error.errno in FULL else str(error)
        raise DataError(f"Cannot unpack {archive}: {reason}. Make room, or choose another folder.") from error


def _damaged(archive: Path, error: BaseException) -> str:
    why = f"{archive} cannot be unpacked: {reason_of(error)}"
    return f"{why}. It is truncated or damaged. Delete it and fetch it again."


def _outside(name: str) -> bool:
    """Whether a name could lead out of the folder, on any system."""
    path = PureWindowsPath(name)  # takes both kinds of slash
    return bool(path.drive or path.root) or ".." in path.parts


def _refuse_member(archive: Path, name: str, why: str) -> NoReturn:
    raise DataError(f'{archive} is refused, and nothing of it is kept: "{name}" {why}. Get it from another source.')


def _admitted(archive: Path, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Let through what can only land inside; stricter than the standard filter, which had holes in its links."""
    linked = member.issym() or member.islnk()
    if _outside(member.name):
        _refuse_member(archive, member.name, "leads out of the folder")
    # Links that only go down cannot be chained to a way out, wherever they stand.
    if linked and _outside(member.linkname):
        _refuse_member(archive, member.name, f'is a link to "{member.linkname}", which may lead out of the folder')
    if not (linked or member.isfile() or member.isdir()):
        _refuse_member(archive, member.name, "is no file, folder or link")
    return tarfile.data_filter(member, folder)


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DataError(f"Cannot unpack {archive} safely with this Python. Update it to 3.11.4 or later.")
    with tarfile.open(archive, "r:*") as tar:
        tar.extractall(folder, filter=partial(_admitted, archive))
        stream = tar.fileobj
        # A tar cut between two files looks whole to tarfile but for the empty block at its end.
        if stream is None or stream.tell() <= tar.offset:
            raise EOFError("its end is missing")
        while stream.read(_CHUNK):
            pass  # to the checksum, which is the last thing in a compressed file


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            if _outside(member.filename):
                _refuse_member(archive, member.filename, "leads out of the folder")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                _refuse_member(archive, member.filename, "is a link or a special file")
        require_space(folder, sum(member.file_size for member in members), 0)
        packed.extractall(folder)
