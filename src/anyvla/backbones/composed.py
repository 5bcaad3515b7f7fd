"""Any vision tower before any causal language model of `transformers`: the base class for new backbones.

A subclass loads the two models and declares how pixels are normalized. Prompt, projector, positions, masks, cache,
saving and loading are implemented here. `examples/add_a_backbone.py` shows a complete subclass in 30 lines.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from anyvla.backbones.adapting.architecture_only import builds_architecture_only
from anyvla.backbones.adapting.batch_norms import measure_batch_norms
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.adapting.pretrained import KEPT, reinitialize, truncate_config
from anyvla.backbones.adapting.resampler import build_resampler
from anyvla.backbones.base import CAPABILITIES, Cache, ModelPart, capabilities_without
from anyvla.backbones.hooks import overwrite_embeddings
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.language_config import find_missing_capabilities
from anyvla.backbones.masks import as_additive_mask
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.sequence.tokens import TokenSequence


@dataclasses.dataclass(frozen=True)
class Components:
    """The models that a backbone is composed of, and its tokenizer."""

    vision: nn.Module
    language: Any  # a causal language model of `transformers`
    tokenizer: Any
    projector: nn.Module | None = None  # between the models; None: `build_projector` builds one
    literal_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)  # see `StepTokenizer`


class ComposedBackbone(TokenBackbone):
    """Image features, projected to the width of the language model, are inserted between its token embeddings.

    Subclasses define `load_vision` and `load_language`, and override the other members where they differ.

    The constructor raises ValueError if the tower gives no tokens or the tokenizer belongs to another model.
    """

    Config: ClassVar[type] = Options
    capabilities = frozenset(CAPABILITIES)
    supported_options = frozenset({"pretrained", "layers", "resampler"})
    template = Template()  # how the tokens of a step are written
    image_size: int = 224  # pixels, square; whole images are scaled to it
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of RGB in 0..1: the tower reads (pixel - mean) / std
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def load_vision(self, config: Any, pretrained: bool) -> nn.Module:
        """Return the vision tower, with its weights if `pretrained`; otherwise a checkpoint gives them afterwards.

        Without `pretrained` this is called only for towers that are not of `transformers`: the configuration of one
        of `transformers` is saved with the checkpoint.
        """
        raise NotImplementedError(f"{type(self).__name__} has no vision tower: define load_vision()")

    def load_language(self, config: Any) -> tuple[Any, Any]:
        """Return the causal language model of `transformers`, with its weights, and its tokenizer."""
        raise NotImplementedError(f"{type(self).__name__} has no language model: define load_language()")

    def extract_features(self, pixels: Float[Tensor, "N 3 h w"]) -> Tensor:
        """Return the tower's features of normalized pixels: tokens (N, F, Dv), or a map (N, Dv, h, w)."""
        features = self.tower(pixels)
        return getattr(features, "last_hidden_state", features)

    def build_projector(self, in_width: int, out_width: int) -> nn.Module:
        """Return the projector: the identity for equal widths, otherwise two layers (arXiv 2310.03744)."""
        if in_width == out_width:
            return nn.Identity()
        return nn.Sequential(nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width))

    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(config.seed)
            parts = self.load_components(config, assets)
            self.tower: Any = parts.vision.eval()
            self.model: Any = parts.language
            truncate_model(parts.language, config.layers, parts.vision)
            settings = parts.language.config.get_text_config(decoder=True)
            self.read_sizes(settings)
            self.capabilities = self.capabilities & capabilities_without(find_missing_capabilities(settings))
            numbers = {"size": self.image_size, "resample": 3, "image_mean": self.mean, "image_std": self.std}
            self.pixels = Pixels(numbers, None)
            if assets is not None:
                for part in filter(None, (parts.vision, parts.projector)):
                    for weight in part.parameters():
                        weight.zero_()  # uninitialized memory may hold NaN, which some code checks for
            blank = self.compute_features(torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8))
            self.projection = parts.projector or self.build_projector(blank.shape[-1], self.width)
            if config.resampler is not None:
                resampler = build_resampler(self.embedding, self.width, config.resampler)
                self.projection = nn.Sequential(self.projection, resampler)
            tokens = self.projection.eval()(blank).shape[1]
        if assets is None:
            reinitialize(self, config.pretrained, config.seed)
            self._measure_batch_norms(config)
        self.to(getattr(torch, config.dtype))
        self._names = frozenset(inspect.signature(self.model.forward).parameters)
        if "position_ids" not in self._names:  # such a model counts keys, padding included
            self.capabilities = self.capabilities & capabilities_without(frozenset({"cache"}))
        self.train()
        vocabulary = self.embedding.weight.shape[0]
        return StepTokenizer(
            parts.tokenizer,
            config.prompt,
            self.template,
            image_id=_unused_id(parts.tokenizer, vocabulary),
            grid=(1, tokens),
            vocabulary=vocabulary,
            context=self.context,
            literal_ids=parts.literal_ids,
        )

    def _measure_batch_norms(self, config: Any) -> None:
        if "vision" in KEPT[config.pretrained] or builds_architecture_only():
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            measure_batch_norms(self.tower, self.extract_features, self.image_size)

    def load_components(self, config: Any, assets: Path | None) -> Components:
        """Return both models and the tokenizer: loaded or, with `assets`, built without weights."""
        if assets is None:
            return Components(self.load_vision(config, pretrained=True), *self.load_language(config))
        saved = (Path(assets) / "vision").is_dir()
        with no_init_weights():  # the caller loads the weights
            tower = build_saved(Path(assets) / "vision") if saved else self.load_vision(config, pretrained=False)
            language = build_saved(Path(assets) / "language")
        tokenizer = AutoTokenizer.from_pretrained(Path(assets) / "language", trust_remote_code=False)
        return Components(tower, language, tokenizer)

    def save_assets(self, folder: Path) -> None:
        """Write `language/` (configuration and tokenizer) and, for a tower of `transformers`, `vision/`."""
        save_config(self.model, Path(folder) / "language")
        self.tokenizer.save_pretrained(Path(folder) / "language")
        if is_transformers_model(self.tower):
            save_config(self.tower, Path(folder) / "vision")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep the statistics of batch norms: otherwise a sample would depend on its batch."""
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        return {
            "vision": (self.tower,),
            "projector": (self.projection,),
            "language": (self.model,),
            "embeddings": (self.embedding,),
        }

    def embed_images(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F D"]:
        """Return the embeddings of N = M * V images, F tokens each."""
        return self.projection(self.read_features(images))

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.model_cache is None:
            cache.model_cache = DynamicCache()  # keeps all positions: our masks hide those outside a sliding window
        given = self.language_inputs(sequence, cache)
        given["inputs_embeds"] = self._embed_sequence(sequence)
        del given["input_ids"]
        if "position_ids" not in self._names:
            del given["position_ids"]
        if "attention_mask" in given:
            given["attention_mask"] = as_additive_mask(given["attention_mask"], given["inputs_embeds"].dtype)
        self.run_language(given)

    def run_language(self, given: dict[str, Any]) -> None:
        """Run the language model over `inputs_embeds`, with the other inputs in `given`."""
        self.model(**given)

    def plain_forward(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """Return the last hidden states of the model with its own positions and without any overwritten embedding."""
        valid = sequence.attention_mask.long()
        with self.capture_hidden_states() as hidden:
            inputs = {"inputs_embeds": self._embed_sequence(sequence), "attention_mask": valid, "use_cache": False}
            self.run_language(inputs)
        return hidden[0]

    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue the sequence with `tokens` tokens of text, greedily."""
        return self.model.generate(
            inputs_embeds=self._embed_sequence(sequence),
            attention_mask=sequence.attention_mask.long(),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )[:, -tokens:]

    def _embed_sequence(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """Return the embeddings of tokens and images. The image id has no embedding; the padding's replaces it."""
        images = self.get_image_mask(sequence)
        ids = sequence.input_ids.masked_fill(images, self.pad_id)
        if not len(sequence.images):
            return self.embedding(ids)
        features = self.embed_images(sequence.images).flatten(0, 1)
        with overwrite_embeddings(self.embedding, ids.shape, self.find_images(sequence), features):
            return self.embedding(ids)

    def compute_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        weight = next(self.tower.parameters())
        pixels = self.pixels(images.flatten(0, 1).to(weight.device)).to(weight.dtype)
        features = self.extract_features(pixels)
        if features.ndim == 4:  # a map
            features = features.flatten(2).transpose(1, 2)
        if features.ndim != 3 or len(features) != len(pixels):
            raise ValueError(
                f"the vision tower gave {tuple(features.shape)} for {len(pixels)} images: extract_features() must "
                "return tokens (images, tokens, width) or a map (images, width, height, width of the map)"
            )
        return features


def truncate_model(model: Any, layers: int | None, tower: nn.Module) -> None:
    """Keep the first `layers` layers of a language model. Raises ValueError if it has fewer."""
    whole = model.config.get_text_config(decoder=True).num_hidden_layers
    truncate_config(model.config, layers)
    if layers is not None and layers < whole:
        of_tower = set(tower.modules())
        stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and m not in of_tower and len(m) == whole)
        del next(stacks)[layers:]


