"""A strategy and what it is compared with, as one comparison: members x seeds (x orders or held-out tasks).

Each member is an ordinary run. What they reached is compared here, member by member, seed by seed: transfer of new
tasks against plain features with plain heads and against single-task nets, Delta_MTL, forgetting and cost.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medusa_cl.errors import ConfigError
from medusa_cl.results import FROZEN_PLAIN, SINGLE_TASK, mean_and_spread, transfer

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        name: What is compared; its runs differ in seed and variant.
        overrides: What makes it.
        seed: Its seed.
        variant: The order of the stream ("order 1") or the task held out ("normals alone"); empty for the listed one.
        arrangement: What makes the variant.
    """

    name: str
    overrides: tuple[str, ...]
    seed: int
    variant: str = ""
    arrangement: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name, seed and variant, fit for a file."""
        return "-".join([self.name.replace(" ", "_").replace("/", "_"), f"s{self.seed}", *self.variant.split()])


def plan(
    members: Sequence[str] | str, seeds: Sequence[int] | int, orders: int = 0, held_out: Sequence[str] = ()
) -> list[Member]:
    """Return the runs of a study: all members of one seed and variant before the next, so that it can be read early.

    Args:
        members: Names of strategies, with plugins ("finetune+ewc+replay") and further overrides ("medusa head=medusa");
            or one of them.
        seeds: The seeds, or one.
        orders: Random orders of the stream, in place of the listed one; 0 for that.
        held_out: Tasks, each of which is once alone the stream.

    Raises:
        ConfigError: There is nothing to compare, something twice, or both orders and held-out tasks.
    """
    members, seeds = [members] if isinstance(members, str) else members, [seeds] if isinstance(seeds, int) else seeds
    named = {_name(text): tuple(_overrides(text)) for text in members}
    if not named or not seeds or len(named) < len(members) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"Expected study.members and study.seeds without repetitions, but got {list(members)} and {list(seeds)}."
        )
    if orders and held_out:
        raise ConfigError("Expected study.orders or study.leave_one_out, but got both. Make two studies of it.")
    variants: dict[str, tuple[str, ...]] = {
        f"order {i}": ("scenario.order=random", f"scenario.seed={i}") for i in range(1, orders + 1)
    }
    variants |= {f"{task} alone": (f"scenario.held_out={task}",) for task in held_out}
    return [
        Member(name, overrides, seed, variant, arrangement)
        for variant, arrangement in (variants or {"": ()}).items()
        for seed in seeds
        for name, overrides in named.items()
    ]


def _overrides(text: str) -> list[str]:
    words = shlex.split(text)
    if not words or "=" in words[0]:
        return words
    strategy, *plugins = words[0].split("+")
    return [f"strategy={strategy}", *([f"plugins=[{','.join(plugins)}]"] if plugins else []), *words[1:]]


def _name(text: str) -> str:
    given = dict(word.partition("=")[::2] for word in _overrides(text))
    composed = given.pop("plugins", "").strip("[]").replace(" ", "")
    parts = [given.pop("strategy", ""), *filter(None, composed.split(","))]
    return " ".join(["+".join(filter(None, parts)), *(f"{key}={value}" for key, value in given.items())]).strip()


@dataclass
class Outcome:
    """What one run of a study came to.

    Attributes:
        member: The run.
        summary: Its summary; None where it failed.
        run_dir: Where it lies.
        kept: Whether it was computed before.
        failure: Why there is no summary.
    """

    member: Member
    summary: Summary | None = None
    run_dir: str = ""
    kept: bool = False
    failure: str = ""


@dataclass
class Study:
    """The outcomes so far, and what they say.

    Attributes:
        planned: All runs.
        outcomes: Those done.
    """

    planned: Sequence[Member]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The names of the members."""
        return list(dict.fromkeys(member.name for member in self.planned))

    def report(self) -> dict[str, Any]:
        """Return everything as plain data: each member's aggregates, values and runs, and what is missing."""
        primary: Mapping[str, Any] = next((o.summary["primary"] for o in self._done()), {})
        return {
            "members": {name: self._member(name) for name in self.names},
            "primary": primary,
            "missing": [m.label for m in self.planned if m not in {o.member for o in self._done()}],
            "failures": {o.member.label: o.failure for o in self.outcomes if o.failure},
        }

    def metrics(self) -> dict[str, float | None]:
        """Return each member's means as "measure/member", and their spreads as "measure_spread/member"."""
        found: dict[str, float | None] = {}
        for name, member in self.report()["members"].items():
            for key, entry in member["aggregates"].items():
                found |= {f"{key}/{name}": entry["mean"], f"{key}_spread/{name}": entry["spread"]}
        return found

    def table(self) -> dict[str, list[Any]]:
        """Return the aggregates by column: the members, then the mean and the spread of every measure."""
        members = self.report()["members"]
        columns: dict[str, list[Any]] = {"member": list(members)}
        for key in MEASURES:
            for part in ("mean", "spread"):
                columns[f"{key} {part}"] = [entry["aggregates"].get(key, {}).get(part) for entry in members.values()]
        return columns

    def _done(self) -> list[Any]:  # outcomes that have a summary
        return [outcome for outcome in self.outcomes if outcome.summary is not None]

    def _member(self, name: str) -> dict[str, Any]:
        runs = [outcome for outcome in self._done() if outcome.member.name == name]
        measured = [self._measures(outcome) for outcome in runs]
        seeds = [outcome.member.seed for outcome in runs]
        kept = {"run_dir", "seed", "variant"}
        return {
            "overrides": list(next(m.overrides for m in self.planned if m.name == name)),
            "aggregates": {key: aggregate(seeds, [e[key] for e in measured]) for key in MEASURES} if runs else {},
            "values": _values(seeds, [outcome.summary for outcome in runs]),
            "runs": [
                {
                    **{key: value for key, value in vars(o.member).items() if key in kept},
                    "run_dir": o.run_dir,
                    "kept": o.kept,
                    **entry,
                }
                for o, entry in zip(runs, measured, strict=True)
            ],
        }

    def _measures(self, outcome: Outcome) -> dict[str, float | None]:
        peers = {
            o.member.name: o.summary
            for o in self._done()
            if (o.member.seed, o.member.variant) == (outcome.member.seed, outcome.member.variant)
        }
        new = next((list(s["stream"]) for s in (outcome.summary, *peers.values()) if s and s["stream"]), [])
        assert outcome.summary is not None
        return {key: measure(outcome.summary, peers, new) for key, measure in MEASURES.items()}


