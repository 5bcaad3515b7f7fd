"""Compare the server of openpi with `anyvla serve --protocol openpi`, side by side, with policies that do nothing.

    git clone https://github.com/Physical-Intelligence/openpi ../openpi
    python benchmarks/serving_openpi.py ../openpi [--requests 1000] [--pixels 224] [--clients 8] [--policy-ms 20]

Both servers run in processes of their own and answer with the same chunk. openpi's is `WebsocketPolicyServer` of the
given checkout. openpi's own client, of the checkout too, sends two images to both in turns, so that a busy machine
affects both alike. Ours limits no rate, and does all else: it checks observations, keeps sessions and forms batches.
Then several clients ask at once, and the policies take some time, the same for any batch, as on a large GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import multiprocessing
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from session_memory import make_policy  # beside this file

CHUNK = np.zeros((8, 4), np.float32)
INSTRUCTION = "pull the drawer"


def serve_openpi(checkout: Path, port: Connection, policy_s: float) -> None:
    """Serve a policy that takes `policy_s` with openpi's code. `port` gets the number of the port."""
    from openpi_client.base_policy import BasePolicy

    from anyvla.serving.listening import bind

    class Nothing(BasePolicy):
        def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
            time.sleep(policy_s)
            return {"actions": CHUNK}

        def reset(self) -> None:
            pass

    file = checkout / "src" / "openpi" / "serving" / "websocket_policy_server.py"
    spec = importlib.util.spec_from_file_location("websocket_policy_server", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    [reserved] = bind("127.0.0.1", 0)
    number = reserved.getsockname()[1]
    reserved.close()
    port.send(number)
    module.WebsocketPolicyServer(Nothing(), "127.0.0.1", number, {"server": "openpi"}).serve_forever()


def serve_anyvla(_: Path, port: Connection, policy_s: float) -> None:
    """Serve the same with anyvla's code."""
    from anyvla.serving.limits import ServerLimits
    from anyvla.serving.listening import bind
    from anyvla.serving.mapping import Translator
    from anyvla.serving.mapping_files import choose_mapping
    from anyvla.serving.policy_service import PolicyService
    from anyvla.serving.protocols.openpi import OpenpiProtocol
    from anyvla.types import Chunk

    def act(observations: list[Any], sessions: list[Any]) -> list[Chunk]:
        time.sleep(policy_s)
        return [Chunk(CHUNK)] * len(sessions)

    vla = make_policy({"name": "none"})
    vla.act = act  # type: ignore[method-assign, assignment]
    robot, limits = vla.robots[0].embodiment, ServerLimits(requests_per_second=1_000_000)
    translator = Translator(choose_mapping(None, robot, "openpi", OpenpiProtocol.keys), robot, limits)
    sockets = bind("127.0.0.1", 0)
    server = OpenpiProtocol(PolicyService(vla, translator, limits=limits)).make_server()
    asyncio.run(server.run(sockets, lambda: port.send(sockets[0].getsockname()[1])))


@contextlib.contextmanager
def running(serve: Any, checkout: Path, policy_s: float, count: int) -> Iterator[tuple[list[Any], psutil.Process]]:
    """Run a server in a process of its own. Yield openpi's clients of it, and the process."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(checkout, theirs, policy_s), daemon=True)
    process.start()
    if not ours.poll(120):
        raise RuntimeError(f"{serve.__name__} did not start")
    number = ours.recv()
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", number)).close()
                break
            time.sleep(0.1)
        yield [WebsocketClientPolicy("127.0.0.1", number) for _ in range(count)], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


def ask(client: Any, observation: dict[str, Any]) -> float:
    """Return the milliseconds of a round trip."""
    begin = time.perf_counter()
    answer = client.infer(observation)
    took = 1000 * (time.perf_counter() - begin)
    np.testing.assert_array_equal(answer["actions"], CHUNK)
    return took


def ask_together(clients: list[Any], observation: dict[str, Any], requests: int) -> tuple[float, list[float]]:
    """Return the requests per second of clients that ask at the same time, and the milliseconds of each request."""
    took: list[float] = []

    def run(client: Any) -> None:
        took.extend(ask(client, observation) for _ in range(requests))

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took) / (time.perf_counter() - begin), took


def compare_alone(options: argparse.Namespace, observation: dict[str, Any]) -> None:
    """Print the round trips of one client, with policies that do nothing."""
    took: dict[str, list[float]] = {name: [] for name in SERVERS}
    print("| server | round trip p50 | p90 | p99 | CPU time of the server |\n|---|---|---|---|---|")
    with contextlib.ExitStack() as opened:
        servers = {
            name: opened.enter_context(running(serve, options.checkout, 0, 1)) for name, serve in SERVERS.items()
        }
        for [client], _ in servers.values():
            for _ in range(20):
                ask(client, observation)
        begin = {name: sum(process.cpu_times()[:2]) for name, (_, process) in servers.items()}
        for number in range(options.requests):
            for name in list(servers)[:: 1 if number % 2 else -1]:
                took[name].append(ask(servers[name][0][0], observation))
        for name, (_, process) in servers.items():
            p50, p90, p99 = np.percentile(took[name], [50, 90, 99])
            cpu = 1000 * (sum(process.cpu_times()[:2]) - begin[name]) / options.requests
            print(f"| {name} | {p50:.2f} ms | {p90:.2f} ms | {p99:.2f} ms | {cpu:.2f} ms |")
    parts = [np.array_split(took[name], options.rounds) for name in ("anyvla", "openpi")]
    for q in (50, 99):
        ratios = ", ".join(f"{np.percentile(a, q) / np.percentile(b, q):.2f}" for a, b in zip(*parts, strict=True))
        print(f"p{q}, anyvla / openpi, in {options.rounds} parts of the run: {ratios}")


def compare_many(options: argparse.Namespace, observation: dict[str, Any]) -> None:
    """Print the requests per second of several clients, with policies that take some time."""
    rates: dict[str, list[float]] = {name: [] for name in SERVERS}
    took: dict[str, list[float]] = {name: [] for name in SERVERS}
    with contextlib.ExitStack() as opened:
        servers = {
            name: opened.enter_context(running(serve, options.checkout, options.policy_ms / 1000, options.clients))
            for name, serve in SERVERS.items()
        }
        for clients, _ in servers.values():
            ask_together(clients, observation, 5)
        for _ in range(options.rounds):
            for name, (clients, _) in servers.items():
                rate, each = ask_together(clients, observation, 20)
                rates[name].append(rate)
                took[name] += each
    title = f"{options.clients} clients, a policy of {options.policy_ms:g} ms"
    print(f"\n| {title} | requests/s | p50 | p99 |\n|---|---|---|---|")
    for name, found in rates.items():
        p50, p99 = np.percentile(took[name], [50, 99])
        print(f"| {name} | {statistics.median(found):.0f} | {p50:.0f} ms | {p99:.0f} ms |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of openpi")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--policy-ms", type=float, default=20)
    options = parser.parse_args()
    rng, size = np.random.default_rng(0), options.pixels
    images = {f"observation/{camera}": rng.integers(0, 256, (size, size, 3), np.uint8) for camera in ("scene", "wrist")}
    observation = {**images, "observation/state": np.zeros(3, np.float32), "prompt": INSTRUCTION}
    compare_alone(options, observation)
    compare_many(options, observation)


SERVERS = {"openpi": serve_openpi, "anyvla": serve_anyvla}

if __name__ == "__main__":
    arguments = [Path(a) for a in sys.argv[1:] if not a.startswith("-")]
    if arguments:  # also in the processes of the servers, which import this file again
        sys.path.insert(0, str(arguments[0].resolve() / "packages" / "openpi-client" / "src"))
    main()
