from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from anyvla.serving.batching import Batcher, BusyError
from anyvla.types import Observation
from tests import small


def test_a_request_that_was_canceled_before_its_turn_is_not_computed() -> None:
    vla, data = small.policy(), small.batch(3, 1)
    seen: list[int] = []
    act = vla.act

    def counted(observations: Any, sessions: Any) -> Any:
        seen.append(len(observations))
        return act(observations, sessions)

    vla.act = counted  # type: ignore[method-assign]

    async def script() -> None:
        batcher = Batcher(vla, wait_s=0.05)
        sessions = [await batcher.start("go", seed, "small") for seed in range(3)]
        asked = [asyncio.create_task(batcher.act(small.observation(data, row, 0), sessions[row])) for row in range(3)]
        await asyncio.sleep(0)  # all three wait now
        asked[1].cancel()
        first, _, last = await asyncio.gather(*asked, return_exceptions=True)
        alone = [act([small.observation(data, row, 0)], [vla.start("go", row)])[0] for row in (0, 2)]
        for chunk, own in zip((first, last), alone, strict=True):
            assert chunk.actions == pytest.approx(own.actions, abs=1e-5)
        assert batcher.close()

    asyncio.run(script())
    assert seen == [2]


class Held:
    """A policy that answers a session with itself when it is released."""

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Semaphore(0)

    def act(self, observations: Sequence[Observation], sessions: Sequence[Any]) -> list[Any]:
        self.began.set()
        assert self.release.acquire(timeout=20)
        return list(sessions)


def batched(script: Callable[[Batcher, Held, list[float]], Awaitable[None]], **options: Any) -> tuple[list[int], list]:
    """Run a script with a batcher. Return the sizes of the batches, and for how long each waited for others at most."""
    waits: list[float] = []

    async def run() -> list[int]:
        policy = Held()
        batcher = Batcher(policy, **options)  # type: ignore[arg-type]
        wait_for = asyncio.wait_for

        async def noted(awaited: Any, seconds: float) -> Any:
            waits.append(seconds)
            return await wait_for(awaited, seconds)

        asyncio.wait_for = noted  # type: ignore[assignment]
        try:
            await script(batcher, policy, waits)
        finally:
            asyncio.wait_for = wait_for
        assert batcher.close()
        return list(batcher.sizes)

    return asyncio.run(run()), waits


def ask(batcher: Batcher, number: int) -> asyncio.Task[Any]:
    return asyncio.create_task(batcher.act(Observation({}, np.zeros(3)), number))  # type: ignore[arg-type]


def test_a_lone_client_never_waits_for_others() -> None:
    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        for number in range(5):
            policy.release.release()
            assert await ask(batcher, number) == number

    assert batched(script) == ([1] * 5, [])


def test_requests_that_arrive_while_the_policy_computes_are_one_batch_of_at_most_32() -> None:
    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        first = ask(batcher, 0)
        await asyncio.to_thread(policy.began.wait, 20)
        others = [ask(batcher, number) for number in range(1, 71)]
        await asyncio.sleep(0)
        policy.release.release(9)
        assert await asyncio.gather(first, *others) == list(range(71))

    assert batched(script)[0] == [1, 32, 32, 6]


def test_after_a_batch_of_several_the_next_begins_when_as_many_are_there() -> None:
    """Three clients ask, and ask again one after the other: the second batch waits for all three, not for the time."""

    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        policy.release.release(9)
        await asyncio.gather(*(ask(batcher, number) for number in range(3)))
        again = []
        for number in range(3):
            again.append(ask(batcher, number))
            await asyncio.sleep(0.02)
        await asyncio.gather(*again)

    assert batched(script, wait_s=60.0) == ([3, 3], [60.0])


def test_no_request_is_forgotten_while_others_are_canceled_at_any_time() -> None:
    """All clients ask again at once, so that no batch has to wait for the time of a minute: a lost wake-up would."""
    choose = random.Random(0)

    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        policy.release.release(100_000)
        answered = 0
        enough = asyncio.Event()

        async def client(number: int) -> None:
            nonlocal answered
            while True:
                asked = ask(batcher, number)
                if choose.random() < 0.02:  # the client is gone before, while or after the policy computes
                    for _ in range(choose.randrange(12)):
                        await asyncio.sleep(0)
                    asked.cancel()
                for _ in range(choose.randrange(6)):
                    await asyncio.sleep(0)
                (answer,) = await asyncio.gather(asked, return_exceptions=True)
                if not isinstance(answer, asyncio.CancelledError):
                    assert answer == number
                    answered += 1
                    if answered == 3000:
                        enough.set()

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        try:
            await asyncio.wait_for(enough.wait(), 20)
        finally:
            for task in clients:
                task.cancel()
            await asyncio.wait(clients)

    batched(script, wait_s=60.0)


def test_a_client_that_is_left_alone_waits_once_and_no_longer_than_two_milliseconds() -> None:
    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        policy.release.release(9)
        await asyncio.gather(*(ask(batcher, number) for number in range(3)))
        for number in range(3):
            await ask(batcher, number)

    assert batched(script) == ([3, 1, 1, 1], [0.002])


def test_requests_that_were_canceled_make_the_server_not_busy() -> None:
    async def script(batcher: Batcher, policy: Held, waits: list[float]) -> None:
        first = ask(batcher, 0)
        await asyncio.to_thread(policy.began.wait, 20)
        gone = [ask(batcher, number) for number in range(1, 4)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        others = [ask(batcher, number) for number in range(4, 8)]
        await asyncio.sleep(0)
        policy.release.release(9)
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert answers[:4] == [0, 4, 5, 6]
        assert isinstance(answers[4], BusyError)

    assert batched(script, pending=3)[0] == [1, 3]
