"""Word the results of tests for readers. No sentence says more than the test that it names."""

from __future__ import annotations

from anyvla.study.analysis.finding import Finding

_TESTS = {
    "crossed": "crossed test",
    "mcnemar": "McNemar's exact test",
    "episodes": "t test over start states",
    "sequential": "sequential test",
}


def state_finding(finding: Finding) -> str:
    """Return the sentences that a reader gets for a finding."""
    return f"{state_claim(finding)} ({state_evidence(finding)}). {state_limits(finding)}".strip()


def state_limits(finding: Finding) -> str:
    """Return the sentence that limits a finding, or says what would tell; empty for a claim without a limit."""
    if finding.verdict == "cannot tell" and finding.test != "sequential":
        return state_plan(finding) if finding.test == "crossed" else _plan_states(finding)
    return "" if finding.test == "crossed" else state_scope(finding)


def state_claim(finding: Finding) -> str:
    """Return the claim that the test supports, without a full stop: "head gru against none: 12 points higher"."""
    if finding.verdict == "cannot tell":
        return f"{finding.name}: the data cannot tell"
    amount = format_amount(abs(finding.value), finding)
    if finding.per:
        return f"{finding.name}: {'rises' if finding.verdict == 'higher' else 'falls'} by {amount}"
    return f"{finding.name}: {amount} {finding.verdict}"


def state_evidence(finding: Finding) -> str:
    """Return the difference with its interval, the sample, and the test."""
    interval = f"{format_signed(finding.low, finding)} to {format_signed(finding.high, finding)}"
    amount = f"{format_signed(finding.value, finding)} {unit(finding)}"
    return f"{amount}, 95 % interval {interval}; {state_test(finding)}"


def state_test(finding: Finding) -> str:
    """Return the sample and the test."""
    sample = f"{count(finding.seeds, 'training seed')}, {count(finding.states, 'start state')}"
    if finding.unshared:
        sample += f" ({finding.unshared} more not played by all)"
    p = "p < 0.001" if finding.p_adjusted < 0.001 else f"p = {finding.p_adjusted:.3f}"
    return f"{sample}; {_TESTS[finding.test]}, {p} by Holm"


def state_scope(finding: Finding) -> str:
    """Return the sentence that limits a finding to the trained policies."""
    if finding.test == "sequential":
        return (
            "This holds for these trained policies only: their episodes ended early, so that other trainings were not "
            "tested, and the rates are further apart than they would be."
        )
    return "This holds for these trained policies only: with one training of each, other trainings may differ."


def state_plan(finding: Finding) -> str:
    """Return the sentence that says how many training seeds would tell."""
    assert finding.planned is not None
    ten = f"a difference of {format_amount(finding.planned, finding)}"
    if finding.seeds_for_planned is None:
        first = f"More training seeds alone would not detect {ten}: more start states are needed"
    elif finding.seeds_for_planned <= finding.seeds:
        first = f"{finding.seeds} training seeds are enough to detect {ten} with 80 % power"
    else:
        more = finding.seeds_for_planned - finding.seeds
        first = f"{count(more, 'more training seed')} on the same start states would detect {ten} with 80 % power"
    if finding.seeds_for_value is None:
        return f"{first}."
    more = max(finding.seeds_for_value - finding.seeds, 1)
    return f"{first}; {more} more would detect the observed one."


def _plan_states(finding: Finding) -> str:
    """Return the sentences that say how many start states would tell, where trainings cannot be planned yet."""
    assert finding.planned is not None
    ten = f"a difference of {format_amount(finding.planned, finding)} between these trained policies"
    if finding.states_for_planned is None:
        first = f"More start states than are worth playing would be needed to detect {ten}"
    elif finding.states_for_planned <= finding.states:
        first = f"{finding.states} start states are enough to detect {ten} with 80 % power"
    else:
        first = f"About {finding.states_for_planned:,} start states would detect {ten} with 80 % power"
    if finding.states_for_value is not None and finding.states_for_value > finding.states:
        first += f", about {finding.states_for_value:,} the observed one"
    return (
        f"{first}. With one training of each, how many more would tell about others can be planned after a second one."
    )


def format_amount(value: float, finding: Finding) -> str:
    """Return a difference with its unit."""
    if finding.measure == "length":
        return f"{value:.2f} tasks{finding.per}"
    points = f"{100 * value:.1f}".removesuffix(".0")
    return f"{points} {'point' if points == '1' else 'points'}{finding.per}"


def format_signed(value: float, finding: Finding) -> str:
    """Return a difference with its sign, without its unit."""
    number, digits = (value, 2) if finding.measure == "length" else (100 * value, 1)
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # + 0.0 takes the sign from -0.0


def unit(finding: Finding) -> str:
    """Return the unit of a finding's difference."""
    return ("tasks" if finding.measure == "length" else "points") + finding.per


def count(number: int, what: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
