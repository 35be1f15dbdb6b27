"""Medusa: pretrain a backbone on the base tasks, freeze it, and give each new task a fresh attentional head.

Spencer, Bowden, Hadfield, "Medusa: Universal Feature Learning via Attentional Multitasking", CVPRW 2022
(arXiv 2204.05698); an open reconstruction, as no code was published.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from medusa_cl import distributed
from medusa_cl.batch import Features
from medusa_cl.data.features import PRECISIONS, FrozenFeatures
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, unknown
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.multitask import MultiTaskModel
from medusa_cl.scenarios.dense import EVERYTHING, DenseExperience
from medusa_cl.strategies import compose
from medusa_cl.strategies.caching import FeatureCache
from medusa_cl.strategies.template import (
    DenseModule,
    DenseTemplate,
    eval_loader,
    parameter_groups,
    planned_steps,
    rebuild_optimizer,
    train_loader,
)

FREEZE = ("backbone", "stages", "none")


class MedusaPlugin(SupervisedPlugin):
    """The freeze, for any of Avalanche's SGD strategies whose model is a `DenseModule`.

    As soon as training returns, what was learnt (heads, and the backbone after the first time) is frozen: gradients
    off and eval mode held, so that neither batch statistics nor optimizer moments can move them. The optimizer is
    rebuilt over what is left to learn. A frozen backbone's features are computed once per image and view.

        model = dense_model("tf_efficientnet_lite0")
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        parts = {"criterion": model.criterion, "evaluator": dense_evaluator()}
        strategy = Naive(model=model, optimizer=optimizer, plugins=[MedusaPlugin()], **parts)

    Args:
        freeze: "backbone" freezes it after experience 0; "stages" only the parts of it that `stages` names; "none"
            lets every task train it.
        stages: Names of parts, see `Backbone.stages`; None for the first half of them.
        freeze_from: The first experience that finds the backbone frozen: 1, or 0 for one that is never trained.
        freeze_old_heads: Freeze a head once its task is learnt.
        cache_features: Whether and where a frozen backbone's features are kept, see `FeatureCache`.
        cache_precision: In what they are kept, see there.
        cache_dir: Where files of them go, see there.
        seed: What order and views depend on where the host strategy has no seed of its own.
        kept: Features kept before, by digest, to be shared by strategies on the same frozen backbone.

    Attributes:
        cache: The `FeatureCache`.

    Raises:
        ConfigError: An option has an unknown value, or features of a trainable backbone are to be kept.
    """

    def __init__(
        self,
        *,
        freeze: str = "backbone",
        stages: Sequence[str] | None = None,
        freeze_from: int = 1,
        freeze_old_heads: bool = True,
        cache_features: str = "auto",
        cache_precision: str = "32",
        cache_dir: str | Path | None = None,
        seed: int = 0,
        kept: dict[str, FrozenFeatures] | None = None,
    ) -> None:
        super().__init__()
        if freeze not in FREEZE:
            raise ConfigError(unknown("strategy.freeze", str(freeze), FREEZE))
        if freeze_from not in (0, 1):
            raise ConfigError(f"Expected strategy.freeze_from=0 or 1, but got {freeze_from}.")
        self.freeze, self.freeze_from, self.freeze_old_heads = freeze, freeze_from, freeze_old_heads
        self.stages = None if stages is None else tuple(stages)
        self.seed = seed
        self.cache = FeatureCache(cache_features, cache_precision, cache_dir, kept)
        if self.cache.insists and freeze != "backbone":
            raise ConfigError(
                f"strategy.cache_features={cache_features} keeps features of a frozen backbone, but strategy.freeze="
                f"{freeze} goes on training it. Set strategy.cache_features=auto."
            )
        self._warned = False

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
        strategy.model.rounding = PRECISIONS[self.cache.precision]
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
            strategy.dataloader = train_loader(strategy, seed=self.seed, features=self._to_train(strategy))
        elif (features := self._to_train(strategy)) is not None:
            strategy.make_train_dataloader(features=features)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Drop rows (of replay, for instance) that no gradient could come from."""
        learning = self._learning(strategy.model)
        x, y, labels = strategy.mbatch
        keep = torch.isin(labels.cpu(), torch.tensor(learning))
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
        experience = strategy.experience
        own = isinstance(strategy, DenseTemplate)
        tasks = strategy.evaluated_together if own else experience.tasks
        features = self.features_of(strategy, experience.source, tasks, _split(experience)) if tasks else None
        if features is not None and own:
            strategy.make_eval_dataloader(features=features)
        elif features is not None:
            strategy.dataloader = eval_loader(strategy, features=features)

    def features_of(self, strategy: Any, source: DenseData, tasks: Iterable[str], split: str) -> FrozenFeatures | None:
        """Return kept features of images as they are, None where there are to be none.

        Args:
            strategy: What evaluates.
            source: The images.
            tasks: The tasks whose heads are asked.
            split: What the images are, for people.
        """
        batch_size = strategy.train_mb_size // distributed.world()
        options = {"batch_size": batch_size, "split": split, "workers": getattr(strategy, "workers", 0)}
        return self.cache.of(strategy.model, source, None, tasks, **options)

    def _to_train(self, strategy: Any) -> FrozenFeatures | None:
        experience = strategy.experience
        steps = planned_steps(strategy)
        if not steps:  # gone through only, with a base that was loaded
            return None
        if any((verdict := compose.verdict_of(plugin)) and verdict.feeds for plugin in strategy.plugins):
            self.cache.pass_over("a plugin makes the batches, of images (replay)")
            return None
        return self.cache.of(
            strategy.model,
            experience.source,
            experience.augmentation,
            experience.tasks,
            batch_size=strategy.train_mb_size // distributed.world(),
            split=_split(experience),
            draws=steps * strategy.train_mb_size * _experiences_left(experience),
            workers=getattr(strategy, "workers", 0),
        )

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


