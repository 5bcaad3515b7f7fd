"""Examine a served policy: compare its answers with the chunks of training, and name the fault where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from anyvla.doctor.diagnosis import Diagnosis, Doctor
from anyvla.doctor.difference import Comparison, FirstDifference
from anyvla.doctor.faults.base import NONE, Fault
from anyvla.doctor.faults.catalog import list_faults
from anyvla.doctor.played import Answers, Played
from anyvla.doctor.recorded import GroupAgreement, compare_with_recorded
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
_SEARCHED_CALLS = 16  # calls of each episode that faults are tried on
_SEARCHED_EPISODES = 3

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EpisodeDifference:
    """How the answers along one episode differ from training's."""

    episode: int
    instruction: str
    calls: int
    largest: float  # difference, in ranges of the dims
    first: FirstDifference | None


@dataclass(frozen=True)
class Examination:
    """The result of an examination of one served path."""

    tolerance: float
    execute: int
    whole_chunks: bool
    seeds: str | None  # of the noise, if the decoder samples it
    in_process: float  # the largest difference between a session in this process and training's windows
    episodes: tuple[EpisodeDifference, ...]
    diagnosis: Diagnosis | None  # None: the answers are equal
    unnoticed: tuple[str, ...]  # known faults that change no answer on these frames
    tried: int  # known faults
    agreement: tuple[GroupAgreement, ...]

    @property
    def equal(self) -> bool:
        """Whether all answers are those of training."""
        return all(e.first is None for e in self.episodes)


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


def examine(
    vla: VLA,
    robot: int,
    episodes: Sequence[Played],
    served: Sequence[Answers],
    *,
    execute: int,
    whole_chunks: bool,
    convert: Callable[[np.ndarray], np.ndarray] = lambda actions: actions,
    tolerance: float | None = None,
    instructions: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    thorough: bool = True,
    progress: Progress = lambda done, total, note: None,
) -> Examination:
    """Compare the answers that were served along the episodes with those of training.

    `convert`: actions to the client's convention; `seeds`: of the sessions of each episode, if they are known;
    `instructions`: of the data, for a wrong one; `thorough`: also list the faults that would not have been noticed.
    """
    comparison = Comparison(vla, robot, tolerance, convert)
    calls = Calls(execute, whole_chunks, min(s.actions.shape[1] for s in served), convert)
    served = [replace(s, actions=s.actions[:, : calls.actions]) for s in served]
    reference = Reference(vla, episodes)
    seeding, chosen, training = _choose_seeds(reference, calls, served, comparison, len(episodes), seeds)
    session = reference.of_session(calls, chosen)
    in_process = max(float(comparison.differences(a, b).max(initial=0)) for a, b in zip(session, training, strict=True))
    found = tuple(_compare(e, s, t, comparison) for e, s, t in zip(episodes, served, training, strict=True))
    faults = list_faults(vla, robot, episodes, execute=execute, whole_chunks=whole_chunks, instructions=instructions)
    diagnosis: Diagnosis | None = None
    unnoticed: tuple[str, ...] = ()
    if any(e.first is not None for e in found):
        diagnosis = _diagnose(vla, episodes, served, calls, found, faults, comparison, chosen, seeding, progress)
    elif thorough:
        searched = range(min(len(episodes), _SEARCHED_EPISODES))
        steps = _SEARCHED_CALLS * execute
        doctor = Doctor(vla, [episodes[i] for i in searched], calls, [chosen[i] for i in searched], comparison, steps)
        unnoticed = tuple(doctor.find_unnoticed(faults))
    agreement = compare_with_recorded(
        comparison.space,
        [s.executed(len(e)) for s, e in zip(served, episodes, strict=True)],
        [convert(e.actions) for e in episodes],
    )
    return Examination(
        comparison.tolerance, execute, whole_chunks, seeding, in_process, found, diagnosis, unnoticed, len(faults),
        tuple(agreement),
    )  # fmt: skip


def _choose_seeds(
    reference: Reference,
    calls: Calls,
    served: Sequence[Answers],
    comparison: Comparison,
    count: int,
    given: Sequence[int] | None,
) -> tuple[str | None, list[int], list[np.ndarray]]:
    """Return how the sessions are seeded, their seeds, and the actions of training with them.

    The first element is None if the seeds change nothing: the decoder samples no noise.
    """
    if given is not None:
        return "given by the doctor", list(given), reference.answers(calls, given)
    found: dict[str, tuple[float, list[int], list[np.ndarray]]] = {}
    for name, seed in SEEDINGS.items():
        seeds = [seed(i) for i in range(count)]
        training = reference.answers(calls, seeds)
        distance = max(comparison.distance(s.actions, t) for s, t in zip(served, training, strict=True))
        found[name] = (distance, seeds, training)
        first = next(iter(found.values()))[2]
        if len(found) == 2 and all(np.array_equal(a, b) for a, b in zip(first, training, strict=True)):
            return None, seeds, training
    best = min(found, key=lambda name: found[name][0])
    return best, found[best][1], found[best][2]


def _compare(episode: Played, served: Answers, training: np.ndarray, comparison: Comparison) -> EpisodeDifference:
    return EpisodeDifference(
        episode=episode.recording.number,
        instruction=episode.instruction,
        calls=len(served.steps),
        largest=float(comparison.differences(served.actions, training).max(initial=0)),
        first=comparison.find_first(episode, served.steps.tolist(), served.actions, training),
    )


def _diagnose(
    vla: VLA,
    episodes: Sequence[Played],
    served: Sequence[Answers],
    calls: Calls,
    found: Sequence[EpisodeDifference],
    faults: Sequence[Fault],
    comparison: Comparison,
    seeds: Sequence[int],
    seeding: str | None,
    progress: Progress,
) -> Diagnosis:
    """Try the known faults on the beginnings of the first episodes up to one that differs there."""
    differing = next(i for i, e in enumerate(found) if e.first is not None)
    searched = range(min(len(episodes), max(_SEARCHED_EPISODES, differing + 1)))
    first = found[differing].first
    assert first is not None
    steps = max(_SEARCHED_CALLS * calls.execute, first.step + 2 * calls.execute)
    answers = _select_calls(served, searched, steps)
    seedings = [list(seeds)]
    if seeding in SEEDINGS:  # with a fault, the seeds are not known either
        seedings += [[seed(i) for i in range(len(episodes))] for seed in SEEDINGS.values()]
    best: Diagnosis | None = None
    for own in {tuple(s): s for s in seedings}.values():
        doctor = Doctor(vla, [episodes[i] for i in searched], calls, [own[i] for i in searched], comparison, steps)
        diagnosis = doctor.diagnose(answers, faults, lambda done, total: progress(done, total, "known faults"))
        if best is None or _rank(diagnosis) < _rank(best):
            best = diagnosis
        if best.fit == "exact":
            break
    assert best is not None
    return best


def _rank(diagnosis: Diagnosis) -> tuple[int, float]:
    order: dict[Any, int] = {"exact": 0, "close": 1, "none": 2}
    return order[diagnosis.fit], diagnosis.best.distance if diagnosis.best is not None else np.inf


def _select_calls(served: Sequence[Answers], chosen: Sequence[int], steps: int) -> Float32[np.ndarray, "K n A"]:
    """Return the answers at the first steps of the chosen episodes."""
    return np.concatenate([served[i].actions[served[i].steps < steps] for i in chosen])
