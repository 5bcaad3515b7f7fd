"""Answer the question of a study in two sentences. Every claim in them has a test."""

from __future__ import annotations

from collections.abc import Sequence

from anyvla.study.analysis.finding import Finding
from anyvla.study.analysis.results import Result
from anyvla.study.analysis.wording import count, state_claim

_MOST = 3  # claims in a sentence


def answer(results: Sequence[Result]) -> str:
    """Return two sentences: the differences that tests show, and the open questions."""
    findings = [finding for result in results for finding in result.findings]
    missing = sum(len(result.missing) for result in results)
    if not findings:
        return f"There are no results yet that answer the question. {_state_missing(missing)}."
    shown = sorted((f for f in findings if f.verdict != "cannot tell"), key=lambda f: (f.p_adjusted, -abs(f.value)))
    return f"{_state_shown(shown, len(findings))}. {_state_rest(findings, len(shown), missing)}."


def _state_shown(shown: Sequence[Finding], tests: int) -> str:
    if not shown:
        return "The only test shows no difference" if tests == 1 else f"None of the {tests} tests shows a difference"
    claims = "; ".join(f"{state_claim(finding)}{_limit(finding)}" for finding in shown[:_MOST])
    number = "The only test shows" if tests == 1 else f"{len(shown)} of {tests} tests {_show(len(shown))}"
    most = "" if len(shown) <= _MOST else f"; the clearest {_MOST} are"
    return f"{number} a difference{most}: {claims}"


def _show(number: int) -> str:
    return "shows" if number == 1 else "show"


def _limit(finding: Finding) -> str:
    return "" if finding.test == "crossed" else " (for the trained policies only)"


def _state_rest(findings: Sequence[Finding], shown: int, missing: int) -> str:
    """Return the open questions, with the number of training seeds that would close them."""
    parts = []
    if len(findings) > shown:
        left = len(findings) - shown
        others = f" for the other {'one' if left == 1 else left}" if shown else ""
        parts.append(f"The data cannot tell{others} whether there is {'a difference' if shown else 'one'}")
        planned = [f.seeds_for_planned for f in findings if f.seeds_for_planned and f.measure == "success"]
        if planned:
            of = "" if len(planned) == left else f" in {len(planned)} of these"
            parts.append(f"{max(planned)} training seeds would detect 10 points{of}")
        states = [f.states_for_planned for f in findings if f.states_for_planned and f.measure == "success"]
        if states:
            of = "" if len(states) == left else f" in {len(states)} of these"
            parts.append(
                f"about {max(states):,} start states would detect 10 points between the trained policies{of}; a second "
                "training of each would show how many trainings are needed"
            )
    if missing:
        parts.append(_state_missing(missing))
    return "; ".join(parts) or "Every planned test has an answer"


def _state_missing(missing: int) -> str:
    return f"{count(missing, 'planned test')} {'has' if missing == 1 else 'have'} no result yet"
