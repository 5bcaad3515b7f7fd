"""Versions of simulators that run from a git checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path


def read_git_commit(folder: Path) -> str:
    """Return the git commit of the checkout that contains `folder`, or "unknown" outside of a checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
