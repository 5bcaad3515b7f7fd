"""List the cells of a study for its page: state, score, recipe, command, and the reasons of those without a result."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.tables import SeedScore, Table, group_lines
from anyvla.study.sources import Sources
from anyvla.study.store import CellLine

STATES = {
    "failed": "failed",
    "over": "over the budget",
    "invalid": "invalid: the recipe is refused",
    "missing": "not run yet",
}


@dataclass(frozen=True)
class CellRow:
    """One cell as the page shows it."""

    labels: Mapping[str, str]
    seed: int
    state: str  # of the store, or "missing"
    line: CellLine | None  # None: it is missing
    score: Interval | None  # on the first table
    recipe: str  # YAML: the keys that differ from the base
    command: str

    @property
    def name(self) -> str:
        """The name in the store, or the labels of a missing cell."""
        return self.line.cell if self.line else f"{', '.join(self.labels.values())}, seed {self.seed}"


@dataclass(frozen=True)
class Reason:
    """Why some cells have no result."""

    state: str
    text: str
    cells: tuple[str, ...]  # names; of missing ones their labels


def list_cells(sources: Sources, tables: Sequence[Table]) -> list[CellRow]:
    """Return all cells that the study plans, in the order of the file."""
    scores: dict[str, SeedScore] = {}
    for table in reversed(tables):
        scores |= {seed.cell: seed for row in table.rows for seed in row.seeds if seed.rate is not None}
    rows = []
    for labels, by_seed in group_lines(sources.study, sources.lines):
        for seed in sources.study.seeds:
            line = by_seed.get(seed)
            score = scores[line.cell].rate if line is not None and line.cell in scores else None
            rows.append(
                CellRow(
                    labels=labels,
                    seed=seed,
                    state="missing" if line is None else line.state,
                    line=line,
                    score=score,
                    recipe="" if line is None else _write_recipe(line),
                    command="" if line is None else _write_command(sources.file, line),
                )
            )
    return rows


def list_reasons(cells: Sequence[CellRow]) -> list[Reason]:
    """Return the reasons why cells have no result, the most frequent of each state first."""
    names: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.state in STATES:
            names.setdefault((cell.state, cell.line.error if cell.line else ""), []).append(cell.name)
    order = list(STATES)
    ranked = sorted(names.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
    return [Reason(state, text, tuple(own)) for (state, text), own in ranked]


def count_states(cells: Sequence[CellRow]) -> Mapping[str, int]:
    """Return the number of cells in each state."""
    return Counter(cell.state for cell in cells)


def sum_minutes(lines: Sequence[CellLine]) -> float:
    """Return the minutes of all jobs, each once although cells share it."""
    minutes: dict[str, float] = {}
    for line in lines:
        for cost, value in line.costs.items():
            kind = cost.partition("minutes.")[2]
            own = [job for name, job in line.keys.items() if kind and name.partition(".")[0] == kind]
            minutes |= {job: value / len(own) for job in own}
    return sum(minutes.values())


def _write_recipe(line: CellLine) -> str:
    return yaml.safe_dump(_to_plain(line.recipe), sort_keys=False, default_flow_style=False).strip()


def _to_plain(keys: Mapping[str, object]) -> dict[str, object]:
    """Return nested keys as dicts and lists, which YAML can write."""
    return {key: _to_plain(value) if isinstance(value, Mapping) else value for key, value in keys.items()}


def _write_command(file: str, line: CellLine) -> str:
    return f"anyvla study run {shlex.quote(file)} --only {shlex.quote(line.cell)}"
