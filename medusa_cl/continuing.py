"""The configuration of a run that goes on: by resume= as it was, by extend= with other tasks."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from medusa_cl import distributed, resume, rundir
from medusa_cl.build import arrange_stream
from medusa_cl.configs.sweep import job_number
from medusa_cl.errors import ConfigError, DataError, MedusaError, SnapshotError

if TYPE_CHECKING:
    from medusa_cl.snapshot import Snapshot
    from medusa_cl.start import Start

# What may be set with extend=, and the groups any key of which may.
EXTENDS = ("extend", "remove", "out", "overwrite", "references", "scenario.stream", "head", "head_width")
EXTENDS_GROUPS = ("trainer", "tracking")
LISTED = {"order": "listed", "held_out": None}  # the stream as it is written


def resumed(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str], Path, Path | None]:
    """Return how a run that was stopped was configured, of what overrides, where it lies, and the checkpoint chosen."""
    from medusa_cl.tracking.mlflow import run_dir_of

    if job_number() is not None:
        raise ConfigError("A sweep (-m) cannot have resume=: go on with its runs one by one.")
    ask = functools.partial(run_dir_of, uri=cfg.tracking.get("uri"))
    folder, chosen = distributed.decided(functools.partial(resume.find, str(cfg.resume), ask))
    theirs = as_it_was(folder, cfg, overrides)
    begun = read_yaml(folder / "overrides.yaml")
    return theirs, [str(override) for override in begun], folder, chosen


def as_it_was(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a run that is to go on, with what may be set anew.

    Raises:
        SnapshotError: Something else was to be set to another value than the run has.
    """
    theirs: Any = read_yaml(folder / "config.yaml")
    keys = [override.split("=")[0].lstrip("+~") for override in overrides]
    given = [
        "trainer.distributed" if override == "trainer=ddp" else key
        for key, override in zip(keys, overrides, strict=True)
    ]
    now = copy.deepcopy(cfg)
    arrange_stream(now)
    asked = [str(key) for key in theirs] if "experiment" in given else [key for key in given if key != "resume"]
    was, wanted = ({key: _plain_value(one, key) for key in asked} for one in (theirs, now))
    resume.check_same(was, wanted, folder)
    for key in given:
        if key != "resume" and any(key == free or key.startswith(f"{free}.") for free in resume.FREE):
            OmegaConf.update(theirs, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    theirs.resume = str(folder)
    return cast(DictConfig, theirs)


def read_yaml(path: Path) -> Any:
    """Return what a run was begun with.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} is damaged: {error}. Put it back as it was, or learn anew.") from error


def _plain_value(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def goes_on(place: Path, cfg: DictConfig) -> DictConfig | None:
    """Return the configuration of a member that was stopped, where it can go on as it is asked for now."""
    if not (place / "config.yaml").is_file() or is_finished(place):
        return None
    theirs: Any = OmegaConf.load(place / "config.yaml")
    now = copy.deepcopy(cfg)
    arrange_stream(now)
    try:
        resume.check_same(plain_config(theirs), plain_config(now), place)
    except MedusaError:
        return None
    theirs.tracking = cfg.tracking
    return cast(DictConfig, theirs)


def is_finished(folder: Path) -> bool:
    """Return whether nothing is left to do for a run, nor to be told to its tracker."""
    from medusa_cl.tracking import TRACKING_FILE

    note = _read_json(folder / TRACKING_FILE)
    return (folder / "summary.json").is_file() and note.get("status") == "FINISHED"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def saved_of(cfg: DictConfig, folder: Path, chosen: Path | None) -> Snapshot | None:
    """Read what a run was when it stopped; None where nothing was saved yet.

    Raises:
        SnapshotError: It is damaged, of another configuration, or of another number of processes.
    """
    from medusa_cl import snapshot

    found = snapshot.read(chosen) if chosen is not None else snapshot.newest(folder / resume.CHECKPOINTS)
    if found is not None:
        resume.check_same(found.tree["config"], plain_config(cfg), folder)
        if found.tree["world"] != distributed.world():
            raise SnapshotError(
                f"{folder} was learnt by {found.tree['world']} processes, but {distributed.world()} are to go on with "
                "it. Start as many as before."
            )
    return found


def extended(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Start]:
    """Return the configuration of a finished run, with the tasks to be added or removed, and where it starts."""
    from medusa_cl.start import from_run

    _check_extension(overrides)
    folder = rundir.find_run(str(cfg.extend), "extend")
    start = from_run(folder, cfg.remove)
    theirs: Any = OmegaConf.load(folder / "config.yaml")
    given = {o.split("=")[0].lstrip("+~") for o in overrides}
    own = ["out", "overwrite", "references", "tracking", "remove"]
    own += [key for key in given if key.split(".")[0] in ("trainer", "head", "head_width")]
    for key in own:
        OmegaConf.update(theirs, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    if "head_width" in given and "width" in theirs.head:
        theirs.head.width = cfg.head_width
    new = list(cfg.scenario.stream) if "scenario.stream" in given else []
    theirs.scenario.stream = [task for task in theirs.scenario.stream if task not in start.removed] + new
    theirs.scenario.update({key: value for key, value in LISTED.items() if key in theirs.scenario})
    theirs.update({"extend": str(folder), "base": None, "compare": []})
    return cast(DictConfig, theirs), start


def _check_extension(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key not in EXTENDS and key.split(".")[0] not in EXTENDS_GROUPS:
            raise ConfigError(
                f'extend= goes on with a finished run as it was configured, so "{key}" cannot be set. '
                f"What can: {', '.join(EXTENDS[1:])}, trainer.*, tracking.*"
            )


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, without where it is recorded, which may hold secrets."""
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in content.items() if key != "tracking"}
