"""What anyvla remembers of data sets outside of them: indices and statistics, by fingerprint, in one cache folder.

Data sets are read in place and may lie where nobody may write. Anything here can be removed at any time: it is made
again when it is needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_HASHED_BYTES = 1 << 16  # of the head and of the tail of a file, where parquet, mp4 and HDF5 keep their index


def folder(kind: str) -> Path:
    """Where things of this kind are kept: `$ANYVLA_CACHE/kind`, by default `~/.cache/anyvla/kind`."""
    own = os.environ.get("ANYVLA_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "anyvla"
    path = root.expanduser() / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, contents: bytes) -> None:
    """Write a file whole or not at all, whoever else writes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(contents)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(root: Path, files: Iterable[Path], meaning: str) -> str:
    """sha256 over names, sizes, heads and tails of files below `root`, and over what their contents mean."""
    digest = hashlib.sha256(meaning.encode())
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            if size > 2 * _HASHED_BYTES:
                file.seek(size - _HASHED_BYTES)
            digest.update(file.read())
    return digest.hexdigest()
