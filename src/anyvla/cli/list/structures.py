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

from rich.table import Table
from rich.text import Text

from anyvla.cli.console import Console

if TYPE_CHECKING:
    from anyvla.combinations import Combination

Pair = tuple[str, str]


def show(as_json: bool, parts: Sequence[dict[str, str]]) -> int:
    """Print the matrix below what its `parts` are (kind, name, what); as JSON, one object a combination."""
    from anyvla.combinations import combinations  # imports every head

    found = list(combinations())
    if as_json:
        print(json.dumps([dataclasses.asdict(c) | {"valid": c.reason is None} for c in found], indent=1))
        return 0
    console = Console()
    names = Table(box=None, pad_edge=False, show_header=False)
    for part in parts:
        names.add_row(part["kind"], part["name"], part["what"])
    console.print(names, "")
    for line in shown(matrix(found)):
        console.print(line)
    return 0


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The combinations for people: what goes together in few cells, and why the rest does not."""

    histories: list[str]
    rows: list[tuple[str, str, list[str]]]  # decoder, representation, and for each history its fusers and notes
    notes: list[str]  # the reasons that cells name, from (1)
    never: list[str]  # why what is in no cell goes with nothing
    valid: int
    all: int


def matrix(found: Sequence[Combination]) -> Matrix:
    """A row for each decoder and representation, a column for each history, in its cells the fusers."""
    valid = [c for c in found if c.reason is None]
    rows, columns = dict.fromkeys(map(_row, valid)), dict.fromkeys(map(_column, valid))
    histories = list(dict.fromkeys(history for history, _ in columns))
    notes: dict[str, int] = {}
    cells: dict[Pair, dict[str, list[str]]] = {row: {history: [] for history in histories} for row in rows}
    for c in found:
        if _row(c) in rows and _column(c) in columns:
            note = "" if c.reason is None else f" ({notes.setdefault(c.reason, len(notes) + 1)})"
            cells[_row(c)][c.history].append(c.fuser + note)
    listed = [(*row, [", ".join(cells[row][history]) for history in histories]) for row in rows]
    never = _never(found, set(rows), set(columns))
    return Matrix(histories, listed, list(notes), never, len(valid), len(found))


def shown(m: Matrix) -> list[Table | Text]:
    """The table, what its numbers mean, and what is not in it."""
    table = Table("decoder", "representation", *m.histories, box=None, pad_edge=False)
    for decoder, representation, cells in m.rows:
        table.add_row(decoder, representation, *cells)
    out: list[Table | Text] = [table, Text(f"\n{m.valid} of {m.all} combinations make a policy, with these fusers.")]
    out += [Text(f"({number}) not: {reason}") for number, reason in enumerate(m.notes, 1)]
    out += [Text(f"- {reason}") for reason in m.never]
    return out


def _row(c: Combination) -> Pair:
    return c.decoder, c.representation


def _column(c: Combination) -> Pair:
    return c.history, c.fuser


def _never(found: Sequence[Combination], rows: set[Pair], columns: set[Pair]) -> list[str]:
    """Why the pairs that go with nothing do so: the reason that most of their combinations have."""
    reasons: dict[Pair, Counter[str]] = {}
    for c in found:
        # Where both axes are to blame, the reason may be about either: ask where the other one is fine.
        if _row(c) not in rows and (_column(c) in columns or not columns):
            reasons.setdefault(_row(c), Counter())[str(c.reason)] += 1
        if _column(c) not in columns and (_row(c) in rows or not rows):
            reasons.setdefault(_column(c), Counter())[str(c.reason)] += 1
    return list(dict.fromkeys(counted.most_common(1)[0][0] for counted in reasons.values()))
