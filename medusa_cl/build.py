"""What a configuration makes: scenario, model, heads, strategy, and what can be checked before any of it is made."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from medusa_cl import __version__, distributed, kept, rundir
from medusa_cl.errors import ConfigError, MedusaError, unknown

if TYPE_CHECKING:
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.start import Start
    from medusa_cl.strategies.medusa import Medusa

SELECT = ("last", "val")  # which epoch's weights are kept; never by the test split
MEDUSA_HEAD = "medusa_cl.models.heads.MedusaHead"
FOR_PEOPLE = ("name", "coupled", "together")  # keys of a configuration that are not arguments of what it makes
CACHE_KEYS = ("cache_features", "cache_precision", "cache_dir")
NO_MATTER = ("workers", "device", "processes", "distributed", "save_steps", "save_minutes")  # of trainer, to results
# Strategies whose nets start from the backbone as it comes.
AS_IT_COMES = ("medusa_cl.strategies.baselines.SingleTask",)


def check(cfg: DictConfig, start: Start | None = None) -> None:
    """Check what costs nothing to check, before anything slow."""
    from medusa_cl.models.execution import require_compiler
    from medusa_cl.models.multitask import PRECISIONS
    from medusa_cl.strategies.finite import StepGuard
    from medusa_cl.strategies.plugins import LRSchedule
    from medusa_cl.strategies.references import check_names

    if type(cfg.seed) is not int or cfg.seed < 0:
        raise ConfigError(f"Expected a whole number of at least 0 for seed, but got {cfg.seed}.")
    trainer = cfg.trainer
    counts = {"batch_size": 1, "epochs": 1, "max_steps": 1, "base_steps": 1, "processes": 1, "save_steps": 1}
    for key, least in counts.items():
        value = trainer[key]
        if value is not None and not (isinstance(value, int) and value >= least):
            raise ConfigError(f"Expected a whole number of at least {least} for trainer.{key}, but got {value}.")
    if trainer.save_minutes is not None and not trainer.save_minutes > 0:
        raise ConfigError(f"Expected trainer.save_minutes above 0, or null, but got {trainer.save_minutes}.")
    if trainer.batch_size % (world := distributed.world()):
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} is the batch of all processes together, so it must be a multiple "
            f"of {world}, their number. Set trainer.batch_size={-(-trainer.batch_size // world) * world}."
        )
    if trainer.select not in SELECT:
        raise ConfigError(unknown("trainer.select", str(trainer.select), SELECT))
    if str(trainer.precision) not in PRECISIONS:
        raise ConfigError(unknown("trainer.precision", str(trainer.precision), PRECISIONS))
    layout_of(trainer.channels_last, cfg.backbone.name, "cpu")
    if trainer.compile:
        require_compiler()
    if not isinstance(cfg.references, str):
        check_names(cfg.references)
    elif cfg.references not in ("auto", "none"):
        raise ConfigError(f'Expected references=auto, none or a list of names, but got "{cfg.references}".')
    LRSchedule(trainer.schedule)
    StepGuard(trainer.on_nan)
    _check_strategy(cfg, start)


def _check_strategy(cfg: DictConfig, start: Start | None) -> None:
    """Check that strategy, plugins, backbone and head go together."""
    from medusa_cl.data.loader import as_augmentation
    from medusa_cl.models.backbone import Backbone
    from medusa_cl.strategies import compose
    from medusa_cl.strategies.medusa import MedusaPlugin

    keys = ("freeze", "stages", "freeze_from", "freeze_old_heads", *CACHE_KEYS)
    freeze = MedusaPlugin(**{key: cfg.strategy[key] for key in keys if key in cfg.strategy})
    plugins = plugins_of(cfg)
    compose.check(plugins, shared_trainable=freeze.shared_trainable, old_trainable=freeze.old_trainable)
    if start is not None:
        compose.follow_loaded(plugins, changed_since=start.experiences > 1 and freeze.shared_trainable)
        _check_start(cfg, start)
    small = Backbone.create(cfg.backbone.name, pretrained=False)  # knows whether the name and its strides will do
    if freeze.freeze == "stages":
        small.freeze_stages(freeze.stages)
    head_factory(cfg.head)(small.channels, {"task": 1} if cfg.head.get("coupled") else 1)
    _check_together(cfg)
    if "augment" in cfg.scenario:
        augment: Any = OmegaConf.to_container(cfg.scenario.augment, resolve=True) if cfg.scenario.augment else None
        freeze.cache.check(as_augmentation(augment))


def _check_start(cfg: DictConfig, start: Start) -> None:
    comes = cfg.strategy["_target_"] in AS_IT_COMES or cfg.strategy.get("freeze_from") == 0
    if comes and start.experiences == 1:
        raise ConfigError(
            f"strategy={cfg.strategy.name} uses the backbone as it comes, and base={cfg.base} has trained it. "
            "Leave base= out."
        )


def begins_alike(cfg: DictConfig, other: DictConfig) -> bool:
    """Return whether a run learns the base tasks as another does, so that it may start from what that one learnt."""
    comes = cfg.strategy["_target_"] in AS_IT_COMES or cfg.strategy.get("freeze_from") == 0
    together = cfg.scenario.get("order") == "joint"
    return not comes and not together and cfg.head == other.head and cfg.backbone == other.backbone


def _check_together(cfg: DictConfig) -> None:
    """Check that what learns all tasks together is given them so."""
    name, together = cfg.strategy.name, cfg.strategy.get("together", False)
    order, coupled = cfg.scenario.get("order"), bool(cfg.head.get("coupled"))
    if together and order != "joint":
        raise ConfigError(f"strategy={name} learns all tasks together, but got scenario.order={order}. Leave it out.")
    if name in ("padnet", "mtinet") and not coupled:
        raise ConfigError(f"strategy={name} needs head={name}, but got head={cfg.head.name}. Leave head= out.")
    if coupled and cfg.scenario.get("stream") and order != "joint":
        raise ConfigError(
            f"head={cfg.head.name} decodes all tasks together, so it cannot be given one task after the other. "
            f"Learn them all at once: strategy={cfg.head.name}."
        )


def arrange_stream(cfg: DictConfig) -> None:
    """Say in the configuration what will be learnt when, where its options decide that."""
    from medusa_cl.scenarios.dense import arrange

    scenario = cfg.scenario
    options = {key: scenario[key] for key in ("order", "held_out", "seed") if key in scenario}
    base, stream = scenario.get("base"), scenario.get("stream")
    if not options or base is None or stream is None:
        return
    if options.get("order") == "joint":
        _, alone = arrange(base, stream, held_out=options.get("held_out"))
        lengthen(cfg, len(alone))
    scenario.base, scenario.stream = arrange(base, stream, **options)


def arrange_found(cfg: DictConfig, scenario: DenseScenario) -> None:
    """Count the steps of tasks learnt together where only the data has told which tasks there are."""
    if cfg.scenario.get("order") == "joint" and cfg.scenario.get("base") is None:
        lengthen(cfg, len(scenario.tasks) - 1)


def lengthen(cfg: DictConfig, tasks: int) -> None:
    """Give experience 0 the steps, or the epochs, of so many new tasks too: they are learnt in it."""
    trainer = cfg.trainer
    if trainer.max_steps:
        trainer.base_steps = (trainer.base_steps or trainer.max_steps) + tasks * trainer.max_steps
    else:
        trainer.epochs *= 1 + tasks


def resolve_device(name: str) -> str:
    """Return the torch device meant; auto is CUDA where there is one.

    Raises:
        ConfigError: A CUDA device is asked for and there is none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(name).split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(unknown("trainer.device", str(name), ("auto", "cpu", "cuda")))
    if str(name).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"trainer.device={name}, but torch finds no CUDA device. Use trainer.device=auto or cpu.")
    return str(name)


