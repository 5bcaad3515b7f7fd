"""Collect demonstrations of a benchmark's scripted experts as a LeRobot v3 data set.

Small noise pushes the arm off the expert's path while the labels remain the expert's actions, so the data shows how to
recover (DART, arXiv 1703.09327). Attempts are a pure function of (seed, task, attempt), so an interrupted collection
resumes to the same data set. Failed attempts are dropped, counted and replaced by the next.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, to_dict
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.lerobot.writer import LeRobotWriter, discard_leftovers, is_complete, stage_episode
from anyvla.data.open import open_dataset
from anyvla.evaluation.conditions import ORIGINAL, check_factors, parse_scene
from anyvla.evaluation.suites import FIRST_DEMONSTRATION_SEED, OpenedSuite
from anyvla.evaluation.workers import EnvironmentFailed, prepare_worker
from anyvla.files.differences import check_same
from anyvla.files.folder_lock import lock_while_making
from anyvla.interrupted import Interrupted
from anyvla.limits import COUNT, EPISODES, PROCESSES
from anyvla.robot.embodiment import Embodiment
from anyvla.worker_pool import WorkerPool
from anyvla_sim.base import ExpertStuck, Suite
from anyvla_sim.names import suggest
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import connect

Deviation = Annotated[float, Field(ge=0, le=10)]  # actions are in [-1, 1]
More = Annotated[int, Field(ge=1, le=EPISODES)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CollectConfig:
    """The section `collect:` of a recipe."""

    demonstrations: int = Field(default=40, ge=1, le=EPISODES)  # successful episodes per task
    more: dict[str, More] = Field(default_factory=dict)  # of single tasks, beyond `demonstrations`
    noise: tuple[Deviation, ...] = (0.0, 0.2, 0.4)  # standard deviations of the noise on executed actions; cycled
    noise_memory: float = Field(default=0.85, ge=0, lt=1)  # of the Ornstein-Uhlenbeck process, per action
    keep_after_success: int = Field(default=4, ge=0, le=COUNT)  # actions recorded after the goal is reached
    # As "light=dim+texture=dark", of the benchmark's factors, or "original"; cycled, each with every noise.
    scenes: tuple[str, ...] = (ORIGINAL,)
    tasks: tuple[str, ...] = ()  # of the suite; none: all
    seed: int = Field(default=0, ge=0, le=4000)  # of the noise and the start states
    processes: int | None = Field(default=None, ge=1, le=PROCESSES)  # None: one per core; changes no result

    def __post_init__(self) -> None:
        if not self.noise:
            raise ValueError("noise needs at least one standard deviation, as in [0.0]")
        if not self.scenes:
            raise ValueError(f"scenes needs at least one: {ORIGINAL}, or as in light=dim")
        for scene in self.scenes:
            parse_scene(scene)

    def select_tasks(self, suite: Suite) -> list[str]:
        """Return the names of the tasks to demonstrate. Raises ValueError for unknown ones in `tasks` or `more`."""
        names = [suite.task(name).name for name in self.tasks] or [task.name for task in suite.tasks]
        if unknown := sorted(set(self.more) - set(names)):
            raise ValueError(f"collect.more: {unknown[0]!r} is no task to demonstrate: {suggest(unknown[0], names)}")
        return names

    def episodes_of(self, task: str) -> int:
        """Return the number of successful episodes to collect of a task."""
        return self.demonstrations + self.more.get(task, 0)


@plain_dataclass(frozen=True)
class _Attempt:
    task: str
    number: int  # of this task, from 0
    index: int  # of the episode in the data set, with gaps


def collect(
    opened: OpenedSuite,
    config: CollectConfig,
    root: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Collect demonstrations, or resume after an interruption. Return `root`, at once if it is complete.

    Raises ValueError if `root` holds other demonstrations, EnvironmentFailed if a simulator fails or an expert fails
    too often, FolderInUse if another command collects there, Interrupted once `stop()` returns True.
    """
    suite = opened.suite
    config.select_tasks(suite)  # refuses tasks that the suite does not have
    for scene in config.scenes:
        check_factors(parse_scene(scene), opened.benchmark, f"collect.scenes: {scene}")
    provenance = {
        "benchmark": opened.name,
        "collect": _settings(config),
        "settings": dict(opened.benchmark.protocol(suite.name)),
        "versions": dict(opened.benchmark.versions()),
    }
    with lock_while_making(root):
        if is_complete(root):
            _check_complete(root, provenance)
            discard_leftovers(root)
        else:
            _collect(opened, config, root, provenance, progress, stop)
    return root


