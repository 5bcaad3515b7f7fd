"""All action chunks of a data set, normalised as a policy learns them: what a codec is fitted to and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from anyvla.actions.codec import held
from anyvla.actions.normalize import Method, Normalizer
from anyvla.data.episode import EpisodeDataset
from anyvla.data.window import check_vectors


@dataclass(frozen=True)
class Chunks:
    """K chunks, in the order of the episodes."""

    actions: Float32[Tensor, "K N A"]  # normalised; past the end of an episode, its last action again
    mask: Bool[Tensor, "K N"]  # False past the end

    def __len__(self) -> int:
        return len(self.actions)


def action_normalizer(dataset: EpisodeDataset, method: Method) -> Normalizer:
    """The scaling of actions of a policy that is trained on this data set."""
    return Normalizer(dataset.embodiment.action, dataset.statistics["action"], method, what="action", clip=True)


def hold_out(count: int, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Which of `count` episodes to fit to, and which to hold out: drawn at random, one at least if there are two."""
    order = np.random.default_rng(seed).permutation(count)
    aside = max(1, round(share * count)) if count > 1 else 0
    return sorted(order[aside:].tolist()), sorted(order[:aside].tolist())


def read_chunks(
    dataset: EpisodeDataset,
    normalizer: Normalizer,
    length: int,
    episodes: Sequence[int] | None = None,
    *,
    most: int | None = None,
    seed: int = 0,
) -> Chunks:
    """The chunk of N = `length` actions that begins at each step of these episodes (None: all).

    Of more than `most` there are left as many, one drawn from each of `most` equal stretches, so that they spread over
    all episodes and their phases. Raises ValueError for data that cannot be trained on, and if there is no episode.
    """
    check_vectors([dataset[i] for i in range(len(dataset))], dataset.embodiment)
    chosen = [dataset[i].actions for i in (range(len(dataset)) if episodes is None else episodes)]
    if not chosen:
        raise ValueError("there is no episode to take chunks from")
    ends = np.cumsum([len(actions) for actions in chosen])
    starts = np.arange(ends[-1])
    if most is not None and len(starts) > most:
        stretches = np.linspace(0, len(starts), most + 1).astype(np.int64)
        starts = np.random.default_rng(seed).integers(stretches[:-1], stretches[1:])
    last = ends[np.searchsorted(ends, starts, side="right")]  # (K,) where the episode of each ends
    steps = starts[:, None] + np.arange(length)  # (K, N)
    mask = torch.from_numpy(steps < last[:, None])
    actions = torch.from_numpy(np.concatenate(chosen))[torch.from_numpy(np.minimum(steps, ends[-1] - 1))]
    return Chunks(held(normalizer.normalise(actions), mask), mask)
