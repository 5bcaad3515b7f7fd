"""The evidence of studies: findings of their planned comparisons about a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyvla
from anyvla.advice.rules import Choice, Option
from anyvla.config import ConfigError
from anyvla.study.analysis.analyze import analyze
from anyvla.study.analysis.finding import Finding
from anyvla.study.file import read_study
from anyvla.study.folder import FILE, STORE
from anyvla.study.store import read_store


@dataclass(frozen=True)
class Shown:
    """What one comparison of a study shows about an axis."""

    study: str
    axis: str
    better: str  # labels; empty if the data cannot tell
    worse: str
    general: bool  # it holds for other trainings, not only for the trained policies
    sentence: str


def read_studies(paths: Sequence[Path]) -> list[Shown]:
    """Return the findings of studies, each given as its file or its folder. Raises ConfigError."""
    return [shown for path in paths for shown in _read(path)]


def bundled_studies() -> list[Path]:
    """Return the studies with a store that come with the source of anyvla."""
    root = Path(anyvla.__file__).parents[2] / "studies"
    return sorted(path.parent for path in root.glob(f"*/{STORE}"))


def overrule(choice: Choice, chosen: Option, possible: Sequence[Option], shown: Sequence[Shown]) -> Option:
    """Return the possible option that studies found better than the chosen one; the chosen one if they disagree.

    Findings that hold for the trained policies only do not count.
    """
    decided = [found for found in shown if found.axis in choice.axes and found.general and found.better]
    if any(chosen.named(found.better) for found in decided):
        return chosen
    labels = [found.better for found in decided if chosen.named(found.worse)]
    return next((option for option in possible if any(map(option.named, labels))), chosen)


def _read(path: Path) -> list[Shown]:
    file, store = _find(path)
    study = read_study(file)
    analysis = analyze(study, read_store(store))
    found = []
    for result in analysis.results:
        where = f"on {result.benchmark}" if result.benchmark else ""
        for finding in result.findings:
            better, worse = (
                _rank(finding, result.comparison.axis) if result.comparison.kind == "difference" else ("", "")
            )
            sentence = f"study {study.name} {where}: {finding.sentence}".replace("  ", " ")
            found.append(Shown(study.name, result.comparison.axis, better, worse, finding.test == "crossed", sentence))
        missing = [f"study {study.name}: cannot tell, {reason}" for reason in result.missing]
        found += [Shown(study.name, result.comparison.axis, "", "", False, sentence) for sentence in missing]
    return found


def _rank(finding: Finding, axis: str) -> tuple[str, str]:
    """Return the better and the worse label of a difference between two labels that its test supports."""
    if finding.verdict == "cannot tell" or len(finding.terms) != 2:
        return "", ""
    base, other = sorted(finding.terms, key=lambda term: term.weight)
    better, worse = (other, base) if finding.verdict == "higher" else (base, other)
    return str(better.labels.get(axis, "")), str(worse.labels.get(axis, ""))


def _find(path: Path) -> tuple[Path, Path]:
    """Return the file and the store of a study."""
    if path.is_dir():
        file, store = path / FILE, path / STORE
        if not file.is_file():  # the store is committed beside the file of the study
            file = path.parent / f"{path.name}.yaml"
    else:
        file, store = path, path.parent / path.stem / STORE
    if not file.is_file() or not store.is_file():
        raise ConfigError(
            f"--study {path}: there is no {store if file.is_file() else file}: give the folder of a study, which has "
            f"{FILE} and {STORE}, or its file FOLDER.yaml beside the folder"
        )
    return file, store
