"""Reads HDF5 files of robomimic (arXiv 2108.03298) and LIBERO (arXiv 2306.03310): `data/demo_0/{actions, obs/*}`.

A data set is one file, or a folder of files (LIBERO has one per task). Frames are read by rows. LIBERO's files hold the
instruction; for robomimic it is declared.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT
from anyvla.data.episode import Episode
from anyvla.data.formats.data_files import list_files, natural_order
from anyvla.data.formats.hdf5 import file as hdf5
from anyvla.data.formats.hdf5.frames import ImageStorage, Orientation
from anyvla.data.formats.hdf5.layout import is_episode_file, undeclared_layout_message
from anyvla.data.formats.hdf5.reader import Hdf5Episode, Hdf5Reader
from anyvla.data.formats.robomimic.robots import LIBERO_PROPRIO, ROBOMIMIC_PROPRIO, known_embodiment
from anyvla.data.formats.vectors import check_real
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


class RobomimicDataset(Hdf5Reader):
    """HDF5 demonstrations of robomimic and LIBERO.

    `embodiment` is required for robots other than a single arm under an OSC controller of robosuite; it may also choose
    cameras (`agentview_image` and `agentview_rgb` are camera `agentview`). Raises a ValueError that says what to do.
    """

    Config = RobomimicConfig
    ADVICE = (
        "Images that are encoded, or (T, C, H, W), are read by format: {{name: hdf5, episodes: data, actions: "
        "[actions], proprio: [obs/KEY], cameras: {{{camera}: obs/KEY}}, channels: first}}"
    )

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
        self._episodes = self._without_empty(
            [demo for file in files for demo in self._read_file(file)], f"{self.root} holds no demonstration"
        )
        self._storage = ImageStorage(upright=config.images or ("turn" if self._libero else "recorded"))
        first = next(demo for demo in self._episodes if not demo.fault)
        obs = self._observations(first)
        images = [k for k in obs if obs[k].ndim == 4 and obs[k].shape[3] == 3]
        self._cameras = {k.removesuffix("_image").removesuffix("_rgb"): f"obs/{k}" for k in images}
        sizes = {k: math.prod(obs[k].shape[1:]) for k in obs if k not in images}
        sizes["actions"] = int(first.open_array(config.actions).shape[1])
        usual = LIBERO_PROPRIO if self._libero else ROBOMIMIC_PROPRIO
        proprio = config.proprio or tuple(k for k in usual if k in obs)
        absent = [k for k in proprio if k not in sizes]
        if absent:
            raise ValueError(f"{first.where} has no obs/{absent[0]}; it has {', '.join(sizes)}")
        self._sizes = {
            "action": {config.actions: sizes["actions"]},
            "proprio": {f"obs/{k}": sizes[k] for k in proprio},
        }
        self.embodiment = embodiment or self._known_embodiment(sizes, proprio)
        self._check_camera_names()
        self._check_size("action", self.embodiment.action)
        self._check_size("proprio", self.embodiment.proprio)
        self.provenance: dict[str, Any] = {
            "format": "robomimic",
            "layout": "libero" if self._libero else "robomimic",
            "files": len(files),
            "images": self._storage.upright,
            "drop_noops": config.drop_noops,
        }

    def task(self, index: int) -> str:
        """Return the instruction of an episode, or the name of its file if it has none."""
        demo = self._episodes[self._check(index)]
        return demo.instruction or demo.file.stem.removesuffix("_demo")

    def _read_episode(self, index: int) -> Episode:
        return replace(super()._read_episode(index), extra={"task": self.task(index)})

    def _meaning(self) -> list[Any]:
        demos = [[d.file.name, d.group.removeprefix("data/"), d.instruction, d.length] for d in self._episodes]
        return [demos, self._storage.upright]

    def _read_file(self, file: Path) -> list[Hdf5Episode]:
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
        # the name of a file of LIBERO is its instruction, after the scene in libero_10 and libero_90
        name = re.sub(r"^[A-Z_]+SCENE\d+_", "", file.stem.removesuffix("_demo")).replace("_", " ")
        instruction = self.config.instruction or sentence or (name if libero else "")
        return [self._read_demo(file, name, instruction) for name in names]

    def _read_demo(self, file: Path, name: str, instruction: str) -> Hdf5Episode:
        """Locate one demonstration. Its length is that of its arrays; the attribute `num_samples` may be wrong."""
        demo = Hdf5Episode(file, f"data/{name}", 1, instruction=instruction)
        try:
            actions = demo.open_array(self.config.actions)
            if actions.ndim != 2:
                raise ValueError(f"{demo.where}: {self.config.actions} has shape {actions.shape}, expected (T, A)")
            check_real(actions.dtype, f"{demo.where}: {self.config.actions}")
            moving = self.config.drop_noops and len(actions)
            rows = _moving_steps(np.asarray(actions[()]), self.config.noop) if moving else None
        except ValueError as error:
            return replace(demo, fault=str(error))
        return replace(demo, length=len(actions) if rows is None else len(rows), recorded=len(actions), rows=rows)

    @staticmethod
    def _observations(demo: Hdf5Episode) -> dict[str, Any]:
        key = demo.key("obs")
        if not hdf5.has_key(demo.file, key):
            raise ValueError(
                f"{demo.where} has no obs, only raw states. Make observations first with robomimic's "
                "dataset_states_to_obs.py"
            )
        names = hdf5.child_names(hdf5.open_node(demo.file, key))
        found = {name: hdf5.open_node(demo.file, f"{key}/{name}") for name in names}
        return {name: value for name, value in found.items() if getattr(value, "shape", None)}

    def _known_embodiment(self, sizes: dict[str, int], proprio: tuple[str, ...]) -> Embodiment:
        env = hdf5.read_json_attribute(self._episodes[0].file, "data", "env_args")
        try:
            known = known_embodiment(env, self._libero, list(self._cameras), proprio, sizes)
        except (AttributeError, TypeError, ValueError):  # an attribute that is not as robosuite writes it
            known = None
        if known is None or self.config.actions != "actions":
            keys = proprio or tuple(k for k in sizes if k.endswith(_POSES))
            robot, vectors = str(env.get("env_name") or "robot"), {k: sizes[k] for k in keys}
            plain = plain_embodiment(robot, list(self._cameras), 20, vectors, self._sizes["action"])
            options = {"name": "robomimic", "actions": self.config.actions, "proprio": list(keys)}
            raise UndeclaredError(self.root, plain, options, timed=False)
        return known


def _moving_steps(actions: np.ndarray, still: float) -> Int64[np.ndarray, "K"]:
    """Return the steps that move or change the gripper of the last kept step; the others are no-ops."""
    kept: list[int] = []
    for t, action in enumerate(actions):
        moved = not float(np.linalg.norm(action[:-1])) < still  # NaN counts as motion
        if moved or (kept and action[-1] != actions[kept[-1], -1]):
            kept.append(t)
    return np.array(kept or [0], np.int64)
