"""From a configuration to a lab; the only place of this package that knows Hydra."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from medusa_cl import __version__, rundir
from medusa_cl.build import NO_MATTER, head_factory, instantiate, plain, resolve_device, scenario_of, strategy_factory
from medusa_cl.claims.cells import AS_IT_COMES, INITS
from medusa_cl.claims.plan import Plan, settings_of
from medusa_cl.errors import ConfigError, unknown

if TYPE_CHECKING:
    from medusa_cl.claims.lab import Lab
    from medusa_cl.models.backbone import Backbone
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.strategies.medusa import Medusa

HEADS = Path(__file__).parents[1] / "configs" / "head"
PROBE: dict[str, Any] = {"plugins": {}, "trainer": {"base_steps": None}}  # a head takes the steps of a new task


def lab_of(cfg: DictConfig, folder: Path, console: Any = None) -> Lab:
    """Make the lab of a configuration with a section `claims`."""
    from medusa_cl.claims.lab import Lab
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.summary import code_hash, git_commit, packages

    scenario = scenario_of(cfg, console)
    device = resolve_device(cfg.trainer.device)
    make = strategy_factory(cfg, device, scenario, of=Medusa)
    heads = {name: _head(name, cfg.head_width) for name in _heads_named(cfg)}
    sources = {name: _source(name, recipe) for name, recipe in cfg.claims.sources.items()}

    def model(source: str | None, head: str | None, backbone: Backbone) -> MultiTaskModel:
        from medusa_cl.models.coupled import CoupledModel
        from medusa_cl.models.multitask import MultiTaskModel

        config = heads[head or sources[source or ""]["head"]]
        kind = CoupledModel if config.get("coupled") else MultiTaskModel
        return kind(backbone, head_factory(_arguments(config)), str(cfg.trainer.precision))

    def strategy(model: MultiTaskModel, source: str | None, seed: int, options: Mapping[str, Any]) -> Medusa:
        recipe = sources[source] if source is not None else PROBE
        plugins = [instantiate(dict(plugin)) for plugin in recipe["plugins"].values()]
        given: dict[str, Any] = {"seed": seed, **recipe["trainer"], **options}
        return make(model, plugins=plugins, **given)

    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in NO_MATTER}
    return Lab(
        data=scenario.data,
        tasks=scenario.tasks,
        augmentation=scenario.augmentation,
        backbone=functools.partial(_backbone, cfg.backbone),
        model=model,
        strategy=strategy,
        keys={
            "common": {"trainer": trainer, "backbone": plain(cfg.backbone), "augmentation": str(scenario.augmentation)},
            "heads": {name: _arguments(config) for name, config in heads.items()},
            "sources": {n: {**recipe, "head": _arguments(heads[recipe["head"]])} for n, recipe in sources.items()},
        },
        about={
            "data": scenario.name,
            "device": device,
            "threads": int(cfg.trainer.threads),
            "packages": packages(),
            "version": __version__,
            "commit": git_commit(),
            "code": code_hash(),
        },
        folder=folder,
        score_on=tuple(cfg.claims.score_on),
        steps=plain(cfg.claims.steps),
        notify=console.print if console is not None else lambda line: None,
    )


def plan_of(cfg: DictConfig) -> Plan:
    """Return what a configuration is to find out.

    Raises:
        ConfigError: A name in it is unknown, or a number of steps is none.
    """
    claims: Any = OmegaConf.to_container(cfg.claims, resolve=True)
    defaults = {key: claims[key] for key in ("init", "labels", "seeds", "heads", "compared")}
    tasks = (*cfg.scenario.base, *cfg.scenario.stream)
    plan = Plan(
        tasks=tasks,
        base=tuple(claims["base"]),
        held_out=tuple(tasks if claims["held_out"] is None else claims["held_out"]),
        settings=settings_of(claims["settings"], defaults),
        parity=tuple(claims["parity"]),
        ablations=tuple(claims["ablations"]),
        single_task=bool(claims["single_task"]),
        end_to_end_too=bool(claims["end_to_end"]),
    )
    _check_names(plan, list(claims["sources"]), claims["steps"])
    return plan


def _check_names(plan: Plan, sources: Sequence[str], steps: Mapping[str, int]) -> None:
    if not isinstance(steps, Mapping):
        raise ConfigError(f"Expected claims.steps to be steps by task, such as {{semseg: 300}}, but got {steps}.")
    named = [name for setting in plan.settings for name in setting.sources]
    for name in (plan.plain, plan.medusa, *named, *plan.parity, *plan.ablations):
        if name not in (*sources, AS_IT_COMES):
            raise ConfigError(unknown("source in claims", name, [*sources, AS_IT_COMES]))
    for name in (*plan.base, *plan.held_out, *(task for s in plan.settings for task in s.held_out or ()), *steps):
        if name not in plan.tasks:
            raise ConfigError(unknown("task in claims", name, plan.tasks))
    for name, count in steps.items():
        if not (isinstance(count, int) and count >= 1):
            raise ConfigError(f"Expected a whole number of at least 1 for claims.steps.{name}, but got {count}.")
    for setting in plan.settings:
        if setting.init not in INITS:
            raise ConfigError(unknown("init in claims", setting.init, INITS))


def claims_folder(cfg: DictConfig) -> Path:
    """Return where the cells of a configuration are kept."""
    return Path(cfg.out or rundir.RUNS / str(cfg.scenario.name) / "claims")


def _heads_named(cfg: DictConfig) -> list[str]:
    named = [*cfg.claims.heads, *(recipe.head for recipe in cfg.claims.sources.values())]
    return list(dict.fromkeys(str(name) for name in named))


def _head(name: str, width: int | None) -> dict[str, Any]:
    """Return the configuration of a head: a file of configs/head, with switches: "medusa_light sfa=none"."""
    file, *switches = name.split()
    known = sorted(path.stem for path in HEADS.glob("*.yaml"))
    if file not in known:
        raise ConfigError(unknown("head", file, known))
    whole = OmegaConf.create({"head_width": width, "head": OmegaConf.load(HEADS / f"{file}.yaml")})
    whole.head = OmegaConf.merge(whole.head, OmegaConf.from_dotlist(switches))
    content = OmegaConf.to_container(whole.head, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("name", "coupled")}


def _source(name: str, recipe: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(recipe, resolve=True)
    return {"head": content["head"], "plugins": content.get("plugins") or {}, "trainer": content.get("trainer") or {}}


def _backbone(config: DictConfig, init: str, seed: int) -> Backbone:
    from_scratch = {"pretrained": False, "checkpoint": None, "weights_seed": seed}
    made: Backbone = instantiate(config, **(from_scratch if init == "random" else {}))
    return made
