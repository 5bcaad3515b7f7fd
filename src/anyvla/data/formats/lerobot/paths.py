"""Fills numbers into the path templates of LeRobot's info.json: `data/chunk-{chunk_index:03d}/...`.

The template comes with the data set. With `str.format` it could read attributes, or pad a number to any width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyvla.files.inside import check_name

_FIELD = re.compile(r"\{([a-z_]+)(?::0?([0-9]{1,2})?d)?\}")
_WIDEST = 20  # digits


class PathTemplate:
    """A path in `facts`, the contents of info.json, that may contain these fields only, as `{file_index:03d}`."""

    def __init__(self, root: Path, facts: Mapping[str, Any], key: str, fields: Sequence[str]) -> None:
        self._root, self._where = root, f"{root}/meta/info.json, {key!r}"
        pattern = facts.get(key)
        if not isinstance(pattern, str):
            raise ValueError(f"{self._where} is {str(pattern)[:200]}, expected a path with {{{fields[-1]}:03d}} in it")
        parts = _FIELD.split(pattern)  # text, name of a field, its width, text, ...
        self._texts, widths = parts[::3], [int(width or 0) for width in parts[2::3]]
        self._fields = list(zip(parts[1::3], widths, strict=True))
        wrong = [name for name, width in self._fields if name not in fields or width > _WIDEST]
        if wrong or any(c in text for text in self._texts for c in "{}"):
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(
                f"{self._where} is {pattern[:200]!r}; it may hold {known}, each with a width as in "
                f"{{{fields[-1]}:03d}}, and no other braces"
            )

    def fill(self, **values: int | str) -> str:
        """Return the path below the root. Raises ValueError if it leaves the data set."""
        path = self._texts[0]
        for (name, width), text in zip(self._fields, self._texts[1:], strict=True):
            value = values[name]
            path += (f"{value:0{width}d}" if width and isinstance(value, int) else str(value)) + text
        check_name(path, self._root)
        return path
