"""Fusers: from the features of each step of a window, (B, W, F), to the context the decoder reads, (B, W, C).

All are causal in time and windows begin at their first step, so masked steps at the end never reach a valid one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT


class Fuser(nn.Module):
    """The contract: `Class(config, features, window)` and `width`, the C of its context."""

    Config: ClassVar[type]
    fuses_time: ClassVar[bool] = True
    width: int


class IdentityFuser(Fuser):
    """No fusing: the context of a step is its own features."""

    fuses_time = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`fuser: identity` has no options."""

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width = features

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        return features


class LSTMFuser(Fuser):
    """An LSTM over the window, as RoboFlamingo's policy head (arXiv 2311.01378)."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: lstm}`."""

        hidden: int = Field(default=1024, ge=1)
        layers: int = Field(default=4, ge=1)

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, config.hidden, config.layers, batch_first=True)
        self.width = config.hidden

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        return self.lstm(features)[0]


class GPTFuser(Fuser):
    """A small causal transformer over the window (pre-norm, learned positions), as RoboVLMs' GPT head."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: gpt}`."""

        width: int = Field(default=1024, ge=1)
        layers: int = Field(default=8, ge=1)
        heads: int = Field(default=8, ge=1)

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width = config.width
        self.enter = nn.Linear(features, config.width)
        self.position = nn.Parameter(torch.randn(window, config.width) * 0.02)
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        x = self.enter(features) + self.position[: features.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, w, d = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, W, d)
        x = x + self.out(attended.transpose(1, 2).reshape(b, w, d))
        return x + self.mlp(self.norm_mlp(x))
