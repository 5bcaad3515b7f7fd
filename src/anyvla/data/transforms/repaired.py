"""Repairs a data set by the findings of `quality.check`: drops broken episodes and cuts idle ends off."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.tools.findings import Finding
from anyvla.data.tools.motion import Scale, find_moving_span
from anyvla.data.transforms.resampled import PickedFrames
from anyvla.data.transforms.subset import Subset


class RepairedDataset(Subset):
    """The episodes without an error, their idle ends cut. `dropped` and `cut` list the changes.

    Raises ValueError if no episode is left.
    """

    def __init__(self, dataset: EpisodeDataset, findings: Sequence[Finding]) -> None:
        broken = {f.episode: f.text for f in findings if f.severity == "error" and f.episode is not None}
        idle = {f.episode for f in findings if f.kind == "idle" and f.episode is not None} - set(broken)
        kept = [i for i in range(len(dataset)) if i not in broken]
        if not kept:
            raise ValueError(f"every episode of {dataset.root} has an error: there is nothing to keep")
        scale = Scale(dataset)
        self._spans: dict[int, tuple[int, int]] = {}
        for i in sorted(idle):
            span = find_moving_span(dataset[i], scale.spread["proprio"], scale.spread["actions"])
            if span is not None:  # an episode without any motion stays, for a person to decide
                self._spans[i] = span
        self.dropped = {str(i): text for i, text in sorted(broken.items())}
        self.cut = {str(i): [first, int(dataset.lengths[i]) - last] for i, (first, last) in self._spans.items()}
        # A fingerprint that a new wording of the findings does not change.
        super().__init__(dataset, kept, {"dropped": list(self.dropped), "cut": self.cut})

    @cached_property
    def lengths(self) -> Int64[np.ndarray, "E"]:
        own = self.dataset.lengths
        spans = [self._spans.get(i, (0, int(own[i]))) for i in self._indices.tolist()]
        return np.array([last - first for first, last in spans], np.int64)

    def __getitem__(self, index: int) -> Episode:
        episode = super().__getitem__(index)
        span = self._spans.get(int(self._indices[index]))
        if span is None:
            return episode
        first, last = span
        steps = np.arange(first, last)
        return dataclasses.replace(
            episode,
            images={camera: PickedFrames(images, steps) for camera, images in episode.images.items()},
            proprio=episode.proprio[first:last],
            actions=episode.actions[first:last],
            timestamps=episode.timestamps[first:last] - episode.timestamps[first],
        )
