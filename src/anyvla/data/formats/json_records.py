"""Reads the JSON of data sets as editors leave it: with a byte order mark, in UTF-16, over several lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyvla.files.inside import check_regular

_MARKS = {  # a mark of UTF-32 begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BETWEEN = re.compile(r"[\s,\x00]*")  # between records; a crash leaves zeros behind


def read_json_text(path: Path) -> str:
    """Return the text of a file, in UTF-8 or as its byte order mark says. Raises ValueError if it is damaged."""
    data = check_regular(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error.reason} at byte {error.start}, read as {encoding}): save it as UTF-8, or copy "
            "the dataset again"
        ) from None


def read_records(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, each with these keys. Raises a ValueError that names the damaged line.

    Objects may span lines, be separated by commas, or be the elements of one list.
    """
    text = read_json_text(path)
    lines, decoder, at, end = 1, json.JSONDecoder(), 0, len(text)
    while True:
        found = _BETWEEN.match(text, at)
        begin = found.end() if found else at
        lines += text.count("\n", at, begin)
        if begin == end:
            return
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {lines}, is damaged ({error}); copy the dataset again") from None
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {lines}: expected an object in braces, found {str(row)[:40]!r}")
            missing = [key for key in keys if key not in row]
            if missing:
                raise ValueError(f"{path}, line {lines}, has no {missing[0]!r}; copy the dataset again")
            yield row
        lines += text.count("\n", begin, at)


def as_whole_number(value: Any, where: str) -> int:
    """Return a JSON number as an int. Raises ValueError unless it is whole."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 53 or value != value // 1:
        raise ValueError(f"{where}: expected a whole number, found {value!r}; correct it, or copy the dataset again")
    return int(value)
