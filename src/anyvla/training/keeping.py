"""Write the checkpoints of a run, and remove the ones that `training.keep` does not ask for.

A checkpoint is removed only after a newer one is on the disk, so that a full disk or a kill never takes the newest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvla.checkpoint.of_run import FINAL, SavedCheckpoint, Score, list_checkpoints, select_best, step_folder
from anyvla.files import durable
from anyvla.limits import COUNT
from anyvla.training import checkpoint
from anyvla.training.card import format_model_card
from anyvla.training.config import TrainingConfig
from anyvla.training.disk_space import check_space, checkpoint_size, describe_space
from anyvla.training.kept import remove_surplus
from anyvla.training.processes import Processes
from anyvla.training.state import TrainingState
from anyvla.training.warm_start.record import FILE, WarmStartRecord

logger = logging.getLogger(__name__)


class CheckpointKeeper:
    """Writes checkpoints below a run folder when they are due, and removes older ones.

    Only process 0 does. In a sharded training it decides, and all processes write their shards.
    """

    def __init__(
        self,
        run: Path,
        state: TrainingState,
        recipe: Mapping[str, Any],
        config: TrainingConfig,
        begun: Path | None,  # the checkpoint from which training resumes
        processes: Processes,
        warm_start: WarmStartRecord | None = None,
    ) -> None:
        self.warm_start = warm_start
        self.run, self.state, self.recipe, self.config = run, state, recipe, config
        self.newest = begun
        self.processes = processes
        self._score: tuple[int, Score] | None = None
        self._failed_at: int | None = None  # the step of the last checkpoint, if it could not be written

    def begin(self, *, measured: bool) -> None:
        """Compare the free space with that of the checkpoints to come; `measured`: they may have scores.

        Raises OSError if not even one fits. Logs a warning if they do not all fit. A finished checkpoint, trained for
        more steps, is then one on the way; if training fails before this, it stays in its place. The record of a warm
        start is written.
        """
        if self.processes.is_main:
            self._begin(measured)
        newest = self.state.writers.on_main(lambda: None if self.newest is None else str(self.newest))
        self.newest = None if newest is None else Path(newest)

    def _begin(self, measured: bool) -> None:
        keep = self.config.keep
        wanted = keep.last + 1 + (keep.best if measured else 0) + self.config.steps // (keep.every or COUNT)
        size = checkpoint_size(self.state)
        check_space(self.run, size, wanted - len(list_checkpoints(self.run)))
        if self.newest == self.run / FINAL:
            self.newest = checkpoint.reopen(self.newest)
        if self.warm_start is not None and self.newest is None:
            durable.write(self.run / "train" / FILE, self.warm_start.to_json())

    @property
    def _writes(self) -> bool:
        return self.processes.is_main or self.state.writers.count > 1

    def save_alone(self, step: int) -> None:
        """Write a checkpoint like `save` after another process failed, which cannot write its shards any more."""
        if self.state.writers.count == 1:
            self.save(step)

    def record(self, step: int, score: Score) -> None:
        """Take the score of the policy after `step` steps. It belongs to the checkpoint of that step, if one is due."""
        if not math.isfinite(score.value):
            logger.warning("%s is %g after step %d, which counts as no score", score.name, score.value, step)
            return
        self._score = (step, score)
        if self.newest == step_folder(self.run, step):  # written before the measurement
            try:
                checkpoint.add_score(self.newest, score)
            except OSError as error:  # a full disk, say
                logger.warning("%s has no score, which could not be written: %s", self.newest, error)
            remove_surplus(self.run, self.config.keep)

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after `step` steps: at an interval, or among the best."""
        intervals = (self.config.checkpoint_every, self.config.keep.every)
        return any(step % every == 0 for every in intervals if every is not None) or self.state.writers.on_main(
            lambda: self._is_among_best(step)
        )

    def save(self, step: int, *, last_chance: bool = False) -> None:
        """Write a checkpoint after `step` steps, unless there is one.

        If it cannot be written, as on a full disk, training continues until the next one is due, with a warning. Raises
        OSError, with the space that is needed, if that fails as well, or at once with `last_chance`.
        """
        folder = step_folder(self.run, step)
        if not self._writes or (self.newest is not None and self.newest.name == folder.name):
            return
        try:
            self._save(folder, step)
        except OSError as error:
            message = self._describe_failure(step, error)
            if last_chance or self._failed_at not in (None, step):  # one before a measurement may be tried once more
                raise OSError(error.errno, message) from error
            self._failed_at = step
            logger.warning("%s. Training continues, and stops if the next checkpoint cannot be written either", message)
        else:
            self._failed_at = None

    def finish(self, steps: int) -> Path:
        """Write the finished checkpoint after the last step and return its folder. Raises OSError like `save`."""
        folder = self.run / FINAL
        if not self._writes:
            return folder
        if self.newest == step_folder(self.run, steps):  # written before the last measurement
            return checkpoint.close(self.run, self.newest) if self.processes.is_main else folder
        try:
            self._save(folder, steps)
        except OSError as error:
            raise OSError(error.errno, self._describe_failure(steps, error)) from error
        return folder

    def _is_among_best(self, step: int) -> bool:
        if self._score is None or self._score[0] != step:
            return False
        now = SavedCheckpoint(step_folder(self.run, step), step, self._score[1])
        return now in select_best([*list_checkpoints(self.run), now], self.config.keep.best)

    def _save(self, folder: Path, step: int) -> None:
        card = format_model_card(self.state.vla, self.recipe, step, self.warm_start)
        more = {} if self.warm_start is None else {FILE: self.warm_start.to_json()}
        score = self._score[1] if self._score is not None and self._score[0] == step else None
        checkpoint.save(folder, self.state, step, self.recipe, card, score, more)
        self.newest = folder
        if self.processes.is_main:
            remove_surplus(self.run, self.config.keep)

    def _describe_failure(self, step: int, error: OSError) -> str:
        space = describe_space(self.run, checkpoint_size(self.state))
        there = f"{self.newest} is whole, and the same command resumes from it" if self.newest else "there is none yet"
        return (
            f"the checkpoint after step {step} could not be written ({error.strerror or error}): {space}. Free some, "
            f"or keep fewer checkpoints (training.keep). The newest: {there}"
        )
