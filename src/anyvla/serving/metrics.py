"""Measure a policy server for Prometheus: requests, errors, sizes of batches, and the latency of each stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal, get_args

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError as error:
    raise ImportError(f'a policy server needs {error.name}: pip install "anyvla[serve]"') from None

# parse: from bytes to a checked request; decode: its images; queue: until the policy begins; policy: the prediction of
# its batch; encode: from actions to bytes.
Stage = Literal["parse", "decode", "queue", "policy", "encode"]
Outcome = Literal["ok", "error", "canceled"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The measurements of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("anyvla_requests", "Messages answered, by outcome", ["outcome"], registry=registry)
        self._latency = Histogram(
            "anyvla_request_seconds", "From a whole message to its answer", registry=registry, buckets=_SECONDS
        )
        stages = Histogram(
            "anyvla_stage_seconds", "Stages of predictions", ["stage"], registry=registry, buckets=_SECONDS
        )
        self._stages = {name: stages.labels(name) for name in get_args(Stage)}
        self._batches = Histogram("anyvla_batch_size", "Requests per batch", registry=registry, buckets=_SIZES)
        self.connections = Gauge("anyvla_connections", "Open connections", registry=registry)
        self.sessions = Gauge("anyvla_sessions", "Sessions that clients named", registry=registry)
        self.ready = Gauge("anyvla_ready", "1 from the end of the warm-up until the server stops", registry=registry)

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Measure how long a stage of a request takes, unless it fails."""
        begin = time.perf_counter()
        yield
        self.add_stage(name, time.perf_counter() - begin)

    def add_stage(self, name: Stage, seconds: float) -> None:
        """Add the duration of a stage of one request."""
        self._stages[name].observe(seconds)

    def add_request(self, outcome: Outcome, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(outcome).inc()
        self._latency.observe(seconds)

    def add_batch(self, size: int) -> None:
        """Count a batch of the policy."""
        self._batches.observe(size)

    def write(self) -> bytes:
        """Return all measurements in the text format of Prometheus."""
        return generate_latest(self._registry)
