"""Going on with a run that was stopped: which one, from which checkpoint, and what may have changed since."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medusa_cl import kept, rundir
from medusa_cl.errors import ConfigError, SnapshotError

CHECKPOINTS = "checkpoints"
COMPARED = "compared.json"
"""In a run's directory: where the runs lie that are compared to it."""
# What a run that goes on may be given anew: where it runs and is recorded, and what becomes of it where it could not go
# on otherwise; not what it learns.
FREE = (
    *("resume", "out", "overwrite", "tracking", "strategy.cache_features", "strategy.cache_dir"),
    *(f"trainer.{key}" for key in ("device", "workers", "processes", "save_steps", "save_minutes", "on_nan")),
)
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


def find(name: str, ask_tracker: Callable[[str], str | None] = lambda run_id: None) -> tuple[Path, Path | None]:
    """Return the directory of a run, and the one checkpoint in it that was asked for.

    Args:
        name: A run directory, a checkpoint in it, an MLflow run id, or "last": the run under runs/ that was begun last.
        ask_tracker: Returns the directory that a tracker knows of a run id; asked where no directory here has it.

    Raises:
        ConfigError: There is no such run.
    """
    path = Path(name)
    if name == "last":
        path = _last()
    elif _MLFLOW_ID.fullmatch(name) and not path.exists():
        path = _tracked(name, ask_tracker)
    chosen = path if path.parent.name == CHECKPOINTS else None
    path = path.parent.parent if chosen is not None else path
    if not (path / "overrides.yaml").is_file() or (chosen is not None and not _is_checkpoint(chosen)):
        raise ConfigError(
            f"Expected resume= a run directory, a checkpoint in it, an MLflow run id or last, but found no run in "
            f"{name}. Runs lie under {rundir.RUNS}/<scenario>/."
        )
    return path, chosen


def _is_checkpoint(path: Path) -> bool:
    from medusa_cl.snapshot import every  # brings torch, which a misspelt key need not wait for

    return path in every(path.parent)


def _last() -> Path:
    beside = {Path(folder) for run in _runs() for folder in compared(run).values()}
    alone = [run for run in _runs() if run.resolve() not in beside]
    if not alone:
        raise ConfigError(f"resume=last, but there is no run under {rundir.RUNS}/ yet.")
    last = max(alone, key=lambda run: (run / "overrides.yaml").stat().st_mtime_ns)
    if (last.parent / "study.json").is_file():
        raise ConfigError(
            f"resume=last is a member of the study in {last.parent}. The command that began the study goes on with it."
        )
    return last


def _tracked(run_id: str, ask_tracker: Callable[[str], str | None]) -> Path:
    for run in _runs():
        note = kept.read(run / "tracking.json") if (run / "tracking.json").is_file() else None
        if isinstance(note, dict) and (note.get("tracker") or {}).get("run_id") == run_id:
            return run
    known = ask_tracker(run_id)
    if known is None:
        raise ConfigError(
            f"resume={run_id}: no run under {rundir.RUNS}/ has that MLflow run id, nor does MLflow know it."
        )
    return Path(known)


def _runs() -> Iterator[Path]:
    for depth in ("*/*", "*/*/*"):  # a study's members lie in its folder
        yield from (path.parent for path in rundir.RUNS.glob(f"{depth}/overrides.yaml"))


def line(run_dir: Path, processes: int = 1) -> str:
    """Return the command that goes on with a run."""
    several = f"torchrun --nproc_per_node={processes} -m medusa_cl.run trainer=ddp"
    return f"{several if processes > 1 else 'python -m medusa_cl.run'} resume={shlex.quote(str(run_dir))}"


def compared(run_dir: Path) -> dict[str, str]:
    """Return where the runs lie that are compared to this one, by their line in `compare`."""
    path = run_dir / COMPARED
    found = kept.read(path, sealed=True) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def note_compared(run_dir: Path, overrides: str, folder: Path) -> None:
    """Take note of where a run lies that is compared to this one."""
    kept.write(run_dir / COMPARED, {**compared(run_dir), overrides: str(folder.resolve())})


def check_same(was: Mapping[str, Any], now: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to go on with a run under another configuration.

    Args:
        was: The configuration of the run, plain data.
        now: The one it is to go on with.
        run_dir: The run directory.

    Raises:
        SnapshotError: They differ in what decides results; says in what, and what to do.
    """
    before, after = dict(_leaves(was)), dict(_leaves(now))
    differing = [
        key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key) and not _free(key)
    ]
    if not differing:
        return
    shown = "; ".join(f"{key}: {_shown(before, key)} in the run, {_shown(after, key)} now" for key in differing[:8])
    shown += f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
    advice = "Leave that out to go on as it was, or learn anew in another directory."
    if any(key.startswith("scenario.stream") for key in differing):
        advice += f" More tasks are learnt by extend={run_dir} scenario.stream=[...], once it is finished."
    raise SnapshotError(f"{run_dir} is a run of another configuration: {shown}. {advice}")


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, json.dumps(value)


def _shown(leaves: Mapping[str, str], key: str) -> str:
    return leaves.get(key, "nothing").strip('"')
