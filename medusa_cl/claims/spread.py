"""A number over seeds: its mean, its spread, and what can be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from medusa_cl.results import mean_and_spread

FLOOR = 1.0
"""Points of percent under which a difference is nothing, whatever its interval: what the protocol says."""
ENOUGH = 3  # seeds from which on an interval is worth its name
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """One number over seeds.

    Attributes:
        by_seed: Its value with each seed that has one.
        seeds: The seeds that were to have one.
    """

    by_seed: Mapping[int, float]
    seeds: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """How many seeds have a value."""
        return len(self.by_seed)

    @property
    def whole(self) -> bool:
        """Whether every seed that was to have a value has one."""
        return bool(self.by_seed) and set(self.seeds) <= set(self.by_seed)

    @property
    def mean(self) -> float | None:
        """The mean over the seeds that have a value; None where none has."""
        return mean_and_spread(list(self.by_seed.values())).mean

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample (n - 1); None for fewer than two seeds."""
        return mean_and_spread(list(self.by_seed.values())).deviation

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t; None for fewer than three seeds."""
        if self.mean is None or self.deviation is None or self.n < ENOUGH:
            return None
        half = _quantile(self.n - 1) * self.deviation / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def above_noise(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def verdict(self) -> str:
        """Whether the number exceeds the noise between seeds, in words."""
        if self.mean is None:
            return "not computed"
        if self.above_noise is None:
            return {1: "one seed: unknown", 2: "two seeds: unknown"}[self.n]
        if not self.above_noise:
            return "no"
        return "yes" if abs(self.mean) >= FLOOR else f"yes, but under {FLOOR:g} point"


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def over_seeds(seeds: Sequence[int], value: Callable[[int], float | None]) -> Estimate:
    """Return a number over seeds; those without a value are left out of it and counted."""
    found = {seed: value(seed) for seed in seeds}
    return Estimate({seed: v for seed, v in found.items() if v is not None and math.isfinite(v)}, tuple(seeds))


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if any is missing, or there is none: the mean over some is another quantity."""
    return mean_and_spread(list(values)).mean


def ratio_of_sums(parts: Estimate, wholes: Estimate) -> Estimate:
    """Return the sum of parts over seeds, divided by the sum of wholes, with the spread of a ratio estimator.

    A mean of ratios would be ruled by the seed whose whole happens to be near 0. The spread of this one is that of
    (part - ratio x whole) / mean whole over seeds (Cochran, Sampling Techniques, chapter 6): so each seed's value here
    is the ratio plus that.

    Args:
        parts: Percent over seeds.
        wholes: Percent over seeds; there is no ratio where its mean is under 1 point.

    Returns:
        Over the seeds that both have.
    """
    both = [seed for seed in parts.by_seed if seed in wholes.by_seed]
    part, whole = (mean_of_all(of.by_seed[seed] for seed in both) for of in (parts, wholes))
    if part is None or whole is None or whole < FLOOR:
        return Estimate({}, parts.seeds)
    ratio = part / whole
    residuals = {seed: (parts.by_seed[seed] - ratio * wholes.by_seed[seed]) / whole for seed in both}
    return Estimate({seed: ratio + residual for seed, residual in residuals.items()}, parts.seeds)