def _split(experience: Any) -> str:
    return str(getattr(getattr(experience, "origin_stream", None), "name", "images"))


def _experiences_left(experience: Any) -> int:
    """Return how many experiences a stream has from this one on; 1 of one that belongs to none."""
    stream = getattr(experience, "origin_stream", None)
    return max(len(stream) - experience.current_experience, 1) if stream is not None else 1


class Medusa(DenseTemplate):
    """Medusa as a strategy: `DenseTemplate` + `MedusaPlugin` + your plugins.

        strategy = Medusa(model=dense_model("tf_efficientnet_lite0"), epochs=1000, base_steps=300, max_steps=200)
        for k, experience in enumerate(scenario.train_stream):
            strategy.train(experience)
            strategy.eval(scenario.test_stream[: k + 1])
        strategy.matrix.mean_forgetting()  # 0.0

    Args:
        model: The model, or what `dense_model` made; its `head` makes the heads.
        freeze: See `MedusaPlugin`.
        stages: See `MedusaPlugin`.
        freeze_from: See `MedusaPlugin`.
        freeze_old_heads: See `MedusaPlugin`.
        cache_features: See `MedusaPlugin`.
        cache_precision: See `MedusaPlugin`.
        cache_dir: See `MedusaPlugin`.
        kept: See `MedusaPlugin`.
        plugins: Avalanche plugins to compose with, called after Medusa's own.
        **options: Options of `DenseTemplate`.

    Raises:
        ConfigError: An option has an unknown value, or a plugin does not compose (see `compose`).
    """

    def __init__(
        self,
        *,
        model: MultiTaskModel | DenseModule,
        freeze: str = "backbone",
        stages: Sequence[str] | None = None,
        freeze_from: int = 1,
        freeze_old_heads: bool = True,
        cache_features: str = "auto",
        cache_precision: str = "32",
        cache_dir: str | Path | None = None,
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
            cache_precision=cache_precision,
            cache_dir=cache_dir,
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
