"""Learn a stream of dense tasks: `python -m medusa_cl.run [scenario=...] [strategy=...] [key=value ...]`.

This is where configuration ends: everything below gets plain values, objects and functions.
"""

from __future__ import annotations

from medusa_cl import early

if __name__ == "__main__":  # the imports below take a while
    early.listen()

import functools
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from medusa_cl import shell

if __name__ == "__main__" and shell.asks_for_help(sys.argv[1:]):  # before the imports below, which take a while
    from medusa_cl.configs.page import page

    shell.end(lambda arguments: print(page()))

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from medusa_cl import distributed, resume, stopping
from medusa_cl.build import begins_alike, resolve_device
from medusa_cl.claims_run import run_claims
from medusa_cl.configs.check import check_overrides
from medusa_cl.configs.sweep import job_number, reported
from medusa_cl.continuing import read_yaml, resumed
from medusa_cl.errors import ConfigError, MedusaError, unknown
from medusa_cl.job import STOP, Finished, Run, closing, finish, learn_stream, own_console
from medusa_cl.quiet import quiet
from medusa_cl.shell import mending
from medusa_cl.study_run import run_study

MODES = ("run", "study", "claims")
ONE_BY_ONE = (
    "Processes that train together learn one run, with those of compare=. Start the runs of a sweep or a study one "
    "after the other, each by torchrun, or leave torchrun and trainer.distributed out."
)


def main() -> None:
    """Run the verb; errors a user can mend are one message and an exit status, not a traceback."""
    distributed.hush()
    sys.argv[1:] = _sweep_first(sys.argv[1:])
    several = distributed.launched() > 1
    early.enough()
    with distributed.ending_together() if several else stopping.listening(STOP):
        try:
            check_overrides(sys.argv[1:])
        except MedusaError as error:
            if several:
                raise
            shell.fail(error)
        try:
            with reported():
                _hydra_main()
        except stopping.Stopped as stop:
            notes = getattr(stop, "__notes__", ["Nothing was learnt yet: the same command begins anew."])
            print("\n".join(["Stopped.", *notes]), flush=True)
            raise
    distributed.stop()


def _sweep_first(arguments: Sequence[str]) -> list[str]:
    """Put -m first: behind or between overrides Hydra does not take those that follow it."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


@hydra.main(config_path="pkg://medusa_cl.configs", config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    overrides = list(HydraConfig.get().overrides.task)
    together = cfg.trainer.distributed or distributed.launched() > 1
    if together and job_number() is None:
        with distributed.ending_together():
            _join(cfg)
            return _verb(cfg, overrides)
    try:
        if together:
            raise ConfigError(ONE_BY_ONE)
        _check_mode(cfg)
        if job_number() is None:
            _load()
        return _verb(cfg, overrides)
    except MedusaError as error:
        if job_number() is not None:
            raise  # one member of a sweep: the others go on
        shell.fail(error)


def _load() -> None:
    """Import what training needs, before anything is begun."""
    early.listen()
    try:
        from medusa_cl import learn, start, strategies, tracking  # noqa: F401
        from medusa_cl.strategies import evaluation, medusa  # noqa: F401
    finally:
        early.enough()


def _check_mode(cfg: DictConfig) -> None:
    if cfg.mode not in MODES:
        raise ConfigError(unknown("mode", str(cfg.mode), MODES))
    if cfg.mode != "run" and (cfg.extend or cfg.remove):
        raise ConfigError(f"mode={cfg.mode} learns whole streams: leave extend= and remove= out.")
    if cfg.remove and not cfg.extend:
        raise ConfigError(f"remove={list(cfg.remove)} takes tasks out of a finished run: name it with extend=.")


@quiet()  # here as well, for members of a sweep have processes of their own
@mending()
def _verb(cfg: DictConfig, overrides: list[str]) -> float | None:
    _check_mode(cfg)
    if cfg.resume:
        return _with_comparisons(*resumed(cfg, overrides))
    if cfg.mode == "claims":
        run_claims(cfg)
        return None
    return run_study(cfg, overrides) if cfg.mode == "study" else _with_comparisons(cfg, overrides)


def _join(cfg: DictConfig) -> None:
    """Join the processes that torchrun has started, for one run."""
    if not cfg.trainer.distributed:
        raise ConfigError(
            f"torchrun has started {distributed.launched()} processes, but each would train alone. Add trainer=ddp "
            "(or trainer.distributed=true), or leave torchrun out."
        )
    if cfg.mode != "run":
        raise ConfigError(ONE_BY_ONE)
    # "cuda" is the device of each process's own from now on.
    cfg.trainer.device = distributed.start(resolve_device(cfg.trainer.device)).split(":")[0]
    if cfg.trainer.processes > 1:
        own_console().print("trainer.processes is 1 under trainer.distributed: all processes learn the references too")
        cfg.trainer.processes = 1


def _with_comparisons(
    cfg: DictConfig, overrides: list[str], folder: Path | None = None, chosen: Path | None = None
) -> float | None:
    """Learn the run and those it is compared to, then report on each: references may be learnt beside all of them."""
    first = learn_stream(cfg, overrides, folder=folder, chosen=chosen)
    with first.references_beside(), closing(first) if isinstance(first, Run) else nullcontext():
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
        theirs: Any = read_yaml(Path(folder) / "config.yaml")
        for key in ("tracking", "trainer.device", "trainer.workers"):
            OmegaConf.update(theirs, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
        return learn_stream(cast(DictConfig, theirs), chosen, folder=Path(folder))
    other = hydra.compose("config", chosen)
    if begins_alike(other, cfg):
        other.base = distributed.agreed(str(first.run_dir))
    other.trainer.threads = cfg.trainer.threads
    return learn_stream(other, chosen, made_in=functools.partial(resume.note_compared, first.run_dir, line))


if __name__ == "__main__":
    from medusa_cl.run import main as by_name  # members of a sweep, and their processes, must find all by its name

    with shell.mannered():
        by_name()
