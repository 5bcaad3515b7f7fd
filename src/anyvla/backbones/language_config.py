"""Facts about a causal language model from its transformers configuration: sliding windows and missing capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyvla.backbones.base import Capability

EVERYWHERE: Mapping[str, int | None] = {"full_attention": None}  # one kind of layers, without a sliding window


def find_windows(config: Any) -> Mapping[str, int | None]:
    """Return the sliding window of each kind of layer, in tokens; None: unlimited."""
    window = getattr(config, "sliding_window", None)
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or ())
    if window is None or (kinds and "sliding_attention" not in kinds):
        return EVERYWHERE
    return {kind: window if kind == "sliding_attention" else None for kind in kinds or ("sliding_attention",)}


def find_missing_capabilities(config: Any) -> frozenset[Capability]:
    """Return the capabilities that a language model lacks.

    Masks do not apply to convolutions and linear attention, and their state includes the padding after a sequence.
    """
    kinds = getattr(config, "layer_types", None) or ()
    recurrent = any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)
    return frozenset({"block_mask", "cache"} if recurrent else ())
