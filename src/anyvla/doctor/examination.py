"""Examine a served policy: compare its answers with the chunks of training, and name the fault where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anyvla.doctor.diagnosis import Diagnosis
from anyvla.doctor.difference import Comparison, EpisodeDifference
from anyvla.doctor.faults.catalog import list_faults
from anyvla.doctor.played import Answers, Played
from anyvla.doctor.recorded import GroupAgreement, compare_with_recorded
from anyvla.doctor.reference import Reference, find_seeds
from anyvla.doctor.search import Progress, Search, find_unnoticed
from anyvla.doctor.simulation import Calls
from anyvla.policy import VLA


@dataclass(frozen=True)
class Examination:
    """The result of an examination of one served path."""

    tolerance: float
    execute: int
    whole_chunks: bool
    seeds: str | None  # of the noise, if the decoder samples it
    noise: float | None  # distance of training's answers with two seeds of the noise
    # The largest difference between a session in this process and training's windows. None: these see recorded chunks,
    # a session sees its own ones, so the answers are compared with those of a session.
    in_process: float | None
    episodes: tuple[EpisodeDifference, ...]
    diagnosis: Diagnosis | None  # None: the answers are equal
    unnoticed: tuple[str, ...]  # known faults that change no answer on these frames
    tried: int  # known faults
    agreement: tuple[GroupAgreement, ...]

    @property
    def equal(self) -> bool:
        """Whether all answers are those of training."""
        return all(e.first is None for e in self.episodes)


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
    thorough: bool = True,
    progress: Progress = lambda done, total, note: None,
) -> Examination:
    """Compare the answers that were served along the episodes with those of training.

    `convert`: actions to the client's convention; `instructions`: of the data, for a wrong one; `thorough`: also list
    the faults that would not have been noticed.
    """
    comparison = Comparison(vla, robot, tolerance, convert)
    calls = Calls(execute, whole_chunks, min(s.actions.shape[1] for s in served), convert)
    served = [replace(s, actions=s.actions[:, : calls.actions]) for s in served]
    reference = Reference(vla, episodes)
    noise = find_seeds(reference, calls, served, comparison)
    training, chosen = noise.training, noise.seeds
    in_process: float | None = None
    if not vla.history.sees_past:
        session = zip(reference.of_session(calls, chosen), training, strict=True)
        in_process = max(float(comparison.differences(a, b).max(initial=0)) for a, b in session)
    found = tuple(comparison.compare(e, s, t) for e, s, t in zip(episodes, served, training, strict=True))
    faults = list_faults(vla, robot, episodes, execute=execute, whole_chunks=whole_chunks, instructions=instructions)
    diagnosis: Diagnosis | None = None
    unnoticed: tuple[str, ...] = ()
    if any(e.first is not None for e in found):
        search = Search(vla, episodes, served, calls, comparison, found)
        diagnosis = search.diagnose(faults, noise, progress)
    elif thorough:
        unnoticed = find_unnoticed(vla, episodes, calls, comparison, chosen, faults, progress)
    agreement = compare_with_recorded(
        comparison.space,
        [s.executed(len(e)) for s, e in zip(served, episodes, strict=True)],
        [convert(e.actions) for e in episodes],
    )
    return Examination(
        tolerance=comparison.tolerance,
        execute=execute,
        whole_chunks=whole_chunks,
        seeds=noise.name,
        noise=noise.spread,
        in_process=in_process,
        episodes=found,
        diagnosis=diagnosis,
        unnoticed=unnoticed,
        tried=len(faults),
        agreement=tuple(agreement),
    )
