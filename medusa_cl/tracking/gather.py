"""The finished runs that a user means by directories, patterns, studies and names, each once."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medusa_cl import kept, resume, rundir, trained
from medusa_cl.errors import ConfigError, DataError
from medusa_cl.tracking import TRACKING_FILE, delivery_note, files

STUDY = "study.json"
LEVELS = 3  # down to members of studies: runs/<scenario>/<study>/<run>
PARTS = (
    *("scenario", "strategy", "seed", "base", "stream", "primary", "matrix"),
    *("forgetting", "forgetting_percent", "transfer", "relative", "cost"),
)
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Found:
    """A finished run.

    Attributes:
        place: Its directory.
        summary: Its summary.json.
        config: Its configuration.
        name: What the study calls it by which it was found; else empty.
        time: When its summary was written, in nanoseconds.
    """

    place: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    name: str = ""
    time: int = 0


def gather(names: Sequence[str], say: Callable[[str], None]) -> list[Found]:
    """Return finished runs.

    Args:
        names: Of each a run directory, a study's directory, a folder of these, or of such folders ("runs"), a pattern
            ("runs/*"), "last" for the latest run under runs/, or the MLflow run id of a run there.
        say: Is told what is left out, and why.

    Returns:
        The runs in the order named; those of a pattern or a folder by name.

    Raises:
        ConfigError: A name leads nowhere, or to no finished run at all.
    """
    places: dict[Path, tuple[Path, str]] = {}
    for name in names:
        for place, member in _places(name, say):
            places.setdefault(place.resolve(), (place, member))
    found = [run for place, member in places.values() if (run := _read(place, member, say)) is not None]
    if not found:
        raise ConfigError(f"Found no finished run in runs={','.join(names)}. {_advice()}")
    return found


def _advice() -> str:
    """Say where finished runs are."""
    there = [path.parent for path in (*rundir.RUNS.glob("*/*/summary.json"), *rundir.RUNS.glob("*/*/study.json"))]
    folders = sorted({f"runs={place.parent}" for place in there})
    known = f"There are some in {', '.join(folders[:8])}." if folders else f"There is none under {rundir.RUNS}/ yet."
    return f"Expected directories with a {kept.SUMMARY}, or folders of them. {known}"


def _places(name: str, say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    if name == "last":
        yield rundir.find_run(name, "runs"), ""
    elif Path(name).is_dir():
        found = list(_inside(Path(name), say))
        if not found and not (Path(name) / STUDY).is_file():
            raise ConfigError(f"Expected runs= run directories, but {name} is none and holds none. {_advice()}")
        yield from found
    elif glob.has_magic(name):
        matches = sorted(Path(path) for path in glob.glob(name) if Path(path).is_dir())
        if not matches:
            raise ConfigError(f"No directory matches runs={name}. {_advice()}")
        for path in matches:
            yield from _inside(path, say)
    elif _MLFLOW_ID.fullmatch(name) and (run := trained.find(name, "runs").run) is not None:
        yield run, ""
    else:
        raise ConfigError(
            f"Expected runs= run directories, folders of runs, a study, patterns of them, last, or MLflow ids of runs "
            f"under {rundir.RUNS}/, but found nothing at {name}."
        )


def _inside(folder: Path, say: Callable[[str], None], levels: int = LEVELS) -> Iterator[tuple[Path, str]]:
    """The runs of one directory: itself, its study's, or those in it."""
    if (folder / STUDY).is_file():
        yield from _studied(folder, say)
    elif _is_run(folder):
        yield folder, ""
    elif levels:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _inside(path, say, levels - 1)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (kept.SUMMARY, TRACKING_FILE, "overrides.yaml"))


def _studied(folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """The runs of a study by its study.json; a run that was computed before may lie elsewhere."""
    try:
        report = json.loads((folder / STUDY).read_text(encoding="utf-8"))
        runs = [(name, entry["run_dir"]) for name, member in report["members"].items() for entry in member["runs"]]
        missing = [*report["missing"], *report.get("failures", {})]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / STUDY} is damaged ({error!r}). The study's command writes it anew.") from error
    for name, place in runs:
        path = next((p for p in (folder / Path(place).name, Path(place)) if place and _is_run(p)), None)
        if path is None:
            say(f"{folder}: a run of {name} is gone ({place or 'its directory was deleted'}), and left out.")
        else:
            yield path, name
    for label in dict.fromkeys(missing):
        say(f"{folder}: {label} is not finished, and left out.")


def _read(place: Path, member: str, say: Callable[[str], None]) -> Found | None:
    if not (place / kept.SUMMARY).is_file():
        say(f"{place} is not finished, and left out.")
        return None
    try:
        summary = kept.read_summary(place)
        if lacking := [part for part in PARTS if part not in summary]:
            raise DataError(f"its {kept.SUMMARY} is of another version, without {', '.join(lacking)}.")
        config = _config(place)
        time = (place / kept.SUMMARY).stat().st_mtime_ns
        return Found(place, _with_begun(summary, config, place), config, member, time)
    except DataError as error:
        say(f"{place} is left out: {error}")
        return None


def _with_begun(summary: Mapping[str, Any], config: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
    """Fill in what earlier versions did not write: a run made by compare= learnt on the base of the run beside it."""
    found = summary.get("provenance") or {}
    base = config.get("base")
    if "begun" in found or config.get("extend") or base in (None, "auto"):
        return summary
    beside = {Path(folder).resolve() for folder in resume.compared(Path(base)).values()}
    return {**summary, "provenance": {**found, "begun": None}} if place.resolve() in beside else summary


def _config(place: Path) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = delivery_note(place)["config"]
    except FileNotFoundError:
        config = files.rebuilt_note(place)["config"]
    return config
