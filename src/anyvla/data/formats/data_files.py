"""The files of a data set in a folder, without what other programs leave beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def list_files(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files below a folder that match, in order.

    Hidden ones do not count: macOS writes `._NAME` beside each file on foreign disks, notebooks keep checkpoints.
    """
    for path in sorted(folder.glob(pattern)):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path
