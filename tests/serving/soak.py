"""Let many clients of several protocols use one server process for long, and check each answer and the memory.

    python -m tests.serving.soak --seconds 600 --clients 10

The clients are those of `checked_clients`: an answer that belongs to another request, misses an observation or has one
twice is found. Prints the figures as JSON; the status is 1 for a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

from tests.serving.checked_clients import CLIENTS, CheckedClient
from tests.serving.clients import Running
from tests.serving.fingerprints import fingerprint_policy

WARM = 0.2  # of the time, after which memory is compared
EXIT_S = 600  # for the process of the server to end, which takes minutes on a busy machine


def serve(names: Sequence[str]) -> None:
    """Serve each protocol at a port of its own, and print the addresses.

    Each line of the input forgets expired sessions; its end stops the servers.
    """
    from anyvla.serving.limits import ServerLimits

    limits = ServerLimits(session_seconds=60, sessions=100_000)
    servers = [
        Running(fingerprint_policy(), limits, protocol=CLIENTS[name].protocol, mapping=CLIENTS[name].mapping)
        for name in names
    ]
    heartbeat = Heartbeat()
    print(json.dumps([server.url for server in servers]), flush=True)
    while sys.stdin.readline():
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.service.tidy(), server._loop).result(60)
    for server in servers:
        server.close()
    print(json.dumps(round(heartbeat.longest, 2)))


class Heartbeat(threading.Thread):
    """Measures the longest time for which this process did not run."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.start()

    def run(self) -> None:
        while True:
            begin = time.monotonic()
            time.sleep(0.02)
            self.longest = max(self.longest, time.monotonic() - begin - 0.02)


class Player(threading.Thread):
    """One client in a thread, until `end`."""

    def __init__(self, kind: type[CheckedClient], url: str, number: int, end: float, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._kind, self._url, self._number, self._end, self._pause_s = kind, url, number, end, pause_s
        self.client: CheckedClient | None = None
        self.fault = ""
        self.times: list[float] = []  # of its requests

    def run(self) -> None:
        start = begin = time.monotonic()
        try:
            self.client = self._kind(self._url, self._number)
            while (begin := time.monotonic()) < self._end:
                self.client.play(1)
                self.times.append(time.monotonic() - begin)
                time.sleep(self._pause_s)
            self.client.close()
        except BaseException as error:
            now = time.monotonic()
            self.fault = f"at {now - start:.0f} s, after {now - begin:.1f} s: {type(error).__name__}: {error}"


def run(names: Sequence[str], clients: int, seconds: float, pause_s: float) -> dict[str, Any]:
    """Return the figures of a run. `pause_s`: of each client between its requests."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.soak", "--serve", *names],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    urls = json.loads(server.stdout.readline())
    process, heartbeat = psutil.Process(server.pid), Heartbeat()
    begin = time.monotonic()
    players = {
        name: [Player(CLIENTS[name], url, 1000 * at + n, begin + seconds, pause_s) for n in range(clients)]
        for at, (name, url) in enumerate(zip(names, urls, strict=True))
    }
    everyone = [player for each in players.values() for player in each]
    for player in everyone:
        player.start()
    memory, files = [], []
    while any(player.is_alive() for player in everyone):
        time.sleep(min(5.0, seconds / 20))
        server.stdin.write("tidy\n")
        server.stdin.flush()
        memory.append((time.monotonic() - begin, process.memory_info().rss / 2**20))
        files.append(process.num_fds())
    warm = [(t, m) for t, m in memory if t > WARM * seconds] or memory
    tenth = max(1, len(warm) // 10)
    first, last = (sorted(m for _, m in part)[tenth // 2] for part in (warm[:tenth], warm[-tenth:]))
    server.stdin.close()
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "clients": clients,
        "protocols": {name: _count(each) for name, each in players.items()},
        "memory": {"warm_mib": round(first, 1), "end_mib": round(last, 1), "grown_mib": round(last - first, 1)},
        "memory_mib": [round(m, 1) for _, m in memory[:: max(1, len(memory) // 30)]],
        "open_files_begin": files[len(files) // 5],
        "open_files_end": files[-1],
        "stalls_s": {"server": json.loads(server.stdout.readline()), "clients": round(heartbeat.longest, 2)},
        "status": server.wait(EXIT_S),
    }


def _count(players: Sequence[Player]) -> dict[str, Any]:
    made = [player.client for player in players if player.client is not None]
    times = sorted(round(1000 * t, 1) for player in players for t in player.times)
    return {
        "answers": sum(client.answers for client in made),
        "refused": sum(client.refused for client in made),
        "rollouts": sum(client._rollouts for client in made),
        "wrong": [player.fault for player in players if player.fault],
        "ms": {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "most": times[-1]} if times else {},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=10, help="of each protocol")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between the requests of a client")
    parser.add_argument("--serve", nargs="+", metavar="PROTOCOL", help="only serve: for the process of the server")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    figures = run(sorted(CLIENTS), options.clients, options.seconds, options.pause)
    print(json.dumps(figures, indent=1))
    return int(any(each["wrong"] for each in figures["protocols"].values()))


if __name__ == "__main__":
    sys.exit(main())
