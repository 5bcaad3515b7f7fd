"""Compare policies on the episodes that they share.

Episodes are paired by condition, task and seed, so that common effects, such as an easy start state, cancel out.
Results of different protocols are refused with an error that lists the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anyvla.config import ConfigError
from anyvla.evaluation.intervals import Interval, bootstrap_mean, wilson
from anyvla.evaluation.results import EpisodeResult
from anyvla.files.differences import format_value

COUNTS = ("episodes", "first_seed")  # keys of a protocol that may differ between comparable results
FEWEST = 10  # paired episodes that a comparison needs


@dataclass(frozen=True)
class Comparison:
    """Policies A and B on the episodes that both played."""

    a: Interval  # success rate on the shared episodes
    b: Interval
    difference: Interval  # B - A; paired bootstrap, stratified over tasks
    length: Interval | None  # of chains: B's average length minus A's; paired bootstrap
    only_a: int  # episodes that A solved and B did not
    only_b: int
    p: float  # exact McNemar test of no difference
    p_adjusted: float  # with Holm's correction for the number of comparisons


def protocol_differences(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the differences of two protocols, as "settings.render: 'fast', 'native'"."""
    found = []
    for key in {**one, **other}:
        a, b, name = one.get(key), other.get(key), f"{where}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += protocol_differences(a, b, f"{name}.")
        elif a != b and name not in COUNTS:
            found.append(f"{name}: {format_value(a)}, {format_value(b)}")
    return found


def compare(a: Sequence[EpisodeResult], b: Sequence[EpisodeResult], names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two results. Raises ConfigError for different protocols, and for fewer than FEWEST shared episodes."""
    pairs = _pair(a, b, names)
    won = np.array([[x.success, y.success] for x, y in pairs], float)  # (n, 2)
    strata = np.unique([f"{x.condition} {x.task}" for x, _ in pairs], return_inverse=True)[1]
    only_a, only_b = int((won[:, 0] > won[:, 1]).sum()), int((won[:, 1] > won[:, 0]).sum())
    p = mcnemar(only_a, only_b)
    chains = any(x.length > 1 for x, _ in pairs)
    lengths = np.array([y.completed - x.completed for x, y in pairs], float)
    return Comparison(
        a=wilson(int(won[:, 0].sum()), len(pairs)),
        b=wilson(int(won[:, 1].sum()), len(pairs)),
        difference=bootstrap_mean(won[:, 1] - won[:, 0], strata),
        length=bootstrap_mean(lengths, strata) if chains else None,
        only_a=only_a,
        only_b=only_b,
        p=p,
        p_adjusted=p,
    )


def compare_many(results: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, Comparison]:
    """Compare each result with the first; p values are corrected for multiple testing (Holm 1979).

    Raises like `compare`, and for fewer than two results.
    """
    from statsmodels.stats.multitest import multipletests

    (first, base), *others = results.items()
    if not others:
        raise ConfigError("a comparison needs at least two results")
    found = {name: compare(base, other, (first, name)) for name, other in others}
    adjusted = multipletests([c.p for c in found.values()], method="holm")[1]
    return {name: replace(c, p_adjusted=float(p)) for (name, c), p in zip(found.items(), adjusted, strict=True)}


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p value of McNemar's exact test (1947) for the episodes that only one policy solved."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _pair(
    a: Sequence[EpisodeResult], b: Sequence[EpisodeResult], names: tuple[str, str]
) -> list[tuple[EpisodeResult, EpisodeResult]]:
    """Pair the episodes of equal condition, task and seed, without simulator errors."""
    if not a or not b:
        raise ConfigError(f"{names[0] if not a else names[1]} has no results to compare")
    one, other = ({"benchmark": of[0].benchmark, **of[0].protocol} for of in (a, b))
    if faults := protocol_differences(one, other):
        raise ConfigError(
            f"{names[0]} and {names[1]} were made under different protocols and cannot be compared: {'; '.join(faults)}"
        )
    by_key = {r.key: r for r in b if r.outcome != "error"}
    pairs = [(r, by_key[r.key]) for r in a if r.outcome != "error" and r.key in by_key]
    differing = [x.key for x, y in pairs if x.instruction != y.instruction]
    if differing:
        raise ConfigError(f"{names[0]} and {names[1]} were given different instructions, first in {differing[0]}")
    if len(pairs) < FEWEST:
        raise ConfigError(
            f"{names[0]} and {names[1]} share {len(pairs)} episodes (equal condition, task and seed), but {FEWEST} "
            "are needed: evaluate both with the same --conditions, --tasks and --first_seed"
        )
    return pairs
