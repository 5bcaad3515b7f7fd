from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.evaluation.results import EpisodeResult, append_result, read_results

RESULT = EpisodeResult(
    benchmark="metaworld/half-open",
    condition="told",
    task="drawer-open",
    told="drawer-open",
    instruction="öffne die Schublade",
    seed=7,
    outcome="success",
    reached="drawer-open",
    steps=41,
    latency_ms=12.5,
    checkpoint="a1b2",
    protocol={"simulator": {"mujoco": "3.3.0"}},
    extra={"scene": "drawer"},
)


def test_a_line_comes_back_as_it_was(tmp_path):
    path = tmp_path / "eval" / "results.jsonl"
    other = replace(RESULT, seed=8, outcome="failure", reached=None)
    append_result(path, RESULT)
    append_result(path, other)
    assert read_results(path) == [RESULT, other]
    assert path.read_bytes().count(b"\n") == 2


def test_numpy_values_are_written_as_numbers(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, replace(RESULT, seed=np.int64(3), extra={"distance": np.arange(2)}))
    (result,) = read_results(path)
    assert (result.seed, result.extra) == (3, {"distance": [0, 1]})


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
        (_line(outcome="DROP", seed="DROP"), r"line 2: an episode's result lacks outcome, seed"),
        (_line(sucess=True), r"line 2: an episode's result has the unknown keys sucess"),
        (_line(outcome="won"), r"line 2: 'outcome' must be one of success, failure, invalid_action, error, got 'won'"),
        (_line(format=3), r"line 2: of format 3, this anyvla writes and reads 2: .*evaluate anew into another folder$"),
        (_line(format="DROP"), r"line 2: of format 1, this anyvla writes and reads 2"),
        (_line(steps=True), r"line 2: 'steps' must be int, got True"),
        (_line(reached=3), r"line 2: 'reached' must be str or null, got 3"),
        (_line(protocol="told"), r"line 2: 'protocol' must be dict, got 'told'"),
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
