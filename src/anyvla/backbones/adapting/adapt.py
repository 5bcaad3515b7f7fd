"""Adapts a backbone cheaply: selects the trained parts, adds LoRA, quantizes weights to 8 or 4 bits.

Each function changes a backbone in place and keeps the paths of its modules, so that hooks, checkpoints and
`Backbone.part_modules` continue to work.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from anyvla.backbones.adapting.architecture_only import QuantizedShape, builds_architecture_only
from anyvla.backbones.adapting.options import Lora, Quantize, Train
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.base import MODEL_PARTS, Backbone, ModelPart
from anyvla.files.tensor_files import join_first

OUTLIERS = 6.0  # larger activations are not multiplied in 8 bits (LLM.int8, section 3.2)
ROUTERS = {"gate", "router", "shared_expert_gate"}  # they choose the experts: small and sensitive


def train_parts(backbone: Backbone, train: Train) -> None:
    """Enable gradients for exactly the parts that `train` names. An LM head gets none, unless it is tied."""
    backbone.requires_grad_(False)
    for part, weights in parameters_by_part(backbone).items():
        for weight in weights:
            weight.requires_grad_(getattr(train, part) and (weight.is_floating_point() or weight.is_complex()))


def add_lora(backbone: Backbone, lora: Lora, seed: int = 0) -> None:
    """Add low-rank matrices to linear layers (LoRA); freeze the parts that they adapt and the embeddings.

    The matrices are float32 and initially add nothing. Raises ImportError without `peft`, and ValueError if no layer
    has a name in `lora.targets`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'anyvla[lora]'") from error
    parts: tuple[ModelPart, ...] = ("language", "vision") if lora.vision else ("language",)
    layers = find_linear_layers(backbone, parts)
    targets = [n for n in layers if lora.targets is None or n.rpartition(".")[2] in lora.targets]
    missing = set(lora.targets or ()) - {n.rpartition(".")[2] for n in targets}
    if missing or not targets:
        raise ValueError(
            f"lora.targets: no linear layer of {' or '.join(parts)} is called {join_first(missing)}; "
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
    """Merge the matrices of LoRA into their layers, for export.

    The outputs stay the same; the structure becomes the same as without `lora`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            backbone.set_submodule(name, layer.get_base_layer())


def find_linear_layers(backbone: Backbone, parts: tuple[ModelPart, ...] = MODEL_PARTS) -> dict[str, nn.Linear]:
    """Return the linear layers of some parts by name, except routers and layers whose parent uses the weight itself."""
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
    """Quantize the language model's linear layers to 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4, arXiv 2305.14314).

    They are frozen; gradients pass through them. Raises ImportError without `bitsandbytes`.
    """
    if builds_architecture_only():
        for name, layer in find_linear_layers(backbone, ("language",)).items():
            backbone.set_submodule(name, QuantizedShape(layer, to))
        return
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(f"quantize: {to} needs bitsandbytes: pip install 'anyvla[quantize]'") from error
    # bitsandbytes warns at every call of every layer that its kernels compute in half precision.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name, layer in find_linear_layers(backbone, ("language",)).items():
        backbone.set_submodule(name, _quantize_layer(layer, to, bitsandbytes.nn))
    # peft reads the kind of the layers from these attributes
    backbone.is_loaded_in_8bit, backbone.is_loaded_in_4bit = to == "int8", to == "int4"  # type: ignore[assignment]


@torch.no_grad()
def set_quantized(layer: nn.Linear, weight: Tensor, to: Quantize) -> None:
    """Quantize a weight and store it in a quantized layer. The layer stays: hooks may hold it."""
    import bitsandbytes

    whole = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    whole.weight = nn.Parameter(weight.to(layer.weight.device))
    kept = layer.state_dict(keep_vars=True)
    for name, tensor in _quantize_layer(whole, to, bitsandbytes.nn).state_dict().items():
        kept[name].copy_(tensor)


def _quantize_layer(layer: nn.Linear, to: Quantize, bnb: Any) -> nn.Module:
    weight, bias = layer.weight.data, layer.bias
    width = (layer.in_features, layer.out_features, bias is not None)
    if to == "int8":
        from anyvla.backbones.adapting.int8_linear import Int8Linear

        small: Any = Int8Linear(*width, has_fp16_weights=False, threshold=OUTLIERS, device="meta")
        small.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        small = bnb.Linear4bit(*width, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        # Compressed statistics would save another 0.4 bits, but keep a number outside the tensors.
        small.weight = bnb.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=False, module=small
        )
        # On CPUs with bfloat16 units bitsandbytes would repack the weights at the first call. That rounds them for
        # good, so a model saved afterwards would differ, and only works if widths are multiples of its blocks.
        small.support_avx512bf16_for_cpu = False
    small.bias = None if bias is None else nn.Parameter(bias.data, requires_grad=False)
    return small.to(weight.device)  # quantizes
