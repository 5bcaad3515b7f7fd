from __future__ import annotations

from pathlib import Path

import numpy as np

from anyvla.doctor.examination import examine
from tests.doctor import recordings


def test_a_fault_is_named_through_sampled_noise(tmp_path: Path) -> None:
    mixture = recordings.write(tmp_path)
    vla = recordings.policy(mixture, decoder="flow")
    episodes = recordings.played(vla, mixture)

    def to_bgr(seen: dict) -> dict:  # type: ignore[type-arg]
        return seen | {"images": {c: np.ascontiguousarray(i[..., ::-1]) for c, i in seen["images"].items()}}

    served = recordings.serve(vla, episodes, recordings.ask_in_process(vla, to_bgr))
    found = examine(vla, 0, episodes, served, execute=2, whole_chunks=True, tolerance=1e-5)
    assert found.diagnosis is not None
    assert found.diagnosis.best is not None
    assert (found.diagnosis.fit, found.diagnosis.best.fault.name) == ("exact", "red and blue swapped (BGR)")
    assert found.noise is not None
    assert found.noise > 0.01
    assert found.in_process < 1e-5


def test_faults_that_the_policy_ignores_are_listed(tmp_path: Path) -> None:
    mixture = recordings.write(tmp_path)
    vla = recordings.policy(mixture)
    episodes = recordings.played(vla, mixture)
    served = recordings.serve(vla, episodes, recordings.ask_in_process(vla))
    found = examine(vla, 0, episodes, served, execute=2, whole_chunks=True, tolerance=1e-6)
    assert found.equal
    ignored = set(found.unnoticed)
    assert "the history is lost: a session begins at every call" in ignored  # the policy reads one step
    assert "red and blue swapped (BGR)" not in ignored
    assert "proprio gripper with the opposite polarity" not in ignored
