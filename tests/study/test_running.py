"""A whole study of the toy benchmark, in one process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.cli.study.command import main
from anyvla.cli.study.run import finish
from anyvla.config import ConfigError, to_dict
from anyvla.interrupted import STOPPED
from anyvla.study.file import read_study
from anyvla.study.folder import StudyFolder
from anyvla.study.overview import Overview, look
from anyvla.study.record import set_outdated_aside
from anyvla.study.store import CellLine, read_store
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.study.toy import RECIPE, InProcess, write_study

SMALL: dict[str, Any] = {"axes": {"model.chunk": [2, 4]}, "seeds": [0]}


def run(path: Path, root: Path, executor: InProcess | None = None, *, retry: bool = False) -> list[str]:
    """Run what is missing of a study. Return the kinds of the jobs that ran."""
    study, folder, executor = read_study(path), StudyFolder(root), executor or InProcess()
    overview = look(study, path, folder, retry=retry)
    folder.claim(study, path)
    finish(study, overview, folder, executor, retry=retry)
    return [name.partition("-")[0] for name in executor.ran]


def see(path: Path, root: Path) -> Overview:
    return look(read_study(path), path, StudyFolder(root))


def lines(root: Path) -> dict[str, CellLine]:
    return {line.cell: line for line in read_store(root / "store.jsonl")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, beside its file."""
    folder = tmp_path_factory.mktemp("study")
    assert run(write_study(folder, **SMALL), folder / "out") == ["collect", "train", "evaluate", "train", "evaluate"]
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the finished study at another place."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_every_cell_has_a_line_with_its_episodes_and_costs(made: Path) -> None:
    found = lines(made / "out")
    assert set(found) == {"chunk=2,seed=0", "chunk=4,seed=0"}
    for line in found.values():
        assert line.state == "done"
        assert {played.condition for played in line.episodes} == {"original"}
        assert all(len(played.outcomes) == 1 for played in line.episodes)
        assert {"minutes.collect", "minutes.train", "minutes.evaluate", "parameters", "latency_ms"} <= set(line.costs)
        assert line.protocols["toy/line"]["episodes"] == 1
        model = {"chunk": int(line.labels["model.chunk"]), "backbone": {"seed": 0}}
        assert line.recipe == {"model": model, "training": {"seed": 0}}


def test_a_finished_study_runs_nothing_and_adds_no_line(copy: Path) -> None:
    before = (copy / "out" / "store.jsonl").read_bytes()
    assert run(copy / "small.yaml", copy / "out") == []
    assert (copy / "out" / "store.jsonl").read_bytes() == before


def test_only_the_named_cells_are_looked_at(copy: Path) -> None:
    study, folder = read_study(copy / "small.yaml"), StudyFolder(copy / "out")
    overview = look(study, copy / "small.yaml", folder, only=["chunk=4,seed=0"])
    assert [cell.name for cell in overview.cells] == ["chunk=4,seed=0"]
    assert [job.kind for job in overview.jobs.values()] == ["collect", "train", "evaluate"]
    with pytest.raises(ConfigError, match=r"has no cell 'chunk=3,seed=0': .*chunk=2,seed=0"):
        look(study, copy / "small.yaml", folder, only=["chunk=3,seed=0"])


def test_the_page_of_a_run_shows_films_of_its_best_and_worst_cell(copy: Path) -> None:
    assert main(["report", str(copy / "out"), "--film"]) == 0
    page = (copy / "out" / "small.html").read_text()
    assert "on toy/line: chunk=" in page
    assert page.count("data:video/mp4;base64,") >= 1
    (copy / "out" / "store.jsonl").rename(copy / "store.jsonl")
    with pytest.raises(ConfigError, match=r"has no evaluation of chunk=.,seed=0 to film"):
        main(["report", str(copy / "small.yaml"), "--store", str(copy / "store.jsonl"), "--film"])


@pytest.mark.parametrize(
    ("section", "keys", "ran"),
    [
        ("evaluation", {"horizon": 3}, ["evaluate", "evaluate"]),
        ("training", {"steps": 1}, ["train", "evaluate", "train", "evaluate"]),
        ("training", {"log_every": 1}, []),
    ],
)
def test_a_changed_key_makes_only_what_depends_on_it(
    copy: Path, section: str, keys: dict[str, Any], ran: list[str]
) -> None:
    path = write_study(copy, {section: {**RECIPE[section], **keys}}, **SMALL)
    assert run(path, copy / "out") == ran
    assert len(lines(copy / "out")) == 2


