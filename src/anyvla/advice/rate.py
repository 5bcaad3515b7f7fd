"""The chunk and the number of executed actions that keep a control rate, given the time of a call of the policy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anyvla.advice.rules import RateRule
from anyvla.backbones.adapting.architecture_only import architecture_only
from anyvla.planning.inputs import find_data, planned_inputs
from anyvla.policy import VLA
from anyvla.recipe import Recipe
from anyvla.types import Observation

_CALLS, _WARM_UP = 12, 3


@dataclass(frozen=True)
class Call:
    """The time of one call of a policy."""

    ms: float
    origin: str


@dataclass(frozen=True)
class Rate:
    """A control rate that a policy keeps."""

    hz: float
    call: Call
    execute: int
    chunk: int

    def describe(self) -> str:
        """Return the arithmetic as a sentence."""
        lasts = 1000 * self.execute / self.hz
        return (
            f"{self.execute} actions at {self.hz:g} Hz last {lasts:.4g} ms, {lasts / self.call.ms:.1f} times a call of "
            f"{self.call.ms:.3g} ms ({self.call.origin}); the chunk lasts {self.chunk / self.hz:.3g} s"
        )


def choose_rate(hz: float, call: Call, rule: RateRule) -> Rate | None:
    """Return the shortest execution that keeps the rate, and its chunk; None if even the longest does not."""
    needed = math.ceil(round(hz * rule.margin * call.ms / 1000, 9))
    execute = max(rule.least_execute, math.ceil(round(hz * rule.least_s, 9)), needed)
    if needed > rule.longest:
        return None
    execute = min(execute, rule.longest)
    return Rate(hz, call, execute, min(rule.chunk_of_execute * execute, rule.longest))


def most_hz(call: Call, rule: RateRule) -> float:
    """Return the highest control rate that a policy keeps."""
    return 1000 * rule.longest / (rule.margin * call.ms)


def measure_call(recipe: Recipe, run: Path) -> Call:
    """Measure the policy of a recipe on the CPU of this machine, with random weights and made-up images."""
    data = find_data(recipe, run)
    with planned_inputs(recipe.model, data, run) as inputs, architecture_only():
        vla = VLA(recipe.model, inputs.robots, codec=inputs.codec).eval()
    for weight in vla.parameters():  # their memory is not initialized
        torch.nn.init.normal_(weight, std=0.02)
    robot = vla.embodiment
    images = {camera: np.full((*data.image_size, 3), 128, np.uint8) for camera in robot.cameras}
    observation = Observation(images, np.zeros(robot.proprio.size, np.float32))
    vla.implausible = "warn"
    session, times = vla.start(data.instruction, robot=robot.name), []
    for _ in range(_WARM_UP + _CALLS):
        begin = time.perf_counter()
        vla.act([observation], [session])
        times.append(1000 * (time.perf_counter() - begin))
    slow = float(np.percentile(times[_WARM_UP:], 90))
    return Call(slow, f"measured here, the 90th percentile of {_CALLS}")
