"""Shared by all commands: readable errors and a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anyvla.cli.console import Console
from anyvla.cli.os_errors import explain
from anyvla.cli.stopping import STOPPED
from anyvla.interrupted import Interrupted

if TYPE_CHECKING:
    from anyvla.recipe import Recipe

console = Console(stderr=True)  # people read stderr; stdout is for results


def run_guarded(run: Callable[[], int], command: str) -> int:
    """Run a command. Turn expected failures into one clear line; unexpected ones keep their traceback."""
    logging.basicConfig(level=os.environ.get("ANYVLA_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it prints its own lines
    try:
        return run()
    except (Interrupted, KeyboardInterrupt) as stopped:
        with contextlib.suppress(OSError):  # the same signal may have ended the reader of standard error
            console.print(f"{command}:", style="yellow", end=" ")
            console.print(str(stopped) or "stopped", soft_wrap=True)
        return STOPPED
    except BrokenPipeError:
        return 1
    except MemoryError:
        return fail(command, "out of memory: use fewer workers or a smaller batch, or close other programs")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if os.environ.get("ANYVLA_DEBUG"):
            raise
        return fail(command, explain(error))


def fail(command: str, message: str) -> int:
    """Print an error. Return the exit status."""
    console.print(f"{command}:", style="bold red", end=" ")
    console.print(message, soft_wrap=True)
    return 1


def read_recipe(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """Return the recipe that the options name, with keys laid over it, and its run folder. Raises ConfigError."""
    from anyvla.recipe import read

    recipe = read(options.recipe, overrides)
    return recipe, options.out or Path("outputs") / recipe.name


class ProgressBar:
    """A progress bar with the time left. Without a terminal, a plain line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title, self.shown = title, 0.0
        self.rich = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self.task: Any = None
        self.begin = time.perf_counter()
        self.first: int | None = None

    def __enter__(self) -> ProgressBar:
        if self.rich:
            self.rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.rich:
            self.rich.stop()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self.rich:
            if self.task is None:
                self.task = self.rich.add_task(self.title, total=total, completed=done, note=note)
            self.rich.update(self.task, completed=done, total=total, note=note)
            return
        now = time.perf_counter()
        if self.first is None:
            self.first = done
        if done < total and now - self.shown < 10:
            return
        self.shown = now
        new = done - self.first  # items that an interrupted command had finished do not count for the speed
        left = f", {(now - self.begin) / new * (total - done):.0f} s left" if new and done < total else ""
        with contextlib.suppress(OSError):  # a closed pipe must not end the work
            print(f"{self.title}: {done}/{total}{left} {note}".rstrip(), file=sys.stderr, flush=True)
