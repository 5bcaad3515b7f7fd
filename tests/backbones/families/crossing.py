"""Families whose language model reads images by cross-attention."""

from __future__ import annotations

from transformers import IdeficsConfig, MllamaConfig, PreTrainedConfig

from tests.backbones.families.common import PREPROCESSOR, TEXT, VOCABULARY, Family, token


def idefics() -> PreTrainedConfig:
    vision = {"embed_dim": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return IdeficsConfig(
        **TEXT,
        vocab_size=VOCABULARY - 2,
        additional_vocab_size=2,  # in a separate embedding table
        max_position_embeddings=256,
        cross_layer_interval=1,
        alpha_initializer="ones",  # open gates; they start closed otherwise
        use_resampler=True,
        qk_layer_norms=True,
        vision_config={**vision, "image_size": 28, "patch_size": 7},
        perceiver_config={"resampler_depth": 1, "resampler_head_dim": 8, "resampler_n_heads": 4},
        pad_token_id=0,
    )


def mllama() -> PreTrainedConfig:
    """The second layer reads images, as features of the tower's first, last and global layers."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "attention_heads": 4}
    tower = {"num_global_layers": 1, "vision_output_dim": 96, "intermediate_layers_indices": [0, 1], "patch_size": 7}
    text = {**TEXT, "num_hidden_layers": 3, "num_key_value_heads": 2, "cross_attention_layers": [1]}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return MllamaConfig(
        text_config={**text, **ids, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rope_parameters": _ROPE},
        vision_config={**vision, **tower, "image_size": 28},
        image_token_index=token("<|image|>"),
    )


_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_UNSAID = {name: value for name, value in PREPROCESSOR.items() if name != "resample"}  # like the released file
FAMILIES: dict[str, Family] = {"idefics": Family(idefics, preprocessor=_UNSAID), "mllama": Family(mllama)}
