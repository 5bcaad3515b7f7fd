"""Evaluations of the toy benchmark by small policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.evaluation.conditions import parse
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, plan_episodes
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.runner import evaluate
from anyvla.policy import VLA, Session
from anyvla.types import Chunk, Observation
from tests.evaluation.toy_opened import opened
from tests.evaluation.toy_world import SUITE, SUITES

LANGUAGES = [parse(c) for c in ("original", "swapped", "unrelated")]


class Obedient(VLA):
    """A policy whose decoder moves the cart as instructed. It records the sessions and batches that it gets."""

    pace: float = 1

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.started: list[tuple[str, int, str | None]] = []
        self.batches: list[int] = []

    def start(self, instruction: str, seed: int = 0, robot: str | None = None, **keys: bool) -> Session:
        self.started.append((instruction, seed, robot))
        return super().start(instruction, seed, robot, **keys)

    def act(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> list[Chunk]:
        super().act(observations, sessions)
        self.batches.append(len(sessions))
        ways = {"left": [-1, 0, 0, 0], "right": [1, 0, 0, 0], "go up": [0, 0, 1, 0], "rise": [0, 0, 1, 0]}
        words = [next(way for word, way in ways.items() if word in s.instruction) for s in sessions]
        return [Chunk(self.pace * np.array([way] * self.config.chunk, np.float32)) for way in words]


def play(vla: VLA, plans: Sequence[EpisodePlan], folder: Path, **keys: Any) -> list[EpisodeResult]:
    keys = {"checkpoint": "c0ffee", "opened": opened()} | keys
    config = EvaluationConfig(processes=keys.pop("processes", 1), slots=keys.pop("slots", 3), **keys.pop("config", {}))
    return evaluate(vla, plans, keys.pop("opened"), config, folder, **keys)


def make_plans(condition: str = "original", suite: str = "line", **keys: Any) -> list[EpisodePlan]:
    return plan_episodes(SUITES[suite], EvaluationConfig(**keys), [parse(condition)])


PLANS = plan_episodes(SUITE, EvaluationConfig(episodes=2, unrelated_episodes=1), LANGUAGES)
