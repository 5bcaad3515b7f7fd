"""Reads a LeRobot v3.0 data set in place: `meta/` locates each episode in `data/*.parquet` and `videos/*.mp4`.

Data sets written by anyvla carry their embodiment in `info.json`. For others it must be declared, because LeRobot does
not describe the meaning of an action.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from anyvla.data.formats.data_files import list_files
from anyvla.data.formats.lerobot.frames import VideoSpan
from anyvla.data.formats.lerobot.info import OWN_KEY
from anyvla.data.formats.lerobot.locations import IndexedRows, find_rows, find_wrong_spans
from anyvla.data.formats.lerobot.parquet import cached_table, errors_naming, open_parquet
from anyvla.data.formats.lerobot.paths import PathTemplate
from anyvla.data.formats.lerobot.reader import EpisodeColumns, LeRobotReader
from anyvla.files.inside import regular_files, resolve_inside

VERSION = "v3.0"
_NUMBERS = ("chunk_index", "file_index")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
EXTRA = f"{OWN_KEY}/extra"  # additional columns of the table of episodes
INSTRUCTIONS = f"{OWN_KEY}/instructions"
_CACHED_FROM_BYTES = 32 << 20  # LeRobot's many row groups make larger tables of episodes slow to read

_Seconds = Float64[np.ndarray, "E"]
# The files; per episode, its file, its begin and the begin of the next one; per file, the begin of its first episode.
_Spans = tuple[list[Path], Int64[np.ndarray, "E"], _Seconds, _Seconds, Float64[np.ndarray, "F"]]


class LeRobotDataset(LeRobotReader):
    """LeRobot v3.0: files of many episodes, and a table of episodes in `meta/episodes`; see `LeRobotReader`."""

    FORMAT: ClassVar[str] = "lerobot"
    VERSIONS: ClassVar[tuple[str, ...]] = (VERSION,)

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Return whether a folder has `meta/info.json` without the tables of v2, or is a data set being written."""
        if root.name.endswith(".partial") and (root / "provenance.json").is_file():
            return True
        return (root / "meta/info.json").is_file() and not (root / "meta/episodes.jsonl").is_file()

    def _read_columns(self) -> EpisodeColumns:
        table = self._read_table()
        count = len(table)
        if count != self._info.facts["total_episodes"]:
            raise ValueError(
                f"{self.root} is incomplete: info.json counts {self._info.facts['total_episodes']} episodes, "
                f"meta/episodes lists {count}; copy the dataset again"
            )
        length, number = _numbers(table, "length"), _numbers(table, "episode_index")
        template = PathTemplate(self.root, self._info.facts, "data_path", _NUMBERS)
        files, file = self._locate_files(table, "data", template)
        self._data = files
        self._rows = find_rows(IndexedRows(files, file, _numbers(table, "dataset_from_index"), length, number))
        self._unreadable_at |= self._rows.lost
        seconds = length / self._info.fps
        self._videos = {key: self._read_video_spans(table, key, seconds) for key in self._video_keys}
        self._tasks_by_number()  # raises if it cannot be read
        own = [name for name in (EXTRA, INSTRUCTIONS) if name in table.column_names]
        self._notes = {name: table[name].combine_chunks() for name in own}
        unknown = pa.chunked_array([pa.nulls(count, pa.list_(pa.string()))])
        codes, tasks = self._number_tasks(table["tasks"] if "tasks" in table.column_names else unknown)
        return EpisodeColumns(number, np.zeros(count, np.int64), length, codes, tasks, np.arange(count))

    def _read_video_spans(self, table: pa.Table, key: str, seconds: Float64[np.ndarray, "E"]) -> _Spans:
        """Return the place of each episode in the videos of a camera. Impossible places make an episode unreadable."""
        place = f"videos/{key}"
        template = PathTemplate(self.root, self._info.facts, "video_path", ("video_key", *_NUMBERS))
        files, file = self._locate_files(table, place, template, video_key=key)
        begin = _seconds(table, f"{place}/from_timestamp")
        end = f"{place}/to_timestamp"
        ends = _seconds(table, end) if end in table.column_names else None
        lost = find_wrong_spans(files, file, begin, ends, seconds, 1 / self._info.fps)
        self._unreadable_at |= {at: text for at, text in lost.items() if at not in self._unreadable_at}
        right = np.array([at not in lost for at in range(len(file))], bool)
        first = np.full(len(files), np.inf)
        np.fmin.at(first, file, begin)  # NaN: missing
        return files, file, begin, _next_begins(np.where(right, file, -1), begin), first

    def _read_table(self) -> pa.Table:
        """Return the used columns of the table of episodes, in the order of the episodes."""
        paths = regular_files(self.root, list_files(self.root / "meta/episodes", "*/*.parquet"))
        if not paths:
            raise ValueError(f"{self.root} is incomplete: meta/episodes holds no parquet file; copy the dataset again")
        places = [f"videos/{key}" for key in self._video_keys]
        needed = ["episode_index", "length", "dataset_from_index"]
        needed += [f"{place}/{name}" for place in ("data", *places) for name in _NUMBERS]
        needed += [f"{place}/from_timestamp" for place in places]
        wanted = ["tasks", EXTRA, INSTRUCTIONS, *(f"{place}/to_timestamp" for place in places)]
        if sum(path.stat().st_size for path in paths) > _CACHED_FROM_BYTES:
            meaning = json.dumps([needed, wanted])
            table = cached_table(self.root, paths, meaning, lambda: _read_tables(paths, needed, wanted))
        else:
            table = _read_tables(paths, needed, wanted)
        order = table["episode_index"].to_numpy()
        return table if np.all(np.diff(order) > 0) else table.take(np.argsort(order, kind="stable"))

    def _locate_files(
        self, table: pa.Table, place: str, template: PathTemplate, **names: str
    ) -> tuple[list[Path], np.ndarray]:
        """Return the files that hold the episodes, and the index into them for each episode."""
        chunk, file = (_numbers(table, f"{place}/{name}_index") for name in ("chunk", "file"))
        pairs, inverse = np.unique(np.stack([chunk, file], axis=1), axis=0, return_inverse=True)
        names_of_files = [template.fill(chunk_index=int(c), file_index=int(f), **names) for c, f in pairs]
        return [resolve_inside(self.root, name) for name in names_of_files], inverse.reshape(-1)

    def _rows_at(self, index: int) -> tuple[Path, int]:
        at = self._columns.at[index]
        return self._data[self._rows.file[at]], int(self._rows.row[at])

    def _video_at(self, index: int, key: str) -> VideoSpan:
        at = self._columns.at[index]
        files, file, begin, until, first = self._videos[key]
        return VideoSpan(files[file[at]], float(begin[at]), float(until[at]), float(first[file[at]]))

    def _extra_and_instructions(self, index: int) -> tuple[dict[str, Any], tuple[str, ...] | None]:
        at = int(self._columns.at[index])
        found = {name: column[at].as_py() for name, column in self._notes.items()}
        instructions, where = found.get(INSTRUCTIONS), f"{self.root}/meta/episodes, row {at}"
        try:
            extra = json.loads(found.get(EXTRA) or "{}")
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{where}: {EXTRA} is not JSON ({error}); copy the dataset again") from None
        texts = [] if instructions is None else instructions
        if not isinstance(extra, dict) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{where}: {EXTRA} or {INSTRUCTIONS} has another type; copy the dataset again")
        return extra, None if instructions is None else tuple(texts)

    def _tasks_by_number(self) -> dict[int, str]:
        path = resolve_inside(self.root, TASKS_PATH)
        if not path.is_file():
            raise ValueError(f"the dataset is incomplete: {path} is missing; copy it again")
        with errors_naming(path):
            table = open_parquet(path).read()
        text = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        named = [n for n in ("task", "__index_level_0__", *text) if n in text]  # the index of a pandas data frame
        if not named or not any(f.name == "task_index" and pa.types.is_integer(f.type) for f in table.schema):
            raise ValueError(
                f"{path} has the columns {', '.join(table.column_names)}; expected whole numbers task_index and "
                "the text task: write it again with both"
            )
        texts = [text or "" for text in table[named[0]].to_pylist()]
        return dict(zip(_numbers(table, "task_index").tolist(), texts, strict=True))


