from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Scipy

from anyvla.data.transforms.converted import Converted
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import convert
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group
from tests.data.demonstrations import Counted, InMemory, demonstration, scene

T = 12
CONVENTIONS = sorted(ROTATION_DIMS)


def space(*groups):
    return ActionSpace(groups=groups)


def turn(rotation, name="rotation", **changes):
    return Group(name=name, size=ROTATION_DIMS[rotation], kind="rotation", rotation=rotation, **changes)


def move(name="position", frame="tool", **changes):
    return Group(name=name, size=3, kind="position", mode="delta", frame=frame, unit="m", **changes)


GRIPPER = Group(name="gripper", size=1, kind="gripper", low=0, high=1, open=0)


def arm(orientation="quaternion_wxyz", delta="euler", frame="tool"):
    return Embodiment(
        name="arm",
        cameras=("corner",),
        proprio=space(
            Group(name="position", size=3, kind="position", frame="base"), turn(orientation, frame="base"), GRIPPER
        ),
        action=space(move(frame=frame), turn(delta, mode="delta", frame=frame), GRIPPER),
        control_hz=10,
    )


def moving(robot, seed=0, length=T):
    """Return an episode of poses and deltas, and its orientations and deltas as rotations of scipy."""
    rng = np.random.default_rng(seed)
    orientations, deltas = Scipy.random(length, random_state=seed), Scipy.from_rotvec(rng.normal(0, 0.3, (length, 3)))
    pose, step = robot.proprio.groups[1].rotation, robot.action.groups[1].rotation
    proprio = [rng.normal(size=(length, 3)), convert(orientations.as_quat(), "quaternion_xyzw", pose)]
    actions = [rng.normal(size=(length, 3)), convert(deltas.as_quat(), "quaternion_xyzw", step)]
    gripper = rng.uniform(size=(length, 1))
    episode = demonstration(
        length,
        embodiment=robot,
        images={"corner": Counted(scene(length))},
        proprio=np.concatenate([*proprio, gripper], 1).astype(np.float32),
        actions=np.concatenate([*actions, gripper], 1).astype(np.float32),
    )
    return episode, orientations, deltas


def part(episode, name, space="action"):
    values = episode.actions if space == "action" else episode.proprio
    return values[:, getattr(episode.embodiment, space).slices()[name]]


def matrices(values, convention):
    return Scipy.from_quat(convert(values, convention, "quaternion_xyzw")).as_matrix()


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_rotations_are_converted_and_other_groups_stay(source, target):
    robot = arm(source, source)
    episode, orientations, deltas = moving(robot)
    data = Converted(InMemory([episode], robot), rotation=target)
    new = data[0]
    assert new.embodiment == data.embodiment
    assert [g.rotation for g in data.embodiment.action.groups] == [None, target, None]
    assert data.embodiment.action.size == new.actions.shape[1] == 4 + ROTATION_DIMS[target]
    assert data.embodiment.proprio.size == new.proprio.shape[1] == 4 + ROTATION_DIMS[target]
    assert new.actions.dtype == new.proprio.dtype == np.float32
    np.testing.assert_allclose(matrices(part(new, "rotation", "proprio"), target), orientations.as_matrix(), atol=2e-6)
    np.testing.assert_allclose(matrices(part(new, "rotation"), target), deltas.as_matrix(), atol=2e-6)
    for name in ("position", "gripper"):
        for vector in ("action", "proprio"):
            np.testing.assert_array_equal(part(new, name, vector), part(episode, name, vector))
    assert new.images["corner"].decoded == 0
    assert new.instructions == episode.instructions


