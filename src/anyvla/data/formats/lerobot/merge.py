"""Merges staged episodes into the LeRobot v3.0 layout: rows, joined videos, episode table, tasks, statistics, info.

The layout follows LeRobot's own writer, so that its readers find every file and column. Additional facts are stored
under the key `anyvla` of `info.json` and in columns with that prefix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.data.episode import steady_timestamps
from anyvla.data.formats import video
from anyvla.data.formats.lerobot import dataset as layout
from anyvla.data.formats.lerobot.info import CAMERA_PREFIX, OWN_KEY, TIME
from anyvla.data.formats.lerobot.reader import ACTION, STATE
from anyvla.data.statistics import compute_statistics, image_statistics
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace

CHUNK_FILES = 1000  # files per folder
DATA_FILE_MB = 100
VIDEO_FILE_MB = 20  # LeRobot's default is 200; larger files take longer to open, once per episode


def merge(root: Path, staged: list[Path], embodiment: Embodiment, own: Mapping[str, Any]) -> None:
    """Write the data set `root` from the folders of staged episodes. `own` is stored in info.json.

    Raises ValueError if the images of a camera differ in size between episodes.
    """
    fps = embodiment.control_hz
    facts = [json.loads((folder / "episode.json").read_text(encoding="utf-8")) for folder in staged]
    sizes = {name: _require_one_size(name, staged, facts) for name in embodiment.cameras}
    texts = ["".join(fact["instructions"][:1]) for fact in facts]
    tasks = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    timed = any(TIME in pq.read_schema(folder / "rows.parquet").names for folder in staged)
    tables: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    first = 0
    for i, (folder, fact, text) in enumerate(zip(staged, facts, texts, strict=True)):
        length = fact["length"]
        tables.append(_with_standard_columns(pq.read_table(folder / "rows.parquet"), fps, i, first, tasks[text], timed))
        rows.append({"episode_index": i, "tasks": [text], "length": length})
        rows[-1] |= {"dataset_from_index": first, "dataset_to_index": first + length}
        first += length
    _write_data(root, tables, rows)
    for name in embodiment.cameras:
        _write_videos(root, name, staged, fps, rows)
    for row, table, fact in zip(rows, tables, facts, strict=True):
        for key, statistics in _statistics(table, [fact], embodiment).items():
            row |= {f"stats/{key}/{name}": value for name, value in statistics.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row[layout.EXTRA] = json.dumps(fact["extra"], ensure_ascii=False)
        row[layout.INSTRUCTIONS] = fact["instructions"] if len(fact["instructions"]) != 1 else None
    path = root / layout.EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    place = table.column_names.index(layout.INSTRUCTIONS)  # its type is unknown if every episode has one instruction
    table = table.set_column(place, layout.INSTRUCTIONS, table[layout.INSTRUCTIONS].cast(pa.list_(pa.string())))
    pq.write_table(table, path)
    _write_tasks(root / layout.TASKS_PATH, list(tasks))
    statistics = _statistics(pa.concat_tables(tables), facts, embodiment)
    (root / "meta/stats.json").write_text(json.dumps(statistics, indent=1), encoding="utf-8")
    info = {
        "codebase_version": layout.VERSION,
        "robot_type": embodiment.name,
        "total_episodes": len(rows),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "fps": _whole_as_int(fps),
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": layout.DATA_PATH,
        "video_path": layout.VIDEO_PATH,
        "features": _features(embodiment, sizes, timed),
        OWN_KEY: own,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=1, ensure_ascii=False), encoding="utf-8")


def _with_standard_columns(table: pa.Table, fps: float, episode: int, first: int, task: int, timed: bool) -> pa.Table:
    """Return the staged columns, the columns of every LeRobot data set, and a time column if any episode has one."""
    steps = np.arange(len(table), dtype=np.int64)
    if timed and TIME not in table.column_names:
        table = table.append_column(TIME, pa.array(steady_timestamps(len(table), fps)))
    for name, values in (
        ("timestamp", (steps / fps).astype(np.float32)),
        ("frame_index", steps),
        ("episode_index", np.full_like(steps, episode)),
        ("index", steps + first),
        ("task_index", np.full_like(steps, task)),
    ):
        table = table.append_column(name, pa.array(values))
    return table


def _write_data(root: Path, tables: list[pa.Table], rows: list[dict[str, Any]]) -> None:
    """Write one row group per episode, starting a new file at the size limit."""
    for file, group in enumerate(_group([(table.nbytes, b"") for table in tables], DATA_FILE_MB)):
        where = {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}
        path = root / layout.DATA_PATH.format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for i in group:
                writer.write_table(tables[i])
                rows[i] |= {f"data/{name}": value for name, value in where.items()}


def _write_videos(root: Path, camera: str, staged: list[Path], fps: float, rows: list[dict[str, Any]]) -> None:
    """Join the videos of a camera, starting a new file at the size limit or where the codec header changes."""
    key = CAMERA_PREFIX + camera
    sources = [folder / f"{camera}.mp4" for folder in staged]
    sizes = [(source.stat().st_size, video.read_header(source)) for source in sources]
    for file, group in enumerate(_group(sizes, VIDEO_FILE_MB)):
        where = {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}
        path = root / layout.VIDEO_PATH.format(video_key=key, **where)
        path.parent.mkdir(parents=True, exist_ok=True)
        starts = video.join([sources[i] for i in group], path, fps)
        for i, start in zip(group, starts, strict=True):
            rows[i] |= {f"videos/{key}/{name}": value for name, value in where.items()}
            rows[i][f"videos/{key}/from_timestamp"] = start / fps
            rows[i][f"videos/{key}/to_timestamp"] = (start + rows[i]["length"]) / fps


def _group(parts: list[tuple[int, bytes]], most: int) -> list[list[int]]:
    """Return runs of parts that fit into a file of `most` MB, from the size and the header of each part."""
    groups: list[list[int]] = []
    total = 0
    for i, (size, header) in enumerate(parts):
        if not groups or header != parts[i - 1][1] or total + size > most * 2**20:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups


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


def _features(embodiment: Embodiment, sizes: Mapping[str, tuple[int, int]], timed: bool) -> dict[str, Any]:
    def vector(space: ActionSpace) -> dict[str, Any]:
        plain = ([g.name] if g.size == 1 else [f"{g.name}_{i}" for i in range(g.size)] for g in space.groups)
        names = [name for g, own in zip(space.groups, plain, strict=True) for name in g.names or own]
        return {"dtype": "float32", "shape": [space.size], "names": names}

    out: dict[str, Any] = {ACTION: vector(embodiment.action)}
    if embodiment.proprio.size:
        out[STATE] = vector(embodiment.proprio)
    fps = embodiment.control_hz
    for name, (height, width) in sizes.items():
        out[CAMERA_PREFIX + name] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": video.PIXEL_FORMAT,
                "video.is_depth_map": False,
                "video.fps": _whole_as_int(fps),
                "video.channels": 3,
                "has_audio": False,
            },
        }
    if timed:
        out[TIME] = {"dtype": "float64", "shape": [1], "names": None}
    out["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        out[key] = {"dtype": "int64", "shape": [1], "names": None}
    return out


def _whole_as_int(fps: float) -> float:
    return int(fps) if fps.is_integer() else fps  # LeRobot writes whole rates as integers


def _require_one_size(camera: str, staged: list[Path], facts: list[dict[str, Any]]) -> tuple[int, int]:
    first = facts[0]["sizes"][camera]
    for folder, fact in zip(staged, facts, strict=True):
        if fact["sizes"][camera] != first:
            raise ValueError(
                f"camera {camera!r} has {first[0]}x{first[1]} images in {staged[0].name} but "
                f"{fact['sizes'][camera][0]}x{fact['sizes'][camera][1]} in {folder.name}: all must have one size; "
                f"remove the folders of the wrong size in {folder.parent} and run the same command again"
            )
    return first[0], first[1]


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """Write the tasks. LeRobot looks them up in the pandas index, so the metadata declares the index column."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    column = {"field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [number | {"metadata": None}, column]}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
