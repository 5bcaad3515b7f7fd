"""Tiny instances of the backbones that have a name of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, MptConfig, PreTrainedTokenizerFast

from families.common import PREPROCESSOR

GOLDEN = Path(__file__).parents[1] / "golden"  # tiny random Flamingos with open gates, see test_flamingo.py


def nano(_folder: Path) -> dict[str, Any]:
    return {"width": 32, "heads": 2, "mlp": 64, "image_size": 32, "channels": [16, 16]}


def flamingo(folder: Path) -> dict[str, Any]:
    about = json.loads((GOLDEN / "flamingo.json").read_text())["languages"]["mpt"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=7, projection_dim=8))
    tower.save_pretrained(folder / "vision")
    (folder / "vision" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    AutoModelForCausalLM.from_config(MptConfig(**about["config"])).save_pretrained(folder / "language")
    bytes_only = {t: i for i, t in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(vocab=bytes_only, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder / "language")
    weights = load_file(GOLDEN / "flamingo.safetensors").items()
    state = {k.partition("weights/")[2]: v.float() for k, v in weights if k.startswith(("weights/", "mpt/weights/"))}
    torch.save(state, folder / "checkpoint.pt")
    paths = {"language": "language", "vision": "vision", "checkpoint": "checkpoint.pt"}
    every = {"cross_attention_every": about["every"], "prompt": "do {instruction}"}
    return {key: str(folder / name) for key, name in paths.items()} | every


# name -> a function that writes what the backbone reads into a folder and gives the options for it.
REGISTERED: dict[str, Callable[[Path], dict[str, Any]]] = {"nano": nano, "flamingo": flamingo}
