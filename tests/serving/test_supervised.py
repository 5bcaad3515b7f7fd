from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.listening import bind
from anyvla.serving.mapping import Translator
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.vlaeval import VlaEvalProtocol
from anyvla.serving.supervised import SupervisedServer
from anyvla.serving.transports.websocket import WebsocketServer
from tests import small
from tests.serving.clients import MAPPING, ROBOT, ask, connect, payload, seen

Pages = Callable[[str], tuple[int, str]]


def reader(port: int) -> Pages:
    """Return a function that reads a page of a server."""

    def read(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return read


def supervise(
    vla: VLA,
    script: Callable[[PolicyService, SupervisedServer, asyncio.Event, list[int]], Awaitable[Any]],
    limits: ServerLimits | None = None,
    key: str | None = None,
) -> int:
    """Run a server with a port for its protocol and one for its status pages, until the script ends."""

    async def run() -> int:
        service = PolicyService(vla, Translator(MAPPING, ROBOT, limits), limits=limits)
        sockets, others = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
        status = WebsocketServer(service, None, key)
        server = SupervisedServer(service, VlaEvalProtocol(service).make_server(key), status, others)
        ready = asyncio.Event()
        running = asyncio.create_task(server.run(sockets, ready.set))
        asked = asyncio.create_task(script(service, server, ready, [s[0].getsockname()[1] for s in (sockets, others)]))
        try:
            await asyncio.wait({running, asked}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await asked
        finally:
            server.stop()
            asked.cancel()
            unanswered = await running
            service.close()
        return unanswered

    return asyncio.run(run())


def test_a_server_is_alive_at_once_and_ready_after_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    vla = small.policy()
    began, release, act = threading.Event(), threading.Event(), vla.act

    def slow(observations: Sequence[Any], sessions: Sequence[Any]) -> Any:
        began.set()
        assert release.wait(20)
        return act(observations, sessions)

    monkeypatch.setattr(vla, "act", slow)

    async def script(service: Any, server: SupervisedServer, ready: asyncio.Event, ports: list[int]) -> None:
        assert await asyncio.to_thread(began.wait, 20)
        pages = [reader(port) for port in ports]
        for read in pages:
            assert await asyncio.to_thread(read, "/healthz") == (200, "OK\n")
            assert await asyncio.to_thread(read, "/readyz") == (503, "not ready: it warms up\n")
        assert not ready.is_set()
        release.set()
        await asyncio.wait_for(ready.wait(), 20)
        for read in pages:
            assert await asyncio.to_thread(read, "/readyz") == (200, "OK\n")
        assert (await asyncio.to_thread(pages[1], "/"))[0] == 404

    assert supervise(vla, script) == 0


def test_the_measurements_count_requests_batches_and_stages() -> None:
    def talk(port: int) -> None:
        with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as client:
            assert ask(client, "observation", payload(seen(1)))["type"] == "action"
            assert ask(client, "observation", payload(seen(1)) | {"states": "x"})["type"] == "error"

    async def script(service: Any, server: SupervisedServer, ready: asyncio.Event, ports: list[int]) -> None:
        await ready.wait()
        await asyncio.to_thread(talk, ports[0])
        for port in ports:
            _, text = await asyncio.to_thread(reader(port), "/metrics")
            assert 'anyvla_requests_total{outcome="ok"} 1.0' in text
            assert 'anyvla_requests_total{outcome="error"} 1.0' in text
            assert "anyvla_ready 1.0" in text
            assert "anyvla_batch_size_count 2.0" in text  # one is the warm-up
            for stage, count in {"parse": 1, "decode": 1, "queue": 2, "policy": 2, "encode": 1}.items():
                assert f'anyvla_stage_seconds_count{{stage="{stage}"}} {count}.0' in text, stage

    assert supervise(small.policy(), script) == 0


def test_reading_the_measurements_changes_no_count_of_connections(vla: VLA) -> None:
    def count(ports: list[int]) -> None:
        with connect(f"ws://127.0.0.1:{ports[0]}", compression=None) as client:
            assert ask(client, "observation", payload(seen(1)))["type"] == "action"
            for _ in range(3):
                assert "anyvla_connections 1.0" in reader(ports[1])("/metrics")[1]

    async def script(service: Any, server: SupervisedServer, ready: asyncio.Event, ports: list[int]) -> None:
        await ready.wait()
        await asyncio.to_thread(count, ports)

    supervise(vla, script)


def test_measurements_need_the_key(vla: VLA) -> None:
    async def script(service: Any, server: SupervisedServer, ready: asyncio.Event, ports: list[int]) -> None:
        await ready.wait()
        for port in ports:
            read = reader(port)
            assert (await asyncio.to_thread(read, "/metrics"))[0] == 401
            assert (await asyncio.to_thread(read, "/healthz"))[0] == 200

    supervise(vla, script, key="k3y")


def test_a_policy_that_cannot_predict_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    vla = small.policy()

    def act(observations: Any, sessions: Any) -> Any:
        raise ValueError("its weights are not finite")

    monkeypatch.setattr(vla, "act", act)

    async def script(service: Any, server: SupervisedServer, ready: asyncio.Event, ports: list[int]) -> None:
        await asyncio.sleep(60)

    with pytest.raises(ValueError, match=r"the policy fails for a plausible observation.*its weights are not finite"):
        supervise(vla, script)


def test_idle_named_sessions_are_forgotten_without_another_request(vla: VLA) -> None:
    async def script(service: PolicyService, server: Any, ready: asyncio.Event, ports: list[int]) -> None:
        store = service.store_sessions(service.open_session)
        first = store.find("a")
        assert store.find("a") is first
        assert b"anyvla_sessions 1.0" in service.metrics.write()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if b"anyvla_sessions 0.0" in service.metrics.write():
                return
        raise AssertionError("the session is still there")

    supervise(vla, script, ServerLimits(session_seconds=0.3))
