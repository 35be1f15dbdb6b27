"""Faults of Avalanche 0.6's plugins, mended in place when they are composed; a second call changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from medusa_cl import distributed


def _once(mend: Callable[[Any], None]) -> Callable[[Any], None]:
    def mend_once(plugin: Any) -> None:
        # In Avalanche's own class, so that whatever is made from it is mended too.
        kind: Any = next(cls for cls in type(plugin).__mro__ if cls.__module__.startswith("avalanche."))
        if "mended" not in vars(kind):
            mend(kind)
            kind.mended = True

    return mend_once


@_once
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
        project(self, strategy, **kwargs)
        for parameter in without:
            if not parameter.grad.any():
                parameter.grad = None  # untouched: no weight decay and no stale moment is to move it either

    kind.after_backward = after_backward


@_once
def mend_replay(kind: Any) -> None:
    """Let `ReplayPlugin` make batches of one size for any number of processes: upstream, each makes whole ones."""
    begin = kind.before_training_exp

    def before_training_exp(self: Any, strategy: Any, **kwargs: Any) -> None:
        given = self.batch_size, self.batch_size_mem
        shares = [(size or strategy.train_mb_size) // distributed.world() for size in given]
        self.batch_size, self.batch_size_mem = shares
        try:
            begin(self, strategy, **kwargs)
        finally:
            self.batch_size, self.batch_size_mem = given

    kind.before_training_exp = before_training_exp


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
