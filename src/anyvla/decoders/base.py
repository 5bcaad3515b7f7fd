"""The base class of decoders: they turn the context of a step into a chunk.

Decoders work on M steps at once: all valid steps of all windows in training, the newest step of each session when
acting. Decoders that run in the backbone also get a `Continuation`, the backbone's KV cache after each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.axes import Axis, Meaning
from anyvla.backbones.base import Backbone, Capability
from anyvla.backbones.continuation import Continuation
from anyvla.representations.codec import Codec
from anyvla.robot.space import ActionSpace
from anyvla.transfer import send

RepresentationKind = Literal["continuous", "tokens"]
Chunks = Float[Tensor, "M N A"]
ActionMask = Bool[Tensor, "M N"]  # False past the end of an episode


@dataclass(frozen=True)
class Loss:
    """A loss as a sum and a count. Minimize `value`.

    To average over several parts of a batch, add their totals and counts before dividing: then padding never
    contributes, and the split of a batch does not change the loss.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]  # valid action elements
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)  # means to log, detached

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean over valid elements; 0 if there is none."""
        return self.total / self.count.clamp(min=1)


@dataclass(frozen=True)
class DecoderSpec:
    """The sizes and parts that a decoder is built for."""

    context_width: int  # C
    chunk: int  # N
    space: ActionSpace  # A dims
    codec: Codec | None  # of the representation; None: continuous
    backbone: Backbone  # for its shapes; a decoder must not keep it


@dataclass(frozen=True)
class DecoderInput:
    """The input of a decoder for M steps."""

    context: Float[Tensor, "M C"]  # from the fuser
    continuation: Continuation | None = None  # if the decoder `needs` "continue" or "cache" of the backbone
    # The action dims that are learned: those that the step's robot has and that vary in its data. None: all of them.
    learned_dims: Bool[Tensor, "M A"] | None = None
    tokens: Int64[Tensor, "M L"] | None = None  # of the chunks to learn, padded, if they were encoded with the batch

    def valid_elements(self, mask: ActionMask, size: int) -> Bool[Tensor, "M N A"]:
        """Return the valid elements of chunks: actions that exist, in dims that are learned. `size`: A."""
        dims = mask.new_ones(1, size) if self.learned_dims is None else self.learned_dims
        return mask[..., None] & dims[:, None]

    def zero_unlearned(self, chunks: Float[Tensor, "kM N A"]) -> Float[Tensor, "kM N A"]:
        """Return chunks, k for each step, with 0 in the dims that are not learned: networks see no other value."""
        if self.learned_dims is None:
            return chunks
        return chunks * self.learned_dims.repeat(len(chunks) // len(self.learned_dims), 1)[:, None]


@dataclass(frozen=True)
class Committed:
    """The first actions of chunks, which are decided already: the robot executes them while the chunk is sampled."""

    actions: Chunks  # normalized, 0 in dims that are not learned; what the mask hides is not read
    mask: Bool[Tensor, "M N"]  # True for the first actions of each chunk, as many as it has

    def replace(self, chunks: Chunks, actions: Chunks | None = None) -> Chunks:
        """Return chunks that begin with the committed actions, or with these `actions` in their places."""
        return torch.where(self.mask[..., None], self.actions if actions is None else actions, chunks)


class Decoder(nn.Module, ABC):
    """Turns the context of a step into a chunk. Made by `Class(config, spec)`."""

    Config: ClassVar[type]
    reads: ClassVar[frozenset[RepresentationKind]] = frozenset({"continuous"})  # representations it works with
    needs: ClassVar[frozenset[Capability]] = frozenset()  # of the backbone
    # Whether the rest of a chunk depends on its committed actions. False: these only replace the first ones.
    continues: ClassVar[bool] = False
    suffix_length: int = 0  # positions that it reads in the backbone after a step, to sample a chunk

    @classmethod
    def needs_with(cls, kind: RepresentationKind) -> frozenset[Capability]:
        """Return the capabilities that the backbone needs, given the kind of representation."""
        return cls.needs

    @abstractmethod
    def loss(
        self,
        inputs: DecoderInput,
        actions: Chunks,
        mask: ActionMask,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Loss:
        """Return the loss against normalized actions, over `inputs.valid_elements(mask)` only.

        `generators` (on the CPU) make the noise and times of decoders that sample them: one for each step. The steps of
        a window are consecutive and share theirs. So the noise of a window depends neither on the other windows of the
        batch nor on the device. None: PyTorch's own.
        """

    @abstractmethod
    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Return a normalized chunk for each step, which begins with its committed actions if there are any.

        `generators`: one for each step, on the CPU, so that a step's noise depends neither on its batch nor on the
        device. None: PyTorch's own.
        """

    def embed_chunks(
        self, actions: Chunks, tokens: Int64[Tensor, "M L"] | None = None
    ) -> Float[Tensor, "M L D"] | None:
        """Return chunks of earlier steps as embeddings for the backbone; None: this decoder has none.

        `tokens`: of these chunks, if they are known.
        """
        return None

    def meaning(self, context: Axis) -> Meaning:
        """Return the meaning of the weights, given that of the context."""
        return Meaning()

    def borrowed_ids(self) -> Int64[Tensor, "E"] | None:
        """Return the ids of the backbone's vocabulary that stand for the symbols of actions; None: none does."""
        return None


def sample_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator] | None,
    like: Tensor,
    distribution: Callable[..., Tensor] = torch.randn,
) -> Float[Tensor, "M ..."]:
    """Return random numbers (M, *shape), float32, for M = len(like) steps, each from its own generator (on the CPU)."""
    if generators is None:
        return distribution(len(like), *shape, device=like.device)
    return send(torch.stack([distribution(*shape, generator=g) for g in generators]), like.device)


def sample_by_window(
    count: int,
    generators: Sequence[torch.Generator] | None,
    sample: Callable[[int, torch.Generator | None], Shaped[Tensor, "m ..."]],
) -> Shaped[Tensor, "M ..."]:
    """Return random numbers for M = `count` steps. Those of all steps of a window are sampled at once.

    `generators`: one for each step, the same for the consecutive steps of a window. `sample(m, generator)` returns the
    numbers of m steps. Raises ValueError for another number of generators.
    """
    if generators is None:
        return sample(count, None)
    if len(generators) != count:
        raise ValueError(f"the loss needs one generator for each of the {count} steps, got {len(generators)}")
    windows = [list(own) for _, own in groupby(generators, key=id)]
    return torch.cat([sample(len(own), own[0]) for own in windows]) if windows else sample(0, None)


def token_loss(logits: Float[Tensor, "M L E"], tokens: Int64[Tensor, "M L"], elements: Bool[Tensor, "M N A"]) -> Loss:
    """Return the cross-entropy where `tokens` is not -1: each chunk's mean over tokens, weighted by its `elements`.

    For codecs with one token for each action element (bins) this is the mean over all tokens.
    """
    learned = tokens >= 0
    each = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), ignore_index=-1, reduction="none")
    chunk = each.view_as(tokens).sum(1) / learned.sum(1).clamp(min=1)  # (M,)
    weight = elements.sum((1, 2)).to(chunk.dtype)
    right = ((logits.argmax(-1) == tokens) & learned).sum() / learned.sum().clamp(min=1)
    mean = (each.sum() / learned.sum().clamp(min=1)).detach()
    return Loss((chunk * weight).sum(), weight.sum(), {"tokens": mean, "accuracy": right.to(mean.dtype)})
