"""OpenFlamingo (arXiv 2308.01390), the backbone of RoboFlamingo (arXiv 2311.01378), over any causal language model.

Images have no tokens in the sequence: a step has one `<image>` token, and every token after it reads the latents of
that step's cameras, camera by camera, through gated cross-attention. So several steps share a sequence like
OpenFlamingo's interleaved documents, `<image>...<|endofchunk|><image>...<|endofchunk|>`, and a query reads the images
of its own step.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, DynamicCache
from transformers.initialization import no_init_weights
from transformers.utils import cached_file

from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.options import Options, Resampler
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.adapting.pretrained import KEPT, reinitialize
from anyvla.backbones.adapting.resampler import PerceiverResampler
from anyvla.backbones.base import Cache, Capability, ModelPart, capabilities_without
from anyvla.backbones.composed import truncate_model
from anyvla.backbones.flamingo.language import (
    MOSAIC_NAMES,
    OLDER_NAMES,
    PositionedMpt,
    load_language,
)
from anyvla.backbones.flamingo.layers import CrossAttending, VisibleMedia, add_cross_attention, find_decoder_layers
from anyvla.backbones.flamingo.weights import check_weights, read_checkpoint, translate_names
from anyvla.backbones.hooks import set_attribute
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.masks import as_additive_mask
from anyvla.backbones.source import PREPROCESSOR, how_to_download, read_preprocessor
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.config import STRICT
from anyvla.limits import LAYERS
from anyvla.sequence.tokens import TokenSequence

END_OF_CHUNK, IMAGE = "<|endofchunk|>", "<image>"
CLIP = "openai/clip-vit-large-patch14"
CAMERAS, CAMERA_SPREAD = 8, 0.1  # the most cameras; initial spread of their embeddings


# The published models: language, checkpoint, cross_attention_every.
PRESETS: Mapping[str, tuple[str, str, int]] = {
    "3B": ("anas-awadalla/mpt-1b-redpajama-200b", "openflamingo/OpenFlamingo-3B-vitl-mpt1b", 1),
    "4B": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b", 2),
    "9B": ("anas-awadalla/mpt-7b", "openflamingo/OpenFlamingo-9B-vitl-mpt7b", 4),
}


@plain_dataclass
class FlamingoCache:
    """The cache of S sequences."""

    language: Any  # the language model's keys and values
    media: Float[Tensor, "S n Dv"] | None = None  # the latents of the latest step of each sequence
    position: Int64[Tensor, "S"] | None = None  # of the `<image>` token of that step; -1: none yet


class FlamingoBackbone(TokenBackbone):
    """OpenFlamingo 3B, 4B and 9B (`preset`), or the same over any causal language model (`language`).

    A CLIP vision tower, a Perceiver resampler, and gated cross-attention before layers of the language model.
    """

    supported_options = frozenset({"pretrained", "layers"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The models to join; a preset fills in missing options."""

        preset: Literal["3B", "4B", "9B"] | None = None  # of the published OpenFlamingo models, version 2
        language: str | None = None  # a folder or hub id of any causal language model
        vision: str = CLIP  # a folder or hub id of a CLIP model
        checkpoint: str | None = None  # the original checkpoint.pt, a folder or hub repository with it; None: untrained
        # layers of the language model; 1 unless preset
        cross_attention_every: int | None = Field(default=None, ge=1, le=LAYERS)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.language is None and self.preset is None:
                raise ValueError(f"name the model: preset ({', '.join(PRESETS)}), or language and checkpoint")
            defaults = PRESETS[self.preset] if self.preset is not None else (None, None, 1)
            for name, value in zip(("language", "checkpoint", "cross_attention_every"), defaults, strict=True):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)  # the dataclass is frozen once built

    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        """Load the models that `config` names or, with `assets`, build their architecture without weights.

        Raises ValueError if a model does not exist or is incomplete, or if the checkpoint does not fit.
        """
        source = config.language if assets is None else str(Path(assets) / "language")
        tower = config.vision if assets is None else str(Path(assets) / "vision")
        dtype = getattr(torch, config.dtype)
        loads = assets is None and not builds_architecture_only()
        with _explain_unreadable(tower):
            self.preprocessor = read_preprocessor(tower, None)
            if loads:
                self.vision: Any = CLIPVisionModel.from_pretrained(tower, dtype=dtype)
            else:
                with no_init_weights():  # the caller loads them
                    self.vision = CLIPVisionModel(CLIPVisionConfig.from_pretrained(tower)).to(dtype)
        with _explain_unreadable(source):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if loads:
                self.model: Any = load_language(source, dtype)
            else:
                with no_init_weights():
                    self.model = load_language(source, dtype, with_weights=False)
                self.model.tie_weights()
        _add_tokens(tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if self.embedding.weight.shape[0] != len(tokenizer):
                self.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            if assets is None:
                reinitialize(self, config.pretrained, config.seed)
            self._add_modules(config.cross_attention_every, dtype)
        if loads and config.checkpoint is not None:
            self._load_checkpoint(config.checkpoint, KEPT[config.pretrained])
        truncate_model(self.model, config.layers, self.vision)
        if not any(isinstance(layer, CrossAttending) for layer in find_decoder_layers(self.model)):
            raise ValueError(
                f"cross_attention_every is {config.cross_attention_every}, but the language model has "
                f"{len(find_decoder_layers(self.model))} layers: none would read images"
            )
        self.pixels = Pixels(self.preprocessor, self.vision.config.image_size)
        text_config = self.model.config.get_text_config(decoder=True)
        self.read_sizes(text_config)
        self.context = self.context or getattr(text_config, "max_seq_len", None)
        self._names = frozenset(inspect.signature(self.model.forward).parameters)
        # Other models would count padding in the cache as positions.
        can_cache = "position_ids" in self._names or isinstance(self.model, PositionedMpt)
        lacks = frozenset[Capability](() if can_cache else {"cache"})
        self.capabilities = capabilities_without(lacks)
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]  # as the tokenizer does, like OpenFlamingo
        template = Template(opening="{bos}" if begins else "", text="{prompt}" + END_OF_CHUNK)
        return StepTokenizer(
            tokenizer,
            config.prompt,
            template,
            image_id=tokenizer.convert_tokens_to_ids(IMAGE),
            grid=(1, 1),
            vocabulary=self.embedding.weight.shape[0],
            context=self.context,
            one_image_per_step=True,
        )

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """Return the modules of each part; the resampler and the cross-attention blocks are the projector."""
        layers = find_decoder_layers(self.model)
        wrapped = [layer for layer in layers if isinstance(layer, CrossAttending)]
        apart = {self.embedding, self.lm_head, *(m for layer in layers for m in layer.modules())}
        ends = [m for m in self.model.modules() if m not in apart and any(True for _ in m.parameters(recurse=False))]
        added = [m for name, m in self.named_children() if name in ("perceiver", "cameras")]
        return {
            "vision": (self.vision,),
            "projector": (*added, *(layer.cross for layer in wrapped)),
            "language": (*(layer.layer if isinstance(layer, CrossAttending) else layer for layer in layers), *ends),
            "embeddings": (self.embedding,),
        }

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.model_cache is None:
            cache.model_cache = FlamingoCache(DynamicCache())  # keeps all positions, as masks hide some
        state = None if cache is None else cache.model_cache
        cached = 0 if cache is None or cache.valid is None else cache.valid.shape[1]
        media = self._find_media(sequence, state, cached)
        given = self.language_inputs(sequence, cache)
        if "position_ids" not in self._names:
            del given["position_ids"]
        if cache is not None:
            given["past_key_values"] = cache.model_cache.language
            cache.model_cache.language.key_positions = None if cache.valid is None else cache.valid.cumsum(1) - 1
        if "attention_mask" in given:
            given["attention_mask"] = as_additive_mask(given["attention_mask"], self.model.dtype)
        with self._show_media(media):
            self.model(**given)

    def plain_forward(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """Return the last hidden states of the model without query embeddings and with its own positions."""
        with self._show_media(self._find_media(sequence, None, 0)), self.capture_hidden_states() as hidden:
            self.model(input_ids=sequence.input_ids, attention_mask=sequence.attention_mask.long())
        return hidden[0]

    @torch.no_grad()
    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue sequences without padding or queries with `tokens` tokens of text, greedily."""
        assert self.lm_head is not None
        cache, written = Cache(), []
        for _ in range(tokens):
            with self.capture_hidden_states() as hidden:
                self.run_model(sequence, cache)
            logits = self.lm_head(hidden[0][:, -1:])
            logits[..., self.image_id] = -torch.inf  # there is no image for it
            written.append(logits.argmax(-1))
            yes = torch.ones_like(written[-1], dtype=torch.bool)
            sequence = TokenSequence(written[-1], yes, ~yes, written[-1] * 0, sequence.images[:0])
        return torch.cat(written, 1)

    def save_assets(self, folder: Path) -> None:
        """Write `language/` (configuration and tokenizer) and `vision/` (configuration and preprocessing)."""
        language, vision = Path(folder) / "language", Path(folder) / "vision"
        self.model.config.save_pretrained(language)
        self.tokenizer.save_pretrained(language)
        self.vision.config.save_pretrained(vision)
        (vision / PREPROCESSOR).write_text(json.dumps(self.preprocessor, indent=2) + "\n", encoding="utf-8")

    def compute_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        pixels = self.pixels(images.flatten(0, 1).to(self.pixels.scale.device)).to(self.vision.dtype)
        return self.vision(pixel_values=pixels).last_hidden_state[:, 1:]  # without the class token

    def encode_images(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "M n Dv"]:
        """Return the latents that the tokens of each step read, camera by camera."""
        views = images.shape[1]
        if views > CAMERAS:
            raise ValueError(f"{views} cameras, but this backbone distinguishes at most {CAMERAS}: choose among them")
        latents = self.perceiver(self.read_features(images)).unflatten(0, images.shape[:2])  # (M, V, n, Dv)
        return (latents + self.cameras.weight[:views, None]).flatten(1, 2)

    def _show_media(self, media: VisibleMedia) -> AbstractContextManager[None]:
        layers = find_decoder_layers(self.model)
        return set_attribute((layer for layer in layers if isinstance(layer, CrossAttending)), "media", media)

    def _find_media(self, sequence: TokenSequence, state: FlamingoCache | None, cached: int) -> VisibleMedia:
        """Return the media of the latest `<image>` at or before each token, unless the block mask hides it."""
        here = self.get_image_mask(sequence) & sequence.attention_mask
        number, counts = here.cumsum(1), here.sum(1)  # number 0: before any `<image>` of this call
        if counts.sum() != len(sequence.images):
            raise ValueError(
                f"the sequence has {counts.sum()} {IMAGE} tokens for the images of {len(sequence.images)} steps: "
                "each step has one, whatever the number of its cameras"
            )
        slots = torch.arange(1, int(counts.max()) + 1, device=here.device)
        position = torch.arange(here.shape[1], device=here.device).expand_as(here) + cached
        position = position.masked_fill(~here, -1).cummax(1).values
        media = self.perceiver.latents.new_zeros(len(here), 0, self.perceiver.latents.shape[-1])  # (S, n, Dv)
        each = 1
        if len(sequence.images):
            latents = self.encode_images(sequence.images)
            each = latents.shape[1]
            first = counts.cumsum(0) - counts
            grid = (first[:, None] + slots - 1).clamp_max(len(latents) - 1)
            media = latents[grid].flatten(1, 2)
        if state is not None and state.media is not None and state.position is not None:
            each = state.media.shape[1]
            slots = torch.cat([slots.new_zeros(1), slots])
            media = torch.cat([state.media, media], 1)
            position = torch.where(number == 0, state.position[:, None], position)
        mask = (number[:, :, None] == slots) & (position >= 0)[:, :, None]  # (S, L, T)
        if sequence.block_mask is not None:
            mask = mask & sequence.block_mask.gather(2, position.clamp_min(0)[:, :, None])
        if state is not None and media.shape[1]:
            last = (number[:, -1] - slots[0]).clamp_min(0)
            state.media = media.unflatten(1, (-1, each))[torch.arange(len(here), device=here.device), last]
            state.position = position[:, -1]
        return VisibleMedia(media, mask.repeat_interleave(each, -1))

    def _add_modules(self, every: int, dtype: torch.dtype) -> None:
        media_width = self.vision.config.hidden_size
        self.perceiver = PerceiverResampler(media_width, Resampler()).to(dtype)
        # Cross-attention knows no order, so each camera but the first adds an embedding to its latents (of spread about
        # 1). The first has none: with one camera, the model is the original.
        self.cameras = nn.Embedding(CAMERAS, media_width).to(dtype)
        with torch.no_grad():
            self.cameras.weight.mul_(CAMERA_SPREAD)[0] = 0
        width = self.model.config.get_text_config(decoder=True).hidden_size
        add_cross_attention(find_decoder_layers(self.model), every, width, media_width)
        self.model.to(dtype)

    def _load_checkpoint(self, checkpoint: str, kept: tuple[ModelPart, ...]) -> None:
        path = checkpoint
        if not Path(checkpoint).is_file():
            with _explain_unreadable(checkpoint):
                path = cached_file(checkpoint, "checkpoint.pt")
        layers = find_decoder_layers(self.model)
        at = next(name for name, module in self.model.named_modules() if module is layers)
        wrapped = [i for i, layer in enumerate(layers) if isinstance(layer, CrossAttending)]
        renamed = MOSAIC_NAMES if isinstance(self.model, PositionedMpt) else OLDER_NAMES
        weights = translate_names(read_checkpoint(Path(path)), at, wrapped, renamed)
        required = {n for n in self.state_dict() if n.startswith("perceiver.") or ".cross." in n}
        required |= {n for n, weight in self.named_parameters() if weight is self.embedding.weight}
        check_weights(self, weights, required, str(path))
        anew = {id(w) for part, own in parameters_by_part(self).items() if part not in kept for w in own}
        if self.lm_head is not None and "language" not in kept:
            anew |= {id(w) for w in self.lm_head.parameters()} - {id(self.embedding.weight)}
        ours = self.state_dict(keep_vars=True)
        self.load_state_dict({n: w for n, w in weights.items() if id(ours[n]) not in anew}, strict=False)


@contextmanager
def _explain_unreadable(source: str) -> Iterator[None]:
    """Turn an OSError into a ValueError that says how to fetch `source`."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{source!r} cannot be read: {error}\n{how_to_download(source, None)}") from error


def _add_tokens(tokenizer: Any) -> None:
    """Add OpenFlamingo's tokens in its order, as their ids are rows of the checkpoint's embeddings."""
    tokenizer.add_tokens([END_OF_CHUNK, IMAGE], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
