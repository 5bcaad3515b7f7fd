"""The evidence of studies: findings of their planned comparisons about a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyvla
from anyvla.advice.rules import Choice, Facts, Option
from anyvla.study.analysis.analyze import analyze
from anyvla.study.analysis.finding import Finding
from anyvla.study.analysis.scores import first_benchmark
from anyvla.study.sources import read_sources


@dataclass(frozen=True)
class Shown:
    """The outcome of one comparison of a study, for one axis."""

    study: str
    comparison: str
    axis: str
    benchmarks: tuple[str, ...]
    better: str  # labels; empty if the data cannot tell
    worse: str
    general: bool  # it holds for other trainings, not only for the trained policies
    sentence: str

    def is_about(self, choice: Choice) -> bool:
        """Return whether options of a choice were compared."""
        return self.axis in choice.axes or f"{self.study}.{self.comparison}" in choice.comparisons


def read_studies(paths: Sequence[Path]) -> list[Shown]:
    """Return the findings of studies, each given as its file or its folder. Raises ConfigError."""
    return [shown for path in paths for shown in _read(path)]


def bundled_studies() -> list[Path]:
    """Return the files of the studies whose stores come with the source of anyvla."""
    root = Path(anyvla.__file__).parents[2] / "studies"
    return sorted(path for path in root.glob("*.yaml") if path.with_suffix(".jsonl").is_file())


def overrule(
    choice: Choice, chosen: Option, possible: Sequence[Option], shown: Sequence[Shown], facts: Facts
) -> Option:
    """Return the possible option that studies found better than the chosen one; the chosen one if they disagree.

    Findings that hold for the trained policies only do not count, nor do those on benchmarks unlike the situation.
    """
    general = [found for found in shown if found.is_about(choice) and found.general and found.better]
    decided = [found for found in general if choice.counts(found.benchmarks, facts)]
    if any(chosen.named(found.better) for found in decided):
        return chosen
    labels = [found.better for found in decided if chosen.named(found.worse)]
    return next((option for option in possible if any(map(option.named, labels))), chosen)


def _read(path: Path) -> list[Shown]:
    sources = read_sources(path)
    study = sources.study
    played = {line.cell: first_benchmark(line) for line in sources.lines}
    found = []
    for result in analyze(study, sources.lines).results:
        name, axis = result.comparison.name, result.comparison.axis
        for finding in result.findings:
            better, worse = _rank(finding, axis) if result.comparison.kind == "difference" else ("", "")
            named = [result.comparison.benchmark or played[cell] for cell in finding.cells]
            on = tuple(dict.fromkeys(filter(None, named)))
            sentence = f"study {study.name} on {', '.join(on)}: {finding.sentence}"
            found.append(Shown(study.name, name, axis, on, better, worse, finding.test == "crossed", sentence))
        if result.missing:
            number = len(result.missing)
            tests = "a planned test has" if number == 1 else f"{number} planned tests have"
            sentence = f"study {study.name}: cannot tell yet: {tests} no result, as {result.missing[0]}"
            found.append(Shown(study.name, name, axis, result.benchmarks, "", "", False, sentence))
    return found


def _rank(finding: Finding, axis: str) -> tuple[str, str]:
    """Return the better and the worse label of a difference between two labels that its test supports."""
    if finding.verdict == "cannot tell" or len(finding.terms) != 2:
        return "", ""
    base, other = sorted(finding.terms, key=lambda term: term.weight)
    better, worse = (other, base) if finding.verdict == "higher" else (base, other)
    return str(better.labels.get(axis, "")), str(worse.labels.get(axis, ""))
