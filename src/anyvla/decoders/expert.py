"""An action expert (pi0, arXiv 2410.24164): a second, smaller transformer that reads the backbone layer by layer.

    backbone:  [ images | instruction ]          (each layer remembers its keys and values)
                        ^          ^
    expert:    [ context ]  [ N noisy actions ]  -> the velocity of each action

The context token stands where pi0 has its state token: it sees the backbone's tokens; the actions see those, it and
each other. As it sees no action, it is read once a chunk, as the observation is: a step of the integration runs the N
actions only. With a representation of tokens the backbone learns to write these, and no gradient of the flow reaches
it: knowledge insulation (arXiv 2505.23705).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.backbones.base import Capability
from anyvla.backbones.continuation import Continuation
from anyvla.config import STRICT, ConfigError
from anyvla.decoders.base import Decoder, DecoderInput, DecoderSpec, Loss, RepresentationKind, draw
from anyvla.decoders.denoiser import squared_error, waves
from anyvla.decoders.expert_layers import Memory, Transformer, View, joined, spread, thetas_of
from anyvla.decoders.flow_matching import Method, Times, drawn, integrate, interpolate
from anyvla.decoders.lm_tokens import LMTokensDecoder
from anyvla.limits import CALLS, LAYERS, STEPS, WEIGHT, WIDTH
from anyvla.robot.chunks import pad_with_last_action


@plain_dataclass(frozen=True)
class Shown:
    """The first `length` remembered places hold all that any suffix sees; `to_all`: every suffix sees all of these."""

    length: int
    to_all: bool


@plain_dataclass(frozen=True)
class Prefix:
    """What M steps have before their noisy actions, which does not depend on these."""

    steps: Continuation
    shown: Shown
    memory: Memory  # of the backbone, and of context tokens that have been read
    context: Float[Tensor, "M c width"]  # those that have not: one a step, or none
    own: Callable[[Tensor], Tensor]  # chunks with 0 in the dims that are not learned
    view: View = ()  # of the context tokens that have not been read, and of the actions


class ExpertDecoder(Decoder):
    """Backbone, context and noise -> velocity -> chunk."""

    reads = frozenset({"continuous", "tokens"})
    needs = frozenset({"cache", "keys_values"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: expert}`; the defaults are pi0's: with PaliGemma, 300 million weights."""

        width: int = Field(default=1024, ge=2, le=WIDTH)  # even
        mlp: int = Field(default=4096, ge=1, le=WIDTH)  # inner width of the gated feed-forward
        # None: as many as the backbone. Fewer attend to some of its layers, evenly spread, the last included.
        layers: int | None = Field(default=None, ge=1, le=LAYERS)
        # of queries; None: as the backbone; a multiple of its key heads
        heads: int | None = Field(default=None, ge=1, le=LAYERS)
        time: Times = "beta"  # where to train: beta, more near the noise (pi0), or uniform
        # times and noises a step is trained at, for one run of the backbone
        draws: int = Field(default=1, ge=1, le=STEPS)
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the integration when acting
        method: Method = "euler"  # heun: 2 * steps - 1 calls, and a smaller error
        tokens: LMTokensDecoder.Config = LMTokensDecoder.Config()  # with a representation of tokens: how they are read
        token_weight: float = Field(default=1.0, gt=0, le=WEIGHT)  # of their loss, beside that of the flow

        def __post_init__(self) -> None:
            if self.width % 2:
                raise ValueError(f"width {self.width} must be even: times are encoded as pairs of sine and cosine")

    @classmethod
    def needs_with(cls, kind: RepresentationKind) -> frozenset[Capability]:
        return cls.needs | LMTokensDecoder.needs if kind == "tokens" else cls.needs

    def __init__(self, config: Config, setting: DecoderSpec) -> None:
        super().__init__()
        self.config, self.space = config, setting.space
        self.shape = setting.chunk, setting.space.size
        shapes = setting.backbone.get_kv_shapes()
        self.used = spread(config.layers, len(shapes))
        language = _language_config(setting.backbone)
        thetas, shapes = thetas_of(language, len(shapes)), [shapes[i] for i in self.used]
        heads = _heads(config.heads, _heads_of(language), [h for h, _, _ in shapes])
        width = config.width
        self.transformer = Transformer(width, config.mlp, heads, shapes, [thetas[i] for i in self.used])
        self.context = nn.Linear(setting.context, width)
        # pi0's MLP of [action, time]. Its first layer is split: what it makes of the time is the same for N actions.
        self.action, self.mix_action = nn.Linear(setting.space.size, width), nn.Linear(width, width, bias=False)
        self.mix_time, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, setting.space.size)
        self.tokens = None if setting.codec is None else LMTokensDecoder(config.tokens, setting)

    def loss(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The conditional flow matching loss (eq. 1 of pi0) at random times and noises; with tokens, theirs beside."""
        count = self.config.draws * len(actions)
        noise, time = drawn(self.config.time, count, self.shape, generator, actions.device)
        flow = self.loss_at(context, actions, mask, noise, time)
        if self.tokens is None:
            return flow
        tokens = self.tokens.loss(context, actions, mask, generator)  # counts the same elements
        parts = {"flow": flow.value.detach(), **flow.parts, **{f"tokens/{k}": v for k, v in tokens.parts.items()}}
        return Loss(flow.total + self.config.token_weight * tokens.total, flow.count, parts)

    def loss_at(
        self,
        context: DecoderInput,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        noise: Float[Tensor, "k*M N A"],
        time: Float[Tensor, "k*M"],
    ) -> Loss:
        """The loss of the flow at these times and noises, k for each step: those of draw j are rows j*M to (j+1)*M."""
        draws = len(time) // len(actions)
        # Acting knows no mask, and the actions of a chunk see each other: a missing one is the last one, held.
        noisy, velocity = interpolate(pad_with_last_action(actions, mask).repeat(draws, 1, 1), context.own(noise), time)
        predicted = self.velocity(self.remember(context, draws), noisy, time)
        return squared_error(predicted, velocity, context.elements(mask, self.space.size), self.space)

    def sample(
        self, context: DecoderInput, generators: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "M N A"]:
        """Integrate from noise; nothing is clipped."""
        return self.flow(self.prefill(context), draw(self.shape, generators, context.vector))

    def flow(self, prefix: Prefix, noise: Float[Tensor, "M N A"]) -> Float[Tensor, "M N A"]:
        """From noise to actions, without a word between device and host: fit for a CUDA graph."""
        noise = prefix.own(noise)
        return integrate(lambda x, t: self.velocity(prefix, x, t), noise, self.config.steps, self.config.method)

    def velocity(
        self, prefix: Prefix, noisy: Float[Tensor, "k*M N A"], time: Float[Tensor, "k*M"]
    ) -> Float[Tensor, "k*M N A"]:
        """One prediction, float32."""
        dtype, width, chunk = self.action.weight.dtype, self.config.width, len(noisy[0])
        draws = len(noisy) // len(prefix.steps.positions)
        mixed = self.mix_action(self.action(noisy.to(dtype))) + self.mix_time(waves(time, width).to(dtype))[:, None]
        x = self.mix(F.silu(mixed))  # (k*M, N, width)
        x = x.unflatten(0, (draws, -1)).transpose(0, 1).flatten(1, 2)  # (M, k*N, width)
        x = torch.cat([prefix.context.to(x.dtype), x], 1)
        hidden, _ = self.transformer(prefix.steps.fold(x), prefix.memory, prefix.view)
        hidden = prefix.steps.unfold(hidden, x.shape[1])[:, prefix.context.shape[1] :].unflatten(1, (draws, chunk))
        return prefix.own(self.out(hidden.transpose(0, 1).flatten(0, 1)).float())

    def remember(self, context: DecoderInput, draws: int = 1) -> Prefix:
        """What so many draws of noisy actions stand after, for one pass: it reads the context tokens too."""
        start = self._start(context)
        tokens = [0, *(1 + i for i in range(draws) for _ in range(self.shape[0]))]
        return replace(start, view=self._view(start, [], tokens))

    def prefill(self, context: DecoderInput) -> Prefix:
        """The same for many passes of one draw: the context tokens, which see no action, are read now."""
        start = self._start(context)
        _, added = self.transformer(start.steps.fold(start.context), start.memory, self._view(start, [], [0]))
        view = self._view(start, [0], [1] * self.shape[0])
        return replace(start, memory=joined(start.memory, added), context=start.context[:, :0], view=view)

    def _start(self, context: DecoderInput) -> Prefix:
        steps, vector = context.continuation, context.vector
        assert steps is not None
        if self.tokens is not None:
            steps, vector = steps.detach(), vector.detach()
        shown, layers, dtype = _shown(steps), steps.get_keys_values(), self._dtype()
        memory = [(k[:, :, : shown.length].to(dtype), v[:, :, : shown.length].to(dtype)) for k, v in layers]
        token = self.context(vector.to(self.context.weight.dtype))[:, None]
        return Prefix(steps, shown, [memory[i] for i in self.used], token, context.own)

    def _view(self, start: Prefix, read: Sequence[int], tokens: Sequence[int]) -> View:
        """What the tokens of a pass see, and where they stand. Of each step: `read` are in the memory already, `tokens`
        are not; 0 is the context, k a token of draw k.
        """
        steps, shown, device = start.steps, start.shown, start.steps.positions.device
        rows, columns = torch.tensor(tokens)[:, None], torch.tensor([*read, *tokens])
        sees = (columns == 0) | (rows == columns)  # (T, n + T)
        place = torch.arange(len(tokens), device=device)  # after a context token come draws of N, at the same places
        first = tokens.count(0)
        place = torch.where(place < first, 0, 1 + (place - first) % self.shape[0])
        positions = steps.fold(steps.positions[:, None] + place)  # (S, W*T)
        count = max(steps.counts)  # W
        if count == 1 and sees.all():
            sees = sees[:1]  # all rows are the same: one will do
        elif count > 1:  # each step its own
            parts = sees.split([len(read), len(tokens)], 1)
            sees = torch.cat([torch.block_diag(*[part] * count) for part in parts], 1)
        seen = None
        if not (shown.to_all and sees.all()):
            of_backbone = steps.build_cache_mask(len(sees) // count)[..., : shown.length]
            seen = torch.cat([of_backbone, sees.to(device).expand(len(of_backbone), -1, -1)], 2)
        return self.transformer.view(positions, seen, self._dtype())

    def embed_chunks(self, actions: Float[Tensor, "M N A"]) -> Float[Tensor, "M T D"] | None:
        return None if self.tokens is None else self.tokens.embed_chunks(actions)

    def _dtype(self) -> torch.dtype:
        """Of attention: what matrix products give here."""
        weight = self.action.weight
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _shown(steps: Continuation) -> Shown:
    """The last places, such as the readouts, are often hidden from all suffixes, and the others from none: then there
    is no need for a mask. One word from the device tells both.
    """
    some, every = torch.stack([steps.visible.any(0), steps.visible.all(0)]).tolist()
    length = len(some) - some[::-1].index(True)
    return Shown(length, all(every[:length]))


def _language_config(backbone: Any) -> Any:
    """Of the language model inside, if it is one of `transformers`."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    return None if config is None else config.get_text_config(decoder=True)


def _heads_of(language: Any) -> int | None:
    """Attention heads of a language model; None if its layers differ, or it does not say."""
    try:
        return language.num_attention_heads
    except (AttributeError, RuntimeError):
        return None


def _heads(asked: int | None, of_backbone: int | None, kv_heads: Sequence[int]) -> int:
    """Query heads. Raises ConfigError if those asked for cannot share the backbone's keys evenly."""
    least = math.lcm(*kv_heads)
    if asked is None:
        return of_backbone if of_backbone is not None and of_backbone % least == 0 else least
    if asked % least:
        raise ConfigError(
            f"heads {asked} of the expert must be a multiple of {least}, the backbone's key heads; use heads: "
            f"{-(-asked // least) * least}, or leave it out for as many as the backbone has"
        )
    return asked
