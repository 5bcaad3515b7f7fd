"""Parts of a data set: few-shot subsets of so many episodes a task, and shares of the whole.

Subsets of one seed lie in each other: the tenth is part of the half, five shots are part of ten.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.wrapped import Wrapped


class Subset(Wrapped):
    """These episodes of a data set, in this order. Raises IndexError for one that it does not have."""

    def __init__(self, dataset: EpisodeDataset, indices: Sequence[int]) -> None:
        self._indices = np.asarray(indices, np.int64)
        outside = self._indices[(self._indices < 0) | (self._indices >= len(dataset))]
        if len(outside):
            raise IndexError(f"{dataset.root} has {len(dataset)} episodes; no episode {outside[0]}")
        super().__init__(dataset, {"episodes": self._indices.tolist()})

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, "E"]:
        return self.dataset.lengths[self._indices]

    @property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        return self._lengths

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Episode:
        return self.dataset[int(self._indices[index])]

    def task(self, index: int) -> str:
        return self.dataset.task(int(self._indices[index]))


def choose(dataset: EpisodeDataset, per_task: int | None = None, scale: float = 1.0, seed: int = 0) -> list[int]:
    """Episodes drawn at random within each task (`dataset.task`), in the order of the data set.

    `per_task` episodes of each, times `scale`; without it `scale`, at most 1, is a share of each task's episodes. At
    least one of each task. Equal seeds give nested subsets. Raises ValueError that lists the tasks with too few
    episodes.
    """
    if per_task is None and not 0 < scale <= 1:
        raise ValueError(f"scale must lie in (0, 1] without per_task, got {scale:g}")
    tasks: dict[str, list[int]] = defaultdict(list)
    for index in range(len(dataset)):
        tasks[dataset.task(index)].append(index)
    chosen, short = [], []
    for name, episodes in tasks.items():
        wanted = max(1, math.floor((len(episodes) if per_task is None else per_task) * scale + 0.5))
        if wanted > len(episodes):
            short.append(f"{name!r} {len(episodes)}")
            continue
        # of the task's own name, so that tasks beside it change nothing
        rng = np.random.default_rng([seed, *name.encode()])
        chosen += [episodes[i] for i in rng.permutation(len(episodes))[:wanted]]
    if short:
        asked = max(1, math.floor((per_task or 0) * scale + 0.5))
        raise ValueError(
            f"{asked} episodes of each task are asked for, and {len(short)} of {len(tasks)} tasks of {dataset.root} "
            f"have fewer: {', '.join(short[:8])}{' ...' if len(short) > 8 else ''}"
        )
    return sorted(chosen)
