"""A study on a real Ray cluster of two machines, one of which is lost, and through submitit's own executor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyvla.cli.study.run import finish
from anyvla.evaluation.results import read_results
from anyvla.study import schedule
from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.file import read_study
from anyvla.study.folder import StudyFolder
from anyvla.study.overview import look
from anyvla.study.store import read_store
from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark `toy`)
from tests.running import write_command
from tests.study.toy import write_study

pytestmark = pytest.mark.slow
NEEDS = Needs(minutes=5, limit_gb=4, memory_gb=0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of a head that runs nothing and two machines."""
    pytest.importorskip("ray", reason="it needs the extra ray")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.machines = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


def check_whole(root: Path) -> None:
    """Check that nothing is lost and nothing is there twice."""
    text = (root / "store.jsonl").read_text().splitlines()
    lines = read_store(root / "store.jsonl")
    assert len(text) == len(lines) == 4
    assert {line.state for line in lines} == {"done"}
    for results in root.glob("made/evaluate-*/results.jsonl"):
        keys = [result.key for result in read_results(results)]
        assert len(keys) == len(set(keys)) > 0


def run(tmp_path: Path, executor: Executor) -> Path:
    """Run a study of four cells."""
    path = write_study(tmp_path, seeds=[0, 1], axes={"model.chunk": [2, 4]})
    study, folder = read_study(path), StudyFolder(tmp_path / "out")
    folder.claim(study, path)
    finish(study, look(study, path, folder), folder, executor)
    return folder.root


def test_a_machine_of_a_ray_cluster_is_lost(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyvla.study.executors.ray import RayExecutor

    machines, reasons = list(cluster.machines), list[str]()

    class Losing(RayExecutor):
        """Loses a machine when both have trained for a moment."""

        def wait(self, seconds: float) -> list[Ended]:
            training = [name for name in self._names.values() if name.startswith("train")]
            started = [n for n in training if (tmp_path / "out" / "made" / n / "log.txt").is_file()]
            if len(started) == 2 and len(machines) == 2:
                cluster.remove_node(machines.pop(), allow_graceful=False)
            ended = super().wait(seconds)
            reasons.extend(one.reason for one in ended if one.status is None)
            return ended

    monkeypatch.setattr(schedule, "ANYVLA", (sys.executable, str(write_command(tmp_path))))
    check_whole(run(tmp_path, Losing(cluster.address)))
    assert len(machines) == 1
    assert len(reasons) >= 1
    assert "Ray lost it" in reasons[0]


def test_submitit_runs_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="it needs the extra slurm")
    from anyvla.study.executors.slurm import SlurmExecutor

    monkeypatch.setattr(schedule, "ANYVLA", (sys.executable, str(write_command(tmp_path))))
    check_whole(run(tmp_path, SlurmExecutor(tmp_path / "slurm", 2, cluster="local")))


def test_a_job_that_slurm_ends_is_lost_and_one_that_fails_is_not(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="it needs the extra slurm")
    from anyvla.study.executors.slurm import SlurmExecutor

    executor = SlurmExecutor(tmp_path / "slurm", 2, cluster="local")
    for name, code in (("fails", "raise SystemExit(3)"), ("hangs", "import time; time.sleep(600)")):
        executor.submit(Task(name, [sys.executable, "-c", code], NEEDS, tmp_path / name))
    assert not executor.has_room(NEEDS)
    ended = {one.name: one for one in executor.wait(120)}
    assert ended["fails"].status == 3
    executor._jobs["hangs"].cancel()
    [lost] = executor.wait(120)
    assert (lost.name, lost.status) == ("hangs", None)
    executor.close()
