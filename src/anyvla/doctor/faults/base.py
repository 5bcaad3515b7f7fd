"""A known fault of a served path, as changes to the observations that the policy gets and to its chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

Images = dict[str, UInt8[np.ndarray, "H W 3"]]  # by camera
Proprio = Float32[np.ndarray, "P"]
Chunks = Float32[np.ndarray, "K N A"]

T = TypeVar("T")

# Faults of the inputs of one family exclude each other, so they are not combined.
Family = Literal[
    "cameras", "orientation", "colors", "resize", "crop", "compression", "proprio", "gripper", "instruction", "session",
    "timing", "actions",
]  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """When a policy gets which frame. The default is that of a correct client."""

    image_delay: int = 0  # control steps that the images are late
    proprio_delay: int = 0
    repeat: int = 1  # calls that get the same frame
    resets: Literal["episode", "call", "never"] = "episode"  # when a session begins
    every_step: bool = False  # the policy is called at every control step, its chunks between are dropped
    calls: int = 1  # calls for each answer, with the same frame
    execute: int | None = None  # actions of a chunk before the next call; None: as the client should


@dataclass(frozen=True)
class Fault:
    """A fault: its name, its fix, and its changes. Each function takes and returns recorded values."""

    name: str
    family: Family
    fix: str
    images: tuple[Callable[[Images], Images], ...] = ()
    proprio: tuple[Callable[[Proprio], Proprio], ...] = ()
    instruction: tuple[Callable[[str], str], ...] = ()
    chunks: tuple[Callable[[Chunks], Chunks], ...] = ()
    timing: Timing = field(default_factory=Timing)
    parts: tuple[str, ...] = ()  # the names of the faults that this one combines

    @property
    def inputs(self) -> tuple[object, ...]:
        """The changes that the policy's predictions depend on; hashable."""
        return self.images, self.proprio, self.instruction, self.timing

    @property
    def changes_inputs(self) -> bool:
        """Whether the policy must predict again to know the effect; False: its chunks are changed afterwards."""
        return self.inputs != NONE.inputs


NONE = Fault("no fault", "session", "")


def can_combine(first: Fault, second: Fault) -> bool:
    """Return whether a path may have both faults. Two dims of its actions may well have the opposite sign."""
    if first.changes_inputs or second.changes_inputs:
        return first.family != second.family and Timing() in (first.timing, second.timing)
    return first.name != second.name


def combine(first: Fault, second: Fault) -> Fault:
    """Return both faults at once. At most one of them may change the timing."""
    return replace(
        first,
        name=f"{first.name} and {second.name}",
        fix=" ".join(dict.fromkeys((first.fix, second.fix))),
        images=first.images + second.images,
        proprio=first.proprio + second.proprio,
        instruction=first.instruction + second.instruction,
        chunks=first.chunks + second.chunks,
        timing=first.timing if first.timing != Timing() else second.timing,
        parts=(first.name, second.name),
    )


def apply_all(functions: Sequence[Callable[[T], T]], value: T) -> T:
    """Apply functions one after the other."""
    for function in functions:
        value = function(value)
    return value
