from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from anyvla.worker_pool import WorkerDied, WorkerPool
from tests.running import gone, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
PARENT = """
import os, sys, time
from anyvla.worker_pool import WorkerPool
if __name__ == "__main__":
    with WorkerPool(2, remedy="") as pool:
        running = [pool.submit(time.sleep, s) for s in (0, 0, 600)]
        for done in running[:2]:
            done.result()
        print(*(p.pid for p in pool._context.started), flush=True)
        time.sleep(600)
"""


def test_workers_end_with_their_parent_whether_they_work_or_wait(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    until(lambda: gone(workers), seconds=10)


def test_workers_ignore_the_signals_of_their_parent_from_the_start() -> None:
    with WorkerPool(1, remedy="") as pool:
        answer = pool.submit(os.getpid)
        for _ in range(20):  # while it starts, imports and works
            for process in pool._context.started:
                os.kill(process.pid, signal.SIGTERM)
                os.kill(process.pid, signal.SIGINT)
            time.sleep(0.02)
        assert answer.result(60) == pool._context.started[0].pid
        os.kill(answer.result(), signal.SIGTERM)
        assert pool.submit(os.getpid).result(60) == answer.result()


def _kill_me(other: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_ends_the_work_with_one_line_and_ends_all_workers() -> None:
    died = pytest.raises(WorkerDied, match=r"a worker process died \(exit status -9\).*lack of memory: try fewer")
    with died, WorkerPool(2, remedy="try fewer") as pool:
        sleeping = pool.submit(time.sleep, 600)
        dying: Future[None] = pool.submit(_kill_me, 0)
        while True:
            for future in pool.finished([sleeping, dying]):
                future.result()
    assert all(not process.is_alive() for process in pool._context.started)


def _die_while_answering(_: int) -> None:
    [queue] = [found for found in gc.get_objects() if isinstance(found, SimpleQueue)]
    os.write(queue._writer.fileno(), struct.pack("!i", 1000) + b"the first bytes of a result")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("by", ["itself", "the pool"])
def test_a_worker_that_is_killed_while_it_answers_does_not_hang_the_work(by: str) -> None:
    """As by a lack of memory: half of a result is in the pipe."""
    pool = WorkerPool(1, remedy="use fewer")
    coming = pool.submit(_die_while_answering, 0)
    until(lambda: any(process.exitcode for process in pool._context.started))
    begin = time.monotonic()
    if by == "itself":
        with pytest.raises(WorkerDied, match="exit status -9"), pool:
            until(lambda: bool(pool.finished([coming], 0.1)))
    else:
        with pool:
            pool.kill()
    assert time.monotonic() - begin < 10


def test_an_interrupt_does_not_wait_for_a_worker_that_hangs() -> None:
    interrupted = pytest.raises(KeyboardInterrupt)
    with interrupted, WorkerPool(1, remedy="") as pool:
        pool.submit(os.getpid).result(60)
        until(pool.submit(time.sleep, 90).running)
        begin = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 45
    assert not pool._context.started[0].is_alive()


def test_an_interrupt_during_shutdown_does_not_wait() -> None:
    interrupted = pytest.raises(KeyboardInterrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupted, WorkerPool(1, remedy="") as pool:
        pool.submit(os.getpid).result(60)
        until(pool.submit(time.sleep, 600).running)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    signal.signal(signal.SIGINT, before)
    until(lambda: not pool._context.started[0].is_alive(), seconds=10)


def test_a_warning_comes_when_no_work_was_finished_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts from the last finished work, and comes once in that time. No process is started."""
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr("anyvla.worker_pool.time", clock)
    pending, done = Future[None](), Future[None]()
    done.set_result(None)
    with WorkerPool(1, remedy="") as pool:
        looks = [(299, pending, 0), (300, done, 0), (599, pending, 0), (601, pending, 1), (900, pending, 1)]
        for seconds, future, warnings in [*looks, (902, pending, 2)]:
            clock.seconds = seconds
            assert pool.finished([future], 0) == ({done} if future is done else set())
            assert caplog.text.count("no worker has finished anything for 300 s") == warnings, seconds


def _double(number: int) -> int:
    return 2 * number


def test_tasks_added_later_run_too() -> None:
    todo, found = deque(range(3)), {}
    with WorkerPool(2, remedy="") as pool:
        for task, result in pool.run(_double, todo, 2):
            found[task] = result
            if task == 0:
                todo.append(7)
    assert found == {0: 0, 1: 2, 2: 4, 7: 14}


def test_tasks_that_have_not_begun_are_kept_after_a_stop() -> None:
    todo, found = deque(range(50)), list[int]()
    with WorkerPool(1, remedy="") as pool:
        for task, _ in pool.run(_double, todo, 20, stop=lambda: bool(found)):
            found.append(task)
    assert 0 in found
    assert 0 < len(found) <= 20  # those handed out before the stop may still come
    assert sorted([*found, *todo]) == list(range(50))
