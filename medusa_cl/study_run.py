"""mode=study: strategies and seeds as runs of one comparison, each kept; the same command goes on with it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from medusa_cl import job, kept, rundir, stopping
from medusa_cl.build import (
    arrange_found,
    arrange_stream,
    check,
    dependencies,
    instantiate,
    resolve_device,
    run_place,
    scenario_of,
    tracker_of,
)
from medusa_cl.configs.check import check_overrides
from medusa_cl.continuing import goes_on
from medusa_cl.errors import ConfigError, MedusaError, MissingDataError

if TYPE_CHECKING:
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.study import Member, Study
    from medusa_cl.tracking import RunRecorder

NOT_OF_MEMBERS = ("mode", "study", "out", "overwrite")
SAID_BY_MEMBERS = ("strategy", "plugins", "seed", "compare", "references", "base")


def run_study(cfg: DictConfig, overrides: list[str]) -> float | None:
    """Compute every member of a study that is not kept yet, and report on all; the same command goes on with it."""
    from medusa_cl import study
    from medusa_cl.tracking import RunRecorder
    from medusa_cl.tracking.comparison import study_report

    common = _common(overrides)
    tasks = [*(cfg.scenario.base or ()), *(cfg.scenario.stream or ())] if cfg.study.leave_one_out else ()
    if cfg.study.leave_one_out and not tasks:
        raise ConfigError("study.leave_one_out needs the tasks by name: set scenario.base and scenario.stream.")
    comparison = study.Study(study.plan(cfg.study.members, cfg.study.seeds, cfg.study.orders, tasks))
    configs = {member: _member_config(common, member) for member in comparison.planned}
    places = _Places()
    found = {member: places.of(chosen) for member, chosen in configs.items()}
    folder = _study_folder(cfg, common)
    console, recorder = job.own_console(), RunRecorder(folder, tracker_of(cfg))
    config = OmegaConf.to_container(cfg, resolve=True)
    recorder.start(cast(Any, config), {"study": ", ".join(comparison.names), "scenario": cfg.scenario.name})
    status = "FAILED"
    _write_study(comparison, folder)  # by which the folder is known, should this be stopped
    try:
        for number, (member, chosen) in enumerate(configs.items(), 1):
            console.rule(f"{number}/{len(configs)} {member.label}", style="dim", align="left")
            place = found[member]
            note = kept.read(place, sealed=True) if isinstance(place, Path) else None
            if isinstance(place, MedusaError):
                outcome = study.Outcome(member, failure=str(place))
            elif note is not None:
                there = note["run_dir"] if Path(note["run_dir"]).is_dir() else ""
                outcome = study.Outcome(member, note["summary"], there, kept=True)
            else:
                outcome = _computed(chosen, member, folder, recorder)
            comparison.outcomes.append(outcome)
            _write_study(comparison, folder)
        status = "FAILED" if any(o.failure for o in comparison.outcomes) else "FINISHED"
    except stopping.Stopped as stop:
        status = "KILLED"
        stop.__notes__ = [f"The same command goes on: {len(comparison.outcomes)} of {len(configs)} runs are kept."]
        raise
    finally:
        recorder.metrics(comparison.metrics(), 0)
        recorder.table(comparison.table(), "study")
        recorder.finish(status)
    console.print(study_report(comparison.report(), folder, recorder.ui_line()))
    if failures := [o for o in comparison.outcomes if o.failure]:
        raise ConfigError("; ".join(f"{o.member.label}: {o.failure}" for o in failures))
    return None


def _common(overrides: Sequence[str]) -> list[str]:
    """Return what all members are given."""
    keys = {o: re.split(r"[=.]", o.lstrip("+~"))[0] for o in overrides}
    for override, key in keys.items():
        if key in SAID_BY_MEMBERS:
            raise ConfigError(
                f'In a study "{override}" would make all members alike. Say it of a member, as in '
                'study.members=[medusa,finetune+ewc,"medusa strategy.freeze=stages"], and seeds in study.seeds=[0,1,2].'
            )
    return [override for override, key in keys.items() if key not in NOT_OF_MEMBERS]


def _member_config(common: Sequence[str], member: Member) -> DictConfig:
    check_overrides(member.overrides)
    given = ["references=none", "compare=[]", f"seed={member.seed}"]
    own = [*common, *_groups_of(member), *member.overrides, *given]
    cfg = hydra.compose("config", own)
    together = cfg.scenario.get("order") == "joint"  # all tasks together come in no order
    if arrangement := [o for o in member.arrangement if not (together and "held_out" not in o)]:
        cfg = hydra.compose("config", [*own, *arrangement])
    check(cfg)
    return cfg


def _groups_of(member: Member) -> list[str]:
    """Return the head or backbone that belongs to a member's strategy: what all are given must not take its place."""
    names = [o.partition("=")[2] for o in member.overrides if o.startswith("strategy=")]
    file = Path(__file__).parent / "configs" / "strategy" / f"{names[0] if names else ''}.yaml"
    content: Any = OmegaConf.load(file) if file.is_file() else {}
    defaults = content.get("defaults", [])
    return [f"{key.rpartition('/')[2]}={value}" for entry in defaults for key, value in entry.items()]