def is_transformers_model(model: nn.Module) -> bool:
    """Return whether the model's class is one of `transformers`, so that its configuration suffices to build it."""
    return isinstance(model, PreTrainedModel) and getattr(transformers, type(model).__name__, None) is type(model)


def save_config(model: Any, folder: Path) -> None:
    """Write the configuration of a model of `transformers`, for `build_saved`. Raises ValueError for other models."""
    if not is_transformers_model(model):
        raise ValueError(
            f"{type(model).__name__} is no model of transformers, so a checkpoint cannot describe how to build it: "
            "define load_components() and save_assets()"
        )
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def build_saved(folder: Path) -> Any:
    """Build the model whose configuration `save_config` wrote, without initializing its weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or ("",))[0]
    made = getattr(transformers, name, None)
    if not (isinstance(made, type) and issubclass(made, PreTrainedModel)):
        raise ValueError(f"{folder}/config.json names {name!r}, which is no model of transformers")
    model = made(config)
    model.tie_weights()
    return model


def _unused_id(tokenizer: Any, vocabulary: int) -> int:
    """Return an id that neither the tokenizer nor the model has, so that no instruction can produce it.

    Raises ValueError if the tokenizer knows ids that the model does not embed.
    """
    image_id = max(vocabulary, *tokenizer.get_vocab().values()) + 1
    if image_id - 1 > vocabulary:
        raise ValueError(
            f"the tokenizer knows ids up to {image_id - 1}, but the language model embeds {vocabulary}: "
            "give the tokenizer that the model was trained with"
        )
    return image_id
