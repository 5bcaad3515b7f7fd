"""Write the page of a study: one HTML file, made from the study's file and store, which a browser opens alone."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from anyvla.config import to_dict
from anyvla.evaluation.intervals import Interval
from anyvla.report.plots import draw_difference
from anyvla.report.published import describe_protocols
from anyvla.report.template import environment, style, write_html
from anyvla.study.analysis.analyze import Analysis
from anyvla.study.analysis.finding import Finding
from anyvla.study.analysis.results import Result
from anyvla.study.analysis.tables import Table
from anyvla.study.analysis.wording import format_signed, state_limits, state_test, unit
from anyvla.study.file import StudyFile
from anyvla.study.page.cell_rows import STATES, count_states, list_cells, list_reasons, sum_minutes
from anyvla.study.page.clips import embed, find_videos
from anyvla.study.page.drawing import draw_score, draw_tasks, format_cost
from anyvla.study.page.figures import Figure, draw_figures, draw_table_curve, list_costs, name_cost
from anyvla.study.page.scale import OBEYED, PERCENT, Scale
from anyvla.study.sources import Sources
from anyvla.study.store import CellLine

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Block:
    """A comparison as the page shows it."""

    result: Result
    scale: Scale
    figures: list[Figure]
    reach: float  # of the bars of differences


@dataclass(frozen=True)
class TableBlock:
    """A table as the page shows it."""

    table: Table
    curve: Figure | None
    tasks: bool  # whether its rows have rates of several tasks


def write_page(sources: Sources, analysis: Analysis, path: Path) -> Path:
    """Write the page and return its path."""
    made = environment("anyvla.study.page")
    made.globals |= {
        "draw_score": draw_score,
        "draw_tasks": draw_tasks,
        "draw_change": _draw_change,
        "signed_change": format_signed,
        "state_test": state_test,
        "state_limits": state_limits,
        "unit": unit,
        "list_costs": list_costs,
        "name_cost": name_cost,
        "format_cost": format_cost,
        "embed": embed,
        "quote": shlex.quote,
        "percent_scale": PERCENT,
    }
    return write_html(path, made.get_template("study.html.j2").render(_make_context(sources, analysis)))


def to_json(sources: Sources, analysis: Analysis) -> dict[str, Any]:
    """Return the whole analysis as plain data for JSON, with the number of cells in each state."""
    cells = list_cells(sources, analysis.tables)
    states = {"planned": sources.planned, **count_states(cells)}
    return {"study": sources.study.name, "store": str(sources.store), "cells": states, **to_dict(analysis)}


def _make_context(sources: Sources, analysis: Analysis) -> dict[str, Any]:
    study, lines = sources.study, sources.lines
    cells = list_cells(sources, analysis.tables)
    times = sorted(line.time[:10] for line in lines if line.time)
    return {
        "study": study,
        "sources": sources,
        "analysis": analysis,
        "css": style() + Markup((TEMPLATES / "study.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "study.js").read_text(encoding="utf-8")),
        "blocks": [_make_block(study, result, analysis.tables, lines) for result in analysis.results],
        "tables": [_make_table_block(table) for table in analysis.tables],
        "numbers": {axis: {label: n for n, label in enumerate(study.labels(axis))} for axis in study.axes},
        "cells": cells,
        "states": count_states(cells),
        "words": STATES,
        "reasons": list_reasons(cells),
        "missing": sum(cell.line is None for cell in cells),
        "hours": sum_minutes(lines) / 60,
        "episodes": sum(len(played.outcomes.replace(" ", "")) for line in lines for played in line.episodes),
        "dates": list(dict.fromkeys([*times[:1], *times[-1:]])),
        "shown": find_videos(sources.store.parent, cells),
        "protocols": _list_protocols(lines),
        "versions": _list_versions(lines),
        "document": yaml.safe_dump(
            json.loads(json.dumps(to_dict(study))), sort_keys=False, allow_unicode=True, width=100
        ),
    }


def _make_block(study: StudyFile, result: Result, tables: Sequence[Table], lines: Sequence[CellLine]) -> Block:
    comparison = result.comparison
    chances = {table.chance for table in tables if table.benchmark in result.benchmarks}
    chance = next(iter(chances)) if len(chances) == 1 and comparison.measure == "success" else None
    scale = OBEYED if comparison.measure == "obeyed" else PERCENT
    if comparison.measure == "length":
        scale = Scale(_longest(lines, result.benchmarks), False, "Tasks in a row")
    ends = [abs(end) for finding in result.findings for end in (finding.low, finding.high, finding.value)]
    steps = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0] if scale.percent else [0.5, 1.0, 2.0, 5.0, 10.0]
    reach = next((step for step in steps if step >= max(ends, default=0.0)), steps[-1])
    return Block(result, scale, draw_figures(study, result, scale, chance), reach)


def _make_table_block(table: Table) -> TableBlock:
    return TableBlock(table, draw_table_curve(table), any(len(row.tasks) > 1 for row in table.rows))


def _draw_change(finding: Finding, reach: float) -> Markup:
    interval = Interval(finding.value, finding.low, finding.high, finding.states)
    return draw_difference(interval, finding.name, reach, lambda value: format_signed(value, finding))


def _longest(lines: Sequence[CellLine], benchmarks: Sequence[str]) -> float:
    """Return the number of tasks of the longest chains of benchmarks."""
    lengths = [played.length for line in lines for played in line.episodes if played.benchmark in benchmarks]
    return float(max(lengths, default=1))


def _list_protocols(lines: Sequence[CellLine]) -> dict[str, Mapping[str, Any]]:
    benchmarks = dict.fromkeys(benchmark for line in lines for benchmark in line.protocols)
    return {
        benchmark: describe_protocols(line.protocols[benchmark] for line in lines if benchmark in line.protocols)
        for benchmark in benchmarks
    }


def _list_versions(lines: Sequence[CellLine]) -> dict[str, str]:
    """Return the versions and machines of all cells, with their numbers of cells where they differ."""
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        for name, version in line.versions.items():
            counts.setdefault(name, Counter())[version] += 1
    return {
        name: next(iter(of)) if len(of) == 1 else "; ".join(f"{version} ({n} cells)" for version, n in of.most_common())
        for name, of in counts.items()
    }
