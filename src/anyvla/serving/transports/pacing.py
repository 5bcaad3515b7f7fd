"""Parse the bytes of websocket connections in turns, so that no client can stall the event loop or other clients.

websockets parses everything that has arrived at once: a quarter of a megabyte of pings takes half a second. Here bytes
wait in the connection, and all connections share turns of a few milliseconds. Bytes inside one frame are cheap and are
parsed all at once, without a turn if no others wait. A connection also ends if it pings too often, splits a message
into too many frames, or never finishes a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from anyvla.serving.limits import ServerLimits

log = logging.getLogger(__name__)
_TURN_S = 0.002  # of parsing, then the event loop has its turn
_SLICE = 4096  # bytes in which frames may begin that are parsed without looking at the clock
_HEAD_END = b"\r\n\r\n"  # of the HTTP request, before the first frame
_QUEUE = 1  # messages that wait in a connection; then it stops reading
_MOST_BUFFERED = 1 << 16  # bytes that wait in a connection; then it stops reading


class Turns:
    """Schedule parsing for all connections of a server."""

    def __init__(self) -> None:
        self._waiting: deque[PacedConnection] = deque()
        self._scheduled = False

    def add(self, connection: PacedConnection) -> None:
        """Schedule parsing of the connection's bytes."""
        if connection not in self._waiting:
            self._waiting.append(connection)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        end = time.perf_counter() + _TURN_S
        while self._waiting:
            connection = self._waiting.popleft()
            try:
                if connection.parse():
                    self._waiting.append(connection)
            except Exception:  # must not stop other connections
                log.exception("a connection cannot be parsed")
                connection.transport.abort()
            if time.perf_counter() >= end:
                break
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._turn)


class FrameCounter:
    """Follows the HTTP request and the frames (RFC 6455, section 5.2) in the bytes of a client."""

    def __init__(self) -> None:
        self._tail: bytes | None = b""  # the last bytes of an HTTP request that has not ended; None: frames follow
        self._left = 0  # bytes of the current frame

    def pass_over(self, data: bytes) -> bool:
        """Return whether the next bytes are all of one frame, and if so follow them."""
        size = self._left if self._left or self._tail is not None else measure_frame(data, 0) or 0
        if size < len(data):
            return False
        self._left = size - len(data)
        return True

    def take(self, data: bytearray) -> int:
        """Return how many of the next bytes to parse at once; 0 if more must arrive first."""
        if self._tail is not None:
            return self._take_request(data)
        at, self._left = self._left, 0
        while at < min(len(data), _SLICE):
            size = measure_frame(data, at)
            if size is None:
                return at
            at += size
        self._left = max(0, at - len(data))
        return at - self._left

    def _take_request(self, data: bytearray) -> int:
        assert self._tail is not None
        known = self._tail + data[:_SLICE]
        end = known.find(_HEAD_END)
        if end < 0:
            self._tail = bytes(known[-3:])
            return min(len(data), _SLICE)
        size = end + len(_HEAD_END) - len(self._tail)
        self._tail = None
        return size


def measure_frame(data: bytes | bytearray, at: int) -> int | None:
    """Return the size of the frame that begins at a position, None if its header is not whole."""
    if len(data) < at + 2:
        return None
    short = data[at + 1] & 0x7F
    extended = {126: 2, 127: 8}.get(short, 0)
    if len(data) < at + 2 + extended:
        return None
    payload = int.from_bytes(data[at + 2 : at + 2 + extended], "big") if extended else short
    return 2 + extended + (4 if data[at + 1] & 0x80 else 0) + payload


