"""Find and read the file and the store of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyvla.config import ConfigError
from anyvla.study.analysis.tables import group_lines
from anyvla.study.file import StudyFile, read_study
from anyvla.study.folder import FILE, STORE
from anyvla.study.store import CellLine, read_store

STUDIES = Path("outputs") / "studies"  # where `anyvla study run` keeps the folders of studies


@dataclass(frozen=True)
class Sources:
    """A study with the lines of its store."""

    study: StudyFile
    file: str  # the path of the study's file or folder, for commands
    store: Path
    lines: tuple[CellLine, ...]  # of the cells that the file plans
    others: tuple[str, ...]  # cells of the store that the file does not plan

    @property
    def planned(self) -> int:
        """The number of cells that the file plans."""
        return len(self.study.seeds) * len(group_lines(self.study, ()))


def read_sources(given: Path, store: Path | None = None, overrides: Sequence[str] = ()) -> Sources:
    """Read the study in a folder or file. The base recipe is not needed.

    A file without `store` has its store in `outputs/studies/<name>`, or beside it with the ending `.jsonl`. Raises
    ConfigError if a file is missing, and for a store of another study, of another version, or with none of the cells.
    """
    if given.is_dir() and not (given / FILE).is_file():
        raise ConfigError(f"{given} is no folder of a study: it has no {FILE}. Give the study's file, and its --store")
    file = given / FILE if given.is_dir() else given
    study = read_study(file, overrides)
    store = store or _find_store(study, given)
    lines = read_store(store)
    if wrong := sorted({line.study for line in lines} - {study.name}):
        raise ConfigError(
            f"{store} is the store of the study {wrong[0]!r}, not of {study.name!r}: give another --store"
        )
    own = {line.cell: line for _, by_seed in group_lines(study, lines) for line in by_seed.values()}
    if lines and not own:
        raise ConfigError(
            f"{store} has none of the cells of {file}; its first cell is {lines[0].cell}: give the store of this file"
        )
    others = tuple(line.cell for line in lines if line.cell not in own)
    return Sources(study, str(given), store, tuple(own.values()), others)


def _find_store(study: StudyFile, given: Path) -> Path:
    if given.is_dir():
        return given / STORE
    candidates = [STUDIES / study.name / STORE, given.with_suffix(".jsonl")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"there is no store of {given}, neither {candidates[0]} nor {candidates[1]}: run anyvla study run {given}, "
            "or give --store"
        )
    return found
