"""Stands for Qwen-VL's file of this name: the same modules, the same ways to call them, and the same refusals."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_qwen import QWenConfig


class VisionTransformer(nn.Module):
    def __init__(self, image_size, patch_size, width, output_dim, **kwargs):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.proj = nn.Parameter(torch.randn(width, output_dim) * width**-0.5)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        assert torch.allclose(x, x), "Only Support Self-Attention Currently"  # fails where x is not a number
        return x @ self.proj


class QWenBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size)
        self.heads = config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, mask, cos, sin):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))

        def turned(t):
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat([-b, a], -1) * sin

        seen = nn.functional.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=mask)
        return x + self.c_proj(seen.transpose(1, 2).flatten(2))


class QWenModel(PreTrainedModel):
    config_class = QWenConfig

    def __init__(self, config):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([QWenBlock(config) for _ in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size)
        self.visual = VisionTransformer(**config.visual)

    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, inputs_embeds=None):
        if past_key_values is None and torch.any(input_ids == self.config.visual["image_start_id"]):
            raise AssertionError("the original would open a file here")
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("You cannot specify both input_ids and inputs_embeds at the same time")
        assert len(self.get_head_mask(None, self.config.num_hidden_layers)) == len(self.h)
        x = self.wte(input_ids)
        length, half = x.shape[1], x.shape[2] // self.config.num_attention_heads // 2
        angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        angle = torch.cat([angle, angle], -1).to(x)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            assert attention_mask.ndim == 2
            mask = mask & attention_mask.bool()[:, None, None] | torch.eye(length, dtype=torch.bool)
        for block in self.h:
            x = block(x, mask, angle.cos(), angle.sin())
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x))


class QWenLMHeadModel(PreTrainedModel):
    config_class = QWenConfig

    def __init__(self, config):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self):
        return self.transformer.wte

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, inputs_embeds=None,
        use_cache=None,
    ):  # fmt: skip
        seen = self.transformer(input_ids, past_key_values, attention_mask, inputs_embeds)
        return CausalLMOutputWithPast(logits=self.lm_head(seen.last_hidden_state))