def instantiate(config: Any, **options: Any) -> Any:
    """Make what a configuration describes; Hydra would hide our errors, and their exit status, in one of its own.

    Raises:
        MedusaError: Whatever what is made raises.
    """
    try:
        return hydra.utils.instantiate(config, **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, MedusaError):
            raise error.__cause__ from error.__cause__.__cause__
        raise


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration without what is for people."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key not in FOR_PEOPLE}


def head_factory(config: DictConfig | Mapping[str, Any]) -> Any:
    """Return what makes the heads."""
    return instantiate(plain(config) if isinstance(config, DictConfig) else dict(config))


def plugins_of(cfg: DictConfig) -> list[Any]:
    """Make the plugins to compose with."""
    return [instantiate(plugin) for plugin in cfg.plugins.values()]


def scenario_of(cfg: DictConfig, console: Any = None) -> DenseScenario:
    """Make the scenario; one that makes, fetches or reads through its data shows how far it is."""
    from medusa_cl.tracking.console import bars

    ours = str(cfg.scenario["_target_"]).startswith("medusa_cl.")
    arranged = cfg.scenario.get("base") is not None and cfg.scenario.get("stream") is not None
    done = ("order", "held_out") if arranged else ()
    content: Any = OmegaConf.to_container(cfg.scenario, resolve=True)
    options = {key: value for key, value in content.items() if key not in done}
    with bars(console) as advance:
        made: DenseScenario = instantiate(options, **({"progress": advance} if ours and console else {}))
    return made


