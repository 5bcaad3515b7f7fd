from __future__ import annotations

import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Scipy

from anyvla.data.episode import steady_timestamps
from anyvla.data.transforms.resampled import Resampled
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import convert
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group
from tests.data.demonstrations import Counted, InMemory, demonstration, scene

GRIPPER = Group(name="gripper", size=1, kind="gripper", low=-1, high=1)
STEP = Group(name="position", size=3, kind="position", mode="delta", unit="m", low=-9, high=9)
HAND = (
    STEP,
    Group(name="joints", size=1, kind="joints"),
    Group(name="trim", size=1, kind="joints", mode="delta"),
    Group(name="base", size=1, kind="other", unit="m/s"),
    GRIPPER,
    Group(name="nudge", size=1, kind="gripper", mode="delta", low=-1, high=1),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def robot(hz, groups=HAND):
    return Embodiment(
        name="arm",
        cameras=("corner",),
        proprio=ActionSpace(groups=(Group(name="at", size=1),)),
        action=ActionSpace(groups=tuple(groups)),
        control_hz=hz,
    )


def numbered(hz, length=None, times=None, groups=HAND):
    """Return one episode whose actions at step t are 1 + t in every dim, and whose proprio is t."""
    times = steady_timestamps(length, hz) if times is None else np.asarray(times, np.float64)
    length = len(times)
    own = robot(hz, groups)
    episode = demonstration(
        length,
        embodiment=own,
        images={"corner": Counted(scene(length))},
        proprio=np.arange(length, dtype=np.float32)[:, None],
        actions=np.tile(np.arange(1, length + 1, dtype=np.float32)[:, None], own.action.size),
        timestamps=times,
    )
    return InMemory([episode], own, fingerprint=hashlib.sha256(times.tobytes()).hexdigest())


def part(episode, name):
    return episode.actions[:, episode.embodiment.action.slices()[name]][:, 0].tolist()


def test_ten_hertz_as_four_by_hand():
    new = Resampled(numbered(10, 10), 4)[0]
    # Steps at 0, .25, .5, .75 show the frames of 0, .2, .5, .7; the next would be at 1.0, after the end.
    assert new.proprio[:, 0].tolist() == [0, 2, 5, 7]
    assert new.timestamps.tolist() == [0, 0.25, 0.5, 0.75]
    assert part(new, "position") == [1 + 2, 3 + 4 + 5, 6 + 7, 8 + 9 + 10]
    assert part(new, "trim") == [3, 12, 13, 27]
    assert part(new, "joints") == part(new, "gripper") == [2, 5, 7, 10]  # in force at the end
    assert part(new, "base") == [1.5, 4, 6.5, 9]  # the mean
    assert part(new, "nudge") == [1, 1, 1, 1]  # clipped to the range that the gripper has
    assert new.embodiment.control_hz == 4


def test_thirty_hertz_as_twelve_with_a_partial_interval_at_the_end():
    new = Resampled(numbered(30, 9), 12)[0]
    # Steps at 0, .083, .167, .25; frames at 0, .033, .067, .1, .133, .167, .2, .233, .267.
    assert new.proprio[:, 0].tolist() == [0, 2, 5, 7]
    assert part(new, "position") == [1 + 2, 3 + 4 + 5, 6 + 7, 8 + 9]
    assert part(new, "joints") == [2, 5, 7, 9]


def test_one_step_more_where_it_begins_on_the_last_frame():
    new = Resampled(numbered(30, 11), 12)[0]  # the last frame is at 10/30 = 4/12
    assert new.proprio[:, 0].tolist() == [0, 2, 5, 7, 10]
    assert part(new, "position")[-1] == 11


def test_uneven_times_count_and_pauses_repeat_the_frame():
    new = Resampled(numbered(10, times=[0, 0.1, 0.2, 0.7, 0.8, 0.9]), 5)[0]
    assert new.timestamps.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert new.proprio[:, 0].tolist() == [0, 2, 2, 2, 4]
    assert part(new, "position") == [1 + 2, 0, 0, 3 + 4, 5 + 6]
    assert part(new, "joints") == [2, 3, 3, 4, 6]
    # 3 m/s was in force for half a second and 4 m/s for a tenth
    assert part(new, "base") == pytest.approx([1.5, 3, 3, (3 * 0.5 + 4 * 0.1) / 0.6, 5.5])


def test_the_rate_it_has_changes_nothing_even_if_times_are_rounded_to_milliseconds():
    for hz in (10, 30, 50):
        data = numbered(hz, times=np.round(steady_timestamps(200, hz), 3))
        new = Resampled(data, hz)[0]
        np.testing.assert_array_equal(new.proprio, data[0].proprio)
        np.testing.assert_array_equal(new.actions[:, :6], data[0].actions[:, :6])


def test_only_the_frames_asked_for_are_decoded():
    data = numbered(10, 10)
    frames = data[0].images["corner"]
    new = Resampled(data, 4)[0].images["corner"]
    assert new.shape == (4, 32, 32, 3)
    assert frames.decoded == 0
    np.testing.assert_array_equal(new[[3, 1, 1]], scene(10)[[7, 2, 2]])
    assert frames.decoded == 3
    np.testing.assert_array_equal(np.asarray(new), scene(10)[[0, 2, 5, 7]])
    with pytest.raises(IndexError, match="the episode has 4 steps; no step 4"):
        new[[4]]


@given(
    length=st.integers(1, 60),
    hz=st.sampled_from([5, 10, 15, 30]),
    share=st.floats(0.05, 1),
    jitter=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_invariants_at_random_rates(length, hz, share, jitter, seed):
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0], np.cumsum(1 + jitter * rng.uniform(-1, 1, length - 1))]) / hz
    data = numbered(hz, times=times)
    new = Resampled(data, hz * share)
    episode = new[0]
    assert new.lengths.tolist() == [len(episode)]
    shown = episode.proprio[:, 0].astype(int)
    late = 0.05 / hz + 1e-9
    assert (times[shown] <= episode.timestamps + late).all()  # none from the future
    following = np.append(times, np.inf)[shown + 1]
    assert (following > episode.timestamps + late - 2e-9).all()  # the newest
    assert episode.timestamps[-1] <= times[-1] + late < episode.timestamps[-1] + 1 / (hz * share) + 2e-9
    reached = np.cumsum(part(episode, "position"))
    before = np.concatenate([[0], np.cumsum(np.arange(1, length + 1))])
    np.testing.assert_allclose(reached, before[[*shown[1:], length]])  # up to the next frame shown


