from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GemmaConfig,
    Idefics3Config,
    Kosmos2Config,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from anyvla.backbones.base import Backbone
from anyvla.layout import lay_out
from anyvla.types import Block
from anyvla.types import TokenSequence as Sequence

SPECIAL = ["<pad>", "<unk_before>", "<s>", "</s>", "<image>", "</image>", "<patch_index_0000>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>"]
IMAGE_ID = SPECIAL.index("<image>")
VOCABULARY = len(SPECIAL) + 256
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"image_size": 28, "patch_size": 7, **TEXT}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={f"extra_{i}": t for i, t in enumerate(SPECIAL[4:])},
    )


def llama() -> LlamaConfig:
    return LlamaConfig(**TEXT, vocab_size=VOCABULARY, max_position_embeddings=256, pad_token_id=0)


def llava() -> PreTrainedConfig:
    return LlavaConfig(text_config=llama(), vision_config=CLIPVisionConfig(**VISION), image_token_id=IMAGE_ID)


def paligemma() -> PreTrainedConfig:
    text = GemmaConfig(
        **TEXT, vocab_size=VOCABULARY, max_position_embeddings=256, head_dim=8, num_key_value_heads=1, pad_token_id=0
    )
    vision = SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False)
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_ID, projection_dim=32, hidden_size=32
    )


def _idefics(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    return cls(text_config=llama(), vision_config=dict(VISION), image_token_id=IMAGE_ID, scale_factor=2, pad_token_id=0)


def smolvlm() -> PreTrainedConfig:
    return _idefics(SmolVLMConfig)


def idefics3() -> PreTrainedConfig:
    return _idefics(Idefics3Config)


def kosmos2() -> PreTrainedConfig:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "embed_dim": 32, "layers": 2, "ffn_dim": 64}
    return Kosmos2Config(text_config={**text, "attention_heads": 4}, vision_config=dict(VISION), latent_query_num=4)


FAMILIES = {f.__name__: f for f in (llava, paligemma, smolvlm, idefics3, kosmos2)}
PREPROCESSOR = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.3],
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": 28, "width": 28},
}


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of each family, as a user would have it on disk."""
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("llava", tmp_path_factory.mktemp("only_llava"))


def write_model(family: str, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(FAMILIES[family]())
        with torch.no_grad():  # fresh weights are so small that little would depend on anything
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture(scope="session")
def pack() -> Callable[..., Sequence]:
    """Lay steps out: `groups` of consecutive steps share a sequence; R queries end each step."""

    def pack(backbone: Backbone, block: Block, groups: list[int], r: int = 1, padding: int = 0) -> Sequence:
        ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}
        longest = lay_out(block, groups, r, **ids).input_ids.shape[1]
        return lay_out(block, groups, r, **ids, length=longest + padding)

    return pack
