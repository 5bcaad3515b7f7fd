from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from anyvla.evaluation.intervals import Interval, bootstrap_mean, mean_of_shares, wilson
from anyvla.evaluation.statistics import success_by_delay, summarize
from tests.evaluation.test_results import RESULT


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(counts):
    successes, n = counts
    ours = wilson(successes, n)
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.successes == successes


def test_wilson_at_the_ends():
    assert wilson(0, 80).low == 0.0
    assert wilson(20, 20).high == 1.0
    assert wilson(20, 20).low == pytest.approx(0.8389, abs=1e-4)  # 20 of 20 is no proof of 100 %


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "at least one episode"),
        ((3, 2), r"0\.\.2, got 3"),
        ((-1, 2), r"0\.\.2, got -1"),
    ],
)
def test_wilson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


def _episodes(condition, task, instructed, reached):
    shared = {"condition": condition, "task": task, "instructed": instructed}
    return [
        replace(RESULT, **shared, reached=r, outcome="success" if r == task else "failure", seed=seed)
        for seed, r in enumerate(reached)
    ]


def test_the_summary_counts_each_condition_separately():
    results = (
        _episodes("original", "drawer-open", "drawer-open", ["drawer-open"] * 9 + [None])
        + _episodes("original", "door-open", "door-open", ["door-open"] * 5)
        + _episodes("swapped", "drawer-open", "drawer-close", ["drawer-close"] * 7 + ["drawer-open"] + [None] * 2)
        + _episodes("unrelated", "door-open", "drawer-close", [None] * 4 + ["door-open"])
    )
    summary = summarize(results)
    assert summary.original is not None
    assert summary.swapped is not None
    assert summary.swapped_obeyed is not None
    assert summary.original.overall == wilson(14, 15)
    assert dict(summary.original.tasks) == {"drawer-open": wilson(9, 10), "door-open": wilson(5, 5)}
    assert summary.swapped.overall == wilson(1, 10)
    assert summary.swapped_obeyed.overall == wilson(7, 10)
    flat = summary.to_dict()
    assert flat["success"] == asdict(wilson(14, 15))
    assert flat["success_swapped"] == asdict(wilson(1, 10))
    assert flat["success_shuffled"] == asdict(wilson(1, 5))
    assert flat["tasks"]["door-open"] == {"success": asdict(wilson(5, 5)), "success_shuffled": asdict(wilson(1, 5))}
    json.dumps(flat)


def test_the_order_of_tasks_does_not_depend_on_the_order_of_results():
    first, second = _episodes("original", "b", "b", ["b"]), _episodes("original", "a", "a", [None])
    assert (
        list(summarize(first + second).original.tasks) == list(summarize(second + first).original.tasks) == ["a", "b"]
    )


def test_a_condition_without_episodes_is_none():
    flat = summarize([RESULT]).to_dict()
    assert flat["success"]["episodes"] == 1
    assert flat["success_swapped"] is None
    assert flat["success_shuffled"] is None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results to summarize"),
        ([RESULT, replace(RESULT, seed=8, checkpoint="ffff")], r"mix 2 checkpoints \(a1b2, ffff\)"),
        ([RESULT, replace(RESULT, seed=8, benchmark="metaworld/mt10")], "mix 2 benchmarks"),
        ([RESULT, RESULT], "original-drawer-open-7, instruction .* is there twice"),
    ],
)
def test_results_that_cannot_be_summarized_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        summarize(results)


@given(st.lists(st.tuples(st.integers(0, 10), st.just(10)), min_size=1, max_size=8))
def test_a_mean_over_tasks(counts):
    shares = [wilson(*c) for c in counts]
    mean = mean_of_shares(shares)
    assert mean.value == pytest.approx(sum(s.value for s in shares) / len(shares))
    assert mean.low <= mean.value <= mean.high
    assert mean.high > mean.low  # even if all are 0 or 1
    mirrored = mean_of_shares([wilson(n - s, n) for s, n in counts])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - mean.high, 1 - mean.low))
    if len(counts) == 1:
        assert (mean.low, mean.high) == pytest.approx((shares[0].low, shares[0].high))


@pytest.mark.parametrize("weights", [None, [1 / 3, 1 / 3, 1 / 3, 1, 0.1, 0.7]])
def test_a_mean_of_all_or_nothing_is_exact(weights):
    """A value slightly below 1 would be printed as "> 99.9 %"."""
    assert mean_of_shares([wilson(10, 10)] * 6, weights).value == 1
    assert mean_of_shares([wilson(0, 10)] * 6, weights).value == 0


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    truth = np.array([0.95, 0.5, 0.1, 0.99, 0.8])
    covered = 0
    for _ in range(400):
        mean = mean_of_shares([wilson(int(rng.binomial(10, p)), 10) for p in truth])
        covered += mean.low <= truth.mean() <= mean.high
    assert covered >= 0.92 * 400


