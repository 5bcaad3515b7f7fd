"""Find trained weights that no gradient reaches: parts that nothing depends on stay as they were initialized."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import nn

from anyvla.files.sharded_tensors import local
from anyvla.policy import VLA
from anyvla.training.errors import TrainingError
from anyvla.training.processes import Processes
from anyvla.types import Batch

logger = logging.getLogger(__name__)

_STEPS = 10  # a layer behind one that is initialized with zeros gets its first gradient in the second step
_MOST_STEPS = 1000  # for a data set that is rarely sampled
_NAMED = 8


class IdleWeights:
    """Watches the gradients of the first steps, until each data set was seen, and reports the weights without one.

    Frozen weights are none of them, and neither are those that the backbone declares as `unused_modules`.
    """

    def __init__(self, vla: VLA, sources: int, then: Literal["warn", "error", "ignore"], processes: Processes) -> None:
        self._processes = processes
        unused = {w for module in getattr(vla.backbone, "unused_modules", ()) for w in module.parameters()}
        self._vla, self._then = vla, then
        self._idle = {n: w for n, w in vla.named_parameters() if w.requires_grad and w not in unused}
        self._unseen, self._steps, self._done = set(range(sources)), 0, then == "ignore"

    def look(self, batch: Batch, last: bool) -> None:
        """Look at the gradients of a step, before they are cleared. `last`: there is no further step.

        Raises TrainingError for idle weights if the recipe wants that.
        """
        if self._done:
            return
        self._steps += 1
        own = [] if batch.samples is None else batch.samples[:, 0].unique().tolist()
        self._unseen -= {source for seen in self._processes.gather(own) for source in seen}
        trained = {name: weight for name, weight in self._idle.items() if weight.requires_grad}
        moved = {name: local(weight.grad).any() for name, weight in trained.items() if weight.grad is not None}
        # read at once: a GPU would be waited for at every weight
        seen = dict(zip(moved, torch.stack(list(moved.values())).tolist() if moved else [], strict=True))
        self._idle = {name: weight for name, weight in trained.items() if not seen.get(name)}
        self._done = last or (self._steps >= _STEPS and (not self._unseen or self._steps >= _MOST_STEPS))
        if not self._done:
            return
        idle = set.intersection(*map(set, self._processes.gather(list(self._idle))))  # each may hold some rows only
        if not idle:
            return
        groups = group_by_module(self._vla, idle)
        more = f", and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
        text = (
            f"no gradient reached {len(idle)} trained weights in {self._steps} steps: "
            f"{', '.join(groups[:_NAMED])}{more}. They stay as they are. If that is intended, as for layers of a "
            "vision tower after the one that is read, freeze their part or set training.without_gradient: ignore"
        )
        if self._then == "error":
            raise TrainingError(text)
        logger.warning("%s", text)


def group_by_module(model: nn.Module, names: set[str]) -> list[str]:
    """Return the largest modules all of whose trained weights have these names, and single weights."""
    out: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        trained = {name for name, weight in module.named_parameters(prefix) if weight.requires_grad}
        if not trained & names:
            return
        if trained <= names and prefix:
            out.append(f"{prefix} ({len(trained)} weight{'s' * (len(trained) > 1)})")
            return
        own = {name for name, weight in module.named_parameters(prefix, recurse=False) if weight.requires_grad}
        out.extend(sorted(own & names))
        for name, child in module.named_children():
            walk(child, f"{prefix}.{name}" if prefix else name)

    walk(model, "")
    return out
