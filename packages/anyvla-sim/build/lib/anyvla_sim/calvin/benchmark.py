"""CALVIN (arXiv 2112.03227): chains of five instructed tasks at a table with a drawer, a slider, lights and blocks.

The protocol is the official one (calvin_agent/evaluation/evaluate_policy.py): 1000 chains in environment D, five tasks
each, at most 360 actions per task, no reset in between. CALVIN's oracle judges the current state against that at the
beginning of the task. All of CALVIN is read from the user's checkout (docs/benchmark_calvin.md).
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Benchmark, Environment, Observation, Suite, Task
from anyvla_sim.calvin import installation
from anyvla_sim.calvin.sequences import COUNT, Chain, load_chains, load_start_states
from anyvla_sim.calvin.world import Screen, World
from anyvla_sim.checkouts import read_git_commit
from anyvla_sim.names import check_factors, check_name

SUITES = ("ABC-D", "ABCD-D")  # the rooms of the training data; both are played in D
RENDERERS = ("egl", "tiny")
HORIZON = 360  # actions per task
CONTROL_HZ = 30.0
_SCREENS: dict[str, Screen] = {}  # one per process and renderer, see `calvin.world`


class Calvin(Benchmark):
    """The benchmark `calvin`."""

    name = "calvin"

    def __init__(
        self, root: str | None = None, render: str = "egl", chains: int = COUNT, language: str | None = None
    ) -> None:
        """`root` is the checkout of mees/calvin, by default $CALVIN_ROOT. `render` is "egl", as published, or "tiny",
        on the CPU. `chains` is the number of chains, from the first of the official list on. `language` is a JSON file
        {task: [phrases]} of paraphrases (condition `paraphrased`).

        Raises NotInstalled without CALVIN or its packages, BenchmarkUnusable without EGL, ValueError for other
        settings.
        """
        self.root = installation.find_checkout(root)
        installation.check_packages()
        check_name(render, RENDERERS, "calvin has no renderer")
        if not 1 <= chains <= COUNT:
            raise ValueError(f"chains: 1 to {COUNT} of the official list, not {chains}")
        self.render, self.count = render, chains
        self.driver = installation.find_egl_driver() if render == "egl" else "TinyRenderer"
        self.phrases = installation.read_phrases(self.root)
        self.language = None if language is None else str(Path(language).expanduser().resolve())
        self.paraphrases = {} if self.language is None else _read_paraphrases(Path(self.language), self.phrases)
        self.settings: Mapping[str, Any] = {
            "root": str(self.root),
            "render": render,
            "chains": chains,
            "language": self.language,
        }

    def suites(self) -> Sequence[str]:
        return SUITES

    def suite(self, name: str) -> Suite:
        check_name(name, SUITES, "calvin has no suite")
        tasks = [Task(task, "D", phrases, self.paraphrases.get(task, ())) for task, phrases in self.phrases.items()]
        chains = [list(chain.tasks) for chain in self.chains()]
        return Suite(name, tasks, HORIZON, episodes=self.count, starts=self.count, chains=chains)

    def chains(self) -> Sequence[Chain]:
        """Return the chains; seed i plays chain i."""
        return _chains(self.root)[: self.count]

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """Return the Panda arm of CALVIN's data sets, with relative actions."""
        pose = [
            {"name": "position", "size": 3, "kind": "position", "unit": "m", "frame": "base"},
            {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "frame": "base"},
        ]
        step = {"size": 3, "mode": "delta", "low": -1, "high": 1}
        gripper = {"size": 1, "kind": "gripper"}
        command = {**gripper, "low": -1, "high": 1, "open": 1}
        proprio = [
            *pose,
            {"name": "gripper", **gripper, "low": 0, "high": 0.08, "open": 0.08, "unit": "m"},
            {"name": "joints", "size": 7, "kind": "joints", "unit": "rad"},
            {"name": "gripper_command", **command},
        ]
        action = [
            {"name": "position", "kind": "position", "unit": "0.02 m", "frame": "base", **step},
            {"name": "rotation", "kind": "rotation", "unit": "0.05 rad", **step},
            {"name": "gripper", **command},
        ]
        return {
            "name": "calvin_panda",
            "cameras": ["static", "gripper"],
            "control_hz": CONTROL_HZ,
            "proprio": {"groups": proprio},
            "action": {"groups": action},
        }

    def make(self, suite: str) -> CalvinEnvironment:
        check_name(suite, SUITES, "calvin has no suite")
        return CalvinEnvironment(self)

    def screen(self) -> Screen:
        """Return the renderer, which is made when it is first needed."""
        if self.render not in _SCREENS:
            _SCREENS[self.render] = Screen(self.root, self.render == "egl")
        return _SCREENS[self.render]

    def close(self) -> None:
        if self.render in _SCREENS:
            _SCREENS.pop(self.render).close()

    def versions(self) -> Mapping[str, str]:
        found = {name: metadata.version(name) for name in ("pybullet", "numpy", "scipy")}
        return {
            **found,
            "calvin": read_git_commit(self.root),
            "calvin_env": read_git_commit(self.root / "calvin_env"),
            "gl": self.driver,
        }

    def protocol(self, suite: str) -> Mapping[str, Any]:
        other_words = "" if self.language is None else hashlib.sha256(Path(self.language).read_bytes()).hexdigest()[:16]
        return {
            "render": self.render,
            "cameras": {"static": [200, 200], "gripper": [84, 84]},
            "trained_in": suite.split("-")[0],
            "played_in": "D",
            "other_words": other_words,
        }


