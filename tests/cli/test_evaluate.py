from __future__ import annotations

from dataclasses import replace

from test_results import RESULT

from anyvla.cli.evaluate import _Score


def test_the_running_score_is_of_the_condition_asked_first() -> None:
    score = _Score("told")
    assert score.text == ""
    score.hear(replace(RESULT, condition="swapped", outcome="failure"))  # it may well end before
    assert score.text == ""
    score.hear(replace(RESULT, outcome="success"))
    score.hear(replace(RESULT, outcome="failure"))
    score.hear(replace(RESULT, outcome="error"))
    assert score.text == "told 50% (9% to 91%), 1 errors"
