"""The transformer of the `expert`: each of its layers attends to what one layer of the backbone remembers.

Layers are those of Llama and Gemma (RMSNorm, rotary positions, gated MLP), of any width and depth; heads are as wide,
and keys as many, as the backbone's. Masks and rotations are made once a pass and shared by all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

Memory = Sequence[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K d"]]]  # keys and values of each layer
View = Sequence[tuple[Tensor | None, Tensor, Tensor]]  # of each layer: mask, cosines and signed sines

EPSILON = 1e-6  # of the norms, as Gemma's
THETA = 10_000.0  # of rotary positions, where the backbone does not say


class Transformer(nn.Module):
    """S rows of T tokens over the memory of a layer of the backbone each."""

    def __init__(
        self, width: int, mlp: int, heads: int, shapes: Sequence[tuple[int, int, int]], thetas: Sequence[float]
    ) -> None:
        """`shapes`: key heads h, and how wide keys and values are, in each layer of the memory; `heads` is a multiple
        of each h.
        """
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, mlp, heads, *shape) for shape in shapes)
        self.norm = nn.RMSNorm(width, EPSILON)
        self.kinds = [(heads // h, d, theta) for (h, d, _), theta in zip(shapes, thetas, strict=True)]

    def forward(self, x: Float[Tensor, "S T w"], memory: Memory, view: View) -> tuple[Float[Tensor, "S T w"], Memory]:
        """The tokens' last hidden states, and the memory that they add."""
        x, added = x.to(self.norm.weight.dtype), []  # under autocast, what layers add to stays float32
        for layer, (keys, values), (mask, cos, sin) in zip(self.layers, memory, view, strict=True):
            x, own = layer(x, keys, values, mask, cos, sin)
            added.append(own)
        return self.norm(x), added

    def view(self, positions: Int64[Tensor, "S T"], seen: Bool[Tensor, "S #T K+T"] | None, dtype: torch.dtype) -> View:
        """What the tokens of a pass see (None: everything) of memory and each other, and where they stand."""
        masks: dict[int, Tensor | None] = {}  # most backbones have layers of one kind only
        rotations: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}
        for groups, d, theta in self.kinds:
            if groups not in masks:
                masks[groups] = None if seen is None else _mask(seen, groups, dtype)
            if (d, theta) not in rotations:
                fraction = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d
                angle = (positions[..., None].float() * theta**-fraction)[:, :, None]  # (S, T, 1, d/2)
                cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
                rotations[d, theta] = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return [(masks[groups], *rotations[d, theta]) for groups, d, theta in self.kinds]


class Layer(nn.Module):
    """Joint attention to the backbone's memory and the layer's own tokens; then a gated MLP."""

    def __init__(self, width: int, mlp: int, heads: int, kv_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.value_dim = heads, kv_heads, head_dim, value_dim
        self.groups = heads // kv_heads  # query heads that share a key
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width, EPSILON), nn.RMSNorm(width, EPSILON)
        self.qkv = nn.Linear(width, (heads + kv_heads) * head_dim + kv_heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * mlp, bias=False), nn.Linear(mlp, width, bias=False)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        s, t, _ = x.shape
        h, g, d = self.kv_heads, self.groups, self.head_dim
        qk, v = self.qkv(self.norm_attention(x)).split([(self.heads + h) * d, h * self.value_dim], -1)
        qk = _rotated(qk.view(s, t, -1, d), cos, sin)
        # Heads that share a key become rows of one: no copy of keys, which are long, and one kernel for any grouping.
        q = qk[:, :, : self.heads].unflatten(2, (h, g)).permute(0, 2, 3, 1, 4).reshape(s, h, g * t, d)
        k, v = qk[:, :, self.heads :].transpose(1, 2), v.view(s, t, h, -1).transpose(1, 2)  # (S, h, T, d)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # softmax in float32 inside
        x = x + self.out(attended.view(s, h, g, t, -1).permute(0, 3, 1, 2, 4).reshape(s, t, -1))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.gelu(gate, approximate="tanh") * up), (k, v)


def joined(memory: Memory, added: Memory) -> Memory:
    """A memory with places added at its end."""
    pairs = zip(memory, added, strict=True)
    return [(torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)) for (k, v), (more_k, more_v) in pairs]


def spread(count: int | None, layers: int) -> list[int]:
    """Which of the backbone's layers `count` layers attend to: evenly spread, the last included; None: all.

    Raises ValueError if there are not so many.
    """
    if count is not None and count > layers:
        raise ValueError(
            f"layers {count} exceeds the {layers} layers of the backbone that remember keys and values; each layer of "
            f"the expert attends to one of its own: use layers: {layers} or fewer, or leave it out for all"
        )
    count = count or layers
    return [(i + 1) * layers // count - 1 for i in range(count)]


def thetas_of(config: Any, layers: int) -> list[float]:
    """The base of rotary positions in each layer, from the configuration of a language model of `transformers`."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None) or [None] * layers
    # One for all layers, or one for each kind of layer. `given.get(kind, given)` reads both.
    return [float(given.get(kind, given).get("rope_theta", None) or THETA) for kind in kinds[:layers]]


def _mask(seen: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """(S, 1, G*T or 1, K), to be added to scores; booleans would be turned into this again in every layer."""
    rows = seen if seen.shape[1] == 1 else seen.repeat(1, groups, 1)
    return torch.zeros(rows.shape, dtype=dtype, device=seen.device).masked_fill_(~rows, -torch.inf)[:, None]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (arXiv 2104.09864) with the halves of a head as its pairs, as Llama's code; of the sines, the first half is
    negated.
    """
    return torch.addcmul(
        x * cos, x.roll(x.shape[-1] // 2, -1), sin
    )  # few kernels: short chunks are bound by their number
