"""Batches made by a thread or by workers: their contents, and the errors of workers that fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from anyvla.config import build
from anyvla.data.episode import Episode
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.training import window
from anyvla.data.training.augment import AugmentConfig, augment
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.reading import ReadingNotes
from anyvla.data.training.sampler import MixtureSampler
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.data.transforms.wrapped import WrappedDataset
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.robot.views import ViewConfig, resize_to_view
from anyvla.training import batches
from anyvla.training.batches import StalledData, make_batches
from anyvla.training.config import TrainingConfig
from anyvla.training.loop import train
from anyvla.training.meter import Progress
from anyvla.types import Batch
from anyvla.worker_pool import WorkerDied
from tests.small import NANO, embodiment, episode, model, recipe


class Windows:
    """One source that yields no batch."""

    sizes = (10,)
    shares = np.ones(1)

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def note_reading(self, notes: ReadingNotes) -> None:
        self.notes = notes

    def batch(self, draw: Any) -> Any:
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "is killed":
            with self.notes.note("data/file-000.parquet, episode 7"):
                os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("episode 3 is damaged")


class Threads(ThreadPoolExecutor):
    """A pool of threads in place of processes, which take seconds to start."""

    def __init__(self, workers: int, begin: Any, given: Any, *, remedy: str) -> None:
        super().__init__(workers, initializer=begin, initargs=given)

    def finished(self, futures: Any, timeout_s: float) -> Any:
        return wait(futures, min(timeout_s, 0.01), FIRST_COMPLETED).done

    def kill(self) -> None:
        self.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, *error: object) -> None:
        self.kill()  # without waiting for them, as for killed processes


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WorkerPool", Threads)


CONFIG = build(TrainingConfig, {"steps": 10, "batch_size": 2})


class Deadly(WrappedDataset):
    """A data set whose third episode kills the process that reads it, as a decoder that takes all memory does."""

    def __getitem__(self, index: int) -> Episode:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow  # a worker imports everything
def test_a_worker_that_is_killed_while_it_reads_names_the_file_and_the_episode(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", embodiment(), [episode(9, seed=i) for i in range(4)])
    data = Deadly(open_dataset(tmp_path / "data"), {"test": 1})
    windows = WindowDataset(Mixture([data], [1.0], [None]), WindowConfig(chunk=4))
    reading = rf"It was reading .*{tmp_path}/data/data/.*\.parquet, episode 2"
    with pytest.raises(WorkerDied, match=reading):
        for _ in make_batches(0, windows, CONFIG, ViewConfig(), 1, 120.0):
            pass


@pytest.mark.slow  # tests/test_worker_pool.py has the same without a policy
def test_a_killed_worker_gives_a_message_of_one_line() -> None:
    reading = "It was reading data/file-000.parquet, episode 7$"
    with pytest.raises(
        WorkerDied, match=rf"a worker process died \(exit status -9\).*try fewer --data.workers.*{reading}"
    ) as raised:
        next(make_batches(0, Windows("is killed"), CONFIG, ViewConfig(), 1, 120.0))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_workers_pass_on_errors_of_the_data(threads: None) -> None:
    with pytest.raises(ValueError, match=r"^episode 3 is damaged$"):
        next(make_batches(0, Windows("is damaged"), CONFIG, ViewConfig(), 2, 120.0))  # type: ignore[arg-type]


class Clock:
    """A clock that advances by a second at each reading."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 1.0
        return self.seconds


@pytest.mark.parametrize(("asked_to_stop", "seconds"), [(False, 50), (True, 5)])
def test_training_waits_for_workers_as_long_as_allowed(
    threads: None, monkeypatch: pytest.MonkeyPatch, asked_to_stop: bool, seconds: int
) -> None:
    """The recipe sets the time; after a request to stop it is 5 seconds."""
    clock, released = Clock(), threading.Event()
    windows = Windows("hangs")
    monkeypatch.setattr(windows, "batch", lambda draw: released.wait(60))
    monkeypatch.setattr(batches, "time", clock)
    with pytest.raises(
        StalledData, match=r"no batch for 50 s at step 4: .*--data.workers 0, .*--data.worker_timeout_s"
    ):
        next(make_batches(3, windows, CONFIG, ViewConfig(), 2, 50.0, lambda: asked_to_stop))  # type: ignore[arg-type]
    released.set()
    assert clock.seconds == 1 + seconds + 1


