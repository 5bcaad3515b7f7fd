"""The picture of the structure of a made-up model in which no two numbers are equal."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import numpy as np

from anyvla.cli.explain import format_layout, format_mask
from anyvla.report.explanation import Explanation, ParameterCount, TokenGroup
from anyvla.report.structure import draw_structure

SVG = "{http://www.w3.org/2000/svg}"
GROUPS = (
    TokenGroup("start", "start", -1, 1),
    TokenGroup("image", "corner", 0, 16),
    TokenGroup("text", "text", 0, 7),
    TokenGroup("readout", "readout", 0, 2),
    TokenGroup("image", "corner", 1, 16),
    TokenGroup("text", "text", 1, 7),
    TokenGroup("readout", "readout", 1, 2),
)
# Shares by row and column: 1 all, 0 none. A readout attends to earlier tokens, except readouts of other steps.
MASK = np.array(
    [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0.5, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 0.5, 0],
        [1, 1, 1, 0, 1, 1, 1],
    ]
)
MODEL = Explanation(
    name="made up",
    structure={
        "backbone": "nano", "history": "interleaved", "fuser": "lstm", "decoder": "flow", "representation": "continuous"
    },
    window=2, sequences=1, length=51, limit=512, readouts=2, chunk=8, execute=3, action=7,
    groups=GROUPS, attention=MASK,
    parts=(ParameterCount("vision", 41_300_000, 0), ParameterCount("language", 9_600, 128)), notes=("a note",),
)  # fmt: skip


def drawn(model: Explanation) -> ElementTree.Element:
    return ElementTree.fromstring(draw_structure(model))


def texts(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    return [(float(t.get("x", "")), float(t.get("y", "")), t.text or "") for t in root.iter(f"{SVG}text")]


def test_the_weights_of_a_part_are_in_its_row() -> None:
    lines: dict[float, list[str]] = {}
    for x, y, words in sorted(texts(drawn(MODEL))):
        if x > 500:
            lines.setdefault(y, []).append(words)
    table = [words for _, words in sorted(lines.items()) if len(words) == 3]
    assert [words for words in table if words[0] != "Weights"][-3:] == [
        ["vision", "41.3 M", "frozen"],
        ["language", "9.6 k", "128"],
        ["together", "41.3 M", "128"],
    ]


def test_rows_of_the_mask_attend_to_columns() -> None:
    """A full cell is a second square on its background, and a partial one is a triangle."""
    root = drawn(MODEL)
    background = [
        (float(r.get("x", "")), float(r.get("y", ""))) for r in root.iter(f"{SVG}rect") if r.get("class") == "never"
    ]
    columns, rows = (sorted({corner[axis] for corner in background[:49]}) for axis in (0, 1))
    found = np.zeros((7, 7))
    kinds: dict[int, set[str]] = {}
    for shape, share in (("rect", 1.0), ("path", 0.5)):
        for element in root.iter(f"{SVG}{shape}"):
            if not (element.get("class") or "").startswith("see "):
                continue
            at = element.get("d", "").removeprefix("M").split(" L")[0].split() if shape == "path" else ()
            x, y = map(float, at or (element.get("x", ""), element.get("y", "")))
            if x in columns and y in rows:
                found[rows.index(y), columns.index(x)] = share
                kinds.setdefault(columns.index(x), set()).add((element.get("class") or "").removeprefix("see "))
    np.testing.assert_array_equal(found, MASK)
    assert kinds == {number: {group.kind} for number, group in enumerate(GROUPS)}  # the color of the column
    names = [words for x, _, words in texts(root) if x == columns[0] - 7]
    assert names == ["start", "1 corner", "1 text", "1 readout", "2 corner", "2 text", "2 readout"]


def test_boxes_of_a_step_are_in_order_with_their_tokens() -> None:
    boxes = [words for _, y, words in texts(drawn(MODEL)) if 120 < y < 210]
    assert boxes[:9] == ["step 1", "", "start", "1", "corner", "16", "text", "7", "readout"]
    assert boxes[10:18] == ["step 2", "(now)", "corner", "16", "text", "7", "readout", "2"]
    words = [words for _, _, words in texts(drawn(MODEL))]
    assert "What the backbone reads: 2 steps in one sequence, 51 tokens" in words
    assert words.index("lstm") == words.index("fuser") - 1
    assert words.index("flow") == words.index("decoder") - 1
    assert words[words.index("chunk 8 x 7") + 1] == "3 of 8 actions executed"
    assert "history interleaved, fuser lstm, decoder flow, representation continuous; backbone nano" in words


def test_larger_groups_get_wider_boxes() -> None:
    wide = replace(MODEL, groups=(replace(GROUPS[1], tokens=400), *GROUPS[2:4]), attention=MASK[1:4, 1:4], window=1)
    widths = [
        float(r.get("width", "")) for r in drawn(wide).iter(f"{SVG}rect") if (r.get("class") or "").startswith("box ")
    ]
    assert all(a > b for a, b in pairwise(widths[:2]))


def test_the_terminal_shows_the_same_layout_and_mask() -> None:
    assert [str(line).split(None, 2)[2] for line in format_layout(MODEL)] == [
        "[start 1][corner 16][text 7][readout 2]",
        "[corner 16][text 7][readout 2]",
    ]
    marks = {0: "··", 0.5: "▒▒", 1: "██"}
    assert [str(line).split()[-1] for line in format_mask(MODEL)] == ["".join(marks[v] for v in row) for row in MASK]
