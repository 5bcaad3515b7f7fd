"""Read the sections, tables, bars and videos of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = ("meta", "link", "rect", "line", "circle", "polyline", "polygon", "br", "input")


def plain(text: str) -> str:
    """Return the text with ordinary spaces."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


@dataclass(frozen=True)
class Bar:
    """A bar as it is drawn, in percent of its cell."""

    kind: str
    label: str
    left: float
    width: float
    low: float
    high: float


@dataclass
class Film:
    """A video with its caption; `heading` is the one above it."""

    heading: str
    video: str
    words: str = ""
    mark: str = ""
    caption: str = ""


@dataclass
class _Drawing:
    attributes: dict[str, str]
    parts: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def bar(self) -> Bar:
        def share(attributes: dict[str, str], name: str) -> float:
            return float(attributes.get(name, "0").rstrip("%"))

        fill = next(a for tag, a in self.parts if tag == "rect" and a["class"] == "fill")
        whisker = next(a for tag, a in self.parts if tag == "line" and a["class"] == "whisker")
        kind, label = self.attributes["class"].removeprefix("bar "), plain(self.attributes["aria-label"])
        ends = share(whisker, "x1"), share(whisker, "x2")
        return Bar(kind, label, share(fill, "x"), share(fill, "width"), *ends)


class Page(HTMLParser):
    """The tags of a page with their attributes, and by section its text, its tables and its films."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.section = "head"
        self.open: list[str] = []
        self.films: list[Film] = []
        self._rows: dict[str, list[list[str | Bar]]] = {}
        self._drawing: _Drawing | None = None
        self._heading = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append((tag, given))
        if tag == "section":
            self.section = given.get("id", "")
        if tag not in VOID:
            self.open.append(tag)
        rows = self._rows.setdefault(self.section, [])
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th") and rows:
            rows[-1].append("")
        elif tag == "svg":
            self._drawing = _Drawing(given)
        elif tag in ("h2", "h3"):
            self._heading = ""
        elif tag == "video":
            self.films.append(Film(self._heading, given["src"].partition("#")[0]))
        elif self._drawing is not None:
            self._drawing.parts.append((tag, given))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append((tag, given))
        if self._drawing is not None:
            self._drawing.parts.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"
        if tag == "svg" and self._drawing is not None:
            rows = self._rows[self.section]
            if self._drawing.attributes.get("class", "").startswith("bar ") and "td" in self.open:
                rows[-1][-1] = self._drawing.bar()
            self._drawing = None

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.sections[self.section] = f"{self.sections.get(self.section, '')} {data}"
        rows = self._rows.get(self.section, [])
        if {"td", "th"} & set(self.open) and rows and isinstance(rows[-1][-1], str):
            rows[-1][-1] = " ".join(f"{rows[-1][-1]} {plain(data)}".split())
        if {"h2", "h3"} & set(self.open):
            self._heading += data
        if "figcaption" in self.open and self.films:
            film = self.films[-1]
            if self.open[-1] == "q":
                film.words += data
            elif "small" in self._attributes("span"):
                film.caption += data
            elif self.open[-1] == "span":
                film.mark += data

    def _attributes(self, tag: str) -> str:
        """Return the class of the tag that is open."""
        if not self.open or self.open[-1] != tag:
            return ""
        return next(given.get("class", "") for name, given in reversed(self.tags) if name == tag)

    def text(self, section: str) -> str:
        """Return the text of a section, with single spaces."""
        return " ".join(self.sections[section].split())

    def rows(self, section: str) -> list[list[str | Bar]]:
        """Return the rows of all tables of a section: the text of each cell, or the bar in it."""
        return self._rows[section]

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all tags of this kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def paragraphs(self, kind: str) -> list[str]:
        """Return the texts of the paragraphs of a class."""
        found = re.findall(rf'<p class="{kind}">(.*?)</p>', self.html, re.DOTALL)
        return [plain(re.sub(r"<[^>]*>", "", text)) for text in found]
