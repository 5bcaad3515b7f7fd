"""A benchmark without a simulator: a cart on a line that is instructed to go left or right. Some seeds break it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anyvla_sim.base import Curve, ExpertStuck, Observation, Suite, Task
from anyvla_sim.spec import Spec

SIZE = 32
HORIZON = 12
CAMERAS = ("corner", "wrist")
EMBODIMENT_JSON = {
    "name": "cart",
    "cameras": list(CAMERAS),
    "control_hz": 10,
    "proprio": {"groups": [{"name": "position", "size": 3, "kind": "position"}]},
    "action": {
        "groups": [
            {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
            {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1},
        ]
    },
}
TASKS = (
    Task("left", "cart", ("go left", "to the left"), ("leftwards",)),
    Task("right", "cart", ("go right", "to the right"), ("rightwards",)),
    Task("up", "lift", ("go up", "rise")),
)
SUITE = Suite("line", TASKS, HORIZON)
# Chains: left, then up, without a reset. Spoken: the environment gives the instruction.
# Kept: the goal must hold at the end. Cued: the two tasks have one instruction.
SUITES = {
    "line": SUITE,
    "chains": Suite("chains", TASKS, HORIZON, chains=[("left", "up"), ("right", "left", "up")]),
    "spoken": Suite("spoken", [Task("left", "cart", ())], HORIZON, starts=4),
    "kept": Suite("kept", TASKS, HORIZON, success_rule="end"),
    "cued": Suite(
        "cued",
        [Task(way, "cart", ("go",)) for way in ("left", "right")],
        HORIZON,
        groups={"near": ("left", "right")},
        chance=0.5,
        pairs=[("left", "right")],
        curve=Curve("delay, actions", {"near": 3}),
        most_executed=2,
    ),
    "hurried": Suite("hurried", [Task("left", "cart", ("go left",), horizon=3), TASKS[1]], HORIZON),
}
# Seeds whose start state breaks the simulator; ONCE: the first time only.
RAISES, HANGS, DIES, DIES_ONCE, HANGS_ONCE = 666, 667, 668, 669, 670
HAS_CHILD = 671  # a seed at which the simulator starts a child process and hangs
CHANGES = 3  # a seed at which the environment changes its instruction during the episode
GIVES_UP = 1_000_007  # a seed at which the expert gives up during the episode


def spec(**settings: Any) -> Spec:
    return Spec("tests.evaluation.toy_world:Toy", settings)


class Toy:
    """`fails`: seeds of demonstrations in which the expert of `right` fails. `marks`: a folder for ONCE."""

    name = "toy"
    factors: Mapping[str, Sequence[str]] = {"load": ("light", "heavy")}
    disturbances: Sequence[str] = ("push",)

    def __init__(self, fails: Sequence[int] = (), render: str = "fast", marks: str = "", leak_mb: int = 0) -> None:
        self.settings = {"fails": list(fails), "render": render, "marks": marks, "leak_mb": leak_mb}
        self.fails, self.render, self.marks, self.leak_mb = fails, render, marks, leak_mb

    def suites(self) -> Sequence[str]:
        return list(SUITES)

    def suite(self, name: str) -> Suite:
        return SUITES[name]

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        return EMBODIMENT_JSON

    def make(self, suite: str) -> Cart:
        cart = Spoken if suite == "spoken" else Cart
        return cart(self)

    def close(self) -> None:
        pass

    def versions(self) -> Mapping[str, str]:
        return {"toy": "1"}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        return {"render": self.render}


class Cart:
    limits = (-np.ones(4, np.float32), np.ones(4, np.float32))

    def __init__(self, benchmark: Toy) -> None:
        self.benchmark = benchmark
        self.at = np.zeros(3, np.float32)
        self.leaked: list[np.ndarray] = []

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        if seed == RAISES:
            raise RuntimeError("the cart has no wheels")
        if seed in (DIES_ONCE, HANGS_ONCE) and not (mark := Path(self.benchmark.marks) / str(seed)).exists():
            mark.touch()
            seed = DIES if seed == DIES_ONCE else HANGS
        if seed == HAS_CHILD:
            subprocess.Popen(["sleep", "600"])
        if seed in (HANGS, HAS_CHILD):
            time.sleep(600)
        if seed == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seed = seed
        self.leaked.append(np.ones(self.benchmark.leak_mb * 131072))
        self.gain = 0.1 if factors.get("load") == "heavy" else 0.2
        self.at = np.random.default_rng(seed).uniform(-0.1, 0.1, 3).astype(np.float32)
        self.begin(task)

    def begin(self, task: str) -> None:
        self.scene = SUITE.task(task).scene

    def observe(self) -> Observation:
        images = {c: np.full((SIZE, SIZE, 3), 100, np.uint8) for c in CAMERAS}
        x = int(np.clip(16 + 12 * self.at[0], 2, 29))
        images["corner"][12:20, x - 2 : x + 2] = 250
        return Observation(images, self.at.copy())

    def step(self, action: np.ndarray) -> dict[str, bool]:
        self.at += self.gain * np.clip(action[:3], -1, 1).astype(np.float32)
        if self.scene == "lift":
            return {"up": bool(self.at[2] > 1)}
        return {"left": bool(self.at[0] < -1), "right": bool(self.at[0] > 1)}

    def disturb(self, kind: str, seed: int) -> bool:
        moved = bool(np.abs(self.at).max() > 0.3)
        if moved:
            self.at[:] = 0.25 * (seed % 2)
        return moved

    def expert(self, task: str) -> np.ndarray:
        if self.seed == GIVES_UP and abs(self.at[0]) > 0.4:
            raise ExpertStuck("the way is blocked")
        sign = {"left": [-1, 0, 0, -1], "right": [1, 0, 0, -1], "up": [0, 0, 1, -1]}[task]
        wrong = task == "right" and self.seed in self.benchmark.fails
        return np.array(sign, np.float32) * (-1 if wrong else 1)

    def frame(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)


class Spoken(Cart):
    def instruction(self) -> str:
        back = self.seed == CHANGES and self.at[0] < -0.4
        return f"go {'right' if back else 'left'}, {self.seed}"