def test_a_quaternion_trajectory_has_no_antipode_jumps():
    robot = arm("quaternion_wxyz")
    path = Scipy.from_rotvec(
        np.linspace(2.5, 4.5, T)[:, None] * [0, 0, 1]
    )  # through pi, where the real part changes its sign
    episode, _, _ = moving(robot)
    proprio = episode.proprio.copy()
    proprio[:, 3:7] = convert(path.as_quat(), "quaternion_xyzw", "quaternion_wxyz")
    assert np.abs(np.diff(proprio[:, 3:7], axis=0)).max() > 1  # it jumps
    new = Converted(InMemory([dataclasses.replace(episode, proprio=proprio)], robot), rotation="quaternion_xyzw")[0]
    written = part(new, "rotation", "proprio")
    assert np.abs(np.diff(written, axis=0)).max() < 0.2
    assert written[0, 3] > 0


def by_hand(frame, orientations, deltas, moves):
    """Return moves and turns (as matrices) in the frame `frame`, converted from the other one by matrices."""
    r, d = orientations.as_matrix(), deltas.as_matrix()
    r = r if frame == "base" else r.transpose(0, 2, 1)
    return np.einsum("tij,tj->ti", r, moves), r @ d @ r.transpose(0, 2, 1)


@given(
    source=st.sampled_from(CONVENTIONS),
    target=st.sampled_from([None, *CONVENTIONS]),
    pose=st.sampled_from(CONVENTIONS),
    frames=st.sampled_from([("tool", "base"), ("base", "tool")]),
    seed=st.integers(0, 99),
)
def test_deltas_are_converted_to_the_other_frame(source, target, pose, frames, seed):
    robot = arm(pose, source, frames[0])
    episode, orientations, deltas = moving(robot, seed)
    data = InMemory([episode], robot)
    new = Converted(data, rotation=target, frame=frames[1])
    moves, turns = by_hand(frames[1], orientations, deltas, part(episode, "position"))
    np.testing.assert_allclose(part(new[0], "position"), moves, atol=1e-5)
    np.testing.assert_allclose(matrices(part(new[0], "rotation"), target or source), turns, atol=1e-5)
    assert [g.frame for g in new.embodiment.action.groups] == [frames[1], frames[1], ""]
    back = Converted(new, rotation=source, frame=frames[0])
    np.testing.assert_allclose(part(back[0], "position"), part(episode, "position"), atol=1e-5)
    np.testing.assert_allclose(
        matrices(part(back[0], "rotation"), source), matrices(part(episode, "rotation"), source), atol=1e-5
    )


def test_frames_by_hand():
    # The tool is turned a quarter about z: its x is the y of the base, its y the -x of the base.
    robot = arm("euler", "axis_angle")
    episode, _, _ = moving(robot, length=1)
    proprio, actions = episode.proprio.copy(), episode.actions.copy()
    proprio[0, 3:6] = [0, 0, np.pi / 2]
    actions[0, :6] = [0.1, 0.2, 0.3, 0.4, 0.0, 0.5]
    data = InMemory([dataclasses.replace(episode, proprio=proprio, actions=actions)], robot)
    np.testing.assert_allclose(
        Converted(data, frame="base")[0].actions[0, :6], [-0.2, 0.1, 0.3, 0.0, 0.4, 0.5], atol=1e-6
    )


def test_scaled_angles_are_converted_to_radians():
    robot = arm()
    step = turn("euler", mode="delta", frame="tool", unit="0.05 rad", low=-1, high=1)
    robot = dataclasses.replace(robot, action=space(move(), step, GRIPPER))
    episode, _, _ = moving(robot)
    actions = episode.actions.copy()
    actions[:, 3:6] = [0, 0, 0.4]
    data = Converted(InMemory([dataclasses.replace(episode, actions=actions)], robot), rotation="axis_angle")
    np.testing.assert_allclose(part(data[0], "rotation"), np.tile([0, 0, 0.02], (T, 1)), atol=1e-8)
    group = data.embodiment.action.groups[1]
    assert (group.unit, group.low, group.high) == ("rad", None, None)


