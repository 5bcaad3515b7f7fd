"""Finds steps of episodes that are too large, and ends of episodes without motion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.statistics import spread_evenly
from anyvla.data.tools.findings import Finding
from anyvla.data.tools.measured import read_or_none
from anyvla.robot.ranges import PRECISION, constant_dims
from anyvla.robot.rotations import read_rotations
from anyvla.robot.space import ActionSpace

_JUMP = 12.0  # a step this many times the 99th percentile of the data set's moving steps is a jump
IDLE = 15  # more still steps at an end are cut, and more frozen frames are reported
_STILL = 5e-3  # of the range of the data: less is noise of a sensor, not motion


class Scale:
    """The range and the usual steps of each dim of a data set, from some of its episodes."""

    def __init__(self, dataset: EpisodeDataset, most: int = 200) -> None:
        some = spread_evenly(len(dataset), most).tolist()
        episodes = [e for i in some if (e := read_or_none(dataset, i)) is not None]
        self.spread, self.step = dict[str, np.ndarray](), dict[str, np.ndarray]()  # inf where unknown
        self.constant = dict[str, list[int]]()  # the dims that never vary
        for name, space in (("actions", dataset.embodiment.action), ("proprio", dataset.embodiment.proprio)):
            rows = [getattr(episode, name) for episode in episodes]
            rows = [r for r in rows if len(r) and r.shape[1:] == (space.size,) and np.isfinite(r).all()]
            self.spread[name], self.constant[name] = np.full(space.size, np.inf), []
            if rows:
                whole = np.concatenate(rows)
                ends = {"min": whole.min(0).tolist(), "max": whole.max(0).tolist()}
                self.spread[name] = whole.max(0) - whole.min(0)
                self.constant[name] = [dim for dim, constant in enumerate(constant_dims(space, ends)) if constant]
            self.step[name] = _usual_step(rows, space)


def _usual_step(rows: Sequence[np.ndarray], space: ActionSpace) -> np.ndarray:
    """Return the 99th percentile of each dim's steps. Steps without motion do not count: a dim may often rest."""
    steps = [_moves(r, space) for r in rows if len(r) > 1]
    if not steps:
        return np.full(space.size, np.inf)
    whole = np.concatenate(steps)
    return np.array([np.quantile(s[s > 0], 0.99) if (s > 0).any() else 0.0 for s in whole.T])


def _moves(array: np.ndarray, space: ActionSpace) -> np.ndarray:
    """Return the size of each step: (T - 1, D). All dims of an orientation have the angle between the steps."""
    out = np.abs(np.diff(array.astype(np.float64), axis=0))
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind == "rotation" and group.mode == "absolute" and group.rotation is not None and len(out):
            try:
                q = read_rotations(group, array[:, place])
            except ValueError:
                continue  # of length 0 or of an unknown unit: use the plain differences
            turned = 2 * np.arccos(np.clip(np.abs((q[1:] * q[:-1]).sum(1)), 0, 1))
            out[:, place] = turned[:, None]
    return out


def find_jumps(array: np.ndarray, space: ActionSpace, limits: np.ndarray, name: str, index: int) -> Iterator[Finding]:
    """Find steps that are far larger than the data's own, `limits` (D,), and quaternions that change their sign."""
    moved = _moves(array, space)
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind == "gripper":
            continue  # opens and closes at once
        own = moved[:, place]
        if group.rotation is not None and group.rotation.startswith("quaternion") and group.mode == "absolute":
            flips = np.flatnonzero((array[1:, place] * array[:-1, place]).sum(1) < 0)
            if len(flips):
                text = f"{name}, {group.name!r} changes to its antipode at step {flips[0] + 1} ({len(flips)} times)"
                yield Finding("antipode", "warning", index, text, "convert it: rotation: rot6d")
        noise = PRECISION * np.abs(array[:, place]).max(0)  # of float32
        far = own > np.maximum(_JUMP * limits[place], noise)
        if far.any():
            step, dim = np.argwhere(far)[0]
            text = f"{name}, {group.name!r}, dim {group.label(int(dim))}, moves by {own[step, dim]:.3g} at step "
            text += f"{step + 1}; 99 of 100 steps of the data are below {limits[place][dim]:.3g}"
            yield Finding("jump", "warning", index, text, "look at it: anyvla data view")


def find_idle_ends(episode: Episode, index: int, scale: Scale) -> Iterator[Finding]:
    """Find ends of an episode, or a whole one, at which nothing moves."""
    span = find_moving_span(episode, scale.spread["proprio"], scale.spread["actions"])
    if span is None:
        if len(episode) > IDLE:
            yield Finding("idle", "warning", index, "nothing moves from its begin to its end", "look at it")
        return
    first, last = span
    for steps, end in ((first, "begin"), (len(episode) - last, "end")):
        if steps > IDLE:
            yield Finding("idle", "warning", index, f"nothing moves for {steps} steps at its {end}", "cut them off")


def find_moving_span(episode: Episode, proprio_spread: np.ndarray, action_spread: np.ndarray) -> tuple[int, int] | None:
    """Return steps [first, last) outside of which the robot neither moves nor is commanded to; None: it never does.

    `proprio_spread` and `action_spread` are the range of each dim in the data set.
    """
    length = len(episode)
    left, arrived = length, 0  # the first step away from the begin, the last one away from the end
    space = episode.embodiment.action
    watched = [(episode.proprio, proprio_spread)]
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.mode == "delta" and group.kind != "gripper":
            commanded = np.flatnonzero((np.abs(episode.actions[:, place]) > _STILL * action_spread[place]).any(1))
            if len(commanded):
                left, arrived = min(left, int(commanded[0])), max(arrived, int(commanded[-1]) + 1)
        else:
            watched.append((episode.actions[:, place], action_spread[place]))
    for array, spread in watched:
        for row, end in ((array[0], False), (array[-1], True)):
            away = np.flatnonzero((np.abs(array - row) > _STILL * spread).any(1))
            if len(away) and end:
                arrived = max(arrived, int(away[-1]) + 1)
            elif len(away):
                left = min(left, int(away[0]) - 1)
    return (left, min(length, arrived + 1)) if left < length else None


def find_still_steps(array: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return whether each step equals the one before, except for noise: (T - 1,)."""
    return np.all(np.abs(np.diff(array, axis=0)) <= _STILL * spread, axis=1)
