"""Play the planned episodes: environments run in worker processes, and one policy acts for all that are ready.

Each finished episode becomes a line of `results.jsonl`, on disk before it is reported. A later run skips the episodes
that have a line. The executed actions are stored too, so any episode can be rendered afterwards. If the simulator fails
in an episode, the episode is played once more from the same seed, and then reported as an error.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import CONFIG, ROBOTS, STATISTICS, WEIGHTS
from anyvla.config import ConfigError
from anyvla.data.episode import conventions
from anyvla.evaluation.comparison import protocol_differences
from anyvla.evaluation.execution import Execution
from anyvla.evaluation.hardware import describe_machine
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, harness_protocol
from anyvla.evaluation.results import EpisodeResult, append_result, read_results
from anyvla.evaluation.rollout import ResultBuilder, Rollout
from anyvla.evaluation.suites import OpenedSuite
from anyvla.evaluation.tracks import write_track
from anyvla.evaluation.workers import EnvironmentFailed
from anyvla.files import tensor_files
from anyvla.files.differences import find_differences, format_differences
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.text import check_instruction
from anyvla.types import Chunk, ChunkError
from anyvla_sim.base import Suite
from anyvla_sim.workers.pool import EnvironmentPool, LostEpisode, Reply, WorkerLimits

ATTEMPTS = 2  # at an episode whose simulator fails


def hash_checkpoint(checkpoint: Path) -> str:
    """Return a short hash of the files that decide how a checkpoint acts: weights, statistics, configuration."""
    digest = hashlib.sha256()
    others = (checkpoint / name for name in (STATISTICS, ROBOTS, CONFIG))
    for path in (*tensor_files.list_files(checkpoint / WEIGHTS), *others):
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]


def collect_versions(vla: VLA) -> dict[str, str]:
    """Return the versions of the libraries, and the hardware, that the policy runs on."""
    found = {name: metadata.version(name) for name in ("anyvla", "torch", "transformers", "numpy")}
    return found | {"python": platform.python_version(), "machine": describe_machine(), "device": vla.device.type}


def evaluate(
    vla: VLA,
    plans: Sequence[EpisodePlan],
    opened: OpenedSuite,
    config: EvaluationConfig,
    folder: Path,
    *,
    checkpoint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[EpisodeResult]:
    """Play the episodes of `plans` that `folder/results.jsonl` lacks, and return the results of all.

    `checkpoint`: its hash. `on_result` gets each result, the ones on disk first. Raises ConfigError if the policy was
    trained for another robot, or if the folder has results of another checkpoint or protocol; EnvironmentFailed if the
    simulator fails in too many episodes in a row; Interrupted when `stop()` is true.
    """
    check_embodiment([r.embodiment for r in vla.robots], opened.embodiment)
    _check_sizes(vla, opened)
    _check_memory_of_chunks(vla, plans, opened.suite, config)
    vla.implausible = config.implausible or vla.implausible
    builder = ResultBuilder(
        benchmark=opened.name,
        checkpoint=checkpoint,
        policy=_describe_policy(vla, config),
        protocol=_describe_protocol(opened, config),
        versions=collect_versions(vla),
        embodiment=opened.embodiment,
    )
    with lock_folder(folder):
        lines = folder / "results.jsonl"
        finished = {r.key: r for r in read_results(lines)} if lines.is_file() else {}
        _check_same(lines, finished.values(), builder)
        missing = [p for p in plans if p.key not in finished]
        for result in (finished[p.key] for p in plans if p.key in finished):
            on_result(result)
        progress(len(plans) - len(missing), len(plans))
        if missing:
            loop = _EpisodeLoop(vla, opened, config, folder, builder)
            for result in loop.run(missing, stop):
                finished[result.key] = result
                on_result(result)
                progress(sum(p.key in finished for p in plans), len(plans))
        return [finished[p.key] for p in plans]


def _describe_policy(vla: VLA, config: EvaluationConfig) -> dict[str, Any]:
    execute = config.execute or vla.config.execute
    if execute > vla.config.chunk:
        raise ConfigError(f"--execute {execute}: the policy predicts chunks of {vla.config.chunk} actions")
    return {"execute": execute, "ensemble": config.ensemble, "chunk": vla.config.chunk}


def _describe_protocol(opened: OpenedSuite, config: EvaluationConfig) -> dict[str, Any]:
    return harness_protocol(opened.suite, config) | {
        "control_hz": opened.embodiment.control_hz,
        "settings": dict(opened.benchmark.protocol(opened.suite.name)),
        "simulator": dict(opened.benchmark.versions()),
    }


def _check_same(lines: Path, finished: Collection[EpisodeResult], builder: ResultBuilder) -> None:
    for result in finished:
        there, here = (
            {"checkpoint": of.checkpoint, "benchmark": of.benchmark, **of.protocol, **of.policy}
            for of in (result, builder)
        )
        if faults := protocol_differences(there, here):
            raise ConfigError(
                f"{lines} has other results ({'; '.join(faults)}: there, here); choose another output folder, or "
                "remove that one to evaluate again"
            )


def check_embodiment(trained: Sequence[Embodiment], given: Embodiment) -> None:
    """Raise ConfigError, with the differences, for a robot that the policy was not trained for."""
    nearest = next((robot for robot in trained if robot.name == given.name), trained[0])
    fields = ("name", "cameras", "proprio", "action", "control_hz")
    if any(getattr(nearest, f) != getattr(given, f) for f in fields):
        differing = find_differences(conventions(nearest), conventions(given))
        others = f" (trained for: {', '.join(r.name for r in trained)})" if len(trained) > 1 else ""
        raise ConfigError(
            f"the policy was trained for another robot ({format_differences(differing, 'there', 'here')}){others}"
        )


def _check_sizes(vla: VLA, opened: OpenedSuite) -> None:
    """Raise ConfigError for cameras of different sizes if the policy does not resize its images."""
    sizes = opened.benchmark.protocol(opened.suite.name).get("cameras", {})
    if vla.config.view.size is None and len({tuple(size) for size in sizes.values()}) > 1:
        given = ", ".join(f"{camera} {'x'.join(map(str, size))}" for camera, size in sizes.items())
        raise ConfigError(
            f"the cameras of {opened.name} have different sizes ({given}), and the policy was trained without "
            "model.view.size, which resizes them to one size"
        )


def _check_memory_of_chunks(vla: VLA, plans: Sequence[EpisodePlan], suite: Suite, config: EvaluationConfig) -> None:
    """Raise ConfigError if chunks last so long that they solve tasks which are to test the policy's history."""
    if suite.most_executed is None:
        return
    execute = config.execute or vla.config.execute
    lasting = vla.config.chunk if config.ensemble == "temporal" else execute
    lasting += max(plan.condition.delay for plan in plans)
    if lasting > suite.most_executed:
        raise ConfigError(
            f"suite {suite.name} tests what a policy remembers, but here it acts for {lasting} actions on one "
            f"observation, and its chunks would remember for it: use at most --execute {suite.most_executed}, no "
            "temporal ensemble of longer chunks, and no longer delay"
        )


