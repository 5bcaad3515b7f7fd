"""Render the HTML of reports: templates, style sheet and atomic writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from anyvla.files import durable
from anyvla.report import plots

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Verdict:
    """A sentence at the head of a report."""

    tone: str  # "good", "open" or "bad": a class of the style sheet
    text: str


def environment(*packages: str) -> jinja2.Environment:
    """Return the environment that renders the templates of all reports and of further packages."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in ("anyvla.report", *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": plots.format_percent,
        "span": plots.format_interval,
        "signed": plots.format_points,
        "minutes": _format_minutes,
    }
    made.globals |= {"bar": plots.draw_rate, "difference_bar": plots.draw_difference}
    return made


def style() -> Markup:
    """Return the style sheet, light and dark."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def write_html(path: Path, html: str) -> Path:
    """Write a page atomically and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, html)
    return path


def _format_minutes(minutes: float) -> str:
    """Format a duration: "4.2 min", "12 s"."""
    return f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
