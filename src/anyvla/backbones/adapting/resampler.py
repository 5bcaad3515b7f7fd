"""The Perceiver resampler: maps any number of image features to a small, fixed number of tokens.

Learned latents attend to the features of one image, layer by layer (Flamingo, arXiv 2204.14198, section 3.1.1). The
parameters have the names and shapes of OpenFlamingo's, so its checkpoints load; there are no time embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.backbones.adapting.options import Resampler


class PerceiverResampler(nn.Module):
    """F features (N, F, D) of N images -> K tokens (N, K, D), with the spread of `norm.weight` (initially 1)."""

    def __init__(self, width: int, options: Resampler) -> None:
        """Build layers of width D = `width` with K = `options.tokens` latents."""
        super().__init__()
        self.heads = options.heads
        self.latents = nn.Parameter(torch.randn(options.tokens, width))
        self.layers = nn.ModuleList(ReadingLayer(width, options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Float[Tensor, "N F D"]) -> Float[Tensor, "N K D"]:
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(features, latents)
        return self.norm(latents)


class ReadingLayer(nn.ModuleList):
    """Attention of latents to features and to each other, and a feed-forward, each added to the latents."""

    def __init__(self, width: int, options: Resampler) -> None:
        super().__init__([_Attention(width, options.heads, options.head_width), feed_forward(width, options.mlp)])

    def forward(self, features: Float[Tensor, "N F D"], latents: Float[Tensor, "N K D"]) -> Float[Tensor, "N K D"]:
        attention, feed_forward = self.children()
        latents = latents + attention(features, latents)
        return latents + feed_forward(latents)


@torch.no_grad()
def build_resampler(embedding: Any, width: int, options: Resampler) -> PerceiverResampler:
    """Build a resampler whose tokens initially have the spread of the token embeddings."""
    resampler = PerceiverResampler(width, options)
    some_tokens = torch.arange(min(1000, embedding.num_embeddings))[None]
    resampler.norm.weight.mul_(embedding(some_tokens).float().std())
    return resampler


class _Attention(nn.Module):
    """Attention of latents to the features and to each other."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Float[Tensor, "N F D"], latents: Float[Tensor, "N K D"]) -> Float[Tensor, "N K D"]:
        features, latents = self.norm_media(features), self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([features, latents], dim=1)).chunk(2, dim=-1)  # (N, F + K, inner) each
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), keys, values))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(width: int, multiple: int) -> nn.Sequential:
    """Return a layer norm and a two-layer MLP without biases, of `multiple` times the width inside."""
    inner = width * multiple
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )
