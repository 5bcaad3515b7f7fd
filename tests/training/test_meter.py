from __future__ import annotations

import pytest
import torch

from anyvla.training.meter import Meter
from tests.training.pretended import Pretended


def test_a_reading_is_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("anyvla.training.meter.time.perf_counter", lambda: now[0])
    meter = Meter(torch.device("cpu"), torch.float32, Pretended(0, 2, numbers=[[], [0.5, 1e6]]))
    meter.flops.peak, meter.flops._per_sample = 1000.0, 10.0
    for _ in range(4):
        meter.count(16)  # the samples of both
        with meter.waiting():
            now[0] += 0.2
        now[0] += 0.8
    speed = meter.read()
    assert speed.samples_per_s == pytest.approx(16)
    assert speed.wait_share == pytest.approx((0.2 + 0.5) / 2)
    assert speed.memory_gb == 1e6  # of the process with the most
    assert speed.mfu == pytest.approx(10 * 8 / 1000)  # two devices share the samples
