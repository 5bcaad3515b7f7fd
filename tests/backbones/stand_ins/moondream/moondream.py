"""Stands for MoonDream's file of this name: the same modules, and the same ways to call them."""

import torch
from torch import nn
from transformers import PhiForCausalLM, PreTrainedModel

from .configuration_moondream import MoondreamConfig


class VisionProjection(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, width))

    def forward(self, x):
        return self.mlp(x)


class VisionEncoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder = nn.ModuleDict({"visual": nn.Conv2d(3, 16, 8, 8)})
        self.projection = VisionProjection(width)

    def forward(self, images):
        assert isinstance(images, torch.Tensor)
        assert images.ndim == 4
        full = self.encoder["visual"](images).flatten(2).transpose(1, 2)
        return self.projection(torch.cat([full, full], dim=2))


class Moondream(PreTrainedModel):
    config_class = MoondreamConfig

    def __init__(self, config):  # like the original, without post_init
        super().__init__(config)
        self.vision_encoder = VisionEncoder(config.text_config.hidden_size)
        self.region_model = nn.Linear(4, 4)
        self.text_model = PhiForCausalLM(config.text_config)
