"""Compute 95 % confidence intervals of success rates, of their means over tasks, and of chain lengths.

A rate is always reported with its interval: 20 successes of 20 are compatible with any true rate above 84 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000  # of a bootstrap
SEED = 0  # of every bootstrap, so that equal results have equal intervals


@dataclass(frozen=True)
class Interval:
    """A number, its confidence interval, and the number of episodes behind it."""

    value: float
    low: float
    high: float
    episodes: int

    @property
    def successes(self) -> int:
        """The number of successes behind a rate."""
        return round(self.value * self.episodes)


def wilson(successes: int, n: int) -> Interval:
    """Return a rate with its Wilson score interval (Wilson 1927), which holds at 0 %, at 100 % and for small n.

    Raises ValueError for n < 1 and for successes outside 0..n.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, got {successes}")
    low, high = proportion_confint(successes, n, 1 - CONFIDENCE, "wilson")
    # Rounding would put the bound slightly off 0 or 1 at the ends.
    low = 0.0 if successes == 0 else max(0.0, float(low))
    high = 1.0 if successes == n else min(1.0, float(high))
    return Interval(successes / n, low, high, n)


def mean_of_shares(shares: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """Return the mean of independent rates, weighted equally or by `weights`, whatever their numbers of episodes.

    The interval recovers the variance from the limits of the rates' own intervals (MOVER: Zou and Donner 2008,
    doi:10.1002/sim.3095), so it does not collapse where all rates are 0 or 1. Raises ValueError for no rates.
    """
    if not shares:
        raise ValueError("a mean needs at least one share")
    given = [1.0] * len(shares) if weights is None else [float(weight) for weight in weights]
    total = math.fsum(given)  # exact sums, so that a mean of ones is 1
    value = math.fsum(weight * s.value for weight, s in zip(given, shares, strict=True)) / total
    w = np.array(given) / total
    below = math.sqrt(float(w**2 @ [(s.value - s.low) ** 2 for s in shares]))
    above = math.sqrt(float(w**2 @ [(s.high - s.value) ** 2 for s in shares]))
    return Interval(value, max(0.0, value - below), min(1.0, value + above), sum(s.episodes for s in shares))


def mean_of_pairs(both: int, neither: int, n: int) -> Interval:
    """Return the success rate of the episodes of `n` pairs, with an interval that treats the pairs as the sample.

    `both`, `neither`: pairs with two successes and with none. The rate is (1 + both/n - neither/n) / 2. Its interval
    follows from the Wilson limits of the two shares and their multinomial correlation (MOVER: Zou and Donner 2008), so
    it does not collapse where all pairs end alike. Raises ValueError for n < 1 and for more pairs than `n`.
    """
    if both + neither > n:
        raise ValueError(f"{both} pairs with two successes and {neither} with none are more than {n}")
    won, lost = wilson(both, n), wilson(neither, n)
    # The correlation is -1 at the limit, where no pair has exactly one success.
    outside = (1 - won.value) * (1 - lost.value)
    r = -1.0 if both + neither == n else -math.sqrt(won.value * lost.value / outside)

    def combine(a: float, b: float) -> float:
        return math.sqrt(a**2 + b**2 - 2 * r * a * b) / 2

    value = (1 + won.value - lost.value) / 2
    low = value - combine(won.value - won.low, lost.high - lost.value)
    high = value + combine(won.high - won.value, lost.value - lost.low)
    return Interval(value, max(0.0, low), min(1.0, high), 2 * n)


def bootstrap_mean(values: Sequence[float] | np.ndarray, strata: np.ndarray | None = None) -> Interval:
    """Return the mean of a sample with its percentile bootstrap interval (Efron 1979). The bootstrap is seeded.

    With `strata` (n,), values are resampled within each stratum. Raises ValueError for an empty sample.
    """
    sample = np.asarray(values, float)
    if not len(sample):
        raise ValueError("a mean needs at least one value")
    strata = np.zeros(len(sample), int) if strata is None else strata
    rng = np.random.default_rng(SEED)
    total = np.zeros(RESAMPLES)
    for stratum in np.unique(strata):
        own = sample[strata == stratum]
        total += own[rng.integers(0, len(own), (RESAMPLES, len(own)))].sum(1)
    low, high = np.quantile(total / len(sample), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))
