"""Cells whose results are in a store, without the folders of their jobs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from anyvla.cli.study.command import main
from anyvla.config import ConfigError
from anyvla.study.file import read_study
from anyvla.study.folder import StudyFolder
from anyvla.study.overview import look
from anyvla.study.store import append_cell, read_store
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.study.test_running import SMALL, lines, made, run, see  # noqa: F401 (a fixture)
from tests.study.toy import RECIPE, write_study


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The store of a finished study, beside a study file of the same cells, without its folder."""
    path = write_study(tmp_path, **SMALL)
    shutil.copy(made / "out" / "store.jsonl", path.with_suffix(".jsonl"))
    return path.with_suffix(".jsonl")


def test_a_finished_cell_whose_jobs_are_gone_is_not_run_again(made: Path, tmp_path: Path) -> None:  # noqa: F811
    path = write_study(tmp_path, **SMALL)
    shutil.copytree(made / "out", tmp_path / "out", symlinks=True)
    shutil.rmtree(tmp_path / "out" / "made")
    before = (tmp_path / "out" / "store.jsonl").read_bytes()
    assert see(path, tmp_path / "out").states == {"done": 2}
    assert run(path, tmp_path / "out") == []
    assert (tmp_path / "out" / "store.jsonl").read_bytes() == before


def test_a_known_store_spares_its_cells_and_their_lines_are_taken_over(store: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, **SMALL)
    arguments = ["run", str(path), "--out", str(tmp_path / "out"), "--known", str(store)]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    for _ in range(2):
        assert main(arguments) == 0
        assert (tmp_path / "out" / "store.jsonl").read_text().count("\n") == 2
        assert read_store(tmp_path / "out" / "store.jsonl") == read_store(store)
        assert not (tmp_path / "out" / "made").exists()
    more = write_study(tmp_path, **SMALL | {"seeds": [0, 1]})
    assert run(more, tmp_path / "out") == ["collect", "train", "evaluate", "train", "evaluate"]  # of seed 1
    assert {line.state for line in lines(tmp_path / "out").values()} == {"done"}
    assert len(lines(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    "keys",
    [
        {"training": {**RECIPE["training"], "steps": 1}},
        {"evaluation": {**RECIPE["evaluation"], "episodes": 3}},
        {"evaluation": {**RECIPE["evaluation"], "horizon": 3}},
    ],
)
def test_results_of_other_jobs_or_of_fewer_episodes_are_not_taken(
    store: Path, tmp_path: Path, keys: dict[str, object]
) -> None:
    path = write_study(tmp_path, keys, **SMALL)
    known = {line.cell: line for line in read_store(store)}
    overview = look(read_study(path), path, StudyFolder(tmp_path / "out"), known=known)
    assert overview.states == {"missing": 2}


def test_an_own_failure_does_not_hide_a_known_result(store: Path, tmp_path: Path) -> None:
    path, folder = store.with_suffix(".yaml"), StudyFolder(tmp_path / "out")
    known = {line.cell: line for line in read_store(store)}
    folder.root.mkdir()
    for line in known.values():
        append_cell(folder.store, replace(line, state="failed", error="out of memory", episodes=()))
    assert look(read_study(path), path, folder).states == {"missing": 2}
    assert look(read_study(path), path, folder, known=known).states == {"done": 2}


def test_a_store_of_another_study_is_refused(store: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, **SMALL | {"name": "other"})
    with pytest.raises(ConfigError, match=r"--known: .*small.jsonl is the store of the study 'small', not of 'other'"):
        main(["run", str(path), "--out", str(tmp_path / "out"), "--known", str(store)])


def test_a_study_that_stops_early_takes_no_known_store(store: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, **SMALL | {"stop": {"block": 2}})
    with pytest.raises(ConfigError, match=r"--known: a study with `stop`"):
        main(["run", str(path), "--out", str(tmp_path / "out"), "--known", str(store)])
