"""Writes LeRobot v3.0 datasets: episodes are staged one by one, by any number of processes, then merged at once.

Staged episodes lie in `<root>.partial/`, each complete or absent, so that an interrupted collection goes on where it
stopped. `finalise` builds the dataset beside its place and renames it there: a dataset is whole or not there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
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
from anyvla.data.episode import Embodiment, Episode
from anyvla.data.formats import video
from anyvla.data.formats.lerobot import (
    ACTION,
    CAMERA_PREFIX,
    DATA_PATH,
    EPISODES_PATH,
    OWN_KEY,
    STATE,
    VERSION,
    VIDEO_PATH,
)
from anyvla.data.statistics import compute_statistics, image_histogram, image_statistics
from anyvla.registry import nearest

CHUNK_FILES = 1000  # files in a folder
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200


def stage_episode(partial_root: Path, embodiment: Embodiment, index: int, episode: Episode) -> None:
    """Write one episode into `partial_root/episode-<index>/`, whole or not at all; safe in worker processes.

    Raises ValueError if the episode does not fit the embodiment, OSError if the disk is full.
    """
    check_episode(embodiment, episode, f"episode {index}")
    target = partial_root / f"episode-{index:06d}"
    building = partial_root / f".building-{index:06d}-{os.getpid()}"
    histograms = {name: image_histogram(episode.images[name]).tolist() for name in embodiment.cameras}
    facts = {
        "length": len(episode),
        "instruction": episode.instruction,
        "extra": dict(episode.extra),
        "histograms": histograms,
    }
    text = _to_json(facts, f"episode {index}: extra")
    try:
        with _explain_full_disk(partial_root):
            building.mkdir(parents=True)
            for name in embodiment.cameras:
                video.encode(building / f"{name}.mp4", episode.images[name], embodiment.control_hz)
            table = pa.table({ACTION: _vectors(episode.actions), STATE: _vectors(episode.proprio)})
            pq.write_table(table, building / "rows.parquet")
            (building / "episode.json").write_text(text, encoding="utf-8")
            _sync(building)
            if target.exists():
                shutil.rmtree(target)
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_episode(embodiment: Embodiment, episode: Episode, where: str = "episode") -> None:
    """Raises ValueError that says what does not fit the embodiment."""
    length = len(episode.actions)
    if not length:
        raise ValueError(f"{where} has no steps")
    for name, array, size in (
        ("actions", episode.actions, embodiment.action.size),
        ("proprio", episode.proprio, embodiment.proprio.size),
    ):
        if array.dtype != np.float32 or array.shape != (length, size):
            raise ValueError(f"{where}: {name} must be float32 ({length}, {size}), got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            step, dim = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{where}: {name} at step {step}, dim {dim} is {array[step, dim]}; drop or mend the episode"
            )
    for name in embodiment.cameras:
        if name not in episode.images:
            given = list(episode.images)
            raise ValueError(f"{where}: camera {name!r} is missing; {nearest(name, given) if given else 'none given'}")
        frames = episode.images[name]
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != length:
            raise ValueError(
                f"{where}: camera {name!r} must be uint8 ({length}, H, W, 3), got {frames.dtype} {frames.shape}"
            )
    if not episode.instruction.strip():
        raise ValueError(f"{where}: the instruction is empty")


class LeRobotWriter:
    """The staging folder of a dataset and its merge.

    `provenance` says how the episodes are made (benchmark, suite, seeds, ...): staged episodes are continued only by
    a run with the same. Raises ValueError if `root` exists already, or was begun with another provenance or robot.
    """

    def __init__(self, root: Path, embodiment: Embodiment, *, provenance: Mapping[str, Any]) -> None:
        self.root = Path(root)
        self.embodiment = embodiment
        self.partial_root = self.root.with_name(self.root.name + ".partial")
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            state = "holds a complete dataset" if is_complete(self.root) else "exists and is not a dataset"
            raise ValueError(f"{self.root} {state}: remove it or choose another output folder")
        for name in embodiment.cameras:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ValueError(f"camera name {name!r}: it becomes a file name; use letters, digits, '_', '-', '.'")
        mine = {"embodiment": to_dict(embodiment), "provenance": dict(provenance)}
        text = _to_json(mine, "provenance")
        path = self.partial_root / "provenance.json"
        with _explain_full_disk(self.root):
            if path.exists():
                self._check_begun(json.loads(path.read_text(encoding="utf-8")), json.loads(text))
            else:
                self.partial_root.mkdir(parents=True, exist_ok=True)
                _write_atomically(path, text)
        self._own = json.loads(text)
        for leftover in self.partial_root.glob(".building-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _check_begun(self, begun: dict[str, Any], mine: dict[str, Any]) -> None:
        differing = []
        for part in ("embodiment", "provenance"):
            for key in sorted({*begun[part], *mine[part]}):
                old, new = begun[part].get(key), mine[part].get(key)
                if old != new:
                    differing.append(f"{part} {key}: {old!r} then, {new!r} now")
        if differing:
            raise ValueError(
                f"{self.partial_root} was begun with other settings ({'; '.join(differing)}): "
                "run with the old settings to finish it, or remove that folder to begin anew"
            )

    @property
    def done(self) -> set[int]:
        """The indices of the staged episodes."""
        return {int(p.name.removeprefix("episode-")) for p in self.partial_root.glob("episode-[0-9]*")}

    @property
    def notes(self) -> dict[str, Any]:
        """What `note` has kept."""
        path = self.partial_root / "notes.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON fact (failures counted, ...) across interruptions; it ends in `info.json`."""
        with _explain_full_disk(self.root):
            _write_atomically(self.partial_root / "notes.json", _to_json({**self.notes, key: value}, f"note {key!r}"))

    def stage(self, index: int, episode: Episode) -> None:
        """`stage_episode` in this process."""
        stage_episode(self.partial_root, self.embodiment, index, episode)

    def finalise(self) -> None:
        """Merge the staged episodes, in the order of their indices, into the dataset at `root`; then drop them.

        Raises ValueError if nothing is staged, OSError if the disk is full; what is staged stays then.
        """
        staged = [self.partial_root / f"episode-{i:06d}" for i in sorted(self.done)]
        if not staged:
            raise ValueError(f"{self.partial_root} holds no episode: there is nothing to write")
        building = self.root.with_name(f".{self.root.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        try:
            with _explain_full_disk(self.root):
                _merge(building, staged, self.embodiment, {**self._own, "notes": self.notes})
                for folder in [building, *(p for p in building.rglob("*") if p.is_dir())]:
                    _sync(folder)
                building.rename(self.root)
                _sync(self.root.parent, files=False)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(self.partial_root)


def write_dataset(
    root: Path, embodiment: Embodiment, episodes: Iterable[Episode], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write episodes as a dataset at `root`, in one process."""
    writer = LeRobotWriter(root, embodiment, provenance=provenance or {})
    for index, episode in enumerate(episodes):
        if index not in writer.done:
            writer.stage(index, episode)
    writer.finalise()


def is_complete(root: Path) -> bool:
    """Whether a whole dataset lies at `root`."""
    return (root / "meta/info.json").is_file()  # datasets appear by one rename


def _merge(root: Path, staged: list[Path], embodiment: Embodiment, own: dict[str, Any]) -> None:
    fps = embodiment.control_hz
    facts = [json.loads((folder / "episode.json").read_text(encoding="utf-8")) for folder in staged]
    tasks = {text: i for i, text in enumerate(dict.fromkeys(f["instruction"] for f in facts))}
    tables, first = [], 0
    for i, (folder, fact) in enumerate(zip(staged, facts, strict=True)):
        tables.append(_rows(pq.read_table(folder / "rows.parquet"), fps, i, first, tasks[fact["instruction"]]))
        first += fact["length"]
    rows: list[dict[str, Any]] = []
    for i, (table, fact) in enumerate(zip(tables, facts, strict=True)):
        start = table["index"][0].as_py()
        rows.append(
            {
                "episode_index": i,
                "tasks": [fact["instruction"]],
                "length": fact["length"],
                "dataset_from_index": start,
                "dataset_to_index": start + fact["length"],
            }
        )
    _write_data(root, tables, rows)
    shapes = {name: _write_videos(root, name, staged, fps, rows) for name in embodiment.cameras}
    for row, table, fact in zip(rows, tables, facts, strict=True):
        for key, statistics in _statistics(table, [fact], embodiment).items():
            row |= {f"stats/{key}/{name}": value for name, value in statistics.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row[f"{OWN_KEY}/extra"] = json.dumps(fact["extra"], ensure_ascii=False)
    path = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    _write_tasks(root / "meta/tasks.parquet", list(tasks))
    statistics = _statistics(pa.concat_tables(tables), facts, embodiment)
    (root / "meta/stats.json").write_text(json.dumps(statistics, indent=1), encoding="utf-8")
    info = {
        "codebase_version": VERSION,
        "robot_type": embodiment.name,
        "total_episodes": len(rows),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": _features(embodiment, shapes),
        OWN_KEY: own,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=1, ensure_ascii=False), encoding="utf-8")


def _rows(table: pa.Table, fps: float, episode: int, first: int, task: int) -> pa.Table:
    """The staged columns and those that every LeRobot dataset has."""
    steps = np.arange(len(table))
    for name, values in (
        ("timestamp", (steps / fps).astype(np.float32)),
        ("frame_index", steps),
        ("episode_index", np.full(len(table), episode)),
        ("index", steps + first),
        ("task_index", np.full(len(table), task)),
    ):
        table = table.append_column(name, pa.array(values))
    return table


def _write_data(root: Path, tables: list[pa.Table], rows: list[dict[str, Any]]) -> None:
    """One row group per episode, a new file when one would grow past its limit."""
    writer, file, size = None, -1, math.inf
    try:
        for table, row in zip(tables, rows, strict=True):
            if size + table.nbytes > DATA_FILE_MB * 2**20:
                file, size = file + 1, 0
                path = root / DATA_PATH.format(chunk_index=file // CHUNK_FILES, file_index=file % CHUNK_FILES)
                path.parent.mkdir(parents=True, exist_ok=True)
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(path, table.schema)
            assert writer is not None
            writer.write_table(table)
            size += table.nbytes
            row |= {"data/chunk_index": file // CHUNK_FILES, "data/file_index": file % CHUNK_FILES}
    finally:
        if writer is not None:
            writer.close()


def _write_videos(
    root: Path, camera: str, staged: list[Path], fps: float, rows: list[dict[str, Any]]
) -> tuple[int, int]:
    """Join the videos of a camera, a new file at the size limit or where the encoder's header changes."""
    key = CAMERA_PREFIX + camera
    groups: list[list[int]] = []
    size, previous = 0, b""
    sources = [folder / f"{camera}.mp4" for folder in staged]
    for i, source in enumerate(sources):
        bytes_, header = source.stat().st_size, video.header(source)
        if not groups or header != previous or size + bytes_ > VIDEO_FILE_MB * 2**20:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size, previous = size + bytes_, header
    for file, group in enumerate(groups):
        where = {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}
        path = root / VIDEO_PATH.format(video_key=key, **where)
        path.parent.mkdir(parents=True, exist_ok=True)
        starts = video.join([sources[i] for i in group], path, fps)
        for i, start in zip(group, starts, strict=True):
            rows[i] |= {f"videos/{key}/{name}": value for name, value in where.items()}
            rows[i][f"videos/{key}/from_timestamp"] = start / fps
            rows[i][f"videos/{key}/to_timestamp"] = (start + rows[i]["length"]) / fps
    return video.size(sources[0])


def _statistics(table: pa.Table, facts: list[dict[str, Any]], embodiment: Embodiment) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for key in table.column_names:
        column = table[key].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        out[key] = compute_statistics(flat.to_numpy(zero_copy_only=False).reshape(len(table), -1))
    for name in embodiment.cameras:
        histogram = sum(np.array(fact["histograms"][name]) for fact in facts)
        out[CAMERA_PREFIX + name] = image_statistics(np.asarray(histogram), sum(f["length"] for f in facts))
    return out


def _features(embodiment: Embodiment, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    def vector(space: Any) -> dict[str, Any]:
        names = [g.name if g.size == 1 else f"{g.name}_{i}" for g in space.groups for i in range(g.size)]
        return {"dtype": "float32", "shape": [space.size], "names": names}

    out = {ACTION: vector(embodiment.action), STATE: vector(embodiment.proprio)}
    fps = embodiment.control_hz
    for name, (height, width) in shapes.items():
        out[CAMERA_PREFIX + name] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": int(fps) if float(fps).is_integer() else fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    out["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        out[key] = {"dtype": "int64", "shape": [1], "names": None}
    return out


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """LeRobot reads this file with pandas and looks tasks up in its index: the metadata says which column that is."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    column = {"field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [number | {"metadata": None}, column]}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _vectors(array: np.ndarray) -> pa.Array:
    if array.shape[1] == 1:  # LeRobot holds one-dim features as plain numbers
        return pa.array(array.ravel())
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def _to_json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be plain JSON data (text, numbers, lists, keys and values): {error}") from None


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _sync(folder: Path, files: bool = True) -> None:
    """Have a folder's files on the disk before it is renamed: after a power cut it is then whole or absent."""
    for path in [*(p for p in folder.iterdir() if files and p.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _explain_full_disk(root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk is full while writing {root}: free some space and run the same command, "
            "it goes on from the episodes written so far",
        ) from None