def test_quaternions_of_deltas_have_a_positive_real_part_at_every_step():
    """The real part of orientations may change its sign along an episode, to keep them continuous."""
    robot = arm("quaternion_wxyz", "quaternion_wxyz")
    episode, _, _ = moving(robot)
    half = np.where(np.arange(T) % 2, 1.4, -1.4)  # turns there and back by 2.8 radians about z
    written, wanted = np.zeros((2, T, 4))
    written[:, 0], written[:, 3] = np.cos(half), np.sin(half)
    written[::3] *= -1  # the antipode is the same turn
    wanted[:, 3], wanted[:, 2] = np.cos(half), np.sin(half)
    actions, proprio = episode.actions.copy(), episode.proprio.copy()
    actions[:, 3:7] = proprio[:, 3:7] = written
    episode = dataclasses.replace(episode, actions=actions, proprio=proprio)
    new = Converted(InMemory([episode], robot), rotation="quaternion_xyzw")[0]
    np.testing.assert_allclose(part(new, "rotation"), wanted, atol=1e-6)
    signs = np.where(np.arange(T) % 2, -1, 1)[:, None]
    np.testing.assert_allclose(part(new, "rotation", "proprio"), signs * wanted, atol=1e-6)


def test_only_converted_groups_lose_their_declared_range():
    ends = {"low": -1, "high": 1}
    robot = dataclasses.replace(
        arm(),
        proprio=space(turn("euler", frame="base", **ends)),
        action=space(
            move(**ends),
            turn("euler", mode="delta", frame="tool", **ends),
            Group(name="joints", size=2, kind="joints", **ends),
            GRIPPER,
        ),
    )
    for options, kept in (
        ({"frame": "base"}, [True, False, False, True, True]),
        ({"rotation": "axis_angle"}, [False, True, False, True, True]),
        ({"rotation": "axis_angle", "frame": "base"}, [False, False, False, True, True]),
        ({"rotation": "euler", "frame": "tool"}, [True] * 5),
    ):
        new = Converted(InMemory([], robot), **options).embodiment
        groups = (*new.proprio.groups, *new.action.groups)
        assert [g.low is not None and g.high is not None for g in groups] == kept


@pytest.mark.parametrize(("source", "target"), [("tool", "base"), ("base", "tool")])
def test_only_deltas_change_their_frame(source, target):
    """Joints, grippers and absolute poses keep the frame that they declare."""
    robot = dataclasses.replace(
        arm(),
        action=space(
            move(frame=source),
            Group(name="goal", size=3, kind="position", frame=source),
            turn("euler", "pose", frame=source),
            Group(name="joints", size=2, kind="joints", mode="delta", frame=source),
        ),
    )
    episode, _, _ = moving(arm())
    actions = np.random.default_rng(1).uniform(-1, 1, (T, 11)).astype(np.float32)
    data = Converted(InMemory([dataclasses.replace(episode, embodiment=robot, actions=actions)], robot), frame=target)
    assert [g.frame for g in data.embodiment.action.groups] == [target, source, source, source]
    np.testing.assert_array_equal(data[0].actions[:, 3:], actions[:, 3:])
    assert np.abs(data[0].actions[:, :3] - actions[:, :3]).max() > 0.1
    np.testing.assert_array_equal(data[0].proprio, episode.proprio)


