"""Compute how many episodes are needed to detect a difference."""

from __future__ import annotations

import math


def unpaired_sample_size(difference: float, rate: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return the episodes per policy that detect `rate` against `rate + difference` on independent start states.

    Uses the two-sided test of two proportions by Cohen's h (1988). Raises ValueError for rates outside 0 .. 1.
    """
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    _check_rates(difference, rate, power, alpha)
    effect = abs(proportion_effectsize(rate + difference, rate))
    return math.ceil(float(NormalIndPower().solve_power(effect, power=power, alpha=alpha)))


def paired_sample_size(
    difference: float, rate: float, correlation: float = 0.5, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return the episodes per policy that McNemar's test needs if both policies play the same start states.

    `correlation`: between the successes of the two policies; it is large if the same start states are hard for both.
    The formula is by Connor (1987, doi:10.2307/2531961). Raises ValueError for rates outside 0 .. 1, and for a
    correlation that such rates cannot have.
    """
    from scipy.stats import norm

    _check_rates(difference, rate, power, alpha)
    other = rate + difference
    both = rate * other + correlation * math.sqrt(rate * (1 - rate) * other * (1 - other))
    only_a, only_b = rate - both, other - both
    if min(only_a, only_b, both, 1 - rate - only_b) < -1e-9:
        raise ValueError(f"rates {rate} and {other} cannot have a correlation of {correlation}: choose one nearer to 0")
    split = only_a + only_b
    if split <= 0:
        raise ValueError(f"a correlation of {correlation} leaves no episode that only one policy solves")
    reach = norm.ppf(1 - alpha / 2) * math.sqrt(split) + norm.ppf(power) * math.sqrt(max(split - difference**2, 0.0))
    return math.ceil((reach / difference) ** 2)


def _check_rates(difference: float, rate: float, power: float, alpha: float) -> None:
    if not (0 <= rate <= 1 and 0 <= rate + difference <= 1) or difference == 0:
        raise ValueError(
            f"rates must be between 0 and 1, and must differ; got {rate} and {rate + difference}. 5 points are a "
            "difference of 0.05"
        )
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"power and alpha must be between 0 and 1, as in 0.8 and 0.05; got {power} and {alpha}")
