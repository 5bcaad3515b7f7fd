"""Tasks of comparisons are those of the suites that their cells play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyvla.config import ConfigError
from anyvla.study.cells import expand
from anyvla.study.file import read_study
from anyvla.study.task_names import check_task_names
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.study.toy import RECIPE, write_study


def check(folder: Path, tasks: list[str], recipe: dict[str, Any] | None = None, **comparison: Any) -> None:
    keys = {"name": "chunk", "axis": "model.chunk", "tasks": tasks} | comparison
    path = write_study(folder, recipe, comparisons=[keys], benchmarks=[{"benchmark": "toy/chains"}])
    study = read_study(path)
    check_task_names(study, expand(study, path), path)


def test_tasks_and_groups_of_the_suite_are_accepted(tmp_path: Path) -> None:
    check(tmp_path, ["left", "up"])
    check(tmp_path, ["near", "left"], {"benchmark": "toy/cued"})
    check(tmp_path, ["chain"], benchmark="toy/chains")


@pytest.mark.parametrize(
    ("tasks", "recipe", "comparison", "said"),
    [
        (["left", "rihgt"], {}, {}, r"'chunk': toy/line has no task or group 'rihgt': did you mean 'right'"),
        (["naer"], {"benchmark": "toy/cued"}, {}, r"toy/cued has no task or group 'naer': did you mean 'near'"),
        (["left"], {}, {"benchmark": "toy/chains"}, r"toy/chains has no task or group 'left'"),
        (
            ["left"],
            {"evaluation": RECIPE["evaluation"] | {"tasks": ["up"]}},
            {},
            r"evaluation.tasks leaves out 'left': up are played",
        ),
    ],
)
def test_others_are_refused(
    tmp_path: Path, tasks: list[str], recipe: dict[str, Any], comparison: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check(tmp_path, tasks, recipe, **comparison)


def test_every_suite_that_a_comparison_joins_is_checked(tmp_path: Path) -> None:
    axes = {"suite": {"line": {}, "cued": {"benchmark": "toy/cued"}}, "model.chunk": [2, 4]}
    path = write_study(
        tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "model.chunk", "by": "suite", "tasks": ["up"]}]
    )
    with pytest.raises(ConfigError, match="toy/cued has no task or group 'up'"):
        check_task_names(read_study(path), expand(read_study(path), path), path)
    narrow = write_study(
        tmp_path,
        axes=axes,
        comparisons=[{"name": "a", "axis": "model.chunk", "where": {"suite": "line"}, "tasks": ["up"]}],
    )
    check_task_names(read_study(narrow), expand(read_study(narrow), narrow), narrow)


def test_a_suite_without_its_simulator_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    check(tmp_path, ["lift_red_block_table"], {"benchmark": "calvin/ABC-D", "data": {"sources": [{"path": "x"}]}})
