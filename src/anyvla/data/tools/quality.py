"""Finds faults of a data set: in numbers, times, frames and instructions, and duplicates.

One pass over the episodes, in parallel. Each finding has its position and a remedy. An `error` makes training refuse or
learn nonsense; a `warning` is worth a look and may be right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from anyvla.data.episode import Episode, EpisodeDataset, Frames, Images
from anyvla.data.threads import map_in_threads
from anyvla.data.tools.contradictions import find_contradictions
from anyvla.data.tools.findings import Finding, Kind, Look, Severity
from anyvla.data.tools.measured import MeasuredNumbers
from anyvla.data.tools.motion import IDLE, Scale, find_idle_ends, find_jumps, find_still_steps
from anyvla.robot.space import ActionSpace
from anyvla.text import check_instruction

_DARK = 8  # a frame whose values are all below is black
_ALIKE = 2.0  # mean difference in gray levels below which frames differ only by a codec
_SAMPLED = (0.0, 0.29, 0.62, 1.0)  # positions of the frames: uneven, so that periodic motion does not look frozen


def check(
    dataset: EpisodeDataset,
    *,
    frames: Look = "sampled",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Return all findings, by episode. `frames` selects those to decode. `progress(done, total)` counts episodes."""
    found: list[Finding] = []
    seen: dict[bytes, int] = {}
    scale = Scale(dataset)
    measured = MeasuredNumbers(len(dataset), dataset.embodiment.proprio.size, dataset.embodiment.action.size)
    checked = map_in_threads(
        lambda i: _check_episode(dataset, i, scale, frames, measured), range(len(dataset)), progress
    )
    for index, (findings, digest) in enumerate(checked):
        found += findings
        if digest is not None and seen.setdefault(digest, index) != index:
            found += _compare_duplicates(dataset, seen[digest], index, frames)
    return [*found, *_check_constant(dataset, scale), *find_contradictions(dataset.embodiment, measured)]


def _check_episode(
    dataset: EpisodeDataset, index: int, scale: Scale, look: Look, measured: MeasuredNumbers
) -> tuple[list[Finding], bytes | None]:
    try:
        episode = dataset[index]
    except (ValueError, OSError, KeyError) as error:
        return [Finding("damaged", "error", index, str(error), "copy it again, or leave it out")], None
    if not len(episode):
        return [Finding("damaged", "error", index, "it has no steps", "leave it out")], None
    measured.add(index, episode)
    found = list(_check_numbers(episode, index, scale))
    digest = None
    if not any(f.kind == "wrong size" for f in found):
        moving = ~find_still_steps(episode.proprio, scale.spread["proprio"])
        found += [
            *_check_times(episode, index),
            *_check_instructions(episode, index),
            *_check_frames(episode, index, look, moving),
        ]
        digest = hashlib.sha256(episode.actions.tobytes() + episode.proprio.tobytes()).digest()
    return found, digest


def _check_numbers(episode: Episode, index: int, scale: Scale) -> Iterator[Finding]:
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
            text = f"{name} at step {step}, {space.locate(int(dim))}, is {array[step, dim]}"
            yield Finding("not finite", "error", index, text, "leave the episode out, or correct its numbers")
            continue
        yield from find_jumps(array, space, scale.step[name], name, index)
        yield from _check_grippers(array, space, name, index)
    yield from find_idle_ends(episode, index, scale)


def _check_grippers(array: np.ndarray, space: ActionSpace, name: str, index: int) -> Iterator[Finding]:
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind != "gripper" or group.low is None or group.high is None:
            continue
        span = group.high - group.low
        for dim in range(group.size):
            low, high = float(array[:, place.start + dim].min()), float(array[:, place.start + dim].max())
            beyond = max(group.low - low, high - group.high) / span
            if beyond > 0.02:
                text = (
                    f"{name}, {space.locate(place.start + dim)}, goes from {low:.3g} to {high:.3g}, outside of its "
                    f"declared range {group.low:g} to {group.high:g}"
                )
                severity: Severity = "error" if name == "actions" or beyond > 0.2 else "warning"  # sensors overshoot
                yield Finding("gripper", severity, index, text, "declare the range that the data has")


