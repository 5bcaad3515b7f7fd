"""Tokenizing steps: the template, the tokens of each camera's image, and the instruction as plain text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyvla.backbones.control_tokens import ControlTokens
from anyvla.backbones.template import Template
from anyvla.sequence.tokens import StepTokens
from anyvla.text import check_instruction

CACHED_INSTRUCTIONS = 10_000  # the most instructions whose tokens are kept: training repeats a few


class StepTokenizer:
    """Turns images and instructions into the tokens of steps; no network runs."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: str,
        template: Template,
        *,
        image_id: int,
        grid: tuple[int, int],
        vocabulary: int,
        context: int | None,
        images_per_camera: int = 1,
        one_image_per_step: bool = False,
        literal_ids: Mapping[str, int] | None = None,
    ) -> None:
        """Tokenize all texts around images and instructions.

        `grid`: rows and columns of an image's tokens. `vocabulary`: the number of ids that the model embeds.
        `context`: its limit in tokens. `one_image_per_step`: one image token represents all cameras. `literal_ids`:
        the ids of template texts that the tokenizer cannot encode itself.

        Raises ValueError for a token that the model does not embed.
        """
        self.tokenizer, self.image_id, self.vocabulary = tokenizer, image_id, vocabulary
        self.context, self.images_per_camera, self.one_image_per_step = context, images_per_camera, one_image_per_step
        self.literal_ids = dict(literal_ids or {})
        self._literals = f"({'|'.join(map(re.escape, self.literal_ids))})"
        self.template = template = template.fill(prompt, tokenizer.bos_token or "")
        self.control = ControlTokens(tokenizer, template.around)
        eos, pad = _first_known(tokenizer.eos_token_id, 0), tokenizer.pad_token_id
        self.pad_id = eos if pad is None or pad >= vocabulary else pad  # any token can pad, if it is embedded
        self.query_id = _first_known(getattr(tokenizer, "query_token_id", None), eos)
        self._check_embedded([self.query_id])
        rows, columns = grid
        row, end = [image_id] * columns, self.encode(template.row_end)
        self._rows = [*([*row, *end] * (rows - 1)), *(row if rows else ())]
        image = [*self.encode(template.before_image), *self._rows, *self.encode(template.after_image)]
        self.camera = image * images_per_camera  # the tokens of a camera, with those around and between its images
        self.image_tokens = rows * columns * images_per_camera  # of a camera, without those around and between
        self._image_text = tokenizer.convert_ids_to_tokens(image_id)
        self._opening = self.encode(template.opening)
        self._cached: dict[tuple[str, int], list[int]] = {}
        self._own: dict[int, Counter[int]] = {}  # control tokens of a step, by its number of views

    def tokenize(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> StepTokens:
        """Tokenize M steps.

        Raises ValueError for images that are not uint8 (M, V, H, W, 3) and for invalid instructions.
        """
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 (M, V, H, W, 3) with values 0..255, got {images.dtype} {tuple(images.shape)}; "
                "give RGB frames as the camera does, channels last: the model scales and normalizes them itself"
            )
        if not images.shape[1]:
            raise ValueError(f"the images {tuple(images.shape)} are of no camera: give at least one camera's")
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} steps of images but {len(instructions)} instructions: give one per step")
        views = 1 if self.one_image_per_step else images.shape[1]
        return StepTokens(self._opening, [self._tokenize_step(text, views) for text in instructions], images)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it.

        Raises ValueError for an id that the model does not embed.
        """
        ids: list[int] = []
        for piece in re.split(self._literals, text) if self.literal_ids else (text,):
            if piece in self.literal_ids:
                ids.append(self.literal_ids[piece])
            elif piece:
                found = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
                self._check_embedded([i for i in found if i != self.image_id])
                ids += found
        return ids

    def _check_embedded(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise ValueError(
                f"the tokenizer has the token {self.tokenizer.convert_ids_to_tokens(wrong)!r:.60} (id {wrong}), "
                f"but the model embeds only {self.vocabulary}: use the tokenizer that belongs to these weights"
            )

    def _tokenize_step(self, instruction: str, views: int) -> list[int]:
        key = (instruction, views)
        if key not in self._cached:
            tokens, text = self._encode_plainly(check_instruction(instruction, may_be_empty=True), views)
            length = len(self._opening) + len(tokens)
            if self.context is not None and length >= self.context:
                raise ValueError(
                    f"one step of {views} cameras and the instruction {instruction[:40]!r} takes {length} tokens "
                    f"({text} of them text), which leaves no room for queries in the model's context of "
                    f"{self.context}: use fewer cameras or a shorter instruction"
                )
            if len(self._cached) >= CACHED_INSTRUCTIONS:
                self._cached.clear()
            self._cached[key] = tokens
        return self._cached[key]

    def _encode_plainly(self, instruction: str, views: int) -> tuple[list[int], int]:
        """Return the tokens of a step and how many are text; control tokens come from the template only."""
        if views not in self._own:
            self._own[views] = self.control.count(self._encode_step(["a"], views, apart=False)[0])
        for pieces, apart in self.control.spellings(instruction):
            tokens, text = self._encode_step(pieces, views, apart=apart)
            if self.control.count(tokens) == self._own[views]:
                return tokens, text
        raise ValueError(
            f"the instruction {instruction!r} contains a control token of the model's tokenizer; remove it"
        )

    def _encode_step(self, pieces: list[str], views: int, *, apart: bool) -> tuple[list[int], int]:
        """Return the tokens of a step whose instruction comes in pieces, and how many are text."""
        texts = self.template.insert(pieces, apart)
        text = [i for one in texts for i in self.encode(one)]
        return self._encode_whole(texts, views) or self.camera * views + text, len(text)

    def _encode_whole(self, texts: list[str], views: int) -> list[int]:
        """Tokenize a step as one text, because tokens at the seams depend on the text on both sides.

        Return an empty list if the tokenizer does not recognize its image token in the text.
        """
        template, images = self.template, views * self.images_per_camera
        image = f"{template.before_image}{self._image_text}{template.after_image}"
        ids = self.encode(template.opening + image * images + texts[0])
        opening, rest = ids[: len(self._opening)], ids[len(self._opening) :]
        if opening != self._opening or rest.count(self.image_id) != images:
            return []
        rest += [i for text in texts[1:] for i in self.encode(text)]
        return [i for token in rest for i in (self._rows if token == self.image_id else (token,))]


def _first_known(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)
