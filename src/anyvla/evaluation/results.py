"""Read and append the lines of `results.jsonl`, one finished episode each."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pydantic

from anyvla.config import explain_fault
from anyvla.files import durable
from anyvla.migrations import migrate_result

logger = logging.getLogger(__name__)

FORMAT = 3  # of the lines; lines of format 2 are brought to it when they are read
# invalid_action: the policy returned NaN or inf; counts as a failure, and is also counted separately. error: the
# simulator failed twice; counts as neither success nor failure.
Outcome = Literal["success", "failure", "invalid_action", "error"]


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """One finished evaluation episode."""

    benchmark: str  # "metaworld/mt10"
    condition: str  # "original", "swapped+light=dim": see `conditions`
    task: str  # its scene gives the start state; for chains: "chain"
    # the task whose instruction was given, in a chain the first one; `task` under "original"
    instructed: str
    instruction: str  # the first one of the episode
    seed: int
    outcome: Outcome
    reached: str | None  # the first goal that was reached, None if none; for chains: the last
    steps: int  # actions executed
    completed: int = 0  # tasks of the chain solved in a row; for single tasks 0 or 1
    length: int = 1  # tasks of the chain
    attempts: int = 1  # 2: played again after the simulator had crashed or hung
    clipped: int = 0  # actions outside the range that the environment accepts
    latency_ms: float  # mean time of one policy call
    checkpoint: str  # hash of weights, statistics and configuration
    policy: Mapping[str, Any] = field(default_factory=dict)  # how its chunks are executed; reported, not compared
    protocol: Mapping[str, Any] = field(default_factory=dict)  # must agree for two scores to be comparable
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries, and hardware; reported, not compared
    extra: Mapping[str, Any] = field(default_factory=dict)  # "chain", "error", "disturbed_at", "grasps"
    format: int = FORMAT

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)  # of a line that is read

    @property
    def success(self) -> bool:
        """Whether the goal of `task` was reached."""
        return self.outcome == "success"

    @property
    def obeyed(self) -> bool:
        """Whether the instructed goal was the first one reached; of a chain with its own instructions, all of them."""
        if self.length > 1 and self.instructed == self.task:
            return self.success
        return self.reached == self.instructed and (self.length == 1 or self.completed == 0)

    @property
    def first_obeyed(self) -> bool:
        """Whether the first task of a chain ended with its instructed goal; for single tasks `obeyed`."""
        return self.completed > 0 if self.length > 1 and self.instructed == self.task else self.obeyed

    @property
    def judges_all(self) -> bool:
        """Whether all goals were judged all the time, so that a wrong one was noticed."""
        return self.length == 1 or self.protocol.get("other_goals") == "judged"

    @property
    def key(self) -> str:
        """Unique within an evaluation; names the files of the episode."""
        return f"{self.condition}-{self.task}-{self.seed}"


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON-lines file.

    A last line without a newline that is not JSON was torn by an interruption; it is skipped with a warning. Any other
    bad line raises ValueError with its number.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8
            if not line.endswith(b"\n"):
                logger.warning("%s: line %d is incomplete (the writer was interrupted); it is skipped", path, number)
                return
            raise ValueError(f"{path}, line {number}: not valid JSON ({error}); fix or delete this line") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected one JSON object, found {type(value).__name__}")
        yield number, value


def read_results(path: Path) -> list[EpisodeResult]:
    """Return the episodes of a `results.jsonl`, in the order in which they ended.

    A torn last line is skipped with a warning. Raises ValueError with the line's number for any other line that is not
    an EpisodeResult, and FileNotFoundError if there is no file.
    """
    adapter = pydantic.TypeAdapter(EpisodeResult)
    results = []
    for number, line in read_json_lines(Path(path)):
        if line.get("format") == 2:
            line = migrate_result(line) | {"format": FORMAT}
        if "benchmark" in line and line.get("format", 1) != FORMAT:
            raise ValueError(
                f"{path}, line {number}: of format {line.get('format', 1)}, this anyvla reads 2 and {FORMAT}: the "
                "episode was played by another version of the harness and cannot be compared; evaluate again into "
                "another folder"
            )
        try:
            results.append(adapter.validate_json(json.dumps(line)))
        except pydantic.ValidationError as error:
            faults = "; ".join(explain_fault(EpisodeResult, fault) for fault in error.errors())
            raise ValueError(f"{path}, line {number}: {faults}; fix or delete this line") from None
    return results


def append_result(path: Path, result: EpisodeResult) -> None:
    """Append the line of an episode, see `append_line`."""
    append_line(path, dataclasses.asdict(result))


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON object and return when it is on disk. A torn last line of an interrupted run is removed first.

    One process may write at a time. If writing fails with OSError, as on a full disk, no part of the line remains.
    """
    line = json.dumps(values, ensure_ascii=False, allow_nan=False, default=_to_plain) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a+b", buffering=0) as file:
        data = line.encode()
        end, tail = _whole_lines(file)
        if _is_json(tail):  # complete, only its newline is missing
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
    if new:
        durable.sync(path.parent)


def _whole_lines(file: IO[bytes]) -> tuple[int, bytes]:
    """Return the offset after the last newline of the file, and the bytes that follow it."""
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
    except (ValueError, RecursionError):
        return False
    return True


def _to_plain(value: Any) -> Any:
    """Return a NumPy value as plain Python for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a result has a {type(value).__name__}, which JSON cannot represent: {value!r}")
