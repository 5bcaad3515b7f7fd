"""Flow matching, as far as it knows nothing of networks: times, the path from actions to noise, the way back.

Lipman et al. (arXiv 2210.02747), with straight paths (rectified flow, arXiv 2209.03003) and the convention of pi0's
code: x_t = t * noise + (1 - t) * actions, so noise lies at t = 1, actions lie at t = 0, and the velocity
dx/dt = noise - actions points at the noise. (The papers count time the other way round.) Everything is float32, also
under autocast: the state of an integration adds many small steps up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Times = Literal["beta", "uniform"]
Method = Literal["euler", "heun"]

ALPHA = 1.5  # of pi0's Beta(1.5, 1) (arXiv 2410.24164, appendix B): more times near the noise, where acting starts
FIRST = 1e-3  # times lie in [FIRST, 1]: at t = 0 nothing is left to be learned


def times(kind: Times, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "M"]:
    """Times to train at, on the CPU: FIRST + (1 - FIRST) * u, u of Beta(1.5, 1) or uniform on [0, 1)."""
    u = torch.rand(count, generator=generator)
    if kind == "beta":
        u = u ** (1 / ALPHA)  # the inverse of the distribution function u^1.5; torch's Beta takes no generator
    return FIRST + (1 - FIRST) * u


def drawn(
    kind: Times, count: int, shape: Sequence[int], generator: torch.Generator | None, device: torch.device
) -> tuple[Float[Tensor, "M N A"], Float[Tensor, "M"]]:
    """Noises and times to train at, drawn on the CPU."""
    time = times(kind, count, generator)
    return torch.randn(count, *shape, generator=generator).to(device), time.to(device)


def interpolate(
    actions: Float[Tensor, "M N A"], noise: Float[Tensor, "M N A"], time: Float[Tensor, "M"]
) -> tuple[Float[Tensor, "M N A"], Float[Tensor, "M N A"]]:
    """The points of the paths at `time`, and their velocity: what a network is given, and what it should say."""
    actions, noise, t = actions.float(), noise.float(), time.float()[:, None, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(
    velocity: Callable[[Float[Tensor, "M N A"], Float[Tensor, "M"]], Float[Tensor, "M N A"]],
    noise: Float[Tensor, "M N A"],
    steps: int,
    method: Method = "euler",
) -> Float[Tensor, "M N A"]:
    """Follow `velocity(x, t)` from the noise at t = 1 to the actions at t = 0, in equal steps.

    euler: one call a step, error O(1 / steps). heun: two calls a step (the trapezoid rule), error O(1 / steps^2); but
    one in the last step, as in EDM (arXiv 2206.00364, algorithm 1): at t = 0 no velocity was learned, nor can be.
    """
    x, dt = noise.float(), -1 / steps

    def at(x: Tensor, step: int) -> Tensor:
        return velocity(x, x.new_full((len(x),), 1 - step / steps)).float()

    for step in range(steps):
        v = at(x, step)
        if method == "heun" and step + 1 < steps:
            v = (v + at(x + dt * v, step + 1)) / 2
        x = x + dt * v
    return x
