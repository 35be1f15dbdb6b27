"""The references of a run: which ones, and whether they are kept, another run's, learnt beside it or after it."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from medusa_cl import distributed, kept, rundir, stopping
from medusa_cl.build import head_factories, head_factory, instantiate, scenario_of, strategy_factory

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from medusa_cl.job import Run
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.strategies.references import Recipe

Values = dict[str, dict[str, float | None]]


def reference_names(made: Run) -> list[str]:
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


def learn_references_beside(made: Run) -> Any:
    """Start a process that learns the references into their cache while this one learns the run."""
    made.console.print("references are learnt in a second process, beside the run")
    config = OmegaConf.to_container(made.cfg, resolve=True)
    arguments = (config, made.device, made.reference_key, reference_names(made))
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


def references_of(made: Run) -> Values:
    """Return the references' values: those of the base's run, else kept ones, else learnt now."""
    from medusa_cl.results import SINGLE_TASK
    from medusa_cl.strategies.references import reference_values
    from medusa_cl.tracking.console import progress

    names, known = distributed.agreed((reference_names(made), _known_references(made)))
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
