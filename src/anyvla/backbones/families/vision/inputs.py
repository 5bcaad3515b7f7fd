"""From normalized pixels to the arguments under which a family of models takes its images.

Each function takes `SequenceImages` and returns arguments of the forward (and of its `get_image_features`). A row of
`anyvla.backbones.families.quirks` names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anyvla.sequence.tokens import TokenSequence


@dataclass(frozen=True)
class SequenceImages:
    """N images and the sequences that they belong to."""

    pixels: Float[Tensor, "N 3 h w"]  # all of one size, in the order of their places
    sequence: TokenSequence
    image_mask: Bool[Tensor, "S L"]  # of image tokens
    config: Any  # of the model
    tokenizer: Any = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)  # the content of preprocessor_config.json
    second_tokenizer: Any = None  # of what the vision side reads (`Quirk.second_tokenizer`)


def flat(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w)."""
    return {"pixel_values": images.pixels}


def nested(images: SequenceImages) -> dict[str, Tensor]:
    """(1, N, 3, h, w): one sample that holds every image, as the features are laid out flat anyway."""
    return {"pixel_values": images.pixels[None]}


def one_tile(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 1, 3, h, w): each image is its own only tile."""
    return {"pixel_values": images.pixels[:, None]}


def one_of_several(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w), as in a prompt of more images than these, of which none is cut into tiles (LLaVA-OneVision)."""
    n, _, h, w = images.pixels.shape
    size = torch.tensor([[h, w]], device=images.pixels.device)
    return {
        "pixel_values": images.pixels,
        "image_sizes": size.repeat(n, 1),
        "batch_num_images": torch.tensor([n + 1], device=images.pixels.device),
    }


def beside(images: SequenceImages) -> dict[str, Tensor]:
    """(S, N, 3, h, w), N images a sequence, and (S, L, N): 1 where a place reads an image (Idefics 1).

    Text and queries read all images of their step. Places amid these read the latest only: as cross-attention knows no
    order, that is what tells the cameras apart.
    """
    each = len(images.pixels) // len(images.sequence.images)
    pixels, own, shown = by_sequence(images)
    latest = shown[:, :, None] == torch.arange(1, each + 1, device=shown.device)
    read = latest | ((shown == each) & ~images.image_mask)[:, :, None]
    return {"pixel_values": pixels, "image_attention_mask": (own[..., None] & read[:, :, None]).flatten(2).long()}


def by_sequence(
    images: SequenceImages,
) -> tuple[Float[Tensor, "S N 3 h w"], Bool[Tensor, "S L steps"], Int64[Tensor, "S L"]]:
    """The N images of each sequence; which step a place belongs to; how many of that step's images come up to there.

    A sequence of fewer steps is filled up with images that no place reads.
    """
    step, each = images.sequence.step_ids, len(images.pixels) // len(images.sequence.images)
    steps = step.amax(1) + 1  # of each sequence
    slots = torch.arange(int(steps.max()), device=step.device)
    which = ((steps.cumsum(0) - steps)[:, None] + slots).clamp_max(len(images.sequence.images) - 1)
    pixels = images.pixels.unflatten(0, (-1, each))[which].flatten(1, 2)
    return pixels, step[:, :, None] == slots, images.image_mask.cumsum(1) - each * step
