from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyvla_sim.libero import expert as libero_expert
from anyvla_sim.libero.benchmark import FIRST_SAMPLED_SEED, LiberoEnvironment
from anyvla_sim.libero.expert import Expert

simulated = pytest.mark.simulator("libero")


def reaches_its_goal_and_no_other(world: LiberoEnvironment, task: str, noise: float) -> None:
    rng = np.random.default_rng(0)
    reached: dict[str, bool] = {}
    for _ in range(300):
        action = world.expert(task)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        reached = world.step(action + noise * rng.normal(size=7))
        if any(reached.values()):
            break
    assert [name for name, holds in reached.items() if holds] == [task]


@simulated
def test_the_expert_turns_on_the_stove_and_reaches_no_other_goal(libero_stove: LiberoEnvironment) -> None:
    libero_stove.reset("turn_on_the_stove", 0)
    reaches_its_goal_and_no_other(libero_stove, "turn_on_the_stove", 0.0)


@simulated
def test_the_expert_carries_the_bowl_though_its_actions_are_noisy(libero_plate: LiberoEnvironment) -> None:
    libero_plate.reset("put_the_bowl_on_the_plate", FIRST_SAMPLED_SEED + 1)
    reaches_its_goal_and_no_other(libero_plate, "put_the_bowl_on_the_plate", 0.1)


@simulated
def test_each_episode_has_its_own_expert(libero_plate: LiberoEnvironment) -> None:
    experts = []
    for _ in range(2):
        libero_plate.reset("put_the_bowl_on_the_plate", 0)
        libero_plate.expert("put_the_bowl_on_the_plate")
        experts.append(libero_plate._expert)
        libero_plate.expert("put_the_bowl_on_the_plate")
        assert libero_plate._expert is experts[-1]  # it keeps its phase within an episode
    assert experts[0] is not experts[1]


@simulated
def test_the_expert_of_another_task_is_refused(libero_stove: LiberoEnvironment) -> None:
    libero_stove.reset("turn_on_the_stove", 0)
    with pytest.raises(ValueError, match="reset to 'open_the_middle_drawer_of_the_cabinet' before asking"):
        libero_stove.expert("open_the_middle_drawer_of_the_cabinet")


@simulated
@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (["dance", "plate_1"], r"no skill for the goal \('dance', 'plate_1'\): the predicates known are open, turnon"),
        (["on", "wooden_cabinet_1", "plate_1"], "wooden_cabinet_1 is not a movable object"),
        (["open", "plate_1"], "plate_1 has [06] joints|plate_1 turns on a hinge"),
    ],
)
def test_goals_without_a_skill(libero_stove: LiberoEnvironment, predicate: list[str], message: str) -> None:
    libero_stove.reset("turn_on_the_stove", 0)
    problem = libero_stove.simulation.env.parsed_problem
    kept = problem["goal_state"]
    problem["goal_state"] = [predicate]
    try:
        with pytest.raises(ValueError, match=message):
            Expert(libero_stove.simulation.env)
    finally:
        problem["goal_state"] = kept


class Drawer:
    """Is open below -0.1 and closed above -0.02, like LIBERO's wooden cabinet; its joint ranges from -0.16 to 0.01."""

    joints = ("drawer_joint",)
    parent_name = "cabinet"

    def is_open(self, position: float) -> bool:
        return position < -0.1

    def is_close(self, position: float) -> bool:
        return position > -0.02

    def turn_on(self, position: float) -> bool:
        return position > 0.5

    def turn_off(self, position: float) -> bool:
        return position < 0.1


class Still:
    """A scene with one joint, whose value a test sets."""

    def __init__(self, env: Any) -> None:
        self.value = 0.0

    def joint(self, name: str) -> Any:
        return SimpleNamespace(slides=True, value=self.value)


def make_expert(goal_state: list[list[str]], met: set[str], monkeypatch: pytest.MonkeyPatch) -> Expert:
    monkeypatch.setattr(libero_expert, "SceneGeometry", Still)
    model = SimpleNamespace(joint=lambda name: SimpleNamespace(range=np.array([-0.16, 0.01])))
    env = SimpleNamespace(
        parsed_problem={"goal_state": goal_state},
        objects_dict={"bowl": None, "cup": None},
        object_sites_dict={"drawer": Drawer(), "plate_region": None},
        get_object=lambda name: Drawer(),
        sim=SimpleNamespace(model=SimpleNamespace(_model=model)),
        _eval_predicate=lambda goal: goal[0] in met,
    )
    return Expert(env)


def test_predicates_are_met_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are put into a drawer after it is opened and before it is closed."""
    goals = [["close", "drawer"], ["in", "bowl", "drawer"], ["open", "drawer"], ["on", "cup", "plate_region"]]
    planned: list[str] = []
    met: set[str] = set()
    expert = make_expert(goals, met, monkeypatch)

    def plan(self: Expert, goal: list[str]) -> list[Any]:
        planned.append(goal[0])
        met.add(goal[0])
        return [SimpleNamespace(done=lambda: True, action=lambda: 3 * np.ones(7))]

    monkeypatch.setattr(Expert, "_plan", plan)
    for _ in goals:
        assert expert.action().tolist() == [1] * 7  # clipped to the environment's limits
    assert planned == ["open", "on", "in", "close"]
    assert expert.action().tolist() == [0, 0, 0, 0, 0, 0, -1]  # at rest, open, where all goals hold


@pytest.mark.parametrize(
    ("predicate", "sign", "before", "there"),
    [("open", -1.0, -0.104, -0.106), ("close", 1.0, -0.021, -0.019)],
)
def test_a_drawer_is_moved_until_its_predicate_holds_for_good(
    predicate: str, sign: float, before: float, there: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An opened drawer may slide back by 5 mm, so it is pulled that much beyond the point where it counts as open."""
    made: dict[str, Any] = {}
    for skill in ("MoveJoint", "CloseDrawer"):
        monkeypatch.setattr(libero_expert, skill, lambda *given, skill=skill: made.update({skill: given}))
    expert = make_expert([[predicate, "drawer"]], set(), monkeypatch)
    expert._move_joint_to(predicate, "drawer")
    (skill, (scene, joint, direction, holds)) = next(iter(made.items()))
    assert (skill, joint, direction) == ("MoveJoint" if predicate == "open" else "CloseDrawer", "drawer_joint", sign)
    scene.value = before
    assert not holds()
    scene.value = there
    assert holds()