def _compare_duplicates(dataset: EpisodeDataset, first: int, index: int, look: Look) -> Iterator[Finding]:
    """Compare two episodes of equal numbers by their frames and instructions."""
    if look == "none":
        text = f"its numbers equal those of episode {first}; its frames were not compared"
        yield Finding("duplicate", "warning", index, text, "compare them: --frames sampled")
        return
    one, other = dataset[first], dataset[index]
    some = _sample_steps(len(one))
    try:
        pairs = [(one.images[c][some], other.images[c][some]) for c in one.images if c in other.images]
    except (ValueError, OSError):
        return  # reported as a fault of the frames
    if all(a.shape == b.shape and np.abs(a.astype(np.int16) - b).mean() < _ALIKE for a, b in pairs):
        if set(one.instructions) == set(other.instructions):
            yield Finding("duplicate", "error", index, f"the same as episode {first}", "leave it out")
        else:
            text = f"the same as episode {first}, but instructed {other.instruction!r}"
            yield Finding("duplicate", "warning", index, text, "one of the two instructions may be wrong")


def _check_times(episode: Episode, index: int) -> Iterator[Finding]:
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


def _check_instructions(episode: Episode, index: int) -> Iterator[Finding]:
    if not any(episode.instructions):
        yield Finding("instruction", "warning", index, "it has no instruction", "unlabeled: drop, or instruction: ...")
    elif any("\ufffd" in text for text in episode.instructions):
        yield Finding("instruction", "error", index, "its instruction was decoded wrongly", "write it again as UTF-8")
    for text in filter(None, episode.instructions):
        try:
            check_instruction(text)
        except ValueError as error:
            yield Finding("instruction", "error", index, str(error), "write it again as UTF-8")


def _sample_steps(length: int) -> np.ndarray:
    return np.unique((np.array(_SAMPLED) * (length - 1)).round().astype(int))


def _check_frames(episode: Episode, index: int, look: Look, moving: np.ndarray) -> Iterator[Finding]:
    """Check the frames of each camera. `moving` (T - 1,) is whether the robot moves from each step to the next."""
    for camera in episode.embodiment.cameras:
        for kind, severity, text, fix in _check_camera(episode.images.get(camera), look, moving):
            yield Finding(kind, severity, index, f"camera {camera!r}{text}", fix)


def _check_camera(images: Images | None, look: Look, moving: np.ndarray) -> Iterator[tuple[Kind, Severity, str, str]]:
    """Yield (kind, severity, fault, fix), first of the header of the file, then of the frames."""
    steps = len(moving) + 1
    if images is None:
        yield "frames", "error", " is missing", "leave the episode out"
        return
    if len(images) != steps:
        yield "frames", "error", f" has {len(images)} frames, the episode {steps} steps", "leave the episode out"
        return
    try:
        for wrong, text in images.faults() if isinstance(images, Frames) else ():
            fix = "copy it again, or leave the episode out" if wrong else "look at it: anyvla data view"
            yield "video", "error" if wrong else "warning", f": {text}", fix
    except (ValueError, OSError) as error:
        yield "video", "error", f": {error}", "copy it again, or leave it out"
    if look == "none":
        return
    some = _sample_steps(steps) if look == "sampled" else np.arange(steps)
    try:
        seen = images[some]
    except (ValueError, OSError) as error:
        yield "frames", "error", f": {error}", "copy it again, or leave it out"
        return
    dark = seen.reshape(len(seen), -1).max(1) < _DARK
    still = (seen[1:] == seen[:-1]).all((1, 2, 3))
    if dark.all():
        yield "frames", "error", " is black", "leave the camera or episode out"
    elif dark.any():
        yield "frames", "warning", f" is black at step {some[dark.argmax()]}", "look at it"
    elif len(some) > 2 and still.all():
        yield "frozen", "warning", " never changes", "look at it"
    elif look == "all" and (begin := _find_long_run(still & moving)) is not None:
        yield "frozen", "warning", f" is frozen from step {begin} on while the robot moves", "look at it"


def _find_long_run(flags: np.ndarray) -> int | None:
    """Return the start of the first run of more than `IDLE` True values, or None."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > IDLE]
    return int(runs[0][0]) if runs else None


def _check_constant(dataset: EpisodeDataset, scale: Scale) -> Iterable[Finding]:
    for name, space in (("actions", dataset.embodiment.action), ("proprio", dataset.embodiment.proprio)):
        for dim in scale.constant[name]:
            text = f"{name}, {space.locate(dim)}, is the same in all checked episodes"
            yield Finding("constant", "warning", None, text, "leave the group out if it has no meaning")
