"""Muon (https://kellerjordan.github.io/posts/muon) for the hidden matrices of a policy, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from anyvla.config import STRICT, ConfigError
from anyvla.files.sharded_tensors import copy_rows, gather, is_sharded, shard_like
from anyvla.limits import WIDTH


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MuonConfig:
    """Options of `optim.name: muon`. Updates are scaled to the size of AdamW's (arXiv 2502.16982): `lr` fits both."""

    momentum: float = Field(default=0.95, ge=0, lt=1)  # of the gradients
    # A matrix with a shorter side reads or writes actions, proprio or LoRA's ranks, and AdamW trains it.
    min_side: int = Field(default=32, ge=2, le=WIDTH)


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers with common groups and state. A group with `momentum` belongs to Muon."""

    def __init__(self, muon: Sequence[dict[str, Any]], adamw: Sequence[dict[str, Any]], **options: Any) -> None:
        """`options`: arguments of AdamW."""
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                "training.optim.name muon needs torch.optim.Muon, which is part of PyTorch since 2.9; this is "
                f"{torch.__version__}: update torch, or use adamw"
            )
        super().__init__([*muon, *adamw], {"lr": options["lr"]})
        kinds: list[Any] = []
        if muon:
            kinds.append(torch.optim.Muon(self.param_groups[: len(muon)], adjust_lr_fn="match_rms_adamw"))
        if adamw:
            kinds.append(torch.optim.AdamW(self.param_groups[len(muon) :], **options))
        self.kinds = kinds
        for kind in kinds:
            kind.state = self.state  # groups are shared already: an optimizer keeps the dictionaries that it gets

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        for kind in self.kinds:
            if isinstance(kind, torch.optim.Muon) and any(
                is_sharded(p) for g in kind.param_groups for p in g["params"]
            ):
                _step_whole(kind)
            else:
                kind.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse, because the two optimizers would keep their old state: see `optimizer_state.read`."""
        raise NotImplementedError("read the state with anyvla.training.optimizer_state.read")


@torch.no_grad()
def _step_whole(muon: torch.optim.Optimizer) -> None:
    """Update sharded matrices, one after the other: Muon's update of a row depends on the whole matrix.

    Each process gathers a matrix, updates all of it and keeps its own rows, so that the result is that of one process.
    """
    for group in muon.param_groups:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            whole = nn.Parameter(gather(weight).clone())
            whole.grad = gather(weight.grad)
            one = torch.optim.Muon([{**group, "params": [whole]}])
            state = muon.state[weight]
            one.state[whole] |= {name: gather(value) for name, value in state.items()}
            one.step()
            copy_rows(weight, whole)
            state |= {name: shard_like(weight, value) for name, value in one.state[whole].items()}


def split_hidden_matrices(
    groups: Sequence[dict[str, Any]], config: MuonConfig, model: nn.Module
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups for Muon and those for AdamW, with the same settings; empty ones are left out.

    Muon's are the weights of linear layers, except of LoRA, of an LM head, and of a side below `config.min_side`.
    """
    head = getattr(getattr(model, "backbone", None), "lm_head", None)
    hidden = {
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and layer is not head
        and "lora_" not in name
        and layer.weight.ndim == 2
        and min(layer.weight.shape) >= config.min_side
    }
    muon: list[dict[str, Any]] = []
    adamw: list[dict[str, Any]] = []
    for group in groups:
        for chosen, of_muon in ((muon, True), (adamw, False)):
            kept = [i for i, p in enumerate(group["params"]) if (p in hidden) == of_muon]
            if kept:
                own = group | {key: [group[key][i] for i in kept] for key in ("params", "names") if key in group}
                chosen.append(own | ({"momentum": config.momentum} if of_muon else {}))
    return muon, adamw
