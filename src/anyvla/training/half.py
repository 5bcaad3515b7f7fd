"""Refuse to train weights in 16 bits: most steps of an optimizer are too small to change them."""

from __future__ import annotations

import torch

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.config import ConfigError
from anyvla.policy import VLA

HALF = (torch.bfloat16, torch.float16)


def check_trained_weights(vla: VLA) -> None:
    """Raise ConfigError, with the remedies, if weights that would be trained are kept in 16 bits.

    bfloat16 has 8 bits of mantissa: at a learning rate of 2e-5 about 70 % of typical weights never move in 100 steps.
    """
    trained = {p for p in vla.parameters() if p.requires_grad and p.dtype in HALF}
    if not trained:
        return
    kind = str(next(iter(trained)).dtype).removeprefix("torch.")
    parts = [part for part, of in parameters_by_part(vla.backbone).items() if not trained.isdisjoint(of)]
    freeze = " ".join(f"--model.backbone.train.{part} false" for part in parts)
    raise ConfigError(
        f"{len(trained)} weights that would be trained ({', '.join(parts) or 'of the policy'}) are kept in {kind}, "
        "which is too coarse for the steps of an optimizer: most of them would never move. Keep them in float32 with "
        "--model.backbone.dtype float32 (training.precision still computes in bfloat16 where that is fast)"
        + (f", or freeze them with {freeze}; adapters of model.backbone.lora are always float32" if freeze else "")
    )
