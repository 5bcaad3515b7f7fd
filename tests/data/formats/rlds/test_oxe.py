from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla.config import ConfigError, build
from anyvla.data.formats.rlds.oxe import ColumnGroup, OxeEntry, decode_integers, find_entry, load_entries
from anyvla.data.training.presets import presets
from anyvla.robot.shared_space import merge_spaces


def _entry(**changes: Any) -> OxeEntry:
    base = {
        "robot": "arm",
        "cameras": {"primary": "observation/image"},
        "action": [{"key": "action", "group": {"name": "position", "size": 3}}],
        "instruction": ["language_instruction"],
        "control_hz": 5,
    }
    return build(OxeEntry, base | changes)


def _actions(name: str, values: dict[str, np.ndarray], length: int) -> np.ndarray:
    """Return the actions. Keys that only the proprio needs are filled with zeros."""
    entry = load_entries()[name]
    widths = {p.key: 0 for p in entry.proprio}
    for p in entry.proprio:
        widths[p.key] = max(widths[p.key], (p.first if p.first >= 0 else 8) + p.columns)
    filled = {key: np.zeros((length, width), np.float32) for key, width in widths.items()}
    return entry.proprio_and_actions(filled | values, length)[1]


GROUP = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1}


def _step(step: str, values: list[float], **group: Any) -> list[float]:
    piece = build(ColumnGroup, {"key": "k", "steps": [step], "group": GROUP | group})
    return piece.read(np.array(values))[:, 0].tolist()


# --- the table ---


@pytest.mark.parametrize("name", list(load_entries()))
def test_columns_are_used_once_and_grippers_declare_their_open_end(name: str) -> None:
    entry = load_entries()[name]
    for pieces in (entry.action, entry.proprio):
        used = [(p.key, p.first + i) for p in pieces for i in range(p.columns)]
        assert len(set(used)) == len(used)
        for p in pieces:
            if p.group.kind == "gripper":
                assert p.group.open is not None
    assert {p.group.name for p in entry.action} >= {"gripper"} or name in ("berkeley_cable_routing", "language_table")


def test_every_data_set_of_a_mixture_has_an_entry_and_they_fit_into_one_layout() -> None:
    for members in presets().values():
        entries = {name: load_entries()[name] for name in members}
        action = merge_spaces({n: e.embodiment.action for n, e in entries.items()}, "action")
        merge_spaces({n: e.embodiment.proprio for n, e in entries.items()}, "proprio")
        assert [g.name for g in action.groups][:3] == ["position", "rotation", "gripper"]


def test_robots_have_different_names_and_aliases_are_not_ambiguous() -> None:
    robots = [e.robot for e in load_entries().values()]
    names = [*load_entries(), *(a for e in load_entries().values() for a in e.aliases)]
    assert len(set(robots)) == len(robots)
    assert len(set(names)) == len(names)


def test_names_aliases_and_unknown_names() -> None:
    assert find_entry("bridge_dataset") is find_entry("bridge_orig") is load_entries()["bridge_orig"]
    assert find_entry("bridge") is not find_entry("bridge_orig")
    assert find_entry("my_own_data") is None


