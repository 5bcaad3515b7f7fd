"""Find the parts of a client's observation by their paths, such as "observation/image" or "images/cam_high"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from anyvla.serving.naming import join_names

MISSING: Any = object()
Part = Literal["camera", "proprio", "instruction"]
_SHOWN = 60  # characters of a key in a path that is shown; a message may repeat a long one before each of its leaves
_MARKERS = ("__ndarray__", "__image__", "__npgeneric__")  # of a map that is one value: an array, an image, a number


class MissingKeyError(ValueError):
    """A part of an observation that did not come. The message names the keys that did."""

    def __init__(self, part: Part, name: str, values: Mapping[str, Any], reason: str) -> None:
        """`name`: what did not come, "image 'wrist'"; `reason`: why it is needed."""
        super().__init__(
            f"the observation has no {name}, it has {describe_keys(values)}: {reason}; have the client send it, or "
            "name the client's key in --mapping"
        )
        self.part = part


def find(values: Any, path: str) -> Any:
    """Return the value at a path, or MISSING: first by the exact key, else within the map or list before the slash."""
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        first, slash, rest = path.partition("/")
        return find(values[first], rest) if slash and first in values and not is_leaf(values[first]) else MISSING
    if isinstance(values, list):
        first, slash, rest = path.partition("/")
        if first.isdecimal() and len(first) < 6 and int(first) < len(values):
            return find(values[int(first)], rest) if slash else values[int(first)]
    return MISSING


def is_leaf(value: Any) -> bool:
    """Return whether a value has no parts with paths of their own: it is no map, or one that writes an array."""
    if isinstance(value, list):
        return not any(isinstance(item, list | Mapping) or hasattr(item, "shape") for item in value)
    return not isinstance(value, Mapping) or any(marker in value for marker in _MARKERS)


def list_paths(values: Any, before: str = "") -> Iterator[str]:
    """Return the paths of all leaves, with long keys shortened."""
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        path = f"{before}{str(key)[:_SHOWN]}"
        if is_leaf(value):
            yield path
        else:
            yield from list_paths(value, f"{path}/")


def describe_keys(values: Mapping[str, Any]) -> str:
    """Return the paths of an observation for an error message."""
    return join_names(list(list_paths(values))) or "nothing"
