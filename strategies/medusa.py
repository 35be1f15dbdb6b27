"""Medusa: pretrain a backbone on the base tasks, freeze it, and give each new task a fresh attentional head.

Spencer, Bowden, Hadfield, "Medusa: Universal Feature Learning via Attentional Multitasking", CVPRW 2022
(arXiv 2204.05698); an open reconstruction, as no code was published.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from medusa_cl.batch import Features
from medusa_cl.data.features import FrozenFeatures
from medusa_cl.data.loader import IDENTITY, View, padded_image
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.scenarios.dense import EVERYTHING, DenseExperience
from medusa_cl.strategies import compose
from medusa_cl.strategies.template import (
    DenseModule,
    DenseTemplate,
    eval_loader,
    parameter_groups,
    rebuild_optimizer,
    train_loader,
)

FREEZE = ("backbone", "stages", "none")
CACHE = ("auto", "memory", "off")
MEMORY_LIMIT = 4 * 2**30
"""Bytes of features that cache_features=auto keeps at most, for each split."""


class MedusaPlugin(SupervisedPlugin):
    """The freeze, for any of Avalanche's SGD strategies whose model is a `DenseModule`.

    As soon as training returns, what was learnt (heads, and the backbone after the first time) is frozen: gradients
    off and eval mode held, so that neither batch statistics nor optimizer moments can move them. The optimizer is
    rebuilt over what is left to learn. A frozen backbone's features are computed once per image and view.

    Args:
        freeze: "backbone" freezes it after experience 0; "stages" only the parts of it that `stages` names; "none"
            lets every task train it.
        stages: Names of parts, see `Backbone.stages`; None for the first half of them.
        freeze_from: The first experience that finds the backbone frozen: 1, or 0 for one that is never trained.
        freeze_old_heads: Freeze a head once its task is learnt.
        cache_features: "auto" keeps a frozen backbone's features in memory where the views are few enough to list,
            "memory" insists, "off" runs the backbone each time.
        seed: What order and views depend on where the host strategy has no seed of its own.
        kept: Features kept before, to be shared by strategies on the same frozen backbone.

    Raises:
        ConfigError: An option has an unknown value.
    """

    def __init__(
        self,
        *,
        freeze: str = "backbone",
        stages: Sequence[str] | None = None,
        freeze_from: int = 1,
        freeze_old_heads: bool = True,
        cache_features: str = "auto",
        seed: int = 0,
        kept: dict[str, FrozenFeatures] | None = None,
    ) -> None:
        super().__init__()
        for key, value, known in (("freeze", freeze, FREEZE), ("cache_features", cache_features, CACHE)):
            if value not in known:
                raise ConfigError(unknown(f"strategy.{key}", str(value), known))
        if freeze_from not in (0, 1):
            raise ConfigError(f"Expected strategy.freeze_from=0 or 1, but got {freeze_from}.")
        self.freeze, self.freeze_from, self.freeze_old_heads = freeze, freeze_from, freeze_old_heads
        self.stages = None if stages is None else tuple(stages)
        self.cache_features, self.seed = cache_features, seed
        self._features: dict[str, FrozenFeatures] = {} if kept is None else kept
        self._needed: dict[str, int] = {}
        self._warned = self._warned_of_size = False

    @property
    def shared_trainable(self) -> bool:
        """Whether tasks after experience 0 train anything that others use."""
        return self.freeze != "backbone"

    @property
    def old_trainable(self) -> bool:
        """Whether replayed samples of old tasks can teach anything."""
        return self.shared_trainable or not self.freeze_old_heads

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a host, or plugins beside this one, that do not compose, and parts that the backbone has not."""
        if not isinstance(strategy, DenseTemplate):
            compose.check_strategy(strategy)
        self.check_stages(strategy.model.backbone)

    def check_stages(self, backbone: Backbone) -> None:
        """Refuse names of parts before anything is learnt, not when it is time to freeze them.

        Raises:
            ConfigError: The backbone has no part of that name.
        """
        for name in self.stages or ():
            if name not in backbone.stages:
                raise ConfigError(unknown(f"stage of backbone {backbone.name}", name, backbone.stages))

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze what an earlier experience (or a loaded base) has learnt."""
        experience = strategy.experience
        old = [task for task in strategy.model.tasks if task not in experience.tasks]
        self.freeze_learnt(strategy.model, old, backbone=experience.task_label >= self.freeze_from)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Rebuild the optimizer over what is trainable; load by counters, from kept features where there are some."""
        if not isinstance(strategy, DenseTemplate):
            rebuild_optimizer(strategy.optimizer, parameter_groups(strategy.model, None, None))
            self._drop_frozen_samples(strategy)
            strategy.dataloader = train_loader(strategy, seed=self.seed, features=self._kept(strategy, train=True))
        elif (features := self._kept(strategy, train=True)) is not None:
            strategy.make_train_dataloader(features=features)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Drop rows (of replay, for instance) that no gradient could come from."""
        learning = self._learning(strategy.model)
        x, y, labels = strategy.mbatch
        keep = torch.isin(labels, torch.tensor(learning, device=labels.device))
        if bool(keep.all()):
            return
        self._warn()
        rows = keep.nonzero().flatten()
        strategy.mbatch = [x.select(rows) if isinstance(x, Features) else x[rows], y[rows], labels[rows]]

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze what was learnt, so that it is evaluated as it will be for ever.

        Not sooner: after an experience other plugins still take gradients of what it taught (EWC's importances).
        """
        self.freeze_learnt(strategy.model, strategy.model.tasks)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluate from kept features where the backbone is frozen."""
        if (features := self._kept(strategy, train=False)) is not None:
            strategy.dataloader = eval_loader(strategy, features=features)

    def _learning(self, model: DenseModule) -> list[int]:
        """Return the labels whose samples can still teach something."""
        frozen = model.model.frozen_heads if model.backbone.frozen else set()
        learning = [label for label, tasks in model.tasks_of.items() if not frozen.issuperset(tasks)]
        return [*learning, EVERYTHING] if learning else []

    def _drop_frozen_samples(self, strategy: Any) -> None:
        """Take what cannot teach any more out of a dataset that a host has put together (Cumulative)."""
        dataset, learning = strategy.adapted_dataset, set(self._learning(strategy.model))
        kept = [i for i, label in enumerate(dataset.targets_task_labels) if int(label) in learning]
        if len(kept) < len(dataset):
            self._warn()
            strategy.adapted_dataset = dataset.subset(kept)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "Samples of tasks whose head and backbone are frozen carry no gradient: they are dropped. "
                "Replaying or joining old tasks has an effect with strategy.freeze=none.",
                stacklevel=3,
            )

    def freeze_learnt(self, model: DenseModule, tasks: Iterable[str], backbone: bool = True) -> None:
        """Freeze heads, and the backbone, as far as the options say."""
        if backbone and self.freeze == "backbone":
            model.backbone.freeze()
        elif backbone and self.freeze == "stages":
            model.backbone.freeze_stages(self.stages)
        if self.freeze_old_heads:
            for task in tasks:
                model.model.freeze_head(task)

    def _fits(self, model: DenseModule, source: DenseData, views: int) -> bool:
        """Whether features of all images in so many views take less than the limit; measured on one image."""
        if source.content_hash not in self._needed:
            self._needed[source.content_hash] = _bytes_an_image(model, padded_image(source, 0)) * len(source)
        needed = self._needed[source.content_hash] * views
        if needed > MEMORY_LIMIT and not self._warned_of_size:
            self._warned_of_size = True
            warnings.warn(
                f"Features would take {needed / 2**30:.1f} GiB, more than {MEMORY_LIMIT / 2**30:.0f} GiB, so the "
                "frozen backbone is run each time. strategy.cache_features=memory insists on keeping them.",
                stacklevel=3,
            )
        return needed <= MEMORY_LIMIT

    def _kept(self, strategy: Any, *, train: bool) -> FrozenFeatures | None:
        model, experience = strategy.model, strategy.experience
        views = _views(experience) if train else (IDENTITY,)
        if self.cache_features == "off" or not model.backbone.frozen or model.model.needs_images(experience.tasks):
            return None
        if views is None:
            if train and self.cache_features == "memory":
                raise ConfigError(
                    "strategy.cache_features=memory needs views that can be listed, but scenario.augment draws from "
                    "endless ones. Leave only flip there (zooms: [1.0], scale: null, rotation: 0, crop: null), or set "
                    "strategy.cache_features=auto."
                )
            return None
        source = experience.source
        key = f"{source.content_hash}/{len(source)}"
        if self.cache_features == "auto" and not self._fits(model, source, len(views)):
            return None
        if key not in self._features:
            self._features[key] = FrozenFeatures(
                model.backbone,
                source,
                (),
                batch_size=strategy.train_mb_size,
                device=strategy.device,
                forward=model.model.features,
            )
        for view in views:
            self._features[key].add(view)
        return self._features[key]


def _bytes_an_image(model: DenseModule, image: torch.Tensor) -> int:
    with torch.no_grad():
        features = model.model.features(image[None].to(next(model.parameters()).device))
    return sum(scale.nbytes for scale in features)


def _views(experience: Any) -> tuple[View, ...] | None:
    return (IDENTITY,) if experience.augmentation is None else experience.augmentation.views


class Medusa(DenseTemplate):
    """Medusa as a strategy: `DenseTemplate` + `MedusaPlugin` + your plugins.

    Args:
        model: The model; its `head` makes the heads.
        freeze: See `MedusaPlugin`.
        stages: See `MedusaPlugin`.
        freeze_from: See `MedusaPlugin`.
        freeze_old_heads: See `MedusaPlugin`.
        cache_features: See `MedusaPlugin`.
        kept: See `MedusaPlugin`.
        plugins: Avalanche plugins to compose with, called after Medusa's own.
        **options: Options of `DenseTemplate`.

    Raises:
        ConfigError: An option has an unknown value, or a plugin does not compose (see `compose`).
    """

    def __init__(
        self,
        *,
        model: MultiTaskModel,
        freeze: str = "backbone",
        stages: Sequence[str] | None = None,
        freeze_from: int = 1,
        freeze_old_heads: bool = True,
        cache_features: str = "auto",
        kept: dict[str, FrozenFeatures] | None = None,
        plugins: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        medusa = MedusaPlugin(
            freeze=freeze,
            stages=stages,
            freeze_from=freeze_from,
            freeze_old_heads=freeze_old_heads,
            cache_features=cache_features,
            seed=options.get("seed", 0),
            kept=kept,
        )
        medusa.check_stages(model.backbone)
        compose.check(plugins, shared_trainable=medusa.shared_trainable, old_trainable=medusa.old_trainable)
        super().__init__(model=model, plugins=[medusa, *plugins], **options)
        self.medusa = medusa
        medusa.freeze_learnt(self.model, model.tasks, backbone=bool(model.tasks) or freeze_from == 0)

    def adopt(self, experience: DenseExperience) -> None:
        """Go through an experience whose tasks were loaded, with what was trainable in it trainable again."""
        if experience.task_label < self.medusa.freeze_from:
            self.model.backbone.unfreeze()
        for task in experience.tasks:
            self.model.model.unfreeze_head(task)
        super().adopt(experience)
