"""Test the contrasts of a comparison, and correct for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anyvla.evaluation.comparison import mcnemar
from anyvla.study.analysis.contrasts import Contrast, Matched
from anyvla.study.analysis.crossed import (
    ALPHA,
    Mean,
    crossed_mean,
    find_seeds,
    find_states,
    fixed_mean,
    row_weights,
)
from anyvla.study.analysis.e_process import confidence_sequence, sequential_p
from anyvla.study.analysis.finding import PLANNED, Finding, Term, Test, Verdict
from anyvla.study.analysis.scores import Measure
from anyvla.study.analysis.wording import state_finding


def assess(found: Sequence[tuple[Contrast, Matched]], measure: Measure, block: int) -> list[Finding]:
    """Test the contrasts of one comparison. Their p values are adjusted together (Holm 1979).

    `block`: start states per task between two looks of cells that were stopped early.
    """
    from statsmodels.stats.multitest import multipletests

    if not found:
        return []
    tested = [_test(matched, block) for _, matched in found]
    adjusted = multipletests([mean.p for mean, _ in tested], method="holm")[1]
    return [
        _conclude(contrast, matched, mean, test, float(p), len(found), measure)
        for (contrast, matched), (mean, test), p in zip(found, tested, adjusted, strict=True)
    ]


def betting_values(matched: Matched, block: int) -> tuple[np.ndarray, list[int]]:
    """Return the mean of the contrast on each start state, scaled to [-1, 1], and the numbers of states at the looks.

    A look needs a whole block, `block` start states of every task, that all policies played, since the test holds for
    the mean over tasks. A start state with a simulator error counts as no difference.
    """
    played = (np.isfinite(matched.values) | matched.errors).all(0)
    values = row_weights(matched.settings) @ np.nan_to_num(matched.values) / matched.largest
    values[~np.isfinite(matched.values).all(0)] = 0.0
    blocks = (matched.state_seeds - matched.state_seeds.min()) // block
    complete = 0
    tasks = len(np.unique(matched.tasks))
    while (own := blocks == complete).any() and played[own].all():
        if own.sum() < tasks * len(np.unique(matched.state_seeds[own])):
            break
        complete += 1
    looks = [int((blocks <= number).sum()) for number in range(complete)]
    return values[: looks[-1] if looks else 0], looks


def _test(matched: Matched, block: int) -> tuple[Mean, Test]:
    shared = matched.shared
    values, tasks = matched.values[:, shared], matched.tasks[shared]
    if matched.stopped:
        mean = fixed_mean(row_weights(matched.settings) @ values, tasks, matched.largest)
        bets, looks = betting_values(matched, block)
        low, high = (matched.largest * end for end in confidence_sequence(bets, looks, ALPHA))
        p = sequential_p(bets, looks)
        return replace(mean, p=p, low=min(low, mean.value), high=max(high, mean.value)), "sequential"
    if len(np.unique(matched.seeds)) > 1 and len(matched.seeds) > len(np.unique(matched.settings)):
        return crossed_mean(values, matched.seeds, matched.settings, tasks, matched.largest), "crossed"
    mean = fixed_mean(row_weights(matched.settings) @ values, tasks, matched.largest)
    if len(values) == 1 and set(np.unique(values)) <= {-1.0, 0.0, 1.0}:
        return replace(mean, p=mcnemar(int((values < 0).sum()), int((values > 0).sum()))), "mcnemar"
    return mean, "episodes"


def _conclude(
    contrast: Contrast,
    matched: Matched,
    mean: Mean,
    test: Test,
    p_adjusted: float,
    tests: int,
    measure: Measure,
) -> Finding:
    shared, weights = matched.shared, row_weights(matched.settings)
    verdict: Verdict = "cannot tell"
    if p_adjusted < ALPHA:
        verdict = "higher" if mean.value > 0 else "lower"
    finding = Finding(
        name=contrast.name,
        group=contrast.group,
        value=mean.value,
        low=mean.low,
        high=mean.high,
        p=mean.p,
        p_adjusted=p_adjusted,
        test=test,
        terms=tuple(
            Term(
                labels=dict(zip(contrast.axes or ("condition",), key, strict=True)),
                weight=contrast.terms[key],
                mean=float(weights @ of[:, shared].mean(1)),
            )
            for key, of in matched.scores.items()
        ),
        seeds=len(np.unique(matched.seeds)),
        settings=len(np.unique(matched.settings)),
        states=mean.states,
        unshared=matched.unshared,
        cells=matched.cells,
        left_out=matched.left_out,
        verdict=verdict,
        measure=measure,
        per=contrast.per,
    )
    if verdict == "cannot tell" and test != "sequential":
        planned = PLANNED * matched.largest_score
        alpha = ALPHA / tests  # Holm's strictest level
        find = find_seeds if test == "crossed" else find_states
        of_planned, of_value = find(mean, planned, alpha), find(mean, mean.value, alpha) if mean.value else None
        if test == "crossed":
            finding = replace(finding, planned=planned, seeds_for_planned=of_planned, seeds_for_value=of_value)
        else:
            finding = replace(finding, planned=planned, states_for_planned=of_planned, states_for_value=of_value)
    return replace(finding, sentence=state_finding(finding))
