"""Shared by all commands: readable errors and a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from anyvla.cli.console import Console, visible
from anyvla.cli.os_errors import explain
from anyvla.files.stage_paths import stage_folder
from anyvla.interrupted import STOPPED, Interrupted

if TYPE_CHECKING:
    from anyvla.recipe import Recipe

_NARROW = 50  # columns of a terminal

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
    """Return the recipe that the options name, with keys laid over it, and its run folder. Raises ConfigError.

    With `--stage` it is the recipe of that stage.
    """
    from anyvla.recipe import read
    from anyvla.stages import read_stages, up_to

    if getattr(options, "stage", None) is not None:
        stage = up_to(read_stages(options.recipe, overrides), options.stage)[-1]
        run = options.out or Path("outputs") / stage.recipe.name.rpartition("/")[0]
        return stage.recipe, stage_folder(run, stage.name)
    recipe = read(options.recipe, overrides)
    return recipe, options.out or Path("outputs") / recipe.name


def _choose_columns(width: int) -> list[ProgressColumn]:
    """Return the columns of a bar; the bar itself and the time so far need room."""
    title, left = TextColumn("{task.description}", markup=False), (TextColumn("left"), TimeRemainingColumn())
    if width < _NARROW:
        return [title, MofNCompleteColumn(), *left]
    return [title, BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), *left]


class _ProgressWithNote(Progress):
    """A bar with its note in the lines below, so that both fit into a narrow terminal."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(visible(task.fields["note"]), overflow="fold")


class ProgressBar:
    """A progress bar with the time left. Without a terminal, a plain line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title, self.shown = title, 0.0
        self.rich = (
            _ProgressWithNote(*_choose_columns(console.width), console=console, expand=True)
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
