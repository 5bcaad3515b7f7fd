"""A benchmark without a simulator, without torch: a cart on a line, told to go left or right. Commands break it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anyvla.config import build
from anyvla.data.episode import Embodiment
from anyvla.evaluation.environments.base import Suite, Task
from anyvla.types import Observation

SIZE = 32
EMBODIMENT = build(
    Embodiment,
    {
        "name": "cart",
        "cameras": ["corner", "wrist"],
        "control_hz": 10,
        "proprio": {"groups": [{"name": "position", "size": 3, "kind": "position"}]},
        "action": {
            "groups": [
                {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
                {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1},
            ]
        },
    },
)
SUITE = Suite(
    "line",
    (
        Task("left", "cart", ("go left", "to the left")),
        Task("right", "cart", ("go right", "to the right")),
        Task("up", "lift", ("go up", "rise")),
    ),
    horizon=12,
)
RAISES, HANGS, DIES = 666, 667, 668  # seeds of starts that go wrong


@dataclass(frozen=True)
class Toy:
    """`fails`: seeds of demonstrations in which the expert of `right` goes wrong."""

    fails: tuple[int, ...] = ()
    render: str = "fast"
    name = "toy"
    embodiment = EMBODIMENT

    def suites(self) -> Mapping[str, Suite]:
        return {SUITE.name: SUITE}

    def make(self) -> Cart:
        return Cart(self)

    def close(self) -> None:
        pass

    def versions(self) -> Mapping[str, str]:
        return {"toy": "1", "render": self.render}


class Cart:
    def __init__(self, benchmark: Toy) -> None:
        self.benchmark = benchmark
        self.at = np.zeros(3, np.float32)

    def reset(self, task: str, seed: int) -> None:
        if seed == RAISES:
            raise ValueError("the cart has no wheels")
        if seed == HANGS:
            time.sleep(600)
        if seed == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seed = seed
        self.scene = SUITE.task(task).scene
        self.at = np.random.default_rng(seed).uniform(-0.1, 0.1, 3).astype(np.float32)

    def observe(self) -> Observation:
        assert "torch" not in sys.modules or "pytest" in sys.modules
        images = {c: np.full((SIZE, SIZE, 3), 100, np.uint8) for c in EMBODIMENT.cameras}
        x = int(np.clip(16 + 12 * self.at[0], 2, 29))
        images["corner"][12:20, x - 2 : x + 2] = 250
        return Observation(images, self.at.copy())

    def step(self, action: np.ndarray) -> dict[str, bool]:
        self.at += 0.2 * np.clip(action[:3], -1, 1).astype(np.float32)
        if self.scene == "lift":
            return {"up": bool(self.at[2] > 1)}
        return {"left": bool(self.at[0] < -1), "right": bool(self.at[0] > 1)}

    def expert(self, task: str) -> np.ndarray:
        sign = {"left": [-1, 0, 0, -1], "right": [1, 0, 0, -1], "up": [0, 0, 1, -1]}[task]
        wrong = task == "right" and self.seed in self.benchmark.fails
        return np.array(sign, np.float32) * (-1 if wrong else 1)

    def frame(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)
