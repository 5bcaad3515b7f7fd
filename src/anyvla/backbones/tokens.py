"""What all backbones that read token ids share: the prompt, a step's tokens, positions, masks, queries.

A subclass says how a sequence runs through its model (`run`) and which modules embed tokens and end the model.
Two do so here: `AutoBackbone` (a whole vision-language model of `transformers`) and `ComposedBackbone` (a vision
tower of any kind before a causal language model of `transformers`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from anyvla.backbones import rereading
from anyvla.backbones.adapting.adapt import add_lora, quantize, train_parts
from anyvla.backbones.adapting.options import Options
from anyvla.backbones.base import Backbone, Cache
from anyvla.backbones.control_tokens import ControlTokens
from anyvla.backbones.hooks import only_at, read_before_head, written
from anyvla.backbones.language_config import EVERYWHERE
from anyvla.backbones.template import Template
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens, TokenSequence
from anyvla.text import check_instruction

CACHED_BLOCKS = 10_000  # instructions whose tokens are kept


# Who sees later places. causal: no one. image: the tokens of one image see each other. prefix: all but the queries see
# all but the queries. full: everyone sees everything (an encoder). image_in_windows: as image in layers whose window is
# limited, as causal in the others. images: all that stands for the images of one step sees each other.
Attention = Literal["causal", "image", "image_in_windows", "images", "prefix", "full"]


class TokenBackbone(Backbone):
    """A backbone over token ids with image places."""

    model: Any  # of `transformers`: what embeds tokens and ends in the LM head
    attention: Attention = "causal"
    # How far back the layers of each kind see, in tokens; None: to the beginning.
    windows: Mapping[str, int | None] = EVERYWHERE
    one_mask: bool = False  # the model takes one mask for layers of all kinds
    additive: bool = False  # masks are added to the scores of attention, as plain ("eager") attention wants them
    first_position: int = 0
    context: int | None = None  # tokens
    supported_options: ClassVar[frozenset[str]] = frozenset()  # which of the options pretrained, layers and resampler
    still: bool = False  # whether the vision tower never trains
    # Modules of the last layer that treat each token by itself: they need to run at the queries only.
    readout_only: tuple[nn.Module, ...] = ()

    def set_up(
        self,
        tokenizer: Any,
        prompt: str,
        template: Template,
        image_id: int,
        rows_of_tokens: tuple[int, int],
        per_camera: int = 1,
    ) -> None:
        """What `tokenize` needs: an image takes so many rows of so many tokens, a camera gives so many images."""
        self.tokenizer, self.image_id = tokenizer, image_id
        self.template = template = template.filled(prompt, tokenizer.bos_token or "")
        self.control = ControlTokens(tokenizer, template.around)
        eos = _first_known(tokenizer.eos_token_id, 0)
        pad, rows = tokenizer.pad_token_id, self.embedding.weight.shape[0]
        self.pad_id = eos if pad is None or pad >= rows else pad  # any token may stand for padding, if it is embedded
        self.query_id = _first_known(getattr(tokenizer, "query_token_id", None), eos)
        self._check_embedded([self.query_id])
        rows, columns = rows_of_tokens
        row, end = [image_id] * columns, self._encode(template.row_end)
        self._rows = [*([*row, *end] * (rows - 1)), *(row if rows else ())]
        self._image = [*self._encode(template.before_image), *self._rows, *self._encode(template.after_image)]
        self._image *= per_camera
        self._per_camera = per_camera
        self._image_text = tokenizer.convert_ids_to_tokens(image_id)
        self.image_tokens = rows * columns * per_camera  # of a camera, without what stands around and between
        self._opening = self._encode(template.opening)
        self._blocks: dict[tuple[str, int], list[int]] = {}  # robot training repeats a few instructions
        self._own: dict[int, Counter[int]] = {}  # control tokens of a step, by its number of views

    def finish(self, options: Options) -> None:
        """Apply the options that all backbones share; the last line of a subclass's constructor.

        Raises ValueError for one that this class does not read.
        """
        for name in ("pretrained", "layers", "resampler"):
            if name not in self.supported_options and getattr(options, name) not in (None, "full"):
                raise ValueError(f"{type(self).__name__} has no option {name}: leave it out")
        train_parts(self, options.train)
        if options.quantize is not None:
            quantize(self, options.quantize)
        if options.lora is not None:
            add_lora(self, options.lora, options.seed)
        self._trains_language = options.train.language and options.quantize is None and options.lora is None
        self.still = not options.train.vision and not (options.lora and options.lora.vision)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; a frozen vision tower stays in eval mode: its running statistics are frozen too."""
        super().train(mode)
        if self.still:
            parts = self.part_modules()
            for part, now in (("vision", False), ("projector", mode)):  # projectors lie inside some towers
                for module in parts[part]:  # type: ignore[index]
                    module.train(now)
        return self

    @property
    def tokens_per_camera(self) -> int:
        """The places that one camera takes in a step: its tiles, and the tokens around and between them, included."""
        return len(self._image)

    @property
    def lm_head(self) -> nn.Module | None:
        """The LM head, if the model has one."""
        return self.model.get_output_embeddings()

    @property
    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Modules on which no readout depends. They belong to no part, but for what they share with one."""
        return () if self.lm_head is None else (self.lm_head,)

    @property
    def embedding(self) -> Any:
        """The module that embeds token ids, (S, L) -> (S, L, D)."""
        return self.model.get_input_embeddings()

    def capture_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        """Where the last hidden states are read, one of `anyvla.backbones.hooks`. Raises ValueError without a head."""
        if self.lm_head is None:
            raise ValueError(f"{type(self).__name__} has no LM head to read before")
        return read_before_head(self.lm_head)

    @abstractmethod
    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        """Run the model over the sequence, images included."""

    def tokenize(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> StepTokens:
        """Tokenize M steps. Raises ValueError for images that are not uint8 (M, V, H, W, 3), and text that is none."""
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 (M, V, H, W, 3) with values 0..255, got {images.dtype} {tuple(images.shape)}; "
                "give RGB frames as the camera does, channels last: the model scales and normalizes them itself"
            )
        if not images.shape[1]:
            raise ValueError(f"images of no camera, {tuple(images.shape)}: give those of one camera at least")
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} steps of images but {len(instructions)} instructions: give one per step")
        views = images.shape[1]
        return StepTokens(self._opening, [self._block(text, views) for text in instructions], images)

    def forward(
        self, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], cache: Cache | None = None
    ) -> Float[Tensor, "M R D"]:
        if cache is not None and "cache" not in self.capabilities:
            return rereading.read(self, sequence, queries, cache)
        each = queries.shape[-2]
        shape = sequence.input_ids.shape
        remembered = 0 if cache is None or cache.valid is None else cache.valid.shape[1]
        if self.context is not None and remembered + shape[1] > self.context:
            raise ValueError(
                f"a sequence of {remembered + shape[1]} tokens exceeds the model's context of {self.context}: "
                "use a shorter window, fewer cameras or shorter instructions"
            )
        places = sequence.query_mask.flatten().nonzero().squeeze(1)
        steps, rest = divmod(len(places), each)
        if queries.ndim == 3 and len(queries) != steps:
            raise ValueError(f"queries of {len(queries)} steps for a sequence with query places of {steps}")
        in_parts = cache is not None and (not steps or not len(sequence.images))  # images first, their queries later
        if rest or (steps != len(sequence.images) and not in_parts):
            raise ValueError(
                f"the sequence has {len(places)} query places, but {len(sequence.images)} steps of {each} "
                f"queries need {len(sequence.images) * each}"
            )
        with ExitStack() as hooks:
            hooks.enter_context(written(self.embedding, shape, places, queries.expand(steps, -1, -1).flatten(0, 1)))
            if self.readout_only and not self._recomputes():
                hooks.enter_context(only_at(self.readout_only, places, shape))
            hidden = hooks.enter_context(self.capture_hidden_states())
            self.run_model(sequence, cache)
        read = hidden[0].flatten(0, 1).index_select(0, places)
        return read.view(steps, each, self.width).to(queries.dtype)

    def get_keys_values(self, cache: Cache) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K d"]]]:
        layers = getattr(cache.model_cache, "past", cache.model_cache).layers
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

    def embed(self, ids: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        return self.embedding(ids)

    def compute_logits(self, hidden: Float[Tensor, "... D"], ids: Int64[Tensor, "n"]) -> Float[Tensor, "... n"]:
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
        """Where the features of images stand."""
        return sequence.input_ids == self.image_id

    def language_inputs(
        self, sequence: TokenSequence, cache: Cache | None, positions: Int64[Tensor, "... S L"] | None = None
    ) -> dict[str, Any]:
        """Ids, positions, attention mask and cache as a language model of `transformers` takes them.

        `positions` are those of a sequence that begins at 0; without them, each place is the next position.
        """
        ids, valid = sequence.input_ids, sequence.attention_mask
        if positions is None:
            # A plain count: right padding goes on counting, which keeps transformers from taking a jump in the count
            # for a packed second sequence.
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        if cache is None:
            given["position_ids"] = positions + self.first_position
        else:
            first = (
                ids.new_full((len(ids),), self.first_position) if cache.next_position is None else cache.next_position
            )
            if sequence.positions is not None:
                given["position_ids"] = sequence.positions.expand(*positions.shape[:-2], -1, -1)
            else:
                given["position_ids"] = positions + first[:, None]
            places = given["position_ids"]
            places = places.amax(tuple(range(places.ndim - 2))) if places.ndim > 2 else places  # (S, L)
            cache.positions = places if cache.positions is None else torch.cat([cache.positions, places], 1)
            cache.next_position = places.masked_fill(~valid, -1).amax(-1) + 1
            valid = valid if cache.valid is None else torch.cat([cache.valid, valid], 1)
            cache.valid = valid
            given["past_key_values"] = cache.model_cache
        cut_off = cache is not None and any(self.windows.values())
        if sequence.block_mask is not None or cut_off or self.attention == "images":
            given["attention_mask"] = self._masks(sequence, valid)
        elif cache is not None or self.attention in ("prefix", "full"):
            given["attention_mask"] = valid.long()
        # Otherwise nothing sees later places, and padding is always later.
        return given

    def _masks(self, sequence: TokenSequence, valid: Bool[Tensor, "S K"]) -> Tensor | dict[str, Tensor]:
        """The mask of all layers or, where the windows are too short to see everything, of each kind of layer."""
        shortest = min((window for window in self.windows.values() if window is not None), default=None)
        same = shortest is None or (valid.shape[1] <= shortest and self.attention != "image_in_windows")
        if same or shortest is None:
            return self._mask(sequence, valid, None)
        if len(self.windows) == 1:
            return self._mask(sequence, valid, shortest)
        if self.one_mask:
            raise ValueError(
                f"{valid.shape[1]} tokens are more than the window of {shortest} that some layers of this model see, "
                "and it takes no mask for them alone: without a cache or a block mask it reads them; or give it "
                "smaller images or fewer cameras"
            )
        return {kind: self._mask(sequence, valid, window) for kind, window in self.windows.items()}

    def _mask(self, sequence: TokenSequence, valid: Bool[Tensor, "S K"], window: int | None) -> Tensor:
        """(S, 1, L, K)."""
        length, keys = sequence.input_ids.shape[1], valid.shape[1]
        place = torch.arange(length, device=valid.device)
        key = torch.arange(keys, device=valid.device) - (keys - length)  # of remembered places: negative
        seen = (key[None] <= place[:, None])[None]  # (1, L, K)
        if window is not None:
            count = valid.cumsum(1)  # of tokens: a window does not reach less far where there is padding
            near = count[:, keys - length :, None] - count[:, None] < window
            seen = seen & near
        if self.attention == "prefix":
            prefix = nn.functional.pad(~sequence.query_mask, (keys - length, 0), value=True)
            seen = seen | (~sequence.query_mask[:, :, None] & prefix[:, None])
        elif self.attention == "image" or (self.attention == "image_in_windows" and window is not None):
            here = self.get_image_mask(sequence)
            image = (here & ~nn.functional.pad(here, (1, 0))[:, :-1]).cumsum(1) * here  # its number, from 1
            same = (image[:, :, None] == image[:, None]) & here[:, None]
            seen = seen | nn.functional.pad(same, (keys - length, 0))
            seen = seen if window is None else seen & near
        elif self.attention == "images":
            here = torch.isin(sequence.input_ids, torch.tensor(self._image, device=place.device))
            same = here[:, :, None] & here[:, None] & (sequence.step_ids[:, :, None] == sequence.step_ids[:, None])
            seen = seen | nn.functional.pad(same, (keys - length, 0))
        elif self.attention == "full":
            seen = torch.ones_like(seen) if window is None else near
        if sequence.block_mask is not None and sequence.block_mask_only:
            seen = sequence.block_mask if window is None else sequence.block_mask & near
        elif sequence.block_mask is not None:
            seen = seen & sequence.block_mask
        itself = (key[None] == place[:, None])[None]  # a row that sees nothing would be NaN
        seen = ((seen & valid[:, None]) | itself)[:, None]
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min) if self.additive else seen

    def _recomputes(self) -> bool:
        return self.training and any(getattr(m, "gradient_checkpointing", False) for m in self.modules())

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        self._check_embedded(ids)
        return ids

    def _check_embedded(self, ids: Sequence[int]) -> None:
        """Raise ValueError for an id that the model does not embed."""
        rows = self.embedding.weight.shape[0]
        wrong = [i for i in ids if not 0 <= i < rows and i != self.image_id]
        if wrong:
            raise ValueError(
                f"the tokenizer has the token {self.tokenizer.convert_ids_to_tokens(wrong[0])!r:.60} (id {wrong[0]}), "
                f"and the model embeds {rows} only: use the tokenizer that belongs to these weights"
            )

    def _in_one(self, texts: list[str], views: int) -> list[int]:
        """A step tokenized as a whole: the tokens at the seams depend on what stands before and after them.

        Empty if the tokenizer does not read the image token where it is written.
        """
        template, images = self.template, views * self._per_camera
        image = f"{template.before_image}{self._image_text}{template.after_image}"
        ids = self._encode(template.opening + image * images + texts[0])
        opening, rest = ids[: len(self._opening)], ids[len(self._opening) :]
        if opening != self._opening or rest.count(self.image_id) != images:
            return []
        rest += [i for text in texts[1:] for i in self._encode(text)]
        return [i for token in rest for i in (self._rows if token == self.image_id else (token,))]

    def _step(self, pieces: list[str], views: int, *, apart: bool) -> tuple[list[int], int]:
        """The tokens of a step whose instruction comes in pieces, and how many of them are text."""
        texts = self.template.written(pieces, apart)
        text = [i for one in texts for i in self._encode(one)]
        return self._in_one(texts, views) or self._image * views + text, len(text)

    def _plain(self, instruction: str, views: int) -> tuple[list[int], int]:
        """As `_step`, with no control token but those that the template writes."""
        if views not in self._own:
            self._own[views] = self.control.count(self._step(["a"], views, apart=False)[0])
        for pieces, apart in self.control.spellings(instruction):
            tokens, text = self._step(pieces, views, apart=apart)
            if self.control.count(tokens) == self._own[views]:
                return tokens, text
        raise ValueError(
            f"the instruction {instruction!r} contains a control token of the model's tokenizer; remove it"
        )

    def _block(self, instruction: str, views: int) -> list[int]:
        key = (instruction, views)
        if key not in self._blocks:
            tokens, text = self._plain(check_instruction(instruction, may_be_empty=True), views)
            if self.context is not None and len(self._opening) + len(tokens) >= self.context:
                raise ValueError(
                    f"one step of {views} cameras and the instruction {instruction[:40]!r} takes "
                    f"{len(self._opening) + len(tokens)} tokens ({text} of them text), and leaves no room for "
                    f"queries in the model's context of {self.context}: use fewer cameras or a shorter instruction"
                )
            if len(self._blocks) >= CACHED_BLOCKS:
                self._blocks.clear()
            self._blocks[key] = tokens
        return self._blocks[key]


def _first_known(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)
