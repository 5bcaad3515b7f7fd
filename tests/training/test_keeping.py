"""Checkpoints that `training.keep` asks for stay, others go, and a full disk never takes the newest one."""

from __future__ import annotations

import errno
import json
import logging
import resource
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from anyvla.checkpoint.files import checkpoint_of
from anyvla.checkpoint.of_run import SavedCheckpoint, Score, find_checkpoint, list_checkpoints, select_best
from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training import checkpoint, disk_space
from anyvla.training.config import TrainingConfig
from anyvla.training.ema import EmaConfig
from anyvla.training.keeping import CheckpointKeeper
from anyvla.training.kept import KeepConfig, select_kept
from anyvla.training.log import TrainingLog
from anyvla.training.loop import train
from anyvla.training.optim import OptimConfig
from anyvla.training.processes import Processes
from anyvla.training.state import TrainingState
from tests.small import embodiment, episode, mixture, model, policy, recipe

SCORES = {1: 0.9, 2: 0.5, 3: 0.7, 4: 0.6, 5: 0.4, 6: 0.8, 7: 0.45, 8: 0.9}


def saved(scores: Mapping[int, float | None], **score: Any) -> list[SavedCheckpoint]:
    return [
        SavedCheckpoint(Path(f"step-{step:08d}"), step, None if value is None else Score("loss", value, **score))
        for step, value in scores.items()
    ]


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        ({}, [5, 8]),
        ({"best": 0}, [8]),
        ({"last": 3}, [5, 6, 7, 8]),
        ({"best": 3}, [2, 5, 7, 8]),
        ({"best": 0, "every": 3}, [3, 6, 8]),
        ({"last": 2, "best": 1, "every": 4}, [4, 5, 7, 8]),
        ({"last": 99}, [*SCORES]),
    ],
)
def test_the_newest_the_best_and_each_of_so_many_steps_stay(keep: dict[str, Any], steps: list[int]) -> None:
    kept = select_kept(build(KeepConfig, keep), saved(SCORES)[::-1])
    assert [of.step for of in kept] == steps


def test_the_best_may_be_the_highest_and_the_earlier_of_equal_ones() -> None:
    assert [of.step for of in select_best(saved(SCORES, higher_is_better=True), 2)] == [1, 8]


def test_scores_of_another_measurement_are_not_compared() -> None:
    mixed = [*saved({1: 0.1, 2: 0.2}), SavedCheckpoint(Path("3"), 3, Score("success", 0.0, True)), *saved({4: None})]
    assert [of.step for of in select_best(mixed, 9)] == [3]


@pytest.fixture
def keeper(tmp_path: Path) -> CheckpointKeeper:
    return make_keeper(tmp_path)


def make_keeper(run: Path, begun: Path | None = None, **keys: Any) -> CheckpointKeeper:
    state = TrainingState(policy(), OptimConfig())
    state.vla.queries.grad = torch.ones_like(state.vla.queries)
    state.optimizer.step()
    given = {"steps": 9, "checkpoint_every": 2, "keep": {"last": 1, "best": 1, "every": 5}, **keys}
    (run / "train").mkdir(parents=True, exist_ok=True)
    return CheckpointKeeper(run, state, {"name": "small"}, build(TrainingConfig, given), begun, Processes.single())


def names(run: Path) -> list[int]:
    return [of.step for of in list_checkpoints(run)]


def advance(keeper: CheckpointKeeper, steps: range, scores: Mapping[int, float] = SCORES) -> dict[int, list[int]]:
    """Return the steps of the checkpoints after each step."""
    there = {}
    for step in steps:
        if step in scores:
            keeper.record(step, Score("loss", scores[step]))
        if keeper.is_due(step):
            keeper.save(step)
        there[step] = names(keeper.run)
    return there


