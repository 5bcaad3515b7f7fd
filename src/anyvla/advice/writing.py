"""Write an advice: as the YAML of its recipe with comments, and as data for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from anyvla.advice.advise import Advice
from anyvla.config import ConfigError
from anyvla.files import durable

MARKS = {"for": "+", "against": "-", "open": "?", "arithmetic": "="}
LEGEND = "+ speaks for it, - against it, ? decides nothing, = arithmetic"
_WIDTH = 118


def format_recipe(advice: Advice, command: str) -> str:
    """Return the YAML of the recipe; comments at its head give each choice with its evidence."""
    keys = yaml.safe_dump(
        dict(advice.recipe), sort_keys=False, default_flow_style=None, width=_WIDTH, allow_unicode=True
    )
    return "\n".join((*_comments(advice, command), keys))


def write_recipe(path: Path, text: str) -> None:
    """Write the file of a recipe. Raises ConfigError if there is one already or its folder is missing."""
    if path.exists():
        raise ConfigError(f"--out {path} exists already: give another name, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    durable.write(path, text)


def to_document(advice: Advice) -> dict[str, Any]:
    """Return plain data for JSON."""
    return {
        "schema": 1,
        "choices": [asdict(decision) for decision in advice.decisions],
        "rate": asdict(advice.rate),
        "notes": list(advice.notes),
        "recipe": dict(advice.recipe),
        "plan": advice.plan.to_dict(),
    }


def _comments(advice: Advice, command: str) -> Iterator[str]:
    yield from _wrap(f"Written by: {command}", "", "  ")
    yield f"# {LEGEND}"
    for note in advice.notes:
        yield from _wrap(note, "", "  ")
    for decision in advice.decisions:
        yield from _wrap(f"{decision.choice}: {decision.value}: {decision.why}", "  ", "    ")
        for statement in decision.evidence:
            yield from _wrap(f"{MARKS[statement.stance]} {statement.text}", "    ", "      ")


def _wrap(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"# {first}", subsequent_indent=f"# {later}")
