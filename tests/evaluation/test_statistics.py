from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_results import RESULT

from anyvla.evaluation.statistics import summarise, wilson


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
