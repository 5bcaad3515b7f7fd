"""Resamples a data set to a lower control rate by time, combining the actions of the steps that are dropped."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from anyvla.data import cache_folder
from anyvla.data.episode import Episode, EpisodeDataset, Frames, Images, steady_timestamps
from anyvla.data.frame_times import find_shown_frames
from anyvla.data.threads import map_in_threads
from anyvla.data.transforms.converted import arm_side
from anyvla.data.transforms.wrapped import WrappedDataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import (
    Frame,
    apply,
    canonicalize,
    check_convertible,
    compose,
    read_rotations,
    rotate,
    write_rotations,
)
from anyvla.robot.space import ActionSpace, Group

log = logging.getLogger(__name__)

_LATE = 0.05  # of the data's control interval: a frame this late is still in time, because timestamps are rounded


class PickedFrames(Frames):
    """A selection of the frames of a camera, decoded when indexed."""

    def __init__(self, images: Images, steps: Int64[np.ndarray, "K"]) -> None:
        """Step k shows the frame `steps[k]`."""
        self.images, self.steps = images, steps
        self.shape = (len(steps), *images.shape[1:])

    def faults(self) -> Iterator[tuple[bool, str]]:
        """See `Frames`."""
        if isinstance(self.images, Frames):
            yield from self.images.faults()

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """Return the frames of these new steps."""
        return self.images[self.steps[steps]]


class Resampled(WrappedDataset):
    """A data set at `hz` actions per second.

    Step k shows the newest frame at or before k / hz, with its proprio. Its action combines all actions from that frame
    to the frame of the next step (or to the end of the episode):

    - absolute: the last of them, the command in force at the end;
    - delta: their sum; rotations are composed, and positions in the tool frame are summed along the rotating tool;
    - delta grippers: their sum, clipped to the declared range;
    - rates (a unit per second, as "m/s"): their mean over the time that each was in force.

    Where the data pauses for longer than 1 / hz, a step repeats the frame: deltas are 0, other actions stay in force.
    So a policy that follows the new actions reaches the poses of the frames that are shown. `lengths` needs the time
    at which each episode ends: one pass over the numbers of all episodes, cached by fingerprint.

    Raises ValueError for a rate above that of the data, and for a group that lacks a declaration.
    """

    def __init__(self, dataset: EpisodeDataset, hz: float) -> None:
        robot = dataset.embodiment
        if hz > robot.control_hz * (1 + 1e-6):
            raise ValueError(
                f"{dataset.root} has {robot.control_hz:g} steps per second and cannot be resampled to {hz:g}: use hz "
                f"of at most {robot.control_hz:g}"
            )
        self.hz = hz
        self._late = _LATE / robot.control_hz
        self._turned = _find_turned_groups(robot, str(dataset.root))
        embodiment = dataclasses.replace(
            robot, control_hz=hz, action=ActionSpace(groups=tuple(_without_range(g) for g in robot.action.groups))
        )
        super().__init__(dataset, {"hz": hz}, embodiment)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        """Steps of each episode."""
        return np.array([self._count(end) for end in _read_end_times(self.dataset)], np.int64)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index` at the new rate. Raises ValueError for timestamps that do not increase."""
        episode = self.dataset[index]
        where = episode.provenance or f"{self.root}, episode {index}"
        times = episode.timestamps
        if not len(times):
            raise ValueError(f"{where}: the episode has no steps")
        back = np.flatnonzero(~(np.diff(times) > 0))
        if len(back):
            at = int(back[0]) + 1
            raise ValueError(
                f"{where}: timestamps must increase, step {at} is at {times[at]:g} s after {times[at - 1]:g} s"
            )
        new = steady_timestamps(self._count(times[-1]), self.hz)
        shown = find_shown_frames(times, new, self._late)  # (K,)
        ends = np.append(shown[1:], len(times))  # the steps of k are shown[k] .. ends[k] - 1
        return dataclasses.replace(
            episode,
            embodiment=self.embodiment,
            images={camera: PickedFrames(images, shown) for camera, images in episode.images.items()},
            proprio=episode.proprio[shown],
            actions=self._join_actions(episode.actions, times, shown, ends, where),
            timestamps=new,
        )

    def _count(self, end: float) -> int:
        """Return the number of new steps of an episode whose last step is at `end`."""
        return int((end + self._late) * self.hz) + 1

    def _join_actions(
        self, actions: Float32[np.ndarray, "T A"], times: np.ndarray, shown: np.ndarray, ends: np.ndarray, where: str
    ) -> Float32[np.ndarray, "K A"]:
        space = self.dataset.embodiment.action
        places = space.slices()
        last = np.maximum(ends - 1, shown)  # an interval without an action of its own keeps the one in force
        out = actions[last]
        lasting = np.append(np.diff(times), 1 / self.dataset.embodiment.control_hz)
        for group, place in zip(space.groups, places.values(), strict=True):
            own = actions[:, place].astype(np.float64)
            if _is_rate(group):
                time = _sum_intervals(lasting[:, None], shown, ends)
                mean = _sum_intervals(own * lasting[:, None], shown, ends) / np.where(time > 0, time, 1)
                out[:, place] = np.where(time > 0, mean, own[last])
            elif group.mode == "delta" and group.kind == "rotation":
                try:
                    out[:, place] = _compose_intervals(group, own, shown, ends)
                except ValueError as error:
                    raise ValueError(f"{where}, action group {group.name!r}, {error}") from None
            elif group.mode == "delta" and group.name in self._turned:
                by = self._turned[group.name]
                out[:, place] = _sum_along_tool(own, by, actions[:, places[by.name]], shown, ends)
            elif group.mode == "delta":
                total = _sum_intervals(own, shown, ends)
                out[:, place] = np.clip(total, group.low, group.high) if group.kind == "gripper" else total
        return out


