"""Learn a stream of dense tasks: `python -m medusa_cl.run [scenario=...] [strategy=...] [key=value ...]`.

This is where configuration ends: everything below gets plain values, objects and functions.
"""

from __future__ import annotations

import copy
import errno
import functools
import hashlib
import json
import multiprocessing
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
import hydra.utils
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from medusa_cl import __version__, distributed, kept, resume, rundir, stopping
from medusa_cl.build import (
    MEDUSA_HEAD,
    arrange_found,
    arrange_stream,
    base_place,
    begins_alike,
    check,
    dependencies,
    head_factories,
    head_factory,
    instantiate,
    loaded_model,
    new_model,
    plugins_of,
    resolve_device,
    resumed_model,
    run_place,
    scenario_of,
    strategy_factory,
    tracker_of,
)
from medusa_cl.configs.check import check_overrides
from medusa_cl.configs.sweep import reported
from medusa_cl.errors import ConfigError, DataError, MedusaError, MissingDataError, SnapshotError, unknown

if TYPE_CHECKING:
    from medusa_cl.keeper import Keeper
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.results import TaskMatrix
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.snapshot import Snapshot
    from medusa_cl.start import Start
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.strategies.references import Recipe
    from medusa_cl.study import Member, Study
    from medusa_cl.tracking import RunRecorder

Values = dict[str, dict[str, float | None]]
MODES = ("run", "study")
MEDUSA = "medusa_cl.strategies.medusa.Medusa"
# What may be set with extend=, and the groups any key of which may.
EXTENDS = ("extend", "remove", "out", "overwrite", "references", "scenario.stream", "head", "head_width")
EXTENDS_GROUPS = ("trainer", "tracking")
ONE_BY_ONE = (
    "Processes that train together learn one run, with those of compare=. Start the runs of a sweep or a study one "
    "after the other, each by torchrun, or leave torchrun and trainer.distributed out."
)
LISTED = {"order": "listed", "held_out": None}  # the stream as it is written
_STOP = stopping.StopRequest()


def main() -> None:
    """Run the verb; errors a user can mend are one message and an exit status, not a traceback."""
    distributed.hush()
    several = distributed.launched() > 1
    with distributed.ending_together() if several else stopping.listening(_STOP):
        try:
            check_overrides(sys.argv[1:])
        except MedusaError as error:
            if several:
                raise
            _fail(error)
        try:
            with reported():
                _hydra_main()
        except stopping.Stopped as stop:
            notes = getattr(stop, "__notes__", ["Nothing was learnt yet: the same command begins anew."])
            print("\n".join(["Stopped.", *notes]), flush=True)
            raise
    distributed.stop()


@hydra.main(config_path="pkg://medusa_cl.configs", config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    overrides = list(HydraConfig.get().overrides.task)
    together = cfg.trainer.distributed or distributed.launched() > 1
    if together and _member() is None:
        with distributed.ending_together():
            _join(cfg)
            return _verb(cfg, overrides)
    try:
        if together:
            raise ConfigError(ONE_BY_ONE)
        return _verb(cfg, overrides)
    except MedusaError as error:
        if _member() is not None:
            raise  # one member of a sweep: the others go on
        _fail(error)


def _verb(cfg: DictConfig, overrides: list[str]) -> float | None:
    if cfg.mode not in MODES:
        raise ConfigError(unknown("mode", str(cfg.mode), MODES))
    if cfg.mode == "study" and (cfg.extend or cfg.remove):
        raise ConfigError("mode=study learns whole streams: leave extend= and remove= out.")
    if cfg.remove and not cfg.extend:
        raise ConfigError(f"remove={list(cfg.remove)} takes tasks out of a finished run: name it with extend=.")
    if cfg.resume:
        return _with_comparisons(*_resumed(cfg, overrides))
    return _study(cfg, overrides) if cfg.mode == "study" else _with_comparisons(cfg, overrides)


def _resumed(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str], Path, Path | None]:
    """Return how a run that was stopped was configured, of what overrides, where it lies, and the checkpoint chosen."""
    from medusa_cl.tracking.mlflow import run_dir_of

    if _member() is not None:
        raise ConfigError("A sweep (-m) cannot have resume=: go on with its runs one by one.")
    ask = functools.partial(run_dir_of, uri=cfg.tracking.get("uri"))
    folder, chosen = distributed.decided(functools.partial(resume.find, str(cfg.resume), ask))
    theirs = _as_it_was(folder, cfg, overrides)
    begun = _read_yaml(folder / "overrides.yaml")
    return theirs, [str(override) for override in begun], folder, chosen


