"""Processes that cannot train together are refused before the first step, with one message."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anyvla.config import ConfigError, build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.training import device as device_module
from anyvla.training import machine_limits
from anyvla.training.accelerate_options import check_accelerate_options
from anyvla.training.agreement import check_batch_divides
from anyvla.training.config import TrainingConfig
from anyvla.training.device import pick_own_device
from anyvla.training.machine_limits import check_file_descriptors, check_shared_memory
from tests.small import embodiment, episode
from tests.training.pretended import Pretended
from tests.training.shared_runs import Runs


@pytest.mark.parametrize(
    ("count", "accumulate", "size", "message"),
    [
        (2, 1, 7, "batch_size is 7, .* over all 2 processes, each in 1 part .*multiple of 2, such as 6 or 8"),
        (4, 2, 4, "each in 2 parts .*multiple of 8, such as 8$"),
        (3, 1, 8, "multiple of 3, such as 6 or 9"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(count: int, accumulate: int, size: int, message: str) -> None:
    config = build(TrainingConfig, {"batch_size": size, "accumulate": accumulate})
    with pytest.raises(ConfigError, match=message):
        check_batch_divides(config, Pretended(0, count))
    check_batch_divides(build(TrainingConfig, {"batch_size": 24, "accumulate": 2}), Pretended(0, count))


def differ_and_train(what: str, *arguments: str) -> int:
    """Train; process 1 differs from process 0."""
    from anyvla.cli.main import main

    options: list[str] = []
    if os.environ["RANK"] == "1":
        if what == "seed":
            options = ["--training.seed", "1", "--training.log_every", "3"]
        elif what == "files":
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, (140, 140))
        elif what == "versions":
            from anyvla.training import agreement

            own = agreement.versions() | {"anyvla": "0.0.1"}
            agreement.versions = lambda: own
        else:
            options = ["--data.sources", what]
    return main(["train", *arguments, *options])


HOST = socket.gethostname()
BOTH = f"process 0 of 2 (host {HOST}) and process 1 of 2 (host {HOST}) have different "


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("seed", BOTH + "recipe (training.seed: 0 in process 0, 1 in process 1; training.log_every: 1 in process 0, 3"),
        ("versions", BOTH + "versions (anyvla: "),
        (
            "files",
            f"process 1 of 2 (host {HOST}): a process may open 140 files here, and training needs 152 with 1 data",
        ),
    ],
)
def test_processes_that_differ_are_refused_with_one_message(runs: Runs, what: str, message: str) -> None:
    given = [runs.recipe(), "--out", runs.folder / "refused", "--data.workers", "1"]
    main, other = runs.launch(differ_and_train, 2, what, *given)
    assert (main.status, other.status) == (1, 1)
    assert main.err.startswith("train: " + message)
    assert main.err.count("\n") == 1
    assert other.err == main.out == other.out == ""
    assert not (runs.folder / "refused").exists()


def test_processes_with_other_data_are_refused(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.data / "one", tmp_path / "same")
    write_dataset(tmp_path / "changed", embodiment(), [episode(9 + seed, seed=seed + 1) for seed in range(3)])
    given = [runs.recipe(sources=1, steps=1), "--out", runs.folder / "refused"]
    main, other = runs.launch(differ_and_train, 2, f"[{{path: {tmp_path / 'changed'}, weight: 2.0}}]", *given)
    assert (main.status, other.status, other.err) == (1, 1, "")
    assert "train: " + BOTH + "data (small: " in main.err
    assert not (runs.folder / "refused/checkpoint").exists()
    for ended in runs.launch(differ_and_train, 2, f"[{{path: {tmp_path / 'same'}, weight: 2.0}}]", *given):
        assert ended.status == 0, ended.err  # each machine may keep a copy of its own


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_a_device_for_one_is_refused_for_several(name: str) -> None:
    with pytest.raises(ConfigError, match=f"training.device is {name}, but 2 processes train"):
        pick_own_device(name, Pretended(0, 2))
    assert pick_own_device("cpu", Pretended(1, 2)).type == "cpu"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def pretend(count: int) -> None:
        fake = SimpleNamespace(
            device_count=lambda: count,
            set_device=lambda device: None,
            get_device_properties=lambda device: SimpleNamespace(uuid=f"gpu-{device.index}"),
        )
        monkeypatch.setattr(device_module, "pick_device", torch.device)
        monkeypatch.setattr(torch, "cuda", fake)

    return pretend


def test_each_process_has_the_gpu_of_its_number(gpus: Callable[[int], None]) -> None:
    gpus(4)
    uuids = [f"gpu-{i}" for i in range(4)]
    picked = [pick_own_device("cuda", Pretended(rank, 4, says=uuids)) for rank in range(4)]
    assert picked == [torch.device("cuda", rank) for rank in range(4)]
    with pytest.raises(ConfigError, match=r"6 processes run on this machine, which has 4 GPUs.*--nproc-per-node 4"):
        pick_own_device("cuda", Pretended(4, 6))


def test_processes_that_share_a_gpu_or_lack_one_are_refused(gpus: Callable[[int], None]) -> None:
    gpus(1)  # as srun --gpus-per-task 1 shows it: each process has a GPU 0
    assert pick_own_device("cuda", Pretended(1, 2, says=["gpu-7", None])) == torch.device("cuda", 0)
    with pytest.raises(
        ConfigError, match=r"process 0 of 2 \(host here\) and process 1 of 2 \(host here\) have the same"
    ):
        pick_own_device("cuda", Pretended(1, 2, says=["gpu-0", None]))
    assert pick_own_device("cuda", Pretended(1, 2, ["a", "b"], ["gpu-0", None])).index == 0  # of another machine
    with pytest.raises(
        ConfigError, match=r"process 1 of 2 \(host b\) has a GPU and process 0 of 2 \(host a\) has none"
    ):
        pick_own_device("cuda", Pretended(1, 2, ["a", "b"], [None, "gpu-0"]))


def test_too_few_file_descriptors_are_raised_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, given = {"now": (200, 4096)}, []
    fake = SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _: limits["now"], setrlimit=lambda _, of: given.append(of)
    )
    monkeypatch.setattr(machine_limits, "resource", fake)
    check_file_descriptors(2, Pretended(0, 2))
    assert given == []
    check_file_descriptors(32, Pretended(0, 2))
    assert given == [(128 + 8 * 32 + 8 * 2, 4096)]
    limits["now"] = (200, 256)
    with pytest.raises(ConfigError, match=r"may open 256 files here, and training needs 400 .*ulimit -n 400"):
        check_file_descriptors(32, Pretended(0, 2))


def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_limits.os, "statvfs", lambda _: SimpleNamespace(f_bavail=64, f_frsize=1 << 20))
    gpu = torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"has 67 MB free, and the 4 GPUs .* need 77 MB .*--shm-size 1g"):
        check_shared_memory(gpu, Pretended(0, 4), {})
    check_shared_memory(gpu, Pretended(0, 2), {})
    check_shared_memory(gpu, Pretended(0, 4), {"NCCL_SHM_DISABLE": "1"})
    check_shared_memory(torch.device("cpu"), Pretended(0, 4), {})
    check_shared_memory(gpu, Pretended(0, 4, list("abcd")), {})  # one on each machine


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"MIXED_PRECISION": "bf16"}, "mixed_precision bf16, .*--training.precision bfloat16"),
        ({"MIXED_PRECISION": "fp8"}, "mixed_precision fp8, .*no such precision"),
        ({"USE_FSDP": "true"}, "asks for FSDP, .*--training.shard true"),
        ({"USE_DEEPSPEED": "true"}, "asks for DeepSpeed, .*--multi_gpu"),
        ({"USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend inductor, .*--training.compile true"),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps 4, .*--training.accumulate 4"),
        ({"USE_CPU": "True"}, "asks for the CPU, .*--training.device cpu"),
    ],
)
def test_options_of_accelerate_that_the_recipe_does_not_have_are_refused(asked: dict[str, str], message: str) -> None:
    config, gpu = TrainingConfig(), torch.device("cuda")
    with pytest.raises(ConfigError, match="accelerate's configuration asks for .*" + message.replace("asks for ", "")):
        check_accelerate_options(config, gpu, torch.float32, {f"ACCELERATE_{k}": v for k, v in asked.items()})


def test_options_of_accelerate_that_the_recipe_has_are_taken() -> None:
    config = build(TrainingConfig, {"compile": True, "accumulate": 4, "shard": True})
    same = {
        "MIXED_PRECISION": "bf16",
        "USE_FSDP": "true",
        "DYNAMO_BACKEND": "INDUCTOR",
        "GRADIENT_ACCUMULATION_STEPS": "4",
        "USE_CPU": "1",
    }
    asked = {f"ACCELERATE_{k}": v for k, v in same.items()}
    check_accelerate_options(config, torch.device("cpu"), torch.bfloat16, asked)
    none = {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "USE_CPU": "False", "GRADIENT_ACCUMULATION_STEPS": "1"}
    check_accelerate_options(
        TrainingConfig(), torch.device("cuda"), torch.bfloat16, {f"ACCELERATE_{k}": v for k, v in none.items()}
    )