def test_angles_in_degrees_are_written_in_radians_and_read_in_degrees():
    robot = dataclasses.replace(arm(), proprio=space(turn("euler", frame="base", unit="deg")), action=space(move()))
    episode = demonstration(
        1,
        embodiment=robot,
        images={"corner": scene(1)},
        proprio=np.float32([[0, 0, 90]]),
        actions=np.eye(1, 3, dtype="f4"),
    )
    new = Converted(InMemory([episode], robot), rotation="axis_angle", frame="base")
    np.testing.assert_allclose(new[0].actions, [[0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(new[0].proprio, [[0, 0, np.pi / 2]], atol=1e-6)
    assert new.embodiment.proprio.groups[0].unit == "rad"


def test_two_arms_turn_by_their_own_orientation():
    sides = ("left", "right")
    robot = Embodiment(
        name="pair",
        cameras=("corner",),
        proprio=space(*(turn("euler", f"{s}_rotation", frame="base") for s in sides)),
        action=space(*(move(f"{s}_position") for s in sides)),
        control_hz=10,
    )
    proprio = np.zeros((1, 6), np.float32)
    proprio[0, 5] = np.pi / 2  # only the right one is turned
    episode = demonstration(
        1, embodiment=robot, images={"corner": scene(1)}, proprio=proprio, actions=np.float32([[1, 2, 3, 1, 2, 3]])
    )
    new = Converted(InMemory([episode], robot), frame="base")[0]
    np.testing.assert_allclose(new.actions, [[1, 2, 3, -2, 1, 3]], atol=1e-6)


def test_groups_that_match_already_need_no_declaration():
    robot = dataclasses.replace(arm("rot6d", "rot6d", "base"), proprio=space(Group(name="arm", size=8)))
    episode, _, _ = moving(arm("rot6d", "rot6d", "base"))
    episode = dataclasses.replace(episode, embodiment=robot, proprio=episode.proprio[:, :8])
    new = Converted(InMemory([episode], robot), rotation="rot6d", frame="base")
    assert new.embodiment == robot
    np.testing.assert_array_equal(new[0].actions, episode.actions)


def test_the_change_is_part_of_the_fingerprint_and_survives_pickling():
    robot = arm()
    data = InMemory([moving(robot)[0]], robot)
    views = [Converted(data, "rot6d"), Converted(data, "rot6d", "base"), Converted(data, "euler")]
    assert len({d.fingerprint for d in (data, *views)}) == 4
    assert views[1].provenance["changes"] == [{"rotation": "rot6d", "frame": "base"}]
    again = pickle.loads(pickle.dumps(views[1]))
    np.testing.assert_array_equal(again[0].actions, views[1][0].actions)
    assert (len(again), again.lengths.tolist(), again.task(0)) == (1, [T], data.task(0))


def without(robot, vector, name, **changes):
    groups = getattr(robot, vector).groups
    groups = tuple(dataclasses.replace(g, **changes) if g.name == name else g for g in groups)
    return dataclasses.replace(robot, **{vector: space(*groups)})


@pytest.mark.parametrize(
    ("robot", "options", "message"),
    [
        (
            without(arm(), "action", "rotation", rotation=None),
            {"rotation": "rot6d"},
            r"memory \(robot arm\), action group 'rotation': it is not known how its rotation is written; declare it "
            r"\(rotation: one of euler,",
        ),
        (
            without(arm(), "proprio", "rotation", rotation=None),
            {"rotation": "rot6d"},
            "proprio group 'rotation': it is not known how its rotation is written",
        ),
        (
            without(arm(), "action", "rotation", unit="rad/s"),
            {"rotation": "rot6d"},
            "action group 'rotation': the unit 'rad/s' is no angle",
        ),
        (
            without(arm(), "action", "position", frame=""),
            {"frame": "base"},
            "action group 'position': its frame is not known; declare it",
        ),
        (
            without(arm(), "proprio", "rotation", frame=""),
            {"frame": "base"},
            "'position': .* the proprio group 'rotation' does not declare its frame; declare it",
        ),
        (
            dataclasses.replace(arm(), proprio=space(GRIPPER)),
            {"frame": "base"},
            "needs the tool's orientation, one absolute rotation in the proprio of that arm; it has none",
        ),
    ],
)
def test_missing_declarations_are_named(robot, options, message):
    with pytest.raises(ValueError, match=message):
        Converted(InMemory([], robot), **options)


def test_a_step_that_is_no_rotation_is_refused():
    robot = arm()
    episode, _, _ = moving(robot)
    proprio = episode.proprio.copy()
    proprio[7, 3:7] = 0
    broken = dataclasses.replace(episode, proprio=proprio, provenance="file 3, episode 2")
    message = r"file 3, episode 2, proprio group 'rotation', row 7: \[0.0, 0.0, 0.0, 0.0\] is no rotation: a quaternion"
    with pytest.raises(ValueError, match=message):
        Converted(InMemory([broken], robot), "rot6d")[0]
