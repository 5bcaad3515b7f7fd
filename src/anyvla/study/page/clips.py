"""Film the best and the worst cell of each benchmark from their recorded episodes, and find their videos."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyvla.config import ConfigError
from anyvla.evaluation.conditions import ORIGINAL
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.report.run_folder import Clip, read_clips
from anyvla.study.analysis.scores import first_benchmark
from anyvla.study.folder import StudyFolder
from anyvla.study.page.cell_rows import CellRow
from anyvla.study.record import RESULTS

MOST = 2  # videos of a cell
LARGEST = 4_000_000  # bytes of a video that is put into the page


@dataclass(frozen=True)
class Shown:
    """A cell with videos for the page."""

    title: str
    cell: CellRow
    clips: tuple[Clip, ...]


def find_videos(root: Path, cells: Sequence[CellRow]) -> list[Shown]:
    """Return videos of the best and the worst cell that have some, for each benchmark.

    `root`: the folder of the study, or any other folder, which has none.
    """
    clips = {id(cell): _list_clips(root, cell) for cell in cells}
    shown = []
    for title, cell, success in _find_extremes([cell for cell in cells if clips[id(cell)]]):
        ranked = sorted(clips[id(cell)], key=lambda clip: clip.obeyed != success)
        shown.append(Shown(title, cell, tuple(ranked[:MOST])))
    return shown


def film_cells(root: Path, cells: Sequence[CellRow], stop: Callable[[], bool] = lambda: False) -> None:
    """Film two episodes of the best and the worst cell of each benchmark, which executes their actions again.

    Raises ConfigError if the folder does not have their evaluations, and Interrupted when `stop()` is true.
    """
    from anyvla.evaluation.suites import open_suite
    from anyvla.report.filming import film

    folder = StudyFolder(root)
    for _, cell, success in _find_extremes(cells):
        job = _list_evaluations(cell)[0]
        run = folder.of(job)
        if not (run / RESULTS).is_file():
            raise ConfigError(f"{root} has no evaluation of {cell.name} to film: give the folder in which it was run")
        _, recipe, _ = folder.recipe_of(job)
        assert recipe.benchmark is not None
        opened = open_suite(recipe.benchmark, recipe.environment)
        try:
            film(_choose_episodes(read_results(run / RESULTS), success), opened, run, failures=MOST, stop=stop)
        finally:
            opened.benchmark.close()


def embed(path: Path) -> str:
    """Return a video as a data URL, so that the page is one file."""
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _find_extremes(cells: Sequence[CellRow]) -> list[tuple[str, CellRow, bool]]:
    """Return title and cell of the best and the worst one of each benchmark, and whether it shall show a success."""
    of_benchmark: dict[str, list[tuple[float, CellRow]]] = {}
    for cell in cells:
        if cell.line is not None and cell.score is not None and _list_evaluations(cell):
            benchmark = first_benchmark(cell.line) or ""
            of_benchmark.setdefault(benchmark, []).append((cell.score.value, cell))
    found = []
    for benchmark, scored in of_benchmark.items():
        best, worst = (choose(scored, key=lambda one: one[0])[1] for choose in (max, min))
        found.append((f"Best cell on {benchmark}", best, True))
        if worst is not best:
            found.append((f"Worst cell on {benchmark}", worst, False))
    return found


def _list_evaluations(cell: CellRow) -> list[str]:
    return [] if cell.line is None else [job for name, job in cell.line.keys.items() if name.startswith("evaluate.")]


def _list_clips(root: Path, cell: CellRow) -> list[Clip]:
    folders = [StudyFolder(root).of(job) / "videos" for job in _list_evaluations(cell)]
    clips = [clip for folder in folders for clip in read_clips(folder)]
    return [clip for clip in clips if clip.path.is_file() and clip.path.stat().st_size <= LARGEST]


def _choose_episodes(results: Sequence[EpisodeResult], success: bool) -> list[EpisodeResult]:
    """Return an episode of each outcome, the wanted one first, with the original instruction if there are such."""
    played = [result for result in results if result.outcome in ("success", "failure")]
    own = [result for result in played if result.condition == ORIGINAL] or played
    ranked = [[result for result in own if result.success == wanted][:1] for wanted in (success, not success)]
    return [result for outcome in ranked for result in outcome]