def _rates(won, **given):
    """Episodes by task: {"task": (successes, episodes)}."""
    return [
        replace(
            RESULT,
            **given,
            task=t,
            instructed=t,
            seed=i,
            reached=t if i < n else None,
            outcome=("failure", "success")[i < n],
        )
        for t, (n, of) in won.items()
        for i in range(of)
    ]


def _between(value, low, high):
    return pytest.approx((value, low, high), abs=5e-5)


def _ends(interval):
    return interval.value, interval.low, interval.high


def test_means_over_episodes_tasks_and_groups_are_three_numbers():
    """Wilson limits by Newcombe's formula (1998, method 3), the means by Zou and Donner's, all by hand."""
    protocol = {"groups": {"two": ["a", "b"], "one": ["c"], "absent": ["e"]}}
    results = _rates({"a": (1, 10), "b": (2, 2), "c": (1, 4)}, protocol=protocol)
    rates = summarize(results).original
    assert {t: _ends(i) for t, i in rates.tasks.items()} == {
        "a": _between(0.1, 0.01788, 0.40415),
        "b": _between(1, 0.34238, 1),
        "c": _between(0.25, 0.04559, 0.69936),
    }
    assert _ends(rates.overall) == _between(4 / 16, 0.10182, 0.49498)
    # (0.1 + 1 + 0.25) / 3; below it sqrt(0.08212^2 + 0.65762^2 + 0.20441^2) / 3, above sqrt(0.30415^2 + 0.44936^2) / 3
    assert _ends(rates.mean_over_tasks) == _between(0.45, 0.45 - 0.23118, 0.45 + 0.18087)
    # (0.1 + 1) / 2; below it sqrt(0.08212^2 + 0.65762^2) / 2, above 0.30415 / 2
    assert list(rates.groups) == ["two", "one"]
    assert _ends(rates.groups["two"]) == _between(0.55, 0.55 - 0.33136, 0.55 + 0.15208)
    assert _ends(rates.groups["one"]) == _between(0.25, 0.04559, 0.69936)
    # (0.55 + 0.25) / 2; below it sqrt(0.33136^2 + 0.20441^2) / 2, above sqrt(0.15208^2 + 0.44936^2) / 2
    assert _ends(rates.mean_over_groups) == _between(0.4, 0.4 - 0.19467, 0.4 + 0.23720)
    counts = [i.episodes for i in (rates.overall, rates.mean_over_tasks, rates.groups["two"], rates.mean_over_groups)]
    assert counts == [16, 16, 12, 16]
    written = asdict(rates)
    assert [written[key]["value"] for key in ("overall", "mean_over_tasks", "mean_over_groups")] == [
        pytest.approx(v) for v in (0.25, 0.45, 0.4)
    ]
    assert {name: i["value"] for name, i in written["groups"].items()} == {"two": pytest.approx(0.55), "one": 0.25}
    assert {name: i["value"] for name, i in written["tasks"].items()} == {"a": 0.1, "b": 1, "c": 0.25}


def test_the_bootstrap_of_a_large_sample_is_the_normal_interval():
    sample = np.random.default_rng(3).normal(2, 5, 900)
    found = bootstrap_mean(sample)
    half = 1.95996 * sample.std() / 30  # the root of 900
    assert _ends(found) == pytest.approx((sample.mean(), sample.mean() - half, sample.mean() + half), abs=0.02)
    assert found == bootstrap_mean(sample)  # it is seeded
    assert found.episodes == 900


def test_a_bootstrap_resamples_within_each_stratum():
    """The strata differ, but no value differs within one: the mean (3 * 1 + 1 * 5) / 4 never varies."""
    sample, strata = np.array([1.0, 5.0, 1.0, 1.0]), np.array([0, 7, 0, 0])
    assert _ends(bootstrap_mean(sample, strata)) == (2, 2, 2)
    found = bootstrap_mean(np.array([0.0, 1.0, 5.0]), np.array([0, 0, 1]))
    assert _ends(found) == pytest.approx((2, 5 / 3, 7 / 3))


def test_the_successes_of_a_share_are_whole_numbers():
    assert Interval(0.7, 0.4, 0.9, 10).successes == 7  # 0.7 * 10 is a hair below 7
    assert wilson(29, 100).successes == 29


