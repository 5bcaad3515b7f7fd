from __future__ import annotations

import pytest

from anyvla.serving.metrics import Metrics
from anyvla.serving.status import Status


def codes(status: Status) -> tuple[int, int]:
    """Return the codes of /healthz and /readyz. That of vla-eval's readiness probe is the second."""
    pages = [status.find(path, authorized=False) for path in ("/healthz", "/readyz?verbose", "/health")]
    assert pages[1] == pages[2]
    del pages[2]
    return tuple(page.status for page in pages)  # type: ignore[union-attr, return-value]


def test_a_server_is_ready_between_its_warm_up_and_its_stop() -> None:
    status = Status(Metrics())
    assert codes(status) == (200, 503)
    status.set_ready()
    assert codes(status) == (200, 200)
    status.set_stopping()
    assert codes(status) == (200, 503)
    status.set_ready()  # a warm-up that ends late
    assert codes(status) == (200, 503)


def test_measurements_are_for_clients_with_the_key_only() -> None:
    metrics = Metrics()
    status = Status(metrics)
    metrics.add_request("error", 0.1)
    assert status.find("/metrics", authorized=False) is None
    page = status.find("/metrics", authorized=True)
    assert page is not None
    assert 'anyvla_requests_total{outcome="error"} 1.0' in page.text
    assert page.content_type.startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("path", ["/", "/metrics/x", "//healthz", ""])
def test_other_paths_have_no_page(path: str) -> None:
    assert Status(Metrics()).find(path, authorized=True) is None


def test_connections_are_not_shared_between_servers() -> None:
    one, other = Metrics(), Metrics()
    one.connections.set(3)
    assert b"anyvla_connections 3.0" in one.write()
    assert b"anyvla_connections 0.0" in other.write()