def test_results_of_a_recipe_that_has_changed_leave_the_store(copy: Path) -> None:
    path, out = write_study(copy, {"training": {**RECIPE["training"], "steps": 1}}, **SMALL), copy / "out"
    old, overview = lines(out), see(path, out)
    with (out / "store.jsonl").open("a") as store:  # of a cell that is no longer planned: the page lists it
        store.write(json.dumps(to_dict(replace(next(iter(old.values())), cell="other"))) + "\n")
    assert set_outdated_aside(overview.jobs_of, StudyFolder(out)) == 2
    assert set(lines(out)) == {"other"}
    assert {line.cell for line in read_store(out / "outdated.jsonl")} == set(old)
    assert set_outdated_aside(overview.jobs_of, StudyFolder(out)) == 0


def test_a_further_seed_adds_its_cells_only(copy: Path) -> None:
    path = write_study(copy, **SMALL | {"seeds": [0, 1]})
    assert see(path, copy / "out").states == {"done": 2, "missing": 2}
    assert run(path, copy / "out") == ["train", "evaluate"] * 2
    assert see(path, copy / "out").states == {"done": 4}
    assert len(lines(copy / "out")) == 4


def test_more_episodes_are_added_to_those_that_exist(copy: Path) -> None:
    path = write_study(copy, {"evaluation": {**RECIPE["evaluation"], "episodes": 3}}, **SMALL)
    assert run(path, copy / "out") == ["evaluate", "evaluate"]
    line = lines(copy / "out")["chunk=2,seed=0"]
    assert all(len(played.outcomes) == 3 for played in line.episodes)


@pytest.mark.parametrize("status", [None, STOPPED])
def test_a_failed_cell_is_kept_with_its_error_and_others_go_on(made: Path, tmp_path: Path, status: int | None) -> None:
    """A job whose process is lost or stopped by others, as where a cluster needs the machine, runs again at first."""
    root = tmp_path / "out"
    shutil.copytree(made / "out", root, symlinks=True)
    path = write_study(tmp_path, **SMALL | {"seeds": [3]})
    assert run(path, root, InProcess(["train"], status)) == ["train"] * 6  # a job that is lost runs three times
    found = lines(root)
    assert {line.state for cell, line in found.items() if "seed=3" in cell} == {"failed"}
    assert found["chunk=2,seed=3"].error.startswith("train: its machine is gone")
    assert see(path, root).states == {"failed": 2}
    assert run(path, root) == []  # only on demand
    assert run(path, root, retry=True) == ["train", "evaluate"] * 2
    assert {line.state for line in lines(root).values()} == {"done"}
    assert see(path, root).states == {"done": 2}


