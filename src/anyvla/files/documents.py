"""Read YAML and JSON files that come from other people: recipes, checkpoints, codecs, mappings.

Such a file may be damaged or hostile. The readers here accept plain data only, with bounds on size, depth and numbers,
and every refusal is one DocumentError that names the file and, where it is known, the line or the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from anyvla.files.inside import check_regular

MOST_YAML = 1 << 18  # bytes; PyYAML takes seconds for a mebibyte
MOST_JSON = 1 << 26  # bytes
DEEPEST = 64  # mappings and lists inside each other
SMALLEST, LARGEST = -(2**63), 2**64 - 1  # whole numbers
_NO_LIMIT = str(int(1e30))  # model_max_length, as transformers writes it into tokenizer_config.json without a limit
PLAIN = {"null", "bool", "int", "float"}  # kinds of YAML values without quotes; all others are text


class DocumentError(ValueError):
    """A file that is missing, damaged, too large or not plain data."""


def read_yaml(path: Path) -> Any:
    """Return the contents of a YAML file; None if it is empty. Raises DocumentError."""
    return parse_yaml(read_text(path, MOST_YAML), str(path))


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises DocumentError."""
    return parse_json(read_text(path, MOST_JSON), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file that holds one object. Raises DocumentError."""
    return as_mapping(read_json(path), str(path))


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return `value` if it is a mapping. Raises DocumentError."""
    if not isinstance(value, dict):
        raise DocumentError(f"{where}: expected keys and values at the top, found {_name(value)}")
    return value


def read_text(path: Path, most: int) -> str:
    """Return the text of a UTF-8 file of at most `most` bytes, without a byte order mark. Raises DocumentError."""
    size = regular_size(path)  # before opening it: a FIFO would wait for ever
    if size > most:
        raise DocumentError(f"{path} has {size:,} bytes, more than the {most:,} that such a file may have")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}): save it as UTF-8"
        ) from None
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}") from None


def regular_size(path: Path) -> int:
    """Return the size of a regular file in bytes. Raises DocumentError for anything else, and if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DocumentError(f"{path} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DocumentError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        check_regular(path)
    except ValueError as error:
        raise DocumentError(str(error)) from None
    return found.st_size


def parse_json(text: str, where: str) -> Any:
    """Return the value of JSON text. Raises DocumentError; NaN and infinity are no JSON."""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
        _check_depth(value)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DocumentError(f"{where}: a text holds half a character (an escape \\ud800 to \\udfff alone)") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"{where}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise DocumentError(f"{where}: nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise DocumentError(f"{where}: {error}") from None
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of YAML text: plain data without aliases, tags or keys written twice. Raises DocumentError."""
    if len(text) > MOST_YAML:
        raise DocumentError(f"{where}: {len(text):,} characters, more than the {MOST_YAML:,} that YAML may have here")
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = str(error.problem) if isinstance(error, _Refusal) else f"not valid YAML ({error.problem})"
        raise DocumentError(f"{where}{line}: {reason}") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise DocumentError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def to_yaml(document: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads: without aliases, keys in their order."""
    return yaml.dump(document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


class _Refusal(yaml.MarkedYAMLError):
    """YAML that is valid, but not plain data."""


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases (a small file can expand to gigabytes), tags, dates and keys written twice."""

    # Dates and merge keys are text here: `2024-13-45` would raise out of the standard library.
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(f"the alias *{event.anchor} is not allowed; write the value out", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refusal(f"the tag {event.tag} is not allowed; write plain values", event)
        self._depth += 1
        if self._depth > DEEPEST and not isinstance(event, yaml.ScalarEvent):
            raise _refusal(f"nested more than {DEEPEST} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise _refusal(f"the key {_short(name)} is no text; put it in quotes", key)
            if name in seen:
                raise _refusal(f"the key {_short(name)} is written twice", key)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_plain_str(self, node: Any) -> str:
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise _refusal("a text holds half a character (an escape \\ud800 to \\udfff)", node)
        return node.value

    def construct_plain_int(self, node: Any) -> int:
        try:
            value = self.construct_yaml_int(node)
            return _checked(value)
        except ValueError as error:
            text = str(error) if "whole number" in str(error) else f"{_short(node.value)} is no whole number"
            raise _refusal(text, node) from None

    def construct_plain_float(self, node: Any) -> float:
        try:
            value: float = self.construct_yaml_float(node)
        except ValueError:
            raise _refusal(f"{_short(node.value)} is no number", node) from None
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise _refusal(f"{_short(node.value)} is no finite number", node)
        return value


_PlainLoader.add_constructor("tag:yaml.org,2002:str", _PlainLoader.construct_plain_str)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_plain_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_plain_float)


def _refusal(problem: str, place: Any) -> _Refusal:
    return _Refusal(problem=problem, problem_mark=place.start_mark)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {_short(key)} is written twice")
        found[key] = value
    return found


def _whole(digits: str) -> int:
    if digits == _NO_LIMIT:
        return int(digits)
    return _checked(int(digits) if len(digits) <= 20 else LARGEST + 1)


def _checked(value: int) -> int:
    if not SMALLEST <= value <= LARGEST:
        raise ValueError("a whole number does not fit into 64 bits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(digits)} is not finite")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _name(value: Any) -> str:
    names = {type(None): "nothing", list: "a list", str: "text", bool: "true or false", int: "a number"}
    return names.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
