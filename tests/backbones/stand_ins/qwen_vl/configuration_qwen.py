"""Stands for Qwen-VL's file of this name."""

from transformers import PretrainedConfig


class QWenConfig(PretrainedConfig):
    model_type = "qwen"

    def __init__(
        self, vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, visual=None, **kwargs
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = 512
        self.visual = visual or {}
        super().__init__(**kwargs)
