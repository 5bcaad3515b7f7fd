"""Define the limits of a policy server. Every limit bounds memory, computing time or waiting time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT

Count = Annotated[int, Field(ge=1, le=2**31)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
MIB = 2**20


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerLimits:
    """The file of `--limits`, and the options `--limits.NAME VALUE`."""

    # One message.
    message_bytes: Count = 16 * MIB
    depth: int = Field(default=16, ge=1, le=100)  # maps and lists inside each other
    entries: Count = 256  # keys of one map
    items: Count = 4096  # values of one message, keys included
    text_bytes: Count = 65536  # one text, in UTF-8
    batch_rows: Count = 32  # observations of one message: GR00T's batches, starVLA's examples; each is a session

    # One observation.
    instruction_characters: Count = 1000
    cameras: Count = 16  # images of one observation, whether the policy reads them or not
    image_bytes: Count = 16 * MIB  # one image as it travels
    image_pixels: Count = 4 * MIB  # one image, height times width
    array_bytes: Count = MIB  # one array that is no image

    # One connection.
    requests_per_second: Count = 200  # faster ones wait
    pings_per_second: Count = 50  # pings and pongs; a connection with more is closed
    fragments: Count = 1024  # frames of one message
    handshake_seconds: Seconds = 10  # from connecting to the end of the websocket handshake
    message_seconds: Seconds = 30  # for a message to arrive whole, and for a client to take an answer
    idle_seconds: Seconds = 600  # without a message, then the connection is closed
    close_seconds: Seconds = 5  # for a client to close its side

    # The server.
    connections: Count = 64  # open at once; more are answered with HTTP 503
    handshakes: Count = 128  # not open yet; the oldest makes room for a new one
    pending_requests: Count = 256  # that wait for the policy; more are answered with an error
    batch_size: Count = 32  # requests that the policy answers at once
    batch_seconds: Annotated[float, Field(ge=0, le=60)] = 0.002  # a request waits for others, if others are active
    sessions: Count = 256  # that clients name; a connection has its own, which does not count
    session_seconds: Seconds = 600  # without a request, then a named session is forgotten
    decoders: Count = 2  # threads that read messages and decode images
    drain_seconds: Seconds = 20  # for requests in progress to be answered when the server is stopped