def test_a_better_score_is_kept_at_any_step_and_found_by_name(keeper: CheckpointKeeper, tmp_path: Path) -> None:
    there = advance(keeper, range(1, 9), {3: 0.5, 4: 0.9, 7: 0.4, 8: float("nan")})
    assert there == {1: [], 2: [2], 3: [3], 4: [3, 4], 5: [3, 5], 6: [3, 5, 6], 7: [5, 7], 8: [5, 7, 8]}
    assert [of.score and of.score.value for of in list_checkpoints(tmp_path)] == [None, 0.4, None]
    assert find_checkpoint(tmp_path, "best") == tmp_path / "train/step-00000007"
    assert find_checkpoint(tmp_path, "last") == checkpoint_of(tmp_path, "8") == tmp_path / "train/step-00000008"
    keeper.record(9, Score("loss", 0.1))
    final = keeper.finish(9)
    assert names(tmp_path) == [5, 9]
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, "last") == checkpoint_of(tmp_path) == final


def test_a_score_that_comes_after_its_checkpoint_removes_the_best_before(
    keeper: CheckpointKeeper, tmp_path: Path
) -> None:
    for step, value in ((2, 0.5), (4, 0.4)):
        keeper.save(step)
        leftover = tmp_path / f"train/step-{step:08d}/training/.state.json.1.1"  # of a kill while it was added
        leftover.write_text("{")
        keeper.record(step, Score("loss", value))
        assert names(tmp_path) == [step]
        assert not leftover.exists()


def test_a_keeper_that_resumes_keeps_the_same_ones(tmp_path: Path) -> None:
    """Scores are in the checkpoints: the one that resumes knows them."""
    straight = advance(make_keeper(tmp_path / "straight"), range(1, 9))
    killed = advance(make_keeper(tmp_path / "killed"), range(1, 5))
    resumed = make_keeper(tmp_path / "killed", checkpoint.latest(tmp_path / "killed"))
    assert killed | advance(resumed, range(5, 9)) == straight
    assert straight[8] == [5, 8]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("3", "has no checkpoint 3: it has 2, 4"),
        ("best", "no checkpoint of .* has a score.*training.best.* 2, 4"),
        ("newest", "give last, best or a number of steps"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, which: str, message: str) -> None:
    advance(make_keeper(tmp_path, keep={"last": 2}), range(1, 5), {})
    with pytest.raises(ConfigError, match=message):
        checkpoint_of(tmp_path, which)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(8 + i, seed=i) for i in range(3)])
    return mixture(root)


def run(data: Mixture, folder: Path, **keys: Any) -> Path:
    given = {"steps": 6, "batch_size": 2, "log_every": 1, "checkpoint_every": 1} | keys
    return train(recipe(model(), given), data, folder)


def test_the_settings_reach_training(data: Mixture, tmp_path: Path) -> None:
    run(data, tmp_path, keep={"last": 2, "every": 3})
    assert names(tmp_path) == [3, 5, 6]
    run(data, tmp_path, keep={"last": 1, "every": 5})  # nothing to train, but fewer to keep
    assert names(tmp_path) == [5, 6]
    run(data, tmp_path, keep={"last": 2}, steps=8)  # longer
    assert names(tmp_path) == [7, 8]


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def full_disk(monkeypatch: pytest.MonkeyPatch, *failing: int) -> list[int]:
    """Let the attempts of these numbers to write a checkpoint fail after half of it. Return the list of attempts."""
    original, attempts = VLA.save, list[int]()

    def save(self: VLA, folder: Path, recipe: Any = None) -> None:
        attempts.append(len(attempts) + 1)
        if attempts[-1] in failing:
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"half")
            raise SafetensorError(FULL)
        original(self, folder, recipe)

    monkeypatch.setattr(VLA, "save", save)
    return attempts


