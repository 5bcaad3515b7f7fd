"""Describe a policy for a transfer of weights: the part, shape and meaning of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from anyvla.axes import BACKBONE_LAYER, PROPRIO, READOUT, WIDTH, Axis, Factor, Meaning, axis
from anyvla.backbones.meaning import camera_meaning, settings_by_part, vocabulary_meaning
from anyvla.decoders.token_decoder import TokenDecoder
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.training.parts import PolicyPart, weights_by_part


@dataclass(frozen=True)
class TensorDescription:
    """One tensor of a policy; tied ones are one tensor under several names."""

    names: tuple[str, ...]  # the first is the one to report
    part: PolicyPart
    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[Axis | None, ...]  # None: hidden units
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """A policy as a transfer of weights sees it. It holds no weight."""

    tensors: Mapping[str, TensorDescription]  # by their first name
    embodiment: Embodiment  # of all robots together
    chunk: int
    window: int
    readouts: int
    language: Mapping[str, Any]  # settings of the language model
    vocabulary: Mapping[str, int]  # of the tokenizer
    quantized: Mapping[str, tuple[int, int]]  # linear layers in 8 or 4 bits, by name -> the shape of their weights
    codec: str | None  # its identity; None: continuous actions
    facts: Mapping[str, str]  # further lines of the report, by name


def describe(vla: VLA) -> Description:
    """Return the description of a policy."""
    config = vla.config
    parts = {str(part): settings for part, settings in settings_by_part(vla.backbone).items()}
    meaning = _meaning(vla, parts["language"])
    part_of = _find_parts(vla)
    grouped: dict[tuple[Any, ...], list[str]] = {}
    tensors = vla.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        where = tensor.data_ptr() if isinstance(tensor, torch.Tensor) and tensor.numel() else name
        grouped.setdefault((where, getattr(tensor, "shape", None)), []).append(name)
    found: dict[str, TensorDescription] = {}
    for names in grouped.values():
        name, tensor = names[0], tensors[names[0]]
        part = part_of[name]
        settings = meaning.settings_of(name) | (parts.get(part, {}) if name.startswith("backbone.") else {})
        axes = next((meaning.axes[n] for n in names if n in meaning.axes), (None,) * tensor.ndim)
        found[name] = TensorDescription(tuple(names), part, tuple(tensor.shape), tensor.dtype, axes, settings)
    tokenizer = getattr(vla.backbone, "tokenizer", None)
    return Description(
        tensors=found,
        embodiment=vla.embodiment,
        chunk=config.chunk,
        window=vla.history.kept_steps,
        readouts=config.readouts,
        language=parts["language"],
        vocabulary={} if tokenizer is None else tokenizer.get_vocab(),
        quantized={
            name: (layer.out_features, layer.in_features)
            for name, layer in vla.named_modules()
            if isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()
        },
        codec=None if vla.codec is None else vla.codec.identity(),
        facts={
            "robots": ", ".join(vla.layout.names),
            "cameras": ", ".join(vla.embodiment.cameras),
            "history": f"{config.history.name}, {vla.history.describe()}",
            "proprio": config.proprio,
            "scaling of actions": config.normalization.action,
            "scaling of proprio": config.normalization.proprio,
            "actions per second": f"{vla.embodiment.control_hz:g}",
            "actions executed": str(config.execute),
        },
    )


def _find_parts(vla: VLA) -> dict[str, PolicyPart]:
    """Return the part of each tensor. A buffer belongs to the part of the nearest parameter."""
    parts = {id(weight): part for part, weights in weights_by_part(vla).items() for weight in weights}
    found = {name: parts[id(weight)] for name, weight in vla.named_parameters(remove_duplicate=False)}
    for name in vla.state_dict(keep_vars=True).keys() - found.keys():
        pieces = name.split(".")
        prefixes = (".".join(pieces[:count]) + "." for count in range(len(pieces) - 1, 0, -1))
        near = (other for prefix in prefixes for other in found if other.startswith(prefix))
        found[name] = found[next(near)]
    return found


def _meaning(vla: VLA, language: Mapping[str, Any]) -> Meaning:
    """Return the meaning of all weights of a policy."""
    config, width = vla.config, axis(WIDTH, vla.backbone.width)
    dims = range(vla.embodiment.proprio.size)
    readouts = (Factor(READOUT, range(config.readouts)), Factor(WIDTH, range(vla.backbone.width)))
    features = Axis((readouts, (Factor(PROPRIO, dims),)) if config.proprio == "fuser" else (readouts,))
    of_decoder = vla.decoder.meaning(vla.fuser.context_axis(features)).below("decoder.")
    reading = [name for name, settings in of_decoder.settings.items() if BACKBONE_LAYER in settings]
    of_decoder |= Meaning(settings={name: {f"language {k}": v for k, v in language.items()} for name in reading})
    tokens = vla.decoder if isinstance(vla.decoder, TokenDecoder) else getattr(vla.decoder, "tokens", None)
    ids = vla.decoder.borrowed_ids()
    borrowed = [] if ids is None else ids.tolist()
    symbols = tokens.symbol_axis if borrowed and tokens is not None else None
    return (
        Meaning(
            {
                "queries": (axis(READOUT, config.readouts), width),
                "proprio_embedding.weight": (width, axis(PROPRIO, dims).at_zero()),
                "proprio_embedding.bias": (width,),
            },
            {"fuser.": {"fuser": config.fuser.name}, "decoder.": {"decoder": config.decoder.name}},
        )
        | vocabulary_meaning(vla.backbone, borrowed, symbols).below("backbone.")
        | camera_meaning(vla.backbone).below("backbone.")
        | vla.fuser.meaning(features).below("fuser.")
        | of_decoder
    )
