"""mode=claims: what features are worth, cell by cell, each kept; the same command goes on with it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from medusa_cl import job, stopping
from medusa_cl.build import check, tracker_of
from medusa_cl.claims.build import claims_folder, lab_of, plan_of
from medusa_cl.claims.cells import Cell, grouped
from medusa_cl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medusa_cl.claims.lab import Lab
    from medusa_cl.claims.plan import Plan
    from medusa_cl.claims.record import Results


def run_claims(cfg: DictConfig) -> None:
    """Compute every cell that is not kept yet, as far as claims.hours goes, and report on all.

    Raises:
        ConfigError: A setting of `claims` is wrong.
    """
    from medusa_cl.claims.report import console as reported
    from medusa_cl.tracking import RunRecorder

    _check(cfg)
    folder, console, plan = claims_folder(cfg), job.own_console(), plan_of(cfg)
    lab, cells = lab_of(cfg, folder, console), plan.cells()
    if cfg.claims.known is not None:
        theirs = _read(cfg.claims.known).cells
        taken = lab.take({cell: theirs[cell] for cell in [c for g in grouped(cells) for c in g] if cell in theirs})
        console.print(f"known     {taken} cells of {cfg.claims.known} were computed alike and are taken", markup=False)
    todo = grouped([cell for cell in cells if lab.known(cell) is None])
    recorder = RunRecorder(folder, tracker_of(cfg))
    recorder.start(cast(Any, OmegaConf.to_container(cfg, resolve=True)), {"claims": str(cfg.scenario.name)})
    missing = sum(lab.known(cell) is None for cell in cells)
    console.print(f"claims    {len(cells)} cells, {len(cells) - missing} of them kept in {folder}", markup=False)
    status = "FAILED"
    try:
        _compute(cfg, folder, todo, console)
        status = "FINISHED"
    except stopping.Stopped as stop:
        status = "KILLED"
        stop.__notes__ = [f"The same command goes on: every cell that is done is kept in {folder}."]
        raise
    finally:
        results = _write(lab, plan, cfg)
        recorder.metrics(results.metrics(), 0)
        recorder.finish(status)
    console.print(reported(results, folder, recorder.ui_line()))


def _read(path: str) -> Results:
    from medusa_cl.claims.record import Results

    try:
        return Results.from_json(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigError(f"Expected claims.known to be the claims.json of another run, but got: {error}.") from error


def _check(cfg: DictConfig) -> None:
    if cfg.get("claims") is None:
        raise ConfigError("mode=claims needs a section `claims`, as experiment=rooms_claims has one.")
    if cfg.claims.hours is not None and not cfg.claims.hours > 0:
        raise ConfigError(f"Expected claims.hours above 0, or null, but got {cfg.claims.hours}.")
    check(cfg)


def _compute(cfg: DictConfig, folder: Path, todo: Sequence[list[Cell]], console: Any) -> None:
    """Compute groups of cells, in processes of their own where there are several, until the hours are over."""
    config, since = OmegaConf.to_container(cfg, resolve=True), time.monotonic()
    until = None if cfg.claims.hours is None else time.time() + 3600 * float(cfg.claims.hours)
    total, done = sum(map(len, todo)), 0
    for lines in _groups_done(todo, int(cfg.trainer.processes), (config, folder, until)):
        done += len(lines)
        for line in lines:
            console.print(line, markup=False)
        if done:
            left = (time.monotonic() - since) / done * (total - done)
            console.print(f"{done}/{total} cells; about {left / 60:.0f} min left", style="dim")


def _groups_done(todo: Sequence[list[Cell]], processes: int, given: Any) -> Iterator[list[str]]:
    """Yield what is to be said of each group when it is done; a process that is stopped loses one cell."""
    if min(processes, len(todo)) < 2:
        _set_up(*given)
        yield from map(_compute_group, todo)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, given)
    try:
        for future in as_completed([pool.submit(_compute_group, group) for group in todo]):
            yield future.result()
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(*given: Any) -> None:
    """Begin a worker process."""
    stopping.deaf()
    stopping.end_with_parent()
    _set_up(*given)


_lab: Lab | None = None
_until: float | None = None


def _set_up(config: Any, folder: Path, until: float | None) -> None:
    """Make the lab of a worker process."""
    global _lab, _until  # a process's own
    import torch

    cfg = OmegaConf.create(config)
    torch.set_num_threads(int(cfg.trainer.threads))
    _lab, _until = lab_of(cast(DictConfig, cfg), folder), until


def _compute_group(group: list[Cell]) -> list[str]:
    """Compute cells in order, none begun after the hours are over; return a line on each."""
    assert _lab is not None
    lines = []
    for cell in group:
        if _until is not None and time.time() > _until:
            break
        found = _lab.compute(cell)
        lines.append(f"{found['cpu_seconds']:7.0f} CPU s  {cell.label}")
    return lines


def _write(lab: Lab, plan: Plan, cfg: DictConfig) -> Results:
    """Write what is known so far: claims.json and claims.md."""
    from medusa_cl import __version__, kept
    from medusa_cl.claims.record import Results
    from medusa_cl.claims.report import markdown
    from medusa_cl.summary import git_commit

    splits = ("train", *lab.score_on)
    about = {
        "experiment": str(cfg.scenario.name),
        "data": lab.about["data"],
        "score_on": list(lab.score_on),
        "data_hash": {split: lab.data[split].content_hash for split in splits},
        "images": {split: len(lab.data[split]) for split in splits},
        "image_size": list(lab.data["train"].image_size),
        "backbone": str(cfg.backbone.name),
        "base_steps": cfg.trainer.base_steps,
        "max_steps": cfg.trainer.max_steps,
        **({"steps": dict(lab.steps)} if lab.steps else {}),
        "lr_head": cfg.trainer.lr_head,
        "lr_backbone": cfg.trainer.lr_backbone,
        "version": __version__,
        "commit": git_commit(),
    }
    cells = [cell for group in grouped(plan.cells()) for cell in group]
    known = {cell: found for cell in cells if (found := lab.known(cell)) is not None}
    tasks = {name: lab.tasks[name].describe() for name in plan.tasks}
    results = Results(plan=plan, tasks=tasks, cells=known, about=about)
    for name, text in (("claims.json", results.to_json()), ("claims.md", markdown(results))):
        with kept.whole(lab.folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return results
