"""Defines the findings of `quality.check` about a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "damaged",
    "not finite",
    "wrong size",
    "constant",
    "jump",
    "antipode",
    "idle",
    "timestamps",
    "frames",
    "video",
    "frozen",
    "duplicate",
    "instruction",
    "gripper",
    "meaning",
]
Severity = Literal["error", "warning"]
Look = Literal["none", "sampled", "all"]


@dataclass(frozen=True)
class Finding:
    """One fault."""

    kind: Kind
    severity: Severity
    episode: int | None  # None: of the whole data set
    text: str
    fix: str
