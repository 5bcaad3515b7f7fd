"""Search for the fault of a served path, and for the faults that its comparison would not notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32

from anyvla.doctor.diagnosis import PARTNERS, Diagnosis, Doctor
from anyvla.doctor.difference import Comparison, EpisodeDifference
from anyvla.doctor.faults.base import Fault, can_combine, combine
from anyvla.doctor.played import Answers, Played
from anyvla.doctor.reference import SEEDINGS, Noise
from anyvla.doctor.simulation import Calls
from anyvla.policy import VLA

_SEARCHED_CALLS = 16  # predictions along each episode that faults are tried on
_SEARCHED_EPISODES = 3
_SCREENED_CALLS = 2  # predictions that all faults are tried on, before most of them are dropped
_PAIRED_CALLS = 4  # predictions that a near fault is tried on with each other one
_KEPT = 40  # faults of the inputs after that
_SLOW_FAMILIES = ("session", "timing", "instruction")  # may show later only, so all of them are kept

Progress = Callable[[int, int, str], None]


class Search:
    """A search for the fault, on the beginnings of the first episodes up to one that differs there."""

    def __init__(
        self,
        vla: VLA,
        episodes: Sequence[Played],
        served: Sequence[Answers],
        calls: Calls,
        comparison: Comparison,
        found: Sequence[EpisodeDifference],
    ) -> None:
        self._vla, self._episodes, self._served = vla, episodes, served
        self._calls, self._comparison = calls, comparison
        self._differing, first = next((i, e.first) for i, e in enumerate(found) if e.first is not None)
        self._searched = range(min(len(episodes), max(_SEARCHED_EPISODES, self._differing + 1)))
        self._steps = max(_SEARCHED_CALLS * calls.execute, first.step + 2 * calls.execute)
        self._first = first.step

    def diagnose(self, faults: Sequence[Fault], noise: Noise, progress: Progress) -> Diagnosis:
        """Return the fault that fits best, with the seeds of `noise` or with others that a server may have used."""
        seedings = [noise.seeds]
        if noise.name is not None:  # with a fault, the seeds are not known for certain
            seedings += [[seed(i) for i in range(len(self._episodes))] for seed in SEEDINGS.values()]
        best: Diagnosis | None = None
        for seeds in {tuple(own): own for own in seedings}.values():
            kept = self._screen(faults, seeds)
            doctor, answers = self._consult(self._searched, self._steps, seeds)
            diagnosis = doctor.diagnose(
                answers,
                kept,
                lambda done, total: progress(done, total, "known faults"),
                partial(self._find_partners, faults=faults, seeds=seeds),
            )
            if best is None or _rank(diagnosis) < _rank(best):
                best = diagnosis
            if best.fit == "exact":
                break
        assert best is not None
        return replace(best, tried=best.tried + len(faults) - len(kept))

    def _screen(self, faults: Sequence[Fault], seeds: Sequence[int]) -> list[Fault]:
        """Return the faults that are near on the first answers that differ, and those that these may not show.

        A fault of the inputs counts as near if it is so together with some fault of the actions.
        """
        doctor, answers = self._consult([self._differing], self._first + _SCREENED_CALLS * self._calls.execute, seeds)
        outputs = [f for f in faults if not f.changes_inputs]
        inputs = [f for f in faults if f.changes_inputs and f.family not in _SLOW_FAMILIES]
        nearest: dict[str, float] = {}
        for tried in (inputs, *([combine(f, o) for f in inputs] for o in outputs)):
            for candidate in doctor.measure(answers, tried):
                name = candidate.fault.parts[0] if candidate.fault.parts else candidate.fault.name
                nearest[name] = min(nearest.get(name, np.inf), candidate.distance)
        kept = set(sorted(nearest, key=nearest.__getitem__)[:_KEPT])
        return [f for f in faults if f.name in kept or not f.changes_inputs or f.family in _SLOW_FAMILIES]

    def _find_partners(self, first: Fault, faults: Sequence[Fault], seeds: Sequence[int]) -> list[Fault]:
        """Return the faults of the inputs that bring a near one nearest to the first answers that differ."""
        doctor, answers = self._consult([self._differing], self._first + _PAIRED_CALLS * self._calls.execute, seeds)
        partners = [f for f in faults if f.changes_inputs and can_combine(first, f)]
        found = doctor.measure(answers, [combine(first, f) for f in partners])
        nearest = sorted(found, key=lambda candidate: candidate.distance)[:PARTNERS]
        kept = {candidate.fault.name for candidate in nearest}
        return [f for f in partners if combine(first, f).name in kept]

    def _consult(
        self, chosen: Sequence[int], steps: int, seeds: Sequence[int]
    ) -> tuple[Doctor, Float32[np.ndarray, "K n A"]]:
        """Return a doctor for the beginnings of some episodes, and the answers served there."""
        answers = [self._served[i].actions[self._served[i].steps < steps] for i in chosen]
        doctor = Doctor(
            self._vla,
            [self._episodes[i] for i in chosen],
            self._calls,
            [seeds[i] for i in chosen],
            self._comparison,
            steps,
        )
        return doctor, np.concatenate(answers)


def _rank(diagnosis: Diagnosis) -> tuple[int, float]:
    order: dict[Any, int] = {"exact": 0, "close": 1, "none": 2}
    return order[diagnosis.fit], diagnosis.best.distance if diagnosis.best is not None else np.inf


def find_unnoticed(
    vla: VLA,
    episodes: Sequence[Played],
    calls: Calls,
    comparison: Comparison,
    seeds: Sequence[int],
    faults: Sequence[Fault],
    progress: Progress,
) -> tuple[str, ...]:
    """Return the faults that change no answer: at first on few frames, then those that are left on more."""
    count = min(len(episodes), _SEARCHED_EPISODES)
    left = list(faults)
    stages = ((1, _SCREENED_CALLS), (count, _SEARCHED_CALLS))
    for number, (of, predictions) in enumerate(stages):
        progress(number, len(stages), "sensitivity")
        doctor = Doctor(vla, episodes[:of], calls, seeds[:of], comparison, predictions * calls.execute)
        left = doctor.find_unnoticed(left)
    progress(len(stages), len(stages), "sensitivity")
    return tuple(fault.name for fault in left)
