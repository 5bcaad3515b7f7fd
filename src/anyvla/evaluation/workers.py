"""Set up the worker processes that simulate for demonstrations and videos."""

from __future__ import annotations

import os


class EnvironmentFailed(RuntimeError):
    """A simulator failed too often."""


def prepare_worker() -> None:
    """Limit rendering to one thread: Mesa's software renderer would use all cores in each process."""
    os.environ["LP_NUM_THREADS"] = "1"
