"""Learn a stream of dense tasks: `python -m medusa_cl.run [scenario=...] [strategy=...] [key=value ...]`.

This is where configuration ends: everything below gets plain values, objects and functions.
"""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import hydra.utils
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from medusa_cl import __version__
from medusa_cl.configs.check import check_overrides
from medusa_cl.errors import ConfigError, MedusaError, unknown

if TYPE_CHECKING:
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.results import TaskMatrix
    from medusa_cl.scenarios.dense import DenseScenario
    from medusa_cl.strategies.medusa import Medusa
    from medusa_cl.tracking import RunRecorder

RUNS = Path("runs")


def main() -> None:
    """Run the verb; errors a user can mend are one message and an exit status, not a traceback."""
    try:
        check_overrides(sys.argv[1:])
    except MedusaError as error:
        _fail(error)
    _hydra_main()


@hydra.main(config_path="pkg://medusa_cl.configs", config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    try:
        summary = run(cfg)
        for line in cfg.get("compare") or []:
            run(_compared(line, summary["run_dir"]))
    except MedusaError as error:
        _fail(error)
    value = summary["objective"]
    return None if value is None else float(value)


def _fail(error: MedusaError) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def _compared(line: str, base: str) -> DictConfig:
    """Compose the configuration of a run that starts from another one's base."""
    overrides = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] not in ("out", "compare")]
    return hydra.compose("config", [*overrides, "++compare=[]", *line.split(), f"base={base}"])


def run(cfg: DictConfig) -> dict[str, Any]:
    """Learn the stream that a configuration describes.

    Args:
        cfg: The composed configuration.

    Returns:
        The summary, with "run_dir" and "objective", the number that a sweep maximises: the mean transfer.

    Raises:
        MedusaError: Something about configuration, data, weights or training that the message says how to mend.
    """
    import torch

    from medusa_cl.tracking.console import make_console, report

    console = make_console()
    stages: dict[str, float] = {}
    started = time.perf_counter()
    device = resolve_device(cfg.trainer.device)
    torch.set_num_threads(int(cfg.trainer.threads))
    base = find_base(cfg.base) if cfg.base else None
    _check(cfg)
    run_dir = make_run_dir(cfg)
    try:
        setting = _set_up(cfg, device, run_dir, base, console, stages)
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)  # nothing was learnt in it
        raise
    stages["set-up"] = time.perf_counter() - started - sum(stages.values())
    summary = _learn(setting, stages)
    console.print(report(summary, run_dir, setting.recorder.ui_line()))
    return summary | {"run_dir": str(run_dir), "objective": _mean_transfer(summary)}


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


def _check(cfg: DictConfig) -> None:
    """Check what costs nothing to check, before anything slow."""
    if not isinstance(cfg.references, str):
        from medusa_cl.results import REFERENCES

        for name in cfg.references:
            if name not in REFERENCES:
                raise ConfigError(unknown("reference", name, REFERENCES))
    elif cfg.references not in ("auto", "none"):
        raise ConfigError(f'Expected references=auto, none or a list, but got "{cfg.references}".')
    if cfg.trainer.batch_size < 1 or cfg.trainer.epochs < 1:
        raise ConfigError(
            "Expected trainer.batch_size and trainer.epochs of at least 1, "
            f"but got {cfg.trainer.batch_size} and {cfg.trainer.epochs}."
        )


def make_run_dir(cfg: DictConfig) -> Path:
    """Make the run directory and write the configuration into it.

    Raises:
        ConfigError: It is there and not empty.
    """
    path: Path = Path(cfg.out) if cfg.out else _free_directory(cfg)
    if path.is_dir() and any(path.iterdir()):
        if not cfg.overwrite:
            raise ConfigError(
                f"The run directory {path} is not empty. Add overwrite=true to empty it, or choose another out=, "
                "or none for the next free one."
            )
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, path / "config.yaml", resolve=True)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    OmegaConf.save(OmegaConf.create(overrides), path / "overrides.yaml")
    return path


def _free_directory(cfg: DictConfig) -> Path:
    folder = RUNS / str(cfg.scenario.name)
    job_config: Any = HydraConfig.get().job if HydraConfig.initialized() else {}
    number = OmegaConf.select(job_config, "num") if job_config else None
    job = "" if number is None else f"-j{number}"
    stem = f"{cfg.strategy.name}-{cfg.backbone.name}-s{cfg.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(10**6):
        path = folder / f"{stem}-{n}{job}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ConfigError(f"No free run directory {folder / stem}-<n>.")


