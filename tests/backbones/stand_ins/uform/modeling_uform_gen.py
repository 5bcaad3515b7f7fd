"""Stands for UForm-Gen's file of this name: the same modules, and the same ways to call them."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .configuration_uform_gen import VLMConfig


class VisionEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 24, 8, 8)

    def forward(self, x):
        return self.patch_embed(x).flatten(2).transpose(1, 2)


class ImageFeaturesPooler(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.projection = nn.Linear(24, width)
        self.pooler = nn.TransformerDecoderLayer(
            width, 4, 64, activation=nn.functional.silu, batch_first=True, norm_first=True
        )
        self.image_latents = nn.Parameter(torch.randn(1, config.image_pooler_num_latents, width) * 0.02**0.5)

    def forward(self, features):
        features = self.projection(features)
        return self.pooler(self.image_latents.expand(features.shape[0], -1, -1), features)


class VLMForCausalLM(PreTrainedModel):
    config_class = VLMConfig

    def __init__(self, config):
        super().__init__(config)
        self.text_config = AutoConfig.from_pretrained(config.text_decoder_name_or_path)
        self.text_decoder = AutoModelForCausalLM.from_config(self.text_config)
        self.image_encoder = VisionEncoder()
        self.image_pooler = ImageFeaturesPooler(config, self.text_config.hidden_size)
