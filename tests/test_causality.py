"""No step of a training window depends on a later step, and each depends on all earlier steps that it should see.

For every history and every decoder, in training mode, one step of a window is changed at a time. The tables of the
steps whose outputs may and must change are written out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyvla.policy import VLA
from anyvla.types import Batch
from tests.small import FUSERS, batch, cut, fit_codec, observation, policy

WINDOW = 3
HEAD = {"name": "policy_head", "window": WINDOW}
INTERLEAVED = {"name": "interleaved", "window": WINDOW}
VISIBLE = INTERLEAVED | {"past": "visible"}
HISTORIES: dict[str, dict[str, Any]] = {
    "recurrent": {"history": {"name": "recurrent", "steps": WINDOW}, "fuser": FUSERS[4]},
    "lstm": {"history": HEAD, "fuser": FUSERS[2]},
    "gpt": {"history": HEAD, "fuser": FUSERS[3]},
    "interleaved": {"history": INTERLEAVED},
    "interleaved, proprio as a token": {"history": INTERLEAVED, "proprio": "token"},
    "past visible": {"history": VISIBLE},
}
OUTSIDE: dict[str, dict[str, Any]] = {
    "regression": {"decoder": "regression"},
    "flow": {"decoder": "flow"},
    "diffusion": {"decoder": "diffusion"},
    "tokens": {"decoder": "tokens", "representation": "bins"},
}
INSIDE: dict[str, dict[str, Any]] = {  # the backbone
    "expert": {"decoder": "expert"},
    "expert with tokens": {"decoder": "expert", "representation": "bins"},
    "lm_tokens": {"decoder": "lm_tokens", "representation": "bins"},
    "lm_tokens of unlike length": {"decoder": "lm_tokens", "representation": "fast"},
    "lm_tokens, parallel": {"decoder": {"name": "lm_tokens", "decoding": "parallel"}, "representation": "bins"},
}
CASES = [
    *((h, d) for h in HISTORIES for d in INSIDE),
    *((h, d) for h in ("gpt", "interleaved") for d in OUTSIDE),
    ("lstm", "regression"),
    ("past visible", "regression"),
]
NONE = torch.zeros(WINDOW, WINDOW, dtype=torch.bool)
OWN = torch.eye(WINDOW, dtype=torch.bool)
LATER = torch.ones(WINDOW, WINDOW, dtype=torch.bool).triu(1)  # row: the step that was changed
EPSILON = 2e-6  # smaller differences are rounding errors


@dataclass(frozen=True)
class Outputs:
    """The outputs of each step of one window, in training."""

    vectors: Tensor  # (W, C), the contexts
    losses: Tensor  # (W,)
    chunks: Tensor  # (W, N, A), sampled
    blind: Tensor  # (W,), the losses of a decoder whose context is zero: it sees the backbone's cache only


def compute_outputs(vla: VLA, data: Batch) -> Outputs:
    assert vla.training
    with torch.no_grad():
        context = vla.read(data)
        blind = dataclasses.replace(context, context=torch.zeros_like(context.context))
        actions = vla.action_normalizer.normalize(data.actions, data.robots)[0]

        def losses(read: Any) -> Tensor:
            of_each = OWN[:, :, None].expand(-1, -1, actions.shape[1])
            return torch.stack(
                [vla.decoder.loss(read, actions, mask, [make_generator()] * WINDOW).total for mask in of_each]
            )

        generators = [make_generator(step) for step in range(len(actions))]
        chunks = vla.decoder.sample(context, generators)
        return Outputs(context.context, losses(context), chunks, losses(blind))


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_observation(data: Batch, other: Batch, step: int) -> Batch:
    """Return the window with another observation at one step."""
    images, proprio = data.images.clone(), data.proprio.clone()
    images[:, step], proprio[:, step] = other.images[:, step], other.proprio[:, step]
    return dataclasses.replace(data, images=images, proprio=proprio)


def with_chunk(data: Batch, other: Batch, step: int) -> Batch:
    """Return the window with another demonstrated chunk at one step."""
    actions = data.actions.clone()
    actions[:, step] = other.actions[:, step]
    return dataclasses.replace(data, actions=actions)


def find_changes(one: Tensor, other: Tensor) -> list[bool]:
    return ((one - other).flatten(1) if one.ndim > 1 else (one - other)[:, None]).abs().amax(1).gt(EPSILON).tolist()


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    return {name: fit_codec(name, tmp_path_factory.mktemp(name)) for name in ("continuous", "bins", "fast")}


def make_policy(history: str, decoder: str, codecs: dict[str, Path | None]) -> VLA:
    keys = HISTORIES[history] | (OUTSIDE | INSIDE)[decoder]
    vla = policy(codec=codecs[keys.get("representation", "continuous")], readouts=2, **keys)
    with torch.no_grad():  # some networks ignore their input at first
        for name, weight in vla.decoder.named_parameters():
            if "modulation" in name or "out" in name:
                weight += torch.randn(weight.shape, generator=make_generator(1)) * 0.2
    return vla.train()


@pytest.mark.parametrize(("history", "decoder"), CASES)
def test_a_step_depends_on_itself_and_its_past_only(history: str, decoder: str, codecs: dict[str, Path | None]) -> None:
    vla = make_policy(history, decoder, codecs)
    data, other = batch(1, WINDOW), batch(1, WINDOW, seed=1)
    base = compute_outputs(vla, data)
    of_shown = [compute_outputs(vla, with_observation(data, other, step)) for step in range(WINDOW)]
    of_done = [compute_outputs(vla, with_chunk(data, other, step)) for step in range(WINDOW)]

    def table(of: list[Outputs], name: str) -> list[list[bool]]:
        return [find_changes(getattr(base, name), getattr(o, name)) for o in of]

    fused = (OWN | LATER).tolist()
    past = LATER if history == "past visible" and decoder in INSIDE and decoder != "expert" else NONE
    assert table(of_shown, "vectors") == fused
    assert table(of_shown, "losses") == fused
    assert table(of_done, "vectors") == past.tolist()
    assert table(of_done, "losses") == (OWN | past).tolist()
    for of in (of_shown, of_done):
        for step in range(WINDOW):
            assert torch.equal(of[step].chunks[:step], base.chunks[:step])
    if decoder in INSIDE:  # it sees the steps through the backbone's cache, too
        seen = OWN if history in ("lstm", "gpt", "recurrent") else OWN | LATER
        assert table(of_shown, "blind") == seen.tolist()
        assert table(of_done, "blind") == (OWN | past).tolist()


@pytest.mark.parametrize(("history", "decoder"), CASES)
def test_the_loss_trains_all_that_a_step_sees(history: str, decoder: str, codecs: dict[str, Path | None]) -> None:
    vla, data = make_policy(history, decoder, codecs), batch(1, WINDOW)
    vla.loss(data, [make_generator()]).value.backward()
    assert vla.queries.grad.abs().amax(1).gt(0).tolist() == [True, True]
    vision = next(vla.backbone.model.model.vision_tower.parameters())
    parts = [
        vla.fuser,
        vla.backbone.model.model.language_model,
        *([] if vla.proprio_embedding is None else [vla.proprio_embedding]),
    ]
    assert vision.grad.any()
    for part in parts:
        assert all(weight.grad.any() for weight in part.parameters() if weight.requires_grad and weight.ndim > 1)
    if decoder in INSIDE:  # through the cache alone
        vla.zero_grad()
        context = vla.read(data)
        blind = dataclasses.replace(context, context=torch.zeros_like(context.context))
        vla.decoder.loss(blind, data.actions[0], data.action_mask[0], [make_generator()] * WINDOW).value.backward()
        assert vision.grad is not None
        assert vision.grad.any()


@pytest.mark.parametrize(("history", "decoder"), CASES)
def test_the_beginning_of_a_window_equals_a_shorter_window(
    history: str, decoder: str, codecs: dict[str, Path | None]
) -> None:
    """The later steps may be absent or masked, and the batch may contain any other window."""
    vla, data = make_policy(history, decoder, codecs), batch(2, WINDOW)
    with torch.no_grad():
        whole = vla.read(data).context.view(2, WINDOW, -1)
        for steps in range(1, WINDOW + 1):
            for window in range(2):
                alone = vla.read(cut(select_window(data, window), 0, steps)).context
                torch.testing.assert_close(alone, whole[window, :steps], atol=1e-5, rtol=1e-5)
            mask = data.step_mask.clone()
            mask[0, steps:] = False
            masked = vla.read(dataclasses.replace(data, step_mask=mask)).context
            torch.testing.assert_close(masked[:steps], whole[0, :steps], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(masked[steps:], whole[1], atol=1e-5, rtol=1e-5)


def select_window(data: Batch, window: int) -> Batch:
    return data.cut(window, window + 1)


@pytest.mark.parametrize("past", ["hidden", "visible"])
def test_a_suffix_takes_the_position_of_the_first_readout_of_its_step(
    past: str, codecs: dict[str, Path | None]
) -> None:
    """In windows and in sessions; positions of earlier readouts count, visible or not."""
    history = INTERLEAVED | {"past": past}
    vla = policy(history, decoder="lm_tokens", representation="bins", codec=codecs["bins"], readouts=2)
    data, readouts = batch(2, WINDOW), 2
    previous = 16 if past == "visible" else 0  # tokens of the previous chunk: 4 actions of 4 dims
    block = vla.backbone.tokenize(data.images[:, 0], data.instructions)
    expected = torch.tensor(
        [
            [len(block.prefix) + (k + 1) * (previous + len(tokens)) + k * readouts for k in range(WINDOW)]
            for tokens in block.tokens
        ]
    )
    read = vla.read(data).continuation
    assert read is not None
    assert read.positions.view(2, WINDOW).tolist() == expected.tolist()
    visible = expected - (torch.arange(WINDOW) * readouts if past == "hidden" else 0)
    assert read.visible.sum(1).view(2, WINDOW).tolist() == visible.tolist()
    seen: list[Any] = []
    sample = vla.decoder.sample
    vla.decoder.sample = lambda context, generators: seen.append(context.continuation) or sample(context, generators)
    sessions = [vla.start(text) for text in data.instructions]
    for step in range(WINDOW):
        vla.act([observation(data, row, step) for row in range(2)], sessions)
        assert seen[step].positions.tolist() == expected[:, step].tolist()
        assert seen[step].visible.sum(1).tolist() == visible[:, step].tolist()
