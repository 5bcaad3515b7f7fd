"""Estimate a mean over training seeds and start states that are both random, with its test.

Every policy plays the same start states, so scores are crossed: seeds x start states, as readers x cases in studies of
diagnostic imaging (Obuchowski and Rockette 1995, doi:10.1080/03610919508813243; degrees of freedom by Hillis 2007,
doi:10.1002/sim.2532). docs/studies.md says why it is done like this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from anyvla.evaluation.intervals import CONFIDENCE, Interval, wilson

ALPHA = 1 - CONFIDENCE
POWER = 0.8  # with which a planned number of seeds detects a difference
MOST_SEEDS, MOST_STATES = 100, 10_000  # that are worth planning


@dataclass(frozen=True)
class Components:
    """The variance of a mean by its sources. The variance between trainings falls with the seeds, the others with C."""

    seeds: float  # of the means of the training seeds, with their share of chance: MS_s / (S C)
    states: float  # of the start states: max(MS_c - MS_sc, 0) / (S C)
    chance: float  # of a seed on a start state: MS_sc / (S C)

    @property
    def total(self) -> float:
        """The variance of the mean."""
        return self.seeds + self.states


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval and its p value against 0."""

    value: float
    low: float
    high: float
    p: float
    seeds: int  # training seeds; 1 says that the interval holds for these trained policies only
    states: int  # start states
    components: Components | None = None  # None with one seed
    df: float = math.inf  # degrees of freedom
    variance: float = 0.0  # of one start state, for trained policies that are given


def fixed_mean(values: Float[np.ndarray, "C"], tasks: Shaped[np.ndarray, "C"], largest: float = 1.0) -> Mean:
    """Return the mean over start states for trained policies that are given, stratified over tasks.

    `largest`: the largest possible absolute value. Two start states with a mean of 0 and a sum of squares of
    `largest`^2 are added (Agresti and Min 2005, doi:10.1002/sim.1781), so that no interval has a width of 0.
    """
    from scipy.stats import t

    n, mean = len(values), float(values.mean())
    residuals, df = _center_by_task(values[None], tasks)
    spread = float((residuals**2).sum()) * n / max(df, 1)
    shrunk = mean * n / (n + 2)
    error = math.sqrt(spread + largest**2 + 2 * n * mean**2 / (n + 2)) / (n + 2)
    reach = float(t.isf(ALPHA / 2, max(df, 1))) * error
    low, high = max(-largest, shrunk - reach), min(largest, shrunk + reach)
    p = 2 * float(t.sf(abs(shrunk) / error, max(df, 1)))
    return Mean(mean, min(mean, low), max(mean, high), min(1.0, p), 1, n, df=df, variance=(n + 2) * error**2)


def crossed_mean(
    values: Float[np.ndarray, "R C"],
    seeds: Shaped[np.ndarray, "R"],
    settings: Shaped[np.ndarray, "R"],
    tasks: Shaped[np.ndarray, "C"],
    largest: float = 1.0,
) -> Mean:
    """Return the mean over rows (a training seed in a setting) and start states (columns), both random.

    Settings weigh the same, and are fixed: first their rows with one training seed are averaged. Tasks are fixed too.
    Neither the interval nor p is better than by `fixed_mean`, as the means of few seeds are equal at times by chance.
    Raises ValueError for fewer than two seeds.
    """
    from scipy.stats import t

    parts = find_components(values, seeds, settings, tasks)
    number = len(np.unique(seeds))
    fixed = fixed_mean(row_weights(settings) @ values, tasks, largest)
    df, error = _degrees(parts, number), math.sqrt(parts.total)
    reach = float(t.isf(ALPHA / 2, df)) * error
    if error > 0:
        p = 2 * float(t.sf(abs(fixed.value) / error, df))
    else:
        p = 0.0 if fixed.value else 1.0
    return Mean(
        value=fixed.value,
        low=min(fixed.low, max(-largest, fixed.value - reach)),
        high=max(fixed.high, min(largest, fixed.value + reach)),
        p=max(p, fixed.p),
        seeds=number,
        states=values.shape[1],
        components=parts,
        df=df,
    )


