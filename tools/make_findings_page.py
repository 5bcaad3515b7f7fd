"""Write the findings of docs/what_we_found.md and the pages of studies from their stores.

    python tools/make_findings_page.py [--check]

A store lies beside the file of its study: studies/how.jsonl. The text between the findings is kept. With --check, only
report whether the findings are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.analyze import Analysis, analyze
from anyvla.study.analysis.finding import Finding
from anyvla.study.analysis.results import Point, Result
from anyvla.study.analysis.wording import format_signed, unit
from anyvla.study.page.write import write_page
from anyvla.study.sources import Sources, read_sources

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = DOCS / "what_we_found.md"
_BLOCK = re.compile(r"(<!-- findings: (\w+) -->\n).*?(<!-- end of findings -->)", re.DOTALL)


def main() -> int:
    """Write the pages, or compare docs/what_we_found.md with the stores."""
    check = "--check" in sys.argv[1:]
    before = PAGE.read_text(encoding="utf-8")
    after = _BLOCK.sub(lambda block: f"{block[1]}{describe(block[2])}\n{block[3]}", before)
    if check:
        if before != after:
            print(f"{PAGE} is not up to date: python tools/make_findings_page.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    for name in dict.fromkeys(block[2] for block in _BLOCK.finditer(after)):
        if (sources := read(name)) is not None:
            page = DOCS / "studies" / f"{name}.html"
            page.parent.mkdir(exist_ok=True)
            write_page(sources, analyze(sources.study, sources.lines), page)
            print(page)
    return 0


def read(name: str) -> Sources | None:
    """Return a study with its results; None if it has no store yet."""
    file = ROOT / "studies" / f"{name}.yaml"
    store = file.with_suffix(".jsonl")
    return read_sources(file, store) if store.is_file() else None


def describe(name: str) -> str:
    """Return the findings of a study as Markdown."""
    sources = read(name)
    if sources is None:
        return f"No cell of `studies/{name}.yaml` has been run yet."
    analysis = analyze(sources.study, sources.lines)
    return "\n\n".join([_describe_state(name, sources), analysis.answer, *_describe_results(analysis)])


def _describe_state(name: str, sources: Sources) -> str:
    study, ended = sources.study, sum(line.state in ("done", "invalid") for line in sources.lines)
    failed = sum(line.state in ("failed", "over") for line in sources.lines)
    minutes = sum(line.costs.get("minutes.train", 0) + line.costs.get("minutes.evaluate", 0) for line in sources.lines)
    whole = "" if ended == sources.planned else ", so that tests are missing or have few training seeds"
    return (
        f"*{study.question}* {ended} of {sources.planned} cells have results{f', {failed} failed' if failed else ''}"
        f"{whole}. Training and evaluating them took {minutes / 60:.1f} hours of jobs, two at once. Page, for a "
        f"browser: [{name}.html](studies/{name}.html). Store: `studies/{name}.jsonl`."
    )


def _describe_results(analysis: Analysis) -> Iterator[str]:
    for result in analysis.results:
        if not result.points and not result.findings:
            continue
        title = f"**{result.comparison.name}**, on {', '.join(result.benchmarks)}"
        if result.comparison.condition != "original":
            title += f", condition `{result.comparison.condition}`"
        claim = f" {result.comparison.claim}" if result.comparison.claim else ""
        yield f"{title}.{claim}"
        if result.points:
            yield "\n".join(_tabulate_points(result))
        if result.findings:
            yield "\n".join(_tabulate_findings(result.findings))


def _tabulate_points(result: Result) -> Iterator[str]:
    """Yield a table of the scores: a row for each label, a column for each group."""
    groups = list(dict.fromkeys(_name_group(point) for point in result.points))
    found = {(point.label, _name_group(point)): point for point in result.points}
    yield f"| {result.comparison.axis} | " + " | ".join(group or "score" for group in groups) + " |"
    yield "|---|" + "---|" * len(groups)
    for label in dict.fromkeys(point.label for point in result.points):
        cells = [_describe_point(result, found.get((label, group))) for group in groups]
        yield f"| {label} | " + " | ".join(cells) + " |"


def _name_group(point: Point) -> str:
    return ", ".join(f"{axis.rpartition('.')[2]} {label}" for axis, label in point.group.items())


def _describe_point(result: Result, point: Point | None) -> str:
    if point is None:
        return ""
    seeds = "1 seed" if point.seeds == 1 else f"{point.seeds} seeds"
    return f"{_describe_score(result, point.score)}, {seeds}"


def _describe_score(result: Result, score: Interval) -> str:
    if result.comparison.measure == "length":
        return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
    return f"{100 * score.value:.0f} % ({100 * score.low:.0f} to {100 * score.high:.0f})"


def _tabulate_findings(findings: tuple[Finding, ...]) -> Iterator[str]:
    yield "| compared | difference | 95 % interval | p (Holm) | verdict |"
    yield "|---|---|---|---|---|"
    for finding in findings:
        p = "< 0.001" if finding.p_adjusted < 0.001 else f"{finding.p_adjusted:.3f}"
        only = "" if finding.test == "crossed" else ", for the trained policies only"
        yield (
            f"| {finding.name} | {format_signed(finding.value, finding)} {unit(finding)} | "
            f"{format_signed(finding.low, finding)} to {format_signed(finding.high, finding)} | {p} | "
            f"{finding.verdict}{only} |"
        )


if __name__ == "__main__":
    sys.exit(main())
