"""Code tried in another process: what it prints, why it failed, and an end even where it hangs."""

from __future__ import annotations

import os

import pytest

from anyvla_sim.workers import trial as trials
from anyvla_sim.workers.trial import TrialFailed, run_trial


def test_what_it_prints() -> None:
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
def test_why_it_failed(code: str, why: str) -> None:
    with pytest.raises(TrialFailed, match=why):
        run_trial(code)


def test_it_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PATIENCE_S", 0.5)
    with pytest.raises(TrialFailed, match=r"^it hung: no end within 0\.5 s$"):
        run_trial("import time; time.sleep(600)")
