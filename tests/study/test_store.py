from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from anyvla.config import ConfigError
from anyvla.evaluation.results import EpisodeResult
from anyvla.study.store import CellLine, append_cell, pack_results, read_store

LINE = CellLine(study="s", cell="a=1,seed=0", labels={"a": "1"}, seed=0, state="done", costs={"minutes.train": 1.5})


def episode(seed: int, won: bool, task: str = "open", **keys: object) -> EpisodeResult:
    outcome = "success" if won else "failure"
    given = {"outcome": outcome, "reached": None, "steps": 3, "latency_ms": 1.0, "checkpoint": "c", **keys}
    return EpisodeResult(
        benchmark="b", condition="original", task=task, instructed=task, instruction="do", seed=seed, **given
    )


def test_the_last_line_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    other = dataclasses.replace(LINE, cell="other", seed=1)
    for line in (dataclasses.replace(LINE, state="failed", error="x"), other, LINE):
        append_cell(path, line)
    assert read_store(path) == [LINE, other]
    path.write_bytes(path.read_bytes() + b'{"torn')
    assert read_store(path) == [LINE, other]


def test_episodes_are_packed_by_start_state() -> None:
    results = [episode(3, True), episode(1, False), episode(0, True), episode(0, True, "shut")]
    results[1] = dataclasses.replace(results[1], outcome="error")
    opened, shut = pack_results(results)
    assert (opened.task, opened.first_seed, opened.outcomes) == ("open", 0, "1- 1")
    assert (shut.task, shut.outcomes, shut.completed) == ("shut", "1", "")


def test_chains_keep_how_far_they_came() -> None:
    [played] = pack_results([episode(s, s == 2, length=5, completed=c) for s, c in ((0, 4), (2, 5))])
    assert (played.outcomes, played.completed, played.length) == ("0 1", "4 5", 5)


def test_under_another_instruction_the_instructed_goal_counts_too() -> None:
    swapped = {"condition": "swapped", "instructed": "shut"}
    results = [
        dataclasses.replace(episode(0, False, reached="shut"), **swapped),
        dataclasses.replace(episode(1, True, reached="open"), **swapped),
        dataclasses.replace(episode(3, False, reached="other"), **swapped),
        dataclasses.replace(episode(4, False), outcome="error", **swapped),
    ]
    [original, played] = pack_results([*results, episode(0, True, "shut", reached="shut")])
    assert (played.outcomes, played.obeyed) == ("01 0-", "10 0-")
    assert (original.outcomes, original.obeyed) == ("1", "")
    [unjudged] = pack_results([dataclasses.replace(episode(0, False, length=5), **swapped)])
    assert unjudged.obeyed == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"version": 2}, "line 1: a store of version 2"),
        ({"state": "good"}, "line 1.*state"),
        ({"sed": 1}, "did you mean 'seed'"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, line: dict[str, object], said: str) -> None:
    path = tmp_path / "store.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(LINE) | line) + "\n")
    with pytest.raises(ConfigError, match=said):
        read_store(path)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no store"):
        read_store(tmp_path / "store.jsonl")
