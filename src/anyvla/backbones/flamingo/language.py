"""The language models below Flamingo's cross-attention: any causal one of `transformers`, with two additions to MPT.

MPT-1B, the language model of OpenFlamingo 3B, has the older class `mosaic_gpt`, which exists as remote code only. It is
an MPT with other names of weights and a norm on queries and keys, so it is loaded as an MPT. And MPT biases attention
by the number of keys between (ALiBi, arXiv 2108.12409), padding included. Here it can count positions instead, so that
sequences of different lengths can share a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import MptAttention
from transformers.utils import cached_file

from anyvla.files.documents import read_object

# Weights of mosaic_gpt -> of MPT.
_MOSAIC = {
    r"\.ln_(\d)\.": r".norm_\1.",
    r"\.mlp\.mlp_up\.": ".ffn.up_proj.",
    r"\.mlp\.mlp_down\.": ".ffn.down_proj.",
    r"^transformer\.ln_f\.": "transformer.norm_f.",
}
# Names that older versions of transformers gave to weights.
_OLDER = {r"^embed_out\.": "lm_head."}
# Keys of mosaic_gpt's configuration -> of MPT's attention.
_ATTENTION = {"attn_qk_ln": "qk_ln", "attn_clip_qkv": "clip_qkv", "softmax_scale": "softmax_scale"}


class PositionedAttention(MptAttention):
    """MPT's attention with the norm that `attn_config.qk_ln` asks for, and with explicit positions of keys."""

    key_positions: Int64[Tensor, "S K"] | None = None  # None: each key is at its place

    def __init__(self, config: MptConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.attn_config.qk_ln:
            self.q_ln = nn.LayerNorm(config.d_model, bias=not config.no_bias)
            self.k_ln = nn.LayerNorm(config.d_model, bias=not config.no_bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "S L D"],
        position_bias: Float[Tensor, "h 1 P"],
        past_key_values: Any = None,
        attention_mask: Bool[Tensor, "S 1 L K"] | None = None,
        **_named: Any,
    ) -> tuple[Tensor, Tensor]:
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = qkv.chunk(3, -1)
        if hasattr(self, "q_ln"):
            q, k = self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype)
        q, k, v = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        bias = position_bias[None, :, :, -k.shape[2] :]
        if self.key_positions is not None:
            slope = position_bias[None, :, :, -1:] - position_bias[None, :, :, -2:-1]  # of each head
            bias = slope * (self.key_positions - self.key_positions.amax(1, keepdim=True))[:, None, None]
        scores = (q @ k.transpose(-1, -2)) * self.softmax_scale + bias  # ALiBi in float32, whatever the weights are
        if attention_mask is not None:  # here, True hides
            scores = scores.masked_fill(attention_mask, torch.finfo(scores.dtype).min)
        weights = scores.float().softmax(-1).to(v.dtype)
        weights = nn.functional.dropout(weights, self.attn_dropout_p, self.training)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class PositionedMpt(MptForCausalLM):
    """MPT with `PositionedAttention`."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        for i, block in enumerate(self.transformer.blocks):
            block.attn = PositionedAttention(config, i)
        self.post_init()


def load_language(source: str, dtype: torch.dtype) -> Any:
    """Load the language model in a folder or at a hub id, with its weights.

    Raises OSError if it is not there, ValueError if it is not a causal language model.
    """
    config = _read_config(source)
    if isinstance(config, MptConfig):
        return PositionedMpt.from_pretrained(source, config=config, dtype=dtype, key_mapping=_MOSAIC)
    return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype, trust_remote_code=False)


def build_language(source: str, dtype: torch.dtype) -> Any:
    """Build the architecture of that language model, without its weights."""
    config = _read_config(source)
    if isinstance(config, MptConfig):
        return PositionedMpt._from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def legacy_weight_names(model: Any) -> Mapping[str, str]:
    """Return patterns of names that weights had when OpenFlamingo was trained, and their names of today."""
    return _MOSAIC if isinstance(model, PositionedMpt) else _OLDER


@contextmanager
def count_valid_keys(model: nn.Module, valid: Bool[Tensor, "S K"] | None) -> Iterator[None]:
    """Let an MPT count only the `valid` keys, during one forward pass."""
    layers = [m for m in model.modules() if isinstance(m, PositionedAttention)] if valid is not None else []
    for layer in layers:
        layer.key_positions = valid.cumsum(1) - 1  # type: ignore[union-attr]
    try:
        yield
    finally:
        for layer in layers:
            layer.key_positions = None


def counts_positions(model: Any, names: frozenset[str]) -> bool:
    """Return whether padding inside the cache leaves later positions alone. `names`: the inputs of the forward."""
    return "position_ids" in names or isinstance(model, PositionedMpt)


def _read_config(source: str) -> Any:
    path = cached_file(source, "config.json")
    content = read_object(Path(path))
    if content.get("model_type") != "mosaic_gpt":
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    expected = {"alibi": True, "alibi_bias_max": 8, "prefix_lm": False, "mlp_ratio": 4, "logit_scale": None}
    odd = {k: content[k] for k, v in expected.items() if content.get(k, v) != v}
    if odd:
        raise ValueError(
            f"the language model at {source!r} is a mosaic_gpt with {odd}, which is not supported: use MPT-1B, whose "
            f"configuration has {expected}"
        )
    same = ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "no_bias")
    attention = {new: content[old] for old, new in _ATTENTION.items() if old in content}
    return MptConfig(**{k: content[k] for k in same if k in content}, attn_config=attention)
