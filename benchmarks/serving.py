"""Measure what a policy server costs, and what batching gains, side by side in one run.

    python benchmarks/serving.py [--rounds 5] [--requests 20] [--clients 16] [--pixels 224] [--device cpu]

A policy with the structure of the quickstart and random weights gets two raw images from clients on this machine, and
predicts for every request (`--execute 1`). All variants alternate, so that a busy machine affects all
alike; the figures are medians of the rounds.

    overhead    the round trip of a lone client, minus `VLA.act` in this process
    throughput  requests per second of many clients, against `VLA.act` on batches of as many in this process
    batching    requests per second of 8 clients, against a server that answers one request at a time

The CPU times, of the server for each request and of `VLA.act` for each observation, depend less on other work.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import psutil
from session_memory import make_policy  # beside this file
from websockets.sync.client import ClientConnection, connect

from anyvla.policy import VLA
from anyvla.types import Observation

INSTRUCTION = "pull the drawer"


def observe(pixels: int) -> Observation:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (pixels, pixels, 3), np.uint8) for camera in ("scene", "wrist")}
    return Observation(images, np.zeros(3, np.float32))


def pack(observation: Observation) -> bytes:
    def write(array: np.ndarray) -> dict[str, object]:
        return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}

    images = {camera: write(image) for camera, image in observation.images.items()}
    payload = {"images": images, "states": write(observation.proprio), "task_description": INSTRUCTION}
    data: bytes = msgpack.packb({"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0})
    return data


@contextlib.contextmanager
def serving(checkpoint: Path, device: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server in a process of its own. Yield its address and the process."""
    command = [sys.executable, "-m", "anyvla.cli.main", "serve", str(checkpoint), "--port", "0", "--execute", "1"]
    command += ["--device", device, "--limits.requests_per_second", "100000", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert " at ws://" in line, line
        yield line.split(" at ")[1].split(",")[0], psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def ask(client: ClientConnection, message: bytes) -> float:
    """Return the seconds until the answer."""
    begin = time.perf_counter()
    client.send(message)
    answer = msgpack.unpackb(client.recv())
    assert answer["type"] == "action", answer
    return time.perf_counter() - begin


class Clients:
    """Clients that ask at the same time."""

    def __init__(self, server: tuple[str, psutil.Process], count: int, opened: contextlib.ExitStack) -> None:
        url, self._process = server
        self.cpu_ms: list[float] = []  # of the server for each request, of each call of `ask_all`
        self.clients = [opened.enter_context(connect(url, compression=None, max_size=None)) for _ in range(count)]
        self.seconds: list[float] = []  # of each request

    def ask_all(self, message: bytes, requests: int) -> float:
        """Return the requests per second."""

        def run(client: ClientConnection) -> None:
            for _ in range(requests):
                self.seconds.append(ask(client, message))

        threads = [threading.Thread(target=run, args=(client,)) for client in self.clients]
        begin, cpu = time.perf_counter(), sum(self._process.cpu_times()[:2])
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = len(self.clients) * requests
        rate = total / (time.perf_counter() - begin)
        self.cpu_ms.append(1000 * (sum(self._process.cpu_times()[:2]) - cpu) / total)
        return rate

    def describe(self) -> str:
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000
        return f"round trip p50 {p50:.1f}, p99 {p99:.1f} ms, CPU of the server {statistics.median(self.cpu_ms):.1f} ms"


class InProcess:
    """The policy in this process."""

    def __init__(self, vla: VLA, observation: Observation) -> None:
        self._vla, self._observation = vla, observation
        self.cpu_ms: dict[int, list[float]] = {}  # for each observation, by the size of the batch

    def act(self, count: int) -> float:
        """Return the seconds of a batch."""
        sessions = [self._vla.start(INSTRUCTION, seed) for seed in range(count)]
        begin, cpu = time.perf_counter(), time.process_time()
        self._vla.act([self._observation] * count, sessions)
        seconds = time.perf_counter() - begin
        self.cpu_ms.setdefault(count, []).append(1000 * (time.process_time() - cpu) / count)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20, help="of each client in a round")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    vla, count = make_policy({"name": "policy_head", "window": 2}), options.clients
    observation = observe(options.pixels)
    message = pack(observation)
    with contextlib.ExitStack() as opened:
        checkpoint = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        vla.save(checkpoint, {"name": "served"})
        here = InProcess(vla.to(options.device), observation)
        batched = opened.enter_context(serving(checkpoint, options.device))
        single = opened.enter_context(serving(checkpoint, options.device, "--limits.batch_size", "1"))
        lone, many = Clients(batched, 1, opened), Clients(batched, count, opened)
        eight, one_by_one = Clients(batched, 8, opened), Clients(single, 8, opened)
        results: dict[str, list[float]] = {name: [] for name in ("overhead", "throughput", "batching")}
        for warm in [True] + [False] * options.rounds:
            pairs = [(here.act(1), ask(lone.clients[0], message)) for _ in range(options.requests)]
            lone.ask_all(message, options.requests)
            whole = [here.act(count) for _ in range(max(3, options.requests // 4))]
            in_process = count / statistics.median(whole)
            here.act(8)
            served, fast, slow = (c.ask_all(message, options.requests) for c in (many, eight, one_by_one))
            if warm:
                for clients in (lone, many, eight, one_by_one):
                    clients.seconds.clear()
                    clients.cpu_ms.clear()
                continue
            results["overhead"].append(1000 * (statistics.median(s - p for p, s in pairs)))
            results["throughput"].append(served / in_process)
            results["batching"].append(fast / slow)
    shown = {name: statistics.median(values) for name, values in results.items()}
    print(f"overhead of a lone client {shown['overhead']:.2f} ms; {lone.describe()}")
    print(f"throughput of {count} clients {shown['throughput']:.0%} of batches in process; {many.describe()}")
    print(f"batching with 8 clients {shown['batching']:.1f}x; {eight.describe()}; without: {one_by_one.describe()}")
    cpu = ", ".join(f"{size} at once {statistics.median(of):.1f} ms" for size, of in here.cpu_ms.items())
    print(f"CPU of VLA.act in process, for each observation: {cpu}")


if __name__ == "__main__":
    main()
