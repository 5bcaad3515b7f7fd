"""The contract of a decoder: what it is built for, what it reads of a step, and a loss as a sum and a count.

Decoders work on M steps at once: all valid steps of all windows in training, the newest step of each session in
acting. Those that live in the backbone also get a `Continuation`: what the backbone remembers of each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.backbones.base import Backbone, Capability
from anyvla.backbones.continuation import Continuation
from anyvla.representations.codec import Codec
from anyvla.robot.space import ActionSpace

RepresentationKind = Literal["continuous", "tokens"]


@dataclass(frozen=True)
class Loss:
    """`value` is what to minimize. Over several parts of a batch, add totals and counts before dividing: padding then
    never contributes, and how a batch is split changes nothing.
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
    """What a decoder is built for."""

    context: int  # C
    chunk: int  # N
    space: ActionSpace  # A dims
    codec: Codec | None  # of the representation; None: continuous
    backbone: Backbone  # for its shapes; a decoder must not keep it


@dataclass(frozen=True)
class DecoderInput:
    """What a decoder reads of M steps."""

    vector: Float[Tensor, "M C"]  # from the fuser
    continuation: Continuation | None = None  # if the decoder `needs` "continue" or "cache" of the backbone
    # Which dims of an action are learned: those that the step's robot has and that vary in its data. None: all of them.
    dims: Bool[Tensor, "M A"] | None = None

    def elements(self, mask: Bool[Tensor, "M N"], size: int) -> Bool[Tensor, "M N A"]:
        """Return the valid elements of chunks: actions that are there, in dims that are learned."""
        dims = mask.new_ones(1, size) if self.dims is None else self.dims
        return mask[..., None] & dims[:, None]

    def own(self, chunks: Float[Tensor, "k*M N A"]) -> Float[Tensor, "k*M N A"]:
        """Return chunks, k for each step, with 0 in the dims that are not learned: networks see no other value."""
        if self.dims is None:
            return chunks
        return chunks * self.dims.repeat(len(chunks) // len(self.dims), 1)[:, None]


class Decoder(nn.Module, ABC):
    """What turns the context of a step into a chunk. Made by `Class(config, setting)`."""

    Config: ClassVar[type]
    reads: ClassVar[frozenset[RepresentationKind]] = frozenset({"continuous"})  # kinds of representation it works with
    needs: ClassVar[frozenset[Capability]] = frozenset()  # of the backbone
    suffix_length: int = 0  # places that it reads in the backbone after a step, to sample a chunk

    @classmethod
    def needs_with(cls, kind: RepresentationKind) -> frozenset[Capability]:
        """What it needs of the backbone with a representation of this kind."""
        return cls.needs

    @abstractmethod
    def loss(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Compare with normalized actions at `context.elements(mask)`; elsewhere they are 0. `generator` (CPU): of
        noise and times, if any.
        """

    @abstractmethod
    def sample(
        self, context: DecoderInput, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "M N A"]:
        """A normalized chunk a step. `generators`: one a step, on the CPU, so that a step's noise depends neither on
        its batch nor on the device; None: PyTorch's own.
        """

    def embed_chunks(self, actions: Float[Tensor, "M N A"]) -> Float[Tensor, "M T D"] | None:
        """How the backbone may see chunks of earlier steps, as embeddings; None: it cannot."""
        return None


def draw(shape: Sequence[int], generators: Sequence[torch.Generator] | None, like: Tensor) -> Float[Tensor, "M ..."]:
    """Standard normal noise (M, *shape) for M = len(like) steps, each of its own generator, float32."""
    if generators is None:
        return torch.randn(len(like), *shape, device=like.device)
    return torch.stack([torch.randn(*shape, generator=g) for g in generators]).to(like.device)


def token_loss(logits: Float[Tensor, "M T V"], tokens: Int64[Tensor, "M T"], elements: Bool[Tensor, "M N A"]) -> Loss:
    """Cross-entropy where `tokens` is not -1: the mean over the tokens of a chunk, weighted by its valid `elements`.

    For codecs with one token per action element (bins) that is the mean over all tokens.
    """
    learned = tokens >= 0
    each = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), ignore_index=-1, reduction="none")
    chunk = each.view_as(tokens).sum(1) / learned.sum(1).clamp(min=1)  # (M,)
    weight = elements.sum((1, 2)).to(chunk.dtype)
    right = ((logits.argmax(-1) == tokens) & learned).sum() / learned.sum().clamp(min=1)
    mean = (each.sum() / learned.sum().clamp(min=1)).detach()
    return Loss((chunk * weight).sum(), weight.sum(), {"tokens": mean, "accuracy": right.to(mean.dtype)})
