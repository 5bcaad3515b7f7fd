"""What a rate is worth: confidence intervals of shares, of means over tasks, of lengths.

A rate never travels without its interval: 20 successes of 20 are anything from 84 % up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0  # of every bootstrap: equal results, equal intervals


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval, and of how many episodes it is."""

    value: float
    low: float
    high: float
    episodes: int

    @property
    def successes(self) -> int:
        """Of a share: how many of the episodes counted."""
        return round(self.value * self.episodes)

    def to_dict(self) -> dict[str, float | int]:
        """`{"value", "low", "high", "episodes"}`, for JSON."""
        return dataclasses.asdict(self)


def _check(successes: int, n: int, confidence: float) -> None:
    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, as in 0.95, got {confidence}")


def _share(successes: int, n: int, confidence: float, method: str) -> Interval:
    from statsmodels.stats.proportion import proportion_confint

    _check(successes, n, confidence)
    low, high = proportion_confint(successes, n, 1 - confidence, method)
    # At the ends the bound is the end itself; floating point alone would put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, float(low))
    high = 1.0 if successes == n else min(1.0, float(high))
    return Interval(successes / n, low, high, n)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of a share (Wilson 1927); honest at 0 %, at 100 % and for small n.

    Raises ValueError for n < 1, for successes outside 0..n and for a confidence outside (0, 1).
    """
    return _share(successes, n, confidence, "wilson")


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a share (Clopper, Pearson 1934): never too narrow, often too wide. Raises as `wilson`."""
    return _share(successes, n, confidence, "beta")


def mean_of_shares(shares: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """The mean of independent shares, each worth the same however many episodes it has, or as much as its weight.

    The interval recovers the variance from the limits of the shares' own intervals (MOVER: Zou and Donner 2008,
    doi:10.1002/sim.3095), so that it does not collapse where all shares are 0 or 1. Raises ValueError for none.
    """
    if not shares:
        raise ValueError("a mean needs at least one share")
    given = [1.0] * len(shares) if weights is None else [float(weight) for weight in weights]
    total = math.fsum(given)  # exact sums: all of all tasks is 1, not a hair below
    value = math.fsum(weight * s.value for weight, s in zip(given, shares, strict=True)) / total
    w = np.array(given) / total
    below = math.sqrt(float(w**2 @ [(s.value - s.low) ** 2 for s in shares]))
    above = math.sqrt(float(w**2 @ [(s.high - s.value) ** 2 for s in shares]))
    return Interval(value, max(0.0, value - below), min(1.0, value + above), sum(s.episodes for s in shares))


def bootstrap_mean(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of a sample with the percentile interval of its bootstrap (Efron 1979); seeded.

    Raises ValueError for an empty sample.
    """
    sample = np.asarray(values, float)
    if not len(sample):
        raise ValueError("a mean needs at least one value")
    means = resampled_means(sample, np.zeros(len(sample), int))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def resampled_means(sample: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Means (RESAMPLES,) of samples drawn anew within each stratum. `sample`, `strata`: (n,)."""
    rng = np.random.default_rng(SEED)
    total = np.zeros(RESAMPLES)
    for stratum in np.unique(strata):
        own = sample[strata == stratum]
        total += own[rng.integers(0, len(own), (RESAMPLES, len(own)))].sum(1)
    return total / len(sample)
