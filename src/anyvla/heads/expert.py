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
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.actions.codec import held
from anyvla.config import STRICT, ConfigError
from anyvla.heads.base import Context, Decoder, Kind, Loss, Setting, draw
from anyvla.heads.denoiser import squared_error, waves
from anyvla.heads.expert_layers import Memory, Transformer, View, joined, spread, thetas_of
from anyvla.heads.flow_matching import Method, Times, integrate, interpolate, times
from anyvla.heads.lm_tokens import LMTokensDecoder

if TYPE_CHECKING:
    from anyvla.backbones.base import Capability
    from anyvla.structures.continuation import Continuation


@plain_dataclass(frozen=True)
class Prefix:
    """What does not depend on the noisy actions of M steps: made once a chunk."""

    steps: Continuation
    memory: Memory  # of the backbone, and of the context tokens
    view: View  # of the actions


class ExpertDecoder(Decoder):
    """Backbone, context and noise -> velocity -> chunk."""

    reads = frozenset({"continuous", "tokens"})
    needs = frozenset({"cache", "keys_values"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `decoder: {name: expert}`; the defaults are pi0's: with PaliGemma, 300 million weights."""

        width: int = Field(default=1024, ge=2)  # even
        mlp: int = Field(default=4096, ge=1)  # inner width of the gated feed-forward
        # None: as many as the backbone. Fewer attend to some of its layers, evenly spread, the last included.
        layers: int | None = Field(default=None, ge=1)
        heads: int | None = Field(default=None, ge=1)  # of queries; None: as the backbone; a multiple of its key heads
        time: Times = "beta"  # where to train: beta, more near the noise (pi0), or uniform
        draws: int = Field(default=1, ge=1)  # times and noises a step is trained at, for one run of the backbone
        steps: int = Field(default=10, ge=1)  # of the integration when acting
        method: Method = "euler"  # heun: twice the calls a step, and far fewer steps for the same error
        tokens: LMTokensDecoder.Config = LMTokensDecoder.Config()  # with a representation of tokens: how they are read
        token_weight: float = Field(default=1.0, gt=0)  # of their loss, beside that of the flow

        def __post_init__(self) -> None:
            if self.width % 2:
                raise ValueError(f"width {self.width} must be even: times are encoded as pairs of sine and cosine")

    @classmethod
    def needs_with(cls, kind: Kind) -> frozenset[Capability]:
        return cls.needs | LMTokensDecoder.needs if kind == "tokens" else cls.needs

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__()
        self.config, self.space = config, setting.space
        self.shape = setting.chunk, setting.space.size
        shapes = setting.backbone.memory_shape()
        self.used = spread(config.layers, len(shapes))
        language = _language_config(setting.backbone)
        thetas, shapes = thetas_of(language, len(shapes)), [shapes[i] for i in self.used]
        heads = _heads(config.heads, getattr(language, "num_attention_heads", None), [h for h, _ in shapes])
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
        context: Context,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The conditional flow matching loss (eq. 1 of pi0) at random times and noises; with tokens, theirs beside."""
        time = times(self.config.time, self.config.draws * len(actions), generator)
        noise = torch.randn(len(time), *self.shape, generator=generator)
        flow = self.loss_at(context, actions, mask, noise.to(actions.device), time.to(actions.device))
        if self.tokens is None:
            return flow
        tokens = self.tokens.loss(context, actions, mask, generator)  # counts the same elements
        parts = {"flow": flow.value.detach(), **flow.parts, **{f"tokens/{k}": v for k, v in tokens.parts.items()}}
        return Loss(flow.total + self.config.token_weight * tokens.total, flow.count, parts)

    def loss_at(
        self,
        context: Context,
        actions: Float[Tensor, "M N A"],
        mask: Bool[Tensor, "M N"],
        noise: Float[Tensor, "k*M N A"],
        time: Float[Tensor, "k*M"],
    ) -> Loss:
        """The loss of the flow at these times and noises, k for each step: those of draw j are rows j*M to (j+1)*M."""
        draws = len(time) // len(actions)
        # Acting knows no mask, and the actions of a chunk see each other: a missing one is the last one, held.
        noisy, velocity = interpolate(held(actions, mask).repeat(draws, 1, 1), noise, time)
        predicted = self.velocity(self.remember(context, draws), noisy, time)
        return squared_error(predicted, velocity, mask, self.space)

    def sample(self, context: Context, generators: Sequence[torch.Generator] | None = None) -> Float[Tensor, "M N A"]:
        """Integrate from noise; nothing is clipped."""
        return self.flow(self.remember(context), draw(self.shape, generators, context.vector))

    def flow(self, prefix: Prefix, noise: Float[Tensor, "M N A"]) -> Float[Tensor, "M N A"]:
        """From noise to actions, without a word between device and host: fit for a CUDA graph."""
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
        hidden, _ = self.transformer(prefix.steps.fold(x), prefix.memory, prefix.view)
        hidden = prefix.steps.unfold(hidden, draws * chunk).unflatten(1, (draws, chunk))
        return self.out(hidden.transpose(0, 1).flatten(0, 1)).float()

    def remember(self, context: Context, draws: int = 1) -> Prefix:
        """Read the context tokens, and prepare what the actions of so many draws see."""
        steps, vector = context.continuation, context.vector
        assert steps is not None
        if self.tokens is not None:
            steps, vector = steps.detach(), vector.detach()
        dtype, rows, places = self._dtype(), max(steps.counts), draws * self.shape[0]  # W, T
        shown = _shown(steps)
        layers = steps.keys_values()
        memory = [(k[:, :, : shown.length].to(dtype), v[:, :, : shown.length].to(dtype)) for k, v in layers]
        memory = [memory[i] for i in self.used]

        one = torch.arange(rows, device=vector.device)  # the context token of each step of a row
        seen = _seen(steps, shown, one[:, None] == one, apart=rows > 1)
        view = self.transformer.view(steps.fold(steps.positions[:, None]), seen, dtype)
        x = steps.fold(self.context(vector.to(self.context.weight.dtype))[:, None])
        _, added = self.transformer(x, memory, view)

        many = torch.arange(rows * places, device=vector.device)  # their actions
        step, chunk = many // places, many // self.shape[0]
        own = torch.cat([step[:, None] == one, chunk[:, None] == chunk], 1)  # (W*T, W + W*T)
        seen = _seen(steps, shown, own, apart=rows * draws > 1)
        after = torch.arange(1, 1 + self.shape[0], device=vector.device).repeat(draws)
        view = self.transformer.view(steps.fold(steps.positions[:, None] + after), seen, dtype)
        return Prefix(steps, joined(memory, added), view)

    def past(self, actions: Float[Tensor, "M N A"]) -> Float[Tensor, "M T D"] | None:
        return None if self.tokens is None else self.tokens.past(actions)

    def _dtype(self) -> torch.dtype:
        """Of attention: what matrix products give here."""
        weight = self.action.weight
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


@plain_dataclass(frozen=True)
class _Shown:
    """The first `length` remembered places hold all that any suffix sees; `to_all`: every suffix sees all of these."""

    length: int
    to_all: bool


def _shown(steps: Continuation) -> _Shown:
    """The last places, such as the readouts, are often hidden from all suffixes, and the others from none: then there
    is no need for a mask. One word from the device tells both.
    """
    some, every = torch.stack([steps.visible.any(0), steps.visible.all(0)]).tolist()
    length = len(some) - some[::-1].index(True)
    return _Shown(length, all(every[:length]))


def _seen(
    steps: Continuation, shown: _Shown, own: Bool[Tensor, "W*T n"], *, apart: bool
) -> Bool[Tensor, "S #W*T K+n"] | None:
    """What the tokens of all suffixes see of the backbone and of n tokens of the expert's own; None: everything.

    Unless some are to be kept `apart`, `own` is True everywhere, and one row stands for all.
    """
    if not apart:
        if shown.to_all:
            return None
        own = own[:1]
    of_backbone = steps.seen(len(own) // max(steps.counts))[..., : shown.length]
    return torch.cat([of_backbone, own.expand(len(steps.counts), -1, -1)], 2)


def _language_config(backbone: Any) -> Any:
    """Of the language model inside, if it is one of `transformers`."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    return None if config is None else config.get_text_config(decoder=True)


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
