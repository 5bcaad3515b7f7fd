"""The mathematics of flow matching, without a network: times, the path from actions to noise, the way back.

Lipman et al. (arXiv 2210.02747), with straight paths (rectified flow, arXiv 2209.03003) and the convention of pi0's
code: x_t = t * noise + (1 - t) * actions. So t = 1 is noise, t = 0 is the actions, and the velocity
dx/dt = noise - actions points towards the noise. (The papers count time the other way round.) Everything is float32,
also under autocast: an integration adds up many small steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyvla.decoders.base import Committed

TimeDistribution = Literal["beta", "uniform"]
Integration = Literal["euler", "heun"]

ALPHA = 1.5  # of pi0's Beta(1.5, 1) (arXiv 2410.24164, appendix B): more times near the noise, where acting starts
FIRST = 1e-3  # times are in [FIRST, 1]: at t = 0 there is nothing left to learn


def sample_times(kind: TimeDistribution, count: int, generator: torch.Generator | None) -> Float[Tensor, "count"]:
    """Return times to train at, on the CPU: FIRST + (1 - FIRST) * u, u from Beta(1.5, 1) or uniform on [0, 1)."""
    u = torch.rand(count, generator=generator)
    if kind == "beta":
        u = u ** (1 / ALPHA)  # the inverse of the distribution function u^1.5; torch's Beta takes no generator
    return FIRST + (1 - FIRST) * u


def interpolate(
    actions: Float[Tensor, "M N A"], noise: Float[Tensor, "M N A"], time: Float[Tensor, "M"]
) -> tuple[Float[Tensor, "M N A"], Float[Tensor, "M N A"]]:
    """Return the points of the paths at `time`, which a network is given, and their velocity, which it learns."""
    actions, noise, t = actions.float(), noise.float(), time.float()[:, None, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(
    velocity: Callable[[Float[Tensor, "M N A"], Float[Tensor, "M"]], Float[Tensor, "M N A"]],
    noise: Float[Tensor, "M N A"],
    steps: int,
    method: Integration = "euler",
    committed: Committed | None = None,
) -> Float[Tensor, "M N A"]:
    """Follow `velocity(x, t)` from the noise at t = 1 to the actions at t = 0, in equal steps.

    euler: one call in each step, error O(1 / steps). heun: two calls in each step (the trapezoid rule), error
    O(1 / steps^2), but one in the last step, as in EDM (arXiv 2206.00364, algorithm 1): no velocity is learned at 0.
    Committed actions are on their path from the noise at each call, and exact at t = 0.
    """
    noise, dt = noise.float(), -1 / steps
    x = noise

    def at(x: Tensor, step: int) -> Tensor:
        time = x.new_full((len(x),), 1 - step / steps)
        if committed is not None:
            x = committed.replace(x, interpolate(committed.actions, noise, time)[0])
        return velocity(x, time).float()

    for step in range(steps):
        v = at(x, step)
        if method == "heun" and step + 1 < steps:
            v = (v + at(x + dt * v, step + 1)) / 2
        x = x + dt * v
    return x if committed is None else committed.replace(x)
