"""The base class of executors, which run the jobs of a study as processes: here, on a Ray or on a SLURM cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Needs:
    """What a job may use, and what jobs like it have used."""

    minutes: float  # then it is ended
    limit_gb: float  # of memory; with more it is ended
    memory_gb: float  # of jobs like it
    threads: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Ended:
    """A job whose process has ended. Whether it is done, its folder says."""

    name: str
    status: int | None  # None: it was lost, for example with its machine
    reason: str = ""  # for a person, if the executor ended it or lost it
    over_budget: bool = False


class Executor(ABC):
    """Runs commands, each in a process of its own. Used by one thread."""

    @abstractmethod
    def has_room(self, needs: Needs) -> bool:
        """Return whether a job may be submitted now."""

    @abstractmethod
    def submit(self, name: str, command: Sequence[str], needs: Needs, log: Path) -> None:
        """Run a command of this Python environment. Its output is appended to `log`."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended since the last call; wait at most `seconds` for one."""

    @abstractmethod
    def close(self) -> None:
        """End all jobs that still run, and return when they have ended. They can be resumed."""
