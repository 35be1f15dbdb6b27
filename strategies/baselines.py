"""What Medusa is compared with, as strategies: a net for each task, all data at every experience, adapters.

The others need no class of their own: `finetune` is Medusa without its freeze, `joint` a stream of one experience,
`frozen_plain` and `linear_probe` are heads, `frozen_imagenet` and `frozen_foundation` freeze before experience 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from medusa_cl.data.loader import DenseDataset
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.models.adapters import KINDS, AdaptedHead, OwnNetHead
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.scenarios.dense import EVERYTHING, DenseExperience, avalanche_dataset
from medusa_cl.strategies.medusa import Medusa


class SingleTask(Medusa):
    """A net of its own for each task, backbone and head, trained end to end: nothing shared, nothing forgotten.

    Every task takes as many steps as the base tasks of other strategies: each is the first one of its net.

    Args:
        model: Its backbone, as it is now, is what every net starts from; it is not trained itself.
        **options: Options of `DenseTemplate`.
    """

    def __init__(self, *, model: MultiTaskModel, **options: Any) -> None:
        model.head = partial(OwnNetHead, head=_inner(model.head))
        super().__init__(model=model, freeze_from=0, cache_features="off", **options)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train the net of each task alone, also where an experience brings several."""
        for experience in [experiences] if isinstance(experiences, DenseExperience) else experiences:
            for name in experience.tasks:
                if experience.alone(name).name not in self.done:  # a run that goes on may have some
                    self._train_net(experience, name, eval_streams, **kwargs)

    def _train_net(self, experience: DenseExperience, name: str, eval_streams: Any, **kwargs: Any) -> None:
        label, known = experience.task_label, self.model.tasks_of
        before = known.get(label, ())
        known[label] = tuple(task for task in before if task == name)  # the other nets need not answer as it learns
        super().train(experience.alone(name), eval_streams, **kwargs)
        known[label] = tuple(dict.fromkeys((*before, name)))

    def adopt(self, experience: DenseExperience) -> None:
        """Go through the nets of an experience one by one, as they were trained."""
        for name in experience.tasks:
            super().adopt(experience.alone(name))

    def steps_of(self, experience: DenseExperience) -> int | None:
        """Return the steps of the base tasks for every task."""
        return self.base_steps or self.max_steps


class Cumulative(Medusa):
    """Everything so far, at every experience: each image once, with the targets of all tasks learnt and the new ones.

    Where Avalanche's strategy of that name joins the experiences' data, and so shows an image once for each of them,
    this one gives an image all its targets.

    Args:
        model: The model.
        freeze: "none": what all data of all tasks teaches needs all weights.
        freeze_old_heads: False, likewise.
        **options: Options of `DenseTemplate`.

    Raises:
        ConfigError: Something is to be frozen.
    """

    def __init__(
        self, *, model: MultiTaskModel, freeze: str = "none", freeze_old_heads: bool = False, **options: Any
    ) -> None:
        if freeze != "none" or freeze_old_heads:
            raise ConfigError(
                f"strategy=cumulative trains everything on everything, but got freeze={freeze} and "
                f"freeze_old_heads={freeze_old_heads}. Leave them out, or use strategy=medusa."
            )
        super().__init__(model=model, freeze=freeze, freeze_old_heads=False, cache_features="off", **options)

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Give every image the targets of all tasks."""
        tasks = {**self.model.tasks, **self.experience.tasks}
        self.adapted_dataset = avalanche_dataset(DenseDataset(self.experience.source, tasks, EVERYTHING), EVERYTHING)


class Adapters(Medusa):
    """Medusa's freeze, with small blocks of its own inside the backbone for each new task.

    The fair rival: it forgets nothing either, and a task may change the features it sees. The price is a pass through
    the backbone for every task, so features cannot be kept.

    Args:
        model: The model; its `head` makes what stands on the adapted features.
        kind: "lora" or "residual", see `AdaptedHead`.
        rank: The rank of the low-rank blocks.
        **options: Options of `Medusa`.

    Raises:
        ConfigError: `kind` is unknown, or `rank` is below 1.
    """

    def __init__(self, *, model: MultiTaskModel, kind: str = "lora", rank: int = 4, **options: Any) -> None:
        if kind not in KINDS:
            raise ConfigError(unknown("strategy.kind", str(kind), KINDS))
        if rank < 1:
            raise ConfigError(f"Expected strategy.rank of at least 1, but got {rank}.")
        model.head = partial(AdaptedHead, head=_inner(model.head), kind=kind, rank=rank)
        super().__init__(model=model, **options)


def _inner(head: Any) -> Any:
    """Return what makes the head inside, where a model was loaded whose heads are of these kinds already."""
    made = getattr(head, "func", None)
    return head.keywords["head"] if made in (OwnNetHead, AdaptedHead) else head
