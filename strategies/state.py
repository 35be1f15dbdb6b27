"""What plugins know, as plain data and tensors: taken from a strategy, and given back to one made alike.

A plugin's state is every attribute it has, but for those named here as options or as made anew. So nothing that a
subclass adds is lost: what is neither plain data nor a tensor nor known here is said to be lacking (`lacking`).
A plugin may speak for itself instead:

    state_dict() -> dict                         plain data and tensors
    load_state_dict(state)                       or, where it needs the model or the data:
    restore(state, strategy, experiences)

Plain data: None, bool, int, float and str, and dictionaries (with strings or whole numbers as keys), lists, tuples and
sets of such. Samples in memories are kept as their places in the experiences' datasets, not as images.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from medusa_cl.data.loader import DenseDataset
from medusa_cl.errors import ConfigError
from medusa_cl.scenarios.dense import avalanche_dataset

__all__ = ["lacking", "restore", "state_of"]

NOT_STATE: Mapping[str, tuple[str, ...]] = {
    "AGEMPlugin": ("buffer_dataloader", "buffer_dliter", "reference_gradients", "drawn"),
    "GEMPlugin": ("memory_x", "memory_y", "memory_tid", "G"),
    "EarlyStoppingPlugin": ("operator",),
    "LRSchedulerPlugin": ("scheduler", "_was_training"),
    "SynapticIntelligencePlugin": ("si_lambda", "excluded_parameters"),
    "EvaluationPlugin": ("metrics", "loggers", "_metric_values"),
    "DenseMetrics": ("within_training", "_running"),
    "TaskMatrixMetric": ("scores",),
    "TrainingMetrics": ("_images", "_since"),
    "MedusaPlugin": ("cache",),
    "LRSchedule": ("_factor",),
    "ValSelection": ("_given", "_source"),
    "EarlyStopping": ("_given", "_source"),
    "Progress": ("bar", "say", "_open", "_bar"),
    "DenseLwF": ("teacher", "_names", "_labels"),
    "FeatureDistillation": ("teacher", "_active", "_maps", "_hook"),
    "DenseDER": ("buffer", "variance", "_step", "_datasets", "_usable"),
    "RWalk": ("iter_grad", "iter_params", "_before"),
}
"""Attributes that are options, parts of the surroundings, or made anew before they are read, by class."""
PARTS = ("ReservoirSamplingBuffer", "ExperienceBalancedBuffer", "TaskBalancedBuffer", "TaskMatrix", "Mean")
"""Classes of objects that plugins hold and whose attributes are part of their state."""
ON_CPU = ("SynapticIntelligencePlugin",)
"""What keeps values by parameter on the CPU, wherever the model is."""
PLAIN = (bool, int, float, str, type(None))


class _Unknown(Exception):
    """What cannot be kept, and why."""


def state_of(strategy: Any) -> dict[str, Any]:
    """Return what the plugins of a strategy, and the metrics of its evaluator, know.

    Args:
        strategy: The strategy; in training between two steps, or between two experiences.

    Returns:
        `plugins`: what each knows, by the name of its class, numbered from the second of a class on; `lacking`: what
        `lacking` says. Plain data and tensors on the CPU without a graph, which are those in use where they lie there:
        a later step may change them. Floats may be NaN or infinite.
    """
    kept, without = dict[str, Any](), dict[str, str]()
    for name, holder in _holders(strategy):
        try:
            state = _taken(holder)
        except _Unknown as reason:
            without[name] = str(reason)
        else:
            kept |= {name: state} if state else {}
    return {"plugins": kept, "lacking": without}


def lacking(strategy: Any) -> dict[str, str]:
    """Return which plugins cannot be given back what they know, and why; empty where all can."""
    found: dict[str, str] = state_of(strategy)["lacking"]
    return found


def restore(strategy: Any, state: Mapping[str, Any], experiences: Iterable[Any]) -> None:
    """Give the plugins of a strategy, made as the other one was, what `state_of` returned.

    Before the strategy trains, so that the hooks at the begin of an experience see it; where it is that of the middle
    of an experience, once more after them. Everything is copied here, so a state can be given more than once.

    Args:
        strategy: The strategy.
        state: What the other one's plugins knew.
        experiences: The training experiences that memories may hold samples of.

    Raises:
        ConfigError: The plugins are not those that it was taken from, or it lacks what one of them knew.
    """
    if state["lacking"]:
        raise ConfigError(_lacks(state["lacking"]))
    holders = dict(_holders(strategy))
    if gone := [name for name in state["plugins"] if name not in holders]:
        raise ConfigError(
            f"What {', '.join(gone)} knew was kept, but the strategy has only {', '.join(holders)}. "
            "Go on with the plugins the run began with."
        )
    where = _Place(strategy, tuple(experiences))
    for name, known in state["plugins"].items():
        _given(holders[name], known, where)


def _lacks(reasons: Mapping[str, str]) -> str:
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return (
        f"What some plugins knew could not be kept ({told}). Give them state_dict() and load_state_dict(state), or "
        "leave them out, and start the run anew."
    )


@dataclass(frozen=True)
class _Place:
    """Where a state is restored."""

    strategy: Any
    experiences: Sequence[Any]
    on_cpu: bool = False

    @property
    def device(self) -> torch.device:
        """Where values by parameter go."""
        return torch.device("cpu" if self.on_cpu else self.strategy.device)

    def samples(self, label: int, tasks: tuple[str, ...]) -> AvalancheDataset:
        """Return the dataset of an experience, or of some of its tasks alone."""
        for experience in self.experiences:
            if experience.task_label == label and set(experience.tasks) >= set(tasks):
                if tuple(experience.tasks) == tasks:
                    whole: AvalancheDataset = experience.dataset
                    return whole
                alone = {name: experience.tasks[name] for name in tasks}
                return avalanche_dataset(DenseDataset(experience.source, alone, label), label)
        raise ConfigError(
            f'A memory holds samples of "{"+".join(tasks)}" (experience {label}), which is not among the experiences '
            "given. Pass every training experience learnt so far."
        )


def _holders(strategy: Any) -> Iterator[tuple[str, Any]]:
    """Yield what may know something, by name."""
    seen = Counter[str]()
    for plugin in strategy.plugins:
        for holder in (plugin, *(vars(plugin)["metrics"] if _known(plugin) == "EvaluationPlugin" else ())):
            name = type(holder).__name__
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name} {seen[name]}"), holder


def _known(thing: Any, names: Iterable[str] = NOT_STATE) -> str:
    """Return the name of the nearest class of Avalanche or of ours that something is made from and that is listed."""
    for cls in type(thing).__mro__:
        if cls.__name__ in names and cls.__module__.startswith(("avalanche.", "medusa_cl.")):
            return cls.__name__
    return ""


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    without = NOT_STATE.get(_known(thing), ())
    if _known(thing) == "GEMPlugin" and "samples" not in vars(thing):
        without = ("G",)  # not mended: its memory is nowhere else
    yield from ((name, value) for name, value in vars(thing).items() if name not in without)


def _speaks_for(holder: Any) -> str:
    """Return whose state a plugin's own method gives: "nothing", its "part" of ours, or "all" of a user's."""
    owner = next((cls for cls in type(holder).__mro__ if "state_dict" in vars(cls)), None)
    if owner is None:
        return "nothing"
    return "part" if owner.__name__ in NOT_STATE and owner.__module__.startswith("medusa_cl.") else "all"


def _taker(holder: Any) -> str:
    """Return the name of the method that takes a state: the one of the nearest class that has either."""
    names = (name for cls in type(holder).__mro__ for name in ("restore", "load_state_dict") if name in vars(cls))
    return next(names, "")


def _taken(holder: Any) -> dict[str, Any]:
    says = _speaks_for(holder)
    state: dict[str, Any] = {}
    if says != "nothing":
        if not _taker(holder):
            raise _Unknown("it has state_dict(), but neither load_state_dict(state) nor restore(...)")
        state["own"] = _pack("state_dict()", holder.state_dict())
    if says != "all":
        state |= {"attributes": {name: _pack(name, value) for name, value in _attributes(holder)}}
    if _known(holder) == "LRSchedulerPlugin":
        state["scheduler"] = _pack("scheduler", holder.scheduler.state_dict())
    return {key: value for key, value in state.items() if value}


def _given(holder: Any, state: Mapping[str, Any], where: _Place) -> None:
    where = _Place(where.strategy, where.experiences, _known(holder) in ON_CPU)
    for name, value in state.get("attributes", {}).items():
        setattr(holder, name, _unpack(value, vars(holder).get(name), where))
    if "own" in state:
        own = _unpack(state["own"], None, where)
        more = (where.strategy, where.experiences) if _taker(holder) == "restore" else ()
        getattr(holder, _taker(holder))(own, *more)
    if "scheduler" in state:
        holder.scheduler.load_state_dict(_unpack(state["scheduler"], None, where))
    if "samples" in vars(holder) and _known(holder) == "GEMPlugin":
        from medusa_cl.strategies.upstream import load_memory

        load_memory(holder)


# What is more than plain data is a dictionary with one of these as its only key.
VALUES, PLACES, PART, SET, KIND, ELSEWHERE = "<values>", "<places>", "<part>", "<set>", "<dict>", "<device>"


def _pack(name: str, value: Any) -> Any:
    """Return a value as plain data and tensors.

    Raises:
        _Unknown: It holds something else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        near = value.detach().cpu()
        return near if value.device.type == "cpu" else {ELSEWHERE: near}
    if isinstance(value, ParamData):
        return {VALUES: [value.name, value.data.detach().cpu()]}
    if isinstance(value, AvalancheDataset):
        return {PLACES: _places(name, value)}
    if _known(value, PARTS):
        return {PART: [type(value).__name__, {k: _pack(f"{name}.{k}", v) for k, v in _attributes(value)}]}
    return _packed_container(name, value)


