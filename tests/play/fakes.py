"""A robot and policies without a simulator and without PyTorch: a cart on a line from -1 to 1."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from anyvla.config import build
from anyvla.play.simulated_robot import SuiteFacts
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import BenchmarkUnusable, Observation, Suite, Task
from tests import small

STEP = 0.1  # of the cart, for an action
TASKS = (
    Task("cart-left", "cart", ("go left",), ("drive to the left",)),
    Task("cart-right", "cart", ("go right",)),
    Task("box-up", "box", ("lift the box",)),
)
SUITE = Suite("line", TASKS, horizon=20)
GROUP = {"name": "cart", "size": 1, "kind": "position", "mode": "delta", "unit": "m"}
ROBOT = build(
    Embodiment,
    {
        "name": "cart",
        "cameras": ["front"],
        "control_hz": 100,
        "proprio": {"groups": [{**GROUP, "mode": "absolute"}]},
        "action": {"groups": [GROUP]},
    },
    where="test",
)
FACTS = SuiteFacts(SUITE, ROBOT, ("push", "open"))


class CartRobot:
    """The cart. It starts at seed / 100."""

    def __init__(self):
        self.calls = []
        self.closed = False
        self.at = 0.0

    def describe(self):
        return FACTS

    def reset(self, task, seed):
        SUITE.task(task)
        if seed > 100:
            raise BenchmarkUnusable("there are start states 0 to 100")
        self.calls.append(("reset", task, seed))
        self.at = seed / 100

    def observe(self):
        return Observation({"front": np.zeros((8, 8, 3), np.uint8)}, np.array([self.at], np.float32))

    def step(self, action):
        self.at = float(np.clip(self.at + action[0], -1, 1))
        return {"cart-left": self.at < -0.95, "cart-right": self.at > 0.95}

    def draw(self):
        out = io.BytesIO()
        pixels = np.full((48, 48, 3), 40, np.uint8)
        column = int(24 + 20 * self.at)
        pixels[20:28, max(0, column - 3) : column + 3] = 250
        Image.fromarray(pixels).save(out, "JPEG")
        return out.getvalue()

    def foresee(self, actions):
        return np.stack([[0.5 + (self.at + d) / 2.4, 0.5] for d in np.cumsum([0.0, *actions[:, 0]])]).astype(np.float32)

    def locate(self):
        return np.array([0.5 + self.at / 2.4, 0.5], np.float32)

    def move(self, shift):
        self.at = float(np.clip(self.at + shift[0], -1, 1))
        return True

    def disturb(self, kind, seed):
        self.calls.append(("disturb", kind, seed))
        return kind == "push"

    def close(self):
        self.closed = True


class Policies:
    """Policies that obey "go left" and "go right", and refuse an empty instruction."""

    are_ready = True

    def __init__(self, *gains):
        self.gains = gains or (1.0,)
        self.sessions = []

    def start(self, number, instruction, seed):
        if not instruction.strip():
            raise ValueError("the instruction is empty")
        session = SimpleNamespace(number=number, instruction=instruction, seed=seed, acted=0)
        self.sessions.append(session)
        return session

    def act(self, number, observation, session):
        session.acted += 1
        direction = -1 if "left" in session.instruction else 1
        return np.full((4, 1), direction * STEP * self.gains[number], np.float32)

    def executed(self, number):
        return 2

    def wait(self, stopped):
        pass

    def close(self):
        pass


def other_robot():
    """Return a robot that no simulator has."""
    return small.embodiment()
