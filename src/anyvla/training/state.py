"""The state that a training changes from step to step, and that its checkpoints therefore hold."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from anyvla.checkpoint.files import WEIGHTS
from anyvla.files import tensor_files, weights
from anyvla.files.documents import DocumentError
from anyvla.policy import VLA
from anyvla.training import optimizer_state
from anyvla.training.ema import Ema, EmaConfig
from anyvla.training.optim import OptimConfig, build_optimizer

OPTIMIZER = "training/state.safetensors"
RAW = "training/weights.safetensors"  # the trained weights themselves, where model.safetensors holds their average


class TrainingState:
    """A policy in training with its optimizer, the average of its weights and the scale of its gradients.

    `ema` is None without `training.ema`. `scaler` is enabled with float16 only; else it does nothing.
    """

    def __init__(
        self, vla: VLA, optim: OptimConfig, ema: EmaConfig | None = None, precision: torch.dtype = torch.float32
    ) -> None:
        """Build the state before the first step; the average begins with the weights as they are now."""
        self.vla = vla
        self.optimizer = build_optimizer(optim, vla)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ema = None if ema is None else Ema(ema, self.parameters)
        self.scaler = torch.amp.GradScaler(vla.device.type, enabled=precision == torch.float16)

    def acting_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has the weights that it will act with: the average if there is one."""
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped_in()

    def save(self, folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Write the policy and its training into a folder. Return the keys of its JSON file beside the step."""
        with self.acting_weights():
            self.vla.save(folder, recipe)
        (folder / "training").mkdir()
        if self.ema is not None:
            raw = {name: p.detach().contiguous() for name, p in self._trained().items()}
            safetensors.torch.save_file(raw, str(folder / RAW))
        optimizer_state.save(self.optimizer, folder / OPTIMIZER)
        return {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

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
            with torch.no_grad():
                for name, parameter in self._trained().items():
                    parameter.copy_(raw[name])
        optimizer_state.put(of_optimizer, self.optimizer)
        if scaler is not None:
            self.scaler.load_state_dict(scaler)

    def _trained(self) -> dict[str, nn.Parameter]:
        trained = set(self.parameters)
        return {name: p for name, p in self.vla.named_parameters() if p in trained}

    def _read_raw(self, path: Path) -> dict[str, torch.Tensor]:
        trained = self._trained()
        with tensor_files.opened(path) as file:
            weights.check_finite(file, path)
            raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        odd = [name for name in raw.keys() | trained.keys() if not _alike(raw.get(name), trained.get(name))]
        if odd:
            raise ValueError(
                f"{path} does not hold the trained weights of this model ({tensor_files.join_first(odd)}): copy the "
                "checkpoint again, whole"
            )
        return raw

    def _read_scaler(self, found: Any, folder: Path) -> dict[str, Any]:
        known = self.scaler.state_dict()
        if not isinstance(found, dict) or found.keys() != known.keys():
            raise DocumentError(f"{folder}/training/state.json, scaler: expected the keys {', '.join(known)}")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in found.values()):
            raise DocumentError(f"{folder}/training/state.json, scaler: expected numbers from 0 on, found {found}")
        if not found["scale"]:
            raise DocumentError(f"{folder}/training/state.json, scaler: a scale of 0 would hide all gradients")
        return found


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype
