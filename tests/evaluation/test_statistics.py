from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_results import RESULT

from anyvla.evaluation.intervals import clopper_pearson, mean_of, wilson
from anyvla.evaluation.statistics import delays, summarise


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys(counts, confidence):
    successes, n = counts
    ours = wilson(successes, n, confidence)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.successes == successes


def test_wilson_at_the_ends():
    assert wilson(0, 80).low == 0.0
    assert wilson(20, 20).high == 1.0
    assert wilson(20, 20).low == pytest.approx(0.8389, abs=1e-4)  # 20 of 20 is no proof of 100 %
    assert wilson(1, 4).to_dict() == {"value": 0.25, "low": wilson(1, 4).low, "high": wilson(1, 4).high, "episodes": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "at least one episode"),
        ((3, 2), r"0\.\.2, got 3"),
        ((-1, 2), r"0\.\.2, got -1"),
        ((1, 2, 95), "between 0 and 1, as in 0.95"),
    ],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


def _episodes(condition, task, told, reached):
    shared = {"condition": condition, "task": task, "told": told}
    return [
        replace(RESULT, **shared, reached=r, outcome="success" if r == task else "failure", seed=seed)
        for seed, r in enumerate(reached)
    ]


def test_the_summary_counts_each_protocol_apart():
    results = (
        _episodes("told", "drawer-open", "drawer-open", ["drawer-open"] * 9 + [None])
        + _episodes("told", "door-open", "door-open", ["door-open"] * 5)
        + _episodes("swapped", "drawer-open", "drawer-close", ["drawer-close"] * 7 + ["drawer-open"] + [None] * 2)
        + _episodes("unrelated", "door-open", "drawer-close", [None] * 4 + ["door-open"])
    )
    summary = summarise(results)
    assert summary.told is not None
    assert summary.swapped is not None
    assert summary.swapped_obeyed is not None
    assert summary.told.overall == wilson(14, 15)
    assert dict(summary.told.tasks) == {"drawer-open": wilson(9, 10), "door-open": wilson(5, 5)}
    assert summary.swapped.overall == wilson(1, 10)
    assert summary.swapped_obeyed.overall == wilson(7, 10)
    flat = summary.to_dict()
    assert flat["success"] == wilson(14, 15).to_dict()
    assert flat["success_swapped"] == wilson(1, 10).to_dict()
    assert flat["success_shuffled"] == wilson(1, 5).to_dict()
    assert flat["tasks"]["door-open"] == {"success": wilson(5, 5).to_dict(), "success_shuffled": wilson(1, 5).to_dict()}
    json.dumps(flat)


def test_tasks_stand_in_one_order_whichever_ended_first():
    first, second = _episodes("told", "b", "b", ["b"]), _episodes("told", "a", "a", [None])
    assert list(summarise(first + second).told.tasks) == list(summarise(second + first).told.tasks) == ["a", "b"]


def test_a_protocol_without_episodes_is_none():
    flat = summarise([RESULT]).to_dict()
    assert flat["success"]["episodes"] == 1
    assert flat["success_swapped"] is None
    assert flat["success_shuffled"] is None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results to summarise"),
        ([RESULT, replace(RESULT, seed=8, checkpoint="ffff")], r"mix 2 checkpoints \(a1b2, ffff\)"),
        ([RESULT, replace(RESULT, seed=8, benchmark="metaworld/mt10")], "mix 2 benchmarks"),
        ([RESULT, RESULT], "told-drawer-open-7, told .* is there twice"),
    ],
)
def test_what_cannot_be_summarised(results, message):
    with pytest.raises(ValueError, match=message):
        summarise(results)


def test_clopper_pearson_is_wider_than_wilson_and_exact_at_the_ends():
    for successes, n in ((0, 20), (7, 20), (20, 20)):
        exact, score = clopper_pearson(successes, n), wilson(successes, n)
        theirs = binomtest(successes, n).proportion_ci(method="exact")
        assert (exact.low, exact.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert exact.high - exact.low >= score.high - score.low


@given(st.lists(st.tuples(st.integers(0, 10), st.just(10)), min_size=1, max_size=8))
def test_a_mean_over_tasks(counts):
    shares = [wilson(*c) for c in counts]
    mean = mean_of(shares)
    assert mean.value == pytest.approx(sum(s.value for s in shares) / len(shares))
    assert mean.low <= mean.value <= mean.high
    assert mean.high > mean.low  # even if all are 0 or 1
    mirrored = mean_of([wilson(n - s, n) for s, n in counts])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - mean.high, 1 - mean.low))
    if len(counts) == 1:
        assert (mean.low, mean.high) == pytest.approx((shares[0].low, shares[0].high))


@pytest.mark.parametrize("weights", [None, [1 / 3, 1 / 3, 1 / 3, 1, 0.1, 0.7]])
def test_a_mean_of_all_or_nothing_is_exact(weights):
    """A hair below 1 would be printed as "> 99.9 %"."""
    assert mean_of([wilson(10, 10)] * 6, weights).value == 1
    assert mean_of([wilson(0, 10)] * 6, weights).value == 0


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    truth = np.array([0.95, 0.5, 0.1, 0.99, 0.8])
    covered = 0
    for _ in range(400):
        mean = mean_of([wilson(int(rng.binomial(10, p)), 10) for p in truth])
        covered += mean.low <= truth.mean() <= mean.high
    assert covered >= 0.92 * 400


