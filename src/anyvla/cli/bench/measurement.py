"""Measure the stages of a chunk, and the whole without clocks inside."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from anyvla.backbones.images.pixels import Pixels
from anyvla.cli.bench.chunk_path import ChunkPath
from anyvla.policy import VLA
from anyvla.training.named_methods import methods_of_parts, named_methods
from anyvla.training.spans import SpanClock, measuring

_OTHER = "other"
# In the order of a chunk; other: what no module of the policy does, such as sessions, masks and positions of tokens.
STAGES = (
    *("decode", "resize", "tokenize", "vision", "projector", "embeddings", "language", "fuser", "decoder"),
    *("encode", _OTHER),
)
_WARM_UP = 3  # rounds, at least


@dataclass(frozen=True)
class Times:
    """Milliseconds over all rounds."""

    p50: float
    p90: float
    p99: float
    mean: float


@dataclass(frozen=True)
class Latency:
    """The time of the chunks of one call, for `batch` robots at once."""

    device: str
    precision: str  # of the backbone's weights
    robot: str
    cameras: list[str]
    images: tuple[int, int]
    encoding: str
    batch: int
    asked: int  # rounds
    rounds: int
    chunk_actions: int
    execute: int
    control_hz: float
    stages: dict[str, Times]
    clocked: Times  # all stages, with the clocks
    chunk: Times  # without clocks
    served: Times  # through the server, without a network

    @property
    def needed_ms(self) -> float:
        """The time in which a robot executes its actions of a chunk."""
        return 1000 * self.execute / self.control_hz

    @property
    def margin(self) -> float:
        """How many times as fast as needed 99 of 100 chunks are served."""
        return self.needed_ms / self.served.p99

    @property
    def keeps_up(self) -> bool:
        """Whether a robot that executes while the next chunk is predicted never waits."""
        return self.margin >= 1

    @property
    def most_hz(self) -> float:
        """The highest control rate at which it keeps up."""
        return self.control_hz * self.margin


def measure(
    path: ChunkPath, rounds: int, seconds: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> Latency:
    """Measure at most `rounds` and about `seconds`, but one round at least."""
    spans: list[dict[str, float]] = []
    totals: defaultdict[str, list[float]] = defaultdict(list)
    warm_up = max(_WARM_UP, path.vla.history.kept_steps + 1)  # windows are full then

    with asyncio.Runner() as runner:
        end = float("inf")
        for number in range(-warm_up, rounds):
            if number == 0:
                totals.clear()
                spans.clear()
                end = time.perf_counter() + seconds
            elif number > 0 and time.perf_counter() >= end:
                break
            totals["chunk"].append(runner.run(path.service.batcher.call(lambda: _time(path.run))))
            spans.append(runner.run(path.service.batcher.call(lambda: _clock_stages(path))))
            totals["clocked"].append(sum(spans[-1].values()))
            totals["served"].append(runner.run(_time_served(path)))
            if number >= 0:
                progress(number + 1, rounds)
        threads = runner.run(path.service.batcher.call(torch.get_num_threads))
    path.service.close()
    vla, service = path.vla, path.service
    occurring = [stage for stage in STAGES if any(stage in found for found in spans)]
    return Latency(
        device=_name_device(vla.device, threads),
        precision=_name_precision(vla),
        robot=path.robot.name,
        cameras=list(path.robot.cameras),
        images=path.size,
        encoding=path.encoding,
        batch=path.batch,
        asked=rounds,
        rounds=len(spans),
        chunk_actions=vla.config.chunk,
        execute=service.execute,
        control_hz=path.robot.control_hz,
        stages={stage: _summarize([found.get(stage, 0.0) for found in spans]) for stage in occurring},
        clocked=_summarize(totals["clocked"]),
        chunk=_summarize(totals["chunk"]),
        served=_summarize(totals["served"]),
    )


def _time(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


async def _time_served(path: ChunkPath) -> float:
    begin = time.perf_counter()
    await path.serve()
    return time.perf_counter() - begin


def _clock_stages(path: ChunkPath) -> dict[str, float]:
    """Return the seconds of each stage of one call."""
    vla = path.vla
    # A decoder that calls the backbone again, as to write tokens one by one, keeps that time.
    clock = SpanClock(vla.device, whole=("decoder",))
    with (
        named_methods(
            (path, "decode", "decode"),
            (path, "encode", "encode"),
            (vla.observer, "read_images", "resize"),
            *((module, "forward", "resize") for module in vla.modules() if isinstance(module, Pixels)),
            (vla.backbone, "tokenize", "tokenize"),
            (vla.fuser, "forward", "fuser"),
            (vla.decoder, "sample", "decoder"),
            *methods_of_parts(vla.backbone),
        ),
        measuring(clock),
        clock.measure(_OTHER),
    ):
        path.run()
    return dict(clock.seconds)


def _summarize(seconds: list[float]) -> Times:
    ms = 1000 * np.array(seconds)
    p50, p90, p99 = np.percentile(ms, [50, 90, 99]).tolist()
    return Times(p50, p90, p99, float(ms.mean()))


def _name_device(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else device.type


def _name_precision(vla: VLA) -> str:
    """Return the types of the backbone's weights, the one of most weights first."""
    counts: defaultdict[str, int] = defaultdict(int)
    for weight in vla.backbone.parameters():
        counts[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return ", ".join(sorted(counts, key=lambda name: -counts[name]))
