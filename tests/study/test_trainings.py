"""The planned hours of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyvla.cli.study.command import main
from anyvla.config import ConfigError
from anyvla.planning.plan import make_plan
from anyvla.study.file import read_study
from anyvla.study.folder import Done, StudyFolder
from anyvla.study.overview import look
from anyvla.study.trainings import plan_trainings
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.study.toy import write_study

AXES: dict[str, Any] = {"axes": {"model.chunk": [2, 4], "long": {"no": {}, "yes": {"training": {"steps": 200}}}}}


def dry_run(path: Path, capsys: Any, *options: str) -> dict[str, Any]:
    assert main(["run", str(path), "--out", str(path.parent / "out"), "--dry-run", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_hours_of_a_training_are_those_of_its_plan(tmp_path: Path, capsys: Any) -> None:
    path = write_study(tmp_path, **AXES, seeds=[0])
    shown = dry_run(path, capsys, "--gpu", "h100")
    overview = look(read_study(path), path, StudyFolder(tmp_path / "out"))
    trained = {name: job.recipe for name, job in overview.jobs.items() if job.kind == "train"}
    assert shown["trainings"].keys() == trained.keys()
    for name, recipe in trained.items():
        alone = make_plan(recipe, tmp_path / "none", gpu="h100", remedies=0)
        assert shown["trainings"][name]["hours"] == pytest.approx(alone.hours())
        assert shown["trainings"][name]["memory_gb"] == pytest.approx(alone.memory.total / 1e9)
    assert len({of["hours"] for of in shown["trainings"].values()}) == 4  # by chunk and steps
    assert shown["jobs"]["train"]["basis"] == "planned"
    assert "30% of the" in next(iter(shown["trainings"].values()))["origin"]
    assert shown["processes"] == 1


def test_trainings_with_equal_steps_are_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def plan(recipe: Any, run: Path, **given: Any) -> Any:
        planned.append(recipe.model.chunk)
        return make_plan(recipe, run, **given)

    monkeypatch.setattr("anyvla.study.trainings.make_plan", plan)
    path = write_study(tmp_path, **AXES)
    plan_trainings(look(read_study(path), path, StudyFolder(tmp_path)).missing, StudyFolder(tmp_path), "h100")
    assert sorted(planned) == [2, 4]


def test_a_backbone_that_cannot_be_built_leaves_the_hours_unknown(tmp_path: Path, capsys: Any) -> None:
    axes = {"model.backbone": {"own": {"train": {"vision": True}}, "none": {"name": "auto", "path": "no/such/model"}}}
    path = write_study(tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "model.backbone"}])
    shown = dry_run(path, capsys, "--gpu", "h100")
    assert shown["trainings_of_unknown_length"] == 2
    reasons = [of["reason"] for of in shown["trainings"].values() if of["hours"] is None]
    assert len(reasons) == 2
    assert all("no/such/model" in reason for reason in reasons)
    known = [of["hours"] for of in shown["trainings"].values() if of["hours"] is not None]
    others = sum(of["missing"] * of["minutes_each"] for kind, of in shown["jobs"].items() if kind != "train") / 60
    assert shown["hours"] == pytest.approx(sum(known) + others, abs=0.01)
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run", "--gpu", "h100"]) == 0
    assert "2 trainings of unknown length" in " ".join(capsys.readouterr().err.split())


def test_measured_times_come_before_plans_and_plans_before_a_guess(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = write_study(tmp_path, **AXES)
    guessed = dry_run(path, capsys)
    assert (guessed["jobs"]["train"]["basis"], guessed["trainings"]) == ("a guess: small jobs", {})
    folder = StudyFolder(tmp_path / "out")
    jobs = [job for job in look(read_study(path), path, folder).missing if job.kind == "train"]
    (folder.of(jobs[0].name)).mkdir(parents=True)
    folder.set_done(jobs[0].name, Done(minutes=7, memory_gb=1, gigabytes=0.5))
    measured = dry_run(path, capsys)
    assert (measured["jobs"]["train"]["basis"], measured["jobs"]["train"]["minutes_each"]) == ("measured on 1", 7)
    assert measured["trainings"] == {}
    assert len(dry_run(path, capsys, "--gpu", "h100")["trainings"]) == 7


def test_a_plan_is_for_a_dry_run_on_a_known_gpu(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with pytest.raises(ConfigError, match="--gpu plans the trainings: give --dry-run too"):
        main(["run", str(path), "--gpu", "h100"])
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        main(["run", str(path), "--dry-run", "--gpu", "h10"])


def test_the_weights_of_published_models_count_before_any_plan(tmp_path: Path) -> None:
    """A disk that cannot hold them is refused before the first training, which takes days."""
    vlm = {"name": "auto", "path": "google/paligemma-3b-pt-224"}
    axes = {"model.backbone": {"own": {"train": {"vision": True}}, "vlm": vlm}}
    path = write_study(tmp_path, axes=axes, comparisons=[{"name": "a", "axis": "model.backbone"}])
    overview = look(read_study(path), path, StudyFolder(tmp_path / "out"))
    assert overview.gigabytes == pytest.approx(2 * 4 * 2.92, abs=0.5)
