"""How fast training will be: from the peak rate of a GPU, from the log of a run, or measured here for some seconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyvla.backbones.adapting.architecture_only import architecture_only
from anyvla.config import ConfigError
from anyvla.files.documents import DocumentError, parse_json
from anyvla.planning.gpus import Gpu
from anyvla.planning.step_profile import Inputs, StepProfile
from anyvla.policy import VLA
from anyvla.recipe import Recipe
from anyvla.report.explanation import dummy_chunks
from anyvla.training.device import pick_device
from anyvla.training.layers import prepare_layers
from anyvla.training.parts import freeze_parts
from anyvla.training.state import TrainingState
from anyvla.training.step import OptimizerStep
from anyvla.types import Batch

# Model FLOPs utilization: the share of the peak that training reaches. torchtitan reports 0.33 to 0.39 for Llama 8B on
# 8 to 128 H100; policies have smaller batches and images to prepare.
MFU = 0.3
LEAST_S, LEAST_STEPS = 5.0, 3  # of a measurement here


@dataclass(frozen=True)
class Speed:
    """A rate of floating-point operations, and where it comes from."""

    flops: float  # per second
    origin: str


def assume_speed(gpu: Gpu, precision: torch.dtype, mfu: float = MFU) -> Speed | None:
    """Return a share of the peak rate of a GPU; None if its peak is not known."""
    peak = gpu.peak(precision)
    if peak is None:
        return None
    kind = str(precision).removeprefix("torch.")
    return Speed(mfu * peak, f"assumed: {mfu:.0%} of the {peak / 1e12:g} TFLOP/s of {gpu.name} in {kind}")


def read_speed(path: Path, profile: StepProfile) -> Speed:
    """Return the speed in the log of a run, which is taken to have trained the planned policy.

    `path`: a run folder, or its `log.jsonl`. Raises ConfigError if there is none, or if it has no speed.
    """
    file = path if path.is_file() else path / "train" / "log.jsonl"
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"--rate {path}: there is no log of a training ({error})") from None
    rates = [rate for rate in map(_read_rate, lines) if rate is not None]
    if not rates:
        raise ConfigError(f"--rate {path}: {file} has no line with samples_per_s")
    steps = statistics.median(rates[1:] or rates)  # the first line contains the start
    windows = steps / profile.steps  # the log counts the steps of windows
    return Speed(windows * profile.flops, f"measured: {windows:.4g} windows/s of {profile.steps} steps in {file}")


def _read_rate(line: str) -> float | None:
    try:
        found: Any = parse_json(line, "log")
    except DocumentError:  # torn
        return None
    rate = found.get("samples_per_s") if isinstance(found, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def measure_speed(recipe: Recipe, inputs: Inputs, profile: StepProfile) -> Speed:
    """Train on made-up windows for some seconds on the recipe's device, with random weights, and return the speed."""
    config = recipe.training
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    with architecture_only():
        vla = VLA(recipe.model, inputs.robots, codec=inputs.codec)
    for weight in vla.parameters():  # their memory is not initialized
        if weight.is_floating_point():
            torch.nn.init.normal_(weight, std=0.02)
    vla.to(device).train()
    freeze_parts(config.optim.parts, vla)
    prepare_layers(vla, recomputed=config.gradient_checkpointing, compiled=config.compile)
    take_step = OptimizerStep(TrainingState(vla, config.optim, config.ema), config, device)
    batch = make_up_batch(vla, inputs, config.batch_size)
    take_step(batch, 0, None)
    done, begin = 0, time.perf_counter()
    while done < LEAST_STEPS or time.perf_counter() - begin < LEAST_S:
        take_step(batch, done + 1, None)
        done += 1
    windows = done * config.batch_size / (time.perf_counter() - begin)
    return Speed(windows * profile.flops, f"measured: {windows:.4g} windows/s on {device}, made-up data, {done} steps")


def make_up_batch(vla: VLA, inputs: Inputs, windows: int) -> Batch:
    """Return a batch of full windows of random images, for measurements."""
    steps, robot, chunk = inputs.count_steps(vla), vla.embodiment, vla.config.chunk
    g = torch.Generator().manual_seed(0)
    shape = (windows, steps, len(robot.cameras), *inputs.image_size, 3)
    return Batch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=g),
        proprio=torch.rand(windows, steps, robot.proprio.size, generator=g),
        instructions=[inputs.instruction] * windows,
        actions=dummy_chunks(windows * steps, chunk, robot.action.size).unflatten(0, (windows, steps)),
        action_mask=torch.ones(windows, steps, chunk, dtype=torch.bool),
        step_mask=torch.ones(windows, steps, dtype=torch.bool),
        robots=torch.zeros(windows, dtype=torch.int64),
    )