def test_errors_count_neither_way_and_invalid_actions_as_failures():
    outcomes = ["success"] * 6 + ["failure"] * 2 + ["invalid_action"] + ["error"] * 3
    results = [
        replace(RESULT, seed=i, outcome=o, clipped=(0, 1, 5)[i % 3], attempts=1 + (i % 4 == 0))
        for i, o in enumerate(outcomes)
    ]
    played = summarize(results).conditions["original"]
    assert played.success.overall == wilson(6, 9)
    assert asdict(played) == {
        "episodes": 12,
        "pairs": {},
        "errors": 3,
        "invalid": 1,
        "clipped": 8,
        "repeated": 3,
        "success": asdict(played.success),
        "obeyed": asdict(played.obeyed),
        "chains": None,
        "disturbed": None,
        "regrasped": None,
    }
    nothing = summarize([replace(RESULT, outcome="error")])
    assert nothing.original is None
    assert nothing.to_dict()["success"] is None


def test_chains():
    done = [5] * 4 + [3] * 4 + [0] * 2
    results = [
        replace(RESULT, task="chain", instructed="chain", seed=i, length=5, completed=d, outcome=outcome)
        for i, d in enumerate(done)
        for outcome in ["success" if d == 5 else "failure"]
    ]
    chains = summarize(results).conditions["original"].chains
    assert [round(i.value, 2) for i in chains.in_a_row] == [0.8, 0.8, 0.8, 0.4, 0.4]
    assert chains.average_length.value == pytest.approx(3.2)
    assert chains.average_length.low < 3.2 < chains.average_length.high
    assert sum(i.value for i in chains.in_a_row) == pytest.approx(chains.average_length.value)
    assert [i.episodes for i in (*chains.in_a_row, chains.average_length)] == [10] * 6
    # The variance of the ten lengths is (4 * 1.8^2 + 4 * 0.2^2 + 2 * 3.2^2) / 10 = 3.36.
    assert chains.average_length.high - chains.average_length.low == pytest.approx(
        2 * 1.96 * (3.36 / 10) ** 0.5, abs=0.15
    )
    written = asdict(chains)
    assert [i["value"] for i in written["in_a_row"]] == [0.8, 0.8, 0.8, 0.4, 0.4]
    assert written["average_length"] == asdict(chains.average_length)


def test_a_shorter_chain_is_one_of_all_chains():
    lengths = [(2, 2), (4, 4), (4, 1), (2, 0)]
    results = [replace(RESULT, task="chain", seed=i, length=n, completed=d) for i, (n, d) in enumerate(lengths)]
    chains = summarize(results).conditions["original"].chains
    assert [i.value for i in chains.in_a_row] == [0.75, 0.5, 0.25, 0.25]


def test_chains_that_judge_only_the_current_goal_have_no_use_of_language():
    """As in CALVIN: the goal that is reached first may be another one, which nothing notices."""
    chain = replace(RESULT, task="chain", instructed="chain", length=5, completed=5, reached="open_drawer")
    summary = summarize([chain, replace(chain, condition="swapped", completed=0, outcome="failure")])
    assert summary.original.overall == wilson(1, 1)
    assert summary.language_use is None
    assert summary.swapped_obeyed is None


def test_the_use_of_language_in_chains_is_that_of_their_first_task():
    lost = {"outcome": "failure", "protocol": {"other_goals": "judged"}}
    chain = replace(RESULT, task="chain", instructed="chain", length=5, **lost)
    own = [replace(chain, seed=i, completed=d, reached="shut") for i, d in enumerate([3, 1, 0, 0])]
    swapped = replace(chain, condition="swapped", instructed="open", completed=0)
    other = [
        replace(swapped, seed=0, reached="open"),
        replace(swapped, seed=1, reached="shut"),
        replace(swapped, seed=2, reached=None),
        replace(swapped, seed=3, completed=1, reached="open"),  # the original goal first, then by chance the other
    ]
    summary = summarize(own + other)
    assert summary.swapped_obeyed.overall == wilson(1, 4)
    assert summary.language_use == wilson(2 + 1, 8)
    assert summary.conditions["swapped"].chains.in_a_row[0] == wilson(1, 4)


def test_the_order_of_conditions_does_not_depend_on_the_order_of_results():
    ended = ["swapped", "original+delay=2", "original", "empty", "original+delay=8", "swapped+light=dim"]
    summary = summarize([replace(RESULT, condition=condition) for condition in ended])
    assert list(summary.conditions) == [
        "original", "original+delay=2", "original+delay=8", "swapped", "swapped+light=dim", "empty"
    ]  # fmt: skip


