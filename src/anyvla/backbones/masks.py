"""Attention masks: which positions of a sequence, and of those cached before it, each position attends to.

Pure functions of the sequence, the kind of attention and the sliding windows of the layers. S sequences, L positions
of this call, K cached positions and then these L.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from anyvla.sequence.tokens import TokenSequence

# Which later positions are attended to. causal: none. image: the tokens of one image attend to each other. prefix: all
# tokens but the queries attend to each other. full: all attend to all (an encoder). image_in_windows: as `image` in
# layers with a sliding window, as `causal` in the others. images: all tokens of the images of one step, the tokens
# around them included, attend to each other.
Attention = Literal["causal", "image", "image_in_windows", "images", "prefix", "full"]


def as_additive_mask(mask: Any, dtype: torch.dtype) -> Any:
    """Return boolean masks (S, 1, L, K) as numbers to add to attention scores, which all language models accept."""
    if isinstance(mask, dict):  # one for each kind of layer
        return {kind: as_additive_mask(m, dtype) for kind, m in mask.items()}
    if mask.ndim < 4 or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def build_mask(
    sequence: TokenSequence,
    valid: Bool[Tensor, "S K"],
    *,
    attention: Attention,
    window: int | None,
    images: Bool[Tensor, "S L"],
) -> Bool[Tensor, "S 1 L K"]:
    """Return the mask of layers with one sliding window (in tokens; None: unlimited).

    `images`: the image tokens; for the attention `images`, the tokens around them too.
    """
    length, keys = sequence.input_ids.shape[1], valid.shape[1]
    position = torch.arange(length, device=valid.device)
    key = torch.arange(keys, device=valid.device) - (keys - length)  # cached positions are negative
    visible = (key[None] <= position[:, None])[None]  # (1, L, K)
    if window is not None:
        count = valid.cumsum(1)  # in tokens, so that padding does not shorten a window
        near = count[:, keys - length :, None] - count[:, None] < window
        visible = visible & near
    if attention == "prefix":
        prefix = nn.functional.pad(~sequence.query_mask, (keys - length, 0), value=True)
        visible = visible | (~sequence.query_mask[:, :, None] & prefix[:, None])
    elif attention == "image" or (attention == "image_in_windows" and window is not None):
        number = (images & ~nn.functional.pad(images, (1, 0))[:, :-1]).cumsum(1) * images  # of the image, from 1
        same = (number[:, :, None] == number[:, None]) & images[:, None]
        visible = visible | nn.functional.pad(same, (keys - length, 0))
        visible = visible if window is None else visible & near
    elif attention == "images":
        step = sequence.step_ids
        same = images[:, :, None] & images[:, None] & (step[:, :, None] == step[:, None])
        visible = visible | nn.functional.pad(same, (keys - length, 0))
    elif attention == "full":
        visible = torch.ones_like(visible) if window is None else near
    if sequence.block_mask is not None and sequence.block_mask_only:
        visible = sequence.block_mask if window is None else sequence.block_mask & near
    elif sequence.block_mask is not None:
        visible = visible & sequence.block_mask
    itself = (key[None] == position[:, None])[None]  # a row without any visible key would be NaN
    return ((visible & valid[:, None]) | itself)[:, None]
