"""What every data reader gives, whatever the format: episodes, and what is true of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.actions.space import ActionSpace
from anyvla.config import STRICT


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class Embodiment:
    """A robot: its cameras, what its proprio and its actions mean, and how often it acts."""

    name: str
    cameras: tuple[str, ...]
    proprio: ActionSpace
    action: ActionSpace
    control_hz: float  # actions per second


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps."""

    images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]  # camera name -> frames
    proprio: Float32[np.ndarray, "T P"]
    actions: Float32[np.ndarray, "T A"]
    instruction: str
    extra: Mapping[str, Any] = field(default_factory=dict)  # one value per episode: task, seed, ...

    def __len__(self) -> int:
        return len(self.actions)


class EpisodeDataset(Protocol):
    """A set of episodes on disk, read in place."""

    embodiment: Embodiment

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Episode: ...

    def frames(self, camera: str, episode: int, indices: Sequence[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """Single frames of one camera, in the order of `indices` (steps of the episode)."""

    @property
    def fingerprint(self) -> str:
        """A hash of the contents: equal data, equal fingerprint."""

    @property
    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """`{"action" | "proprio": {"min" | "max" | "mean" | "std" | "q01" | "q99": one value per dim}}`."""
