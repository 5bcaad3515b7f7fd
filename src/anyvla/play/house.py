"""The stages and policies behind all pages of a server: made once, lent to one visit at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anyvla.config import ConfigError
from anyvla.play.checkpoints import PlayedCheckpoint, check_robot
from anyvla.play.policies import Policies
from anyvla.play.scenes import list_scenes
from anyvla.play.stage import Stage, StageFacts
from anyvla.play.visit import Visit, describe_visit
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import Spec


class House:
    """Opens visits. The first stages start before anybody visits, since a simulator takes seconds to start."""

    def __init__(
        self, spec: Spec, suite: str, name: str, played: Sequence[PlayedCheckpoint], device: str, trust: bool
    ) -> None:
        """`suite` is the suite in its benchmark, `name` its whole name; `trust`: run code of the checkpoints."""
        self.name = name
        self._spec, self._suite, self._played = spec, suite, played
        self._device, self._trust = device, trust
        self._spare: list[list[Stage]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._facts: StageFacts | None = None
        self._policies: Policies | None = None

    def prepare(self) -> None:
        """Start the first stages and load the policies. Raises ConfigError or ValueError if one cannot be used."""
        stages: list[Stage] = []
        try:
            stages = self._start_stages()
            facts = stages[0].describe()
            robot = check_robot(self._played[0], facts.embodiment, self.name)
            with ThreadPoolExecutor(len(stages)) as threads:
                list(threads.map(lambda stage: _draw_first(stage, facts), stages))
        except BaseException as error:
            _close(stages)
            if isinstance(error, BenchmarkUnusable):
                raise ConfigError(str(error)) from None
            raise
        with self._lock:
            self._facts = facts
            self._spare.append(stages)
            folders = [checkpoint.folder for checkpoint in self._played]
            self._policies = Policies(folders, robot.name, device=self._device, trust_remote_code=self._trust)
        self._policies.wait(self._stopped)

    @property
    def is_ready(self) -> bool:
        """Whether visits can be opened."""
        return self._policies is not None

    def _start_stages(self) -> list[Stage]:
        with ThreadPoolExecutor(len(self._played)) as threads:
            starting = [threads.submit(Stage, self._spec, self._suite) for _ in self._played]
        stages = [one.result() for one in starting if one.exception() is None]
        for error in filter(None, (one.exception() for one in starting)):
            _close(stages)
            raise error
        return stages

    def describe(self) -> dict[str, Any]:
        """Return the facts that a page needs before it shows anything."""
        assert self._facts is not None
        names = [checkpoint.name for checkpoint in self._played]
        return describe_visit(self._facts, self.name, names, list_scenes(self._facts.suite))

    def open(self, post_text: Callable[[str], None], post_picture: Callable[[int, bytes], None]) -> tuple[Visit, Any]:
        """Start a visit. Return it with what `close` needs."""
        with self._lock:
            stages = self._spare.pop() if self._spare else None
        stages = stages or self._start_stages()
        assert self._facts is not None
        assert self._policies is not None
        visit = Visit(stages, self._facts, self._policies, post_text, post_picture)
        visit.start()
        return visit, stages

    def close(self, visit: Visit, stages: list[Stage]) -> None:
        """End a visit. One set of stages is kept for the next one."""
        visit.end()
        with self._lock:
            keep = not visit.failed and not self._spare and not self._stopped.is_set()
            if keep:
                self._spare.append(stages)
        if not keep:
            _close(stages)

    def stop(self) -> None:
        """End the workers and the policies. All visits must be closed."""
        self._stopped.set()
        with self._lock:
            spare, self._spare = self._spare, []
        for stages in spare:
            _close(stages)
        if self._policies is not None:
            self._policies.close()


def _draw_first(stage: Stage, facts: StageFacts) -> None:
    """Load the first scene and compile the shaders of the driver, which takes seconds."""
    stage.reset(facts.suite.tasks[0].name, 0)
    stage.draw()


def _close(stages: Sequence[Stage]) -> None:
    for stage in stages:
        stage.close()
