from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from anyvla.config import ConfigError
from anyvla.evaluation.suites import open_suite
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import Spec
from anyvla_sim.workers.pool import EnvironmentPool, LostEpisode, Reply, WorkerLimits
from tests.evaluation.toy_world import DIES, HANGS, HANGS_ONCE, HAS_CHILD, RAISES, spec

RIGHT = np.array([[1, 0, 0, 0]], np.float32)


def collect_answers(pool: EnvironmentPool, count: int) -> dict[int, Reply | LostEpisode]:
    found: dict[int, Reply | LostEpisode] = {}
    limit = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < limit
        found |= {r.slot: r for r in pool.ready(timeout=1.0)}
    return found


def collect_replies(pool: EnvironmentPool, count: int) -> dict[int, Reply]:
    found = collect_answers(pool, count)
    assert not any(isinstance(r, LostEpisode) for r in found.values()), found
    return {slot: r for slot, r in found.items() if isinstance(r, Reply)}


def get_processes(pool: EnvironmentPool) -> list[psutil.Process]:
    return [psutil.Process(w._process.pid) for w in pool._workers]


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    limit = time.monotonic() + seconds
    while not holds() and time.monotonic() < limit:
        time.sleep(0.05)
    return holds()


def test_slots_are_independent_and_stop_at_a_goal() -> None:
    with EnvironmentPool(spec(), "line", processes=2, slots=2) as pool:
        assert pool.size == 4
        for slot in range(4):
            pool.reset(slot, "right", seed=slot)
        starts = collect_replies(pool, 4)
        for slot, reply in starts.items():
            assert reply.observation is not None
            assert reply.steps == 0
            assert not any(reply.goals.values())
            assert np.array_equal(
                reply.observation.proprio, np.random.default_rng(slot).uniform(-0.1, 0.1, 3).astype("f")
            )
        pool.execute(0, np.repeat(RIGHT, 2, 0))
        pool.execute(1, np.repeat(-RIGHT, 10, 0))
        pool.execute(2, np.repeat(2 * RIGHT, 10, 0))
        after = collect_replies(pool, 3)
        assert (after[0].steps, dict(after[0].goals)) == (2, {"left": False, "right": False})
        assert after[0].observation is not None
        assert after[0].observation.proprio[0] == pytest.approx(starts[0].observation.proprio[0] + 0.4)
        for slot, goal in ((1, "left"), (2, "right")):
            assert after[slot].goals[goal]
            assert 5 <= after[slot].steps <= 6  # of ten actions
            assert after[slot].observation is None
        assert [after[slot].clipped for slot in range(3)] == [0, 0, after[2].steps]
        assert pool.ready(timeout=0) == []  # slot 3 got no command
        pool.reset(1, "up", seed=9)
        assert collect_replies(pool, 1)[1].steps == 0
        workers = get_processes(pool)
    assert not any(w.is_running() for w in workers)


def test_a_goal_that_must_hold_to_the_end_does_not_stop_a_slot() -> None:
    with EnvironmentPool(spec(), "kept", 1, 1) as pool:
        pool.reset(0, "right", 0)
        collect_replies(pool, 1)
        pool.execute(0, np.repeat(RIGHT, 9, 0), until_goal=False)
        reply = collect_replies(pool, 1)[0]
        assert (reply.steps, reply.goals["right"]) == (9, True)
        assert reply.observation is not None


def test_factors_chains_instructions_and_disturbances_travel() -> None:
    with EnvironmentPool(spec(), "spoken", 1, 2) as pool:
        pool.reset(0, "left", 3, {"load": "heavy"})
        assert collect_replies(pool, 1)[0].instruction == "go left, 3"
        pool.execute(0, np.repeat(-RIGHT, 4, 0))
        there = collect_replies(pool, 1)[0].observation
        assert there is not None
        assert there.proprio[0] == pytest.approx(np.random.default_rng(3).uniform(-0.1, 0.1, 3)[0] - 0.4, abs=1e-6)
        pool.disturb(0, "push", 1)
        disturbed = collect_replies(pool, 1)[0]
        assert disturbed.disturbed is True
        assert disturbed.observation is not None
        assert disturbed.observation.proprio.tolist() == [0.25] * 3  # its seed is odd
        pool.disturb(0, "push", 1)
        assert collect_replies(pool, 1)[0].disturbed is False
        pool.begin(0, "up")
        assert collect_replies(pool, 1)[0].steps == 0
        pool.execute(0, RIGHT)
        assert dict(collect_replies(pool, 1)[0].goals) == {"up": False}


