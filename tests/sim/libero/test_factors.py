"""Changes of LIBERO's scenes, and disturbances of its episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla_sim.factors import DISTURBANCES
from anyvla_sim.libero import benchmark as libero
from anyvla_sim.libero.benchmark import LiberoEnvironment
from anyvla_sim.libero.factors import FACTORS, LiberoDisturber
from tests.sim.libero.libero_state import draw, get_state

PLATE = "put_the_bowl_on_the_plate"
BOWL, UNDER = "akita_black_bowl_1", "plate_1"  # the objects of interest of its BDDL file, in order
LEVELS = [(factor, level) for factor, levels in FACTORS.items() for level in levels]
simulated = pytest.mark.simulator("libero")


@pytest.fixture
def world(libero_plate: LiberoEnvironment) -> LiberoEnvironment:
    return libero_plate


def get_position(world: LiberoEnvironment, name: str) -> np.ndarray:
    at = world.simulation.model.joint(f"{name}_joint0").qposadr[0]
    return np.array(world.simulation.data.qpos[at : at + 3])


def test_the_factors_are_those_of_the_docs() -> None:
    assert {factor: list(levels) for factor, levels in FACTORS.items()} == {
        "light": ["dim", "bright", "colored"],
        "texture": ["plain", "dark"],
        "camera": ["small", "large"],
        "distractor": ["one", "three"],
        "position": ["near", "far"],
    }
    assert tuple(DISTURBANCES) == ("push", "open")


@simulated
@pytest.mark.parametrize(("factor", "level"), LEVELS)
def test_a_factor_changes_its_part_of_the_scene_alone(world: LiberoEnvironment, factor: str, level: str) -> None:
    world.reset(PLATE, 7)
    plain, start = draw(world), get_state(world)
    world.reset(PLATE, 7, {factor: level})
    changed = draw(world)
    assert np.abs(changed - plain).mean() > 0.02
    assert np.array_equal(get_state(world), start) == (factor != "position")
    world.reset(PLATE, 7)  # without the factor, the scene is as before
    assert np.array_equal(draw(world), plain)
    assert np.array_equal(get_state(world), start)


@simulated
def test_light_texture_and_camera_change_by_their_level(
    world: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libero, "SETTLING", 0)
    world.reset(PLATE, 0)
    model = world.simulation.model
    light, camera = model.light_diffuse.copy(), model.cam_pos.copy()
    head = np.array(model.vis.headlight.ambient)
    for level, gain in (("dim", 0.4), ("bright", 1.8)):
        world.reset(PLATE, 0, {"light": level})
        assert model.light_diffuse == pytest.approx(np.clip(gain * light, 0, 1), abs=1e-6)
        assert np.array(model.vis.headlight.ambient) == pytest.approx(np.clip(gain * head, 0, 1), abs=1e-6)
    textured = np.flatnonzero(model.geom_matid >= 0)
    for level, color in (("plain", (0.6, 0.6, 0.58)), ("dark", (0.16, 0.17, 0.2))):
        world.reset(PLATE, 0, {"texture": level})
        bare = textured[model.geom_matid[textured] < 0]
        assert 0 < len(bare) < len(textured)
        assert model.geom_rgba[bare, :3] == pytest.approx(np.tile(color, (len(bare), 1)), abs=1e-6)
    moves = []
    for level, meters, seed in (("small", 0.02, 0), ("large", 0.06, 0), ("large", 0.06, 1)):
        world.reset(PLATE, seed, {"camera": level})
        moved = dict(zip((model.camera(i).name for i in range(model.ncam)), model.cam_pos - camera, strict=True))
        moves.append(moved.pop("agentview"))
        assert np.linalg.norm(moves[-1]) == pytest.approx(meters)
        assert not np.any(list(moved.values()))
    assert moves[1] == pytest.approx(3 * moves[0])
    assert np.linalg.norm(moves[2] - moves[1]) > 0.005


@simulated
@pytest.mark.parametrize(("level", "least", "most"), [("near", 0.005, 0.02), ("far", 0.02, 0.05)])
def test_the_objects_of_the_task_move_by_their_level(
    world: LiberoEnvironment, level: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libero, "SETTLING", 0)
    moves = []
    for seed in range(3):
        world.reset(PLATE, seed)
        before = {name: get_position(world, name) for name in (BOWL, UNDER, "wine_bottle_1")}
        world.reset(PLATE, seed, {"position": level})
        for name in (BOWL, UNDER):
            moved = get_position(world, name) - before[name]
            assert least <= np.linalg.norm(moved[:2]) <= most
            assert moved[2] == 0
            moves.append(tuple(moved.round(6)))
        assert np.array_equal(get_position(world, "wine_bottle_1"), before["wine_bottle_1"])
    assert len(set(moves)) == 6


@simulated
@pytest.mark.parametrize(("level", "count"), [("one", 1), ("three", 3)])
def test_distractors_keep_away_from_the_objects(
    world: LiberoEnvironment, level: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libero, "SETTLING", 0)
    found = set()
    for seed in range(4):
        world.reset(PLATE, seed, {"distractor": level})
        objects = np.array([get_position(world, name) for name in (BOWL, UNDER, "wine_bottle_1", "cream_cheese_1")])
        ornaments = world.simulation.factors.ornaments
        assert len(ornaments) == count
        for ornament in ornaments:
            assert np.linalg.norm(objects[:, :2] - ornament.position[:2], axis=1).min() > 0.08
            assert np.abs(np.array(ornament.position[:2]) - objects[:, :2].mean(0)).max() <= 0.35
            assert ornament.position[2] == pytest.approx(objects[:, 2].min() + ornament.size[2] - 0.01)
            found.add(ornament)
    assert len(found) == 4 * count


@simulated
def test_a_push_moves_the_first_object_of_the_task_by_4_to_6_cm(world: LiberoEnvironment) -> None:
    moves = []
    for seed in (5, 6):
        world.reset(PLATE, 3)
        data = world.simulation.data
        velocity = int(world.simulation.model.joint(f"{BOWL}_joint0").dofadr[0])
        data.qvel[velocity : velocity + 6] = 0.3
        before = {name: get_position(world, name) for name in (BOWL, UNDER)}
        assert world.disturb("push", seed)
        moves.append(get_position(world, BOWL) - before[BOWL])
        assert 0.04 <= np.linalg.norm(moves[-1][:2]) <= 0.06
        assert moves[-1][2] == 0
        assert np.array_equal(get_position(world, UNDER), before[UNDER])
        assert not data.qvel[velocity : velocity + 6].any()
    assert np.linalg.norm(moves[0] - moves[1]) > 0.001


@simulated
def test_a_fixed_object_cannot_be_pushed(libero_stove: LiberoEnvironment) -> None:
    libero_stove.reset("turn_on_the_stove", 0)
    assert not libero_stove.disturb("push", 0)


def test_a_knocked_gripper_stays_open_for_ten_actions() -> None:
    nothing: Any = None
    disturber, closing = LiberoDisturber(nothing, nothing, nothing), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])
    assert np.array_equal(disturber.alter(closing), closing)
    assert disturber.disturb("open", 0)
    for _ in range(10):
        assert disturber.alter(closing).tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -1.0]
    assert np.array_equal(disturber.alter(closing), closing)
    assert closing[6] == 1  # the policy's own array is unchanged


@simulated
def test_a_knocked_gripper_opens(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 3)
    closing = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    for _ in range(12):
        world.step(closing)
    closed = np.abs(world.observe().proprio[6:]).sum()
    assert world.disturb("open", 0)
    for _ in range(8):
        world.step(closing)
    assert np.abs(world.observe().proprio[6:]).sum() > closed + 0.02
    world.reset(PLATE, 3)
    world.step(closing)
    assert np.abs(world.simulation.env.robots[0].gripper.current_action).max() < 1  # it closes: undisturbed


@simulated
def test_unknown_disturbances(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 0)
    with pytest.raises(ValueError, match="libero has no disturbance 'pull': known: push, open"):
        world.disturb("pull", 0)
