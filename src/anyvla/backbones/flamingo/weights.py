"""Translate the names of weights in OpenFlamingo's `checkpoint.pt` to ours.

The original file holds the trained weights (resampler, cross-attention, embeddings) and, depending on the version that
wrote it, frozen layers too; some weights have two names. Only tensors are read: no objects are unpickled.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anyvla.files.tensor_files import join_first

# Parts of names that come from wrappers of the original training.
_WRAPPERS = re.compile(r"^module\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
# Masks and tables that older versions of transformers saved with the weights.
_BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|(self_)?attn\.(masked_)?bias|attention\.(masked_)?bias)$")
# open_clip's vision tower -> transformers'.
_VISION = {
    r"^class_embedding$": "embeddings.class_embedding",
    r"^positional_embedding$": "embeddings.position_embedding.weight",
    r"^conv1\.": "embeddings.patch_embedding.",
    r"^ln_pre\.": "pre_layrnorm.",
    r"^ln_post\.": "post_layernorm.",
    r"^transformer\.resblocks\.(\d+)\.ln_(\d)\.": r"encoder.layers.\1.layer_norm\2.",
    r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.": r"encoder.layers.\1.mlp.fc1.",
    r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.": r"encoder.layers.\1.mlp.fc2.",
    r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.": r"encoder.layers.\1.self_attn.out_proj.",
}
_VISION_QKV = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an original checkpoint, under their original names.

    Raises ValueError if the file is missing, holds anything but tensors, or holds no model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise ValueError(f"no checkpoint at {path}: check the spelling") from error
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors. Nothing else is read, as unpickling a file can run any code: "
            "give the original checkpoint.pt, or load the file where you trust it and save its "
            f"state_dict alone with torch.save ({str(error).splitlines()[0][:200]})"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if state is None or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds no state_dict of a model: expected names and tensors, as checkpoint.pt has")
    return dict(state)


def translate_names(
    state: Mapping[str, Tensor], layers: str, wrapped: Container[int], renamed: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return weights under the names of `FlamingoBackbone`, with `perceiver`, `vision` and `model` at the top.

    `layers`: the name of the language model's layers, such as `transformer.blocks`. `wrapped`: those with
    cross-attention. `renamed`: patterns of the language model's original names, and their replacements. Unknown names
    stay.
    """
    kept = re.escape(layers)
    gated = re.compile(rf"^lang_encoder\.(?:gated_cross_attn_layers\.(\d+)|{kept}\.(\d+)\.gated_cross_attn_layer)\.")
    plain = re.compile(rf"^lang_encoder\.(?:old_decoder_blocks\.(\d+)|{kept}\.(\d+)\.decoder_layer)\.")

    def layer(match: re.Match[str]) -> str:
        number = match[1] or match[2]
        return f"lang_encoder.{layers}.{number}.{'layer.' if int(number) in wrapped else ''}"

    ours: dict[str, Tensor] = {}
    for name, weight in state.items():
        name = _WRAPPERS.sub("", name)
        if _BUFFERS.search(name):
            continue
        if name.startswith("vision_encoder."):
            ours |= {
                f"vision.{k}": v for k, v in _translate_vision(name.removeprefix("vision_encoder."), weight).items()
            }
            continue
        name = gated.sub(lambda m: f"lang_encoder.{layers}.{m[1] or m[2]}.cross.", name)
        name = plain.sub(layer, name)
        if name.startswith("lang_encoder."):
            name = name.removeprefix("lang_encoder.")
            for pattern, new in renamed.items():
                name = re.sub(pattern, new, name)
            name = f"model.{name}"
        ours[name] = weight
    return ours


def check_weights(backbone: nn.Module, weights: Mapping[str, Tensor], required: Container[str], source: str) -> None:
    """Raise ValueError unless `weights`, under our names, fit the backbone and include all `required` ones.

    The error counts names that do not fit, are missing or have weights of another shape, and lists the first ones.
    """
    own = backbone.state_dict()
    unknown = [name for name in weights if name not in own]
    lacking = [name for name in own if name in required and name not in weights]
    other = [
        f"{name} is {tuple(weight.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, weight in weights.items()
        if name in own and weight.shape != own[name].shape
    ]
    faults = {
        "of its names do not fit the model": unknown,
        "weights are missing from it": lacking,
        "weights are of another shape": other,
    }
    if any(faults.values()):
        listed = ". ".join(f"{len(names)} {fault}: {join_first(names)}" for fault, names in faults.items() if names)
        raise ValueError(
            f"{source} is not a checkpoint of this model. {listed}. Give the language model, vision tower "
            "and cross_attention_every with which it was trained (presets 3B, 4B and 9B name those of OpenFlamingo)"
        )


def _translate_vision(name: str, weight: Tensor) -> dict[str, Tensor]:
    if name == "proj":  # projects to the space that CLIP shares with text; the resampler reads earlier features
        return {}
    fused = _VISION_QKV.match(name)
    if fused:
        parts = zip("qkv", weight.chunk(3), strict=True)
        return {f"encoder.layers.{fused[1]}.self_attn.{p}_proj.{fused[2]}": w for p, w in parts}
    if name == "class_embedding":
        weight = weight.flatten()
    for pattern, new in _VISION.items():
        name = re.sub(pattern, new, name)
    return {name: weight}
