"""Run the real policy server in a thread, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.listening import bind
from anyvla.serving.mapping import Translator
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.registry import load_protocol

_START_S, _STOP_S = 30.0, 30.0


@contextlib.contextmanager
def serving(vla: VLA, translator: Translator, protocol: str, execute: int | None = None) -> Iterator[str]:
    """Serve a policy by a protocol and yield the address of the server."""
    limits = ServerLimits(requests_per_second=100_000)
    kind = load_protocol(protocol)
    sockets = bind("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    service = PolicyService(vla, translator, execute, limits)
    server = kind(service).make_server(None, None)
    ready, faults = threading.Event(), []
    loop = asyncio.new_event_loop()

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(server.run(sockets, ready.set))
        except BaseException as error:
            faults.append(error)
            ready.set()

    thread = threading.Thread(target=work, name="doctor's server", daemon=True)
    thread.start()
    try:
        if not ready.wait(_START_S):
            raise RuntimeError(f"the server did not start within {_START_S:g} s")
        if faults:
            raise faults[0]
        yield f"{kind.scheme}://127.0.0.1:{port}"
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(server.stop)
            thread.join(_STOP_S)
        service.close()
        if not thread.is_alive():
            loop.close()