def _collect(
    opened: OpenedSuite,
    config: CollectConfig,
    root: Path,
    provenance: Mapping[str, Any],
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> None:
    suite, tasks = opened.suite, config.select_tasks(opened.suite)
    writer = LeRobotWriter(root, opened.embodiment, provenance=provenance)
    failed: dict[str, list[int]] = {task: list(writer.notes.get("failures", {}).get(task, [])) for task in tasks}
    total, done = sum(map(config.episodes_of, tasks)), len(writer.done)

    def attempt(task: str, number: int) -> _Attempt:
        return _Attempt(task, number, number * len(tasks) + tasks.index(task))

    # Each failure adds one attempt of its task, so the attempts in the data do not depend on timing. Tasks run one
    # after the other, since some simulators take seconds to load a scene.
    attempts = [attempt(t, n) for t in tasks for n in range(config.episodes_of(t) + len(failed[t]))]
    todo = deque(a for a in attempts if a.index not in writer.done and a.number not in failed[a.task])
    progress(done, total)
    processes = config.processes or os.cpu_count() or 1
    begin = (opened.spec, suite.name, opened.embodiment, config, writer.partial_root)
    remedy = "try fewer --collect.processes. Finished demonstrations are kept: run the same command to resume"
    with WorkerPool(processes, _start_worker, begin, remedy=remedy) as workers:
        for made, succeeded in workers.run(_run_attempt, todo, processes + 1, stop):  # one in reserve
            if succeeded:
                done += 1
                progress(done, total)
                continue
            failed[made.task].append(made.number)
            writer.note("failures", {t: sorted(n) for t, n in failed.items()})
            todo.appendleft(attempt(made.task, config.episodes_of(made.task) + len(failed[made.task]) - 1))
            if len(failed[made.task]) > config.episodes_of(made.task) + 10:
                raise EnvironmentFailed(
                    f"the expert of {made.task} failed {len(failed[made.task])} times: less noise may help, "
                    f"as in --collect.noise '[0.0]' (now {list(config.noise)})"
                )
        if todo:
            raise Interrupted(f"stopped after {done} of {total} demonstrations; run the same command to resume")
    writer.finalize()


def _settings(config: CollectConfig) -> dict[str, Any]:
    """Return, as JSON, the settings that the demonstrations depend on."""
    return {k: v for k, v in to_dict(config).items() if k != "processes"}


def _check_complete(root: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if finished demonstrations were made with other settings. Versions of libraries may differ."""

    def settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
        facts = {"benchmark": provenance.get("benchmark"), **provenance.get("settings", {})}
        return facts | _settings(CollectConfig()) | dict(provenance.get("collect", {}))  # older data lacks newer keys

    check_same(
        settings(open_dataset(root).provenance),
        settings(wanted),
        f"{root} holds demonstrations made with other settings ({{}}): remove it or choose another output folder",
    )


_play: Callable[[str, int], Episode | None]  # the variables of a worker process
_partial_root: Path


def _start_worker(spec: Spec, suite: str, embodiment: Embodiment, config: CollectConfig, partial_root: Path) -> None:
    global _play, _partial_root
    prepare_worker()
    benchmark = connect(spec)
    _play = partial(demonstrate, benchmark.make(suite), embodiment, benchmark.suite(suite), config)
    _partial_root = partial_root


def _run_attempt(attempt: _Attempt) -> bool:
    """Play one attempt and stage its episode. Return False if it failed."""
    episode = _play(attempt.task, attempt.number)
    if episode is not None:
        stage_episode(_partial_root, episode.embodiment, attempt.index, episode)
    return episode is not None


def demonstrate(
    environment: Any, embodiment: Embodiment, suite: Suite, config: CollectConfig, task: str, number: int
) -> Episode | None:
    """Return attempt `number` of a task by its expert.

    Return None if it failed: it reached another goal first, exceeded the horizon, or the expert gave up. Rendering is
    slow, so only attempts that succeed are rendered, in a second run.
    """
    task_spec = suite.task(task)
    seed = FIRST_DEMONSTRATION_SEED * (1 + config.seed) + number
    sigma = config.noise[number % len(config.noise)]
    scene = config.scenes[number // len(config.noise) % len(config.scenes)]
    factors = parse_scene(scene)
    rng = np.random.default_rng((config.seed, [t.name for t in suite.tasks].index(task), number))
    environment.reset(task, seed, factors)
    rehearsed = _rehearse(environment, suite.limit(task), config, task, sigma, rng)
    if rehearsed is None:
        return None
    labels, actions = rehearsed
    environment.reset(task, seed, factors)
    frames: list[Mapping[str, np.ndarray]] = []
    proprio = []
    for action in actions:
        observation = environment.observe()
        frames.append(observation.images)
        proprio.append(observation.proprio)
        environment.step(action)
    return Episode(
        embodiment=embodiment,
        images={camera: np.stack([f[camera] for f in frames]) for camera in frames[0]},
        proprio=np.stack(proprio),
        actions=np.stack(labels),
        instructions=(task_spec.instructions[number % len(task_spec.instructions)],),
        timestamps=steady_timestamps(len(labels), embodiment.control_hz),
        extra={"task": task, "scene": task_spec.scene, "seed": seed, "noise": sigma, "factors": scene},
    )


def _rehearse(
    environment: Any, horizon: int, config: CollectConfig, task: str, sigma: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Return the expert's actions and the noisy actions to execute, from the current state. Return None on failure."""
    kept = config.noise_memory
    noise: Any = 0.0
    labels: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    last: int | None = None  # the number of actions to record, once the goal is reached
    while len(actions) < (last or horizon):
        try:
            label = environment.expert(task)
        except ExpertStuck:
            return None
        noise = kept * noise + sigma * np.sqrt(1 - kept**2) * rng.normal(size=label.shape)
        labels.append(label)
        actions.append(np.clip(label + noise, -1, 1).astype(np.float32))
        goals = environment.step(actions[-1])
        if last is None and any(goals.values()):
            if not goals[task]:
                return None
            last = min(horizon, len(actions) + config.keep_after_success)
    return (labels, actions) if last else None
