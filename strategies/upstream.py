"""Faults of Avalanche 0.6's plugins, mended in place when they are composed; a second call changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from medusa_cl import distributed
from medusa_cl.batch import collate
from medusa_cl.data.loader import DenseLoader
from medusa_cl.strategies.replay_memory import Memory, ReplayLoader


def _once(mend: Callable[[Any], None]) -> Callable[[Any], None]:
    def mend_once(plugin: Any) -> None:
        # In Avalanche's own class, so that whatever is made from it is mended too.
        kind: Any = next(cls for cls in type(plugin).__mro__ if cls.__module__.startswith("avalanche."))
        if "mended" not in vars(kind):
            mend(kind)
            kind.mended = True

    return mend_once


def mend_projection(kind: Any) -> None:
    """Let AGEM and GEM project the whole gradient.

    Upstream leaves out parameters that the batch at hand gives no gradient, such as other tasks' heads. What is then
    stepped along is a part of the projected gradient, and that part alone may well harm what the memory is to protect.
    Upstream also takes each process's own memory batch for the whole one.
    """
    project = kind.after_backward

    @torch.no_grad()
    def after_backward(self: Any, strategy: Any, **kwargs: Any) -> None:
        without = [p for p in strategy.model.parameters() if p.requires_grad and p.grad is None]
        for parameter in without:
            parameter.grad = torch.zeros_like(parameter)
        if getattr(self, "buffers", None):
            distributed.average_([self.reference_gradients])
        with _in_one_line(strategy.model):
            project(self, strategy, **kwargs)
        for parameter in without:
            if not parameter.grad.any():
                parameter.grad = None  # untouched: no weight decay and no stale moment is to move it either

    kind.after_backward = after_backward


@contextmanager
def _in_one_line(model: nn.Module) -> Iterator[None]:
    """Let gradients lie as upstream reads them, row after row, and afterwards as the weights do (channels last)."""
    hooks = [
        p.register_post_accumulate_grad_hook(_straighten)
        for p in model.parameters()
        if p.requires_grad and not p.is_contiguous()
    ]
    for parameter in model.parameters():
        _straighten(parameter)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


def _straighten(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad = parameter.grad.contiguous()


@_once
def mend_replay(kind: Any) -> None:
    """Let `ReplayPlugin` load by counters: upstream draws from global states, and what comes next is lost at a stop.

    Upstream also shows the images of the experience, and those of its memory, as they are; here both are augmented,
    the former as without replay. And it makes whole batches in each of several processes. The deprecated way in which
    it fills its memory warns each time.
    """
    begin = kind.before_training_exp

    def before_training_exp(self: Any, strategy: Any, **kwargs: Any) -> None:
        remembered = self.storage_policy.buffer
        if isinstance(strategy.dataloader, DenseLoader) and len(remembered):
            strategy.dataloader = _replaying(self, strategy, remembered)
        else:
            begin(self, strategy, **kwargs)

    def after_training_exp(self: Any, strategy: Any, **kwargs: Any) -> None:
        policy = self.storage_policy
        if type(policy).update is ExemplarsBuffer.update:  # which does just this, and warns
            policy.post_adapt(strategy, strategy.experience)
        else:
            policy.update(strategy, **kwargs)

    kind.before_training_exp = before_training_exp
    kind.after_training_exp = after_training_exp


def _replaying(plugin: Any, strategy: Any, remembered: Any) -> ReplayLoader:
    """Return a loader that goes on as the strategy's does, with samples of a memory in each batch."""
    experience, current = strategy.experience, strategy.dataloader
    loader = ReplayLoader(
        strategy.adapted_dataset,
        plugin.batch_size or strategy.train_mb_size,
        memory=list(remembered.task_set.values()) if plugin.task_balanced_dataloader else [remembered],
        memory_size=plugin.batch_size_mem or strategy.train_mb_size,
        key=current.key,
        tasks={**strategy.model.tasks, **experience.tasks},
        augmentation=experience.augmentation,
        max_steps=current.max_steps,
        workers=getattr(strategy, "workers", 0),
        pin_memory=strategy.device.type == "cuda",
        shard=distributed.shard(),
    )
    if loader.epochs is not None:  # batches of another size make epochs of another length
        strategy.train_epochs = loader.epochs
    return loader


