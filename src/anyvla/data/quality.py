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

_JUMP = 12.0  # a step this many times the 99th percentile of the data set's steps is a jump
_IDLE = 15  # steps without motion at an end that are worth cutting
_STILL = 1e-6  # of the spread of the data: less is no motion
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
                    found.append(
                        Finding("duplicate", "error", index, f"the same as episode {seen[digest]}", "leave it out")
                    )
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
        self.actions, self.proprio = actions, proprio
        self.spread = {name: _spread(rows) for name, rows in (("actions", actions), ("proprio", proprio))}
        self.step = {name: _step(rows) for name, rows in (("actions", actions), ("proprio", proprio))}


def _spread(rows: Sequence[np.ndarray]) -> np.ndarray | None:
    if not rows:
        return None
    whole = np.concatenate(rows)
    return whole.max(0) - whole.min(0)


def _step(rows: Sequence[np.ndarray]) -> np.ndarray | None:
    steps = [np.abs(np.diff(r, axis=0)) for r in rows if len(r) > 1]
    return np.quantile(np.concatenate(steps), 0.99, axis=0) if steps else None


def _look(dataset: EpisodeDataset, index: int, scale: Scale, look: Look) -> tuple[list[Finding], bytes | None]:
    try:
        episode = dataset[index]
    except (ValueError, OSError, KeyError) as error:
        return [Finding("damaged", "error", index, str(error), "copy it again, or leave it out")], None
    found = list(_numbers(episode, index, scale))
    digest = None
    if not any(f.kind == "wrong size" for f in found):
        found += [*_times(episode, index), *_said(episode, index), *_frames(episode, index, look)]
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
    moved = np.abs(np.diff(array, axis=0))
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind == "gripper":
            continue  # opens and closes at once
        own = moved[:, place]
        if group.kind == "rotation" and group.mode == "absolute":
            if group.rotation is not None and group.rotation.startswith("quaternion"):
                flips = np.flatnonzero((array[1:, place] * array[:-1, place]).sum(1) < 0)
                if len(flips):
                    text = f"{name}, {group.name!r} changes to its antipode at step {flips[0] + 1} ({len(flips)} times)"
                    yield Finding("antipode", "warning", index, text, "convert it: rotation: rot6d")
                continue
            own = np.minimum(own, np.abs(2 * np.pi - own))  # angles wrap around
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
    first, last = moving_span(episode, scale.spread["proprio"], scale.spread["actions"])
    for steps, end in ((first, "begin"), (len(episode) - last, "end")):
        if steps > _IDLE:
            yield Finding("idle", "warning", index, f"nothing moves for {steps} steps at its {end}", "cut them off")


def moving_span(
    episode: Episode, proprio_spread: np.ndarray | None, action_spread: np.ndarray | None
) -> tuple[int, int]:
    """The steps [first, last) between which the robot moves or is told to; a step at either end is kept."""
    still = np.ones(max(0, len(episode) - 1), bool)
    if proprio_spread is not None:
        still &= _unmoved(episode.proprio, proprio_spread)
    commanded = np.zeros(len(episode), bool)
    space = episode.embodiment.action
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.mode == "delta" and group.kind != "gripper":
            commanded |= (np.abs(episode.actions[:, place]) > _STILL).any(1)
        elif action_spread is not None:
            still &= _unmoved(episode.actions[:, place], action_spread[place])
    busy = np.flatnonzero(~still | commanded[:-1])
    if not len(busy):
        return 0, len(episode)
    return max(0, int(busy[0])), min(len(episode), int(busy[-1]) + 2)


def _unmoved(array: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Whether each step is as the one before, but for noise: (T - 1,)."""
    return (np.abs(np.diff(array, axis=0)) <= _STILL * np.maximum(spread, 1e-12)).all(1)


def _times(episode: Episode, index: int) -> Iterator[Finding]:
    gaps = np.diff(episode.timestamps)
    if len(episode.timestamps) != len(episode) or (gaps <= 0).any():
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


def _frames(episode: Episode, index: int, look: Look) -> Iterator[Finding]:
    for camera, images in episode.images.items():
        if len(images) != len(episode):
            text = f"camera {camera!r} has {len(images)} frames, the episode {len(episode)} steps"
            yield Finding("frames", "error", index, text, "leave the episode out")
            continue
        if look == "none":
            continue
        some = np.arange(len(episode))
        if look == "sampled":
            some = np.unique((np.array(_SAMPLED) * (len(episode) - 1)).round().astype(int))
        try:
            seen = images[some]
        except (ValueError, OSError) as error:
            yield Finding("frames", "error", index, f"camera {camera!r}: {error}", "copy it again, or leave it out")
            continue
        if seen.max() < 8:
            yield Finding("frames", "error", index, f"camera {camera!r} is black", "leave the camera or episode out")
        elif len(some) > 2 and all(np.array_equal(seen[0], other) for other in seen[1:]):
            yield Finding("frozen", "warning", index, f"camera {camera!r} never changes", "look at it")


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
