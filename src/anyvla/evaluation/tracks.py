"""Store the instructions, chunks and executed actions of each episode beside the results, for videos and analysis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvla.evaluation.rollout import Rollout
from anyvla.files.durable import replacing
from anyvla.migrations import TRACK_ARRAYS, former_key


@dataclass(frozen=True)
class Track:
    """The actions of an episode, in the robot's units."""

    actions: np.ndarray  # float32 (T, A), executed
    chunks: np.ndarray  # float32 (K, N, A), predicted
    predicted_at: np.ndarray  # int64 (K,), number of actions executed before each prediction
    subtask_starts: np.ndarray  # int64 (S,), number of actions executed before each task of a chain
    instructions: tuple[str, ...]  # each began a session
    instructed_at: np.ndarray  # int64, number of actions executed before each instruction


def track_file(folder: Path, key: str) -> Path:
    """Return the path of an episode's track."""
    return folder / "tracks" / f"{key}.npz"


def write_track(folder: Path, rollout: Rollout, subtask_steps: int) -> None:
    """Write the track of an episode atomically. `subtask_steps`: actions executed in the last subtask."""
    path = track_file(folder, rollout.plan.key)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            actions=rollout.executed(subtask_steps),
            chunks=np.stack(rollout.chunks) if rollout.chunks else np.zeros((0, 0, 0), np.float32),
            predicted_at=np.array(rollout.predicted_at, np.int64),
            subtask_starts=np.cumsum([0, *map(len, rollout.finished)]),
            instructions=np.array([instruction for _, instruction in rollout.instructions], str),
            instructed_at=np.array([step for step, _ in rollout.instructions], np.int64),
        )


def read_track(folder: Path, key: str) -> Track:
    """Return the track of an episode. Raises FileNotFoundError if there is none."""
    path = track_file(folder, key)
    if not path.is_file():
        path = track_file(folder, former_key(key))
    with np.load(path, allow_pickle=False) as saved:
        arrays = {TRACK_ARRAYS.get(name, name): saved[name] for name in saved.files}
    return Track(**arrays | {"instructions": tuple(arrays["instructions"].tolist())})
