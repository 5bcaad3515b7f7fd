"""Settings of all tests.

A test that needs a simulator names it: `pytest.mark.simulator("libero")`. Where the simulator is missing, the test is
reported as skipped with a reason. It fails instead if the environment variable ANYVLA_TEST_SIMULATORS names the
simulator, as in CI.

A test that needs a GPU of CUDA is marked `gpu`, and reported as skipped without one.

With the environment variable ANYVLA_CHECK_SHAPES set, every call of the core is checked against the types and shapes
that it declares. Tests that pass wrong types on purpose are marked `wrong_types` and skipped then.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported

if os.environ.get("ANYVLA_CHECK_SHAPES"):
    from tests import shapes

    shapes.install()

import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import simulators

# A first import may take seconds, and so may any example on a busy machine.
settings.register_profile("anyvla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anyvla")

# The code of models goes into one folder for each process, because transformers imports it as one package.
_REMOTE_CODE = tempfile.TemporaryDirectory(prefix="remote-code-")
os.environ["HF_MODULES_CACHE"] = _REMOTE_CODE.name  # read when transformers is imported


def pytest_configure() -> None:
    simulators.needed()  # refuses a name that is not known


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("simulator"):
        for name in mark.args:
            simulators.require(name)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU of CUDA; run it with make gpu")
    if os.environ.get("ANYVLA_CHECK_SHAPES") and item.get_closest_marker("wrong_types"):
        pytest.skip("passes arguments of wrong types, which the check of shapes refuses first")
    torch.manual_seed(0)  # before the fixtures of the test: tests run in random order
