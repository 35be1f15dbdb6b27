from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fake_data import fake_dense_hdf5
from fake_folder import write_folder
from fake_nyud import write_nyud_pack
from fake_pascal import write_pascal
from medusa_cl.build import FOR_PEOPLE, check, instantiate
from medusa_cl.configs.check import check_overrides, groups
from medusa_cl.data.loader import Augmentation, as_augmentation
from medusa_cl.errors import ConfigError, MissingDataError, TaskError
from medusa_cl.models import Backbone, MultiTaskModel

GROUPS = groups()
TRAINER = {
    "device", "precision", "batch_size", "epochs", "max_steps", "base_steps", "lr_head", "lr_backbone", "workers",
    "threads", "schedule", "clip", "weight_decay", "channels_last", "compile", "distributed", "processes", "select",
    "on_nan", "save_minutes", "save_steps",
}  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_here() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_module("medusa_cl.configs", version_base="1.3"):
        yield


def config(*overrides: str) -> DictConfig:
    check_overrides(overrides)
    return compose("config", list(overrides))


def options(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", GROUPS[group])


def test_every_folder_of_yaml_is_a_group() -> None:
    groups = {"scenario", "backbone", "head", "trainer", "strategy", "plugins", "tracking", "claims", "experiment"}
    assert set(GROUPS) == groups
    assert all(GROUPS.values())


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names])
def test_every_option_composes_and_resolves(group: str, name: str) -> None:
    chosen = f"plugins=[{name}]" if group == "plugins" else f"{group}={name}"
    cfg = config(chosen)
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert {"scenario", "backbone", "head", "trainer", "strategy", "plugins", "tracking", "seed", "out"} <= set(cfg)


def test_the_defaults_are_the_demos() -> None:
    cfg = config()
    assert (cfg.scenario.name, cfg.strategy.name, cfg.backbone.name) == (
        "rooms_incremental",
        "medusa",
        "tf_efficientnet_lite0",
    )
    assert list(cfg.scenario.base) == ["semseg", "depth"]
    assert cfg.plugins == {}
    assert cfg.out is None


