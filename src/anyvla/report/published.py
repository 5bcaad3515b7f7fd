"""Read published numbers and compare their protocols with ours.

A number is comparable only if its source states everything that comparable scores must share, with our values. All
other numbers are shown with what differs or is not stated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError, build
from anyvla.files.documents import read_yaml

FILE = Path(__file__).with_name("published.yaml")
# Keys of a result's protocol that a source must state before its number counts as comparable.
NEEDED = ("horizon", "episodes", "settings.render", "settings.cameras")

Measure = Literal["episodes", "groups", "length"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishedResult:
    """A published number."""

    benchmark: str  # "libero"
    suites: tuple[str, ...]  # several: the number is their average
    system: str
    measure: Measure  # episodes: over all; groups: mean over the suite's groups; length: tasks of a chain in a row
    number: float
    unit: Literal["%", "tasks"]
    source: str  # where it was published
    checked: bool  # whether it was read at its source
    protocol: Mapping[str, Any]  # as the source states it, under the keys of a result's protocol

    def __post_init__(self) -> None:
        highest = 100 if self.unit == "%" else 5
        if not 0 <= self.number <= highest:
            raise ValueError(f"number: {self.system} has {self.number} {self.unit}, which is outside 0..{highest}")
        if (self.unit == "tasks") != (self.measure == "length"):
            raise ValueError(f"unit: {self.system} measures {self.measure}, which is not given in {self.unit!r}")
        if not self.suites:
            raise ValueError(f"suites: {self.system} names none")


@plain_dataclass(frozen=True)
class ProtocolMatch:
    """Differences between the protocol of a published number and ours."""

    differs: Sequence[str]  # "horizon: 300, ours 220"
    unstated: Sequence[str]  # "settings.render"

    @property
    def same(self) -> bool:
        """Whether the two numbers may be compared."""
        return not self.differs and not self.unstated


@cache
def read_published(path: Path = FILE) -> tuple[PublishedResult, ...]:
    """Return all published numbers. Raises ConfigError with the number of an invalid entry."""
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of published numbers, found {type(entries).__name__}")
    return tuple(build(PublishedResult, entry, where=f"{path.name}, entry {i}") for i, entry in enumerate(entries, 1))


def find_published(benchmark: str, path: Path = FILE) -> list[PublishedResult]:
    """Return the numbers for a benchmark as results name it ("libero/goal"), best first."""
    name, _, suite = benchmark.partition("/")
    found = [p for p in read_published(path) if p.benchmark == name and suite in p.suites]
    return sorted(found, key=lambda p: (p.measure, -p.number))


def match_protocol(published: PublishedResult, protocol: Mapping[str, Any]) -> ProtocolMatch:
    """Compare the protocol of a published number with `protocol`, which our results have."""
    stated = dict(flatten(published.protocol))
    differs = []
    if len(published.suites) > 1:
        differs.append(f"the average of {', '.join(published.suites)}")
    for key, value in stated.items():
        ours = protocol
        for part in key.split("."):
            ours = ours.get(part, {}) if isinstance(ours, Mapping) else {}
        if ours != value:
            differs.append(f"{key}: {format_value(value)}, ours {format_value(ours)}")
    return ProtocolMatch(differs, [key for key in NEEDED if key not in stated])


def flatten(protocol: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of a protocol under dotted keys; `cameras` is a single entry."""
    for key, value in protocol.items():
        if isinstance(value, Mapping) and key != "cameras":
            yield from flatten(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def describe_protocols(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the entries as text, as "settings.render": "fast". If protocols differ, all values are listed."""
    found: dict[str, dict[str, None]] = {}
    for protocol in protocols:
        for key, value in flatten(protocol):
            shown = ", ".join(map(_format_item, value)) if isinstance(value, list) else format_value(value)
            found.setdefault(key, {})[shown or "none"] = None
    return {key: "; ".join(values) for key, values in found.items()}


def _format_item(item: Any) -> str:
    return " and ".join(map(str, item)) if isinstance(item, list) else str(item)


def format_value(value: Any) -> str:
    """Format a value of a protocol: "agentview 256x256"."""
    if value == {}:
        return "not given"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {'x'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items())
    return str(value)