def test_an_exception_loses_one_episode() -> None:
    with EnvironmentPool(spec(), "line", 1, 2) as pool:
        pool.reset(0, "left", 1)
        pool.reset(1, "left", RAISES)
        found = collect_answers(pool, 2)
        assert isinstance(found[0], Reply)
        assert isinstance(found[1], LostEpisode)
        assert "Traceback" in found[1].message
        assert found[1].message.endswith("the cart has no wheels")
        pool.reset(1, "left", 2)  # in a new environment
        pool.execute(0, RIGHT)
        assert collect_replies(pool, 2)[0].steps == 1
        assert pool.restarts == 0


def test_an_unknown_task_ends_the_evaluation_at_once() -> None:
    with EnvironmentPool(spec(), "line", 1, 1) as pool:
        pool.reset(0, "lefft", 1)
        with pytest.raises(BenchmarkUnusable, match=r"^suite 'line' has no task 'lefft': did you mean 'left'\?$"):
            collect_answers(pool, 1)


def test_a_killed_worker_is_replaced_and_all_its_episodes_are_lost() -> None:
    with EnvironmentPool(spec(), "line", 2, 2) as pool:
        for slot in (0, 1, 2):
            pool.reset(slot, "left", slot)
        collect_replies(pool, 3)
        pool.execute(0, RIGHT)  # slot 1 waits for the policy, slot 3 has no episode
        collect_replies(pool, 1)
        pool.reset(0, "left", DIES)
        lost = collect_answers(pool, 2)
        assert set(lost) == {0, 1}
        assert all(isinstance(r, LostEpisode) and "exit status -9" in r.message for r in lost.values())
        assert pool.restarts == 1
        pool.reset(0, "left", 5)
        pool.execute(2, RIGHT)
        again = collect_replies(pool, 2)
        assert (again[0].steps, again[2].steps) == (0, 1)


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    with EnvironmentPool(spec(marks=str(tmp_path)), "line", 1, 1, WorkerLimits(hang_s=0.5)) as pool:
        pool.reset(0, "left", 1)
        collect_replies(pool, 1)
        pool.reset(0, "left", HANGS_ONCE)
        lost = collect_answers(pool, 1)[0]
        assert isinstance(lost, LostEpisode)
        assert "hung: no answer for 0 s" in lost.message or "hung" in lost.message
        pool.reset(0, "left", HANGS_ONCE)
        assert collect_replies(pool, 1)[0].steps == 0


def test_a_worker_that_grows_is_replaced_between_episodes() -> None:
    with EnvironmentPool(spec(leak_mb=120), "line", 1, 2, WorkerLimits(memory_mb=200)) as pool:
        pool.reset(0, "left", 0)
        collect_replies(pool, 1)
        pool.reset(1, "left", 1)
        collect_replies(pool, 1)
        before = get_processes(pool)[0]
        pool.reset(0, "left", 2)  # waits: an episode runs in slot 1
        pool.execute(1, RIGHT)
        assert collect_replies(pool, 1)[1].steps == 1
        assert before.is_running()
        pool.release(1)
        assert collect_replies(pool, 1)[0].steps == 0
        assert not before.is_running()
        assert pool.restarts == 1


def test_close_leaves_no_process_even_if_one_hangs() -> None:
    with EnvironmentPool(spec(), "line", 2, 1) as pool:
        pool.reset(0, "left", 1)
        collect_replies(pool, 1)
        pool.reset(1, "left", HANGS)
        workers = get_processes(pool)
        time.sleep(0.2)
    assert not any(w.is_running() for w in workers)