def just_learnt(summary: Summary, task: str) -> float | None:
    """Return a task's value right after it was learnt."""
    column = summary["matrix"]["values"].get(task, ())
    return next((value for value in column if value is not None), None)


def final(summary: Summary, task: str) -> float | None:
    """Return a task's value in the end."""
    column = summary["matrix"]["values"].get(task, ())
    return column[-1] if column else None


def _against(reference: str, value: Callable[[Summary, str], float | None], old: bool = False) -> Any:
    """Return a measure: the mean over tasks of the transfer against a member's value just after learning."""

    def measure(summary: Summary, peers: Mapping[str, Summary], new: Sequence[str]) -> float | None:
        if reference not in peers:
            return None
        tasks = [*summary["base"], *summary["stream"]] if old else new
        parts = [
            transfer(value(summary, t), just_learnt(peers[reference], t), summary["primary"][t]["higher_is_better"])
            for t in tasks
        ]
        return mean_of(parts)

    return measure


def _forgetting(summary: Summary, peers: Mapping[str, Summary], new: Sequence[str]) -> float | None:
    found: float | None = summary["forgetting_percent"]["mean"]
    return found


def _added(summary: Summary, peers: Mapping[str, Summary], new: Sequence[str]) -> float | None:
    return mean_of([summary["cost"]["params_added"].get(task) for task in new])


def _seconds_added(summary: Summary, peers: Mapping[str, Summary], new: Sequence[str]) -> float | None:
    """A new task's training; where all are learnt together that is all of it."""
    seconds = summary["cost"]["train_seconds"]
    return mean_of([seconds.get(task, sum(seconds.values())) for task in new])


MEASURES: Mapping[str, Callable[[Summary, Mapping[str, Summary], Sequence[str]], float | None]] = {
    "transfer_plain": _against(FROZEN_PLAIN, just_learnt),
    "transfer_single": _against(SINGLE_TASK, just_learnt),
    "mtl_delta": _against(SINGLE_TASK, final, old=True),
    "forgetting_percent": _forgetting,
    "params_total": lambda summary, peers, new: summary["cost"]["params_total"],
    "params_added": _added,
    "gflops": lambda summary, peers, new: summary["cost"]["gflops"],
    "train_seconds": lambda summary, peers, new: sum(summary["cost"]["train_seconds"].values()),
    "seconds_added": _seconds_added,
}
"""What is said of a run: its summary, the runs of the same seed and variant by member, the new tasks -> a number."""


def mean_of(parts: Iterable[float | None]) -> float | None:
    """Return the mean; None where a part has no value, for the mean over the others is another quantity."""
    values = list(parts)
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def aggregate(seeds: Sequence[int], values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean and the spread over seeds, of each seed the mean over its variants."""
    by_seed: dict[int, list[float | None]] = {}
    for seed, value in zip(seeds, values, strict=True):
        by_seed.setdefault(seed, []).append(value)
    mean, spread, why = mean_and_spread([mean_of(parts) for parts in by_seed.values()])
    return {"mean": mean, "spread": spread, "n": len(by_seed), "why_null": why}


def _values(seeds: Sequence[int], summaries: Sequence[Summary]) -> dict[str, Any]:
    """The final value of each task."""
    tasks = dict.fromkeys(task for summary in summaries for task in (*summary["base"], *summary["stream"]))
    return {task: aggregate(seeds, [final(summary, task) for summary in summaries]) for task in tasks}
