"""A robot with rotations and grippers, episodes with textured images, and policies that notice small changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyvla.config import build
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.robot_statistics import pool_statistics
from anyvla.data.training.mixture import Mixture
from anyvla.doctor.clients import FunctionClient, replay_through
from anyvla.doctor.played import Answers, Played, choose_episodes, read_episodes
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import Robot
from anyvla.types import Observation
from tests import small

INSTRUCTIONS = ("open the drawer", "open the drawer", "Close it, now")
SIZE = (40, 48)


def embodiment(**keys: Any) -> Embodiment:
    gripper = {"name": "gripper", "size": 1, "kind": "gripper", "open": 1}
    return build(
        Embodiment,
        {
            "name": "arm",
            "cameras": ["front", "wrist"],
            "control_hz": 10,
            "proprio": {
                "groups": [
                    {"name": "position", "size": 3, "kind": "position", "unit": "m"},
                    {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad"},
                    gripper | {"low": 0, "high": 1},
                ]
            },
            "action": {
                "groups": [
                    {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
                    gripper | {"low": -1, "high": 1},
                ]
            },
        }
        | keys,
    )


def episode(length: int, seed: int, instruction: str) -> Episode:
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(length, 3)) * 0.1, axis=0)
    grasp = rng.random((length, 1)) > 0.5
    return Episode(
        embodiment=embodiment(),
        images={camera: _film(length, rng) for camera in ("front", "wrist")},
        proprio=np.concatenate([path, rng.uniform(-1, 1, (length, 3)), grasp], 1).astype(np.float32),
        actions=np.concatenate([np.diff(path, axis=0, append=path[-1:]), np.where(grasp, 1, -1)], 1).astype(np.float32),
        instructions=(instruction,),
        timestamps=steady_timestamps(length, 10),
        extra={"task": instruction},
    )


def _film(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return frames of blocks, colors and fine noise, so that every change of an image changes its pixels."""
    coarse = rng.integers(0, 255, (length, 5, 6, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + rng.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


def write(folder: Path, lengths: Sequence[int] = (9, 8, 8), instructions: Sequence[str] = INSTRUCTIONS) -> Mixture:
    episodes = [episode(n, seed, text) for seed, (n, text) in enumerate(zip(lengths, instructions, strict=True))]
    write_dataset(folder, embodiment(), episodes)
    return small.mixture(folder)


def policy(mixture: Mixture, *args: Any, **keys: Any) -> VLA:
    """Return a policy whose chunks depend on everything that it reads."""
    config = small.model(*args, **{"view": {"size": [32, 32]}, "proprio": "fuser", **keys})
    torch.manual_seed(0)
    robot = Robot(mixture.datasets[0].embodiment, pool_statistics(mixture.datasets))
    return small.awake(VLA(config, [robot]).eval())


def played(vla: VLA, mixture: Mixture, count: int = 3) -> list[Played]:
    recordings = choose_episodes([r.embodiment for r in vla.robots], mixture, count)
    return read_episodes(recordings, 100, vla.config.execute)


Change = Callable[[dict[str, Any]], dict[str, Any]]


def ask_in_process(vla: VLA, change: Change = lambda seen: seen, after: Any = lambda chunk: chunk) -> FunctionClient:
    """Return a client whose code changes observations and chunks, with a session of its own."""
    sessions: dict[str, Any] = {"number": 0}

    def ask(seen: dict[str, Any]) -> np.ndarray:
        seen = change(seen)
        if seen["step"] == 0:
            sessions["number"] += 1
            sessions["now"] = vla.start(seen["instruction"], sessions["number"], may_be_empty=True)
        chunk = vla.act([Observation(seen["images"], seen["proprio"])], [sessions["now"]])[0]
        return np.asarray(after(chunk.actions))

    return FunctionClient(ask, "ask")


def serve(vla: VLA, episodes: Sequence[Played], client: FunctionClient) -> list[Answers]:
    return replay_through(client, episodes, vla.config.execute, vla.robots[0].embodiment.action.size)
