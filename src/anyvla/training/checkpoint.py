"""Checkpoints from which training resumes exactly: weights, optimizer state and step, in safetensors and JSON.

A checkpoint is written beside the old one, flushed to the disk and renamed, so that neither an interruption nor a power
cut leaves half of one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import check_checkpoint
from anyvla.checkpoint.of_run import FINAL, STATE, Score, read_state, read_step, step_folder, step_folders
from anyvla.files import durable, tensor_files
from anyvla.migrations import TRAINING_STATE
from anyvla.training.shard_writer import do_together
from anyvla.training.state import OPTIMIZER, TrainingState


def latest(run: Path) -> Path | None:
    """Return the newest checkpoint of a run folder: the finished one, or the last on the way; None if there is none."""
    final = run / FINAL
    return final if final.is_dir() else next(reversed(step_folders(run)), None)


def check_whole(run: Path, folder: Path) -> None:
    """Raise ValueError with the missing files of a checkpoint in a run folder, and what to do."""
    try:
        check_checkpoint(folder)
    except ValueError as error:
        others = [p.name for p in step_folders(run) if p != folder]
        way_out = f"move it away to resume from {others[-1]}" if others else "move it away to train anew"
        raise ValueError(f"{error} (or {way_out})") from None


def check_resumable(folder: Path) -> None:
    """Raise ValueError with the missing files if training cannot resume from a checkpoint."""
    lacking = [] if (folder / STATE).exists() else [STATE]
    lacking += [] if tensor_files.exist(folder / OPTIMIZER) else [OPTIMIZER]
    if lacking:
        raise ValueError(
            f"{folder} lacks {' and '.join(lacking)}, and training cannot resume without them: copy the folder again, "
            "whole, or choose another output folder"
        )


def tidy(run: Path) -> None:
    """Remove what a kill left half written or half removed, and complete an interrupted swap of the codec."""
    durable.finish_swap(run / "codec")
    for folder in (*run.glob("checkpoint.tmp"), *run.glob("codec.tmp"), *(run / "train").glob("step-*.tmp")):
        shutil.rmtree(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. A kill in between leaves a folder that `tidy` removes, never part of a checkpoint."""
    temporary = folder.with_name(folder.name + ".tmp")
    folder.rename(temporary)
    durable.sync(folder.parent)
    shutil.rmtree(temporary)


def reopen(final: Path) -> Path:
    """Make a finished checkpoint one on the way, for a run that is made longer; returns its folder."""
    folder = step_folder(final.parent, read_step(final))
    folder.parent.mkdir(parents=True, exist_ok=True)
    durable.put(final, folder)
    return folder


def close(run: Path, folder: Path) -> Path:
    """Undo `reopen`; returns the finished checkpoint."""
    durable.put(folder, run / FINAL)
    return run / FINAL


def save(
    folder: Path,
    state: TrainingState,
    step: int,
    recipe: Mapping[str, Any],
    card: str,
    score: Score | None = None,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a whole checkpoint to `folder`, which must not exist yet. Raises OSError and leaves nothing if it fails.

    `more`: texts of further files in its folder `training`, by name. All processes of a sharded training do it
    together; process 0 writes everything but their shards.
    """
    document = {"schema": TRAINING_STATE, "step": step} | ({"score": asdict(score)} if score is not None else {})
    temporary, writes = folder.with_name(folder.name + ".tmp"), state.writers.is_main

    def complete() -> None:
        if writes:
            (temporary / "README.md").write_text(card, encoding="utf-8")
            for name, text in (more or {}).items():
                (temporary / "training" / name).write_text(text, encoding="utf-8")
            (temporary / STATE).write_text(json.dumps(document), encoding="utf-8")
            durable.put(temporary, folder)

    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        document |= state.save(temporary, recipe)
        do_together(state.writers, complete)
    except OSError:
        if writes:
            shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint only fills the disk
        raise


def add_score(folder: Path, score: Score) -> None:
    """Add to a checkpoint the score that was measured after it was written."""
    state = read_state(folder) | {"score": asdict(score)}
    durable.remove_leftovers(folder / STATE)  # of a kill in the line below: the measurement is then made again
    durable.write(folder / STATE, json.dumps(state))


def restore(folder: Path, state: TrainingState) -> int:
    """Load weights and optimizer state into the state of a new training. Return the step to resume from.

    Raises a ValueError that names the file, and changes nothing, if one is missing, damaged or of another model.
    """
    step = read_step(folder)
    state.restore(folder, read_state(folder))
    return step
