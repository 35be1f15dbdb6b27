"""What was learnt, found by name: where predict, export and heads begin. Needs neither Avalanche nor MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import kept, rundir
from medusa_cl.errors import ConfigError, TaskError, unknown

if TYPE_CHECKING:
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.tasks import DenseTask

MODEL, DESCRIPTION = "model", "model.json"


@dataclass(frozen=True)
class Trained:
    """A model on disk.

    Attributes:
        model: The directory with model.json and model.safetensors.
        run: The run directory that it is of; None for a model by itself.
    """

    model: Path
    run: Path | None = None

    def load(self, tasks: Mapping[str, DenseTask] | None = None) -> MultiTaskModel:
        """Return the model, on the CPU, in eval mode.

        Args:
            tasks: Tasks by name, where they are not built-in ones.

        Raises:
            WeightsError: A file is missing or damaged.
            TaskError: A task is none of the built-in ones, and `tasks` lacks it.
        """
        from medusa_cl.checkpoint import load_model

        return load_model(self.model, tasks).eval()

    def summary(self) -> dict[str, Any] | None:
        """Return the run's summary.json; None where there is no finished run.

        Raises:
            DataError: It is damaged.
        """
        finished = self.run is not None and (self.run / kept.SUMMARY).is_file()
        return kept.read_summary(self.run) if finished and self.run is not None else None


def find(name: str, key: str = "run") -> Trained:
    """Find a model.

    Args:
        name: A run directory, a directory with model.json, "last" for the latest finished run under runs/, or the
            MLflow run id of a run under runs/.
        key: The key that named it, for messages.

    Raises:
        ConfigError: There is no such model.
    """
    run = rundir.find_run(name, key) if name == "last" else _by_id(name) or Path(name)
    if (run / MODEL / DESCRIPTION).is_file():
        return Trained(run / MODEL, run)
    if (run / DESCRIPTION).is_file():
        return Trained(run, run.parent if run.name == MODEL and (run.parent / "overrides.yaml").is_file() else None)
    raise ConfigError(
        f"Expected {key}= a run directory, a directory with {DESCRIPTION}, last, or the MLflow id of a run under "
        f"{rundir.RUNS}/, but found no model in {name}."
    )


def _by_id(name: str) -> Path | None:
    for note in rundir.RUNS.glob("*/*/tracking.json"):
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # of another run, or damaged: its directory can still be named
        content = known.get("content", known) if isinstance(known, dict) else {}
        tracker = content.get("tracker") if isinstance(content, dict) else None
        if isinstance(tracker, dict) and tracker.get("run_id") == name:
            return note.parent
    return None


def chosen(known: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the tasks wanted, each once and in the order wanted; all known ones for None.

    Raises:
        TaskError: The model has no such task.
    """
    for name in wanted or ():
        if name not in known:
            raise TaskError(unknown("task", name, known))
    return tuple(dict.fromkeys(wanted or known))
