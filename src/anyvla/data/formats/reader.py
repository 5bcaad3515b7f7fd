"""The base class of the readers that know all their episodes, readable or not, when they are opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from anyvla.data.episode import Episode


class EpisodeReader(ABC):
    """A data set whose episodes are read one by one; see `EpisodeDataset`."""

    root: Path
    lengths: Int64[np.ndarray, "E"]
    unreadable: Mapping[int, str]  # index of an episode -> why it cannot be read

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`; its frames are read when they are asked for.

        Raises IndexError outside of the data set, ValueError for a damaged episode.
        """
        return self._read_episode(self._check(index))

    @abstractmethod
    def _read_episode(self, index: int) -> Episode:
        """Read an episode by its checked index."""

    def _check(self, index: int) -> int:
        """Return an index counted from the start. Raises IndexError outside of the data set."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} episodes; no episode {index}")
        return index % len(self)
