"""One running episode: what it plays, what it has done, and the line that it becomes."""

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
    """Filled while an episode runs. An attempt of its own each time that the simulator fails."""

    plan: EpisodePlan
    attempt: int = 1
    stage: int = 0  # which of the plan's stages is played
    session: Session | None = None  # of this stage
    execution: Execution | None = None
    said: list[tuple[int, str]] = field(default_factory=list)  # instructions, and after how many actions each was given
    actions: list[np.ndarray] = field(default_factory=list)  # sent in this stage, (n, A) each, the last perhaps in part
    before: list[np.ndarray] = field(default_factory=list)  # executed in each stage that is over, (n, A)
    chunks: list[np.ndarray] = field(default_factory=list)  # predicted, (N, A) each
    marks: list[int] = field(default_factory=list)  # at how many actions of the episode each chunk was predicted
    disturbed_at: int | None = None
    calls: int = 0
    seconds: float = 0.0  # of policy calls, shared among the episodes of a batch

    @property
    def now(self) -> Subtask:
        """What is told now."""
        return self.plan.stages[self.stage]

    @property
    def words(self) -> str | None:
        """The instruction given last."""
        return self.said[-1][1] if self.said else None

    def steps(self, here: int) -> int:
        """Actions executed in the episode, `here` of them in this stage."""
        return sum(map(len, self.before)) + here

    def executed(self, here: int) -> np.ndarray:
        """The actions (T, A) that were executed, float32; (0, 0) if there are none."""
        stages = [*self.before, *([np.concatenate(self.actions)[:here]] if self.actions else [])]
        return np.concatenate(stages) if stages else np.zeros((0, 0), np.float32)

    def go_on(self, here: int) -> None:
        """This stage is over after `here` actions; the next begins, with a session of its own."""
        self.before.append(np.concatenate(self.actions)[:here])
        self.actions, self.session = [], None
        self.stage += 1


@dataclass(frozen=True)
class ResultBuilder:
    """What all lines of an evaluation share."""

    benchmark: str
    checkpoint: str
    policy: Mapping[str, Any]
    protocol: Mapping[str, Any]
    versions: Mapping[str, str]
    embodiment: Embodiment

    def line(
        self,
        rollout: Rollout,
        outcome: Outcome,
        *,
        reached: str | None = None,
        completed: int = 0,
        here: int = 0,
        clipped: int = 0,
        error: str | None = None,
    ) -> EpisodeResult:
        """The result of an episode; `here`: actions executed in its last stage."""
        plan = rollout.plan
        extra: dict[str, Any] = {}
        if len(plan.stages) > 1:
            extra["chain"] = [stage.task for stage in plan.stages]
        if rollout.disturbed_at is not None:
            extra["disturbed_at"] = rollout.disturbed_at
        if (count := count_grasps(rollout.executed(here), self.embodiment)) is not None:
            extra["grasps"] = count
        if error is not None:
            extra["error"] = error
        return EpisodeResult(
            benchmark=self.benchmark,
            condition=str(plan.condition),
            task=plan.task,
            told=plan.stages[0].told if len(plan.stages) == 1 else plan.task,
            instruction=rollout.said[0][1] if rollout.said else "",
            seed=plan.seed,
            outcome=outcome,
            reached=reached,
            steps=rollout.steps(here),
            completed=completed,
            length=len(plan.stages),
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
    """How often the gripper was closed; None if it does not say which end of its range is open. `actions`: (T, A)."""
    where = embodiment.action.slices()
    grippers = [g for g in embodiment.action.groups if g.kind == "gripper" and g.open is not None]
    if len(grippers) != 1 or not len(actions):
        return None
    gripper = grippers[0]
    assert gripper.low is not None
    assert gripper.high is not None
    middle = (gripper.low + gripper.high) / 2
    commands = actions[:, where[gripper.name]][:, 0]
    closed = commands < middle if gripper.open == gripper.high else commands > middle
    return int(closed[0]) + int((closed[1:] & ~closed[:-1]).sum())
