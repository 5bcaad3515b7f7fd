"""Known faults of proprio and of actions: units, order, polarity, normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, permutations
from math import pi

import numpy as np
import torch
from jaxtyping import Float32

from anyvla.doctor.faults.base import Fault
from anyvla.policy import VLA
from anyvla.robot.normalize import Normalizer
from anyvla.robot.rotations import convert
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group, Rotation

Change = Callable[[np.ndarray], np.ndarray]  # of (..., dims) values

_MOST_PERMUTED = 4  # groups; of more, pairs are swapped
_ANGLES = {"sent in degrees instead of radians": 180 / pi, "sent in radians instead of degrees": pi / 180}
_LENGTHS = {
    "sent in millimeters instead of meters": 1000.0,
    "sent in centimeters instead of meters": 100.0,
    "sent in meters instead of millimeters": 1 / 1000,
    "sent in meters instead of centimeters": 1 / 100,
}
_PLAIN = {f"multiplied by {factor:g}": factor for factor in (0.1, 0.5, 2.0, 10.0)}
_FIX_PROPRIO = "Correct the proprio in the client or in the mapping."
_FIX_ACTIONS = "Correct the conversion of actions behind the policy."


def list_proprio_faults(vla: VLA, robot: int) -> Iterator[Fault]:
    """Yield the faults of the proprio of a robot of the policy."""
    space = vla.robots[robot].embodiment.proprio
    if not space.size:
        return
    yield Fault("proprio missing (zeros)", "proprio", "Send the proprio.", proprio=(np.zeros_like,))
    for name, change in _list_changes(space):
        yield Fault(f"proprio {name}", "proprio", _FIX_PROPRIO, proprio=(change,))
    for group, name, change in _list_gripper_changes(space):
        yield Fault(f"proprio {group} {name}", "gripper", _FIX_PROPRIO, proprio=(change,))
    normalize, _ = _conversions(vla.proprio_normalizer, robot, vla.layout.robots[vla.layout.names[robot]].proprio)
    yield Fault(
        "proprio normalized twice", "proprio", "Send proprio in the robot's units: the policy normalizes.",
        proprio=(normalize,),
    )  # fmt: skip


def list_action_faults(vla: VLA, robot: int) -> Iterator[Fault]:
    """Yield the faults of the actions of a robot behind the policy; more likely ones of the same effect come first."""
    space = vla.robots[robot].embodiment.action
    for name, label, change in _list_gripper_changes(space):
        yield Fault(f"actions: {name} {label}", "gripper", _FIX_ACTIONS, chunks=(change,))
    fix = "Execute each action at the step that it was predicted for: the first at once."
    yield Fault(
        "the first action of each chunk is dropped", "actions", fix,
        chunks=(lambda c: np.concatenate([c[:, 1:], c[:, -1:]], 1),),
    )  # fmt: skip
    yield Fault(
        "the first action of each chunk is repeated, the others a step late", "actions", fix,
        chunks=(lambda c: np.concatenate([c[:, :1], c[:, :-1]], 1),),
    )  # fmt: skip
    yield Fault(
        "actions clipped to [-1, 1]", "actions", "Remove the clipping, or clip to the robot's limits.",
        chunks=(lambda c: np.clip(c, -1, 1),),
    )  # fmt: skip
    for name, change in _list_changes(space):
        yield Fault(f"actions: {name}", "actions", _FIX_ACTIONS, chunks=(change,))
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        for dim in range(place.start, place.stop) if group.kind != "gripper" else ():
            yield Fault(
                f"actions: {group.name} dim {group.label(dim - place.start)} with the opposite sign",
                "actions",
                _FIX_ACTIONS,
                chunks=(_at(slice(dim, dim + 1), np.negative),),
            )
    normalize, denormalize = _conversions(
        vla.action_normalizer, robot, vla.layout.robots[vla.layout.names[robot]].action
    )
    fix = "Un-normalize actions exactly once: the policy returns them in the robot's units."
    yield Fault("actions not un-normalized", "actions", fix, chunks=(normalize,))
    yield Fault("actions un-normalized twice", "actions", fix, chunks=(denormalize,))


def _list_changes(space: ActionSpace) -> Iterator[tuple[str, Change]]:
    """Yield wrong units, wrong rotations and wrong orders."""
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        for name, factor in _factors(group).items():
            yield f"{group.name} {name}", _at(place, partial(np.multiply, np.float32(factor)))
        if group.kind == "rotation":
            yield from ((f"{group.name} {name}", _at(place, change)) for name, change in _rotations(group).items())
        elif group.size > 1:
            yield f"{group.name} in the opposite order", _at(place, lambda x: x[..., ::-1])
    names = [group.name for group in space.groups]
    for order in _orders(names):
        dims = np.concatenate([np.arange(space.size)[space.slices()[name]] for name in order])
        yield f"groups in the order {', '.join(order)}", partial(np.take, indices=dims, axis=-1)


def _factors(group: Group) -> dict[str, float]:
    if group.kind == "gripper":
        return {}
    angles = _ANGLES if group.kind in ("rotation", "joints", "other") and _is_angle(group) else {}
    lengths = _LENGTHS if group.kind in ("position", "other") else {}
    return {**angles, **lengths, **_PLAIN}


def _is_angle(group: Group) -> bool:
    return group.rotation in (None, "euler", "axis_angle")


def _rotations(group: Group) -> dict[str, Change]:
    """Return other ways of writing a rotation in as many numbers."""
    if group.rotation in ("quaternion_xyzw", "quaternion_wxyz"):
        shift = -1 if group.rotation == "quaternion_wxyz" else 1
        other = "x, y, z, w" if group.rotation == "quaternion_wxyz" else "w, x, y, z"
        return {
            f"as a quaternion {other}": lambda x: np.roll(x, shift, -1),
            "as a quaternion of the opposite sign": np.negative,
        }
    source = group.rotation
    if source is None or ROTATION_DIMS[source] != 3 or group.unit not in ("", "rad"):
        return {"in the opposite order": lambda x: x[..., ::-1]}
    target: Rotation = "axis_angle" if source == "euler" else "euler"
    return {
        f"written as {target} instead of {source}": partial(_convert_rotation, source=source, target=target),
        "in the opposite order": lambda x: x[..., ::-1],
    }


def _convert_rotation(values: np.ndarray, source: Rotation, target: Rotation) -> np.ndarray:
    return convert(values, source, target).astype(np.float32)


def _list_gripper_changes(space: ActionSpace) -> Iterator[tuple[str, str, Change]]:
    """Yield the name of a gripper, a fault and its change: the opposite polarity, and other ranges."""
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind != "gripper" or group.low is None or group.high is None:
            continue
        low, high = group.low, group.high
        yield group.name, "with the opposite polarity", _at(place, partial(np.subtract, np.float32(low + high)))
        for bottom, top in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 100.0), (1.0, 0.0), (1.0, -1.0)):
            if {bottom, top} == {low, high}:
                continue
            change = partial(_rescale, source=(low, high), target=(bottom, top))
            yield group.name, f"{bottom:g}..{top:g} instead of {low:g}..{high:g}", _at(place, change)


def _rescale(values: np.ndarray, source: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
    share = (values - source[0]) / (source[1] - source[0])
    return target[0] + share * (target[1] - target[0])


def _orders(names: list[str]) -> Iterator[tuple[str, ...]]:
    if len(names) <= _MOST_PERMUTED:
        yield from (order for order in permutations(names) if list(order) != names)
        return
    for a, b in combinations(range(len(names)), 2):
        order = list(names)
        order[a], order[b] = order[b], order[a]
        yield tuple(order)


def _at(place: slice, change: Change) -> Change:
    """Return a change of some dims only."""

    def apply(values: np.ndarray) -> np.ndarray:
        out = np.array(values, np.float32)
        out[..., place] = change(out[..., place])
        return out

    return apply


def _conversions(normalizer: Normalizer, robot: int, dims: np.ndarray) -> tuple[Change, Change]:
    """Return functions from a robot's units to those of the model, and back."""

    def convert_with(to: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Change:
        def apply(values: Float32[np.ndarray, "*b d"]) -> Float32[np.ndarray, "*b d"]:
            whole = torch.zeros(
                values.size // values.shape[-1], normalizer.scale.shape[1], device=normalizer.scale.device
            )
            whole[:, dims] = torch.from_numpy(np.array(values)).reshape(-1, values.shape[-1]).to(whole)
            rows = torch.full((len(whole),), robot, device=whole.device)
            return to(whole, rows)[:, dims].reshape(values.shape).float().cpu().numpy()

        return apply

    return convert_with(normalizer.normalize), convert_with(normalizer.denormalize)
