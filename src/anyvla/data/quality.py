"""Finds what is wrong with a data set: numbers, times, frames, instructions, duplicates.

One pass over the episodes, in parallel; what is found says where it is and what mends it. An `error` makes training
refuse or learn nonsense, a `warning` is worth a look and may be right.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anyvla.actions.rotations import quaternions, radians
from anyvla.actions.space import ActionSpace, Group
from anyvla.data.episode import Episode, EpisodeDataset

Kind = Literal[
    "damaged",
    "not finite",
    "wrong size",
    "constant",
    "jump",
    "antipode",
    "idle",
    "timestamps",
    "frames",
    "frozen",
    "duplicate",
    "instruction",
    "gripper",
]
Severity = Literal["error", "warning"]
Look = Literal["none", "sampled", "all"]

_JUMP = 12.0  # a step this many times the 99th percentile of the data set's steps, of those that move, is a jump
_IDLE = 15  # steps without motion at an end that are worth cutting; also, with a frozen camera, worth telling
_STILL = 5e-3  # of the range of the data: less is no motion, but noise of a sensor
_DARK = 8  # a frame whose brightest value is below is black
_ALIKE = 2.0  # grey levels by which frames of one scene differ through a codec, on average
_SAMPLED = (0.0, 0.29, 0.62, 1.0)  # which frames of an episode: unevenly, so that what repeats does not look frozen


@dataclass(frozen=True)
class Finding:
    """One fault."""

    kind: Kind
    severity: Severity
    episode: int | None  # None: of the whole data set
    text: str
    mend: str


def check(
    dataset: EpisodeDataset,
    *,
    frames: Look = "sampled",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """All findings, by episode. `frames`: which of them are decoded. `progress(done, total)` counts episodes."""
    found: list[Finding] = []
    seen: dict[bytes, int] = {}
    scale = Scale(dataset)
    count = len(dataset)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, count, 64):
            block = range(start, min(start + 64, count))
            for index, (findings, digest) in zip(
                block, pool.map(lambda i: _look(dataset, i, scale, frames), block), strict=True
            ):
                found += findings
                if digest is not None and seen.setdefault(digest, index) != index:
                    found += _again(dataset, seen[digest], index, frames)
            progress(block.stop, count)
    return found + list(_whole(dataset, scale))


class Scale:
    """How the numbers of a data set move, from some of its episodes."""

    def __init__(self, dataset: EpisodeDataset, most: int = 200) -> None:
        some = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
        actions, proprio = list[np.ndarray](), list[np.ndarray]()
        for index in some.tolist():
            try:
                episode = dataset[index]
            except (ValueError, OSError, KeyError):
                continue  # told by the pass over all episodes
            space = dataset.embodiment
            if np.isfinite(episode.actions).all() and episode.actions.shape[1:] == (space.action.size,):
                actions.append(episode.actions)
            if np.isfinite(episode.proprio).all() and episode.proprio.shape[1:] == (space.proprio.size,):
                proprio.append(episode.proprio)
        self.spread = {name: _spread(rows) for name, rows in (("actions", actions), ("proprio", proprio))}
        robot = dataset.embodiment
        self.step = {"actions": _step(actions, robot.action), "proprio": _step(proprio, robot.proprio)}


def _spread(rows: Sequence[np.ndarray]) -> np.ndarray | None:
    if not rows:
        return None
    whole = np.concatenate(rows)
    return whole.max(0) - whole.min(0)


def _step(rows: Sequence[np.ndarray], space: ActionSpace) -> np.ndarray | None:
    """The 99th percentile of each dim's steps, of those that move it: a dim may rest most of the time."""
    steps = [_moves(r, space) for r in rows if len(r) > 1]
    if not steps:
        return None
    whole = np.concatenate(steps)
    return np.array([np.quantile(s[s > 0], 0.99) if (s > 0).any() else 0.0 for s in whole.T])


def _moves(array: np.ndarray, space: ActionSpace) -> np.ndarray:
    """How far each step is from the one before: (T - 1, D). Of an orientation, in all its dims, the angle between."""
    out = np.abs(np.diff(array.astype(np.float64), axis=0))
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind == "rotation" and group.mode == "absolute" and group.rotation is not None and len(out):
            try:
                q = quaternions(array[:, place] * radians(group.unit), group.rotation)
            except ValueError:
                continue  # of length 0, or in a unit that is not known: the plain differences tell
            turned = 2 * np.arccos(np.clip(np.abs((q[1:] * q[:-1]).sum(1)), 0, 1))
            out[:, place] = turned[:, None]
    return out


