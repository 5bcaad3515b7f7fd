"""Name the fault of proprio that a policy refused as implausible."""

from __future__ import annotations

from anyvla.doctor.clients import RefusedError
from anyvla.doctor.faults.base import apply_all
from anyvla.doctor.faults.vectors import list_proprio_faults
from anyvla.doctor.played import Played
from anyvla.observing import ProprioChecker
from anyvla.policy import VLA


def explain_refusal(vla: VLA, robot: int, episode: Played, error: RefusedError) -> str:
    """Return a sentence with the fault under which the policy refuses this observation in the same words, or ""."""
    checker = ProprioChecker(vla.robots[robot])
    for fault in list_proprio_faults(vla, robot):
        changed = apply_all(fault.proprio, episode.proprio[error.step])
        far = checker.find_implausible(changed)
        if far.any() and checker.describe(changed, far) in str(error):
            return f" The fault: {fault.name}. {fault.fix}"
    return ""
