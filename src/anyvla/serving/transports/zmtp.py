"""Speak ZMTP 3, the wire protocol of ZeroMQ (rfc.zeromq.org/spec/23 and 37), as a ROUTER socket without encryption.

libzmq can't be used for clients that are not trusted: it bounds neither the number of connections, nor the parts of a
message, nor the time that a handshake or a message may take.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

from anyvla.serving.limits import ServerLimits

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
_MECHANISM = b"NULL".ljust(20, b"\0")
GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes([3, 1]) + _MECHANISM + bytes(32)
_CLIENTS = (b"REQ", b"DEALER", b"ROUTER")  # sockets that a ROUTER answers
_COMMAND_BYTES = 512  # of a command; that of libzmq's handshake has 40
_CONTEXT = 16  # bytes of a ping that its pong repeats


class ZmtpError(ValueError):
    """A peer that doesn't speak ZMTP 3, or exceeds the limits."""


@dataclass(frozen=True)
class Envelope:
    """The frames before the empty one that ends the address of a message; an answer begins with the same frames."""

    frames: tuple[bytes, ...]


class ZmtpReader:
    """Reads the messages of one peer. Every size is checked before a byte of it is read."""

    def __init__(self, reader: asyncio.StreamReader, limits: ServerLimits) -> None:
        self._reader, self._limits = reader, limits

    async def read_greeting(self) -> None:
        """Raise ZmtpError unless the peer greets with ZMTP 3 and without encryption."""
        signature = await self._reader.readexactly(10)
        if signature[0] != 0xFF or not signature[9] & 1:
            raise ZmtpError("this is no ZeroMQ client")
        rest = await self._reader.readexactly(1)
        if rest[0] < 3:
            raise ZmtpError("the client is older than ZeroMQ 4.0")
        rest += await self._reader.readexactly(53)
        if rest[2:22] != _MECHANISM:
            raise ZmtpError("the client asks for ZeroMQ's encryption or passwords, which this server has not")

    async def read_ready(self) -> None:
        """Raise ZmtpError unless a socket follows that a ROUTER may answer."""
        flags, data = await self.read_frame(_COMMAND_BYTES)
        name, metadata = _split_command(data)
        if not flags & COMMAND or name != b"READY":
            raise ZmtpError("the handshake of ZeroMQ has no READY")
        kind = _read_metadata(metadata).get(b"socket-type")
        if kind not in _CLIENTS:
            raise ZmtpError(f"a ZeroMQ socket of type {kind!r:.40} is no client; REQ and DEALER are")

    async def read_frame(self, most: int, first: bytes = b"") -> tuple[int, bytes]:
        """Return the flags and the data of the next frame. Raises ZmtpError if it has more than `most` bytes.

        `first`: its first byte, if it was read already.
        """
        flags = (first or await self._reader.readexactly(1))[0]
        if flags & ~(MORE | LONG | COMMAND) or (flags & COMMAND and flags & MORE):
            raise ZmtpError(f"a frame has the unknown flags {flags:#04x}")
        size = int.from_bytes(await self._reader.readexactly(8 if flags & LONG else 1), "big")
        if size > most:
            raise ZmtpError(f"a frame has {size} bytes; at most {most} are accepted")
        return flags, await self._reader.readexactly(size)

    async def read_message(self, first: bytes) -> tuple[Envelope | None, list[bytes]] | bytes:
        """Return the envelope, if there is one, and the frames of a message, or the pong that a ping needs.

        `first`: the first byte, so that a caller can wait for it longer than for the others.
        """
        frames: list[bytes] = []
        left = self._limits.message_bytes
        while True:
            flags, data = await self.read_frame(left, first)
            first = b""
            if flags & COMMAND:
                return self._answer_command(data, between=not frames)
            frames.append(data)
            left -= len(data)
            if len(frames) > self._limits.fragments:
                raise ZmtpError(f"a message has more than {self._limits.fragments} frames")
            if not flags & MORE:
                break
        if b"" not in frames[:-1]:
            return None, frames
        end = frames.index(b"")
        return Envelope(tuple(frames[: end + 1])), frames[end + 1 :]

    def _answer_command(self, data: bytes, *, between: bool) -> bytes:
        name, rest = _split_command(data)
        if name != b"PING" or not between:
            raise ZmtpError(f"a command {name!r:.40} is not accepted here")
        return write_command(b"PONG", rest[2 : 2 + _CONTEXT])


def write_ready() -> bytes:
    """Return the command that ends the server's part of the handshake."""
    pairs = ((b"Socket-Type", b"ROUTER"), (b"Identity", b""))
    metadata = b"".join(bytes([len(k)]) + k + struct.pack(">I", len(v)) + v for k, v in pairs)
    return write_command(b"READY", metadata)


def write_command(name: bytes, data: bytes) -> bytes:
    """Return a command as a frame."""
    body = bytes([len(name)]) + name + data
    return bytes([COMMAND, len(body)]) + body


def write_message(envelope: Envelope | None, data: bytes) -> list[bytes]:
    """Return the answer to a message as pieces to send."""
    before = () if envelope is None else envelope.frames
    pieces = [piece for frame in before for piece in (_write_header(len(frame), MORE), frame)]
    return [*pieces, _write_header(len(data), 0), data]


def _write_header(size: int, flags: int) -> bytes:
    return bytes([flags, size]) if size < 256 else bytes([flags | LONG]) + size.to_bytes(8, "big")


def _split_command(data: bytes) -> tuple[bytes, bytes]:
    length = data[0] if data else 0
    return data[1 : 1 + length], data[1 + length :]


def _read_metadata(data: bytes) -> dict[bytes, bytes]:
    """Return the properties of a READY command, with their names in lower case."""
    found = {}
    while data:
        name, rest = _split_command(data)
        size = int.from_bytes(rest[:4], "big")
        if not name or len(rest) < 4 + size:
            raise ZmtpError("the handshake of ZeroMQ is damaged")
        found[name.lower()], data = rest[4 : 4 + size], rest[4 + size :]
    return found
