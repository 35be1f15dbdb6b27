"""The rooms on disk: one HDF5 file for each image size, made on first use and grown when more are asked for."""

import contextlib
import errno
import functools
import logging
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from medusa_cl.data.parallel import in_order
from medusa_cl.data.rooms.golden import VERSION, golden_hash, golden_ok
from medusa_cl.data.rooms.render import Arrays, render_room
from medusa_cl.data.rooms.scene import CLASSES, PALETTE
from medusa_cl.data.rooms.splits import LARGEST_SPLIT, SPLITS
from medusa_cl.errors import DataError, unknown

CHUNK = 16
BYTES_PER_PIXEL = 8
"""On disk, compressed; generous."""

Progress = Callable[[int, int], None]
Job = tuple[str, int, int]
_DAMAGE = (DataError, OSError, KeyError, RuntimeError)
"""What reading a damaged file raises."""
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where generated data lives: $MEDUSA_CL_CACHE, else ~/.cache/medusa_cl."""
    return Path(os.environ.get("MEDUSA_CL_CACHE") or Path.home() / ".cache" / "medusa_cl").expanduser()


def rooms_path(size: tuple[int, int]) -> Path:
    """The file that holds rooms of this size; its name changes whenever an image would."""
    return cache_dir() / f"rooms-{VERSION}-{size[0]}x{size[1]}-{golden_hash()[:8]}.h5"


def rooms_file(
    size: tuple[int, int],
    counts: Mapping[str, int],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Make sure that the rooms are on disk, and say where.

    Images that exist are kept; what a killed process had finished is taken up again.

    Args:
        size: Height and width in pixels.
        counts: How many images each split needs at least.
        progress: Called with (images made, images to make) after each few.
        workers: Processes to use; None = the processors this process may use, 1 = none besides this one.

    Returns:
        An HDF5 file with a group for each split (see `medusa_cl.data.hdf5`).

    Raises:
        DataError: A split is unknown, a number is out of range, or the cache cannot be written.
    """
    size = _checked(size, counts)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A script without the guard runs again in each worker; waiting for the lock there would wait for ever.
        raise DataError(
            'rooms_file was called while a worker process starts: put the script under `if __name__ == "__main__":`.'
        )
    path = rooms_path(size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _missing(_sound(path, size, speak=False) or {}, counts):
            return path
        with FileLock(f"{path}.lock"):
            return _complete(path, size, counts, progress, workers)
    except OSError as error:
        raise DataError(_cannot_write(path, error)) from error


def _checked(size: tuple[int, int], counts: Mapping[str, int]) -> tuple[int, int]:
    for split, count in counts.items():
        if split not in SPLITS:
            raise DataError(unknown("split of rooms", split, SPLITS))
        if not 0 <= count <= LARGEST_SPLIT:
            raise DataError(f"Expected 0 to {LARGEST_SPLIT} rooms in {split}, but got {count}.")
    height, width = size
    if not (8 <= height <= 4096 and 8 <= width <= 4096):
        raise DataError(f"Expected rooms of 8 to 4096 pixels a side, but got {height} x {width}.")
    return int(height), int(width)


def _cannot_write(path: Path, error: OSError) -> str:
    hint = "Set MEDUSA_CL_CACHE to a folder that can be written and has room."
    reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
    return f"Cannot write {path}: {reason}. {hint}"


def _about(size: tuple[int, int]) -> dict[str, Any]:
    """The attributes by which a file is known as ours."""
    return {
        "source": "rooms",
        "rooms_version": VERSION,
        "golden": golden_hash(),
        "size": list(size),
        "first_index": SPLITS,
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in PALETTE],
    }


def _held(path: Path, size: tuple[int, int], speak: bool = True) -> dict[str, int] | None:
    """How many images of each split a file holds; None, with a warning, when it is damaged, old or not ours."""
    from medusa_cl.data import hdf5  # only the process that reads and writes files needs it

    if not path.exists():
        return {}
    try:
        if hdf5.attrs_of(path) != _about(size):
            _warn(f"{path} holds other data than rooms-{VERSION} of this size", speak)
            return None
        return {split: count for split, count in hdf5.groups(path).items() if split in SPLITS}
    except hdf5.EarlierVersionError:
        _warn(f"{path} was made by an earlier version of medusa_cl", speak)
    except DataError as error:
        _warn(f"{path} is damaged ({error})", speak)
    return None


