"""Compute confidence intervals of success rates, of their means over tasks, and of chain lengths.

A rate is always reported with its interval: 20 successes of 20 are compatible with any true rate above 84 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
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

    def to_dict(self) -> dict[str, float | int]:
        """Return `{"value", "low", "high", "episodes"}`, for JSON."""
        return dataclasses.asdict(self)


def _check_counts(successes: int, n: int, confidence: float) -> None:
    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, as in 0.95, got {confidence}")


def _rate(successes: int, n: int, confidence: float, method: str) -> Interval:
    from statsmodels.stats.proportion import proportion_confint

    _check_counts(successes, n, confidence)
    low, high = proportion_confint(successes, n, 1 - confidence, method)
    # Rounding would put the bound slightly off 0 or 1 at the ends.
    low = 0.0 if successes == 0 else max(0.0, float(low))
    high = 1.0 if successes == n else min(1.0, float(high))
    return Interval(successes / n, low, high, n)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return a rate with its Wilson score interval (Wilson 1927), which holds at 0 %, at 100 % and for small n.

    Raises ValueError for n < 1, for successes outside 0..n and for a confidence outside (0, 1).
    """
    return _rate(successes, n, confidence, "wilson")


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return a rate with its exact, conservative interval (Clopper, Pearson 1934). Raises as `wilson`."""
    return _rate(successes, n, confidence, "beta")


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


def bootstrap_mean(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean of a sample with its percentile bootstrap interval (Efron 1979). The bootstrap is seeded.

    Raises ValueError for an empty sample.
    """
    sample = np.asarray(values, float)
    if not len(sample):
        raise ValueError("a mean needs at least one value")
    means = resampled_means(sample, np.zeros(len(sample), int))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def resampled_means(sample: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return the means (RESAMPLES,) of bootstrap samples, resampled within each stratum. `sample`, `strata`: (n,)."""
    rng = np.random.default_rng(SEED)
    total = np.zeros(RESAMPLES)
    for stratum in np.unique(strata):
        own = sample[strata == stratum]
        total += own[rng.integers(0, len(own), (RESAMPLES, len(own)))].sum(1)
    return total / len(sample)
