"""Any image-text-to-text model of `transformers` as a backbone, through one adapter.

The sequence goes in as token ids with image placeholders; while the model embeds them, a hook writes the queries over
their reserved places, and another takes what the LM head would read. So whatever a family derives from the ids
(positions, token types, image places) stays right. What single families do otherwise is a row of
`anyvla.backbones.quirks`.
"""

from __future__ import annotations

import inspect
import json
import re
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
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
)
from transformers.initialization import no_init_weights
from transformers.utils import cached_file

import anyvla.backbones.nano_vision  # noqa: F401  (registers its model type, so that a saved nano loads here)
from anyvla.backbones.base import CAPABILITIES, Cache, Capability
from anyvla.backbones.options import Options
from anyvla.backbones.pixels import Pixels
from anyvla.backbones.quirks import QUIRKS, Quirk, quirk_of
from anyvla.backbones.tokens import TokenBackbone
from anyvla.backbones.unsupported import UNSUPPORTED
from anyvla.backbones.vision_inputs import Images
from anyvla.config import STRICT
from anyvla.types import TokenSequence

PREPROCESSOR = "preprocessor_config.json"
ANY_SIZE = 224  # pixels; what an image is scaled to by default where the tower takes any size


@plain_dataclass(frozen=True)
class Parts:
    """What a backbone is assembled from."""

    model: Any  # a PreTrainedModel with its LM head
    tokenizer: Any
    preprocessor: dict[str, Any]  # the content of preprocessor_config.json


