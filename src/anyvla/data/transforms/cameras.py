"""Selects and renames the cameras of a data set, so that data sets share views by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.transforms.wrapped import WrappedDataset
from anyvla.registry import suggest


class Cameras(WrappedDataset):
    """A data set with these cameras only, in this order: new name -> name in the data.

    Raises ValueError for a camera that the data does not have, and if none is left.
    """

    def __init__(self, dataset: EpisodeDataset, cameras: Mapping[str, str]) -> None:
        known = list(dataset.embodiment.cameras)
        for view, camera in cameras.items():
            if camera not in known:
                raise ValueError(f"{dataset.root} has no camera {camera!r} to be {view!r}: {suggest(camera, known)}")
        if not cameras:
            raise ValueError(f"choose one camera of {dataset.root} at least: {', '.join(known)}")
        embodiment = dataclasses.replace(dataset.embodiment, cameras=tuple(cameras))
        super().__init__(dataset, {"cameras": [list(pair) for pair in cameras.items()]}, embodiment)
        self._cameras = dict(cameras)

    def __getitem__(self, index: int) -> Episode:
        episode = self.dataset[index]
        images = {view: episode.images[camera] for view, camera in self._cameras.items()}
        return dataclasses.replace(episode, embodiment=self.embodiment, images=images)
