"""Padding of chunks whose last actions are missing because the episode ended."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def pad_with_last_action(chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None) -> Float[Tensor, "M N A"]:
    """Return chunks whose missing actions (always at the end) repeat the last action; zeros without any action."""
    if mask is None:
        return chunks
    last = (mask.sum(1) - 1).clamp(min=0)
    place = torch.minimum(torch.arange(chunks.shape[1], device=chunks.device), last[:, None])  # (M, N)
    out = chunks.gather(1, place[..., None].expand_as(chunks))
    return out * mask.any(1)[:, None, None]
