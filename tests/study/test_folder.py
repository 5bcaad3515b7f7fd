"""The folder of a study: what it says about a job is what the job's files say now."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from anyvla.study.cells import expand
from anyvla.study.file import read_study
from anyvla.study.folder import Done, StudyFolder
from anyvla.study.jobs import Job, list_jobs
from tests.study.toy import write_study

DONE = Done(minutes=1.0, memory_gb=2.0, gigabytes=0.5, episodes=1)


@pytest.fixture
def evaluation(tmp_path: Path) -> Job:
    path = write_study(tmp_path, seeds=[0])
    [job] = [j for j in list_jobs(expand(read_study(path), path)[0]).jobs.values() if j.kind == "evaluate"]
    return job


def test_the_end_of_a_job_is_seen_at_once_also_if_another_process_wrote_it(tmp_path: Path, evaluation: Job) -> None:
    name = evaluation.name
    looking, running = StudyFolder(tmp_path / "out"), StudyFolder(tmp_path / "out")
    running.of(name).mkdir(parents=True)
    assert (looking.done(evaluation), looking.episodes_of(name)) == (None, 0)
    running.set_done(name, DONE)
    assert (looking.done(evaluation), looking.episodes_of(name)) == (DONE, 1)
    more = dataclasses.replace(DONE, episodes=3)
    running.set_done(name, more)
    assert (looking.done(evaluation), looking.episodes_of(name)) == (more, 3)
    (running.of(name) / "done.json").write_text("{")
    assert (looking.done(evaluation), looking.episodes_of(name)) == (None, 0)
    running.set_done(name, DONE)
    assert looking.done(evaluation) == DONE
    (running.of(name) / "done.json").unlink()
    assert looking.done(evaluation) is None