def find_base(base: str) -> Path:
    """Return the directory of the model that a run had after experience 0.

    Args:
        base: A run directory, the directory of a model, or "last" for the latest run under runs/.

    Raises:
        ConfigError: There is no such model.
    """
    if base == "last":
        found = sorted(RUNS.glob("*/*/checkpoints/experience_0/model.json"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ConfigError("base=last, but no run under runs/ has learnt its base tasks yet.")
        return found[-1].parent
    for path in (Path(base), Path(base) / "checkpoints" / "experience_0"):
        if (path / "model.json").is_file():
            return path
    raise ConfigError(f"Expected base= a run directory or a model in it, but found no model.json in {base}.")


@dataclass
class Setting:
    """Everything a run is made of."""

    cfg: DictConfig
    device: str
    run_dir: Path
    base: Path | None
    scenario: DenseScenario
    model: MultiTaskModel
    make_strategy: Callable[..., Medusa]
    heads: Mapping[str, Any]
    recorder: RunRecorder
    console: Any
    bars: Any
    plugins: list[Any] = field(default_factory=list)


def _set_up(
    cfg: DictConfig, device: str, run_dir: Path, base: Path | None, console: Any, stages: dict[str, float]
) -> Setting:
    import torch

    from medusa_cl.checkpoint import load_model
    from medusa_cl.models.multitask import MultiTaskModel
    from medusa_cl.strategies.plugins import Progress
    from medusa_cl.tracking import RunRecorder
    from medusa_cl.tracking.console import header, progress

    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {cfg.trainer.threads} threads"
    console.print(header(f"medusa_cl {__version__} on {on}", _facts(cfg, base)))
    started = time.perf_counter()
    scenario = _scenario(cfg, console)
    stages["data"] = time.perf_counter() - started
    heads = head_factories(cfg)
    model = (
        MultiTaskModel(instantiate(cfg.backbone), instantiate(cfg.head), str(cfg.trainer.precision))
        if base is None
        else load_model(base, scenario.tasks, instantiate(cfg.head))
    )
    model.precision = str(cfg.trainer.precision)
    _check_base(model, scenario, cfg, base)
    if cfg.trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    bars = Progress(functools.partial(progress, console=console))
    recorder = RunRecorder(run_dir, _tracker(cfg))
    return Setting(
        cfg,
        device,
        run_dir,
        base,
        scenario,
        model,
        _strategy_factory(cfg, device, bars),
        heads,
        recorder,
        console,
        bars,
    )


def _facts(cfg: DictConfig, base: Path | None) -> dict[str, Any]:
    stream = f"{', '.join(cfg.scenario.base)}, then {', '.join(cfg.scenario.stream)}"
    steps = f"{cfg.trainer.base_steps} base, {cfg.trainer.max_steps} a task, batch {cfg.trainer.batch_size}"
    composed = " + ".join([cfg.strategy.name, *cfg.plugins])
    return {
        "scenario": f"{cfg.scenario.name}: {stream}",
        "strategy": f"{composed}, freeze {cfg.strategy.freeze}, seed {cfg.seed}",
        "model": f"{cfg.backbone.name}, {cfg.head['_target_'].rsplit('.', 1)[1]}",
        "steps": steps,
        "base": None if base is None else f"starts from {base}: its base tasks are not learnt again",
    }


def _scenario(cfg: DictConfig, console: Any) -> DenseScenario:
    from medusa_cl.tracking.console import progress

    if cfg.scenario["_target_"] != "medusa_cl.scenarios.rooms.rooms_incremental":
        scenario: DenseScenario = instantiate(cfg.scenario)
        return scenario
    shown: list[Any] = []

    def rooms(done: int, total: int) -> None:
        if not shown:
            context = progress("rooms (once)", total, console)
            shown.extend([context, context.__enter__()])
        shown[1].advance(done - shown[1].done, done - shown[1].images)
        if done >= total:
            shown[0].__exit__(None, None, None)

    scenario = instantiate(cfg.scenario, progress=rooms)
    return scenario


def head_factories(cfg: DictConfig) -> dict[str, Any]:
    """Return the heads of references: plain, and a Medusa head with its ungated control of equal parameters.

    Where the run's own head is a Medusa head, the two are like it.
    """
    medusa = "medusa_cl.models.heads.MedusaHead"
    here = Path(__file__).parent / "configs" / "head"
    ours = cfg.head if cfg.head["_target_"] == medusa else OmegaConf.load(here / "medusa_light.yaml")
    control = OmegaConf.merge(ours, {"_target_": "medusa_cl.models.heads.ControlHead"})
    return {"plain": OmegaConf.load(here / "plain.yaml"), "medusa": ours, "control": control}


def _check_base(model: MultiTaskModel, scenario: DenseScenario, cfg: DictConfig, base: Path | None) -> None:
    if base is None:
        return
    if model.backbone.name != cfg.backbone.name:
        raise ConfigError(f"{base} has backbone {model.backbone.name}, but backbone.name={cfg.backbone.name}.")
    if set(model.tasks) != set(scenario.base):
        raise ConfigError(
            f"{base} has learnt {', '.join(model.tasks)}, but scenario.base is {', '.join(scenario.base)}. "
            "Make them equal."
        )


def _tracker(cfg: DictConfig) -> Any:
    if not cfg.tracking.enabled:
        return None
    from medusa_cl.tracking.mlflow import MLflowTracker

    return MLflowTracker(cfg.scenario.name, uri=cfg.tracking.uri, runs=RUNS)


def _strategy_factory(cfg: DictConfig, device: str, bars: Any) -> Callable[..., Medusa]:
    """Return `(model, **options) -> Medusa` with the run's trainer options."""
    import torch

    from medusa_cl.strategies.plugins import GradientClipping, LRSchedule

    trainer = cfg.trainer
    common = {
        "optimizer": functools.partial(torch.optim.Adam, weight_decay=trainer.weight_decay, fused=True),
        **{
            key: trainer[key]
            for key in ("lr_head", "lr_backbone", "batch_size", "epochs", "max_steps", "base_steps", "workers")
        },
        "seed": cfg.seed,
        "device": device,
    }

    def make(model: MultiTaskModel, *, plugins: list[Any] | None = None, **options: Any) -> Medusa:
        own = [LRSchedule(trainer.schedule), *([GradientClipping(trainer.clip)] if trainer.clip else []), bars]
        strategy = OmegaConf.to_container(cfg.strategy, resolve=True)
        assert isinstance(strategy, dict)
        chosen = {k: v for k, v in strategy.items() if k != "name"} | {"_partial_": True}
        made: Medusa = instantiate(chosen)(model=model, plugins=[*(plugins or []), *own], **(common | options))
        return made

    return make


def _learn(setting: Setting, stages: dict[str, float]) -> dict[str, Any]:
    from medusa_cl.learn import learn
    from medusa_cl.summary import costs, summarise

    cfg, recorder, scenario = setting.cfg, setting.recorder, setting.scenario
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    recorder.start({str(k): v for k, v in config.items()}, _tags(cfg, setting.run_dir))
    seconds: dict[str, float] = {}
    try:
        for split, digest in scenario.content_hash.items():
            recorder.dataset(f"{scenario.name}-{split}", digest, str(getattr(scenario.data[split], "path", split)))
        strategy = setting.make_strategy(setting.model, plugins=_plugins(setting), evaluator=_evaluator(recorder))
        row = functools.partial(_record, setting)
        matrix = learn(scenario, strategy, start=0 if setting.base is None else 1, learnt=row, seconds=seconds)
        stages |= seconds
        started = time.perf_counter()
        references = _references(setting)
        stages["references"] = time.perf_counter() - started
        started = time.perf_counter()
        train_seconds = {label: value for label, value in seconds.items() if label != "evaluation"}
        cost = costs(setting.model, _image_size(scenario)) | {
            "train_seconds": train_seconds,
            "images_per_second": dict(setting.bars.rates),
        }
        summary = summarise(
            _identity(setting),
            matrix,
            scenario.tasks,
            references,
            cost,
            _provenance(setting),
            frozen=cfg.strategy.freeze == "backbone",
            medusa_head=setting.heads["medusa"] == cfg.head,
        )
        _overview(setting)
        recorder.model(setting.run_dir / "model")
        stages["tracking"] = time.perf_counter() - started
        summary["stages"] = stages
        recorder.summary(summary, (setting.run_dir / "task_matrix.csv").read_text(encoding="utf-8"))
    except BaseException:
        setting.bars.close()
        recorder.fail()
        raise
    recorder.finish()
    return summary


def _tags(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    from medusa_cl.summary import git_commit

    return {
        "strategy": cfg.strategy.name,
        "scenario": cfg.scenario.name,
        "backbone": cfg.backbone.name,
        "seed": cfg.seed,
        "git": git_commit(),
        "version": __version__,
        "run_dir": str(run_dir),
        "plugins": ",".join(cfg.plugins) or None,
    }


def _plugins(setting: Setting) -> list[Any]:
    return [instantiate(plugin) for plugin in setting.cfg.plugins.values()]


def _evaluator(recorder: RunRecorder) -> Any:
    from medusa_cl.strategies.evaluation import dense_evaluator
    from medusa_cl.strategies.logger import TrackerLogger

    return dense_evaluator([TrackerLogger(recorder)])


def _record(setting: Setting, k: int, matrix: TaskMatrix, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Keep what is known after an experience: the matrix, pictures, heads and the model."""
    from medusa_cl.checkpoint import save_model
    from medusa_cl.learn import pictures

    recorder, run_dir, model = setting.recorder, setting.run_dir, setting.model
    matrix.to_csv(run_dir / "task_matrix.csv")
    lost = {task: matrix.forgetting(task) for task in matrix.old_tasks}
    if lost:
        recorder.metrics(
            {f"forgetting/{task}": v for task, v in (lost | {"mean": matrix.mean_forgetting()}).items()},
            len(model.tasks),
        )
    images, drawn = pictures(setting.scenario, model)
    panels = {task: [(i, t, p) for i, (t, p) in zip(images, pairs, strict=True)] for task, pairs in drawn.items()}
    recorder.predictions(len(model.tasks), panels)
    for task in setting.scenario.groups[k]:
        model.save_head(task, run_dir / "heads" / f"{task}.safetensors")
    if k == 0:
        save_model(model, run_dir / "checkpoints" / "experience_0")
    save_model(model, run_dir / "model")


def _references(setting: Setting) -> dict[str, dict[str, float | None]]:
    """Return the references' values: those of the base's run, else kept ones, else learnt now."""
    import json

    from medusa_cl.results import FROZEN_PLAIN, FROZEN_PLAIN_CONTROL, FROZEN_PLAIN_MEDUSA
    from medusa_cl.strategies.references import Recipe, reference_values

    cfg = setting.cfg
    if cfg.references == "none":
        return {}
    if cfg.references == "auto" and setting.base is not None:
        summary = setting.base.parents[1] / "summary.json"
        if summary.is_file():
            setting.console.print(f"references: those of the base's run, {summary.parent}")
            values: dict[str, dict[str, float | None]] = json.loads(summary.read_text())["transfer"]["reference_values"]
            return values
    names = (
        [FROZEN_PLAIN, FROZEN_PLAIN_CONTROL, FROZEN_PLAIN_MEDUSA] if cfg.references == "auto" else list(cfg.references)
    )
    recipe = Recipe(
        setting.scenario,
        functools.partial(instantiate, cfg.backbone),
        {name: instantiate(head) for name, head in setting.heads.items()},
        setting.make_strategy,
        _reference_key(setting),
        RUNS / ".cache",
        setting.console.print,
    )
    return reference_values(recipe, names)


def _reference_key(setting: Setting) -> dict[str, Any]:
    import torch

    cfg = setting.cfg
    return {
        "data": setting.scenario.content_hash,
        "groups": setting.scenario.groups,
        "augmentation": str(setting.scenario.augmentation),
        "backbone": OmegaConf.to_container(cfg.backbone, resolve=True),
        "heads": {name: OmegaConf.to_container(head, resolve=True) for name, head in setting.heads.items()},
        "trainer": OmegaConf.to_container(cfg.trainer, resolve=True),
        "precision": str(cfg.trainer.precision),
        "seed": cfg.seed,
        "device": setting.device,
        "versions": [__version__, torch.__version__],
    }


def _identity(setting: Setting) -> dict[str, Any]:
    cfg = setting.cfg
    head = next((name for name in ("plain", "medusa", "control") if setting.heads[name] == cfg.head), "medusa")
    choice = HydraConfig.get().runtime.choices.get("head") if HydraConfig.initialized() else None
    return {
        "scenario": cfg.scenario.name,
        "strategy": "+".join([cfg.strategy.name, *cfg.plugins]),
        "backbone": cfg.backbone.name,
        "head": choice or head,
        "seed": cfg.seed,
        "device": setting.device,
    }


def _provenance(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {
        "data_hash": setting.scenario.content_hash,
        "weights_hash": setting.model.backbone.weights_hash(),
        "rooms_golden_ok": None,
    }
    if setting.scenario.name.startswith("rooms"):
        from medusa_cl.data import rooms

        found["rooms_golden_ok"] = rooms.golden_ok()
    return found


def _image_size(scenario: DenseScenario) -> tuple[int, int]:
    height, width = scenario.data["test"].image(0).shape[-2:]
    return int(height), int(width)


def _overview(setting: Setting) -> None:
    from medusa_cl.learn import pictures
    from medusa_cl.tracking import panels

    images, drawn = pictures(setting.scenario, setting.model)
    samples = [(image, [(task, *pairs[i]) for task, pairs in drawn.items()]) for i, image in enumerate(images)]
    setting.recorder.panel(
        panels.overview(samples, f"{setting.cfg.strategy.name}: test images, target above prediction")
    )


def _mean_transfer(summary: Mapping[str, Any]) -> float | None:
    gains = [entry.get("gain") for entry in summary["transfer"]["per_task"].values()]
    known = [gain for gain in gains if gain is not None]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    main()
