"""Derives the embodiment of robomimic's and LIBERO's files, as far as the files declare it.

Both are recorded in robosuite. Its OSC controllers take actions in -1 .. 1, where 1 is the controller's `output_max`
(0.05 m, 0.5 rad by default). A rotation is axis-angle along the axes of the base, and the gripper is -1 open, 1 closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group

LIBERO_PROPRIO = ("ee_states", "gripper_states")
ROBOMIMIC_PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")

_FINGERS = Group(name="fingers", size=2, kind="joints", unit="m")
_POSITION = Group(name="position", size=3, kind="position", unit="m", frame="base")
_AXIS_ANGLE = Group(name="rotation", size=3, kind="rotation", rotation="axis_angle", unit="rad", frame="base")
_QUATERNION = Group(name="rotation", size=4, kind="rotation", rotation="quaternion_xyzw", frame="base")
_KNOWN_GROUPS = {  # observation -> groups
    "ee_states": (_POSITION, _AXIS_ANGLE),
    "ee_pos": (_POSITION,),
    "ee_ori": (_AXIS_ANGLE,),
    "gripper_states": (_FINGERS,),
    "joint_states": (Group(name="joints", size=7, kind="joints", unit="rad"),),
    "robot0_eef_pos": (_POSITION,),
    "robot0_eef_quat": (_QUATERNION,),
    "robot0_gripper_qpos": (_FINGERS,),
    "robot0_joint_pos": (Group(name="joints", size=7, kind="joints", unit="rad"),),
}


def known_embodiment(
    env: Mapping[str, Any], libero: bool, cameras: Sequence[str], proprio: Sequence[str], sizes: Mapping[str, int]
) -> Embodiment | None:
    """Return the robot if all of its numbers are known, else None.

    `env` is the attribute `env_args`, {} if the file has none. `sizes` has the dims of every observation and of
    "actions".
    """
    kwargs = env.get("env_kwargs", {})
    robots = kwargs.get("robots", ["Panda"] if libero else [])
    robots = [robots] if isinstance(robots, str) else list(robots)
    action = _action(kwargs, libero)
    groups = [g for key in proprio for g in _KNOWN_GROUPS.get(key, ())]
    matching = all(
        key in _KNOWN_GROUPS and sum(g.size for g in _KNOWN_GROUPS[key]) == sizes.get(key) for key in proprio
    )
    if len(robots) != 1 or action is None or action.size != sizes["actions"] or not matching:
        return None
    arm = robots[0].removeprefix("Mounted").removeprefix("OnTheGround").lower()
    return Embodiment(
        name=f"{'libero' if libero else 'robosuite'}_{arm}",
        cameras=tuple(cameras),
        proprio=ActionSpace(groups=tuple(groups)),
        action=action,
        control_hz=float(kwargs.get("control_freq", 20)),
    )


def _action(kwargs: Mapping[str, Any], libero: bool) -> ActionSpace | None:
    controller = kwargs.get("controller_configs") or ({"type": "OSC_POSE"} if libero else {})
    controller = controller.get("body_parts", {}).get("right", controller)  # robosuite 1.5: one for each body part
    kind, limits = controller.get("type"), controller.get("output_max", [0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
    delta = controller.get("control_delta", True) and controller.get("input_type", "delta") == "delta"
    frame = controller.get("input_ref_frame", "base")
    if kind not in ("OSC_POSE", "OSC_POSITION") or not delta or frame not in ("base", "world"):
        return None
    limits = list(limits) if isinstance(limits, Sequence) else [limits] * 6
    groups = [_move("position", limits[:3], "m")]
    if kind == "OSC_POSE":
        groups.append(_move("rotation", limits[3:6], "rad"))
    if None in groups:
        return None
    gripper = Group(name="gripper", size=1, kind="gripper", low=-1, high=1, open=-1)
    return ActionSpace(groups=(*(g for g in groups if g is not None), gripper))


def _move(name: str, limits: Sequence[float], unit: str) -> Group | None:
    if len(set(limits)) != 1:
        return None  # the axes differ in unit
    more: dict[str, Any] = {"rotation": "axis_angle"} if name == "rotation" else {}
    more |= {"name": name, "kind": name, "unit": f"{limits[0]:g} {unit}"}
    return Group(size=3, mode="delta", low=-1, high=1, frame="base", **more)
