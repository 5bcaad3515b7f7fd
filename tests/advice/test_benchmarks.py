"""Advice for the suites of Meta-World."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyvla.advice.studies import read_studies
from anyvla.cli.main import main
from anyvla.config import to_dict
from anyvla.recipe import read
from anyvla.study.store import append_cell
from tests.study.small_study import Comparison, make_line, make_study

SUITES = {"half-open": (6, "none"), "mt10": (10, "none"), "chains": (5, "none"), "recall": (10, "policy_head")}


def advise(name: str, capsys: Any, *options: str) -> dict[str, Any]:
    assert main(["advise", "--benchmark", f"metaworld/{name}", "--call-ms", "20", "--json", *options]) == 0
    shown = capsys.readouterr()
    assert ("anyvla data collect" in shown.err) == ("--out" in options)
    return json.loads(shown.out)


@pytest.mark.simulator("metaworld")
@pytest.mark.parametrize("name", SUITES)
def test_the_recipe_of_a_suite_is_written_and_valid(name: str, tmp_path: Path, capsys: Any) -> None:
    tasks, history = SUITES[name]
    file = tmp_path / "mine.yaml"
    found = advise(name, capsys, "--demonstrations", "30", "--out", str(file))
    recipe = read(str(file))
    assert (recipe.benchmark, recipe.collect.demonstrations) == (f"metaworld/{name}", 30)
    assert recipe.model.history.name == history
    assert f"30 demonstrations of each of {tasks} tasks" in found["notes"][0]
    epochs = recipe.training.steps * recipe.training.batch_size / (30 * tasks * 60)
    assert 5.9 < epochs < 6.1 or recipe.training.steps == 800
    assert found["plan"]["fits"]


@pytest.mark.simulator("metaworld")
def test_a_suite_that_tests_memory_gets_a_history_and_short_chunks(capsys: Any) -> None:
    """Chunks that last for the delay would remember instead of the history, and the evaluation refuses them."""
    found = advise("recall", capsys, "--gpu", "h100")
    assert "the policy needs a history" in " ".join(found["notes"])
    slow = advise("recall", capsys, "--call-ms", "500")
    assert slow["recipe"]["model"]["execute"] == 11 < slow["recipe"]["model"]["chunk"]


def test_many_planned_tests_without_a_result_are_one_piece_of_evidence(tmp_path: Path) -> None:
    study = make_study({"history": {str(n): {} for n in range(6)}}, Comparison(name="x", axis="history"))
    (tmp_path / "study.yaml").write_text(json.dumps(to_dict(study)))
    append_cell(tmp_path / "store.jsonl", make_line({"history": "0"}, 0, {"push": "0110"}))
    [shown] = read_studies([tmp_path])
    assert "5 planned tests have no result, as history 1 against 0" in shown.sentence
