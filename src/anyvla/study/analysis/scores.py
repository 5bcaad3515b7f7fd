"""Read the scores of policies from the lines of a store, on a common list of start states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from anyvla.config import ConfigError
from anyvla.evaluation.comparison import protocol_differences
from anyvla.evaluation.conditions import OF_ANOTHER_TASK, parse
from anyvla.registry import suggest
from anyvla.study.file import SEED, Comparison, matches
from anyvla.study.store import ERROR, CellLine, Played

Measure = Literal["success", "obeyed", "length"]
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
    largest: float = 1.0  # possible score: 1, or the tasks of a chain
    paired: bool = False  # its start states are pairs of episodes


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of policies on start states.

    Tasks of a pair, which a benchmark declares, make one start state with their mean: a policy that cannot tell them
    apart solves one of the two, so that they are no independent episodes.
    """

    policies: tuple[Policy, ...]
    states: tuple[State, ...]  # ordered by seed, then task, as they are played
    values: Float[np.ndarray, "P C"]  # NaN: not played, or a simulator error
    errors: Bool[np.ndarray, "P C"]  # simulator errors

    def find_largest(self, numbers: Iterable[int]) -> float:
        """Return the largest possible score of some of the policies."""
        return max((self.policies[number].largest for number in numbers), default=1.0)


def read_scores(
    lines: Iterable[CellLine],
    benchmark: str | None,
    conditions: Sequence[str],
    measure: Measure = "success",
    tasks: Sequence[str] = (),
) -> Scores:
    """Return the scores of the finished cells that played a benchmark (None: each cell's first) under the conditions.

    Each cell gives one policy for each condition that it played. `tasks`: only these tasks or groups; empty: all.
    Raises ConfigError for a task that the benchmark does not have.
    """
    policies: list[Policy] = []
    of_policies: list[dict[State, float]] = []
    for line in lines:
        chosen = benchmark or first_benchmark(line)
        protocol = {"benchmark": chosen, **line.protocols.get(str(chosen), {})}
        names = _name_pairs(protocol)
        for condition in conditions:
            own = [p for p in line.episodes if p.benchmark == chosen and p.condition == condition]
            if line.state != "done" or not own:
                continue
            if tasks:
                allowed = _find_tasks(tasks, protocol, [p.task for p in own])
                own = [p for p in own if p.task in allowed]
            largest = float(max((p.length for p in own), default=1)) if measure == "length" else 1.0
            labels = plain_labels(line)
            policies.append(
                Policy(line.cell, labels, line.seed, condition, protocol, line.stopped, largest, bool(names))
            )
            of_policies.append(_merge_pairs({p.task: _read(p, measure) for p in own}, names))
    states = sorted({state for scored in of_policies for state in scored}, key=lambda state: (state[1], state[0]))
    values = np.full((len(policies), len(states)), np.nan)
    errors = np.zeros(values.shape, bool)
    index = {state: number for number, state in enumerate(states)}
    for row, scored in enumerate(of_policies):
        at = [index[state] for state in scored]
        values[row, at] = np.fromiter(scored.values(), float, len(scored))
        errors[row, at] = np.isnan(values[row, at])
    return Scores(tuple(policies), tuple(states), values, errors)


def read_compared(comparison: Comparison, lines: Iterable[CellLine]) -> Scores:
    """Return the scores of the finished cells that a comparison is about. Raises ConfigError as `read_scores` does."""
    conditions = [comparison.condition, *filter(None, [comparison.other_condition])]
    own = [line for line in lines if matches(plain_labels(line), comparison.where)]
    return read_scores(own, comparison.benchmark, conditions, comparison.measure, comparison.tasks)


def keep_task(scores: Scores, task: str) -> Scores:
    """Return the scores on the start states of one task, or pair of tasks."""
    own = np.array([name == task for name, _ in scores.states])
    states = tuple(state for state in scores.states if state[0] == task)
    return replace(scores, states=states, values=scores.values[:, own], errors=scores.errors[:, own])


def first_benchmark(line: CellLine) -> str | None:
    """Return the benchmark of the cell's own recipe: the first with a protocol. None if it played none."""
    return next(iter(line.protocols), None) or (line.episodes[0].benchmark if line.episodes else None)


def plain_labels(line: CellLine) -> dict[str, str]:
    """Return the labels of a cell without its training seed."""
    return {axis: label for axis, label in line.labels.items() if axis != SEED}


def protocol_faults(policies: Sequence[Policy]) -> list[str]:
    """Return the differences between the protocol of the first policy and those of the others."""
    found = (fault for other in policies[1:] for fault in protocol_differences(policies[0].protocol, other.protocol))
    return list(dict.fromkeys(found))


def check_protocols(policies: Sequence[Policy]) -> None:
    """Raise ConfigError with the differences if policies were evaluated under different protocols."""
    for other in policies[1:]:
        if faults := protocol_faults([policies[0], other]):
            raise ConfigError(
                f"{policies[0].cell} and {other.cell} were evaluated under different protocols and cannot be "
                f"compared: {'; '.join(faults)}"
            )


def _name_pairs(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of its pair for each task that has one: that of a group of the two, or both names."""
    groups = {tuple(tasks): name for name, tasks in protocol.get("groups", {}).items()}
    pairs = [tuple(pair) for pair in protocol.get("pairs", ())]
    return {task: groups.get(pair, ", ".join(pair)) for pair in pairs for task in pair}


def _find_tasks(wanted: Sequence[str], protocol: Mapping[str, Any], played: Sequence[str]) -> set[str]:
    """Return the tasks that are named, also by their group."""
    groups = protocol.get("groups", {})
    for name in wanted:
        if name not in groups and name not in played:
            known = suggest(name, [*played, *groups])
            raise ConfigError(f"tasks: {protocol['benchmark']} has no task or group {name!r}: {known}")
    return {task for name in wanted for task in groups.get(name, [name])}


def _merge_pairs(of_tasks: Mapping[str, Mapping[int, float]], names: Mapping[str, str]) -> dict[State, float]:
    """Return the scores by start state, with the mean of a pair where both of its tasks were played."""
    found: dict[State, list[float]] = {}
    for task, scored in of_tasks.items():
        for seed, value in scored.items():
            found.setdefault((names.get(task, task), seed), []).append(value)
    paired = set(names.values())
    return {
        state: sum(values) / len(values) for state, values in found.items() if len(values) == 1 + (state[0] in paired)
    }


def _read(played: Played, measure: Measure) -> dict[int, float]:
    """Return the scores of the start states that were played, with NaN for simulator errors.

    Raises ConfigError if it is not recorded whether an instruction for another task was obeyed.
    """
    marks = played.completed if measure == "length" and played.length > 1 else played.outcomes
    if measure == "obeyed" and parse(played.condition).language in OF_ANOTHER_TASK:
        if not played.obeyed:
            raise ConfigError(
                f"measure obeyed: {played.benchmark} does not judge the instructed goal under {played.condition}, or "
                "an earlier anyvla wrote this store; compare success there"
            )
        marks = played.obeyed
    found = {}
    for seed, (outcome, mark) in enumerate(zip(played.outcomes, marks, strict=True), start=played.first_seed):
        if outcome == ERROR:
            found[seed] = math.nan
        elif outcome != _NOT_PLAYED:
            found[seed] = float(mark)  # WON is 1, LOST is 0
    return found
