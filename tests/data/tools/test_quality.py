from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from anyvla.data.episode import Episode, Frames, steady_timestamps
from anyvla.data.tools.quality import Finding, check
from anyvla.data.transforms.repaired import RepairedDataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import convert
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration, scene


def smooth(length: int = 40, seed: int = 0, **changes: Any) -> Episode:
    """Return an episode whose hand moves along a curve by the deltas of its actions."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)[:, None] / 10
    hand = np.sin(t + rng.uniform(0, 6, 3)) * 0.3
    opening = (np.arange(length)[:, None] < length // 2).astype(float)
    moves = np.diff(hand, axis=0, append=hand[-1:] + 0.01)
    parts = {
        "proprio": np.concatenate([hand, opening], 1).astype(np.float32),
        "actions": np.concatenate([moves, 1 - 2 * opening], 1).astype(np.float32),
    }
    return demonstration(length, seed, **(parts | changes))


CLEAN = [smooth(40 + i, i) for i in range(8)]


def found(*episodes: Episode, frames: Any = "sampled") -> list[Finding]:
    return check(InMemory([*CLEAN, *episodes]), frames=frames)


def only(*episodes: Episode, **keys: Any) -> Finding:
    [finding] = found(*episodes, **keys)
    return finding


def test_clean_data_gives_no_finding():
    assert found() == []
    assert found(frames="all") == []


def changed(name: str, step: int, dim: int, value: float) -> Episode:
    episode = smooth(50, 9)
    array = getattr(episode, name).copy()
    array[step, dim] = value
    return dataclasses.replace(episode, **{name: array})


def test_numbers():
    finding = only(changed("actions", 7, 2, np.nan))
    assert (finding.kind, finding.severity, finding.episode) == ("not finite", "error", 8)
    assert finding.text == "actions at step 7, group 'hand', dim 2, is nan"
    finding = found(changed("proprio", 20, 1, 5.0))[0]
    assert (finding.kind, finding.severity) == ("jump", "warning")
    assert "proprio, 'hand', dim 1, moves by" in finding.text
    assert "at step 20" in finding.text
    finding = only(changed("actions", 3, 3, 7.0))
    assert (finding.kind, finding.severity) == ("gripper", "error")
    assert "to 7, outside of its declared range -1 to 1" in finding.text
    finding = only(smooth(50, 9, actions=np.zeros((50, 7), np.float32)))
    assert (finding.kind, finding.text) == ("wrong size", "actions have shape (50, 7), (50, 4) is declared")


def test_constant_dims_are_reported_once():
    still = [dataclasses.replace(e, proprio=np.concatenate([e.proprio[:, :3], e.proprio[:, 3:] * 0], 1)) for e in CLEAN]
    [finding] = check(InMemory(still))
    assert (finding.kind, finding.episode) == ("constant", None)
    assert "proprio, group 'opening', dim 0" in finding.text


def test_idle_ends_are_found_and_cut():
    episode = smooth(40, 9)
    parts = {
        "actions": np.concatenate([np.zeros((30, 4), np.float32), episode.actions]),
        "proprio": np.concatenate([np.repeat(episode.proprio[:1], 30, 0), episode.proprio]),
    }
    parts["actions"][:30, 3] = episode.actions[0, 3]
    idle = smooth(70, 9, **parts)
    finding = only(idle)
    assert (finding.kind, finding.text) == ("idle", "nothing moves for 30 steps at its begin")
    data = InMemory([*CLEAN, idle])
    repaired = RepairedDataset(data, check(data))
    assert repaired.lengths.tolist() == [*(len(e) for e in CLEAN), 40]
    assert np.array_equal(repaired[8].actions, episode.actions)
    assert repaired[8].timestamps[0] == 0
    assert np.array_equal(repaired[8].images["wrist"][:], idle.images["wrist"][30:])
    assert repaired.cut == {"8": [30, 0]}
    assert check(repaired) == []


def test_times():
    finding = only(smooth(50, 9, timestamps=np.zeros(50)))
    assert (finding.kind, finding.severity) == ("timestamps", "error")
    finding = only(smooth(50, 9, timestamps=steady_timestamps(50, 10)))
    assert "its steps are 0.1 s apart, control_hz 40 means 0.025 s" in finding.text
    gap = steady_timestamps(50, ROBOT.control_hz)
    gap[20:] += 1
    assert "1.02 s are missing after step 19" in only(smooth(50, 9, timestamps=gap)).text


class Broken(Frames):
    shape = (50, 32, 32, 3)

    def read(self, steps: list[int]) -> np.ndarray:
        if 25 in steps:
            raise ValueError("video.mp4: frame 25 is damaged")
        return scene(50)[steps]


def test_frames():
    finding = only(smooth(50, 9, images={"corner": scene(50), "wrist": Broken()}), frames="all")
    assert (finding.kind, finding.severity, finding.text) == (
        "frames",
        "error",
        "camera 'wrist': video.mp4: frame 25 is damaged",
    )
    black = np.zeros((50, 32, 32, 3), np.uint8)
    assert "camera 'wrist' is black" in only(smooth(50, 9, images={"corner": scene(50), "wrist": black})).text
    frozen = np.repeat(scene(1), 50, 0)
    assert only(smooth(50, 9, images={"corner": scene(50), "wrist": frozen})).kind == "frozen"
    short = smooth(50, 9, images={"corner": scene(50), "wrist": scene(49)})
    assert "has 49 frames, the episode 50 steps" in only(short).text
    assert found(smooth(50, 9, images={"corner": scene(50), "wrist": black}), frames="none") == []


def test_duplicates_and_instructions():
    finding = only(CLEAN[3])
    assert (finding.kind, finding.severity, finding.episode, finding.text) == (
        "duplicate",
        "error",
        8,
        "the same as episode 3",
    )
    finding = only(smooth(50, 9, instructions=()))
    assert (finding.kind, finding.severity) == ("instruction", "warning")
    assert only(smooth(50, 9, instructions=("open the dr\ufffdwer",))).severity == "error"


def test_duplicates_have_equal_frames_and_instructions():
    length = len(CLEAN[3])
    elsewhere = {"corner": scene(length, seed=91), "wrist": scene(length, seed=92)}
    assert found(dataclasses.replace(CLEAN[3], images=elsewhere, instructions=("another",))) == []
    finding = only(dataclasses.replace(CLEAN[3], instructions=("another",)))
    assert (finding.kind, finding.severity) == ("duplicate", "warning")
    assert finding.text == "the same as episode 3, but instructed 'another'"
    finding = only(CLEAN[3], frames="none")
    assert (finding.severity, finding.text[-28:]) == ("warning", "its frames were not compared")
    coded = {c: np.asarray(f) ^ 1 for c, f in CLEAN[3].images.items()}  # as through another codec
    assert only(dataclasses.replace(CLEAN[3], images=coded)).severity == "error"


def kinds(episode: Episode, **keys: Any) -> list[tuple[str, str]]:
    return [(f.kind, f.severity) for f in found(episode, **keys)]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("actions", 1.03, []),  # 0.015 of the range, which is from -1 to 1
        ("actions", 1.05, [("gripper", "error")]),
        ("actions", -1.05, [("gripper", "error")]),
        ("proprio", 1.05, [("gripper", "warning")]),  # sensors overshoot
        ("proprio", -1.38, [("gripper", "warning")]),
        ("proprio", -1.42, [("gripper", "error")]),
    ],
)
def test_a_gripper_may_leave_its_range_by_a_fiftieth(name: str, value: float, expected: list[tuple[str, str]]):
    group = ROBOT.action.groups[1]
    robot = dataclasses.replace(ROBOT, proprio=ActionSpace(groups=(ROBOT.proprio.groups[0], group)))
    clean = [dataclasses.replace(e, embodiment=robot) for e in CLEAN]
    odd = dataclasses.replace(changed(name, 7, 3, value), embodiment=robot)
    findings = check(InMemory([*clean, odd], robot))
    assert [(f.kind, f.severity) for f in findings if f.kind == "gripper"] == expected


@pytest.mark.parametrize(("stretch", "expected"), [(0.91, []), (1.09, []), (0.89, 1), (1.11, 1)])
def test_a_rate_may_be_wrong_by_a_tenth(stretch: float, expected: Any):
    findings = kinds(smooth(50, 9, timestamps=steady_timestamps(50, ROBOT.control_hz) * stretch))
    assert findings == (expected and [("timestamps", "warning")])


@pytest.mark.parametrize(("gap", "expected"), [(2.9, []), (3.1, [("timestamps", "warning")])])
def test_a_pause_of_three_steps_is_worth_a_look(gap: float, expected: list[tuple[str, str]]):
    times = np.arange(50.0)
    times[20:] += gap - 1
    assert kinds(smooth(50, 9, timestamps=times / ROBOT.control_hz)) == expected


@pytest.mark.parametrize(("look", "seen"), [("sampled", {0, 14, 31, 50}), ("all", set(range(51))), ("none", set())])
def test_the_frames_that_are_decoded(look: Any, seen: set[int]):
    """Sampled frames are at 0, 0.29, 0.62 and 1 of 50 steps, rounded (14.5 to 14)."""
    for step in (0, 1, 14, 15, 25, 30, 31, 49, 50):
        dark = scene(51)
        dark[step] = 7
        findings = kinds(smooth(51, 9, images={"corner": scene(51), "wrist": dark}), frames=look)
        assert findings == ([("frames", "warning")] if step in seen else [])


@pytest.mark.parametrize(("level", "expected"), [(7, [("frames", "error")]), (8, [("frozen", "warning")])])
def test_a_frame_is_black_if_nothing_in_it_is_brighter_than_seven(level: int, expected: list[tuple[str, str]]):
    dark = np.full((50, 32, 32, 3), 3, np.uint8)
    dark[:, 4, 4, 1] = level
    assert kinds(smooth(50, 9, images={"corner": scene(50), "wrist": dark})) == expected


@pytest.mark.parametrize(("levels", "expected"), [(1, [("duplicate", "error")]), (3, [])])
def test_images_are_of_one_recording_if_they_differ_by_less_than_two_levels(levels: int, expected: list[Any]):
    other = {c: np.minimum(np.asarray(f), 250) + np.uint8(levels) for c, f in CLEAN[3].images.items()}
    assert kinds(dataclasses.replace(CLEAN[3], images=other)) == expected


@pytest.mark.parametrize("name", ["actions", "proprio"])
def test_an_episode_is_a_duplicate_only_if_actions_and_proprio_are_equal(name: str):
    values = getattr(CLEAN[3], name).copy()
    values[5] += 1e-6
    assert kinds(dataclasses.replace(CLEAN[3], **{name: values})) == []


def test_empty_episodes_and_missing_cameras():
    nothing = smooth(50, 9)
    empty = dataclasses.replace(
        nothing,
        actions=nothing.actions[:0],
        proprio=nothing.proprio[:0],
        timestamps=nothing.timestamps[:0],
        images={c: scene(1)[:0] for c in ROBOT.cameras},
    )
    for look in ("none", "sampled", "all"):
        assert only(empty, frames=look).text == "it has no steps"
    assert only(smooth(50, 9, images={"corner": scene(50)})).text == "camera 'wrist' is missing"
    times = steady_timestamps(50, ROBOT.control_hz)
    times[5] = np.nan
    assert only(smooth(50, 9, timestamps=times)).kind == "timestamps"


def test_cameras_that_fail_on_the_way():
    frozen, dark = scene(50), scene(50)
    frozen[25:] = frozen[25]
    dark[30:40] = 0
    finding = only(smooth(50, 9, images={"corner": scene(50), "wrist": frozen}), frames="all")
    assert (finding.kind, finding.text) == (
        "frozen",
        "camera 'wrist' is frozen from step 25 on while the robot moves",
    )
    assert "is black at step 30" in only(smooth(50, 9, images={"corner": scene(50), "wrist": dark}), frames="all").text


def test_noise_is_not_motion():
    episode, rng = smooth(40, 9), np.random.default_rng(0)
    head = np.repeat(episode.proprio[:1], 30, 0)
    head[:, :3] += rng.normal(scale=1e-4, size=(30, 3))
    actions = np.concatenate([np.zeros((30, 4), np.float32), episode.actions])
    actions[:30, 3] = episode.actions[0, 3]
    finding = only(smooth(70, 9, actions=actions, proprio=np.concatenate([head, episode.proprio])))
    assert finding.text == "nothing moves for 30 steps at its begin"
    rest = smooth(50, 9, actions=np.repeat(actions[:1], 50, 0), proprio=np.repeat(episode.proprio[:1], 50, 0))
    data = InMemory([*CLEAN, rest])
    [finding] = check(data)
    assert (finding.kind, finding.text) == ("idle", "nothing moves from its begin to its end")
    assert RepairedDataset(data, [finding]).lengths.tolist() == data.lengths.tolist()  # a person must decide


def turning(length: int, angles: np.ndarray, rotation: str) -> Episode:
    size = {"quaternion_xyzw": 4, "axis_angle": 3}[rotation]
    group = Group(name="rotation", size=size, kind="rotation", rotation=rotation)
    robot = Embodiment(**{**vars(ROBOT), "proprio": ActionSpace(groups=(group,))})
    vectors = angles[:, None] * [0.6, 0.64, 0.48]
    proprio = convert(vectors, "axis_angle", rotation).astype(np.float32)
    return smooth(length, length, embodiment=robot, proprio=proprio)


@pytest.mark.parametrize("rotation", ["quaternion_xyzw", "axis_angle"])
def test_orientations_are_compared_by_the_angle_between(rotation):
    steps = [turning(n, np.linspace(0, 2, n), rotation) for n in (40, 41)]
    through = turning(43, np.linspace(2.2, 4.1, 43), rotation)  # past pi, where axis-angle vectors flip
    robot = steps[0].embodiment
    assert [f.kind for f in check(InMemory([*steps, through], robot)) if f.kind == "jump"] == []
    angles = np.linspace(0, 2, 42)
    angles[21:] += 1.5
    [finding] = [f for f in check(InMemory([*steps, turning(42, angles, rotation)], robot)) if f.kind == "jump"]
    assert finding.episode == 2
    assert "at step 21" in finding.text


def test_a_dim_that_rests_most_of_the_time_may_move():
    def seldom(seed: int) -> Episode:
        episode = smooth(60, seed)
        switch = (np.arange(60)[:, None] > 30).astype(np.float32)
        return dataclasses.replace(episode, proprio=np.concatenate([episode.proprio[:, :3], switch], 1))

    assert check(InMemory([seldom(i) for i in range(4)])) == []


def test_an_episode_that_cannot_be_read_does_not_end_the_check():
    class Damaged(InMemory):
        def __getitem__(self, index):
            if index == 2:
                raise ValueError("file-003.parquet is cut")
            return super().__getitem__(index)

    [finding] = check(Damaged(CLEAN))
    assert (finding.kind, finding.episode, finding.text) == ("damaged", 2, "file-003.parquet is cut")
    repaired = RepairedDataset(Damaged(CLEAN), [finding])
    assert len(repaired) == 7
    assert repaired.dropped == {"2": "file-003.parquet is cut"}
    assert repaired[2].proprio is CLEAN[3].proprio


def test_quaternions_that_jump_to_their_antipode():
    group = Group(name="rotation", size=4, kind="rotation", rotation="quaternion_xyzw")
    robot = Embodiment(**{**vars(ROBOT), "proprio": ActionSpace(groups=(group,))})
    angle = np.linspace(0, 3, 40)[:, None]
    q = np.concatenate([np.sin(angle / 2) * [0.6, 0.64, 0.48], np.cos(angle / 2)], 1).astype(np.float32)
    good = smooth(40, 0, embodiment=robot, proprio=q)
    assert check(InMemory([good, smooth(41, 1, embodiment=robot, proprio=np.concatenate([q, q[-1:]]))], robot)) == []
    flipped = q.copy()
    flipped[20:] *= -1
    data = InMemory([good, dataclasses.replace(good, proprio=flipped)], robot)
    assert [(f.kind, f.episode) for f in check(data)] == [("antipode", 1)]


def test_repairing_needs_an_episode_without_errors():
    data = InMemory([smooth(actions=np.full((40, 4), np.nan, np.float32))])
    with pytest.raises(ValueError, match="every episode of memory has an error"):
        RepairedDataset(data, check(data))


@pytest.mark.parametrize("text", ["open it\x00", "open it\udce9", "\x1b[1mopen it"])
def test_an_instruction_that_is_no_text_is_found(text: str) -> None:
    finding = only(smooth(50, 20, instructions=(text,)))
    assert (finding.kind, finding.severity, finding.episode) == ("instruction", "error", len(CLEAN))
    assert "the instruction" in finding.text
