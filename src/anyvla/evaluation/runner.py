"""Plays the episodes of a plan: environments simulate in processes of their own, one policy acts for those ready.

Each finished episode is one line of `results.jsonl`, on disk before it is reported; episodes that stand there already
are not played again. The executed actions are kept beside it, so that any episode can be filmed afterwards.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anyvla.config import ConfigError
from anyvla.data.episode import Embodiment
from anyvla.evaluation.environments.base import Benchmark, EpisodeResult, Suite
from anyvla.evaluation.environments.pool import EnvironmentPool, Reply
from anyvla.evaluation.protocol import EpisodePlan
from anyvla.evaluation.statistics import append_result, read_results
from anyvla.policy import VLA, Session


class Interrupted(Exception):
    """The evaluation was asked to stop; what was reported is on disk."""


def checkpoint_hash(checkpoint: Path) -> str:
    """A short hash of a checkpoint's weights."""
    digest = hashlib.sha256()
    with (checkpoint / "model.safetensors").open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:16]


@dataclass
class _Rollout:
    """A running episode."""

    plan: EpisodePlan
    session: Session
    actions: list[np.ndarray] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0  # of policy calls, shared among the episodes of a batch


def evaluate(
    vla: VLA,
    plans: Sequence[EpisodePlan],
    benchmark: Benchmark,
    suite: Suite,
    folder: Path,
    *,
    checkpoint: str,
    processes: int | None = None,
    slots: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[EpisodeResult]:
    """Play what `folder/results.jsonl` lacks of `plans`; returns the results of all plans.

    An episode ends when a goal of its scene is reached, or after `suite.horizon` actions. Raises ConfigError if the
    policy was trained for another robot, or the folder holds results of another checkpoint (`checkpoint` is its hash),
    benchmark or render setting;
    Interrupted after `stop()` said so.
    """
    check_embodiment([r.embodiment for r in vla.robots], benchmark.embodiment)
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "results.jsonl"
    finished = {r.key: r for r in read_results(lines)} if lines.is_file() else {}
    _check_same(lines, finished.values(), checkpoint, f"{benchmark.name}/{suite.name}", benchmark.versions())
    waiting = [p for p in reversed(plans) if p.key not in finished]
    done, total = len(plans) - len(waiting), len(plans)
    progress(done, total)
    if not waiting:
        return [finished[p.key] for p in plans]
    processes = min(processes or os.cpu_count() or 1, len(waiting))
    with EnvironmentPool(benchmark, processes=processes, slots=slots) as pool:
        running: dict[int, _Rollout] = {}

        def begin(slot: int) -> None:
            if waiting:
                plan = waiting.pop()
                running[slot] = _Rollout(plan, vla.start(plan.instruction, plan.seed, benchmark.embodiment.name))
                pool.reset(slot, plan.task, plan.seed)

        for slot in range(pool.size):
            begin(slot)
        while running:
            if stop():
                raise Interrupted(f"stopped after {done} of {total} episodes; the same command goes on there")
            going = []
            for reply in pool.ready(timeout=1.0):
                rollout = running[reply.slot]
                if _over(reply, suite):
                    result = _result(reply, rollout, benchmark, suite, checkpoint)
                    _keep_actions(folder, rollout, reply.steps)
                    append_result(lines, result)
                    finished[rollout.plan.key] = result
                    done += 1
                    progress(done, total)
                    del running[reply.slot]
                    begin(reply.slot)
                else:
                    going.append((reply, rollout))
            if going:
                _act(vla, going, pool, suite)
    return [finished[p.key] for p in plans]


def _check_same(
    lines: Path, finished: Collection[EpisodeResult], checkpoint: str, name: str, versions: Mapping[str, str]
) -> None:
    for what, here, there in (
        ("checkpoint", checkpoint, {r.checkpoint for r in finished}),
        ("benchmark", name, {r.benchmark for r in finished}),
        ("render setting", versions.get("render"), {r.versions.get("render") for r in finished}),
    ):
        if foreign := there - {here}:
            raise ConfigError(
                f"{lines} holds results of another {what} ({', '.join(sorted(map(str, foreign)))}, this is {here}); "
                "choose another output folder, or remove that one to evaluate anew"
            )


def check_embodiment(trained: Sequence[Embodiment], given: Embodiment) -> None:
    """Refuse a robot that the policy was not trained for. Raises ConfigError that names what differs."""
    nearest = next((robot for robot in trained if robot.name == given.name), trained[0])
    fields = ("name", "cameras", "proprio", "action", "control_hz")
    differing = [f for f in fields if getattr(nearest, f) != getattr(given, f)]
    if differing:
        others = f" (trained for: {', '.join(r.name for r in trained)})" if len(trained) > 1 else ""
        raise ConfigError(
            "the policy was trained for another robot: "
            + "; ".join(f"{f} {getattr(nearest, f)!r}, here {getattr(given, f)!r}" for f in differing)
            + others
        )


def _act(vla: VLA, going: Sequence[tuple[Reply, _Rollout]], pool: EnvironmentPool, suite: Suite) -> None:
    start = time.perf_counter()
    shown = [reply.observation for reply, _ in going if reply.observation is not None]  # all: none of them is over
    chunks = vla.act(shown, [rollout.session for _, rollout in going])
    share = (time.perf_counter() - start) / len(going)
    for (reply, rollout), chunk in zip(going, chunks, strict=True):
        actions = chunk.actions[: min(vla.config.execute, suite.horizon - reply.steps)]
        rollout.actions.append(actions)
        rollout.calls += 1
        rollout.seconds += share
        pool.execute(reply.slot, actions)


def _over(reply: Reply, suite: Suite) -> bool:
    return any(reply.goals.values()) or reply.steps >= suite.horizon


def _result(reply: Reply, rollout: _Rollout, benchmark: Benchmark, suite: Suite, checkpoint: str) -> EpisodeResult:
    plan = rollout.plan
    reached = next((task for task, holds in reply.goals.items() if holds), None)
    return EpisodeResult(
        benchmark=f"{benchmark.name}/{suite.name}",
        protocol=plan.protocol,
        task=plan.task,
        told=plan.told,
        instruction=plan.instruction,
        seed=plan.seed,
        success=reached == plan.task,
        reached=reached,
        steps=reply.steps,
        latency_ms=1000 * rollout.seconds / max(1, rollout.calls),
        checkpoint=checkpoint,
        versions=benchmark.versions(),
    )


def actions_file(folder: Path, key: str) -> Path:
    """Where the executed actions of an episode lie, a float32 array (T, A)."""
    return folder / "actions" / f"{key}.npy"


def _keep_actions(folder: Path, rollout: _Rollout, steps: int) -> None:
    path = actions_file(folder, rollout.plan.key)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(rollout.actions)[:steps], allow_pickle=False)
    temporary.replace(path)
