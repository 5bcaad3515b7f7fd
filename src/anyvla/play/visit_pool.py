"""The robots and policies behind all pages of a server: made once, lent to one visit at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anyvla.config import ConfigError
from anyvla.play.checkpoints import PlayedCheckpoint, check_robot
from anyvla.play.policies import Policies
from anyvla.play.scenes import list_scenes
from anyvla.play.simulated_robot import SimulatedRobot, SuiteFacts
from anyvla.play.visit import Visit, describe_visit
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import Spec


class VisitPool:
    """Opens visits. The first robots start before anybody visits, since a simulator takes seconds to start."""

    def __init__(
        self, spec: Spec, suite: str, name: str, played: Sequence[PlayedCheckpoint], device: str, trust: bool
    ) -> None:
        """`suite` is the suite in its benchmark, `name` its whole name; `trust`: run code of the checkpoints."""
        self.name = name
        self._spec, self._suite, self._played = spec, suite, played
        self._device, self._trust = device, trust
        self._spare: list[list[SimulatedRobot]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._facts: SuiteFacts | None = None
        self._policies: Policies | None = None

    def prepare(self) -> None:
        """Start the first robots and load the policies. Raises ConfigError or ValueError if one cannot be used."""
        robots: list[SimulatedRobot] = []
        try:
            robots = self._start_robots()
            facts = robots[0].describe()
            embodiment = check_robot(self._played[0], facts.embodiment, self.name)
            with ThreadPoolExecutor(len(robots)) as threads:
                list(threads.map(lambda robot: _draw_first(robot, facts), robots))
        except BaseException as error:
            _close(robots)
            if isinstance(error, BenchmarkUnusable):
                raise ConfigError(str(error)) from None
            raise
        with self._lock:
            self._facts = facts
            self._spare.append(robots)
            folders = [checkpoint.folder for checkpoint in self._played]
            self._policies = Policies(folders, embodiment.name, device=self._device, trust_remote_code=self._trust)
        self._policies.wait(self._stopped)

    @property
    def is_ready(self) -> bool:
        """Whether visits can be opened."""
        return self._policies is not None

    def _start_robots(self) -> list[SimulatedRobot]:
        with ThreadPoolExecutor(len(self._played)) as threads:
            starting = [threads.submit(SimulatedRobot, self._spec, self._suite) for _ in self._played]
        robots = [one.result() for one in starting if one.exception() is None]
        for error in filter(None, (one.exception() for one in starting)):
            _close(robots)
            raise error
        return robots

    def describe(self) -> dict[str, Any]:
        """Return the facts that a page needs before it shows anything."""
        assert self._facts is not None
        names = [checkpoint.name for checkpoint in self._played]
        return describe_visit(self._facts, self.name, names, list_scenes(self._facts.suite))

    def open(self, post_text: Callable[[str], None], post_picture: Callable[[int, bytes], None]) -> tuple[Visit, Any]:
        """Start a visit. Return it with what `close` needs."""
        with self._lock:
            robots = self._spare.pop() if self._spare else None
        robots = robots or self._start_robots()
        assert self._facts is not None
        assert self._policies is not None
        visit = Visit(robots, self._facts, self._policies, post_text, post_picture)
        visit.start()
        return visit, robots

    def close(self, visit: Visit, robots: list[SimulatedRobot]) -> None:
        """End a visit. One set of robots is kept for the next one."""
        visit.end()
        with self._lock:
            keep = not visit.failed and not self._spare and not self._stopped.is_set()
            if keep:
                self._spare.append(robots)
        if not keep:
            _close(robots)

    def stop(self) -> None:
        """End the workers and the policies. All visits must be closed."""
        self._stopped.set()
        with self._lock:
            spare, self._spare = self._spare, []
        for robots in spare:
            _close(robots)
        if self._policies is not None:
            self._policies.close()


def _draw_first(robot: SimulatedRobot, facts: SuiteFacts) -> None:
    """Load the first scene and compile the shaders of the driver, which takes seconds."""
    robot.reset(facts.suite.tasks[0].name, 0)
    robot.draw()


def _close(robots: Sequence[SimulatedRobot]) -> None:
    for robot in robots:
        robot.close()
