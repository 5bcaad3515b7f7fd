"""Rendered Meta-World steps per second: each step observes (two cameras) and acts, as in collection.

    python benchmarks/render_metaworld.py [--steps 160] [--json]

`fast` leaves out shadows, reflections and multisampling, `native` is the model as its authors made it; 1 and 2
processes, one thread each. Loading models and the first picture do not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from typing import Any

import psutil

from anyvla.evaluation.environments.metaworld import HALF_OPEN, MetaWorld
from anyvla.evaluation.environments.pool import prepare_worker
from anyvla.evaluation.environments.rendering import SETTINGS

SCENES = ("drawer-open", "window-open", "door-open", "button-press-topdown")


def work(render: str, steps: int, barrier: Any, answers: Any) -> None:
    prepare_worker()
    benchmark = MetaWorld(render)
    environment = benchmark.make()
    for task in SCENES:
        environment.reset(task, 0)
        environment.observe()
    barrier.wait()
    start = time.perf_counter()
    for task in SCENES:
        environment.reset(task, 1)
        for _ in range(steps // len(SCENES)):
            environment.observe()
            environment.step(environment.expert(task))
    answers.put(steps // len(SCENES) * len(SCENES) / (time.perf_counter() - start))
    benchmark.close()


def measure(render: str, processes: int, steps: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(render, steps, barrier, answers)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rate = sum(answers.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160, help="per process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    rows = [
        {"render": render, "processes": n, "steps_per_second": round(measure(render, n, options.steps), 1)}
        for render in SETTINGS
        for n in (1, 2)
    ]
    facts = {
        "suite": f"metaworld/{HALF_OPEN.name}",
        "cores": psutil.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load_before": round(busy, 2),
        "versions": MetaWorld("fast").versions(),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(facts))
        return
    print(f"{facts['cores']} cores, load {facts['load_before']} before, {facts['versions']}")
    print(f"{'render':8} {'processes':>9} {'steps/s':>8}")
    for row in rows:
        print(f"{row['render']:8} {row['processes']:9} {row['steps_per_second']:8}")


if __name__ == "__main__":
    main()
