"""What a run is measured against: plain multitask features under plain, control and Medusa heads, and single-task nets.

Each reference is learnt on the same data, with the same backbone, seed and trainer, and kept under a hash of all it
depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import HeadFactory
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.results import FROZEN_PLAIN, FROZEN_PLAIN_CONTROL, FROZEN_PLAIN_MEDUSA, REFERENCES, SINGLE_TASK
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies.medusa import Medusa

HEAD_OF = {FROZEN_PLAIN: "plain", FROZEN_PLAIN_CONTROL: "control", FROZEN_PLAIN_MEDUSA: "medusa"}
Values = dict[str, float | None]


@dataclass
class Recipe:
    """How a run was made, for making its references alike.

    Attributes:
        scenario: The stream.
        backbone: Makes the backbone anew.
        heads: Head factories by name: "plain", "control", "medusa", "own" (the run's).
        strategy: `(model, **options) -> Medusa` with the run's trainer options.
        precision: The models' precision.
        key: Everything the outcome depends on but the heads, as plain data.
        head_keys: What the heads are, as plain data.
        cache: Where references are kept.
        notify: Called with a line on what is being done.
    """

    scenario: DenseScenario
    backbone: Callable[[], Backbone]
    heads: Mapping[str, HeadFactory]
    strategy: Callable[..., Medusa]
    precision: str
    key: Mapping[str, Any]
    head_keys: Mapping[str, Any]
    cache: Path
    notify: Callable[[str], None] = lambda line: None
    _kept: dict[str, FrozenFeatures] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        """Return where a thing of that name is kept, by the hash of all it depends on: of the heads only its own."""
        own = [
            self.head_keys["plain"],
            self.head_keys.get(HEAD_OF.get(name, "own" if name == SINGLE_TASK else "plain")),
        ]
        text = json.dumps({"name": name, "heads": own, **self.key}, sort_keys=True, default=str)
        return self.cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_names(names: Sequence[str]) -> None:
    """Refuse unknown references.

    Raises:
        ConfigError: A name is unknown.
    """
    for name in names:
        if name not in REFERENCES:
            raise ConfigError(unknown("reference", name, REFERENCES))


def reference_values(recipe: Recipe, names: Sequence[str]) -> dict[str, Values]:
    """Return what each reference reaches on each task just after learning it; trained where it is not kept yet.

    Args:
        recipe: How the run was made.
        names: Names of references.

    Returns:
        Primary metric by reference and task.

    Raises:
        ConfigError: A name is unknown.
    """
    check_names(names)
    return {name: _kept_or_learnt(recipe, name) for name in names}


def _kept_or_learnt(recipe: Recipe, name: str) -> Values:
    path = recipe.place(name).with_suffix(".json")
    if path.is_file():
        recipe.notify(f"reference {name}: kept from an earlier run")
        values: Values = json.loads(path.read_text(encoding="utf-8"))
        return values
    recipe.notify(f"reference {name}: {REFERENCES[name]}")
    values = _single_task(recipe) if name == SINGLE_TASK else _on_plain_features(recipe, recipe.heads[HEAD_OF[name]])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(values), encoding="utf-8")
    os.replace(part, path)
    return values


def _on_plain_features(recipe: Recipe, head: HeadFactory) -> Values:
    model = load_model(_plain_base(recipe), recipe.scenario.tasks, head)
    strategy = recipe.strategy(model, freeze="backbone", freeze_old_heads=True, kept=recipe._kept)
    strategy.model.adopt(recipe.scenario.train_stream[0])
    values: Values = {}
    for experience, test in zip(recipe.scenario.train_stream[1:], recipe.scenario.test_stream[1:], strict=True):
        values |= _learn(recipe.scenario, strategy, experience, test)
    return values


def _plain_base(recipe: Recipe) -> Path:
    """Return the directory of plain multitask features: the base tasks learnt together under plain heads."""
    place = recipe.place("plain_base")
    if not (place / "model.json").is_file():
        model = MultiTaskModel(recipe.backbone(), recipe.heads["plain"], recipe.precision)
        strategy = recipe.strategy(model, freeze="backbone", freeze_old_heads=True)
        strategy.train(recipe.scenario.train_stream[0], eval_streams=[])
        save_model(model, place)
    return place


def _single_task(recipe: Recipe) -> Values:
    scenario, values = recipe.scenario, Values()
    for name in scenario.tasks:
        model = MultiTaskModel(recipe.backbone(), recipe.heads["own"], recipe.precision)
        strategy = recipe.strategy(model, freeze="none", freeze_old_heads=False, cache_features="off")
        alone = dense_scenario(
            list(scenario.tasks.values()), scenario.data, [name], [], augmentation=scenario.augmentation
        )
        values |= _learn(alone, strategy, alone.train_stream[0], alone.test_stream[0])
    return values


def _learn(scenario: DenseScenario, strategy: Medusa, experience: Any, test: Any) -> Values:
    strategy.train(experience, eval_streams=[])
    strategy.eval([test])
    scores = strategy.results
    return {name: scores[name][scenario.tasks[name].primary] for name in experience.tasks}
