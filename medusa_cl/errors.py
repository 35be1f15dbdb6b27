"""The errors users meet: each says what it got, what it expected and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class MedusaError(Exception):
    """Base of every error that a user can mend; `exit_code` is the process's status when it ends a verb."""

    exit_code = 1


class ConfigError(MedusaError):
    """A key, a name or a value of the configuration is wrong."""


class DataError(MedusaError):
    """A file or a directory of data is damaged, foreign or cannot be written."""


class MissingDataError(DataError):
    """The data asked for is not on this machine."""

    exit_code = 2


class WeightsError(MedusaError):
    """Weights are not to be had, damaged, or belong to another backbone."""


class SnapshotError(MedusaError):
    """A checkpoint of a run is damaged, or does not fit the run."""


class TaskError(MedusaError):
    """A task is learnt twice, unknown to the model, or missing from the data."""


class TrainingError(MedusaError):
    """Training cannot go on, for instance because a loss is not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""


def unknown(what: str, got: str, known: Iterable[str], limit: int = 20) -> str:
    """Return the message for an unknown name: what was got, what is known, the nearest known one."""
    names = sorted(str(k) for k in known)
    shown = ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    return f'Unknown {what} "{got}".{nearest(got, names)} Known: {shown}.'


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as it can be printed on one line, whatever bytes its name has."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
