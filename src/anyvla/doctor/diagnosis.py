"""Name the known fault whose chunks match the served ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float32

from anyvla.doctor.difference import Comparison
from anyvla.doctor.faults.base import NONE, Fault, can_combine, combine
from anyvla.doctor.played import Played
from anyvla.doctor.simulation import Calls, Simulated, simulate
from anyvla.policy import VLA

_CLEAR = 2.0  # times that the next fault is farther away than a fault that fits nearly
_EXPLAINED = 0.3  # of the distance without a fault, at most, for a fault that fits nearly
# The nearest faults that are combined with others, and those others: where the policy must predict, and where not.
_COMBINED, PARTNERS, _CHEAP_PARTNERS = 3, 24, 60
_BATCH = 64  # faults that are simulated at once

Fit = Literal["exact", "close", "none"]


@dataclass(frozen=True)
class Candidate:
    """A fault, and how far its answers are from the served ones (in ranges of the dims)."""

    fault: Fault
    distance: float
    exact: bool


@dataclass(frozen=True)
class Diagnosis:
    """The fault that fits best. `exact`: its answers are equal to the served ones. `close`: they are clearly nearer."""

    fit: Fit
    best: Candidate | None
    same: tuple[Candidate, ...]  # faults that have the same effect on these frames
    next: Candidate | None  # the best fault with another effect
    without: float  # distance without any fault
    tried: int  # faults and pairs of them


class Doctor:
    """Tries known faults on recorded episodes, against the served answers at the same calls."""

    def __init__(
        self,
        vla: VLA,
        episodes: Sequence[Played],
        calls: Calls,
        seeds: Sequence[int],
        comparison: Comparison,
        steps: int,
    ) -> None:
        """`seeds` of the session of each episode; `steps` of each episode are searched."""
        self._simulate = partial(simulate, vla, episodes, calls=calls, seeds=seeds, steps=steps)
        self._calls, self._comparison = calls, comparison
        self._simulated: dict[tuple[object, ...], Simulated | None] = {}  # by the inputs of a fault

    def find_unnoticed(self, faults: Sequence[Fault]) -> list[Fault]:
        """Return the faults that change no answer, so that no comparison on these frames notices them."""
        correct = self.answers([NONE])[0]
        assert correct is not None
        found = zip(faults, self.answers(faults), strict=True)
        return [fault for fault, own in found if own is not None and self._comparison.are_equal(own, correct)]

    def diagnose(
        self,
        served: Float32[np.ndarray, "K n A"],
        faults: Sequence[Fault],
        progress: Callable[[int, int], None] = lambda done, total: None,
        find_partners: Callable[[Fault], Sequence[Fault]] | None = None,
    ) -> Diagnosis:
        """Return the fault, or the pair of faults, whose answers match the served ones.

        `find_partners`: the faults of the inputs to combine with a near one; None: the nearest ones.
        """
        total, candidates = len(faults), list[Candidate]()
        for begin in range(0, total, _BATCH):
            candidates += self.measure(served, faults[begin : begin + _BATCH])
            progress(min(begin + _BATCH, total), total)
        without = self.measure(served, [NONE])[0].distance
        found = self._judge(served, candidates, without, len(candidates))
        if found.fit == "exact":
            return found
        singles = tuple(candidates)
        for predicted in (False, True):
            pairs = list(self._pair(singles, predicted, find_partners))
            for begin in range(0, len(pairs), _BATCH):
                candidates += self.measure(served, pairs[begin : begin + _BATCH])
                progress(min(begin + _BATCH, len(pairs)), len(pairs))
            if any(c.exact for c in candidates):
                break
        both = self._judge(served, candidates, without, len(candidates))
        return both if both.fit == "exact" or found.fit == "none" else replace(found, tried=both.tried)

    def answers(self, faults: Sequence[Fault]) -> list[Float32[np.ndarray, "K n A"] | None]:
        """Return the answers under each fault; None where the policy refuses an observation."""
        new = {f.inputs: f for f in faults if f.inputs not in self._simulated}
        if new:
            self._simulated |= zip(new, self._simulate(list(new.values())), strict=True)
        found = [self._simulated[f.inputs] for f in faults]
        return [None if s is None else s.answers(f, self._calls) for s, f in zip(found, faults, strict=True)]

    def measure(self, served: Float32[np.ndarray, "K n A"], faults: Sequence[Fault]) -> list[Candidate]:
        """Return how far the answers under each fault are from the served ones; without faults that are refused."""
        return [
            Candidate(fault, self._comparison.distance(served, own), self._comparison.are_equal(served, own))
            for fault, own in zip(faults, self.answers(faults), strict=True)
            if own is not None
        ]

    def _pair(
        self,
        candidates: Sequence[Candidate],
        predicted: bool,
        find_partners: Callable[[Fault], Sequence[Fault]] | None,
    ) -> Iterator[Fault]:
        """Yield pairs of faults: of the nearest ones with others.

        `predicted`: pairs of two faults of the inputs, for which the policy must predict; else all others.
        """
        ranked = [c.fault for c in sorted(candidates, key=lambda c: c.distance)]
        inputs = [fault for fault in ranked if fault.changes_inputs]
        outputs = [fault for fault in ranked if not fault.changes_inputs]
        if predicted:
            partners = find_partners or (lambda first: inputs[:PARTNERS])
            pairs = [(a, b) for a in inputs[:_COMBINED] for b in partners(a)]
        else:
            pairs = [(a, b) for a in inputs[:_CHEAP_PARTNERS] for b in outputs]
            pairs += [(a, b) for a in outputs for b in outputs]
        seen: set[frozenset[str]] = set()
        for first, second in pairs:
            names = frozenset({first.name, second.name})
            if names in seen or not can_combine(first, second):
                continue
            seen.add(names)
            yield combine(first, second)

    def _judge(
        self, served: Float32[np.ndarray, "K n A"], candidates: Sequence[Candidate], without: float, tried: int
    ) -> Diagnosis:
        """Return the best candidate, the ones of the same effect, and the next one of another effect."""
        # Of exact ones, the distance is rounding: the first of the list is the most likely.
        ranked = sorted(
            candidates, key=lambda c: (False, len(c.fault.parts), 0.0) if c.exact else (True, 0, c.distance)
        )
        if not ranked:
            return Diagnosis("none", None, (), None, without, tried)
        best = ranked[0]
        own = self.answers([best.fault])[0]
        assert own is not None
        same: list[Candidate] = []
        other: Candidate | None = None
        for candidate in ranked[1:]:
            answers = self.answers([candidate.fault])[0]
            if answers is not None and self._comparison.are_equal(own, answers):
                if len(candidate.fault.parts) <= len(best.fault.parts):
                    same.append(candidate)
            elif other is None:
                other = candidate
                if not best.exact:
                    break
        fit: Fit = "none"
        if best.exact:
            fit = "exact"
        elif best.distance < _EXPLAINED * without and (other is None or other.distance > _CLEAR * best.distance):
            fit = "close"
        return Diagnosis(fit, best, tuple(same), other, without, tried)
