"""Chunks are encoded where a batch is made, into the tokens that the loss would encode."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.policy import VLA
from anyvla.training.action_tokens import ActionTokens
from anyvla.training.batches import make_batches
from anyvla.types import Batch
from tests import small

WINDOW = {"name": "interleaved", "window": 3}
STRUCTURES = {
    "tokens": {"decoder": "tokens"},
    "lm_tokens": {"history": WINDOW, "decoder": "lm_tokens"},
    "lm_tokens that sees past chunks": {"history": WINDOW | {"past": "visible"}, "decoder": "lm_tokens"},
    "expert": {"decoder": "expert"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(folder, small.embodiment(), [small.episode(6 + i, seed=i) for i in range(3)])
    return folder


def made(root: Path, vla: VLA, tokens: ActionTokens | None) -> list[Batch]:
    """Return two batches with windows over the beginning and the end of episodes."""
    config = small.recipe(vla.config, {"batch_size": 16, "augment": {"shift": 0}}, root)
    window = WindowConfig(window=vla.history.window, chunk=4, stride=2)
    windows = WindowDataset(small.mixture(root), window)
    batches = make_batches(0, windows, config.training, config.model.view, 0, 60.0, tokens=tokens)
    return list(itertools.islice(batches, 2))


@pytest.mark.parametrize("representation", ["bins", "fast", "vq"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_loss_is_the_same_and_encodes_nothing(
    name: str, representation: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = STRUCTURES[name] | {"representation": representation}
    vla = small.policy(codec=small.fit_codec(representation, tmp_path), **keys)
    tokens = ActionTokens.of(vla)
    assert tokens is not None
    again: ActionTokens = pickle.loads(pickle.dumps(tokens))  # as worker processes get it
    for batch, other in zip(made(root, vla, tokens), made(root, vla, again), strict=True):
        assert batch.tokens is not None
        assert torch.equal(batch.tokens, other.tokens)
        assert not batch.action_mask[batch.step_mask].all()
        plain = dataclasses.replace(batch, tokens=None)
        with torch.no_grad():
            expected = vla.loss(plain, small.generators(16))
        monkeypatch.setattr(vla.codec, "encode", lambda *_: pytest.fail("the loss encodes"))
        with torch.no_grad():
            found = vla.loss(batch, small.generators(16))
        monkeypatch.undo()
        assert torch.equal(found.total, expected.total)
        assert found.parts.keys() == expected.parts.keys()


def test_the_tokens_are_of_scaled_and_padded_chunks(root: Path) -> None:
    """Statistics are -2 to 2, so that half of an action is encoded; a window without a step has no token."""
    vla = small.policy(WINDOW, decoder="lm_tokens", representation="bins")
    for batch in made(root, vla, ActionTokens.of(vla)):
        assert batch.tokens is not None
        assert (batch.tokens[~batch.step_mask] == -1).all()
        chunks = batch.actions[batch.step_mask].clone()
        for chunk, mask in zip(chunks, batch.action_mask[batch.step_mask], strict=True):
            chunk[~mask] = chunk[int(mask.sum()) - 1].clone()
        chunks[..., :3] /= 2
        assert vla.codec is not None
        assert torch.equal(batch.tokens[batch.step_mask], vla.codec.encode(chunks))


def test_continuous_actions_are_not_encoded(root: Path) -> None:
    vla = small.policy()
    assert ActionTokens.of(vla) is None
    assert made(root, vla, None)[0].tokens is None
