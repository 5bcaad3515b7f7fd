"""A codec and contexts for tests of decoders that write tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyvla.backbones.continuation import Continuation
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.config import build
from anyvla.decoders.base import DecoderInput, DecoderSpec, Loss
from anyvla.decoders.token_decoder import TokenDecoder
from anyvla.representations.codec import Codec
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from tests.small import NANO, SIZE, embodiment

SPACE = embodiment().action  # A = 4
N, C = 2, 8
ALL = torch.ones(4, N, dtype=torch.bool)
INSTRUCTIONS = ["open the drawer", "close it", "press the red button", "go"]


class Levels(Codec):
    """An element is one of `size` levels. With `ends`, levels at the end that equal the one before are not written;
    a sequence that ends before its first token is invalid and means zeros.
    """

    def __init__(self, size: int = 6, ends: bool = False) -> None:
        super().__init__(N, SPACE)
        self.size, self.ends, self.length = size, ends, N * SPACE.size
        self.register_buffer("values", torch.linspace(-1, 1, size))

    fitted = True

    def fit(self, chunks: Tensor, seed: int = 0) -> dict[str, Any]:
        return {}

    def encode(self, chunks: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = (chunks[..., None] - self.values).abs().argmin(-1).flatten(1)
        if self.ends:
            new = torch.nn.functional.pad(tokens[:, 1:] != tokens[:, :-1], (1, 0), value=True)
            kept = new.flip(1).cummax(1).values.flip(1)  # up to the last change
            return tokens.where(kept & (mask is None or mask.any(1, keepdim=True)), -1)
        if mask is None:
            return tokens
        return tokens.where(mask[..., None].expand(-1, -1, SPACE.size).flatten(1), -1)

    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        known = (tokens >= 0) & (tokens < self.size)
        known = known.cummin(1).values
        wrong = ~known[:, 0] if self.ends else ~known.all(1)
        last = (known.sum(1, keepdim=True) - 1).clamp(min=0)
        place = torch.minimum(torch.arange(self.length), last)
        chunks = self.values[tokens.clamp(0, self.size - 1).gather(1, place)] * ~wrong[:, None]
        return chunks.unflatten(1, (N, SPACE.size)), wrong

    def save(self, folder: Path) -> None:
        """Nothing was fitted."""


def make_spec(backbone: NanoBackbone, codec: Codec | None) -> DecoderSpec:
    return DecoderSpec(C, N, SPACE, codec, backbone)


def backbone(**keys: Any) -> NanoBackbone:
    return NanoBackbone(build(NanoBackbone.Config, {k: v for k, v in (NANO | keys).items() if k != "name"}))


def vectors(count: int = 4) -> Tensor:
    return torch.randn(count, C, generator=torch.Generator().manual_seed(1))


def actions(count: int = 4) -> Tensor:
    return torch.rand(count, N, SPACE.size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def after(model: NanoBackbone, counts: tuple[int, ...] = (2, 1, 1)) -> DecoderInput:
    """Return contexts, and the KV cache of `model` after as many steps; a step sees the earlier ones of its row."""
    count = sum(counts)
    images = torch.randint(0, 256, (count, 1, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(3))
    block = model.tokenize(images.to(torch.uint8), INSTRUCTIONS[:count])
    sequence = lay_out(block, counts, 0, pad_id=model.pad_id, query_id=model.query_id)
    cache = Cache()
    model(sequence, torch.zeros(1, model.width), cache)
    row = torch.repeat_interleave(torch.tensor(counts))
    step = torch.cat([torch.arange(n) for n in counts])
    assert cache.valid is not None
    visible = (cache.valid & (sequence.step_ids >= -1))[row] & (sequence.step_ids[row] <= step[:, None])
    return DecoderInput(vectors(count), Continuation(model, cache, counts, visible, visible.sum(1)))


def record_logits(decoder: TokenDecoder, inputs: DecoderInput, uniforms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the written tokens, and the logits that they were chosen from."""
    seen, choose = [], decoder.choose

    def record(logits: Tensor, uniforms: Tensor | None, first: int) -> Tensor:
        seen.append(logits)
        return choose(logits, uniforms, first)

    decoder.choose = record
    with torch.no_grad():
        tokens = decoder.generate(inputs, uniforms)
    del decoder.choose
    return tokens, torch.cat(seen, 1)


def overfit(
    decoder: TokenDecoder, more: Iterable[Tensor], inputs: Callable[[], DecoderInput], chunks: Tensor, steps: int = 200
) -> Loss:
    """Train on one batch until the loss is small."""
    optimizer = torch.optim.Adam({*decoder.parameters(), *more}, 5e-3)
    for _ in range(steps):
        loss = decoder.loss(inputs(), chunks, ALL)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        if loss.value < 0.05:
            break
    return loss


def short_and_long() -> Tensor:
    """Return a chunk of one token, one of as many as possible, and others."""
    chunks = actions()
    chunks[0], chunks[1, 1] = chunks[0, 0, 0], chunks[1, 0, 3]
    return chunks
