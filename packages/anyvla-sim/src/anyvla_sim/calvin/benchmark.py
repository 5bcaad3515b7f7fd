"""CALVIN (arXiv 2112.03227): chains of five instructed tasks at a table with a drawer, a slider, lights and blocks.

Played as its authors do (calvin_agent/evaluation/evaluate_policy.py): 1000 chains in environment D, five tasks each, at
most 360 actions per task, no reset in between, judged by their oracle on the state at a task's beginning and now. All
of CALVIN is taken from the user's checkout: docs/benchmark_calvin.md.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Observation, Suite, Task
from anyvla_sim.calvin import install as calvin_install
from anyvla_sim.calvin.sequences import COUNT, Chain, chains, start_states
from anyvla_sim.calvin.world import Screen, World
from anyvla_sim.names import suggest

SUITES = ("ABC-D", "ABCD-D")  # the rooms that the policy was trained in; both are played in D
RENDERERS = ("egl", "tiny")
HORIZON = 360  # actions per task
CONTROL_HZ = 30.0
_SCREENS: dict[str, Screen] = {}  # one per process and renderer: see `calvin_world`


class Calvin:
    """The benchmark `calvin`."""

    name = "calvin"
    factors: Mapping[str, Sequence[str]] = {}
    disturbances: Sequence[str] = ()

    def __init__(
        self, root: str | None = None, render: str = "egl", chains: int = COUNT, language: str | None = None
    ) -> None:
        """`root`: the checkout of mees/calvin; None: $CALVIN_ROOT. `render`: "egl", as published, or "tiny", on the
        CPU. `chains`: so many, from the first of the official list on. `language`: a JSON file {task: [phrases]}, other
        words for the tasks (condition `paraphrased`).

        Raises NotInstalled without CALVIN or its packages, BenchmarkUnusable without EGL, ValueError for other
        settings.
        """
        self.root = calvin_install.find(root)
        calvin_install.check_packages()
        if render not in RENDERERS:
            raise ValueError(f"calvin has no renderer {render!r}: {suggest(render, RENDERERS)}")
        if not 1 <= chains <= COUNT:
            raise ValueError(f"chains: 1 to {COUNT} of the official list, not {chains}")
        self.render, self.count = render, chains
        self.driver = calvin_install.egl_driver() if render == "egl" else "TinyRenderer"
        self.phrases = calvin_install.phrases(self.root)
        self.language = None if language is None else str(Path(language).expanduser().resolve())
        self.others = {} if self.language is None else _other_words(Path(self.language), self.phrases)
        self.settings: Mapping[str, Any] = {
            "root": str(self.root),
            "render": render,
            "chains": chains,
            "language": self.language,
        }

    def suites(self) -> Sequence[str]:
        """Their names."""
        return SUITES

    def suite(self, name: str) -> Suite:
        """34 tasks and the chains. Raises ValueError for an unknown name."""
        if name not in SUITES:
            raise ValueError(f"calvin has no suite {name!r}: {suggest(name, SUITES)}")
        tasks = [Task(task, "D", said, self.others.get(task, ())) for task, said in self.phrases.items()]
        played = [list(chain.tasks) for chain in self.chains()]
        return Suite(name, tasks, HORIZON, episodes=self.count, starts=self.count, chains=played)

    def chains(self) -> Sequence[Chain]:
        """What is played: seed i plays chain i."""
        return _chains(self.root)[: self.count]

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """The Panda arm of CALVIN's data sets, with relative actions."""
        pose = [
            {"name": "position", "size": 3, "kind": "position", "unit": "m", "frame": "base"},
            {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "frame": "base"},
        ]
        step = {"size": 3, "mode": "delta", "low": -1, "high": 1}
        gripper = {"size": 1, "kind": "gripper"}
        command = {**gripper, "low": -1, "high": 1, "open": 1}
        return {
            "name": "calvin_panda",
            "cameras": ["static", "gripper"],
            "control_hz": CONTROL_HZ,
            "proprio": {
                "groups": [
                    *pose,
                    {"name": "gripper", **gripper, "low": 0, "high": 0.08, "open": 0.08, "unit": "m"},
                    {"name": "joints", "size": 7, "kind": "joints", "unit": "rad"},
                    {"name": "gripper_command", **command},
                ]
            },
            "action": {
                "groups": [
                    {"name": "position", "kind": "position", "unit": "0.02 m", "frame": "base", **step},
                    {"name": "rotation", "kind": "rotation", "unit": "0.05 rad", **step},
                    {"name": "gripper", **command},
                ]
            },
        }

    def make(self, suite: str) -> CalvinEnvironment:
        """An environment, to be used in this process."""
        if suite not in SUITES:
            raise ValueError(f"calvin has no suite {suite!r}: {suggest(suite, SUITES)}")
        return CalvinEnvironment(self)

    def screen(self) -> Screen:
        """What draws, made when it is needed first."""
        if self.render not in _SCREENS:
            _SCREENS[self.render] = Screen(self.root, self.render == "egl")
        return _SCREENS[self.render]

    def close(self) -> None:
        """Free the renderer."""
        if self.render in _SCREENS:
            _SCREENS.pop(self.render).close()

    def versions(self) -> Mapping[str, str]:
        """What pixels, physics and chains depend on."""
        found = {name: metadata.version(name) for name in ("pybullet", "numpy", "scipy")}
        return {
            **found,
            "calvin": calvin_install.commit(self.root),
            "calvin_env": calvin_install.commit(self.root / "calvin_env"),
            "gl": self.driver,
        }

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """What makes its results comparable with others'."""
        said = "" if self.language is None else hashlib.sha256(Path(self.language).read_bytes()).hexdigest()[:16]
        return {
            "render": self.render,
            "cameras": {"static": [200, 200], "gripper": [84, 84]},
            "trained_in": suite.split("-")[0],
            "played_in": "D",
            "other_words": said,
        }


