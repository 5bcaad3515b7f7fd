"""Limit the requests per second of a client."""

from __future__ import annotations

import asyncio


class Rate:
    """Delays requests beyond `per_second`; after a pause, as many may pass at once."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._next = 0.0  # when the request after the allowed burst may pass

    async def wait(self) -> None:
        """Return when the next request may pass."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - 1) + 1 / self._per_second
        if self._next > now:
            await asyncio.sleep(self._next - now)
