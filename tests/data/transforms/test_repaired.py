from __future__ import annotations

import dataclasses

import numpy as np

from anyvla.data.episode import Episode
from anyvla.data.tools.findings import Finding
from anyvla.data.transforms.repaired import RepairedDataset
from tests.data.demonstrations import InMemory, demonstration

LENGTH = 30


def numbered(number: int, begin: int = 0, end: int = LENGTH) -> Episode:
    """Return an episode whose hand moves only from step `begin` to step `end`. Its task is its number."""
    steps = np.arange(LENGTH, dtype=np.float32)[:, None]
    moves = np.where((steps >= begin) & (steps < end), 1, 0).astype(np.float32) * np.float32([1, 2, 3, 0])
    return demonstration(
        LENGTH,
        number,
        actions=moves,
        proprio=(np.cumsum(moves, 0) - moves + number).astype(np.float32),
        extra={"task": f"task {number}"},
    )


DATA = InMemory([numbered(0), numbered(1), numbered(2, 5, 20), numbered(3), numbered(4, 0, 12)])


def finding(kind: str, severity: str, episode: int | None) -> Finding:
    return Finding(kind, severity, episode, f"{kind} of {episode}", "look at it")  # type: ignore[arg-type]


FINDINGS = [
    finding("damaged", "error", 1),
    finding("jump", "warning", 3),
    finding("idle", "warning", 2),
    finding("meaning", "error", None),
]


def test_episodes_with_an_error_are_left_out_and_others_keep_their_task() -> None:
    repaired = RepairedDataset(DATA, FINDINGS)
    assert len(repaired) == 4
    assert [repaired.task(i) for i in range(4)] == ["task 0", "task 2", "task 3", "task 4"]
    assert [repaired[i].proprio[0, 3] for i in range(4)] == [0, 2, 3, 4]
    assert repaired.dropped == {"1": "damaged of 1"}


def test_the_fingerprint_depends_on_the_repairs_and_not_on_the_wording_of_findings() -> None:
    fingerprint = RepairedDataset(DATA, FINDINGS).fingerprint
    reworded = [dataclasses.replace(f, text="in other words") for f in FINDINGS]
    assert RepairedDataset(DATA, reworded).fingerprint == fingerprint
    for others in (FINDINGS[1:], [*FINDINGS, finding("damaged", "error", 4)], FINDINGS[:2]):
        assert RepairedDataset(DATA, others).fingerprint != fingerprint


def test_idle_ends_are_cut_off_everything_alike() -> None:
    """Episode 2 moves at steps 5 to 19, and step 20 shows the pose it reached."""
    repaired, whole = RepairedDataset(DATA, FINDINGS), DATA[2]
    cut = repaired[1]
    assert repaired.lengths.tolist() == [30, 16, 30, 30]
    assert repaired.cut == {"2": [5, 9]}
    np.testing.assert_array_equal(cut.actions, whole.actions[5:21])
    np.testing.assert_array_equal(cut.proprio, whole.proprio[5:21])
    np.testing.assert_allclose(cut.timestamps, np.arange(16) / 40)
    for camera in ("corner", "wrist"):
        np.testing.assert_array_equal(cut.images[camera][:], whole.images[camera][5:21])
    assert cut.instructions == whole.instructions


def test_only_episodes_found_idle_are_cut() -> None:
    assert len(RepairedDataset(DATA, FINDINGS)[3]) == LENGTH  # it rests from step 12 on, but no finding says so
    assert RepairedDataset(DATA, [finding("idle", "warning", 4)]).cut == {"4": [0, 17]}
    assert RepairedDataset(DATA, [finding("idle", "warning", 4), finding("gripper", "error", 4)]).cut == {}


def test_repairs_are_part_of_the_fingerprint() -> None:
    prints = {RepairedDataset(DATA, some).fingerprint for some in (FINDINGS, FINDINGS[:1], FINDINGS[2:], FINDINGS[3:])}
    assert len(prints) == 4
