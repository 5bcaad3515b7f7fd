"""Turn the comparisons of a study into contrasts of scores, and match the cells that they need.

A contrast is a weighted sum of scores on one start state, as B - A. It is formed within a row: the cells that agree in
all other labels and in the training seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Shaped

from anyvla.config import ConfigError
from anyvla.evaluation.comparison import FEWEST
from anyvla.study.analysis.scores import Policy, Scores, check_protocols
from anyvla.study.file import Comparison, Labels, StudyFile, matches

Key = tuple[str, ...]  # labels of the contrast's axes, or a condition


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of scores that is 0 if nothing differs."""

    name: str  # "head gru against none, with window 8"
    terms: Mapping[Key, float]
    axes: tuple[str, ...]  # whose labels make a key; none: the condition is the key
    where: Labels = field(default_factory=dict)
    group: Mapping[str, str] = field(default_factory=dict)  # the label of the axis `by`; of a gap, of its axis too
    per: str = ""  # of a trend: " per label"

    @property
    def largest(self) -> float:
        """The largest possible absolute value for scores between 0 and 1."""
        weights = self.terms.values()
        return max(sum(w for w in weights if w > 0), -sum(w for w in weights if w < 0))

    def find_key(self, policy: Policy) -> Key:
        """Return the term to which a policy belongs."""
        return tuple(policy.labels[axis] for axis in self.axes) if self.axes else (policy.condition,)


@dataclass(frozen=True, eq=False)
class Matched:
    """The values of a contrast: one row for each setting (all other labels) and training seed."""

    values: Float[np.ndarray, "R C"]  # NaN: not played by all, or a simulator error
    errors: Bool[np.ndarray, "R C"]  # a policy of the row had a simulator error
    unshared: int  # start states that some, but not all of the policies have a score for
    seeds: Shaped[np.ndarray, "R"]
    settings: Shaped[np.ndarray, "R"]
    tasks: Shaped[np.ndarray, "C"]
    state_seeds: Shaped[np.ndarray, "C"]
    largest: float  # possible absolute value
    largest_score: float
    scores: Mapping[Key, Float[np.ndarray, "R C"]]
    cells: tuple[str, ...]
    left_out: tuple[str, ...]  # cells without a partner in another term
    stopped: bool  # the episodes of some cell ended early

    @property
    def shared(self) -> Bool[np.ndarray, "C"]:
        """The start states that all policies played without a simulator error."""
        return np.isfinite(self.values).all(0)


def list_contrasts(study: StudyFile, comparison: Comparison) -> list[Contrast]:
    """Return the contrasts that answer a comparison, as far as `where` and `exclude` allow them."""
    labels = _allowed(study, comparison, comparison.axis)
    others: list[str | None] = [*_allowed(study, comparison, comparison.by)] if comparison.by else [None]
    base = comparison.base or study.labels(comparison.axis)[0]
    against = [label for label in comparison.against or labels if label != base]
    chosen = [label for label in labels if not comparison.against or label in (base, *against)]
    found: list[Contrast] = []
    if comparison.kind == "gap":
        found = [_gap(comparison, label, by) for by in others for label in chosen]
    elif comparison.kind == "interaction":
        pairs = itertools.product(against, others[1:])
        found = [_interaction(comparison, (base, label), (str(others[0]), str(other))) for label, other in pairs]
    elif comparison.kind == "curve" and len(chosen) > 1:
        found = [trend(comparison, sorted(chosen, key=float), by) for by in others]
    elif comparison.kind == "cost":
        found = [
            _difference(comparison, one, other, by) for by in others for one, other in itertools.combinations(chosen, 2)
        ]
    elif comparison.kind == "difference":
        found = [_difference(comparison, base, other, by) for by in others for other in against]
    return [contrast for contrast in found if _can_exist(study, comparison, contrast)]


def trend(comparison: Comparison, labels: Sequence[str], by: str | None) -> Contrast:
    """Return the contrast of a linear trend over the order of labels: the mean change of a score per label.

    The labels weigh by their order, not by their numbers, so that 10, 100 and 1000 demonstrations are equal steps.
    """
    steps = np.arange(len(labels)) - (len(labels) - 1) / 2
    weights = steps / max(float((steps**2).sum()), 1.0)
    terms: dict[Key, float] = {(label,): float(weight) for label, weight in zip(labels, weights, strict=True)}
    return replace(_grouped(comparison, f"trend over {_short(comparison.axis)}", terms, by), per=" per label")


