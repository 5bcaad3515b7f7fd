from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from anyvla.serving.metrics import Metrics
from anyvla.serving.request_log import RequestLog, configure_logging


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """Return what a handler of the root logger writes. All levels are restored afterwards."""
    written, root = io.StringIO(), logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("anyvla").level
    root.handlers = [logging.StreamHandler(written)]
    yield written
    root.handlers = handlers
    root.setLevel(level)
    logging.getLogger("anyvla").setLevel(ours)


def talk() -> Metrics:
    """Log a request that succeeds, one with a fault, one that is canceled, and a message about the second."""
    metrics = Metrics()
    requests = RequestLog(metrics)
    with requests.request() as record:
        record.finish(None)
    with requests.request() as record:
        logging.getLogger("anyvla.serving.other").warning("it is near the limit")
        record.finish("the observation has no 'state'")
    with requests.request():
        pass
    return metrics


def test_json_lines_have_the_id_of_their_request(output: io.StringIO) -> None:
    configure_logging("json", "debug")
    talk()
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [(line["request"], line["level"], line.get("outcome")) for line in lines] == [
        ("r1", "debug", "ok"),
        ("r2", "warning", None),
        ("r2", "info", "error"),
        ("r3", "debug", "canceled"),
    ]
    assert lines[2]["message"].endswith(": the observation has no 'state'")
    assert 0 <= lines[2]["ms"] < 1000
    assert lines[0]["time"] == pytest.approx(lines[3]["time"], abs=10)


def test_an_exception_is_part_of_its_json_line(output: io.StringIO) -> None:
    configure_logging("json", "info")
    try:
        raise RuntimeError("secret")
    except RuntimeError as error:
        logging.getLogger("anyvla.serving").error("a request failed", exc_info=error)
    (line,) = output.getvalue().splitlines()
    assert "RuntimeError: secret" in json.loads(line)["exception"]


def test_faults_are_logged_at_level_info_and_other_requests_are_not(output: io.StringIO) -> None:
    configure_logging("text", "info")
    talk()
    warned, fault = output.getvalue().splitlines()
    assert "WARNING anyvla.serving.other: request r2: it is near the limit" in warned
    assert "INFO anyvla.serving.request_log: request r2: error in" in fault


def test_requests_are_counted_by_their_outcome() -> None:
    text = talk().write().decode()
    for outcome in ("ok", "error", "canceled"):
        assert f'anyvla_requests_total{{outcome="{outcome}"}} 1.0' in text
    assert "anyvla_request_seconds_count 3.0" in text
