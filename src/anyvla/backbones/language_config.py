"""Facts about a causal language model that its transformers configuration tells: windows of attention, and gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyvla.backbones.base import Capability

EVERYWHERE: Mapping[str, int | None] = {"full_attention": None}  # layers of one kind, which see to the beginning


def windows_of(config: Any) -> Mapping[str, int | None]:
    """Return how far back the layers of each kind see; None: to the beginning."""
    window = getattr(config, "sliding_window", None)
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or ())
    if window is None or (kinds and "sliding_attention" not in kinds):
        return EVERYWHERE
    return {kind: window if kind == "sliding_attention" else None for kind in kinds or ("sliding_attention",)}


def lacks_of(config: Any) -> frozenset[Capability]:
    """Return which capabilities a language model lacks.

    Convolutions and linear attention hide nothing behind a mask, and their state takes up the padding after a sequence.
    """
    kinds = getattr(config, "layer_types", None) or ()
    recurrent = any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)
    return frozenset({"block_mask", "cache"} if recurrent else ())