def row_weights(settings: Shaped[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """Return weights of the rows that sum to 1, equal for all settings and within each."""
    _, of, counts = np.unique(settings, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[of])


def find_components(
    values: Float[np.ndarray, "R C"],
    seeds: Shaped[np.ndarray, "R"],
    settings: Shaped[np.ndarray, "R"],
    tasks: Shaped[np.ndarray, "C"],
) -> Components:
    """Return the variance components of the weighted mean, by the sums of squares of a two-way table.

    With one setting, one task and all cells filled these are the usual mean squares. Raises ValueError for one seed.
    """
    names, of_seed = np.unique(seeds, return_inverse=True)
    if len(names) < 2:
        raise ValueError("variance between training seeds needs at least two of them")
    weights, (rows, n) = row_weights(settings), values.shape
    deviations = np.empty((rows, n))
    for setting in np.unique(settings):
        own = settings == setting
        deviations[own] = values[own] - values[own].mean(0)
    by_seed = np.zeros((len(names), n))
    np.add.at(by_seed, of_seed, weights[:, None] * deviations)
    few = len(names) / (len(names) - 1)
    between = few * float((by_seed.mean(1) ** 2).sum())
    residuals, df = _center_by_task(by_seed, tasks)
    chance = few * float((residuals**2).sum()) / max(df, 1) / n
    of_states, _ = _center_by_task((weights @ values)[None], tasks)
    all_states = float((of_states**2).sum()) / max(df, 1) / n
    return Components(between, max(all_states - chance, 0.0), chance)


def rate_interval(value: float, episodes: int, mean: Mean) -> Interval:
    """Return the interval of a success rate that takes the training seeds into account, if there are several.

    It is Wilson's with the effective number of episodes and quantiles of t, as for complex surveys (Korn and Graubard
    1998). A rate of 0 or 1 shows no variance; it counts each start state once.
    """
    from scipy.stats import t

    spread = value * (1 - value)
    if spread <= 0 or mean.components is None:
        plain = wilson(round(value * mean.states), mean.states)
        return Interval(value, plain.low, plain.high, episodes)
    n = min(spread / max(mean.components.total, 1e-12), float(episodes))
    k = float(t.isf(ALPHA / 2, mean.df))
    center, reach = value + k * k / (2 * n), k * math.sqrt(spread / n + k * k / (4 * n * n))
    scale = 1 + k * k / n
    return Interval(value, max(0.0, (center - reach) / scale), min(1.0, (center + reach) / scale), episodes)


def find_seeds(mean: Mean, difference: float, alpha: float = ALPHA) -> int | None:
    """Return how many training seeds detect a difference with 80 % power on the same start states.

    None: more than MOST_SEEDS, so that the start states are the bottleneck. Raises ValueError without components.
    """
    if mean.components is None:
        raise ValueError("planning needs the variance between at least two training seeds")
    low, high = 2, MOST_SEEDS
    if _power(mean, difference, high, alpha) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if _power(mean, difference, middle, alpha) >= POWER:
            high = middle
        else:
            low = middle + 1
    return low


def find_states(mean: Mean, difference: float, alpha: float = ALPHA) -> int | None:
    """Return how many start states detect a difference between trained policies that are given, with 80 % power.

    By the normal approximation, with the variance of the start states so far. None: more than MOST_STATES.
    """
    from scipy.stats import norm

    reach = float(norm.isf(alpha / 2) + norm.isf(1 - POWER))
    needed = math.ceil(mean.variance * (reach / difference) ** 2)
    return max(needed, 2) if needed <= MOST_STATES else None


def _power(mean: Mean, difference: float, seeds: int, alpha: float) -> float:
    """Return the power of the crossed test with another number of training seeds."""
    from scipy.stats import nct, t

    parts = mean.components
    assert parts is not None
    share = mean.seeds / seeds
    # By chance the means of few seeds vary less than their episodes alone make them vary.
    planned = Components(max(parts.seeds, parts.chance) * share, parts.states, parts.chance * share)
    if planned.total == 0:
        return 1.0
    df = min(_degrees(planned, seeds), 1e6)
    effect = abs(difference) / math.sqrt(planned.total)
    reach = float(t.isf(alpha / 2, df))
    return 1.0 if effect > reach + 30 else float(nct.sf(reach, df, effect))


def _degrees(parts: Components, seeds: int) -> float:
    """Return the degrees of freedom of the crossed test (Hillis 2007)."""
    return parts.total**2 / (parts.seeds**2 / (seeds - 1)) if parts.seeds > 0 else 1e9


def _center_by_task(
    values: Float[np.ndarray, "R C"], tasks: Shaped[np.ndarray, "C"]
) -> tuple[Float[np.ndarray, "R C"], int]:
    """Return deviations from the means of each row in each task, and their degrees of freedom per row.

    If a task has a single start state, deviations are from the means over all tasks.
    """
    names, of_task, counts = np.unique(tasks, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        return values - values.mean(1, keepdims=True), values.shape[1] - 1
    member = np.zeros((len(of_task), len(names)))
    member[np.arange(len(of_task)), of_task] = 1.0
    means = (values @ member) / counts
    return values - means[:, of_task], values.shape[1] - len(names)
