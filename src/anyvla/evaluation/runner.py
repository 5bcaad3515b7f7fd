"""Plays the episodes of a plan: environments simulate in processes of their own, one policy acts for those ready.

Each finished episode is one line of `results.jsonl`, on disk before it is reported; episodes that stand there already
are not played again. The executed actions are kept beside it, so that any episode can be filmed afterwards. An episode
whose simulator fails is played once more from the same seed, and then reported as an error.
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

from anyvla.config import ConfigError
from anyvla.data.episode import conventions
from anyvla.evaluation.comparison import protocol_differences
from anyvla.evaluation.execution import Execution
from anyvla.evaluation.hardware import describe_machine
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, settings
from anyvla.evaluation.results import EpisodeResult, append_result, read_results
from anyvla.evaluation.rollout import ResultBuilder, Rollout
from anyvla.evaluation.suites import OpenedSuite
from anyvla.evaluation.tracks import write_track
from anyvla.evaluation.workers import EnvironmentFailed
from anyvla.files.differences import find_differences, format_differences
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.text import check_instruction
from anyvla.types import Chunk, ChunkError
from anyvla_sim.workers.pool import EnvironmentPool, LostEpisode, Reply, WorkerLimits

TRIES = 2  # of an episode whose simulator fails


def hash_checkpoint(checkpoint: Path) -> str:
    """A short hash of all that a checkpoint's behavior depends on: weights, statistics, configuration."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "statistics.json", "embodiments.json", "config.yaml"):
        with (checkpoint / name).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]


def versions(vla: VLA) -> dict[str, str]:
    """The policy's side: libraries and hardware."""
    found = {name: metadata.version(name) for name in ("anyvla", "torch", "transformers", "numpy")}
    return found | {
        "python": platform.python_version(),
        "machine": describe_machine(),
        "device": vla.device.type,
    }


