"""Report tests as not run where their simulator is missing.

Tests name their simulator by `pytestmark = pytest.mark.simulator("libero")`. Each of them is reported as skipped with
a reason; it fails instead if the environment variable ANYVLA_TEST_SIMULATORS names the simulator, as in CI.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import simulators

from anyvla_sim.libero import Libero, LiberoEnvironment


def pytest_configure(config: pytest.Config) -> None:
    simulators.needed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("simulator"):
        for name in mark.args:
            simulators.require(name)


@pytest.fixture(scope="session")
def libero_plate() -> Iterator[LiberoEnvironment]:
    """LIBERO-Goal, for the task put_the_bowl_on_the_plate: loading another task takes seconds. Reset it before use."""
    environment = Libero("fast", size=64).make("goal")
    yield environment
    environment.close()


@pytest.fixture(scope="session")
def libero_stove() -> Iterator[LiberoEnvironment]:
    """LIBERO-Goal, for the task turn_on_the_stove."""
    environment = Libero("fast", size=64).make("goal")
    yield environment
    environment.close()
