"""What was said, predicted and executed in an episode: kept beside the results, to film it and to study it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvla.evaluation.rollout import Rollout
from anyvla.files.durable import replacing


@dataclass(frozen=True)
class Track:
    """The actions of an episode in robot units."""

    actions: np.ndarray  # float32 (T, A), those executed
    chunks: np.ndarray  # float32 (K, N, A), those predicted
    marks: np.ndarray  # int64 (K,), before which action each chunk was predicted
    stages: np.ndarray  # int64 (S,), before which action each task of a chain began
    words: tuple[str, ...]  # the instructions, each of which began a session
    told: np.ndarray  # int64, before which action each of them was given


def track_file(folder: Path, key: str) -> Path:
    """Where the track of an episode lies."""
    return folder / "tracks" / f"{key}.npz"


def write_track(folder: Path, rollout: Rollout, here: int) -> None:
    """Keep it, atomically. `here`: actions executed in the last stage."""
    path = track_file(folder, rollout.plan.key)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            actions=rollout.executed(here),
            chunks=np.stack(rollout.chunks) if rollout.chunks else np.zeros((0, 0, 0), np.float32),
            marks=np.array(rollout.marks, np.int64),
            stages=np.cumsum([0, *map(len, rollout.before)]),
            words=np.array([words for _, words in rollout.said], str),
            told=np.array([when for when, _ in rollout.said], np.int64),
        )


def read_track(folder: Path, key: str) -> Track:
    """Raises FileNotFoundError for an episode that has none."""
    with np.load(track_file(folder, key), allow_pickle=False) as kept:
        words = tuple(kept["words"].tolist())
        return Track(kept["actions"], kept["chunks"], kept["marks"], kept["stages"], words, kept["told"])