def match(contrast: Contrast, scores: Scores) -> Matched:
    """Match policies into rows, and form the contrast on every start state.

    With several training seeds, settings with a single one are left out. Raises ConfigError if no row is complete, for
    different protocols, and for fewer than FEWEST start states that all policies share.
    """
    rows: dict[tuple[tuple[tuple[str, str], ...], int], dict[Key, int]] = {}
    for number, policy in enumerate(scores.policies):
        key = contrast.find_key(policy)
        if key in contrast.terms and matches(policy.labels, contrast.where):
            setting = tuple(sorted((axis, x) for axis, x in policy.labels.items() if axis not in contrast.axes))
            rows.setdefault((setting, policy.seed), {})[key] = number
    complete = sorted(row for row, found in rows.items() if len(found) == len(contrast.terms))
    counts = [sum(setting == other for other, _ in complete) for setting, _ in complete]
    if max(counts, default=0) > 1:
        complete = [row for row, count in zip(complete, counts, strict=True) if count > 1]
    if not complete:
        raise ConfigError(_explain_none(contrast, {key for found in rows.values() for key in found}))
    used = [number for row in complete for number in rows[row].values()]
    check_protocols([scores.policies[number] for number in used])
    numbers = {key: [rows[row][key] for row in complete] for key in contrast.terms}
    of_terms = {key: scores.values[at] for key, at in numbers.items()}
    scored = np.isfinite(scores.values[used])
    settings = {setting: number for number, setting in enumerate(sorted({setting for setting, _ in complete}))}
    matched = Matched(
        values=np.sum([weight * of_terms[key] for key, weight in contrast.terms.items()], axis=0),
        errors=np.any([scores.errors[at] for at in numbers.values()], axis=0),
        unshared=int(scored.any(0).sum() - scored.all(0).sum()),
        seeds=np.array([seed for _, seed in complete]),
        settings=np.array([settings[setting] for setting, _ in complete]),
        tasks=np.array([task for task, _ in scores.states]),
        state_seeds=np.array([seed for _, seed in scores.states]),
        largest=contrast.largest * scores.find_largest(used),
        largest_score=scores.find_largest(used),
        scores=of_terms,
        cells=tuple(dict.fromkeys(scores.policies[number].cell for number in used)),
        left_out=tuple(
            dict.fromkeys(
                scores.policies[n].cell for row, found in rows.items() if row not in complete for n in found.values()
            )
        ),
        stopped=any(scores.policies[number].stopped for number in used),
    )
    if (shared := int(matched.shared.sum())) < FEWEST:
        raise ConfigError(f"{contrast.name}: the cells share {shared} start states, but {FEWEST} are needed")
    return matched


def _explain_none(contrast: Contrast, found: set[Key]) -> str:
    if missing := [" ".join(key) for key in contrast.terms if key not in found]:
        return f"{contrast.name}: there are no finished cells with {', '.join(missing)}"
    return f"{contrast.name}: no finished cells agree in all other labels and the training seed"


def _difference(comparison: Comparison, base: str, other: str, by: str | None) -> Contrast:
    return _grouped(comparison, f"{_short(comparison.axis)} {other} against {base}", {(base,): -1.0, (other,): 1.0}, by)


def _grouped(comparison: Comparison, name: str, terms: Mapping[Key, float], by: str | None) -> Contrast:
    """Return a contrast of labels of the comparison's axis, for one label of `by`."""
    if by is None:
        return Contrast(name, terms, (comparison.axis,), comparison.where)
    assert comparison.by is not None
    group = {comparison.by: by}
    where = {**comparison.where, **group}
    return Contrast(f"{name}, with {_short(comparison.by)} {by}", terms, (comparison.axis,), where, group)


def _interaction(comparison: Comparison, labels: tuple[str, str], by: tuple[str, str]) -> Contrast:
    assert comparison.by is not None
    terms: dict[Key, float] = {
        (label, other): sign * other_sign
        for label, sign in zip(labels, (-1.0, 1.0), strict=True)
        for other, other_sign in zip(by, (-1.0, 1.0), strict=True)
    }
    axis, other_axis = _short(comparison.axis), _short(comparison.by)
    name = f"{axis} {labels[1]} against {labels[0]}, with {other_axis} {by[1]} rather than {by[0]}"
    return Contrast(name, terms, (comparison.axis, comparison.by), comparison.where)


def _gap(comparison: Comparison, label: str, by: str | None) -> Contrast:
    assert comparison.other_condition is not None
    group = {comparison.axis: label}
    terms: dict[Key, float] = {(comparison.condition,): -1.0, (comparison.other_condition,): 1.0}
    name = f"{_short(comparison.axis)} {label}, {comparison.other_condition} against {comparison.condition}"
    if by is not None:
        assert comparison.by is not None
        group[comparison.by] = by
        name += f", with {_short(comparison.by)} {by}"
    return Contrast(name, terms, (), {**comparison.where, **group}, group)


def _short(axis: str) -> str:
    """Return the name of an axis for readers: without the sections of a recipe."""
    return axis.rpartition(".")[2]


def _allowed(study: StudyFile, comparison: Comparison, axis: str) -> list[str]:
    """Return the labels of an axis that `where` allows."""
    wanted = {axis: comparison.where[axis]} if axis in comparison.where else {}
    return [label for label in study.labels(axis) if matches({axis: label}, wanted)]


def _can_exist(study: StudyFile, comparison: Comparison, contrast: Contrast) -> bool:
    """Return whether cells with the labels that a contrast names are allowed by `where` and `exclude`."""
    for key in contrast.terms:
        labels = {**contrast.group, **dict(zip(contrast.axes, key, strict=bool(contrast.axes)))}
        if not matches(labels, {axis: wanted for axis, wanted in comparison.where.items() if axis in labels}):
            return False
        if any(set(out) <= labels.keys() and matches(labels, out) for out in study.exclude):
            return False
    return True
