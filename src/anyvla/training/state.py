"""The state that a training changes from step to step, and that its checkpoints therefore hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyvla.checkpoint.files import WEIGHTS
from anyvla.files import tensor_files, weights
from anyvla.files.documents import DocumentError
from anyvla.files.sharded_tensors import is_sharded, local, own_rows
from anyvla.policy import VLA
from anyvla.training import optimizer_state
from anyvla.training.ema import Ema, EmaConfig
from anyvla.training.optim import OptimConfig, build_optimizer
from anyvla.training.processes import Processes
from anyvla.training.shard_writer import do_together, naming_errors, write_tensors
from anyvla.training.sharding import gathered

OPTIMIZER = "training/state.safetensors"
RAW = "training/weights.safetensors"  # the trained weights themselves, where model.safetensors holds their average


class TrainingState:
    """A policy in training with its optimizer, the average of its weights and the scale of its gradients.

    `ema` is None without `training.ema`. `scaler` is enabled with float16 only; else it does nothing.
    """

    def __init__(
        self,
        vla: VLA,
        optim: OptimConfig,
        ema: EmaConfig | None = None,
        precision: torch.dtype = torch.float32,
        processes: Processes | None = None,
    ) -> None:
        """Build the state before the first step; the average begins with the weights as they are now.

        `processes`: of a training whose policy may be sharded over them.
        """
        self.vla = vla
        sharded = processes is not None and is_sharded(vla.queries)
        self.writers = processes if processes is not None and sharded else Processes.single()
        self.optimizer = build_optimizer(optim, vla)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = None if ema is None else Ema(ema, self.parameters)
        self.scaler = torch.amp.GradScaler(vla.device.type, enabled=precision == torch.float16)

    @contextlib.contextmanager
    def acting_weights(self) -> Iterator[None]:
        """Give the policy the weights that it will act with: the average if there is one, and whole ones.

        All processes of a sharded training must enter and leave the context. Within it, each can act alone.
        """
        with self._averaged(), gathered(self.vla):
            yield

    def save(self, folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Write the policy and its training into a folder. Return the keys of its JSON file beside the step.

        All processes of a sharded training do it together, and raise OSError if one of them fails.
        """
        with self._averaged():
            if self.writers.count == 1:
                with naming_errors():
                    self.vla.save(folder, recipe)
            else:
                do_together(self.writers, lambda: self._describe(folder, recipe))
                write_tensors(folder / WEIGHTS, weights.list_once(self.vla), self.writers)
        (folder / "training").mkdir(exist_ok=True)
        if self.ema is not None:
            write_tensors(folder / RAW, self._trained(), self.writers)
        write_tensors(folder / OPTIMIZER, optimizer_state.list_tensors(self.optimizer), self.writers)
        return {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped_in()

    def _describe(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        if self.writers.is_main:
            self.vla.save_description(folder, recipe)

    def restore(self, folder: Path, document: Mapping[str, Any]) -> None:
        """Load the weights and the state of a checkpoint, whose JSON file is `document`.

        Raises a ValueError that names the file, and changes nothing, if one is missing, damaged or of another model.
        """
        skipping = self.scaler.is_enabled() or "scaler" in document
        of_optimizer = optimizer_state.read(folder / OPTIMIZER, self.optimizer, may_be_empty=skipping)
        scaler = None
        if self.scaler.is_enabled() and "scaler" in document:  # else the precision was another one until now
            scaler = self._read_scaler(document["scaler"], folder)
        if self.ema is None:
            weights.load(self.vla, folder / WEIGHTS)
        else:
            raw = self._read_raw(folder / RAW)
            weights.load(self.vla, folder / WEIGHTS)
            self.ema.take()
            for name, parameter in self._trained().items():
                local(parameter.detach()).copy_(raw[name])
        optimizer_state.put(of_optimizer, self.optimizer)
        if scaler is not None:
            self.scaler.load_state_dict(scaler)

    def _trained(self) -> dict[str, nn.Parameter]:
        trained = set(self.parameters)
        return {name: p for name, p in self.vla.named_parameters() if p in trained}

    def _read_raw(self, path: Path) -> dict[str, torch.Tensor]:
        """Return the rows of the trained weights that this process holds."""
        trained, rows = self._trained(), dict[str, torch.Tensor]()
        with tensor_files.opened(path) as file:
            weights.check_finite(file, path)
            odd = trained.keys() ^ file.keys()
            for name in trained.keys() & file.keys():
                tensor, weight = file.get_tensor(name), trained[name]
                odd |= {name} if (tensor.shape, tensor.dtype) != (weight.shape, weight.dtype) else set()
                rows[name] = tensor[own_rows(weight)].clone() if is_sharded(weight) else tensor
        if odd:
            raise ValueError(
                f"{path} does not hold the trained weights of this model ({tensor_files.join_first(odd)}): copy the "
                "checkpoint again, whole"
            )
        return rows

    def _read_scaler(self, found: Any, folder: Path) -> dict[str, Any]:
        known = self.scaler.state_dict()
        if not isinstance(found, dict) or found.keys() != known.keys():
            raise DocumentError(f"{folder}/training/state.json, scaler: expected the keys {', '.join(known)}")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in found.values()):
            raise DocumentError(f"{folder}/training/state.json, scaler: expected numbers from 0 on, found {found}")
        if not found["scale"]:
            raise DocumentError(f"{folder}/training/state.json, scaler: a scale of 0 would hide all gradients")
        return found
