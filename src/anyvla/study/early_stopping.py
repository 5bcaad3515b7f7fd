"""Ask for the episodes of a study in blocks, and for no more of a cell whose comparisons are all decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from anyvla.config import ConfigError
from anyvla.study.cells import Cell
from anyvla.study.file import Stop, StudyFile
from anyvla.study.folder import StudyFolder
from anyvla.study.jobs import CellJobs, Job
from anyvla.study.record import describe
from anyvla.study.sequential import decided
from anyvla.study.store import CellLine

_LOOKS = 50  # looks at the comparisons while all cells play one block: each look takes longer in a larger study


class EarlyStopping:
    """Knows for every cell how many episodes per task are asked for now."""

    def __init__(
        self, study: StudyFile, stop: Stop, cells: Sequence[Cell], jobs_of: Mapping[str, CellJobs], folder: StudyFolder
    ) -> None:
        """Raises ConfigError for an evaluation without a number of episodes."""
        self._study, self._stop, self._folder = study, stop, folder
        self._cells = [cell for cell in cells if cell.name in jobs_of]
        self._whole = jobs_of  # with all episodes
        self._lines: dict[str, tuple[Mapping[str, int], CellLine]] = {}  # by cell: the episodes played, and its line
        self._looked: dict[str, CellLine] = {}  # by cell: its line at the last look at the comparisons
        self._settled: set[str] = set()  # cells whose comparisons were all decided then
        for cell in self._cells:
            for name in jobs_of[cell.name].evaluations:
                if jobs_of[cell.name].jobs[name].recipe.evaluation.episodes is None:
                    raise ConfigError(
                        f"{cell.name}: a study that may stop early needs the number of episodes: evaluation.episodes"
                    )

    def ask(self) -> dict[str, CellJobs]:
        """Return the jobs of all cells, with the episodes that are asked for now."""
        lines = [line for cell in self._cells if (line := self._read(cell)) is not None]
        new = sum(line is not self._looked.get(line.cell) for line in lines)
        if new > len(self._cells) // _LOOKS:
            self._looked = {line.cell: line for line in lines}
            self._settled = decided(self._study, lines)
        settled, asked = self._settled, {}
        for cell in self._cells:
            whole = self._whole[cell.name]
            jobs = {
                name: self._shorten(job, cell.name in settled) if job.kind == "evaluate" else job
                for name, job in whole.jobs.items()
            }
            fewer = any(jobs[name] != whole.jobs[name] for name in whole.evaluations)
            asked[cell.name] = dataclasses.replace(whole, jobs=jobs, stopped=fewer and cell.name in settled)
        return asked

    def _shorten(self, job: Job, settled: bool) -> Job:
        episodes = job.recipe.evaluation.episodes
        assert episodes is not None
        played = self._folder.episodes_of(job.name)
        target = played if settled and played else min(episodes, played + self._stop.block)
        return ask_for(job, target)

    def _read(self, cell: Cell) -> CellLine | None:
        """Return the episodes of the cell so far; None before all its evaluations have played a block."""
        whole = self._whole[cell.name]
        played = {name: self._folder.episodes_of(name) for name in whole.evaluations}
        if not all(played.values()):
            return None
        known = self._lines.get(cell.name)
        if known is None or known[0] != played:
            jobs = {name: ask_for(job, played[name]) if name in played else job for name, job in whole.jobs.items()}
            line = describe(self._study, cell, dataclasses.replace(whole, jobs=jobs), self._folder)
            known = self._lines[cell.name] = played, line
        return known[1]


def ask_for(job: Job, episodes: int) -> Job:
    """Return an evaluation with another number of episodes per task."""
    evaluation = dataclasses.replace(job.recipe.evaluation, episodes=episodes)
    return dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, evaluation=evaluation))
