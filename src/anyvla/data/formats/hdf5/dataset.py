"""Reads HDF5 files of any declared layout: ALOHA, RoboTwin, and variants of robomimic's with other names.

An episode is a file, or a group in a file. The keys of its actions, proprio and cameras are declared in `format` or
follow from a known layout; see `Hdf5Config`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from anyvla.config import to_dict
from anyvla.data import fingerprints
from anyvla.data.episode import Episode, conventions, steady_timestamps
from anyvla.data.formats.data_files import list_files, natural_order
from anyvla.data.formats.hdf5 import file as hdf5
from anyvla.data.formats.hdf5.frames import Hdf5Frames, ImageStorage
from anyvla.data.formats.hdf5.layout import Hdf5Config, Hdf5Layout, find_layout, is_episode_file
from anyvla.data.formats.reader import EpisodeReader
from anyvla.data.formats.unreadable import report_empty, report_unreadable
from anyvla.data.formats.vectors import as_float32
from anyvla.data.undeclared import UndeclaredError, plain_embodiment
from anyvla.robot.embodiment import Embodiment


@dataclass(frozen=True)
class _EpisodeLocation:
    """The location of one episode."""

    file: Path
    group: str  # "": the file is the episode
    length: int
    fault: str = ""  # why it cannot be read

    def key(self, name: str) -> str:
        """Return a key of the episode as a key of the file."""
        return f"{self.group}/{name}" if self.group else name


class Hdf5Dataset(EpisodeReader):
    """HDF5 files of a declared layout: one file, or a folder of files.

    `embodiment` is required, since these files do not say what their numbers mean. Raises ValueError that says what to
    declare.
    """

    Config = Hdf5Config

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Return whether a path is a file named after an episode, or a folder of such files without dataset.yaml."""
        if root.is_dir():
            return not (root / "dataset.yaml").exists() and any(is_episode_file(p) for p in list_files(root))
        return is_episode_file(root)

    def __init__(self, config: Hdf5Config, root: Path | str, embodiment: Embodiment | None = None) -> None:
        self.root, self.config = Path(root), config
        files = self._list_files()
        found = [episode for file in files for episode in self._read_file(file)]
        report_empty(self.root, [f"{p.file.name} {p.group}".strip() for p in found if not p.length])
        self._episodes = [episode for episode in found if episode.length]
        if not self._episodes:
            where = f"{self.root}, group {config.episodes!r}" if config.episodes else self.root
            raise ValueError(f"{where}: there is no episode with a step")
        self.unreadable = {i: episode.fault for i, episode in enumerate(self._episodes) if episode.fault}
        report_unreadable(self.root, self.unreadable, len(self._episodes))
        sound = next(episode for episode in self._episodes if not episode.fault)
        self._sizes = {
            name: {key: self._size(sound, key) for key in keys}
            for name, keys in (("proprio", self._layout.proprio), ("action", self._layout.actions))
        }
        if embodiment is None:
            usual = to_dict(Hdf5Config())
            options = {"name": "hdf5", **{k: v for k, v in to_dict(config).items() if v != usual[k]}}
            options["actions"] = list(self._layout.actions)
            options |= {"proprio": list(self._layout.proprio), "cameras": self._layout.cameras}
            robot, cameras = self._layout.robot, list(self._layout.cameras)
            plain = plain_embodiment(robot, cameras, 20, self._sizes["proprio"], self._sizes["action"])
            raise UndeclaredError(self.root, plain, options, timed=False)
        self.embodiment = embodiment
        self._check_embodiment()
        self.lengths: Int64[np.ndarray, "E"] = np.array([p.length for p in self._episodes], np.int64)
        self.provenance: dict[str, Any] = {"format": "hdf5", "files": len(files), "ahead": self._layout.ahead}

    def task(self, index: int) -> str:
        """Return the instruction of an episode, or the name of its file if it has none."""
        episode = self._episodes[self._check(index)]
        return (not episode.fault and self._instruction(episode)) or episode.file.stem

    def _read_episode(self, index: int) -> Episode:
        episode = self._episodes[index]
        where = f"{episode.file}, {episode.group}" if episode.group else str(episode.file)
        if episode.fault:
            raise ValueError(episode.fault)
        instruction = self._instruction(episode)
        ahead = self._layout.ahead
        return Episode(
            embodiment=self.embodiment,
            images={camera: self._frames(episode, camera, where) for camera in self.embodiment.cameras},
            proprio=self._read_vector(episode, "proprio", 0),
            actions=self._read_vector(episode, "action", ahead),
            instructions=(instruction,) if instruction else (),
            timestamps=steady_timestamps(episode.length, self.embodiment.control_hz),
            provenance=where,
        )

    @cached_property
    def fingerprint(self) -> str:
        """See `EpisodeDataset`."""
        folder = self.root if self.root.is_dir() else self.root.parent
        meaning = json.dumps([conventions(self.embodiment), to_dict(self.config)], sort_keys=True)
        return fingerprints.hash_files(folder, {p.file for p in self._episodes}, meaning)

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

    def _read_file(self, file: Path) -> list[_EpisodeLocation]:
        try:
            return [self._locate(file, group) for group in _groups(file, self.config.episodes)]
        except ValueError as error:
            return [_EpisodeLocation(file, "", 1, str(error))]

    def _locate(self, file: Path, group: str) -> _EpisodeLocation:
        key = _EpisodeLocation(file, group, 0).key(self._layout.actions[0])
        try:
            found = hdf5.open_array(file, key)
            if not found.ndim:
                raise ValueError(f"{file}: {key!r} has shape {found.shape}, expected a row for each step")
        except ValueError as error:
            return _EpisodeLocation(file, group, 1, str(error))
        return _EpisodeLocation(file, group, max(0, found.shape[0] - self._layout.ahead))

    def _size(self, episode: _EpisodeLocation, key: str) -> int:
        return int(np.prod(hdf5.open_array(episode.file, episode.key(key)).shape[1:], dtype=np.int64))

    def _check_embodiment(self) -> None:
        robot = self.embodiment
        for camera in robot.cameras:
            if camera not in self._layout.cameras:
                known = ", ".join(self._layout.cameras) or "none"
                raise ValueError(
                    f"{self.root} has no camera {camera!r}; it has {known}. Images are uint8 (T, H, W, 3), or "
                    "(T, 3, H, W) with channels: first; keys that are not found are declared, as in format: {name: "
                    f"hdf5, cameras: {{{camera}: KEY}}}}"
                )
        for name, space in (("action", robot.action), ("proprio", robot.proprio)):
            found = sum(self._sizes[name].values())
            if space.size != found and (name == "action" or space.size):
                keys = ", ".join(f"{key}: {size}" for key, size in self._sizes[name].items()) or "no key is declared"
                raise ValueError(
                    f"{robot.name!r} declares {space.size} dims of {name}; {self.root} has {found} ({keys})"
                )

    def _read_vector(
        self, episode: _EpisodeLocation, vector: Literal["action", "proprio"], ahead: int
    ) -> Float32[np.ndarray, "T D"]:
        steps = episode.length + self._layout.ahead
        parts = [np.zeros((episode.length, 0), np.float32)]
        if vector == "proprio" and not self.embodiment.proprio.size:
            return parts[0]
        for name, size in self._sizes[vector].items():
            key = episode.key(name)
            values = hdf5.read_numbers(episode.file, key)
            if not values.ndim or len(values) != steps or values[0].size != size:
                raise ValueError(
                    f"{episode.file}: {key} has shape {values.shape}; expected the {steps} steps of "
                    f"{self._layout.actions[0]}, of {size} numbers"
                )
            rows = values[ahead : ahead + episode.length].reshape(episode.length, -1)
            parts.append(as_float32(rows, f"{episode.file}: {key}"))
        return np.concatenate(parts, axis=1)

    def _frames(self, episode: _EpisodeLocation, camera: str, where: str) -> Hdf5Frames:
        key = episode.key(self._layout.cameras[camera])
        storage = ImageStorage(channels=self.config.channels, colors=self._layout.colors, upright=self.config.images)
        shape = hdf5.open_array(episode.file, key).shape
        length = shape[0] if shape else 0
        if length != episode.length + self._layout.ahead:
            raise ValueError(
                f"{where}: {key} has {length} frames, the actions {episode.length + self._layout.ahead} steps"
            )
        rows = np.arange(episode.length) if self._layout.ahead else None
        return Hdf5Frames(episode.file, key, where, storage, rows)

    def _instruction(self, episode: _EpisodeLocation) -> str:
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
