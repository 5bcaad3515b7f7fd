"""Tokens from the context: a small causal transformer of its own writes the chunk, one token after another.

It makes discrete actions possible wherever the context comes from, a policy head's too, with any backbone. Places are
those of a GPT (Radford et al., 2019; pre-norm, learned positions): the context first, then the tokens written so far.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.token_decoder import TokenDecoder
from anyvla.limits import LAYERS, WEIGHT, WIDTH

Memory = tuple[Float[Tensor, "M h T d"], Float[Tensor, "M h T d"]]  # keys and values of a layer


class TokensDecoder(TokenDecoder):
    """Context -> transformer -> tokens of a codec -> chunk."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: tokens}`."""

        width: int = Field(default=512, ge=1, le=WIDTH)
        layers: int = Field(default=4, ge=1, le=LAYERS)
        heads: int = Field(default=8, ge=1, le=LAYERS)  # of attention; they divide the width
        temperature: float = Field(default=0.0, ge=0, le=WEIGHT)  # 0: the likeliest token; 1: as the model believes

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")

    def __init__(self, config: Config, setting: DecoderSpec) -> None:
        super().__init__(setting, config.temperature)
        self.enter = nn.Linear(setting.context, config.width)
        self.embedding = nn.Embedding(self.symbols, config.width)
        self.position = nn.Parameter(torch.randn(self.length, config.width) * 0.02)
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, self.symbols)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def logits(self, context: DecoderInput, tokens: Int64[Tensor, "M T"]) -> Float[Tensor, "M T E"]:
        earlier = self.embedding(tokens[:, :-1].clamp(min=0))  # nothing is learned after a -1
        x = torch.cat([self.enter(context.vector)[:, None], earlier], 1) + self.position
        return self._score(x, [None] * len(self.layers))

    def write(self, context: DecoderInput, chance: Float[Tensor, "M T"] | None) -> Int64[Tensor, "M T"]:
        memory: list[Memory | None] = [None] * len(self.layers)
        places = iter(self.position)

        def read(token: Int64[Tensor, "M"] | None) -> Float[Tensor, "M E"]:
            x = self.enter(context.vector) if token is None else self.embedding(token)
            return self._score((x + next(places))[:, None], memory)[:, 0]

        return self.generate_autoregressively(read, context, chance)

    def _score(self, x: Float[Tensor, "M t D"], memory: list[Memory | None]) -> Float[Tensor, "M t E"]:
        """Scores at places that follow those in `memory`, which takes them up."""
        for number, layer in enumerate(self.layers):
            x, memory[number] = layer(x, memory[number])
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.out.weight.float(), self.out.bias.float())


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "M t D"], past: Memory | None) -> tuple[Float[Tensor, "M t D"], Memory]:
        """With a `past`, x is the one place that follows it."""
        m, t, d = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(m, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)  # (M, heads, t, d)
        x = x + self.out(attended.transpose(1, 2).reshape(m, t, d))
        return x + self.mlp(self.norm_mlp(x)), (k, v)
