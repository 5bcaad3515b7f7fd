"""The rules of the advice: choices, their options with conditions and keys of a recipe, and the table of evidence."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, build
from anyvla.files.documents import read_yaml

Fact = bool | float | str
Facts = Mapping[str, Fact]
Kind = Literal["tuned", "lora", "scratch"]
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Option:
    """One option of a choice."""

    name: str
    why: str
    # Conditions are facts: a value, several texts, or a range [from, to].
    needs: dict[str, Any] = Field(default_factory=dict)  # without them, the option is impossible
    when: dict[str, Any] = Field(default_factory=dict)  # without them, the option is not preferred
    set: dict[str, Any] = Field(default_factory=dict)  # dotted keys of the recipe
    labels: tuple[str, ...] = ()  # other names on axes of studies
    kind: Kind | None = None  # of a backbone: how its weights are trained
    parameters: float = 0  # of a backbone
    trained: float = 0
    call_ms: tuple[float, str] | None = None  # of a backbone: the time of a chunk, and its evidence
    epochs: float | None = None  # of a training
    least_steps: int = 1

    def possible(self, facts: Facts) -> bool:
        """Return whether the needs are met. Raises KeyError for a fact that does not exist."""
        return all(_holds(facts[name], wanted) for name, wanted in self.needs.items())

    def preferred(self, facts: Facts) -> bool:
        """Return whether all conditions hold. Raises KeyError for a fact that does not exist."""
        return self.possible(facts) and all(_holds(facts[name], wanted) for name, wanted in self.when.items())

    def named(self, label: str) -> bool:
        """Return whether a label of a study means this option."""
        return label == self.name or label in self.labels


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Choice:
    """One choice, with its options in order of preference."""

    name: str
    options: tuple[Option, ...]
    axes: tuple[str, ...] = ()  # of studies that compare its options
    comparisons: tuple[str, ...] = ()  # on other axes that do, as study.comparison
    # Benchmarks whose findings count only under conditions, such as one that cannot be solved without a memory.
    only_if: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def counts(self, benchmarks: Iterable[str], facts: Facts) -> bool:
        """Return whether findings on these benchmarks apply to a situation."""
        conditions = [self.only_if.get(benchmark, {}) for benchmark in benchmarks]
        return all(_holds(facts[name], wanted) for needed in conditions for name, wanted in needed.items())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RateRule:
    """How many actions are predicted and executed."""

    margin: float
    least_s: float
    least_execute: int
    chunk_of_execute: int
    longest: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """All rules, see rules.yaml."""

    rate: RateRule
    fitting: tuple[str, ...]  # keys that a plan may change to make a training fit
    least_at_once: int  # samples of a batch in parts, if another change allows as many
    choices: tuple[Choice, ...]

    def choice(self, name: str) -> Choice:
        """Return a choice by name."""
        return next(choice for choice in self.choices if choice.name == name)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evidence:
    """A published or own result, see evidence.yaml."""

    id: str
    choice: str
    paper: str
    number: str
    setting: str
    favors: tuple[str, ...]
    checked: bool
    arxiv: str | None = None

    def describe(self) -> str:
        """Return the result with its source and setting."""
        source = f"{self.paper} ({self.arxiv})" if self.arxiv else self.paper
        return f"{source}: {self.number} [{self.setting}]{'' if self.checked else ' (not checked against its source)'}"


@functools.cache
def read_rules() -> Rules:
    """Return the rules."""
    return build(Rules, read_yaml(_FOLDER / "rules.yaml"), where="rules.yaml")


@functools.cache
def read_evidence() -> Mapping[str, Evidence]:
    """Return the table of results by id."""
    found = [build(Evidence, row, where="evidence.yaml") for row in read_yaml(_FOLDER / "evidence.yaml")]
    return {row.id: row for row in found}


def _holds(fact: Fact, wanted: Any) -> bool:
    if not isinstance(wanted, list):
        return fact == wanted
    if all(isinstance(value, str) for value in wanted):
        return fact in wanted
    low, high = wanted
    return (low is None or float(fact) >= low) and (high is None or float(fact) <= high)
