"""Recorded episodes that the doctor replays, decoded once, and the answers of a policy along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from anyvla.config import ConfigError
from anyvla.data.training.mixture import Mixture
from anyvla.evaluation.open_loop.recordings import Recording, choose_recordings
from anyvla.robot.embodiment import Embodiment
from anyvla.types import Observation

_COMPARED = 50  # episodes whose instructions are read


@dataclass(frozen=True)
class Played:
    """The first T steps of a recorded episode."""

    recording: Recording
    instruction: str
    images: dict[str, UInt8[np.ndarray, "T H W 3"]]
    proprio: Float32[np.ndarray, "T P"]
    actions: Float32[np.ndarray, "T A"]

    def __len__(self) -> int:
        return len(self.actions)

    def observe(self, step: int) -> Observation:
        """Return the observation at a step, as it was recorded."""
        return Observation({camera: frames[step] for camera, frames in self.images.items()}, self.proprio[step])


@dataclass(frozen=True)
class Answers:
    """The actions that a policy answered along one episode: a whole chunk, or one action (n = 1), at each call."""

    steps: Int64[np.ndarray, "K"]  # of the calls
    actions: Float32[np.ndarray, "K n A"]

    def executed(self, length: int) -> Float32[np.ndarray, "t A"]:
        """Return the actions that a robot executes if each answer is used until the next call, at most `length`."""
        ends = [*self.steps[1:].tolist(), length]
        parts = [a[: end - start] for a, start, end in zip(self.actions, self.steps.tolist(), ends, strict=True)]
        return np.concatenate(parts)[:length]


def choose_episodes(
    robots: Sequence[Embodiment], mixture: Mixture, count: int, robot: str | None = None
) -> list[Recording]:
    """Return at most `count` recordings of a robot; None: of the robot of the first recording.

    If possible, the second has the instruction of the first, the third another: a history that is never reset shows
    between two episodes of one instruction only, and a wrong instruction only where they differ. Raises ConfigError for
    data of a robot that the policy was not trained for, or that does not show `robot`.
    """
    found = choose_recordings(robots, mixture, sum(map(len, mixture.datasets)))
    left = [r for r in found if r.robot == (robot or found[0].robot)]
    if not left:
        shown = ", ".join(sorted({r.robot for r in found}))
        raise ConfigError(f"the data shows {shown}, not the robot {robot}")
    chosen: list[Recording] = []
    while left and len(chosen) < count:
        tasks, again = {_task(r) for r in chosen}, len(chosen) == 1
        candidates = [r for r in left if (_task(r) in tasks) == again] or left
        if again:
            text = chosen[0].read(None)[1]
            candidates = [r for r in candidates[:_COMPARED] if r.read(None)[1] == text] or candidates
        chosen.append(candidates[0])
        left.remove(chosen[-1])
    return chosen


def read_episodes(recordings: Sequence[Recording], steps: int, calls_apart: int) -> list[Played]:
    """Decode the first `steps` steps of each recording.

    Raises ConfigError if no episode is long enough for two predictions, which are `calls_apart` steps apart.
    """
    lengths = [int(r.dataset.lengths[r.index]) for r in recordings]
    long_enough = [r for r, n in zip(recordings, lengths, strict=True) if min(n, steps) > calls_apart]
    if not long_enough:
        raise ConfigError(
            f"the chosen episodes are too short: the policy is called every {calls_apart} steps, and the longest of "
            f"them has {max(lengths, default=0)} (at most {steps} are replayed): give longer episodes, or more --steps"
        )
    return [_read(recording, steps) for recording in long_enough]


def _read(recording: Recording, steps: int) -> Played:
    episode, instruction = recording.read(None)
    count = min(len(episode), steps)
    images = {camera: np.ascontiguousarray(frames[0:count]) for camera, frames in episode.images.items()}
    return Played(recording, instruction, images, episode.proprio[:count], episode.actions[:count])


def _task(recording: Recording) -> str:
    return recording.dataset.task(recording.index)


def list_instructions(mixture: Mixture, most: int = 50) -> list[str]:
    """Return different instructions of the data: of the first episode of each of the first `most` tasks."""
    found: dict[str, str] = {}
    for source, dataset in enumerate(mixture.datasets):
        for index in range(len(dataset)):
            if (task := dataset.task(index)) not in found and len(found) < most:
                found[task] = mixture.instruction(source, dataset[index], 0)
    return list(dict.fromkeys(found.values()))
