"""What a frozen backbone saves: adding a task, overhead, growth with tasks and images, evaluation, a step's limits.

python benchmarks/speed.py [SECTION ...] [--device cpu|cuda] [--quick]      (default: all sections, about 25 minutes)

Ratios of one run: CPU seconds of one thread (of what else a machine does they show little), or CUDA events. What is
compared is run by turns, and the least of all rounds and like steps counts. Each section is merged into
benchmarks/results/speed.json (speed-<device>.json on CUDA) and .md; exits with 1 where something is missed. With
--quick: miniatures, to the temporary folder.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from efficiency import build, medusa, noting, width_of
from learns import machine, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from medusa_cl import tasks
from medusa_cl.data.loader import Augmentation
from medusa_cl.losses import at_size
from medusa_cl.models import Backbone, MultiTaskModel
from medusa_cl.models.coupled import CoupledModel, MTINet
from medusa_cl.models.execution import channels_last_pays
from medusa_cl.randomness import generator
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.scenarios.rooms import rooms_incremental
from medusa_cl.strategies.baselines import Adapters, SingleTask
from medusa_cl.strategies.evaluation import dense_evaluator
from medusa_cl.strategies.medusa import Medusa, MedusaPlugin
from medusa_cl.strategies.plugins import GradientClipping, LRSchedule
from medusa_cl.strategies.template import DenseModule
from medusa_cl.summary import git_commit, packages

RESULTS = Path(__file__).resolve().parent / "results"
Found = dict[str, Any]

NEW, METRIC, UNIT = "normals", "mean", "°"
CACHED, UNCACHED, NAIVE = "Medusa, cached", "Medusa, uncached", "Naive, everything trained"
HALF = {precision: f"Medusa, cached in {precision}" for precision in ("bf16", "fp16")}
OVERHEAD = 1.05
FLAT = 0.1  # of the median: what a task, whichever it is, may differ
INFERENCE, AGAINST = 0.7, "MTI-Net, tricks"
DECODERS = ("Medusa, light", AGAINST, "single-task nets, tricks", "single-task nets")
LINEAR = 1.25  # times: what an image may cost more among the most than among a tenth of them
GROWTH = 64 * 2**20  # bytes that features kept on disk may take in memory
LR, CLIP = 2e-3, 10.0


@dataclass(frozen=True)
class Net:
    """A backbone to add a task on.

    Attributes:
        name: The timm name.
        pretrained: Whether it takes learnt weights.
        images: Training images.
        goals: How many times faster than `NAIVE` rows are to be, a step.
    """

    name: str
    pretrained: bool
    images: int
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        device: Where.
        precision: Of the models.
        size: H, W of images.
        batch: Images a step.
        passes: Passes over the training images to add a task.
        test_images: Images it is tested on.
        nets: Backbones to add a task on; the first one also for the profile, the last one for the other sections.
        seeds: Seeds of the rows with kept features; the other rows take the first.
        rounds: How often times are taken.
        budget: Seconds that one row may take in a round.
        tasks: Tasks added one after the other.
        task_steps: Steps each.
        inference: Backbones to answer four tasks with.
        evaluated: Numbers of tasks evaluated together and one by one.
        counts: Numbers of images to keep features of.
        image_size: H, W of these images.
        image_net: Their backbone.
        image_batch: Images a step.
        apart: Whether each number is measured in a process of its own.
    """

    device: str = "cpu"
    precision: str = "32"
    size: tuple[int, int] = (128, 160)
    batch: int = 8
    passes: int = 4
    test_images: int = 40
    nets: tuple[Net, ...] = (
        Net("hrnet_w18", False, 64, {CACHED: 12.0, UNCACHED: 2.8}),
        Net("tf_efficientnet_lite0", True, 200),
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 3
    budget: float = 5.0
    tasks: int = 16
    task_steps: int = 8
    inference: tuple[str, ...] = ("tf_efficientnet_lite0", "hrnet_w18_small_v2", "hrnet_w18")
    evaluated: tuple[int, ...] = (2, 4, 8)
    counts: tuple[int, ...] = (200, 2_000, 20_000)
    image_size: tuple[int, int] = (64, 80)
    image_net: str = "mobilenetv3_small_050"
    image_batch: int = 32
    apart: bool = True


PLANS = {
    "cpu": Plan(),
    "cuda": Plan(
        device="cuda",
        precision="bf16",
        size=(448, 576),
        nets=(Net("hrnet_w18", False, 64, {CACHED: 8.0}), Net("tf_efficientnet_lite0", True, 200)),
        rounds=5,
    ),
}
QUICK = Plan(
    size=(32, 64),
    batch=4,
    passes=2,
    test_images=4,
    nets=(Net("test_efficientnet", False, 8),),
    seeds=(0, 1),
    rounds=1,
    budget=0.1,
    tasks=3,
    task_steps=3,
    inference=("test_efficientnet",),
    evaluated=(2,),
    counts=(8, 16),
    image_size=(32, 32),
    image_batch=4,
    apart=False,
)


class Clock:
    """Moments of one run, and the seconds between them: of this process on the CPU, of the device on CUDA.

    Args:
        device: The device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Take a moment."""
        if self.device == "cpu":
            self.marks.append(time.process_time())
        else:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()

    def seconds(self) -> list[float]:
        """Return the seconds from each moment to the next."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.device == "cpu":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairs]


def clocked(device: str, work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    clock = Clock(device)
    clock.mark()
    work()
    clock.mark()
    return clock.seconds()[0]


def by_turns(device: str, works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each work over rounds in which they take turns, after one round to warm up."""
    taken = [{name: clocked(device, work) for name, work in works.items()} for _ in range(rounds + 1)]
    return {name: min(seconds[name] for seconds in taken[1:]) for name in works}


class Stopwatch(SupervisedPlugin):  # type: ignore[misc]
    """Takes the time before the first step and of each step, and what the first step keeps for its backward pass.

    Args:
        device: The device.
        limit: Steps after which to stop; None for no limit.

    Attributes:
        kept_bytes: What the first step keeps.
        loader: Where its batch came from.
    """

    def __init__(self, device: str, limit: int | None = None) -> None:
        super().__init__()
        self.limit, self.clock, self.kept_bytes = limit, Clock(device), 0
        self.loader: Any = None
        self._hooks = ExitStack()

    def start(self) -> None:
        """Begin."""
        self.clock.marks.clear()
        self.clock.mark()

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """End what comes before the first step."""
        if len(self.clock.marks) == 1:
            self.clock.mark()
            self.loader = strategy.dataloader

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """In the first step, begin to look at what is kept."""
        if len(self.clock.marks) == 2:
            self._kept: dict[int, int] = {}
            owned = (*strategy.model.model.parameters(), *strategy.model.model.buffers())
            self._hooks.enter_context(noting(self._kept, owned))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add up what was kept."""
        if len(self.clock.marks) == 2:
            self._hooks.close()
            self.kept_bytes = sum(self._kept.values())

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """End a step."""
        self.clock.mark()
        if self.limit is not None and len(self.clock.marks) - 2 >= self.limit:
            strategy.stop_training()

    @property
    def setup(self) -> float:
        """Seconds before the first step."""
        return self.clock.seconds()[0]

    @property
    def steps(self) -> list[float]:
        """Seconds of each step but the first one, which warms up and looks at what is kept."""
        return self.clock.seconds()[2:]


def resident() -> int:
    """Return the resident bytes of this process now that are no files' pages."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        _, everything, shared, *_ = map(int, statm.read_text().split())
        return (everything - shared) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Peak:
    """The most resident bytes while it is open, looked at 50 times a second; a context manager."""

    def __enter__(self) -> Peak:
        self.bytes = self.before = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident())


