"""Reading a sequence again equals using a cache, and lets models without a cache decode tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation, Suffix
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from anyvla.types import Batch
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.backbones.families.registered import REGISTERED
from tests.small import batch, fit_codec, observation, policy, windowed

GPT = {"name": "gpt", "width": 32, "layers": 2, "heads": 2}
WITHOUT_CACHE = ["kosmos-2", "mllama", "idefics", "qwen3_5", "lfm2_vl", "moondream", "qwen_vl"]

POLICY_HEAD = {"name": "policy_head", "window": 3}
INTERLEAVED = {
    "name": "interleaved",
    "window": 3,
    "past": "visible",
}  # the only one that KosMos can read: no block mask
CASES: list[tuple[str, Any]] = [(name, history) for name in WITHOUT_CACHE for history in ("none", POLICY_HEAD)]
CASES += [(name, INTERLEAVED) for name in ("kosmos-2", "mllama", "idefics")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return a function that writes a tiny backbone and returns its recipe section."""

    def make(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(name)
        if name in REGISTERED:
            return {"name": name, **REGISTERED[name](folder)}
        path = write_family(FAMILIES[name], folder)
        return {"name": "auto", "path": str(path), "prompt": "do {instruction}", **FAMILIES[name].options}

    return make


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return fit_codec("bins", tmp_path_factory.mktemp("codec"))


def build_policy(backbone: dict[str, Any], codec: Path | None, history: Any = "none", **keys: Any) -> VLA:
    fuser = GPT if isinstance(history, dict) and history["name"] == "policy_head" else "identity"
    parts: dict[str, Any] = {"decoder": {"name": "lm_tokens", "ids": "added"}, "representation": "bins"}
    return policy(history, fuser, backbone=backbone, codec=codec, readouts=2, **parts | keys)


def remove_cache(backbone: Backbone) -> None:
    backbone.capabilities = backbone.capabilities - {"cache", "keys_values"}


def gradients(vla: VLA, data: Batch) -> dict[str, Tensor]:
    vla.zero_grad()
    vla.loss(data).value.backward()
    return {name: p.grad.clone() for name, p in vla.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["nano", "llava", "qwen2_vl"])
@pytest.mark.parametrize("proprio", ["fuser", "token"])
@pytest.mark.parametrize("history", ["none", POLICY_HEAD], ids=["none", "policy_head"])
def test_reading_again_equals_using_a_cache(made, codec, name, proprio, history):
    vla = build_policy(made(name), codec, history, proprio=proprio)
    data = batch(3, 1 if history == "none" else 3)
    if history != "none":
        data.step_mask[1, 2:], data.action_mask[1, 2:] = False, False
    losses, slopes, chunks = [], [], []
    for _ in range(2):  # the second time without a cache
        losses.append(vla.loss(data).value.detach())
        slopes.append(gradients(vla, data))
        sessions = [vla.start(text) for text in data.instructions]
        for step in range(data.images.shape[1]):
            acted = vla.act([observation(data, row, step) for row in range(3)], sessions)
        chunks.append(np.stack([c.actions for c in acted]))
        remove_cache(vla.backbone)
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(*chunks, atol=1e-4)


def build_continuation(backbone: Backbone, counts: tuple[int, ...]) -> Continuation:
    """Cache steps, the ones of a row in order; each suffix sees its step and the earlier steps of its row."""
    images = torch.randint(0, 256, (sum(counts), 2, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    block = backbone.tokenize(
        images.to(torch.uint8), ["open it", "close the drawer now", "go", "press the button"][: len(images)]
    )
    sequence = lay_out(block, counts, 0, pad_id=backbone.pad_id, query_id=backbone.query_id)
    backbone(sequence, torch.zeros(1, backbone.width), cache := Cache())
    assert cache.valid is not None
    row = torch.repeat_interleave(torch.tensor(counts))
    step = torch.cat([torch.arange(n) for n in counts])[:, None]
    visible = cache.valid[row] & (sequence.step_ids[row] <= step)
    return Continuation(backbone, cache, counts, visible, visible.sum(1))


@torch.no_grad()
def test_steps_that_share_a_row_are_decoded_further_separately(made):
    backbone, counts = policy(backbone=made("llava")).backbone, (2, 1, 1)
    suffix = torch.randn(4, 3, backbone.width)
    cached = build_continuation(backbone, counts).run_suffix(suffix, causal=True)
    remove_cache(backbone)
    after = build_continuation(backbone, counts)
    torch.testing.assert_close(after.run_suffix(suffix, causal=True), cached, atol=1e-5, rtol=1e-4)
    writing = Suffix(after)
    parts = [writing.extend(suffix[:, k : k + n]) for k, n in ((0, 1), (1, 2))]
    torch.testing.assert_close(torch.cat(parts, 1), cached, atol=1e-5, rtol=1e-4)
    chosen = after.select([1, 3]).run_suffix(suffix[[1, 3]], causal=True)
    torch.testing.assert_close(chosen, cached[[1, 3]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["nano", "kosmos-2", "mllama", "idefics"])
@torch.no_grad()
def test_a_suffix_belongs_to_the_last_step_before_it(made, name):
    """In one pass, where the suffix replaces the readouts of the second step, it sees that step's images."""
    backbone, draw = policy(backbone=made(name)).backbone, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8, generator=draw)
    readouts, suffix = torch.randn(2, 3, backbone.width, generator=draw)
    block = backbone.tokenize(images, ["open it", "close the drawer now"])
    sequence = lay_out(block, (2,), 3, pad_id=backbone.pad_id, query_id=backbone.query_id)
    expected = backbone(sequence, torch.stack([readouts, suffix]))[1]
    backbone(sequence, torch.stack([readouts, readouts]), cache := Cache())
    step = torch.arange(2)[:, None]
    visible = (sequence.step_ids <= step) & ~(sequence.query_mask & (sequence.step_ids == step))
    after = Continuation(backbone, cache, (2,), visible, visible.sum(1))
    torch.testing.assert_close(
        after.run_suffix(suffix.expand(2, -1, -1), causal=True)[1], expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("name", "history"), CASES, ids=lambda x: x if isinstance(x, str) else x["name"])
def test_models_without_a_cache_act_as_they_were_trained(made, codec, name, history):
    """Acting equals training, and decoded tokens are the most likely ones in training."""
    vla = build_policy(made(name), codec, history)
    assert "cache" not in vla.backbone.capabilities
    data = batch(2, 1 if history == "none" else 3)
    sessions = [vla.start(text) for text in data.instructions]
    for step in range(data.images.shape[1]):  # the demonstration has the acted chunks, as later steps may see them
        chunks = vla.act([observation(data, row, step) for row in range(2)], sessions)
        data.actions[:, step] = torch.from_numpy(np.stack([c.actions for c in chunks]))
    torch.testing.assert_close(windowed(vla, data), data.actions, atol=1e-4, rtol=0)
    alone = vla.act([observation(data, 0, 0)], [vla.start(data.instructions[0])])[0].actions
    torch.testing.assert_close(torch.from_numpy(alone), data.actions[0, 0], atol=1e-4, rtol=0)
    with torch.no_grad():
        context, head = vla.read(data), vla.decoder
        tokens = head.generate(context, None)
        torch.testing.assert_close(head.logits(context, tokens).argmax(-1), tokens)
    vla.train().loss(data).value.backward()
    assert vla.queries.grad.abs().sum() > 0


def test_models_without_a_cache_learn_to_decode_tokens(made, codec):
    """The paper's one-step discrete structure on the paper's backbone, KosMos."""
    vla, data = build_policy(made("kosmos-2"), codec), batch(3, 1)
    data.actions[:] = data.actions[..., :1, :].sign()
    optimizer = torch.optim.Adam(vla.parameters(), 1e-2)
    for _ in range(150):  # in eval mode: KosMos' dropout is too high for such a small model
        loss = vla.loss(data)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        if loss.value < 0.01:
            break
    assert loss.value < 0.01
    assert (windowed(vla, data) - data.actions).abs().max() < 0.15  # a bin of 32 is 0.125 wide


def test_parallel_decoding_without_a_cache_is_refused(made, codec):
    parallel = {"decoder": {"name": "lm_tokens", "ids": "added", "decoding": "parallel"}}
    with pytest.raises(ConfigError, match="each position sees earlier ones only: use decoding: autoregressive"):
        build_policy(made("kosmos-2"), codec, **parallel)
    with pytest.raises(ConfigError, match="decoder 'lm_tokens' needs a backbone that can continue, lm_head"):
        build_policy(made("florence2"), codec)
    backbone = policy(backbone=made("nano")).backbone
    remove_cache(backbone)
    after = build_continuation(backbone, (1, 1))
    with pytest.raises(ValueError, match="attention to later positions needs a backbone with a cache and a block mask"):
        after.run_suffix(torch.zeros(2, 3, backbone.width), causal=False)
    backbone.context = after.cache.valid.shape[1] + 2
    with pytest.raises(ValueError, match=f"tokens exceeds the model's context of {backbone.context}: use a shorter"):
        after.run_suffix(torch.zeros(2, 3, backbone.width), causal=True)
