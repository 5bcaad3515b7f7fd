"""Families whose language model reads images by cross-attention."""

from __future__ import annotations

from families.common import TEXT, VOCABULARY, Family
from transformers import IdeficsConfig, PreTrainedConfig


def idefics() -> PreTrainedConfig:
    vision = {"embed_dim": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return IdeficsConfig(
        **TEXT,
        vocab_size=VOCABULARY - 2,
        additional_vocab_size=2,  # which it embeds by a table of their own
        max_position_embeddings=256,
        cross_layer_interval=1,
        alpha_initializer="ones",  # gates, which start closed otherwise
        use_resampler=True,
        qk_layer_norms=True,
        vision_config={**vision, "image_size": 28, "patch_size": 7},
        perceiver_config={"resampler_depth": 1, "resampler_head_dim": 8, "resampler_n_heads": 4},
        pad_token_id=0,
    )


FAMILIES: dict[str, Family] = {"idefics": Family(idefics)}
