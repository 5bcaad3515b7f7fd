"""Finds weights that were never trained, and gives them random values so that checks of the model are meaningful.

Some families initialize parts to zero (Gemma 3's projector, the gates of Llama 3.2 Vision), others to numbers so small
that little depends on an image. A model with such weights is untrained, not faulty.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import MODEL_PARTS, Backbone

_SMALL = 0.5  # a smaller constant scale hides its branch (layer scale begins at 1e-5 to 0.1)
_SCALES = ("gate", "layer_scale", "lambda", "gamma", "ls1", "ls2")  # names of such scales


def find_untrained_weights(backbone: Backbone) -> Mapping[str, nn.Parameter]:
    """Return the weights that were never trained, by name.

    A part whose norms and biases are all constant is untrained. So are matrices of zeros and gates at zero, except
    LoRA's.
    """
    names = {id(weight): name for name, weight in backbone.named_parameters()}
    own = parameters_by_part(backbone)
    found: dict[str, nn.Parameter] = {}
    untrained = {part for part in MODEL_PARTS if _is_constant(own[part])}
    if "language" in untrained:
        untrained.add("embeddings")
    for part in MODEL_PARTS:
        for weight in own[part]:
            name = names[id(weight)]
            if weight.is_floating_point() and "lora_" not in name and (part in untrained or _is_zero(name, weight)):
                found[name] = weight
    return found


@torch.no_grad()
def randomize_untrained_weights(backbone: Backbone, seed: int = 0) -> None:
    """Give untrained weights random values of a usual size, so that outputs depend on all inputs."""
    convolutions = {
        f"{name}.weight" for name, module in backbone.named_modules() if isinstance(module, nn.modules.conv._ConvNd)
    }
    device = next(backbone.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for name, weight in find_untrained_weights(backbone).items():
            if weight.ndim > 1:
                inputs = weight[0].numel() if name in convolutions else weight.shape[-1]
                weight.normal_(std=0.8 * max(1, inputs) ** -0.5)
            elif _is_scale(name, weight) and bool((weight.abs() < _SMALL).all()):
                weight.fill_(1.0)


def _is_constant(weights: list[nn.Parameter]) -> bool:
    """Return whether the weights include vectors, and each vector repeats one number."""
    vectors = [w for w in weights if w.ndim == 1 and w.numel() > 1]
    return bool(vectors) and all(bool((w == w[0]).all()) for w in vectors)


def _is_zero(name: str, weight: nn.Parameter) -> bool:
    return (weight.ndim > 1 or _is_scale(name, weight)) and not bool(weight.any())


def _is_scale(name: str, weight: nn.Parameter) -> bool:
    last = name.rsplit(".", 1)[-1]
    return weight.ndim == 1 and (weight.numel() == 1 or any(last.startswith(s) or last.endswith(s) for s in _SCALES))
