"""Expand a study into its cells: one recipe for each combination of labels and each training seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError, merge, override_keys, read_options
from anyvla.recipe import Recipe, build_recipe, find
from anyvla.registry import suggest
from anyvla.stages import Stage, build_stages
from anyvla.study.file import SEED, Comparison, StudyFile, matches

_SECTIONS = ("benchmark", "environment", "collect", "data", "model", "training", "evaluation", "stages")


@dataclass(frozen=True)
class Cell:
    """One combination of labels with one training seed."""

    name: str  # of its folder; unique in the study
    labels: Mapping[str, str]  # of every axis
    seed: int
    changes: Mapping[str, Any]  # the keys of the recipe that differ from the study's base
    stages: tuple[Stage, ...] = ()  # of its recipe, in order; one without a chain; none if it is invalid
    invalid: str = ""  # why its recipe is refused

    @property
    def recipe(self) -> Recipe:
        """The recipe whose policy is evaluated: that of the last stage."""
        return self.stages[-1].recipe


def expand(study: StudyFile, source: Path) -> list[Cell]:
    """Return all cells of a study file, without the excluded ones. `source`: the file.

    A cell whose recipe is refused is `invalid`. Raises ConfigError if an axis names no field of a recipe, and if no
    cell is valid.
    """
    base = read_base(study, source)
    for axis in study.axes:
        _check_axis(study, axis)
    cells = [
        _make_cell(study, base, labels, seed)
        for seed in study.seeds  # the outer loop: an unfinished study has whole comparisons of its first seeds
        for labels in _combine(study)
        if not any(matches(labels, excluded) for excluded in study.exclude)
    ]
    if not cells:
        raise ConfigError(f"{source}: the study has no cell: exclude leaves nothing of its axes")
    if all(cell.invalid for cell in cells):
        reasons = list(dict.fromkeys(cell.invalid for cell in cells))
        raise ConfigError(f"{source}: no cell of the study is valid. The first reason of {len(reasons)}: {reasons[0]}")
    names = Counter(cell.name for cell in cells)
    if double := [name for name, count in names.items() if count > 1]:
        raise ConfigError(
            f"{source}: several cells would have the folder {double[0]}: give labels that differ in letters"
        )
    for comparison in study.comparisons:
        _check_comparison(comparison, cells, source)
    return cells


def read_base(study: StudyFile, source: Path) -> dict[str, Any]:
    """Return the keys of the base recipe with those of `set` laid over them. Raises ConfigError."""
    keys = read_options(find_base(study, source))
    for key, value in study.set.items():  # a single value may also be that of an item of a list: data.sources.0.weight
        keys = merge(keys, _nest({key: value})) if isinstance(value, Mapping) else override_keys(keys, [(key, value)])
    return keys


def find_base(study: StudyFile, source: Path) -> Path:
    """Return the file of the base recipe: one beside the study's file, or a bundled one. Raises ConfigError."""
    beside = source.parent / study.base
    return beside if beside.is_file() else find(study.base)


def _combine(study: StudyFile) -> Iterator[dict[str, str]]:
    for labels in itertools.product(*(study.labels(axis) for axis in study.axes)):
        yield dict(zip(study.axes, labels, strict=True))


def _check_axis(study: StudyFile, axis: str) -> None:
    """Refuse a list of values for a name that is no field, and keys of a recipe that no recipe has."""
    values, is_field = study.axes[axis], axis.partition(".")[0] in _SECTIONS
    if is_field:
        return
    if not isinstance(values, dict):
        known = [key for key in _fields() if "." in key]
        raise ConfigError(
            f"axes: {axis!r} is no field of a recipe: {suggest(axis, known)}. An axis of another name needs named sets "
            "of keys, as in history: {none: {model: {history: none}}}"
        )
    for label, keys in values.items():
        if not isinstance(keys, Mapping):
            raise ConfigError(f"axes: {axis!r}, {label!r}: keys of a recipe are needed, as in {{model: {{chunk: 8}}}}")
        for key in keys:
            section = key.partition(".")[0]
            if section not in _SECTIONS:
                raise ConfigError(
                    f"axes: {axis!r}, {label!r}: {key!r} is no key of a recipe: {suggest(section, _SECTIONS)}"
                )


