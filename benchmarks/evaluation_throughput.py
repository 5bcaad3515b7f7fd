"""Measure environment steps per second on Meta-World: a plain loop against anyvla's harness, in the same run.

The plain loop is the usual one, as in lerobot's environment: one process, the camera `corner2` at 480 pixels, one image
after every control step. The harness plays the suite `mt10` with its own settings. Both execute the same random actions
without a policy, so only the environment side is measured.

    python benchmarks/evaluation_throughput.py [--seconds 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from typing import Any

import numpy as np

from anyvla.evaluation.suites import OpenedSuite, open_suite
from anyvla_sim.rendering import find_driver
from anyvla_sim.workers.pool import EnvironmentPool, Reply

EXECUTE = 4  # actions between two images, as in the recipes


def plain(seconds: float) -> float:
    """Return the control steps per second of a plain Gymnasium loop."""
    import gymnasium
    import metaworld  # noqa: F401  # registers its environments

    find_driver()
    environment = gymnasium.make(
        "Meta-World/MT1",
        env_name="drawer-open-v3",
        seed=0,
        render_mode="rgb_array",
        camera_name="corner2",
        width=480,
        height=480,
    )
    environment.reset(seed=0)
    environment.render()
    rng, steps, begin = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        environment.step(rng.uniform(-1, 1, 4).astype(np.float32))
        environment.render()
        steps += 1
        if steps % 400 == 0:
            environment.reset(seed=steps)
    rate = steps / (time.perf_counter() - begin)
    environment.close()
    return rate


def harness(opened: OpenedSuite, processes: int, slots: int, seconds: float) -> float:
    """Return the control steps per second of a pool of environments."""
    tasks = [task.name for task in opened.suite.tasks]
    repeat = opened.benchmark.protocol(opened.suite.name)["control_steps_per_action"]
    rng = np.random.default_rng(0)
    with EnvironmentPool(opened.spec, opened.suite.name, processes, slots) as pool:
        played = dict.fromkeys(range(pool.size), 0)
        for slot in played:
            pool.reset(slot, tasks[slot % len(tasks)], slot)
        heard: set[int] = set()
        steps, begin = 0, 0.0
        while True:
            for reply in pool.ready(1.0):
                assert isinstance(reply, Reply), reply
                if len(heard) < pool.size:
                    heard.add(reply.slot)
                    if len(heard) == pool.size:  # every simulator is loaded
                        begin = time.perf_counter()
                steps += EXECUTE * repeat if begin else 0
                if reply.observation is None or reply.steps >= opened.suite.horizon:
                    played[reply.slot] += 1
                    pool.reset(reply.slot, tasks[reply.slot % len(tasks)], pool.size * played[reply.slot] + reply.slot)
                else:
                    pool.execute(reply.slot, rng.uniform(-1, 1, (EXECUTE, 4)))
            if begin and time.perf_counter() - begin > seconds:
                return steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["LP_NUM_THREADS"] = "1"  # for both sides: Mesa would spread one image over all cores
    busy = os.getloadavg()[0]
    fast, native = (open_suite("metaworld/mt10", {"render": render}) for render in ("fast", "native"))
    rows: dict[str, Any] = {"plain loop, corner2 480 px": plain(options.seconds)}
    for name, opened in (("harness, native", native), ("harness, fast", fast)):
        for processes in (1, 2):
            rows[f"{name}, {processes} worker(s)"] = harness(opened, processes, 1, options.seconds)
    rows["plain loop again"] = plain(options.seconds)
    facts = {
        "control_steps_per_second": {name: round(rate, 1) for name, rate in rows.items()},
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": round(busy, 2),
        "versions": fast.benchmark.versions(),
    }
    if options.json:
        print(json.dumps(facts))
        return
    print(f"{facts['cores']} cores, load {facts['load_before']} before, {facts['versions']}")
    for name, rate in rows.items():
        print(f"{name:32} {rate:8.1f} control steps/s")


if __name__ == "__main__":
    main()
