"""A study: one YAML file with a question, a grid of recipes, and the comparisons that will answer the question.

The comparisons are part of the file, so that they are chosen before the results are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError, build, read_options
from anyvla.limits import EPISODES, GB, WEIGHT
from anyvla.limits import SEED as SEEDS
from anyvla.registry import suggest

VERSION = 1  # of the file
SEED = "seed"  # the axis that every study has
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Labels = dict[str, str | list[str]]  # of axes: one label, or several


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Comparison:
    """One question to the results, chosen before the study runs."""

    name: str = Field(min_length=1)
    # difference: of labels of an axis, from `base`. curve: over an axis of numbers. interaction: whether the difference
    # depends on the label of the axis `by`. gap: between two conditions, for each label. cost: success against cost.
    kind: Literal["difference", "curve", "interaction", "gap", "cost"] = "difference"
    axis: str
    base: str | None = None  # the label that others are compared with; None: the first one
    against: tuple[str, ...] = ()  # the other labels; empty: all
    by: str | None = None  # another axis: one comparison for each of its labels, or with which it interacts
    where: Labels = Field(default_factory=dict)  # only cells with these labels
    benchmark: str | None = None  # of several; None: each cell's first
    tasks: tuple[str, ...] = ()  # only these tasks or groups of the benchmark; empty: all
    condition: str = "original"
    other_condition: str | None = None  # of a gap
    # success: the task's own goal is reached. obeyed: the instructed one is reached first, which differs from it under
    # swapped. length: tasks of a chain solved in a row
    measure: Literal["success", "obeyed", "length"] = "success"
    claim: str = ""  # the result of others, with the source

    def __post_init__(self) -> None:
        if (self.kind == "gap") != (self.other_condition is not None):
            raise ValueError(f"{self.name!r}: other_condition belongs to comparisons of kind gap, which need it")
        if self.kind == "interaction" and self.by is None:
            raise ValueError(f"{self.name!r}: an interaction needs a second axis: by")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Benchmark:
    """A further evaluation of each policy, beside that of its recipe."""

    benchmark: str
    environment: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)  # keys of the section evaluation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Budget:
    """The limits of one job, such as a training. A job that needs more fails, with that reason."""

    minutes: float = Field(default=24 * 60, gt=0, le=WEIGHT)
    memory_gb: float | None = Field(default=None, gt=0, le=GB)  # None: half of the machine's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stop:
    """End evaluations early once every comparison with the cell is decided."""

    error: float = Field(default=0.05, gt=0, lt=1)  # the chance that any comparison is decided wrongly
    block: int = Field(default=5, ge=1, le=EPISODES)  # episodes per task between two looks


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StudyFile:
    """A study, see docs/studies.md."""

    name: str = Field(min_length=1)
    question: str = Field(min_length=1)
    base: str  # a recipe: the name of a bundled one, or a path, relative to this file
    set: dict[str, Any] = Field(default_factory=dict)  # keys of the recipe, laid over the base
    # A field of a recipe with its values, as model.chunk: [4, 8], or with named values; or any other name, with named
    # sets of keys of the recipe.
    axes: dict[str, list[Any] | dict[str, Any]] = Field(min_length=1)
    exclude: tuple[Labels, ...] = ()  # cells that have all of these labels
    seeds: tuple[Annotated[int, Field(ge=0, le=SEEDS)], ...] = Field(
        default=(0, 1, 2), min_length=1
    )  # of the trainings
    benchmarks: tuple[Benchmark, ...] = ()
    comparisons: tuple[Comparison, ...] = Field(min_length=1)
    budget: Budget = Budget()
    stop: Stop | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} cannot name a folder: use letters, digits and - _ .")
        if self.version != VERSION:
            raise ValueError(f"version: this anyvla reads studies of version {VERSION}, not {self.version}")
        if SEED in self.axes:
            raise ValueError("axes: 'seed' is an axis of every study: give the values as seeds: [0, 1, 2]")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: different numbers are needed, got {list(self.seeds)}")
        names = [comparison.name for comparison in self.comparisons]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"comparisons: {double[0]!r} is there twice")
        for axis in self.axes:
            self.labels(axis)
        for number, given in enumerate(self.exclude):
            self._check_labels(given, f"exclude, entry {number}")
        for comparison in self.comparisons:
            self._check_comparison(comparison)

    def labels(self, axis: str) -> tuple[str, ...]:
        """Return the labels of an axis, in the order of the file. Raises ValueError for one without a label."""
        values = self.axes[axis]
        if not values:
            raise ValueError(f"axes: {axis!r} has no values")
        found = tuple(map(str, values)) if isinstance(values, dict) else tuple(_label(axis, value) for value in values)
        if double := sorted({label for label in found if found.count(label) > 1}):
            raise ValueError(f"axes: {axis!r} has the label {double[0]!r} twice: name its values, as in {{small: ...}}")
        return found

    def _check_comparison(self, of: Comparison) -> None:
        where = f"comparisons: {of.name!r}"
        for axis in filter(None, (of.axis, of.by)):
            self._check_axis(axis, where)
        self._check_labels({of.axis: [label for label in (of.base, *of.against) if label is not None]}, where)
        self._check_labels(of.where, where)
        if of.kind == "curve" and not all(_is_number(label) for label in self.labels(of.axis)):
            raise ValueError(f"{where}: a curve needs an axis of numbers, and {of.axis!r} has {self.labels(of.axis)}")

    def _check_axis(self, axis: str, where: str) -> None:
        if axis not in self.axes:
            raise ValueError(f"{where}: there is no axis {axis!r}: {suggest(axis, list(self.axes))}")

    def _check_labels(self, given: Mapping[str, str | Sequence[str]], where: str) -> None:
        for axis, wanted in given.items():
            self._check_axis(axis, where)
            for label in [wanted] if isinstance(wanted, str) else wanted:
                if label not in self.labels(axis):
                    known = suggest(label, self.labels(axis))
                    raise ValueError(f"{where}: the axis {axis!r} has no label {label!r}: {known}")


def read_study(path: Path, overrides: Sequence[str] = ()) -> StudyFile:
    """Return the study of a file, with `--seeds '[0]'` and such laid over it. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"there is no study file {path}")
    return build(StudyFile, read_options(path, overrides), where=str(path))


def matches(labels: Mapping[str, str], wanted: Mapping[str, str | Sequence[str]]) -> bool:
    """Return whether a cell has these labels, or one of several for an axis."""
    return all(labels[axis] in ([some] if isinstance(some, str) else some) for axis, some in wanted.items())


def _label(axis: str, value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    if isinstance(value, str | int | float | bool) or value is None:
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    raise ValueError(f"axes: a value of {axis!r} has no short name: give named values, as in {axis}: {{small: ...}}")


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
