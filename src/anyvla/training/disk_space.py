"""The disk space that the checkpoints of a run take, compared with the free space."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import torch

from anyvla.files.weights import list_once
from anyvla.training.state import TrainingState

logger = logging.getLogger(__name__)

_SMALL_FILES = 1 << 20  # bytes of tokenizer, statistics and model card


def checkpoint_size(training: TrainingState) -> int:
    """Return the bytes that a checkpoint takes; before the first step, with two moments for each trained weight."""
    size = _SMALL_FILES + sum(map(_bytes, list_once(training.vla).values()))
    for parameter in training.parameters:
        kept = training.optimizer.state.get(parameter, {}).values()
        state = [value for value in kept if isinstance(value, torch.Tensor)]
        size += sum(map(_bytes, state)) if state else 2 * _bytes(parameter)
        size += _bytes(parameter) if training.ema is not None else 0
    return size


def check_space(run: Path, size: int, wanted: int) -> None:
    """Compare the free space with checkpoints of `size` bytes each, `wanted` more than there are.

    Raises OSError if not even one fits, since training would be for nothing. Logs a warning if they do not all fit.
    """
    free = shutil.disk_usage(run).free
    if free < size:
        raise OSError(
            errno.ENOSPC, f"training was not started: {describe_space(run, size)}. Free some, or choose another --out"
        )
    if free < wanted * size:
        logger.warning(
            "the disk will be full before training ends: a checkpoint takes %s, training.keep asks for %d more of them "
            "at a time, one of them being written, and %s are free at %s. Free some, or keep fewer",
            *(format_size(size), wanted, format_size(free), run),
        )


def describe_space(run: Path, size: int) -> str:
    """Return the space that a checkpoint needs and the space that there is, as a part of a sentence."""
    return f"a checkpoint takes {format_size(size)}, and {format_size(shutil.disk_usage(run).free)} are free at {run}"


def format_size(size: float) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
