"""Reads HDF5 files of robomimic (arXiv 2108.03298) and LIBERO (arXiv 2306.03310): `data/demo_0/{actions, obs/*}`.

A data set is one file, or a folder of files (LIBERO has one per task). Frames are read by rows. LIBERO's files hold the
instruction; for robomimic it is declared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT, to_dict
from anyvla.data import fingerprints
from anyvla.data.episode import Episode, conventions, steady_timestamps
from anyvla.data.formats.data_files import list_files, natural_order
from anyvla.data.formats.hdf5 import file as hdf5
from anyvla.data.formats.hdf5.frames import Hdf5Frames, ImageStorage, Orientation
from anyvla.data.formats.hdf5.layout import is_episode_file, undeclared_layout_message
from anyvla.data.formats.reader import EpisodeReader
from anyvla.data.formats.robomimic.robots import LIBERO_PROPRIO, ROBOMIMIC_PROPRIO, known_embodiment
from anyvla.data.formats.unreadable import report_empty, report_unreadable
from anyvla.data.formats.vectors import as_float32, check_real
from anyvla.data.undeclared import UndeclaredError, plain_embodiment
from anyvla.limits import VALUE
from anyvla.robot.embodiment import Embodiment

# Observations of unknown robots count as proprio if their keys end like this.
_POSES = ("eef_pos", "eef_quat", "gripper_qpos", "joint_pos", "joint_states", "ee_states", "gripper_states")


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class RobomimicConfig:
    """Options of reading HDF5 demonstrations."""

    filter: str | None = None  # a filter key: only its demonstrations (mask/train, mask/valid, mask/20_percent)
    instruction: str = ""  # of all demonstrations, for files without one
    actions: str = "actions"  # the key of the actions; others ("actions_abs") need a declared embodiment
    proprio: tuple[str, ...] = ()  # keys of obs, joined in this order; (): tool pose and fingers
    # None: rotated by 180 degrees for LIBERO, as in OpenVLA and openpi (upright, but mirrored); flip gives LIBERO
    # upright and not mirrored; robomimic's images are upright already
    images: Orientation | None = None
    drop_noops: bool = False  # drop steps that neither move nor use the gripper, as OpenVLA does for LIBERO
    noop: float = Field(1e-4, gt=0, le=VALUE)  # a smaller norm of the motion counts as none


@dataclass(frozen=True)
class _Demonstration:
    """The location of one demonstration."""

    file: Path
    name: str  # "demo_3"
    instruction: str
    length: int
    recorded: int = 0  # steps in the file
    rows: np.ndarray | None = None  # the kept steps; None: all
    fault: str = ""  # why it cannot be read


class RobomimicDataset(EpisodeReader):
    """HDF5 demonstrations of robomimic and LIBERO.

    `embodiment` is required for robots other than a single arm under an OSC controller of robosuite; it may also choose
    cameras (`agentview_image` and `agentview_rgb` are camera `agentview`). Raises ValueError that says what to do.
    """

    Config = RobomimicConfig

    @staticmethod
    def recognizes(root: Path) -> bool:
        """Return whether a path is an HDF5 file or a folder of them, without dataset.yaml or names of episodes."""
        if root.is_dir():
            files = [p for p in list_files(root) if p.suffix in hdf5.SUFFIXES]
            return not (root / "dataset.yaml").exists() and bool(files) and not any(map(is_episode_file, files))
        return root.suffix in hdf5.SUFFIXES and not is_episode_file(root)

    def __init__(self, config: RobomimicConfig, root: Path | str, embodiment: Embodiment | None = None) -> None:
        self.root, self.config = Path(root), config
        files = hdf5.find_files(self.root)
        self._libero = False
        found = [demo for file in files for demo in self._read_file(file)]
        report_empty(self.root, [f"{d.file.name} {d.name}" for d in found if not d.length])
        self._demonstrations = [demo for demo in found if demo.length]
        if not self._demonstrations:
            raise ValueError(f"{self.root} holds no demonstration")
        self.unreadable = {i: demo.fault for i, demo in enumerate(self._demonstrations) if demo.fault}
        report_unreadable(self.root, self.unreadable, len(self._demonstrations))
        self._folder = self.root if self.root.is_dir() else self.root.parent
        self._upright: Orientation = config.images or ("turn" if self._libero else "recorded")
        first = next(demo for demo in self._demonstrations if not demo.fault)
        obs = self._observations(first)
        self._keys = {_camera_name(k): k for k in obs if obs[k].ndim == 4 and obs[k].shape[3] == 3}
        sizes = {k: int(np.prod(obs[k].shape[1:])) for k in obs if k not in self._keys.values()}
        sizes["actions"] = int(hdf5.open_node(first.file, f"data/{first.name}/{config.actions}").shape[1])
        usual = LIBERO_PROPRIO if self._libero else ROBOMIMIC_PROPRIO
        self._proprio = config.proprio or tuple(k for k in usual if k in obs)
        absent = [k for k in self._proprio if k not in sizes]
        if absent:
            raise ValueError(f"{first.file}, {first.name} has no obs/{absent[0]}; it has {', '.join(sizes)}")
        self.embodiment = embodiment or self._known_embodiment(sizes)
        self._sizes = sizes
        self._check_embodiment(sizes)
        self.lengths: Int64[np.ndarray, "E"] = np.array([d.length for d in self._demonstrations], np.int64)
        self.provenance: dict[str, Any] = {
            "format": "robomimic",
            "layout": "libero" if self._libero else "robomimic",
            "files": len(files),
            "images": self._upright,
            "drop_noops": config.drop_noops,
        }

    def task(self, index: int) -> str:
        """Return the instruction of an episode, or the name of its file if it has none."""
        demo = self._demonstrations[self._check(index)]
        return demo.instruction or demo.file.stem.removesuffix("_demo")

    def _read_episode(self, index: int) -> Episode:
        demo = self._demonstrations[index]
        where = f"{demo.file}, {demo.name}"
        if demo.fault:
            raise ValueError(demo.fault)
        proprio = [self._read_vector(demo, f"obs/{k}", self._sizes[k]) for k in self._proprio]
        return Episode(
            embodiment=self.embodiment,
            images={c: self._frames(demo, c, where) for c in self.embodiment.cameras},
            proprio=np.concatenate(proprio, axis=1) if proprio else np.zeros((demo.length, 0), np.float32),
            actions=self._read_vector(demo, self.config.actions, self._sizes["actions"]),
            instructions=(demo.instruction,) if demo.instruction else (),
            timestamps=steady_timestamps(demo.length, self.embodiment.control_hz),
            provenance=where,
            extra={"task": self.task(index)},
        )

    @cached_property
    def fingerprint(self) -> str:
        """See `EpisodeDataset`."""
        demos = [[d.file.name, d.name, d.instruction, d.length] for d in self._demonstrations]
        meaning = [demos, self._upright, conventions(self.embodiment), to_dict(self.config)]
        return fingerprints.hash_files(
            self._folder, {d.file for d in self._demonstrations}, json.dumps(meaning, sort_keys=True)
        )

    def _read_file(self, file: Path) -> list[_Demonstration]:
        if not hdf5.has_key(file, "data"):
            raise ValueError(undeclared_layout_message(file))
        names = hdf5.child_names(hdf5.open_node(file, "data"))
        if names and not any(hdf5.has_key(file, f"data/{name}/{self.config.actions}") for name in names):
            raise ValueError(undeclared_layout_message(file))
        if self.config.filter is not None:
            kept = hdf5.read_array(file, f"mask/{self.config.filter}")
            names = [str(hdf5.as_text(name)) for name in kept.reshape(-1).tolist()]
        names.sort(key=natural_order)
        problem = hdf5.read_json_attribute(file, "data", "problem_info")
        libero = bool(problem) or (bool(names) and hdf5.has_key(file, f"data/{names[0]}/obs/agentview_rgb"))
        self._libero |= libero
        sentence = problem.get("language_instruction", "")
        # a list of words in some files of LIBERO
        sentence = " ".join(map(str, sentence)) if isinstance(sentence, list) else str(sentence).strip('"')
        instruction = self.config.instruction or sentence or (_instruction_in_name(file) if libero else "")
        return [self._read_demo(file, name, instruction) for name in names]

    def _read_demo(self, file: Path, name: str, instruction: str) -> _Demonstration:
        """Locate one demonstration. Its length is that of its arrays; the attribute `num_samples` may be wrong."""
        try:
            actions = hdf5.open_array(file, f"data/{name}/{self.config.actions}")
            if actions.ndim != 2:
                raise ValueError(f"{file}, {name}: {self.config.actions} has shape {actions.shape}, expected (T, A)")
            check_real(actions.dtype, f"{file}, {name}: {self.config.actions}")
            if not len(actions):
                return _Demonstration(file, name, instruction, 0)
            rows = _moving_steps(np.asarray(actions[()]), self.config.noop) if self.config.drop_noops else None
        except ValueError as error:
            return _Demonstration(file, name, instruction, 1, fault=str(error))
        return _Demonstration(file, name, instruction, len(actions) if rows is None else len(rows), len(actions), rows)

    @staticmethod
    def _observations(demo: _Demonstration) -> dict[str, Any]:
        key = f"data/{demo.name}/obs"
        if not hdf5.has_key(demo.file, key):
            raise ValueError(
                f"{demo.file}, {demo.name} has no obs, only raw states. Make observations first with robomimic's "
                "dataset_states_to_obs.py"
            )
        found = {
            name: hdf5.open_node(demo.file, f"{key}/{name}")
            for name in hdf5.child_names(hdf5.open_node(demo.file, key))
        }
        return {name: value for name, value in found.items() if getattr(value, "shape", None)}

    def _known_embodiment(self, sizes: dict[str, int]) -> Embodiment:
        env = hdf5.read_json_attribute(self._demonstrations[0].file, "data", "env_args")
        try:
            known = known_embodiment(env, self._libero, list(self._keys), self._proprio, sizes)
        except (AttributeError, TypeError, ValueError):  # an attribute that is not as robosuite writes it
            known = None
        if known is None or self.config.actions != "actions":
            keys = self._proprio or tuple(k for k in sizes if k.endswith(_POSES))
            proprio = {k: sizes[k] for k in keys}
            robot = str(env.get("env_name") or "robot")
            plain = plain_embodiment(robot, list(self._keys), 20, proprio, {self.config.actions: sizes["actions"]})
            options = {"name": "robomimic", "actions": self.config.actions, "proprio": list(keys)}
            raise UndeclaredError(self.root, plain, options, timed=False)
        return known

    def _check_embodiment(self, sizes: dict[str, int]) -> None:
        robot = self.embodiment
        for camera in robot.cameras:
            if camera not in self._keys:
                raise ValueError(
                    f"{self.root} has no camera {camera!r}; it has {', '.join(self._keys) or 'none'}. Images that are "
                    "encoded, or (T, C, H, W), are read by format: {name: hdf5, episodes: data, actions: [actions], "
                    f"proprio: [obs/KEY], cameras: {{{camera}: obs/KEY}}, channels: first}}"
                )
        proprio = sum(sizes[k] for k in self._proprio)
        for what, declared, found in (
            ("action", robot.action.size, sizes["actions"]),
            ("proprio", robot.proprio.size, proprio),
        ):
            if declared != found:
                more = f" ({', '.join(self._proprio) or 'no keys: see proprio'})" if what == "proprio" else ""
                raise ValueError(f"{robot.name!r} declares {declared} dims of {what}; {self.root} has {found}{more}")

    def _read_vector(self, demo: _Demonstration, key: str, size: int) -> Float32[np.ndarray, "T D"]:
        values, where = hdf5.read_array(demo.file, f"data/{demo.name}/{key}"), f"{demo.file}, {demo.name}: {key}"
        if not values.ndim or len(values) != demo.recorded or values[0].size != size:
            raise ValueError(f"{where} has shape {values.shape}; expected {demo.recorded} steps of {size} numbers")
        values = values if demo.rows is None else values[demo.rows]
        return as_float32(values.reshape(demo.length, -1), where)

    def _frames(self, demo: _Demonstration, camera: str, where: str) -> Hdf5Frames:
        key = f"data/{demo.name}/obs/{self._keys[camera]}"
        shape = hdf5.open_array(demo.file, key).shape
        if shape[:1] != (demo.recorded,):
            frames = shape[0] if shape else 0
            raise ValueError(f"{where}: {self._keys[camera]} has {frames} frames, its actions {demo.recorded} steps")
        return Hdf5Frames(demo.file, key, where, ImageStorage(upright=self._upright), demo.rows)


def _camera_name(key: str) -> str:
    return key.removesuffix("_image").removesuffix("_rgb")


def _instruction_in_name(file: Path) -> str:
    """Return the instruction in the name of a LIBERO file, without the scene of libero_10 and libero_90."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", file.stem.removesuffix("_demo")).replace("_", " ")


def _moving_steps(actions: np.ndarray, still: float) -> Int64[np.ndarray, "K"]:
    """Return the steps that move or change the gripper of the last kept step; the others are no-ops."""
    kept: list[int] = []
    for t, action in enumerate(actions):
        moved = not float(np.linalg.norm(action[:-1])) < still  # NaN counts as motion
        if moved or (kept and action[-1] != actions[kept[-1], -1]):
            kept.append(t)
    return np.array(kept or [0], np.int64)
