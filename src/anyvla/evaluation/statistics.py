"""What a success rate is worth: result lines on disk, Wilson intervals, and summaries per protocol and task.

Every table, page and JSON summary is computed from the lines of `results.jsonl` and nothing else. A rate never travels
without its interval: 20 successes of 20 are anything from 84 % up.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import IO, Any

import numpy as np

from anyvla.evaluation.environments.base import EpisodeResult

logger = logging.getLogger(__name__)

PROTOCOLS = ("told", "swapped", "unrelated")


@dataclass(frozen=True)
class Interval:
    """A share of episodes with its confidence interval; all three in [0, 1]."""

    value: float
    low: float
    high: float
    episodes: int

    @property
    def successes(self) -> int:
        """How many of the episodes counted."""
        return round(self.value * self.episodes)

    def to_dict(self) -> dict[str, float | int]:
        """`{"value", "low", "high", "episodes"}`, for JSON."""
        return dataclasses.asdict(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of `successes` out of `n` (Wilson 1927); honest at 0 %, at 100 % and for small n.

    Raises ValueError for n < 1, for successes outside 0..n and for a confidence outside (0, 1).
    """
    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, as in 0.95, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the ends the bound is the end itself; floating point alone would put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(rate, low, high, n)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a JSON-lines file that a killed process may have left with a torn last line.

    A last line that has no newline and is not JSON is left out with a warning; any other bad line raises ValueError
    that names its number.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:  # bad JSON and bad UTF-8
            if not line.endswith(b"\n"):
                logger.warning("%s: line %d is torn (the writer was interrupted); it is left out", path, number)
                return
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}); mend or delete this line") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected one JSON object, found {type(value).__name__}")
        yield number, value


