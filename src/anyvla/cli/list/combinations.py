"""`anyvla list combinations`: which history, fuser, decoder and representation go together, and why others do not.

The reasons are the error messages that a recipe would get, since both come from `anyvla.combinations`. A part that goes
with no other is named once below the table and has no row or column.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from anyvla.cli.console import Console

if TYPE_CHECKING:
    from anyvla.combinations import Combination

Pair = tuple[str, str]
_row, _column = attrgetter("decoder", "representation"), attrgetter("history", "fuser")


def show(as_json: bool) -> int:
    """Print the table, or JSON with one object per combination."""
    from anyvla.combinations import combinations  # imports torch

    found = list(combinations())
    if as_json:
        print(json.dumps([dataclasses.asdict(c) | {"valid": c.reason is None} for c in found], indent=1))
        return 0
    console = Console()
    for line in render(arrange(found)):
        console.print(line)
    return 0


@dataclasses.dataclass(frozen=True)
class CombinationTable:
    """The valid combinations in few cells, and the reasons why the others are invalid."""

    histories: list[str]
    rows: list[tuple[str, str, list[str]]]  # decoder, representation, and for each history its fusers with note numbers
    notes: list[str]  # the reasons that cells refer to, numbered from 1
    unused: list[str]  # the reason for each part that goes with no other
    valid: int
    all: int


def arrange(found: Sequence[Combination]) -> CombinationTable:
    """Return a row for each decoder and representation and a column for each history, with the fusers in the cells."""
    valid = [c for c in found if c.reason is None]
    rows, columns = dict.fromkeys(map(_row, valid)), dict.fromkeys(map(_column, valid))
    histories = list(dict.fromkeys(history for history, _ in columns))
    notes: dict[str, int] = {}
    cells: dict[Pair, dict[str, list[str]]] = {row: {history: [] for history in histories} for row in rows}
    for c in found:
        if _row(c) in rows and _column(c) in columns:
            note = "" if c.reason is None else f" ({notes.setdefault(c.reason, len(notes) + 1)})"
            cells[_row(c)][c.history].append(c.fuser + note)
    filled = [(*row, [", ".join(cells[row][history]) for history in histories]) for row in rows]
    unused = _reasons_for_unused(found, set(rows), set(columns))
    return CombinationTable(histories, filled, list(notes), unused, len(valid), len(found))


def render(t: CombinationTable) -> list[Table | Text]:
    """Return the table, its numbered notes and the reasons for unused parts."""
    table = Table("decoder", "representation", *t.histories, box=None, pad_edge=False)
    for decoder, representation, cells in t.rows:
        table.add_row(decoder, representation, *cells)
    notes = [f"\n{t.valid} of {t.all} combinations make a policy; cells list the fusers."]
    notes += [f"({number}) not: {reason}" for number, reason in enumerate(t.notes, 1)]
    return [table, *map(Text, [*notes, *(f"- {reason}" for reason in t.unused)])]


def _reasons_for_unused(found: Sequence[Combination], rows: set[Pair], columns: set[Pair]) -> list[str]:
    """Return, for each pair that goes with no other, the reason that most of its combinations have."""
    reasons: dict[Pair, Counter[str]] = {}
    for c in found:
        # Where both pairs are unused, the reason may be about either, so count it only where the other one is used.
        if _row(c) not in rows and (_column(c) in columns or not columns):
            reasons.setdefault(_row(c), Counter())[str(c.reason)] += 1
        if _column(c) not in columns and (_row(c) in rows or not rows):
            reasons.setdefault(_column(c), Counter())[str(c.reason)] += 1
    return list(dict.fromkeys(counted.most_common(1)[0][0] for counted in reasons.values()))
