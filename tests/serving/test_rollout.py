from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from anyvla.serving.batching import BusyError
from anyvla.serving.rollout import Rollout


class Session:
    """A session that records its seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)


def rollout() -> Rollout:
    return Rollout(Session())  # type: ignore[arg-type]


class Work:
    """Counts its executions, and waits for `open` if there is one."""

    def __init__(self, fails: int = 0) -> None:
        self.runs, self.fails, self.open = 0, fails, asyncio.Event()
        self.open.set()

    async def __call__(self) -> bytes:
        self.runs += 1
        answer = f"answer {self.runs}".encode()
        await self.open.wait()
        if self.runs <= self.fails:
            raise ValueError("no")
        return answer


def play(run: Callable[[Rollout, Work], Awaitable[Any]], fails: int = 0) -> Any:
    async def main() -> Any:
        return await run(rollout(), Work(fails))

    return asyncio.run(main())


def test_the_last_request_is_answered_again_without_being_executed() -> None:
    async def run(one: Rollout, work: Work) -> None:
        assert await one.answer_once(1, 11, work) == b"answer 1"
        assert await one.answer_once(1, 11, work) == b"answer 1"
        assert await one.answer_once(5, 12, work) == b"answer 2"  # numbers may be left out
        assert await one.answer_once(5, 12, work) == b"answer 2"
        with pytest.raises(ValueError, match="has the number 1, but request 5 was executed"):
            await one.answer_once(1, 11, work)
        with pytest.raises(ValueError, match="the number 5 was that of another request"):
            await one.answer_once(5, 13, work)
        assert work.runs == 2

    play(run)


def test_a_request_that_failed_may_be_sent_again_or_its_number_used_for_another() -> None:
    async def run(one: Rollout, work: Work) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await one.answer_once(1, 11, work)
        assert await one.answer_once(1, 12, work) == b"answer 3"

    play(run, fails=2)


def test_a_request_in_progress_is_waited_for_after_its_connection_is_lost() -> None:
    async def run(one: Rollout, work: Work) -> None:
        work.open.clear()
        lost = asyncio.create_task(one.answer_once(1, 11, work))
        await asyncio.sleep(0.01)
        assert work.runs == 1
        lost.cancel()
        again = asyncio.create_task(one.answer_once(1, 11, work))
        await asyncio.sleep(0)
        assert not again.done()
        work.open.set()
        assert await again == b"answer 1"
        assert lost.cancelled()
        assert work.runs == 1

    play(run)


def test_a_new_request_waits_for_the_one_in_progress() -> None:
    async def run(one: Rollout, work: Work) -> None:
        work.open.clear()
        first = asyncio.create_task(one.answer_once(1, 11, work))
        second = asyncio.create_task(one.answer_once(2, 12, work))
        await asyncio.sleep(0)
        work.open.set()
        assert [await first, await second] == [b"answer 1", b"answer 2"]

    play(run)


def test_few_requests_of_a_session_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a client that breaks its connections would fill the memory with observations."""

    async def run(one: Rollout, work: Work) -> None:
        work.open.clear()
        lost = [asyncio.create_task(one.answer_once(number, 11, work)) for number in (1, 1, 1, 2, 3, 4)]
        await asyncio.sleep(0.01)
        with pytest.raises(BusyError, match="4 requests of this session are in progress"):
            await one.answer_once(5, 11, work)
        for task in lost:
            task.cancel()
        work.open.set()
        await asyncio.sleep(0.01)
        with pytest.raises(ValueError, match="no"):
            await one.answer_once(1, 11, work)

    play(run, fails=9)
    assert not caplog.records  # errors that nobody waits for are not logged


def test_a_restart_changes_instruction_and_seed_and_keeps_the_numbers() -> None:
    async def run(one: Rollout, work: Work) -> None:
        one.restart("open it", 3)
        await one.answer_once(1, 11, work)
        one.restart("close it", 4)
        assert (one.instruction, one.seed, one.session.seeds) == ("close it", 4, [3, 4])  # type: ignore[attr-defined]
        assert await one.answer_once(1, 11, work) == b"answer 1"

    play(run)