@cache
def _fields() -> tuple[str, ...]:
    from anyvla.config import keys_below

    return tuple(keys_below(Recipe))


def _make_cell(study: StudyFile, base: Mapping[str, Any], labels: Mapping[str, str], seed: int) -> Cell:
    name = ",".join([*(f"{axis.rpartition('.')[2]}={label}" for axis, label in labels.items()), f"{SEED}={seed}"])
    name = "".join(c if c.isalnum() or c in "=,._-" else "-" for c in name)
    changes: dict[str, Any] = {}
    for axis, label in labels.items():
        changes = _lay(changes, axis, _value(study, axis, label))
    changes = override_keys(changes, [("training.seed", seed)])
    keys = {**merge(base, changes), "name": name}
    try:
        stages = _read(keys, name, seed)
        if _begins_alike(keys, stages):
            changes = override_keys(changes, [("model.backbone.seed", seed)])
            stages = _read({**merge(base, changes), "name": name}, name, seed)
        return Cell(name, labels, seed, changes, stages)
    except ConfigError as error:
        reason = str(error).removeprefix(name).lstrip(":, ")  # the same for all cells that it concerns
        return Cell(name, labels, seed, changes, invalid=reason)


def _begins_alike(keys: Mapping[str, Any], stages: Sequence[Stage]) -> bool:
    """Return whether the first weights of the backbone would be the same with each training seed, but need not be."""
    backbone = keys["model"]["backbone"]
    chosen = isinstance(backbone, Mapping) and "seed" in backbone
    return not chosen and hasattr(stages[-1].recipe.model.backbone.config, "seed")


def _lay(changes: dict[str, Any], axis: str, value: Any) -> dict[str, Any]:
    """Lay the value of an axis over the keys so far."""
    return merge(changes, _nest({axis: value} if axis.partition(".")[0] in _SECTIONS else value))


def _nest(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested keys for dotted ones."""
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        nested = merge(nested, override_keys({}, [(key, value)]))
    return nested


def _value(study: StudyFile, axis: str, label: str) -> Any:
    values = study.axes[axis]
    if isinstance(values, dict):
        return next(value for key, value in values.items() if str(key) == label)
    return values[study.labels(axis).index(label)]


def _read(keys: Mapping[str, Any], where: str, seed: int) -> tuple[Stage, ...]:
    if keys.get("stages"):
        return build_stages(keys, [("training.seed", seed)], where)
    return (Stage("", build_recipe(keys, where), trains=True),)


def _check_comparison(comparison: Comparison, cells: list[Cell], source: Path) -> None:
    """Refuse a comparison for which there are no valid cells."""
    chosen = [cell for cell in cells if matches(cell.labels, comparison.where)]
    found = {cell.labels[comparison.axis] for cell in chosen if not cell.invalid}
    wanted = {label for label in (comparison.base, *comparison.against) if label is not None}
    least = 1 if comparison.kind in ("gap", "cost") else 2
    if len(found) >= least and wanted <= found:
        return
    missing = sorted(wanted - found)
    needed = f"the label {missing[0]!r}" if missing else f"{least} labels"
    refused = [cell for cell in chosen if cell.invalid and (not missing or cell.labels[comparison.axis] == missing[0])]
    reason = f". The recipe of {refused[0].name} is refused: {refused[0].invalid}" if refused else ""
    raise ConfigError(
        f"{source}: comparisons: {comparison.name!r} needs valid cells with {needed} of {comparison.axis!r}; there are "
        f"{', '.join(sorted(found)) or 'none'}{reason}"
    )
