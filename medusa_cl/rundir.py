"""The run directory: made, found again, and never emptied by mistake."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from medusa_cl.errors import ConfigError

RUNS = Path("runs")
BASE = Path("checkpoints") / "experience_0"


@contextmanager
def made(out: str | None, overwrite: bool, scenario: str, stem: str) -> Iterator[Path]:
    """Make a run directory for the block that sets the run up; should that fail, all is as it was before.

    Args:
        out: The directory, or None for the next free `runs/<scenario>/<stem>-<n>`.
        overwrite: Replace a run that is there.
        scenario: The scenario's name.
        stem: What the directory's name begins with.

    Raises:
        ConfigError: It is not empty and may not be, or no run of ours, replaced.
    """
    path = Path(out) if out else _free(RUNS / scenario, stem)
    aside = path.with_name(f"{path.name}.replaced")
    there = path.is_dir() and any(path.iterdir()) and out is not None
    if aside.exists():
        raise ConfigError(
            f"{aside} holds the run that was in {path} when a process that was to replace it was killed. Move it back "
            f"(rm -r {path}; mv {aside} {path}) or delete it."
        )
    if there:
        _check_replaceable(path, overwrite)
        path.rename(aside)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except BaseException:
        shutil.rmtree(path)  # nothing was learnt in it
        if out is None:
            with suppress(OSError):  # they hold other runs
                path.parent.rmdir()
                RUNS.rmdir()
        if there:
            aside.rename(path)
        raise
    if there:
        shutil.rmtree(aside)


@contextmanager
def unseen() -> Iterator[Path]:
    """Make a directory for a process whose record nobody reads; should the block fail, it is removed."""
    path = Path(tempfile.mkdtemp(prefix="medusa_cl-"))
    try:
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def held(path: Path) -> BaseFileLock:
    """Take a run directory for this process, until the lock is released or the process is gone.

    Raises:
        ConfigError: Another process learns the run.
    """
    return locked(
        path / ".lock",
        f"The run in {path} is being learnt by another process. Stop that one first, or choose another out=.",
    )


def locked(path: Path, refusal: str, patience: float = 0) -> BaseFileLock:
    """Take a lock for this process, until it is released or the process is gone.

    Args:
        path: The lock's file.
        refusal: What to say where another process has it.
        patience: For how many seconds that one is waited for.

    Raises:
        ConfigError: Another process has it.
    """
    lock = FileLock(path, timeout=patience, thread_local=False)
    with suppress(NotImplementedError):  # a file system without locks
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(refusal) from error
    return lock


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise ConfigError(
            f"The run directory {path} is not empty. Add overwrite=true to replace the run in it, choose another out=, "
            "or leave out= away for the next free one."
        )
    if not (path / "overrides.yaml").is_file():
        raise ConfigError(f"overwrite=true replaces runs only, but {path} holds something else. Choose another out=.")
    held(path).release()


def _free(folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(10**6):
        path = folder / f"{stem}-{n}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"No free run directory {folder / stem}-<n>: choose one with out=.")


def find_run(name: str, key: str) -> Path:
    """Return the directory of a finished run.

    Args:
        name: The directory, or "last" for the latest finished run under runs/ but those made by compare=.
        key: The key that named it, for the message.

    Raises:
        ConfigError: There is no finished run.
    """
    if name == "last":
        from medusa_cl.resume import compared

        beside = {Path(folder).resolve() for run in RUNS.glob("*/*") for folder in compared(run).values()}
        finished = (path for path in RUNS.glob("*/*/summary.json") if path.parent.resolve() not in beside)
        found = sorted(finished, key=lambda p: p.stat().st_mtime)
        if not found:
            raise ConfigError(f"{key}=last, but no run under runs/ is finished yet.")
        return found[-1].parent
    path = Path(name)
    if not (path / "summary.json").is_file():
        raise ConfigError(f"Expected {key}= the directory of a finished run, but found no summary.json in {name}.")
    return path


def find_base(base: str) -> Path:
    """Return the directory of the model that a run had after experience 0.

    Args:
        base: A run directory, the directory of a model or a file in it, or "last" for the latest run under runs/.

    Raises:
        ConfigError: There is no such model.
    """
    if base == "last":
        found = sorted(RUNS.glob(f"*/*/{BASE}/model.json"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ConfigError("base=last, but no run under runs/ has learnt its base tasks yet.")
        return found[-1].parent
    places = [Path(base).parent] if Path(base).is_file() else [Path(base), Path(base) / BASE]
    for path in places:
        if (path / "model.json").is_file():
            return path
    raise ConfigError(f"Expected base= a run directory or a model in it, but found no model.json in {base}.")