@pytest.mark.skipif(sys.platform == "win32", reason="sleep is a program")
def test_close_does_not_wait_for_a_child_of_a_worker() -> None:
    """The child keeps the worker's standard error open."""
    with EnvironmentPool(spec(), "line", 1, 1) as pool:
        pool.reset(0, "left", HAS_CHILD)
        worker = get_processes(pool)[0]
        assert wait_until(lambda: bool(worker.children()))
        child = worker.children()[0]
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 20
        assert not worker.is_running()
        assert child.is_running()
    finally:
        child.kill()


def test_a_benchmark_that_cannot_be_opened() -> None:
    with EnvironmentPool(spec(color="red"), "line", 1, 1) as pool, pytest.raises(BenchmarkUnusable, match="color"):
        collect_answers(pool, 1)
    with pytest.raises(BenchmarkUnusable, match="there is no interpreter /no/python"):
        EnvironmentPool(Spec("tests.evaluation.toy_world:Toy", {}, "/no/python"), "line", 1, 1)


def start_script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    path = tmp_path / "parent.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[3])!r})\n{body}")
    return subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


BUSY_POOL = """
import time
from tests.evaluation.toy_world import HANGS, spec
from anyvla_sim.workers.pool import EnvironmentPool
if __name__ == "__main__":
    with EnvironmentPool(spec(), "line", 2, 1) as pool:
        pool.reset(0, "left", 1)
        while not pool.ready(1.0):
            pass
        pool.reset(1, "left", HANGS)
        print(*(w._process.pid for w in pool._workers), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    parent = start_script(tmp_path, BUSY_POOL)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(w.is_running() and w.status() != "zombie" for w in workers))
    parent.stdout.close()


STOPPED_EARLY = """
import os, signal
from tests.evaluation.toy_world import spec
from anyvla_sim.workers.pool import EnvironmentPool
if __name__ == "__main__":
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    with EnvironmentPool(spec(), "line", 2, 1) as pool:
        os.killpg(0, signal.SIGINT)  # Ctrl-C while the workers still start
        pool.reset(0, "left", 1)
        while not pool.ready(1.0):
            pass
        os.killpg(0, signal.SIGINT)
        pool.reset(1, "left", 1)
        while not pool.ready(1.0):
            pass
    print(len(asked), "interrupts received, workers unharmed")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_stops_no_worker_even_during_its_start(tmp_path: Path) -> None:
    out, err = start_script(tmp_path, STOPPED_EARLY).communicate(timeout=60)
    assert out == "2 interrupts received, workers unharmed\n", err
    assert err == ""


@pytest.mark.simulator("metaworld")
def test_the_environment_side_never_imports_torch() -> None:
    code = (
        "import signal; on_interrupt = signal.getsignal(signal.SIGINT); "
        "import sys, anyvla_sim.workers.pool, anyvla_sim.workers.worker, anyvla_sim.metaworld.benchmark as m; "
        "environment = m.MetaWorld().make('half-open'); environment.reset('drawer-open', 0); "
        "heavy = {'torch', 'transformers', 'anyvla'} & set(sys.modules); assert not heavy, heavy; "
        "assert signal.getsignal(signal.SIGINT) is on_interrupt"  # only a worker's own process ignores it
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.simulator("metaworld")
def test_open_suite_suggests_names() -> None:
    with pytest.raises(ConfigError, match="benchmarks has no 'metawurld': did you mean 'metaworld'"):
        open_suite("metawurld/mt10")
    with pytest.raises(ConfigError, match="benchmark metaworld has no suite 'mt11': did you mean 'mt10'"):
        open_suite("metaworld/mt11")
    with pytest.raises(ConfigError, match="there is no render setting 'slow'"):
        open_suite("metaworld/mt10", {"render": "slow"})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'color'"):
        open_suite("metaworld/mt10", {"color": "red"})
    opened = open_suite("metaworld/half-open", {"render": "fast"})
    assert opened.name == "metaworld/half-open"
    assert opened.embodiment.name == "sawyer-metaworld"
