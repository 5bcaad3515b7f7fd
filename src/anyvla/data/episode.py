"""What every data reader gives, whatever the format: episodes, and what is true of all of them.

An episode is lazy: frames are decoded when they are asked for, only those that are. Numbers are in the robot's own
units; what they mean stands in the embodiment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from anyvla.config import to_dict
from anyvla.robot.embodiment import Embodiment
from anyvla.text import clean_instruction


class Frames(ABC):
    """The frames of one camera over an episode, decoded when asked for. `np.asarray(frames)` decodes them all.

    `frames[3:9]`, `frames[[4, 0, 4]]`: uint8 (K, H, W, 3), RGB, upright, in the order asked for; `frames[4]`: one of
    them. Raises IndexError for a step outside of the episode, ValueError that names the file for a frame that cannot be
    decoded.
    """

    shape: tuple[int, int, int, int]  # (T, H, W, 3)

    @abstractmethod
    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """The frames of these steps, at least one, each within 0 .. T-1, in any order, perhaps repeated."""

    def faults(self) -> Iterator[tuple[bool, str]]:
        """Yield what is wrong with the file of the frames by its header alone, and whether that is an error.

        Raises ValueError for a file that cannot be read.
        """
        yield from ()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, steps: int | slice | Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "... H W 3"]:
        if isinstance(steps, int | np.integer):
            return self[[int(steps)]][0]
        wanted = list(range(*steps.indices(len(self)))) if isinstance(steps, slice) else [int(i) for i in steps]
        outside = [i for i in wanted if not 0 <= i < len(self)]
        if outside:
            raise IndexError(f"the episode has {len(self)} steps; no step {outside[0]}")
        return self.read(wanted) if wanted else np.empty((0, *self.shape[1:]), np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


Images = np.ndarray | Frames  # of one camera; both have shape, len() and [steps]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration of T steps."""

    embodiment: Embodiment
    images: Mapping[str, Images]  # camera name -> (T, H, W, 3) uint8
    proprio: Float32[np.ndarray, "T P"]
    actions: Float32[np.ndarray, "T A"]  # actions[t] is what was done on seeing step t
    instructions: tuple[str, ...]  # ways to say the same, as `clean_instruction` spells them; none if there are none
    timestamps: Float64[np.ndarray, "T"]  # seconds, increasing; the first is 0
    provenance: str = ""  # where it lies, for people: "data/chunk-000/file-000.parquet, episode 3"
    extra: Mapping[str, Any] = field(default_factory=dict)  # one JSON value per episode: task, seed, ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "instructions", tuple(map(clean_instruction, self.instructions)))

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def instruction(self) -> str:
        """The first of its instructions; "" if there is none."""
        return self.instructions[0] if self.instructions else ""


class EpisodeDataset(Protocol):
    """Episodes of one embodiment on disk, read in place. Opening reads an index, not the data.

    Can be pickled (open files are not kept in it) and read by several threads.
    """

    @property
    def root(self) -> Path:
        """Where it lies."""

    @property
    def embodiment(self) -> Embodiment:
        """The robot of all its episodes."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """JSON: at least "format"; version, split, how it was made."""

    @property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        """Steps of each episode."""

    @property
    def fingerprint(self) -> str:
        """A hash of the contents and of what they mean: equal data, equal fingerprint."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises IndexError outside of the data set, ValueError for an episode that is damaged."""

    def task(self, index: int) -> str:
        """What episode `index` demonstrates, read from the index alone: its task's name, or its instruction."""


def conventions(embodiment: Embodiment) -> dict[str, Any]:
    """Return the embodiment as JSON for a fingerprint: without the names of dims, which mean nothing."""
    out = to_dict(embodiment)
    for group in (*out["proprio"]["groups"], *out["action"]["groups"]):
        group.pop("names", None)
    return out


def steady_timestamps(length: int, hz: float) -> Float64[np.ndarray, "T"]:
    """The timestamps of data that has none: `length` steps at a constant rate."""
    return np.arange(length) / hz