def pose_after(moves, turns, frame, start):
    """Integrate deltas in the frame of the tool or the base. Return positions and matrices from `start` on."""
    at, r = np.zeros(3), start
    out = [(at, r)]
    for move, turn in zip(moves, turns, strict=True):
        at = at + (r @ move if frame == "tool" else move)
        r = r @ turn if frame == "tool" else turn @ r
        out.append((at, r))
    return out


@given(
    frame=st.sampled_from(["base", "tool"]),
    rotation=st.sampled_from(sorted(ROTATION_DIMS)),
    scaled=st.booleans(),
    hz=st.floats(1, 10),
    seed=st.integers(0, 99),
)
def test_integrating_the_new_deltas_reaches_the_same_poses(frame, rotation, scaled, hz, seed):
    unit = "0.1 rad" if scaled and rotation in ("euler", "axis_angle") else ""
    factor = 10 if unit else 1
    groups = (
        Group(name="position", size=3, kind="position", mode="delta", frame=frame),
        Group(
            name="rotation",
            size=ROTATION_DIMS[rotation],
            kind="rotation",
            mode="delta",
            rotation=rotation,
            frame=frame,
            unit=unit,
        ),
        GRIPPER,
    )
    rng = np.random.default_rng(seed)
    length = 23
    data = numbered(10, times=np.concatenate([[0], np.cumsum(rng.uniform(0.05, 0.15, length - 1))]), groups=groups)
    turns = Scipy.from_rotvec(rng.normal(0, 0.2, (length, 3)))
    moves = rng.normal(size=(length, 3))
    written = convert(turns.as_quat(), "quaternion_xyzw", rotation) * factor
    actions = np.concatenate([moves, written, np.zeros((length, 1))], 1).astype(np.float32)
    data.episodes[0] = dataclasses.replace(data[0], actions=actions)
    new = Resampled(data, hz)[0]
    start = Scipy.random(random_state=seed).as_matrix()
    before = pose_after(moves, turns.as_matrix(), frame, start)
    again = Scipy.from_quat(convert(new.actions[:, 3:-1] / factor, rotation, "quaternion_xyzw")).as_matrix()
    after = pose_after(new.actions[:, :3], again, frame, start)
    for k, step in enumerate([*new.proprio[:, 0].astype(int), length]):
        np.testing.assert_allclose(after[k][0], before[step][0], atol=1e-4)
        np.testing.assert_allclose(after[k][1], before[step][1], atol=1e-4)


