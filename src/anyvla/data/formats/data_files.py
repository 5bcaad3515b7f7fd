"""Lists the files of a data set and sorts numbered names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


def list_files(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files below a folder that match a pattern, sorted by path.

    Hidden files are skipped: macOS writes `._NAME` beside each file on foreign disks, notebooks keep checkpoints.
    """
    for path in sorted(folder.glob(pattern)):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path


def natural_order(name: str) -> list[int | str]:
    """Return a sort key that puts "demo_2" before "demo_10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
