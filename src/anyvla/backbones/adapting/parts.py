"""Assigns modules and parameters of a vision-language model to its parts: vision, projector, language, embeddings.

The tables list the names that models of `transformers` use. Everything that adapts a backbone (training by part, LoRA,
reinitialized weights) uses this module.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from anyvla.backbones.base import MODEL_PARTS, Backbone, ModelPart

ROLES: dict[str, ModelPart] = {
    **dict.fromkeys(("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder"), "vision"),
    **dict.fromkeys(("image_tower", "video_tower", "high_res_vision_model", "vision_embed_tokens"), "vision"),
    **dict.fromkeys(("vqmodel", "audio_tower"), "vision"),
    **dict.fromkeys(("patch_dense", "patch_ln1", "patch_ln2", "pos_norm"), "vision"),  # Gemma 4 without a tower
    **dict.fromkeys(("language_model", "text_model", "text_decoder"), "language"),
    "qformer": "projector",
}
# Idefics 1 has no module for the language model: these modules are siblings of the token embedding.
BESIDE_EMBEDDING = {"embeddings", "encoder", "layers", "gated_cross_attn_layers", "norm"}
PROJECTORS_INSIDE = {"merger", "deepstack_merger_list", "connector", "multi_modal_projector", "vision_adapter"}
MORE_EMBEDDINGS = {"embed_tokens_per_layer"}


def find_part_modules(
    model: nn.Module, embedding: nn.Module, unused_modules: Sequence[nn.Module]
) -> dict[ModelPart, tuple[nn.Module, ...]]:
    """Return the modules of each part of a model of `transformers`, as `Backbone.part_modules` defines them."""
    found: dict[ModelPart, list[nn.Module]] = {part: [] for part in MODEL_PARTS}

    def part_of(name: str, module: nn.Module, inside: ModelPart | None, beside: bool) -> ModelPart | None:
        if module is embedding or name in MORE_EMBEDDINGS:
            return "embeddings"
        if inside is None:
            return ROLES.get(name, "language" if beside and name in BESIDE_EMBEDDING else None)
        if inside == "language" and ROLES.get(name) == "vision":  # the encoder of T5Gemma 2 contains its tower
            return "vision"
        return "projector" if inside in ("vision", "language") and name in PROJECTORS_INSIDE else None

    def walk(module: nn.Module, inside: ModelPart | None) -> bool:
        """Return whether any part was found below the module."""
        any_found, beside = False, any(m is embedding for m in module.modules())
        for name, child in module.named_children():
            if child in unused_modules:
                continue
            part = part_of(name, child, inside, beside)
            if part is not None:
                found[part].append(child)
            below = walk(child, part or inside)
            if part is None and inside is None and not below and any(True for _ in child.parameters()):
                found["projector"].append(child)  # between the towers
                below = True
            any_found |= part is not None or below
        return any_found

    walk(model, None)
    return {part: tuple(modules) for part, modules in found.items()}


def find_position_wise_modules(language: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the modules after the last layer's attention that process each token by itself.

    These are its output projection and its feed-forward; none if they are not the plain modules of Llama.
    """
    stacks = [m for part in language for name, m in part.named_modules() if name.rpartition(".")[2] == "layers"]
    last = stacks[-1][-1] if stacks and isinstance(stacks[-1], nn.ModuleList) else None
    out, mlp = getattr(getattr(last, "self_attn", None), "o_proj", None), getattr(last, "mlp", None)
    if not isinstance(out, nn.Linear) or not isinstance(mlp, nn.Module):
        return ()
    weights = {name.rpartition(".")[0] for name, _ in mlp.named_parameters()}
    return (out, mlp) if weights == {"gate_proj", "up_proj", "down_proj"} else ()


def parameters_by_part(backbone: Backbone) -> dict[ModelPart, list[nn.Parameter]]:
    """Return the parameters of each part. Every parameter belongs to exactly one part.

    Parameters that no readout depends on, such as the LM head, belong to none.
    """
    modules = [(m, part) for part, members in backbone.part_modules().items() for m in members]
    modules.sort(key=lambda pair: -sum(1 for _ in pair[0].modules()))  # outer modules before the modules inside them
    owner: dict[nn.Parameter, ModelPart] = dict.fromkeys(backbone.parameters(), "projector")
    for module, part in modules:
        owner |= dict.fromkeys(module.parameters(), part)
    for weight in (w for module in getattr(backbone, "unused_modules", ()) for w in module.parameters()):
        if owner.get(weight) != "embeddings":
            owner.pop(weight, None)
    return {part: [w for w, its in owner.items() if its == part] for part in MODEL_PARTS}
