"""Tokens written by the backbone itself: actions are text (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246).

A suffix follows the tokens of a step. It starts with the context, which holds the readouts and, with `proprio: fuser`,
proprioception. Then come either the tokens written so far, each of which predicts the next, or L learned positions that
see each other and are read at once (OpenVLA-OFT, arXiv 2502.19645).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.axes import WIDTH, Axis, Meaning, axis
from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation
from anyvla.config import STRICT, ConfigError
from anyvla.decoders.base import Chunks, DecoderInput, DecoderSpec
from anyvla.decoders.token_decoder import TokenDecoder, check_scores
from anyvla.limits import WEIGHT

SAMPLE = 64  # regular ids from whose embeddings the size of the model's embeddings is measured


class LMTokensDecoder(TokenDecoder):
    """Writes the tokens of a codec with the backbone's language model, after the tokens of a step."""

    needs = frozenset({"continue", "lm_head"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: lm_tokens}`."""

        decoding: Literal["autoregressive", "parallel"] = "autoregressive"  # parallel: all tokens in one pass
        ids: Literal["end", "added"] = "end"  # end: the last regular ids of the vocabulary; added: new ids
        temperature: float = Field(default=0.0, ge=0, le=WEIGHT)  # 0: the likeliest token; 1: the model's probabilities

    def __init__(self, config: Config, spec: DecoderSpec) -> None:
        """Build the vocabulary of actions.

        Raises ValueError if `ids: end` needs more ids than the vocabulary has, or for a backbone that cannot decode in
        parallel.
        """
        super().__init__(spec, config.temperature)
        backbone, size = spec.backbone, self.codec.size
        if config.decoding == "parallel" and "cache" not in backbone.capabilities:
            raise ConfigError(
                "decoding: parallel lets tokens see each other after a KV cache, and this backbone has no cache: it "
                "reads everything again, and each position sees earlier ones only: use decoding: autoregressive"
            )
        scale = _measure_embedding_scale(backbone)
        self.vocabulary: _LastIds | _AddedIds
        if config.ids == "end":
            self.vocabulary = _LastIds(backbone, size, self.symbols)
        else:
            self.vocabulary = _AddedIds(backbone.width, self.symbols, scale)
        self.enter = nn.Linear(spec.context_width, backbone.width)
        self.enter.weight.data = torch.randn_like(self.enter.weight) * spec.context_width**-0.5 * scale
        nn.init.zeros_(self.enter.bias)
        self.suffix_length = self.length + (config.decoding == "parallel")
        self.places: nn.Parameter | None = None  # embeddings of the positions that are read at once
        if config.decoding == "parallel":
            self.places = nn.Parameter(torch.randn(self.length, backbone.width) * scale)

    def meaning(self, context: Axis) -> Meaning:
        width = axis(WIDTH, self.enter.out_features)
        return Meaning(
            {
                "enter.weight": (width, context.at_zero()),
                "enter.bias": (width,),
                "places": (self.place_axis, width),
                "vocabulary.embedding": (self.symbol_axis, width),
                "vocabulary.head.weight": (self.symbol_axis, width),
            }
        )

    def borrowed_ids(self) -> Int64[Tensor, "E"] | None:
        return self.vocabulary.ids if isinstance(self.vocabulary, _LastIds) else None

    def logits(self, inputs: DecoderInput, tokens: Int64[Tensor, "M L"]) -> Float[Tensor, "M L E"]:
        if self.places is not None:
            return self._score_at_once(inputs)
        earlier = self.vocabulary.embed(tokens[:, :-1].clamp(min=0))  # nothing is learned after a -1
        suffix = torch.cat([self.enter(inputs.context)[:, None], earlier], 1)  # (M, L, D)
        return self.vocabulary.score(_continuation(inputs).run_suffix(suffix, causal=True))

    def generate(self, inputs: DecoderInput, uniforms: Float[Tensor, "M L"] | None) -> Int64[Tensor, "M L"]:
        if self.places is not None:
            scores, fixed = self._score_at_once(inputs), self.fixed_tokens(inputs)
            check_scores(scores.isnan().any())
            tokens = self.choose(scores, uniforms, 0)
            return tokens if fixed is None else torch.where(fixed >= 0, fixed, tokens)
        suffix = _continuation(inputs).start_suffix()

        def read(token: Int64[Tensor, "M"] | None) -> Float[Tensor, "M E"]:
            x = self.enter(inputs.context) if token is None else self.vocabulary.embed(token)
            return self.vocabulary.score(suffix.extend(x[:, None]))[:, 0]

        return self.generate_autoregressively(read, inputs, uniforms)

    def embed_chunks(self, actions: Chunks, tokens: Int64[Tensor, "M L"] | None = None) -> Float[Tensor, "M L D"]:
        """Return the embedded tokens of earlier chunks; missing ones are the end token or, without one, token 0."""
        tokens = self.codec.encode(actions) if tokens is None else tokens
        return self.vocabulary.embed(tokens.masked_fill(tokens < 0, self.codec.size if self.codec.ends else 0))

    def _score_at_once(self, inputs: DecoderInput) -> Float[Tensor, "M L E"]:
        assert self.places is not None
        first = self.enter(inputs.context)[:, None]
        suffix = torch.cat([first, self.places.expand(len(first), -1, -1)], 1)  # (M, 1 + L, D)
        return self.vocabulary.score(_continuation(inputs).run_suffix(suffix, causal=False)[:, 1:])


class _LastIds(nn.Module):
    """Token k is the k-th of the last V regular ids, so that bins agree with OpenVLA's; an end token is the id before.

    Embedding and LM head are used through the backbone's methods, so they stay parts of the backbone.
    """

    ids: Int64[Tensor, "E"]

    def __init__(self, backbone: Backbone, size: int, symbols: int) -> None:
        super().__init__()
        self.register_buffer("ids", backbone.last_token_ids(symbols).roll(size - symbols), persistent=False)
        self._embed, self._compute_logits = backbone.embed, backbone.compute_logits
        backbone.unfreeze_lm_head()

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        return self._embed(self.ids[tokens])

    def score(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return self._compute_logits(hidden.float(), self.ids).float()


class _AddedIds(nn.Module):
    """New rows for all symbols, as large as the model's embeddings."""

    def __init__(self, width: int, symbols: int, scale: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(symbols, width) * scale)
        self.head = nn.Linear(width, symbols, bias=False)

    def embed(self, tokens: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        return self.embedding[tokens]

    def score(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float())


def _continuation(inputs: DecoderInput) -> Continuation:
    if inputs.continuation is None:
        raise ValueError("lm_tokens reads after the backbone's KV cache, but its input has no continuation")
    return inputs.continuation


@torch.no_grad()
def _measure_embedding_scale(backbone: Backbone) -> Float[Tensor, ""]:
    """Return the root mean square of the model's embeddings, as a tensor: weights may be loaded only after building."""
    ids = backbone.last_token_ids(SAMPLE).to(next(backbone.parameters()).device)
    return backbone.embed(ids).float().square().mean().sqrt().cpu()