def test_groups_weigh_the_same():
    protocol = {"groups": {"easy": ["a", "b", "c"], "hard": ["d"], "absent": ["e"]}}
    won = {"a": 10, "b": 10, "c": 7, "d": 2}
    results = [
        replace(RESULT, task=t, told=t, seed=i, outcome="success" if i < n else "failure", protocol=protocol)
        for t, n in won.items()
        for i in range(10)
    ]
    rates = summarise(results).told
    assert rates.overall.value == pytest.approx(0.725)
    assert rates.mean.value == pytest.approx(0.725)
    assert rates.groups["easy"].value == pytest.approx(0.9)
    assert list(rates.groups) == ["easy", "hard"]
    assert rates.group_mean.value == pytest.approx((0.9 + 0.2) / 2)
    assert rates.group_mean.low < 0.55 < rates.group_mean.high


def test_errors_count_neither_way_and_invalid_actions_as_failures():
    outcomes = ["success"] * 6 + ["failure"] * 2 + ["invalid_action"] + ["error"]
    results = [replace(RESULT, seed=i, outcome=o, clipped=int(i == 0)) for i, o in enumerate(outcomes)]
    played = summarise(results).conditions["told"]
    assert played.success.overall == wilson(6, 9)
    assert (played.episodes, played.errors, played.invalid, played.clipped) == (10, 1, 1, 1)
    nothing = summarise([replace(RESULT, outcome="error")])
    assert nothing.told is None
    assert nothing.to_dict()["success"] is None


def test_chains():
    done = [5] * 4 + [3] * 4 + [0] * 2
    results = [
        replace(RESULT, task="chain", told="chain", seed=i, length=5, completed=d, outcome=outcome)
        for i, d in enumerate(done)
        for outcome in ["success" if d == 5 else "failure"]
    ]
    chains = summarise(results).conditions["told"].chains
    assert [round(i.value, 2) for i in chains.in_a_row] == [0.8, 0.8, 0.8, 0.4, 0.4]
    assert chains.length.value == pytest.approx(3.2)
    assert chains.length.low < 3.2 < chains.length.high
    assert sum(i.value for i in chains.in_a_row) == pytest.approx(chains.length.value)


def test_chains_have_no_use_of_language():
    """In a chain only the goal whose turn it is is judged: which one came first is not known."""
    chain = replace(RESULT, task="chain", told="chain", length=5, completed=5, reached="open_drawer")
    summary = summarise([chain, replace(chain, condition="swapped", completed=0, outcome="failure")])
    assert summary.told.overall == wilson(1, 1)
    assert summary.language_use is None


def test_conditions_do_not_stand_as_they_ended():
    ended = ["swapped", "told+delay=2", "told", "empty", "told+delay=8", "swapped+light=dim"]
    summary = summarise([replace(RESULT, condition=condition) for condition in ended])
    assert list(summary.conditions) == [
        "told", "told+delay=2", "told+delay=8", "swapped", "swapped+light=dim", "empty"
    ]  # fmt: skip


def test_recovery():
    lines = [
        replace(RESULT, seed=0, condition="told+push@20", steps=60, extra={"disturbed_at": 20}),
        replace(RESULT, seed=1, condition="told+push@20", steps=50, extra={"disturbed_at": 24}),
        replace(RESULT, seed=2, condition="told+push@20", steps=99, extra={"disturbed_at": 20}, outcome="failure"),
        replace(RESULT, seed=3, condition="told+push@20", steps=18, extra={}),  # over before
        replace(RESULT, seed=0, extra={"grasps": 2}),
        replace(RESULT, seed=1, extra={"grasps": 3}, outcome="failure"),
        replace(RESULT, seed=2, extra={"grasps": 1}),
    ]
    summary = summarise(lines)
    disturbed = summary.conditions["told+push@20"].disturbed
    assert (disturbed.rate, disturbed.steps) == (wilson(2, 3), 33)
    assert summary.conditions["told"].regrasped.rate == wilson(1, 2)
    assert summary.conditions["told"].disturbed is None


def test_language_use_needs_both_tellings_of_a_start_state():
    told = _episodes("told", "drawer-open", "drawer-open", ["drawer-open"] * 4)
    deaf = _episodes("swapped", "drawer-open", "drawer-close", ["drawer-open"] * 3)
    keen = _episodes("swapped", "drawer-open", "drawer-close", ["drawer-close"] * 3)
    assert summarise(told).language_use is None
    assert summarise(told + deaf).language_use == wilson(3, 6)
    assert summarise(told + keen).language_use == wilson(6, 6)


def test_success_by_delay():
    lines = [replace(RESULT, condition=c, seed=s) for c in ("told+delay=4", "told", "told+light=dim") for s in range(3)]
    assert list(delays(summarise(lines))) == [0, 4]