def evaluate(
    vla: VLA,
    plans: Sequence[EpisodePlan],
    opened: OpenedSuite,
    config: EvaluationConfig,
    folder: Path,
    *,
    checkpoint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    heard: Callable[[EpisodeResult], None] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[EpisodeResult]:
    """Play what `folder/results.jsonl` lacks of `plans`; returns the results of all plans.

    `checkpoint`: its hash. `heard` gets each result, those on disk first. Raises ConfigError if the policy was trained
    for another robot, or the folder holds results of another checkpoint or protocol; EnvironmentFailed if the
    simulator fails in one episode after the other; Interrupted after `stop()` said so.
    """
    check_embodiment([r.embodiment for r in vla.robots], opened.embodiment)
    _check_sizes(vla, opened)
    vla.implausible = config.implausible or vla.implausible
    setting = ResultBuilder(
        benchmark=opened.name,
        checkpoint=checkpoint,
        policy=_policy(vla, config),
        protocol=_protocol(opened, config),
        versions=versions(vla),
        embodiment=opened.embodiment,
    )
    with lock_folder(folder):
        lines = folder / "results.jsonl"
        finished = {r.key: r for r in read_results(lines)} if lines.is_file() else {}
        _check_same(lines, finished.values(), setting)
        missing = [p for p in plans if p.key not in finished]
        for result in (finished[p.key] for p in plans if p.key in finished):
            heard(result)
        progress(len(plans) - len(missing), len(plans))
        if missing:
            play = _Play(vla, opened, config, folder, setting)
            for result in play.all(missing, stop):
                finished[result.key] = result
                heard(result)
                progress(sum(p.key in finished for p in plans), len(plans))
        return [finished[p.key] for p in plans]


def _policy(vla: VLA, config: EvaluationConfig) -> dict[str, Any]:
    execute = config.execute or vla.config.execute
    if execute > vla.config.chunk:
        raise ConfigError(f"--execute {execute}: the policy predicts {vla.config.chunk} actions at once")
    return {"execute": execute, "ensemble": config.ensemble, "chunk": vla.config.chunk}


def _protocol(opened: OpenedSuite, config: EvaluationConfig) -> dict[str, Any]:
    return settings(opened.suite, config) | {
        "control_hz": opened.embodiment.control_hz,
        "settings": dict(opened.benchmark.protocol(opened.suite.name)),
        "simulator": dict(opened.benchmark.versions()),
    }


def _check_same(lines: Path, finished: Collection[EpisodeResult], setting: ResultBuilder) -> None:
    for there in finished:
        faults = [
            f"{what}: {a!r}, {b!r}"
            for what, a, b in (
                ("checkpoint", there.checkpoint, setting.checkpoint),
                ("benchmark", there.benchmark, setting.benchmark),
            )
            if a != b
        ]
        faults += protocol_differences(there.protocol, setting.protocol)
        faults += protocol_differences(there.policy, setting.policy)
        if faults:
            raise ConfigError(
                f"{lines} holds results of something else ({'; '.join(faults)}: there, here); choose another output "
                "folder, or remove that one to evaluate anew"
            )


def check_embodiment(trained: Sequence[Embodiment], given: Embodiment) -> None:
    """Refuse a robot that the policy was not trained for. Raises ConfigError that names what differs."""
    nearest = next((robot for robot in trained if robot.name == given.name), trained[0])
    fields = ("name", "cameras", "proprio", "action", "control_hz")
    if any(getattr(nearest, f) != getattr(given, f) for f in fields):
        differing = find_differences(conventions(nearest), conventions(given))
        others = f" (trained for: {', '.join(r.name for r in trained)})" if len(trained) > 1 else ""
        raise ConfigError(
            f"the policy was trained for another robot ({format_differences(differing, 'there', 'here')}){others}"
        )


def _check_sizes(vla: VLA, opened: OpenedSuite) -> None:
    """Refuse cameras of different sizes for a policy that brings none to its own."""
    sizes = opened.benchmark.protocol(opened.suite.name).get("cameras", {})
    if vla.config.view.size is None and len({tuple(size) for size in sizes.values()}) > 1:
        given = ", ".join(f"{camera} {'x'.join(map(str, size))}" for camera, size in sizes.items())
        raise ConfigError(
            f"the cameras of {opened.name} have different sizes ({given}), and the policy was trained without "
            "model.view.size, which brings them to one"
        )


class _Play:
    """The loop over what is ready."""

    def __init__(
        self, vla: VLA, opened: OpenedSuite, config: EvaluationConfig, folder: Path, setting: ResultBuilder
    ) -> None:
        self._vla, self._opened, self._config, self._folder, self._setting = vla, opened, config, folder, setting
        self._until_goal = opened.suite.judged == "reached"
        self._waiting: list[Rollout] = []
        self._running: dict[int, Rollout] = {}
        self._results: list[EpisodeResult] = []  # not yet reported
        self._failed_in_a_row = 0

    def all(self, plans: Sequence[EpisodePlan], stop: Callable[[], bool]) -> Iterator[EpisodeResult]:
        """The results as they come, each on disk already."""
        config = self._config
        self._waiting = [Rollout(p) for p in reversed(plans)]
        processes = min(config.processes or os.cpu_count() or 1, len(plans))
        limits = WorkerLimits(config.hang_s, 1000 * config.memory_gb)
        done = 0
        with EnvironmentPool(self._opened.spec, self._opened.suite.name, processes, config.slots, limits) as self._pool:
            for slot in range(self._pool.size):
                self._next(slot)
            while self._running:
                if stop():
                    raise Interrupted(f"stopped after {done} of {len(plans)} episodes; run the same command to resume")
                going = []
                for reply in self._pool.ready(timeout=1.0):
                    rollout = self._running[reply.slot]
                    if isinstance(reply, LostEpisode):
                        self._lost(reply, rollout)
                    elif self._acts(reply, rollout):
                        going.append((reply, rollout))
                if going:
                    self._act(going)
                while self._results:
                    done += 1
                    yield self._results.pop(0)

    def _next(self, slot: int) -> None:
        """Begin another episode in a slot that is free, if one waits."""
        self._running.pop(slot, None)
        if not self._waiting:
            self._pool.release(slot)
            return
        rollout = self._running[slot] = self._waiting.pop()
        plan = rollout.plan
        self._pool.reset(slot, plan.stages[0].task, plan.seed, dict(plan.condition.factors))

    def _lost(self, lost: LostEpisode, rollout: Rollout) -> None:
        """Play it once more, or give it up."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row > max(5, self._pool.size):
            raise EnvironmentFailed(
                f"the simulator failed in {self._failed_in_a_row} episodes in a row; the last time, in "
                f"{rollout.plan.key}: {lost.message}. What was reported is kept"
            )
        if rollout.attempt < TRIES:
            self._waiting.append(Rollout(rollout.plan, rollout.attempt + 1))
        else:
            self._report(self._setting.line(rollout, "error", error=lost.message), rollout, 0)
        self._next(lost.slot)

    def _acts(self, reply: Reply, rollout: Rollout) -> bool:
        """Whether the policy is to act on this reply; sees to everything else that may follow it."""
        self._tell(reply, rollout)
        if reply.disturbed:
            rollout.disturbed_at = rollout.steps(reply.steps)
        reached = next((task for task, holds in reply.goals.items() if holds), None)
        limit = self._config.horizon or self._opened.suite.limit(rollout.now.task)
        if (reached is not None and self._until_goal) or reply.steps >= limit:
            self._ends(reply, rollout, reached)
            return False
        due = rollout.plan.condition.disturbance
        if due and rollout.disturbed_at is None and reply.disturbed is None and rollout.steps(reply.steps) >= due[1]:
            self._pool.disturb(reply.slot, due[0], rollout.plan.seed)
            return False
        return True

    def _tell(self, reply: Reply, rollout: Rollout) -> None:
        """A session begins with each instruction."""
        stage, condition = rollout.now, rollout.plan.condition
        given = reply.instruction if stage.instruction is None else stage.instruction
        words = None if given is None else check_instruction(given, may_be_empty=True)
        if rollout.session is not None and words == rollout.words:
            return
        if words is None:
            raise ConfigError(f"{self._opened.name}/{stage.task} has no instruction, nor does its environment say one")
        rollout.said.append((rollout.steps(reply.steps), words))
        robot, policy = self._opened.embodiment, self._setting.policy
        rollout.session = self._vla.start(words, rollout.plan.seed, robot.name, may_be_empty=True)
        rollout.execution = Execution(robot, policy["execute"], condition.delay, policy["ensemble"] == "temporal")

    def _ends(self, reply: Reply, rollout: Rollout, reached: str | None) -> None:
        """A goal was reached, or time is over: the next task of a chain begins, or the episode is a line."""
        task, stages = rollout.now.task, len(rollout.plan.stages)
        won = reply.goals.get(task, False) if not self._until_goal else reached == task
        completed = rollout.stage + won
        if won and completed < stages:
            rollout.go_on(reply.steps)
            self._pool.begin(reply.slot, rollout.now.task)
            return
        line = self._setting.line(
            rollout,
            "success" if completed == stages else "failure",
            reached=reached,
            completed=completed,
            here=reply.steps,
            clipped=reply.clipped,
        )
        self._report(line, rollout, reply.steps)
        self._next(reply.slot)

    def _act(self, going: Sequence[tuple[Reply, Rollout]]) -> None:
        start = time.perf_counter()
        answers = self._answers(going)
        share = (time.perf_counter() - start) / len(going)
        for (reply, rollout), answer in zip(going, answers, strict=True):
            assert rollout.execution is not None
            rollout.calls += 1
            rollout.seconds += share
            if isinstance(answer, ChunkError):
                line = self._setting.line(
                    rollout, "invalid_action", here=reply.steps, completed=rollout.stage, clipped=reply.clipped
                )
                self._report(line, rollout, reply.steps)
                self._next(reply.slot)
                continue
            if isinstance(answer, ValueError):  # what the simulator shows is no observation of this robot
                self._lost(LostEpisode(reply.slot, f"the policy refuses what the simulator shows: {answer}"), rollout)
                continue
            self._failed_in_a_row = 0
            limit = self._config.horizon or self._opened.suite.limit(rollout.now.task)
            actions = rollout.execution(answer.actions)[: limit - reply.steps]
            rollout.marks.append(rollout.steps(reply.steps))
            rollout.chunks.append(answer.actions)
            rollout.actions.append(actions)
            self._pool.execute(reply.slot, actions, self._until_goal)

    def _answers(self, going: Sequence[tuple[Reply, Rollout]]) -> list[Chunk | ValueError]:
        """The chunk of each rollout, or why there is none. One that is refused does not keep the others from acting."""
        shown = [reply.observation for reply, _ in going if reply.observation is not None]  # all: none of them is over
        sessions = [rollout.session for _, rollout in going if rollout.session is not None]
        try:
            return [*self._vla.act(shown, sessions)]
        except ValueError as error:
            if len(going) == 1:
                return [error]
        return [answer for one in going for answer in self._answers([one])]

    def _report(self, line: EpisodeResult, rollout: Rollout, here: int) -> None:
        write_track(self._folder, rollout, here)
        append_result(self._folder / "results.jsonl", line)
        self._results.append(line)
