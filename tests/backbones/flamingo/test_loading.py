"""Loading a FlamingoBackbone: presets, the original checkpoint, MPT-1B, the pretrained parts that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.backbones.flamingo.backbone import PRESETS, FlamingoBackbone
from anyvla.backbones.flamingo.language import load_language
from anyvla.backbones.flamingo.layers import CrossAttending, find_decoder_layers
from anyvla.config import ConfigError, build, to_dict
from anyvla.registry import backbones
from tests.backbones.families.flamingo import (
    frames,
    load,
    queries,
    sequence_of,
    tokenizer,
    write_flamingo,
    write_vision,
)


@pytest.fixture(scope="module")
def mpt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the options of a tiny Flamingo over MPT."""
    return write_flamingo(tmp_path_factory.mktemp("tiny_mpt"))


@torch.no_grad()
def test_mpt_1b_is_read_without_remote_code(tmp_path: Path) -> None:
    """A mosaic_gpt folder, as for OpenFlamingo 3B, gives the logits of its equations."""
    width, heads, layers, vocabulary, length = 32, 4, 3, 257, 11
    draw = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * 0.3

    def norm() -> torch.Tensor:
        return 1 + matrix(width)

    w = {"transformer.wte.weight": matrix(vocabulary, width), "transformer.ln_f.weight": norm()}
    for i in range(layers):
        at = f"transformer.blocks.{i}."
        w |= {f"{at}{n}.weight": norm() for n in ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln")}
        w |= {f"{at}attn.Wqkv.weight": matrix(3 * width, width), f"{at}attn.out_proj.weight": matrix(width, width)}
        w |= {f"{at}mlp.mlp_up.weight": matrix(4 * width, width), f"{at}mlp.mlp_down.weight": matrix(width, 4 * width)}
    language = tmp_path / "language"
    tokenizer().save_pretrained(language)
    torch.save(w, language / "pytorch_model.bin")
    numbers = {"d_model": width, "n_heads": heads, "n_layers": layers, "vocab_size": vocabulary, "max_seq_len": 64}
    remote = {"AutoModelForCausalLM": "mosaic_gpt.MosaicGPT", "AutoConfig": "configuration_mosaic_gpt.MosaicGPTConfig"}
    about = {"model_type": "mosaic_gpt", "auto_map": remote, "alibi": True, "attn_qk_ln": True, "no_bias": True}
    (language / "config.json").write_text(json.dumps({**about, **numbers, "mlp_ratio": 4, "attn_clip_qkv": None}))

    def normal(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (width,), w[f"{name}.weight"])

    ids = torch.randint(0, vocabulary, (2, length), generator=draw)
    x = w["transformer.wte.weight"][ids]
    slopes = 2.0 ** -(torch.arange(1, heads + 1) * 8 / heads)
    bias = slopes.view(-1, 1, 1) * torch.arange(1 - length, 1)
    future = torch.ones(length, length).triu(1).bool()
    for i in range(layers):
        at = f"transformer.blocks.{i}."
        q, k, v = (normal(x, f"{at}ln_1") @ w[f"{at}attn.Wqkv.weight"].T).chunk(3, -1)
        q, k = normal(q, f"{at}attn.q_ln"), normal(k, f"{at}attn.k_ln")
        q, k, v = (y.view(2, length, heads, -1).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT / (width // heads) ** 0.5 + bias
        seen = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + seen.transpose(1, 2).flatten(2) @ w[f"{at}attn.out_proj.weight"].T
        inner = torch.nn.functional.gelu(normal(x, f"{at}ln_2") @ w[f"{at}mlp.mlp_up.weight"].T)
        x = x + inner @ w[f"{at}mlp.mlp_down.weight"].T
    expected = normal(x, "transformer.ln_f") @ w["transformer.wte.weight"].T

    model = load_language(str(language), torch.float32).eval()
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    # As a part of Flamingo it is saved as an MPT and computes the same.
    write_vision(tmp_path / "vision")
    options = {"language": str(language), "vision": str(tmp_path / "vision")}
    backbone = load(options)
    assert any(name.endswith("attn.q_ln.weight") for name, _ in backbone.model.named_parameters())
    backbone.save_assets(tmp_path / "assets")
    again = FlamingoBackbone(FlamingoBackbone.Config(**options, prompt="do {instruction}"), tmp_path / "assets").eval()
    again.load_state_dict(backbone.state_dict())
    rows = [["open"]]
    old, new = (b(sequence_of(b, frames(1, 1), rows), queries(b)) for b in (backbone, again))
    assert torch.equal(old, new)
    # The original checkpoint uses the names of mosaic_gpt.
    state = {f"perceiver.{k}": v for k, v in backbone.perceiver.state_dict().items()}
    for i, layer in enumerate(find_decoder_layers(backbone.model)):
        state |= {f"lang_encoder.gated_cross_attn_layers.{i}.{k}": v for k, v in layer.cross.state_dict().items()}
    table = backbone.embedding.weight.detach()
    state |= {"lang_encoder.transformer.wte.weight": table, "lang_encoder.old_decoder_blocks.1.ln_1.weight": norm()}
    torch.save(state, tmp_path / "checkpoint.pt")
    loaded = load({**options, "checkpoint": str(tmp_path / "checkpoint.pt")})
    assert torch.equal(
        loaded.model.transformer.blocks[1].norm_1.weight, state["lang_encoder.old_decoder_blocks.1.ln_1.weight"]
    )

    (language / "config.json").write_text(json.dumps({**about, **numbers, "alibi": False}))
    with pytest.raises(ValueError, match=r"mosaic_gpt with \{'alibi': False\}, which is not supported: use MPT-1B"):
        load(options)


# The released models of the second version, from the table in the README of github.com/mlfoundations/open_flamingo.
RELEASED = {
    "3B": ("anas-awadalla/mpt-1b-redpajama-200b", 1, "openflamingo/OpenFlamingo-3B-vitl-mpt1b"),
    "4B": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2, "openflamingo/OpenFlamingo-4B-vitl-rpj3b"),
    "9B": ("anas-awadalla/mpt-7b", 4, "openflamingo/OpenFlamingo-9B-vitl-mpt7b"),
}


def test_presets_fill_in_missing_options() -> None:
    assert set(PRESETS) == set(RELEASED)
    for name, released in RELEASED.items():
        config = FlamingoBackbone.Config(preset=name)
        assert (config.language, config.cross_attention_every, config.checkpoint) == released
        assert config.vision == "openai/clip-vit-large-patch14"
        assert build(FlamingoBackbone.Config, to_dict(config)) == config
    local = FlamingoBackbone.Config(preset="9B", language="/models/mpt", checkpoint="/models/checkpoint.pt")
    assert (local.language, local.checkpoint, local.cross_attention_every) == (
        "/models/mpt",
        "/models/checkpoint.pt",
        4,
    )
    assert backbones["flamingo"] is FlamingoBackbone
    with pytest.raises(ConfigError, match=r"name the model: preset \(3B, 4B, 9B\), or language and checkpoint"):
        build(FlamingoBackbone.Config, {})


def test_only_pretrained_parts_are_kept(mpt: dict[str, Any]) -> None:
    full, embeddings = load(mpt), "model.transformer.wte.weight"
    kept = {
        "language_only": {"model.transformer.blocks.0.attn.Wqkv.weight", embeddings},
        "vision_only": {"vision.embeddings.patch_embedding.weight"},
        "none": set(),
    }
    everything = set.union(*kept.values(), {"perceiver.latents", "model.transformer.blocks.1.cross.attn.to_q.weight"})
    for pretrained, same in kept.items():
        other = load(mpt, pretrained=pretrained).state_dict()
        assert {n for n in everything if torch.equal(other[n], full.state_dict()[n])} == same, pretrained
        assert not other["model.transformer.blocks.1.cross.attn_gate"].any(), "a gate is closed at first"


def test_each_camera_but_the_first_adds_a_mark(mpt: dict[str, Any]) -> None:
    """With one camera the model is the original; embeddings, small relative to the latents, mark the others."""
    backbone = load(mpt)
    marks = backbone.cameras.weight.detach()
    assert marks.shape == (8, 32)
    assert not marks[0].any()
    assert 0.08 < marks[1:].std() < 0.12
    one = frames(1, 1)
    with torch.no_grad():
        first, second = backbone.encode_images(one.expand(1, 2, -1, -1, -1, -1).flatten(1, 2)).unflatten(1, (2, -1))[0]
        torch.testing.assert_close(backbone.encode_images(one)[0], first)
    torch.testing.assert_close(second, first + marks[1])


def test_layers_are_cut_after_the_checkpoint_is_read(mpt: dict[str, Any]) -> None:
    backbone = load(mpt, layers=3)
    layers = find_decoder_layers(backbone.model)
    assert [isinstance(layer, CrossAttending) for layer in layers] == [False, True, False]
    assert torch.equal(layers[1].cross.attn_gate, torch.ones(1))
    with pytest.raises(ValueError, match="cross_attention_every is 2, but the language model has 1 layers: none would"):
        load(mpt, layers=1)


def test_a_file_that_is_no_such_checkpoint_is_refused(mpt: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    bad = {**mpt, "checkpoint": str(path)}
    state = torch.load(mpt["checkpoint"], weights_only=True)

    class Trainer:
        """An object that can only be unpickled."""

    def refused(content: Any, message: str, **options: Any) -> None:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load({**bad, **options})

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"(?s)empty' cannot be read: .*checkpoint\.pt.*Copy the whole folder again"):
        load({**bad, "checkpoint": str(empty)})
    Trainer.__qualname__, globals()["Trainer"] = "Trainer", Trainer
    refused(
        {"model": state, "trainer": Trainer()}, "(?s)cannot be read as plain tensors. Nothing else is read.*run any"
    )
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load(bad)
    refused([1, 2], "holds no state_dict of a model")
    odd = {**state, "lang_encoder.transformer.wpe.weight": torch.zeros(2), "clip.x": torch.zeros(1)}
    refused(odd, r"2 of its names do not fit the model: clip\.x, model\.transformer\.wpe\.weight")
    del odd["perceiver.latents"]
    refused(odd, r"1 weights are missing from it: perceiver\.latents")
    refused(
        state, r"(?s)weights are missing from it: .*blocks\.0\.cross.*presets 3B, 4B and 9B", cross_attention_every=1
    )
    other = {**state, "lang_encoder.transformer.wte.weight": torch.zeros(300, 32)}
    refused(other, r"wte\.weight is \(300, 32\) in the file and \(260, 32\) in the model")


def test_the_error_for_a_missing_model_says_how_to_download_it(
    mpt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for part in ("language", "vision", "checkpoint"):
        with pytest.raises(ValueError, match=r"(?s)nobody/nothing-of-the-kind'? (has|cannot).*`hf download nobody/"):
            load({**mpt, part: "nobody/nothing-of-the-kind"})
