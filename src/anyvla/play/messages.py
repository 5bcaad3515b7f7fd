"""The messages between a page and its robots.

The page sends commands as JSON: {"do": "instruct", "text": "open the drawer"}. It gets JSON texts, whose key `is` names
their kind, and pictures as bytes: the length of a JSON header (4 bytes, big-endian), the header, a JPEG.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 4096  # bytes of a command
LONGEST_INSTRUCTION = 300  # characters
LARGEST_SEED = 2**31 - 1
SLOWEST = 0.05
_KEYS = {
    "instruct": {"text"},
    "reset": {"seed"},
    "scene": {"task", "seed"},
    "move": {"shift"},
    "disturb": {"kind"},
    "speed": {"speed"},
    "pause": set(),
    "resume": set(),
    "step": set(),
    "stop": set(),
}


class CommandError(ValueError):
    """A command that cannot be read; the message is for the page."""


@dataclass(frozen=True)
class Command:
    """A command of a visitor."""

    do: str  # one of _KEYS
    text: str = ""  # of an instruction
    task: str = ""  # whose scene to show
    seed: int = 0  # of a start state
    kind: str = ""  # of a disturbance
    speed: float = 1.0  # of the robots, as a fraction of their control rate
    shift: tuple[float, float] = (0.0, 0.0)  # of the object, in fractions of the picture


def read_command(data: bytes | str) -> Command:
    """Return the command that a page sent. Raises CommandError."""
    if not isinstance(data, str):
        raise CommandError("a command must be JSON text, got bytes")
    try:
        keys = json.loads(data)
    except (ValueError, RecursionError):
        raise CommandError("a command must be JSON") from None
    if not isinstance(keys, dict) or not isinstance(keys.get("do"), str) or keys["do"] not in _KEYS:
        raise CommandError(f"a command needs a key do, one of {', '.join(_KEYS)}")
    wanted = {"do"} | _KEYS[keys["do"]]
    if set(keys) != wanted:
        raise CommandError(f"the command {keys['do']} has the keys {sorted(wanted)}, got {sorted(keys)[:8]}")
    for name in {"text", "task", "kind"} & set(keys):
        if not isinstance(keys[name], str) or len(keys[name]) > LONGEST_INSTRUCTION:
            raise CommandError(f"{name} must be a text of at most {LONGEST_INSTRUCTION} characters")
    if "seed" in keys:
        seed = keys["seed"]
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            raise CommandError(f"a seed must be a whole number from 0 to {LARGEST_SEED}")
    if "speed" in keys and not (_is_fraction(keys["speed"]) and keys["speed"] >= SLOWEST):
        raise CommandError(f"a speed must be a number from {SLOWEST} to 1")
    if "shift" in keys:
        shift = keys["shift"]
        if not isinstance(shift, list) or len(shift) != 2 or not all(_is_fraction(x) for x in shift):
            raise CommandError("a shift must be two numbers from -1 to 1")
        keys["shift"] = (float(shift[0]), float(shift[1]))
    return Command(**keys)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1


def write_message(kind: str, **keys: Any) -> str:
    """Return a text message."""
    return json.dumps({"is": kind, **keys})


def write_picture(header: Mapping[str, Any], jpeg: bytes) -> bytes:
    """Return a picture with its header."""
    encoded = json.dumps(header).encode()
    return struct.pack(">I", len(encoded)) + encoded + jpeg
