from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy_world import DIES, HANGS, RAISES, Toy

from anyvla.config import ConfigError
from anyvla.evaluation.environments.pool import EnvironmentFailed, EnvironmentPool, Reply
from anyvla.evaluation.suites import open_suite

RIGHT = np.array([[1, 0, 0, 0]], np.float32)


def replies(pool: EnvironmentPool, count: int) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    limit = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < limit
        found |= {r.slot: r for r in pool.ready(timeout=1.0)}
    return found


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    limit = time.monotonic() + seconds
    while not holds() and time.monotonic() < limit:
        time.sleep(0.05)
    return holds()


def test_slots_are_independent_and_stop_at_a_goal() -> None:
    with EnvironmentPool(Toy(), processes=2, slots=2) as pool:
        assert pool.size == 4
        for slot in range(4):
            pool.reset(slot, "right", seed=slot)
        starts = replies(pool, 4)
        for slot, reply in starts.items():
            assert reply.observation is not None
            assert reply.steps == 0
            assert not any(reply.goals.values())
            assert np.array_equal(
                reply.observation.proprio, np.random.default_rng(slot).uniform(-0.1, 0.1, 3).astype("f")
            )
        pool.execute(0, np.repeat(RIGHT, 2, 0))
        pool.execute(1, np.repeat(-RIGHT, 10, 0))
        pool.execute(2, np.repeat(RIGHT, 10, 0))
        after = replies(pool, 3)
        assert (after[0].steps, dict(after[0].goals)) == (2, {"left": False, "right": False})
        assert after[0].observation is not None
        assert after[0].observation.proprio[0] == pytest.approx(starts[0].observation.proprio[0] + 0.4)
        for slot, goal in ((1, "left"), (2, "right")):
            assert after[slot].goals[goal]
            assert 5 <= after[slot].steps <= 6  # of ten: the rest was left out
            assert after[slot].observation is None
        assert pool.ready(timeout=0) == []  # slot 3 was told nothing
        pool.reset(1, "up", seed=9)
        assert replies(pool, 1)[1].steps == 0
        workers = list(pool._processes)
    assert not any(w.is_alive() for w in workers)


def test_a_worker_gets_the_benchmark_as_it_is() -> None:
    # The setting of this very object must reach the workers, not that of a new one.
    with EnvironmentPool(Toy(fails=(3,)), 1, 1) as pool:
        pool.reset(0, "left", 0)
        replies(pool, 1)
    pytest.importorskip("metaworld")
    import pickle

    from anyvla.evaluation.environments.metaworld import MetaWorld

    assert pickle.loads(pickle.dumps(MetaWorld("native"))).render == "native"


def test_an_exception_is_told() -> None:
    with EnvironmentPool(Toy(), 2, 1) as pool:
        pool.reset(1, "left", RAISES)
        with pytest.raises(EnvironmentFailed, match=r"^the cart has no wheels$"):
            replies(pool, 1)


def test_an_unexpected_exception_keeps_its_traceback() -> None:
    with EnvironmentPool(Toy(), 1, 1) as pool:
        pool.reset(0, "left", 1)
        replies(pool, 1)
        pool.execute(0, ["not a number"])  # type: ignore[arg-type]
        with pytest.raises(EnvironmentFailed, match=r"(?s)Traceback .*toy_world.py"):
            replies(pool, 1)


def test_what_a_worker_said_last_is_heard_when_writing_to_it_fails() -> None:
    with EnvironmentPool(Toy(), 1, 1) as pool:
        pool.reset(0, "left", RAISES)
        pool._processes[0].join(30)
        with pytest.raises(EnvironmentFailed, match=r"^the cart has no wheels$"):
            pool.execute(0, RIGHT)


def test_a_killed_worker_is_named() -> None:
    with EnvironmentPool(Toy(), 2, 1) as pool:
        pool.reset(0, "left", 1)
        replies(pool, 1)
        pool.reset(1, "left", DIES)
        with pytest.raises(EnvironmentFailed, match=r"process 1 died \(exit status -9\).*--evaluation.processes"):
            replies(pool, 1)
        with pytest.raises(EnvironmentFailed, match="process 1 died"):
            pool.execute(1, RIGHT)


def test_close_leaves_no_process_even_if_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with EnvironmentPool(Toy(), 2, 1) as pool:
        pool.reset(0, "left", 1)
        replies(pool, 1)
        pool.reset(1, "left", HANGS)
        workers = [psutil.Process(p.pid) for p in pool._processes]
        time.sleep(0.2)
    assert not any(w.is_running() for w in workers)


def script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    path = tmp_path / "parent.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{body}")
    return subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


BUSY_POOL = """
import time
from toy_world import HANGS, Toy
from anyvla.evaluation.environments.pool import EnvironmentPool
if __name__ == "__main__":
    with EnvironmentPool(Toy(), 2, 1) as pool:
        pool.reset(0, "left", 1)
        while not pool.ready(1.0):
            pass
        pool.reset(1, "left", HANGS)
        print(*(p.pid for p in pool._processes), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    parent = script(tmp_path, BUSY_POOL)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert eventually(lambda: not any(w.is_running() and w.status() != "zombie" for w in workers))
    parent.stdout.close()


STOPPED_EARLY = """
import os, signal
from toy_world import Toy
from anyvla.evaluation.environments.pool import EnvironmentPool
if __name__ == "__main__":
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    with EnvironmentPool(Toy(), 2, 1) as pool:
        os.killpg(0, signal.SIGINT)  # Ctrl-C while the workers still start
        pool.reset(0, "left", 1)
        while not pool.ready(1.0):
            pass
        os.killpg(0, signal.SIGINT)
        pool.reset(1, "left", 1)
        while not pool.ready(1.0):
            pass
    print(len(asked), "interrupts heard, workers unharmed")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_the_parents_business_from_the_first_moment(tmp_path: Path) -> None:
    out, err = script(tmp_path, STOPPED_EARLY).communicate(timeout=60)
    assert out == "2 interrupts heard, workers unharmed\n", err
    assert err == ""


def test_the_environment_side_never_imports_torch() -> None:
    code = (
        "import sys, anyvla.evaluation.environments.pool, anyvla.evaluation.environments.metaworld as m; "
        "import anyvla.evaluation.collect; "
        "environment = m.MetaWorld().make(); environment.reset('drawer-open', 0); "
        "heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    pytest.importorskip("metaworld")
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_unknown_benchmark() -> None:
    with pytest.raises(ConfigError, match="benchmarks has no 'metawrld': did you mean 'metaworld'"):
        open_suite("metawrld/half-open")


def test_signals_are_as_before_after_starting() -> None:
    with EnvironmentPool(Toy(), 1, 1):
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
