"""Fusers: from the features of each step of a window, (B, W, F), to the context the decoder reads, (B, W, C).

All are causal in time and windows begin at their first step, so masked steps at the end never reach a valid one. What
they are by default are the heads of RoboVLMs (arXiv 2412.14058) at chunk 10 and 7 action dims, after a readout of width
2048: `mlp` 6.6M parameters, `lstm` 41M, `gpt` 106M, each with `regression` and its MLPs (`gripper_mlp: true`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.limits import LAYERS, WIDTH


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


class MLPFuser(Fuser):
    """No fusing either: each step's features through a small MLP, as RoboVLMs' MLP head."""

    fuses_time = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: mlp}`."""

        widths: tuple[Annotated[int, Field(ge=1, le=WIDTH)], ...] = Field(
            default=(1024, 1024), min_length=1
        )  # the last is C

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((features, *config.widths)):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.width = config.widths[-1]

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        return self.mlp(features)


class LSTMFuser(Fuser):
    """An LSTM over the window, as RoboFlamingo's policy head (arXiv 2311.01378) and RoboVLMs'."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: lstm}`."""

        hidden: int = Field(default=1024, ge=1, le=WIDTH)  # C
        layers: int = Field(default=4, ge=1, le=LAYERS)

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, config.hidden, config.layers, batch_first=True)
        self.width = config.hidden
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Keep the signal alive: with PyTorch's weights what tells two inputs apart falls to 0.002 after four layers.

        Remembering from the start is of Jozefowicz et al. (ICML 2015), orthogonal recurrence of Saxe et al.
        (arXiv 1312.6120).
        """
        for name, parameter in self.lstm.named_parameters():
            parts = parameter.chunk(4)  # gates: input, forget, cell, output
            if name.startswith("weight_ih"):
                for gate, part in enumerate(parts):
                    # The input and output gates begin at 1/2, and would leave a quarter of each layer's signal.
                    nn.init.xavier_uniform_(part, gain=4 if gate == 2 and not name.endswith("_l0") else 1)
            elif name.startswith("weight_hh"):
                for part in parts:
                    nn.init.orthogonal_(part)
            else:
                parameter.zero_()
                if name.startswith("bias_ih"):
                    parts[1].fill_(1)

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        # Under autocast cuDNN runs an LSTM in float16, whatever type was asked for: without a scaler of gradients most
        # of them become 0. oneDNN has none in bfloat16 without AVX-512. In float32 it is small and right everywhere.
        with torch.autocast(features.device.type, enabled=False):
            return self.lstm(features.to(next(self.lstm.parameters()).dtype))[0]


class GPTFuser(Fuser):
    """A small causal transformer over the window (pre-norm, learned positions), as RoboVLMs' GPT head."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: gpt}`."""

        width: int = Field(default=1024, ge=1, le=WIDTH)  # C
        layers: int = Field(default=8, ge=1, le=LAYERS)
        heads: int = Field(default=8, ge=1, le=LAYERS)

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width = config.width
        self.enter = nn.Linear(features, config.width)
        self.position = nn.Parameter(torch.randn(window, config.width) * 0.02)
        self.layers = nn.ModuleList(_Layer(config.width, config.heads, config.layers) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: Float[Tensor, "B W F"]) -> Float[Tensor, "B W C"]:
        x = self.enter(features) + self.position[: features.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        down = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), down)
        for last in (self.out, down):  # what all layers add to the residual stream is as large however many (GPT-2)
            nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, w, d = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, w, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, W, d)
        x = x + self.out(attended.transpose(1, 2).reshape(b, w, d))
        return x + self.mlp(self.norm_mlp(x))
