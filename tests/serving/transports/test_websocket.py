from __future__ import annotations

import asyncio

import pytest

from anyvla.serving.transports.websocket import _unless


def test_work_ends_when_the_client_is_gone_and_the_connection_goes_on() -> None:
    ended = False

    async def work() -> int:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            ended = True
        return 1

    async def run() -> None:
        gone = asyncio.create_task(asyncio.sleep(0.01))
        assert await _unless(gone, work()) is None
        assert ended
        await asyncio.sleep(0)  # raises CancelledError if the cancellation were still due
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_leaves_as_its_answer_is_ready_cancels_nothing_later(turns: int) -> None:
    async def work() -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return 7

    async def leave(delay: int) -> None:
        for _ in range(delay):
            await asyncio.sleep(0)

    async def run() -> None:
        for delay in range(4):
            gone = asyncio.create_task(leave(delay))
            assert await _unless(gone, work()) in (7, None)
            for _ in range(4):
                await asyncio.sleep(0)

    asyncio.run(run())


def test_work_that_is_canceled_inside_has_no_answer() -> None:
    async def run() -> None:
        gone = asyncio.create_task(asyncio.sleep(60))
        canceled = asyncio.get_running_loop().create_future()
        canceled.cancel()
        assert await _unless(gone, canceled_work(canceled)) is None
        gone.cancel()

    async def canceled_work(future: asyncio.Future[None]) -> None:
        await future

    asyncio.run(run())


def test_a_connection_can_be_canceled_while_it_works() -> None:
    async def run() -> None:
        gone = asyncio.create_task(asyncio.sleep(60))
        task = asyncio.create_task(_unless(gone, asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gone.cancel()

    asyncio.run(run())
