"""What all pages are made with: the templates, their style sheet, and how a page gets to its place."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from anyvla.files import durable
from anyvla.report import plots

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """What renders the templates of all pages."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("anyvla.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": plots.percent, "span": plots.span, "signed": plots.signed, "minutes": _minutes}
    made.globals |= {"bar": plots.interval_bar, "difference_bar": plots.difference_bar}
    return made


def style() -> Markup:
    """The style sheet, light and dark."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def write_html(path: Path, page: str) -> Path:
    """Put a page in place whole, so that an interruption leaves the one that was there before; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, page)
    return path


def _minutes(minutes: float) -> str:
    """A time for people: "4.2 min", "12 s"."""
    return f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
