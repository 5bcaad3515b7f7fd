"""Turns normalized pixels into the arguments that a family of models takes for its images.

Each function is the `image_inputs` of an `anyvla.backbones.families.quirks.Quirk`. It returns arguments of the forward
(and of `get_image_features`), whose shapes its docstring lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from anyvla.sequence.tokens import TokenSequence
from anyvla.transfer import send


@dataclass(frozen=True)
class SequenceImages:
    """N images and the sequences that they belong to."""

    pixels: Float[Tensor, "N 3 h w"]  # all of one size, in the order of their positions
    sequence: TokenSequence
    image_mask: Bool[Tensor, "S L"]  # of image tokens
    config: Any  # of the model
    tokenizer: Any = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)  # the content of preprocessor_config.json
    second_tokenizer: Any = None  # see `Quirk.second_tokenizer`

    def repeat(self, *numbers: int, dtype: torch.dtype = torch.int64) -> Int64[Tensor, "N n"] | Int32[Tensor, "N n"]:
        """Return these numbers once for each image."""
        return send(torch.tensor([numbers], dtype=dtype), self.pixels.device).repeat(len(self.pixels), 1)


def feed_flat(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w)."""
    return {"pixel_values": images.pixels}


def feed_nested(images: SequenceImages) -> dict[str, Tensor]:
    """(1, N, 3, h, w): one sample with every image, as the features are laid out flat anyway."""
    return {"pixel_values": images.pixels[None]}


def feed_one_tile(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 1, 3, h, w): each image has one tile."""
    return {"pixel_values": images.pixels[:, None]}


def feed_one_of_several(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w), as in a prompt of more images than these: none is cut into tiles (LLaVA-OneVision)."""
    return {
        "pixel_values": images.pixels,
        "image_sizes": images.repeat(*images.pixels.shape[2:]),
        "batch_num_images": torch.tensor([len(images.pixels) + 1], device=images.pixels.device),
    }


def feed_beside(images: SequenceImages) -> dict[str, Tensor]:
    """(S, N, 3, h, w), N images per sequence, and (S, L, N): 1 where a position reads an image (Idefics 1).

    Text and queries read all images of their step. Positions between images read the latest one only, which is how the
    model distinguishes cameras: cross-attention has no order.
    """
    each = len(images.pixels) // len(images.sequence.images)
    pixels, own, shown = group_by_sequence(images)
    latest = shown[:, :, None] == torch.arange(1, each + 1, device=shown.device)
    read = latest | ((shown == each) & ~images.image_mask)[:, :, None]
    return {"pixel_values": pixels, "image_attention_mask": (own[..., None] & read[:, :, None]).flatten(2).long()}


def group_by_sequence(
    images: SequenceImages,
) -> tuple[Float[Tensor, "S N 3 h w"], Bool[Tensor, "S L steps"], Int64[Tensor, "S L"]]:
    """Return the N images of each sequence, the step of each position, and the number of that step's images up to it.

    A sequence with fewer steps is padded with images that no position reads.
    """
    step, each = images.sequence.step_ids, len(images.pixels) // len(images.sequence.images)
    steps = step.amax(1) + 1  # of each sequence
    slots = torch.arange(int(steps.max()), device=step.device)
    chosen = ((steps.cumsum(0) - steps)[:, None] + slots).clamp_max(len(images.sequence.images) - 1)
    pixels = images.pixels.unflatten(0, (-1, each))[chosen].flatten(1, 2)
    return pixels, step[:, :, None] == slots, images.image_mask.cumsum(1) - each * step
