"""Regression: a small MLP gives the whole chunk at once (RoboVLMs, arXiv 2412.14058; OpenVLA-OFT, arXiv 2502.19645)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.heads.base import Context, Decoder, Loss, Setting


class RegressionDecoder(Decoder):
    """Context -> MLP -> chunk of N actions."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: regression}`."""

        loss: Literal["l1", "l2", "huber"] = "l1"
        hidden: int = Field(default=512, ge=1)  # width of the MLP
        layers: int = Field(default=2, ge=0)  # hidden layers
        gripper: Literal["regression", "bce"] = "regression"  # bce: open or closed, with nothing between
        gripper_weight: float = Field(default=1.0, gt=0)  # RoboVLMs: 0.01, with huber and bce

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__()
        self.config, self.chunk, self.space = config, setting.chunk, setting.space
        layers: list[nn.Module] = []
        width = setting.context
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.GELU()]
            width = config.hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, self.chunk * self.space.size))

    def forward(self, context: Float[Tensor, "M C"]) -> Float[Tensor, "M N A"]:
        """The chunk before the gripper is decided (logits under bce)."""
        return self.mlp(context).unflatten(-1, (self.chunk, self.space.size))

    def loss(
        self,
        context: Context,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Weighted mean over valid elements; one part per action group."""
        predicted = self(context.vector).float()
        total, parts = predicted.new_zeros(()), {}
        valid = mask.sum()
        for group, place in zip(self.space.groups, self.space.slices().values(), strict=True):
            element = self._distance(predicted[..., place], actions[..., place], group.kind == "gripper")
            summed = (element * mask[..., None]).sum()
            parts[group.name] = (summed / (valid * group.size).clamp(min=1)).detach()
            total = total + summed * (self.config.gripper_weight if group.kind == "gripper" else 1.0)
        return Loss(total, (valid * self.space.size).to(total.dtype), parts)

    def _distance(self, predicted: Tensor, target: Tensor, gripper: bool) -> Tensor:
        if gripper and self.config.gripper == "bce":
            return F.binary_cross_entropy_with_logits(predicted, (target > 0).float(), reduction="none")
        if self.config.loss == "l1":
            return (predicted - target).abs()
        if self.config.loss == "l2":
            return (predicted - target).square()
        return F.huber_loss(predicted, target, reduction="none")

    def sample(self, context: Context, generators: Sequence[torch.Generator] | None = None) -> Float[Tensor, "M N A"]:
        """The regressed chunk; it has no randomness."""
        chunk = self(context.vector).float()
        if self.config.gripper == "bce":
            for group, place in zip(self.space.groups, self.space.slices().values(), strict=True):
                if group.kind == "gripper":
                    chunk[..., place] = torch.where(chunk[..., place] > 0, 1.0, -1.0)
        return chunk