class CalvinEnvironment(Environment):
    """A simulated Panda arm at CALVIN's table D."""

    def __init__(self, benchmark: Calvin) -> None:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        self._benchmark = benchmark
        self._world = World(benchmark.root)
        self._oracle = instantiate(OmegaConf.load(benchmark.root / installation.ORACLE))
        self._poses = load_start_states(benchmark.root)
        self._task = ""

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start chain number `seed`, and judge `task` first. Raises ValueError for an unknown task, seed or factor."""
        check_factors("calvin", {}, factors or {})
        if not 0 <= seed < self._benchmark.count:
            raise ValueError(f"there is no chain {seed}: 0 to {self._benchmark.count - 1} are played")
        check_name(task, self._benchmark.phrases, "calvin has no task")
        self._world.reset(*self._poses(self._benchmark.chains()[seed].start))
        self.begin(task)

    def begin(self, task: str) -> None:
        """Judge `task` by the changes from the current state on. Raises ValueError for an unknown task."""
        check_name(task, self._benchmark.phrases, "calvin has no task")
        self._task, self._before = task, self._world.info()

    def observe(self) -> Observation:
        """Return both images and `robot_obs`."""
        return Observation(self._screen().draw_cameras(), self._world.robot_obs().astype(np.float32))

    def _screen(self) -> Screen:
        """Return the renderer, set to the state of this environment."""
        screen = self._benchmark.screen()
        screen.show(self._world)
        return screen

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Execute an action (7,) in units of 0.02 m and 0.05 rad; the gripper opens above 0 and closes otherwise.

        Only the current task is judged. Raises ValueError for another shape.
        """
        command = np.array(action, np.float64)
        if command.shape != (7,):
            raise ValueError(f"an action of CALVIN has shape (7,), not {command.shape}")
        command[6] = 1 if command[6] > 0 else -1  # as its authors do, since no other value is accepted
        now = self._world.step(command)
        return {self._task: bool(self._oracle.get_task_info_for_set(self._before, now, {self._task}))}

    def frame(self, height: int, width: int) -> np.ndarray:
        return self._screen().draw_static(height, width)

    def close(self) -> None:
        self._world.close()


@lru_cache(maxsize=None)
def _chains(root: Path) -> Sequence[Chain]:
    return load_chains(root)


def _read_paraphrases(path: Path, tasks: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return the phrases of a JSON file by task. Raises ValueError if a task is missing or unknown."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"language: {path} cannot be read: {error}") from None
    if not isinstance(read, dict) or not all(isinstance(p, list) and p for p in read.values()):
        raise ValueError(f"language: {path} must map each task to a list of phrases")
    for task in read:
        check_name(task, tasks, f"language: {path}: calvin has no task")
    missing = [task for task in tasks if task not in read]
    if missing:
        raise ValueError(f"language: {path} has no phrases for {', '.join(missing[:3])}; every task needs some")
    return {task: [str(phrase) for phrase in phrases] for task, phrases in read.items()}
