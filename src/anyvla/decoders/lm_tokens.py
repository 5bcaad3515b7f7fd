"""Tokens written by the backbone itself: actions are words (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246).

After the tokens of a step stands a suffix: the context first (it holds the readouts, and what the head knows besides),
then either the tokens written so far, each of which predicts the next, or T learned places that see each other and are
read at once (OpenVLA-OFT, arXiv 2502.19645).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation
from anyvla.config import STRICT, ConfigError
from anyvla.decoders.base import DecoderInput, DecoderSpec
from anyvla.decoders.token_decoder import TokenDecoder
from anyvla.limits import WEIGHT

SAMPLE = 64  # regular ids whose embeddings tell how large the model's are


class LMTokensDecoder(TokenDecoder):
    """What the backbone remembers, and the context -> backbone -> tokens of a codec -> chunk."""

    needs = frozenset({"continue", "lm_head"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: lm_tokens}`."""

        decoding: Literal["autoregressive", "parallel"] = "autoregressive"  # parallel: all tokens in one pass
        ids: Literal["end", "added"] = "end"  # end: the last regular ids of the vocabulary; added: ids of their own
        temperature: float = Field(default=0.0, ge=0, le=WEIGHT)  # 0: the likeliest token; 1: as the model believes

    def __init__(self, config: Config, setting: DecoderSpec) -> None:
        """Raises ValueError if `ids: end` needs more ids than the vocabulary has, or for a backbone that cannot
        decode in parallel.
        """
        super().__init__(setting, config.temperature)
        backbone, size = setting.backbone, self.codec.size
        if config.decoding == "parallel" and "cache" not in backbone.capabilities:
            raise ConfigError(
                "decoding: parallel lets tokens see each other after what the backbone remembers, and this backbone "
                "reads again instead of remembering, each place seeing earlier ones only: use decoding: autoregressive"
            )
        scale = _embedding_scale(backbone)
        self.words: _LastIds | _AddedIds
        if config.ids == "end":
            self.words = _LastIds(backbone, size, self.symbols)
        else:
            self.words = _AddedIds(backbone.width, self.symbols, scale)
        self.enter = nn.Linear(setting.context, backbone.width)
        self.enter.weight.data = torch.randn_like(self.enter.weight) * setting.context**-0.5 * scale
        nn.init.zeros_(self.enter.bias)
        self.suffix_length = self.length + (config.decoding == "parallel")
        self.places: nn.Parameter | None = None  # that are read at once
        if config.decoding == "parallel":
            self.places = nn.Parameter(torch.randn(self.length, backbone.width) * scale)

    def logits(self, context: DecoderInput, tokens: Int64[Tensor, "M T"]) -> Float[Tensor, "M T E"]:
        if self.places is not None:
            return self._at_once(context)
        earlier = self.words.embed(tokens[:, :-1].clamp(min=0))  # nothing is learned after a -1
        suffix = torch.cat([self.enter(context.vector)[:, None], earlier], 1)  # (M, T, D)
        return self.words.score(_continuation(context).run_suffix(suffix, causal=True))

    def write(self, context: DecoderInput, chance: Float[Tensor, "M T"] | None) -> Int64[Tensor, "M T"]:
        if self.places is not None:
            tokens, given = self.choose(self._at_once(context), chance, 0), self.given(context)
            return tokens if given is None else torch.where(given >= 0, given, tokens)
        writing = _continuation(context).start_suffix()

        def read(token: Int64[Tensor, "M"] | None) -> Float[Tensor, "M E"]:
            x = self.enter(context.vector) if token is None else self.words.embed(token)
            return self.words.score(writing.extend(x[:, None]))[:, 0]

        return self.generate_autoregressively(read, context, chance)

    def embed_chunks(self, actions: Float[Tensor, "M N A"]) -> Float[Tensor, "M T D"]:
        """The tokens of earlier chunks; where there is none, the end token's (or, without one, the first token's)."""
        tokens = self.codec.encode(actions)
        return self.words.embed(tokens.masked_fill(tokens < 0, self.codec.size if self.codec.ends else 0))

    def _at_once(self, context: DecoderInput) -> Float[Tensor, "M T E"]:
        assert self.places is not None
        first = self.enter(context.vector)[:, None]
        suffix = torch.cat([first, self.places.expand(len(first), -1, -1)], 1)  # (M, 1 + T, D)
        return self.words.score(_continuation(context).run_suffix(suffix, causal=False)[:, 1:])


class _LastIds(nn.Module):
    """Token k is the k-th of the last V regular ids, so that binning agrees with OpenVLA's; the end token, if there is
    one, is the id before them. Embedding and head are the backbone's, through methods: it is no part of this module.
    """

    ids: Int64[Tensor, "E"]

    def __init__(self, backbone: Backbone, size: int, symbols: int) -> None:
        super().__init__()
        self.register_buffer("ids", backbone.last_token_ids(symbols).roll(size - symbols), persistent=False)
        self._embed, self._score = backbone.embed, backbone.compute_logits
        backbone.unfreeze_lm_head()

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        return self._embed(self.ids[tokens])

    def score(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return self._score(hidden.float(), self.ids).float()


class _AddedIds(nn.Module):
    """Rows of their own for all symbols, as large as those of the model."""

    def __init__(self, width: int, symbols: int, scale: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(symbols, width) * scale)
        self.head = nn.Linear(width, symbols, bias=False)

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        return self.embedding[tokens]

    def score(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float())


def _continuation(context: DecoderInput) -> Continuation:
    if context.continuation is None:
        raise ValueError("lm_tokens reads on after what the backbone remembers, but the context has no continuation")
    return context.continuation


@torch.no_grad()
def _embedding_scale(backbone: Backbone) -> Float[Tensor, ""]:
    """The root mean square of the model's embeddings. A tensor, for weights may be read only after building."""
    ids = backbone.last_token_ids(SAMPLE).to(next(backbone.parameters()).device)
    return backbone.embed(ids).float().square().mean().sqrt().cpu()
