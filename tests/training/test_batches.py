"""Workers that make batches: what they need of the machine, and what is said when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small import NANO, embodiment, episode, model

from anyvla.config import build, to_dict
from anyvla.data.episode import Episode
from anyvla.data.formats.lerobot_writer import write_dataset
from anyvla.data.mixture import Mixture
from anyvla.data.open import open_dataset
from anyvla.data.views import ViewConfig
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training.batches import StalledData, batches_from
from anyvla.training.loop import Progress, TrainingConfig, train
from anyvla.worker_pool import WorkerDied


class Windows:
    """One source, of which no batch comes."""

    sizes = (10,)
    mixture = SimpleNamespace(shares=np.ones(1))

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def batch(self, draw: Any) -> Any:
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("episode 3 is damaged")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("hangs", StalledData, r"no batch for 5 s at step 1: .*--data.workers 0, .*--data.worker_timeout_s"),
        ("is killed", WorkerDied, r"a worker process died \(exit status -9\).*try fewer --data.workers"),
        ("is damaged", ValueError, r"^episode 3 is damaged$"),
    ],
)
def test_a_worker_that_fails_is_one_line_in_time(fault: str, error: type[Exception], message: str) -> None:
    begin = time.monotonic()
    config = build(TrainingConfig, {"steps": 10, "batch_size": 2})
    with pytest.raises(error, match=message) as raised:
        next(batches_from(0, Windows(fault), config, ViewConfig(), 2, 5.0 if fault == "hangs" else 120.0))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begin < 120


def test_a_thread_that_hangs_is_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(TrainingConfig, {"steps": 10, "batch_size": 2})
    monkeypatch.setattr(time, "sleep", lambda _, wait=time.sleep: wait(0.5))
    with pytest.raises(ValueError, match="episode 3 is damaged"):
        next(batches_from(0, Windows("hangs"), config, ViewConfig(), 0, 0.2))  # type: ignore[arg-type]
    assert "the batch of step 1 has not come for 0.2 s" in caplog.text


class Hanging(Mixture):
    """A mixture whose reader hangs as long as a file is there."""

    def __init__(self, root: Path, flag: Path) -> None:
        super().__init__([open_dataset(root)], [1.0], [None])
        self.flag = flag

    def instruction(self, source: int, episode: Episode, chance: int) -> str:
        while self.flag.exists():
            time.sleep(0.1)
        return super().instruction(source, episode, chance)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_what_was_trained_is_kept_when_the_data_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Whether somebody asks to stop meanwhile, or it takes too long."""
    monkeypatch.setattr("anyvla.training.batches._STOP_WAITS_S", 1.0)
    write_dataset(tmp_path / "dataset", embodiment(), [episode(12, seed=i) for i in range(3)])
    flag = tmp_path / "hang"
    data = Hanging(tmp_path / "dataset", flag)
    config = build(TrainingConfig, {"steps": 12, "batch_size": 2, "log_every": 1})
    small = model(decoder="regression")
    recipe = {"name": "small", "model": to_dict(small), "data": {}, "training": to_dict(config)}

    def run(folder: Path, **keys: Any) -> Path:
        return train(small, config, data, data.robots(), folder, recipe, workers=1, **keys)

    def hang(progress: Progress) -> None:
        if progress.step == 3:
            flag.touch()

    def stop() -> bool:  # while the batch is waited for
        return asked and flag.exists() and time.time() - flag.stat().st_mtime > 3

    with pytest.raises(Interrupted if asked else StalledData, match=r"stopped after|no batch for 20 s"):
        run(tmp_path / "run", progress=hang, stop=stop, worker_timeout_s=300.0 if asked else 20.0)
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
