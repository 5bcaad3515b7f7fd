"""`anyvla list structures`: which history, fuser, decoder and representation go together, and why others do not.

What is shown is what a recipe would be told: the reasons come from the same check. A part that goes with nothing is
named once below the table instead of filling a row or a column of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from anyvla.structures.validity import Combination

YES = "yes"
Pair = tuple[str, str]


def show(as_json: bool, parts: Sequence[dict[str, str]]) -> int:
    """Print the matrix below what its `parts` are (kind, name, what); as JSON, one object a combination."""
    from anyvla.structures.validity import combinations  # imports every head

    found = list(combinations())
    if as_json:
        print(json.dumps([dataclasses.asdict(c) | {"valid": c.reason is None} for c in found], indent=1))
        return 0
    console = Console()
    names = Table(box=None, pad_edge=False, show_header=False)
    for part in parts:
        names.add_row(part["kind"], part["name"], part["what"])
    console.print(names, "")
    for line in matrix(found):
        console.print(line, highlight=False)
    return 0


def matrix(found: Sequence[Combination]) -> list[Table | Text]:
    """The table, what its numbers mean, what is left out of it, and how many are valid."""
    cells = {(_row(c), _column(c)): c for c in found}
    rows, columns = (list(dict.fromkeys(map(key, found))) for key in (_row, _column))
    valid = [c for c in found if c.reason is None]
    shown_rows = [row for row in rows if row in set(map(_row, valid))]
    shown_columns = [column for column in columns if column in set(map(_column, valid))]
    notes: dict[str, int] = {}
    table = Table(box=None, pad_edge=False)
    for head in ("decoder", "representation"):
        table.add_column(head + "\n")
    for history, fuser in shown_columns:
        table.add_column(f"{history}\n{fuser}", justify="center")
    for row in shown_rows:
        marks = []
        for column in shown_columns:
            reason = cells[row, column].reason
            marks.append(YES if reason is None else str(notes.setdefault(reason, len(notes) + 1)))
        table.add_row(*row, *marks)
    out: list[Table | Text] = [table, Text(f"\n{len(valid)} of {len(found)} combinations are valid.")]
    out += [Text(f"{number}  {reason}") for reason, number in notes.items()]
    left_out = _left_out(found, set(shown_rows), set(shown_columns))
    out += [Text(f"-  {', '.join(names)}: {reason}") for reason, names in left_out.items()]
    return out


def _row(c: Combination) -> Pair:
    return c.decoder, c.representation


def _column(c: Combination) -> Pair:
    return c.history, c.fuser


def _left_out(found: Sequence[Combination], rows: set[Pair], columns: set[Pair]) -> dict[str, list[str]]:
    """What goes with nothing, by the reason that most of its combinations have."""
    reasons: dict[Pair, Counter[str]] = {}
    for c in found:
        # Where both axes are to blame, the reason may be about either: ask where the other one is fine.
        if _row(c) not in rows and (_column(c) in columns or not columns):
            reasons.setdefault(_row(c), Counter())[str(c.reason)] += 1
        if _column(c) not in columns and (_row(c) in rows or not rows):
            reasons.setdefault(_column(c), Counter())[str(c.reason)] += 1
    out: dict[str, list[str]] = {}
    for pair, counted in reasons.items():
        out.setdefault(counted.most_common(1)[0][0], []).append(" + ".join(pair))
    return out
