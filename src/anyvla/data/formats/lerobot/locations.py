"""Locates the episodes of LeRobot v3.0 in its files, and finds those that the index places wrongly.

The index names the row and the second at which an episode begins in its files. The files are more reliable: they show
how many rows there are, and the episode of each row. An episode that its file contradicts is unreadable; the others in
the file are not.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from anyvla.data.fingerprints import FileState, stat_of
from anyvla.data.formats import video
from anyvla.data.formats.lerobot.parquet import errors_naming, open_parquet

_Integers = Int64[np.ndarray, "E"]
_Seconds = Float64[np.ndarray, "E"]
_SLACK = 5e-3  # of its duration: tolerance between a video and its rows, whose clocks differ


@dataclass(frozen=True)
class IndexedRows:
    """The rows of each episode according to the index."""

    files: list[Path]
    file: _Integers  # index into `files`
    first: _Integers  # row, counted over all files
    length: _Integers
    number: _Integers  # LeRobot's number


@dataclass
class FoundRows:
    """The true place of the rows of each episode."""

    file: _Integers
    row: _Integers  # within its file
    lost: dict[int, str] = field(default_factory=dict)


def find_rows(indexed: IndexedRows) -> FoundRows:
    """Return the rows of each episode: by the index where the files agree with it, else by the files.

    Only footers are read, and the column of episode numbers in files that contradict the index.
    """
    found = FoundRows(indexed.file.copy(), np.zeros_like(indexed.first))
    doubtful = []
    by_file = np.lexsort((indexed.first, indexed.file))
    ends = np.searchsorted(indexed.file[by_file], np.arange(1, len(indexed.files)))
    for at, (path, order) in enumerate(zip(indexed.files, np.split(by_file, ends), strict=True)):
        begins = np.concatenate([[0], np.cumsum(indexed.length[order])])
        gapless = np.array_equal(indexed.first[order] - indexed.first[order[0]], begins[:-1])
        count = _count_rows(path)
        found.row[order] = indexed.first[order] - indexed.first[order[0]]
        if not (gapless and count in (int(begins[-1]), None)) or not path.is_file():
            doubtful.append(at)
    if not doubtful:
        return found
    where: dict[int, list[tuple[int, int, int]]] = {}  # number of an episode -> file, first row, row count
    for at in doubtful:
        for number, (first, count) in episode_runs(indexed.files[at]):
            where.setdefault(number, []).append((at, first, count))
    for e in np.flatnonzero(np.isin(indexed.file, doubtful)).tolist():
        path, places = indexed.files[indexed.file[e]], where.get(int(indexed.number[e]), [])
        says = f"the index says {indexed.length[e]} rows in {path}"
        if len(places) == 1 and places[0][2] == indexed.length[e]:
            found.file[e], found.row[e] = places[0][:2]
        elif not path.is_file():
            found.lost[e] = f"the dataset is incomplete: {path} is missing; copy it again"
        elif not places:
            found.lost[e] = f"{says}, which has none of it; copy the dataset again"
        else:
            has = ", ".join(f"{count} in {indexed.files[at]} from row {first} on" for at, first, count in places[:3])
            found.lost[e] = f"{says}, but there are {has}; copy the dataset again"
    return found


def _count_rows(path: Path) -> int | None:
    """Return the number of rows in a file, or None if it is missing or damaged, which is reported on reading it."""
    try:
        return int(open_parquet(path).metadata.num_rows)
    except ValueError:
        return None


def episode_runs(path: Path) -> list[tuple[int, tuple[int, int]]]:
    """Return the runs of rows of one episode in a file: its number, first row and row count; [] if unreadable."""
    return _episode_runs(path, stat_of(path)) if path.is_file() else []


@functools.lru_cache(maxsize=64)
def _episode_runs(path: Path, _: FileState) -> list[tuple[int, tuple[int, int]]]:
    try:
        with errors_naming(path):
            numbers = open_parquet(path).read(columns=["episode_index"])["episode_index"].to_numpy()
    except (ValueError, KeyError):
        return []
    edges = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
    return [(int(numbers[a]), (int(a), int(b - a))) for a, b in itertools.pairwise(edges) if b > a]


def find_wrong_spans(
    files: list[Path], file: _Integers, begin: _Seconds, end: _Seconds | None, seconds: _Seconds, step: float
) -> dict[int, str]:
    """Return the episodes whose place in the videos of a camera is impossible, with the reason.

    `begin`, `end`: seconds according to the index; `seconds`: the duration of each episode's rows.
    """
    lost: dict[int, str] = {}
    missing = np.array([not path.is_file() for path in files], bool)[file]
    ends = begin + seconds if end is None else end
    longer = ends - begin - seconds
    most = 0.5 * step + _SLACK * seconds
    if (np.abs(longer) > most).mean() > 0.5:  # some tools write the time of the last frame as the end
        longer = longer - np.median(longer)
    longer[_between_neighbors(file, begin, ends, most)] = 0  # uneven times: rows do not tell their duration
    for e in np.flatnonzero(missing | ~(begin >= 0) | ~(np.abs(longer) <= most)).tolist():
        path = files[file[e]]
        if missing[e]:
            lost[e] = f"the dataset is incomplete: {path} is missing; copy it again"
        elif not begin[e] >= 0:
            lost[e] = f"the index says that it begins at {begin[e]:g} s in {path}; correct meta/episodes"
        else:
            lost[e] = (
                f"the index says that it lasts {ends[e] - begin[e]:.3f} s in {path}, its rows last {seconds[e]:.3f} s; "
                "correct meta/episodes"
            )
    sound = np.flatnonzero(~np.isin(np.arange(len(file)), list(lost), kind="table")) if lost else np.arange(len(file))
    order = sound[np.lexsort((ends[sound], begin[sound], file[sound]))]
    shared = (np.diff(file[order]) == 0) & (np.diff(begin[order]) == 0) & (np.diff(ends[order]) == 0)
    place = np.zeros(len(file), np.int64)
    place[order] = np.cumsum(np.append(True, ~shared)[: len(order)])
    for e, other in _out_of_order(sound, place[sound]):
        lost[e] = (
            f"the index says that it shows the frames of episode {other} in {files[file[e]]}, but the episodes before "
            "and after it are elsewhere; correct meta/episodes"
        )
    several = np.bincount(place[sound], minlength=1)[place[sound]] > 1
    stray = sound[several & ~_following(file[sound], begin[sound], ends[sound], most[sound])]
    for at in np.unique(file[stray]).tolist():
        if _lasts(files[at], float(seconds[file == at].sum())):
            for e in stray[file[stray] == at].tolist():
                lost[e] = (
                    f"the index says that it begins at {begin[e]:.3f} s in {files[at]}, as another episode does, but "
                    "the video lasts long enough for frames of its own; correct meta/episodes"
                )
    order = order[np.append(True, ~shared)[: len(order)]]  # equal frames with other rows or instructions are no fault
    for own in np.split(order, np.flatnonzero(np.diff(file[order])) + 1):
        for e, other in _overlapping(own.tolist(), begin, ends - most):
            lost[e] = (
                f"the index says that it begins at {begin[e]:.3f} s in {files[file[e]]}, within episode {other}; "
                "correct meta/episodes"
            )
    return lost


def _lasts(path: Path, seconds: float) -> bool:
    """Return whether a video has this duration; False if it cannot be read, which is reported on reading it."""
    try:
        return video.read_info(path).seconds >= (1 - _SLACK) * seconds
    except ValueError:
        return False


def _following(file: _Integers, begin: _Seconds, end: _Seconds, most: _Seconds) -> Bool[np.ndarray, "E"]:
    """Return which episodes begin where the previous one ends, or where the file begins."""
    before = np.append(0.0, np.where(file[1:] == file[:-1], end[:-1], 0.0))[: len(file)]
    return np.abs(begin - before) <= most


def _between_neighbors(file: _Integers, begin: _Seconds, end: _Seconds, most: _Seconds) -> Bool[np.ndarray, "E"]:
    """Return which episodes begin where the previous one in their file ends, and end where the next one begins."""
    after = _following(file, begin, end, most)
    return after & np.append(after[1:] | (file[1:] != file[:-1]), True)


def _out_of_order(episodes: Int64[np.ndarray, "S"], place: Int64[np.ndarray, "S"]) -> list[tuple[int, int]]:
    """Return the episodes that share their place with another one and alone break the order of places.

    Episodes that were added with the frames of others are in order among themselves. One that is not has a wrong file.
    """
    if not len(place):
        return []
    before = np.append(0, place[:-1])
    after = np.append(place[1:], np.iinfo(np.int64).max)
    between = (before <= place) & (place <= after)
    shared = np.bincount(place)[place] > 1
    wrong = np.flatnonzero(shared & (before <= after) & ~between)
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], place[wrong])
    other = np.where(order[first] == wrong, order[np.minimum(first + 1, len(order) - 1)], order[first])
    return list(zip(episodes[wrong].tolist(), episodes[other].tolist(), strict=True))


def _overlapping(own: list[int], begin: _Seconds, end: _Seconds) -> list[tuple[int, int]]:
    """Return the fewest episodes of a file whose removal makes the others disjoint, each with one that it overlaps.

    `own` lists the episodes in the order of their begins. Of several solutions, the kept episodes have numbers near the
    median, because the episodes of a file have neighboring numbers.
    """
    if (begin[own][1:] >= np.maximum.accumulate(end[own])[:-1]).all():
        return []
    order = np.array(own)[np.argsort(end[own], kind="stable")]
    begins, ends = begin[order], end[order]
    distance = np.abs(order - np.median(order))
    worth = (1 - distance / (1 + distance.sum())).tolist()  # positive; more episodes outweigh fewer
    before = np.minimum(np.searchsorted(ends, begins, side="right"), np.arange(len(order))).tolist()
    best = [0.0]  # best worth among the first i episodes: weighted interval scheduling
    for i, value in enumerate(worth):
        best.append(max(best[i], best[before[i]] + value))
    kept, i = [], len(order)
    while i:
        if best[i] > best[i - 1]:
            kept.append(i - 1)
            i = before[i - 1]
        else:
            i -= 1
    kept.reverse()
    lost = np.setdiff1d(np.arange(len(order)), kept)
    others = np.array(kept)[np.searchsorted(ends[kept], begins[lost], side="right")]
    return list(zip(order[lost].tolist(), order[others].tolist(), strict=True))
