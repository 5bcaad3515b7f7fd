"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported

import pytest
import torch
from hypothesis import HealthCheck, settings

# A first import may take seconds, and so may any example on a busy machine.
settings.register_profile("anyvla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anyvla")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before the fixtures of each test: tests run in random order."""
    torch.manual_seed(0)
