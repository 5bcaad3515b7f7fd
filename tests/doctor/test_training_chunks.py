from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.doctor.reference import Reference
from anyvla.doctor.simulation import Calls
from tests import small
from tests.doctor import recordings


@pytest.mark.parametrize(
    ("history", "fuser", "keys"),
    [
        ("none", "identity", {}),
        ({"name": "policy_head", "window": 3}, "lstm", {"execute": 3}),
        ({"name": "interleaved", "window": 4}, "gpt", {}),
        ({"name": "recurrent", "steps": 4}, "mingru", {"execute": 3}),  # the sessions are longer than rows of training
        ({"name": "interleaved", "window": 3}, "identity", {"decoder": "diffusion"}),
        ({"name": "policy_head", "window": 2}, "lstm", {"decoder": "flow"}),
        ({"name": "policy_head", "window": 2}, "gpt", {"view": {"size": [32, 32], "crop": 0.8}}),
    ],
)
def test_training_windows_equal_sessions_with_the_same_noise(
    tmp_path: Path, history: Any, fuser: str, keys: Any
) -> None:
    fusers = {"identity": "identity", **{f["name"]: f for f in small.FUSERS if isinstance(f, dict)}}
    mixture = recordings.write(tmp_path, (25, 14, 12))
    vla = recordings.policy(mixture, history, fusers[fuser], **keys)
    reference = Reference(vla, recordings.played(vla, mixture))
    for calls in (Calls(vla.config.execute, True, 4), Calls(vla.config.execute, False, 1)):
        training = reference.answers(calls, [5, 1, 2])
        sessions = reference.of_session(calls, [5, 1, 2])
        for a, b in zip(training, sessions, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert any(np.ptp(a) > 1e-2 for a in training)


def test_other_seeds_make_other_noise(tmp_path: Path) -> None:
    mixture = recordings.write(tmp_path)
    vla = recordings.policy(mixture, decoder="diffusion")
    reference = Reference(vla, recordings.played(vla, mixture))
    calls = Calls(2, True, 4)
    first, other = (reference.answers(calls, seeds) for seeds in ([1, 2, 3], [1, 2, 4]))
    assert [np.array_equal(a, b) for a, b in zip(first, other, strict=True)] == [True, True, False]
