"""Draw the structure of a model as an SVG: its steps as rows of boxes, fuser and decoder, and the attention mask.

The SVG has its own colors for light and dark and no external resources, so it can be embedded in a page or a README.
Long windows show the first two steps and the last one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import escape

from anyvla.report.explanation import Explanation, Kind, ParameterCount, TokenGroup

WIDTH, MARGIN = 960, 28
BOX, GAP = 34, 4  # height of a box, space between boxes
ROW = 50  # from one step to the next
STEPS_END, WITH_SUFFIX = 640, 545  # the largest x of the boxes of steps
CELL, LABELS = 17, 118  # of the matrix; width of its row labels
SHOWN = 3  # steps of a window that are drawn
TABLE = 250  # minimum width of the table of parameters
LETTER = 6.8  # maximum width of a letter in small text
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
.title { font-size: 19px; font-weight: 600; } .head { font-size: 14px; font-weight: 600; }
.soft { fill: var(--soft); } .small { font-size: 11px; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.page { fill: var(--page); } .frame { fill: none; stroke: var(--line); } .line { stroke: var(--line); }
.box { stroke-width: 1.2; } .joint { fill: var(--panel); stroke: var(--soft); } .never { fill: var(--panel); }
.flow { fill: none; stroke: var(--soft); stroke-width: 1.4; } .tip { fill: var(--soft); }
.suffix.box { stroke-dasharray: 4 3; }
svg { --page: #ffffff; --panel: #f1f3f5; --ink: #1c2128; --soft: #5c6773; --line: #d4d9de;
  --start: #e9ecef; --start-edge: #868e96; --image: #d0e4fb; --image-edge: #2f74c0;
  --text: #e5e1f5; --text-edge: #6c55b8; --past: #f7dcec; --past-edge: #b04a83;
  --proprio: #d3f0dc; --proprio-edge: #2f8f52; --readout: #ffe3bd; --readout-edge: #c26a0a;
  --suffix: #ffdcd6; --suffix-edge: #c8432f; }
@media (prefers-color-scheme: dark) { svg { --page: #15191e; --panel: #22282f; --ink: #e8ecf0; --soft: #9aa5b1;
  --line: #3a424b; --start: #2b3138; --start-edge: #8d98a3; --image: #173a5e; --image-edge: #6cacf0;
  --text: #322a55; --text-edge: #a795ea; --past: #4a2039; --past-edge: #e58abb;
  --proprio: #18402a; --proprio-edge: #62c98a; --readout: #553509; --readout-edge: #f0a44a;
  --suffix: #57231b; --suffix-edge: #f58573; } }
""" + "".join(
    f".{kind} {{ fill: var(--{kind}); stroke: var(--{kind}-edge); }} .see.{kind} {{ fill: var(--{kind}-edge); }}\n"
    for kind in ("start", "image", "text", "past", "proprio", "readout", "suffix")
)


@dataclass
class _Drawing:
    """SVG elements, and their lower end."""

    elements: list[str] = field(default_factory=list)
    bottom: float = 0

    def text(self, x: float, y: float, text: object, kind: str = "", rotate: bool = False) -> None:
        turn = f' transform="rotate(-60 {x:g} {y:g})"' if rotate else ""
        self.elements.append(f'<text x="{x:g}" y="{y:g}" class="{kind}"{turn}>{escape(text)}</text>')
        self.bottom = max(self.bottom, y)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, round_: float = 5) -> None:
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}" class="{kind}"/>'
        )
        self.bottom = max(self.bottom, y + height)

    def path(self, how: str, kind: str) -> None:
        self.elements.append(f'<path d="{how}" class="{kind}"/>')

    def box(self, x: float, y: float, width: float, group: TokenGroup) -> None:
        """Add the box of a group, with its label and its number of tokens."""
        self.rect(x, y, width, BOX, f"box {group.kind}")
        self.text(x + width / 2, y + 15, _truncate(group.label, width), "middle small")
        self.text(x + width / 2, y + 28, group.tokens, "middle soft small")

    def arrow(self, x0: float, y0: float, x: float, y: float) -> None:
        """Add a line with a tip at its end, to the right or down."""
        self.path(f"M{x0:g} {y0:g} L{x:g} {y:g}", "flow")
        if y == y0:
            self.path(f"M{x:g} {y:g} L{x - 7:g} {y - 4:g} V{y + 4:g} Z", "tip")
        else:
            self.path(f"M{x:g} {y:g} L{x - 4:g} {y - 7:g} H{x + 4:g} Z", "tip")


def shown_steps(window: int) -> list[int]:
    """Return the steps of a window that a drawing shows."""
    return list(range(window)) if window <= SHOWN else [0, 1, window - 1]


def shown_groups(explained: Explanation) -> list[int]:
    """Return the numbers of the groups that a drawing shows."""
    steps = {-1, *shown_steps(explained.window)}
    return [number for number, group in enumerate(explained.groups) if group.step in steps]


