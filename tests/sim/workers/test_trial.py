"""Code run in another process: its output, the reason of a failure, and the end of code that hangs."""

from __future__ import annotations

import os

import pytest

from anyvla_sim.workers import trial as trials
from anyvla_sim.workers.trial import TrialFailed, run_trial


def test_the_output_is_returned() -> None:
    assert run_trial("print(6 * 7)") == "42\n"
    assert run_trial("import os; print(os.environ['MARK'])", {**os.environ, "MARK": "x"}) == "x\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('no display')", "^no display$"),
        ("import os; os.abort()", "^it ended with -6$"),
        ("1 / 0", "^ZeroDivisionError: division by zero$"),
    ],
)
def test_a_failure_gives_its_reason(code: str, why: str) -> None:
    with pytest.raises(TrialFailed, match=why):
        run_trial(code)


def test_code_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PATIENCE_S", 0.5)
    with pytest.raises(TrialFailed, match=r"^it hung: no end within 0\.5 s$"):
        run_trial("import time; time.sleep(600)")