def test_the_page_shows_the_table() -> None:
    root = Path(__file__).parents[4]
    command = [sys.executable, str(root / "tools" / "make_oxe_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- parity with the transforms of Octo and OpenVLA, written out by hand ---


def test_fractal_is_two_deltas_and_a_gripper_that_holds_its_last_event() -> None:
    rng = np.random.default_rng(0)
    move, turn = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    events = np.array([0, 1, 0, 0, -1, 0], np.float32)[:, None]  # close at step 1, open at step 4
    values = {
        "action/world_vector": move,
        "action/rotation_delta": turn,
        "action/gripper_closedness_action": events,
    }
    open_ = np.array([1, 0, 0, 0, 1, 1], np.float32)[:, None]
    for name in ("fractal20220817_data", "kuka", "berkeley_autolab_ur5"):
        np.testing.assert_array_equal(_actions(name, values, 6), np.concatenate([move, turn, open_], 1))


def test_bridge_actions_are_differences_of_reached_states() -> None:
    state = np.random.default_rng(1).normal(size=(6, 7)).astype(np.float32)
    action = np.full((6, 7), 9, np.float32)
    action[:, 6] = [0, 1, 0.5, 0.2, 0, 1]
    proprio, got = load_entries()["bridge_orig"].proprio_and_actions({"observation/state": state, "action": action}, 6)
    # steps 1 to 4: 1 is open; 0.5 and 0.2 move to the closed end at step 4
    want = np.concatenate([state[2:6, :6] - state[1:5, :6], [[1], [0], [0], [0]]], 1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(proprio, state[1:5])
    assert load_entries()["bridge_orig"].kept_steps(6) == slice(1, 5)


def test_viola_clips_closedness_and_keeps_its_polarity() -> None:
    move, turn = np.ones((3, 3), np.float32), 2 * np.ones((3, 3), np.float32)
    values = {
        "action/world_vector": move,
        "action/rotation_delta": turn,
        "action/gripper_closedness_action": np.array([-1, 0.25, 1], np.float32),  # one number per step
    }
    got = _actions("viola", values, 3)
    octo = 1 - got[:, 6]  # Octo inverts it, so that 1 is open; here the embodiment declares that 0 is open
    np.testing.assert_array_equal(octo, [1, 0.75, 0])
    assert load_entries()["viola"].embodiment.action.groups[2].open == 0


def test_furniture_bench_turns_its_quaternion_into_angles() -> None:
    half = np.sqrt(0.5)
    action = np.array([[1, 2, 3, half, 0, 0, half, -1], [1, 2, 3, 0, 0, half, half, 1]], np.float32)
    got = _actions("furniture_bench_dataset_converted_externally_to_rlds", {"action": action}, 2)
    quarter = np.pi / 2
    np.testing.assert_allclose(got, [[1, 2, 3, quarter, 0, 0, 0], [1, 2, 3, 0, 0, quarter, 1]], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "furniture_bench_dataset_converted_externally_to_rlds",
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    ],
)
def test_a_quaternion_that_turns_about_all_axes_becomes_its_angles(name: str) -> None:
    angles = np.array([[0.3, -0.5, 1.2], [-2.0, 1.1, 0.4]])
    action = np.concatenate([np.zeros((2, 3)), Rotation.from_euler("xyz", angles).as_quat(), np.zeros((2, 1))], 1)
    np.testing.assert_allclose(_actions(name, {"action": action}, 2)[:, 3:6], angles, atol=1e-6)


def test_nyu_play_takes_its_action_out_of_fifteen_columns() -> None:
    action = np.tile(np.arange(15, dtype=np.float32), (2, 1))
    got = _actions("nyu_franka_play_dataset_converted_externally_to_rlds", {"action": action}, 2)
    np.testing.assert_array_equal(got[0], [7, 8, 9, 10, 11, 12, 1])  # columns -8 to -3; 13 clipped to 1


def test_fanuc_uses_the_gripper_state_as_its_action() -> None:
    state = np.zeros((2, 13), np.float32)
    state[:, 6] = [0, 1]
    values = {"action": np.ones((2, 6), np.float32), "observation/state": state}
    np.testing.assert_array_equal(_actions("berkeley_fanuc_manipulation", values, 2)[:, 6], [0, 1])


def test_bc_z_takes_the_first_of_ten_coming_actions() -> None:
    coming = np.tile(np.arange(30, dtype=np.float32), (2, 1))
    values = {
        "action/future/xyz_residual": coming,
        "action/future/axis_angle_residual": coming + 100,
        "action/future/target_close": np.tile(np.arange(10), (2, 1)),  # integers
    }
    np.testing.assert_array_equal(_actions("bc_z", values, 2)[1], [0, 1, 2, 100, 101, 102, 0])


# --- steps ---


def test_events_hold_until_the_next_and_start_at_the_other_end_than_the_first() -> None:
    assert _step("events", [0, 0, 0.5, 0, -0.5, 0]) == [1, 1, 0, 0, 1, 1]
    assert _step("events", [0, -1, 0, 1]) == [0, 1, 1, 0]
    assert _step("events", [0.1, -0.1, 0]) == [1, 1, 1]  # too small to be events: always open


def test_binary_looks_ahead_and_keeps_an_undecided_end() -> None:
    assert _step("binary", [1, 0.5, 0, 0.5, 1]) == [1, 0, 0, 1, 1]
    assert _step("binary", [0, 0.5, 0.75]) == [0, 0.75, 0.75]


def test_clip_keeps_to_the_range_of_the_group() -> None:
    assert _step("clip", [-3, 0.5, 7], low=-1) == [-1, 0.5, 1]


def test_steps_are_applied_in_order() -> None:
    piece = build(ColumnGroup, {"key": "k", "steps": ["difference", "clip"], "group": GROUP})
    assert piece.read(np.array([0.0, 0.25, 3.0, -1.0]))[:, 0].tolist() == [0.25, 1, 0, 0]


def test_skipped_first_steps_have_no_effect() -> None:
    entry = _entry(skip_first_step=True, action=[{"key": "g", "steps": ["events"], "group": GROUP}])
    # the event at step 0 is skipped: the gripper was open until its first event, or always
    assert entry.proprio_and_actions({"g": np.array([1.0, 0, 1])}, 3)[1][:, 0].tolist() == [1, 0]
    assert entry.proprio_and_actions({"g": np.array([1.0, 0, 0])}, 3)[1][:, 0].tolist() == [1, 1]


def test_an_episode_without_kept_steps_is_empty() -> None:
    entry = _entry(skip_first_step=True, drop_last_step=True)
    for length in (0, 1, 2):
        assert entry.kept_steps(length) == slice(1, 1)
        if length:
            assert entry.proprio_and_actions({"action": np.zeros((length, 3))}, length)[1].shape == (0, 3)


def test_integers_are_the_bytes_of_an_instruction() -> None:
    padded = np.zeros(512, np.int32)
    padded[:8] = list("lös es!".encode())
    assert decode_integers(padded) == "lös es!"
    with pytest.raises(ValueError, match="the instruction is not UTF-8, a byte in each integer"):
        decode_integers(np.array([300, 5]))


# --- refusals ---


def test_data_that_contradicts_its_entry_is_refused() -> None:
    entry = _entry()
    with pytest.raises(ValueError, match="the key 'action' is missing; the episode has actions"):
        entry.proprio_and_actions({"actions": np.zeros((4, 3))}, 4)
    with pytest.raises(ValueError, match="action has 3 steps, the episode 4"):
        entry.proprio_and_actions({"action": np.zeros((3, 3))}, 4)
    with pytest.raises(
        ValueError, match="action has 2 columns, the group 'position' needs 3 from 0 on: the table describes another"
    ):
        entry.proprio_and_actions({"action": np.zeros((4, 2))}, 4)


def test_contradictory_entries_are_refused() -> None:
    group = {"name": "position", "size": 3}
    with pytest.raises(ConfigError, match="the last step has no difference: set drop_last_step"):
        _entry(action=[{"key": "s", "steps": ["difference"], "group": group}])
    with pytest.raises(ConfigError, match="action: 3 columns from -2 on exceed the end"):
        _entry(action=[{"key": "action", "first": -2, "group": group}])
    with pytest.raises(ConfigError, match="the step clip needs low and high of group 'position'"):
        _entry(action=[{"key": "action", "steps": ["clip"], "group": group}])
    with pytest.raises(ConfigError, match="the step euler needs a group with rotation: euler, not 'position'"):
        _entry(action=[{"key": "action", "steps": ["euler"], "group": group}])
    with pytest.raises(ConfigError, match="swapped: there is no camera wrist"):
        _entry(swapped=["wrist"])
    with pytest.raises(ConfigError, match="group names must differ"):
        _entry(action=[{"key": "a", "group": group}, {"key": "b", "group": group}])