def _look(dataset: EpisodeDataset, index: int, scale: Scale, look: Look) -> tuple[list[Finding], bytes | None]:
    try:
        episode = dataset[index]
    except (ValueError, OSError, KeyError) as error:
        return [Finding("damaged", "error", index, str(error), "copy it again, or leave it out")], None
    if not len(episode):
        return [Finding("damaged", "error", index, "it has no steps", "leave it out")], None
    found = list(_numbers(episode, index, scale))
    digest = None
    if not any(f.kind == "wrong size" for f in found):
        moving = ~_unmoved(episode.proprio, scale.spread["proprio"])
        found += [*_times(episode, index), *_said(episode, index), *_frames(episode, index, look, moving)]
        digest = hashlib.sha256(episode.actions.tobytes() + episode.proprio.tobytes()).digest()
    return found, digest


def _numbers(episode: Episode, index: int, scale: Scale) -> Iterator[Finding]:
    robot = episode.embodiment
    for name, array, space in (
        ("actions", episode.actions, robot.action),
        ("proprio", episode.proprio, robot.proprio),
    ):
        if array.shape != (len(episode), space.size):
            text = f"{name} have shape {array.shape}, {(len(episode), space.size)} is declared"
            yield Finding("wrong size", "error", index, text, "declare the groups that the data has")
            return
        if not np.isfinite(array).all():
            step, dim = np.argwhere(~np.isfinite(array))[0]
            text = f"{name} at step {step}, {_dim(space, int(dim))}, is {array[step, dim]}"
            yield Finding("not finite", "error", index, text, "leave the episode out, or mend its numbers")
            continue
        limits = scale.step[name]
        if limits is not None:
            yield from _jumps(array, space, limits, name, index)
        yield from _grippers(array, space, name, index)
    yield from _idle(episode, index, scale)


def _jumps(array: np.ndarray, space: ActionSpace, limits: np.ndarray, name: str, index: int) -> Iterator[Finding]:
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
        far = own > np.maximum(_JUMP * limits[place], 1e-9)
        if far.any():
            step, dim = np.argwhere(far)[0]
            text = (
                f"{name}, {group.name!r}, dim {dim}, moves by {own[step, dim]:.3g} at step {step + 1}; "
                f"99 of 100 steps of the data are below {limits[place][dim]:.3g}"
            )
            yield Finding("jump", "warning", index, text, "look at it: anyvla data view")


def _grippers(array: np.ndarray, space: ActionSpace, name: str, index: int) -> Iterator[Finding]:
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind != "gripper" or group.low is None or group.high is None:
            continue
        slack = 0.02 * (group.high - group.low)
        outside = (array[:, place] < group.low - slack) | (array[:, place] > group.high + slack)
        if outside.any():
            value = float(array[:, place][outside][0])
            text = (
                f"{name}, {group.name!r} is {value:.3g}, outside of its declared range {group.low:g} to {group.high:g}"
            )
            severity: Severity = "error" if name == "actions" else "warning"  # sensors overshoot
            yield Finding("gripper", severity, index, text, "declare the range that the data has")


def _idle(episode: Episode, index: int, scale: Scale) -> Iterator[Finding]:
    span = moving_span(episode, scale.spread["proprio"], scale.spread["actions"])
    if span is None:
        if len(episode) > _IDLE:
            yield Finding("idle", "warning", index, "nothing moves from its begin to its end", "look at it")
        return
    first, last = span
    for steps, end in ((first, "begin"), (len(episode) - last, "end")):
        if steps > _IDLE:
            yield Finding("idle", "warning", index, f"nothing moves for {steps} steps at its {end}", "cut them off")


def moving_span(
    episode: Episode, proprio_spread: np.ndarray | None, action_spread: np.ndarray | None
) -> tuple[int, int] | None:
    """The steps [first, last) outside of which the robot stays where it begins or ends, and is told to. None: always.

    `proprio_spread`, `action_spread`: the range of each dim in the data set; None: of no use.
    """
    length = len(episode)
    left, arrived = length, 0  # the first step away from the begin, the last one away from the end
    space = episode.embodiment.action
    watched = [(episode.proprio, proprio_spread)] if proprio_spread is not None else []
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if action_spread is None:
            continue
        if group.mode == "delta" and group.kind != "gripper":
            told = np.flatnonzero((np.abs(episode.actions[:, place]) > _STILL * action_spread[place]).any(1))
            if len(told):
                left, arrived = min(left, int(told[0])), max(arrived, int(told[-1]) + 1)
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


def _unmoved(array: np.ndarray, spread: np.ndarray | None) -> np.ndarray:
    """Whether each step is as the one before, but for noise: (T - 1,)."""
    if spread is None or array.shape[1:] != spread.shape:
        return np.ones(max(0, len(array) - 1), bool)
    return np.all(np.abs(np.diff(array, axis=0)) <= _STILL * spread, axis=1)


