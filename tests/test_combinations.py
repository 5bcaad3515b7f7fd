"""Combinations of history, fuser, decoder and representation, on a small backbone, under one set of laws.

Every history meets every fuser that goes with it, and every decoder with every representation. A decoder reads a fuser
through one vector, so all triples are left to the slow tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.combinations import Combination, combinations
from anyvla.policy import VLA
from anyvla.session import Session
from anyvla.types import Batch
from tests.small import FUSERS, HISTORIES, batch, cut, embodiment, fit_codec, generators, observation, policy, windowed

VALID = [c for c in combinations() if c.reason is None]
STEPS = 5
LENGTHS = {  # of the window that a session acts on, at each of its steps, where windows have 3 steps at most
    "none": [1, 1, 1, 1, 1],
    "policy_head": [1, 2, 3, 3, 3],
    "interleaved": [1, 2, 3, 3, 2],  # a full run ends, and the run that began a step later replaces it
    "recurrent": [1, 2, 3, 4, 5],  # all steps: the state is carried over the session
}


def representatives(every_history: bool) -> Iterator[Combination]:
    """Each decoder and representation, with each history or the next one, and with the next fuser that goes with it."""
    pairs = list(dict.fromkeys((c.decoder, c.representation) for c in VALID))
    fusers = {h: cycle(dict.fromkeys(c.fuser for c in VALID if c.history == h)) for h in LENGTHS}
    turn = cycle(LENGTHS)
    for decoder, representation in pairs:
        for history in LENGTHS if every_history else [next(turn)]:
            yield Combination(history, next(fusers[history]), decoder, representation, None)


REPRESENTATIVE = list(representatives(every_history=True))
FEW = list(representatives(every_history=False))


def mark_others_slow(chosen: list[Combination]) -> list[Any]:
    """Return the chosen combinations, and the others marked as slow."""
    slow = [pytest.param(c, marks=pytest.mark.slow) for c in VALID if c not in chosen]
    return [*chosen, *slow]


def name(c: Combination) -> str:
    return f"{c.history}-{c.fuser}-{c.decoder}-{c.representation}"


every_history = pytest.mark.parametrize("structure", mark_others_slow(REPRESENTATIVE), ids=name)
every_decoder = pytest.mark.parametrize("structure", mark_others_slow(FEW), ids=name)


def of(parts: list[Any], name: str) -> Any:
    return next(p for p in parts if p == name or (isinstance(p, dict) and p["name"] == name))


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    names = {c.representation for c in VALID}
    return {name: fit_codec(name, tmp_path_factory.mktemp(name)) for name in sorted(names)}


@pytest.fixture
def vla(structure: Combination, codecs: dict[str, Path | None]) -> VLA:
    c = structure
    return policy(
        of(HISTORIES, c.history),
        of(FUSERS, c.fuser),
        decoder=c.decoder,
        representation=c.representation,
        codec=codecs[c.representation],
        readouts=2,
    )


def act(vla: VLA, data: Batch, rows: list[int], step: int, sessions: list[Any]) -> torch.Tensor:
    """Return the actions of sessions at a step of the data, with noise of the seed 0."""
    for session in sessions:
        session.generator.manual_seed(0)
    chunks = vla.act([observation(data, row, step) for row in rows], sessions)
    return torch.from_numpy(np.stack([c.actions for c in chunks]))


def test_there_are_sixty_combinations_and_each_pair_has_a_representative() -> None:
    assert len(VALID) >= 60
    assert set(REPRESENTATIVE) | set(FEW) <= set(VALID)
    for pair in ("history fuser", "history decoder", "decoder representation"):
        one, other = pair.split()
        assert {(getattr(c, one), getattr(c, other)) for c in REPRESENTATIVE} == {
            (getattr(c, one), getattr(c, other)) for c in VALID
        }


def window_length(session: Session, step: int) -> int:
    """Return the number of steps that the session acted on at its last step, `step` (from 0)."""
    if session.fuser_state is not None:
        return step + 1
    state = session.history_state
    return len(state[0].readouts if hasattr(state[0], "readouts") else state)


@every_history
def test_it_acts_as_it_was_trained(structure: Combination, vla: VLA) -> None:
    """At every step of an episode, beside another session and alone."""
    data = batch(2, STEPS)
    whole = windowed(vla, cut(data, 0, vla.history.window))
    together = [vla.start(text) for text in data.instructions]
    alone, late = vla.start(data.instructions[0]), vla.start(data.instructions[1])
    for step in range(STEPS):
        order = [1, 0] if step in (1, STEPS - 1) else [0, 1]  # sessions may come in any order
        acted = act(vla, data, order, step, [together[row] for row in order])[order]
        length = window_length(together[0], step)
        assert length == LENGTHS[structure.history][step]
        seen = windowed(vla, cut(data, step + 1 - length, step + 1))
        torch.testing.assert_close(acted, seen[:, -1], atol=1e-4, rtol=1e-4)
        if step < vla.history.window:  # the first steps of a training window
            torch.testing.assert_close(acted, whole[:, step], atol=1e-4, rtol=1e-4)
        if step < 2:
            torch.testing.assert_close(acted[:1], act(vla, data, [0], step, [alone]), atol=1e-4, rtol=1e-4)
        if step == 2:  # in another order, beside a session that is younger
            mixed = act(vla, data, [1, 0], step, [late, alone])
            torch.testing.assert_close(mixed[1:], acted[:1], atol=1e-4, rtol=1e-4)
            first = windowed(vla, cut(data, step, step + 1))
            torch.testing.assert_close(mixed[:1], first[1:, 0], atol=1e-4, rtol=1e-4)


@every_history
def test_masked_steps_and_actions_change_no_loss(structure: Combination, vla: VLA) -> None:
    data, other = batch(2, vla.history.window), batch(2, vla.history.window, seed=1)
    step_mask, action_mask = data.step_mask.clone(), data.action_mask.clone()
    step_mask[0, 1:] = False
    action_mask[0, 1:] = False
    action_mask[1, 0, 2:] = False
    masked = dataclasses.replace(data, step_mask=step_mask, action_mask=action_mask)
    garbage = dataclasses.replace(
        masked,
        images=torch.where(step_mask[..., None, None, None, None], data.images, other.images),
        actions=torch.where(action_mask[..., None], data.actions, other.actions),
        proprio=torch.where(step_mask[..., None], data.proprio, other.proprio),
    )
    one, two = vla.loss(masked, generators(2)), vla.loss(garbage, generators(2))
    torch.testing.assert_close(one.value, two.value)
    assert torch.isfinite(one.value)
    assert one.count == action_mask.sum() * 4


@every_decoder
def test_it_overfits_one_batch(structure: Combination, vla: VLA) -> None:
    vla.train()
    data = batch(2, vla.history.window)
    optimizer = torch.optim.AdamW([p for p in vla.parameters() if p.requires_grad], 4e-3, weight_decay=0.0)
    first = float(vla.loss(data, generators(2)).value.detach())
    for step in range(300):
        optimizer.zero_grad()
        vla.loss(data, generators(2, step % 4)).value.backward()
        torch.nn.utils.clip_grad_norm_(vla.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9 and float(vla.loss(data, generators(2)).value.detach()) < 0.25 * first:
            return
    pytest.fail("the loss of one batch stays above a quarter of what it was")


@every_decoder
def test_it_runs_in_bfloat16(structure: Combination, vla: VLA) -> None:
    data = batch(2, vla.history.window)
    with torch.autocast("cpu", torch.bfloat16):
        loss = vla.train().loss(data, generators(2)).value
        loss.backward()
        [chunk] = vla.eval().act([observation(data, 0, 0)], [vla.start("open it")])
    exact = float(vla.loss(data, generators(2)).value.detach())
    assert float(loss.detach()) == pytest.approx(exact, rel=0.1)
    assert np.isfinite(chunk.actions).all()
    assert all(torch.isfinite(p.grad).all() for p in vla.parameters() if p.grad is not None)


@every_decoder
def test_a_checkpoint_acts_the_same(structure: Combination, vla: VLA, tmp_path: Path) -> None:
    data = batch(1, 1)
    vla.save(tmp_path / "checkpoint")
    loaded = VLA.load(tmp_path / "checkpoint")
    one, other = (act(v, data, [0], 0, [v.start("open it")]) for v in (vla, loaded))
    torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert one.shape == (1, 4, embodiment().action.size)


INTERLEAVED = {"name": "interleaved", "window": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "past visible": {"history": INTERLEAVED | {"past": "visible"}},
    "past visible to the backbone that writes": {
        "history": INTERLEAVED | {"past": "visible"},
        "decoder": "lm_tokens",
        "representation": "bins",
    },
    "past visible, read again": {
        "history": INTERLEAVED | {"past": "visible", "cache": False},
        "decoder": "lm_tokens",
        "representation": "bins",
    },
    "read again": {"history": INTERLEAVED | {"cache": False}, "decoder": "expert"},
    "proprio as a token": {"history": INTERLEAVED, "proprio": "token", "decoder": "expert"},
    "no proprio": {"proprio": "none", "decoder": "lm_tokens", "representation": "bins"},
    "parallel": {
        "history": INTERLEAVED,
        "decoder": {"name": "lm_tokens", "decoding": "parallel"},
        "representation": "bins",
    },
    "many readouts": {"readouts": 64},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_act_as_they_were_trained(name: str) -> None:
    keys = {"history": "none", "readouts": 2} | OPTIONS[name]
    vla = policy(keys.pop("history"), **keys)
    data = batch(2, STEPS)
    sessions = [vla.start(text) for text in data.instructions]
    kind = "policy_head" if "read again" in name else vla.config.history.name  # which keeps the last steps, too
    acted: list[torch.Tensor] = []
    for step in range(STEPS):
        acted.append(act(vla, data, [0, 1], step, sessions))
        begin = step + 1 - LENGTHS[kind][step]
        assert window_length(sessions[0], step) == LENGTHS[kind][step]
        actions = data.actions.clone()
        actions[:, : step + 1] = torch.stack(acted, 1)  # train on the executed chunks
        seen = windowed(vla, cut(dataclasses.replace(data, actions=actions), begin, step + 1))
        torch.testing.assert_close(acted[-1], seen[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("past", ["hidden", "visible"])
def test_a_session_without_a_cache_sees_the_same_window(past: str) -> None:
    """It acts as one with a cache while the window grows, and reads the whole window at each step."""
    chunks: dict[bool, list[torch.Tensor]] = {}
    for cache, expected in ((True, [1, 2, 2, 2, 2]), (False, [1, 2, 3, 3, 3])):  # two runs, or a window
        history = INTERLEAVED | {"past": past, "cache": cache}
        vla, data = policy(history, decoder="lm_tokens", representation="bins", readouts=2), batch(1, STEPS)
        read: list[int] = []  # steps that the backbone reads in each of its calls
        vla.backbone.register_forward_pre_hook(lambda _, given, read=read: read.append(len(given[0].images)))
        session = vla.start("open it")
        chunks[cache] = []
        for step in range(STEPS):
            before = sum(read)
            chunks[cache].append(act(vla, data, [0], step, [session]))
            assert sum(read) - before == expected[step]
    for step in range(3):
        torch.testing.assert_close(chunks[True][step], chunks[False][step], atol=1e-4, rtol=1e-4)


def test_a_step_sees_its_past_only_if_it_is_visible() -> None:
    for past in ("hidden", "visible"):
        vla = policy(INTERLEAVED | {"past": past}, decoder="lm_tokens", representation="bins")
        data = batch(1, 3)
        other = dataclasses.replace(data, actions=data.actions.flip(2))
        one, two = (vla.read(d).context for d in (data, other))
        assert torch.equal(one[:1], two[:1])  # the first step has no past
        assert torch.equal(one[1:], two[1:]) == (past == "hidden")


def test_a_session_of_any_length_keeps_no_more_than_two_windows() -> None:
    vla = policy({"name": "interleaved", "window": 6})
    data, session = batch(1, 1), vla.start("open it")
    most, lengths = 0, []
    for _ in range(40):
        vla.act([observation(data, 0, 0)], [session])
        caches = {id(run.cache): run.cache for run in session.history_state}
        most = max(most, sum(cache.valid.numel() for cache in caches.values()))
        lengths.append(window_length(session, len(lengths)))
    alone = vla.start("open it")
    vla.act([observation(data, 0, 0)], [alone])
    assert most <= 2 * 6 * alone.history_state[0].cache.valid.numel()
    assert lengths[:6] == [1, 2, 3, 4, 5, 6]
    assert set(lengths[6:]) == {4, 5, 6}