def test_a_job_that_fails_leaves_its_reason(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    shutil.copytree(made / "out", root, symlinks=True)
    path = write_study(tmp_path, {"evaluation": {**RECIPE["evaluation"], "tasks": ["nothing"]}}, **SMALL)
    run(path, root)
    assert "evaluation.tasks" in lines(root)["chunk=2,seed=0"].error
    text = see(path, root).to_text(1)
    assert "failed, 2 cells: evaluate: ConfigError" in text


def test_an_invalid_cell_has_a_line_too(copy: Path) -> None:
    path = write_study(copy, **SMALL | {"axes": {"model.chunk": [2, 4, -1]}})
    assert run(path, copy / "out") == []
    line = lines(copy / "out")["chunk=-1,seed=0"]
    assert line.state == "invalid"
    assert "model.chunk" in line.error


def test_the_overview_counts_shared_jobs_once(made: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    seen = see(path, tmp_path / "none").to_dict(processes=2)
    assert {kind: jobs["all"] for kind, jobs in seen["jobs"].items()} == {
        "collect": 1,
        "codec": 0,
        "train": 8,
        "evaluate": 8,
    }
    assert seen["states"] == {"missing": 8}
    assert seen["hours"] > 0
    done = see(made / "small.yaml", made / "out").to_dict(processes=2)
    assert done["hours"] == 0
    assert done["jobs"]["train"]["measured"] == 2
    json.dumps(done)


def test_a_folder_belongs_to_one_study(made: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, name="other")
    with pytest.raises(ValueError, match="is the folder of the study 'small', not of 'other'"):
        StudyFolder(made / "out").claim(read_study(path), path)
    with pytest.raises(ValueError, match="is not empty and is no study's folder"):
        StudyFolder(tmp_path).claim(read_study(path), path)


def test_a_folder_alone_can_be_moved_resumed_and_reported(made: Path, tmp_path: Path, capsys: Any) -> None:
    """Without the study's file and its base recipe, which were beside the folder."""
    root = tmp_path / "elsewhere" / "moved"
    shutil.copytree(made / "out", root, symlinks=True)
    assert main(["run", str(root), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"done": 2}
    assert run(root / "study.yaml", root) == []
    assert read_study(root / "study.yaml").base == "base.yaml"
    assert main(["report", str(root)]) == 0
    page = (root / "small.html").read_text()
    assert f"anyvla study run {root}" in page
    changed = root.parent / "changed.yaml"
    changed.write_text((root / "study.yaml").read_text().replace('"base.yaml"', '"moved/base.yaml"'))
    assert run(changed, root) == []


def test_a_decided_comparison_needs_no_more_episodes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look decides; then cells keep the episodes of two blocks, and a rerun plays no more."""
    from anyvla.study import early_stopping

    def decide(study: object, known: list[CellLine]) -> set[str]:
        whole = len(known) == 2 and all(len(line.episodes[0].outcomes) >= 4 for line in known)
        return {line.cell for line in known} if whole else set()

    monkeypatch.setattr(early_stopping, "decided", decide)
    root = tmp_path / "out"
    shutil.copytree(made / "out", root, symlinks=True)
    keys = {"evaluation": {**RECIPE["evaluation"], "episodes": 40, "first_seed": 7}}
    path = write_study(tmp_path, keys, **SMALL | {"stop": {"block": 2}})
    assert run(path, root) == ["evaluate"] * 4
    assert {(len(line.episodes[0].outcomes), line.stopped) for line in lines(root).values()} == {(4, True)}
    assert see(path, root).states == {"done": 2}
    assert run(path, root) == []
    monkeypatch.setattr(early_stopping, "decided", lambda study, known: set())
    path = write_study(
        tmp_path, keys | {"evaluation": keys["evaluation"] | {"episodes": 5}}, **SMALL | {"stop": {"block": 2}}
    )
    assert run(path, root) == ["evaluate"] * 2  # at most the episodes of the recipe
    assert {(len(line.episodes[0].outcomes), line.stopped) for line in lines(root).values()} == {(5, False)}


def test_comparisons_are_looked_at_when_a_share_of_the_cells_has_played(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyvla.study import early_stopping

    looks: list[int] = []

    def decide(study: object, known: list[CellLine]) -> set[str]:
        looks.append(len(known))
        return set()

    monkeypatch.setattr(early_stopping, "decided", decide)
    keys = {"evaluation": {**RECIPE["evaluation"], "episodes": 2, "first_seed": 7}}
    path = write_study(tmp_path, keys, **SMALL | {"stop": {"block": 1}})
    counts = []
    for share in (50, 2):  # of two cells: at each line, at each second one
        monkeypatch.setattr(early_stopping, "_LOOKS", share)
        looks.clear()
        shutil.copytree(made / "out", tmp_path / str(share), symlinks=True)
        assert run(path, tmp_path / str(share)) == ["evaluate"] * 4
        counts.append(len(looks))
    assert counts[0] == 4
    assert 0 < counts[1] < 4


def test_early_stopping_needs_the_number_of_episodes(tmp_path: Path) -> None:
    keys = {key: value for key, value in RECIPE["evaluation"].items() if key != "episodes"}
    path = write_study(tmp_path, {"evaluation": keys}, **SMALL | {"stop": {}})
    with pytest.raises(ValueError, match=r"needs the number of episodes: evaluation\.episodes"):
        see(path, tmp_path / "out")


def test_cells_share_the_features_of_a_frozen_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, plain = [], NanoBackbone.compute_features

    def compute(self: NanoBackbone, images: Tensor) -> Tensor:
        if self.training and images.shape[:2].numel() == 1:
            alone.append(images)
        return plain(self, images)

    monkeypatch.setattr(NanoBackbone, "compute_features", compute)
    backbone = RECIPE["model"]["backbone"] | {"train": {"vision": False}}
    frozen = {"model": RECIPE["model"] | {"backbone": backbone}}
    axes = {"model.chunk": [2, 4], "moved": {"no": {"training": {"augment": {"shift": 0}}}, "yes": {}}}
    path = write_study(tmp_path, frozen, axes=axes, seeds=[0])
    text = see(path, tmp_path / "out").to_text(1)
    how = "computed once, and shared: at most 4 GB of the disk for each tower"
    assert f"features of the frozen vision tower of 2 trainings: {how}" in text
    assert "of 2 trainings: computed at each use: training.augment.shift makes new images" in text
    assert see(path, tmp_path / "out").to_dict(1)["frozen_features"][how] == 2
    run(path, tmp_path / "out")
    [folder] = [path for path in (tmp_path / "out" / "made" / "features").iterdir() if path.is_dir()]
    assert len(list(folder.iterdir())) <= 2  # a file for each training
    different = {image.numpy().tobytes() for image in alone}
    assert len(alone) == len(different) + 3  # the same probe twice in both trainings, and every other image once
    assert see(path, tmp_path / "out").states == {"done": 4}
