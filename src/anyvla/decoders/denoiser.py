"""The network of `flow` and `diffusion`: a small transformer over the N actions of a noisy chunk.

A DiT (Peebles & Xie, arXiv 2212.09748): time and context act through adaptive layer norms whose gates start at zero,
and so does the output. Through such gates hardly a gradient reaches the backbone at first, so the context enters with
the actions as well. What it reads of the context is computed once a chunk, `condition`; only the rest runs at each
step of an integration. Sizes, and the loss that both decoders share, lie here too.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.decoders.base import Loss
from anyvla.limits import LAYERS, WIDTH
from anyvla.robot.space import ActionSpace

PERIODS = 4e-3, 4.0  # of the waves that encode times of [0, 1], as pi0's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sizes:
    """Of the network; the defaults have 5 million weights, beside those that read the context."""

    width: int = Field(default=256, ge=2, le=WIDTH)
    layers: int = Field(default=4, ge=1, le=LAYERS)
    heads: int = Field(default=4, ge=1, le=LAYERS)

    def __post_init__(self) -> None:
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be even, and a multiple of heads {self.heads}")


class Denoiser(nn.Module):
    """Noisy chunk, time and condition -> noise, velocity or actions: whatever it is trained to say."""

    def __init__(self, sizes: Sizes, context: int, chunk: int, dims: int) -> None:
        super().__init__()
        width = sizes.width
        # Hidden states of a VLM may be large: normalized, they leave the time audible.
        self.context = nn.Sequential(nn.Linear(context, width), nn.LayerNorm(width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(dims, width)
        self.position = nn.Parameter(torch.randn(chunk, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, sizes.heads) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, dims)
        for linear in (self.modulation, self.out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def condition(self, context: Float[Tensor, "M C"]) -> Float[Tensor, "M width"]:
        """What the network reads of the context: the same at all times."""
        return self.context(context.to(self.enter.weight.dtype))

    def forward(
        self, noisy: Float[Tensor, "M N A"], time: Float[Tensor, "M"], condition: Float[Tensor, "M width"]
    ) -> Float[Tensor, "M N A"]:
        """One prediction, float32. `time`: in [0, 1], 1 for pure noise."""
        dtype = self.enter.weight.dtype
        x = self.enter(noisy.to(dtype)) + self.position + condition[:, None]  # (M, N, width)
        c = F.silu(condition + self.time(waves(time, x.shape[-1]).to(dtype)))
        for layer in self.layers:
            x = layer(x, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift).float()


class _Layer(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-Zero, figure 3 of the paper)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        m, n, d = x.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(c)[:, None].chunk(6, dim=-1)
        qkv = self.qkv(self.norm(x) * (1 + scale) + shift)
        q, k, v = qkv.view(m, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (M, heads, N, d): the actions of a chunk see each other
        x = x + gate * self.out(attended.transpose(1, 2).reshape(m, n, d))
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)


def waves(time: Float[Tensor, "M"], width: int) -> Float[Tensor, "M width"]:
    """Sines and cosines of times, float32; periods in geometric progression."""
    shortest, longest = PERIODS
    fraction = torch.linspace(0, 1, width // 2, device=time.device)
    angle = time.float()[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** fraction))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def squared_error(
    predicted: Float[Tensor, "k*M N A"],
    target: Float[Tensor, "k*M N A"],
    elements: Bool[Tensor, "M N A"],
    space: ActionSpace,
) -> Loss:
    """The mean of k draws for each step, over valid elements; one part per action group."""
    error = (predicted - target).square().unflatten(0, (-1, len(elements))).mean(0) * elements  # (M, N, A)
    parts = {
        name: (error[..., place].sum() / elements[..., place].sum().clamp(min=1)).detach()
        for name, place in space.slices().items()
    }
    return Loss(error.sum(), elements.sum().to(error.dtype), parts)
