from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from anyvla.evaluation.environments.base import EpisodeResult
from anyvla.evaluation.statistics import append_result, read_results, summarise, wilson

RESULT = EpisodeResult(
    benchmark="metaworld/half-open",
    protocol="told",
    task="drawer-open",
    told="drawer-open",
    instruction="öffne die Schublade",
    seed=7,
    success=True,
    reached="drawer-open",
    steps=41,
    latency_ms=12.5,
    checkpoint="a1b2",
    versions={"mujoco": "3.3.0"},
    extra={"scene": "drawer"},
)


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


def test_a_line_comes_back_as_it_was(tmp_path):
    path = tmp_path / "eval" / "results.jsonl"
    other = replace(RESULT, seed=8, success=False, reached=None)
    append_result(path, RESULT)
    append_result(path, other)
    assert read_results(path) == [RESULT, other]
    assert path.read_bytes().count(b"\n") == 2


def test_numpy_values_are_written_as_numbers(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, replace(RESULT, seed=np.int64(3), success=np.bool_(True), extra={"distance": np.arange(2)}))
    (result,) = read_results(path)
    assert (result.seed, result.success, result.extra) == (3, True, {"distance": [0, 1]})


@given(st.data())
def test_a_torn_line_is_left_out_and_then_replaced(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("torn") / "results.jsonl"
    append_result(path, RESULT)
    whole = path.read_bytes()
    cut = data.draw(st.integers(1, len(whole) - 2))  # anywhere, within a letter of two bytes too
    path.write_bytes(whole + whole[:cut])
    assert read_results(path) == [RESULT]
    append_result(path, replace(RESULT, seed=8))
    assert [r.seed for r in read_results(path)] == [7, 8]


def test_a_whole_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    path.write_bytes(path.read_bytes().rstrip())
    append_result(path, replace(RESULT, seed=8))
    assert [r.seed for r in read_results(path)] == [7, 8]


def test_a_torn_line_is_reported(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    path.write_bytes(path.read_bytes() + b'{"benchmark": "meta')
    read_results(path)
    assert "line 2 is torn" in caplog.text


def _line(**changes):
    fields = json.loads(json.dumps({**RESULT.__dict__, **changes}))
    return json.dumps({k: v for k, v in fields.items() if v != "DROP"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2: not valid JSON"),
        ("[1]", r"line 2: expected one JSON object, found list"),
        (_line(success="DROP", seed="DROP"), r"line 2: an episode's result lacks seed, success"),
        (_line(sucess=True), r"line 2: an episode's result has the unknown keys sucess"),
        (_line(success=1), r"line 2: 'success' must be bool, got 1"),
        (_line(steps=True), r"line 2: 'steps' must be int, got True"),
        (_line(reached=3), r"line 2: 'reached' must be str or null, got 3"),
        (_line(protocol="shuffled"), r"line 2: 'protocol' must be one of told, swapped, unrelated, got 'shuffled'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    path.write_text(path.read_text() + line + "\n" + _line(seed=9) + "\n")
    with pytest.raises(ValueError, match=message):
        read_results(path)


def test_what_json_cannot_hold_leaves_the_file_alone(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_result(path, replace(RESULT, latency_ms=float("nan")))
    with pytest.raises(TypeError, match="JSON has no form for"):
        append_result(path, replace(RESULT, extra={"path": tmp_path}))
    assert path.read_bytes() == before


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_result(path, replace(RESULT, seed=8))
    assert path.read_bytes() == before


def _episodes(protocol, task, told, reached):
    return [
        replace(RESULT, protocol=protocol, task=task, told=told, reached=r, success=r == task, seed=seed)
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
        ([RESULT, RESULT], "seed 7 is there twice"),
    ],
)
def test_what_cannot_be_summarised(results, message):
    with pytest.raises(ValueError, match=message):
        summarise(results)
