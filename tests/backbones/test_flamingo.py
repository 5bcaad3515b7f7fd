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
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families.flamingo import LANGUAGES, write_flamingo, write_language, write_vision
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MptConfig

from anyvla.backbones.base import CAPABILITIES, Cache
from anyvla.backbones.conformance import CHECKS, NotApplicable, Subject
from anyvla.backbones.flamingo import PRESETS, FlamingoBackbone
from anyvla.backbones.flamingo_language import Mpt
from anyvla.backbones.flamingo_layers import CrossAttending, decoder_layers
from anyvla.config import ConfigError, build, to_dict
from anyvla.layout import lay_out
from anyvla.registry import backbones

GOLDEN = Path(__file__).parent / "golden"
ABOUT = json.loads((GOLDEN / "flamingo.json").read_text())
CONFIGS = {"mpt": MptConfig, "gpt_neox": GPTNeoXConfig}


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
            write_vision(folder / "vision", 16, 32, 2, image_mean=ABOUT["mean"], image_std=ABOUT["std"])
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
    backbone.cameras.weight.data.zero_()  # ours, by which cameras differ
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


def load(options: dict[str, Any], **more: Any) -> FlamingoBackbone:
    return FlamingoBackbone(FlamingoBackbone.Config(**{"prompt": "do {instruction}", **options, **more})).eval()


def frames(steps: int, views: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (steps, views, 28, 28, 3), dtype=torch.uint8, generator=generator)


def queries(backbone: FlamingoBackbone, r: int = 1) -> torch.Tensor:
    return torch.randn(r, backbone.width, generator=torch.Generator().manual_seed(1)) * 0.2


@pytest.fixture(scope="module")
def mpt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of a tiny Flamingo over MPT."""
    return write_flamingo(tmp_path_factory.mktemp("tiny_mpt"))


@pytest.fixture(scope="module", params=[name for name in LANGUAGES if name != "mpt"])  # that is in the matrix
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    options = write_flamingo(tmp_path_factory.mktemp(request.param), request.param)
    config = FlamingoBackbone.Config(**options, prompt="do {instruction}")
    return Subject(FlamingoBackbone(config).eval(), config)


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_its_promises_over_any_language_model(subject: Subject, check: str) -> None:
    assert subject.backbone.capabilities == frozenset(CAPABILITIES)
    try:
        CHECKS[check](subject)
    except NotApplicable as reason:
        assert check == "plain model", reason