@_once
def mend_agem(kind: Any) -> None:
    """Let `AGEMPlugin` draw by counters, and project the whole gradient (`mend_projection`).

    What it looks at in a step depends on the seed, the experience and the step; upstream goes on through its memory
    from wherever it was, which is lost at a stop, and always in the same order.
    """
    mend_projection(kind)
    look, draw = kind.before_training_iteration, kind.sample_from_memory

    def before_training_iteration(self: Any, strategy: Any, **kwargs: Any) -> None:
        self.drawn = None
        if self.buffers and all(map(_is_dense, self.buffers)):
            memory = Memory(self.buffers, self.sample_size, "agem", strategy.model.seed, strategy.experience.name)
            step = strategy.clock.train_exp_iterations
            self.drawn = collate([memory.samples[position] for position, _ in memory.at(step)])
        with _in_one_line(strategy.model):
            look(self, strategy, **kwargs)
        self.drawn = None

    def sample_from_memory(self: Any) -> Any:
        return draw(self) if self.drawn is None else self.drawn

    kind.before_training_iteration = before_training_iteration
    kind.sample_from_memory = sample_from_memory


@_once
def mend_gem(kind: Any) -> None:
    """Let `GEMPlugin` know which samples its memory holds, and project the whole gradient (`mend_projection`)."""
    mend_projection(kind)
    update = kind.update_memory

    @torch.no_grad()
    def update_memory(self: Any, dataset: Any, t: int, batch_size: int) -> None:
        if not _is_dense(dataset):
            update(self, dataset, t, batch_size)
            return
        order = torch.randperm(len(dataset))[: self.patterns_per_experience]
        vars(self).setdefault("samples", {})[t] = dataset.subset(order.tolist())
        load_memory(self)

    kind.update_memory = update_memory


def load_memory(plugin: Any) -> None:
    """Let a mended `GEMPlugin` hold the images and targets of its `samples`, and nothing else."""
    for t, samples in plugin.samples.items():
        plugin.memory_x[t], plugin.memory_y[t], plugin.memory_tid[t] = collate(list(samples))


def _is_dense(dataset: Any) -> bool:
    return getattr(dataset, "collate_fn", None) is collate


@_once
def mend_aware(kind: Any) -> None:
    """Let `MASPlugin` look at a network without changing it: upstream moves its batch statistics on the way."""
    find = kind._get_importance

    def found(self: Any, strategy: Any) -> Any:
        kept = {name: buffer.clone() for name, buffer in strategy.model.named_buffers()}
        importance = find(self, strategy)
        for name, buffer in strategy.model.named_buffers():
            buffer.copy_(kept[name])
        return importance

    kind._get_importance = found


@_once
def mend_synaptic(kind: Any) -> None:
    """Let `SynapticIntelligencePlugin` find importances, from 0 up to its bound, without delay.

    Upstream, on the CPU, keeps views of the live weights in place of copies, so no weight ever seems to move and every
    importance is 0. It bounds importances from above alone: a weight along whose path the loss rose gets a negative
    one and is pushed away from where it was. And it walks the network anew at each level of nesting, which takes
    seconds a step. Omega_k = sum over experiences of omega_k / (Delta_k^2 + eps), here in [0, 0.001] (Zenke, Poole,
    Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017, eq. 5; the upper bound is Avalanche's).
    """
    extract, update = kind.extract_weights, kind.update_ewc_data

    def extract_copies(model: nn.Module, target: dict[str, Any], excluded_parameters: set[str]) -> None:
        extract(model, target, excluded_parameters)
        for kept in target.values():
            kept.data = kept.data.clone()

    def update_positive(net: nn.Module, data: tuple[Any, Any], *rest: Any, **more: Any) -> None:
        update(net, data, *rest, **more)
        for importance in data[1].values():
            importance.data.clamp_(min=0)

    def not_excluded(model: nn.Module, excluded_parameters: set[str]) -> list[tuple[str, nn.Parameter]]:
        return _outside_norms(model, kind.explode_excluded_parameters(set(excluded_parameters)))

    kind.extract_weights = staticmethod(extract_copies)
    kind.update_ewc_data = staticmethod(update_positive)
    kind.not_excluded_parameters = staticmethod(not_excluded)


def _outside_norms(model: nn.Module, patterns: Iterable[str]) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of no normalisation that no pattern names."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NormBase)
        for parameter in module.parameters(recurse=False)
    }
    kept = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in norms]
    return [(name, parameter) for name, parameter in kept if not any(fnmatch(name, p) for p in patterns)]