class Numbered:
    """Windows whose batches contain their own indices. `wait`: each batch takes a random time."""

    sizes = (40, 10)
    shares = np.array([0.75, 0.25])

    def __init__(self, wait: bool) -> None:
        self.wait = wait

    def note_reading(self, notes: ReadingNotes) -> None:
        self.notes = notes

    def batch(self, draw: Any) -> dict[str, Any]:
        if self.wait:
            time.sleep(0.02 * random.random())
        height, width = np.mgrid[:8, :8]
        images = np.empty((len(draw), 1, 2, 8, 8, 3), np.uint8)
        images[..., 0] = 8 * height + width
        images[..., 1] = draw.windows[:, None, None, None, None]
        images[..., 2] = draw.sources[:, None, None, None, None]
        zeros, true = np.zeros((len(draw), 1, 1), np.float32), np.ones((len(draw), 1, 1), bool)
        return {
            "images": images,
            "proprio": zeros,
            "instructions": [str(c) for c in draw.chance],
            "actions": zeros[..., None],
            "action_mask": true,
            "step_mask": true[..., 0],
            "robots": draw.sources,
        }


def made(start: int, workers: int, rows: range | None = None, **keys: Any) -> list[Batch]:
    config = build(TrainingConfig, {"steps": 6, "batch_size": 4, "augment": {"shift": 2}} | keys)
    windows: Any = Numbered(workers > 0)
    return list(make_batches(start, windows, config, ViewConfig(), workers, 60.0, rows=rows))


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and one.instructions == other.instructions


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_batches_of_the_thread_in_order(threads: None, start: int, workers: int) -> None:
    alone, together = made(0, 0), made(start, workers)
    assert len(alone) == 6
    assert all(same(one, other) for one, other in zip(alone[start:], together, strict=True))


