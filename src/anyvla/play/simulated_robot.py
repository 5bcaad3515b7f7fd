"""The simulated robot of a page, in a worker process of its own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from anyvla.config import build
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import Observation, Suite, Task
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import RemoteWorker

HEIGHT, WIDTH = 480, 640  # of the picture, in pixels
QUALITY = 82  # of its JPEG


@dataclass(frozen=True)
class SuiteFacts:
    """The facts of a suite that a page needs."""

    suite: Suite
    embodiment: Embodiment
    disturbances: tuple[str, ...]


class SimulatedRobot:
    """One simulated robot. Its calls wait for the worker, so they belong into a thread."""

    def __init__(self, spec: Spec, suite: str) -> None:
        """Start the worker. Raises BenchmarkUnusable if the simulator cannot run there."""
        self._suite = suite
        self._worker = RemoteWorker(spec)

    def describe(self) -> SuiteFacts:
        """Return the facts of the suite. Raises BenchmarkUnusable if the benchmark lacks it."""
        described = self._worker.ask("describe", suite=self._suite)
        suite = dict(described["suite"])
        tasks = [Task(**task) for task in suite.pop("tasks")]
        return SuiteFacts(
            Suite(tasks=tasks, **suite),
            build(Embodiment, described["embodiment"], where=self._suite),
            tuple(self._worker.ask("about")["disturbances"]),
        )

    def _ask(self, verb: str, **command: Any) -> dict[str, Any]:
        return self._worker.ask(verb, slot=0, suite=self._suite, **command)

    def reset(self, task: str, seed: int) -> None:
        """Start the scene of a task in the start state of a seed. Raises BenchmarkUnusable if there is none."""
        self._ask("reset", task=task, seed=seed, factors={})

    def observe(self) -> Observation:
        """Return the observation of the policy."""
        answer = self._ask("observe")
        return Observation(answer["images"], answer["proprio"])

    def step(self, action: Float32[np.ndarray, "A"]) -> Mapping[str, bool]:
        """Execute an action. Return for each task of the scene whether its goal holds."""
        return self._ask("step", action=action)["goals"]

    def draw(self) -> bytes:
        """Return a picture of the scene as JPEG."""
        pixels = self._ask("close_up", height=HEIGHT, width=WIDTH)["frame"]
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=QUALITY)
        return encoded.getvalue()

    def foresee(self, actions: Float32[np.ndarray, "N A"]) -> Float32[np.ndarray, "N1 2"] | None:
        """Return the path of the gripper in the picture if it followed the actions; None if it is unknown."""
        return self._ask("foresee", actions=actions)["foresee"]

    def locate(self) -> Float32[np.ndarray, "2"] | None:
        """Return where the object is in the picture; None if there is none to move."""
        return self._ask("locate")["locate"]

    def move(self, shift: tuple[float, float]) -> bool:
        """Move the object by fractions of the picture. Return whether it moved."""
        return bool(self._ask("move", shift=np.array(shift, np.float32))["move"])

    def disturb(self, kind: str, seed: int) -> bool:
        """Disturb the scene. Return False if there was nothing to disturb."""
        return bool(self._ask("disturb", kind=kind, seed=seed)["disturbed"])

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
