"""Measure acting with an interleaved history: with a KV cache against rereading the window at each step.

    python benchmarks/interleaved_acting.py [--windows 4 16] [--steps 48] [--device cuda] [--long 10000]

Both variants are the same policy with the same weights. They alternate step by step on one thread; on a CPU, times are
CPU times of the process. Then one session runs for `--long` steps while its memory is recorded.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import numpy as np
import psutil
import torch

from anyvla.config import build
from anyvla.policy import VLA, Session, VLAConfig
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.types import Observation

ROBOT = {
    "name": "arm",
    "cameras": ["scene", "wrist"],
    "control_hz": 10,
    "proprio": {"groups": [{"name": "position", "size": 3, "kind": "position"}]},
    "action": {
        "groups": [
            {"name": "position", "size": 3, "kind": "position", "mode": "delta"},
            {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1},
        ]
    },
}


def policy(window: int, device: str, cache: bool = True, **backbone: Any) -> VLA:
    def of(dims: int) -> dict[str, list[float]]:
        low, high = [-1.0] * dims, [1.0] * dims
        return {"q01": low, "q99": high, "mean": [0.0] * dims, "std": high}

    config = build(
        VLAConfig,
        {
            "backbone": {"name": "nano", **backbone},
            "history": {"name": "interleaved", "window": window, "cache": cache},
            "fuser": "identity",
            "decoder": "regression",
            "chunk": 8,
        },
    )
    torch.manual_seed(0)
    robot = build(Embodiment, ROBOT)
    return VLA(config, [Robot(robot, Statistics(of(4), of(3), "0" * 64))]).to(device).eval()


def observations(count: int, size: int = 96) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            {c: rng.integers(0, 256, (size, size, 3), np.uint8) for c in ("scene", "wrist")},
            rng.normal(size=3).astype(np.float32),
        )
        for _ in range(count)
    ]


def milliseconds(vla: VLA, observation: Observation, session: Session) -> float:
    clock = time.process_time if vla.device.type == "cpu" else time.perf_counter
    begin = clock()
    vla.act([observation], [session])  # the result is on the CPU, so no work is pending
    return (clock() - begin) * 1000


def compare(window: int, steps: int, device: str) -> None:
    """Return the median milliseconds per step of both variants once the window is full."""
    seen = observations(32)
    ways = {cache: policy(window, device, cache) for cache in (True, False)}
    sessions = {cache: vla.start("open the drawer") for cache, vla in ways.items()}
    took: dict[bool, list[float]] = {True: [], False: []}
    for step in range(window + steps):
        for cache, vla in ways.items():
            ms = milliseconds(vla, seen[step % len(seen)], sessions[cache])
            if step >= window:
                took[cache].append(ms)
    kept, again = (statistics.median(took[cache]) for cache in (True, False))
    print(f"| {window} | {kept:.1f} | {again:.1f} | {again / kept:.1f}x |", flush=True)


def watch(steps: int, device: str) -> None:
    """Return the memory of the process and of the session over a long session."""
    vla = policy(16, device, image_size=48, channels=[32, 32], width=96, heads=3, mlp=192)
    session, seen, process = vla.start("open the drawer"), observations(32, 48), psutil.Process()
    print("| steps | process, MB | kept by the session, MB | ms a step |\n|---|---|---|---|")
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        vla.act([seen[step % len(seen)]], [session])
        if step in (100, *range(0, steps + 1, max(1, steps // 5))[1:]):
            gc.collect()
            ms = (time.perf_counter() - begin) / step * 1000
            print(f"| {step} | {process.memory_info().rss / 1e6:.0f} | {kept(session):.2f} | {ms:.1f} |", flush=True)


def kept(session: Session) -> float:
    """Return the size of all tensors of a session in MB."""
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            for item in value:
                walk(item)
        elif hasattr(value, "__dict__"):
            for item in vars(value).values():
                walk(item)

    walk(session)
    return sum(found.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| window | remembering, ms a step | reading again, ms a step | faster |\n|---|---|---|---|")
    for window in options.windows:
        compare(window, options.steps, options.device)
    if options.long:
        watch(options.long, options.device)


if __name__ == "__main__":
    main()
