"""The scripted expert of LIBERO, which turns the goal of a task into skills that use the privileged state.

It makes demonstrations where no data set is available. It meets the goal predicates of a task (BDDL) one by one:
objects are carried from above, drawers pulled by their handles and pushed shut, knobs turned, plates pushed. An action
depends on the current state and the phase of the skill alone, so noise on executed actions is corrected and a lost
object is grasped again.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from anyvla_sim.libero.fixtures import CloseDrawer, MoveJoint, PushObject
from anyvla_sim.libero.geometry import OPENING, SceneGeometry
from anyvla_sim.libero.motion import OPEN
from anyvla_sim.libero.skills import CarryObject, Skill

ORDER = ("open", "turnon", "turnoff", "on", "in", "close")  # predicates, in the order in which they are met
METHODS = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}  # of LIBERO's fixtures
FLAT = 0.03  # m; objects that are no higher, and too wide for the fingers, are pushed over the table
PULLED = 0.005  # m or rad that a joint moves beyond the point where it counts as open or on


class Expert:
    """Solves the task of a LIBERO environment."""

    def __init__(self, env: Any) -> None:
        """`env` is the robosuite environment (`BDDLBaseDomain`, one Panda under OSC_POSE) after reset and settling.

        Raises ValueError where no skill fits a predicate of the goal.
        """
        self._env = env
        self._scene = SceneGeometry(env)
        self._goals = sorted((list(g) for g in env.parsed_problem["goal_state"]), key=self._rank)
        for goal in self._goals:
            self._check(goal)
        self._skills: list[Skill] = []

    def action(self) -> np.ndarray:
        """Return the next action, float32 (7,), in [-1, 1]: translation, rotation, gripper. Rest once the goal holds.

        Raises ExpertStuck where an object cannot be grasped.
        """
        while self._skills and self._skills[0].done():
            self._skills.pop(0)
        if not self._skills:
            unmet = [goal for goal in self._goals if not self._env._eval_predicate(goal)]
            if not unmet:
                return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)
            self._skills = self._plan(unmet[0])
        return np.clip(self._skills[0].action(), -1, 1).astype(np.float32)

    def _rank(self, goal: Sequence[str]) -> int:
        if goal[0] not in ORDER:
            raise ValueError(f"no skill for the goal {tuple(goal)}: the predicates known are {', '.join(ORDER)}")
        return ORDER.index(goal[0])

    def _check(self, goal: Sequence[str]) -> None:
        """Raise ValueError if no skill can move the object of a goal."""
        if goal[0] in ("on", "in"):
            if goal[1] not in self._env.objects_dict:
                raise ValueError(f"no skill for the goal {tuple(goal)}: {goal[1]} is not a movable object")
            return
        joints = self._find_joints(goal[1])
        if len(joints) != 1:
            raise ValueError(f"no skill for the goal {tuple(goal)}: {goal[1]} has {len(joints)} joints")
        if goal[0] in ("open", "close") and not self._scene.joint(joints[0]).slides:
            raise ValueError(f"no skill for the goal {tuple(goal)}: {goal[1]} turns on a hinge; drawers are known")

    def _find_joints(self, name: str) -> list[str]:
        part = self._env.object_sites_dict.get(name)
        return list((part if part is not None else self._env.get_object(name)).joints or [])

    def _plan(self, goal: Sequence[str]) -> list[Skill]:
        if goal[0] not in ("on", "in"):
            return [self._move_joint_to(goal[0], goal[1])]
        item, target = goal[1], goal[2]
        if target in self._env.object_sites_dict:
            site = self._env.object_sites_dict[target]
            if site.joints and not self._env.object_states_dict[target].is_open():
                return [self._move_joint_to("open", target), CarryObject(self._scene, item, target)]
            if site.parent_name is None and self._is_flat(item):
                return [PushObject(self._scene, item, target)]
        return [CarryObject(self._scene, item, target)]

    def _is_flat(self, item: str) -> bool:
        """Return whether an object is flat (an edge may rest on something) and too wide for the fingers."""
        _, rotation = self._scene.pose(item)
        extent = np.ptp(self._scene.points(self._scene.body_ids(item)) @ rotation, axis=0)  # along its own axes
        up = int(np.argmax(np.abs(rotation[2])))
        return bool(extent[up] < FLAT and np.delete(extent, up).min() > OPENING)

    def _move_joint_to(self, predicate: str, name: str) -> Skill:
        """Return the skill that makes `predicate` hold for a drawer or knob."""
        site = self._env.object_sites_dict.get(name)
        fixture = self._env.get_object(site.parent_name if site is not None else name)
        (joint,) = self._find_joints(name)
        holds = getattr(fixture, METHODS[predicate])
        low, high = self._env.sim.model._model.joint(joint).range
        sign = 1.0 if holds(high) and not holds(low) else -1.0

        def there() -> bool:
            value = self._scene.joint(joint).value
            beyond = np.clip(value - sign * PULLED, low, high) if predicate != "close" else value
            return bool(holds(beyond))

        skill = CloseDrawer if predicate == "close" else MoveJoint
        return skill(self._scene, joint, sign, there)
