"""Measure the success of LIBERO's scripted expert by task, for the table of docs/benchmark_libero_expert.md.

Stored start states (seeds 0, 1, ...), within the suite's limit, nothing rendered; with noise, the Ornstein-Uhlenbeck
noise that demonstrations are collected with.

    python benchmarks/libero_expert.py [--suites spatial object goal] [--starts 10] [--noise 0 0.1] [--processes 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from anyvla_sim.base import ExpertStuck
from anyvla_sim.libero.benchmark import Libero

MEMORY = 0.85  # of the noise, per action, as in `anyvla data collect`


def play(suite: str, task: str, starts: int, sigma: float) -> tuple[str, str, float, list[int]]:
    """Return the lengths of the successful episodes, in actions."""
    benchmark = Libero("fast", size=32)
    environment, limit = benchmark.make(suite), benchmark.suite(suite).limit(task)
    lengths = []
    for seed in range(starts):
        environment.reset(task, seed)
        rng, noise = np.random.default_rng((seed, round(1000 * sigma))), np.zeros(7)
        try:
            for step in range(1, limit + 1):
                noise = MEMORY * noise + sigma * np.sqrt(1 - MEMORY**2) * rng.normal(size=7)
                if environment.step(np.clip(environment.expert(task) + noise, -1, 1))[task]:
                    lengths.append(step)
                    break
        except (ExpertStuck, ValueError):  # it gives up, or has no skill for the goal
            continue
    environment.close()
    return suite, task, sigma, lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["spatial", "object", "goal"])
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    benchmark = Libero("fast", size=32)
    jobs = [
        (suite, task.name, options.starts, sigma)
        for suite in options.suites
        for task in benchmark.suite(suite).tasks
        for sigma in options.noise
    ]
    found: dict[tuple[str, str], dict[float, list[int]]] = {}
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for suite, task, sigma, lengths in pool.map(play, *zip(*jobs, strict=True)):
            found.setdefault((suite, task), {})[sigma] = lengths
            if len(found[suite, task]) == len(options.noise):
                cells = [
                    f"{len(done)} of {options.starts}" + (f", {np.mean(done):.0f}" if done else "")
                    for done in found[suite, task].values()
                ]
                print(f"| {suite} | {task} | {' | '.join(cells)} |", flush=True)
    for suite in options.suites:
        for sigma in options.noise:
            rates = [len(by[sigma]) / options.starts for (own, _), by in found.items() if own == suite]
            good = sum(rate >= 0.8 for rate in rates)
            print(f"{suite}, noise {sigma:g}: {np.mean(rates):.1%} of episodes, {good} of {len(rates)} tasks at 80 %")


if __name__ == "__main__":
    main()
