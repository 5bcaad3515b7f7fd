"""Typed configuration: frozen dataclasses <-> YAML <-> command line.

A config class is a pydantic dataclass made with `STRICT`. A field of type `FuserPart` (and the like) has a name from a
registry; the other keys beside that name are the `Config` of the class of that name.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import BeforeValidator, ConfigDict, PlainSerializer

from anyvla.files.documents import DocumentError, as_mapping, parse_yaml, read_yaml
from anyvla.registry import REGISTRIES, suggest

T = TypeVar("T")

MOST_FAULTS = 20  # that one message lists
LONGEST = 200  # characters of a value in a message
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """A recipe or an option cannot be used. The message says what to do instead."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A chosen member of a registry and its checked configuration."""

    registry: str
    name: str
    config: Any

    @property
    def target(self) -> Any:
        """Return the class of that name."""
        return REGISTRIES[self.registry][self.name]

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Return an object of the class: `Class(config, *args, **kwargs)`."""
        return self.target(self.config, *args, **kwargs)


def _read_part(registry: str) -> Callable[[Any], Part]:
    def read(value: Any) -> Part:
        if isinstance(value, Part):
            return value
        if not isinstance(value, str | Mapping):
            raise ValueError(f"expected a name, or keys with a name; one of: {', '.join(REGISTRIES[registry])}")
        keys = {"name": value} if isinstance(value, str) else dict(value)
        name = keys.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"the key 'name' is missing; one of: {', '.join(REGISTRIES[registry])}")
        try:
            target = REGISTRIES[registry][name]
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        return Part(registry, name, build(target.Config, keys, where=f"{registry} {name!r}"))

    return read


def _write_part(value: Part) -> dict[str, Any]:
    return {"name": value.name, **to_dict(value.config)}


BackbonePart = Annotated[Part, BeforeValidator(_read_part("backbones")), PlainSerializer(_write_part)]
HistoryPart = Annotated[Part, BeforeValidator(_read_part("histories")), PlainSerializer(_write_part)]
FuserPart = Annotated[Part, BeforeValidator(_read_part("fusers")), PlainSerializer(_write_part)]
RepresentationPart = Annotated[Part, BeforeValidator(_read_part("representations")), PlainSerializer(_write_part)]
DecoderPart = Annotated[Part, BeforeValidator(_read_part("decoders")), PlainSerializer(_write_part)]
FormatPart = Annotated[Part, BeforeValidator(_read_part("formats")), PlainSerializer(_write_part)]


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain data for YAML or JSON; `build(type(config), to_dict(config)) == config`."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a config from `data`. Raises a ConfigError that lists every fault and its key."""
    head = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{head}expected keys and values, found {_shown(data)}")
    try:
        built = pydantic.TypeAdapter(cls).validate_python(dict(data))
        lines = [f"'{path}': a number is expected, not true or false" for path in _booleans(cls, data)]
    except pydantic.ValidationError as error:
        lines = [explain_fault(cls, fault) for fault in error.errors()[:MOST_FAULTS]]
    if lines:
        raise ConfigError(head + ("; ".join(lines) if len(lines) == 1 else "\n  - " + "\n  - ".join(lines)))
    return built


