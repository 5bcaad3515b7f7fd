"""The messages that wait for a page. A slow page gets all texts, but of each robot only the newest picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MOST_TEXTS = 500


class Outbox:
    """Messages from the thread of a visit to the event loop that sends them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._texts: list[str] = []
        self._pictures: dict[int, bytes] = {}
        self._news = asyncio.Event()

    def post_text(self, text: str) -> None:
        """Add a text; call it from any thread."""
        self._call(lambda: self._texts.append(text))

    def post_picture(self, robot: int, picture: bytes) -> None:
        """Add the newest picture of a robot; call it from any thread."""
        self._call(lambda: self._pictures.update({robot: picture}))

    def _call(self, change: Callable[[], object]) -> None:
        def run() -> None:
            change()
            self._news.set()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(run)

    async def take(self) -> list[str | bytes]:
        """Wait for messages and return them, texts first. Raises OverflowError if the page takes none."""
        while not self._texts and not self._pictures:
            self._news.clear()
            await self._news.wait()
        if len(self._texts) > MOST_TEXTS:
            raise OverflowError("the page takes no messages")
        taken: list[str | bytes] = [*self._texts, *self._pictures.values()]
        self._texts, self._pictures = [], {}
        return taken