def _as_it_was(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a run that is to go on, with what may be set anew.

    Raises:
        SnapshotError: Something else was to be set to another value than the run has.
    """
    theirs: Any = _read_yaml(folder / "config.yaml")
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


def _read_yaml(path: Path) -> Any:
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


def _join(cfg: DictConfig) -> None:
    """Join the processes that torchrun has started, for one run."""
    if not cfg.trainer.distributed:
        raise ConfigError(
            f"torchrun has started {distributed.launched()} processes, but each would train alone. Add trainer=ddp "
            "(or trainer.distributed=true), or leave torchrun out."
        )
    if cfg.mode == "study":
        raise ConfigError(ONE_BY_ONE)
    # "cuda" is the device of each process's own from now on.
    cfg.trainer.device = distributed.start(resolve_device(cfg.trainer.device)).split(":")[0]
    if cfg.trainer.processes > 1:
        _console().print("trainer.processes is 1 under trainer.distributed: all processes learn the references too")
        cfg.trainer.processes = 1


def _console() -> Any:
    """Return the console of a run; only one of several processes speaks."""
    from medusa_cl.tracking.console import make_console

    console = make_console()
    console.quiet = not distributed.is_main()
    return console


def _fail(error: MedusaError) -> NoReturn:
    print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
    raise SystemExit(error.exit_code)


def _with_comparisons(
    cfg: DictConfig, overrides: list[str], folder: Path | None = None, chosen: Path | None = None
) -> float | None:
    """Learn the run and those it is compared to, then report on each: references may be learnt beside all of them."""
    first = learn_stream(cfg, overrides, folder=folder, chosen=chosen)
    with first.references_beside(), _closing(first) if isinstance(first, Run) else nullcontext():
        others = [_learn_compared(first, cfg, overrides, line) for line in cfg.get("compare") or []]
        summaries = [finish(run) for run in (first, *others)]
    objective = summaries[0]["objective"]
    return None if objective is None else float(objective)


def _learn_compared(first: Run | Finished, cfg: DictConfig, overrides: Sequence[str], line: str) -> Run | Finished:
    """Learn a run that is compared to the first one, or go on with it."""
    same = [o for o in overrides if o.split("=")[0] not in ("out", "compare", "overwrite")]
    chosen = [*same, *line.split(), "compare=[]"]
    folder = distributed.agreed(resume.compared(first.run_dir).get(line))
    if folder is not None and not Path(folder).is_dir():
        first.console.print(f"{folder}, where the run with {line} was, is gone: it is learnt anew", markup=False)
    elif folder is not None:
        theirs: Any = _read_yaml(Path(folder) / "config.yaml")
        for key in ("tracking", "trainer.device", "trainer.workers"):
            OmegaConf.update(theirs, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
        return learn_stream(cast(DictConfig, theirs), chosen, folder=Path(folder))
    other = hydra.compose("config", chosen)
    if begins_alike(other, cfg):
        other.base = distributed.agreed(str(first.run_dir))
    other.trainer.threads = cfg.trainer.threads
    return learn_stream(other, chosen, made_in=functools.partial(resume.note_compared, first.run_dir, line))


def _study(cfg: DictConfig, overrides: list[str]) -> float | None:
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
    console, recorder = _console(), RunRecorder(folder, tracker_of(cfg))
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


NOT_OF_MEMBERS = ("mode", "study", "out", "overwrite")
SAID_BY_MEMBERS = ("strategy", "plugins", "seed", "compare", "references", "base")


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
        if stopped := _goes_on(place, cfg):
            summary = run(stopped, given, folder=place)
        else:
            cfg.overwrite = (place / "overrides.yaml").is_file()
            summary = run(cfg, given)
    except (MedusaError, RuntimeError) as error:  # RuntimeError: torch is out of memory, for instance
        return Outcome(member, failure=str(error))
    return Outcome(member, summary, summary["run_dir"])


def _goes_on(place: Path, cfg: DictConfig) -> DictConfig | None:
    """Return the configuration of a member that was stopped, where it can go on as it is asked for now."""
    if not (place / "config.yaml").is_file() or _is_finished(place):
        return None
    theirs: Any = OmegaConf.load(place / "config.yaml")
    now = copy.deepcopy(cfg)
    arrange_stream(now)
    try:
        resume.check_same(_plain_config(theirs), _plain_config(now), place)
    except MedusaError:
        return None
    theirs.tracking = cfg.tracking
    return cast(DictConfig, theirs)


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


def run(cfg: DictConfig, overrides: Sequence[str] = (), *, folder: Path | None = None) -> dict[str, Any]:
    """Learn the stream that a configuration describes, and report.

    Args:
        cfg: The composed configuration.
        overrides: What it was composed of, for the record.
        folder: The directory of a run with this configuration that was stopped, to go on with it.

    Returns:
        The summary, with "run_dir" and "objective", the number that a sweep maximises: the mean transfer.

    Raises:
        MedusaError: Something about configuration, data, weights or training that the message says how to mend.
    """
    chosen = None
    if cfg.resume and folder is None:
        cfg, overrides, folder, chosen = _resumed(cfg, overrides)
    learnt = learn_stream(cfg, overrides, folder=folder, chosen=chosen)
    with learnt.references_beside():
        return finish(learnt)


@dataclass(frozen=True)
class Finished:
    """A run that was finished before."""

    run_dir: Path
    console: Any

    def references_beside(self) -> ExitStack:
        """Return a context in which nothing is to be ended."""
        return ExitStack()

    @property
    def summary(self) -> dict[str, Any]:
        """What was found."""
        return kept.read_summary(self.run_dir)


@dataclass
class Run:
    """A run: what it is made of, and what it has learnt so far."""

    cfg: DictConfig
    device: str
    run_dir: Path
    start: Start | None
    base_place: Path | None
    scenario: DenseScenario
    model: MultiTaskModel
    make_strategy: Callable[..., Medusa]
    recorder: RunRecorder
    console: Any
    bars: Any
    weights_hash: str
    reference_key: Mapping[str, Any]
    stages: dict[str, float]
    matrix: TaskMatrix | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    beside: Any = None
    frozen: bool = False
    saved: Snapshot | None = None
    again: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)
    lock: Any = None
    same_code: bool = True
    left_out: int = 0
    finished: bool = False

    def references_beside(self) -> ExitStack:
        """Return a context that ends the process which learns references, should it still run."""
        stack = ExitStack()
        if self.beside is not None:
            stack.callback(self.beside.terminate)
        return stack


def learn_stream(
    cfg: DictConfig,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    chosen: Path | None = None,
    made_in: Callable[[Path], None] = lambda run_dir: None,
) -> Run | Finished:
    """Set a run up, cheap checks first, and learn its stream.

    Args:
        cfg: The configuration.
        overrides: What it was composed of.
        folder: The directory of a run that was stopped and is to go on; `cfg` is its configuration then.
        chosen: The checkpoint to go on from; the newest one by default.
        made_in: Called with the run directory once it is made.
    """
    import torch

    from medusa_cl import snapshot
    from medusa_cl.learn import timed

    if folder is not None and distributed.decided(functools.partial(_is_finished, folder)):
        return Finished(folder, _console())
    stages: dict[str, float] = {}
    with timed(stages, "set-up"):
        saved = None if folder is None else distributed.decided(functools.partial(_saved, cfg, folder, chosen))
        cfg, start = _start(cfg, overrides, folder, saved)
        device = resolve_device(cfg.trainer.device)
        torch.set_num_threads(int(cfg.trainer.threads))
        check(cfg, start if saved is None else None)
        if folder is None:
            arrange_stream(cfg)
        with _run_dir(cfg, folder) as run_dir:
            if folder is None:
                _write_config(cfg, overrides, run_dir)
                made_in(run_dir)
            lock = rundir.held(run_dir)
            if chosen is not None and distributed.is_main():
                snapshot.drop_newer(chosen)
            asked = _plain_config(cfg)
            made = _set_up(cfg, device, run_dir, start, _console(), stages, saved)
            made.again, made.lock, made.asked = folder is not None, lock, asked
    stages["set-up"] -= stages["data"]
    with _closing(made):
        _learn(made)
    return made


def _is_finished(folder: Path) -> bool:
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


def _saved(cfg: DictConfig, folder: Path, chosen: Path | None) -> Snapshot | None:
    """Read what a run was when it stopped; None where nothing was saved yet.

    Raises:
        SnapshotError: It is damaged, of another configuration, or of another number of processes.
    """
    from medusa_cl import snapshot

    found = snapshot.read(chosen) if chosen is not None else snapshot.newest(folder / resume.CHECKPOINTS)
    if found is not None:
        resume.check_same(found.tree["config"], _plain_config(cfg), folder)
        if found.tree["world"] != distributed.world():
            raise SnapshotError(
                f"{folder} was learnt by {found.tree['world']} processes, but {distributed.world()} are to go on with "
                "it. Start as many as before."
            )
    return found


def _start(
    cfg: DictConfig, overrides: Sequence[str], folder: Path | None, saved: Snapshot | None
) -> tuple[DictConfig, Start | None]:
    """Return where a run starts, with the configuration that it has because of that."""
    from medusa_cl.start import Start, from_base, from_run

    if saved is not None:
        return cfg, Start.from_plain(saved.tree["start"]) if saved.tree["start"] else None
    if cfg.extend and folder is None:
        return distributed.decided(functools.partial(_extended, cfg, overrides))
    if cfg.extend:
        return cfg, distributed.decided(functools.partial(from_run, Path(cfg.extend), cfg.remove))
    if cfg.base not in (None, "auto"):
        return cfg, distributed.decided(functools.partial(from_base, cfg.base))
    return cfg, None


def _run_dir(cfg: DictConfig, folder: Path | None) -> AbstractContextManager[Path]:
    if not distributed.is_main():
        return rundir.unseen()
    if folder is not None:
        return nullcontext(folder)
    return rundir.made(cfg.out, cfg.overwrite, str(cfg.scenario.name), _stem(cfg))


def _write_config(cfg: DictConfig, overrides: Sequence[str], run_dir: Path) -> None:
    """Write what is asked for; secrets of a tracking URI stay out of it."""
    from medusa_cl.tracking.secrets import masked

    OmegaConf.save(OmegaConf.create(masked(OmegaConf.to_container(cfg, resolve=True))), run_dir / "config.yaml")
    OmegaConf.save(OmegaConf.create(masked(list(overrides))), run_dir / "overrides.yaml")


def _plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, without where it is recorded, which may hold secrets."""
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in content.items() if key != "tracking"}


