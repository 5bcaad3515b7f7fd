"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported

import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

# A first import may take seconds, and so may any example on a busy machine.
settings.register_profile("anyvla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anyvla")

# The code of models goes into one folder for each process, because transformers imports it as one package.
_REMOTE_CODE = tempfile.TemporaryDirectory(prefix="remote-code-")
os.environ["HF_MODULES_CACHE"] = _REMOTE_CODE.name  # read when transformers is imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before the fixtures of each test: tests run in random order."""
    torch.manual_seed(0)
