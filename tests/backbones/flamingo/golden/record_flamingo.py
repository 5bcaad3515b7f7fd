"""Records outputs of `open-flamingo` with a tiny random model, for tests/backbones/flamingo/test_backbone.py.

Run once, in an environment of its own (Python 3.10): pip install --no-deps open-flamingo==2.0.1 open-clip-torch==2.20.0
transformers==4.34.1 tokenizers==0.14.1 huggingface-hub==0.17.3 safetensors==0.4.5 einops einops-exts==0.0.4, and
torch==2.0.1 torchvision==0.15.2 "numpy<2" with what they need. `python record_flamingo.py` writes flamingo.safetensors
and flamingo.json beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.utils import extend_instance
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MptConfig, MptForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
WIDTH = 16
MPT = {"d_model": WIDTH, "n_heads": 2, "n_layers": 2, "max_seq_len": 128, "vocab_size": 288}
NEOX = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
NEOX |= {"max_position_embeddings": 128, "vocab_size": 288}
LANGUAGES: dict[str, Any] = {
    "mpt": (MptForCausalLM, MptConfig, MPT, "transformer.blocks", 1),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, NEOX, "gpt_neox.layers", 2),
}
VISION = {"layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 7, "image_size": 28, "mlp_ratio": 2.0}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.3]
STEPS = [["open", "close the drawer", "push"], ["lift it", "put it down"]]  # a sequence a row


def tokenizer() -> Any:
    """Bytes and an end of text, then the tokens that `open_flamingo.src.factory` adds."""
    vocabulary = {t: i for i, t in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
    made.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    made.add_special_tokens({"pad_token": "<PAD>"})
    return made


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that make everything depend on everything, in numbers that bfloat16 holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        value = torch.randn(weight.shape, generator=generator)
        norm = weight.ndim == 1 and name.endswith("weight")
        value = value * 0.2 + 1 if norm else value * (1.0 if weight.ndim == 1 and "gate" in name else 0.3)
        weight.data = value.bfloat16().float()


def pixels(images: torch.Tensor) -> torch.Tensor:
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def run(model: Any, ids: torch.Tensor, mask: torch.Tensor, media: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states and logits of token ids (S, L) that read latents (S, T, n, D)."""
    hidden: list[torch.Tensor] = []
    handle = model.lang_encoder.get_output_embeddings().register_forward_pre_hook(lambda _m, x: hidden.append(x[0]))
    for layer in model.lang_encoder._get_decoder_layers():
        layer.condition_vis_x(media)
    model._condition_media_locations(ids)
    logits = model.lang_encoder(input_ids=ids, attention_mask=mask).logits
    handle.remove()
    model.lang_encoder.clear_conditioned_layers()
    return hidden[0], logits


def record(name: str, tokens: Any, vision: Any, perceiver: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    make, config, sizes, layers, every = LANGUAGES[name]
    language = make(config(**sizes))
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(layers)
    language.resize_token_embeddings(len(tokens))
    eoc, image = (tokens.convert_tokens_to_ids(t) for t in ("<|endofchunk|>", "<image>"))
    model = Flamingo(vision, language, eoc, image, vis_dim=WIDTH, cross_attn_every_n_layers=every).eval()
    randomise(model.lang_encoder, seed=len(name))
    model.perceiver = perceiver

    images = torch.randint(0, 256, (5, 28, 28, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    rows = ["".join(f"<image>{text}<|endofchunk|><|endoftext|>" for text in row) for row in STEPS]
    given = tokens(rows, padding="longest", return_tensors="pt")
    frames = pixels(images)
    stacked = torch.stack([frames[:3], torch.cat([frames[3:], torch.zeros_like(frames[:1])])])[:, :, None]
    with torch.no_grad():
        whole = model(vision_x=stacked, lang_x=given.input_ids, attention_mask=given.attention_mask).logits
        media = model.perceiver(model.vision_encoder(stacked.flatten(0, 2))[1][:, None, None]).unflatten(0, (2, 3))
        hidden, logits = run(model, given.input_ids, given.attention_mask, media[:, :, 0])
        torch.testing.assert_close(whole, logits)
        # Two cameras as RoboFlamingo has them: the latents of both, one after another, are one medium.
        both = model.perceiver(model.vision_encoder(frames[:4])[1][:, None, None]).reshape(2, 1, -1, WIDTH)
        single = tokens(
            [f"<image>{row[0]}<|endofchunk|><|endoftext|>" for row in STEPS], padding="longest", return_tensors="pt"
        )
        two, _ = run(model, single.input_ids, single.attention_mask, both)
    tensors = {"ids": given.input_ids, "mask": given.attention_mask, "hidden": hidden, "two_ids": single.input_ids}
    tensors |= {"two_mask": single.attention_mask, "two_hidden": two, "logits": logits[:, -1]}
    state = {k: v for k, v in model.state_dict().items() if k.startswith("lang_encoder.")}
    aliases = ("lang_encoder.old_decoder_blocks", "lang_encoder.gated_cross_attn_layers")
    state = {k: v for k, v in state.items() if not k.startswith(aliases)}
    if name == "mpt":
        del state["lang_encoder.lm_head.weight"]  # tied
    out = {f"{name}/{k}": v for k, v in tensors.items()}
    out |= {f"{name}/weights/{k}": v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    return {**out, "images": images}, {"config": sizes, "layers": layers, "every": every}


def main() -> None:
    torch.manual_seed(0)
    tokens = tokenizer()
    clip = open_clip.CLIP(8, VISION, TEXT, quick_gelu=True)
    clip.visual.output_tokens = True
    model = Flamingo(clip, _bare(tokens), 0, 1, vis_dim=WIDTH)
    randomise(model.vision_encoder, seed=1)
    randomise(model.perceiver, seed=2)
    tensors, about = {}, {"mean": MEAN, "std": STD, "vision": VISION, "steps": STEPS, "languages": {}}
    for name in LANGUAGES:
        made, about["languages"][name] = record(name, tokens, clip, model.perceiver)
        tensors |= made
    for part in ("vision_encoder", "perceiver"):
        for name, weight in getattr(model, part).state_dict().items():
            tensors[f"weights/{part}.{name}"] = weight.bfloat16()
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "flamingo.safetensors")
    (HERE / "flamingo.json").write_text(json.dumps(about, indent=1) + "\n")


def _bare(tokens: Any) -> Any:
    language = MptForCausalLM(MptConfig(**MPT))
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name("transformer.blocks")
    return language


if __name__ == "__main__":
    main()
