"""Fusers: from the features of each step of a window, (B, T, F), to the context that the decoder reads, (B, T, C).

All are causal in time and windows begin at their first step, so masked steps at the end never reach a valid one. The
defaults come from RoboVLMs (arXiv 2412.14058) at chunk 10 and 7 action dims, after a readout of width 2048: `mlp`
6.6M parameters, `lstm` 41M, `gpt` 106M, each with `regression` and its MLPs (`gripper_mlp: true`). `mingru`
(52M) has about the size of `lstm`. These two also run step by step, with a state that `history: recurrent` carries over
a session.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla.axes import WINDOW, Axis, Meaning, axis, mlp_axes
from anyvla.config import STRICT
from anyvla.limits import LAYERS, STEPS, WIDTH
from anyvla.transformer_block import TransformerBlock


class Fuser(nn.Module):
    """The base class of fusers. Made by `Class(config, features, window)`; `width` is the C of its context."""

    Config: ClassVar[type]
    fuses_time: ClassVar[bool] = True
    carries_state: ClassVar[bool] = False  # whether it is a `RecurrentFuser`
    width: int

    def context_axis(self, features: Axis) -> Axis:
        """Return the meaning of the context, given that of the features."""
        return axis(f"context of {type(self).__name__}", self.width)

    def meaning(self, features: Axis) -> Meaning:
        """Return the meaning of the weights."""
        return Meaning()


class RecurrentFuser(Fuser):
    """A fuser that gives the same contexts step by step, with a state of constant size in place of earlier steps."""

    carries_state = True

    @abstractmethod
    def start(self) -> Float[Tensor, "S H"]:
        """Return the state before the first step, from which `forward` begins too."""

    @abstractmethod
    def step(
        self, features: Float[Tensor, "B F"], state: Float[Tensor, "B S H"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B S H"]]:
        """Return the contexts of the next steps of B sessions, and their new states; `state` does not change."""


class IdentityFuser(Fuser):
    """Does not fuse: the context of a step is its features."""

    fuses_time = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`fuser: identity` has no options."""

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width = features

    def context_axis(self, features: Axis) -> Axis:
        return features

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
        return features


class MLPFuser(Fuser):
    """Does not fuse either: sends each step's features through a small MLP, like RoboVLMs' MLP head."""

    fuses_time = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: mlp}`."""

        # the last is C
        widths: tuple[Annotated[int, Field(ge=1, le=WIDTH)], ...] = Field(default=(1024, 1024), min_length=1)

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((features, *config.widths)):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.widths, self.width = config.widths, config.widths[-1]

    def context_axis(self, features: Axis) -> Axis:
        return axis(f"context of an MLP of {' x '.join(map(str, self.widths))}", self.width)

    def meaning(self, features: Axis) -> Meaning:
        return Meaning(mlp_axes(self.mlp, features, self.context_axis(features))).below("mlp.")

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
        return self.mlp(features)


class LSTMFuser(RecurrentFuser):
    """Runs an LSTM over the window, like the policy heads of RoboFlamingo (arXiv 2311.01378) and RoboVLMs."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: lstm}`."""

        hidden: int = Field(default=1024, ge=1, le=WIDTH)  # C
        layers: int = Field(default=4, ge=1, le=LAYERS)  # of the LSTM

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, config.hidden, config.layers, batch_first=True)
        self.width = config.hidden
        self._initialize()

    def context_axis(self, features: Axis) -> Axis:
        return axis(f"context of an LSTM of {self.lstm.num_layers} layers", self.width)

    def meaning(self, features: Axis) -> Meaning:
        return Meaning({"lstm.weight_ih_l0": (None, features.at_zero())})

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initialize so that four layers keep the signal: with PyTorch's weights, differences of inputs fall to 0.002.

        Forget bias of 1: Jozefowicz et al. (ICML 2015); orthogonal recurrence: Saxe et al. (arXiv 1312.6120).
        """
        for name, parameter in self.lstm.named_parameters():
            parts = parameter.chunk(4)  # gates: input, forget, cell, output
            if name.startswith("weight_ih"):
                for gate, part in enumerate(parts):
                    # The input and output gates begin at 1/2, which would leave a quarter of each layer's signal.
                    nn.init.xavier_uniform_(part, gain=4 if gate == 2 and not name.endswith("_l0") else 1)
            elif name.startswith("weight_hh"):
                for part in parts:
                    nn.init.orthogonal_(part)
            else:
                parameter.zero_()
                if name.startswith("bias_ih"):
                    parts[1].fill_(1)

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
        # Under autocast, cuDNN runs an LSTM in float16, whatever type was asked for, and most gradients underflow
        # without a gradient scaler. oneDNN has no bfloat16 LSTM without AVX-512. Float32 is correct everywhere.
        with torch.autocast(features.device.type, enabled=False):
            return self.lstm(features.to(next(self.lstm.parameters()).dtype))[0]

    def start(self) -> Float[Tensor, "S H"]:
        return next(self.lstm.parameters()).new_zeros(2 * self.lstm.num_layers, self.width)

    def step(
        self, features: Float[Tensor, "B F"], state: Float[Tensor, "B S H"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B S H"]]:
        hidden, cell = (part.contiguous() for part in state.transpose(0, 1).chunk(2))  # (layers, B, H)
        with torch.autocast(features.device.type, enabled=False):
            out, new = self.lstm(features.to(state.dtype)[:, None], (hidden, cell))
        return out[:, 0], torch.cat(new).transpose(0, 1)


class GPTFuser(Fuser):
    """Runs a small causal transformer over the window (pre-norm, learned positions), like RoboVLMs' GPT head."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: gpt}`."""

        width: int = Field(default=1024, ge=1, le=WIDTH)  # C
        layers: int = Field(default=8, ge=1, le=LAYERS)  # of the transformer
        heads: int = Field(default=8, ge=1, le=LAYERS)  # of attention

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width, self.heads = config.width, config.heads
        self.enter = nn.Linear(features, config.width)
        self.position = nn.Parameter(torch.randn(window, config.width) * 0.02)
        std = 0.02 / (2 * config.layers) ** 0.5  # so that the sum of all layers is as large however many (GPT-2)
        self.layers = nn.ModuleList(
            TransformerBlock(config.width, config.heads, residual_std=std) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def meaning(self, features: Axis) -> Meaning:
        return Meaning(
            {"enter.weight": (None, features.at_zero()), "position": (axis(WINDOW, len(self.position)), None)},
            {"layers.": {"heads": self.heads}},
        )

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
        x = self.enter(features) + self.position[: features.shape[1]]
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm(x)


class MinGRUFuser(RecurrentFuser):
    """Runs layers of minGRUs over the steps (arXiv 2410.01201), whose gates do not depend on their state.

    So the state is a linear recurrence, h_t = (1 - z_t) h_(t-1) + z_t c_t, and training computes all steps of a row at
    once. Long memories are easy to learn, because a gate begins at the inverse of a time (chrono initialization, arXiv
    1804.11188). Each layer is a pre-norm residual block with an MLP.
    """

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `fuser: {name: mingru}`."""

        width: int = Field(default=1024, ge=1, le=WIDTH)  # C
        layers: int = Field(default=4, ge=1, le=LAYERS)  # of the minGRU
        longest: int = Field(default=256, ge=2, le=STEPS)  # steps: memories begin with times from 1 step to this many

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.width = config.width
        self.enter = nn.Linear(features, config.width)
        self.layers = nn.ModuleList(_MinGRUBlock(config.width, config.longest) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def context_axis(self, features: Axis) -> Axis:
        return axis(f"context of a minGRU of {len(self.layers)} layers", self.width)

    def meaning(self, features: Axis) -> Meaning:
        return Meaning({"enter.weight": (None, features.at_zero())})

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T C"]:
        with torch.autocast(features.device.type, enabled=False):
            x = self.enter(features.to(self.enter.weight.dtype))
            for layer in self.layers:
                x = layer(x)
            return self.norm(x)

    def start(self) -> Float[Tensor, "S H"]:
        return self.enter.weight.new_zeros(len(self.layers), self.width)

    def step(
        self, features: Float[Tensor, "B F"], state: Float[Tensor, "B S H"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B S H"]]:
        states = []
        with torch.autocast(features.device.type, enabled=False):
            x = self.enter(features.to(state.dtype))
            for layer, before in zip(self.layers, state.unbind(1), strict=True):
                assert isinstance(layer, _MinGRUBlock)
                x, after = layer.step(x, before)
                states.append(after)
            return self.norm(x), torch.stack(states, 1)


class _MinGRUBlock(nn.Module):
    """A minGRU and an MLP, each added to the residual stream."""

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        self.norm_memory, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.candidate = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        # A unit that forgets in t steps has a gate of 1 / t; the times are evenly spread on a logarithmic scale.
        times = 1 + torch.exp(torch.rand(width) * math.log(longest))
        self.gate.bias.data = -torch.log(times - 1)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        keep, added = self._gates(x)
        return self._add(x, scan(keep, added))

    def step(
        self, x: Float[Tensor, "B D"], before: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return the output at the next step, and the state after it."""
        keep, added = self._gates(x)
        after = keep * before + added
        return self._add(x, after), after

    def _gates(self, x: Float[Tensor, "... D"]) -> tuple[Float[Tensor, "... D"], Float[Tensor, "... D"]]:
        normed = self.norm_memory(x)
        open_ = self.gate(normed).sigmoid()
        return 1 - open_, open_ * self.candidate(normed)

    def _add(self, x: Float[Tensor, "... D"], state: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        x = x + self.out(state)
        return x + self.mlp(self.norm_mlp(x))


def scan(keep: Float[Tensor, "B T D"], added: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Return h_t = keep_t h_(t-1) + added_t of all steps, from h = 0.

    It takes log2(T) rounds over all steps (Hillis and Steele, Data parallel algorithms, CACM 1986).
    """
    span, steps = 1, keep.shape[1]
    while span < steps:
        added = torch.cat([added[:, :span], added[:, span:] + keep[:, span:] * added[:, :-span]], 1)
        keep = torch.cat([keep[:, :span], keep[:, span:] * keep[:, :-span]], 1)
        span *= 2
    return added
