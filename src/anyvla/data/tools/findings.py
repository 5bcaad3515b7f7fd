"""Defines the findings of `quality.check` about a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VectorFault = Literal["not finite", "wrong size", "constant", "jump", "antipode", "idle", "gripper", "meaning"]
Kind = VectorFault | Literal["damaged", "timestamps", "frames", "video", "frozen", "duplicate", "instruction"]
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