class CalvinEnvironment:
    """A simulated Panda arm at CALVIN's table D."""

    def __init__(self, benchmark: Calvin) -> None:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        self._benchmark = benchmark
        self._world = World(benchmark.root)
        self._oracle = instantiate(OmegaConf.load(benchmark.root / calvin_install.ORACLE))
        self._poses = start_states(benchmark.root)
        self._task = ""

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start chain number `seed`, and judge `task` first. Raises ValueError for an unknown task, seed or factor."""
        if factors:
            raise ValueError(f"calvin has no factor {next(iter(factors))!r}: it has none")
        if not 0 <= seed < self._benchmark.count:
            raise ValueError(f"there is no chain {seed}: 0 to {self._benchmark.count - 1} are played")
        self._known(task)
        self._world.reset(*self._poses(self._benchmark.chains()[seed].start))
        self.begin(task)

    def begin(self, task: str) -> None:
        """From now on judge `task`, by what changes from now on. Raises ValueError for an unknown task."""
        self._known(task)
        self._task, self._before = task, self._world.info()

    def _known(self, task: str) -> None:
        if task not in self._benchmark.phrases:
            raise ValueError(f"calvin has no task {task!r}: {suggest(task, self._benchmark.phrases)}")

    def observe(self) -> Observation:
        """Both cameras and `robot_obs`."""
        return Observation(self._screen().pictures(), self._world.robot_obs().astype(np.float32))

    def _screen(self) -> Screen:
        """The renderer, showing this environment."""
        screen = self._benchmark.screen()
        screen.show(self._world)
        return screen

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Act once: units of 0.02 m and 0.05 rad; the gripper opens above 0, closes otherwise. Only the task that was
        begun is judged. Raises ValueError for an action that is not (7,)."""
        command = np.array(action, np.float64)
        if command.shape != (7,):
            raise ValueError(f"an action of CALVIN has shape (7,), not {command.shape}")
        command[6] = 1 if command[6] > 0 else -1  # as its authors': nothing between is accepted
        now = self._world.step(command)
        return {self._task: bool(self._oracle.get_task_info_for_set(self._before, now, {self._task}))}

    def frame(self, height: int, width: int) -> np.ndarray:
        """The static camera, for people."""
        return self._screen().picture(height, width)

    def close(self) -> None:
        """Free the simulator."""
        self._world.close()


@lru_cache(maxsize=None)
def _chains(root: Path) -> Sequence[Chain]:
    return chains(root)


def _other_words(path: Path, tasks: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Task -> phrases of a JSON file. Raises ValueError if it lacks a task or has something else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"language: {path} cannot be read: {error}") from None
    if not isinstance(read, dict) or not all(isinstance(p, list) and p for p in read.values()):
        raise ValueError(f"language: {path} is to be a map of task -> a list of phrases")
    unknown = [task for task in read if task not in tasks]
    lacking = [task for task in tasks if task not in read]
    if unknown:
        raise ValueError(f"language: {path}: calvin has no task {unknown[0]!r}: {suggest(unknown[0], tasks)}")
    if lacking:
        raise ValueError(f"language: {path} has no words for {', '.join(lacking[:3])}; all tasks need some")
    return {task: [str(phrase) for phrase in phrases] for task, phrases in read.items()}
