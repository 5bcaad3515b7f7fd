"""Run `anyvla train` in several processes: all of them train, and only the first one prints."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from anyvla.cli.common import console

if TYPE_CHECKING:
    from anyvla.training.launchers import Launch
    from anyvla.training.processes import Processes

# Loggers whose warnings are about the process itself, such as its data workers, and not about the training.
_OF_PROCESS = ("anyvla.training.batches", "anyvla.worker_pool")


@contextlib.contextmanager
def silent_unless_first(launch: Launch | None) -> Iterator[None]:
    """Let a process other than the first print nothing within the context: neither output nor usage nor warnings.

    An error that the first process does not print leaves the context so that it can be printed.
    """
    if launch is not None:
        # PyTorch warns in each process that it looks for weights without gradients, which may be in vain
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if launch is None or launch.rank == 0:
        yield
        return
    from anyvla.interrupted import Interrupted
    from anyvla.training.processes import EndedElsewhere, LostProcess

    quiet = _OnlyOwnWarnings(launch.rank)
    for handler in logging.getLogger().handlers:
        handler.addFilter(quiet)
    console.quiet = True
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    except (EndedElsewhere, LostProcess, Interrupted, KeyboardInterrupt):
        raise
    except BaseException:
        console.quiet = False
        raise
    finally:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(quiet)


class _OnlyOwnWarnings(logging.Filter):
    """Drops the records that the first process logs too, and names the process in the others."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name not in _OF_PROCESS:
            return False
        record.msg = f"process {self._rank}: {record.msg}"
        return True


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[Processes | None]:
    """Join the processes of a launch within the context; None, without any import, if there is none."""
    if launch is None:
        yield None
        return
    from anyvla.training.processes import Processes

    with Processes.joined(launch) as processes:
        yield processes