def read_results(path: Path) -> list[EpisodeResult]:
    """The episodes of a `results.jsonl`, in the order in which they were finished.

    Raises ValueError with the line's number for a line that is no EpisodeResult (a torn last line is left out with a
    warning) and FileNotFoundError where there is no file.
    """
    results = []
    for number, line in json_lines(Path(path)):
        try:
            results.append(_episode(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; mend or delete this line") from None
    return results


# What each field of a line may be. bool is an int in Python, so it is told apart by hand in `_episode`.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "protocol": (str,),
    "task": (str,),
    "told": (str,),
    "instruction": (str,),
    "seed": (int,),
    "success": (bool,),
    "reached": (str, type(None)),
    "steps": (int,),
    "latency_ms": (int, float),
    "checkpoint": (str,),
    "versions": (dict,),
    "extra": (dict,),
}
_OPTIONAL = {"versions", "extra"}


def _episode(line: Mapping[str, Any]) -> EpisodeResult:
    missing = [k for k in _TYPES if k not in line and k not in _OPTIONAL]
    unknown = [k for k in line if k not in _TYPES]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has the unknown keys {', '.join(unknown)}"] if unknown else []
        raise ValueError(f"an episode's result {' and '.join(faults)}")
    for key, value in line.items():
        types = _TYPES[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"{key!r} must be {names}, got {value!r}")
    if line["protocol"] not in PROTOCOLS:
        raise ValueError(f"'protocol' must be one of {', '.join(PROTOCOLS)}, got {line['protocol']!r}")
    return EpisodeResult(**line)


def append_result(path: Path, result: EpisodeResult) -> None:
    """Add one line and return when it is on the disk. A torn last line, left by an interrupted run, is cut off first.

    One process may write at a time. Raises OSError (a full disk) and leaves no part of the line behind.
    """
    line = json.dumps(dataclasses.asdict(result), ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        data = line.encode()
        end, tail = _whole_lines(file)
        if _is_json(tail):  # whole, only its newline is missing
            data, end = b"\n" + data, end + len(tail)
        file.truncate(end)
        try:
            written = 0
            while written < len(data):  # an unbuffered write may be short
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _whole_lines(file: IO[bytes]) -> tuple[int, bytes]:
    """The offset behind the last newline of the file, and what follows it."""
    start = size = file.seek(0, os.SEEK_END)
    while start > 0:
        start = max(0, start - 65536)
        file.seek(start)
        rest = file.read(size - start)
        newline = rest.rfind(b"\n")
        if newline >= 0:
            return start + newline + 1, rest[newline + 1 :]
    file.seek(0)
    return 0, file.read()


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    """numpy values as JSON knows them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON has no form for: {value!r}")


@dataclass(frozen=True)
class Rates:
    """One share, over all episodes and per task (in the order in which tasks first appear)."""

    overall: Interval
    tasks: Mapping[str, Interval]


@dataclass(frozen=True)
class Summary:
    """What the lines of one checkpoint on one benchmark say; a protocol without episodes is None.

    Tasks are those the episodes belong to, whatever words were given.
    """

    benchmark: str
    checkpoint: str
    told: Rates | None  # own words: the task's goal was reached
    swapped: Rates | None  # the opposite's words: the task's own (first) goal was reached all the same
    swapped_obeyed: Rates | None  # the opposite's words: the told goal was the first one reached
    unrelated: Rates | None  # words of another scene: the task's goal was reached all the same

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `success`, `success_swapped`, `success_shuffled`, `swapped_obeyed`, then the same under `tasks`.

        Each is `{"value", "low", "high", "episodes"}`, or None for a protocol without episodes.
        """
        named = {
            "success": self.told,
            "success_swapped": self.swapped,
            "success_shuffled": self.unrelated,
            "swapped_obeyed": self.swapped_obeyed,
        }
        tasks: dict[str, dict[str, Any]] = {}
        for key, rates in named.items():
            for task, interval in (rates.tasks if rates else {}).items():
                tasks.setdefault(task, {})[key] = interval.to_dict()
        overall = {key: rates.overall.to_dict() if rates else None for key, rates in named.items()}
        return {"benchmark": self.benchmark, "checkpoint": self.checkpoint, **overall, "tasks": tasks}


def summarise(results: Sequence[EpisodeResult], confidence: float = 0.95) -> Summary:
    """Count the episodes of one checkpoint on one benchmark.

    Raises ValueError when there are none, when checkpoints or benchmarks are mixed, and when an episode is there twice
    (its weight would narrow the interval falsely).
    """
    if not results:
        raise ValueError("there are no results to summarise; `anyvla eval` makes them")
    for what in ("checkpoint", "benchmark"):
        given = sorted({getattr(r, what) for r in results})
        if len(given) > 1:
            raise ValueError(f"the results mix {len(given)} {what}s ({', '.join(given)}): summarise one at a time")
    seen: set[tuple[str, str, str, str, int]] = set()
    for r in results:
        key = (r.protocol, r.task, r.told, r.instruction, r.seed)
        if key in seen:
            raise ValueError(f"the episode {r.protocol} {r.task}, told {r.instruction!r}, seed {r.seed} is there twice")
        seen.add(key)

    def rates(protocol: str, counts: Callable[[EpisodeResult], bool]) -> Rates | None:
        outcomes: dict[str, list[bool]] = {}
        for r in results:
            if r.protocol == protocol:
                outcomes.setdefault(r.task, []).append(counts(r))
        if not outcomes:
            return None
        tasks = {task: wilson(sum(o), len(o), confidence) for task, o in outcomes.items()}
        every = [o for group in outcomes.values() for o in group]
        return Rates(wilson(sum(every), len(every), confidence), tasks)

    return Summary(
        benchmark=results[0].benchmark,
        checkpoint=results[0].checkpoint,
        told=rates("told", lambda r: r.success),
        swapped=rates("swapped", lambda r: r.success),
        swapped_obeyed=rates("swapped", lambda r: r.reached == r.told),
        unrelated=rates("unrelated", lambda r: r.success),
    )