def test_batches_follow_from_the_seed_and_the_step() -> None:
    """The sampler's windows in its order, each shifted by a generator of (seed, step, row) alone."""
    sampler = MixtureSampler([40, 10], [0.75, 0.25], 4, 7)
    for step, batch in enumerate(made(0, 0, seed=7)):
        draw = sampler.sample(step)
        seeds = np.random.SeedSequence((7, step, 0, 2)).generate_state(4, np.uint64)
        of_rows = [torch.Generator().manual_seed(int(seed) // 2) for seed in seeds]
        plain = torch.from_numpy(Numbered(False).batch(draw)["images"])
        shifted = augment(plain, AugmentConfig(shift=2), 1.0, of_rows, [1] * 4)
        assert torch.equal(batch.images, shifted)
        assert batch.instructions == [str(c) for c in draw.chance]
        assert batch.robots.tolist() == draw.sources.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_of_a_batch_are_its_rows(threads: None, workers: int) -> None:
    """So several processes train on the windows of one, with the same images and instructions."""
    whole = made(0, 0, batch_size=8)
    for rows in (range(2), range(2, 6), range(6, 8)):
        for batch, part in zip(whole, made(0, workers, rows, batch_size=8), strict=True):
            assert part.first_row == rows.start
            assert len(part.instructions) == len(part.images) == len(rows)
            expected = batch.cut(rows.start, rows.stop)
            assert same(part, expected)
            assert torch.equal(part.robots, expected.robots)


def test_steps_seeds_windows_and_views_shift_each_in_their_own_way() -> None:
    settings = {"steps": 4, "augment": {"shift": 3}, "batch_size": 8}
    found = [batch.images[:, 0, :, 4, 4, 0] for seed in (0, 1) for batch in made(0, 0, seed=seed, **settings)]
    assert not any(torch.equal(one, other) for one, other in combinations(found, 2))
    assert all(len(of_step[:, view].unique()) > 3 for of_step in found for view in range(2))
    assert not any(torch.equal(of_step[:, 0], of_step[:, 1]) for of_step in found)


def test_a_thread_that_hangs_is_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _, wait=time.sleep: wait(0.3))
    with pytest.raises(ValueError, match="episode 3 is damaged"):
        next(make_batches(0, Windows("hangs"), CONFIG, ViewConfig(), 0, 0.1))  # type: ignore[arg-type]
    assert "the batch of step 1 has not come for 0.1 s" in caplog.text


def test_the_thread_of_the_data_and_its_decoders_leave_the_cores_to_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With helpers of their own they slow down every step; see `compute_alone`."""
    used: dict[str, int] = {}

    def note(function: Any) -> Any:
        def noted(*given: Any) -> Any:
            used[threading.current_thread().name.partition("_")[0]] = torch.get_num_threads()
            return function(*given)

        return noted

    monkeypatch.setattr(batches, "augment", note(augment))
    monkeypatch.setattr(window, "resize_to_view", note(resize_to_view))
    write_dataset(tmp_path / "data", embodiment(), [episode(9, seed=i) for i in range(2)])
    windows = WindowDataset(Mixture([open_dataset(tmp_path / "data")], [1.0], [None]), WindowConfig(chunk=4))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(make_batches(0, windows, CONFIG, ViewConfig(), 0, 60.0))
        assert used == {"data": 1, "decode": 1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Hanging(Mixture):
    """A mixture whose reader hangs as long as a file exists."""

    def __init__(self, root: Path, flag: Path) -> None:
        super().__init__([open_dataset(root)], [1.0], [None])
        self.flag = flag

    def instruction(self, source: int, episode: Episode, chance: int) -> str:
        while self.flag.exists():
            time.sleep(0.1)
        return super().instruction(source, episode, chance)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_a_checkpoint_is_written_when_the_data_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Both after a request to stop and after the time allowed."""
    monkeypatch.setattr("anyvla.training.batches._STOP_WAITS_S", 1.0)
    write_dataset(tmp_path / "dataset", embodiment(), [episode(12, seed=i) for i in range(3)])
    flag = tmp_path / "hang"
    data = Hanging(tmp_path / "dataset", flag)
    patience = 300.0 if asked else 20.0
    training = {"steps": 12, "batch_size": 2, "log_every": 1}
    small = recipe(model(decoder="regression"), training, workers=1, worker_timeout_s=patience)

    def run(folder: Path, **keys: Any) -> Path:
        return train(small, data, folder, **keys)

    def hang(progress: Progress) -> None:
        if progress.step == 3:
            flag.touch()

    def stop() -> bool:  # called while training waits for the batch
        return asked and flag.exists() and time.time() - flag.stat().st_mtime > 3

    with pytest.raises(Interrupted if asked else StalledData, match=r"stopped after|no batch for 20 s"):
        run(tmp_path / "run", progress=hang, stop=stop)
    [left] = (tmp_path / "run" / "train").glob("step-*")
    assert 3 <= int(left.name.removeprefix("step-")) < 12
    flag.unlink()
    one, other = (VLA.load(run(tmp_path / name)).state_dict() for name in ("run", "straight"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def in_namespace(mount: str, *command: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {mount} tmpfs /dev/shm && exec "$@"', "sh", *command]


@pytest.mark.slow
@pytest.mark.parametrize("mount", ["size=1m", "ro"])
def test_training_with_workers_needs_no_shared_memory_for_its_batches(tmp_path: Path, mount: str) -> None:
    """As in a container: /dev/shm holds less than one batch, or cannot be written at all."""
    if subprocess.run(in_namespace(mount, "true"), capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    write_dataset(tmp_path / "dataset", embodiment(), [episode(12, seed=i) for i in range(3)])
    document = {
        "name": "small",
        "data": {"sources": [{"path": str(tmp_path / "dataset")}], "workers": 2},
        "model": {"backbone": NANO, "history": "none", "fuser": "identity", "decoder": "regression", "chunk": 4},
        "training": {"steps": 2, "batch_size": 256},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "anyvla.cli.main", "train", str(tmp_path / "small.yaml"), "--out"]
    done = subprocess.run(
        in_namespace(mount, *command, str(tmp_path / "run")), capture_output=True, text=True, timeout=300
    )
    if mount == "ro":
        assert done.returncode == 1
        assert "/dev/shm" in done.stderr.splitlines()[-1]
        assert "--shm-size" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr
