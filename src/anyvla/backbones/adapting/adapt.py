"""Adapting a backbone for little: which parts are trained, LoRA, weights in 8 or 4 bits.

Each function changes a backbone in place and keeps the paths of its modules, so that hooks, checkpoints and
`Backbone.part_modules` go on as before.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from anyvla.backbones.adapting.options import Lora, Quantize, Train
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import MODEL_PARTS, Backbone, ModelPart
from anyvla.files.weights import join_first

OUTLIERS = 6.0  # activations that are larger are not multiplied in 8 bits (LLM.int8, section 3.2)
ROUTERS = {"gate", "router", "shared_expert_gate"}  # which expert reads a token: too small and too touchy to adapt


def train_parts(backbone: Backbone, train: Train) -> None:
    """Give gradients to the parts that `train` names, and to no other. An LM head gets none, unless it is tied."""
    backbone.requires_grad_(False)
    for part, weights in parameters_by_part(backbone).items():
        for weight in weights:
            weight.requires_grad_(getattr(train, part) and (weight.is_floating_point() or weight.is_complex()))


def add_lora(backbone: Backbone, lora: Lora, seed: int = 0) -> None:
    """Put low-rank matrices beside linear layers and freeze the parts that they adapt, and the embeddings (LoRA).

    At first they add nothing. They are kept in float32. Raises ImportError without `peft`, and ValueError if no layer
    has a name out of `lora.targets`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'anyvla[lora]'") from error
    parts: tuple[ModelPart, ...] = ("language", "vision") if lora.vision else ("language",)
    layers = linear_layers(backbone, parts)
    targets = [n for n in layers if lora.targets is None or n.rpartition(".")[2] in lora.targets]
    lacking = set(lora.targets or ()) - {n.rpartition(".")[2] for n in targets}
    if lacking or not targets:
        raise ValueError(
            f"lora.targets: no linear layer of {' or '.join(parts)} is called {join_first(lacking)}; "
            f"there are: {join_first({n.rpartition('.')[2] for n in layers}, 20)}"
        )
    frozen = {w for part in (*parts, "embeddings") for w in parameters_by_part(backbone)[part]}
    trained = {w for w in backbone.parameters() if w.requires_grad} - frozen
    peft = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft, backbone)
    for name, weight in backbone.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
        else:
            weight.requires_grad_(weight in trained)


def merge_lora(backbone: Backbone) -> None:
    """Add the matrices of LoRA to the layers beside which they stand, and remove them; for export.

    What the backbone computes stays the same; its structure becomes that of one without `lora`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            backbone.set_submodule(name, layer.get_base_layer())


def linear_layers(backbone: Backbone, parts: tuple[ModelPart, ...] = MODEL_PARTS) -> dict[str, nn.Linear]:
    """The linear layers of some parts by name, but routers, and those whose weight a parent reads by itself."""
    weights = {w for part in parts for w in parameters_by_part(backbone)[part]}
    owned = {id(c) for m in backbone.modules() if isinstance(m, nn.MultiheadAttention) for c in m.children()}
    return {
        name: layer
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.weight in weights
        and id(layer) not in owned
        and name.rpartition(".")[2] not in ROUTERS
    }


def quantize(backbone: Backbone, to: Quantize) -> None:
    """Keep the linear layers of the language model in 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4, arXiv 2305.14314).

    They are frozen; gradients pass through them. Raises ImportError without `bitsandbytes`.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(f"quantize: {to} needs bitsandbytes: pip install 'anyvla[quantize]'") from error
    # It warns at every call of every layer that its kernels compute in half precision.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name, layer in linear_layers(backbone, ("language",)).items():
        backbone.set_submodule(name, _quantized(layer, to, bitsandbytes.nn))
    # peft reads here which layers it finds
    backbone.is_loaded_in_8bit, backbone.is_loaded_in_4bit = to == "int8", to == "int4"  # type: ignore[assignment]


def _quantized(layer: nn.Linear, to: Quantize, bnb: Any) -> nn.Module:
    weight, bias = layer.weight.data, layer.bias
    width = (layer.in_features, layer.out_features, bias is not None)
    if to == "int8":
        from anyvla.backbones.adapting.int8_linear import Int8Linear

        small: Any = Int8Linear(*width, has_fp16_weights=False, threshold=OUTLIERS, device="meta")
        small.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        small = bnb.Linear4bit(*width, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        # Statistics of statistics would save 0.4 bits more, but keep a number outside of the tensors.
        small.weight = bnb.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=False, module=small
        )
        # On CPUs with bfloat16 units it would repack the weights at the first call: rounded for good, so that what is
        # saved afterwards is another model, and only where widths are multiples of its blocks.
        small.support_avx512bf16_for_cpu = False
    small.bias = None if bias is None else nn.Parameter(bias.data, requires_grad=False)
    return small.to(weight.device)  # which quantizes