def finish(made: Run | Finished) -> dict[str, Any]:
    """Compare a learnt run with its references, write its summary and show it."""
    from medusa_cl.snapshot import drop_older
    from medusa_cl.tracking import owed
    from medusa_cl.tracking.console import report

    if isinstance(made, Finished):
        summary = made.summary
        made.console.print(report(summary, made.run_dir, owed(made.run_dir)))
        return summary | {"run_dir": str(made.run_dir), "objective": _objective(summary)}
    if not distributed.is_main():
        return _finish_beside(made)
    with _closing(made):
        summary = _summary(made)
    made.recorder.finish()
    made.finished = True
    made.lock.release()
    drop_older(made.run_dir / resume.CHECKPOINTS, keep=1)
    _keep_run(made, summary)
    made.console.print(report(summary, made.run_dir, made.recorder.ui_line()))
    return distributed.agreed(summary | {"run_dir": str(made.run_dir), "objective": _objective(summary)})


def _finish_beside(made: Run) -> dict[str, Any]:
    """Take part in learning the references, and leave the rest to rank 0."""
    with _closing(made):
        _references(made)
        summary: dict[str, Any] = distributed.agreed({})
    shutil.rmtree(made.run_dir)
    return summary


def _keep_run(made: Run, summary: Mapping[str, Any]) -> None:
    """Note that this run is finished, for studies of which it is a part."""
    if made.same_code and not made.cfg.extend and (made.start is None or made.base_place is not None):
        place = run_place(made.cfg, made.scenario, made.reference_key)
        note = kept.read(place, sealed=True)
        if note is None or not (Path(note["run_dir"]) / "summary.json").is_file():  # the first of equal runs stands
            kept.write(place, {"run_dir": str(made.run_dir), "summary": summary})


