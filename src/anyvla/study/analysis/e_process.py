"""Test whether paired episodes differ, at any number of looks: a test by betting.

A bettor stakes a share of her wealth on each difference. If policies do not differ, the expected wealth never grows, so
it reaches 1 / error with a chance of at most `error`, however often one looks (Ville 1939; Ramdas et al. 2023,
arXiv 2210.01948). The shares are mixed by the distribution whose wealth on discordant pairs is
B(a + 1/2, b + 1/2) / B(1/2, 1/2) * 2^(a + b) (Robbins 1970; Krichevsky and Trofimov 1981).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Gauss-Chebyshev nodes integrate the mixture exactly up to 127 episodes; beyond, it is another mixture, as valid.
_NODES = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
_STEP = 0.01  # of a confidence sequence


def log_wealth(values: Float[np.ndarray, "n"], looks: Sequence[int]) -> Float[np.ndarray, "looks"]:
    """Return the logarithm of the wealth after `looks` numbers of values, each value in [-1, 1].

    The mean under no difference must be 0, at each look over the values since the one before; single values may have
    other means, as tasks differ. Raises ValueError for values outside [-1, 1].
    """
    if len(values) and np.abs(values).max() > 1 + 1e-9:
        raise ValueError("a test by betting needs values between -1 and 1")
    growth = np.cumsum(np.log1p(np.clip(values, -1, 1)[:, None] * _NODES), 0)  # (n, nodes)
    at = growth[np.asarray(looks, int) - 1]
    top = at.max(1, keepdims=True)
    return (top + np.log(np.exp(at - top).mean(1, keepdims=True)))[:, 0]


def sequential_p(values: Float[np.ndarray, "n"], looks: Sequence[int]) -> float:
    """Return the p value that holds at all looks: min(1, 1 / largest wealth)."""
    if not len(looks):
        return 1.0
    return float(min(1.0, np.exp(-log_wealth(values, looks).max())))


def confidence_sequence(values: Float[np.ndarray, "n"], looks: Sequence[int], error: float) -> tuple[float, float]:
    """Return an interval of the mean that holds at all looks with a chance of 1 - `error`."""
    if not len(looks):
        return -1.0, 1.0
    means = np.arange(-1, 1 + _STEP / 2, _STEP)
    kept = [m for m in means if sequential_p((values - m) / (1 + abs(m)), looks) > error]
    value = float(values[: looks[-1]].mean())
    return min([value, *kept]), max([value, *kept])
