"""FlamingoBackbone against the PyPI package open-flamingo 2.0.1, and the promises of a backbone.

`golden/flamingo.safetensors` holds tiny random models and what open-flamingo computes with them, for MPT (cross-
attention before every layer) and GPT-NeoX (before every second): `golden/record_flamingo.py` wrote it once, in an
environment of its own, with Python 3.10, torch 2.0.1, transformers 4.34.1 and open-clip-torch 2.20.0. It builds an
open_clip vision tower, `Flamingo` and its language model as that package's factory does, draws weights that bfloat16
holds (gates open), runs `Flamingo.forward` over two documents of three and two chunks, and records token ids, the
hidden states before the LM head and the logits of the last place. For two cameras, which the package does not know,
the language model reads the latents of both one after another, as RoboFlamingo has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
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

from anyvla.backbones.base import CAPABILITIES
from anyvla.backbones.conformance import CHECKS, NotApplicable, Subject
from anyvla.backbones.flamingo import PRESETS, FlamingoBackbone
from anyvla.backbones.flamingo_layers import CrossAttending, decoder_layers
from anyvla.config import ConfigError, build
from anyvla.layout import lay_out
from anyvla.registry import backbones

GOLDEN = Path(__file__).parent / "golden"
ABOUT = json.loads((GOLDEN / "flamingo.json").read_text())
CONFIGS = {"mpt": MptConfig, "gpt_neox": GPTNeoXConfig}
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 288}
LANGUAGES: dict[str, Callable[[], Any]] = {
    "mpt": lambda: MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=288, max_seq_len=256),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256),
}


def tokenizer(adds_bos: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        bpe.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def write_vision(folder: Path, width: int, mlp: int, heads: int) -> Path:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": 2, "num_attention_heads": heads}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=7, projection_dim=8)).save_pretrained(folder)
    size = {"size": {"height": 28, "width": 28}, "resample": 3}
    preprocessor = {**size, "image_mean": ABOUT["mean"], "image_std": ABOUT["std"], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def write_language(folder: Path, config: Any, adds_bos: bool = False) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer(adds_bos).save_pretrained(folder)
    return folder


class Golden:
    """What was recorded for one language model, and our backbone with the recorded weights."""

    def __init__(self, name: str, folder: Path) -> None:
        everything = load_file(GOLDEN / "flamingo.safetensors")
        self.about = ABOUT["languages"][name]
        self.tensors = {k.removeprefix(f"{name}/"): v for k, v in everything.items() if k.startswith(f"{name}/")}
        self.images = everything["images"]
        state = {k: v for k, v in everything.items() if k.startswith("weights/")}
        state |= {k: v for k, v in self.tensors.items() if k.startswith("weights/")}
        self.state = {k.removeprefix("weights/"): v.float() for k, v in state.items()}
        self.folder = folder
        with torch.random.fork_rng():
            torch.manual_seed(0)
            write_vision(folder / "vision", 16, 32, 2)
            write_language(folder / "language", CONFIGS[name](**self.about["config"]))

    def load(self, state: dict[str, Any], **options: Any) -> FlamingoBackbone:
        torch.save(state, self.folder / "checkpoint.pt")
        keys = {"language": "language", "vision": "vision", "checkpoint": "checkpoint.pt"}
        paths = {key: str(self.folder / name) for key, name in keys.items()}
        every = {"cross_attention_every": self.about["every"]}
        return FlamingoBackbone(FlamingoBackbone.Config(**{**paths, **every, **options}, prompt="{instruction}")).eval()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


def sequence_of(backbone: FlamingoBackbone, images: torch.Tensor, rows: list[list[str]], r: int = 1) -> Any:
    block = backbone.prepare(images, [text for row in rows for text in row])
    return lay_out(block, [len(row) for row in rows], r, pad_id=backbone.pad_id, query_id=backbone.query_id)


@torch.no_grad()
def test_the_original_checkpoint_gives_the_original_outputs(golden: Golden) -> None:
    backbone, recorded = golden.load(golden.state), golden.tensors
    sequence = sequence_of(backbone, golden.images[:, None], ABOUT["steps"])
    assert torch.equal(sequence.input_ids, recorded["ids"])
    assert torch.equal(sequence.attention_mask, recorded["mask"].bool())
    with backbone.reading() as hidden:
        backbone.run(sequence, None)
    valid = sequence.attention_mask
    torch.testing.assert_close(hidden[0][valid], recorded["hidden"][valid], atol=1e-5, rtol=1e-5)
    assert backbone.head is not None
    logits = backbone.head(hidden[0][:1, -1])  # the other row ends in padding
    torch.testing.assert_close(logits, recorded["logits"][:1], atol=1e-5, rtol=1e-5)
    # And so through the public way in: a query that equals the embedding of its place.
    query = backbone.embedding(torch.tensor([[backbone.query_id]]))[0]
    expected = recorded["hidden"][sequence.query_mask][:, None]
    torch.testing.assert_close(backbone(sequence, query), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_cameras_read_as_roboflamingo_does(golden: Golden) -> None:
    backbone, recorded = golden.load(golden.state), golden.tensors
    rows = [row[:1] for row in ABOUT["steps"]]
    sequence = sequence_of(backbone, golden.images[:4].unflatten(0, (2, 2)), rows)
    assert torch.equal(sequence.input_ids, recorded["two_ids"])
    with backbone.reading() as hidden:
        backbone.run(sequence, None)
    valid = sequence.attention_mask
    torch.testing.assert_close(hidden[0][valid], recorded["two_hidden"][valid], atol=1e-5, rtol=1e-5)


def test_every_form_of_the_original_file_loads(golden: Golden) -> None:
    expected = golden.load(golden.state).state_dict()
    layers = golden.about["layers"]

    def renamed(name: str) -> str:  # the other name under which the original model has the same weight
        for kind, alias in (
            ("gated_cross_attn_layer", "gated_cross_attn_layers"),
            ("decoder_layer", "old_decoder_blocks"),
        ):
            if f".{kind}." in name:
                head, rest = name.split(f".{kind}.")
                return f"lang_encoder.{alias}.{head.removeprefix(f'lang_encoder.{layers}.')}.{rest}"
        return name

    aliases = {renamed(k): v for k, v in golden.state.items()}
    assert aliases.keys() != golden.state.keys()
    buffers = {f"lang_encoder.{layers}.0.decoder_layer.attention.masked_bias": torch.tensor(-1e9)}
    forms = {
        "other names": aliases,
        "both names": golden.state | aliases | buffers,
        "of several processes": {f"module.{k}": v for k, v in golden.state.items()},
        "with the optimiser": {"epoch": 1, "model_state_dict": golden.state, "optimizer_state_dict": {"state": {}}},
    }
    for form, state in forms.items():
        loaded = golden.load(state).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in expected.items()), form
