"""Published numbers beside ours: from where each is, whether it was read there, and how its protocol differs.

A number is comparable only where all that makes scores comparable is stated by its source and is the same as ours;
everything else is shown with what differs or is not said.
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
# Of a result line's protocol, what a source must state before its number counts as played in the same way.
NEEDED = ("horizon", "episodes", "settings.render", "settings.cameras")

Measure = Literal["episodes", "groups", "length"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PublishedResult:
    """A number that somebody has published."""

    benchmark: str  # "libero"
    suites: tuple[str, ...]  # of the benchmark; more than one: the number is their average
    system: str
    measure: Measure  # episodes: over all; groups: mean over the suite's groups; length: tasks of a chain in a row
    number: float
    unit: Literal["%", "tasks"]
    source: str  # where it stands
    checked: bool  # whether it was read there
    protocol: Mapping[str, Any]  # what the source states, in the keys of a result line's protocol

    def __post_init__(self) -> None:
        highest = 100 if self.unit == "%" else 5
        if not 0 <= self.number <= highest:
            raise ValueError(f"number: {self.system} has {self.number} {self.unit}, which lies outside of 0..{highest}")
        if (self.unit == "tasks") != (self.measure == "length"):
            raise ValueError(f"unit: {self.system} measures {self.measure}, which is not given in {self.unit!r}")
        if not self.suites:
            raise ValueError(f"suites: {self.system} names none")


@plain_dataclass(frozen=True)
class ProtocolMatch:
    """How a published number's protocol lies to ours."""

    differs: Sequence[str]  # "horizon: 300, ours 220"
    unstated: Sequence[str]  # "settings.render"

    @property
    def same(self) -> bool:
        """Whether the two numbers may be compared."""
        return not self.differs and not self.unstated


@cache
def read_published(path: Path = FILE) -> tuple[PublishedResult, ...]:
    """All that is known. Raises ConfigError that names the entry for one that is not well made."""
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: expected a list of published numbers, found {type(entries).__name__}")
    return tuple(build(PublishedResult, entry, where=f"{path.name}, entry {i}") for i, entry in enumerate(entries, 1))


def find_published(benchmark: str, path: Path = FILE) -> list[PublishedResult]:
    """The numbers for `benchmark` as it stands in a result line ("libero/goal"), best first."""
    name, _, suite = benchmark.partition("/")
    found = [p for p in read_published(path) if p.benchmark == name and suite in p.suites]
    return sorted(found, key=lambda p: (p.measure, -p.number))


def fit(published: PublishedResult, protocol: Mapping[str, Any]) -> ProtocolMatch:
    """What of its protocol is not as in `protocol`, that of our result lines, and what its source does not state."""
    stated = dict(flat(published.protocol))
    differs = []
    if len(published.suites) > 1:
        differs.append(f"the average of {', '.join(published.suites)}")
    for key, value in stated.items():
        ours = protocol
        for part in key.split("."):
            ours = ours.get(part, {}) if isinstance(ours, Mapping) else {}
        if ours != value:
            differs.append(f"{key}: {short(value)}, ours {short(ours)}")
    return ProtocolMatch(differs, [key for key in NEEDED if key not in stated])


def flat(protocol: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """What a protocol states, under dotted keys; cameras are one statement."""
    for key, value in protocol.items():
        if isinstance(value, Mapping) and key != "cameras":
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def describe_protocols(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What they state for people, as "settings.render": "fast"; where they do not agree, every value that occurs."""
    found: dict[str, dict[str, None]] = {}
    for protocol in protocols:
        for key, value in flat(protocol):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else short(value)
            found.setdefault(key, {})[shown or "none"] = None
    return {key: "; ".join(values) for key, values in found.items()}


def short(value: Any) -> str:
    """A value of a protocol for people: "agentview 256x256"."""
    if value == {}:
        return "not given"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {'x'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items())
    return str(value)
