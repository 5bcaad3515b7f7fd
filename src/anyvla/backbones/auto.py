"""Any image-text-to-text model of `transformers` as a backbone, through one adapter.

The sequence goes in as token ids with image placeholders; while the model embeds them, a hook writes the queries over
their reserved places, and another takes what the LM head would read. So whatever a family derives from the ids
(positions, token types, image places) stays right. What single families do otherwise is a row of
`anyvla.backbones.families.quirks`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
)
from transformers.initialization import no_init_weights

import anyvla.backbones.nano.vision  # noqa: F401  (registers its model type, so that a saved nano loads here)
from anyvla.backbones.adapting.options import Options, Resampler
from anyvla.backbones.adapting.parts import ends_of, find_parts
from anyvla.backbones.adapting.pretrained import read_model, renew, truncate
from anyvla.backbones.adapting.resampler import PerceiverResampler, resampler_among
from anyvla.backbones.base import Cache, Capability, ModelPart, capabilities_without
from anyvla.backbones.families.quirks import QUIRKS, Quirk, find_quirk
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.hooks import read_after, written
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.language_config import windows_of
from anyvla.backbones.source import (
    PREPROCESSOR,
    fetch,
    lacking_package,
    read_config,
    read_preprocessor,
    read_second_tokenizer,
)
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.config import STRICT
from anyvla.limits import PIXELS
from anyvla.sequence.tokens import TokenSequence


@plain_dataclass(frozen=True)
class Parts:
    """What a backbone is assembled from."""

    model: Any  # a PreTrainedModel with its LM head
    tokenizer: Any
    preprocessor: dict[str, Any]  # the content of preprocessor_config.json
    second_tokenizer: Any = None  # see `Quirk.second_tokenizer`


class AutoBackbone(TokenBackbone):
    """A model folder or hub id that `AutoModelForImageTextToText` knows."""

    supported_options = frozenset({"pretrained", "layers", "resampler"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """Which model, and how it is asked."""

        path: str  # a model folder, or an id of the Hugging Face hub
        revision: str | None = None  # of the hub: a branch, tag or commit
        image_size: int | None = Field(default=None, ge=1, le=PIXELS)  # pixels, square; None: the tower's own
        # n > 1: each camera's image is read in n x n tiles of that size, in raster order, and whole after them.
        tiles: int = Field(default=1, ge=1, le=16)

    def __init__(self, config: Any, assets: Path | None = None) -> None:
        """Load the model that `config.path` names or, with `assets`, build its architecture without its weights.

        Raises ValueError if there is no such model, it is not complete, it cannot see, or its family needs a row in
        `anyvla.backbones.families.quirks` that is not there.
        """
        super().__init__()
        parts = self.parts(config, assets)
        self.model: Any = parts.model
        self.preprocessor, self.tokenizer = parts.preprocessor, parts.tokenizer
        self.second_tokenizer = parts.second_tokenizer
        self.quirk = _quirk(self.model.config)
        text_config = self.model.config.get_text_config()
        self.width = text_config.hidden_size
        self.context = getattr(text_config, "max_position_embeddings", None)
        self.resampler: PerceiverResampler | None = None
        if assets is None:
            renew(self, config.pretrained, config.seed)
        for name, value in self.quirk.config_overrides.items():
            setattr(self.model.config, name, value)
        attention = self.quirk.attention
        self.attention = attention(self.model.config) if callable(attention) else attention
        self.one_mask, self.additive = self.quirk.one_mask, text_config._attn_implementation == "eager"
        self.windows = windows_of(self.model.config.get_text_config(decoder=True))
        self.first_position = self.quirk.first_position
        self.capabilities = capabilities_without(self.quirk.lacks)
        self._names = self.quirk.passed_on.union(inspect.signature(self.model.forward).parameters)
        self._rope_index = _method(self.model, "get_rope_index")
        self._get_features = _method(self.model, "get_image_features")
        asked = getattr(config, "image_size", None)
        exact = exact_size(self.quirk, self.model.config, parts.preprocessor, asked)
        preprocessor, tiles = parts.preprocessor | dict(self.quirk.preprocessor_overrides), getattr(config, "tiles", 1)
        self.pixels = Pixels(preprocessor, _tower_size(self.model.config), exact, tiles)
        image_id = self._image_id(parts.tokenizer)
        if config.resampler is not None:
            self.resampler = self._resampler(config.resampler, config.seed)
        grid = self._grid(image_id)
        per_camera = 1 if self.resampler is not None else self.pixels.per_image  # tiles are resampled together
        self.set_up(parts.tokenizer, config.prompt, self._template(), image_id, grid, per_camera)
        self._check_tokens()
        if self.quirk.discrete_images:
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, vision=False))
        self.finish(config)
        if self.quirk.reads == "head":
            self.readout_only = ends_of(self.part_modules()["language"])

    @classmethod
    def find_capabilities(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """What the family can do; of the model, only its config.json is read."""
        declared = super().find_capabilities(config, assets)
        if declared is not None:
            return declared
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = read_config(source, revision)
        return capabilities_without(_quirk(model_config).lacks)

    def parts(self, config: Any, assets: Path | None) -> Parts:
        """Read configuration, tokenizer, preprocessing and, without `assets`, weights."""
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = read_config(source, revision)
        dtype = getattr(torch, config.dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            inside = _quirk(model_config).second_tokenizer
            second = None if inside is None else read_second_tokenizer(source, revision, inside)
            if assets is None:
                truncate(model_config, config.layers)
            if assets is None and config.pretrained != "none":
                model = read_model(source, revision, model_config, dtype)
            else:
                # Weights come later: from a checkpoint, or from `renew`.
                with no_init_weights(), torch.random.fork_rng(devices=[]):
                    model = AutoModelForImageTextToText.from_config(model_config, dtype=dtype)
                model.tie_weights()
        except OSError as error:
            raise ValueError(f"the model at {source!r} is not complete: {error}\n{fetch(source, revision)}") from error
        except ImportError as error:
            raise ValueError(lacking_package(source, error)) from error
        return Parts(model, tokenizer, read_preprocessor(source, revision), second)

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        parts = find_parts(self.model, self.embedding, self.unused_modules)
        return parts if self.resampler is None else parts | {"projector": (*parts["projector"], self.resampler)}

    @property
    def unused_modules(self) -> tuple[nn.Module, ...]:
        if self.quirk.reads == "head":
            return super().unused_modules
        encoder = self.model.get_encoder()
        around = next(m for m in self.model.modules() if getattr(m, "encoder", None) is encoder)
        return *super().unused_modules, around.decoder

    def capture_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        return (
            read_after(self.model.get_encoder()) if self.quirk.reads == "encoder" else super().capture_hidden_states()
        )

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.model_cache is None:
            cache.model_cache = DynamicCache()  # of all places: our masks say which of them a window hides
        with self._looking(sequence) as given:
            positions = None if self._rope_index is None else self._rope_positions(sequence, given)
            ids = given.pop("input_ids", sequence.input_ids)
            given |= self.language_inputs(sequence, cache, positions) | {"input_ids": ids}
            if "position_ids" not in self._names:
                del given["position_ids"]
            self.model(**given)

    def plain_forward(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """The last hidden states as the model gives them when nothing is written over and its positions are its own."""
        ids = {"input_ids": sequence.input_ids, "attention_mask": sequence.attention_mask.long()}
        with self._looking(sequence) as given, self.capture_hidden_states() as hidden:
            self.model(**ids | given)
        return hidden[0]

    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue the sequence with `tokens` tokens of text, greedily."""
        ids = {"input_ids": sequence.input_ids, "attention_mask": sequence.attention_mask.long()}
        count = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        with self._looking(sequence) as given:
            return self.model.generate(**ids | given, **count, do_sample=False)[:, -tokens:]

    def save_assets(self, folder: Path) -> None:
        """Write configuration, tokenizer and image preprocessing, so that the constructor can read them."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.quirk.second_tokenizer is not None:
            self.second_tokenizer.save_pretrained(Path(folder) / self.quirk.second_tokenizer)
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(self.preprocessor, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def _looking(self, sequence: TokenSequence) -> Iterator[dict[str, Any]]:
        """The inputs by which the model sees the images of the sequence, for the length of one call."""
        images = self._images(sequence)
        given = {name: make(images) for name, make in self.quirk.extra_inputs.items() if name in self._names}
        if not len(sequence.images):
            yield given | dict(self.quirk.inputs_without_images(images))
        elif self.resampler is None:
            yield dict(self.quirk.image_inputs(images)) | given
        else:  # the model reads text, and finds the images' tokens in its embeddings
            places = images.image_mask.flatten().nonzero().squeeze(1)
            tokens = self.resampler(self._features(images)).flatten(0, 1)
            with written(self.embedding, sequence.input_ids.shape, places, tokens):
                ids = {"input_ids": sequence.input_ids.masked_fill(images.image_mask, self.query_id)}
                yield given | dict(self.quirk.inputs_without_images(images)) | ids

    def _features(self, images: SequenceImages) -> Float[Tensor, "N T D"]:
        """The features of each image as the projector gives them."""
        names = inspect.signature(self._get_features).parameters
        given = {k: v for k, v in self.quirk.image_inputs(images).items() if k in names}
        features = getattr(self._get_features(**given), "pooler_output", None)
        if features is None:
            kind = self.model.config.model_type
            raise ValueError(f"resampler: a {kind!r} model gives no features to resample; leave resampler out")
        if not isinstance(features, Tensor):
            features = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        return features.reshape(images.sequence.images.shape[:2].numel(), -1, features.shape[-1])

    def _resampler(self, options: Resampler, seed: int) -> PerceiverResampler:
        if self._get_features is None:
            raise ValueError(
                f"resampler: a {self.model.config.model_type!r} model has no get_image_features, whose features one "
                "could resample; leave resampler out"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return resampler_among(self.embedding, self.width, options).to(self.model.dtype)

    def _images(self, sequence: TokenSequence) -> SequenceImages:
        return self._seen(self._pixel_values(sequence.images), sequence, self.get_image_mask(sequence))

    def _seen(
        self, pixels: Float[Tensor, "N 3 h w"], sequence: TokenSequence, places: Bool[Tensor, "S L"]
    ) -> SequenceImages:
        return SequenceImages(
            pixels, sequence, places, self.model.config, self.tokenizer, self.preprocessor, self.second_tokenizer
        )

    def _pixel_values(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N 3 h w"]:
        return self.pixels(images.flatten(0, 1).to(self.pixels.scale.device)).to(self.model.dtype)

    def _rope_positions(self, sequence: TokenSequence, given: dict[str, Any]) -> Tensor:
        """Positions (3, S, L) in time, height and width (M-RoPE). The model must not remember its own of before."""
        core = self._rope_index.__self__
        core.rope_deltas = None
        if self.resampler is not None or not len(sequence.images):
            return torch.arange(sequence.input_ids.shape[1], device=sequence.input_ids.device).expand(3, 1, -1)
        names = inspect.signature(self._rope_index).parameters
        known = {k: v for k, v in given.items() if k in names}
        positions, _ = self._rope_index(
            input_ids=sequence.input_ids, attention_mask=sequence.attention_mask.long(), **known
        )
        return positions

    def _check_tokens(self) -> None:
        """Raises ValueError if what stands around images would be read as letters."""
        written = self.template.before_image + self.template.row_end + self.template.after_image
        known = self.tokenizer.get_vocab()
        unknown = [token for token in re.findall(r"<[^<>\s]+>|\[[A-Z_]+\]", written) if token not in known]
        if unknown:
            raise ValueError(
                f"a {self.model.config.model_type!r} model writes {' '.join(unknown)} around its images, which this "
                "tokenizer does not know: copy the tokenizer's files from the model it was trained from"
            )

    def _template(self) -> Template:
        def named(match: re.Match[str]) -> str:  # {boi_token_id}: the token with that id of the configuration
            return str(self.tokenizer.convert_ids_to_tokens(getattr(self.model.config, match[1])))

        template, opens = self.quirk.template, self.quirk.image_opening
        before = ("" if opens is None else opens(self.model.config, self.pixels.size)) + template.before_image
        around = {"before_image": before, "after_image": template.after_image}
        return dataclasses.replace(template, **{k: re.sub(r"{(\w+_token_id)}", named, v) for k, v in around.items()})

    def _image_id(self, tokenizer: Any) -> int:
        token, config = self.quirk.image_token, self.model.config
        if token is None:
            found = getattr(config, "image_token_id", None)
        else:
            found = tokenizer.get_vocab().get(token)
        if found is None or (self._get_features is None and self.quirk.grid is None):
            lacking = f"no image token ({token or 'image_token_id'})" if found is None else "no get_image_features"
            raise ValueError(
                f"cannot place images in a {config.model_type!r} model: {lacking}; this family needs a row of its own "
                f"in anyvla.backbones.families.quirks (there are: {', '.join(QUIRKS)})"
            )
        return found

    @torch.no_grad()
    def _grid(self, image_id: int) -> tuple[int, int]:
        """Rows and columns of an image's tokens; counted once on a blank one where the table does not say."""
        if self.quirk.grid is not None and self.resampler is None:
            return self.quirk.grid(self.model.config, self.pixels.size)
        training = self.model.training
        self.model.eval()
        one = torch.full((1, 1), image_id)
        yes = torch.ones(1, 1, dtype=torch.bool)
        blank = torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8)
        sequence = TokenSequence(one, yes, ~yes, one * 0, blank)
        features = self._features(self._seen(self._pixel_values(blank)[:1], sequence, yes))
        self.model.train(training)
        return 1, features.shape[1] if self.resampler is None else len(self.resampler.latents)


