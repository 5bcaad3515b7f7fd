"""Turn an out-of-memory error of training into the plan's table and the cheapest changes that prevent it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from anyvla.planning.plan import make_plan
from anyvla.planning.table import describe_memory
from anyvla.recipe import Recipe

REMEDIES = 3
_MESSAGES = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


class OutOfMemory(RuntimeError):
    """Training ran out of memory. The message lists its parts and the changes that prevent it."""


@contextmanager
def explaining_out_of_memory(recipe: Recipe, run: Path, processes: int = 1) -> Iterator[None]:
    """Within the context, an out-of-memory error becomes OutOfMemory, with the plan and the cheapest changes.

    `processes`: how many train together, each with its part of the batch.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = explain_out_of_memory(error, recipe, run, processes)
    else:
        return
    raise OutOfMemory(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device or the machine has no more memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


def explain_out_of_memory(error: BaseException, recipe: Recipe, run: Path, processes: int = 1) -> str:
    """Return a message with the memory by part and the three cheapest changes.

    Frees the memory of the failed training first, which the frames of the error's traceback hold.
    """
    first = str(error).partition("\n")[0] or type(error).__name__
    _release(error)
    head = f"training ran out of memory ({first[:300]})"
    if processes > 1:
        rows = recipe.training.batch_size // processes
        recipe = replace(recipe, training=replace(recipe.training, batch_size=rows))
        head += f" in one of {processes} processes. Below, batch_size is the {rows} windows of one process"
    try:
        plan = make_plan(recipe, run, remedies=REMEDIES, failed=True)
    except Exception as failed:  # the message must come through, whatever hinders the plan
        return (
            f"{head}. No plan could be made ({failed}): use a smaller --training.batch_size, --training.accumulate, or "
            "a smaller backbone"
        )
    return "\n".join((f"{head}. What training takes:", "", *describe_memory(plan)))


def _release(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
