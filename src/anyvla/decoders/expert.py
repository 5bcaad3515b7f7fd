"""An action expert (pi0, arXiv 2410.24164): a second, smaller transformer that reads the backbone layer by layer.

    backbone:  [ images | instruction ]          (keys and values of each layer are cached)
                        ^          ^
    expert:    [ context ]  [ N noisy actions ]  -> the velocity of each action

The context token has the position of pi0's state token. It sees the backbone's tokens; the actions see those, the
context and each other. The context token sees no action, so it is read once a chunk, as the observation is: each step
of the integration runs the N actions only. With a representation of tokens the backbone learns to write these, and no
gradient of the flow reaches it: knowledge insulation (arXiv 2505.23705).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from anyvla.axes import ACTION, BACKBONE_LAYER, Axis, Meaning, axis
from anyvla.backbones.base import Capability
from anyvla.backbones.continuation import Continuation
from anyvla.config import STRICT, ConfigError
from anyvla.decoders.base import (
    ActionMask,
    Chunks,
    Committed,
    DecoderInput,
    DecoderSpec,
    Loss,
    RepresentationKind,
    sample_noise,
)
from anyvla.decoders.denoiser import encode_time
from anyvla.decoders.denoising import DenoisingDecoder, SampledChunks, Times
from anyvla.decoders.expert_layers import (
    AttentionInputs,
    LayerCaches,
    Transformer,
    append_caches,
    choose_layers,
    read_rope_thetas,
)
from anyvla.decoders.flow_matching import Integration, TimeDistribution, integrate
from anyvla.decoders.lm_tokens import LMTokensDecoder
from anyvla.limits import CALLS, LAYERS, STEPS, WEIGHT, WIDTH
from anyvla.transfer import send


@plain_dataclass(frozen=True)
class Prefix:
    """The part of M steps before their noisy actions. It does not depend on them."""

    steps: Continuation
    cached: int  # the first positions of the backbone's cache, all that any step sees
    all_visible: bool  # every step sees all of these
    caches: LayerCaches  # of the backbone, and of context tokens that have been read
    context: Float[Tensor, "M c width"]  # context tokens that have not been read: one for each step, or none
    zero_unlearned: Callable[[Tensor], Tensor]  # returns chunks with 0 in the dims that are not learned
    attention: AttentionInputs = ()  # of the context tokens that have not been read, and of the actions


class ExpertDecoder(DenoisingDecoder):
    """Moves noise to a chunk along a velocity predicted from the backbone's KV cache and the context."""

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
        time: TimeDistribution = "beta"  # of times to train at: beta, more near the noise (pi0), or uniform
        # times and noises at which each step is trained in one run of the backbone
        samples: int = Field(default=1, ge=1, le=STEPS)
        steps: int = Field(default=10, ge=1, le=CALLS)  # of the integration when acting
        method: Integration = "euler"  # heun: 2 * steps - 1 calls, and a smaller error
        tokens: LMTokensDecoder.Config = LMTokensDecoder.Config()  # how tokens are read, with such a representation
        token_weight: float = Field(default=1.0, gt=0, le=WEIGHT)  # of the loss of tokens, added to that of the flow

        def __post_init__(self) -> None:
            if self.width % 2:
                raise ValueError(f"width {self.width} must be even: times are encoded as pairs of sine and cosine")

    @classmethod
    def needs_with(cls, kind: RepresentationKind) -> frozenset[Capability]:
        return cls.needs | LMTokensDecoder.needs if kind == "tokens" else cls.needs

    def __init__(self, config: Config, spec: DecoderSpec) -> None:
        super().__init__(config, spec)
        shapes = spec.backbone.get_kv_shapes()
        self.used_layers = choose_layers(config.layers, len(shapes))
        language = _language_config(spec.backbone)
        thetas, shapes = read_rope_thetas(language, len(shapes)), [shapes[i] for i in self.used_layers]
        heads = _choose_heads(config.heads, _heads_of(language), [h for h, _, _ in shapes])
        width = config.width
        self.transformer = Transformer(width, config.mlp, heads, shapes, [thetas[i] for i in self.used_layers])
        self.context = nn.Linear(spec.context_width, width)
        # pi0's MLP of [action, time]. Its first layer is split, so that the time's part is computed once for N actions.
        self.action, self.mix_action = nn.Linear(spec.space.size, width), nn.Linear(width, width, bias=False)
        self.mix_time, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, spec.space.size)
        self.tokens = None if spec.codec is None else LMTokensDecoder(config.tokens, spec)

    def loss(
        self,
        inputs: DecoderInput,
        actions: Chunks,
        mask: ActionMask,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Loss:
        """Return the flow matching loss (eq. 1 of pi0) at random times and noises, plus that of tokens if there are."""
        flow = super().loss(inputs, actions, mask, generators)
        if self.tokens is None:
            return flow
        tokens = self.tokens.loss(inputs, actions, mask, generators)  # counts the same elements
        parts = {"flow": flow.value.detach(), **flow.parts, **{f"tokens/{k}": v for k, v in tokens.parts.items()}}
        return Loss(flow.total + self.config.token_weight * tokens.total, flow.count, parts)

    def predict(self, inputs: DecoderInput, noisy: SampledChunks, time: Times) -> SampledChunks:
        return self.velocity(self.make_prefix(inputs, len(time) // len(inputs.context)), noisy, time)

    def sample(
        self,
        inputs: DecoderInput,
        generators: Sequence[torch.Generator] | None = None,
        committed: Committed | None = None,
    ) -> Chunks:
        """Integrate from noise; nothing is clipped."""
        return self.flow(self.prefill(inputs), sample_noise(self.shape, generators, inputs.context), committed)

    def flow(self, prefix: Prefix, noise: Chunks, committed: Committed | None = None) -> Chunks:
        """Integrate from noise to actions without synchronizing with the device, so that it fits a CUDA graph."""
        noise = prefix.zero_unlearned(noise)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.velocity(prefix, x, t)

        return integrate(velocity, noise, self.config.steps, self.config.method, committed)

    def velocity(self, prefix: Prefix, noisy: SampledChunks, time: Times) -> SampledChunks:
        """Return one prediction, float32."""
        dtype, width, chunk = self.action.weight.dtype, self.config.width, len(noisy[0])
        samples = len(noisy) // len(prefix.steps.positions)
        encoded = encode_time(time, width).to(dtype)
        mixed = self.mix_action(self.action(noisy.to(dtype))) + self.mix_time(encoded)[:, None]
        x = self.mix(F.silu(mixed))  # (k*M, N, width)
        x = x.unflatten(0, (samples, -1)).transpose(0, 1).flatten(1, 2)  # (M, k*N, width)
        x = torch.cat([prefix.context.to(x.dtype), x], 1)
        hidden, _ = self.transformer(prefix.steps.fold(x), prefix.caches, prefix.attention)
        hidden = prefix.steps.unfold(hidden, x.shape[1])[:, prefix.context.shape[1] :].unflatten(1, (samples, chunk))
        return prefix.zero_unlearned(self.out(hidden.transpose(0, 1).flatten(0, 1)).float())

    def make_prefix(self, inputs: DecoderInput, samples: int = 1) -> Prefix:
        """Return the prefix of one pass over `samples` noisy chunks of each step; the pass reads the context too."""
        start = self._start(inputs)
        tokens = [0, *(1 + i for i in range(samples) for _ in range(self.shape[0]))]
        return replace(start, attention=self._prepare_attention(start, [], tokens))

    def prefill(self, inputs: DecoderInput) -> Prefix:
        """Return the prefix of many passes over one chunk of each step; the context tokens are read now."""
        start = self._start(inputs)
        attention = self._prepare_attention(start, [], [0])
        _, added = self.transformer(start.steps.fold(start.context), start.caches, attention)
        attention = self._prepare_attention(start, [0], [1] * self.shape[0])
        caches = append_caches(start.caches, added)
        return replace(start, caches=caches, context=start.context[:, :0], attention=attention)

    def _start(self, inputs: DecoderInput) -> Prefix:
        steps, context = inputs.continuation, inputs.context
        assert steps is not None
        if self.tokens is not None:
            steps, context = steps.detach(), context.detach()
        cached, all_visible = _find_visible(steps)
        layers, dtype = steps.get_keys_values(), self._attention_dtype()
        caches = [(k[:, :, :cached].to(dtype), v[:, :, :cached].to(dtype)) for k, v in layers]
        token = self.context(context.to(self.context.weight.dtype))[:, None]
        return Prefix(steps, cached, all_visible, [caches[i] for i in self.used_layers], token, inputs.zero_unlearned)

    def _prepare_attention(self, start: Prefix, read: Sequence[int], tokens: Sequence[int]) -> AttentionInputs:
        """Return masks and positions of the tokens of a pass.

        Of each step, the tokens `read` are cached already and `tokens` are not; 0 is the context, k a token of chunk k.
        """
        steps, device = start.steps, start.steps.positions.device
        rows, columns = torch.tensor(tokens)[:, None], torch.tensor([*read, *tokens])
        sees = (columns == 0) | (rows == columns)  # (L, read + L)
        offset = torch.arange(len(tokens), device=device)  # chunks of N follow the context, all at the same positions
        first = tokens.count(0)
        offset = torch.where(offset < first, 0, 1 + (offset - first) % self.shape[0])
        positions = steps.fold(steps.positions[:, None] + offset)  # (S, T*L)
        count = max(steps.counts)  # T
        if count == 1 and sees.all():
            sees = sees[:1]  # all rows are the same: one is enough
        elif count > 1:  # each step sees its own tokens only
            parts = sees.split([len(read), len(tokens)], 1)
            sees = torch.cat([torch.block_diag(*[part] * count) for part in parts], 1)
        mask = None
        if not (start.all_visible and sees.all()):
            of_backbone = steps.build_cache_mask(len(sees) // count)[..., : start.cached]
            mask = torch.cat([of_backbone, send(sees, device).expand(len(of_backbone), -1, -1)], 2)
        return self.transformer.prepare_attention(positions, mask, self._attention_dtype())

    def embed_chunks(
        self, actions: Chunks, tokens: Int64[Tensor, "M L"] | None = None
    ) -> Float[Tensor, "M L D"] | None:
        return None if self.tokens is None else self.tokens.embed_chunks(actions, tokens)

    def meaning(self, context: Axis) -> Meaning:
        action = axis(ACTION, self.space.size)
        own = Meaning(
            {
                "context.weight": (None, context.at_zero()),
                "action.weight": (None, action.at_zero()),
                "out.weight": (action.at_zero(), None),
                "out.bias": (action.at_zero(),),
            },
            {f"transformer.layers.{number}.": {BACKBONE_LAYER: used} for number, used in enumerate(self.used_layers)},
        )
        return own if self.tokens is None else own | self.tokens.meaning(context).below("tokens.")

    def borrowed_ids(self) -> Int64[Tensor, "E"] | None:
        return None if self.tokens is None else self.tokens.borrowed_ids()

    def _attention_dtype(self) -> torch.dtype:
        """Return the type that matrix products have here."""
        weight = self.action.weight
        kind = weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _find_visible(steps: Continuation) -> tuple[int, bool]:
    """Return how many of the first cached positions include all that any step sees, and whether all steps see them.

    Often the last positions, such as the readouts, are hidden from all steps and the others from none; then attention
    needs no mask. The device is synchronized once.
    """
    some, every = torch.stack([steps.visible.any(0), steps.visible.all(0)]).tolist()
    length = len(some) - some[::-1].index(True)
    return length, all(every[:length])


def _language_config(backbone: Any) -> Any:
    """Return the configuration of the backbone's language model, if it is one of `transformers`."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    return None if config is None else config.get_text_config(decoder=True)


def _heads_of(language: Any) -> int | None:
    """Return the attention heads of a language model; None if its layers differ or its configuration has no number."""
    try:
        return language.num_attention_heads
    except (AttributeError, RuntimeError):
        return None


def _choose_heads(asked: int | None, of_backbone: int | None, kv_heads: Sequence[int]) -> int:
    """Return the number of query heads. Raises ConfigError if `asked` cannot share the backbone's keys evenly."""
    least = math.lcm(*kv_heads)
    if asked is None:
        return of_backbone if of_backbone is not None and of_backbone % least == 0 else least
    if asked % least:
        raise ConfigError(
            f"heads {asked} of the expert must be a multiple of {least}, the backbone's key heads; use heads: "
            f"{-(-asked // least) * least}, or leave it out for as many as the backbone has"
        )
    return asked
