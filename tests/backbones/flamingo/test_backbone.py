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

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, MptConfig

from anyvla.backbones.base import CAPABILITIES, Cache
from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.checks.examined import ExaminedBackbone
from anyvla.backbones.flamingo.backbone import FlamingoBackbone
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence
from tests.backbones.families.common import check_promise
from tests.backbones.families.flamingo import (
    LANGUAGES,
    frames,
    load,
    queries,
    sequence_of,
    write_flamingo,
    write_language,
    write_vision,
)

GOLDEN = Path(__file__).parent / "golden"
ABOUT = json.loads((GOLDEN / "flamingo.json").read_text())
CONFIGS = {"mpt": MptConfig, "gpt_neox": GPTNeoXConfig}


class Golden:
    """The recorded tensors of one language model, and our backbone with the recorded weights."""

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


@torch.no_grad()
def test_the_original_checkpoint_gives_the_original_outputs(golden: Golden) -> None:
    backbone, recorded = golden.load(golden.state), golden.tensors
    sequence = sequence_of(backbone, golden.images[:, None], ABOUT["steps"])
    assert torch.equal(sequence.input_ids, recorded["ids"])
    assert torch.equal(sequence.attention_mask, recorded["mask"].bool())
    with backbone.capture_hidden_states() as hidden:
        backbone.run_model(sequence, None)
    valid = sequence.attention_mask
    torch.testing.assert_close(hidden[0][valid], recorded["hidden"][valid], atol=1e-5, rtol=1e-5)
    assert backbone.lm_head is not None
    logits = backbone.lm_head(hidden[0][:1, -1])  # the other row ends in padding
    torch.testing.assert_close(logits, recorded["logits"][:1], atol=1e-5, rtol=1e-5)
    # The public interface gives the same: a query that equals the embedding of its token.
    query = backbone.embedding(torch.tensor([[backbone.query_id]]))[0]
    expected = recorded["hidden"][sequence.query_mask][:, None]
    torch.testing.assert_close(backbone(sequence, query), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_cameras_are_read_like_roboflamingo(golden: Golden) -> None:
    backbone, recorded = golden.load(golden.state), golden.tensors
    backbone.cameras.weight.data.zero_()  # our addition that distinguishes cameras
    rows = [row[:1] for row in ABOUT["steps"]]
    sequence = sequence_of(backbone, golden.images[:4].unflatten(0, (2, 2)), rows)
    assert torch.equal(sequence.input_ids, recorded["two_ids"])
    with backbone.capture_hidden_states() as hidden:
        backbone.run_model(sequence, None)
    valid = sequence.attention_mask
    torch.testing.assert_close(hidden[0][valid], recorded["two_hidden"][valid], atol=1e-5, rtol=1e-5)


def test_every_form_of_the_original_file_loads(golden: Golden) -> None:
    expected = golden.load(golden.state).state_dict()
    layers = golden.about["layers"]

    def renamed(name: str) -> str:  # the second name of the same weight in the original model
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
        "with the optimizer": {"epoch": 1, "model_state_dict": golden.state, "optimizer_state_dict": {"state": {}}},
    }
    for form, state in forms.items():
        loaded = golden.load(state).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in expected.items()), form


