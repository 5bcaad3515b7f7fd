"""Model folders with their own code, which has the interface of the released models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, Qwen2Config
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.backbones.remote_code.loading import add_v4_defaults

STAND_INS = Path(__file__).parents[1] / "stand_ins"
VOCABULARY = len(AutoTokenizer.from_pretrained(TOKENIZER))
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 512}
VISUAL = {"image_size": 32, "patch_size": 8, "width": 24, "output_dim": 32, "image_start_id": VOCABULARY}
MODELS = {  # the auto_map and the rest of config.json
    "moondream": (
        {"AutoConfig": "configuration_moondream.MoondreamConfig", "AutoModelForCausalLM": "moondream.Moondream"},
        {"model_type": "moondream1", "text_config": TEXT},
    ),
    "uform": (
        {"AutoConfig": "configuration_uform_gen.VLMConfig", "AutoModel": "modeling_uform_gen.VLMForCausalLM"},
        {"model_type": "vlm"},
    ),
    "qwen_vl": (
        {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        {"model_type": "qwen", "vocab_size": VOCABULARY + 8, "visual": VISUAL},
    ),
}


def write_remote(name: str, folder: Path) -> Path:
    """Write a model folder as its authors would publish it."""
    auto_map, config = MODELS[name]
    shutil.copytree(STAND_INS / name, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    text = folder
    if name == "uform":  # its language model's configuration and tokenizer are elsewhere
        text = folder.with_name(f"{folder.name}-text")
        Qwen2Config(**TEXT, num_key_value_heads=4).save_pretrained(text)
        config = config | {"text_decoder_name_or_path": str(text), "tokenizer_name_or_path": str(text)}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(text)
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    add_v4_defaults(settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cls = next(reference for auto, reference in auto_map.items() if auto != "AutoConfig")
        model = get_class_from_dynamic_module(cls, str(folder))(settings)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder
