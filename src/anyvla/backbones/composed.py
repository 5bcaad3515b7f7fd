"""Any vision tower before any causal language model of `transformers`: what a new backbone is written with.

A subclass names the two models and how pixels are normalized; prompt, projector, positions, masks, cache, saving and
loading are here. `examples/add_a_backbone.py` is one, in 30 lines.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from anyvla.backbones.adapting.options import Options
from anyvla.backbones.adapting.pretrained import renew, truncate
from anyvla.backbones.adapting.resampler import resampler_among
from anyvla.backbones.base import CAPABILITIES, Cache, ModelPart, capabilities_without
from anyvla.backbones.hooks import written
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.language_config import lacks_of, windows_of
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.sequence.tokens import TokenSequence

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclasses.dataclass(frozen=True)
class Pair:
    """What a backbone is composed of."""

    vision: nn.Module
    language: Any  # a causal language model of `transformers`
    tokenizer: Any
    projector: nn.Module | None = None  # between them; None: the backbone's own


class ComposedBackbone(TokenBackbone):
    """Image features, projected to the width of the language model, stand between its token embeddings.

    Subclasses give `vision` and `language`, and set what follows where it differs.
    """

    Config: ClassVar[type] = Options
    capabilities = frozenset(CAPABILITIES)
    supported_options = frozenset({"pretrained", "layers", "resampler"})
    template = Template()  # how the tokens of a step are written
    image_size: int = 224  # pixels, square; images are scaled to it, whole
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of RGB in 0..1: the tower reads (pixel - mean) / std
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def vision(self, config: Any, pretrained: bool) -> nn.Module:
        """The vision tower, with its weights if `pretrained` (without: they follow from a checkpoint).

        A model of `transformers` is not asked for again: its configuration is saved.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what its vision tower is: define vision()")

    def language(self, config: Any) -> tuple[Any, Any]:
        """The causal language model of `transformers`, with its weights, and its tokenizer."""
        raise NotImplementedError(f"{type(self).__name__} must say what its language model is: define language()")

    def features(self, pixels: Float[Tensor, "N 3 h w"]) -> Tensor:
        """What the tower sees in normalized pixels: tokens (N, T, Dv), or a map (N, Dv, h, w)."""
        seen = self.tower(pixels)
        return getattr(seen, "last_hidden_state", seen)

    def projector(self, given: int, wanted: int) -> nn.Module:
        """From the width of features to that of embeddings: as it is if equal, else two layers (arXiv 2310.03744)."""
        if given == wanted:
            return nn.Identity()
        return nn.Sequential(nn.Linear(given, wanted), nn.GELU(), nn.Linear(wanted, wanted))

    def __init__(self, config: Any, assets: Path | None = None) -> None:
        """Build and load both models or, with `assets`, build them without weights.

        Raises ValueError if the tower gives no tokens, or the tokenizer is another model's.
        """
        super().__init__()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(config.seed)
            pair = self.pair(config, assets)
            self.tower: Any = pair.vision.eval()
            self.model: Any = pair.language
            cut(pair.language, config.layers, pair.vision)
            settings = pair.language.config.get_text_config(decoder=True)
            self.width = settings.hidden_size
            self.context = getattr(settings, "max_position_embeddings", None)
            self.windows = windows_of(settings)
            self.capabilities = self.capabilities & capabilities_without(lacks_of(settings))
            numbers = {"size": self.image_size, "resample": 3, "image_mean": self.mean, "image_std": self.std}
            self.pixels = Pixels(numbers, None)
            for part in (pair.vision, pair.projector) if assets is not None else ():
                for weight in part.parameters() if part is not None else ():
                    weight.zero_()  # what it holds may be no numbers, and code may check for that
            blank = self._seen(torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8))
            self.projection = pair.projector or self.projector(blank.shape[-1], self.width)
            if config.resampler is not None:
                resampler = resampler_among(self.embedding, self.width, config.resampler)
                self.projection = nn.Sequential(self.projection, resampler)
            tokens = self.projection.eval()(blank).shape[1]
        if assets is None:
            renew(self, config.pretrained, config.seed)
        self.to(getattr(torch, config.dtype))
        self._names = frozenset(inspect.signature(self.model.forward).parameters)
        if "position_ids" not in self._names:  # such a model counts keys, padding included
            self.capabilities = self.capabilities & capabilities_without(frozenset({"cache"}))
        # No text has this id, whatever an instruction says: it lies past all that the tokenizer knows.
        image_id = max(self.embedding.weight.shape[0], *pair.tokenizer.get_vocab().values()) + 1
        if image_id - 1 > self.embedding.weight.shape[0]:
            raise ValueError(
                f"the tokenizer knows ids up to {image_id - 1}, but the language model embeds "
                f"{self.embedding.weight.shape[0]}: give the tokenizer that the model was trained with"
            )
        self.train()
        self.set_up(pair.tokenizer, config.prompt, self.template, image_id, (1, tokens))
        self.finish(config)

    def pair(self, config: Any, assets: Path | None) -> Pair:
        """Both models and the tokenizer."""
        if assets is None:
            return Pair(self.vision(config, pretrained=True), *self.language(config))
        saved = (Path(assets) / "vision").is_dir()
        with no_init_weights():  # the caller loads them
            tower = rebuilt(Path(assets) / "vision") if saved else self.vision(config, pretrained=False)
            language = rebuilt(Path(assets) / "language")
        return Pair(tower, language, AutoTokenizer.from_pretrained(Path(assets) / "language", trust_remote_code=False))

    def save_assets(self, folder: Path) -> None:
        """Write `language/` (configuration and tokenizer) and, for a tower of `transformers`, `vision/`."""
        describe(self.model, Path(folder) / "language")
        self.tokenizer.save_pretrained(Path(folder) / "language")
        if known(self.tower):
            describe(self.tower, Path(folder) / "vision")

    def train(self, mode: bool = True) -> Self:
        """As any module, but batch norms keep their statistics: else a sample would depend on its neighbors."""
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        return {
            "vision": (self.tower,),
            "projector": (self.projection,),
            "language": (self.model,),
            "embeddings": (self.embedding,),
        }

    def image_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N T D"]:
        """What stands at the places of the images, N = M * V."""
        return self.projection(self._seen(images))

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.model_cache is None:
            cache.model_cache = DynamicCache()  # of all places: our masks say which of them a window hides
        given = self.language_inputs(sequence, cache)
        given["inputs_embeds"] = self._embedded(sequence)
        del given["input_ids"]
        if "position_ids" not in self._names:
            del given["position_ids"]
        mask = given.get("attention_mask")
        if mask is not None and mask.ndim == 4:  # as numbers: the one form that all language models read alike
            dtype = given["inputs_embeds"].dtype
            given["attention_mask"] = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        self.read(given)

    def read(self, given: dict[str, Any]) -> None:
        """Run the language model over `inputs_embeds` and what else `given` holds."""
        self.model(**given)

    def plain_forward(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """The last hidden states as the model gives them when nothing is written over and its positions are its own."""
        valid = sequence.attention_mask.long()
        with self.capture_hidden_states() as hidden:
            self.read({"inputs_embeds": self._embedded(sequence), "attention_mask": valid, "use_cache": False})
        return hidden[0]

    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue the sequence with `tokens` tokens of text, greedily."""
        return self.model.generate(
            inputs_embeds=self._embedded(sequence),
            attention_mask=sequence.attention_mask.long(),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )[:, -tokens:]

    def _embedded(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """Embeddings of tokens and images. The id of image places has no embedding: another stands for it."""
        here = self.get_image_mask(sequence)
        ids = sequence.input_ids.masked_fill(here, self.pad_id)
        if not len(sequence.images):
            return self.embedding(ids)
        features = self.image_features(sequence.images).flatten(0, 1)
        with written(self.embedding, ids.shape, here.flatten().nonzero().squeeze(1), features):
            return self.embedding(ids)

    def _seen(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N T E"]:
        weight = next(self.tower.parameters())
        pixels = self.pixels(images.flatten(0, 1).to(weight.device)).to(weight.dtype)
        seen = self.features(pixels)
        if seen.ndim == 4:  # a map
            seen = seen.flatten(2).transpose(1, 2)
        if seen.ndim != 3 or len(seen) != len(pixels):
            raise ValueError(
                f"the vision tower gave {tuple(seen.shape)} for {len(pixels)} images: features() must give tokens "
                "(images, tokens, width) or a map (images, width, height, width of the map)"
            )
        return seen


def cut(model: Any, layers: int | None, tower: nn.Module) -> None:
    """Keep the first `layers` layers of a language model. Raises ValueError if it has fewer."""
    whole = model.config.get_text_config(decoder=True).num_hidden_layers
    truncate(model.config, layers)
    if layers is not None and layers < whole:
        seeing = set(tower.modules())
        stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and m not in seeing and len(m) == whole)
        del next(stacks)[layers:]


def known(model: nn.Module) -> bool:
    """Whether `transformers` itself has the class of this model, so that a configuration tells how to build it."""
    return isinstance(model, PreTrainedModel) and getattr(transformers, type(model).__name__, None) is type(model)


def describe(model: Any, folder: Path) -> None:
    """Write the configuration of a model of `transformers`, for `rebuilt`. Raises ValueError for another's."""
    if not known(model):
        raise ValueError(
            f"{type(model).__name__} is no model of transformers, so that a checkpoint cannot say how it is built: "
            "define pair() and save_assets()"
        )
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def rebuilt(folder: Path) -> Any:
    """The model whose configuration `describe` wrote; its weights are not initialized."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or ("",))[0]
    made = getattr(transformers, name, None)
    if not (isinstance(made, type) and issubclass(made, PreTrainedModel)):
        raise ValueError(f"{folder}/config.json names {name!r}, which is no model of transformers")
    model = made(config)
    model.tie_weights()
    return model