def test_recovery():
    pushed = {"condition": "original+push@20"}
    lines = [
        replace(RESULT, seed=0, **pushed, steps=60, extra={"disturbed_at": 20}),
        replace(RESULT, seed=1, **pushed, steps=30, extra={"disturbed_at": 24}),
        replace(RESULT, seed=2, **pushed, steps=99, extra={"disturbed_at": 20}, outcome="failure"),
        replace(RESULT, seed=3, **pushed, steps=18, extra={}),  # over before
        replace(RESULT, seed=4, **pushed, steps=320, extra={"disturbed_at": 20, "grasps": 4}),
        replace(RESULT, seed=0, extra={"grasps": 2}),
        replace(RESULT, seed=1, extra={"grasps": 3}, outcome="failure"),
        replace(RESULT, seed=2, extra={"grasps": 1}),
        replace(RESULT, seed=3, extra={"grasps": 2}, outcome="error"),
    ]
    summary = summarize(lines)
    disturbed = summary.conditions["original+push@20"].disturbed
    assert (disturbed.rate, disturbed.median_steps) == (wilson(3, 4), 40)  # the median of 40, 6 and 300
    assert summary.conditions["original+push@20"].regrasped is None
    regrasped = summary.conditions["original"].regrasped
    assert (regrasped.rate, regrasped.median_steps) == (wilson(1, 2), None)
    assert summary.conditions["original"].disturbed is None
    assert asdict(disturbed) == {"rate": asdict(wilson(3, 4)), "median_steps": 40}


def test_language_use_needs_both_instructions_of_a_start_state():
    original = _episodes("original", "drawer-open", "drawer-open", ["drawer-open"] * 4)
    ignoring = _episodes("swapped", "drawer-open", "drawer-close", ["drawer-open"] * 3)
    obeying = _episodes("swapped", "drawer-open", "drawer-close", ["drawer-close"] * 3)
    assert summarize(original).language_use is None
    assert summarize(original + ignoring).language_use == wilson(3, 6)
    assert summarize(original + obeying).language_use == wilson(6, 6)


def test_language_use_pairs_start_states_of_one_task_and_leaves_out_errors():
    original = _episodes("original", "drawer-open", "drawer-open", ["drawer-open"] * 3)
    others = _episodes("original", "door-open", "door-open", [None] * 3)
    swapped = _episodes("swapped", "drawer-open", "drawer-close", ["drawer-close", "drawer-close", None])
    swapped[1] = replace(swapped[1], outcome="error")
    # Seeds 0 and 2 of the drawer: both right under original, one under swapped. The door has no swapped episode.
    assert summarize(original + others + swapped).language_use == wilson(3, 4)


def test_success_by_delay_omits_conditions_with_other_changes():
    won = {
        "original": 9, "original+delay=4": 7, "original+delay=2": 8, "swapped+delay=4": 1, "original+light=dim": 2,
        "original+light=dim+delay=4": 3, "original+push@20": 4, "original+push@20+delay=2": 5,
    }  # fmt: skip
    lines = [r for condition, n in won.items() for r in _rates({"a": (n, 10)}, condition=condition)]
    found = success_by_delay(summarize(lines))
    assert list(found.items()) == [(0, wilson(9, 10)), (2, wilson(8, 10)), (4, wilson(7, 10))]


def test_the_json_of_a_summary_has_every_condition():
    lines = [
        *_episodes("original", "a", "a", ["a"] * 9 + [None]),
        *_episodes("swapped", "a", "b", ["a"] * 2 + ["b"] * 5 + [None] * 3),
        *_episodes("unrelated", "a", "c", ["a"] * 4 + [None] * 6),
        *_episodes("empty", "a", "a", ["a"] * 3 + [None] * 7),
    ]
    flat = summarize(lines).to_dict()
    keys = ("success", "success_swapped", "success_shuffled", "swapped_obeyed", "language_use")
    assert [flat[k]["value"] for k in keys] == [0.9, 0.2, 0.4, 0.5, 0.7]
    assert {k: i["value"] for k, i in flat["tasks"]["a"].items()} == dict(zip(keys, (0.9, 0.2, 0.4, 0.5), strict=False))
    assert (flat["benchmark"], flat["checkpoint"]) == ("metaworld/half-open", "a1b2")
    by_condition = {
        name: (played["success"]["overall"]["value"], played["obeyed"]["overall"]["value"])
        for name, played in flat["conditions"].items()
    }
    assert by_condition == {"original": (0.9, 0.9), "swapped": (0.2, 0.5), "unrelated": (0.4, 0), "empty": (0.3, 0.3)}
