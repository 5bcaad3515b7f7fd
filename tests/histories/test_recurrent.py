"""The state of a recurrent fuser is the memory of a session, over any number of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anyvla.combinations import explain_conflict
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.session import Session, copy_sessions, separate
from tests.small import FUSERS, HISTORIES, batch, model, observation, policy, windowed

RECURRENT = HISTORIES[3]
LSTM, MINGRU = FUSERS[2], FUSERS[4]
STEPS = 20  # more than twice the windows of other tests
fusers = pytest.mark.parametrize("fuser", [LSTM, MINGRU], ids=["lstm", "mingru"])


def act(vla: VLA, data: Any, rows: list[int], step: int, sessions: list[Session]) -> torch.Tensor:
    for session in sessions:
        session.generator.manual_seed(0)
    chunks = vla.act([observation(data, row, step) for row in rows], sessions)
    return torch.from_numpy(np.stack([chunk.actions for chunk in chunks]))


@fusers
@pytest.mark.parametrize("keys", [{}, {"proprio": "token", "decoder": "flow"}], ids=["regression", "flow"])
def test_a_long_session_acts_as_its_whole_row_was_trained(fuser: Any, keys: dict[str, Any]) -> None:
    """Step by step to the end of the episode, while another session begins later."""
    vla, data = policy(RECURRENT, fuser, readouts=2, **keys), batch(2, STEPS)
    whole = windowed(vla, data)
    first, late = vla.start(data.instructions[0]), vla.start(data.instructions[1])
    for step in range(STEPS):
        acted = act(vla, data, [0], step, [first])
        torch.testing.assert_close(acted[0], whole[0, step], atol=1e-4, rtol=1e-4)
        if step >= 3:
            acted = act(vla, data, [1], step - 3, [late])
            torch.testing.assert_close(acted[0], whole[1, step - 3], atol=1e-4, rtol=1e-4)


@fusers
def test_sessions_of_different_ages_act_together(fuser: Any) -> None:
    vla, data = policy(RECURRENT, fuser), batch(2, 6)
    whole, old, new = windowed(vla, data), vla.start(data.instructions[0]), vla.start(data.instructions[1])
    for step in range(3):
        act(vla, data, [0], step, [old])
    for step in range(3):
        shown = [observation(data, 0, 3 + step), observation(data, 1, step)]
        one, two = (torch.from_numpy(chunk.actions) for chunk in vla.act(shown, [old, new]))
        torch.testing.assert_close(one, whole[0, 3 + step], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(two, whole[1, step], atol=1e-4, rtol=1e-4)


@fusers
def test_the_loss_of_the_last_step_trains_the_backbone_on_the_first(fuser: Any) -> None:
    """No gradient is cut between the steps of a row."""
    vla, data = policy(RECURRENT, fuser).train(), batch(1, STEPS)
    data.action_mask[:, :-1] = False
    read: list[torch.Tensor] = []
    vla.fuser.register_forward_pre_hook(lambda _, given: given[0].retain_grad() or read.append(given[0]))
    vla.loss(data).value.backward()
    assert read[0].grad is not None
    assert read[0].grad[0].abs().amax(1).gt(0).all()


def test_a_copied_session_does_not_change_the_original() -> None:
    vla, data = policy(RECURRENT, MINGRU), batch(1, 4)
    session = vla.start("open it")
    act(vla, data, [0], 0, [session])
    [copied] = copy_sessions([session], vla.history)
    separate(copied, vla.history)
    for step in (2, 3):
        act(vla, data, [0], step, [copied])
    alone = vla.start("open it")
    act(vla, data, [0], 0, [alone])
    assert torch.equal(act(vla, data, [0], 1, [session]), act(vla, data, [0], 1, [alone]))


@fusers
def test_a_session_of_any_length_keeps_one_state_and_nothing_of_its_batch(fuser: Any) -> None:
    """A session that acted beside 15 others must not keep the memory of theirs."""
    vla, data = policy(RECURRENT, fuser), batch(16, 1)
    sessions = [vla.start("open it") for _ in range(16)]
    for _ in range(60):  # more than the 40 steps of the longest row
        vla.act([observation(data, row, 0) for row in range(16)], sessions)
    for session in sessions:
        state = session.fuser_state
        assert state is not None
        assert state.untyped_storage().nbytes() == 4 * state.numel() == 4 * vla.fuser.start().numel()
        assert session.history_state is None
        assert [x.untyped_storage().nbytes() for x in session.proprio] == [12]


def test_steps_that_are_read_in_pieces_have_the_same_loss_and_gradients() -> None:
    data = batch(3, 5)
    data.step_mask[1, 3:] = data.step_mask[2, 1:] = False
    found = {}
    for at_once in (None, 2):
        vla = policy(RECURRENT | {"at_once": at_once}, MINGRU).train()
        read: list[int] = []
        vla.backbone.register_forward_pre_hook(lambda _, given, read=read: read.append(len(given[0].images)))
        loss = vla.loss(data)
        forward = list(read)
        loss.value.backward()
        found[at_once] = loss.value.detach(), {n: p.grad for n, p in vla.named_parameters() if p.grad is not None}
        assert forward == ([9] if at_once is None else [5, 3, 1])
        assert sorted(read) == sorted(forward if at_once is None else 2 * forward)  # read again for the gradients
    assert found[None][1].keys() == found[2][1].keys()
    torch.testing.assert_close(found[2], found[None], atol=1e-5, rtol=1e-4)


def test_only_a_fuser_with_a_state_can_carry_it() -> None:
    assert explain_conflict("recurrent", "lstm", "regression", "continuous") is None
    reason = explain_conflict("recurrent", "gpt", "regression", "continuous")
    assert reason == "history recurrent carries the state of its fuser over the session, and fuser gpt has no state"
    assert "leaves time to the fuser" in str(explain_conflict("recurrent", "identity", "regression", "continuous"))
    with pytest.raises(ConfigError, match=r"fuser gpt has no state; the nearest that is possible: .*fuser: lstm"):
        model("recurrent", FUSERS[3])


def test_predictions_at_every_step_are_those_of_a_session() -> None:
    vla, data = policy(RECURRENT, LSTM), batch(2, 4)
    data.step_mask[1, 2:] = False
    predicted = vla.predict(data, every_step=True)
    torch.testing.assert_close(predicted, windowed(vla, data)[data.step_mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vla.predict(data), predicted[[3, 5]])
