"""States of sharded trainings that tests save, restore and kill in processes of their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from anyvla.checkpoint.of_run import step_folder
from anyvla.config import build
from anyvla.decoders.base import Loss
from anyvla.files import tensor_files
from anyvla.files.sharded_tensors import gather
from anyvla.training import checkpoint, shard_writer
from anyvla.training.ema import EmaConfig
from anyvla.training.launchers import read_launch
from anyvla.training.optim import OptimConfig
from anyvla.training.processes import Processes
from anyvla.training.sharded_gradients import ShardedGradients
from anyvla.training.sharding import shard
from anyvla.training.state import TrainingState
from tests import small
from tests.training.killable import watch_operations

FILES = ("model.safetensors", "training/weights.safetensors", "training/state.safetensors")


def make_state(processes: Processes | None = None, seed: int = 0) -> TrainingState:
    """Return the state of a policy after an optimizer step. Its average differs from its weights.

    `processes`: those over which it is sharded. It is the same for each number of them, but for rounding.
    """
    torch.manual_seed(seed)
    backbone = small.NANO | {"lora": {"rank": 2}}  # trained and frozen weights, in each layer
    vla = small.awake(small.policy(backbone=backbone, decoder="flow", proprio="token")).train()
    if processes is not None:
        shard(vla, processes, torch.device("cpu"))
    average = EmaConfig(decay=0.5, warmup=False)
    state = TrainingState(vla, build(OptimConfig, {"lr": 0.1 + seed}), average, processes=processes)
    loss = vla.loss(small.batch(2, 1), [torch.Generator().manual_seed(row) for row in range(2)]).total
    (loss / (1 if processes is None else processes.count)).backward()  # each of them has the whole batch
    state.optimizer.step()
    state.ema.update(5)  # type: ignore[union-attr]
    return state


def read_all(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, by file and name."""
    found = {}
    for name in FILES:
        with tensor_files.opened(folder / name) as file:
            found |= {f"{name} {key}": file.get_tensor(key) for key in list(file.keys())}
    return found


def save_new(folder: str) -> None:
    """Save a new state that is sharded over these processes, at the second attempt. Print the error and some actions.

    In the first attempt, process 1 cannot write. Process 0 acts alone, with the average of the weights.
    """
    with Processes.joined(read_launch()) as processes:
        state = make_state(processes)
        works = shard_writer.save_file
        if processes.rank == 1:
            shard_writer.save_file = fail_to_write
        try:
            checkpoint.save(Path(folder), state, 5, {"name": "new"}, "card")
        except OSError as error:
            processes.wait_for_all()
            print(json.dumps([error.errno, error.strerror, sorted(p.name for p in Path(folder).parent.iterdir())]))
        shard_writer.save_file = works
        processes.wait_for_all()
        checkpoint.save(Path(folder), state, 5, {"name": "new"}, "card")
        with state.acting_weights():
            if processes.is_main:
                print(json.dumps(state.vla.predict(small.batch(2, 1)).tolist()))
        state.vla.loss(small.batch(2, 1), [torch.Generator().manual_seed(row) for row in range(2)]).total.backward()
        print(json.dumps(use_different_weights(processes)))


def use_different_weights(processes: Processes) -> dict[str, float]:
    """Return the mean gradient of each weight that has one, if process 0 uses the queries and process 1 the decoder."""
    vla = small.policy().train()

    def loss(*_: Any) -> Loss:
        used = vla.queries if processes.is_main else next(vla.decoder.parameters())
        return Loss(used.sum(), torch.ones(()), {})

    vla.loss = loss  # type: ignore[method-assign]
    shard(vla, processes, torch.device("cpu"))
    gradients = ShardedGradients(vla, processes)
    with gradients.summing(last=True):
        gradients.loss(small.batch(1, 1), None).total.backward()
    return {name: float(gather(w.grad).mean()) for name, w in vla.named_parameters() if w.grad is not None}


def save_again(folder: str, into: str) -> None:
    """Restore a checkpoint into a sharded state, and save that."""
    with Processes.joined(read_launch()) as processes:
        state = make_state(processes, seed=1)
        assert checkpoint.restore(Path(folder), state) == 5
        checkpoint.save(Path(into), state, 5, {"name": "again"}, "card")


def save_twice(run: str, victim: str, die_at: str, report: str) -> None:
    """Save two checkpoints of a run. Process `victim` dies at this of its file operations in the second."""
    with Processes.joined(read_launch()) as processes:
        state = make_state(processes)
        (Path(run) / "train").mkdir(parents=True, exist_ok=True)
        checkpoint.save(step_folder(Path(run), 5), state, 5, {"name": "one"}, "card")
        if processes.rank == int(victim):
            shard_writer.save_file = write_in_halves
            watch_operations(run, int(die_at), os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        checkpoint.save(step_folder(Path(run), 6), state, 6, {"name": "two"}, "card")


def fail_to_write(*_: Any, **__: Any) -> None:
    """Fail as on a full disk."""
    raise OSError(28, "No space left on device")


def write_in_halves(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
    """Write a file of safetensors so that `watch_operations` sees it: safetensors itself writes outside of Python."""
    data = safetensors.torch.save(tensors, metadata)
    with Path(path).open("wb", buffering=0) as file:
        file.write(data[: len(data) // 2])
        sys.audit("os.rename", path)
        file.write(data[len(data) // 2 :])