@functools.lru_cache(maxsize=2)
def drawn(split: str, index: int, size: tuple[int, int]) -> Tensor:
    """Return a smooth picture 3 H W in [0, 1], the same each time."""
    coarse = torch.rand(1, 3, max(size[0] // 16, 2), max(size[1] // 16, 2), generator=generator(split, index))
    return F.interpolate(coarse, size, mode="bilinear")[0]


class DrawnData:
    """Pictures made when they are asked for, as many as wanted, with targets of one channel mixed of their colours.

    Args:
        split: The split's name.
        count: How many.
        size: H, W.
        fields: Names of the targets.
    """

    def __init__(self, split: str, count: int, size: tuple[int, int], fields: Sequence[str]) -> None:
        self.split, self.count, self.image_size, self.fields = split, count, size, tuple(fields)
        self.content_hash = f"drawn {split} {count} {size[0]}x{size[1]}"

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Tensor:
        """Return a picture."""
        return drawn(self.split, index, self.image_size)

    def target(self, index: int, name: str) -> Tensor:
        """Return what a task of that name sees in it: 1 H W."""
        mix = torch.rand(3, 1, 1, generator=generator("mix", name))
        return (mix * self.image(index)).sum(0, keepdim=True)

    def has(self, name: str) -> Any:
        """Every picture has every target."""
        return np.ones(self.count, dtype=bool)


def drawn_scenario(counts: Mapping[str, int], size: tuple[int, int], number: int) -> DenseScenario:
    """Return a stream of so many tasks on pictures that are drawn, the first one as its base; no view is flipped."""
    names = [f"task{k}" for k in range(number)]
    known = [tasks.regression(1, name=name) for name in names]
    data = {split: DrawnData(split, count, size, names) for split, count in counts.items()}
    return dense_scenario(known, data, names[:1], names[1:], name="drawn", augmentation=Augmentation(flip=False))


def rooms(plan: Plan, images: int, base: Sequence[str], stream: Sequence[str]) -> DenseScenario:
    """Return a stream on rooms."""
    return rooms_incremental(
        image_size=plan.size, train_size=images, val_size=0, test_size=plan.test_images, base=base, stream=stream
    )


def model_on(net: Net, plan: Plan, kind: Callable[..., MultiTaskModel] = MultiTaskModel, head: Any = None) -> Any:
    """Return a model without tasks, by default one of light Medusa heads, laid out as a run of ours does it."""
    backbone = Backbone.create(net.name, pretrained=net.pretrained)
    model = kind(backbone, head or medusa(width_of(net.name), full=False), plan.precision)
    model.use_channels_last(**channels_last_pays(net.name, plan.device))
    return model.to(plan.device)


def adam(parameters: Any, lr: float = LR) -> torch.optim.Optimizer:
    """Return the optimizer of all rows."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=1e-4, fused=True)


def options(plan: Plan, seed: int = 0) -> Found:
    """Return what all strategies of ours are made with."""
    return {"optimizer": adam, "batch_size": plan.batch, "device": plan.device, "seed": seed, "epochs": plan.passes}


def frozen(net: Net, plan: Plan, plugins: Sequence[Any] = (), **more: Any) -> Medusa:
    """Return Medusa on a backbone that is frozen as it comes: experience 0 is a new task like any other."""
    return Medusa(model=model_on(net, plan), freeze_from=0, plugins=plugins, **(options(plan) | more))


def extras(watch: Stopwatch) -> list[Any]:
    """Return the plugins of all rows: schedule, clipping and the stopwatch."""
    return [LRSchedule("cosine"), GradientClipping(CLIP), watch]


# --- adding one task ---------------------------------------------------------------------------------------------


class Adding:
    """Normals added to semseg and depth, in every way.

    Args:
        net: The backbone.
        plan: How much is measured.
    """

    def __init__(self, net: Net, plan: Plan) -> None:
        self.net, self.plan = net, plan
        self.stream = rooms(plan, net.images, ["semseg", "depth"], [NEW])
        self.together = rooms(plan, net.images, ["semseg", "depth", NEW], [])
        log(f"{net.name}: base")
        base = self._ours(Medusa, model_on(net, plan), 0, [LRSchedule(), GradientClipping(CLIP)], freeze="none")
        base.train(self.stream.train_stream[0], eval_streams=[])
        self.base: MultiTaskModel = base.model.model
        self.rows: dict[str, Callable[[int, list[Any]], tuple[Any, DenseScenario]]] = {
            CACHED: self._kept(cache_features="memory"),
            **{HALF[precision]: self._kept(cache_features="memory", cache_precision=precision) for precision in HALF},
            UNCACHED: functools.partial(self._grown, Medusa, cache_features="off"),
            NAIVE: self._naive,
            "adapters": functools.partial(self._grown, Adapters),
            "single task": self._alone,
            "MTI-Net, all three tasks again": self._coupled,
        }

    def _ours(self, kind: Any, model: MultiTaskModel, seed: int, plugins: list[Any], **more: Any) -> Any:
        return kind(model=model, plugins=plugins, **options(self.plan, seed), **more)

    def _kept(self, **more: Any) -> Any:
        return functools.partial(self._grown, Medusa, kept={}, **more)

    def _grown(self, kind: Any, seed: int, plugins: list[Any], **more: Any) -> tuple[Any, DenseScenario]:
        made = self._ours(kind, copy.deepcopy(self.base), seed, plugins, **more)
        made.model.adopt(self.stream.train_stream[0])
        return made, self.stream

    def _naive(self, seed: int, plugins: list[Any]) -> tuple[Any, DenseScenario]:
        """Return Avalanche's own strategy, as a plain script makes it."""
        model = DenseModule(copy.deepcopy(self.base), seed=seed)
        model.adopt(self.stream.train_stream[0])
        parts = {"model": model, "criterion": model.criterion, "evaluator": dense_evaluator()}
        sizes = {"train_mb_size": self.plan.batch, "eval_mb_size": self.plan.batch, "train_epochs": self.plan.passes}
        free = MedusaPlugin(freeze="none", freeze_old_heads=False, seed=seed)
        optimizer = adam(model.parameters(), 1e-3)
        made = Naive(**parts, **sizes, optimizer=optimizer, plugins=[free, *plugins], device=self.plan.device)
        return made, self.stream

    def _alone(self, seed: int, plugins: list[Any]) -> tuple[Any, DenseScenario]:
        return self._ours(SingleTask, model_on(self.net, self.plan), seed, plugins), self.stream

    def _coupled(self, seed: int, plugins: list[Any]) -> tuple[Any, DenseScenario]:
        decoder = functools.partial(MTINet, tricks=True, width=width_of(self.net.name))
        model = model_on(self.net, self.plan, CoupledModel, decoder)
        everything = {"freeze": "none", "freeze_old_heads": False, "cache_features": "off"}
        return self._ours(Medusa, model, seed, plugins, **everything), self.together

    def learn(self, name: str, seed: int, limit: int | None = None) -> tuple[Stopwatch, float]:
        """Add the task in one way.

        Args:
            name: The row.
            seed: The seed.
            limit: Stop after so many steps, and do not test.

        Returns:
            What it took, and what it reached (NaN where not tested).
        """
        watch = Stopwatch(self.plan.device, limit)
        strategy, scenario = self.rows[name](seed, extras(watch))
        watch.start()
        strategy.train(scenario.train_stream[-1], eval_streams=[])
        if limit is not None:
            return watch, math.nan
        strategy.eval([scenario.test_stream[-1]])
        return watch, float(strategy.evaluator.metrics[0].results[NEW][METRIC])


def adding_on(net: Net, plan: Plan) -> dict[str, Found]:
    """Add the task in every way: first to the end, with all seeds that count, then by turns for the times."""
    work = Adding(net, plan)
    first: dict[str, Stopwatch] = {}
    values: dict[str, list[float]] = {}
    for name in work.rows:
        log(f"{net.name}: {name}")
        several = name == CACHED or name in HALF.values()
        done = [work.learn(name, seed) for seed in (plan.seeds if several else plan.seeds[:1])]
        first[name], values[name] = done[0][0], [value for _, value in done]
    steps = {name: min(watch.steps) for name, watch in first.items()}
    for _ in range(plan.rounds - 1):
        for name, least in steps.items():
            limit = 2 + max(3, min(24, round(plan.budget / least)))
            steps[name] = min(least, *work.learn(name, plan.seeds[0], limit)[0].steps)
    builds = {name: max(first[name].setup - first[UNCACHED].setup, 0.0) for name in (CACHED, *HALF.values())}
    return {name: _row(first[name], steps[name], values[name], builds.get(name, 0.0)) for name in work.rows}


def _row(watch: Stopwatch, step: float, values: Sequence[float], build: float) -> Found:
    count = len(watch.steps) + 1
    return {
        "step_ms": 1000 * step,
        "steps": count,
        "build_s": build,
        "with_build_ms": 1000 * (step + build / count),
        "kept_bytes": watch.kept_bytes,
        "values": list(values),
    }


def adding(plan: Plan) -> Found:
    """Add one task on each backbone."""
    return {
        "work": f"{NEW} added to semseg and depth on rooms of {_size(plan.size)}, batch {plan.batch}, "
        f"{'float32' if plan.precision == '32' else plan.precision}",
        "nets": {net.name: {"images": net.images, "rows": adding_on(net, plan)} for net in plan.nets},
        "passes": plan.passes,
        "seeds": list(plan.seeds),
    }


def adding_missed(found: Found, plan: Plan) -> list[str]:
    """Return what adding a task misses."""
    missed = []
    for net in plan.nets:
        rows = found["nets"][net.name]["rows"]
        for name, goal in net.goals.items():
            ratio = rows[NAIVE]["step_ms"] / rows[name]["step_ms"]
            if ratio < goal:
                missed.append(f"{name} on {net.name}: {ratio:.1f}x as fast as Naive, expected {goal:g}x")
        whole = rows[CACHED]["values"]
        if plan.device == "cpu" and whole[0] != rows[UNCACHED]["values"][0]:
            missed.append(f"{net.name}: another result with kept features ({whole[0]!r}) than without")
        for name in HALF.values():
            difference, noise = away(rows[name]["values"], whole)
            if difference > noise:
                missed.append(f"{name} on {net.name}: {difference:.3g} {UNIT} off, the seeds' noise is {noise:.3g}")
    return missed


def away(values: Sequence[float], whole: Sequence[float]) -> tuple[float, float]:
    """Return how far the mean of values is from that of others, and the standard deviation of these between seeds."""
    return abs(statistics.mean(values) - statistics.mean(whole)), statistics.stdev(whole)


def adding_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    parts = [
        f"{found['work']}; {found['passes']} passes, of images and their mirror images. The head is light Medusa's "
        "everywhere, but for MTI-Net (with its tricks); optimizer, schedule, clipping and layout are the same. A "
        "step is everything between two updates: loading, forward, backward, update, Avalanche. *With the build*: the "
        "time to compute the features, on the steps of this run. Kept: what a step keeps for its backward pass. "
        f"Mean angular error of {NEW} after these steps; kept features with seeds {found['seeds']}, else the first.",
    ]
    with_build = ["build, s", "ms a step with the build", "times faster"]
    head = ["", "ms a step", "times faster", *with_build, "kept, MiB", f"{METRIC} {UNIT}"]
    for name, one in found["nets"].items():
        rows, base = one["rows"], one["rows"][NAIVE]
        parts += [f"### {name}, {one['images']} images, {base['steps']} steps"]
        lines = [[label, *_adding_cells(row, base)] for label, row in rows.items()]
        parts += [table(head, lines)]
        differences = [(f"{p} {away(rows[n]['values'], rows[CACHED]['values'])[0]:.3f}") for p, n in HALF.items()]
        noise = away(rows[CACHED]["values"], rows[CACHED]["values"])[1]
        equal = "the same to the last bit" if rows[CACHED]["values"][0] == rows[UNCACHED]["values"][0] else "different"
        parts.append(
            f"With and without kept features (float32, first seed) the result is {equal}. Half precision moves the "
            f"mean over seeds by {', '.join(differences)} {UNIT}; the standard deviation between seeds is {noise:.3f}."
        )
    return parts


def _adding_cells(row: Found, base: Found) -> list[str]:
    faster, together = (base["step_ms"] / row[key] for key in ("step_ms", "with_build_ms"))
    values = statistics.mean(row["values"])
    spread = f" ± {statistics.stdev(row['values']):.2f}" if len(row["values"]) > 1 else ""
    return [
        f"{row['step_ms']:.0f}", f"{faster:.1f}", f"{row['build_s']:.1f}" if row["build_s"] else "",
        f"{row['with_build_ms']:.0f}", f"{together:.1f}", f"{row['kept_bytes'] / 2**20:.0f}", f"{values:.2f}{spread}",
    ]  # fmt: skip


# --- overhead ----------------------------------------------------------------------------------------------------


def bare_loop(model: MultiTaskModel, task: tasks.DenseTask, loader: Any, clock: Clock) -> None:
    """Learn a task from a loader of kept features with nothing but torch: the same maths as Medusa through Avalanche.

    Args:
        model: Its backbone frozen, its new head there.
        task: The task.
        loader: From its beginning.
        clock: Takes the time of every step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = adam(parameters)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, loader.max_steps)
    model.train()
    clock.mark()
    while loader.step < loader.max_steps:
        for x, y, _ in loader:
            target = y.to(clock.device).entries[task.name].value
            optimizer.zero_grad()
            answer = model(x.to(clock.device), [task.name])[task.name]
            loss = loss_of(answer, target, task)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
            clock.mark()


def loss_of(answer: tuple[Tensor, Sequence[Tensor]], target: Tensor, task: tasks.DenseTask) -> Tensor:
    """Return the training loss of one task."""
    total = answer[0].new_zeros(())
    for logits in (answer[0], *answer[1]):
        loss, count = task.loss(at_size(logits, (int(target.shape[-2]), int(target.shape[-1]))), target)
        total = total + loss / count.clamp(min=1)
    return task.loss_weight * total


def overhead(plan: Plan) -> Found:
    """Learn the same task with kept features, through Avalanche and without it, by turns."""
    net = plan.nets[-1]
    scenario = rooms(plan, 8 * plan.batch, [NEW], [])
    kept: Found = {}
    ours, bare, equal = [], [], True
    for _ in range(plan.rounds):
        watch = Stopwatch(plan.device)
        strategy = frozen(net, plan, extras(watch), cache_features="memory", kept=kept)
        watch.start()
        strategy.train(scenario.train_stream[0], eval_streams=[])
        model, loader, clock = model_on(net, plan), watch.loader, Clock(plan.device)
        model.freeze_backbone()
        model.add_head(scenario.tasks[NEW], seed=0)
        loader.go_to(0, 0)
        bare_loop(model, scenario.tasks[NEW], loader, clock)
        ours.append(watch.steps)
        bare.append(clock.seconds()[1:])
        equal &= all(map(torch.equal, model.state_dict().values(), strategy.model.model.state_dict().values()))
    return {
        "net": net.name,
        "size": list(plan.size),
        "steps": len(ours[0]),
        "ours_ms": least_of_each(ours),
        "bare_ms": least_of_each(bare),
        "equal": equal,
    }


def least_of_each(rounds: Sequence[Sequence[float]]) -> float:
    """Return the milliseconds of a mean step, of each step the least over the rounds: what disturbs one hits few."""
    return 1000 * statistics.mean(map(min, *rounds)) if len(rounds) > 1 else 1000 * statistics.mean(rounds[0])


def overhead_missed(found: Found, plan: Plan) -> list[str]:
    """Return what the overhead misses."""
    ratio = found["ours_ms"] / found["bare_ms"]
    missed = [] if ratio <= OVERHEAD else [f"Medusa takes {ratio:.3f} of a bare loop's time, expected {OVERHEAD}"]
    same = found["equal"] or plan.device != "cpu"
    return missed if same else [*missed, "Medusa and the bare loop end with other weights"]


def overhead_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    ratio = found["ours_ms"] / found["bare_ms"]
    return [
        f"{NEW} on {found['net']}, {_size(found['size'])}, features kept, {found['steps']} steps: Medusa through "
        "Avalanche against a plain loop with the same loader, loss, optimizer, schedule and clipping. Of each step the "
        "least over the rounds.",
        table(
            ["", "ms a step"],
            [["Medusa", f"{found['ours_ms']:.1f}"], ["bare loop", f"{found['bare_ms']:.1f}"],
             ["ratio", f"{ratio:.3f}"]],
        ),
        "Both end with the same weights, to the last bit." if found["equal"] else "They end with different weights.",
    ]  # fmt: skip


# --- scaling with tasks ------------------------------------------------------------------------------------------


def growing(plan: Plan) -> Found:
    """Add one task after the other to a frozen backbone whose features are kept."""
    net = plan.nets[-1]
    scenario = drawn_scenario({"train": 4 * plan.batch, "test": 1}, plan.size, plan.tasks + 1)
    rounds = [_grow(net, plan, scenario) for _ in range(plan.rounds)]
    steps = [min(found[k][0] for found in rounds) for k in range(1, plan.tasks + 1)]
    return {
        "net": net.name,
        "size": list(plan.size),
        "step_ms": [1000 * step for step in steps],
        "setup_ms": [1000 * min(found[k][1] for found in rounds) for k in range(1, plan.tasks + 1)],
        "kept_bytes": [found[2] for found in rounds[0][1:]],
        "resident_bytes": [found[3] for found in rounds[0][1:]],
        "head_bytes": rounds[0][-1][4],
    }


def _grow(net: Net, plan: Plan, scenario: DenseScenario) -> list[tuple[float, float, int, int, int]]:
    """Return for each task the seconds of a step and before the first one, bytes kept, resident, and of its head."""
    watch = Stopwatch(plan.device, plan.task_steps)
    strategy = frozen(net, plan, extras(watch), cache_features="memory")
    found = []
    for experience in scenario.train_stream:
        watch.start()
        strategy.train(experience, eval_streams=[])
        held = torch.cuda.memory_allocated() if plan.device == "cuda" else resident()
        head = 4 * strategy.model.model.parameters_of(experience.name)
        found.append((min(watch.steps), watch.setup, watch.kept_bytes, held, head))
    return found


def spread(values: Sequence[float]) -> float:
    """Return the largest share by which a value differs from the median."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


def growing_missed(found: Found, plan: Plan) -> list[str]:
    """Return what is not flat."""
    return [
        f"{label} of a task differs by up to {100 * spread(found[key]):.0f} %, expected {100 * FLAT:g} %"
        for key, label in (("step_ms", "a step"), ("kept_bytes", "what a step keeps"))
        if spread(found[key]) > FLAT
    ]


def growing_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    number = len(found["step_ms"])
    shown = [k for k in (1, 2, 4, 8, 12, 16) if k <= number]
    mebibytes = [value / 2**20 for value in found["resident_bytes"]]
    a_task = (mebibytes[-1] - mebibytes[0]) / max(number - 1, 1)
    return [
        f"Task k after k - 1 others (and a base task), {found['net']}, {_size(found['size'])}, features kept.",
        table(
            ["task", *map(str, shown)],
            [
                ["ms a step", *(f"{found['step_ms'][k - 1]:.1f}" for k in shown)],
                ["ms before the first step", *(f"{found['setup_ms'][k - 1]:.0f}" for k in shown)],
                ["MiB kept by a step", *(f"{found['kept_bytes'][k - 1] / 2**20:.1f}" for k in shown)],
            ],
        ),
        f"Over all {number} a step differs from the median by at most {100 * spread(found['step_ms']):.1f} %, what it "
        f"keeps by {100 * spread(found['kept_bytes']):.1f} %. The process grows by {a_task:.2f} MiB a task; a head has "
        f"{found['head_bytes'] / 2**20:.2f} MiB.",
    ]


# --- inference ---------------------------------------------------------------------------------------------------


def answering(plan: Plan) -> Found:
    """Answer a batch for four tasks."""
    wanted = {"semseg": 19, "depth": 1, "normals": 3, "edges": 1}
    images = torch.rand(plan.batch, 3, *plan.size, generator=generator("speed")).to(plan.device)
    rows = {}
    for backbone in plan.inference:
        log(f"answering with {backbone}")
        nets = {name: build(name, backbone, wanted).to(plan.device).eval() for name in DECODERS}
        works = {name: functools.partial(_answer, net, images, plan) for name, net in nets.items()}
        rows[backbone] = {name: 1000 * spent for name, spent in by_turns(plan.device, works, plan.rounds).items()}
    return {"size": list(plan.size), "batch": plan.batch, "precision": plan.precision, "ms": rows}


def _answer(net: torch.nn.Module, images: Tensor, plan: Plan) -> object:
    with torch.inference_mode(), torch.autocast(plan.device, torch.bfloat16, enabled=plan.precision == "bf16"):
        return net(images)


def answering_missed(found: Found, plan: Plan) -> list[str]:
    """Return where Medusa does not answer faster."""
    ratios = {backbone: ms[DECODERS[0]] / ms[AGAINST] for backbone, ms in found["ms"].items()}
    return [
        f"{backbone}: four tasks in {ratio:.2f} of the time of {AGAINST}, expected {INFERENCE}"
        for backbone, ratio in ratios.items()
        if ratio > INFERENCE
    ]


def answering_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    return [
        f"semseg (19), depth, normals, edges for a batch of {found['batch']} at {_size(found['size'])}: ms "
        f"(ratio to {AGAINST}).",
        table(
            ["", *found["ms"]],
            [[name, *(f"{ms[name]:.0f} ({ms[name] / ms[AGAINST]:.2f})" for ms in found["ms"].values())]
             for name in DECODERS],
        ),
    ]  # fmt: skip


# --- scaling with images -----------------------------------------------------------------------------------------


def keeping(count: int, where: str, plan: Plan) -> Found:
    """Keep the features of so many images in memory or on disk, and learn one pass from them."""
    net = Net(plan.image_net, False, count)
    scenario = drawn_scenario({"train": count, "test": 1}, plan.image_size, 1)
    watch = Stopwatch(plan.device)
    with tempfile.TemporaryDirectory() as folder:
        place: Found = {"cache_dir": Path(folder)} if where == "disk" else {}
        more = {"cache_features": where, "epochs": 1, "batch_size": plan.image_batch, **place}
        strategy = frozen(net, plan, extras(watch), **more)
        with Peak() as peak:
            watch.start()
            strategy.train(scenario.train_stream[0], eval_streams=[])
        on_disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {
        "build_ms": 1000 * watch.setup / count,
        "epoch_ms": 1000 * statistics.median(watch.steps) / plan.image_batch,
        "peak_bytes": peak.bytes - peak.before,
        "disk_bytes": on_disk,
    }


def kept_apart(count: int, where: str, device: str) -> Found:
    """Do the same in a process of its own, whose memory holds nothing else."""
    command = [sys.executable, __file__, "--device", device, "--keep", str(count), where]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def images(plan: Plan) -> Found:
    """Keep the features of more and more images."""
    rows: dict[str, dict[str, Found]] = {"memory": {}, "disk": {}}
    for count in plan.counts:
        for where, row in rows.items():
            log(f"{count} images, features kept {'in memory' if where == 'memory' else 'on disk'}")
            apart = plan.apart
            row[str(count)] = kept_apart(count, where, plan.device) if apart else keeping(count, where, plan)
    return {"net": plan.image_net, "size": list(plan.image_size), "batch": plan.image_batch, "rows": rows}


def images_missed(found: Found, plan: Plan) -> list[str]:
    """Return what grows faster than the number of images, or at all where it should not."""
    missed = []
    for where, row in found["rows"].items():
        *_, before, last = row.values()
        for key, label in (("build_ms", "to compute the features of"), ("epoch_ms", "to learn from")):
            if last[key] > LINEAR * before[key]:
                missed.append(f"{where}: {last[key]:.2f} ms {label} an image among the most, {before[key]:.2f} before")
    first, *_, last = found["rows"]["disk"].values()
    if last["peak_bytes"] - first["peak_bytes"] > GROWTH:
        grown = (last["peak_bytes"] - first["peak_bytes"]) / 2**20
        missed.append(f"disk: {grown:.0f} MiB more memory for the most images than for the fewest")
    return missed


def images_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    lines = [
        [where, f"{int(count):,}", f"{row['build_ms']:.2f}", f"{row['epoch_ms']:.2f}",
         f"{row['peak_bytes'] / 2**20:.0f}", f"{row['disk_bytes'] / 2**20:.0f}" if row["disk_bytes"] else ""]
        for where, by_count in found["rows"].items()
        for count, row in by_count.items()
    ]  # fmt: skip
    return [
        f"Drawn images of {_size(found['size'])}, {found['net']}, batch {found['batch']}, each number in a process of "
        "its own: the features are computed, then a head learns one pass from them (median step). Memory: what "
        "the process takes at most more than before, without pages of files.",
        table(
            ["kept in", "images", "build, ms an image", "head epoch, ms an image", "memory, MiB", "disk, MiB"], lines
        ),
    ]


# --- evaluation --------------------------------------------------------------------------------------------------


def evaluation(plan: Plan) -> Found:
    """Evaluate tasks together and one by one."""
    net, rows = plan.nets[-1], {}
    for number in plan.evaluated:
        log(f"evaluating {number} tasks")
        scenario = drawn_scenario({"train": 1, "test": plan.test_images}, plan.size, number)
        strategy = frozen(net, plan, cache_features="off")
        strategy.model.model.add_heads(list(scenario.tasks.values()), seed=0)
        for experience in scenario.train_stream:
            strategy.model.adopt(experience)
        values: dict[str, Found] = {}
        works = {
            "together": functools.partial(_evaluate, strategy, [scenario.test_stream], values, "together"),
            "apart": functools.partial(_evaluate, strategy, [[e] for e in scenario.test_stream], values, "apart"),
        }
        spent = by_turns(plan.device, works, plan.rounds)
        rows[str(number)] = {f"{name}_s": seconds for name, seconds in spent.items()}
        rows[str(number)]["equal"] = values["together"] == values["apart"]
    return {"net": net.name, "size": list(plan.size), "images": plan.test_images, "rows": rows}


def _evaluate(strategy: Medusa, streams: Sequence[Any], values: dict[str, Found], name: str) -> None:
    values[name] = {}
    for stream in streams:
        strategy.eval(stream)
        values[name] |= {task: dict(row) for task, row in strategy.results.items()}


def evaluation_missed(found: Found, plan: Plan) -> list[str]:
    """Return where tasks are not evaluated faster together, or not alike."""
    missed = [
        f"{number} tasks together take {row['together_s'] / row['apart_s']:.2f} of the time of one by one"
        for number, row in found["rows"].items()
        if row["together_s"] >= row["apart_s"]
    ]
    other = [number for number, row in found["rows"].items() if not row["equal"]]
    return missed + [f"{number} tasks: other values together than one by one" for number in other]


def evaluation_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    return [
        f"{found['images']} images of {_size(found['size'])}, {found['net']}, backbone run each time: all tasks in one "
        "pass against a pass for each.",
        table(
            ["tasks", "one pass, s", "a pass each, s", "times faster", "values"],
            [[number, f"{row['together_s']:.2f}", f"{row['apart_s']:.2f}", f"{row['apart_s'] / row['together_s']:.2f}",
              "the same" if row["equal"] else "different"] for number, row in found["rows"].items()],
        ),
    ]  # fmt: skip


# --- profile -----------------------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, each tensor once an operation.

    Attributes:
        bytes: The bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count; what only looks at memory in another way moves nothing."""
        result = func(*args, **(kwargs or {}))
        inputs, outputs = list(tensors((args, kwargs or {}))), list(tensors(result))
        places = {x.untyped_storage()._cdata for x in inputs}
        looks = any(x.untyped_storage()._cdata in places for x in outputs)
        if not looks or func._schema.is_mutable:
            # What is expanded is in memory once.
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*inputs, *outputs))
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """Go through the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)


def peaks(device: str, rounds: int) -> Found:
    """Measure what the device can do: FLOPs a second in a matrix product, bytes a second in copies.

    Copies are of 4 MiB, as a head step's larger tensors are: caches count for it as they do for the step.
    """
    a = torch.rand(1024, 1024, device=device)
    x = torch.rand(2**20, device=device)
    y = torch.empty_like(x)

    def copies() -> None:
        for _ in range(100):
            y.copy_(x)

    works: dict[str, Callable[[], object]] = {"product": lambda: a @ a, "copies": copies}
    spent = by_turns(device, works, 3 * rounds)
    return {"flops": 2 * 1024**3 / spent["product"], "bandwidth": 100 * 2 * 4 * 2**20 / spent["copies"]}


class HeadStep:
    """A step that learns one head from kept features, in parts.

    Args:
        net: The backbone.
        plan: How much is measured.
    """

    PARTS = ("load", "forward", "loss", "backward", "update")

    def __init__(self, net: Net, plan: Plan) -> None:
        scenario = rooms(plan, 2 * plan.batch, [NEW], [])
        watch = Stopwatch(plan.device)
        strategy = frozen(net, plan, [watch], cache_features="memory", epochs=1)
        watch.start()
        strategy.train(scenario.train_stream[0], eval_streams=[])
        self.device, self.task = plan.device, scenario.tasks[NEW]
        self.model, self.loader = strategy.model.model, watch.loader
        self.model.unfreeze_head(NEW)
        self.model.train()
        self.parameters = [p for p in self.model.heads.parameters() if p.requires_grad]
        self.optimizer = adam(self.parameters)
        self.loader.max_steps = None
        self._batches = self._endless()

    def _endless(self) -> Iterator[list[Any]]:
        while True:
            yield from self.loader

    def load(self) -> None:
        """Take a batch."""
        x, y, _ = next(self._batches)
        self.x, self.target = x.to(self.device), y.to(self.device).entries[NEW].value

    def forward(self) -> None:
        """Run the head."""
        self.answer = self.model(self.x, [NEW])[NEW]

    def loss(self) -> None:
        """Take the loss, with deep supervision."""
        self.value = loss_of(self.answer, self.target, self.task)

    def backward(self) -> None:
        """Take the gradients."""
        self.value.backward()

    def update(self) -> None:
        """Clip, step, and forget the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part of a step."""
        clock = Clock(self.device)
        clock.mark()
        for part in self.PARTS:
            getattr(self, part)()
            clock.mark()
        return dict(zip(self.PARTS, clock.seconds(), strict=True))

    def counted(self) -> dict[str, Found]:
        """Return what each part of a step computes (convolutions and products) and moves."""
        found = {}
        for part in self.PARTS:
            with FlopCounterMode(display=False) as counter, Traffic() as traffic:
                getattr(self, part)()
            found[part] = {"flops": int(counter.get_total_flops()), "bytes": traffic.bytes}
        return found


def profile(plan: Plan) -> Found:
    """Take a head step to pieces."""
    net = plan.nets[0]
    step = HeadStep(net, plan)
    counted = step.counted()
    taken = [step.seconds() for _ in range(8 * plan.rounds)]
    rows = {part: {"ms": 1000 * min(t[part] for t in taken), **counted[part]} for part in step.PARTS}
    about = {"net": net.name, "size": list(plan.size), "batch": plan.batch}
    return {**about, "rows": rows, **peaks(plan.device, plan.rounds)}


def no_goal(found: Found, plan: Plan) -> list[str]:
    """Return nothing: it is for looking at."""
    return []


def profile_page(found: Found) -> list[str]:
    """Return the section in Markdown."""
    limits = {part: _limits(row, found) for part, row in found["rows"].items()}
    rows = [
        [part, f"{row['ms']:.1f}", f"{row['flops'] / 1e9:.2f}", f"{limits[part][0]:.1f}", f"{row['bytes'] / 2**20:.0f}",
         f"{limits[part][1]:.1f}", f"{row['ms'] / max(limits[part]):.1f}" if max(limits[part]) else ""]
        for part, row in found["rows"].items()
    ]  # fmt: skip
    total = sum(row["ms"] for row in found["rows"].values())
    least = sum(max(pair) for pair in limits.values())
    return [
        f"{NEW}, {found['net']}, {_size(found['size'])}, batch {found['batch']}, features kept. Limits: FLOPs of "
        f"convolutions and products at {found['flops'] / 1e9:.0f} GFLOP/s (a product of 1024 x 1024 matrices), bytes "
        f"that its operations read and write at {found['bandwidth'] / 1e9:.1f} GB/s (copies of 4 MiB). Of each part "
        "the least over the rounds.",
        table(["part", "ms", "GFLOP", "limit, ms", "MiB", "limit, ms", "times the larger limit"], rows),
        f"Together {total:.0f} ms, {total / least:.1f} times its limits." if least else f"Together {total:.0f} ms.",
    ]


def _limits(row: Found, found: Found) -> tuple[float, float]:
    return 1000 * row["flops"] / found["flops"], 1000 * row["bytes"] / found["bandwidth"]


# --- all of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        title: Its heading.
        measure: Takes its numbers.
        missed: Says what they miss.
        page: Returns them in Markdown.
    """

    title: str
    measure: Callable[[Plan], Found]
    missed: Callable[[Found, Plan], list[str]]
    page: Callable[[Found], list[str]]


SECTIONS = {
    "adding": Section("Adding one task", adding, adding_missed, adding_page),
    "overhead": Section("Overhead", overhead, overhead_missed, overhead_page),
    "tasks": Section("More tasks", growing, growing_missed, growing_page),
    "inference": Section("Inference", answering, answering_missed, answering_page),
    "images": Section("More images", images, images_missed, images_page),
    "evaluation": Section("Evaluation", evaluation, evaluation_missed, evaluation_page),
    "profile": Section("A head step", profile, no_goal, profile_page),
}


def run(name: str, plan: Plan) -> Found:
    """Measure a section, and note on what."""
    log(name)
    started = time.perf_counter()
    found = SECTIONS[name].measure(plan)
    return {
        "found": found,
        "failures": SECTIONS[name].missed(found, plan),
        "seconds": time.perf_counter() - started,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | {"device": device_name(plan.device)},
        "packages": packages(),
        "git": git_commit(),
    }


def device_name(device: str) -> str:
    """Return what numbers are taken on, in words."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"


def page(sections: Mapping[str, Found]) -> str:
    """Return all sections there are in Markdown, in their order."""
    parts = ["# Speed", "Written by `python benchmarks/speed.py`; each section says where and when it was measured."]
    for name, section in SECTIONS.items():
        if name in sections:
            one = sections[name]
            parts += [f"## {section.title}", *section.page(one["found"]), _provenance(one)]
    missed = [line for one in sections.values() for line in one["failures"]]
    parts.append("Missed: " + "; ".join(missed) + "." if missed else "Nothing is missed.")
    return "\n\n".join(parts) + "\n"


def _provenance(one: Found) -> str:
    where = one["machine"]
    versions = ", ".join(f"{name} {one['packages'][name]}" for name in ("torch", "timm", "avalanche-lib"))
    when = f"commit {one['git']}, {one['date']}, {one['seconds']:.0f} s"
    return f"*{where['cpu']}, {where['device']}; {versions}; {when}.*"


def written(folder: Path, name: str, measured: dict[str, Found]) -> str:
    """Put sections in the place of those measured before, beside the others, and return the page."""
    file = folder / f"{name}.json"
    before: dict[str, Found] = json.loads(file.read_text()) if file.is_file() else {}
    sections = {key: (before | measured)[key] for key in SECTIONS if key in before | measured}
    folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(sections, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page(sections))
    return page(sections)


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def log(what: str) -> None:
    """Say on stderr what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=list(PLANS), default=found, help=f"here: {found}")
    parser.add_argument("--quick", action="store_true", help="miniatures, written to the temporary folder")
    parser.add_argument("--keep", nargs=2, metavar=("IMAGES", "WHERE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.sections if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}; expected any of {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    plan = replace(QUICK, device=chosen.device) if chosen.quick else PLANS[chosen.device]
    if chosen.keep:
        print(json.dumps(keeping(int(chosen.keep[0]), chosen.keep[1], plan)))
        return 0
    measured = {}
    folder = Path(tempfile.gettempdir()) if chosen.quick else RESULTS
    name = "speed" if chosen.device == "cpu" else f"speed-{re.sub('[^A-Za-z0-9]+', '-', device_name('cuda'))}"
    text = ""
    for section in chosen.sections or SECTIONS:
        measured[section] = run(section, plan)
        text = written(folder, name, measured)
    print(text)
    return any(one["failures"] for one in measured.values())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