@contextmanager
def _closing(made: Run) -> Iterator[None]:
    """Close what is open should the block fail: the record is valid as far as it goes, and the run can go on.

    Raises:
        DataError: The disk is full.
        TrainingError: There is not enough memory.
    """
    from medusa_cl.memory import advising_on_memory

    trainer = made.cfg.trainer
    asked = {f"trainer.{key}": trainer[key] for key in ("batch_size", "precision", "workers")}
    try:
        with advising_on_memory(asked):
            yield
    except BaseException as error:
        if made.finished:
            raise
        made.bars.close()
        if made.beside is not None:
            made.beside.terminate()
        _STOP.patient = False
        stopping.release()
        by_signal = isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
        stopped = by_signal or isinstance(error, KeyboardInterrupt)
        with suppress(OSError):
            made.recorder.finish("KILLED" if stopped else "FAILED")
        made.lock.release()
        if not distributed.is_main():
            shutil.rmtree(made.run_dir, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            full = DataError(f"{error.strerror}, in {made.run_dir}. Free some.")
            full.add_note(_how_to_go_on(made))
            raise full from error
        error.__notes__ = [_how_to_go_on(made)]  # in place of that of a run compared to this one
        raise


def _how_to_go_on(made: Run) -> str:
    from medusa_cl import snapshot

    there = snapshot.every(made.run_dir / resume.CHECKPOINTS)
    where = f"from {there[-1].name}" if there else "from the beginning, as nothing was saved yet"
    return f"To go on {where}: {resume.line(made.run_dir, distributed.world())}"


# ---------------------------------------------------------------- checks and names


def _extended(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Start]:
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


def _stem(cfg: DictConfig) -> str:
    number = "" if _member() is None else f"-j{_member()}"
    return f"{cfg.strategy.name}-{cfg.backbone.name}-s{cfg.seed}{number}"


def _member() -> int | None:
    """Return the number of this run in a sweep; None for a run by itself."""
    number: int | None = None
    if HydraConfig.initialized():
        number = OmegaConf.select(cast(Any, HydraConfig.get()), "job.num")
    return number


# ---------------------------------------------------------------- setting up


def _set_up(
    cfg: DictConfig,
    device: str,
    run_dir: Path,
    start: Start | None,
    console: Any,
    stages: dict[str, float],
    saved: Snapshot | None = None,
) -> Run:
    import torch

    from medusa_cl.learn import timed
    from medusa_cl.start import from_kept
    from medusa_cl.strategies.plugins import Progress
    from medusa_cl.tracking import RunRecorder
    from medusa_cl.tracking.console import header, progress

    threads = f"{cfg.trainer.threads} thread{'s' * (cfg.trainer.threads > 1)}"
    on = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {threads}"
    on = on if distributed.world() == 1 else f"{distributed.world()} processes, each on {on}"
    console.print(header(f"medusa_cl {__version__} on {on}", _facts(cfg, start, saved)))
    with timed(stages, "data"), distributed.first_on_machine():
        scenario = scenario_of(cfg, console)
    arrange_found(cfg, scenario)
    _tell_data(scenario, console)
    if cfg.trainer.select == "val" and "val" not in scenario.data:
        raise ConfigError(
            "trainer.select=val needs a val split with labels of every task. Set "
            f"{'scenario.val_fraction=0.1' if 'val_fraction' in cfg.scenario else 'scenario.val_size=20'}, "
            "or trainer.select=last."
        )
    if saved is not None:
        _check_data(saved, scenario, run_dir)
    with distributed.first_on_machine():
        if saved is not None:
            model = resumed_model(cfg, saved.tree, scenario)
        else:
            model = new_model(cfg) if start is None else loaded_model(cfg, start, scenario)
    known = saved.tree["weights_hash"] if saved is not None else start and start.weights_hash
    weights_hash = known or model.backbone.weights_hash()
    key = dependencies(cfg, device, scenario, weights_hash)
    place = base_place(cfg, scenario, key) if start is None and cfg.base == "auto" else None
    if saved is not None:
        place = saved.tree["base_place"] and Path(saved.tree["base_place"])
    elif place is not None and (start := distributed.agreed(from_kept(place))) is not None:
        console.print(f"base: {start.said}")
        model = loaded_model(cfg, start, scenario)
    bars = Progress(functools.partial(progress, console=console), functools.partial(console.print, markup=False))
    made = Run(
        cfg=cfg,
        device=device,
        run_dir=run_dir,
        start=start,
        base_place=place,
        scenario=scenario,
        model=model,
        make_strategy=strategy_factory(cfg, device, scenario, bars),
        recorder=RunRecorder(run_dir, tracker_of(cfg) if distributed.is_main() else None),
        console=console,
        bars=bars,
        weights_hash=weights_hash,
        reference_key=key,
        stages=stages,
        saved=saved,
        same_code=saved is None or saved.tree["depends"] == kept.digest(key),
    )
    if not made.same_code:
        console.print("It was begun on another device, or with other code or options: bits may differ from here on.")
    if cfg.trainer.processes > 1 and _reference_names(made):
        made.beside = _learn_references_beside(made)
    return made


def _check_data(saved: Snapshot, scenario: DenseScenario, run_dir: Path) -> None:
    changed = [split for split, digest in scenario.content_hash.items() if saved.tree["data"].get(split) != digest]
    if changed:
        raise DataError(
            f"The data of {run_dir} has changed since it was stopped ({', '.join(changed)}), so what is still to be "
            "learnt would not fit what was. Put the data back, or learn anew in another directory."
        )


def _facts(cfg: DictConfig, start: Start | None, saved: Snapshot | None) -> dict[str, Any]:
    base_tasks, new_tasks = (", ".join(cfg.scenario.get(part) or ()) for part in ("base", "stream"))
    stream = f": {base_tasks}, then {new_tasks}" if base_tasks and new_tasks else ""
    composed = " + ".join([cfg.strategy.name, *cfg.plugins])
    trainer = cfg.trainer
    first, each = (
        f"{steps} steps" if steps else f"{trainer.epochs} epochs"
        for steps in (trainer.base_steps or trainer.max_steps, trainer.max_steps)
    )
    length = f"{each} a task" if start is not None else f"{first} for the base, {each} a task"
    freeze = f", freeze {cfg.strategy.freeze}" if "freeze" in cfg.strategy else ""
    return {
        "scenario": f"{cfg.scenario.name}{stream}",
        "strategy": f"{composed}{freeze}, seed {cfg.seed}",
        "model": f"{cfg.backbone.name}, head {cfg.head.name}",
        "length": f"{length}, batch {trainer.batch_size}",
        "base": None if start is None else start.said,
        "resumes": None if saved is None else f"{saved.folder.parent.parent}, from {saved.about['at']}",
    }


def _tell_data(scenario: DenseScenario, console: Any) -> None:
    if scenario.about:
        console.print(f"data: {scenario.about}", markup=False)
    for split, faults in scenario.skipped.items():
        console.print(f"{len(faults)} {split} images are left out:", markup=False)
        for image, fault in faults.items():
            console.print(f"  {image}: {fault}", markup=False)


# ---------------------------------------------------------------- learning


def _learn(made: Run) -> None:
    from medusa_cl.learn import learn
    from medusa_cl.strategies.evaluation import dense_evaluator
    from medusa_cl.strategies.logger import TrackerLogger

    cfg, recorder, scenario = made.cfg, made.recorder, made.scenario
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    saved = made.saved.tree if made.saved is not None else None
    if made.again and distributed.is_main():
        recorder.restore(saved and saved["record"])
    recorder.start({str(k): v for k, v in config.items()}, _tags(made))
    for split, digest in scenario.content_hash.items():
        recorder.dataset(f"{scenario.name}-{split}", digest, str(getattr(scenario.data[split], "path", split)))
    evaluator = dense_evaluator([TrackerLogger(recorder)] if distributed.is_main() else [])
    strategy = made.make_strategy(made.model, plugins=plugins_of(cfg), evaluator=evaluator)
    made.frozen = not strategy.medusa.shared_trainable
    start, row = made.start, functools.partial(_record, made)
    experiences, rows = (0, ()) if start is None else (start.experiences, start.rows)
    made.matrix = learn(
        scenario,
        strategy,
        start=experiences,
        rows=rows,
        learnt=row,
        seconds=made.seconds,
        keeper=_keeper(made, strategy),
        also=functools.partial(_also_saved, made),
        resumed=saved,
    )
    made.left_out = strategy.guard.skipped
    made.stages |= made.seconds
    if start is not None and len(start.rows) == len(scenario.groups):
        _record(made, made.matrix.last, made.matrix, {})  # nothing was learnt, so nothing was recorded yet
    if cfg.extend and (base := Path(cfg.extend) / rundir.BASE).is_dir():
        shutil.copytree(base, made.run_dir / rundir.BASE, dirs_exist_ok=True)


def _keeper(made: Run, strategy: Medusa) -> Keeper | None:
    """Return what saves the run; None where a plugin could not be put back to where it was."""
    from medusa_cl.keeper import Keeper
    from medusa_cl.strategies.state import lacking

    if missing := lacking(strategy):
        why = "; ".join(f"{plugin}: {reason}" for plugin, reason in missing.items())
        made.console.print(f"No checkpoints are kept, for this run could not go on from one: {why}.", markup=False)
        return None
    trainer, say = made.cfg.trainer, functools.partial(made.console.print, markup=False)
    _STOP.say = say
    folder = made.run_dir / resume.CHECKPOINTS
    return Keeper(folder, steps=trainer.save_steps, minutes=trainer.save_minutes, stop=_STOP, say=say)


def _also_saved(made: Run) -> dict[str, Any]:
    """Return what is saved of a run besides what was learnt."""
    return {
        "config": made.asked,
        "world": distributed.world(),
        "start": None if made.start is None else made.start.plain(),
        "base_place": made.base_place and str(made.base_place.resolve()),
        "weights_hash": made.weights_hash,
        "depends": kept.digest(made.reference_key),
        "data": dict(made.scenario.content_hash),
        "record": made.recorder.state(),
    }


def _tags(made: Run) -> dict[str, Any]:
    from medusa_cl.summary import git_commit

    cfg = made.cfg
    return {
        "strategy": cfg.strategy.name,
        "plugins": ",".join(cfg.plugins) or None,
        "scenario": cfg.scenario.name,
        "backbone": cfg.backbone.name,
        "head": cfg.head.name,
        "seed": cfg.seed,
        "base": None if made.start is None else str(made.start.model),
        "extends": cfg.extend,
        "labels": "; ".join(f"{task}: {note}" for task, note in made.scenario.label_notes.items()) or None,
        "git": git_commit(),
        "version": __version__,
        "run_dir": str(made.run_dir),
    }


def _record(made: Run, k: int, matrix: TaskMatrix, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Keep what is known after an experience: the matrix, pictures, heads and the model."""
    from medusa_cl.checkpoint import save_model
    from medusa_cl.learn import pictures

    if not distributed.is_main():
        return
    recorder, run_dir, model = made.recorder, made.run_dir, made.model
    matrix.to_csv(run_dir / "task_matrix.csv")
    images, drawn = pictures(made.scenario, model)
    panels = {task: [(i, t, p) for i, (t, p) in zip(images, pairs, strict=True)] for task, pairs in drawn.items()}
    recorder.predictions(len(model.tasks), panels)
    for task in () if made.cfg.head.get("coupled") else model.tasks:
        model.save_head(task, run_dir / "heads" / f"{task}.safetensors")
    if k == 0:
        save_model(model, run_dir / rundir.BASE)
        _keep_base(made)
    save_model(model, run_dir / "model")


def _keep_base(made: Run) -> None:
    from medusa_cl.start import keep_base

    if made.base_place is not None and made.start is None and made.same_code:
        rate = next(iter(made.bars.rates.values()), 0.0)
        keep_base(made.base_place, made.run_dir / rundir.BASE, made.seconds["base"], rate, made.weights_hash)


# ---------------------------------------------------------------- references


def _reference_names(made: Run) -> list[str]:
    """Return the references to learn: for auto those on plain frozen features, which are cheap."""
    from medusa_cl.strategies.references import HEAD_OF

    cfg = made.cfg
    if cfg.references == "none" or _base_run(made) is not None:
        return []
    if cfg.references == "auto" and not made.scenario.stream:
        return []
    return list(HEAD_OF) if cfg.references == "auto" else list(cfg.references)


def _base_run(made: Run) -> Path | None:
    """Return the run this one starts from, where its references are of the same data, backbone and heads."""
    folder = made.start.parent if made.start is not None and made.start.references else None
    if folder is None or made.cfg.references != "auto" or not (folder / "config.yaml").is_file():
        return None
    theirs: Any = OmegaConf.load(folder / "config.yaml")
    same = all(theirs[key] == made.cfg[key] for key in ("scenario", "backbone", "head", "seed"))
    return folder if same and theirs.references != "none" else None


def _recipe(cfg: DictConfig, device: str, scenario: DenseScenario, key: Mapping[str, Any], bars: Any = None) -> Recipe:
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.strategies.references import Recipe

    heads = head_factories(cfg)
    return Recipe(
        scenario=scenario,
        backbone=functools.partial(instantiate, cfg.backbone),
        heads={name: head_factory(head) for name, head in heads.items()},
        strategy=strategy_factory(cfg, device, scenario, bars, of=Medusa),
        precision=str(cfg.trainer.precision),
        key=key,
        head_keys=heads,
        cache=rundir.RUNS / ".cache",
    )


def _learn_references_beside(made: Run) -> Any:
    """Start a process that learns the references into their cache while this one learns the run."""
    made.console.print("references are learnt in a second process, beside the run")
    config = OmegaConf.to_container(made.cfg, resolve=True)
    arguments = (config, made.device, made.reference_key, _reference_names(made))
    process = multiprocessing.get_context("spawn").Process(target=_references_beside, args=arguments, daemon=True)
    process.start()
    return process


def _references_beside(config: Any, device: str, key: Mapping[str, Any], names: list[str]) -> None:
    import torch

    from medusa_cl.strategies.references import reference_values

    stopping.deaf()
    stopping.end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which it is ended with the run
    cfg = OmegaConf.create(config)
    torch.set_num_threads(int(cfg.trainer.threads))
    reference_values(_recipe(cfg, device, scenario_of(cfg), key), names)


def _references(made: Run) -> Values:
    """Return the references' values: those of the base's run, else kept ones, else learnt now."""
    from medusa_cl.results import SINGLE_TASK
    from medusa_cl.strategies.references import reference_values
    from medusa_cl.tracking.console import progress

    names, known = distributed.agreed((_reference_names(made), _known_references(made)))
    if known is not None:
        return known
    if made.beside is not None:
        with progress("references", 1, made.console) as bar:
            made.beside.join()
            bar.advance()
        made.beside = None  # what it could not learn is learnt here, where its error is seen
    recipe = _recipe(made.cfg, made.device, made.scenario, made.reference_key, made.bars)
    recipe.notify = made.console.print
    estimate, spent = distributed.agreed((_single_task_seconds(made), sum(made.seconds.values())))
    if made.cfg.references == "auto" and names and estimate < spent:
        made.console.print(f"reference {SINGLE_TASK}: about {estimate:.0f} s, less than the run itself")
        names = [*names, SINGLE_TASK]
    return _with_parents(made, reference_values(recipe, names))


def _known_references(made: Run) -> Values | None:
    """Return the references of the run this one starts from; None where that has none, or none yet."""
    folder = _base_run(made)
    if folder is None or not (folder / "summary.json").is_file():
        return None
    made.console.print(f"{made.cfg.strategy.name}: references are those of {folder}, with that run's steps")
    values: Values = kept.read_summary(folder)["transfer"]["reference_values"]
    return values


def _with_parents(made: Run, values: Values) -> Values:
    """Leave the references of tasks that a finished run has learnt as they were: they go with its trainer and head."""
    if not made.cfg.extend or made.start is None:
        return values
    known = kept.read_summary(Path(made.cfg.extend))["transfer"]["reference_values"]
    return {
        name: {task: known.get(name, {}).get(task, value) for task, value in row.items()}
        for name, row in values.items()
    }


def _single_task_seconds(made: Run) -> float:
    """Estimate what single-task nets take: each about as long as the base tasks together."""
    return made.seconds.get("base", float("inf")) * len(made.scenario.tasks)


# ---------------------------------------------------------------- the summary


def _summary(made: Run) -> dict[str, Any]:
    from medusa_cl.learn import timed
    from medusa_cl.summary import costs, summarise

    assert made.matrix is not None
    start = made.start
    rates = {("base" if "+" in k or k in made.scenario.base else k): v for k, v in made.bars.rates.items()}
    rates = {**(start.rates if start else {}), **rates}
    seconds = {**(start.seconds if start else {}), **made.seconds}
    with timed(made.stages, "references"):
        references = _references(made)
    with timed(made.stages, "tracking"):
        _overview(made)
        made.recorder.model(made.run_dir / "model")
    cost = costs(made.model, made.scenario.data["test"].image_size) | {
        "train_seconds": {label: value for label, value in seconds.items() if label != "evaluation"},
        "images_per_second": rates,
    }
    summary = summarise(
        _identity(made),
        made.matrix,
        made.scenario.tasks,
        references,
        cost,
        _provenance(made),
        frozen=made.frozen,
        medusa_head=made.cfg.head["_target_"] == MEDUSA_HEAD and made.cfg.strategy["_target_"] == MEDUSA,
    )
    summary["frozen"] = made.frozen
    summary["steps_left_out"] = made.left_out
    summary["labels"] = made.scenario.label_notes
    summary["stages"] = made.stages
    made.recorder.summary(summary, (made.run_dir / "task_matrix.csv").read_text(encoding="utf-8"))
    return summary


def _identity(made: Run) -> dict[str, Any]:
    cfg = made.cfg
    return {
        "scenario": cfg.scenario.name,
        "strategy": "+".join([cfg.strategy.name, *cfg.plugins]),
        "backbone": cfg.backbone.name,
        "head": cfg.head.name,
        "seed": cfg.seed,
        "device": made.device,
    }


def _provenance(made: Run) -> dict[str, Any]:
    golden = None
    if str(made.cfg.scenario["_target_"]).startswith("medusa_cl.scenarios.rooms."):
        from medusa_cl.data import rooms

        golden = rooms.golden_ok()
    return {
        "data_hash": made.scenario.content_hash,
        "weights_hash": made.weights_hash,
        "base": None if made.start is None else str(made.start.model),
        "rooms_golden_ok": golden,
        "skipped": {split: list(faults) for split, faults in made.scenario.skipped.items()},
    }


def _overview(made: Run) -> None:
    from medusa_cl.learn import pictures
    from medusa_cl.tracking import panels

    images, drawn = pictures(made.scenario, made.model)
    samples = [(image, [(task, *pairs[i]) for task, pairs in drawn.items()]) for i, image in enumerate(images)]
    title = f"{made.cfg.strategy.name}: test images, target above prediction"
    made.recorder.panel(panels.overview(samples, title))


def _objective(summary: Mapping[str, Any]) -> float | None:
    from medusa_cl.tracking import final_metrics

    return final_metrics(summary)[-1][0]["final/transfer_mean"]


if __name__ == "__main__":
    from medusa_cl.run import main as by_name  # members of a sweep, and their processes, must find all by its name

    by_name()
