"""Turns episodes into training windows: W observations, the action chunk that begins at each, and masks.

Frames are decoded once and kept in memory as long as they fit; a batch is then one gather by index arithmetic. The
order of training is a pure function of seed and step, so that resuming needs the step number only.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT
from anyvla.data.episode import Embodiment, Episode, EpisodeDataset

log = logging.getLogger(__name__)


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class WindowConfig:
    """How windows are cut out of episodes."""

    window: int = 1  # W: observations of a window
    chunk: int = 8  # N: actions of the chunk that begins at each observation
    stride: int = 1  # steps between the observations of a window: the actions executed between two predictions
    cache_gb: float = 2.0  # decoded frames kept in memory; what does not fit is decoded each time it is asked for

    def __post_init__(self) -> None:
        for name in ("window", "chunk", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cache_gb < 0:
            raise ValueError(f"cache_gb must not be negative, got {self.cache_gb}")


class WindowBatch(TypedDict):
    """What `WindowDataset.batch` gives: the fields of `anyvla.types.Batch`, as numpy arrays in robot units."""

    images: UInt8[np.ndarray, "B W V H W 3"]
    proprio: Float32[np.ndarray, "B W P"]
    instructions: list[str]  # B of them
    actions: Float32[np.ndarray, "B W N A"]
    action_mask: Bool[np.ndarray, "B W N"]
    step_mask: Bool[np.ndarray, "B W"]


class WindowDataset:
    """Every window of a data set: one ends at each frame, numbered through all episodes, as a session sees it there.

    A window near the begin of its episode has fewer steps; they come first, and masked steps are zeros at its end.
    Raises ValueError for data that cannot be trained on (numbers that are not finite, vectors of another size than the
    embodiment declares, episodes too short for any full window or chunk, cameras that differ in size). `batch` may be
    called from several threads.
    """

    def __init__(self, dataset: EpisodeDataset, config: WindowConfig) -> None:
        if not len(dataset):
            raise ValueError("the data set holds no episode: there is nothing to train on")
        self.dataset = dataset
        self.config = config
        episodes = [dataset[i] for i in range(len(dataset))]
        check_vectors(episodes, dataset.embodiment)
        _check_lengths([len(e) for e in episodes], config)
        self._proprio = np.concatenate([e.proprio for e in episodes])
        self._actions = np.concatenate([e.actions for e in episodes])
        self._instructions = [e.instruction for e in episodes]
        self._ends = np.cumsum([len(e) for e in episodes])
        self._starts = self._ends - [len(e) for e in episodes]
        self._cameras = dataset.embodiment.cameras
        sizes = {c: episodes[0].images[c].shape[1:3] for c in self._cameras}
        if len(set(sizes.values())) != 1:
            given = ", ".join(f"{c} {h}x{w}" for c, (h, w) in sizes.items())
            raise ValueError(
                f"the cameras of a window must have one size, got {given}: render or crop them to one size"
            )
        self._frame_shape = (len(self._cameras), *sizes[self._cameras[0]], 3)  # (V, H, W, 3)
        room = int(config.cache_gb * 1e9) // int(np.prod(self._frame_shape))
        self._kept = int(np.searchsorted(self._ends, room, side="right"))  # the first episodes are kept, as many as fit
        frames_kept = int(self._ends[self._kept - 1]) if self._kept else 0
        self._frames = np.empty((frames_kept, *self._frame_shape), np.uint8)
        self._decoded = np.zeros(self._kept, bool)
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._actions)

    @property
    def kept_in_memory(self) -> float:
        """The share of frames that stay decoded in memory, 0 to 1."""
        return len(self._frames) / len(self)

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode now what fits in memory, instead of at first use; `progress(done, total)` counts episodes."""
        for start in range(0, self._kept, 8):
            stop = min(start + 8, self._kept)
            self._decode(range(start, stop))
            if progress is not None:
                progress(stop, self._kept)

    def batch(self, indices: Int64[np.ndarray, "B"]) -> WindowBatch:
        """The windows that end at these frames. Raises IndexError for a frame outside of the data set."""
        last = np.asarray(indices, dtype=np.int64)
        if last.ndim != 1 or (len(last) and (last.min() < 0 or last.max() >= len(self))):
            raise IndexError(f"window indices must be a vector of numbers in [0, {len(self)}), got {last}")
        stride, places = self.config.stride, np.arange(self.config.window)
        episode = np.searchsorted(self._ends, last, side="right")
        before = np.minimum(len(places) - 1, (last - self._starts[episode]) // stride)  # steps
        step_mask = places <= before[:, None]  # (B, W)
        steps = np.where(step_mask, (last - before * stride)[:, None] + places * stride, last[:, None])
        chunk = steps[:, :, None] + np.arange(self.config.chunk)  # (B, W, N)
        action_mask = (chunk < self._ends[episode][:, None, None]) & step_mask[:, :, None]
        actions = self._actions[np.where(action_mask, chunk, 0)]
        actions[~action_mask] = 0
        proprio = self._proprio[steps]
        proprio[~step_mask] = 0
        images = self._images(episode, steps)
        images[~step_mask] = 0
        return WindowBatch(
            images=images,
            proprio=proprio,
            instructions=[self._instructions[e] for e in episode],
            actions=actions,
            action_mask=action_mask,
            step_mask=step_mask,
        )

    def _images(self, episode: np.ndarray, steps: np.ndarray) -> np.ndarray:
        kept = episode < self._kept
        self._decode(np.unique(episode[kept]))
        if kept.all():
            return self._frames[steps]
        images = np.empty((*steps.shape, *self._frame_shape), np.uint8)
        images[kept] = self._frames[steps[kept]]

        def read(b: int) -> None:
            numbers = (steps[b] - self._starts[episode[b]]).tolist()
            for v, camera in enumerate(self._cameras):
                images[b, :, v] = self.dataset.frames(camera, int(episode[b]), numbers)

        list(self._pool.map(read, np.flatnonzero(~kept)))
        return images

    def _decode(self, episodes: Iterable[int]) -> None:
        def read(i: int) -> None:
            images = self.dataset[i].images
            target = self._frames[self._starts[i] : self._ends[i]]
            for v, camera in enumerate(self._cameras):
                if images[camera].shape != target[:, v].shape:
                    raise ValueError(
                        f"episode {i}: camera {camera!r} has frames of shape {images[camera].shape}, "
                        f"expected {target[:, v].shape} as in episode 0"
                    )
                target[:, v] = images[camera]
            self._decoded[i] = True

        with self._lock:
            list(self._pool.map(read, [int(i) for i in episodes if not self._decoded[i]]))


def check_vectors(episodes: Sequence[Episode], embodiment: Embodiment) -> None:
    """Raises ValueError at the first vector of a wrong size and the first number that is not finite."""
    for name, space in (("actions", embodiment.action), ("proprio", embodiment.proprio)):
        for number, episode in enumerate(episodes):
            array = getattr(episode, name)
            if array.shape != (len(episode), space.size):
                groups = ", ".join(f"{g.name} {g.size}" for g in space.groups)
                raise ValueError(
                    f"episode {number} of {len(episodes)}: {name} have shape {array.shape}, but embodiment "
                    f"{embodiment.name!r} declares {space.size} dims ({groups}), and the episode has {len(episode)} "
                    "steps: declare the groups that the data has, or mend the data"
                )
        broken = [number for number, e in enumerate(episodes) if not np.isfinite(getattr(e, name)).all()]
        if broken:
            array = getattr(episodes[broken[0]], name)
            step, dim = np.argwhere(~np.isfinite(array))[0]
            group, place = next((g, p) for g, p in space.slices().items() if p.start <= dim < p.stop)
            raise ValueError(
                f"{name} must be finite: episode {broken[0]}, step {step}, group {group!r}, dim {dim - place.start} of "
                f"it, is {array[step, dim]} ({len(broken)} of {len(episodes)} episodes hold such numbers): mend these "
                "episodes or leave them out"
            )


def _check_lengths(lengths: Sequence[int], config: WindowConfig) -> None:
    """Raises ValueError if no episode has a full window or chunk; warns if most have none."""
    longest = max(lengths)
    at = f"the longest of {len(lengths)} episodes (number {lengths.index(longest)}) has {longest} steps"
    span = (config.window - 1) * config.stride + 1
    if span > longest:
        largest, nearest = (longest - 1) // config.stride + 1, (longest - 1) // (config.window - 1)
        raise ValueError(
            f"a window of {config.window} steps with stride {config.stride} spans {span} steps of an episode, but "
            f"{at}, so that no window would ever be full: use a window of at most {largest}, "
            + (f"a stride (the actions executed at once) of at most {nearest}, " if nearest else "")
            + "or longer episodes"
        )
    if config.chunk > longest:
        raise ValueError(
            f"a chunk of {config.chunk} actions, but {at}, so that its last actions would never be learnt: use a chunk "
            f"of at most {longest}, or longer episodes"
        )
    for what, needed in ((f"window of {config.window}", span), (f"chunk of {config.chunk}", config.chunk)):
        short = sum(length < needed for length in lengths) / len(lengths)
        if short > 0.5:
            log.warning(
                "%.0f %% of the %d episodes are too short for one full %s: that takes %d steps, and half of them have "
                "%d or fewer",
                100 * short,
                len(lengths),
                what,
                needed,
                np.median(lengths),
            )


class EpochSampler:
    """Batches in an order that depends on nothing but `seed` and the step.

    The numbers 0 .. n-1 are shuffled anew each epoch and the epochs run on one after another: the last batch of an
    epoch is filled from the next one, so every number comes up exactly once per epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be at least 1, got n={n}, batch_size={batch_size}")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def indices(self, step: int) -> Int64[np.ndarray, "B"]:
        """The batch of step 0, 1, ..."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        position, missing = step * self.batch_size, self.batch_size
        parts = []
        while missing:
            epoch, offset = divmod(position, self.n)
            part = self._epoch(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        order = self._order  # read once: another thread may put the next epoch there
        if order[0] != epoch:
            order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n))
            self._order = order
        return order[1]
