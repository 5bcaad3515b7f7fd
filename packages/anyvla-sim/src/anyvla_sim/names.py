"""What to say after a typo."""

from __future__ import annotations

import difflib
from typing import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """The sentence that helps after a typo: the nearest known names, or all of them if none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(names)}"
