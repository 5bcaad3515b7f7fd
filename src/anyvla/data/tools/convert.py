"""Converts a data set of any format to LeRobot v3: in parallel, resumable, and verified number by number.

Worker processes stage episodes one by one, each whole or absent. The episodes are then merged, read back and compared
with their source. The report is `meta/conversion.json`; without it a conversion is not finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.config import to_dict
from anyvla.data import fingerprints
from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.formats.lerobot.dataset import LeRobotDataset
from anyvla.data.formats.lerobot.writer import LeRobotWriter, discard_leftovers, is_complete, stage_episode
from anyvla.data.open import open_dataset
from anyvla.data.statistics import spread_evenly
from anyvla.files import durable
from anyvla.files.differences import check_same
from anyvla.files.documents import read_object
from anyvla.files.folder_lock import lock_while_making
from anyvla.interrupted import Interrupted
from anyvla.worker_pool import WorkerPool

REPORT = Path("meta/conversion.json")
FLOOR_DB = 30.0  # peak signal to noise ratio below which images count as damaged by the codec
_COMPARED = 4  # frames of an episode and camera that are compared


@dataclass(frozen=True)
class Conversion:
    """The report of a conversion that was verified."""

    source: dict[str, Any]  # its path, fingerprint and provenance
    episodes: int
    steps: int
    skipped: dict[str, str]  # number of an unreadable episode of the source -> the error
    psnr_db: dict[str, dict[str, float]]  # camera -> worst and mean of the compared frames; numbers are equal exactly
    fingerprint: str  # of the copy


def convert(
    source: EpisodeDataset,
    root: Path,
    *,
    episodes: Sequence[int] | None = None,
    skip_damaged: bool = False,
    processes: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Conversion:
    """Write `episodes` (None: all) of `source` at `root`, or resume.

    An existing copy of the same episodes is left alone. `skip_damaged` leaves out unreadable episodes and lists them;
    without it the first one ends the conversion.

    Raises ValueError for a damaged episode, for a `root` that holds something else and for a difference found on
    reading back; OSError if the disk is full (finished episodes are kept); Interrupted once `stop()` returns True;
    FolderInUse if another command writes there.
    """
    chosen = list(range(len(source))) if episodes is None else list(episodes)
    origin = {"path": str(source.root), "fingerprint": source.fingerprint, "provenance": dict(source.provenance)}
    wanted = {"source": origin, "episodes": "all" if episodes is None else chosen}
    with lock_while_making(root):
        if is_complete(root):
            _check_source(root, wanted)
            discard_leftovers(root)
        else:
            _write(source, root, chosen, wanted, skip_damaged, processes, progress, stop)
        written = LeRobotDataset(LeRobotDataset.Config(), root)
        if (root / REPORT).is_file():
            done = _read_report(root / REPORT)
            if done.fingerprint != written.fingerprint:
                raise ValueError(
                    f"{root} was changed after it was converted: use it as it is, or choose another output folder"
                )
            return done
        skipped = written.notes.get("skipped", {})
        kept = [i for i in chosen if str(i) not in skipped]
        try:
            report = _verify(source, written, kept, origin, skipped, partial(progress, "verify"), stop)
        except ValueError:
            shutil.move(root, root.with_name(root.name + ".wrong"))  # for a look; it must not pass for the real one
            raise
        durable.write(root / REPORT, json.dumps(asdict(report), indent=1))
        return report


def _write(
    source: EpisodeDataset,
    root: Path,
    chosen: Sequence[int],
    wanted: dict[str, Any],
    skip_damaged: bool,
    processes: int | None,
    progress: Callable[[str, int, int], None],
    stop: Callable[[], bool],
) -> None:
    """Stage the missing episodes, and merge."""
    writer = LeRobotWriter(root, source.embodiment, provenance={"format": "lerobot", **wanted})
    skipped: dict[str, str] = dict(writer.notes.get("skipped", {})) if skip_damaged else {}
    writer.note("skipped", skipped)  # an earlier run may have skipped episodes that this one must not
    todo = deque(i for i in chosen if i not in writer.done and str(i) not in skipped)
    count = min(processes or os.cpu_count() or 1, max(1, len(todo)))
    done = len(chosen) - len(todo)
    progress("write", done, len(chosen))
    remedy = "try fewer --processes. Finished episodes are kept: run the same command to resume"
    with WorkerPool(count, _start, (source, writer.partial_root), remedy=remedy) as pool:
        for index, fault in pool.run(_stage, todo, 2 * count, stop):
            if fault is not None and not skip_damaged:
                raise ValueError(
                    f"episode {index} of {source.root} cannot be converted: {fault}\nrepair it, or leave such "
                    "episodes out with --skip-damaged; what was written is kept"
                )
            if fault is not None:
                skipped[str(index)] = fault
                writer.note("skipped", skipped)
            done += 1
            progress("write", done, len(chosen))
        if todo:
            raise Interrupted(f"stopped after {done} of {len(chosen)} episodes; run the same command to resume")
    writer.finalize()


def _verify(
    source: EpisodeDataset,
    written: LeRobotDataset,
    kept: Sequence[int],
    origin: dict[str, Any],
    skipped: dict[str, str],
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Conversion:
    """Compare a copy with its source: all numbers exactly, some frames within the loss of a codec."""
    root = written.root
    if len(written) != len(kept):
        raise ValueError(f"{root} holds {len(written)} episodes, {len(kept)} were written")
    if to_dict(written.embodiment) != to_dict(source.embodiment):
        raise ValueError(f"{root} describes another robot than {source.root}")
    found: dict[str, list[float]] = {camera: [] for camera in source.embodiment.cameras}
    steps = 0
    for number, index in enumerate(kept):
        if stop():
            raise Interrupted(f"written; stopped after reading back {number} of {len(kept)} episodes; do it again")
        old, new = source[index], written[number]
        _compare(old, new, f"{root}, episode {number}, made of episode {index}")
        steps += len(new)
        some = spread_evenly(len(old), _COMPARED)
        for camera, values in found.items():
            ratios = _psnr(old.images[camera][some], new.images[camera][some])
            if min(ratios, default=FLOOR_DB) < FLOOR_DB:
                raise ValueError(
                    f"{root}, episode {number}: images of camera {camera!r} differ from the source by "
                    f"{min(ratios):.1f} dB, less than {FLOOR_DB:g} dB is no loss of a codec"
                )
            values += ratios
        progress(number + 1, len(kept))
    psnr = {c: {"worst": round(min(v), 2), "mean": round(float(np.mean(v)), 2)} for c, v in found.items() if v}
    return Conversion(origin, len(kept), steps, skipped, psnr, written.fingerprint)


def _compare(old: Episode, new: Episode, where: str) -> None:
    for name in ("actions", "proprio", "timestamps"):
        if not np.array_equal(getattr(old, name), getattr(new, name)):
            raise ValueError(f"{where}: its {name} differ from the source")
    if tuple(old.instructions) != tuple(new.instructions):
        raise ValueError(f"{where}: its instructions are {new.instructions}, in the source {old.instructions}")


def _psnr(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Return the peak signal to noise ratio of each frame in dB, 99 for equal frames."""
    error = ((one.astype(np.float32) - other) ** 2).mean((1, 2, 3))
    return np.minimum(99.0, 10 * np.log10(255**2 / np.maximum(error, 1e-9))).tolist()


