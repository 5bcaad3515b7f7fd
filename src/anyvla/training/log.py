"""The log of a training: one JSON object a line in `train/log.jsonl`."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from anyvla.files import durable
from anyvla.files.documents import DocumentError, parse_json

logger = logging.getLogger(__name__)


class TrainingLog:
    """Appends lines to a log, without the lines after the step from which training resumes.

    Without a path, as in a process that writes nothing, lines are dropped.
    """

    def __init__(self, path: Path | None, start: int) -> None:
        self.earlier: list[dict[str, Any]] = []
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []  # called with each new line
        self._path, self._failing = path, False
        self._file: FileIO | None = None
        if path is None:
            return
        lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []
        kept = [line for line in lines if _logged_step(line) in range(1, start + 1)]
        durable.remove_leftovers(path)
        durable.write(path, "".join(line + "\n" for line in kept))
        self.earlier = [json.loads(line) for line in kept]
        self._file = path.open("ab", buffering=0)  # a line is written at once, or not at all

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line, which has the key "step". JSON has no infinity and no NaN: such a number becomes null.

        A line that cannot be written, as on a full disk, is lost with a warning: it is not worth a training.
        """
        if self._file is None:
            return
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        self._append(self._file, (json.dumps(finite, allow_nan=False) + "\n").encode())
        for follow in self.followers:
            follow(line)

    def _append(self, file: FileIO, line: bytes) -> None:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)  # of half a line
            if not self._failing:
                logger.warning("%s cannot be written (%s); lines are lost until it can", self._path, error.strerror)
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _logged_step(line: str) -> Any:
    """Return the step of a line of the log; None if the line is torn or damaged."""
    try:
        found = parse_json(line, "log")
    except DocumentError:
        return None
    return found.get("step") if isinstance(found, dict) else None
