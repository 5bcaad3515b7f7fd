from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import small

pytest.importorskip("websockets")

from anyvla.policy import VLA
from tests.serving.clients import Running


@pytest.fixture(scope="session")
def vla() -> VLA:
    return small.awake(small.policy())


@pytest.fixture
def running(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server. At the end, no connection may be open and no warning logged."""
    servers: list[Running] = []

    def start(*args: Any, **options: Any) -> Running:
        servers.append(Running(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        left = 0 if server.settles() else server.connections
        server.close()
        assert not left
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.fixture
def server(vla: VLA, running: Callable[..., Running]) -> Running:
    return running(vla)
