"""Measure the memory that an idle session of a policy server keeps, for each kind of history.

    python benchmarks/session_memory.py [--window 8] [--batch 8]

A policy with the backbone of the quickstart (nano, 96 pixels, 2 cameras) acts until its window is full: a session
alone, and sessions in batches. The bytes are those of all tensors that a session reaches. After `separate`, which a
server does with idle sessions, it keeps nothing of the batch.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyvla.config import build
from anyvla.policy import VLA, VLAConfig
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.session import Session, copy_sessions, separate
from anyvla.types import Observation

ROBOT = {
    "name": "arm",
    "cameras": ["scene", "wrist"],
    "control_hz": 10,
    "proprio": {"groups": [{"name": "position", "size": 3, "kind": "position"}]},
    "action": {"groups": [{"name": "position", "size": 4, "kind": "position", "mode": "delta"}]},
}


def make_policy(history: dict[str, Any]) -> VLA:
    fusers = {
        "policy_head": {"name": "gpt", "width": 256, "layers": 1, "heads": 4},
        "recurrent": {"name": "mingru", "width": 256, "layers": 2},
    }
    fuser = fusers.get(history["name"], "identity")
    keys = {"backbone": "nano", "history": history, "fuser": fuser, "decoder": "regression", "readouts": 4, "chunk": 8}
    statistics = {
        n: {k: [v] * n for k, v in {"q01": -1.0, "q99": 1.0, "mean": 0.0, "std": 1.0}.items()} for n in (3, 4)
    }
    robot = Robot(build(Embodiment, ROBOT), Statistics(statistics[4], statistics[3], "0" * 64))
    torch.manual_seed(0)
    return VLA(build(VLAConfig, keys), [robot]).eval()


def find_tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors that a value reaches, except those of the policy."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from find_tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        for item in vars(value).values():
            yield from find_tensors(item)


def count_bytes(session: Session) -> int:
    storages = (t.untyped_storage() for t in find_tensors(session))
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) + len(session.generator.get_state())


def act(vla: VLA, sessions: list[Session], steps: int) -> None:
    for _ in range(steps):
        images = {camera: np.zeros((96, 96, 3), np.uint8) for camera in ROBOT["cameras"]}  # type: ignore[attr-defined]
        vla.act([Observation(images, np.zeros(3, np.float32))] * len(sessions), sessions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    interleaved = {"name": "interleaved", "window": options.window}
    histories = {
        "none": {"name": "none"},
        "policy_head": {"name": "policy_head", "window": options.window},
        "recurrent": {"name": "recurrent"},
        "interleaved": interleaved,
        "interleaved, cache: false": interleaved | {"cache": False},
    }
    print(f"KiB per session, window {options.window}, batches of {options.batch}")
    print(f"{'history':28}{'alone':>10}{'in batches':>12}{'separated':>11}")
    for name, history in histories.items():
        vla = make_policy(history)
        alone, together = vla.start("pull the drawer"), [vla.start("pull the drawer", k) for k in range(options.batch)]
        largest = [0, 0, 0]
        for _ in range(options.window):  # the two windows of an interleaved history grow and shrink
            act(vla, [alone], 1)
            act(vla, together, 1)
            (idle,) = copy_sessions(together[:1], vla.history)
            separate(idle, vla.history)
            largest = [max(a, count_bytes(b)) for a, b in zip(largest, (alone, together[0], idle), strict=True)]
        print(
            f"{name:28}"
            + "".join(f"{size / 1024:>{width}.0f}" for size, width in zip(largest, (10, 12, 11), strict=True))
        )


if __name__ == "__main__":
    main()
