"""Writes LeRobot v3.0 data sets: any number of processes stage episodes one by one, then they are merged.

Staged episodes are stored in `<root>.partial/`, each complete or absent, so that an interrupted collection can be
resumed. `finalize` builds the data set beside its destination and renames it: a data set is complete or absent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.config import to_dict
from anyvla.data.episode import Episode, Frames, Images, steady_timestamps
from anyvla.data.formats import video
from anyvla.data.formats.lerobot.info import TIME
from anyvla.data.formats.lerobot.merge import merge
from anyvla.data.formats.lerobot.reader import ACTION, STATE
from anyvla.data.statistics import image_histogram, spread_evenly
from anyvla.files import durable
from anyvla.files.differences import check_same
from anyvla.files.documents import read_object
from anyvla.registry import suggest
from anyvla.robot.embodiment import Embodiment

_FRAMES_AT_ONCE = 64  # frames in memory
_STATISTICS_FRAMES = 100  # frames per episode that count in image statistics


def stage_episode(partial_root: Path, embodiment: Embodiment, index: int, episode: Episode) -> None:
    """Write one episode into `partial_root/episode-<index>/`, completely or not at all. Safe in worker processes.

    Raises ValueError if the episode does not fit the embodiment, OSError if the disk is full.
    """
    check_episode(embodiment, episode, f"episode {index}")
    target = partial_root / f"episode-{index:06d}"
    building = partial_root / f".building-{index:06d}-{os.getpid()}"
    facts: dict[str, Any] = {
        "length": len(episode),
        "instructions": episode.instructions,
        "extra": dict(episode.extra),
        "sizes": {name: episode.images[name].shape[1:3] for name in embodiment.cameras},
    }
    _to_json(facts, f"episode {index}: extra")
    try:
        with _explaining_full_disk(partial_root):
            shutil.rmtree(building, ignore_errors=True)  # left by a killed process
            building.mkdir(parents=True)
            facts["histograms"] = {}
            for name in embodiment.cameras:
                histogram = np.zeros((3, 256), np.int64)
                frames = _iterate_frames(episode.images[name], histogram)
                video.encode(building / f"{name}.mp4", frames, embodiment.control_hz)
                facts["histograms"][name] = histogram.tolist()
            columns = {ACTION: _as_column(episode.actions)}
            if embodiment.proprio.size:
                columns[STATE] = _as_column(episode.proprio)
            if not np.array_equal(episode.timestamps, steady_timestamps(len(episode), embodiment.control_hz)):
                columns[TIME] = pa.array(episode.timestamps)
            pq.write_table(pa.table(columns), building / "rows.parquet")
            (building / "episode.json").write_text(_to_json(facts, f"episode {index}"), encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            durable.put(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_episode(embodiment: Embodiment, episode: Episode, where: str = "episode") -> None:
    """Raise a ValueError that names the mismatch if an episode does not fit the embodiment."""
    length = len(episode.actions)
    if not length:
        raise ValueError(f"{where} has no steps")
    for name, array, space in (
        ("actions", episode.actions, embodiment.action),
        ("proprio", episode.proprio, embodiment.proprio),
    ):
        if array.dtype != np.float32 or array.shape != (length, space.size):
            raise ValueError(
                f"{where}: {name} must be float32 ({length}, {space.size}), got {array.dtype} {array.shape}"
            )
        if not np.isfinite(array).all():
            step, dim = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{where}: {name} at step {step}, {space.locate(int(dim))}, is {array[step, dim]}; drop or "
                "repair the episode"
            )
    for name in embodiment.cameras:
        if name not in episode.images:
            given = list(episode.images)
            raise ValueError(f"{where}: camera {name!r} is missing; {suggest(name, given) if given else 'none given'}")
        frames = episode.images[name]
        kind = np.dtype(np.uint8) if isinstance(frames, Frames) else frames.dtype
        if kind != np.uint8 or len(frames.shape) != 4 or frames.shape[3] != 3 or len(frames) != length:
            raise ValueError(f"{where}: camera {name!r} must be uint8 ({length}, H, W, 3), got {kind} {frames.shape}")
    if not all(text.strip() for text in episode.instructions):
        raise ValueError(f"{where}: an instruction is empty; leave it out, an episode may have none")
    times = episode.timestamps
    if times.shape != (length,) or not np.isfinite(times).all() or times[0] != 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"{where}: timestamps must be {length} increasing seconds from 0 on")


class LeRobotWriter:
    """The staging folder of a data set, and its merge.

    `provenance` describes how the episodes are made (benchmark, suite, seeds, ...). Only a run with equal provenance
    can resume. Raises ValueError if `root` exists already, or was begun with another provenance or robot.
    """

    def __init__(self, root: Path, embodiment: Embodiment, *, provenance: Mapping[str, Any]) -> None:
        self.root, self.embodiment = Path(root), embodiment
        self.partial_root = self.root.with_name(self.root.name + ".partial")
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            state = "holds a complete dataset" if is_complete(self.root) else "exists and is not a dataset"
            raise ValueError(f"{self.root} {state}: remove it or choose another output folder")
        for name in embodiment.cameras:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ValueError(f"camera name {name!r}: it becomes a file name; use letters, digits, '_', '-', '.'")
        text = _to_json({"embodiment": to_dict(embodiment), "provenance": dict(provenance)}, "provenance")
        path = self.partial_root / "provenance.json"
        with _explaining_full_disk(self.root):
            if path.exists():
                check_same(
                    read_object(path),
                    json.loads(text),
                    f"{self.partial_root} was begun with other settings ({{}}): run with the old settings to finish "
                    "it, or remove that folder to start over",
                    may_differ=lambda found: found.key == "provenance.source.path",  # the fingerprint identifies it
                )
            else:
                self.partial_root.mkdir(parents=True, exist_ok=True)
                durable.write(path, text)
        self._own = json.loads(text)

    @property
    def done(self) -> set[int]:
        """The indices of the staged episodes."""
        return {int(p.name.removeprefix("episode-")) for p in self.partial_root.glob("episode-[0-9]*")}

    @property
    def notes(self) -> dict[str, Any]:
        """The facts stored by `note`."""
        path = self.partial_root / "notes.json"
        return read_object(path) if path.exists() else {}

    def note(self, key: str, value: Any) -> None:
        """Store a small JSON fact (number of failures, ...) across interruptions; it ends up in `info.json`."""
        with _explaining_full_disk(self.root):
            durable.write(self.partial_root / "notes.json", _to_json({**self.notes, key: value}, f"note {key!r}"))

    def stage(self, index: int, episode: Episode) -> None:
        """Stage an episode in this process; see `stage_episode`."""
        stage_episode(self.partial_root, self.embodiment, index, episode)

    def finalize(self) -> None:
        """Merge the staged episodes, in the order of their indices, into the data set at `root`, then delete them.

        Raises ValueError if nothing is staged, OSError if the disk is full; the staged episodes are kept then.
        """
        staged = [self.partial_root / f"episode-{i:06d}" for i in sorted(self.done)]
        if not staged:
            raise ValueError(f"{self.partial_root} holds no episode: there is nothing to write")
        building = self.root.with_name(f".{self.root.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        try:
            with _explaining_full_disk(self.root):
                merge(building, staged, self.embodiment, {**self._own, "notes": self.notes})
                durable.put(building, self.root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(self.partial_root)


def write_dataset(
    root: Path, embodiment: Embodiment, episodes: Iterable[Episode], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write episodes as a data set at `root`, in one process."""
    writer = LeRobotWriter(root, embodiment, provenance=provenance or {})
    for index, episode in enumerate(episodes):
        if index not in writer.done:
            writer.stage(index, episode)
    writer.finalize()