def _again(dataset: EpisodeDataset, first: int, index: int, look: Look) -> Iterator[Finding]:
    """An episode whose numbers are those of an earlier one: the same, if it shows and says the same."""
    if look == "none":
        text = f"its numbers are those of episode {first}; its frames were not compared"
        yield Finding("duplicate", "warning", index, text, "compare them: --frames sampled")
        return
    one, other = dataset[first], dataset[index]
    some = _some(len(one))
    try:
        pairs = [(one.images[c][some], other.images[c][some]) for c in one.images if c in other.images]
    except (ValueError, OSError):
        return  # told as a fault of its frames
    if all(a.shape == b.shape and np.abs(a.astype(np.int16) - b).mean() < _ALIKE for a, b in pairs):
        if set(one.instructions) == set(other.instructions):
            yield Finding("duplicate", "error", index, f"the same as episode {first}", "leave it out")
        else:
            text = f"the same as episode {first}, but told {other.instruction!r}"
            yield Finding("duplicate", "warning", index, text, "one of the two may be told wrongly")


def _times(episode: Episode, index: int) -> Iterator[Finding]:
    gaps = np.diff(episode.timestamps)
    if len(episode.timestamps) != len(episode) or not (gaps > 0).all():  # NaN too
        yield Finding("timestamps", "error", index, "timestamps do not increase step by step", "leave the episode out")
        return
    hz = episode.embodiment.control_hz
    if len(gaps) and abs(float(np.median(gaps)) * hz - 1) > 0.1:
        text = f"its steps are {np.median(gaps):.3g} s apart, control_hz {hz:g} means {1 / hz:.3g} s"
        yield Finding("timestamps", "warning", index, text, "declare the rate of the data")
    elif len(gaps) and gaps.max() > 3 / hz:
        text = f"{gaps.max():.3g} s are missing after step {gaps.argmax()}"
        yield Finding("timestamps", "warning", index, text, "frames were dropped: look at it")


def _said(episode: Episode, index: int) -> Iterator[Finding]:
    if not any(text.strip() for text in episode.instructions):
        yield Finding("instruction", "warning", index, "it has no instruction", "unlabelled: drop, or instruction: ...")
    elif any("\ufffd" in text for text in episode.instructions):
        yield Finding("instruction", "error", index, "its instruction was decoded wrongly", "write it again as UTF-8")


def _some(length: int) -> np.ndarray:
    return np.unique((np.array(_SAMPLED) * (length - 1)).round().astype(int))


def _frames(episode: Episode, index: int, look: Look, moving: np.ndarray) -> Iterator[Finding]:
    """`moving` (T - 1,): whether the robot moves from each step to the next."""
    for camera in episode.embodiment.cameras:
        if camera not in episode.images:
            yield Finding("frames", "error", index, f"camera {camera!r} is missing", "leave the episode out")
            continue
        images = episode.images[camera]
        if len(images) != len(episode):
            text = f"camera {camera!r} has {len(images)} frames, the episode {len(episode)} steps"
            yield Finding("frames", "error", index, text, "leave the episode out")
            continue
        if look == "none":
            continue
        some = _some(len(episode)) if look == "sampled" else np.arange(len(episode))
        try:
            seen = images[some]
        except (ValueError, OSError) as error:
            yield Finding("frames", "error", index, f"camera {camera!r}: {error}", "copy it again, or leave it out")
            continue
        dark = seen.reshape(len(seen), -1).max(1) < _DARK
        still = (seen[1:] == seen[:-1]).all((1, 2, 3))
        if dark.all():
            yield Finding("frames", "error", index, f"camera {camera!r} is black", "leave the camera or episode out")
        elif dark.any():
            text = f"camera {camera!r} is black at step {some[dark.argmax()]}"
            yield Finding("frames", "warning", index, text, "look at it")
        elif len(some) > 2 and still.all():
            yield Finding("frozen", "warning", index, f"camera {camera!r} never changes", "look at it")
        elif look == "all" and (begin := _long_run(still & moving)) is not None:
            text = f"camera {camera!r} stands still from step {begin} on while the robot moves"
            yield Finding("frozen", "warning", index, text, "look at it")


def _long_run(flags: np.ndarray) -> int | None:
    """Where the first run of more than `_IDLE` True begins."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > _IDLE]
    return int(runs[0][0]) if runs else None


def _whole(dataset: EpisodeDataset, scale: Scale) -> Iterable[Finding]:
    for name, space in (("actions", dataset.embodiment.action), ("proprio", dataset.embodiment.proprio)):
        spread = scale.spread[name]
        if spread is None:
            continue
        for dim in np.flatnonzero(spread == 0).tolist():
            text = f"{name}, {_dim(space, dim)}, is the same in all episodes looked at"
            yield Finding("constant", "warning", None, text, "leave the group out if it means nothing")


def _dim(space: ActionSpace, dim: int) -> str:
    group: Group
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if place.start <= dim < place.stop:
            return f"group {group.name!r}, dim {dim - place.start}"
    raise IndexError(dim)
