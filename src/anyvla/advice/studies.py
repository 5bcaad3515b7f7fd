"""The evidence of studies: findings of their planned comparisons about a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyvla
from anyvla.advice.rules import Choice, Option
from anyvla.study.analysis.analyze import analyze
from anyvla.study.analysis.finding import Finding
from anyvla.study.sources import read_sources


@dataclass(frozen=True)
class Shown:
    """The outcome of one comparison of a study, for one axis."""

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
    """Return the files of the studies whose stores come with the source of anyvla."""
    root = Path(anyvla.__file__).parents[2] / "studies"
    return sorted(path for path in root.glob("*.yaml") if path.with_suffix(".jsonl").is_file())


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
    sources = read_sources(path)
    study = sources.study
    analysis = analyze(study, sources.lines)
    found = []
    for result in analysis.results:
        where = f"on {', '.join(result.benchmarks)}" if result.benchmarks else ""
        for finding in result.findings:
            better, worse = (
                _rank(finding, result.comparison.axis) if result.comparison.kind == "difference" else ("", "")
            )
            sentence = f"study {study.name} {where}: {finding.sentence}".replace("  ", " ")
            found.append(Shown(study.name, result.comparison.axis, better, worse, finding.test == "crossed", sentence))
        if result.missing:
            number = len(result.missing)
            tests = "a planned test has" if number == 1 else f"{number} planned tests have"
            sentence = f"study {study.name}: cannot tell yet: {tests} no result, as {result.missing[0]}"
            found.append(Shown(study.name, result.comparison.axis, "", "", False, sentence))
    return found


def _rank(finding: Finding, axis: str) -> tuple[str, str]:
    """Return the better and the worse label of a difference between two labels that its test supports."""
    if finding.verdict == "cannot tell" or len(finding.terms) != 2:
        return "", ""
    base, other = sorted(finding.terms, key=lambda term: term.weight)
    better, worse = (other, base) if finding.verdict == "higher" else (base, other)
    return str(better.labels.get(axis, "")), str(worse.labels.get(axis, ""))
