"""Any choice of options, one of each group, composes, and is checked or refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from medusa_cl import build
from medusa_cl.errors import MedusaError
from medusa_cl.models import Backbone
from medusa_cl.models.multitask import MultiTaskModel
from property_examples import examples
from small_run import config

CONFIGS = Path(build.__file__).parent / "configs"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _no_other_configuration() -> None:
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module", autouse=True)
def _each_net_once() -> Any:
    """What is under test asks a net without learnt weights only for its channels and parts."""
    made: dict[str, Backbone] = {}
    create: Callable[..., Backbone] = Backbone.create

    def once(name: str, **options: Any) -> Backbone:
        if name not in made:
            made[name] = create(name, **options)
        made[name].unfreeze()
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "create", staticmethod(once))
        yield


choices = {group: st.sampled_from(names(group)) for group in ("backbone", "head", "scenario", "strategy", "tracking")}
numbers = {
    "trainer.batch_size": st.sampled_from([1, 8, 0, -3, "many"]),
    "trainer.max_steps": st.sampled_from([1, 200, "null", 0, 1.5]),
    "trainer.schedule": st.sampled_from(["cosine", "constant", "poly", "cosin"]),
    "trainer.precision": st.sampled_from([32, "bf16", 16]),
    "trainer.on_nan": st.sampled_from(["stop", "skip", "null", "leave"]),
    "trainer.select": st.sampled_from(["last", "val", "best"]),
    "trainer.channels_last": st.sampled_from(["auto", "true", "false", "maybe"]),
    "strategy.freeze": st.sampled_from(["backbone", "stages", "none", "all"]),
    "strategy.cache_features": st.sampled_from(["auto", "memory", "disk", "off", "tape"]),
    "strategy.freeze_from": st.sampled_from([0, 1, 2]),
    "references": st.sampled_from(["auto", "none", "[frozen_plain]", "[frozen_plane]"]),
    "head_width": st.sampled_from(["null", 8, 32]),
    "seed": st.integers(0, 3),
}


@st.composite
def overrides(draw: st.DrawFn, changed: int) -> list[str]:
    """An option of each group, some plugins, and up to `changed` single values, among them wrong ones."""
    chosen = {group: draw(options) for group, options in choices.items()}
    plugins = draw(st.lists(st.sampled_from(names("plugins")), max_size=3, unique=True))
    strategy = OmegaConf.load(CONFIGS / "strategy" / f"{chosen['strategy']}.yaml")
    known = [key for key in numbers if not key.startswith("strategy.") or key.split(".")[1] in strategy]
    keys = draw(st.lists(st.sampled_from(sorted(known)), max_size=changed, unique=True))
    values = [f"{key}={draw(numbers[key])}" for key in keys]
    return [*(f"{group}={name}" for group, name in chosen.items()), f"plugins=[{','.join(plugins)}]", *values]


def checked(arguments: list[str]) -> DictConfig | None:
    """Return the configuration; None where it was refused with a reason that users can read."""
    cfg = config(*arguments)
    OmegaConf.to_container(cfg, resolve=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build.check(cfg)
        except MedusaError as error:
            assert len(str(error)) > 30, str(error)
            assert "Traceback" not in str(error)
            return None
    return cfg


@examples(8)
@given(overrides(changed=0))
def test_any_options_compose_and_are_checked(arguments: list[str]) -> None:
    checked(arguments)


@examples(8)
@given(overrides(changed=3))
def test_any_value_is_checked(arguments: list[str]) -> None:
    """A wrong one is refused; it never gets past the check, nor is it an error without a reason."""
    wrong = {"=0", "=-3", "=many", "=1.5", "=cosin", "=16", "=leave", "=best", "=maybe", "=all", "=tape", "=2"}
    faults = [a for a in arguments if any(a.endswith(w) for w in wrong) and a.split("=")[0] in numbers]
    faults = [a for a in faults if a not in ("seed=0", "seed=2", "strategy.freeze_from=0")]
    faults += [argument for argument in arguments if argument == "trainer.on_nan=null"]
    cfg = checked(arguments)
    assert cfg is None or not faults
    assert cfg is None or "references=[frozen_plane]" not in arguments


@examples(4)
@given(overrides(changed=0))
def test_what_is_checked_can_be_made(arguments: list[str]) -> None:
    """A strategy on a model with the head and the plugins asked for."""
    cfg = checked([*arguments, "backbone.name=test_efficientnet", "backbone.pretrained=false"])
    if cfg is None or "coupled" in cfg.head or "_target_" not in cfg.strategy:
        return
    model = MultiTaskModel(Backbone.create("test_efficientnet", pretrained=False), build.head_factory(cfg.head))
    make = build.instantiate(build.plain(cfg.strategy))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make(model=model, plugins=build.plugins_of(cfg), on_nan=cfg.trainer.on_nan)
    assert made.guard.skips is False
