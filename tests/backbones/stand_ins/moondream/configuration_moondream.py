"""Stands for MoonDream's file of this name."""

from transformers import PhiConfig, PretrainedConfig


class MoondreamConfig(PretrainedConfig):
    model_type = "moondream1"

    def __init__(self, image_size=32, **kwargs):
        self.image_size = image_size
        self.text_config = PhiConfig(**kwargs.pop("text_config", {}))
        super().__init__(**kwargs)