@pytest.fixture(scope="module")
def mpt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the options of a tiny Flamingo over MPT."""
    return write_flamingo(tmp_path_factory.mktemp("tiny_mpt"))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExaminedBackbone]:
    """Return a backbone over each language model."""
    made = {}
    for name in LANGUAGES:
        config = FlamingoBackbone.Config(
            **write_flamingo(tmp_path_factory.mktemp(name), name), prompt="do {instruction}"
        )
        made[name] = ExaminedBackbone(FlamingoBackbone(config).eval(), config)
    return made


EVERYWHERE = ("cameras", "plain model", "neighbors", "steps", "cache", "block mask", "generate")
CASES = [("mpt", c) for c in CHECKS] + [(name, c) for name in LANGUAGES if name != "mpt" for c in EVERYWHERE]


@pytest.mark.parametrize(("language", "check"), CASES)
def test_it_passes_the_checks_over_any_language_model(
    subjects: dict[str, ExaminedBackbone], language: str, check: str
) -> None:
    assert subjects[language].backbone.capabilities == frozenset(CAPABILITIES)
    check_promise(check, subjects[language])


@torch.no_grad()
def test_a_mask_that_hides_the_image_token_hides_the_images(mpt: dict[str, Any]) -> None:
    """Test one call, and images that were read in an earlier call with a cache."""
    backbone = load(mpt)
    query = queries(backbone)
    ids = {"pad_id": backbone.pad_id, "query_id": backbone.query_id}

    def read(images: torch.Tensor, hidden: bool, cached: bool) -> torch.Tensor:
        block = backbone.tokenize(images, ["open"])
        whole = lay_out(block, [1], 1, **ids)
        mask = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, *whole.input_ids.shape[1:] * 2).clone()
        mask[:, 1:, 0] = not hidden  # position 0 is the image token, as the sequence has no BOS
        if not cached:
            return backbone(dataclasses.replace(whole, block_mask=mask), query)
        text, cache = lay_out(block, [1], 0, **ids), Cache()
        backbone(dataclasses.replace(text, block_mask=mask[:, :-1, :-1]), query, cache)
        yes, end = torch.ones(1, 1, dtype=torch.bool), whole.input_ids[:, -1:]
        last = TokenSequence(end, yes, yes, end * 0, images[:0], mask[:, -1:])
        return backbone(last, query, cache)

    one, other = frames(1, 2), frames(1, 2, seed=5)
    for cached in (False, True):
        assert (read(one, False, cached) - read(other, False, cached)).abs().max() > 1e-2
        assert torch.equal(read(one, True, cached), read(other, True, cached))
    for hidden in (False, True):
        torch.testing.assert_close(read(one, hidden, False), read(one, hidden, True), atol=1e-5, rtol=1e-5)


def test_closed_gates_learn_first(mpt: dict[str, Any]) -> None:
    """Without a checkpoint the gates are closed: the language model is unchanged, and only gates get gradients."""
    backbone = load(mpt, checkpoint=None)
    query = queries(backbone)
    out = backbone(sequence_of(backbone, frames(2, 1), [["open", "shut"]]), query)
    other = backbone(sequence_of(backbone, frames(2, 1, seed=5), [["open", "shut"]]), query)
    assert torch.equal(out, other)

    def reached(of: FlamingoBackbone) -> set[str]:
        of.zero_grad()
        read = of(sequence_of(of, frames(2, 1), [["open", "shut"]]), query)
        (read * torch.randn(read.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        return {n for n, p in of.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    gates = {n for n, _ in backbone.named_parameters() if n.endswith("_gate")}
    assert len(gates) == 4
    assert {n for n in reached(backbone) if n.startswith("perceiver") or ".cross." in n} == gates
    learned = reached(load(mpt))
    assert {n.split(".")[0] for n in learned} >= {"vision", "perceiver", "model"}
    assert {n.split(".cross.")[1] for n in learned if ".cross." in n} >= {"attn.to_q.weight", "attn.to_kv.weight"}


def test_it_is_rebuilt_without_the_original_files(mpt: dict[str, Any], tmp_path: Path) -> None:
    backbone = load(mpt, layers=2)
    backbone.save_assets(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".safetensors", ".bin", ".pt")]
    gone = {"language": "gone/away", "vision": "gone/away", "checkpoint": "gone/away", "layers": 2}
    config = FlamingoBackbone.Config(**{**mpt, **gone}, prompt="do {instruction}")
    again = FlamingoBackbone(config, assets=tmp_path).eval()
    again.load_state_dict(backbone.state_dict())
    rows = [["open", "shut"]]
    old, new = (b(sequence_of(b, frames(2, 2), rows), queries(b)) for b in (backbone, again))
    assert torch.equal(old, new)


def test_a_sequence_opens_as_the_tokenizer_does(mpt: dict[str, Any], tmp_path: Path) -> None:
    assert list(load(mpt).tokenize(frames(1, 1), ["open"]).prefix) == []
    backbone = load(write_flamingo(tmp_path, "llama"))
    block = backbone.tokenize(frames(1, 2), ["open"])
    assert list(block.prefix) == [backbone.tokenizer.bos_token_id]
    text = backbone.tokenizer("<image>do open<|endofchunk|>", add_special_tokens=False)["input_ids"]
    assert block.tokens == [text]  # one image token for any number of cameras


def test_steps_and_images_must_agree(mpt: dict[str, Any]) -> None:
    backbone = load(mpt)
    query, nine = queries(backbone), sequence_of(backbone, frames(1, 9), [["open"]])
    with pytest.raises(ValueError, match="9 cameras, but this backbone distinguishes at most 8"):
        backbone(nine, query)
    sequence = sequence_of(backbone, frames(1, 1), [["open"]])
    ids = sequence.input_ids.masked_fill(backbone.get_image_mask(sequence), 5)
    without = dataclasses.replace(sequence, input_ids=ids)
    with pytest.raises(ValueError, match=r"0 <image> tokens for the images of 1 steps: each step has one"):
        backbone(without, query)
