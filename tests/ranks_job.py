"""What test_distributed.py runs under torchrun, and in one process for comparison: `ranks_job.py folder part...`."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fake_data import fake_scene
from medusa_cl import distributed, tasks
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.data.loader import Augmentation
from medusa_cl.errors import ConfigError, TrainingError
from medusa_cl.models import Backbone, MedusaHead, MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario, dense_scenario
from medusa_cl.strategies.medusa import Medusa
from medusa_cl.strategies.plugins import GradientClipping, LRSchedule, ValSelection
from medusa_cl.strategies.ranks import EqualRanks, check_equal

WITHOUT_BATCH_STATISTICS = "test_efficientnet_gn"
WITH_BATCH_STATISTICS = "test_efficientnet"
STEPS = 4
SETS = ("ewc,replay,mas", "si,lwf,feature_distillation,gem", "replay_balanced,agem,rwalk")


class SomeLabels:
    """Scenes of which two in three have no saliency, so that a half of a batch may have none."""

    fields = ("semseg", "saliency", "normals")
    image_size = (32, 48)

    def __init__(self, split: str, count: int) -> None:
        self.content_hash = split
        self._scenes = [fake_scene(0, split, i, self.image_size, 5) for i in range(count)]

    def __len__(self) -> int:
        return len(self._scenes)

    def image(self, index: int) -> Tensor:
        """The picture."""
        return torch.from_numpy(self._scenes[index]["image"].astype(np.float32) / 255).permute(2, 0, 1)

    def target(self, index: int, name: str) -> Tensor | None:
        """A target, or None."""
        if not self.has(name)[index]:
            return None
        value = self._scenes[index][name]
        if name == "semseg":
            return torch.from_numpy(value)
        return torch.from_numpy(np.atleast_3d(value).astype(np.float32)).permute(2, 0, 1)

    def has(self, name: str) -> Any:
        """All images have all targets but saliency."""
        return np.array([name != "saliency" or i % 3 == 1 for i in range(len(self))])


class Curve(EqualRanks):
    """Notes the losses of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Note them."""
        terms = {task: float(loss.detach()) for task, loss in strategy.mb_losses.items()}
        self.steps.append({"all": float(strategy.loss.detach()), **terms})


def scenario() -> DenseScenario:
    """Saliency and semantic segmentation, then normals."""
    known = [tasks.semseg(5), tasks.saliency(), tasks.normals()]
    data = {"train": SomeLabels("train", 13), "val": SomeLabels("val", 3), "test": SomeLabels("test", 5)}
    return dense_scenario(known, data, base=["semseg", "saliency"], stream=["normals"], name="some")


def head_without_batch_statistics(*arguments: Any, width: int | None = 8, mix_width: int | None = 8) -> MedusaHead:
    """A head in which each image is normalised by itself."""
    head = MedusaHead(*arguments, width=width, mix_width=mix_width)
    for module in list(head.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return head


def strategy_of(backbone: str, *plugins: Any, steps: int = STEPS, **options: Any) -> Medusa:
    """Make a strategy that has learnt nothing."""
    with_statistics = functools.partial(MedusaHead, width=8, mix_width=8)
    alike = backbone == WITHOUT_BATCH_STATISTICS or "freeze_from" in options
    made = MultiTaskModel(
        Backbone.create(backbone, pretrained=False, weights_seed=0),
        head_without_batch_statistics if alike else with_statistics,
    )
    # Not Adam: it divides by the size of gradients, and so makes much of rounding where they are almost 0.
    optimizer = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-2)
    rates = {"lr_head": 0.02, "lr_backbone": 0.02}
    own = [*plugins, LRSchedule("cosine"), GradientClipping(10.0)]
    return Medusa(
        model=made, optimizer=optimizer, batch_size=4, epochs=99, max_steps=steps, plugins=own, **rates, **options
    )


def learnt(backbone: str, *plugins: Any, steps: int = STEPS, **options: Any) -> tuple[Medusa, dict[str, Any]]:
    """Learn the stream; returns the curve, the values on the test split and the weights."""
    stream, curve = scenario(), Curve()
    strategy = strategy_of(backbone, curve, *plugins, steps=steps, **options)
    values = {}
    for k, experience in enumerate(stream.train_stream):
        strategy.train(experience, eval_streams=[])
        strategy.eval(stream.test_stream[: k + 1])
        values |= {f"{k}/{task}": row for task, row in strategy.results.items()}
    return strategy, {"curve": curve.steps, "values": values, "weights": strategy.model.state_dict()}


def gone_on() -> bool:
    """Whether training that goes on from the middle of an epoch of the second experience ends with the same weights."""
    from hydra.utils import instantiate

    from small_run import config

    def made() -> Medusa:
        plugins = [instantiate(plugin) for plugin in config("plugins=[ewc,replay,si]").plugins.values()]
        return strategy_of(WITH_BATCH_STATISTICS, EqualRanks(), *plugins, freeze="none", freeze_old_heads=False)

    stream, whole, again, saved = scenario(), made(), made(), dict[str, Any]()

    def look() -> None:
        if whole.experience.task_label == 1 and whole.steps_done == 2:
            saved.update(copy.deepcopy(distributed.agreed(whole.state())))

    whole.each_step = look
    for experience in stream.train_stream:
        whole.train(experience, eval_streams=[])
    again.model.model.add_heads(list(stream.train_stream[0].tasks.values()), seed=0)
    own = again.model.state_dict()
    again.model.load_state_dict({name: value for name, value in saved["weights"].items() if name in own})
    again.resume(saved, list(stream.train_stream))
    again.train(stream.train_stream[1], eval_streams=[])
    pairs = zip(whole.model.state_dict().items(), again.model.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def proofs() -> dict[str, Any]:
    """What one process and several must agree on."""
    options: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False}
    selected = ValSelection(scenario().data["val"])
    return {
        "frozen": learnt(WITHOUT_BATCH_STATISTICS)[1],
        "tuned": learnt(WITHOUT_BATCH_STATISTICS, selected, **options)[1],
        "kept_statistics": learnt(WITH_BATCH_STATISTICS, freeze_from=0)[1],
    }


def equal_ranks() -> dict[str, Any]:
    """What is trained on batches of several processes, with what plugins, and stays equal on all of them."""
    from hydra.utils import instantiate

    from small_run import config

    options: dict[str, Any] = {"freeze": "none", "freeze_old_heads": False, "steps": 2}
    strategy, found = learnt(WITH_BATCH_STATISTICS, **options)
    check_equal(strategy.model)
    for names in SETS:
        plugins = [instantiate(plugin) for plugin in config(f"plugins=[{names}]").plugins.values()]
        for plugin in plugins:
            vars(plugin).update({k: 2 for k in ("sample_size", "patterns_per_experience") if k in vars(plugin)})
        strategy, _ = learnt(WITH_BATCH_STATISTICS, *plugins, **options)
        check_equal(strategy.model)
    return {"batch_statistics": found, "refused": refused(), "drifted": drifted(strategy)}


def kept_features(folder: Path = Path()) -> dict[str, Any]:
    """Features of 13 images in 2 views, in memory and in a file, each process computing its share of batches of 4."""
    backbone = Backbone.create(WITHOUT_BATCH_STATISTICS, pretrained=False, weights_seed=0)
    backbone.freeze()
    source, found = SomeLabels("train", 13), {}
    for precision, place in (("32", None), ("32", folder / "kept"), ("bf16", folder / "kept")):
        kept = FrozenFeatures(backbone, source, Augmentation(), batch_size=4, precision=precision, folder=place)
        found[f"{precision}, {'memory' if place is None else 'disk'}"] = [
            x.float() for x in kept.take(torch.arange(26))
        ]
    return found


def refused() -> str:
    """What is said of a plugin that keeps shares of batches."""
    from medusa_cl.strategies.distillation import DenseDER

    try:
        learnt(WITH_BATCH_STATISTICS, DenseDER(mem_size=4), freeze="none")
    except ConfigError as error:
        return str(error)
    return ""


def drifted(strategy: Medusa) -> str:
    """What is said of weights that differ in one place."""
    if distributed.rank() == 1:
        with torch.no_grad():
            next(iter(strategy.model.heads["normals"].parameters())).view(-1)[0] += 1e-6
    try:
        check_equal(strategy.model)
    except TrainingError as error:
        return str(error)
    return ""


class PoisonOnRank1(EqualRanks):
    """Makes numbers of rank 1 alone NaN in experience 0: images of step 1, the loss of 2, a gradient of 3."""

    def _now(self, strategy: Any, step: int) -> bool:
        return distributed.rank() == 1 and strategy.experience.task_label == 0 and strategy._step == step

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, 1):
            strategy.mbatch[0] = strategy.mbatch[0] * torch.nan

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, 2):
            strategy.loss = strategy.loss * torch.nan

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self._now(strategy, 3):
            strategy.optimizer.param_groups[0]["params"][0].grad[0] = torch.nan


def left_out() -> dict[str, Any]:
    """How many steps both ranks leave out, and whether they stay equal."""
    strategy, found = learnt(WITH_BATCH_STATISTICS, PoisonOnRank1(), on_nan="skip", freeze="none")
    check_equal(strategy.model)
    return {"skipped": strategy.guard.skipped, "weights": found["weights"]}


def exchanges() -> dict[str, Any]:
    """What each function gives, for ranks that hold different things."""
    rank = distributed.rank()
    halves = [torch.full((2, 3), float(rank)), torch.tensor([1.0 + rank]), torch.tensor([rank], dtype=torch.float64)]
    kept = halves[0].clone()
    total = distributed.summed(halves[0])
    unchanged = torch.equal(halves[0], kept)
    distributed.average_(halves)
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([2.0, 4.0 * rank])
    parameters[1].grad = torch.ones(2) if rank == 1 else None
    distributed.average_gradients(parameters)
    return {
        "shard": distributed.shard(),
        "summed": total,
        "unchanged": unchanged,
        "averaged": halves,
        "gradients": [p.grad for p in parameters],
        "agreed": distributed.agreed({"rank": rank}),
        "gathered": distributed.gathered(torch.tensor([rank, 7])),
    }


def failing() -> dict[str, Any]:
    """Rank 1 fails in its second experience, while rank 0 trains on."""

    class Fails(EqualRanks):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if distributed.rank() == 1 and strategy.clock.train_exp_counter == 1:
                raise TrainingError("the disk of this one is full")

    return learnt(WITHOUT_BATCH_STATISTICS, Fails())[1]


PARTS = {
    "proofs": [proofs],
    "ranks": [exchanges, kept_features, proofs, equal_ranks, left_out, gone_on],
    "failing": [failing],
}


def main(folder: Path, parts: Sequence[str]) -> None:
    """Run parts one after the other, and save what each found in a file for each rank."""
    torch.set_num_threads(1)
    if distributed.launched():
        distributed.start("cpu")
    for part in parts:
        found = {run.__name__: run() for run in PARTS[part]}
        torch.save(found, folder / f"{part}-{distributed.rank()}.pt")
    distributed.stop()


if __name__ == "__main__":
    if distributed.launched():
        with distributed.ending_together():
            main(Path(sys.argv[1]), sys.argv[2:])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
