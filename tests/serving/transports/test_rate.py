from __future__ import annotations

import asyncio

import pytest

from anyvla.serving.transports.rate import Rate


def test_requests_pass_at_their_pace_and_a_second_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 10 per second, 10 pass at once, then one every 0.1 s. After half a second without one, 5 pass at once."""
    waited: list[float] = []

    async def run() -> None:
        loop, clock = asyncio.get_running_loop(), [100.0]

        async def sleep(seconds: float) -> None:
            waited.append(seconds)
            clock[0] += seconds

        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: clock[0])
            patch.setattr(asyncio, "sleep", sleep)
            pace = Rate(10)
            for _ in range(14):
                await pace.wait()
            assert clock[0] == pytest.approx(100.4)
            clock[0] += 0.5
            for _ in range(7):
                await pace.wait()
            assert clock[0] == pytest.approx(101.1)
            clock[0] += 1000
            for _ in range(12):
                await pace.wait()
            assert clock[0] == pytest.approx(1101.3)

    asyncio.run(run())
    assert waited == pytest.approx([0.1] * 8)