class _EpisodeLoop:
    """Let the policy act for the environments that are ready, until all episodes have ended."""

    def __init__(
        self, vla: VLA, opened: OpenedSuite, config: EvaluationConfig, folder: Path, builder: ResultBuilder
    ) -> None:
        self._vla, self._opened, self._config, self._folder, self._builder = vla, opened, config, folder, builder
        self._until_goal = opened.suite.success_rule == "reached"
        self._waiting: list[Rollout] = []
        self._running: dict[int, Rollout] = {}
        self._results: list[EpisodeResult] = []  # not yet reported
        self._failed_in_a_row = 0

    def run(self, plans: Sequence[EpisodePlan], stop: Callable[[], bool]) -> Iterator[EpisodeResult]:
        """Yield each result once it is on disk."""
        config = self._config
        self._waiting = [Rollout(p) for p in reversed(plans)]
        processes = min(config.processes or os.cpu_count() or 1, len(plans))
        limits = WorkerLimits(config.hang_s, 1000 * config.memory_gb)
        done = 0
        with EnvironmentPool(self._opened.spec, self._opened.suite.name, processes, config.slots, limits) as self._pool:
            for slot in range(self._pool.size):
                self._start_next(slot)
            while self._running:
                if stop():
                    raise Interrupted(f"stopped after {done} of {len(plans)} episodes; run the same command to resume")
                ready = []
                for reply in self._pool.ready(timeout=1.0):
                    rollout = self._running[reply.slot]
                    if isinstance(reply, LostEpisode):
                        self._retry(reply, rollout)
                    elif self._advance(reply, rollout):
                        ready.append((reply, rollout))
                if ready:
                    self._act(ready)
                while self._results:
                    done += 1
                    yield self._results.pop(0)

    def _start_next(self, slot: int) -> None:
        """Start the next waiting episode in a free slot."""
        self._running.pop(slot, None)
        if not self._waiting:
            self._pool.release(slot)
            return
        rollout = self._running[slot] = self._waiting.pop()
        plan = rollout.plan
        self._pool.reset(slot, plan.subtasks[0].task, plan.seed, dict(plan.condition.factors))

    def _retry(self, lost: LostEpisode, rollout: Rollout) -> None:
        """Play the episode once more, or report it as an error."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row > max(5, self._pool.size):
            raise EnvironmentFailed(
                f"the simulator failed in {self._failed_in_a_row} episodes in a row; the last time, in "
                f"{rollout.plan.key}: {lost.message}. Reported episodes are kept"
            )
        if rollout.attempt < ATTEMPTS:
            self._waiting.append(Rollout(rollout.plan, rollout.attempt + 1))
            self._start_next(lost.slot)
        else:
            self._report(lost.slot, rollout, self._builder.build(rollout, "error", error=lost.message), 0)

    def _advance(self, reply: Reply, rollout: Rollout) -> bool:
        """Process a reply of the simulator. Return whether the policy must act next."""
        self._update_instruction(reply, rollout)
        if reply.disturbed:
            rollout.disturbed_at = rollout.steps(reply.steps)
        reached = next((task for task, holds in reply.goals.items() if holds), None)
        if (reached is not None and self._until_goal) or reply.steps >= self._limit(rollout):
            self._finish(reply, rollout, reached)
            return False
        due = rollout.plan.condition.disturbance
        if due and rollout.disturbed_at is None and reply.disturbed is None and rollout.steps(reply.steps) >= due[1]:
            self._pool.disturb(reply.slot, due[0], rollout.plan.seed)
            return False
        return True

    def _update_instruction(self, reply: Reply, rollout: Rollout) -> None:
        """Start a new session if the instruction has changed."""
        subtask, condition = rollout.subtask, rollout.plan.condition
        given = reply.instruction if subtask.instruction is None else subtask.instruction
        instruction = None if given is None else check_instruction(given, may_be_empty=True)
        if rollout.session is not None and instruction == rollout.instruction:
            return
        if instruction is None:
            raise ConfigError(
                f"{self._opened.name}/{subtask.task} has no instruction, and its environment does not give one"
            )
        rollout.instructions.append((rollout.steps(reply.steps), instruction))
        robot, policy = self._opened.embodiment, self._builder.policy
        rollout.session = self._vla.start(instruction, rollout.plan.seed, robot.name, may_be_empty=True)
        rollout.execution = Execution(robot, policy["execute"], condition.delay, policy["ensemble"] == "temporal")

    def _finish(self, reply: Reply, rollout: Rollout, reached: str | None) -> None:
        """End the current subtask: start the next one of the chain, or report the episode."""
        task, subtasks = rollout.subtask.task, len(rollout.plan.subtasks)
        won = reply.goals.get(task, False) if not self._until_goal else reached == task
        completed = rollout.number + won
        if won and completed < subtasks:
            rollout.start_next_subtask(reply.steps)
            self._pool.begin(reply.slot, rollout.subtask.task)
            return
        result = self._builder.build(
            rollout,
            "success" if completed == subtasks else "failure",
            reached=reached,
            completed=completed,
            subtask_steps=reply.steps,
            clipped=reply.clipped,
        )
        self._report(reply.slot, rollout, result, reply.steps)

    def _act(self, ready: Sequence[tuple[Reply, Rollout]]) -> None:
        start = time.perf_counter()
        answers = self._predict(ready)
        share = (time.perf_counter() - start) / len(ready)
        for (reply, rollout), answer in zip(ready, answers, strict=True):
            assert rollout.execution is not None
            rollout.calls += 1
            rollout.seconds += share
            if isinstance(answer, ChunkError):
                result = self._builder.build(
                    rollout,
                    "invalid_action",
                    subtask_steps=reply.steps,
                    completed=rollout.number,
                    clipped=reply.clipped,
                )
                self._report(reply.slot, rollout, result, reply.steps)
            elif isinstance(answer, ValueError):
                why = f"the policy refuses the simulator's observation: {answer}"
                self._retry(LostEpisode(reply.slot, why), rollout)
            else:
                self._failed_in_a_row = 0
                actions = rollout.execution(answer.actions)[: self._limit(rollout) - reply.steps]
                rollout.predicted_at.append(rollout.steps(reply.steps))
                rollout.chunks.append(answer.actions)
                rollout.actions.append(actions)
                self._pool.execute(reply.slot, actions, self._until_goal)

    def _predict(self, ready: Sequence[tuple[Reply, Rollout]]) -> list[Chunk | ValueError]:
        """Return the chunk of each rollout, or the error of a rollout whose observation is refused."""
        observations = [reply.observation for reply, _ in ready if reply.observation is not None]
        sessions = [rollout.session for _, rollout in ready if rollout.session is not None]
        try:
            return [*self._vla.act(observations, sessions)]
        except ValueError as error:
            if len(ready) == 1:
                return [error]
        return [answer for one in ready for answer in self._predict([one])]

    def _limit(self, rollout: Rollout) -> int:
        return self._config.horizon or self._opened.suite.limit(rollout.subtask.task)

    def _report(self, slot: int, rollout: Rollout, result: EpisodeResult, subtask_steps: int) -> None:
        """Write the result of an ended episode, and start the next one in its slot."""
        write_track(self._folder, rollout, subtask_steps)
        append_result(self._folder / "results.jsonl", result)
        self._results.append(result)
        self._start_next(slot)
