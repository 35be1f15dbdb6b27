"""What a run is measured against: plain multitask features under plain, control and Medusa heads, and single-task nets.

Each reference is learnt on the same data, with the same backbone, seed and trainer, and kept under a hash of all it
depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medusa_cl import distributed, kept
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
        key: Everything the outcome depends on but tasks and heads, as plain data.
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

    def place(self, name: str, task: str | None = None) -> Path:
        """Return where a thing of that name is kept, by the hash of all it depends on.

        Of the heads that is only its own; of the stream only the task itself, as no frozen task depends on another.
        """
        single, own = name == SINGLE_TASK, [task] if task else []
        heads = [] if single else [self.head_keys["plain"]]
        heads.append(self.head_keys["own" if single else HEAD_OF.get(name, "plain")])
        names = own if single else [*self.scenario.base, *own]
        tasks = [self.scenario.tasks[one].describe() for one in names]
        return kept.place("-".join([name, *own]), {"heads": heads, "tasks": tasks, **self.key}, self.cache)


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
    wanted = list(recipe.scenario.tasks) if name == SINGLE_TASK else list(recipe.scenario.stream)
    places = {task: recipe.place(name, task) for task in wanted}
    found = distributed.agreed({task: kept.read(path, sealed=True) for task, path in places.items()})
    values: Values = {task: entry["value"] for task, entry in found.items() if entry is not None}
    if values:
        recipe.notify(f"reference {name}: kept from an earlier run ({', '.join(values)})")
    if missing := [task for task in wanted if task not in values]:
        recipe.notify(f"reference {name}: {REFERENCES[name]}")
        single = name == SINGLE_TASK
        learn = _single_task(recipe, missing) if single else _on_plain_features(recipe, HEAD_OF[name], missing)
        for new in learn:  # each kept at once, as the run may be stopped
            for task, value in new.items() if distributed.is_main() else ():
                kept.write(places[task], {"value": value})
            values |= new
    return {task: values[task] for task in wanted}


def _on_plain_features(recipe: Recipe, head: str, names: Sequence[str]) -> Iterator[Values]:
    scenario = recipe.scenario
    model = load_model(_plain_base(recipe), scenario.tasks, recipe.heads[head])
    strategy = recipe.strategy(model, freeze="backbone", freeze_old_heads=True, kept=recipe._kept)
    strategy.model.adopt(scenario.train_stream[0])
    for experience, test in zip(scenario.train_stream[1:], scenario.test_stream[1:], strict=True):
        if experience.name in names:
            yield _learn(scenario, strategy, experience, test)


def _plain_base(recipe: Recipe) -> Path:
    """Return the directory of plain multitask features: the base tasks learnt together under plain heads."""
    place = recipe.place("plain_base").with_suffix("")
    if not distributed.agreed((place / "model.json").is_file()):
        model = MultiTaskModel(recipe.backbone(), recipe.heads["plain"], recipe.precision)
        strategy = recipe.strategy(model, freeze="backbone", freeze_old_heads=True)
        strategy.train(recipe.scenario.train_stream[0], eval_streams=[])
        if distributed.is_main():
            save_model(model, place)
        distributed.barrier()  # the others load what rank 0 has saved
    return place


def _single_task(recipe: Recipe, names: Sequence[str]) -> Iterator[Values]:
    scenario = recipe.scenario
    for name in names:
        model = MultiTaskModel(recipe.backbone(), recipe.heads["own"], recipe.precision)
        strategy = recipe.strategy(model, freeze="none", freeze_old_heads=False, cache_features="off")
        alone = dense_scenario(
            list(scenario.tasks.values()), scenario.data, [name], [], augmentation=scenario.augmentation
        )
        yield _learn(alone, strategy, alone.train_stream[0], alone.test_stream[0])


def _learn(scenario: DenseScenario, strategy: Medusa, experience: Any, test: Any) -> Values:
    strategy.train(experience, eval_streams=[])
    strategy.eval([test])
    scores = strategy.results
    return {name: scores[name][scenario.tasks[name].primary] for name in experience.tasks}