def _warn(what: str, speak: bool = True) -> None:
    if speak:
        warnings.warn(f"{what}. It is made again.", stacklevel=6)


def _sound(path: Path, size: tuple[int, int], speak: bool = True) -> dict[str, int] | None:
    """What the finished file holds; None, with a warning, when an image is not what was written.

    Reading all of it takes a second, so the state in which it was found whole is remembered beside it.
    """
    held, note = _held(path, size, speak), path.with_name(path.name + ".verified")
    if not held or _text(note) == (state := _state(path)):
        return held
    try:
        _verify(path, held)
    except _DAMAGE as error:
        _warn(f"{path} is damaged ({error})", speak)
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read is verified anew each time
        partial = note.with_name(f"{note.name}.{os.getpid()}")
        partial.write_text(state, encoding="utf-8")
        os.replace(partial, note)
    return held


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns} ns\n"


def _text(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _verify(path: Path, held: Mapping[str, int]) -> None:
    from medusa_cl.data.hdf5 import HDF5Data

    for split in (split for split, count in held.items() if count):
        with contextlib.closing(HDF5Data(path, split)) as data:
            data.verify()


def _missing(held: Mapping[str, int], counts: Mapping[str, int]) -> list[Job]:
    """The (split, first, last + 1) still to be made, in chunks."""
    return [
        (split, start, min(start + CHUNK, count))
        for split, count in sorted(counts.items())
        for start in range(held.get(split, 0), count, CHUNK)
    ]


def _complete(
    path: Path, size: tuple[int, int], counts: Mapping[str, int], progress: Progress | None, workers: int | None
) -> Path:
    """Under the lock: take up what exists, make what is missing, rename."""
    held = _sound(path, size)
    if held is not None and not _missing(held, counts):
        return path  # another process made it while this one waited
    part = path.with_name(path.name + ".part")
    begun = _taken_up(part, size, held or {})
    jobs = _missing(begun if begun is not None else held or {}, counts)
    copied = path.stat().st_size if begun is None and held else 0
    _check_space(path, copied + sum(stop - start for _, start, stop in jobs) * size[0] * size[1] * BYTES_PER_PIXEL)
    if begun is None and held:
        _copy(path, part)
    if not golden_ok():
        warnings.warn(
            "This machine renders the golden rooms differently: results are not comparable with those of others.",
            stacklevel=4,
        )
    _generate(part, size, jobs, progress, workers)
    os.replace(part, path)
    return path


def _copy(path: Path, part: Path) -> None:
    """Copy under another name first: a copy cut short must not look like a file begun."""
    partial = part.with_name(part.name + ".copy")
    shutil.copyfile(path, partial)
    os.replace(partial, part)


def _taken_up(part: Path, size: tuple[int, int], held: Mapping[str, int]) -> dict[str, int] | None:
    """What a killed process left behind, if every image in it is whole and it holds all that the file holds."""
    if not part.exists():
        return None
    begun = _held(part, size)
    try:
        _verify(part, begun or {})
    except _DAMAGE as error:
        _warn(f"{part} is damaged ({error})")
        begun = None
    if begun and all(begun.get(split, 0) >= count for split, count in held.items()):
        _log.warning("%s: going on with the %d rooms that an interrupted run left.", part, sum(begun.values()))
        return begun
    part.unlink()
    return None


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"Not enough space for {path}: {needed} bytes are needed, {free} are free. "
            "Set MEDUSA_CL_CACHE to a folder with more room, or ask for fewer or smaller images."
        )


def _generate(
    part: Path, size: tuple[int, int], jobs: list[Job], progress: Progress | None, workers: int | None
) -> None:
    """Render the jobs and append each to the file as soon as it is its turn."""
    from medusa_cl.data.hdf5 import HDF5Writer

    done, total = 0, sum(stop - start for _, start, stop in jobs)
    rendered = in_order(jobs, functools.partial(render_chunk, size=size), workers)
    with HDF5Writer(part, _about(size), classes={"semseg": CLASSES}) as writer:
        for (split, start, stop), arrays in zip(jobs, rendered, strict=True):
            writer.append(split, arrays)
            done += stop - start
            if progress is not None:
                progress(done, total)


def render_chunk(job: Job, size: tuple[int, int]) -> Arrays:
    """Render the rooms of one job, stacked: the function that worker processes run."""
    split, start, stop = job
    rooms = [render_room(SPLITS[split] + number, size) for number in range(start, stop)]
    return {name: np.stack([room[name] for room in rooms]) for name in rooms[0]}
