"""The base class of executors, which run the jobs of a study as processes: here, on a Ray or on a SLURM cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Needs:
    """The limits of a job, and the resources that similar jobs have used."""

    minutes: float  # then it is ended
    limit_gb: float  # of memory; with more it is ended
    memory_gb: float  # of jobs like it
    threads: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Task:
    """One job for an executor."""

    name: str
    command: Sequence[str]
    needs: Needs
    log: Path  # its output is appended here


@dataclass(frozen=True)
class Ended:
    """A job whose process has ended. Whether it is done, its folder says."""

    name: str
    status: int | None  # None: it was lost, for example with its machine, and may run again
    reason: str = ""  # for a person, if it was ended or lost
    over_budget: bool = False


class Executor(ABC):
    """Runs commands, each in a process of its own, in the folder of this process. Used by one thread."""

    @abstractmethod
    def has_room(self, needs: Needs) -> bool:
        """Return whether a job may be submitted now."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Run a job."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended since the last call; wait at most about `seconds` for one."""

    @abstractmethod
    def close(self) -> None:
        """End all jobs that still run. They can be resumed."""