@pytest.fixture(scope="module")
def nyud_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_dense_hdf5(tmp_path_factory.mktemp("nyud") / "NYUD_MT.h5", {"train": 2, "test": 1}, classes=40)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What makes each scenario small, by the first part of its name."""
    nyud, pascal, folder = (tmp_path_factory.mktemp(name) for name in ("nyud", "pascal", "folder"))
    write_nyud_pack(nyud / "NYUD_MT", "survey")
    write_pascal(pascal)
    write_folder(folder)
    given = {name: [f"scenario.root={path}"] for name, path in (("nyud", nyud), ("pascal", pascal), ("folder", folder))}
    sizes = ("train_size=2", "val_size=0", "test_size=1", "image_size=[32,64]")
    return given | {"rooms": [f"scenario.{size}" for size in sizes]}


@options("scenario")
def test_scenarios_take_all_the_keys_they_are_configured_with(name: str, roots: dict[str, list[str]]) -> None:
    source = roots[name.split("_")[0]]
    cfg = config(f"scenario={name}", "scenario.base=[semsegg]", "scenario.stream=[depth]", *source)
    assert cfg.scenario.name == name
    with pytest.raises(TaskError, match='Did you mean "semseg"'):  # cheap: names are looked at before anything is made
        instantiate(cfg.scenario)


GROUPS_OF = {
    "rooms_incremental": [("semseg", "depth"), ("normals",), ("edges",), ("reshading",)],
    "rooms_long": [("semseg", "depth")]
    + [(n,) for n in ("normals", "edges", "reshading", "albedo", "curvature", "keypoints2d", "saliency")],
    "nyud_incremental": [("semseg", "depth"), ("normals",), ("edges",)],
    "nyud_incremental_long": [(n,) for n in ("semseg", "depth", "normals", "edges", "curvature", "keypoints2d")],
    "pascal_incremental": [("semseg", "human_parts", "saliency"), ("normals",), ("edges",)],
    "folder_incremental": [(n,) for n in ("semseg", "depth", "normals", "edges", "temperature")],
}


@options("scenario")
def test_scenarios_are_made_of_their_configuration(name: str, roots: dict[str, list[str]]) -> None:
    scenario = instantiate(config(f"scenario={name}", *roots[name.split("_")[0]]).scenario)
    assert (scenario.name, scenario.groups) == (name, GROUPS_OF[name])
    zooms = (1.0, 1.2, 1.5) if name.startswith("nyud") else (1.0,)
    assert (scenario.augmentation.flip, scenario.augmentation.zooms) == (True, zooms)
    size = tuple(scenario.test_stream[0].dataset[0].image.shape[1:])
    assert size == {"pascal": (512, 512), "folder": (48, 40), "rooms": (32, 64)}.get(name.split("_")[0], (48, 64))


@options("scenario")
def test_a_scenarios_order_is_chosen_by_the_runs_seed(name: str, roots: dict[str, list[str]]) -> None:
    cfg = config(f"scenario={name}", "scenario.order=random", *roots[name.split("_")[0]])
    orders = set()
    for cfg.seed in range(5):
        orders.add(instantiate(cfg.scenario).stream)
    assert len(orders) > 1
    cfg.scenario.held_out = "semseg"
    last = instantiate(cfg.scenario)
    assert last.stream == ("semseg",)
    assert set(last.base) == {task for group in GROUPS_OF[name] for task in group} - {"semseg"}


@options("experiment")
def test_experiments_are_made_of_their_configuration(name: str, roots: dict[str, list[str]]) -> None:
    import timm

    small = list(roots.get(name.split("_")[0], roots["rooms"]))
    if name.startswith(("rooms_claims", "rooms_universal")):
        small += ["scenario.confirm_size=1", "scenario.confirm_style_size=1"]
    cfg = config(f"experiment={name}", *small)
    scenario = instantiate(cfg.scenario)
    assert scenario.groups == GROUPS_OF.get(
        cfg.scenario.name, [tuple(cfg.scenario.base), *((n,) for n in cfg.scenario.stream)]
    )
    assert cfg.backbone.name in timm.list_models()
    strategy = {key: value for key, value in cfg.strategy.items() if key not in FOR_PEOPLE}
    assert callable(instantiate(strategy))
    assert len(scenario.test_stream[0].dataset[0].targets) == len(scenario.base)


# What is common to papers on each data set, and what to take of them to be comparable.
PROTOCOL = {
    "nyud_hrnet18": ("nyud_incremental", (8, 100, None, None), (1.0, 1.2, 1.5), None, 0.0, None),
    "nyud_crop": ("nyud_incremental", (4, 1000, 40000, 40000), (1.0,), (0.5, 2.0), 0.0, (448, 576)),
    "pascal_hrnet18": ("pascal_incremental", (8, 60, None, None), (1.0,), (0.75, 1.25), 20.0, None),
    "pascal_crop": ("pascal_incremental", (4, 1000, 40000, 40000), (1.0,), (0.5, 2.0), 0.0, (512, 512)),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_protocols_say_what_the_field_compares_on(name: str) -> None:
    scenario, steps, zooms, scale, rotation, crop = PROTOCOL[name]
    cfg = config(f"experiment={name}")
    trainer = cfg.trainer
    assert cfg.scenario.name == scenario
    assert (cfg.backbone.name, cfg.head_width) == ("hrnet_w18_small_v2", None)
    assert (trainer.batch_size, trainer.epochs, trainer.max_steps, trainer.base_steps) == steps
    assert (trainer.schedule, trainer.lr_head, trainer.lr_backbone, trainer.weight_decay) == ("poly", 1e-4, 1e-4, 1e-4)
    assert (trainer.select, trainer.clip) == ("last", None)
    assert as_augmentation(cfg.scenario.augment) == Augmentation(True, zooms, scale, rotation, crop)
    assert cfg.scenario.image_size == (None if scenario.startswith("nyud") else [512, 512])


def test_what_is_typed_goes_before_what_a_scenario_or_an_experiment_brings() -> None:
    cfg = config("scenario=nyud_incremental", "backbone=resnet18", "trainer=gpu", "trainer.epochs=3", "head=plain")
    assert (cfg.backbone.name, cfg.head_width, cfg.head.name) == ("resnet18", 32, "plain")
    assert (cfg.trainer.epochs, cfg.trainer.max_steps, cfg.trainer.precision) == (3, None, "bf16")
    cfg = config("experiment=pascal_crop", "backbone=resnet18", "scenario.stream=[edges]", "trainer.max_steps=7")
    assert (cfg.backbone.name, cfg.trainer.max_steps, list(cfg.scenario.stream)) == ("resnet18", 7, ["edges"])
    cfg = config("experiment=nyud_hrnet18", "scenario=nyud_incremental_long")
    assert (cfg.scenario.name, list(cfg.scenario.base)) == ("nyud_incremental_long", ["semseg"])


def test_errors_of_what_is_made_arrive_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"absent\.h5") as caught:
        instantiate(config("scenario=nyud_incremental", f"scenario.root={tmp_path / 'absent.h5'}").scenario)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r'Did you mean "resnet18"'):
        instantiate(config("backbone.name=resnet18x", "backbone.pretrained=false").backbone)


@options("backbone")
def test_backbones_are_made_without_learnt_weights(name: str) -> None:
    backbone = instantiate(config(f"backbone={name}", "backbone.pretrained=false").backbone)
    assert isinstance(backbone, Backbone)
    assert backbone.name == name
    assert len(backbone.channels) == 4


@options("head")
def test_heads_are_made_by_their_configuration(name: str) -> None:
    content = dict(config(f"head={name}").head)
    assert content.pop("name") == name
    coupled = content.pop("coupled", False)
    head = instantiate(content)((24, 32, 48, 64), {"a": 5, "b": 2} if coupled else 5)
    assert isinstance(head, nn.Module)
    maps = [torch.zeros(1, c, 64 // s, 96 // s) for c, s in zip((24, 32, 48, 64), (4, 8, 16, 32), strict=True)]
    answer = head.eval()(maps)
    logits, aux = answer["a"] if coupled else answer
    assert logits.shape == (1, 5, 16, 24)
    assert aux == ()


@options("trainer")
def test_trainers_have_the_same_keys(name: str) -> None:
    assert set(config(f"trainer={name}").trainer) == TRAINER


FIXED = {"single_task": "backbone", "cumulative": "none"}  # what a strategy freezes whatever is said


@options("strategy")
def test_strategies_are_made_on_a_model(name: str, tiny_model: Callable[..., MultiTaskModel]) -> None:
    cfg = config(f"strategy={name}")
    assert cfg.strategy.name == name
    chosen = {key: value for key, value in cfg.strategy.items() if key not in FOR_PEOPLE}
    strategy = instantiate(chosen)(model=tiny_model("semseg"), batch_size=2)
    assert strategy.model.backbone.frozen is (cfg.strategy.get("freeze", FIXED.get(name)) == "backbone")
    frozen = cfg.strategy.get("freeze_old_heads", name != "cumulative")
    assert all(p.requires_grad is not frozen for p in strategy.model.heads["semseg"].parameters())


@options("plugins")
def test_plugins_compose_with_a_strategy(name: str, tiny_model: Callable[..., MultiTaskModel]) -> None:
    cfg = config(f"plugins=[{name}]", "strategy=finetune")
    plugins = [instantiate(plugin) for plugin in cfg.plugins.values()]
    chosen = {key: value for key, value in cfg.strategy.items() if key not in FOR_PEOPLE}
    strategy = instantiate(chosen)(model=tiny_model(), plugins=plugins)
    assert len(plugins) == 1
    assert plugins[0] in strategy.plugins


def test_several_plugins_compose_by_name() -> None:
    cfg = config("plugins=[ewc,replay]", "plugins.ewc.ewc_lambda=2")
    assert list(cfg.plugins) == ["ewc", "replay"]
    assert cfg.plugins.ewc.ewc_lambda == 2


def test_frozen_plain_brings_its_head() -> None:
    cfg = config("strategy=frozen_plain")
    assert cfg.head["_target_"].endswith("PlainHead")
    assert cfg.strategy.freeze == "backbone"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["seed=0,1,2"],
        ["-m", "seed=range(0,3)", "strategy=medusa,finetune"],
        ["plugins=[ewc,replay]"],
        ["plugins=[]"],
        ["plugins=ewc"],
        ["scenario.stream=[edges]"],
        ["scenario.base=[semseg,depth]", "scenario.root=/a/b=c.h5"],
        ["scenario=nyud_incremental", "scenario.root=NYUD_MT.h5", "backbone=hrnet_w18_small_v2"],
        ["backbone.name=resnet18"],
        ["backbone=resnet18", "backbone.pretrained=false"],
        ["head.width=null"],
        ["scenario.augment.zooms=[1.0,1.5]"],
        ["scenario.augment={flip: false}"],
        ["scenario.augment.scale=[0.5,2]", "scenario.augment.crop=[448,576]", "scenario.augment.rotation=20"],
        ["scenario=nyud_incremental", "scenario.download=true", "scenario.normals_frame=rub", "scenario.root=D"],
        ["scenario=nyud_incremental_long", "scenario.order=random", "scenario.held_out=normals"],
        ["scenario=pascal_incremental", "scenario.val_fraction=0.1", "trainer.select=val"],
        ["scenario=folder_incremental", "scenario.on_bad_sample=skip", "scenario.image_size=[512,512]"],
        ["experiment=nyud_hrnet18", "scenario.train_size=20", "scenario.test_size=10"],
        ["trainer.device=cuda:1"],
        ["+new.key=1"],
        ["++trainer.new=1", "++seed=3"],
        ["~plugins"],
        ["~experiment"],
        ["experiment=demo", "compare=[]"],
        ["experiment=null"],
        ["tracking=off", "tracking.enabled=false"],
        ["references=none"],
        ["references=[frozen_plain,single_task]"],
        ["out=runs/my run", "overwrite=true", "base=last"],
        ["hydra.sweep.dir=x", "hydra/launcher=joblib", "hydra/sweeper=optuna"],
        ["--help"],
        ["--cfg", "job"],
        ["-m", "strategy=choice(medusa,finetune)"],
        ["-cd", "elsewhere", "strategy=mine"],
        ["--config-dir=elsewhere", "strategy=mine"],
        ["seed="],
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_what_is_meant_passes(arguments: list[str]) -> None:
    check_overrides(arguments)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("sed=1", "seed"),
        ("trainer.max_step=5", "trainer.max_steps"),
        ("trainer.lr_haed=0.1", "trainer.lr_head"),
        ("scenario.strem=[edges]", "scenario.stream"),
        ("scenario.augment.zoom=[1.0]", "scenario.augment.zooms"),
        ("scenario.on_bad_samples=skip", "scenario.on_bad_sample"),
        ("scenario.heldout=normals", "scenario.held_out"),
        ("scenario.val_fracton=0.1", "scenario.val_fraction"),
        ("scenario.normal_frame=rub", "scenario.normals_frame"),
        ("scenario=pascal", "pascal_incremental"),
        ("experiment=nyud_hrnet", "nyud_hrnet18"),
        ("strategy=medsua", "medusa"),
        ("strategy=medusa,finetun", "finetune"),
        ("scenario=rooms_incrementl", "rooms_incremental"),
        ("backbone=resnet81", "resnet18"),
        ("head=medusa_lite", "medusa_light"),
        ("plugins=[ewc,repaly]", "replay"),
        ("tracking=of", "off"),
        ("experiment=dmo", "demo"),
        ("trainer=gpuu", "gpu"),
        ("scenaro=rooms_incremental", "scenario"),
        ("plugin=[ewc]", "plugins"),
        ("backbones=resnet18", "backbone"),
        ("refrences=none", "references"),
        ("bse=last", "base"),
        ("~plugns", "plugins"),
    ],
)
def test_what_is_misspelt_is_answered_by_the_nearest(argument: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides(["trainer.max_steps=5", argument])
    assert f'Did you mean "{meant}"?' in str(caught.value)
    got = argument.split("=")[-1] if argument.split("=")[0] in GROUPS else argument.split("=")[0]
    assert any(word in str(caught.value) for word in got.strip("[]~").split(","))


def test_what_resembles_nothing_is_still_refused() -> None:
    with pytest.raises(ConfigError, match=r"zzzz"):
        check_overrides(["zzzz=1"])
    with pytest.raises(ConfigError, match=r'"zzzz".*medusa'):
        check_overrides(["strategy=zzzz"])


@pytest.mark.parametrize("seed", ["abc", "-1", "1.5"])
def test_a_seed_is_a_whole_number(seed: str) -> None:
    with pytest.raises(ConfigError, match=f"Expected a whole number of at least 0 for seed, but got {seed}"):
        check(config(f"seed={seed}"))