def tracker_of(cfg: DictConfig) -> Any:
    """Return where to record besides the run directory, or None."""
    if not cfg.tracking.enabled:
        return None
    from medusa_cl.tracking.mlflow import MLflowTracker

    parent = cfg.tracking.get("parent")
    return MLflowTracker(cfg.scenario.name, uri=cfg.tracking.uri, runs=rundir.RUNS, parent_run_id=parent)


def new_model(cfg: DictConfig) -> MultiTaskModel:
    """Make the model that nothing has been learnt with."""
    from medusa_cl.models.coupled import CoupledModel
    from medusa_cl.models.multitask import MultiTaskModel

    kind = CoupledModel if cfg.head.get("coupled") else MultiTaskModel
    return kind(instantiate(cfg.backbone), head_factory(cfg.head), str(cfg.trainer.precision))


def loaded_model(cfg: DictConfig, start: Start, scenario: DenseScenario) -> MultiTaskModel:
    """Load what a run starts with."""
    from medusa_cl.checkpoint import load_model

    model = load_model(start.model, scenario.tasks, head_factory(cfg.head))
    model.precision = str(cfg.trainer.precision)
    for task in start.removed:
        model.remove_head(task)
    start.check(model, scenario, cfg.backbone.name)
    return model


def resumed_model(cfg: DictConfig, saved: Mapping[str, Any], scenario: DenseScenario) -> MultiTaskModel:
    """Make the model that a run had when it was saved, without the heads that were being learnt."""
    from medusa_cl.checkpoint import build_model

    model = build_model(saved["description"], scenario.tasks, head_factory(cfg.head))
    model.precision = str(cfg.trainer.precision)
    own = model.state_dict()
    model.load_state_dict({name: value for name, value in saved["strategy"]["weights"].items() if name in own})
    return model


def strategy_factory(
    cfg: DictConfig, device: str, scenario: DenseScenario, bars: Any = None, of: Callable[..., Medusa] | None = None
) -> Callable[..., Medusa]:
    """Return `(model, **options) -> Medusa` with the run's trainer options; `of` makes another than its strategy."""
    import torch

    from medusa_cl.strategies.plugins import GradientClipping, LRSchedule, ValSelection
    from medusa_cl.strategies.ranks import EqualRanks

    trainer = cfg.trainer
    keys = ("lr_head", "lr_backbone", "batch_size", "epochs", "max_steps", "base_steps", "workers", "on_nan")
    common = {
        "optimizer": functools.partial(torch.optim.Adam, weight_decay=trainer.weight_decay, fused=True),
        **{key: trainer[key] for key in keys},
        "seed": cfg.seed,
        "device": device,
    }

    # References stand on a frozen backbone also where the run itself does not; features are kept then.
    frozen = of is not None and cfg.strategy.get("freeze") == "backbone"
    cache = {key: cfg.strategy[key] for key in CACHE_KEYS if key in cfg.strategy} if frozen else {}

    def make(model: MultiTaskModel, *, plugins: Sequence[Any] = (), **options: Any) -> Medusa:
        model.use_channels_last(**layout_of(trainer.channels_last, model.backbone.name, device))
        if trainer.compile:
            model.compile_parts()
        own: list[Any] = [LRSchedule(trainer.schedule)]
        selection = [ValSelection(scenario.data["val"])] if trainer.select == "val" else []
        clip = [GradientClipping(trainer.clip)] if trainer.clip else []
        shown = [bars] if bars is not None else []
        first: list[Any] = [EqualRanks()] if distributed.world() > 1 else []
        first += selection
        kind = of or instantiate(plain(cfg.strategy))
        kept = cache if "cache_features" not in options else {}
        made: Medusa = kind(model=model, plugins=[*first, *plugins, *own, *clip, *shown], **(common | kept | options))
        if bars is not None:
            made.medusa.cache.bar, made.medusa.cache.notify = bars.bar, bars.say
        return made

    return make


