"""Settings of processes that simulate for demonstrations and videos."""

from __future__ import annotations

import os


class EnvironmentFailed(RuntimeError):
    """A simulator raised, or its process died, more often than can be borne."""


def prepare_worker() -> None:
    """Give a process that simulates one thread: Mesa's software renderer would take all cores in each process."""
    os.environ["LP_NUM_THREADS"] = "1"
