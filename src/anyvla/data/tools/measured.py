"""Measures the numbers of a data set without declarations: their ranges, and how actions follow the proprio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.statistics import spread_evenly
from anyvla.data.threads import map_in_threads
from anyvla.robot.rotations import Quaternions, read_rotations, relative
from anyvla.robot.space import Group

VectorName = Literal["proprio", "actions"]
_KEPT = 200  # episodes of which all rows are kept, evenly spread


class MeasuredNumbers:
    """The extremes of each dim over all episodes that were added, and all rows of some of them.

    Non-finite numbers, and episodes whose vectors have another size, are ignored. Threads may add episodes.
    """

    def __init__(self, episodes: int, proprio: int, actions: int) -> None:
        """`episodes` of the data set; `proprio`, `actions`: their dims."""
        self._wanted = set(spread_evenly(episodes, _KEPT).tolist())
        self.low = {"proprio": np.full(proprio, np.inf), "actions": np.full(actions, np.inf)}
        self.high = {"proprio": np.full(proprio, -np.inf), "actions": np.full(actions, -np.inf)}
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def add(self, index: int, episode: Episode) -> None:
        """Count an episode."""
        arrays = {"proprio": episode.proprio, "actions": episode.actions}
        finite = {}
        for name, array in arrays.items():
            if array.ndim != 2 or not len(array) or array.shape[1] != len(self.low[name]):
                return
            finite[name] = np.isfinite(array)
        with self._lock:
            for name, array in arrays.items():
                self.low[name] = np.minimum(self.low[name], np.where(finite[name], array, np.inf).min(0))
                self.high[name] = np.maximum(self.high[name], np.where(finite[name], array, -np.inf).max(0))
            if index in self._wanted and all(f.all() for f in finite.values()):
                self._rows[index] = episode.proprio, episode.actions

    @property
    def rows(self) -> list[tuple[Float32[np.ndarray, "T P"], Float32[np.ndarray, "T A"]]]:
        """Return proprio and actions of the episodes kept, in order."""
        return [self._rows[i] for i in sorted(self._rows)]

    def values(self, part: VectorName, place: slice) -> Float32[np.ndarray, "N D"]:
        """Return all rows kept of some dims."""
        found = [pair[0 if part == "proprio" else 1][:, place] for pair in self.rows]
        return np.concatenate(found) if found else np.zeros((0, place.stop - place.start), np.float32)

    def range_of(self, part: VectorName, place: slice) -> tuple[float, float] | None:
        """Return the smallest and the largest number of some dims; None if there is none."""
        low, high = float(self.low[part][place].min()), float(self.high[part][place].max())
        return (low, high) if low <= high else None


def read_or_none(dataset: EpisodeDataset, index: int) -> Episode | None:
    """Return an episode; None if it cannot be read."""
    try:
        return dataset[index]
    except (ValueError, OSError, KeyError):
        return None


def measure(
    dataset: EpisodeDataset, progress: Callable[[int, int], None] = lambda done, total: None
) -> MeasuredNumbers:
    """Measure a data set; unreadable episodes are ignored. No frame is decoded."""
    robot = dataset.embodiment
    found = MeasuredNumbers(len(dataset), robot.proprio.size, robot.action.size)

    def add(index: int) -> None:
        episode = read_or_none(dataset, index)
        if episode is not None:
            found.add(index, episode)

    for _ in map_in_threads(add, range(len(dataset)), progress):
        pass
    return found


@dataclass(frozen=True)
class Relation:
    """How some dims of the actions follow dims of the proprio: one value per dim, in the units of the data."""

    to_next: Float64[np.ndarray, "D"]  # the mean distance between an action and the state after it
    to_change: Float64[np.ndarray, "D"]  # ... and the change of the state that follows it
    change: Float64[np.ndarray, "D"]  # the mean size of that change
    spread: Float64[np.ndarray, "D"]  # the standard deviation of the state
    follows_change: Float64[np.ndarray, "D"]  # correlation of the action with that change
    follows_next: Float64[np.ndarray, "D"]  # ... and with the state after it

    @property
    def mode(self) -> Literal["absolute", "delta", "scaled delta"] | None:
        """Return whether actions are the next states, the changes of the state, or proportional to these changes."""
        moving = self.spread > 1e-6 + 1e-4 * self.spread.max(initial=0)
        if not moving.any():
            return None
        to_next, to_change = self.to_next[moving], self.to_change[moving]
        if (to_next < 0.3 * self.spread[moving]).mean() > 0.5 and (to_next < 0.5 * to_change).mean() > 0.5:
            return "absolute"
        if (to_change < 0.3 * self.change[moving]).mean() > 0.5 and (to_change < 0.5 * to_next).mean() > 0.5:
            return "delta"
        follows_change, follows_next = np.median(self.follows_change[moving]), np.median(self.follows_next[moving])
        return "scaled delta" if follows_change > 0.7 and abs(follows_next) < 0.5 else None


def relate(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], proprio: slice, actions: slice, turn: float | None = None
) -> Relation | None:
    """Compare actions with the states before and after them. `turn` is a whole turn in the unit of angles.

    None if no episode has two steps.
    """
    parts = [(p[:-1, proprio], p[1:, proprio], a[:-1, actions]) for p, a in rows if len(p) > 1]
    if not parts:
        return None
    before, after, action = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    change = _wrapped(after - before, turn)
    return Relation(
        to_next=np.abs(_wrapped(action - after, turn)).mean(0),
        to_change=np.abs(_wrapped(action - change, turn)).mean(0),
        change=np.abs(change).mean(0),
        spread=after.std(0),
        follows_change=_correlation(action, change),
        follows_next=_correlation(action, after),
    )


def _wrapped(difference: np.ndarray, turn: float | None) -> np.ndarray:
    return difference if turn is None else (difference + turn / 2) % turn - turn / 2


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one - one.mean(0), other - other.mean(0)
    size = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return (one * other).sum(0) / np.where(size > 0, size, np.inf)


def orientation_mode(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    proprio: tuple[Group, slice],
    actions: tuple[Group, slice],
) -> Literal["absolute", "delta"] | None:
    """Return the mode that the numbers show: actions are the next orientations, or the turns to these.

    `rows`: proprio and actions of episodes. Return None if neither is clear, or if the numbers are no rotations.
    """
    parts = []
    try:
        for p, a in rows:
            states = read_rotations(proprio[0], p[:, proprio[1]])
            parts.append((states[:-1], states[1:], read_rotations(actions[0], a[:, actions[1]])[:-1]))
    except ValueError:  # no rotation, or a unit that is no angle
        return None
    if not any(len(before) for before, _, _ in parts):
        return None
    before, after, action = (np.concatenate(part) for part in zip(*parts, strict=True))
    turned = _angle(before, after)
    spread = _angle(after, np.roll(after, len(after) // 2, axis=0))
    to_next = _angle(action, after)
    to_turn = min(_angle(action, relative(before, after, "base")), _angle(action, relative(before, after, "tool")))
    if to_next < 0.3 * spread and to_next < 0.5 * to_turn:
        return "absolute"
    return "delta" if to_turn < 0.3 * turned and to_turn < 0.5 * to_next else None


def _angle(one: Quaternions, other: Quaternions) -> float:
    """Return the mean angle between orientations."""
    return float(np.mean(2 * np.arccos(np.clip(np.abs((one * other).sum(-1)), 0, 1))))
