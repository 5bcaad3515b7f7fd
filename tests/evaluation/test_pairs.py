"""Rates of suites that declare pairs of tasks, a chance level and a curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.evaluation.intervals import mean_of_pairs, wilson
from anyvla.evaluation.statistics import success_over_curve, summarize
from tests.evaluation.test_results import RESULT


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_a_rate_of_pairs_and_its_mirror(counts):
    both, neither, n = counts
    if both + neither > n:
        with pytest.raises(ValueError, match="are more than"):
            mean_of_pairs(both, neither, n)
        return
    rate = mean_of_pairs(both, neither, n)
    assert rate.value == pytest.approx((2 * both + (n - both - neither)) / (2 * n))
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.high > rate.low  # also where all pairs end alike
    mirrored = mean_of_pairs(neither, both, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - rate.high, 1 - rate.low))


def test_a_rate_of_pairs_that_all_succeed_is_wilsons_over_the_pairs():
    rate, over_pairs = mean_of_pairs(20, 0, 20), wilson(20, 20)
    assert (rate.low, rate.high, rate.episodes) == (pytest.approx(over_pairs.low), 1, 40)


@pytest.mark.parametrize("shares", [(0, 1, 0), (0.3, 0.4, 0.3), (0.9, 0.1, 0), (0.5, 0, 0.5), (0.05, 0.9, 0.05)])
def test_the_interval_of_a_rate_of_pairs_covers_it(shares):
    """`shares`: of pairs with two successes, with one and with none."""
    rng = np.random.default_rng(0)
    truth = shares[0] + shares[1] / 2
    counts = rng.multinomial(20, shares, 600)
    rates = [mean_of_pairs(int(both), int(neither), 20) for both, _, neither in counts]
    assert np.mean([rate.low - 1e-9 <= truth <= rate.high + 1e-9 for rate in rates]) >= 0.925


def paired_episodes(outcomes, **protocol):
    """Return the episodes of a pair (a, b), given the tasks that succeeded for each seed."""
    shared = {"groups": {"d0": ["a", "b"]}, "pairs": [["a", "b"]], "chance": 0.5, **protocol}
    return [
        replace(
            RESULT, condition="original", task=task, instructed=task, seed=seed, protocol=shared,
            outcome="success" if task in won else "failure", reached=task if task in won else None,
        )
        for seed, won in enumerate(outcomes)
        for task in "ab"
    ]  # fmt: skip


def test_pairs_are_counted_by_seed():
    results = paired_episodes(["ab", "a", "b", "", "ab"])
    results.append(replace(results[0], seed=9))  # its partner was not played
    results[2] = replace(results[2], outcome="error")
    found = summarize(results)
    pair = found.conditions["original"].pairs["d0"]
    assert (pair.both, pair.one, pair.neither, pair.rate) == (2, 1, 1, mean_of_pairs(2, 1, 4))
    assert found.to_dict()["chance"] == 0.5
    assert found.to_dict()["conditions"]["original"]["pairs"]["d0"]["rate"]["episodes"] == 8
    assert summarize([RESULT]).chance is None
    assert summarize([RESULT]).conditions["original"].pairs == {}


def test_the_curve_of_a_suite_has_the_rates_of_its_pairs():
    results = paired_episodes(["ab", "a"], curve={"axis": "delay, actions", "groups": {"d48": 48, "d0": 0}})
    of_condition = summarize(results).conditions["original"]
    assert success_over_curve(results, of_condition) == {0: mean_of_pairs(1, 0, 2)}
    assert success_over_curve([RESULT], of_condition) == {}