def _computed(cfg: DictConfig, member: Member, folder: Path, recorder: RunRecorder) -> Any:
    from medusa_cl.study import Outcome

    place = folder / member.label
    cfg.out = str(place)
    if "parent" in cfg.tracking:
        cfg.tracking.parent = recorder.run_id
    given = [*member.overrides, *member.arrangement, f"seed={member.seed}"]
    try:
        if stopped := goes_on(place, cfg):
            summary = job.run(stopped, given, folder=place)
        else:
            cfg.overwrite = (place / "overrides.yaml").is_file()
            summary = job.run(cfg, given)
    except (MedusaError, RuntimeError) as error:  # RuntimeError: torch is out of memory, for instance
        return Outcome(member, failure=str(error))
    return Outcome(member, summary, summary["run_dir"])


def _study_folder(cfg: DictConfig, common: Sequence[str]) -> Path:
    if cfg.out:
        folder = Path(cfg.out)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "study.json").is_file():
            raise ConfigError(f"out={folder} holds something else than this study. Choose another one.")
        return folder
    text = json.dumps([OmegaConf.to_container(cfg.study), sorted(common)])
    return rundir.RUNS / str(cfg.scenario.name) / f"study-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Places:
    """Where finished runs are noted, by what they depend on; each data set and each net is hashed once."""

    def __init__(self) -> None:
        self._scenarios: dict[str, DenseScenario] = {}
        self._weights: dict[str, str] = {}

    def of(self, cfg: DictConfig) -> Path | MedusaError:
        """Return where it is noted that this run was finished, or why it cannot be run.

        Raises:
            MissingDataError: The data is not there, for this run or any other.
        """
        try:
            return self._found(cfg)
        except MissingDataError:
            raise
        except MedusaError as error:
            return error

    def _found(self, cfg: DictConfig) -> Path:
        arrange_stream(cfg := copy.deepcopy(cfg))
        data, weights = OmegaConf.to_yaml(cfg.scenario), OmegaConf.to_yaml(cfg.backbone)
        if data not in self._scenarios:
            self._scenarios[data] = scenario_of(cfg)
        if weights not in self._weights:
            self._weights[weights] = instantiate(cfg.backbone).weights_hash()
        scenario, device = self._scenarios[data], resolve_device(cfg.trainer.device)
        arrange_found(cfg, scenario)
        return run_place(cfg, scenario, dependencies(cfg, device, scenario, self._weights[weights]))


def _write_study(comparison: Study, folder: Path) -> None:
    """Write what is known so far: study.json and study.md."""
    from medusa_cl.tracking.comparison import markdown

    report = comparison.report()
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "study.json").write_text(text + "\n", encoding="utf-8")
    (folder / "study.md").write_text(markdown(report), encoding="utf-8")
