"""The parts of a tiny OpenFlamingo, written to disk like a user's models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from anyvla.backbones.flamingo.backbone import FlamingoBackbone
from anyvla.backbones.flamingo.layers import CrossAttending, find_decoder_layers
from anyvla.sequence.layout import lay_out
from tests.backbones.families.common import PREPROCESSOR

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 288}
LANGUAGES: dict[str, Callable[[], Any]] = {
    "mpt": lambda: MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=288, max_seq_len=256),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256),
}
END = "<|endoftext|>"


def tokenizer(adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and an end of text, like GPT-NeoX's: no padding and, by default, no BOS."""
    vocabulary = {t: i for i, t in enumerate([END, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if adds_bos:
        bpe.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def write_vision(folder: Path, width: int = 32, mlp: int = 64, heads: int = 4, **numbers: Any) -> None:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": 2, "num_attention_heads": heads}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=7, projection_dim=8))
    spread(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **numbers}))


def write_language(folder: Path, config: Any, adds_bos: bool = False) -> None:
    model = AutoModelForCausalLM.from_config(config)
    spread(model)
    model.save_pretrained(folder)
    tokenizer(adds_bos).save_pretrained(folder)


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Enlarge the weights: initial ones are so small that little would depend on the inputs."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.2)
        elif "gate" in name:  # closed at first
            weight.fill_(1.0)


def write_flamingo(folder: Path, language: str = "mpt", every: int = 2) -> dict[str, Any]:
    """Write both models and a checkpoint in the original form, with open gates. Return their options."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_vision(folder / "vision")
        write_language(folder / "language", LANGUAGES[language](), adds_bos=language == "llama")
        options = {"language": str(folder / "language"), "vision": str(folder / "vision")}
        options |= {"cross_attention_every": every}
        backbone = FlamingoBackbone(FlamingoBackbone.Config(**options))
        layers = find_decoder_layers(backbone.model)
        blocks = {i: m.cross for i, m in enumerate(layers) if isinstance(m, CrossAttending)}
        for module in (backbone.perceiver, *blocks.values()):
            spread(module)
    state = {f"perceiver.{k}": v for k, v in backbone.perceiver.state_dict().items()}
    for i, block in blocks.items():
        state |= {f"lang_encoder.gated_cross_attn_layers.{i}.{k}": v for k, v in block.state_dict().items()}
    table = next(n for n, w in backbone.model.named_parameters() if w is backbone.embedding.weight)
    state[f"lang_encoder.{table}"] = backbone.embedding.weight.detach()
    torch.save(state, folder / "checkpoint.pt")
    return {**options, "checkpoint": str(folder / "checkpoint.pt")}


def sequence_of(backbone: FlamingoBackbone, images: torch.Tensor, rows: list[list[str]], r: int = 1) -> Any:
    """Lay out steps with these instructions; each row becomes a sequence."""
    block = backbone.tokenize(images, [text for row in rows for text in row])
    return lay_out(block, [len(row) for row in rows], r, pad_id=backbone.pad_id, query_id=backbone.query_id)


def load(options: dict[str, Any], **more: Any) -> FlamingoBackbone:
    """Load the backbone of `write_flamingo`, with other options."""
    return FlamingoBackbone(FlamingoBackbone.Config(**{"prompt": "do {instruction}", **options, **more})).eval()


def frames(steps: int, views: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, views, 28, 28, 3), dtype=torch.uint8, generator=generator)


def queries(backbone: FlamingoBackbone, r: int = 1) -> torch.Tensor:
    return torch.randn(r, backbone.width, generator=torch.Generator().manual_seed(1)) * 0.2
