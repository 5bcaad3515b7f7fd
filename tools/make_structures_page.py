"""Draw the pictures of `docs/structures.md` and write its table of combinations.

    python tools/make_structures_page.py            # all
    python tools/make_structures_page.py --table    # the table only
    python tools/make_structures_page.py --only pi0 openvla

The prose and what was measured stay as they are: only what stands between the table's marks is replaced.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent

from anyvla.cli.explain import explanation  # noqa: E402
from anyvla.cli.list.structures import matrix  # noqa: E402
from anyvla.combinations import Combination, combinations  # noqa: E402
from anyvla.recipe import presets, read  # noqa: E402
from anyvla.report.structure import svg  # noqa: E402

PAGE = ROOT / "docs" / "structures.md"
PICTURES = ROOT / "docs" / "images" / "structures"
BEGIN, END = "<!-- combinations: written by tools/make_structures_page.py -->", "<!-- end of combinations -->"
PRESETS = presets()


def main() -> int:
    """Draw and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PRESET", choices=PRESETS, help="draw these only")
    parser.add_argument("--table", action="store_true", help="draw nothing")
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in [] if options.table else options.only or PRESETS:
        (PICTURES / f"{name}.svg").write_text(picture(name), encoding="utf-8")
        print(PICTURES.relative_to(ROOT) / f"{name}.svg")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), list(combinations())), encoding="utf-8")
    return 0


def picture(name: str) -> str:
    """What `anyvla explain NAME --model.backbone nano --svg FILE` draws."""
    return svg(explanation(read(name, ["--model.backbone", "nano"]), name))


def with_table(page: str, found: Sequence[Combination]) -> str:
    """The page with the table of these combinations. Raises ValueError if its marks are gone."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def table(found: Sequence[Combination]) -> str:
    """Rows: decoder and representation; columns: histories; in the cells the fusers that go with them."""
    m = matrix(found)
    lines = [["decoder", "representation", *m.histories], ["---"] * (2 + len(m.histories))]
    lines += [[f"`{decoder}`", f"`{kind}`", *cells] for decoder, kind, cells in m.rows]
    notes = [f"({number}) {reason}." for number, reason in enumerate(m.notes, 1)]
    count = f"{m.valid} of {m.all} combinations make a policy: those of the fusers in the cells.\n"
    return "\n".join([count, *(f"| {' | '.join(line)} |" for line in lines), *notes])


if __name__ == "__main__":
    sys.exit(main())
