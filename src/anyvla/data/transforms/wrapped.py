"""A data set seen in another way: the base of what takes a part of its episodes, or changes them as they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from anyvla.data import fingerprints
from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.robot.embodiment import Embodiment


class WrappedDataset:
    """The data set itself; subclasses change what they are for. Nothing is copied: episodes change as they are read.

    `change` says what is done, as JSON, in the provenance (`changes`, in order) and in the fingerprint.
    """

    def __init__(
        self, dataset: EpisodeDataset, change: Mapping[str, Any], embodiment: Embodiment | None = None
    ) -> None:
        self.dataset, self._change = dataset, dict(change)
        self.root = dataset.root
        self.embodiment = embodiment or dataset.embodiment
        self.provenance = {**dataset.provenance, "changes": [*dataset.provenance.get("changes", []), self._change]}

    @property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        return self.dataset.lengths

    @cached_property
    def fingerprint(self) -> str:
        change = json.dumps(self._change, sort_keys=True)
        return fingerprints.combine(self.dataset.fingerprint, change)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Episode:
        return self.dataset[index]

    def task(self, index: int) -> str:
        return self.dataset.task(index)
