"""What a freeze and a plugin save and cost: freeze {none, stages, all} x plugins {none, EWC, SI, LwF, replay, DER}.

python benchmarks/composition.py [--quick]      (about an hour on one core; goes on where it was stopped)

Rooms, the base tasks learnt once a seed, then the stream. Learning rates (and the strengths of EWC and SI) are chosen
on the val split with the first seed, by the mean over all tasks of what is reached in the end; reported is the test
split, mean and spread over the seeds. Writes benchmarks/results/composition.json and .md.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin, SynapticIntelligencePlugin
from learns import machine, table

from medusa_cl import kept
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.learn import learn
from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel
from medusa_cl.results import TaskMatrix, mean_and_spread, transfer
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.rooms import rooms_incremental
from medusa_cl.strategies.distillation import DenseDER, DenseLwF
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import GradientClipping, LRSchedule
from medusa_cl.summary import code_hash, git_commit

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = (0, 1, 2)
FREEZE = ("none", "stages", "all")
PLUGINS = ("none", "EWC", "SI", "LwF", "replay", "DER")
MEMORY = 50  # images that replay and DER remember
STRENGTHS: Mapping[str, Sequence[float]] = {"EWC": (100.0, 10000.0), "SI": (100.0, 10000.0)}
BACKBONE_RATES = (2e-4, 1e-3)  # where the backbone, or a part of it, is trained; heads then learn at HEAD_RATE
HEAD_RATES = (6e-4, 2e-3, 6e-3)  # where only heads are
HEAD_RATE = 2e-3
Row = dict[str, Any]
ABOUT = (
    "Rooms at {size}, {train_size} train images, base semseg and depth ({base_steps} steps), then normals, edges, "
    "reshading ({steps} steps each), {backbone}, light Medusa heads of 32 channels, {seeds} seeds: mean ± standard "
    "deviation. Forgetting: mean over old tasks of what was lost since they were learnt. New tasks (once learnt) "
    "and all tasks (in the end): mean difference to Medusa alone (freeze all, no plugin) of the same seed; positive is "
    "better. Replay and DER remember {memory} images. Where the backbone, or a part of it, is trained, its rate is "
    "chosen on val and heads learn at {head_rate:g}; under the full freeze the heads' rate is chosen, once for all "
    "plugins, and the last line is what Medusa reaches at the heads' rate of the others. LwF's teacher answers with "
    "running statistics and its student with those of the batch, which can itself move old answers."
)


@dataclass(frozen=True)
class Settings:
    """The scale of the comparison."""

    image_size: tuple[int, int] = (64, 80)
    train_size: int = 200
    val_size: int = 30
    test_size: int = 60
    base_steps: int = 150
    steps: int = 60
    batch_size: int = 8
    backbone: str = "tf_efficientnet_lite0"
    pretrained: bool = True


QUICK = Settings((64, 64), 8, 4, 4, 2, 2, 4, "test_efficientnet", False)


@dataclass(frozen=True)
class Choice:
    """What is chosen on val: a learning rate and a strength."""

    rate: float
    strength: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}" + ("" if self.strength is None else f", strength {self.strength:g}")


def choices(freeze: str, plugin: str) -> list[Choice]:
    """Return what a cell is tried with."""
    rates = HEAD_RATES if freeze == "all" else BACKBONE_RATES
    return [Choice(rate, strength) for rate in rates for strength in STRENGTHS.get(plugin, (None,))]


def made(plugin: str, strength: float | None) -> list[Any]:
    """Return the plugin of a cell."""
    kinds: Mapping[str, Callable[[], list[Any]]] = {
        "none": list,
        "EWC": lambda: [EWCPlugin(strength)],
        "SI": lambda: [SynapticIntelligencePlugin(strength)],
        "LwF": lambda: [DenseLwF()],
        "replay": lambda: [ReplayPlugin(MEMORY)],
        "DER": lambda: [DenseDER(MEMORY)],
    }
    return kinds[plugin]()


class Comparison:
    """Runs the cells; each run is kept, so a stopped comparison goes on.

    Args:
        settings: The scale.
        seeds: The seeds; the first one chooses.
        say: Called with a line on each run.
    """

    def __init__(self, settings: Settings, seeds: Sequence[int] = SEEDS, say: Callable[[str], Any] = print) -> None:
        self.settings, self.seeds, self.say = settings, seeds, say
        self.scenario: DenseScenario = rooms_incremental(
            image_size=settings.image_size,
            train_size=settings.train_size,
            val_size=settings.val_size,
            test_size=settings.test_size,
        )

    def strategy(self, model: MultiTaskModel, seed: int, plugins: Sequence[Any], **options: Any) -> Medusa:
        """Return the strategy of every cell."""
        model.use_channels_last()
        return Medusa(
            model=model,
            optimizer=functools.partial(torch.optim.Adam, weight_decay=1e-4, fused=True),
            plugins=[*plugins, LRSchedule("cosine"), GradientClipping(10.0)],
            batch_size=self.settings.batch_size,
            epochs=1000,
            max_steps=self.settings.steps,
            base_steps=self.settings.base_steps,
            seed=seed,
            **options,
        )

    def base(self, seed: int) -> Path:
        """Return the model that has learnt the base tasks; learnt once a seed."""
        key = {"settings": asdict(self.settings), "seed": seed, "code": code_hash(), "torch": torch.__version__}
        place = kept.place("composition-base", key).with_suffix("")
        if not (place / "model.json").is_file():
            self.say(f"base, seed {seed}")
            strategy = self.strategy(self._fresh(), seed, ())
            strategy.train(self.scenario.train_stream[0], eval_streams=[])
            save_model(strategy.model.model, place)
        return place

    def _fresh(self) -> MultiTaskModel:
        backbone = Backbone.create(self.settings.backbone, pretrained=self.settings.pretrained)
        return MultiTaskModel(backbone, functools.partial(MedusaHead, width=32))

    def row(self, freeze: str, plugin: str, choice: Choice, seed: int) -> Row:
        """Return what a cell reaches with one choice and seed, kept or run now."""
        key = {"settings": asdict(self.settings), "cell": [freeze, plugin], "choice": asdict(choice), "seed": seed}
        key |= {"memory": MEMORY, "head_rate": HEAD_RATE}
        place = kept.place("composition", {**key, "code": code_hash(), "torch": torch.__version__})
        found: Row | None = kept.read(place)
        if found is None:
            found = self._run(freeze, plugin, choice, seed)
            kept.write(place, found)
            self.say(f"freeze {freeze}, plugin {plugin}, rate {choice}, seed {seed}: {found['seconds']:.0f} s")
        return found

    def _run(self, freeze: str, plugin: str, choice: Choice, seed: int) -> Row:
        plugins, whole = made(plugin, choice.strength), freeze == "all"
        follows = plugin != "SI"  # which sees only what it was there for, so it is there from the beginning
        model = load_model(self.base(seed), self.scenario.tasks) if follows else self._fresh()
        rates = {"lr_head": choice.rate} if whole else {"lr_head": HEAD_RATE, "lr_backbone": choice.rate}
        options = {"freeze": {"all": "backbone"}.get(freeze, freeze), "freeze_old_heads": whole}
        strategy = self.strategy(model, seed, plugins, **options)
        started = time.perf_counter()
        if not follows:
            strategy.train(self.scenario.train_stream[0], eval_streams=[])
            strategy.lr_head, strategy.lr_backbone = rates["lr_head"], rates.get("lr_backbone", 1e-3)
            matrix = self._learn_rest(strategy)
        else:
            strategy.lr_head, strategy.lr_backbone = rates["lr_head"], rates.get("lr_backbone", 1e-3)
            matrix = learn(self.scenario, strategy, start=1)
        seconds = time.perf_counter() - started
        strategy.eval(self.scenario.val_stream)
        val = {name: scores[self.scenario.tasks[name].primary] for name, scores in strategy.results.items()}
        return {
            "final": {task: matrix.final(task) for task in matrix.tasks},
            "learnt": {task: matrix.just_learnt(task) for task in matrix.tasks},
            "forgetting_percent": matrix.mean_forgetting_percent(),
            "val": val,
            "seconds": seconds,
        }

    def _learn_rest(self, strategy: Medusa) -> TaskMatrix:
        """Learn the stream after experience 0, and return the matrix."""
        tasks = self.scenario.tasks
        matrix = TaskMatrix(self.scenario.groups, {name: task.higher_is_better for name, task in tasks.items()})
        for k, experience in enumerate(self.scenario.train_stream):
            if k:
                strategy.train(experience, eval_streams=[])
            strategy.eval(self.scenario.test_stream[: k + 1])
            matrix.set_row(k, {name: scores[tasks[name].primary] for name, scores in strategy.results.items()})
        return matrix

    def chosen(self, freeze: str, plugin: str) -> Choice:
        """Return the choice that is best on val with the first seed; under the full freeze that of Medusa alone."""
        if freeze == "all" and plugin != "none":  # nothing shared is left for a plugin, nor for its strength, to act on
            return Choice(self.chosen("all", "none").rate, STRENGTHS.get(plugin, (None,))[0])
        reference = self.row("all", "none", Choice(HEAD_RATE), self.seeds[0])["val"]

        def score(choice: Choice) -> float:
            return self._mean(self.row(freeze, plugin, choice, self.seeds[0])["val"], reference)

        return max(choices(freeze, plugin), key=score)

    def _mean(self, values: Mapping[str, float], reference: Mapping[str, float], names: Sequence[str] = ()) -> float:
        """Return the mean over tasks of how much better values are than a reference, in percent."""
        tasks = self.scenario.tasks
        gains = [transfer(values[n], reference[n], tasks[n].higher_is_better) for n in names or tasks]
        return sum(gain if gain is not None else -100.0 for gain in gains) / len(gains)

    def cells(self) -> Iterator[Row]:
        """Go through the cells, each over all seeds, against Medusa alone with the same seed."""
        alone = {seed: self.row("all", "none", self.chosen("all", "none"), seed) for seed in self.seeds}
        for freeze in FREEZE:
            for plugin in PLUGINS:
                yield self._cell(freeze, plugin, self.chosen(freeze, plugin), alone)
        yield self._cell("all", "none", Choice(HEAD_RATE), alone)

    def _cell(self, freeze: str, plugin: str, choice: Choice, alone: Mapping[int, Row]) -> Row:
        rows = {seed: self.row(freeze, plugin, choice, seed) for seed in self.seeds}
        new = [self._mean(row["learnt"], alone[seed]["learnt"], self.scenario.stream) for seed, row in rows.items()]
        end = [self._mean(row["final"], alone[seed]["final"]) for seed, row in rows.items()]
        lost = [row["forgetting_percent"] for row in rows.values()]
        return {
            "freeze": freeze,
            "plugin": plugin,
            "choice": str(choice),
            "forgetting_percent": mean_and_spread(lost)._asdict(),
            "new": mean_and_spread(new)._asdict(),
            "all": mean_and_spread(end)._asdict(),
            "rows": {str(seed): row for seed, row in rows.items()},
        }


def reading(cells: Sequence[Row]) -> list[str]:
    """Return what the table says, in sentences computed from it: where Medusa alone wins and where it loses."""

    def beyond(cell: Row, key: str, sign: int) -> bool:
        mean, deviation = cell[key]["mean"], cell[key]["deviation"] or 0.0
        return bool(sign * mean > max(deviation, 1.0))

    def named(some: Sequence[Row], key: str) -> str:
        return ", ".join(f"{c['freeze']} + {c['plugin']} ({c[key]['mean']:+.1f} %)" for c in some) or "none"

    others = [cell for cell in cells if cell["freeze"] != "all"]
    same_rate = cells[-1]["new"]["mean"]
    ahead = sum(cell["new"]["mean"] > same_rate for cell in others)
    costs = [cell["forgetting_percent"]["mean"] for cell in others]
    return [
        f"Under the full freeze every cell forgets {_most(cells)}; elsewhere {min(costs):.1f} to {max(costs):.1f} %.",
        f"At the heads' rate of the others Medusa alone is {same_rate:+.1f} % on new tasks: at equal rates of the "
        f"heads {ahead} of {len(others)} cells learn new tasks better than it does.",
        *(
            f"{said}: {named([cell for cell in others if beyond(cell, key, sign)], key)}."
            for said, key, sign in (
                ("On new tasks Medusa loses (by more than the spread and 1 %) to", "new", 1),
                ("On new tasks it wins against", "new", -1),
                ("Over all tasks, in the end, it loses to", "all", 1),
                ("Over all tasks, in the end, it wins against", "all", -1),
            )
        ),
    ]


def _most(cells: Sequence[Row]) -> str:
    worst = max(abs(v) for c in cells if c["freeze"] == "all" for v in (c["forgetting_percent"]["mean"],))
    return "exactly 0" if worst == 0 else f"at most {worst:.2g} %"


def page(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""

    def cell(entry: Mapping[str, Any], form: str) -> str:
        spread = "" if entry["deviation"] is None else f" ± {entry['deviation']:.1f}"
        return form.format(entry["mean"]) + spread

    rows = [
        [
            c["freeze"],
            c["plugin"],
            cell(c["forgetting_percent"], "{:.1f}"),
            cell(c["new"], "{:+.1f}"),
            cell(c["all"], "{:+.1f}"),
            c["choice"],
        ]
        for c in found["cells"]
    ]
    settings, where = found["settings"], found["machine"]
    heads = ["freeze", "plugin", "forgetting %", "new tasks %", "all tasks, in the end %", "rate chosen on val"]
    return (
        "\n\n".join(
            [
                "# Freeze and plugins",
                ABOUT.format(
                    size="x".join(map(str, settings["image_size"])),
                    seeds=len(found["seeds"]),
                    memory=MEMORY,
                    head_rate=HEAD_RATE,
                    **settings,
                ),
                f"{where['cpu']}, one thread, {found['date']}.",
                table(heads, rows),
                "\n".join(f"- {line}" for line in found["reading"]),
            ]
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Compare and write."""
    torch.set_num_threads(1)
    quick = "--quick" in arguments
    settings = QUICK if quick else Settings()
    comparison = Comparison(settings, SEEDS[:2] if quick else SEEDS, functools.partial(print, flush=True))
    cells = list(comparison.cells())
    found = {
        "settings": asdict(settings),
        "seeds": list(comparison.seeds),
        "cells": cells,
        "reading": reading(cells),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "git": git_commit(),
    }
    folder = Path(tempfile.gettempdir()) if quick else RESULTS
    (folder / "composition.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "composition.md").write_text(page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
