"""Write the tables of docs/data_oxe.md from oxe.yaml and mixtures.yaml: python tools/make_oxe_page.py [--check].

The text around the tables is kept. With --check, only report whether the page is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from anyvla.data.formats.rlds.oxe import ColumnGroup, OxeEntry, load_entries
from anyvla.data.training.presets import presets

PAGE = Path(__file__).parent.parent / "docs" / "data_oxe.md"


def vector(pieces: tuple[ColumnGroup, ...]) -> str:
    """Return the groups of a vector in order, as `name (dims, properties)`."""
    parts = []
    for group in (p.group for p in pieces):
        facts = [str(group.size), group.mode if group.mode == "delta" else "", group.rotation or "", group.unit]
        if group.low is not None and group.open is not None:
            facts.append(f"{group.low:g} to {group.high:g}, open {group.open:g}")
        parts.append(f"{group.name} ({', '.join(f for f in facts if f)})")
    return ", ".join(parts) or "none"


def remarks(entry: OxeEntry) -> str:
    """Return a description of the conversions of a data set."""
    steps = dict.fromkeys(f"{p.group.name}: {', '.join(p.steps)}" for p in entry.action if p.steps)
    facts = [
        *steps,
        "first step skipped" if entry.skip_first_step else "",
        "last step dropped" if entry.drop_last_step else "",
        f"BGR: {', '.join(entry.swapped)}" if entry.swapped else "",
        f"only episodes with `{entry.success}`" if entry.success else "",
        f"version {entry.version}" if entry.version else "",
    ]
    return "; ".join(f for f in facts if f)


def entries() -> str:
    """Return a table with one row per data set."""
    lines = ["| data set | robot | cameras | action | proprio | Hz | changes |", "|---|---|---|---|---|---|---|"]
    for name, e in load_entries().items():
        names = ", ".join([f"`{name}`", *(f"`{a}`" for a in e.aliases)])
        vectors = vector(e.action), vector(e.proprio)
        row = [names, e.robot, ", ".join(e.cameras), *vectors, f"{e.control_hz:g}", remarks(e)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def notes() -> str:
    """Return notes and unverified facts by data set."""
    lines = []
    for name, e in load_entries().items():
        unverified = f" *Not verified:* {'; '.join(e.unverified)}." if e.unverified else ""
        if e.notes or unverified:
            lines.append(f"- `{name}`: {e.notes}{unverified}".replace(":  *", ": *"))
    return "\n".join(lines)


def mixtures() -> str:
    """Return a table with one row per data set and one column per mixture."""
    names = list(presets())
    lines = ["| data set | " + " | ".join(f"`{n}`" for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    for dataset in dict.fromkeys(d for members in presets().values() for d in members):
        weights = [f"{presets()[n][dataset]:g}" if dataset in presets()[n] else "" for n in names]
        lines.append("| " + " | ".join([f"`{dataset}`", *weights]) + " |")
    return "\n".join(lines)


def fill(page: str) -> str:
    """Return the page with new tables between the marks `<!-- NAME -->` and `<!-- end -->`."""
    for name, content in {"entries": entries(), "notes": notes(), "mixtures": mixtures()}.items():
        block = f"<!-- {name} -->\n{content}\n<!-- end -->"
        page = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = fill(old)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/data_oxe.md is out of date: run python tools/make_oxe_page.py" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")