def discard_leftovers(root: Path) -> None:
    """Remove the leftovers of a writer that was killed right after it completed the data set at `root`."""
    for folder in (root.with_name(root.name + ".partial"), root.with_name(f".{root.name}.building")):
        if folder.is_dir():
            shutil.rmtree(folder)


def is_complete(root: Path) -> bool:
    """Return whether `root` holds a complete data set."""
    return (root / "meta/info.json").is_file()  # datasets appear by one rename


def _iterate_frames(images: Images, histogram: np.ndarray) -> Iterator[np.ndarray]:
    """Yield frame by frame, decoding a few at a time. Evenly spaced frames are counted in the histogram."""
    length = len(images)
    counted = spread_evenly(length, _STATISTICS_FRAMES)
    for first in range(0, length, _FRAMES_AT_ONCE):
        block = images[first : first + _FRAMES_AT_ONCE]
        chosen = counted[(counted >= first) & (counted < first + len(block))] - first
        if len(chosen):
            histogram += image_histogram(block[chosen])
        yield from block


def _as_column(array: np.ndarray) -> pa.Array:
    if array.shape[1] == 1:  # LeRobot stores one-dim features as plain numbers
        return pa.array(array.ravel())
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def _to_json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be plain JSON data (text, numbers, lists, keys and values): {error}") from None


@contextlib.contextmanager
def _explaining_full_disk(root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk is full while writing {root}: free some space and run the same command, "
            "which resumes after the episodes written so far",
        ) from None
