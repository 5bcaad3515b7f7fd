"""What all decoders share that write the tokens of a codec: targets, loss, choosing tokens, chunks out of them.

A decoder scores E symbols at each of T places: the V tokens of the codec and, if its chunks may be shorter than T, an
end token of id V. Only these can be chosen, so whatever a policy writes is a sequence of action tokens; should it be no
chunk all the same, the codec gives the nearest one that is defined, and the decoder counts it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anyvla.config import ConfigError
from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec, Loss, token_loss
from anyvla.types import ChunkError

log = logging.getLogger(__name__)


class TokenDecoder(Decoder):
    """A decoder of token sequences, trained by cross-entropy on the codec's tokens of the demonstrated chunks.

    `temperature` 0 writes the likeliest tokens; above, tokens are drawn from softmax(logits / temperature).
    """

    reads = frozenset({"tokens"})
    invalid: int = 0  # chunks written since it was built that were no chunk of the codec

    def __init__(self, setting: DecoderSpec, temperature: float) -> None:
        super().__init__()
        if setting.codec is None:
            raise ConfigError(
                f"{type(self).__name__} writes tokens, but actions are continuous: give the model a "
                "representation (bins, fast or vq), or use a decoder of continuous actions"
            )
        self.codec, self.temperature = setting.codec, temperature
        self.dims = setting.space.size  # A
        self.length = setting.codec.length  # T
        self.symbols = setting.codec.size + setting.codec.ends  # E

    @abstractmethod
    def logits(self, context: DecoderInput, tokens: Int64[Tensor, "M T"]) -> Float[Tensor, "M T E"]:
        """Scores of the symbols at each place, float32. `tokens`: the targets, for those that read earlier ones."""

    @abstractmethod
    def write(self, context: DecoderInput, chance: Float[Tensor, "M T"] | None) -> Int64[Tensor, "M T"]:
        """Symbols, chosen by `choose`; `chance` holds the random number of each place, None: the likeliest."""

    def targets(self, actions: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"]) -> Int64[Tensor, "M T"]:
        """The tokens to write; after them the end token, if the codec's chunks end; -1 where nothing is learned."""
        tokens = self.codec.encode(actions, mask)
        if not self.codec.ends:
            return tokens
        written = tokens >= 0
        after = torch.nn.functional.pad(written, (1, 0))[:, :-1] & ~written  # right after the last token
        return tokens.masked_fill(after, self.codec.size)

    def loss(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Return the cross-entropy of each token given those before it; it has no randomness.

        Tokens of dims that are not learned count only with codecs whose tokens each hold several dims.
        """
        tokens = self.targets(actions, mask)
        logits, given = self.logits(context, tokens), self.given(context)
        if given is not None:
            tokens = tokens.masked_fill(given >= 0, -1)
        return token_loss(logits, tokens, context.elements(mask, self.dims))

    def given(self, context: DecoderInput) -> Int64[Tensor, "M T"] | None:
        """Return the tokens that are not chosen but known, those of dims that are not learned; -1 elsewhere."""
        if context.dims is None or not self.codec.elementwise:
            return None
        free = context.dims[:, None].expand(-1, self.length // self.dims, -1).flatten(1)  # (M, T)
        zero = self.codec.encode(context.vector.new_zeros(1, self.length // self.dims, self.dims))
        return zero.masked_fill(free, -1)

    def sample(
        self, context: DecoderInput, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "M N A"]:
        """The chunk that was written, or the codec's nearest defined one. At temperature 0 it has no randomness."""
        chance = None
        if self.temperature:  # all at once: how far a neighbor writes must not change what a generator gives next
            chance = uniform(self.length, generators, context.vector)
        chunk, wrong = self.codec.decode(self.write(context, chance))
        self._count(int(wrong.sum()))
        return chunk

    def choose(
        self, logits: Float[Tensor, "M t E"], chance: Float[Tensor, "M T"] | None, first: int
    ) -> Int64[Tensor, "M t"]:
        """One symbol at each of the places `first`, `first` + 1, ... A chunk has one token at least.

        Raises ChunkError for scores that are no numbers, of which one would be the greatest all the same.
        """
        if logits.isnan().any():
            raise ChunkError("the decoder's scores of tokens are not finite, and nothing is written")
        if first == 0 and self.codec.ends:
            logits = logits.clone()
            logits[:, 0, self.codec.size] = -torch.inf
        if chance is None:
            return logits.argmax(-1)
        below = (logits / self.temperature).softmax(-1).cumsum(-1)
        drawn = chance[:, first : first + logits.shape[1], None] * below[..., -1:]
        return (below <= drawn).sum(-1).clamp(max=self.symbols - 1)

    def generate_autoregressively(
        self,
        read: Callable[[Int64[Tensor, "M"] | None], Float[Tensor, "M E"]],
        context: DecoderInput,
        chance: Float[Tensor, "M T"] | None,
    ) -> Int64[Tensor, "M T"]:
        """One token after another, until all chunks have ended. `read(token)` gives the scores after it, None: first.

        What a chunk gets after its end does not matter: the codec does not read it.
        """
        given = self.given(context)
        steps, device = len(context.vector), context.vector.device
        tokens = torch.full((steps, self.length), self.codec.size, device=device)
        ended = torch.zeros(steps, dtype=torch.bool, device=device)
        for place in range(self.length):
            scores = read(tokens[:, place - 1] if place else None)
            tokens[:, place] = self.choose(scores[:, None], chance, place)[:, 0]
            if given is not None:
                tokens[:, place] = torch.where(given[:, place] >= 0, given[:, place], tokens[:, place])
            if self.codec.ends:
                ended |= tokens[:, place] == self.codec.size
                if ended.all():
                    break
        return tokens

    def _count(self, wrong: int) -> None:
        before, self.invalid = self.invalid, self.invalid + wrong
        if self.invalid and (not before or len(str(before)) < len(str(self.invalid))):  # the 1st, 10th, 100th ...
            log.warning(
                "sequences that were invalid for the %s, so that the nearest defined chunk stood for them: %d so far",
                type(self.codec).__name__,
                self.invalid,
            )


def uniform(places: int, generators: Sequence[torch.Generator] | None, like: Tensor) -> Float[Tensor, "M T"]:
    """Random numbers in [0, 1) for M = len(like) steps, each of its own generator (on the CPU), float32."""
    if generators is None:
        return torch.rand(len(like), places, device=like.device)
    return torch.stack([torch.rand(places, generator=g) for g in generators]).to(like.device)
