"""Find the videos of the best and the worst cell in the folder of a study."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyvla.report.run_folder import Clip, read_clips
from anyvla.study.folder import StudyFolder
from anyvla.study.page.cell_rows import CellRow

MOST = 2  # videos of a cell
LARGEST = 4_000_000  # bytes of a video that is put into the page


@dataclass(frozen=True)
class Shown:
    """A cell with videos for the page."""

    title: str
    cell: CellRow
    clips: tuple[Clip, ...]


def find_videos(root: Path, cells: Sequence[CellRow]) -> list[Shown]:
    """Return videos of the best and the worst cell that have some: a success first of the best, a failure of the worst.

    `root`: the folder of the study, or any other folder, which has none.
    """
    folder, found = StudyFolder(root), []
    for cell in cells:
        jobs = [] if cell.line is None else [job for name, job in cell.line.keys.items() if name.startswith("evaluate")]
        clips = [clip for job in jobs for clip in read_clips(folder.of(job) / "videos") if _is_usable(clip.path)]
        if clips and cell.score is not None:
            found.append((cell.score.value, cell, clips))
    if not found:
        return []
    best, worst = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
    shown = [Shown("Best cell", best[1], _choose(best[2], success=True))]
    if worst[1] is not best[1]:
        shown.append(Shown("Worst cell", worst[1], _choose(worst[2], success=False)))
    return shown


def embed(path: Path) -> str:
    """Return a video as a data URL, so that the page is one file."""
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _is_usable(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST


def _choose(clips: Sequence[Clip], success: bool) -> tuple[Clip, ...]:
    return tuple(sorted(clips, key=lambda clip: clip.obeyed != success)[:MOST])
