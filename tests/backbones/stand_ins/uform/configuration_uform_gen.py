"""Stands for UForm-Gen's file of this name."""

from transformers import PretrainedConfig


class VLMConfig(PretrainedConfig):
    model_type = "vlm"

    def __init__(self, image_size=32, image_pooler_num_latents=5, text_decoder_name_or_path="", **kwargs):
        self.image_size = image_size
        self.image_pooler_num_latents = image_pooler_num_latents
        self.text_decoder_name_or_path = text_decoder_name_or_path
        super().__init__(**kwargs)
