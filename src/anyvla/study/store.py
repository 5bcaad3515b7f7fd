"""The store of a study: one JSON line for each finished cell, small enough to be committed.

A line has all that tables and figures need: the labels of the cell, its costs, and the outcome of every episode. A cell
that failed has a line too, with its error. The last line of a cell counts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic

from anyvla.config import ConfigError, explain_fault
from anyvla.evaluation.results import EpisodeResult, append_line, read_json_lines

VERSION = 1
# invalid: its recipe is refused; failed: a part of it ended with an error; over: it would exceed the study's budget.
State = Literal["done", "failed", "invalid", "over"]
WON, LOST, ERROR = "1", "0", "-"


@dataclass(frozen=True, kw_only=True)
class Played:
    """The episodes of one policy in one task under one condition, as characters: 1 won, 0 lost, - simulator error."""

    benchmark: str
    condition: str
    task: str
    first_seed: int
    outcomes: str  # of the start states first_seed, first_seed + 1, ...; a space: not played
    completed: str = ""  # of chains: tasks solved in a row, one digit for each episode
    length: int = 1  # tasks of a chain
    obeyed: str = ""  # if another task was instructed: whether its goal was reached first, as `outcomes`


@dataclass(frozen=True, kw_only=True)
class CellLine:
    """The results of one cell."""

    study: str
    cell: str  # the name of its folder
    labels: Mapping[str, str]  # of every axis
    seed: int  # of the training
    state: State
    error: str = ""
    episodes: tuple[Played, ...] = ()
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by benchmark; must agree in comparisons
    costs: Mapping[str, float] = field(default_factory=dict)  # minutes.train, parameters, latency_ms, memory_gb, ...
    recipe: Mapping[str, Any] = field(default_factory=dict)  # the keys that differ from the study's base
    keys: Mapping[str, str] = field(default_factory=dict)  # the content keys of its parts
    versions: Mapping[str, str] = field(default_factory=dict)
    stopped: bool = False  # its evaluation ended early, because every comparison with the cell was decided
    time: str = ""  # when it ended, UTC
    version: int = VERSION

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=False)


def read_store(path: Path) -> list[CellLine]:
    """Return the last line of each cell, in the order of their first lines. Raises ConfigError for a damaged store."""
    adapter, found = pydantic.TypeAdapter(CellLine), dict[str, CellLine]()
    try:
        for number, line in read_json_lines(path):
            if line.get("version") != VERSION:
                raise ConfigError(
                    f"{path}, line {number}: a store of version {line.get('version')}, this anyvla reads {VERSION}: "
                    "run the study into another folder, or install the version that wrote it"
                )
            cell = adapter.validate_json(json.dumps(line))
            found[cell.cell] = cell
    except pydantic.ValidationError as error:
        faults = "; ".join(explain_fault(CellLine, fault) for fault in error.errors())
        raise ConfigError(f"{path}, line {number}: {faults}") from None
    except FileNotFoundError:
        raise ConfigError(f"there is no store {path}: anyvla study run makes it") from None
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from None
    return list(found.values())


def append_cell(path: Path, cell: CellLine) -> None:
    """Append the line of a cell, and return when it is on the disk."""
    append_line(path, dataclasses.asdict(cell))


def pack_results(results: list[EpisodeResult]) -> tuple[Played, ...]:
    """Return the outcomes of episodes in the short form of the store."""
    groups: dict[tuple[str, str, str], dict[int, EpisodeResult]] = {}
    for result in results:
        groups.setdefault((result.benchmark, result.condition, result.task), {})[result.seed] = result
    packed = []
    for (benchmark, condition, task), by_seed in sorted(groups.items()):
        first, last = min(by_seed), max(by_seed)
        played = [by_seed.get(seed) for seed in range(first, last + 1)]
        length = max(result.length for result in by_seed.values())
        packed.append(
            Played(
                benchmark=benchmark,
                condition=condition,
                task=task,
                first_seed=first,
                outcomes=_join(played, lambda result: result.success),
                completed="".join(" " if r is None else str(r.completed) for r in played) if length > 1 else "",
                length=length,
                obeyed=_join(played, lambda result: result.obeyed) if all(map(_judges_another, played)) else "",
            )
        )
    return tuple(packed)


def _judges_another(result: EpisodeResult | None) -> bool:
    return result is None or (result.instructed != result.task and result.judges_all)


def _join(played: Iterable[EpisodeResult | None], won: Callable[[EpisodeResult], bool]) -> str:
    """Return a character for each episode."""
    return "".join(" " if r is None else ERROR if r.outcome == "error" else WON if won(r) else LOST for r in played)
