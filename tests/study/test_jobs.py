"""The names of jobs: what changes a result changes the name, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyvla.study.cells import expand
from anyvla.study.file import Benchmark, read_study
from anyvla.study.jobs import Job, list_jobs
from tests.study.toy import RECIPE, write_study


def jobs(folder: Path, recipe: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Job]:
    """Return the jobs of one cell, by kind."""
    path = write_study(folder, recipe, seeds=[seed])
    made = list_jobs(expand(read_study(path), path)[0]).jobs.values()
    return {job.kind: job for job in made}


def names(folder: Path, recipe: dict[str, Any] | None = None, seed: int = 0) -> dict[str, str]:
    return {kind: job.name for kind, job in jobs(folder, recipe, seed).items()}


@pytest.mark.parametrize(
    ("section", "keys", "changed"),
    [
        ("collect", {"demonstrations": 3}, {"collect", "train", "evaluate"}),
        ("collect", {"processes": 7}, set()),
        ("model", {"readouts": 2}, {"train", "evaluate"}),
        ("training", {"steps": 3}, {"train", "evaluate"}),
        ("training", {"batch_size": 2}, {"train", "evaluate"}),
        ("training", {"log_every": 1}, set()),
        ("training", {"features_gb": 0}, set()),
        ("training", {"checkpoint_every": 7}, set()),
        ("evaluation", {"horizon": 5}, {"evaluate"}),
        ("evaluation", {"execute": 1}, {"evaluate"}),
        ("evaluation", {"conditions": ["original", "swapped"]}, {"evaluate"}),
        ("evaluation", {"first_seed": 3}, {"evaluate"}),
        ("evaluation", {"episodes": 7}, set()),  # more are added to those that exist
        ("evaluation", {"processes": 7}, set()),
    ],
)
def test_a_key_changes_the_jobs_that_depend_on_it(
    tmp_path: Path, section: str, keys: dict[str, Any], changed: set[str]
) -> None:
    before, after = names(tmp_path), names(tmp_path, {section: {**RECIPE[section], **keys}})
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_seeds_share_the_demonstrations_only(tmp_path: Path) -> None:
    before, after = names(tmp_path), names(tmp_path, seed=1)
    assert {kind for kind in before if before[kind] != after[kind]} == {"train", "evaluate"}


def test_the_name_of_the_recipe_does_not_matter(tmp_path: Path) -> None:
    assert names(tmp_path) == names(tmp_path, {"name": "other"})


def test_jobs_need_each_other(tmp_path: Path) -> None:
    found = jobs(tmp_path)
    assert found["collect"].before == ()
    assert found["train"].before == (found["collect"].name,)
    assert found["train"].needs == {"dataset": found["collect"].name}
    assert found["evaluate"].before == (found["train"].name,)


def test_a_codec_is_fitted_once_for_all_trainings_on_the_same_chunks(tmp_path: Path) -> None:
    tokens = {
        **RECIPE["model"],
        "representation": "fast",
        "decoder": {"name": "tokens", "width": 16, "layers": 1, "heads": 2},
    }
    one, other = jobs(tmp_path, {"model": tokens}), jobs(tmp_path, {"model": tokens}, seed=1)
    assert one["codec"].name == other["codec"].name
    assert one["train"].needs == {"dataset": one["collect"].name, "codec": one["codec"].name}
    elsewhere = jobs(tmp_path, {"model": tokens, "collect": {**RECIPE["collect"], "seed": 5}})
    assert elsewhere["codec"].name != one["codec"].name
    bigger = jobs(tmp_path, {"model": {**tokens, "readouts": 2}})
    assert bigger["codec"].name == one["codec"].name
    assert bigger["train"].name != one["train"].name


def test_a_chain_shares_its_first_stages(tmp_path: Path) -> None:
    def trainings(steps: int) -> list[str]:
        stages = {"pretrain": {"collect": {"seed": 1}}, "last": {"training": {"steps": steps}}}
        path = write_study(tmp_path, {"stages": stages}, seeds=[0])
        made = list_jobs(expand(read_study(path), path)[0])
        assert made.jobs[made.trainings[1]].origin == made.trainings[0]
        assert made.jobs[made.evaluations[0]].policy == made.trainings[1]
        return list(made.trainings)

    short, long = trainings(1), trainings(3)
    assert short[0] == long[0]
    assert short[1] != long[1]


def test_a_stage_that_starts_anew_needs_none_of_those_before(tmp_path: Path) -> None:
    stages = {"pretrain": {"collect": {"seed": 1}}, "last": {"training": {"init_from": None}}}
    path = write_study(tmp_path, {"stages": stages}, seeds=[0])
    made = list_jobs(expand(read_study(path), path)[0])
    assert [job.kind for job in made.jobs.values()] == ["collect", "train", "evaluate"]
    assert made.trainings == tuple(name for name, job in made.jobs.items() if job.kind == "train")


def test_demonstrations_of_another_stage_are_a_source(tmp_path: Path) -> None:
    stages = {
        "other": {"collect": {"seed": 1}, "training": None},
        "both": {"data": {"sources": [{"path": "stage:both"}, {"path": "stage:other", "weight": 2.0}]}},
    }
    path = write_study(tmp_path, {"stages": stages}, seeds=[0])
    made = list_jobs(expand(read_study(path), path)[0])
    [training] = [made.jobs[name] for name in made.trainings]
    collected = [name for name, job in made.jobs.items() if job.kind == "collect"]
    assert len(collected) == 2
    assert set(training.sources.values()) == set(collected)
    assert training.needs == {}


def test_further_benchmarks_are_further_evaluations_of_the_same_policy(tmp_path: Path) -> None:
    path = write_study(tmp_path, seeds=[0])
    cell = expand(read_study(path), path)[0]
    made = list_jobs(cell, [Benchmark(benchmark="toy/pair", evaluation={"episodes": 3})])
    own, other = (made.jobs[name] for name in made.evaluations)
    assert own.policy == other.policy
    assert (other.recipe.benchmark, other.recipe.evaluation.episodes) == ("toy/pair", 3)
    assert own.name != other.name
