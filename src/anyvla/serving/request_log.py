"""Log a line for each request, with an id that all messages about it share. Contents of messages are not logged."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from anyvla.serving.metrics import Metrics, Outcome

log = logging.getLogger(__name__)
_current: ContextVar[str] = ContextVar("request", default="")


@dataclass
class RequestRecord:
    """One request in progress."""

    id: str
    outcome: Outcome = "canceled"  # unless it is answered
    error: str | None = None

    def finish(self, error: str | None) -> None:
        """Note that the request is answered. `error`: the fault that the answer reports."""
        self.outcome, self.error = "ok" if error is None else "error", error


class RequestLog:
    """Count, time and log requests: at level debug, and those with a fault at level info."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._numbers = metrics, itertools.count(1)

    @contextlib.contextmanager
    def request(self) -> Iterator[RequestRecord]:
        """Measure one request from its arrival to its answer, of which the caller tells the record."""
        record = RequestRecord(f"r{next(self._numbers)}")
        begin, token = time.perf_counter(), _current.set(record.id)
        try:
            yield record
        finally:
            self._end(record, time.perf_counter() - begin)
            _current.reset(token)

    def _end(self, record: RequestRecord, seconds: float) -> None:
        self._metrics.add_request(record.outcome, seconds)
        level = logging.DEBUG if record.error is None else logging.INFO
        if log.isEnabledFor(level):
            facts = {"outcome": record.outcome, "ms": round(1000 * seconds, 3)}
            reason = "" if record.error is None else f": {record.error}"
            log.log(level, "%s in %.1f ms%s", record.outcome, 1000 * seconds, reason, extra={"facts": facts})


class TextFormatter(logging.Formatter):
    """Write a line for people, with the id of the request."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(request)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        current = _current.get()
        record.request = f"request {current}: " if current else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """Write a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        if current := _current.get():
            entry["request"] = current
        entry |= {"message": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(form: str, level: str) -> None:
    """Log to stderr in the form `text` or `json`: the server from `level` on, libraries as before."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.getLogger("anyvla").setLevel(level.upper())
