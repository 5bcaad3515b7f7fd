"""Any image-text-to-text model of `transformers` as a backbone, through one adapter.

The sequence goes in as token ids with image placeholders; while the model embeds them, a hook writes the queries over
their reserved places. So whatever a family derives from the ids (positions, token types, image places) stays right.
What single families do otherwise is a row of `anyvla.backbones.quirks`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

import anyvla.backbones.nano_vision  # noqa: F401  (registers its model type, so that a saved nano loads here)
from anyvla.backbones.base import Backbone
from anyvla.backbones.pixels import Pixels
from anyvla.backbones.quirks import QUIRKS, extra_inputs, quirk_of
from anyvla.config import STRICT
from anyvla.types import Block, TokenSequence

PREPROCESSOR = "preprocessor_config.json"
CACHED_BLOCKS = 10_000  # instructions whose tokens are kept


def check_prompt(prompt: str) -> None:
    """Raises ValueError for a prompt without a place for the instruction."""
    if "{instruction}" not in prompt:
        raise ValueError(f"the prompt {prompt!r} must contain {{instruction}}, the place of the instruction")


@plain_dataclass(frozen=True)
class Parts:
    """What a backbone is assembled from."""

    model: Any  # a PreTrainedModel, without LM head
    tokenizer: Any
    preprocessor: dict[str, Any]  # the content of preprocessor_config.json


class AutoBackbone(Backbone):
    """A model folder or hub id that `AutoModelForImageTextToText` knows."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Which model, and how it is asked."""

        path: str  # a model folder, or an id of the Hugging Face hub
        revision: str | None = None  # of the hub: a branch, tag or commit
        prompt: str = "What action should the robot take to {instruction}?"  # RoboVLMs' (arXiv 2412.14058)
        dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; autocast is the trainer's business

        def __post_init__(self) -> None:
            check_prompt(self.prompt)

    def __init__(self, config: Any, assets: Path | None = None) -> None:
        """Load the model that `config.path` names or, with `assets`, build its architecture without its weights.

        Raises ValueError if there is no such model, it is not complete, it cannot see, or its family needs a row in
        `anyvla.backbones.quirks` that is not there.
        """
        super().__init__()
        parts = self.parts(config, assets)
        self.model: Any = parts.model
        self.tokenizer = parts.tokenizer
        self.preprocessor = parts.preprocessor
        self.prompt: str = config.prompt
        model_config = self.model.config
        text_config = model_config.get_text_config()
        self.width = text_config.hidden_size
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        self.quirk = quirk_of(model_config.model_type)
        self.capabilities = frozenset({"interleave"} if self.quirk.interleave else ())
        self.pixels = Pixels(parts.preprocessor, _tower_size(model_config))
        self.image_id = self._image_id()
        eos = _first_known(self.tokenizer.eos_token_id, 0)
        self.pad_id = _first_known(self.tokenizer.pad_token_id, eos)
        self.query_id = _first_known(getattr(self.tokenizer, "query_token_id", None), eos)
        self.image_tokens = self._count_image_tokens()
        # Modules of the last layer that treat each token by itself: they need to run at the queries only.
        self.readout_only: tuple[nn.Module, ...] = ()
        self._names = frozenset(inspect.signature(self.model.forward).parameters)
        self._opening = self._encode(self.quirk.opening)
        self._before_image = self._encode(self.quirk.before_image)
        self._after_image = self._encode(self.quirk.after_image)
        self._blocks: dict[tuple[str, int], list[int]] = {}  # robot training repeats a few instructions

    def parts(self, config: Any, assets: Path | None) -> Parts:
        """Read configuration, tokenizer, preprocessing and, without `assets`, weights."""
        source, revision = (config.path, config.revision) if assets is None else (str(assets), None)
        model_config = _read_config(source, revision)
        dtype = getattr(torch, config.dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            if assets is None:
                model = AutoModel.from_pretrained(source, revision=revision, config=model_config, dtype=dtype)
            else:
                with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced by the caller's
                    model = AutoModel.from_config(model_config, dtype=dtype)
        except OSError as error:
            raise ValueError(f"the model at {source!r} is not complete: {error}\n{_fetch(source, revision)}") from error
        return Parts(model, tokenizer, _read_preprocessor(source, revision))

    def prepare(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> Block:
        """Tokenise M steps. Raises ValueError for images that are not uint8 (M, V, H, W, 3)."""
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 (M, V, H, W, 3) with values 0..255, got {images.dtype} {tuple(images.shape)}; "
                "give RGB frames as the camera does, channels last: the model scales and normalises them itself"
            )
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} steps of images but {len(instructions)} instructions: give one per step")
        views = images.shape[1]
        return Block(self._opening, [self._block(text, views) for text in instructions], images)

    def forward(self, sequence: TokenSequence, queries: Float[Tensor, "R D"]) -> Float[Tensor, "M R D"]:
        steps, length = sequence.images.shape[0], sequence.input_ids.shape[1]
        if self.context is not None and length > self.context:
            raise ValueError(
                f"a sequence of {length} tokens exceeds the model's context of {self.context}: "
                "use a shorter window, fewer cameras or shorter instructions"
            )
        places = sequence.query_mask.flatten().nonzero().squeeze(1)
        if len(places) != steps * len(queries):
            raise ValueError(
                f"the sequence has {len(places)} query places, but {steps} steps of {len(queries)} queries need "
                f"{steps * len(queries)}"
            )

        def write_queries(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            values = queries.to(embedded.dtype).repeat(steps, 1)
            return embedded.flatten(0, 1).index_copy(0, places, values).view_as(embedded)

        with ExitStack() as hooks:
            hooks.enter_context(self.model.get_input_embeddings().register_forward_hook(write_queries))
            for module in self.readout_only:
                hooks.enter_context(module.register_forward_pre_hook(_gather(places)))
                hooks.enter_context(module.register_forward_hook(_scatter(places, sequence.input_ids.shape)))
            hidden = self.model(**self._inputs(sequence), use_cache=False).last_hidden_state  # (S, L, D)
        read = hidden.flatten(0, 1).index_select(0, places)
        return read.view(steps, len(queries), self.width).to(queries.dtype)

    def save_assets(self, folder: Path) -> None:
        """Write configuration, tokenizer and image preprocessing, so that the constructor can read them."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(self.preprocessor, indent=2) + "\n", encoding="utf-8")

    def _inputs(self, sequence: TokenSequence) -> dict[str, Tensor]:
        ids = sequence.input_ids
        given: dict[str, Tensor] = {"input_ids": ids, "pixel_values": self._pixel_values(sequence.images)}
        if not self.quirk.causal:
            given["attention_mask"] = sequence.attention_mask
        if "position_ids" in self._names:
            # Right padding: a count from the start is the place among the valid tokens. That it goes on over the
            # padding keeps transformers from taking a jump in the count for a packed second sequence.
            positions = torch.arange(ids.shape[1], device=ids.device) + self.quirk.first_position
            given["position_ids"] = positions.repeat(len(ids), 1)
        return given | extra_inputs(self.quirk, self._names, ids == self.image_id, sequence.query_mask)

    def _pixel_values(self, images: UInt8[Tensor, "M V H W 3"]) -> Tensor:
        pixels = self.pixels(images.flatten(0, 1).to(self.pixels.scale.device))
        pixels = pixels.to(self.model.dtype)
        return pixels[None] if self.quirk.pixels == "nested" else pixels

    def _encode(self, text: str) -> list[int]:
        text = text.replace("{bos}", self.tokenizer.bos_token or "")
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _block(self, instruction: str, views: int) -> list[int]:
        key = (instruction, views)
        if key not in self._blocks:
            prompt = self.prompt.replace("{instruction}", instruction)
            text = self._encode(self.quirk.text.replace("{prompt}", prompt))
            if self.image_id in text:
                raise ValueError(f"the instruction {instruction!r} contains the model's image token; remove it")
            image = [*self._before_image, *[self.image_id] * self.image_tokens, *self._after_image]
            tokens = image * views + text
            if self.context is not None and len(self._opening) + len(tokens) >= self.context:
                raise ValueError(
                    f"one step of {views} cameras and the instruction {instruction[:40]!r} takes "
                    f"{len(self._opening) + len(tokens)} tokens ({len(text)} of them text), and leaves no room for "
                    f"queries in the model's context of {self.context}: use fewer cameras or a shorter instruction"
                )
            if len(self._blocks) >= CACHED_BLOCKS:
                self._blocks.clear()
            self._blocks[key] = tokens
        return self._blocks[key]

    def _image_id(self) -> int:
        token = self.quirk.image_token
        if token is None:
            found = getattr(self.model.config, "image_token_id", None)
        else:
            found = self.tokenizer.get_vocab().get(token)
        if found is None or not hasattr(self.model, "get_image_features"):
            kind = self.model.config.model_type
            raise ValueError(
                f"cannot place images in a {kind!r} model: "
                + (
                    "it has no get_image_features"
                    if found is not None
                    else f"no image token ({token or 'image_token_id'})"
                )
                + f"; this family needs a row of its own in anyvla.backbones.quirks (there are: {', '.join(QUIRKS)})"
            )
        return found

    @torch.no_grad()
    def _count_image_tokens(self) -> int:
        """Tokens per image, counted once on a blank one."""
        training = self.model.training
        self.model.eval()
        features: Any = self.model.get_image_features(
            self._pixel_values(torch.zeros(1, 1, *self.pixels.size, 3, dtype=torch.uint8))
        ).pooler_output
        self.model.train(training)
        return sum(f.numel() // f.shape[-1] for f in features)


def _gather(places: Tensor) -> Callable[..., Tensor]:
    return lambda _module, inputs: inputs[0].flatten(0, 1).index_select(0, places)


def _scatter(places: Tensor, shape: torch.Size) -> Callable[..., Tensor]:
    return lambda _module, _inputs, out: (
        out.new_zeros(shape.numel(), out.shape[-1]).index_copy_(0, places, out).view(*shape, -1)
    )


def _first_known(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)


def _fetch(source: str, revision: str | None) -> str:
    """What to do about a model that is not here."""
    if Path(source).is_dir():
        return "Copy the folder again, whole."
    at = f" --revision {revision}" if revision else ""
    return f"Without a network here, run `hf download {source}{at}` where there is one and give the folder it prints."


def _tower_size(model_config: Any) -> int | None:
    size = getattr(getattr(model_config, "vision_config", None), "image_size", None)
    return size if isinstance(size, int) else None


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
