"""Reads HDF5 files of any declared layout: ALOHA, RoboTwin, and variants of robomimic's with other names.

An episode is a file, or a group in a file. The keys of its actions, proprio and cameras are declared in `format` or
follow from a known layout; see `Hdf5Config`.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.config import to_dict
from anyvla.data.formats.data_files import list_files, natural_order
from anyvla.data.formats.hdf5 import file as hdf5
from anyvla.data.formats.hdf5.frames import ImageStorage
from anyvla.data.formats.hdf5.layout import Hdf5Config, Hdf5Layout, find_layout, is_episode_file
from anyvla.data.formats.hdf5.reader import Hdf5Episode, Hdf5Reader
from anyvla.data.undeclared import UndeclaredError, plain_embodiment
from anyvla.robot.embodiment import Embodiment


class Hdf5Dataset(Hdf5Reader):
    """HDF5 files of a declared layout. `embodiment` is required: the files do not say what their numbers mean."""

    Config = Hdf5Config
    ADVICE = (
        "Images are uint8 (T, H, W, 3), or (T, 3, H, W) with channels: first; keys that are not found are declared, as "
        "in format: {{name: hdf5, cameras: {{{camera}: KEY}}}}"
    )

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Return whether a path is a file named after an episode, or a folder of such files without dataset.yaml."""
        if root.is_dir():
            return not (root / "dataset.yaml").exists() and any(is_episode_file(p) for p in list_files(root))
        return is_episode_file(root)

    def __init__(self, config: Hdf5Config, root: Path | str, embodiment: Embodiment | None = None) -> None:
        self.root, self.config = Path(root), config
        files = self._list_files()
        group = f", group {config.episodes!r}" if config.episodes else ""
        self._episodes = self._without_empty(
            [episode for file in files for episode in self._read_file(file)],
            f"{self.root}{group}: there is no episode with a step",
        )
        layout = self._layout
        self._cameras, self._ahead = layout.cameras, layout.ahead
        self._storage = ImageStorage(channels=config.channels, colors=layout.colors, upright=config.images)
        sound = next(episode for episode in self._episodes if not episode.fault)
        self._sizes = {
            name: {key: math.prod(sound.open_array(key).shape[1:]) for key in keys}
            for name, keys in (("proprio", layout.proprio), ("action", layout.actions))
        }
        if embodiment is None:
            usual = to_dict(Hdf5Config())
            options = {"name": "hdf5", **{k: v for k, v in to_dict(config).items() if v != usual[k]}}
            options |= {"actions": list(layout.actions), "proprio": list(layout.proprio)}
            options["cameras"] = cameras = dict(layout.cameras)
            plain = plain_embodiment(layout.robot, list(cameras), 20, self._sizes["proprio"], self._sizes["action"])
            raise UndeclaredError(self.root, plain, options, timed=False)
        self.embodiment = embodiment
        self._check_camera_names()
        self._check_size("action", embodiment.action)
        if embodiment.proprio.size:
            self._check_size("proprio", embodiment.proprio)
        self.provenance: dict[str, Any] = {"format": "hdf5", "files": len(files), "ahead": layout.ahead}

    def task(self, index: int) -> str:
        """Return the instruction of an episode, or the name of its file if it has none."""
        episode = self._episodes[self._check(index)]
        return (not episode.fault and self._read_instruction(episode)) or episode.file.stem

    @cached_property
    def _layout(self) -> Hdf5Layout:
        """The keys of the first episode that has them. Raises ValueError if none has."""
        first: ValueError | None = None
        for file in self._list_files():
            try:
                return find_layout(self.config, file, next(iter(_groups(file, self.config.episodes)), ""))
            except ValueError as error:
                first = first or error
        raise first or ValueError(f"{self.root} holds no episode")

    def _list_files(self) -> list[Path]:
        return sorted(hdf5.find_files(self.root), key=lambda path: natural_order(path.name))

    def _read_file(self, file: Path) -> list[Hdf5Episode]:
        try:
            return [self._locate(file, group) for group in _groups(file, self.config.episodes)]
        except ValueError as error:
            return [Hdf5Episode(file, "", 1, fault=str(error))]

    def _locate(self, file: Path, group: str) -> Hdf5Episode:
        try:
            found = Hdf5Episode(file, group, 0).open_array(self._layout.actions[0])
            if not found.ndim:
                raise ValueError(
                    f"{file}: {self._layout.actions[0]!r} has shape {found.shape}, expected a row for each step"
                )
        except ValueError as error:
            return Hdf5Episode(file, group, 1, fault=str(error))
        length = max(0, len(found) - self._layout.ahead)
        return Hdf5Episode(file, group, length, len(found), np.arange(length) if self._layout.ahead else None)

    def _read_instruction(self, episode: Hdf5Episode) -> str:
        name = self.config.instruction_key
        if self.config.instruction or not name:
            return self.config.instruction
        key = episode.key(name)
        if hdf5.has_key(episode.file, key):
            found = hdf5.read_array(episode.file, key).reshape(-1)[:1].tolist()
            value: Any = found[0] if found else ""
        else:
            value = hdf5.read_attribute(episode.file, episode.group, name)
        text = hdf5.as_text(value)
        if not isinstance(text, str):
            raise ValueError(
                f"{episode.file} has no text {name!r} for the instruction, neither an array nor an attribute"
            )
        return text.strip()


def _groups(file: Path, episodes: str) -> list[str]:
    if not episodes:
        return [""]
    return [
        f"{episodes.strip('/')}/{name}"
        for name in sorted(hdf5.child_names(hdf5.open_node(file, episodes)), key=natural_order)
    ]
