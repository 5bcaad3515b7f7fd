from __future__ import annotations

import os

import pytest

from anyvla.evaluation.workers import prepare_worker


def test_a_simulator_process_renders_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier value is replaced, because there is one such process per core."""
    monkeypatch.setenv("LP_NUM_THREADS", "8")
    prepare_worker()
    assert os.environ["LP_NUM_THREADS"] == "1"
