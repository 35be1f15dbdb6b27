"""Where cells are computed: each once, and kept with all it depends on."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medusa_cl import kept
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.claims.cells import Cell, Pretraining, Probe
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.data.loader import Augmentation
from medusa_cl.data.split import DenseData
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.scenarios.dense import dense_scenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.summary import gflops
from medusa_cl.tasks import DenseTask

Scores = dict[str, dict[str, dict[str, float]]]


class Share:
    """The first images of a split."""

    def __init__(self, source: DenseData, count: int) -> None:
        self.source, self.count = source, count
        self.fields, self.image_size = source.fields, source.image_size
        self.content_hash = kept.digest([source.content_hash, count])

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"the first {self.count} of {self.source}"

    def image(self, index: int) -> Tensor:
        """Return an image as the split does."""
        return self.source.image(index)

    def target(self, index: int, name: str) -> Tensor | None:
        """Return a target as the split does."""
        return self.source.target(index, name)

    def has(self, name: str) -> Any:
        """Return which images have a label of a task."""
        return self.source.has(name)[: self.count]


@dataclass(kw_only=True)
class Lab:
    """What cells are computed with.

    Attributes:
        data: The splits: "train" and those to score on.
        tasks: The tasks by name.
        augmentation: How training images vary.
        backbone: `(init, seed) -> Backbone`.
        model: `(source's name or None, head's name or None, backbone) -> model` without any head yet.
        strategy: `(model, source name or None, seed, options) -> strategy`.
        keys: What all cells depend on ("common"), and by name what "sources" and "heads" are, as plain data.
        about: Written into every cell: machine, versions, code.
        folder: Where cells are kept.
        score_on: Splits on which every cell is scored.
        steps: Of heads that learn a task, by its name, where they are not the trainer's.
        notify: Called with a line on what is being done.
    """

    data: Mapping[str, DenseData]
    tasks: Mapping[str, DenseTask]
    augmentation: Augmentation
    backbone: Callable[[str, int], Backbone]
    model: Callable[[str | None, str | None, Backbone], MultiTaskModel]
    strategy: Callable[..., Medusa]
    keys: Mapping[str, Any]
    about: Mapping[str, Any]
    folder: Path
    score_on: Sequence[str] = ("test",)
    steps: Mapping[str, int] = field(default_factory=dict)
    notify: Callable[[str], None] = lambda line: None
    _of: Pretraining | None = None
    _features: dict[str, FrozenFeatures] = field(default_factory=dict)

    def place(self, cell: Cell) -> Path:
        """Return where a cell is kept, by all that it depends on but the code, which it notes."""
        backbone = cell if isinstance(cell, Pretraining) else cell.backbone
        tasks = [*backbone.tasks, *([cell.task] if isinstance(cell, Probe) else [])]
        key: dict[str, Any] = {
            "cell": asdict(cell),
            "common": self.keys["common"],
            "source": self.keys["sources"][backbone.source] if backbone.trained else None,
            "head": self.keys["heads"][cell.head] if isinstance(cell, Probe) else None,
            "tasks": [self.tasks[name].describe() for name in tasks],
            "data": {split: self.data[split].content_hash for split in ("train", *self.score_on)},
        }
        return kept.place(cell.label, key | self._steps(cell), self.folder / "cells")

    def known(self, cell: Cell) -> dict[str, Any] | None:
        """Return a cell that is kept; None where it is not."""
        found: dict[str, Any] | None = kept.read(self.place(cell), sealed=True)
        return found

    def take(self, cells: Mapping[Cell, Mapping[str, Any]]) -> int:
        """Keep cells that were computed elsewhere, where all that they depend on is the same; return how many."""
        alike = [cell for cell, found in cells.items() if found.get("key") == self.place(cell).stem]
        new = [cell for cell in alike if self.known(cell) is None]
        for cell in new:
            kept.write(self.place(cell), dict(cells[cell]))
        return len(new)

    def compute(self, cell: Cell) -> dict[str, Any]:
        """Return a cell, computed where it is not kept."""
        if (kept_one := self.known(cell)) is not None:
            return kept_one
        self.notify(cell.label)
        since, cpu = time.perf_counter(), time.process_time()
        found = self._pretrain(cell) if isinstance(cell, Pretraining) else self._probe(cell)
        spent = {"seconds": time.perf_counter() - since, "cpu_seconds": time.process_time() - cpu}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"cell": asdict(cell), "key": self.place(cell).stem, **found, "at": now, **spent, **self.about}
        kept.write(self.place(cell), content)
        as_read: dict[str, Any] = json.loads(json.dumps(content))
        return as_read

    def _steps(self, cell: Cell) -> dict[str, int]:
        """Return the option of a strategy by which a head learns longer than others, or less."""
        return {"max_steps": self.steps[cell.task]} if isinstance(cell, Probe) and cell.task in self.steps else {}

    def _directory(self, pretraining: Pretraining) -> Path:
        return self.folder / "models" / self.place(pretraining).stem

    def _pretrain(self, cell: Pretraining) -> dict[str, Any]:
        model = self.model(cell.source, None, self.backbone(cell.init, cell.seed))
        strategy = self.strategy(
            model, cell.source, cell.seed, {"freeze": "none", "freeze_old_heads": False, "cache_features": "off"}
        )
        self._learn(strategy, cell.tasks, cell.labels)
        save_model(model, self._directory(cell))
        cost = {"parameters": _count(model), "gflops": gflops(model, self.data["train"].image_size)}
        return {"scores": self._scores(strategy, cell.tasks), **cost}

    def _probe(self, cell: Probe) -> dict[str, Any]:
        if cell.backbone != self._of:
            self._of, self._features = cell.backbone, {}
        model = self.model(None, cell.head, self._frozen(cell.backbone))
        options = {"freeze": "backbone", "freeze_from": 0, "kept": self._features, **self._steps(cell)}
        strategy = self.strategy(model, None, cell.backbone.seed, options)
        self._learn(strategy, (cell.task,), cell.labels)
        return {"scores": self._scores(strategy, (cell.task,)), "parameters": model.parameters_of(cell.task)}

    def _frozen(self, pretraining: Pretraining) -> Backbone:
        if not pretraining.trained:
            return self.backbone(pretraining.init, pretraining.seed)
        if not (self._directory(pretraining) / "model.json").is_file():
            self.place(pretraining).unlink(missing_ok=True)  # its weights are gone
        self.compute(pretraining)
        return load_model(self._directory(pretraining), self.tasks).backbone

    def _learn(self, strategy: Medusa, tasks: Sequence[str], labels: float) -> None:
        train = self.data["train"]
        if labels < 1.0:
            train = Share(train, max(round(labels * len(train)), 1))
        known = list(self.tasks.values())
        scenario = dense_scenario(known, {"train": train}, tasks, [], augmentation=self.augmentation)
        strategy.train(scenario.train_stream[0], eval_streams=[])

    def _scores(self, strategy: Medusa, tasks: Sequence[str]) -> Scores:
        found: Scores = {}
        for split in self.score_on:
            scenario = dense_scenario(list(self.tasks.values()), {"test": self.data[split]}, tasks, [])
            strategy.eval([scenario.test_stream[0]])
            found[split] = {name: dict(scores) for name, scores in strategy.results.items()}
        return found


def _count(model: MultiTaskModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