class AutoBackbone(TokenBackbone):
    """A model folder or hub id that `AutoModelForImageTextToText` knows."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """Which model, and how it is asked."""

        path: str  # a model folder, or an id of the Hugging Face hub
        revision: str | None = None  # of the hub: a branch, tag or commit
        image_size: int | None = Field(default=None, ge=1)  # pixels, square; None: the tower's own

    def __init__(self, config: Any, assets: Path | None = None) -> None:
        """Load the model that `config.path` names or, with `assets`, build its architecture without its weights.

        Raises ValueError if there is no such model, it is not complete, it cannot see, or its family needs a row in
        `anyvla.backbones.quirks` that is not there.
        """
        super().__init__()
        parts = self.parts(config, assets)
        self.model: Any = parts.model
        self.preprocessor = parts.preprocessor
        text_config = self.model.config.get_text_config()
        self.width = text_config.hidden_size
        self.context = getattr(text_config, "max_position_embeddings", None)
        self.quirk = quirk_of(self.model.config.model_type)
        self.attention = self.quirk.attention
        self.first_position = self.quirk.first_position
        self.capabilities = frozenset(CAPABILITIES) - self.quirk.lacks
        self._names = frozenset(inspect.signature(self.model.forward).parameters)
        self._rope_index = _method(self.model, "get_rope_index")
        self._get_features = _method(self.model, "get_image_features")
        exact = exact_size(self.quirk, self.model.config, getattr(config, "image_size", None))
        self.pixels = Pixels(parts.preprocessor, _tower_size(self.model.config), exact)
        image_id = self._image_id(parts.tokenizer)
        self.set_up(parts.tokenizer, config.prompt, self.quirk.template, image_id, self._grid(image_id))
        self.finish(config)

    @classmethod
    def capabilities_of(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """What the family can do; of the model, only its config.json is read."""
        declared = super().capabilities_of(config, assets)
        if declared is not None:
            return declared
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        return frozenset(CAPABILITIES) - quirk_of(_read_config(source, revision).model_type).lacks

    def parts(self, config: Any, assets: Path | None) -> Parts:
        """Read configuration, tokenizer, preprocessing and, without `assets`, weights."""
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = _read_config(source, revision)
        dtype = getattr(torch, config.dtype)
        auto = AutoModelForImageTextToText
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            if assets is None:
                model = auto.from_pretrained(source, revision=revision, config=model_config, dtype=dtype)
            else:
                with no_init_weights():  # the caller loads them
                    model = auto.from_config(model_config, dtype=dtype)
                model.tie_weights()
        except OSError as error:
            raise ValueError(f"the model at {source!r} is not complete: {error}\n{_fetch(source, revision)}") from error
        except ImportError as error:
            raise ValueError(_lacking_package(source, error)) from error
        return Parts(model, tokenizer, _read_preprocessor(source, revision))

    @property
    def embedding(self) -> nn.Module:
        return self.model.get_input_embeddings()

    @property
    def head(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    def run(self, sequence: TokenSequence, cache: Cache | None) -> None:
        if cache is not None and cache.state is None:
            cache.state = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        given = self._image_inputs(sequence)
        positions = None if self._rope_index is None else self._rope_positions(sequence, given)
        given |= self.language_inputs(sequence, cache, positions)
        if "position_ids" not in self._names:
            del given["position_ids"]
        self.model(**given)

    def plain(self, sequence: TokenSequence) -> Float[Tensor, "S L D"]:
        """The last hidden states as the model gives them when nothing is written over and its positions are its own."""
        given = self._image_inputs(sequence)
        with self.reading() as hidden:
            self.model(input_ids=sequence.input_ids, attention_mask=sequence.attention_mask.long(), **given)
        return hidden[0]

    def generate(self, sequence: TokenSequence, tokens: int) -> Int64[Tensor, "S n"]:
        """Continue the sequence with `tokens` tokens of text, greedily."""
        given = self._image_inputs(sequence)
        valid = sequence.attention_mask.long()
        ids = sequence.input_ids
        written = self.model.generate(
            input_ids=ids, attention_mask=valid, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, **given
        )
        return written[:, -tokens:]

    def save_assets(self, folder: Path) -> None:
        """Write configuration, tokenizer and image preprocessing, so that the constructor can read them."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(self.preprocessor, indent=2) + "\n", encoding="utf-8")

    def _image_inputs(self, sequence: TokenSequence) -> dict[str, Any]:
        images = self._images(sequence)
        given: dict[str, Any] = dict(self.quirk.vision(images)) if len(sequence.images) else {}
        return given | {name: make(images) for name, make in self.quirk.extras.items() if name in self._names}

    def _images(self, sequence: TokenSequence) -> Images:
        pixels = self._pixel_values(sequence.images)
        return Images(pixels, sequence, self.places_of_images(sequence), self.model.config)

    def _pixel_values(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N 3 h w"]:
        return self.pixels(images.flatten(0, 1).to(self.pixels.scale.device)).to(self.model.dtype)

    def _rope_positions(self, sequence: TokenSequence, given: dict[str, Any]) -> Tensor:
        """Positions (3, S, L) in time, height and width (M-RoPE). The model must not remember its own of before."""
        core = self._rope_index.__self__
        core.rope_deltas = None
        if not len(sequence.images):
            return torch.arange(sequence.input_ids.shape[1], device=sequence.input_ids.device).expand(3, 1, -1)
        names = inspect.signature(self._rope_index).parameters
        known = {k: v for k, v in given.items() if k in names}
        positions, _ = self._rope_index(
            input_ids=sequence.input_ids, attention_mask=sequence.attention_mask.long(), **known
        )
        return positions

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
                f"in anyvla.backbones.quirks (there are: {', '.join(QUIRKS)})"
            )
        return found

    @torch.no_grad()
    def _grid(self, image_id: int) -> tuple[int, int]:
        """Rows and columns of an image's tokens; counted once on a blank one where the table does not say."""
        if self.quirk.grid is not None:
            return self.quirk.grid(self.model.config, self.pixels.size)
        training = self.model.training
        self.model.eval()
        one = torch.full((1, 1), image_id)
        yes = torch.ones(1, 1, dtype=torch.bool)
        blank = torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8)
        sequence = TokenSequence(one, yes, ~yes, one * 0, blank)
        pixels = self._pixel_values(blank)
        given = self.quirk.vision(Images(pixels, sequence, yes, self.model.config))
        names = inspect.signature(self._get_features).parameters
        features = self._get_features(**{k: v for k, v in given.items() if k in names}).pooler_output
        self.model.train(training)
        return 1, sum(f.numel() // f.shape[-1] for f in features)


def exact_size(quirk: Quirk, config: Any, asked: int | None) -> int | None:
    """The side in pixels to scale images to where the family leaves the choice; None: its own size.

    Raises ValueError if `asked` is a size that the tower does not take.
    """
    if quirk.multiple is None:
        own = _tower_size(config)
        if asked not in (None, own):
            raise ValueError(
                f"a {config.model_type!r} model reads images of its own size only ({own} pixels), not {asked}: "
                "leave image_size out"
            )
        return None
    step = quirk.multiple(config)
    if asked is not None and asked % step:
        raise ValueError(f"image_size must be a multiple of {step} for a {config.model_type!r} model, got {asked}")
    return asked or -(-ANY_SIZE // step) * step


def _method(model: Any, name: str) -> Any:
    """The model's own method, or that of its trunk (some families have it there only)."""
    trunk = getattr(model, "model", None)
    return getattr(model, name, None) or getattr(trunk, name, None)


def _fetch(source: str, revision: str | None) -> str:
    """What to do about a model that is not here."""
    if Path(source).is_dir():
        return "Copy the folder again, whole."
    at = f" --revision {revision}" if revision else ""
    return f"Without a network here, run `hf download {source}{at}` where there is one and give the folder it prints."


def _tower_size(model_config: Any) -> int | None:
    size = getattr(getattr(model_config, "vision_config", None), "image_size", None)
    return size if isinstance(size, int) else None


def _lacking_package(source: str, error: ImportError) -> str:
    """A few families take parts from other libraries, such as the vision towers of Gemma 3n and FastVLM from timm."""
    text = " ".join(str(error).split())
    named = re.search(r"requires the (\w+) library", text)
    package = named[1] if named else error.name
    if package is None:
        return f"the model at {source!r} needs a package that is not here: {text}"
    return (
        f"the model at {source!r} needs the package {package}, which neither anyvla nor most models do: "
        f"`pip install {package}`, or choose another model ({text})"
    )


def _read_config(source: str, revision: str | None) -> Any:
    """The model's configuration. Raises ValueError, with the way out, if there is none or the model cannot see."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} holds no config.json: give a folder that `save_pretrained` or `hf download` wrote")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        raise ValueError(
            f"no model at {source!r}: it is neither a folder here nor readable from the hub or its local cache. "
            f"Check the spelling. {_fetch(source, revision)}"
        ) from error
    except ImportError as error:
        raise ValueError(_lacking_package(source, error)) from error
    if config.model_type in UNSUPPORTED:
        raise ValueError(f"{source} is a {config.model_type!r} model, which {UNSUPPORTED[config.model_type]}")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{source} is a {config.model_type!r} model, which does not read images with text: "
            "choose one that AutoModelForImageTextToText knows (LLaVA, PaliGemma, SmolVLM, KosMos-2, ...)"
        )
    return config


def _read_preprocessor(source: str, revision: str | None) -> dict[str, Any]:
    """The image preprocessing, from either of the files in which transformers keeps it."""
    for name in (PREPROCESSOR, "processor_config.json"):
        path = cached_file(
            source, name, revision=revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            content = content.get("image_processor", content)
            if "image_mean" in content or "size" in content:
                return content
    raise ValueError(
        f"{source} has no {PREPROCESSOR} that says how its images are scaled: copy that file from the model it was "
        f"trained from. {_fetch(source, revision)}"
    )
