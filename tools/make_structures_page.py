"""Draw the pictures of `docs/structures.md` and write its table of combinations.

    python tools/make_structures_page.py            # all
    python tools/make_structures_page.py --table    # the table only
    python tools/make_structures_page.py --only pi0 openvla

Only the lines between the table's marks are replaced; the rest of the page is written by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent

from anyvla.cli.explain import explain_recipe  # noqa: E402
from anyvla.cli.list.combinations import arrange  # noqa: E402
from anyvla.combinations import Combination, combinations  # noqa: E402
from anyvla.recipe import presets, read  # noqa: E402
from anyvla.report.structure import draw_structure  # noqa: E402

PAGE = ROOT / "docs" / "structures.md"
PICTURES = ROOT / "docs" / "images" / "structures"
BEGIN, END = "<!-- combinations: written by tools/make_structures_page.py -->", "<!-- end of combinations -->"
PRESETS = presets()


def main() -> int:
    """Draw the pictures and write the table. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PRESET", choices=PRESETS, help="draw only these")
    parser.add_argument("--table", action="store_true", help="write only the table")
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in [] if options.table else options.only or PRESETS:
        (PICTURES / f"{name}.svg").write_text(draw(name), encoding="utf-8")
        print(PICTURES.relative_to(ROOT) / f"{name}.svg")
    PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8"), list(combinations())), encoding="utf-8")
    return 0


def draw(name: str) -> str:
    """Return the SVG that `anyvla explain NAME --model.backbone nano --svg FILE` writes."""
    return draw_structure(explain_recipe(read(name, ["--model.backbone", "nano"]), name))


def replace_table(page: str, found: Sequence[Combination]) -> str:
    """Return the page with its table replaced. Raises ValueError if the page lacks the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{format_table(found)}\n{END}{after}"


def format_table(found: Sequence[Combination]) -> str:
    """Return a Markdown table with a row per decoder and representation and the fusers for each history."""
    m = arrange(found)
    lines = [["decoder", "representation", *m.histories], ["---"] * (2 + len(m.histories))]
    lines += [[f"`{decoder}`", f"`{kind}`", *cells] for decoder, kind, cells in m.rows]
    notes = [f"({number}) {reason}." for number, reason in enumerate(m.notes, 1)]
    count = f"{m.valid} of {m.all} combinations make a policy; each cell lists the possible fusers.\n"
    return "\n".join([count, *(f"| {' | '.join(line)} |" for line in lines), *notes])


if __name__ == "__main__":
    sys.exit(main())
