"""What Medusa is compared with, as strategies: a net for each task, all data at every experience, adapters.

The others need no class of their own: `finetune` is Medusa without its freeze, `joint` a stream of one experience,
`frozen_plain` and `linear_probe` are heads, `frozen_imagenet` and `frozen_foundation` freeze before experience 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from medusa_cl.data.loader import DenseDataset
from medusa_cl.models.adapters import AdaptedHead, OwnNetHead
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
        model.head = partial(OwnNetHead, head=model.head)
        super().__init__(model=model, freeze_from=0, cache_features="off", **options)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train the net of each task alone, also where an experience brings several."""
        for experience in [experiences] if isinstance(experiences, DenseExperience) else experiences:
            for name in experience.tasks:
                super().train(experience.alone(name), eval_streams, **kwargs)

    def steps_of(self, experience: DenseExperience) -> int | None:
        """Return the steps of the base tasks for every task."""
        return self.base_steps or self.max_steps


class Cumulative(Medusa):
    """Everything so far, at every experience: each image once, with the targets of all tasks learnt and the new ones.

    Where Avalanche's strategy of that name joins the experiences' data, and so shows an image once for each of them,
    this one gives an image all its targets.

    Args:
        model: The model.
        **options: Options of `DenseTemplate`.
    """

    def __init__(self, *, model: MultiTaskModel, **options: Any) -> None:
        super().__init__(model=model, freeze="none", freeze_old_heads=False, cache_features="off", **options)

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
    """

    def __init__(self, *, model: MultiTaskModel, kind: str = "lora", rank: int = 4, **options: Any) -> None:
        model.head = partial(AdaptedHead, head=model.head, kind=kind, rank=rank)
        super().__init__(model=model, **options)
