from __future__ import annotations

import dataclasses

from anyvla.serving.limits import ServerLimits


def test_the_defaults_are_as_documented() -> None:
    """The defaults are documented in docs/serving_vla_eval.md, which must be changed with them."""
    assert dataclasses.asdict(ServerLimits()) == {
        "message_bytes": 16_777_216,
        "depth": 16,
        "entries": 256,
        "items": 4096,
        "text_bytes": 65_536,
        "batch_rows": 32,
        "instruction_characters": 1000,
        "cameras": 16,
        "image_bytes": 16_777_216,
        "image_pixels": 4_194_304,
        "array_bytes": 1_048_576,
        "requests_per_second": 200,
        "pings_per_second": 50,
        "fragments": 1024,
        "handshake_seconds": 10,
        "message_seconds": 30,
        "idle_seconds": 600,
        "close_seconds": 5,
        "connections": 64,
        "handshakes": 128,
        "pending_requests": 256,
        "batch_size": 32,
        "batch_seconds": 0.002,
        "sessions": 256,
        "session_seconds": 600,
        "decoders": 2,
        "drain_seconds": 20,
    }
