"""The transformer of the `expert`: each of its layers attends to the KV cache of one layer of the backbone.

Its layers are like those of Llama and Gemma (RMSNorm, rotary positions, gated MLP), of any width and depth. The width
of heads and the number of keys are the backbone's. Masks and rotations are made once a pass and shared by all layers.
In shapes, L is the number of tokens of a pass and K the number of cached positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

# Of each layer: keys (S, h, K, d) and values.
LayerCaches = Sequence[tuple[Float[Tensor, "S _ _ _"], Float[Tensor, "S _ _ _"]]]
AttentionInputs = Sequence[tuple[Tensor | None, Tensor, Tensor]]  # of each layer: mask, cosines and signed sines

EPSILON = 1e-6  # of the norms, as Gemma's
THETA = 10_000.0  # of rotary positions, where the backbone's configuration has none


class Transformer(nn.Module):
    """Reads S rows of L tokens; each layer attends to the cache of one layer of the backbone as well."""

    def __init__(
        self, width: int, mlp: int, heads: int, shapes: Sequence[tuple[int, int, int]], thetas: Sequence[float]
    ) -> None:
        """`shapes`: key heads h, and widths of keys and values, in each layer of the cache; `heads` is a multiple of
        each h.
        """
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, mlp, heads, *shape) for shape in shapes)
        self.norm = nn.RMSNorm(width, EPSILON)
        self.kinds = [(heads // h, d, theta) for (h, d, _), theta in zip(shapes, thetas, strict=True)]

    def forward(
        self, x: Float[Tensor, "S L w"], caches: LayerCaches, attention: AttentionInputs
    ) -> tuple[Float[Tensor, "S L w"], LayerCaches]:
        """Return the tokens' last hidden states, and their keys and values in each layer."""
        x, added = x.to(self.norm.weight.dtype), []  # under autocast, the residual stream stays float32
        for layer, (keys, values), (mask, cos, sin) in zip(self.layers, caches, attention, strict=True):
            x, own = layer(x, keys, values, mask, cos, sin)
            added.append(own)
        return self.norm(x), added

    def prepare_attention(
        self, positions: Int64[Tensor, "S L"], mask: Bool[Tensor, "S rows keys"] | None, dtype: torch.dtype
    ) -> AttentionInputs:
        """Return the masks and rotations of each layer for one pass.

        `mask`: which of the K cached positions and L tokens (`keys`) each token sees, in L rows, or one row for all
        tokens; None: everything.
        """
        made = {}
        for groups, d, theta in set(self.kinds):  # most backbones have layers of one kind only
            additive = None if mask is None else _as_additive_mask(mask, groups, dtype)
            fraction = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d
            angle = (positions[..., None].float() * theta**-fraction)[:, :, None]  # (S, L, 1, d/2)
            cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
            made[groups, d, theta] = additive, torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return [made[kind] for kind in self.kinds]


class Layer(nn.Module):
    """Attends to the backbone's cache and the layer's own tokens together; then a gated MLP."""

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
        s, length, _ = x.shape
        h, g, d = self.kv_heads, self.groups, self.head_dim
        qk, v = self.qkv(self.norm_attention(x)).split([(self.heads + h) * d, h * self.value_dim], -1)
        qk = _rotate(qk.view(s, length, -1, d), cos, sin)
        # Heads that share a key become rows of one: no copy of keys, which are long, and one kernel for any grouping.
        q = qk[:, :, : self.heads].unflatten(2, (h, g)).permute(0, 2, 3, 1, 4).reshape(s, h, g * length, d)
        k, v = qk[:, :, self.heads :].transpose(1, 2), v.view(s, length, h, -1).transpose(1, 2)  # (S, h, L, d)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # softmax in float32 inside
        x = x + self.out(attended.view(s, h, g, length, -1).permute(0, 3, 1, 2, 4).reshape(s, length, -1))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.gelu(gate, approximate="tanh") * up), (k, v)


def append_caches(caches: LayerCaches, added: LayerCaches) -> LayerCaches:
    """Return each layer's keys and values followed by the added ones of later positions."""
    pairs = zip(caches, added, strict=True)
    return [(torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)) for (k, v), (more_k, more_v) in pairs]


def choose_layers(count: int | None, layers: int) -> list[int]:
    """Return the backbone's layers that `count` layers attend to: evenly spread, the last included. None: all layers.

    Raises ValueError if the backbone has fewer.
    """
    if count is not None and count > layers:
        raise ValueError(
            f"layers {count} exceeds the {layers} layers of the backbone that have keys and values; each layer of the "
            f"expert attends to a different one: use layers: {layers} or fewer, or leave it out for all"
        )
    count = count or layers
    return [(i + 1) * layers // count - 1 for i in range(count)]


def read_rope_thetas(config: Any, layers: int) -> list[float]:
    """Return the base of rotary positions in each layer, from the configuration of a `transformers` language model."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None) or [None] * layers
    # One for all layers, or one for each kind of layer. `given.get(kind, given)` reads both.
    return [float(given.get(kind, given).get("rope_theta", None) or THETA) for kind in kinds[:layers]]


def _as_additive_mask(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Return (S, 1, G*L or 1, keys) to add to scores; every layer would convert a boolean mask again."""
    rows = mask if mask.shape[1] == 1 else mask.repeat(1, groups, 1)
    return torch.zeros(rows.shape, dtype=dtype, device=mask.device).masked_fill_(~rows, -torch.inf)[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE (arXiv 2104.09864), pairing the halves of a head as Llama's code does; `sin` has its first half
    negated.
    """
    # Few kernels: short chunks are bound by their number.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