def exact_size(quirk: Quirk, config: Any, preprocessor: Mapping[str, Any], asked: int | None) -> int | None:
    """The side in pixels to scale images to where the family leaves the choice; None: its own size.

    Raises ValueError if `asked` is a size that the tower does not take.
    """
    if quirk.size_multiple is None:
        own = _tower_size(config)
        if asked not in (None, own):
            raise ValueError(
                f"a {config.model_type!r} model reads images of its own size only ({own} pixels), not {asked}: "
                "leave image_size out"
            )
        return None
    step = quirk.size_multiple(config)
    if asked is not None and asked % step:
        raise ValueError(f"image_size must be a multiple of {step} for a {config.model_type!r} model, got {asked}")
    size = quirk.default_size(config, preprocessor) if callable(quirk.default_size) else quirk.default_size
    return asked or -(-size // step) * step


def _method(model: Any, name: str) -> Any:
    """The method of the model's trunk, or the model's own, which may hand on arguments without naming them."""
    trunk = getattr(model, "model", None)
    return getattr(trunk, name, None) or getattr(model, name, None)


def _quirk(model_config: Any) -> Quirk:
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(model_config)]
    return find_quirk(model_config, inspect.signature(model.forward).parameters)


def _tower_size(model_config: Any) -> int | None:
    size = getattr(getattr(model_config, "vision_config", None), "image_size", None)
    if isinstance(size, (list, tuple)) and len({*size}) == 1:  # InternVL's, height and width
        size = size[0]
    return size if isinstance(size, int) else None
