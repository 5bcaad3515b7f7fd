from __future__ import annotations

import asyncio
import threading

import pytest

from anyvla.play.outbox import MOST_TEXTS, Outbox


def fill(change):
    """Run `change(outbox)` in another thread, and return the messages that follow."""

    async def run():
        outbox = Outbox(asyncio.get_running_loop())
        thread = threading.Thread(target=change, args=(outbox,))
        thread.start()
        await asyncio.to_thread(thread.join)
        return await asyncio.wait_for(outbox.take(), 5)

    return asyncio.run(run())


def test_a_slow_page_gets_every_text_but_only_the_newest_pictures():
    def change(outbox):
        for number in range(5):
            outbox.post_text(f"text {number}")
            outbox.post_picture(0, b"first %d" % number)
            outbox.post_picture(1, b"second %d" % number)

    assert fill(change) == [*(f"text {n}" for n in range(5)), b"first 4", b"second 4"]


def test_a_page_that_takes_nothing_is_noticed():
    with pytest.raises(OverflowError):
        fill(lambda outbox: [outbox.post_text("x") for _ in range(MOST_TEXTS + 1)])