def layout_of(channels_last: bool | str, backbone: str, device: str) -> dict[str, bool]:
    """Return which parts run channels last: all, none, or those where it pays.

    Raises:
        ConfigError: `channels_last` is none of auto, true and false.
    """
    from medusa_cl.models.execution import channels_last_pays

    if channels_last not in (True, False, "auto"):
        raise ConfigError(unknown("trainer.channels_last", str(channels_last), ("auto", "true", "false")))
    pays = channels_last_pays(backbone, device)
    return pays if channels_last == "auto" else dict.fromkeys(pays, bool(channels_last))


def head_factories(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the heads of references: plain, the run's own, a Medusa head, and its ungated control of equal parameters.

    Where the run's own head is a Medusa head, the Medusa head and the control are like it.
    """
    own = _named_head("plain", cfg.head_width) if cfg.head.get("coupled") else plain(cfg.head)
    medusa = own if own["_target_"] == MEDUSA_HEAD else _named_head("medusa_light", cfg.head_width)
    control = medusa | {"_target_": "medusa_cl.models.heads.ControlHead"}
    return {"plain": _named_head("plain", cfg.head_width), "medusa": medusa, "control": control, "own": own}


def _named_head(name: str, width: int | None) -> dict[str, Any]:
    file = OmegaConf.load(Path(__file__).parent / "configs" / "head" / f"{name}.yaml")
    whole = OmegaConf.create({"head_width": width, "head": file})
    return plain(whole.head)


def foreign_code(cfg: DictConfig) -> dict[str, str]:
    """Return the hashes of files that hold classes of the user's own, by module: what they make depends on them."""
    from importlib.util import find_spec

    targets = re.findall(r"_target_: ([\w.]+)\.\w+", OmegaConf.to_yaml(cfg))
    modules = {name for name in targets if name.split(".")[0] not in ("medusa_cl", "avalanche", "torch")}
    specs = {name: find_spec(name) for name in sorted(modules)}
    files = {name: spec.origin for name, spec in specs.items() if spec is not None and spec.origin}
    return {name: kept.file_hash(Path(file)) for name, file in files.items() if Path(file).is_file()}


def dependencies(cfg: DictConfig, device: str, scenario: DenseScenario, weights_hash: str) -> dict[str, Any]:
    """Return all that references depend on, besides their tasks and heads."""
    from medusa_cl.summary import code_hash, packages

    trainer = plain(cfg.trainer)
    return {
        "data": scenario.content_hash,
        "written": [getattr(source, "written", "") for source in scenario.data.values()],
        "sizes": [source.image_size for source in scenario.data.values()],
        "augmentation": str(scenario.augmentation),
        "weights": weights_hash,
        "features": str(cfg.strategy.get("cache_precision", "32")),
        "trainer": {k: v for k, v in trainer.items() if k not in NO_MATTER},
        "ranks": distributed.world(),
        "seed": cfg.seed,
        "device": device,
        "code": [__version__, code_hash(), packages(), foreign_code(cfg)],
    }


def base_place(cfg: DictConfig, scenario: DenseScenario, key: Mapping[str, Any]) -> Path | None:
    """Return where it is noted who has learnt this base; None where something may look at how it is learnt."""
    from medusa_cl.strategies import compose

    if not all(compose.idle_at_first(plugin) for plugin in plugins_of(cfg)):
        return None
    strategy = {"freeze_from": 1, **plain(cfg.strategy)}
    later = ["freeze_old_heads", *CACHE_KEYS]  # act from experience 1 on
    later += ["freeze", "stages"] if strategy["freeze_from"] else []
    later = later if str(strategy["_target_"]).startswith("medusa_cl.") else []
    own = {
        "tasks": [scenario.tasks[name].describe() for name in scenario.base],
        "head": plain(cfg.head),
        "strategy": {key: value for key, value in strategy.items() if key not in later},
    }
    return kept.place("base", {**key, **own})


def run_place(cfg: DictConfig, scenario: DenseScenario, key: Mapping[str, Any]) -> Path:
    """Return where it is noted that this run was finished."""
    parts = {part: plain(cfg[part]) for part in ("strategy", "head")}
    plugins = list(cast(dict[str, Any], OmegaConf.to_container(cfg.plugins, resolve=True)).items())  # order matters
    tasks = [task.describe() for task in scenario.tasks.values()]
    own = {**parts, "plugins": plugins, "groups": scenario.groups, "tasks": tasks, "base": cfg.base or "auto"}
    return kept.place("run", {**key, **own})