def _booleans(hint: Any, data: Any, path: str = "") -> list[str]:
    """Return the paths of booleans in place of numbers, which pydantic reads as 1 or 0."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(data, bool):
        return [path] if {bool, Any}.isdisjoint(kinds) and not {int, float}.isdisjoint(kinds) else []
    if isinstance(data, Mapping):
        hints = next((typing.get_type_hints(k) for k in kinds if dataclasses.is_dataclass(k)), {})
        values = next((typing.get_args(k)[1] for k in kinds if len(typing.get_args(k)) == 2), Any)  # of a mapping
        items = [(k, v, hints.get(k, values)) for k, v in data.items()]
    elif isinstance(data, list | tuple):
        inner = next((typing.get_args(k) for k in kinds if typing.get_args(k)), (Any,))
        items = [
            (str(i), v, inner[i] if inner[-1] is not ... and i < len(inner) else inner[0]) for i, v in enumerate(data)
        ]
    else:
        return []
    return [fault for key, value, of in items for fault in _booleans(of, value, f"{path}.{key}".strip("."))]


def explain_fault(cls: type, fault: Any) -> str:
    """Return an item of `pydantic.ValidationError.errors()` as a sentence, with the nearest key for an unknown one."""
    # Of a union, pydantic names the alternative that it tried.
    path = [str(p) for p in fault["loc"] if not str(p).startswith(("literal[", "tuple["))]
    of_mapping = path[-1:] == ["[key]"]
    path = path[:-1] if of_mapping else path
    dotted = ".".join(path)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden") or of_mapping:
        known = _fields_at(cls, path[:-1])
        elsewhere = [key for key in keys_below(cls) if key.rpartition(".")[2] == path[-1]]
        near = [*difflib.get_close_matches(path[-1], known, n=2), *elsewhere[:2]]
        if elsewhere:
            return f"unknown key '{dotted}': did you mean {' or '.join(map(repr, near))}?"
        return f"unknown key '{dotted}': {suggest(path[-1], known)}" if known else f"unknown key '{dotted}'"
    if fault["type"] in ("missing", "missing_argument"):
        return f"'{dotted}' is required"
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if fault["type"] == "value_error" else f" (given: {_shown(fault['input'])})"
    return f"'{dotted}': {message}{given}" if dotted else message


def _fields_at(cls: Any, path: Sequence[str]) -> list[str]:
    """Return the keys at `path` below `cls`: of a dataclass, or of a mapping with a few names; none for others."""
    for key in path:
        if key.isdigit():  # an item of a tuple or list
            cls = next(iter(typing.get_args(cls)), None)
        elif typing.get_origin(cls) in (dict, Mapping):
            cls = typing.get_args(cls)[1]
        else:
            cls = typing.get_type_hints(cls).get(key) if dataclasses.is_dataclass(cls) else None
        if type(None) in typing.get_args(cls):
            cls = next((a for a in typing.get_args(cls) if dataclasses.is_dataclass(a)), cls)
    if typing.get_origin(cls) in (dict, Mapping):
        return [str(name) for name in typing.get_args(typing.get_args(cls)[0])]
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def keys_below(cls: Any, path: str = "") -> list[str]:
    """Return the dotted keys of all sections below a config class; those of list items as of the first one."""
    out = []
    for key, hint in typing.get_type_hints(cls).items():
        out.append(f"{path}{key}")
        item = {tuple: ".0", dict: ".NAME"}.get(typing.get_origin(hint) or hint, "")
        sections = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a) and a is not Part]
        out += [inner for section in sections for inner in keys_below(section, f"{path}{key}{item}.")]
    return out


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def read_options(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and lay `--a.b value` options over it. Raises ConfigError."""
    try:
        data = as_mapping(read_yaml(Path(path)) or {}, str(path))
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    return override(data, overrides)


def merge(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested data over other nested data. Lists, and parts of another name, are replaced as a whole.

    Numbers as keys name items of a list, as in `{sources: {"0": {scale: 0.1}}}`. Raises ConfigError for an item that a
    list does not have.
    """
    result = dict(data)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, list) and isinstance(value, Mapping) and value and all(str(k).isdecimal() for k in value):
            result[key] = _merge_items(old, value, key)
            continue
        below = _as_keys(result.get(key))
        is_same = isinstance(value, Mapping) and value.get("name", below.get("name")) == below.get("name")
        result[key] = merge(below, value) if is_same else value
    return result


def _merge_items(items: list[Any], over: Mapping[str, Any], key: str) -> list[Any]:
    for number in over:
        _place(items, str(number), f"{key}.{number}")
    merged = merge({str(n): item for n, item in enumerate(items)}, {str(n): item for n, item in over.items()})
    return list(merged.values())


def override(data: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Lay command-line options over nested data: `--a.b value`, `--a.b=value` or, for the first of a list, `--a.0`.

    Values are YAML. Raises ConfigError.
    """
    return override_keys(data, parse_options(options))


def override_keys(data: Mapping[str, Any], values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Lay values with dotted keys over nested data. Raises ConfigError for an item that a list does not have."""
    result = copy.deepcopy(dict(data))
    for key, value in values:
        node: Any = result  # a mapping or a list
        *parents, leaf = key.split(".")
        for parent in parents:
            at = _place(node, parent, key)
            child = node[at] if isinstance(node, list) else node.get(at)
            node[at] = node = child if isinstance(child, list) else _as_keys(child)
        node[_place(node, leaf, key)] = value
    return result


def _place(node: Any, name: str, key: str) -> Any:
    """Return the key that a part of a dotted key names, or the number in a list. Raises ConfigError if it is none."""
    if not isinstance(node, list):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise ConfigError(f"--{key}: {name!r} is no item of a list of {len(node)}, which are counted from 0")
    return int(name)


def parse_options(options: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the dotted keys and the values of command-line options. Raises ConfigError."""
    found, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ConfigError(f"cannot place {option!r}: options look like --training.steps 1000")
        key, has_value, value = option[2:].partition("=")
        if not has_value:
            if not rest:
                raise ConfigError(f"--{key} needs a value, as in --{key} VALUE")
            value = rest.pop(0)
        try:
            found.append((key, parse_yaml(value, f"--{key}")))
        except DocumentError as error:
            raise ConfigError(f"--{key}: {_shown(value)} is not a YAML value: {error}") from None
    return found


def _as_keys(value: Any) -> dict[str, Any]:
    """Return a section, or the short form of a part (`fuser: lstm`), as keys; none for any other value."""
    return {"name": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
