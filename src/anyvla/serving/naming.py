"""Shorten the keys and values of clients for error messages, to one line."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Collection
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2
_MOST = 8  # names in a list


def quote(value: Any) -> str:
    """Return a short repr of a value."""
    return _SHORT.repr(bytes(value[:60]) if isinstance(value, memoryview) else value)


def join_names(names: Collection[str]) -> str:
    """Return the first few names, comma-separated, with line breaks and control characters escaped."""
    short = (name if len(name) <= 60 else name[:57] + "..." for name in itertools.islice(names, _MOST))
    shown = ", ".join(name if name.isprintable() else repr(name)[1:-1] for name in short)
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown
