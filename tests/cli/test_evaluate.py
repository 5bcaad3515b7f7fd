from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from test_results import RESULT

from anyvla.cli.evaluate import _Score
from anyvla.cli.main import main


def test_the_running_score_is_of_the_condition_asked_first() -> None:
    score = _Score("told")
    assert score.text == ""
    score.hear(replace(RESULT, condition="swapped", outcome="failure"))  # it may well end before
    assert score.text == ""
    score.hear(replace(RESULT, outcome="success"))
    score.hear(replace(RESULT, outcome="failure"))
    score.hear(replace(RESULT, outcome="error"))
    assert score.text == "told 50% (9% to 91%), 1 errors"


def mapping(**keys: Any) -> dict[str, Any]:
    return {"cameras": {"top": "render"}, "action": [], "control_hz": 10, "instruction": "x", "success": "done"} | keys


@pytest.mark.parametrize(
    ("benchmark", "environment", "named"),
    [
        ("gym:CartPole-v1", {"mapping": mapping(**{"import": "antigravity"})}, "module 'antigravity'"),
        ("gym:CartPole-v1", {"mapping": "/tmp/mapping.yaml"}, "module '/tmp/mapping.yaml'"),
        ("gym:antigravity:Env-v0", {"mapping": mapping()}, "module 'antigravity'"),
        ("calvin/d", {"root": "/tmp/calvin"}, "code at '/tmp/calvin'"),
    ],
)
def test_a_checkpoint_cannot_choose_code_that_runs(
    benchmark: str, environment: dict[str, Any], named: str, tmp_path: Path, capsys: Any
) -> None:
    small.policy().save(tmp_path, {"benchmark": benchmark, "environment": environment})
    assert main(["eval", str(tmp_path)]) == 1
    assert named in (said := capsys.readouterr().err)
    assert "--trust-remote-code" in said
    assert "antigravity" not in sys.modules


def test_code_of_the_command_line_is_the_users_own(tmp_path: Path, capsys: Any) -> None:
    small.policy().save(tmp_path, {"benchmark": "calvin/d", "environment": {"root": "/tmp/calvin"}})
    assert main(["eval", str(tmp_path), "--environment.root", str(tmp_path / "none")]) == 1
    assert "--trust-remote-code" not in capsys.readouterr().err
