"""Reads LeRobot v2.0 and v2.1 data sets in place: one parquet file and one video per camera for each episode.

The index consists of JSON lines (`meta/episodes.jsonl`, `meta/tasks.jsonl`). The statistics of these versions
(`stats.json`, `episodes_stats.jsonl`) are not read; anyvla computes its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from anyvla.data.formats.json_records import as_whole_number, read_records
from anyvla.data.formats.lerobot.frames import VideoSpan
from anyvla.data.formats.lerobot.parquet import count_rows
from anyvla.data.formats.lerobot.paths import PathTemplate
from anyvla.data.formats.lerobot.reader import EpisodeColumns, LeRobotReader
from anyvla.files.inside import resolve_inside


class LeRobotV2Dataset(LeRobotReader):
    """LeRobot v2.1 and v2.0: files of one episode each; see `LeRobotReader`."""

    FORMAT: ClassVar[str] = "lerobot_v2"
    VERSIONS: ClassVar[tuple[str, ...]] = ("v2.0", "v2.1")

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Return whether a folder has `meta/info.json` and `meta/episodes.jsonl`."""
        return (root / "meta/info.json").is_file() and (root / "meta/episodes.jsonl").is_file()

    def _read_columns(self) -> EpisodeColumns:
        numbers, lengths, tasks = list[int](), list[int](), list[list[str] | None]()
        for row in self._lines("meta/episodes.jsonl", "episode_index", "length"):
            numbers.append(as_whole_number(row["episode_index"], "meta/episodes.jsonl, episode_index"))
            lengths.append(as_whole_number(row["length"], f"meta/episodes.jsonl, length of episode {numbers[-1]}"))
            tasks.append(_texts(row.get("tasks", row.get("task"))))
        facts = self._info.facts
        if len(numbers) != facts["total_episodes"]:
            raise ValueError(
                f"{self.root} is incomplete: info.json counts {facts['total_episodes']} episodes, meta/episodes.jsonl "
                f"lists {len(numbers)}; copy the dataset again"
            )
        self._chunk = facts.get("chunks_size", 1000)
        if not isinstance(self._chunk, int) or self._chunk < 1:
            raise ValueError(
                f"{self.root}/meta/info.json: chunks_size is {self._chunk!r}, expected a number of at least 1"
            )
        numbers_of = ("episode_chunk", "episode_index")
        self._data_template = PathTemplate(self.root, facts, "data_path", numbers_of)
        if self._video_keys:
            self._video_template = PathTemplate(self.root, facts, "video_path", ("video_key", *numbers_of))
        codes, texts = self._number_tasks(pa.chunked_array([pa.array(tasks, pa.list_(pa.string()))]))
        number = np.array(numbers, np.int64)
        order = np.argsort(number, kind="stable")
        self._steps = np.array(lengths, np.int64)[order]
        self._unreadable_at |= self._missing(number[order])
        begin, at = np.zeros(len(number), np.int64), np.arange(len(number))
        return EpisodeColumns(number[order], begin, self._steps, codes[order], texts, at)

    def _missing(self, numbers: Int64[np.ndarray, "E"]) -> dict[int, str]:
        """Return the episodes that lack a file. Listing each folder once is faster than checking each file."""
        listed: dict[str, set[str]] = {}
        lost: dict[int, str] = {}
        for at, number in enumerate(numbers.tolist()):
            for path in [self._data_path(number), *(self._video_path(number, key) for key in self._video_keys)]:
                folder, name = os.path.split(path)
                if folder not in listed:
                    below = resolve_inside(self.root, folder) if folder else self.root
                    listed[folder] = {p.name for p in below.iterdir()} if below.is_dir() else set()
                if name not in listed[folder]:
                    lost.setdefault(at, f"the dataset is incomplete: {self.root / path} is missing; copy it again")
        return lost

    def _check_rows(self, index: int) -> None:
        path, _ = self._rows_at(index)
        rows, steps = count_rows(path), int(self._steps[self._columns.at[index]])
        if rows != steps:
            raise ValueError(f"{path} has {rows} rows, meta/episodes.jsonl says {steps} steps; copy the dataset again")

    def _data_path(self, number: int) -> str:
        return self._data_template.fill(episode_chunk=number // self._chunk, episode_index=number)

    def _video_path(self, number: int, key: str) -> str:
        chunk = number // self._chunk
        return self._video_template.fill(episode_chunk=chunk, episode_index=number, video_key=key)

    def _rows_at(self, index: int) -> tuple[Path, int]:
        return resolve_inside(self.root, self._data_path(int(self._columns.number[index]))), 0

    def _video_at(self, index: int, key: str) -> VideoSpan:
        return VideoSpan(resolve_inside(self.root, self._video_path(int(self._columns.number[index]), key)))

    def _tasks_by_number(self) -> dict[int, str]:
        where = "meta/tasks.jsonl, task_index"
        rows = self._lines("meta/tasks.jsonl", "task_index", "task")
        return {as_whole_number(row["task_index"], where): str(row["task"]) for row in rows}

    def _lines(self, name: str, *keys: str) -> Iterator[dict[str, Any]]:
        """Return the objects of a file of JSON lines. Raises a ValueError that names a damaged line."""
        path = resolve_inside(self.root, name)
        if not path.is_file():
            raise ValueError(f"the dataset is incomplete: {path} is missing; copy it again")
        return read_records(path, *keys)


def _texts(tasks: Any) -> list[str] | None:
    """Return the tasks of an episode, or None if the index does not list them."""
    if tasks is None:
        return None
    return [str(text) for text in (tasks if isinstance(tasks, list) else [tasks])]
