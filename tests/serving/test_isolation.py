"""Every answer of a server belongs to its request: many clients at once, with lost connections and refused requests."""

from __future__ import annotations

import threading

import pytest

from anyvla.policy import VLA
from anyvla.serving.protocols.registry import protocols

pytest.importorskip("grpc")

from tests.serving import soak
from tests.serving.checked_clients import CLIENTS
from tests.serving.clients import Running
from tests.serving.fingerprints import fingerprint_policy

STEPS, AT_ONCE = 25, 6


@pytest.fixture(scope="module")
def policy() -> VLA:
    return fingerprint_policy()


def test_each_protocol_has_a_checked_client() -> None:
    assert set(protocols) == set(CLIENTS)


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_each_answer_belongs_to_its_request(name: str, policy: VLA) -> None:
    kind = CLIENTS[name]
    server = Running(policy, protocol=kind.protocol, mapping=kind.mapping)
    failures: list[BaseException] = []

    def play(number: int) -> None:
        try:
            client = kind(server.url, number)
            client.play(STEPS)
            client.close()
            assert client.answers > STEPS / 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=play, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    server.close()
    assert not failures, failures
    assert max(server.service.batcher.sizes) > 1  # they were answered together


@pytest.mark.slow
def test_soak() -> None:
    """`python -m tests.serving.soak --seconds 600` is the long one."""
    figures = soak.run(sorted(CLIENTS), clients=10, seconds=60, pause_s=0.05)
    for name, of in figures["protocols"].items():
        assert of["wrong"] == [], name
        assert of["answers"] > 100, name
    assert figures["memory"]["grown_mib"] < 20, figures["memory"]
    assert figures["open_files_end"] <= figures["open_files_begin"] + 5
