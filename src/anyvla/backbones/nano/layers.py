"""The layers of a Llama with fewer and cheaper operations than in `transformers`, for models whose layers are small.

`simplify_layers` changes the classes of a model's layers and norms. Names and weights stay, and so does everything that
replaces or wraps modules: LoRA, quantization, recomputed or compiled layers.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

Rotation = tuple[Float[Tensor, "#S L d"], Float[Tensor, "#S L d"]]  # cosines and sines of the positions


def simplify_layers(model: LlamaModel) -> None:
    """Let the layers and norms of a Llama run as defined here, in place."""
    for module in model.modules():
        if type(module) is LlamaDecoderLayer:
            module.__class__ = NanoLayer
        elif type(module) is LlamaRMSNorm:
            module.__class__ = NanoRMSNorm


class NanoRMSNorm(LlamaRMSNorm):
    """An RMSNorm that takes a third of the time on a CPU, or less, with its backward pass."""

    def forward(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if {hidden_states.dtype, self.weight.dtype} != {torch.float32}:
            return super().forward(hidden_states)
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = grad * normed
        mean = (product @ weight).unsqueeze(-1).div_(-x.shape[-1])
        return torch.addcmul(grad * weight, normed, mean).mul_(scale), product.flatten(0, -2).sum(0), None


class NanoLayer(LlamaDecoderLayer):
    """A layer that attends causally without a mask, and that can return the hidden states of some positions only."""

    def forward(
        self,
        hidden_states: Float[Tensor, "S L D"],
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Rotation | None = None,
        readouts: Int64[Tensor, "S R"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "S _ D"]:
        """Return the hidden states of all positions, or of the positions `readouts` of each sequence.

        With a mask or a cache, the layer of `transformers` runs; it knows no `readouts`.
        """
        if attention_mask is not None or past_key_values is not None or position_embeddings is None:
            return super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
            )
        x = hidden_states
        normed = self.input_layernorm(x)
        attention: Any = self.self_attn
        cos, sin = _signed(position_embeddings)
        keys = _rotate(_split_heads(attention.k_proj(normed), attention.head_dim), cos, sin)
        values = _split_heads(attention.v_proj(normed), attention.head_dim)
        mask = None
        if readouts is not None:
            row = torch.arange(len(x), device=x.device)[:, None]
            x, normed, cos, sin = x[row, readouts], normed[row, readouts], cos[0, readouts], sin[0, readouts]
            mask = (torch.arange(keys.shape[1], device=x.device) <= readouts[..., None])[:, None]  # (S, 1, R, L)
        queries = _rotate(_split_heads(attention.q_proj(normed), attention.head_dim), cos, sin)
        x = x + attention.o_proj(_attend(queries, keys, values, mask, attention.scaling))
        return x + self.mlp(self.post_attention_layernorm(x))


def _split_heads(x: Float[Tensor, "S L D"], width: int) -> Float[Tensor, "S L h d"]:
    return x.unflatten(-1, (-1, width))


def _signed(rotation: Rotation) -> tuple[Float[Tensor, "#S L 1 d"], Float[Tensor, "#S L 1 d"]]:
    """Return cosines, and sines with a minus in the first half, which spares `_rotate` the negation of x."""
    cos, sin = rotation
    half = sin.shape[-1] // 2
    return cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None]


def _rotate(x: Float[Tensor, "S L h d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "S L h d"]:
    """Rotate heads by their position (RoPE, arXiv 2104.09864), with the sines of `_signed`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _attend(
    queries: Float[Tensor, "S R h d"],
    keys: Float[Tensor, "S L h d"],
    values: Float[Tensor, "S L h d"],
    mask: Tensor | None,
    scale: float,
) -> Float[Tensor, "S R D"]:
    """Return the attended values; without a mask, attention is causal.

    On a CPU the products are in float32: for short sequences, the bfloat16 kernel's backward pass takes three to eight
    times as long.
    """
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
    if v.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), mask, is_causal=mask is None, scale=scale
            ).to(v.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale)
    return out.transpose(1, 2).flatten(2)


def trust_layout(core: Any) -> None:
    """Leave out the count of image tokens in a LLaVA, which makes the host wait for a GPU at every call.

    The layout of a sequence has as many image tokens as the tower has features.
    """
    image_id = core.config.image_token_id

    def get_placeholder_mask(input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        return (input_ids == image_id).unsqueeze(-1)

    core.get_placeholder_mask = get_placeholder_mask
