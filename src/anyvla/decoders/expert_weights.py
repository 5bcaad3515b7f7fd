"""Initialize the expert from pi0's weights (`PI0ForConditionalGeneration` of transformers)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anyvla.decoders.expert import ExpertDecoder


@torch.no_grad()
def load_pi0(expert: ExpertDecoder, weights: Mapping[str, Tensor], proprio: int) -> None:
    """Copy all of pi0's weights except its vision-language model, whose names begin with `model.vlm.`.

    The last `proprio` dims of the expert's context take the weights of pi0's state; the others, the readouts, start at
    zero. Of pi0's padded state and action dims, the first are taken; with as many dims as pi0 has, both models agree.
    Raises ValueError if the sizes do not fit.
    """
    actions, layers = expert.space.size, expert.transformer.layers

    def take(name: str, rows: int | None = None, columns: int | None = None) -> Tensor:
        if name not in weights:
            raise ValueError(f"these are no weights of pi0 with {len(layers)} layers: they have no {name!r}")
        found = weights[name]
        return found[:rows] if found.ndim == 1 else found[:rows, :columns]

    def copy(to: Tensor, value: Tensor, what: str) -> None:
        if to.shape != value.shape:
            raise ValueError(
                f"{what} of pi0 is {tuple(value.shape)}, of this expert {tuple(to.shape)}: give the expert the width, "
                "mlp and heads of pi0, and at most as many action and proprio dims"
            )
        to.copy_(value)

    if f"model.dit.layers.{len(layers)}.mlp.down_proj.weight" in weights:
        raise ValueError(f"pi0 has more layers than the {len(layers)} of this expert: leave its option layers out")
    at = "embed_action_time."
    expert.context.weight.zero_()
    mix = take(at + "action_time_mlp_in.weight")
    width = mix.shape[1] // 2
    copy(expert.context.weight[:, -proprio:], take(at + "state_proj.weight", None, proprio), "the state projection")
    copy(expert.context.bias, take(at + "state_proj.bias"), "the bias of the state projection")
    copy(expert.action.weight, take(at + "action_in_proj.weight", None, actions), "the action projection")
    copy(expert.action.bias, take(at + "action_in_proj.bias"), "the bias of the action projection")
    copy(expert.mix_action.weight, mix[:, :width], "the action half of the MLP")
    copy(expert.mix_time.weight, mix[:, width:], "the time half of the MLP")
    copy(expert.mix_time.bias, take(at + "action_time_mlp_in.bias"), "the bias of the MLP")
    copy(expert.mix.weight, take(at + "action_time_mlp_out.weight"), "the end of the MLP")
    copy(expert.mix.bias, take(at + "action_time_mlp_out.bias"), "the bias of the end of the MLP")
    copy(expert.out.weight, take("action_out_proj.weight", actions), "the output projection")
    copy(expert.out.bias, take("action_out_proj.bias", actions), "the bias of the output projection")
    copy(expert.transformer.norm.weight, take("model.dit.norm.weight") + 1, "the last norm")  # Gemma's begin at 0
    for number, layer in enumerate(layers):
        at = f"model.dit.layers.{number}."
        qkv = torch.cat([take(f"{at}self_attn.{name}_proj.weight") for name in "qkv"])
        gate_up = torch.cat([take(f"{at}mlp.{name}_proj.weight") for name in ("gate", "up")])
        pieces = {
            "qkv": qkv,
            "out": take(at + "self_attn.o_proj.weight"),
            "gate_up": gate_up,
            "down": take(at + "mlp.down_proj.weight"),
            "norm_attention": take(at + "input_layernorm.weight") + 1,
            "norm_mlp": take(at + "post_attention_layernorm.weight") + 1,
        }
        for name, piece in pieces.items():
            copy(layer.get_parameter(f"{name}.weight"), piece, f"{name} of layer {number}")
