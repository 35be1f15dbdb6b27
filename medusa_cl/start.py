"""What a run starts with: the base that another one learnt, or all of a finished run but what is to be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medusa_cl import kept, rundir
from medusa_cl.errors import ConfigError, TaskError, unknown

if TYPE_CHECKING:
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.scenarios.dense import DenseScenario

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Start:
    """What has been learnt already.

    Attributes:
        model: The directory of the model.
        experiences: How many experiences of the stream it has learnt.
        said: What it is, for the header.
        removed: Tasks of the model that the run does without.
        rows: Rows of the task matrix that are known; the others are evaluated.
        seconds: Training seconds of what was learnt, by experience, where known.
        rates: Images a second, likewise.
        weights_hash: The hash of the weights before anything was learnt, where known.
        data_hash: The hash of the data it was learnt on, by split; empty where the data may be another.
        parent: The run directory it comes from.
        references: Whether the parent's references are this run's too.
    """

    model: Path
    experiences: int
    said: str
    removed: tuple[str, ...] = ()
    rows: Sequence[Mapping[str, float | None]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    weights_hash: str | None = None
    data_hash: Mapping[str, str] = field(default_factory=dict)
    parent: Path | None = None
    references: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        content = asdict(self) | {"model": str(self.model), "parent": self.parent and str(self.parent)}
        return content | {"removed": list(self.removed), "rows": [dict(row) for row in self.rows]}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Start:
        """Return what `plain` was made of."""
        places = {"model": Path(content["model"]), "parent": content["parent"] and Path(content["parent"])}
        return cls(**{**content, **places, "removed": tuple(content["removed"])})

    def check(self, model: MultiTaskModel, scenario: DenseScenario, backbone: str) -> None:
        """Refuse a model that is not what the stream begins with.

        Raises:
            ConfigError: It has another backbone or other tasks.
        """
        if self.data_hash and dict(self.data_hash) != scenario.content_hash:
            raise ConfigError(
                f"The data has changed since {self.parent} was learnt, so its results cannot stand beside new ones. "
                "Put the data back, or learn the stream anew."
            )
        expected = [task for group in scenario.groups[: self.experiences] for task in group]
        if model.backbone.name != backbone:
            raise ConfigError(f"{self.model} has backbone {model.backbone.name}, but backbone.name={backbone}.")
        if set(model.tasks) != set(expected):
            raise ConfigError(
                f"{self.model} has learnt {', '.join(model.tasks)}, but scenario.base is {', '.join(expected)}. "
                "Make them equal."
            )


def from_base(name: str) -> Start:
    """Start from the base tasks that a run has learnt: a run directory, a model in it, or "last".

    Raises:
        ConfigError: There is no such model.
        DataError: The summary of its run is damaged.
    """
    path = rundir.find_base(name)
    run = path.parents[1] if path.parts[-2:] == rundir.BASE.parts else None
    done = run is not None and (run / kept.SUMMARY).is_file()  # not yet where the run goes on beside this one
    summary = kept.read_summary(run) if run and done else None
    before = summary["provenance"]["weights_hash"] if summary else None
    said = f"starts from {path}: its base tasks are not learnt again"
    return Start(path, 1, said, weights_hash=before, parent=run, references=True)


def keep_base(place: Path, model: Path, seconds: float, rate: float, weights_hash: str) -> None:
    """Note where a base lies, for later runs that would learn the same one."""
    content = {"model": str(model.resolve()), "hash": kept.file_hash(model / WEIGHTS)}
    kept.write(place, content | {"seconds": seconds, "rate": rate, "weights_hash": weights_hash})


def from_kept(place: Path) -> Start | None:
    """Start from the base noted there; None if none is, or it is no longer what it was."""
    note = kept.read(place, sealed=True)
    model = Path(note["model"]) if note else None
    if note is None or model is None or not all((model / name).is_file() for name in (WEIGHTS, DESCRIPTION)):
        return None
    if kept.file_hash(model / WEIGHTS) != note["hash"]:
        return None
    said = f"as learnt before, in {_short(model)} (base=null learns it anew)"
    known: dict[str, Any] = {"seconds": {"base": note["seconds"]}, "rates": {"base": note["rate"]}}
    return Start(model, 1, said, **known, weights_hash=note["weights_hash"])


def from_run(folder: Path, removed: Sequence[str] = ()) -> Start:
    """Start from all that a finished run has learnt, but the tasks removed.

    Args:
        folder: The run directory.
        removed: New tasks of that run; only what was learnt on a frozen backbone can be taken out again.

    Raises:
        ConfigError: A task to remove is a base task, or others have learnt from it.
        TaskError: There is no such task.
        DataError: The summary is damaged.
    """
    summary = kept.read_summary(folder)
    stays = [task for task in summary["stream"] if task not in removed]
    _check_removable(summary, removed)
    values, after = summary["matrix"]["values"], summary["matrix"]["after"]
    rows = []
    for k, label in enumerate(after):
        if label not in removed:
            row = {task: column[k] for task, column in values.items() if task not in removed}
            rows.append({task: value for task, value in row.items() if _learnt(summary, task) <= k})
    cost = summary["cost"]
    return Start(
        folder / "model",
        1 + len(stays),
        f"goes on from {_short(folder)}" + (f", without {', '.join(removed)}" if removed else ""),
        tuple(removed),
        rows,
        {label: s for label, s in cost["train_seconds"].items() if label not in removed},
        {label: r for label, r in cost["images_per_second"].items() if label not in removed},
        summary["provenance"]["weights_hash"],
        summary["provenance"]["data_hash"],
        folder,
    )


def _check_removable(summary: Mapping[str, Any], removed: Sequence[str]) -> None:
    for task in removed:
        if task in summary["base"]:
            raise ConfigError(
                f'"{task}" is a base task: the backbone has learnt from it, so a run without it is another run. '
                "Remove tasks of the stream, or learn anew with another scenario.base."
            )
        if task not in summary["stream"]:
            raise TaskError(unknown("task to remove", task, summary["stream"]))
        if not summary.get("frozen"):
            raise ConfigError(
                f'"{task}" was learnt with a trainable backbone: what came after has learnt from it and cannot be had '
                "without it. Only tasks learnt under strategy.freeze=backbone can be removed."
            )


def _learnt(summary: Mapping[str, Any], task: str) -> int:
    return 0 if task in summary["base"] else 1 + list(summary["stream"]).index(task)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
