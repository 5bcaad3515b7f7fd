"""Regression: an MLP predicts the whole chunk at once (RoboVLMs, arXiv 2412.14058; OpenVLA-OFT, arXiv 2502.19645)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.axes import ACTION, CHUNK, LOGITS, Axis, Factor, Meaning, mlp_axes
from anyvla.config import STRICT, ConfigError
from anyvla.decoders.base import ActionMask, Chunks, Committed, Decoder, DecoderInput, DecoderSpec, Loss
from anyvla.limits import LAYERS, WEIGHT, WIDTH
from anyvla.robot.space import Group

Width = Annotated[int, Field(ge=1, le=WIDTH)]


class RegressionDecoder(Decoder):
    """Predicts a chunk from the context with an MLP."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: regression}`."""

        loss: Literal["l1", "l2", "huber"] = "l1"  # of the actions
        # Widths of the MLP's hidden layers, by default as in RoboVLMs; one number is the width of all `layers`.
        hidden: Width | tuple[Width, ...] = (1024, 512, 256)
        layers: int = Field(default=2, ge=0, le=LAYERS)  # hidden layers, where `hidden` is one number
        gripper_mlp: bool = False  # the gripper has a separate MLP of the same widths (RoboVLMs)
        gripper: Literal["regression", "bce"] = "regression"  # bce: open or closed, nothing in between
        gripper_weight: float = Field(default=1.0, gt=0, le=WEIGHT)  # RoboVLMs: 0.01, with huber and bce

    def __init__(self, config: Config, spec: DecoderSpec) -> None:
        super().__init__()
        self.config, self.chunk, self.space = config, spec.chunk, spec.space
        sizes = {False: 0, True: 0}  # dims of the MLPs, the gripper's under True
        for group in self.space.groups:
            sizes[self._is_separate(group)] += group.size
        if config.gripper_mlp and not all(sizes.values()):
            raise ConfigError(
                "gripper_mlp gives the gripper a separate MLP beside the one of the other dims; of these "
                f"{self.space.size} action dims {sizes[True]} are a gripper: leave gripper_mlp out"
            )
        widths = (config.hidden,) * config.layers if isinstance(config.hidden, int) else config.hidden
        self.mlp = _mlp(spec.context_width, widths, self.chunk * sizes[False])
        self.gripper = _mlp(spec.context_width, widths, self.chunk * sizes[True]) if config.gripper_mlp else None

    def _is_separate(self, group: Group) -> bool:
        return self.config.gripper_mlp and group.kind == "gripper"

    def meaning(self, context: Axis) -> Meaning:
        out = Meaning()
        for prefix, mlp, separate in (("mlp.", self.mlp, False), ("gripper.", self.gripper, True)):
            if mlp is None:
                continue
            groups = [g for g in self.space.groups if self._is_separate(g) == separate]
            where = self.space.slices()
            logits = {g.name: LOGITS * (g.kind == "gripper" and self.config.gripper == "bce") for g in groups}
            dims = [logits[g.name] + d for g in groups for d in range(where[g.name].start, where[g.name].stop)]
            actions = Axis(((Factor(CHUNK, range(self.chunk)), Factor(ACTION, dims)),), begins_at_zero=True)
            out |= Meaning(mlp_axes(mlp, context, actions)).below(prefix)
        return out

    def forward(self, context: Float[Tensor, "M C"]) -> Chunks:
        """Return the chunk before the gripper is decided (logits under bce)."""
        chunk = self.mlp(context).unflatten(-1, (self.chunk, -1))
        if self.gripper is None:
            return chunk
        groups, separate = self.space.groups, self.gripper(context).unflatten(-1, (self.chunk, -1))
        of_rest = iter(chunk.split([g.size for g in groups if not self._is_separate(g)], -1))
        of_grippers = iter(separate.split([g.size for g in groups if self._is_separate(g)], -1))
        return torch.cat([next(of_grippers if self._is_separate(g) else of_rest) for g in groups], -1)

    def loss(
        self,
        inputs: DecoderInput,
        actions: Chunks,
        mask: ActionMask,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Loss:
        """Return the weighted mean over valid elements; one part for each action group."""
        predicted = self(inputs.context).float()
        total, parts = predicted.new_zeros(()), {}
        elements = inputs.valid_elements(mask, self.space.size)
        for group, dims in zip(self.space.groups, self.space.slices().values(), strict=True):
            valid = elements[..., dims]
            summed = (self._distance(predicted[..., dims], actions[..., dims], group.kind == "gripper") * valid).sum()
            parts[group.name] = (summed / valid.sum().clamp(min=1)).detach()
            total = total + summed * (self.config.gripper_weight if group.kind == "gripper" else 1.0)
        return Loss(total, elements.sum().to(total.dtype), parts)

    def _distance(self, predicted: Tensor, target: Tensor, gripper: bool) -> Tensor:
        if gripper and self.config.gripper == "bce":
            return F.binary_cross_entropy_with_logits(predicted, (target > 0).float(), reduction="none")
        losses: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}
        return losses[self.config.loss](predicted, target, reduction="none")

    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Return the predicted chunk; it has no randomness."""
        chunk = self(inputs.context).float()
        if self.config.gripper == "bce":
            for group, dims in zip(self.space.groups, self.space.slices().values(), strict=True):
                if group.kind == "gripper":
                    chunk[..., dims] = torch.where(chunk[..., dims] > 0, 1.0, -1.0)
        return chunk if committed is None else committed.replace(chunk)


def _mlp(features: int, widths: Sequence[int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((features, *widths)):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1] if widths else features, out))
