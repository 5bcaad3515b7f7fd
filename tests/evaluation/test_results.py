from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.evaluation.comparison import compare
from anyvla.evaluation.results import EpisodeResult, append_result, read_results
from anyvla.evaluation.tracks import read_track

RESULT = EpisodeResult(
    benchmark="metaworld/half-open",
    condition="original",
    task="drawer-open",
    instructed="drawer-open",
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
def test_a_torn_line_is_skipped_and_then_replaced(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("torn") / "results.jsonl"
    append_result(path, RESULT)
    whole = path.read_bytes()
    cut = data.draw(st.integers(1, len(whole) - 2))  # anywhere, also within a letter of two bytes
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
    assert "line 2 is incomplete" in caplog.text


def _line(**changes):
    fields = json.loads(json.dumps({**RESULT.__dict__, **changes}))
    return json.dumps({k: v for k, v in fields.items() if v != "DROP"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2: not valid JSON"),
        ("[1]", r"line 2: expected one JSON object, found list"),
        (
            _line(outcome="DROP", seed="DROP"),
            r"line 2: 'seed' is required; 'outcome' is required; fix or",
        ),
        (_line(sucess=True), r"line 2: unknown key 'sucess'"),
        (
            _line(outcome="won"),
            r"line 2: 'outcome': .* 'invalid_action' or 'error' \(given: 'won'\)",
        ),
        (_line(format=4), r"line 2: of format 4, this anyvla reads 2 and 3: .*evaluate again into another folder$"),
        (_line(format="DROP"), r"line 2: of format 1, this anyvla reads 2 and 3"),
        (_line(steps=True), r"line 2: 'steps': .* valid integer \(given: True\)"),
        (_line(reached=3), r"line 2: 'reached': .* valid string \(given: 3\)"),
        (_line(protocol="original"), r"line 2: 'protocol': .* \(given: 'original'\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    path.write_text(path.read_text() + line + "\n" + _line(seed=9) + "\n")
    with pytest.raises(ValueError, match=message):
        read_results(path)


def test_values_that_are_not_json_leave_the_file_unchanged(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_result(path, replace(RESULT, latency_ms=float("nan")))
    with pytest.raises(TypeError, match="which JSON cannot represent"):
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


# The first two lines of an evaluation of format 2, as the last version wrote them.
LINES_OF_FORMAT_2 = """\
{"benchmark": "metaworld/half-open", "condition": "told", "task": "drawer-open", "told": "drawer-open", \
"instruction": "open the drawer", "seed": 0, "outcome": "success", "reached": "drawer-open", "steps": 37, \
"completed": 1, "length": 1, \
"attempts": 1, "clipped": 0, "latency_ms": 3.25, "checkpoint": "0123456789abcdef", "policy": {"execute": 4}, \
"protocol": {"harness": 1, "horizon": 200}, "versions": {"torch": "2.9.0"}, "extra": {"grasps": 0}, "format": 2}
{"benchmark": "metaworld/half-open", "condition": "swapped+light=coloured", "task": "drawer-open", "told": \
"drawer-close", "instruction": "close the drawer", "seed": 0, "outcome": "failure", "reached": "drawer-close", \
"steps": 31, "latency_ms": 3.5, "checkpoint": "0123456789abcdef", "policy": {"execute": 4}, \
"protocol": {"harness": 1, "horizon": 200}, "versions": {}, "extra": {}, "format": 2}
"""


def test_lines_of_format_2_are_read_under_todays_names(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(LINES_OF_FORMAT_2)
    own, other = read_results(path)
    assert (own.condition, own.instructed, own.key) == ("original", "drawer-open", "original-drawer-open-0")
    assert (other.condition, other.instructed) == ("swapped+light=colored", "drawer-close")
    assert (own.format, other.format, own.steps, own.protocol) == (3, 3, 37, {"harness": 1, "horizon": 200})
    append_result(path, replace(own, seed=1))
    assert [r.key for r in read_results(path)][::2] == ["original-drawer-open-0", "original-drawer-open-1"]


def test_episodes_of_an_old_and_a_new_file_are_paired(tmp_path):
    lines = LINES_OF_FORMAT_2.splitlines()
    (tmp_path / "old.jsonl").write_text(
        "".join(line.replace('"seed": 0', f'"seed": {seed}') + "\n" for seed in range(10) for line in lines)
    )
    old = read_results(tmp_path / "old.jsonl")
    for result in old:
        append_result(tmp_path / "new.jsonl", replace(result, checkpoint="new"))
    compared = compare(old, read_results(tmp_path / "new.jsonl"))
    assert (compared.difference.episodes, compared.difference.value) == (20, 0)


def test_a_track_of_format_2_is_read_under_todays_names(tmp_path):
    (tmp_path / "tracks").mkdir()
    arrays = {"actions": np.zeros((3, 2)), "chunks": np.zeros((1, 4, 2)), "marks": [0], "stages": [0], "told": [0]}
    np.savez(tmp_path / "tracks" / "told+light=coloured-drawer-open-0.npz", words=np.array(["open it"]), **arrays)
    track = read_track(tmp_path, "original+light=colored-drawer-open-0")
    assert (track.instructions, track.actions.shape) == (("open it",), (3, 2))
    assert (track.predicted_at.tolist(), track.subtask_starts.tolist(), track.instructed_at.tolist()) == ([0], [0], [0])
