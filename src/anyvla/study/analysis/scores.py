"""Read the scores of policies from the lines of a store, on a common list of start states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from anyvla.config import ConfigError
from anyvla.evaluation.comparison import protocol_differences
from anyvla.study.file import SEED
from anyvla.study.store import ERROR, WON, CellLine, Played

Measure = Literal["success", "length"]
State = tuple[str, int]  # a start state: task and seed
_NOT_PLAYED = " "


@dataclass(frozen=True)
class Policy:
    """One trained policy under one condition."""

    cell: str
    labels: Mapping[str, str]  # of every axis, without the seed
    seed: int  # of the training
    condition: str
    protocol: Mapping[str, Any]  # with the name of the benchmark
    stopped: bool  # its episodes ended early


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of policies on start states."""

    policies: tuple[Policy, ...]
    states: tuple[State, ...]  # ordered by seed, then task, as they are played
    values: Float[np.ndarray, "P C"]  # NaN: not played, or a simulator error
    errors: Bool[np.ndarray, "P C"]  # simulator errors
    largest: float  # possible score: 1, or the tasks of a chain


def read_scores(
    lines: Iterable[CellLine], benchmark: str | None, conditions: Sequence[str], measure: Measure = "success"
) -> Scores:
    """Return the scores of the finished cells that played a benchmark (None: each cell's first) under the conditions.

    Each cell gives one policy for each condition that it played.
    """
    policies: list[Policy] = []
    of_policies: list[dict[State, float]] = []
    longest = 1
    for line in lines:
        chosen = benchmark or first_benchmark(line)
        for condition in conditions:
            own = [p for p in line.episodes if p.benchmark == chosen and p.condition == condition]
            if line.state != "done" or not own:
                continue
            protocol = {"benchmark": chosen, **line.protocols.get(str(chosen), {})}
            policies.append(Policy(line.cell, plain_labels(line), line.seed, condition, protocol, line.stopped))
            of_policies.append({state: value for played in own for state, value in _read(played, measure)})
            longest = max(longest, *(played.length for played in own))
    states = sorted({state for own in of_policies for state in own}, key=lambda state: (state[1], state[0]))
    values = np.full((len(policies), len(states)), np.nan)
    errors = np.zeros(values.shape, bool)
    index = {state: number for number, state in enumerate(states)}
    for row, scored in enumerate(of_policies):
        at = [index[state] for state in scored]
        own_values = np.fromiter(scored.values(), float, len(scored))
        values[row, at] = own_values
        errors[row, at] = np.isnan(own_values)
    return Scores(tuple(policies), tuple(states), values, errors, float(longest) if measure == "length" else 1.0)


def first_benchmark(line: CellLine) -> str | None:
    """Return the benchmark of the cell's own recipe: the first with a protocol. None if it played none."""
    return next(iter(line.protocols), None) or (line.episodes[0].benchmark if line.episodes else None)


def plain_labels(line: CellLine) -> dict[str, str]:
    """Return the labels of a cell without its training seed."""
    return {axis: label for axis, label in line.labels.items() if axis != SEED}


def check_protocols(policies: Sequence[Policy]) -> None:
    """Raise ConfigError with the differences if policies were evaluated under different protocols."""
    for other in policies[1:]:
        if faults := protocol_differences(policies[0].protocol, other.protocol):
            raise ConfigError(
                f"{policies[0].cell} and {other.cell} were evaluated under different protocols and cannot be "
                f"compared: {'; '.join(faults)}"
            )


def _read(played: Played, measure: Measure) -> list[tuple[State, float]]:
    """Return the start states that were played, with NaN for simulator errors."""
    marks = played.completed if measure == "length" and played.length > 1 else played.outcomes
    found = []
    for number, (outcome, mark) in enumerate(zip(played.outcomes, marks, strict=True)):
        if outcome == _NOT_PLAYED:
            continue
        if outcome == ERROR:
            value = float("nan")
        elif marks is played.completed:
            value = float(mark)
        else:
            value = float(mark == WON)
        found.append(((played.task, played.first_seed + number), value))
    return found
