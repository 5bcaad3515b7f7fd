"""From normalised pixels to the arguments under which a family of models takes its images.

Each function takes `Images` and gives arguments of the model's forward (and of its `get_image_features`). A row of
`anyvla.backbones.quirks` names one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from anyvla.types import TokenSequence


@dataclass(frozen=True)
class Images:
    """N images and the sequences in which they stand."""

    pixels: Float[Tensor, "N 3 h w"]  # all of one size, in the order of their places
    sequence: TokenSequence
    places: Bool[Tensor, "S L"]  # of image tokens
    config: Any  # of the model


def flat(images: Images) -> dict[str, Tensor]:
    """(N, 3, h, w)."""
    return {"pixel_values": images.pixels}


def nested(images: Images) -> dict[str, Tensor]:
    """(1, N, 3, h, w): one sample that holds every image, as the features are laid out flat anyway."""
    return {"pixel_values": images.pixels[None]}
