from __future__ import annotations

import asyncio
from typing import Any

import pytest

from anyvla.serving.batching import Batcher
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