def _read_report(path: Path) -> Conversion:
    try:
        return Conversion(**read_object(path))
    except TypeError as error:  # a key too many, or one too few
        raise ValueError(f"{path} is no report of a conversion ({error}): remove it, and it is made again") from None


def _check_source(root: Path, wanted: dict[str, Any]) -> None:
    """Raise ValueError if the data set at `root` has another source. The path of the source may differ."""
    made, wanted = open_dataset(root, "lerobot").provenance, json.loads(json.dumps(wanted))
    then, now = made.get("source"), wanted["source"]
    if isinstance(then, dict) and not fingerprints.are_comparable(str(then.get("fingerprint")), now["fingerprint"]):
        raise ValueError(
            f"{root} holds a data set that an earlier version of anyvla converted, and its source cannot be compared "
            "with this one: use it as it is, or choose another output folder"
        )
    check_same(
        {key: made.get(key) for key in wanted},
        wanted,
        f"{root} holds a data set already, made of something else ({{}}): choose another output folder",
        may_differ=lambda found: found.key == "source.path",
    )


_job: tuple[EpisodeDataset, Path] | None = None  # of a worker process


def _start(source: EpisodeDataset, partial_root: Path) -> None:
    global _job
    _job = source, partial_root


def _stage(index: int) -> str | None:
    """Write one episode. Return an error message if it cannot be read. Raises OSError if it cannot be written."""
    assert _job is not None
    source, partial_root = _job
    try:
        stage_episode(partial_root, source.embodiment, index, source[index])
    except (ValueError, KeyError, EOFError, FileNotFoundError) as error:  # others are no fault of the episode
        return str(error)
    return None
