"""Typed configuration: frozen dataclasses <-> YAML <-> command line.

A config class is a pydantic dataclass made with `STRICT`: its fields are checked when it is built, and an unknown key
is an error that names where it stands and the nearest known one. A field of type `FuserPart` (and the like)
holds a name out of a registry; the other keys beside that name are the `Config` of the class it names.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, PlainSerializer

from anyvla.registry import REGISTRIES, nearest

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class ConfigError(ValueError):
    """A recipe or an option that cannot be used, with the way out."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A chosen member of a registry and its checked configuration."""

    registry: str
    name: str
    config: Any

    @property
    def target(self) -> Any:
        """The class that the name stands for."""
        return REGISTRIES[self.registry][self.name]

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """An object of the class: `Class(config, *args, **kwargs)`."""
        return self.target(self.config, *args, **kwargs)


def _read_part(registry: str) -> Callable[[Any], Part]:
    def read(value: Any) -> Part:
        if isinstance(value, Part):
            return value
        keys = {"name": value} if isinstance(value, str) else dict(value)
        name = keys.pop("name", None)
        if name is None:
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
    """Plain data for YAML or JSON; `build(type(config), to_dict(config)) == config`."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """The config as a YAML document."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Check `data` against the config class. Raises ConfigError that lists every fault and where it stands."""
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(data))
    except pydantic.ValidationError as error:
        lines = [_explain(cls, fault) for fault in error.errors()]
        head = f"{where}: " if where else ""
        raise ConfigError(head + ("; ".join(lines) if len(lines) == 1 else "\n  - " + "\n  - ".join(lines))) from None


def _explain(cls: type, fault: Any) -> str:
    path = [str(p) for p in fault["loc"]]
    dotted = ".".join(path)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(cls, path[:-1])
        return f"unknown key '{dotted}': {nearest(path[-1], known)}" if known else f"unknown key '{dotted}'"
    if fault["type"] in ("missing", "missing_argument"):
        return f"'{dotted}' is required"
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if fault["type"] == "value_error" else f" (given: {fault['input']!r})"
    return f"'{dotted}': {message}{given}" if dotted else message


def _fields_at(cls: Any, path: Sequence[str]) -> list[str]:
    """The field names of the dataclass that lies at `path` below `cls`; none if there is none."""
    for key in path:
        if key.isdigit():  # an item of a tuple or list
            cls = next(iter(typing.get_args(cls)), None)
        else:
            cls = typing.get_type_hints(cls).get(key) if dataclasses.is_dataclass(cls) else None
        cls = next((a for a in typing.get_args(cls) if dataclasses.is_dataclass(a)), cls) if _optional(cls) else cls
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _optional(cls: Any) -> bool:
    return type(None) in typing.get_args(cls)


def load(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, lay `--a.b value` options over it, check the whole. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from None
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, found {type(data).__name__}")
    return build(cls, override(data, overrides), where=str(path))


def override(data: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Lay command-line options (`--a.b value` or `--a.b=value`; values are YAML) over nested data."""
    result = _deep_copy(data)
    rest = list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ConfigError(f"cannot place {option!r}: options look like --training.steps 1000")
        key, has_value, value = option[2:].partition("=")
        if not has_value:
            if not rest:
                raise ConfigError(f"--{key} needs a value, as in --{key} VALUE")
            value = rest.pop(0)
        node = result
        *parents, leaf = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if isinstance(child, str):  # the short form of a part: `fuser: lstm`
                child = {"name": child}
            node[parent] = child = child if isinstance(child, dict) else {}
            node = child
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: {value!r} is not a YAML value: {error}") from None
    return result


def _deep_copy(value: Any) -> Any:
    return {k: _deep_copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value
