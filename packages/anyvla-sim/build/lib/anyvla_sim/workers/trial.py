"""Run code that may crash or hang, such as graphics drivers, in another process."""

from __future__ import annotations

import subprocess
import sys
from typing import Mapping

PATIENCE_S = 60.0


class TrialFailed(Exception):
    """The code failed, crashed or hung; the message says which."""


def run_trial(code: str, environment: Mapping[str, str] | None = None) -> str:
    """Run Python code and return its output. Raises TrialFailed with the last line of its error, or its exit status."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            timeout=PATIENCE_S,
            start_new_session=True,  # a signal to the whole command must not look like a failure of the code
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired:
        raise TrialFailed(f"it hung: no end within {PATIENCE_S:g} s") from None
    if done.returncode:
        raise TrialFailed((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    return done.stdout
