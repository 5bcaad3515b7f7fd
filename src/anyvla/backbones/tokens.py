"""The base class of all backbones that read token ids: options, readouts, positions, masks and the cache.

`AutoBackbone` (a whole vision-language model of `transformers`) and `ComposedBackbone` (any vision tower before a
causal language model of `transformers`) are its general subclasses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from anyvla.backbones import rereading
from anyvla.backbones.adapting.adapt import add_lora, quantize, train_parts
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import Backbone, Cache
from anyvla.backbones.frozen_features import FrozenFeatures
from anyvla.backbones.hooks import capture_lm_head_input, overwrite_embeddings, run_only_at
from anyvla.backbones.language_config import EVERYWHERE, find_windows
from anyvla.backbones.masks import Attention, build_mask
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens, TokenSequence
from anyvla.transfer import send


class TokenBackbone(Backbone):
    """A backbone over token ids with image tokens."""

    model: Any  # of `transformers`: embeds tokens and ends in the LM head
    attention: Attention = "causal"
    windows: Mapping[str, int | None] = EVERYWHERE  # sliding window of each kind of layer, in tokens; None: unlimited
    single_mask: bool = False  # the model takes one mask for layers of all kinds
    additive_masks: bool = False  # masks are added to attention scores, as plain ("eager") attention expects them
    first_position: int = 0
    context: int | None = None  # tokens
    supported_options: ClassVar[frozenset[str]] = frozenset()  # out of pretrained, layers and resampler
    frozen_features: FrozenFeatures | None = None  # while a training keeps them
    discrete_images: bool = False  # images become token ids: no gradient reaches the vision tower, so it stays frozen

    def __init__(self, config: Any, assets: Path | None = None) -> None:
        """Build the model and apply the options that all backbones share.

        Raises ValueError for an option that this class does not support, and as `build` does.
        """
        super().__init__()
        self.step_tokenizer = self.build(config, assets)
        self.tokenizer, self.image_id = self.step_tokenizer.tokenizer, self.step_tokenizer.image_id
        self.pad_id, self.query_id = self.step_tokenizer.pad_id, self.step_tokenizer.query_id
        self._apply_options(config)
        self.query_only_modules = self.find_query_only_modules()

    @abstractmethod
    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        """Set `model`, `width`, `capabilities` and the class's other attributes; return the tokenizer of steps.

        Without `assets`, load or initialize the weights; with them, build the architecture only.
        """

    @abstractmethod
    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        """Run the model over the sequence, images included."""

    def read_sizes(self, text_config: Any) -> None:
        """Take width, context and sliding windows from the configuration of the language model."""
        self.width = text_config.hidden_size
        self.context = getattr(text_config, "max_position_embeddings", None)
        self.windows = find_windows(text_config)

    def _apply_options(self, options: Options) -> None:
        for name in ("pretrained", "layers", "resampler"):
            if name not in self.supported_options and getattr(options, name) not in (None, "full"):
                raise ValueError(f"{type(self).__name__} has no option {name}: leave it out")
        train = replace(options.train, vision=False) if self.discrete_images else options.train
        train_parts(self, train)
        if options.quantize is not None:
            quantize(self, options.quantize)
        if options.lora is not None:
            add_lora(self, options.lora, options.seed)
        self._trains_language = train.language and options.quantize is None and options.lora is None

    def find_query_only_modules(self) -> tuple[nn.Module, ...]:
        """Return modules of the last layer that process each token by itself; they run at the queries only."""
        return ()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train` does; a frozen vision tower stays in eval mode, statistics included."""
        super().train(mode)
        parts = self.part_modules()
        if not any(w.requires_grad for w in parameters_by_part(self)["vision"]):
            for modules, now in ((parts["vision"], False), (parts["projector"], mode)):  # some towers hold a projector
                for module in modules:
                    module.train(now)
        return self

    @property
    def image_tokens(self) -> int:
        """The number of image tokens of one camera, without the tokens around and between its images."""
        return self.step_tokenizer.image_tokens

    @property
    def tokens_per_camera(self) -> int:
        """The number of tokens of one camera in a step, with the tokens around and between its images."""
        return len(self.step_tokenizer.camera)

    @property
    def lm_head(self) -> nn.Module | None:
        """The LM head, if the model has one."""
        return self.model.get_output_embeddings()

    @property
    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Modules on which no readout depends. They belong to no part, except for weights that a part shares."""
        return () if self.lm_head is None else (self.lm_head,)

    @property
    def embedding(self) -> Any:
        """The module that embeds token ids, (S, L) -> (S, L, D)."""
        return self.model.get_input_embeddings()

    def capture_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        """Return a context that captures the last hidden states of the model's run inside it.

        Raises ValueError if the model has no LM head, whose input they are.
        """
        if self.lm_head is None:
            raise ValueError(f"{type(self).__name__} has no LM head whose input could be captured")
        return capture_lm_head_input(self.lm_head)

    def compute_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        """Return the features of N = M * V images, as the vision tower alone gives them.

        A class that defines this and reads images by `read_features` can keep the features of a frozen tower.
        """
        raise NotImplementedError(f"{type(self).__name__} computes features inside of its model")

    def read_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        """Return the same as `compute_features`. A training that keeps the features of a frozen tower looks them up."""
        if self.frozen_features is None or not self.training:
            return self.compute_features(images)
        return self.frozen_features.read(images)

    def tokenize(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> StepTokens:
        return self.step_tokenizer.tokenize(images, instructions)

    def forward(
        self, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], cache: Cache | None = None
    ) -> Float[Tensor, "M R D"]:
        if cache is not None and "cache" not in self.capabilities:
            return self._reread(sequence, queries, cache)
        each = queries.shape[-2]
        shape = sequence.input_ids.shape
        cached = 0 if cache is None or cache.valid is None else cache.valid.shape[1]
        self._check_context(cached + shape[1])
        positions = sequence.find_queries()
        steps, rest = divmod(len(positions), each)
        if queries.ndim == 3 and len(queries) != steps:
            raise ValueError(f"queries of {len(queries)} steps for a sequence with query positions of {steps}")
        in_parts = cache is not None and (not steps or not len(sequence.images))  # images first, their queries later
        if rest or (steps != len(sequence.images) and not in_parts):
            raise ValueError(
                f"the sequence has {len(positions)} query positions, but {len(sequence.images)} steps of {each} "
                f"queries need {len(sequence.images) * each}"
            )
        values = queries.expand(steps, -1, -1).flatten(0, 1)
        read = self.read_positions(sequence, positions, values, cache)
        return read.view(steps, each, self.width).to(queries.dtype)

    def read_positions(
        self, sequence: TokenSequence, positions: Int64[Tensor, "n"], values: Float[Tensor, "n D"], cache: Cache | None
    ) -> Float[Tensor, "n D"]:
        """Return the last hidden states at the query positions, counted over the flattened (S, L).

        `values` are the embeddings at these positions.
        """
        shape = sequence.input_ids.shape
        with ExitStack() as hooks:
            hooks.enter_context(overwrite_embeddings(self.embedding, shape, positions, values))
            if self.query_only_modules:
                hooks.enter_context(run_only_at(self.query_only_modules, positions, shape))
            hidden = hooks.enter_context(self.capture_hidden_states())
            self.run_model(sequence, cache)
        return hidden[0].flatten(0, 1).index_select(0, positions)

    def _reread(
        self, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], cache: Cache
    ) -> Float[Tensor, "M R D"]:
        """Return the same as `forward` for a backbone without a KV cache: read the whole sequence again."""
        each = queries.shape[-2]
        if cache.valid is None:
            rereading.begin(cache, sequence, queries)
            # Without queries there is nothing to return: the steps are read when they are decoded further.
            return self(sequence, queries) if len(sequence.find_queries()) else queries.new_zeros(0, each, self.width)
        again = rereading.extend(cache, sequence, queries, self.pad_id)
        self._check_context(again.sequence.input_ids.shape[1])
        shape = again.sequence.input_ids.shape
        with (
            overwrite_embeddings(self.embedding, shape, again.positions, again.values),
            self.capture_hidden_states() as hidden,
        ):
            self.run_model(again.sequence, None)
        return hidden[0].take_along_dim(again.suffixes[..., None], 1).to(queries.dtype)

    def _check_context(self, length: int) -> None:
        if self.context is not None and length > self.context:
            raise ValueError(
                f"a sequence of {length} tokens exceeds the model's context of {self.context}: "
                "use a shorter window, fewer cameras or shorter instructions"
            )

    def get_keys_values(self, cache: Cache) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K Dv"]]]:
        layers = getattr(cache.model_cache, "language", cache.model_cache).layers
        return [(layer.keys, layer.values) for layer in layers]

    @torch.no_grad()
    def get_kv_shapes(self) -> list[tuple[int, int, int]]:
        device = next(self.embedding.parameters()).device
        nothing = StepTokens([self.query_id], [[]], torch.zeros(0, 1, 1, 1, 3, dtype=torch.uint8, device=device))
        cache, training = Cache(), self.training
        sequence = lay_out(nothing, [1], 1, pad_id=self.pad_id, query_id=self.query_id)
        self.eval()(sequence, torch.zeros(1, self.width, device=device), cache)
        self.train(training)
        return [(keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in self.get_keys_values(cache)]

    def embed(self, ids: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        return self.embedding(ids)

    def compute_logits(self, hidden: Float[Tensor, "*batch D"], ids: Int64[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        head: Any = self.lm_head
        bias = getattr(head, "bias", None)
        return nn.functional.linear(hidden.to(head.weight.dtype), head.weight[ids], None if bias is None else bias[ids])

    def last_token_ids(self, count: int) -> Int64[Tensor, "n"]:
        known = min(self.tokenizer.vocab_size, self.embedding.weight.shape[0])
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder, self.image_id}
        regular = [i for i in range(known) if i not in special]
        if count >= len(regular):
            raise ValueError(
                f"{count} ids are more than the vocabulary of {len(regular)} regular tokens gives; use ids: added, "
                "or a codec with fewer tokens"
            )
        return torch.tensor(regular[-count:])

    def unfreeze_lm_head(self) -> None:
        tied = {id(weight) for weight in self.embedding.parameters()}
        if self.lm_head is not None and self._trains_language:
            for weight in self.lm_head.parameters():
                weight.requires_grad_(weight.requires_grad or id(weight) not in tied)

    def get_image_mask(self, sequence: TokenSequence) -> Bool[Tensor, "S L"]:
        """Return True at the image tokens."""
        return sequence.input_ids == self.image_id

    def find_images(self, sequence: TokenSequence) -> Int64[Tensor, "n"]:
        """Return the places of the image tokens, counted over the flattened (S, L)."""
        if type(self).get_image_mask is TokenBackbone.get_image_mask:
            return sequence.find_tokens(self.image_id)
        return self.get_image_mask(sequence).flatten().nonzero().squeeze(1)

    def language_inputs(
        self, sequence: TokenSequence, cache: Cache | None, positions: Int64[Tensor, "... S L"] | None = None
    ) -> dict[str, Any]:
        """Return ids, positions, attention mask and cache as arguments of a language model of `transformers`.

        `positions` count from 0 in this sequence; by default they are consecutive.
        """
        ids, valid = sequence.input_ids, sequence.attention_mask
        if positions is None:
            # Right padding keeps counting: transformers takes a jump in the positions for a packed second sequence.
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        follows = cache is not None and cache.valid is not None
        if cache is None:
            given["position_ids"] = positions + self.first_position
        else:
            given["position_ids"] = self._extend_cache(cache, sequence, positions)
            given["past_key_values"] = cache.model_cache
            assert cache.valid is not None
            valid = cache.valid
        limited = cache is not None and any(self.windows.values())
        if sequence.block_mask is not None or limited or self.attention == "images":
            given["attention_mask"] = self.build_attention_masks(sequence, valid)
        elif follows or self.attention in ("prefix", "full"):
            given["attention_mask"] = valid.long()
        # Otherwise attention is causal, and padding comes last. Transformers would ask a GPU whether there is any.
        return given

    def _extend_cache(self, cache: Cache, sequence: TokenSequence, positions: Int64[Tensor, "... S L"]) -> Tensor:
        """Return the position ids of a sequence after a cache, and add them to the cache."""
        valid = sequence.attention_mask
        first = cache.next_position
        if first is None:
            first = sequence.input_ids.new_full((len(valid),), self.first_position)
        if sequence.positions is not None:
            ids = sequence.positions.expand(*positions.shape[:-2], -1, -1)
        else:
            ids = positions + first[:, None]
        last = ids.amax(tuple(range(ids.ndim - 2))) if ids.ndim > 2 else ids  # (S, L)
        cache.positions = last if cache.positions is None else torch.cat([cache.positions, last], 1)
        cache.next_position = last.masked_fill(~valid, -1).amax(-1) + 1
        cache.valid = valid if cache.valid is None else torch.cat([cache.valid, valid], 1)
        return ids

    def build_attention_masks(self, sequence: TokenSequence, valid: Bool[Tensor, "S K"]) -> Tensor | dict[str, Tensor]:
        """Return the mask of all layers (S, 1, L, K) or, where windows are too short, one for each kind of layer.

        Raises ValueError if kinds of layers need different masks but the model takes a `single_mask`.
        """
        images = self.get_image_mask(sequence)
        if self.attention == "images":  # with the tokens around them
            around = send(torch.tensor(self.step_tokenizer.camera), images.device)
            images = torch.isin(sequence.input_ids, around)

        def build(window: int | None) -> Tensor:
            mask = build_mask(sequence, valid, attention=self.attention, window=window, images=images)
            return torch.where(mask, 0.0, torch.finfo(torch.float32).min) if self.additive_masks else mask

        keys, shortest = valid.shape[1], min((w for w in self.windows.values() if w is not None), default=None)
        if shortest is None or (keys <= shortest and self.attention != "image_in_windows"):
            return build(None)
        if len(self.windows) == 1:
            return build(shortest)
        if self.single_mask:
            raise ValueError(
                f"{keys} tokens exceed the sliding window of {shortest} that some layers of this model have, and it "
                "takes no separate mask for those layers: it reads such sequences only without a cache and without a "
                "block mask; or give it smaller images or fewer cameras"
            )
        return {kind: build(window) for kind, window in self.windows.items()}
