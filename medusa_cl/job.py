"""One run, from its configuration to its summary: set up, learnt, compared with its references, reported."""

from __future__ import annotations

import errno
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from medusa_cl import __version__, distributed, kept, resume, rundir, stopping
from medusa_cl.build import (
    MEDUSA_HEAD,
    arrange_found,
    arrange_stream,
    base_place,
    check,
    dependencies,
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
from medusa_cl.configs.sweep import job_number
from medusa_cl.continuing import extended, is_finished, plain_config, resumed, saved_of
from medusa_cl.errors import ConfigError, DataError
from medusa_cl.job_references import learn_references_beside, reference_names, references_of

if TYPE_CHECKING:
    from medusa_cl.keeper import Keeper
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.results import TaskMatrix
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.snapshot import Snapshot
    from medusa_cl.start import Start
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.tracking import RunRecorder

MEDUSA = "medusa_cl.strategies.medusa.Medusa"
STOP = stopping.StopRequest()


def own_console() -> Any:
    """Return the console of a run; only one of several processes speaks."""
    from medusa_cl.tracking.console import make_console

    console = make_console()
    console.quiet = not distributed.is_main()
    return console


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
        cfg, overrides, folder, chosen = resumed(cfg, overrides)
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
    begun: list[str | None] | None = None
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

    if folder is not None and distributed.decided(functools.partial(is_finished, folder)):
        return Finished(folder, own_console())
    stages: dict[str, float] = {}
    with timed(stages, "set-up"):
        saved = None if folder is None else distributed.decided(functools.partial(saved_of, cfg, folder, chosen))
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
            asked = plain_config(cfg)
            made = _set_up(cfg, device, run_dir, start, own_console(), stages, saved)
            made.again, made.lock, made.asked = folder is not None, lock, asked
            made.begun = saved.tree.get("begun") if saved is not None else None
            if made.begun is None and _parent_is_finished(made):  # it may be gone once this run is finished
                made.begun = _begun(made)
    stages["set-up"] -= stages["data"]
    with closing(made):
        _learn(made)
    return made


def _start(
    cfg: DictConfig, overrides: Sequence[str], folder: Path | None, saved: Snapshot | None
) -> tuple[DictConfig, Start | None]:
    """Return where a run starts, with the configuration that it has because of that."""
    from medusa_cl.start import Start, from_base, from_run

    if saved is not None:
        return cfg, Start.from_plain(saved.tree["start"]) if saved.tree["start"] else None
    if cfg.extend and folder is None:
        return distributed.decided(functools.partial(extended, cfg, overrides))
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
    with closing(made):
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
    with closing(made):
        references_of(made)
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
def closing(made: Run) -> Iterator[None]:
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
        STOP.patient = False
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


def _stem(cfg: DictConfig) -> str:
    number = "" if job_number() is None else f"-j{job_number()}"
    return f"{cfg.strategy.name}-{cfg.backbone.name}-s{cfg.seed}{number}"


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
    if cfg.trainer.processes > 1 and reference_names(made):
        made.beside = learn_references_beside(made)
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
    STOP.say = say
    folder = made.run_dir / resume.CHECKPOINTS
    return Keeper(folder, steps=trainer.save_steps, minutes=trainer.save_minutes, stop=STOP, say=say)


def _also_saved(made: Run) -> dict[str, Any]:
    """Return what is saved of a run besides what was learnt."""
    return {
        "config": made.asked,
        "world": distributed.world(),
        "start": None if made.start is None else made.start.plain(),
        "begun": made.begun,
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
    height, width = made.cfg.scenario.get("image_size") or made.scenario.data["train"].image_size
    model.image_size = (int(height), int(width))
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


def _summary(made: Run) -> dict[str, Any]:
    from medusa_cl.learn import timed
    from medusa_cl.summary import costs, summarise

    assert made.matrix is not None
    start = made.start
    rates = {("base" if "+" in k or k in made.scenario.base else k): v for k, v in made.bars.rates.items()}
    rates = {**(start.rates if start else {}), **rates}
    seconds = {**(start.seconds if start else {}), **made.seconds}
    with timed(made.stages, "references"):
        references = references_of(made)
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


def _parent_is_finished(made: Run) -> bool:
    parent = made.start.parent if made.start is not None else None
    return parent is None or (parent / kept.SUMMARY).is_file()


def _begun(made: Run) -> list[str | None]:
    from medusa_cl.begun import begun

    return [begun(OmegaConf.create(dict(made.asked)), made.start, made.scenario.content_hash)]


def _provenance(made: Run) -> dict[str, Any]:
    golden = None
    if str(made.cfg.scenario["_target_"]).startswith("medusa_cl.scenarios.rooms."):
        from medusa_cl.data import rooms

        golden = rooms.golden_ok()
    return {
        "data_hash": made.scenario.content_hash,
        "weights_hash": made.weights_hash,
        "base": None if made.start is None else str(made.start.model),
        "begun": (made.begun or _begun(made))[0],
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
