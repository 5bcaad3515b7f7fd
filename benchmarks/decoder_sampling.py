"""Measure the time to sample a chunk with each decoder, and with rereading the observation at each integration step.

    python benchmarks/decoder_sampling.py [--rounds 21] [--device cpu] [--json FILE]

One policy for each decoder, of default sizes, on the same nano backbone: two cameras of 96 x 96, 7 action dims, chunks
of 10, a batch of one session. Three times of each:

    decoder   `Decoder.sample` alone, on the same context
    chunk     `VLA.act`: images to actions, the observation read once
    again     the same, but the backbone runs before every call of the network, as if the observation were an input of
              the denoising network; images stay prepared and texts tokenized

They alternate on one thread. A time is the median of the rounds, and a ratio is the median of the ratios within a
round, so that a busy machine affects all alike (on a CPU, times are CPU times of the process). About a minute.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyvla.config import build
from anyvla.decoders.base import DecoderInput
from anyvla.policy import VLA, VLAConfig
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.types import Observation

SIDE, CHUNK, DIMS, PROPRIO = 96, 10, 7, 8
DECODERS: dict[str, dict[str, Any]] = {
    "regression": {"name": "regression"},
    "flow, Euler 4": {"name": "flow", "steps": 4},
    "flow, Euler 10": {"name": "flow", "steps": 10},
    "flow, Heun 5": {"name": "flow", "steps": 5, "method": "heun"},
    "diffusion, DPM 5": {"name": "diffusion", "steps": 5, "sampler": "dpm"},
    "diffusion, DPM 10": {"name": "diffusion", "steps": 10, "sampler": "dpm"},
    "diffusion, DDIM 10": {"name": "diffusion", "steps": 10, "sampler": "ddim"},
}


@dataclass(frozen=True)
class Row:
    """Milliseconds, and ratios."""

    decoder: str
    parameters: int
    calls: int  # of the network a chunk
    sample: float
    chunk: float
    again: float
    to_regression: float  # chunk beside that of regression
    speedup: float  # again beside chunk
    quartiles: tuple[float, float]  # of the speedup


def embodiment() -> Embodiment:
    arm = {"name": "arm", "size": DIMS - 1, "kind": "joints"}
    gripper = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1}
    return build(
        Embodiment,
        {
            "name": "bench",
            "cameras": ["front", "wrist"],
            "control_hz": 10,
            "proprio": {"groups": [{"name": "joints", "size": PROPRIO, "kind": "joints"}]},
            "action": {"groups": [arm, gripper]},
        },
    )


def policy(decoder: dict[str, Any], device: torch.device) -> VLA:
    def of(dims: int) -> dict[str, list[float]]:
        low, high = [-1.0] * dims, [1.0] * dims
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * dims, "std": [1.0] * dims}

    torch.manual_seed(0)
    keys = {"backbone": "nano", "history": "none", "fuser": "identity", "decoder": decoder, "chunk": CHUNK}
    return (
        VLA(build(VLAConfig, keys), [Robot(embodiment(), Statistics(of(DIMS), of(PROPRIO), "0" * 64))])
        .to(device)
        .eval()
    )


class Rereading:
    """Run the backbone of a policy before each call of its denoising network, while `on`."""

    def __init__(self, vla: VLA) -> None:
        self.on, self.calls, self.fresh = False, 0, False
        self.read: tuple[Any, Any] = (), {}
        vla.backbone.register_forward_pre_hook(self._reads, with_kwargs=True)
        self.backbone = vla.backbone
        if (network := getattr(vla.decoder, "network", None)) is not None:
            network.register_forward_pre_hook(self._denoises)

    def _reads(self, _module: Any, positional: Any, named: Any) -> None:
        self.read, self.fresh, self.calls = (positional, named), True, 0

    def _denoises(self, _module: Any, _positional: Any) -> None:
        calls = self.calls + 1
        if self.on and not self.fresh:
            self.backbone(*self.read[0], **self.read[1])
        self.calls, self.fresh = calls, False


def timed(run: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    start = clock()
    run()
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return (clock() - start) * 1000


def measure(rounds: int, device: torch.device) -> list[Row]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    observation = Observation({"front": image, "wrist": image[::-1].copy()}, np.zeros(PROPRIO, np.float32))
    policies = {name: policy(decoder, device) for name, decoder in DECODERS.items()}
    rereadings = {name: Rereading(vla) for name, vla in policies.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"sample": [], "chunk": [], "again": []} for name in DECODERS}

    def act(name: str, again: bool) -> None:
        vla = policies[name]
        rereadings[name].on = again
        vla.act([observation], [vla.start("open the drawer")])

    context = DecoderInput(torch.randn(1, policies["regression"].fuser.width, device=device))
    for number in range(rounds + 2):
        for name, vla in policies.items():
            rereadings[name].on = False
            with torch.inference_mode():
                sample = timed(lambda vla=vla: vla.decoder.sample(context, [torch.Generator().manual_seed(0)]), device)
            chunk = timed(lambda name=name: act(name, False), device)
            again = timed(lambda name=name: act(name, True), device)
            if number >= 2:  # the first are warm-up
                for kind, value in (("sample", sample), ("chunk", chunk), ("again", again)):
                    times[name][kind].append(value)

    rows = []
    for name, of in times.items():
        speedups = [b / a for a, b in zip(of["chunk"], of["again"], strict=True)]
        ratios = [a / b for a, b in zip(of["chunk"], times["regression"]["chunk"], strict=True)]
        low, _, high = statistics.quantiles(speedups, n=4)
        size = sum(p.numel() for p in policies[name].decoder.parameters())
        medians = [statistics.median(of[kind]) for kind in ("sample", "chunk", "again")]
        middles = statistics.median(ratios), statistics.median(speedups)
        rows.append(Row(name, size, max(rereadings[name].calls, 1), *medians, *middles, (low, high)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.rounds, options.device)
    head = f"{'decoder':20} {'weights':>8} {'calls':>5} {'decoder':>10} {'chunk':>10} {'again':>10}"
    print(f"{head}  to regression  speedup")
    for row in rows:
        low, high = row.quartiles
        cost = f"{row.sample:7.2f} ms {row.chunk:7.2f} ms"
        gain = f"{row.again:7.2f} ms {row.to_regression:13.2f}x {row.speedup:7.2f}x ({low:.2f} to {high:.2f})"
        if row.calls == 1:  # nothing to read again for
            gain = f"{'-':>10} {row.to_regression:13.2f}x {'-':>8}"
        print(f"{row.decoder:20} {row.parameters / 1e6:7.2f}M {row.calls:5} {cost} {gain}")
    if options.json:
        result = {
            "unit": "ms of one chunk",
            "device": str(options.device),
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__},
            "rounds": options.rounds,
            "rows": [vars(row) for row in rows],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
