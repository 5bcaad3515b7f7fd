"""Which part of a vision-language model a module or a parameter belongs to: vision, projector, language, embeddings.

Models of `transformers` agree on few names for these, which stand in tables here; everything that adapts a backbone
(training by part, LoRA, fresh weights) asks this module only.
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
# Idefics 1 has no module that is the language model: these lie beside the token embedding.
BESIDE_EMBEDDING = {"embeddings", "encoder", "layers", "gated_cross_attn_layers", "norm"}
PROJECTORS_INSIDE = {"merger", "deepstack_merger_list", "connector", "multi_modal_projector", "vision_adapter"}
MORE_EMBEDDINGS = {"embed_tokens_per_layer"}


def find_parts(
    model: nn.Module, embedding: nn.Module, unused_modules: Sequence[nn.Module]
) -> dict[ModelPart, tuple[nn.Module, ...]]:
    """The modules of each part of a model of `transformers`, in the sense of `Backbone.part_modules`."""
    found: dict[ModelPart, list[nn.Module]] = {part: [] for part in MODEL_PARTS}

    def part_of(name: str, module: nn.Module, inside: ModelPart | None, beside: bool) -> ModelPart | None:
        if module is embedding or name in MORE_EMBEDDINGS:
            return "embeddings"
        if inside is None:
            return ROLES.get(name, "language" if beside and name in BESIDE_EMBEDDING else None)
        if inside == "language" and ROLES.get(name) == "vision":  # T5Gemma 2's tower lies inside the encoder
            return "vision"
        return "projector" if inside in ("vision", "language") and name in PROJECTORS_INSIDE else None

    def walk(module: nn.Module, inside: ModelPart | None) -> bool:
        """Whether anything below was found."""
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


def ends_of(language: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """What the last layer of a language model does after attention, to each token by itself: its output projection and
    its feed-forward. Empty where they are not the plain ones of Llama.
    """
    stacks = [m for part in language for name, m in part.named_modules() if name.rpartition(".")[2] == "layers"]
    last = stacks[-1][-1] if stacks and isinstance(stacks[-1], nn.ModuleList) else None
    out, mlp = getattr(getattr(last, "self_attn", None), "o_proj", None), getattr(last, "mlp", None)
    if not isinstance(out, nn.Linear) or not isinstance(mlp, nn.Module):
        return ()
    weights = {name.rpartition(".")[0] for name, _ in mlp.named_parameters()}
    return (out, mlp) if weights == {"gate_proj", "up_proj", "down_proj"} else ()


def parameters_by_part(backbone: Backbone) -> dict[ModelPart, list[nn.Parameter]]:
    """The parameters of each part: each belongs to one part, but to none what no readout depends on (an LM head)."""
    modules = [(m, part) for part, members in backbone.part_modules().items() for m in members]
    modules.sort(key=lambda pair: -sum(1 for _ in pair[0].modules()))  # what contains comes before what it contains
    owner: dict[nn.Parameter, ModelPart] = dict.fromkeys(backbone.parameters(), "projector")
    for module, part in modules:
        owner |= dict.fromkeys(module.parameters(), part)
    for weight in (w for module in getattr(backbone, "unused_modules", ()) for w in module.parameters()):
        if owner.get(weight) != "embeddings":
            owner.pop(weight, None)
    return {part: [w for w, its in owner.items() if its == part] for part in MODEL_PARTS}