def _packed_container(name: str, value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_pack(f"{name}[{i}]", item) for i, item in enumerate(value))
    if type(value) in (set, frozenset) and all(type(item) in (int, str) for item in value):
        return {SET: [type(value).__name__, sorted(value, key=lambda item: (type(item).__name__, item))]}
    if type(value) in (dict, OrderedDict, defaultdict, Counter) and all(type(key) in (int, str) for key in value):
        packed = {key: _pack(f"{name}[{key!r}]", item) for key, item in value.items()}
        return {KIND: [type(value).__name__, packed]} if type(value) in (defaultdict, Counter) else packed
    raise _Unknown(f'its "{name}" is a {type(value).__name__}, which is no plain data')


def _unpack(packed: Any, current: Any, where: _Place) -> Any:
    """Return what was packed, on its device; `current` is what the attribute holds now."""
    if isinstance(packed, Tensor):
        return packed.clone()
    if isinstance(packed, list | tuple):
        return type(packed)(_unpack(item, None, where) for item in packed)
    if isinstance(packed, Mapping):
        for mark, read in _READ.items():
            if mark in packed:
                return read(packed[mark], current, where)
        return {key: _unpack(item, None, where) for key, item in packed.items()}
    return packed


def _read_values(packed: Any, current: Any, where: _Place) -> ParamData:
    name, values = packed
    return ParamData(name, device=where.device, init_tensor=values.to(where.device, copy=True))


