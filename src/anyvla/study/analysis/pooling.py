"""Pool the scores of policies over training seeds and settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.crossed import crossed_mean, fixed_mean, rate_interval, row_weights
from anyvla.study.analysis.scores import Scores


def pool(scores: Scores, numbers: Sequence[int]) -> Interval | None:
    """Return the mean of policies with an interval that takes training seeds and start states into account.

    Combinations of labels weigh the same, and so do training seeds within each. The variance is that on the start
    states that all policies played. Returns None without episodes.
    """
    numbers = [number for number in numbers if np.isfinite(scores.values[number]).any()]
    if not numbers:
        return None
    policies, values = [scores.policies[number] for number in numbers], scores.values[numbers]
    seeds = np.array([policy.seed for policy in policies])
    names: dict[frozenset[tuple[str, str]], int] = {}
    settings = np.array([names.setdefault(frozenset(policy.labels.items()), len(names)) for policy in policies])
    weights = row_weights(settings)
    value = float(weights @ np.nanmean(values, 1))
    paired, largest = any(policy.paired for policy in policies), scores.find_largest(numbers)
    episodes = int(np.isfinite(values).sum()) * (2 if paired else 1)
    shared = np.isfinite(values).all(0)
    if shared.sum() < 2:
        return Interval(value, 0.0, largest, episodes)
    tasks = np.array([task for task, _ in scores.states])[shared]
    if several := len(set(seeds)) > 1 and len(seeds) > len(names):
        mean = crossed_mean(values[:, shared], seeds, settings, tasks, largest)
    else:
        mean = fixed_mean(weights @ values[:, shared], tasks, largest)
    if largest == 1 and (several or not paired):
        return rate_interval(value, episodes, mean)
    return Interval(value, max(0.0, min(value, mean.low)), max(value, mean.high), episodes)
