"""Environments of LIBERO that several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anyvla_sim.libero.benchmark import Libero, LiberoEnvironment


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