class PacedConnection(ServerConnection):
    """A connection within its limits. `websockets.serve` makes it by `create_connection`."""

    def __init__(
        self,
        *args: Any,
        turns: Turns,
        limits: ServerLimits,
        made: Callable[[PacedConnection], None],
        lost: Callable[[PacedConnection], None],
        **kwargs: Any,
    ) -> None:
        """`made` and `lost` are called when the connection begins and ends."""
        super().__init__(*args, **kwargs)
        self._turns, self._limits, self._made, self._lost = turns, limits, made, lost
        self._buffer = bytearray()  # bytes that are not parsed yet
        self._frames = FrameCounter()
        self._ended = False  # the client sends no more
        self._unread = 0  # messages that are parsed, but not taken by `recv`
        self._fragments = 0  # of the message that is arriving
        self._completed = 0  # messages and other frames, ever
        self._pings = 0.0  # of the last second, decaying
        self._pinged = 0.0
        self._timer: asyncio.TimerHandle | None = None  # runs while a message is not whole
        self._abort: asyncio.TimerHandle | None = None  # runs while the connection closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        if not self._buffer and not self._full and self._frames.pass_over(data):
            self._parse(data)
            return
        self._buffer += data
        self._read_or_pause()
        self._turns.add(self)

    def eof_received(self) -> bool | None:
        if self._buffer:
            self._ended = True
            return True  # keeps the transport until all is parsed
        super().eof_received()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._buffer.clear()
        for timer in (self._timer, self._abort):
            if timer is not None:
                timer.cancel()
        self._lost(self)
        super().connection_lost(exc)

    async def recv(self, decode: bool | None = None) -> Any:
        message = await super().recv(decode)
        self._unread -= 1
        self._turns.add(self)
        return message

    def parse(self) -> bool:
        """Parse a slice of the buffered bytes. Return whether there is more to do."""
        if not self._buffer or self._full:
            return False
        size = self._frames.take(self._buffer)
        if self._ended and not size:
            size = len(self._buffer)
        part = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._parse(part)
        if self._ended and not self._buffer:
            super().eof_received()
            self.transport.close()
        self._read_or_pause()
        return bool(self._buffer) and not self._full and size > 0

    def _parse(self, part: bytes) -> None:
        """Parse bytes, and start or stop the timers."""
        before = self._completed
        if part:
            super().data_received(part)
        if self._completed > before:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self.state is State.OPEN and self._timer is None:
            seconds = self._limits.message_seconds
            reason = f"a message must arrive whole within {seconds:g} s"
            self._timer = self.loop.call_later(seconds, self._refuse, reason)
        if self.state is State.CLOSING:
            self._close_soon()

    @property
    def receiving(self) -> bool:
        """Whether a message or a part of one has arrived that `recv` has not returned."""
        return bool(self._buffer or self._unread or self._timer)

    @property
    def _full(self) -> bool:
        return self._unread >= _QUEUE and self.state is State.OPEN

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame):
            self._count(event)
        super().process_event(event)

    def _count(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            now = self.loop.time()
            self._pings = max(0.0, self._pings - (now - self._pinged) * self._limits.pings_per_second) + 1
            self._pinged = now
            self._completed += not self._fragments
            if self._pings > self._limits.pings_per_second:
                self._refuse(f"more than {self._limits.pings_per_second} pings a second")
        elif frame.opcode is not Opcode.CLOSE:
            self._fragments = 0 if frame.fin else self._fragments + 1
            self._completed += frame.fin
            self._unread += frame.fin
            if self._fragments >= self._limits.fragments:
                self._refuse(f"a message of more than {self._limits.fragments} frames")

    def _refuse(self, reason: str) -> None:
        """Close the connection and read nothing more of it."""
        if self.state is not State.OPEN:
            return
        self.protocol.fail(CloseCode.POLICY_VIOLATION, reason)
        self.send_data()
        self._buffer.clear()
        self._close_soon()

    def _close_soon(self) -> None:
        """Give the client a while to close its side."""
        if self._abort is None:
            self._abort = self.loop.call_later(self._limits.close_seconds, self.transport.abort)

    def _read_or_pause(self) -> None:
        if len(self._buffer) >= _MOST_BUFFERED or (self._buffer and self._full):
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()
