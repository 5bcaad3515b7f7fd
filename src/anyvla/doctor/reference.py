"""Compute the answers that training expects at each call, and find the seeds of the noise that a server used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from anyvla.doctor.difference import Comparison
from anyvla.doctor.faults.base import NONE
from anyvla.doctor.played import Answers, Played
from anyvla.doctor.simulation import Calls, simulate
from anyvla.doctor.training_chunks import compute_training_chunks
from anyvla.policy import VLA

# Seeds that a session of episode i may have: servers of anyvla count the rollouts of a connection.
SEEDINGS: dict[str, Callable[[int], int]] = {
    "the number of the rollout, from 1": lambda i: i + 1,
    "the number of the rollout, from 0": lambda i: i,
    "0": lambda i: 0,
    "1": lambda i: 1,
}


class Reference:
    """The chunks that training computes along the episodes, and those of a session in this process."""

    def __init__(self, vla: VLA, episodes: Sequence[Played]) -> None:
        self._vla, self._episodes = vla, episodes

    def answers(self, calls: Calls, seeds: Sequence[int]) -> list[Float32[np.ndarray, "K n A"]]:
        """Return the actions of training at each call of each episode."""
        if self._vla.history.sees_past:  # a training window sees recorded chunks, a session its own ones
            return self.of_session(calls, seeds)
        chunks = compute_training_chunks(self._vla, self._episodes, seeds, calls.execute)
        return [_at_calls(own, calls.steps(len(e)), calls) for own, e in zip(chunks, self._episodes, strict=True)]

    def of_session(self, calls: Calls, seeds: Sequence[int]) -> list[Float32[np.ndarray, "K n A"]]:
        """Return the actions of a session in this process at each call of each episode. Raises ValueError."""
        simulated = simulate(self._vla, self._episodes, [NONE], calls, seeds)[0]
        if simulated is None:
            raise ValueError("the policy refuses the recorded observations; anyvla eval --open-loop says why")
        answers = simulated.answers(NONE, calls)
        return [answers[simulated.episode_of == i] for i in range(len(self._episodes))]


def _at_calls(chunks: np.ndarray, steps: np.ndarray, calls: Calls) -> Float32[np.ndarray, "K n A"]:
    first = np.zeros_like(steps) if calls.whole_chunks else steps % calls.execute
    return calls.convert(chunks)[(steps // calls.execute)[:, None], first[:, None] + np.arange(calls.actions)]


@dataclass(frozen=True)
class Noise:
    """The seeds of the sessions along the episodes, and the answers of training with them."""

    name: str | None  # where the seeds are from; None: they change nothing
    seeds: list[int]
    training: list[Float32[np.ndarray, "K n A"]]
    spread: float | None = None  # distance between the answers with two seeds


def find_seeds(reference: Reference, calls: Calls, served: Sequence[Answers], comparison: Comparison) -> Noise:
    """Return the seeds whose answers are nearest to the served ones."""
    found: list[tuple[float, Noise]] = []
    spread: float | None = None
    for name, seed in SEEDINGS.items():
        seeds = [seed(i) for i in range(len(served))]
        training = reference.answers(calls, seeds)
        if len(found) == 1:
            spread = comparison.distance(np.concatenate(found[0][1].training), np.concatenate(training))
            if spread == 0:
                return Noise(None, seeds, training)
        distance = comparison.distance(np.concatenate([s.actions for s in served]), np.concatenate(training))
        found.append((distance, Noise(name, seeds, training)))
    best = min(found, key=lambda pair: pair[0])[1]
    return replace(best, spread=spread)
