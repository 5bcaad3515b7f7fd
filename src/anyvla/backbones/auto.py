"""Any image-text-to-text model of `transformers` as a backbone, through one adapter.

The model gets token ids with image placeholders. While it embeds them, one hook overwrites the embeddings of queries;
another captures the input of the LM head. So everything that a family derives from the ids (positions, token types,
positions of images) stays correct. `anyvla.backbones.families.quirks` lists the differences between families.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
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

import anyvla.backbones.nano_vision  # noqa: F401  (registers its model type, so that a saved nano loads here)
from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.adapting.parts import find_part_modules, find_position_wise_modules
from anyvla.backbones.adapting.pretrained import read_model, reinitialize, truncate_config
from anyvla.backbones.adapting.resampler import PerceiverResampler, build_resampler
from anyvla.backbones.base import Cache, Capability, ModelPart, capabilities_without
from anyvla.backbones.families.quirks import QUIRKS, Quirk, find_quirk
from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.hooks import capture_encoder_output, cast_output, overwrite_embeddings
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.language_config import find_windows
from anyvla.backbones.source import (
    PREPROCESSOR,
    describe_missing_package,
    how_to_download,
    read_config,
    read_preprocessor,
    read_second_tokenizer,
)
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.config import STRICT
from anyvla.limits import PIXELS
from anyvla.sequence.tokens import TokenSequence
from anyvla.transfer import send


@plain_dataclass(frozen=True)
class LoadedModel:
    """A model and the files that belong to it."""

    model: Any  # a PreTrainedModel with its LM head
    tokenizer: Any
    preprocessor: dict[str, Any]  # the content of preprocessor_config.json
    second_tokenizer: Any = None  # see `Quirk.second_tokenizer`


class AutoBackbone(TokenBackbone):
    """A model folder or hub id that `AutoModelForImageTextToText` knows.

    The constructor raises ValueError if there is no such model, it is incomplete, it cannot read images, or its family
    needs a row in `anyvla.backbones.families.quirks` that does not exist.
    """

    supported_options = frozenset({"pretrained", "layers", "resampler"})

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The model and its prompt."""

        path: str  # a model folder, or an id of the Hugging Face hub
        revision: str | None = None  # of the hub: a branch, tag or commit
        image_size: int | None = Field(default=None, ge=1, le=PIXELS)  # pixels, square; None: the tower's own
        # n > 1: each camera's image is read in n x n tiles of that size, in raster order, followed by the whole image.
        tiles: int = Field(default=1, ge=1, le=16)

    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        loaded = self.load(config, assets)
        self.model = loaded.model
        self.preprocessor, self.tokenizer = loaded.preprocessor, loaded.tokenizer
        self.second_tokenizer = loaded.second_tokenizer
        self.resampler: PerceiverResampler | None = None
        self.quirk = find_quirk_of(self.model.config)
        if assets is None:
            reinitialize(self, config.pretrained, config.seed)
        self._read_configuration()
        self._inspect_methods()
        self._set_up_images(config)
        self.image_id = self._find_image_id()
        if config.resampler is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.resampler = build_resampler(self.embedding, self.width, config.resampler).to(self.model.dtype)
        steps = StepTokenizer(
            loaded.tokenizer,
            config.prompt,
            self._build_template(),
            image_id=self.image_id,
            grid=self._count_rows_and_columns(),
            vocabulary=self.embedding.weight.shape[0],
            context=self.context,
            # A resampler reads the tiles of an image together.
            images_per_camera=1 if self.resampler is not None else self.pixels.per_image,
        )
        self._check_tokens(steps.template)
        return steps

    def _read_configuration(self) -> None:
        """Take sizes, attention and capabilities from the model's configuration and its family's row."""
        config, quirk = self.model.config, self.quirk
        text_config = config.get_text_config()
        self.width = text_config.hidden_size
        self.context = getattr(text_config, "max_position_embeddings", None)
        for name, value in quirk.config_overrides.items():
            setattr(config, name, value)
        self.attention = quirk.attention(config) if callable(quirk.attention) else quirk.attention
        self.single_mask, self.additive_masks = quirk.one_mask, text_config._attn_implementation == "eager"
        self.windows = find_windows(config.get_text_config(decoder=True))
        self.first_position = quirk.first_position
        self.discrete_images = quirk.discrete_images
        self.capabilities = capabilities_without(quirk.lacks)

    def _inspect_methods(self) -> None:
        """Find the inputs of the model's forward pass and its methods for images and positions."""
        self._names = self.quirk.passed_on.union(inspect.signature(self.model.forward).parameters)
        self._rope_index = _find_method(self.model, "get_rope_index")
        self._get_features = _find_method(self.model, "get_image_features")

    def _set_up_images(self, config: Any) -> None:
        exact = exact_size(self.quirk, self.model.config, self.preprocessor, getattr(config, "image_size", None))
        preprocessor = self.preprocessor | dict(self.quirk.preprocessor_overrides)
        self.pixels = Pixels(preprocessor, _tower_size(self.model.config), exact, getattr(config, "tiles", 1))

    @classmethod
    def find_capabilities(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """Return the capabilities of the model's family; only the model's config.json is read."""
        declared = super().find_capabilities(config, assets)
        if declared is not None:
            return declared
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = read_config(source, revision)
        return capabilities_without(find_quirk_of(model_config).lacks)

    def load(self, config: Any, assets: Path | None) -> LoadedModel:
        """Read configuration, tokenizer, preprocessing and, without `assets`, weights."""
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = read_config(source, revision)
        dtype = getattr(torch, config.dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            inside = find_quirk_of(model_config).second_tokenizer
            second = None if inside is None else read_second_tokenizer(source, revision, inside)
            if assets is None:
                truncate_config(model_config, config.layers)
            if assets is None and config.pretrained != "none" and not builds_architecture_only():
                model = read_model(source, revision, model_config, dtype)
            else:
                # Weights come later: from a checkpoint, from `reinitialize`, or never.
                with no_init_weights(), torch.random.fork_rng(devices=[]):
                    model = AutoModelForImageTextToText.from_config(model_config, dtype=dtype)
                model.tie_weights()
        except OSError as error:
            hint = how_to_download(source, revision)
            raise ValueError(f"the model at {source!r} is not complete: {error}\n{hint}") from error
        except ImportError as error:
            raise ValueError(describe_missing_package(source, error)) from error
        return LoadedModel(model, tokenizer, read_preprocessor(source, revision), second)

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        parts = find_part_modules(self.model, self.embedding, self.unused_modules)
        return parts if self.resampler is None else parts | {"projector": (*parts["projector"], self.resampler)}

    @property
    def unused_modules(self) -> tuple[nn.Module, ...]:
        if self.quirk.reads == "head":
            return super().unused_modules
        encoder = self.model.get_encoder()
        around = next(m for m in self.model.modules() if getattr(m, "encoder", None) is encoder)
        return *super().unused_modules, around.decoder

    def find_query_only_modules(self) -> tuple[nn.Module, ...]:
        return find_position_wise_modules(self.part_modules()["language"]) if self.quirk.reads == "head" else ()

    def capture_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        if self.quirk.reads == "encoder":
            return capture_encoder_output(self.model.get_encoder())
        return super().capture_hidden_states()

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.model_cache is None:
            cache.model_cache = DynamicCache()  # keeps all positions: our masks hide those outside a sliding window
        with self._image_inputs(sequence) as given:
            positions = None if self._rope_index is None else self._rope_positions(sequence, given)
            ids = given.pop("input_ids", sequence.input_ids)
            given |= self.language_inputs(sequence, cache, positions) | {"input_ids": ids}
            if "position_ids" not in self._names:
                del given["position_ids"]
            self.model(**given)

    def plain_forward(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """Return the last hidden states of the model with its own positions and without any overwritten embedding."""
        ids = {"input_ids": sequence.input_ids, "attention_mask": sequence.attention_mask.long()}
        with self._image_inputs(sequence) as given, self.capture_hidden_states() as hidden:
            self.model(**ids | given)
        return hidden[0]

    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue the sequence with `tokens` tokens of text, greedily."""
        ids = {"input_ids": sequence.input_ids, "attention_mask": sequence.attention_mask.long()}
        count = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        with self._image_inputs(sequence) as given:
            return self.model.generate(**ids | given, **count, do_sample=False)[:, -tokens:]

    def save_assets(self, folder: Path) -> None:
        """Write configuration, tokenizer and image preprocessing, for the constructor to read."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.quirk.second_tokenizer is not None:
            self.second_tokenizer.save_pretrained(Path(folder) / self.quirk.second_tokenizer)
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(self.preprocessor, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def _image_inputs(self, sequence: TokenSequence) -> Iterator[dict[str, Any]]:
        """Yield the model's inputs for the images of the sequence, for one call of the model."""
        cast = cast_output(self.embedding, self.model.dtype) if self.quirk.casts_images else nullcontext()
        with cast, self._make_image_inputs(sequence) as given:
            yield given

    @contextmanager
    def _make_image_inputs(self, sequence: TokenSequence) -> Iterator[dict[str, Any]]:
        images = self._images(sequence)
        given = {name: make(images) for name, make in self.quirk.extra_inputs.items() if name in self._names}
        if not len(sequence.images):
            yield given | dict(self.quirk.inputs_without_images(images))
        elif self.resampler is None:
            yield dict(self.quirk.image_inputs(images)) | given
        else:  # the model reads text, with the embeddings at the image tokens overwritten
            positions = self.find_images(sequence)
            tokens = self.resampler(self._features(images)).flatten(0, 1)
            with overwrite_embeddings(self.embedding, sequence.input_ids.shape, positions, tokens):
                ids = {"input_ids": sequence.input_ids.masked_fill(images.image_mask, self.query_id)}
                yield given | dict(self.quirk.inputs_without_images(images)) | ids

    def _features(self, images: SequenceImages) -> Float[Tensor, "N F D"]:
        """Return the F features of each image after the projector."""
        features = None
        if self._get_features is not None:
            names = inspect.signature(self._get_features).parameters
            given = {k: v for k, v in self.quirk.image_inputs(images).items() if k in names}
            features = getattr(self._get_features(**given), "pooler_output", None)
        if features is None:
            kind = self.model.config.model_type
            raise ValueError(f"resampler: a {kind!r} model gives no image features to resample; leave resampler out")
        if not isinstance(features, Tensor):
            features = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        return features.reshape(images.sequence.images.shape[:2].numel(), -1, features.shape[-1])

    def _images(self, sequence: TokenSequence) -> SequenceImages:
        pixels, mask = self._pixel_values(sequence.images), self.get_image_mask(sequence)
        files = self.tokenizer, self.preprocessor, self.second_tokenizer
        return SequenceImages(pixels, sequence, mask, self.model.config, *files)

    def _pixel_values(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N 3 h w"]:
        return self.pixels(images.flatten(0, 1).to(self.pixels.scale.device)).to(self.model.dtype)

    def _rope_positions(self, sequence: TokenSequence, given: dict[str, Any]) -> Tensor:
        """Return positions (3, S, L) in time, height and width (M-RoPE), and clear the model's earlier ones."""
        core = self._rope_index.__self__
        core.rope_deltas = None
        if self.resampler is not None or not len(sequence.images):
            return torch.arange(sequence.input_ids.shape[1], device=sequence.input_ids.device).expand(3, 1, -1)
        names = inspect.signature(self._rope_index).parameters
        known = {k: v for k, v in given.items() if k in names}
        ids, valid = sequence.input_ids, sequence.attention_mask
        if sequence.on_host is not None:  # the function asks for every image, for which a GPU would be waited for
            host = sequence.on_host
            ids, valid = torch.from_numpy(host.input_ids), torch.from_numpy(host.attention_mask)
            known = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in known.items()}
        positions, _ = self._rope_index(input_ids=ids, attention_mask=valid.long(), **known)
        return send(positions, sequence.input_ids.device)

    def _check_tokens(self, template: Template) -> None:
        """Raise ValueError if the tokenizer does not know the tokens around images and would spell them out."""
        written = template.before_image + template.row_end + template.after_image
        known = self.tokenizer.get_vocab()
        unknown = [token for token in re.findall(r"<[^<>\s]+>|\[[A-Z_]+\]", written) if token not in known]
        if unknown:
            raise ValueError(
                f"a {self.model.config.model_type!r} model writes {' '.join(unknown)} around its images, which this "
                "tokenizer does not know: copy the tokenizer's files from the model it was trained from"
            )

    def _build_template(self) -> Template:
        def name_token(match: re.Match[str]) -> str:  # {boi_token_id}: the token whose id the configuration holds
            return str(self.tokenizer.convert_ids_to_tokens(getattr(self.model.config, match[1])))

        template, opens = self.quirk.template, self.quirk.image_opening
        before = ("" if opens is None else opens(self.model.config, self.pixels.size)) + template.before_image
        before, after = (re.sub(r"{(\w+_token_id)}", name_token, text) for text in (before, template.after_image))
        return dataclasses.replace(template, before_image=before, after_image=after)

    def _find_image_id(self) -> int:
        token, config = self.quirk.image_token, self.model.config
        if token is None:
            found = getattr(config, "image_token_id", None)
        else:
            found = self.tokenizer.get_vocab().get(token)
        if found is None or (self._get_features is None and self.quirk.grid is None):
            lacking = f"no image token ({token or 'image_token_id'})" if found is None else "no get_image_features"
            raise ValueError(
                f"cannot place images in a {config.model_type!r} model: {lacking}; this family needs a row of its own "
                f"in anyvla.backbones.families.quirks (there are: {', '.join(QUIRKS)})"
            )
        return found

    @torch.no_grad()
    def _count_rows_and_columns(self) -> tuple[int, int]:
        """Return the rows and columns of an image's tokens, counted on a blank image where the table gives no grid."""
        if self.quirk.grid is not None and self.resampler is None:
            return self.quirk.grid(self.model.config, self.pixels.size)
        training = self.model.training
        self.model.eval()
        one = torch.full((1, 1), self.image_id)
        yes = torch.ones(1, 1, dtype=torch.bool)
        blank = torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8)
        images = self._images(TokenSequence(one, yes, ~yes, one * 0, blank))
        features = self._features(dataclasses.replace(images, pixels=images.pixels[:1]))
        self.model.train(training)
        return 1, features.shape[1] if self.resampler is None else len(self.resampler.latents)


def exact_size(quirk: Quirk, config: Any, preprocessor: Mapping[str, Any], asked: int | None) -> int | None:
    """Return the side in pixels to which images are scaled if the family accepts several sizes, else None.

    Raises ValueError if the tower does not accept the size `asked`.
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


def _find_method(model: Any, name: str) -> Any:
    """Return the method of the model's trunk, else of the model, whose signature may not name all arguments."""
    trunk = getattr(model, "model", None)
    return getattr(trunk, name, None) or getattr(model, name, None)


def find_quirk_of(model_config: Any) -> Quirk:
    """Return the row of the table for a model's configuration."""
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(model_config)]
    return find_quirk(model_config, inspect.signature(model.forward).parameters)


def _tower_size(model_config: Any) -> int | None:
    size = getattr(getattr(model_config, "vision_config", None), "image_size", None)
    if isinstance(size, (list, tuple)) and len({*size}) == 1:  # InternVL's, height and width
        size = size[0]
    return size if isinstance(size, int) else None
