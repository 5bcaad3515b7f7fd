"""The outcome of testing a contrast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from anyvla.study.analysis.scores import Measure

# crossed: training seeds and start states are random. mcnemar, episodes: only start states are, and the policies are
# given. sequential: the same, valid although the episodes of some cells ended early.
Test = Literal["crossed", "mcnemar", "episodes", "sequential"]
Verdict = Literal["higher", "lower", "cannot tell"]
PLANNED = 0.1  # the difference for which further seeds are planned, as a share of the largest score


@dataclass(frozen=True)
class Term:
    """One term of a contrast: a finding is about the sum of weight * mean."""

    labels: Mapping[str, str]  # of the contrast's axes, or {"condition": ...}
    weight: float
    mean: float  # score on the shared start states


@dataclass(frozen=True)
class Finding:
    """A contrast with its test and its verdict."""

    name: str  # of the contrast: "head gru against none, with window 8"
    group: Mapping[str, str]  # the label of the axis `by`; of a gap, of its axis too
    value: float  # the difference of means, or of differences; of a trend, the change per label
    low: float  # 95 % interval of this contrast alone
    high: float
    p: float
    p_adjusted: float  # by Holm, for all tests of the comparison
    test: Test
    terms: tuple[Term, ...]
    seeds: int  # training seeds; only the crossed test is about other trainings than these
    settings: int  # combinations of all other labels, which weigh the same
    states: int  # start states that all cells share
    unshared: int  # start states that not all of them played without a simulator error
    cells: tuple[str, ...]
    left_out: tuple[str, ...]  # cells without a partner
    verdict: Verdict
    seeds_for_value: int | None = None  # training seeds that detect this difference; None: not planned, or never
    seeds_for_planned: int | None = None  # training seeds that detect a difference of PLANNED
    # With one training of each, start states that detect the differences between these policies; None: as above.
    states_for_value: int | None = None
    states_for_planned: int | None = None
    planned: float | None = None  # PLANNED in units of the score; None: nothing was planned
    measure: Measure = "success"
    per: str = ""  # ends the unit: " per label" of a trend
    sentence: str = ""
