"""Turns episodes into training windows: W observations, the action chunk that begins at each, and masks.

A window ends at each step of each episode, as a session would see it there. Frames are decoded once and kept in memory
as long as they fit; of other episodes only the frames that a window shows are decoded.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT
from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import WindowIndices
from anyvla.limits import GB, STEPS
from anyvla.robot.views import ViewConfig, resize_to_view

log = logging.getLogger(__name__)

_UNDECODED = 512  # episodes whose numbers are kept, of those whose frames do not fit
_THREADS = 4


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class WindowConfig:
    """How windows are cut out of episodes."""

    window: int = Field(default=1, ge=1, le=STEPS)  # W: observations of a window
    chunk: int = Field(default=8, ge=1, le=STEPS)  # N: actions of the chunk that begins at each observation
    # steps between the observations of a window: the actions executed between two predictions
    stride: int = Field(default=1, ge=1, le=STEPS)
    view: ViewConfig = ViewConfig()
    # decoded frames kept in memory; what does not fit is decoded each time it is asked for
    cache_gb: float = Field(default=2.0, ge=0, le=GB)


class WindowBatch(TypedDict):
    """What `WindowDataset.batch` gives: the fields of `anyvla.types.Batch`, as numpy arrays in robot units."""

    images: UInt8[np.ndarray, "B W V H W 3"]
    proprio: Float32[np.ndarray, "B W P"]
    instructions: list[str]  # B of them
    actions: Float32[np.ndarray, "B W N A"]
    action_mask: Bool[np.ndarray, "B W N"]
    step_mask: Bool[np.ndarray, "B W"]
    robots: Int64[np.ndarray, "B"]


@dataclass(frozen=True)
class _Read:
    """An episode that is at hand."""

    episode: Episode
    frames: UInt8[np.ndarray, "T V H W 3"] | None  # of the robot's own cameras; None: decoded when asked for


class WindowDataset:
    """Every window of a mixture, in the layout that its robots share: one ends at each step, numbered by source.

    A window near the begin of its episode has fewer steps; they come first, and masked steps are zeros at its end. So
    are dims and views that a robot does not have. Raises ValueError for data that cannot be trained on (episodes too
    short for any full window or chunk, cameras that differ in size). `batch` may be called from several threads.
    """

    def __init__(self, mixture: Mixture, config: WindowConfig) -> None:
        self.mixture, self.config = mixture, config
        for dataset in mixture.datasets:
            _check_lengths(dataset, config)
        self._ends = [np.cumsum(dataset.lengths) for dataset in mixture.datasets]
        self.sizes = [int(ends[-1]) for ends in self._ends]  # windows of each source
        self._image = _image_shape(mixture.datasets, config.view)  # (H, W, 3)
        self._begin()

    def _begin(self) -> None:
        self._room = int(self.config.cache_gb * 1e9)  # bytes
        self._kept: dict[tuple[int, int], Future[_Read]] = {}
        self._passing: OrderedDict[tuple[int, int], Future[_Read]] = OrderedDict()
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # to a worker goes what is needed to begin there
        return {k: v for k, v in vars(self).items() if k in ("mixture", "config", "sizes", "_ends", "_image")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def decoded_gb(self) -> float:
        """What all frames take in memory once they are decoded."""
        image = int(np.prod(self._image))
        frames = sum(int(d.lengths.sum()) * len(d.embodiment.cameras) for d in self.mixture.datasets)
        return frames * image / 1e9

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of all views as they are kept."""
        return self._image[0], self._image[1]

    def episodes_read(self) -> tuple[int, int]:
        """Return how many of the episodes asked for so far have been read here, and how many were asked for."""
        with self._lock:
            asked = [*self._kept.values(), *self._passing.values()]
        return sum(reading.done() for reading in asked), len(asked)

    def batch(self, draw: WindowIndices) -> WindowBatch:
        """These windows. Raises IndexError for one that its source does not have, ValueError for a damaged episode."""
        config, whole = self.config, self.mixture.layout.embodiment
        count, w = len(draw), config.window
        out = WindowBatch(
            images=np.zeros((count, w, len(whole.cameras), *self._image), np.uint8),
            proprio=np.zeros((count, w, whole.proprio.size), np.float32),
            instructions=[""] * count,
            actions=np.zeros((count, w, config.chunk, whole.action.size), np.float32),
            action_mask=np.zeros((count, w, config.chunk), bool),
            step_mask=np.zeros((count, w), bool),
            robots=np.array([self.mixture.robot_of[s] for s in draw.sources], np.int64),
        )
        found = [self._find(int(s), int(n)) for s, n in zip(draw.sources, draw.windows, strict=True)]
        episodes = [self._ask(source, episode) for source, episode, _ in found]

        def write(row: int) -> None:
            (source, _, last), read = found[row], episodes[row].result()
            self._write(out, row, read, source, last, int(draw.chance[row]))

        # decoding is worth a thread, copying is not
        busy = [row for row in range(count) if not episodes[row].done() or episodes[row].result().frames is None]
        waiting = [self._pool.submit(write, row) for row in busy]
        for row in sorted(set(range(count)) - set(busy)):
            write(row)
        for task in waiting:
            task.result()
        return out

    def _write(self, out: WindowBatch, row: int, read: _Read, source: int, last: int, chance: int) -> None:
        """The window that ends at step `last` of an episode."""
        config, episode = self.config, read.episode
        places = self.mixture.layout.robots[episode.embodiment.name]
        before = min(config.window - 1, last // config.stride)
        steps = np.arange(last - before * config.stride, last + 1, config.stride)
        k = len(steps)
        chunk = steps[:, None] + np.arange(config.chunk)  # (k, N)
        there = chunk < len(episode)
        actions = np.zeros((k, config.chunk, len(places.action)), np.float32)
        actions[there] = episode.actions[chunk[there]]
        out["actions"][row, :k][..., places.action] = actions
        out["action_mask"][row, :k] = there
        out["step_mask"][row, :k] = True
        out["proprio"][row, :k][:, places.proprio] = episode.proprio[steps]
        out["instructions"][row] = self.mixture.instruction(source, episode, chance)
        if read.frames is not None:
            out["images"][row, :k][:, places.views] = read.frames[steps]
        else:
            for view, camera in zip(places.views, episode.embodiment.cameras, strict=True):
                frames = resize_to_view(episode.images[camera][steps], config.view)
                self._check_size(frames, camera, episode)
                out["images"][row, :k, view] = frames

    def _find(self, source: int, window: int) -> tuple[int, int, int]:
        """The episode that a window lies in, and the step at which it ends."""
        ends = self._ends[source]
        if not 0 <= window < ends[-1]:
            raise IndexError(f"source {source} has {ends[-1]} windows; no window {window}")
        episode = int(np.searchsorted(ends, window, side="right"))
        return source, episode, window - (int(ends[episode - 1]) if episode else 0)

    def _ask(self, source: int, episode: int) -> Future[_Read]:
        """An episode, being read in the background if it is not at hand."""
        key = source, episode
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            if key in self._passing:
                self._passing.move_to_end(key)
                return self._passing[key]
            dataset = self.mixture.datasets[source]
            size = int(dataset.lengths[episode]) * len(dataset.embodiment.cameras) * int(np.prod(self._image))
            keep = size <= self._room
            reading = self._pool.submit(self._read, dataset, episode, keep)
            if keep:
                self._room -= size
                self._kept[key] = reading
            else:
                self._passing[key] = reading
                if len(self._passing) > _UNDECODED:
                    self._passing.popitem(last=False)
            return reading

    def _read(self, dataset: EpisodeDataset, number: int, keep: bool) -> _Read:
        episode = dataset[number]
        if not keep:
            return _Read(episode, None)
        cameras = episode.embodiment.cameras
        frames = np.empty((len(episode), len(cameras), *self._image), np.uint8)
        for v, camera in enumerate(cameras):
            decoded = resize_to_view(episode.images[camera][:], self.config.view)
            self._check_size(decoded, camera, episode)
            frames[:, v] = decoded
        return _Read(episode, frames)

    def _check_size(self, frames: np.ndarray, camera: str, episode: Episode) -> None:
        if frames.shape[1:] != self._image:
            raise ValueError(
                f"{episode.provenance}: camera {camera!r} has frames of {frames.shape[1]}x{frames.shape[2]}, expected "
                f"{self._image[0]}x{self._image[1]} as in the first episode: set model.view.size, and all are resized"
            )


def _image_shape(datasets: Sequence[EpisodeDataset], view: ViewConfig) -> tuple[int, int, int]:
    """Of all views. Raises ValueError if they differ."""
    if view.size is not None:
        return (*view.size, 3)
    sizes = {(str(d.root), c): tuple(d[0].images[c].shape[1:3]) for d in datasets for c in d.embodiment.cameras}
    if len(set(sizes.values())) != 1:
        several = len(datasets) > 1
        given = ", ".join(f"{root + ' ' if several else ''}{c} {h}x{w}" for (root, c), (h, w) in sizes.items())
        raise ValueError(
            f"the cameras of a window must have one size, got {given}: set model.view.size, as in "
            "model: {view: {size: [224, 224]}}, and all are resized"
        )
    return (*next(iter(sizes.values())), 3)


def _check_lengths(dataset: EpisodeDataset, config: WindowConfig) -> None:
    """Raises ValueError if no episode has a full window or chunk; warns if most have none."""
    lengths = dataset.lengths
    if not len(lengths):
        raise ValueError(f"{dataset.root} holds no episode: there is nothing to train on")
    longest = int(lengths.max())
    at = f"the longest of {len(lengths)} episodes (number {lengths.argmax()} of {dataset.root}) has {longest} steps"
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
            f"a chunk of {config.chunk} actions, but {at}, so that its last actions would never be learned: use a "
            f"chunk of at most {longest}, or longer episodes"
        )
    for what, needed in ((f"window of {config.window}", span), (f"chunk of {config.chunk}", config.chunk)):
        short = float((lengths < needed).mean())
        if short > 0.5:
            log.warning(
                "%.0f %% of the %d episodes of %s are too short for one full %s: that takes %d steps, and half of them "
                "have %d or fewer",
                100 * short,
                len(lengths),
                dataset.root,
                what,
                needed,
                np.median(lengths),
            )