def name_group(group: TokenGroup, explained: Explanation) -> str:
    """Return the label of a group, with its step if the sequence has several steps."""
    several = explained.sequences == 1 and explained.window > 1
    return f"{group.step + 1} {group.label}" if several and group.step >= 0 else group.label


def format_count(count: int) -> str:
    """Format a number of parameters: 1.2 G, 41.3 M, 9.6 k, 128."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def draw_structure(explained: Explanation) -> str:
    """Return the drawing as a standalone SVG document."""
    draw = _Drawing()
    made = explained.structure
    draw.text(MARGIN, 40, explained.name, "title")
    draw.text(
        MARGIN,
        61,
        f"history {made['history']}, fuser {made['fuser']}, decoder {made['decoder']}, "
        f"representation {made['representation']}; backbone {made['backbone']}",
        "soft",
    )
    _draw_steps(draw, explained, 104)
    top = draw.bottom + 44
    _draw_mask(draw, explained, top)
    beside = max(MARGIN + LABELS + len(shown_groups(explained)) * CELL + 70.0, 560.0)
    if beside + TABLE > WIDTH - MARGIN:
        _draw_table(draw, explained, MARGIN, draw.bottom + 50)
    else:
        _draw_table(draw, explained, beside, top)
    height = draw.bottom + MARGIN
    title = f"{explained.name}: tokens and attention mask"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="8"/>\n' + "\n".join(draw.elements) + "\n</svg>\n"
    )


def _draw_steps(draw: _Drawing, e: Explanation, top: float) -> None:
    """Draw the steps as rows of boxes, and the path from their readouts to a chunk."""
    one = e.sequences == 1
    steps = f"{e.window} steps in one sequence" if one else f"{e.window} steps, a sequence each"
    steps = "one step" if e.window == 1 else steps
    steps = "each step of an episode, a sequence each" if e.carries_state else steps
    draw.text(MARGIN, top, f"What the backbone reads: {steps}, {e.length} tokens", "head")
    y, left, shown = top + 18, float(MARGIN + (54 if e.window > 1 else 0)), shown_steps(e.window)
    start = [g for g in e.groups if g.step < 0]
    own = [g for g in e.groups if g.step == 0 and g.kind != "suffix"]
    suffixes = [g for g in e.groups if g.kind == "suffix"]
    widths = _choose_widths([*start, *own], (WITH_SUFFIX if suffixes else STEPS_END) - left)
    rows: list[float] = []  # the middle of each
    ends: list[float] = []  # where the readouts end
    for row, step in enumerate(shown):
        if row and step != shown[row - 1] + 1:
            draw.text(MARGIN, y + 12, f"... {step - shown[row - 1] - 1} more", "soft")
            y += 26
        groups = [g for g in e.groups if g.step == (step if one else 0) and g.kind != "suffix"]
        x = left
        if e.window > 1:
            draw.text(MARGIN, y + 15, f"step {step + 1}", "")
            draw.text(MARGIN, y + 29, "(now)" if step == e.window - 1 and not e.carries_state else "", "soft small")
        for group, width in zip([*start, *groups], widths, strict=True):
            if group.step >= 0 or not one or not row:
                draw.box(x, y, width, group)
            x += width + GAP
        rows.append(y + BOX / 2)
        ends.append(x - GAP)
        if one and row:
            draw.path(
                f"M{ends[-2]:g} {rows[-2] + BOX / 2 + 2:g} V{y - 9:g} "
                f"H{left + (sum(widths[: len(start)]) + GAP * len(start)) + 12:g} V{y - 1:g}",
                "flow",
            )
        y += ROW
    _draw_decoder(draw, e, rows, ends, suffixes, left)


def _truncate(text: str, width: float) -> str:
    """Truncate text to a width in pixels."""
    most = max(2, int((width - 6) / LETTER))
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _choose_widths(groups: Sequence[TokenGroup], width: float) -> list[float]:
    """Return box widths that grow with the number of tokens, fit the labels, and fit the width together."""
    least = [7.0 * min(12, max(len(g.label), len(str(g.tokens)))) + 18 for g in groups]
    wanted = [max(w, 9 * g.tokens**0.5) for w, g in zip(least, groups, strict=True)]
    scale = min(1.0, (width - GAP * (len(groups) - 1)) / sum(wanted))
    return [w * scale for w in wanted]


def _draw_decoder(
    draw: _Drawing,
    e: Explanation,
    rows: Sequence[float],
    ends: Sequence[float],
    suffixes: Sequence[TokenGroup],
    left: float,
) -> None:
    """Draw fuser, decoder and chunk right of the steps; a decoder in the backbone is below the last step."""
    x, last = max(ends) + 34, rows[-1]
    fuses = e.structure["fuser"] != "identity"
    first = rows[0] if fuses else last
    draw.rect(x, first - BOX / 2, 92, last - first + BOX, "box joint")
    _draw_lines(draw, x + 46, (first + last) / 2 - 2, (e.structure["fuser"], "fuser"), "middle")
    for y, end in zip(rows, ends, strict=True):
        if fuses or y == last:
            draw.arrow(end + 3, y, x - 2, y)
    executed = f"{e.execute} of {e.chunk} actions executed" if e.chunk > 1 else "one action"
    chunk = (f"chunk {e.chunk} x {e.action}", executed)
    if suffixes:
        y = last + ROW + 6
        own = [g for g in suffixes if g.step == suffixes[-1].step]
        widths = _choose_widths(own, ends[-1] - left)
        end = x
        for group, width in zip(own, widths, strict=True):
            draw.box(end, y - BOX / 2, width, group)
            end += width + GAP
        draw.arrow(x + widths[0] / 2, last + BOX / 2, x + widths[0] / 2, y - BOX / 2 - 2)
        step = f"after step {e.window}:" if e.window > 1 else "after the step:"
        _draw_lines(draw, x - 10, y - 2, (step, "attends to the step, not to its readouts"), "end")
        draw.arrow(end, y, end + 28, y)
        _draw_lines(draw, end + 36, y - 2, chunk, "")
        return
    draw.arrow(x + 92, last, x + 120, last)
    draw.rect(x + 122, last - BOX / 2, 84, BOX, "box joint")
    _draw_lines(draw, x + 164, last - 2, (e.structure["decoder"], "decoder"), "middle")
    draw.arrow(x + 164, last + BOX / 2, x + 164, last + ROW - 12)
    _draw_lines(draw, x + 164, last + ROW + 2, chunk, "middle")


def _draw_lines(draw: _Drawing, x: float, y: float, lines: tuple[str, str], kind: str) -> None:
    """Draw a line and a smaller one below it."""
    draw.text(x, y, lines[0], kind)
    draw.text(x, y + 14, lines[1], f"{kind} soft small".strip())


def _draw_mask(draw: _Drawing, e: Explanation, top: float) -> None:
    draw.text(MARGIN, top, "Attention mask", "head")
    draw.text(MARGIN + 132, top, "rows attend to columns", "soft small")
    shown = shown_groups(e)
    x0, y0 = MARGIN + LABELS, top + 100
    for number, column in enumerate(shown):
        label = _truncate(name_group(e.groups[column], e), LABELS)
        draw.text(x0 + number * CELL + 11, y0 - 6, label, "small", rotate=True)
    for line, row in enumerate(shown):
        y = y0 + line * CELL
        draw.text(x0 - 7, y + 13, _truncate(name_group(e.groups[row], e), LABELS), "end small")
        for number, column in enumerate(shown):
            _draw_cell(draw, x0 + number * CELL, y, e.groups[column].kind, float(e.attention[row, column]))
    y = y0 + len(shown) * CELL + 22
    x = float(MARGIN)
    for share, meaning in ((1.0, "all"), (0.5, "some: earlier ones"), (0.0, "none")):
        _draw_cell(draw, x, y - 12, "image", share)
        draw.text(x + CELL + 5, y + 1, meaning, "small soft")
        x += CELL + 5 + 6.2 * len(meaning) + 16


def _draw_cell(draw: _Drawing, x: float, y: float, kind: Kind, share: float) -> None:
    side = CELL - 2
    draw.rect(x, y, side, side, "never", 2)
    if share >= 1:
        draw.rect(x, y, side, side, f"see {kind}", 2)
    elif share > 0:
        draw.path(f"M{x:g} {y:g} L{x + side:g} {y + side:g} H{x:g} Z", f"see {kind}")


def _draw_table(draw: _Drawing, e: Explanation, x: float, top: float) -> None:
    """Draw the parameters and the notes, from `x` to the right margin."""
    right = float(WIDTH - MARGIN)
    draw.text(x, top, "Weights", "head")
    draw.text(right - 84, top, "all", "end soft small")
    draw.text(right, top, "trainable", "end soft small")
    y = top + 22
    together = ParameterCount("together", sum(p.parameters for p in e.parts), sum(p.trainable for p in e.parts))
    for part in (*e.parts, together):
        if part is together:
            draw.path(f"M{x:g} {y - 11:g} H{right:g}", "line")
            y += 3
        draw.text(x, y, part.name)
        draw.text(right - 84, y, format_count(part.parameters), "end")
        draw.text(right, y, format_count(part.trainable) if part.trainable else "frozen", "end")
        y += 18
    y += 14
    for note in e.notes:
        for line in textwrap.wrap(note, int((right - x) / 5.9), break_long_words=False, break_on_hyphens=False):
            draw.text(x, y, line, "soft small")
            y += 15
        y += 4