def _read_tables(paths: list[Path], needed: list[str], wanted: list[str]) -> pa.Table:
    """Return the needed columns, and the existing ones of the wanted columns, of all files in one table."""
    tables = []
    for path in paths:
        with errors_naming(path):
            file = open_parquet(path)
            there = set(file.schema_arrow.names)
            missing = [name for name in needed if name not in there]
            if missing:
                raise ValueError(f"{path} has no column {missing[0]!r}; copy the dataset again")
            tables.append(file.read(columns=needed + [name for name in wanted if name in there]))
            file.close()
    return pa.concat_tables(tables, promote_options="default")


def _next_begins(file: Int64[np.ndarray, "E"], begin: Float64[np.ndarray, "E"]) -> Float64[np.ndarray, "E"]:
    """Return where the next episode begins in the file of each episode; inf for the last one."""
    order = np.lexsort((begin, file))
    files, begins = file[order], begin[order]
    # several episodes may share a place
    first = np.flatnonzero(np.append(True, (np.diff(files) != 0) | (np.diff(begins) > 0)))
    of = np.searchsorted(first, np.arange(len(begin)), side="right")
    after = np.append(first, len(begin) - 1)[of]
    out = np.full(len(begin), np.inf)
    out[order] = np.where((files[after] == files) & (begins[after] > begins), begins[after], np.inf)
    return out


def _numbers(table: pa.Table, name: str) -> Int64[np.ndarray, "E"]:
    """Return a column of whole numbers, with -1 for missing values. Raises ValueError for another type."""
    values = _seconds(table, name)
    return np.where(np.isfinite(values), values, -1).astype(np.int64)


def _seconds(table: pa.Table, name: str) -> Float64[np.ndarray, "E"]:
    """Return a column of numbers, with NaN for missing values. Raises ValueError for another type."""
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"meta, column {name!r}: expected numbers, found {column.type}; correct it")
    return column.to_numpy().astype(np.float64)
