"""The base class of decoders that write the tokens of a codec: targets, loss, the choice of tokens, and their decoding.

A decoder scores E symbols at each of L positions: the V tokens of the codec and, if its chunks may be shorter than L,
an end token of id V. Only these can be chosen, so a policy always writes a sequence of action tokens. If a sequence is
no chunk of the codec, the codec returns the nearest defined chunk, and the decoder counts it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from anyvla.axes import ACTION, ACTION_TOKEN, CHUNK, PLACE, Axis, Factor, axis
from anyvla.config import ConfigError
from anyvla.decoders.base import (
    ActionMask,
    Chunks,
    Committed,
    Decoder,
    DecoderInput,
    DecoderSpec,
    Loss,
    sample_noise,
    token_loss,
)
from anyvla.representations.codec import reaches_power_of_ten
from anyvla.types import ChunkError

log = logging.getLogger(__name__)


class TokenDecoder(Decoder):
    """A decoder of token sequences, trained by cross-entropy on the codec's tokens of the demonstrated chunks.

    `temperature` 0 writes the likeliest tokens; above, tokens are sampled from softmax(logits / temperature).
    """

    reads = frozenset({"tokens"})
    invalid: int = 0  # sequences written since it was built that were no chunk of the codec

    def __init__(self, spec: DecoderSpec, temperature: float) -> None:
        super().__init__()
        if spec.codec is None:
            raise ConfigError(
                f"{type(self).__name__} writes tokens, but actions are continuous: give the model a "
                "representation (bins, fast or vq), or use a decoder of continuous actions"
            )
        self.codec, self.temperature = spec.codec, temperature
        self.dims = spec.space.size  # A
        self.length = spec.codec.length  # L
        self.symbols = spec.codec.size + spec.codec.ends  # E

    @property
    def symbol_axis(self) -> Axis:
        """The meaning of an axis that counts symbols."""
        return axis(ACTION_TOKEN, self.symbols)

    @property
    def place_axis(self) -> Axis:
        """The meaning of an axis that counts the positions of a sequence."""
        if not self.codec.elementwise:
            return axis(PLACE, self.length)
        return Axis(((Factor(CHUNK, range(self.length // self.dims)), Factor(ACTION, range(self.dims))),))

    @abstractmethod
    def logits(self, inputs: DecoderInput, tokens: Int64[Tensor, "M L"]) -> Float[Tensor, "M L E"]:
        """Return the scores of the symbols at each position, float32. `tokens`: the targets, to read earlier ones."""

    @abstractmethod
    def generate(self, inputs: DecoderInput, uniforms: Float[Tensor, "M L"] | None) -> Int64[Tensor, "M L"]:
        """Return symbols chosen by `choose`. `uniforms`: a random number for each position; None: the likeliest."""

    def targets(
        self, actions: Chunks, mask: ActionMask, known: Int64[Tensor, "M L"] | None = None
    ) -> Int64[Tensor, "M L"]:
        """Return the tokens to write, and the end token after them if the codec has one; -1 where none is learned.

        `known`: the tokens of the padded chunks, if they were encoded before.
        """
        tokens = self.codec.encode(actions, mask) if known is None else self.codec.hide_missing(known, mask)
        if not self.codec.ends:
            return tokens
        written = tokens >= 0
        after = F.pad(written, (1, 0))[:, :-1] & ~written  # right after the last token
        return tokens.masked_fill(after, self.codec.size)

    def loss(
        self,
        inputs: DecoderInput,
        actions: Chunks,
        mask: ActionMask,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Loss:
        """Return the cross-entropy of each token given those before it; it has no randomness.

        Tokens of dims that are not learned count only with codecs whose tokens each hold several dims.
        """
        tokens = self.targets(actions, mask, inputs.tokens)
        logits, fixed = self.logits(inputs, tokens), self.fixed_tokens(inputs)
        if fixed is not None:
            tokens = tokens.masked_fill(fixed >= 0, -1)
        return token_loss(logits, tokens, inputs.valid_elements(mask, self.dims))

    def fixed_tokens(self, inputs: DecoderInput) -> Int64[Tensor, "M L"] | None:
        """Return the tokens of dims that are not learned, which are known and not chosen; -1 elsewhere."""
        if inputs.learned_dims is None or not self.codec.elementwise:
            return None
        free = inputs.learned_dims[:, None].expand(-1, self.length // self.dims, -1).flatten(1)  # (M, L)
        zero = self.codec.encode(inputs.context.new_zeros(1, self.length // self.dims, self.dims))
        return zero.masked_fill(free, -1)

    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Return the written chunk, or the codec's nearest defined one. At temperature 0 it has no randomness."""
        uniforms = None
        if self.temperature:  # all at once: a generator's next number must not depend on how far another step writes
            uniforms = sample_noise((self.length,), generators, inputs.context, torch.rand)
        chunk, wrong = self.codec.decode(self.generate(inputs, uniforms))
        before, self.invalid = self.invalid, self.invalid + int(wrong.sum())
        if reaches_power_of_ten(before, self.invalid):
            log.warning(
                "%d sequences so far were invalid for the %s and were replaced by the nearest defined chunk",
                self.invalid,
                type(self.codec).__name__,
            )
        return chunk if committed is None else committed.replace(chunk)

    def choose(
        self, logits: Float[Tensor, "M l E"], uniforms: Float[Tensor, "M L"] | None, first: int
    ) -> Int64[Tensor, "M l"]:
        """Return one symbol at each of the positions `first`, `first` + 1, ... A chunk has at least one token.

        The caller checks the scores with `check_scores`: argmax would choose one that is NaN.
        """
        if first == 0 and self.codec.ends:
            logits = logits.clone()
            logits[:, 0, self.codec.size] = -torch.inf
        if uniforms is None:
            return logits.argmax(-1)
        below = (logits / self.temperature).softmax(-1).cumsum(-1)
        threshold = uniforms[:, first : first + logits.shape[1], None] * below[..., -1:]
        return (below <= threshold).sum(-1).clamp(max=self.symbols - 1)

    def generate_autoregressively(
        self,
        read: Callable[[Int64[Tensor, "M"] | None], Float[Tensor, "M E"]],
        inputs: DecoderInput,
        uniforms: Float[Tensor, "M L"] | None,
    ) -> Int64[Tensor, "M L"]:
        """Choose one token after another, until all chunks have ended.

        `read(token)` returns the scores after `token`; None: the first scores. The codec does not read the tokens of a
        chunk after its end.
        """
        fixed = self.fixed_tokens(inputs)
        steps, device = len(inputs.context), inputs.context.device
        tokens = torch.full((steps, self.length), self.codec.size, device=device)
        ended, bad = (
            torch.zeros(steps, dtype=torch.bool, device=device),
            torch.zeros((), dtype=torch.bool, device=device),
        )
        for position in range(self.length):
            scores = read(tokens[:, position - 1] if position else None)
            bad = bad | scores.isnan().any()
            tokens[:, position] = self.choose(scores[:, None], uniforms, position)[:, 0]
            if fixed is not None:
                tokens[:, position] = torch.where(fixed[:, position] >= 0, fixed[:, position], tokens[:, position])
            if self.codec.ends:
                ended = ended | (tokens[:, position] == self.codec.size)
            if (position + 1) % _every(device) == 0 or position + 1 == self.length:
                failed, over = torch.stack([bad, ended.all()]).tolist()
                check_scores(failed)
                if over:
                    break
        return tokens


def check_scores(failed: bool | Tensor) -> None:
    """Raise ChunkError if scores of tokens were NaN."""
    if failed:
        raise ChunkError("the decoder's scores of tokens are not finite, and nothing is written")


def _every(device: torch.device) -> int:
    """Return after how many tokens to look whether all chunks have ended: looking makes the host wait for a GPU."""
    return 1 if device.type == "cpu" else 8
