"""Requests of one session at once, and with resets, cancellations and other sessions in between."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.histories.interleaved import Interleaved
from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Request, Translator
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.vlaeval import read_message
from anyvla.serving.served_session import ServedSession
from tests import small
from tests.serving.clients import MAPPING, ROBOT, pack, payload, seen
from tests.serving.test_served_session import NAMES, STATEFUL, alone


@pytest.fixture(params=STATEFUL, ids=NAMES)
def stateful(request: pytest.FixtureRequest) -> VLA:
    return small.awake(small.policy(**request.param))


def requested(number: int, instruction: str = "open the drawer") -> Request:
    return Translator(MAPPING, ROBOT).request(read(payload(seen(number), instruction)))


def read(sent: dict[str, Any]) -> dict[str, Any]:
    """Return an observation as the server reads it from its message."""
    return dict(read_message(pack("observation", sent), ServerLimits()).payload)


def script(vla: VLA, run: Callable[[PolicyService], Any]) -> Any:
    """Run a coroutine function with a service."""

    async def whole() -> Any:
        service = PolicyService(vla, Translator(MAPPING, ROBOT), limits=ServerLimits(batch_seconds=5))
        try:
            return await run(service)
        finally:
            assert service.close()

    return asyncio.run(whole())


def test_requests_of_one_session_that_come_at_once_take_turns(stateful: VLA) -> None:
    """The actions are those of the same observations one after the other, and no batch has the session twice."""

    async def run(service: PolicyService) -> list[np.ndarray]:
        session = service.open_session()
        return list(await asyncio.gather(*(session.act(requested(number)) for number in range(5))))

    assert np.allclose(script(stateful, run), alone(stateful, [seen(i) for i in range(5)]), atol=1e-5)


def test_a_whole_chunk_is_predicted_for_each_request(stateful: VLA) -> None:
    async def run(service: PolicyService) -> list[np.ndarray]:
        session = service.open_session()
        return [await session.predict(requested(number)) for number in range(3)]

    session = stateful.start("open the drawer", 0)
    expected = [stateful.act([seen(number)], [session])[0].actions for number in range(3)]
    assert np.allclose(script(stateful, run), expected, atol=1e-5)


def held(vla: VLA, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let `act` wait. Return the event that it began, and the one that lets it continue."""
    began, go_on, act = threading.Event(), threading.Event(), vla.act

    def slow(*args: Any) -> Any:
        began.set()
        assert go_on.wait(20)
        return act(*args)

    monkeypatch.setattr(vla, "act", slow)
    return began, go_on


@pytest.mark.parametrize("kind", ["act", "predict"])
def test_a_reset_while_the_policy_computes_is_not_undone_by_its_result(
    stateful: VLA, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    began, go_on = held(stateful, monkeypatch)

    async def run(service: PolicyService) -> np.ndarray:
        session = service.open_session()
        asked = asyncio.create_task(getattr(session, kind)(requested(0)))
        await asyncio.to_thread(began.wait, 20)
        session.reset()
        go_on.set()
        await asked
        return await session.act(requested(1))

    got = script(stateful, run)
    (chunk,) = stateful.act([seen(1)], [stateful.start("open the drawer", 1)])
    assert np.allclose(got, chunk.actions[0], atol=1e-5)


def test_a_request_that_is_canceled_while_the_policy_computes_changes_nothing(
    stateful: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(stateful, [seen(0), seen(9), seen(2)])

    async def run(service: PolicyService) -> list[np.ndarray]:
        session = service.open_session()
        got = [await session.act(requested(0)), await session.act(requested(9))]
        with monkeypatch.context() as patch:
            began, go_on = held(stateful, patch)
            asked = asyncio.create_task(session.act(requested(1)))
            await asyncio.to_thread(began.wait, 20)
            asked.cancel()
            go_on.set()
            await asyncio.wait([asked])
            got.append(await session.act(requested(2)))
        return got

    assert np.allclose(script(stateful, run), expected, atol=1e-5)


def test_an_idle_session_releases_what_it_shares_with_its_batch_and_acts_as_before(stateful: VLA) -> None:
    observations = [seen(10 + i) for i in range(6)]  # of session 1; the others see something else

    async def run(service: PolicyService) -> tuple[list[np.ndarray], list[int]]:
        sessions = [service.open_session() for _ in range(4)]
        service.batcher._expected = 4
        got, sizes = [], []
        for step in range(len(observations)):
            if step == 3:
                sizes.append(count_bytes(sessions[1]))
                await sessions[1].separate(idle_s=60)
                sizes.append(count_bytes(sessions[1]))
                await sessions[1].separate(idle_s=0)
                sizes.append(count_bytes(sessions[1]))
            answers = await asyncio.gather(
                *(session.act(requested(10 * k + step)) for k, session in enumerate(sessions))
            )
            got.append(answers[1])
        assert service.batcher.sizes[0] == 4
        return got, sizes

    got, (before, kept, after) = script(stateful, run)
    assert np.allclose(got, alone(stateful, observations), atol=1e-5)
    assert before == kept >= after
    if isinstance(stateful.history, Interleaved):
        assert after < before / 2  # the keys and values of one session instead of four


def count_bytes(session: ServedSession) -> int:
    """Return the bytes of the tensors that a session reaches in its history."""
    assert session._session is not None
    storages = [t.untyped_storage() for t in find_tensors(session._session.history_state)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def find_tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | deque):
        for item in value:
            yield from find_tensors(item)
    elif hasattr(value, "__dict__"):
        for item in vars(value).values():
            yield from find_tensors(item)
