"""Changes of Meta-World's scenes, and disturbances of its episodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from anyvla_sim.factors import DISTURBANCES
from anyvla_sim.metaworld.benchmark import MetaWorld
from anyvla_sim.metaworld.environment import MetaWorldEnvironment
from anyvla_sim.metaworld.factors import FACTORS

pytestmark = pytest.mark.simulator("metaworld")

LEVELS = [(factor, level) for factor, levels in FACTORS.items() for level in levels]


@pytest.fixture(scope="module")
def stock() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make("mt10")
    benchmark.close()


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorldEnvironment]:
    benchmark = MetaWorld("fast")
    yield benchmark.make("half-open")
    benchmark.close()


def get_state(world: MetaWorldEnvironment) -> np.ndarray:
    """Return the state and the position of the goal."""
    sim = world.simulation.sim
    return np.concatenate([sim.data.qpos, sim.data.qvel, sim.data.mocap_pos.ravel(), sim._last_rand_vec])


def test_the_factors_are_those_of_the_docs() -> None:
    assert {factor: list(levels) for factor, levels in FACTORS.items()} == {
        "light": ["dim", "bright", "colored"],
        "texture": ["plain", "dark", "tiles"],
        "camera": ["small", "large"],
        "distractor": ["one", "three"],
        "position": ["near", "far"],
    }
    assert tuple(DISTURBANCES) == ("push", "open")


@pytest.mark.parametrize(("factor", "level"), LEVELS)
def test_a_factor_changes_its_part_of_the_scene_alone(stock: MetaWorldEnvironment, factor: str, level: str) -> None:
    stock.reset("push", 7)
    plain, start = stock.observe(), get_state(stock)
    stock.reset("push", 7, {factor: level})
    changed, other = stock.observe(), get_state(stock)
    assert np.abs(changed.images["corner"].astype(int) - plain.images["corner"]).mean() > 0.05
    assert np.array_equal(other, start) == (factor != "position")
    stock.reset("push", 7, {factor: level})
    assert np.array_equal(stock.observe().images["corner"], changed.images["corner"])
    stock.reset("push", 7)  # without the factor, the scene is as before
    assert np.array_equal(stock.observe().images["corner"], plain.images["corner"])
    assert np.array_equal(get_state(stock), start)


@pytest.mark.parametrize("factor", ["camera", "distractor", "position"])
def test_chance_of_a_factor_follows_from_the_seed(stock: MetaWorldEnvironment, factor: str) -> None:
    level = FACTORS[factor][-1]

    def drawn(seed: int, **others: str) -> str:
        stock.reset("push", seed, {factor: level, **others})
        sim = stock.simulation.sim
        return repr({
            "camera": sim.model.cam_pos.tolist(),
            "distractor": stock.simulation.factors.ornaments,
            "position": (sim._random_reset_space.low.tolist(), sim._random_reset_space.high.tolist()),
        }[factor])  # fmt: skip

    seeds = [drawn(seed) for seed in (1, 2, 3, 4, 5, 6)]
    assert len(set(seeds)) >= 4
    assert drawn(1) == seeds[0]
    assert drawn(1, light="colored", texture="dark") == seeds[0]  # other factors do not affect it


def test_light_is_scaled_by_its_level(stock: MetaWorldEnvironment) -> None:
    stock.reset("push", 3)
    model = stock.simulation.sim.model
    fields = ("light_diffuse", "light_ambient", "light_specular")
    plain = {field: getattr(model, field).copy() for field in fields}
    head = {field: np.array(getattr(model.vis.headlight, field)) for field in ("ambient", "diffuse")}
    for level, gain in (("dim", 0.4), ("bright", 1.8)):
        stock.reset("push", 3, {"light": level})
        for field in fields:
            assert np.allclose(getattr(model, field), np.clip(gain * plain[field], 0, 1))
        for field, value in head.items():
            assert np.allclose(getattr(model.vis.headlight, field), np.clip(gain * value, 0, 1))
    stock.reset("push", 3, {"light": "colored"})
    lit = plain["light_diffuse"].min(1) > 0
    ratio = model.light_diffuse[lit][0] / plain["light_diffuse"][lit][0]
    assert sorted(ratio) == pytest.approx([0.45, 0.75, 1.0], abs=1e-6)


def test_tables_have_the_colors_of_their_level(stock: MetaWorldEnvironment) -> None:
    stock.reset("push", 3)
    model = stock.simulation.sim.model
    boards = np.flatnonzero(model.geom_matid == model.material("table_wood").id)
    others = np.setdiff1d(np.arange(model.ngeom), boards)
    plain = model.geom_matid.copy()
    for level, color in (("plain", (0.45, 0.45, 0.43)), ("dark", (0.1, 0.11, 0.14))):
        stock.reset("push", 3, {"texture": level})
        assert set(model.geom_matid[boards]) == {-1}
        assert model.geom_rgba[boards, :3] == pytest.approx(np.tile(color, (len(boards), 1)), abs=1e-6)
        assert np.array_equal(model.geom_matid[others], plain[others])
    stock.reset("push", 3, {"texture": "tiles"})
    assert set(model.geom_matid[boards]) == {model.material("basic_floor").id}


@pytest.mark.parametrize(("level", "meters"), [("small", 0.02), ("large", 0.06)])
def test_fixed_cameras_move_by_their_level(stock: MetaWorldEnvironment, level: str, meters: float) -> None:
    stock.reset("push", 3)
    model = stock.simulation.sim.model
    before = model.cam_pos.copy()
    stock.reset("push", 3, {"camera": level})
    moved = dict(zip((model.camera(i).name for i in range(model.ncam)), model.cam_pos - before, strict=True))
    for name in ("gripperPOV", "behindGripper"):  # they travel with the hand
        assert not moved.pop(name).any()
    assert np.linalg.norm(list(moved.values()), axis=1) == pytest.approx(meters)
    assert np.linalg.norm(np.diff(list(moved.values()), axis=0), axis=1).min() > 0.001  # each in its own direction


@pytest.mark.parametrize(("level", "count"), [("one", 1), ("three", 3)])
def test_distractors_are_on_the_table_beside_its_middle(stock: MetaWorldEnvironment, level: str, count: int) -> None:
    for seed in range(8):
        stock.reset("push", seed, {"distractor": level})
        ornaments = stock.simulation.factors.ornaments
        assert len(ornaments) == count
        for ornament in ornaments:
            x, y, z = ornament.position
            assert 0.2 <= abs(x) <= 0.35
            assert 0.45 <= y <= 0.9
            assert z == ornament.size[2]  # half its height: it touches the table at 0
            assert all(0.015 <= half <= 0.03 for half in ornament.size)


@pytest.mark.parametrize(("level", "least", "most"), [("near", 0.0, 0.02), ("far", 0.02, 0.05)])
def test_positions_are_beyond_their_range(stock: MetaWorldEnvironment, level: str, least: float, most: float) -> None:
    sides = set()
    stock.reset("push", 0)
    space = stock.simulation.sim._random_reset_space
    for seed in range(20):
        stock.reset("push", seed, {"position": level})
        below, above = space.low - stock.simulation.sim._last_rand_vec, stock.simulation.sim._last_rand_vec - space.high
        beyond = np.maximum(below, above)
        assert least - 1e-6 <= beyond.max() <= most + 1e-6
        assert (beyond > 1e-6).sum() <= 1  # one coordinate, a horizontal one
        assert int(beyond.argmax()) % 3 < 2
        sides.add((int(beyond.argmax()), bool(below.max() > above.max())))
    assert len(sides) >= 3


def test_unknown_factors(stock: MetaWorldEnvironment) -> None:
    with pytest.raises(ValueError, match="metaworld has no factor 'ligth': did you mean 'light'"):
        stock.reset("push", 0, {"ligth": "dim"})
    with pytest.raises(ValueError, match="the factor light has no level 'dimm': did you mean 'dim'"):
        stock.reset("push", 0, {"light": "dimm"})
    stock.reset("push", 0)
    with pytest.raises(ValueError, match="metaworld has no disturbance 'pull': known: push, open"):
        stock.disturb("pull", 0)


def test_a_pushed_object_moves_4_to_6_cm_in_a_direction_of_the_seed_and_comes_to_rest(
    stock: MetaWorldEnvironment,
) -> None:
    moves = []
    for seed in range(6):
        stock.reset("push", 3)
        sim = stock.simulation.sim
        joint = next(sim.model.joint(i) for i in range(sim.model.njnt) if len(sim.model.joint(i).qpos0) == 7)
        at, dof = int(joint.qposadr[0]), int(joint.dofadr[0])
        sim.data.qvel[dof : dof + 6] = 0.3
        before = sim.data.qpos.copy()
        assert stock.disturb("push", seed)
        moved = sim.data.qpos - before
        assert not np.delete(moved, [at, at + 1]).any()
        assert not sim.data.qvel[dof : dof + 6].any()
        moves.append(moved[at : at + 2])
    lengths = np.linalg.norm(moves, axis=1)
    assert lengths.min() >= 0.04
    assert lengths.max() <= 0.06
    assert len(np.unique(np.round(moves, 6), axis=0)) == 6
    assert np.min(moves) < -0.02
    assert np.max(moves) > 0.02


def test_the_expert_sees_at_once_that_its_object_was_pushed(stock: MetaWorldEnvironment) -> None:
    stock.reset("push", 3)
    before = stock.expert("push")
    stock.disturb("push", 5)
    assert not np.array_equal(stock.expert("push"), before)


def test_a_pushed_drawer_goes_back_to_its_start(world: MetaWorldEnvironment) -> None:
    world.reset("drawer-open", 3)
    opened = world.simulation.opened()
    assert not world.disturb("push", 5)  # the drawer is where it started
    for _ in range(50):
        if any(world.step(world.expert("drawer-open")).values()):
            break
    joint = world.simulation.sim.data.joint("goal_slidey")
    assert world.disturb("push", 5)
    assert world.simulation.opened() == pytest.approx(opened)
    assert joint.qvel == 0
    assert not any(world.goals().values())


def test_a_knocked_gripper_opens_for_six_actions(stock: MetaWorldEnvironment) -> None:
    stock.reset("pick-place", 3)
    closing, ctrl = np.array([0, 0, 0, 1], np.float32), []
    for _ in range(20):
        stock.step(closing)
    closed = stock.observe().proprio[3]
    assert stock.disturb("open", 0)
    for _ in range(8):
        stock.step(closing)
        ctrl.append(stock.simulation.sim.data.ctrl[0])
    assert ctrl == [-1] * 6 + [1] * 2
    assert stock.observe().proprio[3] > closed + 0.2
    for _ in range(20):
        stock.step(closing)
    assert stock.observe().proprio[3] == pytest.approx(closed, abs=0.02)
    stock.disturb("open", 0)
    stock.reset("pick-place", 3)
    stock.step(closing)
    assert stock.simulation.sim.data.ctrl[0] == 1  # the next episode begins undisturbed
