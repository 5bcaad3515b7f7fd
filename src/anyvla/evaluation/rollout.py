"""Record a running episode, and turn it into a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyvla.evaluation.execution import Execution
from anyvla.evaluation.protocol import EpisodePlan, Subtask
from anyvla.evaluation.results import EpisodeResult, Outcome
from anyvla.policy import Session
from anyvla.robot.embodiment import Embodiment


@dataclass
class Rollout:
    """The record of one attempt at an episode, filled while the episode runs."""

    plan: EpisodePlan
    attempt: int = 1
    number: int = 0  # of the current subtask in the plan
    session: Session | None = None  # of the current subtask
    execution: Execution | None = None
    instructions: list[tuple[int, str]] = field(default_factory=list)  # and the number of actions before each
    actions: list[np.ndarray] = field(default_factory=list)  # (n, A), sent in this subtask, perhaps not all executed
    finished: list[np.ndarray] = field(default_factory=list)  # actions (n, A) executed in each finished subtask
    chunks: list[np.ndarray] = field(default_factory=list)  # (N, A) each, predicted
    predicted_at: list[int] = field(default_factory=list)  # number of actions of the episode before each chunk
    disturbed_at: int | None = None
    calls: int = 0  # of the policy
    seconds: float = 0.0  # of policy calls; each call is divided among the episodes of its batch

    @property
    def subtask(self) -> Subtask:
        """The current subtask."""
        return self.plan.subtasks[self.number]

    @property
    def instruction(self) -> str | None:
        """The current instruction."""
        return self.instructions[-1][1] if self.instructions else None

    def steps(self, subtask_steps: int) -> int:
        """Return the number of actions executed in the episode, `subtask_steps` of them in the current subtask."""
        return sum(map(len, self.finished)) + subtask_steps

    def executed(self, subtask_steps: int) -> np.ndarray:
        """Return the executed actions (T, A), float32; (0, 0) if there are none."""
        parts = [*self.finished, *([np.concatenate(self.actions)[:subtask_steps]] if self.actions else [])]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def start_next_subtask(self, subtask_steps: int) -> None:
        """End the current subtask after `subtask_steps` actions, and start the next one with a new session."""
        self.finished.append(np.concatenate(self.actions)[:subtask_steps])
        self.actions, self.session = [], None
        self.number += 1


@dataclass(frozen=True)
class ResultBuilder:
    """Build results from the fields that all results of an evaluation share."""

    benchmark: str
    checkpoint: str
    policy: Mapping[str, Any]
    protocol: Mapping[str, Any]
    versions: Mapping[str, str]
    embodiment: Embodiment

    def build(
        self,
        rollout: Rollout,
        outcome: Outcome,
        *,
        reached: str | None = None,
        completed: int = 0,
        subtask_steps: int = 0,
        clipped: int = 0,
        error: str | None = None,
    ) -> EpisodeResult:
        """Return the result of an episode. `subtask_steps`: actions executed in its last subtask."""
        plan = rollout.plan
        first = plan.subtasks[0]
        extra: dict[str, Any] = {}
        if len(plan.subtasks) > 1:
            extra["chain"] = [subtask.task for subtask in plan.subtasks]
        if rollout.disturbed_at is not None:
            extra["disturbed_at"] = rollout.disturbed_at
        if (count := count_grasps(rollout.executed(subtask_steps), self.embodiment)) is not None:
            extra["grasps"] = count
        if error is not None:
            extra["error"] = error
        return EpisodeResult(
            benchmark=self.benchmark,
            condition=str(plan.condition),
            task=plan.task,
            instructed=plan.task if len(plan.subtasks) > 1 and first.instructed == first.task else first.instructed,
            instruction=rollout.instructions[0][1] if rollout.instructions else "",
            seed=plan.seed,
            outcome=outcome,
            reached=reached,
            steps=rollout.steps(subtask_steps),
            completed=completed,
            length=len(plan.subtasks),
            attempts=rollout.attempt,
            clipped=clipped,
            latency_ms=1000 * rollout.seconds / max(1, rollout.calls),
            checkpoint=self.checkpoint,
            policy=self.policy,
            protocol=self.protocol,
            versions=self.versions,
            extra=extra,
        )


def count_grasps(actions: np.ndarray, embodiment: Embodiment) -> int | None:
    """Return how often the gripper was closed; None if its open end is not declared. `actions`: (T, A)."""
    grippers = [g for g in embodiment.action.groups if g.kind == "gripper" and g.open is not None]
    if len(grippers) != 1 or not len(actions):
        return None
    gripper = grippers[0]
    assert gripper.low is not None
    assert gripper.high is not None
    middle = (gripper.low + gripper.high) / 2
    commands = actions[:, embodiment.action.slices()[gripper.name]][:, 0]
    closed = commands < middle if gripper.open == gripper.high else commands > middle
    return int(closed[0]) + int((closed[1:] & ~closed[:-1]).sum())
