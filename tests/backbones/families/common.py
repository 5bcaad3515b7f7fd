"""Tiny models of real classes with random weights, written to disk like a user's models."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedTokenizerFast

from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.checks.examined import ExaminedBackbone

# The special tokens of all families; the id of each is its index here.
SPECIAL = ["<pad>", "<unk_before>", "<s>", "</s>", "<image>", "</image>", "<patch_index_0000>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["[gMASK]", "<sop>", "<|begin_of_image|>", "<|end_of_image|>", "<|image_start|>", "<|image_end|>"]
SPECIAL += ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|image>", "<image|>", "<|image|>", "<|video_pad|>"]
SPECIAL += ["<start_of_image>", "<end_of_image>", "<img>", "</img>", "<IMG_CONTEXT>", "<imgpad>", "<image_placeholder>"]
SPECIAL += ["<|START_OF_IMG|>", "TILE_GLOBAL", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<|END_OF_IMG|>"]
SPECIAL += ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<|patch|>", "<video>"]
SPECIAL += ["<begin_of_image>", "<fim_prefix>", "<|img|>", "<fim_suffix>"]
SPECIAL += ["|SPEAKER|", "|NEWLINE|", "<0x04>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<im_end>"]
SPECIAL += ["<|image start|>", "<|image token|>", "<|extra_201|>", "<|image end|>", "<|extra_200|>", "<bbox>"]
SPECIAL += ["<racm3:break>", "<eoss>"]
SPECIAL += ["<im_start>", "<|media_content|>"]
VOCABULARY = len(SPECIAL) + 256
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {  # a decoder with grouped-query attention
    **TEXT,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {"image_size": 28, "patch_size": 7, **TEXT}
PREPROCESSOR: dict[str, Any] = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.3],
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": 28, "width": 28},
}


# Codebooks and experts are discontinuous: with this seed, images have different codes, which bfloat16 does not change.
JUMPING = 2


def token(text: str) -> int:
    """Return the id of a special token."""
    return SPECIAL.index(text)


@dataclass(frozen=True)
class Family:
    """One row of the test matrix."""

    build: Callable[[], PreTrainedConfig]  # the tiny configuration
    options: dict[str, Any] = field(default_factory=dict)  # of AutoBackbone.Config, such as image_size
    preprocessor: dict[str, Any] = field(default_factory=lambda: PREPROCESSOR)
    second_tokenizer: str | None = None  # its folder
    seed: int = 0  # of its weights


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


def write_family(family: Family, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(family.seed)
        model = AutoModelForImageTextToText.from_config(family.build())
        with torch.no_grad():  # initial weights are so small that little would depend on the inputs
            for name, weight in model.named_parameters():
                if weight.ndim == 2 or name.endswith("query_tokens"):
                    weight.normal_(std=0.2)
                elif name.endswith("gate"):  # it starts closed
                    weight.fill_(1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if family.second_tokenizer is not None:
        tiny_tokenizer().save_pretrained(folder / family.second_tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(family.preprocessor))
    return folder


CHANGING = {"LoRA", "bfloat16"}  # checks that change the backbone


def copied(subject: ExaminedBackbone) -> ExaminedBackbone:
    return dataclasses.replace(subject, backbone=copy.deepcopy(subject.backbone))


def check_promise(check: str, subject: ExaminedBackbone) -> None:
    """Run one check on a backbone that other tests use too."""
    torch.manual_seed(0)
    CHECKS[check](copied(subject) if check in CHANGING else subject)
