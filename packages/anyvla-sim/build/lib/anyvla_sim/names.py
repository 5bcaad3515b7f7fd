"""Checks of names that people type, with suggestions after a typo."""

from __future__ import annotations

import difflib
from typing import Iterable, Mapping, Sequence


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the names nearest to `name`, or the list of all known names if none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(names) or 'none'}"


def check_name(name: str, known: Iterable[str], message: str) -> None:
    """Raise ValueError with `message`, the name and suggestions unless it is one of the known names."""
    if name not in known:
        raise ValueError(f"{message} {name!r}: {suggest(name, known)}")


def check_factors(benchmark: str, levels: Mapping[str, Sequence[str]], factors: Mapping[str, str]) -> None:
    """Raise ValueError if `factors` has a factor or a level that is not in `levels`, the benchmark's."""
    for factor, level in factors.items():
        check_name(factor, levels, f"{benchmark} has no factor")
        check_name(level, levels[factor], f"the factor {factor} has no level")
