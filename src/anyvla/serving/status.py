"""Answer the questions that a supervisor asks over HTTP: whether a server lives, is ready, and how it fares."""

from __future__ import annotations

import http
from dataclasses import dataclass

from anyvla.serving.metrics import CONTENT_TYPE, Metrics

_READINESS = ("/readyz", "/health")  # the second is vla-eval's, whose servers have loaded when they answer it
_WARMS_UP, _READY = "it warms up", "ready"


@dataclass(frozen=True)
class StatusPage:
    """An answer over HTTP."""

    status: http.HTTPStatus
    text: str
    content_type: str = "text/plain; charset=utf-8"


class Status:
    """The state of a server: it warms up, is ready, and stops."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._state = metrics, _WARMS_UP

    @property
    def hindrance(self) -> str | None:
        """Why the server is not ready; None if it is."""
        return None if self._state == _READY else f"not ready: {self._state}"

    def set_ready(self) -> None:
        """Say from now on that the server answers requests, unless it stops already."""
        if self._state == _WARMS_UP:
            self._state = _READY
            self._metrics.ready.set(1)

    def set_stopping(self) -> None:
        """Say from now on that the server takes no new clients."""
        self._state = "it stops"
        self._metrics.ready.set(0)

    def find(self, path: str, *, authorized: bool) -> StatusPage | None:
        """Return the page of a path, None if there is none. Measurements need the API key, if there is one."""
        path = path.partition("?")[0]
        if path == "/healthz":
            return StatusPage(http.HTTPStatus.OK, "OK\n")
        if path in _READINESS:
            if self.hindrance is None:
                return StatusPage(http.HTTPStatus.OK, "OK\n")
            return StatusPage(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self.hindrance}\n")
        if path == "/metrics" and authorized:
            return StatusPage(http.HTTPStatus.OK, self._metrics.write().decode(), CONTENT_TYPE)
        return None
