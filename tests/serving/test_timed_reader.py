from __future__ import annotations

import contextlib
import time

import pytest

from anyvla.serving.timed_reader import TimedReader


def burn(seconds: float) -> str:
    """Take CPU time. Return the argument, as a reader returns a message."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return f"{seconds:g}"


def fails(data: float) -> str:
    burn(data)
    raise ValueError("not a message")


def test_the_first_message_is_not_read_in_the_event_loop_but_those_after_a_quick_one_are() -> None:
    reader = TimedReader()
    assert not reader.is_quick(b"")
    assert reader.read(burn, 0) == "0"  # type: ignore[arg-type]
    assert reader.is_quick(b"")
    assert not reader.is_quick(bytes((1 << 20) + 1))


def test_after_a_message_of_a_millisecond_a_quick_one_is_needed() -> None:
    reader = TimedReader()
    for seconds, quick in ((0, True), (0.001, False), (0, True)):
        reader.read(burn, seconds)  # type: ignore[arg-type]
        assert reader.is_quick(b"") is quick


@pytest.mark.parametrize("read", [burn, fails])
def test_a_connection_that_sent_a_slow_message_is_never_trusted_again(read: object) -> None:
    reader = TimedReader()
    for seconds in (0, 0.004, 0, 0, 0):
        with contextlib.suppress(ValueError):
            reader.read(read, seconds)  # type: ignore[arg-type]
    assert not reader.is_quick(b"")
