"""Cuts episodes into training windows: T observations, the action chunk that begins at each, and masks.

A window has the observations that a session would have at its last step. Frames are decoded once and kept in memory
while they fit; of the other episodes, only the frames of the requested windows are decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.threads import compute_alone
from anyvla.data.training.cutting import count_rows, count_windows, list_steps, longest_row
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.reading import ReadingNotes
from anyvla.data.training.sampler import WindowIndices
from anyvla.limits import GB, STEPS
from anyvla.robot.views import ViewConfig, resize_to_view

log = logging.getLogger(__name__)

_UNDECODED = 512  # episodes kept without frames, because these do not fit
_THREADS = 4


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WindowConfig:
    """How windows are cut out of episodes."""

    window: int = Field(default=1, ge=1, le=STEPS)  # T: observations of a window
    chunk: int = Field(default=8, ge=1, le=STEPS)  # N: actions of the chunk that begins at each observation
    # steps between the observations of a window: the actions executed between two predictions
    stride: int = Field(default=1, ge=1, le=STEPS)
    # whole rows in place of windows: each begins where a session could and has all steps to the end, at most `window`
    whole: bool = False
    view: ViewConfig = ViewConfig()
    # decoded frames kept in memory; others are decoded at each use
    cache_gb: float = Field(default=2.0, ge=0, le=GB)


class WindowBatch(TypedDict):
    """The fields of `anyvla.types.Batch` as numpy arrays in robot units."""

    images: UInt8[np.ndarray, "B T V H W 3"]
    proprio: Float32[np.ndarray, "B T P"]
    instructions: list[str]  # B of them
    actions: Float32[np.ndarray, "B T N A"]
    action_mask: Bool[np.ndarray, "B T N"]
    step_mask: Bool[np.ndarray, "B T"]
    robots: Int64[np.ndarray, "B"]
    samples: Int64[np.ndarray, "B 3"]


class WindowDataset:
    """All windows of a mixture, numbered within each source, in the layout that its robots share.

    Windows end at each step of an episode and after its end, so that each step is in equally many
    (`anyvla.data.training.cutting`). A window over the beginning or the end of an episode has fewer steps: these come
    first, followed by masked steps of zeros. With `whole`, windows are whole rows, and a batch is as long as its
    longest one. Dims and views that a robot does not have are zeros too. `batch` may be called from several threads.

    Raises ValueError for data that cannot be trained on: episodes too short for a full window or chunk, or too long for
    whole rows, cameras of different sizes.
    """

    def __init__(self, mixture: Mixture, config: WindowConfig, *, trained: bool = True) -> None:
        """Take `trained` = False for held-out episodes, which may all be shorter than a window or a chunk."""
        self.mixture, self.config = mixture, config
        for dataset in mixture.datasets:
            if config.whole:
                _check_rows(dataset, config)
            if trained:
                _check_lengths(dataset, config)
        counts = [self._count(dataset.lengths) for dataset in mixture.datasets]
        self._ends = [np.cumsum(own) for own in counts]
        self.sizes = [int(ends[-1]) for ends in self._ends]  # windows of each source
        # Shares of the windows that give the steps of the sources the shares of the mixture. They do not sum to 1.
        frames = np.array([int(dataset.lengths.sum()) for dataset in mixture.datasets])
        self.shares: Float[np.ndarray, "S"] = mixture.shares * (np.array(self.sizes) / frames)
        self._image = _image_shape(mixture.datasets, config.view)  # (H, W, 3)
        self._begin()

    def _begin(self) -> None:
        self._room = int(self.config.cache_gb * 1e9)  # bytes
        self._kept: dict[tuple[int, int], Future[Episode]] = {}  # with decoded frames
        self._passing: OrderedDict[tuple[int, int], Future[Episode]] = OrderedDict()
        threads = min(_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=compute_alone)
        self._lock = threading.Lock()
        self._note: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def __getstate__(self) -> dict[str, Any]:  # a worker builds its own cache
        return {k: v for k, v in vars(self).items() if k in ("mixture", "config", "sizes", "shares", "_ends", "_image")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def note_reading(self, notes: ReadingNotes) -> None:
        """Note from now on which episodes are being read."""
        self._note = lambda where: notes.note(where)

    def describe(self, sample: Sequence[int], instruction: str) -> str:
        """Return the file, the episode, the step and the instruction of a row of `Batch.samples`."""
        source, episode, step = sample
        return f"{self.mixture.datasets[source].where(episode)}, step {step} ({instruction!r})"

    @property
    def decoded_gb(self) -> float:
        """The memory that all frames take when decoded, in GB."""
        image = int(np.prod(self._image))
        frames = sum(int(d.lengths.sum()) * len(d.embodiment.cameras) for d in self.mixture.datasets)
        return frames * image / 1e9

    @property
    def image_size(self) -> tuple[int, int]:
        """The size (H, W) of all views."""
        return self._image[0], self._image[1]

    def episodes_read(self) -> tuple[int, int]:
        """Return how many of the episodes asked for so far have been read here, and how many were asked for."""
        with self._lock:
            asked = [*self._kept.values(), *self._passing.values()]
        return sum(reading.done() for reading in asked), len(asked)

    def batch(self, indices: WindowIndices) -> WindowBatch:
        """Return windows. Raises IndexError for one that does not exist, ValueError for a damaged episode."""
        config, whole, count = self.config, self.mixture.layout.embodiment, len(indices)
        found = self._find_all(indices)
        steps = [self._list_steps(*where) for where in found]
        window = max(map(len, steps)) if config.whole else config.window
        out = WindowBatch(
            images=np.zeros((count, window, len(whole.cameras), *self._image), np.uint8),
            proprio=np.zeros((count, window, whole.proprio.size), np.float32),
            instructions=[""] * count,
            actions=np.zeros((count, window, config.chunk, whole.action.size), np.float32),
            action_mask=np.zeros((count, window, config.chunk), bool),
            step_mask=np.zeros((count, window), bool),
            robots=np.array([self.mixture.robot_of[s] for s in indices.sources], np.int64),
            samples=np.array([(*where[:2], own[-1]) for where, own in zip(found, steps, strict=True)], np.int64),
        )
        episodes = [self._request(source, episode) for source, episode, _ in found]

        def write(row: int) -> None:
            self._write(out, row, episodes[row].result(), found[row][0], steps[row], int(indices.chance[row]))

        # threads pay for decoding, but not for copying
        busy = [row for row in range(count) if not episodes[row].done() or not _is_decoded(episodes[row].result())]
        waiting = [self._pool.submit(write, row) for row in busy]
        for row in sorted(set(range(count)) - set(busy)):
            write(row)
        for task in waiting:
            task.result()
        return out

    def find_window(self, source: int, episode: int, step: int) -> int:
        """Return the number of the window that ends at a step of an episode; not for whole rows."""
        return (int(self._ends[source][episode - 1]) if episode else 0) + step

    def end_within(self, indices: WindowIndices) -> Bool[np.ndarray, "B"]:
        """Return which windows end at a step of their episode, and not after its end."""
        lengths = [dataset.lengths for dataset in self.mixture.datasets]
        return np.array([end < lengths[source][episode] for source, episode, end in self._find_all(indices)], bool)

    def _write(
        self, out: WindowBatch, row: int, episode: Episode, source: int, steps: Int64[np.ndarray, "k"], chance: int
    ) -> None:
        """Write the window of these steps of an episode into a row of the batch."""
        config = self.config
        places = self.mixture.layout.robots[episode.embodiment.name]
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
        for view, camera in zip(places.views, episode.embodiment.cameras, strict=True):
            out["images"][row, :k, view] = self._decode(episode, camera, steps)

    def _count(self, lengths: Int64[np.ndarray, "E"]) -> Int64[np.ndarray, "E"]:
        config = self.config
        return (
            count_rows(lengths, config.stride) if config.whole else count_windows(lengths, config.window, config.stride)
        )

    def _list_steps(self, source: int, episode: int, end: int) -> Int64[np.ndarray, "k"]:
        length = int(self.mixture.datasets[source].lengths[episode])
        return list_steps(end, length, self.config.window, self.config.stride)

    def _find_all(self, indices: WindowIndices) -> list[tuple[int, int, int]]:
        return [self._find(int(s), int(n)) for s, n in zip(indices.sources, indices.windows, strict=True)]

    def _find(self, source: int, window: int) -> tuple[int, int, int]:
        """Return the source, the episode of a window, and the step at which the window ends, from 0."""
        ends = self._ends[source]
        if not 0 <= window < ends[-1]:
            raise IndexError(f"source {source} has {ends[-1]} windows; no window {window}")
        episode = int(np.searchsorted(ends, window, side="right"))
        number = window - (int(ends[episode - 1]) if episode else 0)
        length = int(self.mixture.datasets[source].lengths[episode])
        return source, episode, number + (length - min(self.config.stride, length) if self.config.whole else 0)

    def _request(self, source: int, episode: int) -> Future[Episode]:
        """Return an episode, which is read in the background if it is not in memory."""
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

    def _read(self, dataset: EpisodeDataset, number: int, decode: bool) -> Episode:
        with self._note(dataset.where(number)):
            episode = dataset[number]
        if not decode:
            return episode
        images = {c: self._decode(episode, c, slice(None)) for c in episode.embodiment.cameras}
        return dataclasses.replace(episode, images=images)

    def _decode(
        self, episode: Episode, camera: str, steps: slice | Int64[np.ndarray, "k"]
    ) -> UInt8[np.ndarray, "k H W 3"]:
        """Return frames in the size of the view. Raises ValueError if others have another size."""
        with self._note(f"{episode.provenance}, camera {camera!r}"):
            frames = resize_to_view(episode.images[camera][steps], self.config.view)
        if frames.shape[1:] != self._image:
            raise ValueError(
                f"{episode.provenance}: camera {camera!r} has frames of {frames.shape[1]}x{frames.shape[2]}, expected "
                f"{self._image[0]}x{self._image[1]} as in the first episode: set model.view.size, and all are resized"
            )
        return frames


def _is_decoded(episode: Episode) -> bool:
    return all(isinstance(images, np.ndarray) for images in episode.images.values())


def _image_shape(datasets: Sequence[EpisodeDataset], view: ViewConfig) -> tuple[int, int, int]:
    """Return (H, W, 3) of all views. Raises ValueError if they differ, and for data without images."""
    if blind := [d for d in datasets if not d.embodiment.cameras]:
        raise ValueError(
            f"{blind[0].root} has no camera, and a vision-language-action model needs one at least: name the images of "
            "the data as cameras in its embodiment, or use data with images"
        )
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


def _check_rows(dataset: EpisodeDataset, config: WindowConfig) -> None:
    """Raise ValueError if an episode gives a row of more than `window` steps."""
    longest = longest_row(dataset.lengths, config.stride)
    if longest > config.window:
        raise ValueError(
            f"history recurrent trains on whole episodes, and episode {dataset.lengths.argmax()} of {dataset.root} has "
            f"{dataset.lengths.max()} steps: with {config.stride} executed at once, a row of {longest} steps, where "
            f"model.history.steps allows {config.window}. Raise it to {longest} (the memory of training grows with it; "
            "a smaller batch_size and model.history.at_once save memory), or execute more actions at once"
        )


def _check_lengths(dataset: EpisodeDataset, config: WindowConfig) -> None:
    """Raise ValueError if no episode has a full window or chunk; warn if most have none."""
    lengths = dataset.lengths
    if not len(lengths):
        raise ValueError(f"{dataset.root} holds no episode: there is nothing to train on")
    longest = int(lengths.max())
    at = f"the longest of {len(lengths)} episodes (number {lengths.argmax()} of {dataset.root}) has {longest} steps"
    span = 1 if config.whole else (config.window - 1) * config.stride + 1
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
    for name, needed in ((f"window of {config.window}", span), (f"chunk of {config.chunk}", config.chunk)):
        short = float((lengths < needed).mean())
        if short > 0.5:
            log.warning(
                "%.0f %% of the %d episodes of %s are too short for one full %s: that takes %d steps, and half of them "
                "have %d or fewer",
                100 * short,
                len(lengths),
                dataset.root,
                name,
                needed,
                np.median(lengths),
            )
