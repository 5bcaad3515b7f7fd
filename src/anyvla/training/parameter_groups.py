"""The groups of an optimizer: which weights share a learning rate, a weight decay, and the step from which they train.

Rates and frozen groups are functions of the step alone, so that a resumed run finds both as an uninterrupted one does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anyvla.policy import VLA
from anyvla.training.parts import PartConfig, Parts, PolicyPart, weights_by_part


def group_parameters(model: nn.Module, parts: Parts, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of all trainable parameters, as the optimizers of torch take them.

    Weight decay is for matrices, so vectors and the readout queries have groups apart. The parts without settings of
    their own come first, then each part of `parts`. Checkpoints number the parameters in this order. Beside
    `params` and `weight_decay` a group has `names` (of the parameters), `lr_scale` (its peak rate over `lr`)
    and `unfreeze_at` (a step).
    """
    owner: dict[nn.Parameter, PolicyPart] = {}  # of the weights in parts with settings of their own
    if parts:
        assert isinstance(model, VLA)
        weights = weights_by_part(model)
        owner = {weight: part for part in parts for weight in weights[part]}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    settings: list[tuple[PolicyPart | None, PartConfig]] = [(None, PartConfig()), *parts.items()]
    for part, own in settings:
        members = [(name, p) for name, p in trained if owner.get(p) == part]
        decay = weight_decay if own.weight_decay is None else own.weight_decay
        scale = 1.0 if own.lr is None else own.lr / lr
        for decays in (True, False):
            chosen = [(name, p) for name, p in members if (p.ndim >= 2 and name != "queries") == decays]
            group = {
                "params": [p for _, p in chosen],
                "names": [name for name, _ in chosen],
                "weight_decay": decay if decays else 0.0,
                "lr": lr * scale,
                "lr_scale": scale,
                "unfreeze_at": own.unfreeze_at,
            }
            groups += [group] if chosen else []
    return groups


def set_learning_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of each group for a step at which the schedule of `optim.lr` is at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze_until_due(optimizer: torch.optim.Optimizer, vla: VLA, step: int) -> bool:
    """Freeze the groups of a policy in training that train from a later step on, and unfreeze the others.

    Returns whether any weight was frozen or unfrozen.

    A frozen weight has no gradient, so that it takes no memory for one; its optimizer state begins with its first. A
    frozen vision tower is in eval mode.
    """
    changed = False
    for group in optimizer.param_groups:
        due = step >= group["unfreeze_at"]
        for weight in group["params"] if group["unfreeze_at"] else ():
            changed |= weight.requires_grad != due
            weight.requires_grad_(due)
    if changed:
        vla.train()
    return changed