def test_lengths_are_read_once_and_cached(cache):
    class Watched(InMemory):
        read = 0

        def __getitem__(self, index):
            type(self).read += 1
            return super().__getitem__(index)

    episodes = [numbered(10, n)[0] for n in (1, 7, 11, 12)]
    data = Watched(episodes, robot(10), fingerprint="f" * 64)
    new = Resampled(data, 4)
    assert Watched.read == 0  # opening reads nothing
    assert new.lengths.tolist() == [1, 3, 5, 5] == [len(new[i]) for i in range(4)]
    read = Watched.read
    assert Resampled(data, 2).lengths.tolist() == [1, 2, 3, 3]  # the cache serves other rates too
    assert Watched.read == read
    (cache / "durations" / ("f" * 64)).write_bytes(b"cut off")
    assert Resampled(data, 4).lengths.tolist() == [1, 3, 5, 5]


def test_the_change_is_part_of_the_fingerprint_and_survives_pickling():
    data = numbered(10, 10)
    new = Resampled(data, 4)
    assert len({data.fingerprint, new.fingerprint, Resampled(data, 5).fingerprint}) == 3
    assert new.provenance["changes"] == [{"hz": 4}]
    step = new.embodiment.action.groups[0]
    assert (step.low, step.high) == (None, None)  # sums of steps leave the range of one
    assert new.embodiment.action.groups[-1].high == 1
    again = pickle.loads(pickle.dumps(new))
    np.testing.assert_array_equal(again[0].actions, new[0].actions)
    np.testing.assert_array_equal(again[0].images["corner"][[1]], new[0].images["corner"][[1]])


def test_a_number_that_is_not_finite_spoils_its_own_step_only():
    data = numbered(10, 10)
    actions = data[0].actions.copy()
    actions[3] = np.nan
    data.episodes[0] = dataclasses.replace(data[0], actions=actions)
    assert np.isfinite(Resampled(data, 4)[0].actions).all(1).tolist() == [True, False, True, True]


def turning(**changes):
    return Group(
        **{"name": "rotation", "size": 3, "kind": "rotation", "mode": "delta", "rotation": "euler", "frame": "tool"}
        | changes
    )


@pytest.mark.parametrize(
    ("hz", "groups", "message"),
    [
        (12, HAND, "memory has 10 steps per second and cannot be resampled to 12: use hz of at most 10"),
        (
            5,
            [turning(rotation=None)],
            r"memory \(robot arm\), action group 'rotation': it is not known how its rotation",
        ),
        (5, [turning(frame="")], r"to compose rotations, their frame must be declared \(frame: base or tool\)"),
        (5, [turning(unit="m")], "action group 'rotation': the unit 'm' is no angle"),
        (
            5,
            [STEP, turning()],
            "action group 'position': steps of a rotating tool add up differently .*; declare frame: base or",
        ),
        (
            5,
            [dataclasses.replace(STEP, frame="tool"), turning(frame="base")],
            r"only beside one delta rotation in the tool frame \(the data has rotation delta base\); convert to frame",
        ),
    ],
)
def test_impossible_conversions_are_refused_with_a_remedy(hz, groups, message):
    with pytest.raises(ValueError, match=message):
        Resampled(InMemory([], robot(10, groups)), hz)


def test_damaged_episodes_are_refused():
    back = numbered(10, times=[0, 0.1, 0.1, 0.2])
    back.episodes[0] = dataclasses.replace(back[0], provenance="file 3, episode 2")
    with pytest.raises(
        ValueError, match=r"file 3, episode 2: timestamps must increase, step 2 is at 0.1 s after 0.1 s"
    ):
        Resampled(back, 5)[0]
    broken = numbered(10, 6, groups=[turning(size=4, rotation="quaternion_xyzw")])
    actions = broken[0].actions.copy()
    actions[4] = 0
    broken.episodes[0] = dataclasses.replace(broken[0], actions=actions)
    with pytest.raises(ValueError, match=r"memory, episode 0, action group 'rotation', row 4: .* is no rotation"):
        Resampled(broken, 5)[0]


def test_an_episode_that_cannot_be_read_does_not_hide_the_others():
    class OneDamaged(InMemory):
        def __getitem__(self, index):
            if index == 1:
                raise ValueError("episode 1 is damaged")
            return super().__getitem__(index)

    slower = Resampled(OneDamaged([demonstration(20, seed=i) for i in range(3)], fingerprint="d" * 64), 20)
    assert slower.lengths[[0, 2]].tolist() == [10, 10]
    assert len(slower[2]) == 10
    with pytest.raises(ValueError, match="episode 1 is damaged"):
        slower[1]