def _find_turned_groups(robot: Embodiment, where: str) -> dict[str, Group]:
    """Map each delta position in the frame of a rotating tool to the tool's delta rotation. Raises ValueError."""
    turned = {}
    for group in robot.action.groups:
        if group.mode != "delta" or _is_rate(group) or group.kind not in ("position", "rotation"):
            continue
        label = f"{where} (robot {robot.name}), action group {group.name!r}"
        if group.kind == "rotation":
            check_convertible(group, label)
            if not group.frame:
                raise ValueError(f"{label}: to compose rotations, their frame must be declared (frame: base or tool)")
            continue
        turning = [g for g in robot.action.groups if g.kind == "rotation" and arm_side(g.name) == arm_side(group.name)]
        if not turning or group.frame == "base":
            continue
        if not group.frame:
            raise ValueError(
                f"{label}: steps of a rotating tool add up differently in its own frame than in that of the base; "
                "declare frame: base or frame: tool"
            )
        if len(turning) > 1 or (turning[0].mode, turning[0].frame) != ("delta", "tool") or group.size != 3:
            raise ValueError(
                f"{label}: steps in the tool frame add up only beside one delta rotation in the tool frame (the data "
                f"has {', '.join(f'{g.name} {g.mode} {g.frame}'.strip() for g in turning)}); convert to frame: base "
                "first"
            )
        turned[group.name] = turning[0]
    return turned


def _without_range(group: Group) -> Group:
    """Return the group after resampling. Summed deltas exceed the range declared for single steps."""
    sums = group.mode == "delta" and group.kind != "gripper" and not _is_rate(group)
    return dataclasses.replace(group, low=None, high=None) if sums else group


def _is_rate(group: Group) -> bool:
    return group.unit.replace(" ", "").endswith("/s")


def _iterate_actions(shown: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (intervals, steps) of the first action of each interval, then of the second ones, and so on."""
    for j in range(int((ends - shown).max())):
        within = np.flatnonzero(shown + j < ends)
        yield within, shown[within] + j


def _sum_intervals(
    values: Float64[np.ndarray, "T a"], shown: np.ndarray, ends: np.ndarray
) -> Float64[np.ndarray, "K a"]:
    """Return the sum over each interval, 0 for an empty one."""
    total = np.zeros((len(shown), values.shape[1]))
    for within, at in _iterate_actions(shown, ends):
        total[within] += values[at]
    return total


def _compose_intervals(group: Group, values: np.ndarray, shown: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Compose the rotations of each interval, in the convention of the group."""
    rotation = read_rotations(group, values)
    frame: Frame = "tool" if group.frame == "tool" else "base"
    total = np.tile([0.0, 0.0, 0.0, 1.0], (len(shown), 1))
    for within, at in _iterate_actions(shown, ends):
        total[within] = apply(rotation[at], total[within], frame)
    return write_rotations(group, canonicalize(total))


def _sum_along_tool(
    steps: np.ndarray, by: Group, turns: np.ndarray, shown: np.ndarray, ends: np.ndarray
) -> Float64[np.ndarray, "K 3"]:
    """Sum steps of a rotating tool over each interval, in the tool frame at the start of the interval."""
    rotation = read_rotations(by, turns)
    total, turned = np.zeros((len(shown), 3)), np.tile([0.0, 0.0, 0.0, 1.0], (len(shown), 1))
    for within, at in _iterate_actions(shown, ends):
        total[within] += rotate(turned[within], steps[at])
        turned[within] = compose(turned[within], rotation[at])
    return total


def _read_end_times(dataset: EpisodeDataset) -> Float64[np.ndarray, "E"]:
    """Return the time of the last step of each episode, from the cache or by reading all episodes."""
    if (known := cache_folder.read("durations", dataset.fingerprint)) is not None:
        return np.frombuffer(known, "<f8")
    log.info("reading how long the %d episodes of %s last", len(dataset), dataset.root)
    ends = np.array(list(map_in_threads(partial(_read_end_time, dataset), range(len(dataset)))), "<f8")
    cache_folder.write("durations", dataset.fingerprint, ends.tobytes())
    return ends


def _read_end_time(dataset: EpisodeDataset, index: int) -> float:
    """Return the time of the last step of an episode; 0 if it cannot be read (indexing it raises)."""
    try:
        return float(dataset[index].timestamps[-1:].sum())
    except ValueError:
        return 0.0
