"""Composed plugins under the full freeze and with one another, each made as its configuration says."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from medusa_cl.data.loader import unit_image
from medusa_cl.errors import ConfigError
from medusa_cl.models import LinearHead, MultiTaskModel
from medusa_cl.scenarios.dense import DenseExperience, DenseScenario
from medusa_cl.strategies import medusa as medusa_module
from medusa_cl.strategies.compose import verdict_of
from medusa_cl.strategies.medusa import Medusa

Model = Callable[..., MultiTaskModel]
pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = Path(medusa_module.__file__).resolve().parents[1] / "configs" / "plugins"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALL = {"mem_size": 4, "max_size": 4, "patterns_per_experience": 4, "sample_size": 4}


def made(options: dict[str, Any]) -> Any:
    """Make what a configuration describes, memories as small as the data; no interpolation is needed then."""
    content = {key: made(value) if isinstance(value, dict) else value for key, value in options.items()}
    module, name = content.pop("_target_").rsplit(".", 1)
    arguments = {key: SMALL.get(key, value) for key, value in content.items()}
    return getattr(importlib.import_module(module), name)(**arguments)


def plugin(config: str) -> Any:
    (options,) = yaml.safe_load((FOLDER / f"{config}.yaml").read_text()).values()
    return made(options)


def usable(frozen: bool) -> list[str]:
    """Configurations that go with the freeze, or with none."""
    return [c for c in CONFIGS if not (frozen and ((v := verdict_of(plugin(c))) and (v.projects or v.resets)))]


def learner(model: MultiTaskModel, names: tuple[str, ...], **options: Any) -> Medusa:
    given = {"max_steps": 2, "base_steps": 2, "epochs": 9, "batch_size": 4, "cache_features": "off"} | options
    return Medusa(model=model, plugins=[plugin(name) for name in names], **given)


def images(scenario: DenseScenario) -> Tensor:
    return torch.stack([unit_image(scenario.data["test"], i) for i in range(2)])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configured_plugin_is_known(name: str) -> None:
    verdict = verdict_of(plugin(name))
    assert verdict is not None
    assert verdict.composes


@pytest.mark.parametrize("name", usable(frozen=True))
def test_old_tasks_keep_their_bits_with(name: str, tiny_model: Model, tiny_scenario: DenseScenario) -> None:
    model = tiny_model()
    strategy = learner(model, (name,))
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for experience in tiny_scenario.train_stream:
        strategy.train(experience, eval_streams=[])
        for state, predictions in seen:
            now = model.state_dict()
            assert all(torch.equal(value, now[key]) for key, value in state.items())
            assert equal(predictions, model.predict(images(tiny_scenario), list(predictions)))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        seen.append((state, model.predict(images(tiny_scenario))))
    assert len(seen) == 3


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(usable(frozen=True))))
def test_what_cannot_bear_the_freeze_says_so(name: str, tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.freeze=none"):
        learner(tiny_model(), (name,))


@pytest.fixture(scope="module")
def short(tiny_scenario: DenseScenario) -> list[DenseExperience]:
    """The base tasks and one more: as little as a pair can be run on."""
    return list(tiny_scenario.train_stream[:2])


def run(tiny_model: Model, names: tuple[str, ...], experiences: list[DenseExperience]) -> dict[str, Tensor]:
    """Learn with the smallest of heads, which are nothing to plugins but weights."""
    model = tiny_model(head=LinearHead)
    strategy = learner(model, names, freeze="none", freeze_old_heads=False, max_steps=1, base_steps=1)
    for experience in experiences:
        strategy.train(experience, eval_streams=[])
    return dict(model.named_parameters())


REPLAYS = {"replay", "replay_balanced", "replay_reservoir"}
VARIANTS = {"ewc_online", "derpp", "replay_reservoir"}  # of a class that is there already
PAIRED = [name for name in CONFIGS if name not in VARIANTS]
PAIRS = [pair for pair in itertools.combinations(PAIRED, 2) if not set(pair) <= REPLAYS]


@pytest.mark.parametrize("first", PAIRED[:-1])
def test_pairs_run(first: str, tiny_model: Model, short: list[DenseExperience]) -> None:
    """Every pair that has it first, a step for each of two experiences; all weights stay finite."""
    for pair in (p for p in PAIRS if p[0] == first):
        learnt = run(tiny_model, pair, short)
        assert any(name.startswith("heads.normals.") for name in learnt), pair
        assert all(bool(torch.isfinite(value).all()) for value in learnt.values()), pair


TRIPLES = [("ewc", "replay", "lwf"), ("si", "replay_balanced", "feature_distillation"), ("mas", "agem", "derpp")]


@pytest.mark.parametrize("names", TRIPLES, ids="+".join)
def test_triples_run(names: tuple[str, ...], tiny_model: Model, short: list[DenseExperience]) -> None:
    learnt = run(tiny_model, names, short)
    alone = run(tiny_model, names[:1], short)
    assert all(bool(torch.isfinite(value).all()) for value in learnt.values())
    assert not equal(learnt, alone)


@pytest.mark.parametrize("pair", itertools.combinations(sorted(REPLAYS), 2), ids="+".join)
def test_two_memories_do_not_go_together(pair: tuple[str, str], tiny_model: Model) -> None:
    with pytest.raises(ConfigError, match="Keep one"):
        learner(tiny_model(), pair)