def test_training_continues_after_one_checkpoint_that_could_not_be_written(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = full_disk(monkeypatch, 2, 4)
    final = run(data, tmp_path)
    assert len(attempts) == 6
    assert checkpoint.read_step(final) == 6
    assert caplog.text.count("could not be written") == 2
    assert "the checkpoint after step 2 could not be written" in caplog.text
    assert "step-00000001 is whole, and the same command resumes from it. Training continues" in caplog.text


def test_two_attempts_at_one_step_are_one_checkpoint_that_could_not_be_written(
    keeper: CheckpointKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried before a measurement, and again after it."""
    full_disk(monkeypatch, 1, 2, 3)
    keeper.save(2)
    keeper.save(2)
    with pytest.raises(OSError, match="after step 4 could not be written"):
        keeper.save(4)


def test_training_stops_after_two_in_a_row_and_the_newest_survives(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, 3, 4)
    with pytest.raises(OSError, match=r"after step 4 .*: a checkpoint takes \d\.\d MB, and .* are free at ") as caught:
        run(data, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "train").glob("step-*")] == ["step-00000002"]
    monkeypatch.undo()
    straight = run(data, tmp_path / "straight")
    assert (
        run(data, tmp_path).joinpath("model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    )


def test_lines_of_the_log_that_cannot_be_written_are_lost_and_not_torn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = TrainingLog(tmp_path / "log.jsonl", 0)
    log.write({"step": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.jsonl").stat().st_size + 5, limit[1]))
        log.write({"step": 2})
        log.write({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    log.write({"step": 4})
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 4}\n'
    assert caplog.text.count("lines are lost until it can") == 1


def test_a_stopped_run_that_cannot_be_saved_says_so_at_once(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, 1)
    given = {"steps": 6, "batch_size": 2, "checkpoint_every": 5}
    with pytest.raises(OSError, match=r"after step 1 could not be written .*The newest: there is none yet"):
        train(recipe(model(), given), data, tmp_path, stop=lambda: True)
    with pytest.raises(Interrupted):
        train(recipe(model(), given), data, tmp_path, stop=lambda: True)


@pytest.mark.parametrize(("free", "fits"), [(10_000, "none"), (3_500_000, "one"), (10**9, "all")])
def test_the_free_space_is_compared_before_the_first_step(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    free: int, fits: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if fits == "none":
        with pytest.raises(OSError, match=r"not started: a checkpoint takes \d\.\d MB, and 0\.0 MB are free at"):
            run(data, tmp_path)
        assert not (tmp_path / "train/log.jsonl").read_text()
        return
    with caplog.at_level(logging.WARNING):
        run(data, tmp_path)
    assert ("training.keep asks for 2 more of them at a time" in caplog.text) == (fits == "one")


@pytest.mark.parametrize("averaged", [False, True])
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(averaged: bool, data: Mixture, tmp_path: Path) -> None:
    vla = VLA(model(), data.robots())
    before = disk_space.checkpoint_size(TrainingState(vla, OptimConfig(), EmaConfig() if averaged else None))
    final = run(data, tmp_path, **{"ema": {}} if averaged else {})
    written = sum(f.stat().st_size for f in final.rglob("*") if f.is_file())
    assert written == pytest.approx(before, rel=0.02, abs=2**20)


def test_a_real_full_disk(data: Mixture, tmp_path: Path) -> None:
    """A file system of 4 MB, which holds two checkpoints but not three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        filler = disk / "filler"
        given = {"steps": 6, "batch_size": 2, "checkpoint_every": 1, "log_every": 1}

        def fill(progress: Any) -> None:
            if progress.step == 3:
                filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 300_000)))

        with pytest.raises(OSError, match="after step 4 could not be written") as caught:
            train(recipe(model(), given), data, disk / "run", progress=fill)
        assert caught.value.errno == errno.ENOSPC
        assert names(disk / "run") == [2]
        filler.unlink()
        final = train(recipe(model(), given), data, disk / "run")
        log = [json.loads(line)["step"] for line in (disk / "run/train/log.jsonl").read_text().splitlines()]
        assert log == [1, 2, 3, 4, 5, 6]
        VLA.load(final)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
