from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anyvla.cli.doctor.policy_report import print_report
from anyvla.doctor.examination import examine
from anyvla.doctor.report import Report
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


def test_a_strong_and_a_weak_fault_of_observations_are_both_named(tmp_path: Path) -> None:
    """Alone, the weak one brings the answers no nearer, so that it isn't among the nearest faults."""
    mixture = recordings.write(tmp_path)
    vla = recordings.policy(mixture)
    episodes = recordings.played(vla, mixture)

    def change(seen: dict) -> dict:  # type: ignore[type-arg]
        proprio = seen["proprio"] * np.array([2, 2, 2, 1, 1, 1, 1], np.float32)
        images = {c: np.ascontiguousarray(i[::-1, ::-1]) for c, i in seen["images"].items()}
        return seen | {"images": images, "proprio": proprio}

    vla.implausible = "warn"
    served = recordings.serve(vla, episodes, recordings.ask_in_process(vla, change))
    found = examine(vla, 0, episodes, served, execute=2, whole_chunks=True, tolerance=1e-6)
    assert found.diagnosis is not None
    assert found.diagnosis.best is not None
    assert found.diagnosis.fit == "exact"
    assert set(found.diagnosis.best.fault.parts) == {
        "images rotated by 180 degrees",
        "proprio position multiplied by 2",
    }


def test_a_history_of_chunks_is_compared_with_a_session_and_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = recordings.write(tmp_path)
    vla = recordings.policy(mixture, {"name": "interleaved", "window": 3, "past": "visible"}, "identity")
    episodes = recordings.played(vla, mixture)
    served = recordings.serve(vla, episodes, recordings.ask_in_process(vla))
    found = examine(vla, 0, episodes, served, execute=2, whole_chunks=True, thorough=False)
    assert (found.equal, found.in_process) == (True, None)
    print_report(Report("checkpoint", "data", "openpi", None, examination=found))
    out = capsys.readouterr().out
    assert "served: against a session in this process" in out
    assert "training" not in out
