"""Known faults of instructions: empty, of another task, or spelled in another way."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence

from anyvla.doctor.faults.base import Fault

_FIX = "Send the instruction of the task as it was recorded."
_MOST_OTHERS = 20  # instructions of the data that are tried for all episodes
_SPELLINGS = {
    "in lower case": str.lower,
    "in upper case": str.upper,
    "with a capital letter": lambda text: text[:1].upper() + text[1:],
    "with a full stop": lambda text: text.rstrip(".") + ".",
    "without punctuation": lambda text: " ".join(text.translate(dict.fromkeys(map(ord, string.punctuation))).split()),
    "with underscores for spaces": lambda text: text.replace(" ", "_"),
    "inside the prompt of OpenVLA": lambda text: f"What action should the robot take to {text.lower()}?",
}


def list_instruction_faults(replayed: Sequence[str], others: Sequence[str]) -> Iterator[Fault]:
    """Yield the faults of instructions. `replayed`: of the episodes; `others`: further ones of the data."""
    yield Fault("the instruction is empty", "instruction", _FIX, instruction=(_always(""),))
    for other in list(dict.fromkeys([*replayed, *others]))[:_MOST_OTHERS]:
        if set(replayed) != {other}:
            yield Fault(f"the instruction is always {other!r}", "instruction", _FIX, instruction=(_always(other),))
    for name, spell in _SPELLINGS.items():
        if any(spell(text) != text for text in replayed):
            yield Fault(f"the instruction is sent {name}", "instruction", _FIX, instruction=(spell,))


def _always(text: str) -> Callable[[str], str]:
    return lambda given: text
