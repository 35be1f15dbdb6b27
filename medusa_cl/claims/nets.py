"""What nets learnt end to end say: all tasks together beside one alone, parts of a source taken away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medusa_cl.claims.cells import Pretraining
from medusa_cl.claims.plan import Setting
from medusa_cl.claims.spread import Estimate, mean_of_all, over_seeds
from medusa_cl.claims.views import Pair, View


@dataclass(frozen=True)
class Parity:
    """Tasks learnt together, end to end, beside nets of one task.

    Attributes:
        source: The source, or an empty text for the single-task nets themselves.
        values: By task, the metric over seeds.
        delta: Delta MTL against single-task nets with the Medusa head, in percent over seeds.
        same_head: The same against single-task nets with the source's own head, where there are some.
        parameters: Of the net, or of all single-task nets together; None where not all are there.
        gflops: 2 x multiply-adds for one image, where they were counted.
    """

    source: str
    values: Mapping[str, Estimate]
    delta: Estimate
    same_head: Estimate
    parameters: int | None
    gflops: float | None


def parity(view: View) -> list[Parity]:
    """Return the single-task nets, then every source that learns all tasks together."""
    plan, setting = view.plan, view.setting
    sources = plan.parity
    if not sources:
        return []
    alone = _alone(view, plan.medusa)
    nets = [plan.end_to_end(setting, setting.seeds[0], task, plan.head) for task in plan.tasks]
    nothing = Estimate({}, setting.seeds)
    first = Parity("", alone, nothing, nothing, _count(view, nets, "parameters"), _amount(view, nets, "gflops"))
    return [first, *(_parity(view, source, alone) for source in sources)]


def _parity(view: View, source: str, alone: Mapping[str, Estimate]) -> Parity:
    cell = view.plan.pretraining(source, view.plan.tasks, view.setting, view.setting.seeds[0])
    values = {task: view.pretrained(cell, task) for task in view.plan.tasks}
    own = alone if source == view.plan.medusa else _alone(view, source)
    counted = _count(view, [cell], "parameters"), _amount(view, [cell], "gflops")
    return Parity(source, values, mean_change(view, values, alone), mean_change(view, values, own), *counted)


def _alone(view: View, source: str) -> dict[str, Estimate]:
    """Return the metrics of single-task nets with a source's head."""
    setting = view.setting
    nets = {task: Pretraining(source=source, tasks=(task,), init=setting.init) for task in view.plan.tasks}
    return {task: view.pretrained(net, task) for task, net in nets.items()}


def mean_change(view: View, of: Mapping[str, Estimate], over: Mapping[str, Estimate]) -> Estimate:
    """Return the mean over tasks of the relative change, seed by seed."""
    changes = [view.paired(task, of[task], over[task]) for task in of]
    return over_seeds(view.setting.seeds, lambda seed: mean_of_all(change.by_seed.get(seed) for change in changes))


def _amount(view: View, nets: Sequence[Pretraining], key: str) -> float | None:
    """Return the sum of what nets hold or cost; None where one does not say."""
    amounts = [view.results.cells.get(net, {}).get(key) for net in nets]
    known = [float(amount) for amount in amounts if amount is not None]
    return math.fsum(known) if len(known) == len(amounts) else None


def _count(view: View, nets: Sequence[Pretraining], key: str) -> int | None:
    amount = _amount(view, nets, key)
    return None if amount is None else int(amount)


@dataclass(frozen=True)
class Ablation:
    """A source against the Medusa source, on the block split with one seed.

    Attributes:
        source: The source.
        values: By task, the metric: of base tasks end to end, of new ones under the plan's head.
        base: Percent against the Medusa source, mean over the base tasks.
        new: The same over the new tasks.
    """

    source: str
    values: Mapping[str, Estimate]
    base: Estimate
    new: Estimate


def ablations(view: View) -> list[Ablation]:
    """Return the Medusa source and every source that lacks a part of it."""
    plan = view.plan
    setting = plan.settings[0]
    one = View(view.results, replace(setting, seeds=setting.seeds[:1]), view.split, block=True)
    if not plan.ablations:
        return []
    found = {source: _ablated(one, source) for source in (plan.medusa, *plan.ablations)}
    whole = found[plan.medusa]
    return [_ablation(one, source, values, whole) for source, values in found.items()]


def _ablated(view: View, source: str) -> dict[str, Estimate]:
    plan, setting = view.plan, view.setting
    cell = plan.pretraining(source, plan.base, setting, setting.seeds[0])
    base = {task: view.pretrained(cell, task) for task in plan.base}
    return {**base, **{task: view.raw(Pair(source, plan.head), task) for task in plan.block}}


def _ablation(view: View, source: str, values: Mapping[str, Estimate], whole: Mapping[str, Estimate]) -> Ablation:
    def mean(tasks: Sequence[str]) -> Estimate:
        return mean_change(view, {t: values[t] for t in tasks}, whole)

    return Ablation(source, values, mean(view.plan.base), mean(view.plan.block))


def taught(view: View) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    """Return what features of one task are worth to others.

    Returns:
        By the task that the backbone learnt alone and the one learnt on it: the metric under the plan's head, and its
        change in percent against plain features of all other tasks; of the main setting's first seed.
    """
    plan, setting = view.plan, view.plan.settings[0]
    if not plan.single_task:
        return {}
    return {of: {t: _taught(view, setting, of, t) for t in plan.held_out if t != of} for of in plan.tasks}


def _taught(view: View, setting: Setting, of: str, task: str) -> tuple[float | None, float | None]:
    plan, seed = view.plan, setting.seeds[0]
    probes = (plan.probe(plan.plain, base, setting, seed, task, plan.head) for base in ((of,), plan.others(task)))
    value, reference = (view.results.score(probe, task, view.split) for probe in probes)
    return value, view.change(task, value, reference)