def _read_elsewhere(packed: Tensor, current: Any, where: _Place) -> Tensor:
    return packed.to(where.strategy.device, copy=True)


def _read_part(packed: Any, current: Any, where: _Place) -> Any:
    name, attributes = packed
    if type(current).__name__ != name:
        if name != "ReservoirSamplingBuffer":
            raise ConfigError(f"Expected a {name}, but got {type(current).__name__}. Go on with the same plugins.")
        current = ReservoirSamplingBuffer(0)
    for key, value in attributes.items():
        setattr(current, key, _unpack(value, vars(current).get(key), where))
    return current


def _read_set(packed: Any, current: Any, where: _Place) -> Any:
    kind, items = packed
    return frozenset(items) if kind == "frozenset" else set(items)


def _read_kind(packed: Any, current: Any, where: _Place) -> Any:
    kind, items = packed
    read = {key: _unpack(item, None, where) for key, item in items.items()}
    if kind == "Counter":
        return Counter(read)
    if not isinstance(current, defaultdict):
        raise ConfigError(f"Expected a defaultdict to fill, but got {type(current).__name__}. Use the same plugins.")
    return defaultdict(current.default_factory, read)


def _places(name: str, samples: AvalancheDataset) -> list[Any]:
    """Return where samples are: datasets as (label, tasks), and for each sample its dataset's number and its place.

    Raises:
        _Unknown: They are of datasets that are not ours.
    """
    numbers: dict[tuple[int, tuple[str, ...]], int] = {}
    found = []
    for index in range(len(samples)):
        dataset, position = _place(samples, index)
        if not isinstance(dataset, DenseDataset):
            raise _Unknown(f'its "{name}" holds samples of a {type(dataset).__name__}, not of an experience')
        key = (int(dataset.label), dataset.tasks)
        found.append([numbers.setdefault(key, len(numbers)), position])
    return [[[label, list(tasks)] for label, tasks in numbers], torch.tensor(found, dtype=torch.int64).reshape(-1, 2)]


def _place(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow a sample through what datasets were cut from and joined of."""
    while not isinstance(dataset, DenseDataset):
        flat = getattr(dataset, "_flat_data", dataset)
        if not hasattr(flat, "_get_idx"):
            break
        number, index = flat._get_idx(index)
        dataset = flat._datasets[number]
    return dataset, index


def _read_places(packed: Any, current: Any, where: _Place) -> AvalancheDataset:
    sources, places = packed
    datasets = [where.samples(label, tuple(tasks)) for label, tasks in sources]
    starts = [0]
    for dataset in datasets:
        starts.append(starts[-1] + len(dataset))
    return concat_datasets(datasets).subset([starts[number] + position for number, position in places.tolist()])


_READ = {
    VALUES: _read_values,
    PLACES: _read_places,
    PART: _read_part,
    SET: _read_set,
    KIND: _read_kind,
    ELSEWHERE: _read_elsewhere,
}
